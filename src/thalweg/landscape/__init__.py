"""The loss landscape: how it settles as samples are added, and what it looks like (seed 003)."""

from thalweg.landscape.edge_of_stability import EdgeOfStability, SharpnessRow
from thalweg.landscape.expected import expected_increments
from thalweg.landscape.increments import IncrementCurve, loss_increments
from thalweg.landscape.noise_scale import NoiseScale, gradient_noise_scale, noise_scale_from_norms
from thalweg.landscape.paths import Path, bezier_path, linear_path, spherical_path
from thalweg.landscape.planes import (
    Plane,
    eigenvector_plane,
    filter_normalised_direction,
    filter_normalised_plane,
    loss_surface,
    trajectory_plane,
)
from thalweg.landscape.sample_losses import neighbourhood, per_sample_losses
from thalweg.landscape.sharpness import AverageSharpness, average_sharpness, sam_sharpness, worst_case_sharpness
from thalweg.landscape.spectra import SpectrumGrowth, spectrum_growth
from thalweg.landscape.sufficient_size import SufficientSize, sufficient_size

__all__ = [
    "AverageSharpness",
    "EdgeOfStability",
    "IncrementCurve",
    "NoiseScale",
    "Path",
    "Plane",
    "SharpnessRow",
    "SpectrumGrowth",
    "SufficientSize",
    "average_sharpness",
    "bezier_path",
    "eigenvector_plane",
    "expected_increments",
    "filter_normalised_direction",
    "filter_normalised_plane",
    "gradient_noise_scale",
    "linear_path",
    "loss_increments",
    "loss_surface",
    "neighbourhood",
    "noise_scale_from_norms",
    "per_sample_losses",
    "sam_sharpness",
    "spectrum_growth",
    "spherical_path",
    "sufficient_size",
    "trajectory_plane",
    "worst_case_sharpness",
]
