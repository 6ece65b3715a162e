"""A layer as a linear operator."""

from thalweg.operators.bidiagonalization import Extremes, extreme_singular_values
from thalweg.operators.convolution import ConvolutionOperator
from thalweg.operators.frame import FrameBounds, dual_frame, frame_bounds, reconstruct
from thalweg.operators.layer import DenseOperator, LayerOperator
from thalweg.operators.sizes import InputShapes, input_shapes
from thalweg.operators.spectrum import (
    known_singular_values,
    largest_singular_value,
    negligible,
    power_iteration,
    singular_values,
    spectral_norm,
)
from thalweg.operators.weights import applied_weight

__all__ = [
    "ConvolutionOperator",
    "DenseOperator",
    "Extremes",
    "FrameBounds",
    "InputShapes",
    "LayerOperator",
    "applied_weight",
    "dual_frame",
    "extreme_singular_values",
    "frame_bounds",
    "input_shapes",
    "known_singular_values",
    "largest_singular_value",
    "negligible",
    "power_iteration",
    "reconstruct",
    "singular_values",
    "spectral_norm",
]
