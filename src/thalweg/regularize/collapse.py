r"""Where minimizing the seed's frame penalty would shrink a layer instead of building a frame.

    Σ_i r_i / Σ_i v_ii          Gershgorin's radii over the diagonal of V

In a row that is not diagonally dominant, r_i > v_ii, the term min(v_ii - r_i - A, 0)² falls as the weights shrink.
Where such rows prevail, minimization ends at W = 0 with R = A²: with a ratio of 4.4 it was seen to, with 3.1 not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from thalweg.regularize.axes import AxisShape
from thalweg.regularize.circles import circles, taps_of_kernel
from thalweg.regularize.row_types import make_plan

__all__ = ["radius_ratio", "warn_of_collapse"]

LIMIT = 3.0


def radius_ratio(kernel: Tensor, axes: Sequence[AxisShape], gram: str) -> float:
    """Mean Gershgorin radius over mean diagonal entry of a Gram matrix; 0 for a weight of zeros.

    Args:
        kernel: (groups, out, in, taps…).
        axes: the geometry of the layer, `LayerMap.axes`.
        gram: "col", "read" or "row".

    >>> import torch
    >>> from thalweg.regularize.axes import axis_shapes
    >>> W = torch.tensor([[1.0, 1.0], [0.0, 1.0]])  # WᵀW = [[1, 1], [1, 2]]
    >>> round(radius_ratio(W[None], axis_shapes((1,), (1,)), "col"), 4)
    0.6667
    """
    plan = make_plan(axes, gram)
    S, v, _ = circles(taps_of_kernel(kernel, gram), plan)
    share = plan.share.to(S)[:, None, None]
    diagonal = float((share * v).sum())
    return float((share * (S - v)).sum()) / diagonal if diagonal else 0.0


def warn_of_collapse(ratios: Mapping[str, float], lower: float, upper: float, *, stacklevel: int) -> None:
    """Name the layer of the largest ratio, by the weight's name, if it is above the limit."""
    found = [(ratio, path) for path, ratio in ratios.items() if ratio > LIMIT]
    if found:
        ratio, path = max(found)
        warnings.warn(
            f"the Gershgorin form will shrink {len(found)} layer(s) toward zero instead of building a frame: in "
            f"{path} the off-diagonal sums of the Gram matrix are {ratio:.3g} times its diagonal on average (above "
            f"{LIMIT:g} that was seen to happen); start from frame_init_(model, {lower}, {upper}) or "
            "use form='spectral'",
            stacklevel=stacklevel + 1,
        )
