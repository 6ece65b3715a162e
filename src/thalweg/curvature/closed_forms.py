r"""Bounds on ||H_O|| of one sample that need only sizes and the largest weight: seed 003 as printed, and corrected.

    f(x) = T⁽ᴸ⁺¹⁾ Λ⁽ᴸ⁾ … Λ⁽¹⁾ T⁽¹⁾ x,   H_O = Qᵀ Fᵀ A F Q

All rest on one chain of norms. The block of dz/dθ that belongs to layer p has norm at most q_p |x| Π_{s≠p} ||T⁽ˢ⁾||, so

    ||H_O|| <= ||A|| |x|² Σ_p q_p² Π_{s≠p} ||T⁽ˢ⁾||²,   q_p = ||Q⁽ᵖ⁾||,  Q⁽ᵖ⁾ = dT⁽ᵖ⁾/dW⁽ᵖ⁾

for L + 1 linear layers without biases and ||Λ|| <= 1. The seed takes ||A|| <= √2; the truth is 1/2 (Gershgorin: row c
of diag(p) - ppᵀ has absolute sum 2 p_c(1 - p_c)), reached at two classes of equal probability. Letters are the seed's:
``x2`` is the squared norm of x, ``w2`` the largest squared weight, C channels, k kernel side, d length, m x n map,
L + 1 convolutions.

What the seed prints holds for ||H_O|| with two exceptions: lemma 4 has a ratio upside down, and lemma 3's exponent is
that of average pooling only. None of it bounds the full ||H||, although the seed replaces one by the other: H_F falls
as w for two layers where H_O falls as w².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

from torch import Tensor

__all__ = [
    "LayerSize",
    "Pool",
    "closed_form",
    "fully_connected",
    "lemma_2",
    "lemma_3",
    "lemma_4",
    "theorem_1",
    "theorem_2",
]

Number = TypeVar("Number", float, Tensor)


def lemma_2(x2: Number, *, q2: float, t2: float, L: int, constant: float = sqrt(2)) -> Number:
    """√2 q² |x|² (L+1) w_T^{2L} for ||Q⁽ᵖ⁾||² <= q2 and ||T⁽ᵖ⁾||² <= t2 in all L + 1 layers.

    >>> round(lemma_2(1.0, q2=4.0, t2=3.0, L=1), 4), lemma_2(1.0, q2=4.0, t2=3.0, L=1, constant=0.5)
    (33.9411, 12.0)
    """
    return constant * q2 * x2 * (L + 1) * t2**L


def theorem_1(x2: Number, *, C: int, w2: float, k: int, d: int, L: int) -> Number:
    """√2 |x|² d² (L+1) (C² w² k d)^L for convolutions in one dimension.

    Uses q² = d², where ||Q||² is d.

    >>> round(theorem_1(1.0, C=1, w2=1.0, k=1, d=1, L=0), 4)
    1.4142
    """
    return lemma_2(x2, q2=d**2, t2=C**2 * w2 * k * d, L=L)


def theorem_2(x2: Number, *, C: int, w2: float, k: int, m: int, n: int, L: int) -> Number:
    """√2 |x|² C² k² m n (L+1) (C² k² w² m n)^L for convolutions in two dimensions.

    Uses q² = ||Q||_F² = C² k² m n, where ||Q||² is m n.

    >>> round(theorem_2(1.0, C=1, w2=1.0, k=1, m=1, n=1, L=1), 4)
    2.8284
    """
    return lemma_2(x2, q2=C**2 * k**2 * m * n, t2=C**2 * k**2 * w2 * m * n, L=L)


@dataclass(frozen=True)
class Pool:
    """Pooling with kernel = stride = k_pool and no padding, in place of the l-th non-linearity (l from 1).

    Attributes:
        l: its place.
        k: k_pool.
        average: whether it averages; otherwise it takes the maximum.
    """

    l: int  # noqa: E741
    k: int
    average: bool


def lemma_3(
    x2: Number, *, C: int, w2: float, k: int, m: int, n: int, L: int, pools: Sequence[Pool], corrected: bool = False
) -> Number:
    """Theorem 2 divided by k_pool^{2(L-l+2)} for each pooling.

    Of the exponent, 2(L-l+1) comes from smaller maps behind the pooling, the last 2 from the norm of the pooling
    itself, which is 1/k_pool for an average and 1 for a maximum.

    Args:
        x2: |x|².
        C: channels.
        w2: largest squared weight.
        k: kernel side.
        m: height of the maps before any pooling.
        n: their width.
        L: convolutions less one.
        pools: where they stand.
        corrected: take 2(L-l+1) for maxima; as printed, the seed does not tell the two apart.

    >>> sizes = {"C": 1, "w2": 1.0, "k": 1, "m": 2, "n": 2, "L": 1}
    >>> [lemma_3(1.0, pools=[Pool(1, 2, False)], corrected=c, **sizes) / theorem_2(1.0, **sizes) for c in (False, True)]
    [0.0625, 0.25]
    """
    bound = theorem_2(x2, C=C, w2=w2, k=k, m=m, n=n, L=L)
    for pool in pools:
        bound = bound / pool.k ** (2 * (L - pool.l + (2 if pool.average or not corrected else 1)))
    return bound


def lemma_4(
    x2: Number,
    *,
    C: int,
    w2: float,
    k: int,
    m: int,
    n: int,
    L: int,
    P: int,
    h: int,
    v2: float,
    corrected: bool = False,
) -> Number:
    """√2 |x|² C² k² m n (h² v²)^P (k² C² w² m n)^L (L + 1 + P ρ) for L + 1 convolutions and P linear layers.

    Layer p's own matrix is missing from its term, so in a term of the head one factor h² v² is replaced by
    k² C² w² m n: ρ = k² C² w² m n / (h² v²). The seed prints 1/ρ. The printed bound vanishes with v as v^{2P}, H_O only
    as v^{2(P-1)}: at v = 10⁻⁶ small networks exceed it 10⁵ to 10⁹ times.

    Args:
        x2: |x|².
        C: channels of the convolutions.
        w2: their largest squared weight.
        k: their kernel side.
        m: height of their maps.
        n: width of their maps.
        L: convolutions less one.
        P: linear layers.
        h: the largest of their widths, the flattened map included.
        v2: their largest squared weight, w̃².
        corrected: ρ in place of 1/ρ.

    >>> # z = v w x, so that H_O has the norm |x|² (v² + w²) |A|
    >>> sizes = {"C": 1, "w2": 1.0, "k": 1, "m": 1, "n": 1, "L": 0, "P": 1, "h": 1}
    >>> [round(lemma_4(1.0, v2=1e-4, corrected=c, **sizes), 4) for c in (False, True)]
    [0.0001, 1.4144]
    """
    conv, head = k**2 * C**2 * w2 * m * n, h**2 * v2
    if corrected:  # multiplied out, so that v = 0 is allowed
        last = (L + 1) * head**P + P * conv * head ** (P - 1)
    else:
        last = head**P * (L + 1 + P * head / conv) if conv else float("inf")
    return sqrt(2) * C**2 * k**2 * m * n * conv**L * last * x2


def fully_connected(x2: Number, *, t2: float, L: int) -> Number:
    """√2 L M_x² M_W^{2L} + √2 M_W² (M_W^{2L} - 1)/(M_W² - 1), the theorem of Kiselev and Grabovoy (arXiv 2409.11995).

    For ||W⁽ᵖ⁾||² <= t2 = M_W² in L fully connected layers; the second term stands for biases. As the weights of layer p
    are missing from its own term, the first has one factor M_W² too many: without biases it fails for small M_W.

    >>> round(fully_connected(1.0, t2=1.0, L=2), 4)
    5.6569
    """
    geometric = sum(t2**i for i in range(L))
    return sqrt(2) * L * t2**L * x2 + sqrt(2) * t2 * geometric


@dataclass(frozen=True)
class LayerSize:
    """What a closed form may know of a layer.

    Attributes:
        inputs: channels, or features of a linear layer.
        outputs: likewise.
        taps: entries of the kernel, 1 for a linear layer.
        positions: of the output map, 1 for a linear layer.
        w2: its largest squared weight.
    """

    inputs: int
    outputs: int
    taps: int
    positions: int
    w2: float


def closed_form(x2: Number, layers: Sequence[LayerSize]) -> Number:
    """|x|²/2 Σ_p κ_p² Π_{s≠p} t_s, valid and far below the printed ones, for layers of any sizes.

    κ² = min(taps, positions) bounds ||unfold(h)||²/|h|², which is all that Q does; ||T||² is bounded by
    ||T||₁ ||T||_∞ <= t = inputs·outputs·taps·κ²·w². With equal layers: |x|²/2 κ² (L+1) (C² taps κ² w²)^L.

    >>> closed_form(1.0, [LayerSize(1, 1, 3, 5, 1.0)] * 2)
    27.0
    """
    kappa2 = [min(layer.taps, layer.positions) for layer in layers]
    t = [layer.inputs * layer.outputs * layer.taps * k2 * layer.w2 for layer, k2 in zip(layers, kappa2, strict=True)]
    total = 0.0
    for p, term in enumerate(kappa2):
        product = float(term)
        for s, factor in enumerate(t):
            product *= 1.0 if s == p else factor
        total += product
    return 0.5 * total * x2
