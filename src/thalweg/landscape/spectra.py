r"""The spectrum of H^(k) = (1/k) Σ_{i<=k} H_i as samples are added: how the curvature settles (seed 003, section 3).

H^(k+1) - H^(k) = (H_{k+1} - H^(k)) / (k + 1), so eigenvalues move by at most ||H_{k+1} - H^(k)|| / (k + 1) (Weyl) and
eigenvectors little: each size starts from the vectors of the size before, and a random one for those that new samples
bring up beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.curvature import eigsh
from thalweg.curvature.lanczos import SymmetricOperator, Which

__all__ = ["SpectrumGrowth", "spectrum_growth"]


class SpectrumGrowth(NamedTuple):
    """Eigenvalues of H^(k) and their residuals by size: (sizes, k); a residual bounds the distance to an eigenvalue.

    >>> SpectrumGrowth((10, 100), torch.ones(2, 3), torch.zeros(2, 3)).values.shape
    torch.Size([2, 3])
    """

    sizes: tuple[int, ...]
    values: Tensor
    residuals: Tensor


def spectrum_growth(
    make_operator: Callable[[tuple[Any, Any]], SymmetricOperator],
    data: tuple[Tensor, Tensor],
    sizes: Sequence[int],
    *,
    k: int = 5,
    which: Which = "LA",
    tol: float = 1e-4,
    generator: torch.Generator | None = None,
) -> SpectrumGrowth:
    """Extreme eigenvalues of the curvature of the first samples, for growing numbers of them.

    Args:
        make_operator: from a pair (inputs, targets) to the operator of the mean over them, such as
            ``lambda part: CurvatureOperator(model, loss_fn, part, kind="ggn")``.
        data: a pair (inputs, targets).
        sizes: numbers of samples, increasing.
        k: eigenvalues of each.
        which: "LA" (largest), "SA" (smallest) or "BE" (both ends).
        tol: as for `eigsh`.
        generator: draws the order of the samples, on the CPU; None keeps the one given.

    Returns:
        The eigenvalues, in the order of `eigsh`; a multiple one, as linear models with several outputs have under
        squared error, may appear once.

    Raises:
        TypeError: data that are no pair of tensors, or sizes that are no whole numbers.
        ValueError: sizes that do not increase from at least 1 to at most the number of samples, or another number of
            targets than of inputs.

    >>> from thalweg.curvature import CurvatureOperator
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> data = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    >>> make = lambda part: CurvatureOperator(model, torch.nn.functional.mse_loss, part)
    >>> spectrum_growth(make, data, [1, 2, 3], k=1).values.flatten()  # 2 mean x²
    tensor([2.0000, 5.0000, 9.3333])
    """
    if not isinstance(data, (tuple, list)) or [isinstance(part, Tensor) for part in data] != [True, True]:
        raise TypeError(
            f"data must be a pair of tensors (inputs, targets), got {type(data).__name__}: join its batches"
        )
    x, y = data
    n, sizes = len(x), [index(size) for size in sizes]
    if len(y) != n:
        raise ValueError(f"{n} inputs and {len(y)} targets: one target for each expected, along the first axis")
    if not sizes or sizes[0] < 1 or sizes[-1] > n or any(b <= a for a, b in pairwise(sizes)):
        raise ValueError(f"sizes={sizes}: numbers increasing from at least 1 to at most {n} samples expected")
    if generator is not None:
        order = torch.randperm(n, generator=generator).to(x.device)
        x, y = x[order], y[order.to(y.device)]
    start, rows, draw = None, [], torch.Generator(x.device).manual_seed(0)
    for size in sizes:
        found = eigsh(make_operator((x[:size], y[:size])), k, which, tol, start=start)
        V = found.vectors
        fresh = torch.randn(len(V), 1, generator=draw, dtype=V.dtype, device=draw.device).to(V.device)
        start = torch.cat([V, fresh], 1) if len(V) > k else V  # they may be a basis already
        rows.append(found)
    return SpectrumGrowth(
        tuple(sizes), torch.stack([row.values for row in rows]), torch.stack([row.residuals for row in rows])
    )
