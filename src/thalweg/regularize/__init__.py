"""Penalties of a model's weights, by one contract: additive, per layer, scheduled, coupled or decoupled."""

from thalweg.regularize.coefficients import SRIP_CIFAR, SRIP_IMAGENET, Schedule, constant, ramp, srip_table, stair
from thalweg.regularize.conv_orthogonality import ConvOrthogonality, conv_orthogonality
from thalweg.regularize.frame import FrameRegularizer, frame_penalty
from thalweg.regularize.frame_table import FrameRow, FrameTable, frame_report
from thalweg.regularize.gram import gram_side
from thalweg.regularize.hyperspherical import HypersphericalEnergy, hyperspherical_energy
from thalweg.regularize.initialization import FrameInit, frame_init_, tight_frame
from thalweg.regularize.layer import Layer
from thalweg.regularize.norms import L1, L2, soft_threshold
from thalweg.regularize.orthogonality import (
    DoubleSoftOrthogonality,
    MutualCoherence,
    SoftOrthogonality,
    double_soft_orthogonality,
    mutual_coherence,
    soft_orthogonality,
)
from thalweg.regularize.penalty import LayerPenalty, Penalty, PenaltySum
from thalweg.regularize.penalty_table import PenaltyRow, PenaltyTable
from thalweg.regularize.pruning import prune_channels_, taylor_scores
from thalweg.regularize.spectral import spectral_penalty
from thalweg.regularize.srip import SRIP, srip

__all__ = [
    "L1",
    "L2",
    "SRIP",
    "SRIP_CIFAR",
    "SRIP_IMAGENET",
    "ConvOrthogonality",
    "DoubleSoftOrthogonality",
    "FrameInit",
    "FrameRegularizer",
    "FrameRow",
    "FrameTable",
    "HypersphericalEnergy",
    "Layer",
    "LayerPenalty",
    "MutualCoherence",
    "Penalty",
    "PenaltyRow",
    "PenaltySum",
    "PenaltyTable",
    "Schedule",
    "SoftOrthogonality",
    "constant",
    "conv_orthogonality",
    "double_soft_orthogonality",
    "frame_init_",
    "frame_penalty",
    "frame_report",
    "gram_side",
    "hyperspherical_energy",
    "mutual_coherence",
    "prune_channels_",
    "ramp",
    "soft_orthogonality",
    "soft_threshold",
    "spectral_penalty",
    "srip",
    "srip_table",
    "stair",
    "taylor_scores",
    "tight_frame",
]
