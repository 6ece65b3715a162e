"""The curvature of a loss, exactly: products, extreme eigenvalues, trace, spectral density, samples (seed 003)."""

from thalweg.curvature.blocks import Decomposition, LayerCurvature, decompose, layer_blocks, layer_curvature
from thalweg.curvature.bounds import Bound, HessianBounds, hessian_bounds
from thalweg.curvature.chain import layer_matrix
from thalweg.curvature.density import SpectralDensity, spectral_density
from thalweg.curvature.exact_trace import exact_trace, exact_trace_obstacle
from thalweg.curvature.fisher import fisher_trace, sampled_factors
from thalweg.curvature.increment_bounds import IncrementBounds, increment_bounds
from thalweg.curvature.lanczos import Eigenpairs, Krylov, eigsh
from thalweg.curvature.matricization import Matricization, matricize
from thalweg.curvature.operator import CurvatureOperator
from thalweg.curvature.per_sample import PerSampleGGN, per_sample_ggn
from thalweg.curvature.trace import Estimate, trace

__all__ = [
    "Bound",
    "CurvatureOperator",
    "Decomposition",
    "Eigenpairs",
    "Estimate",
    "HessianBounds",
    "IncrementBounds",
    "Krylov",
    "LayerCurvature",
    "Matricization",
    "PerSampleGGN",
    "SpectralDensity",
    "decompose",
    "eigsh",
    "exact_trace",
    "exact_trace_obstacle",
    "fisher_trace",
    "hessian_bounds",
    "increment_bounds",
    "layer_blocks",
    "layer_curvature",
    "layer_matrix",
    "matricize",
    "per_sample_ggn",
    "sampled_factors",
    "spectral_density",
    "trace",
]
