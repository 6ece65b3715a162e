"""The lecture of seed 004 as pure functions: every formula as printed and, where that differs, as it is in torch."""

from thalweg.lecture.adaptive import adadelta, adagrad, adam, adamw, rmsprop
from thalweg.lecture.checklist import CHECKLIST, Row, markdown_table
from thalweg.lecture.comparisons import Measured
from thalweg.lecture.descent import Descent, descend, gradient_descent, minibatch_gradient
from thalweg.lecture.dropout import (
    all_masks,
    classic_dropout,
    geometric_average,
    inverted_dropout,
    keep_mask,
    mask_average,
    mask_probabilities,
)
from thalweg.lecture.early_stopping import EarlyStopping
from thalweg.lecture.inertia import look_ahead, momentum, nesterov
from thalweg.lecture.initialization import (
    backward_gain,
    forward_gain,
    gaussian_mean,
    glorot,
    kaiming,
    lecun,
    signal_power,
)
from thalweg.lecture.normalization import (
    RunningStatistics,
    batch_norm,
    batch_norm_inference,
    identity_parameters,
    layer_norm,
    within_sigmas,
    z_score,
)
from thalweg.lecture.polynomials import (
    PRINTED_FITS,
    PRINTED_RIDGE,
    corrected_fits,
    evaluate,
    fit_polynomial,
    noisy_sample,
    polynomial_features,
)
from thalweg.lecture.shrinkage import (
    alpha_of_weight_decay,
    l1_norm,
    lasso,
    ridge,
    weight_decay_of_alpha,
)
from thalweg.lecture.surfaces import cosine_gradient, cosine_surface, gradient_of, parabola, ravine, rosenbrock

__all__ = [
    "CHECKLIST",
    "PRINTED_FITS",
    "PRINTED_RIDGE",
    "Descent",
    "EarlyStopping",
    "Measured",
    "Row",
    "RunningStatistics",
    "adadelta",
    "adagrad",
    "adam",
    "adamw",
    "all_masks",
    "alpha_of_weight_decay",
    "backward_gain",
    "batch_norm",
    "batch_norm_inference",
    "classic_dropout",
    "corrected_fits",
    "cosine_gradient",
    "cosine_surface",
    "descend",
    "evaluate",
    "fit_polynomial",
    "forward_gain",
    "gaussian_mean",
    "geometric_average",
    "glorot",
    "gradient_descent",
    "gradient_of",
    "identity_parameters",
    "inverted_dropout",
    "kaiming",
    "keep_mask",
    "l1_norm",
    "lasso",
    "layer_norm",
    "lecun",
    "look_ahead",
    "markdown_table",
    "mask_average",
    "mask_probabilities",
    "minibatch_gradient",
    "momentum",
    "nesterov",
    "noisy_sample",
    "parabola",
    "polynomial_features",
    "ravine",
    "ridge",
    "rmsprop",
    "rosenbrock",
    "signal_power",
    "weight_decay_of_alpha",
    "within_sigmas",
    "z_score",
]
