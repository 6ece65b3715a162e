"""The slope of the line of least squares: how fast one number grows with another."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

__all__ = ["least_squares_slope"]


def least_squares_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the line through the points (x, y) that is best in the mean square; x has at least two values.

    >>> least_squares_slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    2.0
    """
    middle = fmean(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
