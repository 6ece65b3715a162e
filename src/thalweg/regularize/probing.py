"""The spectral form in one layer of a model: its estimate, how many probes it takes, and how long a step is stable."""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from thalweg.operators import LayerOperator
from thalweg.regularize.axes import pixels_read
from thalweg.regularize.gram import GramSide, LayerMap
from thalweg.regularize.layer import CONVOLUTIONS, Layer
from thalweg.regularize.spectral import Estimate, probe_penalty, start_vector, step_factor

__all__ = ["layer_estimate", "layer_factor"]


def layer_estimate(
    layer: Layer,
    layer_map: LayerMap,
    side: GramSide,
    *,
    lower: float,
    upper: float,
    probes: int,
    vector: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """`probe_penalty` of a layer's operator.

    Args:
        layer: a dense layer or a convolution.
        layer_map: its geometry.
        side: which Gram matrix; A applies if that is bounded below.
        lower: A.
        upper: B.
        probes: at most so many.
        vector: that of the last call; None, or one of another shape, makes it start anew.
        generator: draws probes and start.
    """
    weight = layer.weight
    shape = layer.input_shape if isinstance(layer.module, CONVOLUTIONS) else None
    operator = LayerOperator.of(layer.module, shape, weight=weight)
    if vector is None or vector.shape != (operator.output_shape if side.gram == "row" else operator.input_shape):
        vector = start_vector(operator, gram=side.gram, generator=generator)
    return probe_penalty(
        operator,
        vector.to(weight),
        lower=lower if side.bounded_below else -math.inf,
        upper=upper,
        gram=side.gram,
        probes=_needed(*_rows(layer_map, side), probes),
        generator=generator,
    )


def layer_factor(layer_map: LayerMap, side: GramSide, probes: int) -> float:
    """`step_factor` of a layer for an estimate from at most so many probes; groups are layers side by side.

    >>> layer_map = LayerMap.of(torch.ones(8, 4, 3, 3), (8, 4, 4), padding=1, groups=2)
    >>> layer_factor(layer_map, layer_map.gram_side("auto"), 1)  # two groups of 4 channels, 16 positions
    8.0
    """
    channels, positions = _rows(layer_map, side)
    return layer_map.groups * step_factor(channels, positions, _needed(channels, positions, probes))


def _rows(layer_map: LayerMap, side: GramSide) -> tuple[int, int]:
    """Row channels of a group, and positions of the Gram matrix."""
    if side.gram == "row":
        return layer_map.channels[0], prod(axis.outputs for axis in layer_map.axes)
    return layer_map.channels[1], prod(pixels_read(axis) for axis in layer_map.axes)


def _needed(channels: int, positions: int, most: int) -> int:
    """Probes of a layer: one is enough for many positions."""
    return min(most, math.ceil(2 * channels / positions))
