"""Which of seed 003's bounds apply to a chain of layers, and their values, as printed and corrected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from thalweg.curvature.bound_terms import between_norms
from thalweg.curvature.chain import POOLS, Link
from thalweg.curvature.closed_forms import (
    LayerSize,
    Pool,
    fully_connected,
    lemma_2,
    lemma_3,
    lemma_4,
    theorem_1,
    theorem_2,
)

__all__ = ["layer_size", "printed_bounds"]


def layer_size(link: Link) -> LayerSize:
    """What the closed form needs to know of a layer."""
    W = link.module.weight.detach()
    groups = link.module.groups if isinstance(link.module, _ConvNd) else 1
    outputs, inputs, *kernel = W.shape
    return LayerSize(inputs, outputs // groups, math.prod(kernel), link.positions, float(W.abs().max()) ** 2)


def printed_bounds(
    links: Sequence[Link], x2: Tensor, tau: Sequence[float], omitted: dict[str, str]
) -> Iterator[tuple[str, Tensor, bool, str]]:
    """The seed's bounds on a chain without biases: name, value, whether it is proved, what to know.

    Args:
        links: the chain.
        x2: |x|², (n,).
        tau: upper bounds on ||T⁽ᵖ⁾||.
        omitted: gets the bounds that do not apply, and why.
    """
    if any(norm > 1 for norm in between_norms(links)):
        omitted["lemmas 2-4, theorems 1-2"] = "a map between layers is expansive: overlapping maxima, or a steep slope"
        return
    t2 = max(tau) ** 2
    yield "lemma 2", lemma_2(x2, q2=max(link.positions for link in links), t2=t2, L=len(links) - 1), True, ""
    convs = [link for link in links if link.is_convolution]
    head = links[len(convs) :]
    if not convs:
        note = "one factor M_W² too many in its first term: fails for small weights without biases"
        yield "fully connected", fully_connected(x2, t2=t2, L=len(links)), False, note
        return
    axes = {link.h.ndim - 2 for link in convs}
    if any(link.is_convolution for link in head) or axes not in ({1}, {2}):
        omitted["lemmas 3-4, theorems 1-2"] = "for convolutions in one or two dimensions, linear layers only after them"
        return
    weights = [link.module.weight.detach() for link in convs]
    w2 = max(float(W.abs().max()) for W in weights) ** 2
    C = max(max(W.shape[0], link.h.shape[1]) for W, link in zip(weights, convs, strict=True))
    k, L = max(max(W.shape[2:]) for W in weights), len(convs) - 1
    inputs, outputs = [link.h.shape[2:] for link in convs], [link.module(link.h[:1]).shape[2:] for link in convs]
    side = [max(sizes) for sizes in zip(*inputs, *outputs, strict=True)]
    if axes == {1}:
        if head:
            omitted["theorem 1, lemma 4"] = "no bound for convolutions in one dimension with linear layers after them"
        else:
            yield "theorem 1", theorem_1(x2, C=C, w2=w2, k=k, d=side[0], L=L), True, ""
        return
    m, n = side
    if head:
        h = max(max(link.module.weight.shape) for link in head)
        v2 = max(float(link.module.weight.detach().abs().max()) for link in head) ** 2
        note = "a ratio upside down: fails for small weights of the head"
        for name, right in (("lemma 4", False), ("lemma 4, corrected", True)):
            value = lemma_4(x2, C=C, w2=w2, k=k, m=m, n=n, L=L, P=len(head), h=h, v2=v2, corrected=right)
            yield name, value, right, "" if right else note
        return
    yield "theorem 2", theorem_2(x2, C=C, w2=w2, k=k, m=m, n=n, L=L), True, ""
    pools = _pools(convs, m * n)
    if isinstance(pools, str):
        omitted["lemma 3"] = pools
        return
    note = "its exponent is that of averages; no counterexample is known"
    averages = all(pool.average for pool in pools)
    for name, right in (("lemma 3", False), ("lemma 3, corrected", True)):
        value = lemma_3(x2, C=C, w2=w2, k=k, m=m, n=n, L=L, pools=pools, corrected=right)
        yield name, value, right or averages, "" if right or averages else note


def _pools(convs: Sequence[Link], positions: int) -> list[Pool] | str:
    """The pools in place of non-linearities, or why lemma 3 does not apply."""
    pools: list[Pool] = []
    for place, link in enumerate(convs, start=1):
        if link.positions * math.prod(pool.k**2 for pool in pools) > positions:
            return "maps do not stay as small as pooling made them"
        for step in link.after:
            if not isinstance(step.module, POOLS):
                continue
            if place == len(convs):
                return "pooling stands behind the last convolution"
            before, after = step.h.shape[2:], step.module(step.h[:1]).shape[2:]
            options: dict[str, Any] = vars(step.module)  # an adaptive pool has none of these
            implied = before[0] // after[0]
            kernel, stride = (_pair(options.get(name, implied)) for name in ("kernel_size", "stride"))
            if kernel != stride or kernel[0] != kernel[1] or any(_pair(options.get("padding", 0))):
                return "pooling needs a square kernel = stride and no padding"
            pools.append(Pool(place, int(kernel[0]), isinstance(step.module, (_AvgPoolNd, _AdaptiveAvgPoolNd))))
    return pools or "no pooling"


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
