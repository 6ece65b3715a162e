r"""Which taps of a convolution's kernel meet in which entries of its Gram matrix: few sets, however large the map is.

V is WᵀW (``"col"``: rows are inputs; ``"read"``: only those that some output reads) or WWᵀ (``"row"``: outputs). For a
convolution it has one block for each two positions, a sum Σ G[t, t'] of products of taps, G[t, t'] = X_t X_t'ᵀ with X_t
the kernel's slice at tap t. Along one axis, the row of V at a position is described by the set of pairs (t, t') that
meet in each of its entries; positions with equal descriptions form a *row type*. A 3-tap axis with zero padding 1 has 5
row types and 7 sets, at any map size; each phase of a stride adds its own. In several dimensions both multiply.

Everything is found by enumerating one axis at a time (`axis_rows`): borders, stride, dilation, circular wrap-around on
maps smaller than the kernel, are no separate cases. Seed 002 (slide 6) writes W as a dense block-Toeplitz matrix; for
512 channels on a 4 x 4 map that is 8192 x 8192.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AxisRows", "AxisShape", "Block", "Pairs", "Plan", "axis_rows", "axis_shapes", "make_plan", "pixels_read"]

Pairs = tuple[tuple[int, int], ...]  # taps (t, t') that meet in one entry of V, with repetition, in order


class AxisShape(NamedTuple):
    """One axis of a convolution: output u reads input s·u + d·t - p at tap t, modulo the size if circular."""

    size: int
    taps: int
    stride: int
    padding: int
    dilation: int
    outputs: int
    circular: bool


def axis_shapes(
    kernel: Sequence[int],
    size: Sequence[int] | None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    circular: bool = False,
) -> tuple[AxisShape, ...]:
    """The axes of a convolution; without a map's size, those of a circle too long for a kernel to meet itself.

    Args:
        kernel: taps on each axis.
        size: input positions on each axis, or None for the interior of any map.
        stride: s, one number for all axes or one for each.
        padding: p likewise, or "same" or "valid" as in ``torch.nn.Conv2d``.
        dilation: d likewise.
        circular: the map wraps around instead of being padded with zeros.

    Raises:
        ValueError: sequences of unequal lengths, or a map without room for the kernel.

    >>> axis_shapes((3,), (8,), stride=2, padding=1)[0].outputs
    4
    """
    D = len(kernel)

    def each(value: int | Sequence[int], name: str) -> tuple[int, ...]:
        values = (value,) * D if isinstance(value, int) else tuple(value)
        if len(values) != D:
            raise ValueError(
                f"{name}={value} has {len(values)} entries, but the kernel has {D} axes: give one for each"
            )
        return values

    steps, gaps = each(stride, "stride"), each(dilation, "dilation")
    if size is None:
        turns = [2 * d * (k - 1) // s + 1 for k, s, d in zip(kernel, steps, gaps, strict=True)]
        return tuple(
            AxisShape(s * u, k, s, 0, d, u, True) for u, k, s, d in zip(turns, kernel, steps, gaps, strict=True)
        )
    if padding == "same":
        pads = [(d * (k - 1) // 2, d * (k - 1)) for k, d in zip(kernel, gaps, strict=True)]
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        pads = [(0, 0)] * D
    else:
        pads = [(p, 2 * p) for p in each(padding, "padding")]
    axes = []
    for h, k, s, d, (left, both) in zip(each(size, "size"), kernel, steps, gaps, pads, strict=True):
        outputs = (h + both - d * (k - 1) - 1) // s + 1
        if outputs < 1:
            raise ValueError(
                f"a map of size {tuple(size)} padded by {padding} has no room for a kernel of size {tuple(kernel)} and "
                f"dilation {dilation}: give the size of the layer's input map"
            )
        axes.append(AxisShape(h, k, s, left, d, outputs, circular))
    return tuple(axes)


def pixels_read(axis: AxisShape) -> int:
    """How many input positions some output reads.

    >>> pixels_read(AxisShape(8, 1, 2, 0, 1, 4, circular=False))
    4
    """
    last = axis.stride * (axis.outputs - 1) + axis.dilation * (axis.taps - 1) - axis.padding
    if axis.stride == 1 and axis.dilation <= axis.outputs and not axis.circular:  # one interval
        return min(last, axis.size - 1) + 1 - max(-axis.padding, 0)
    reads = {axis.stride * u + axis.dilation * t - axis.padding for u in range(axis.outputs) for t in range(axis.taps)}
    return len({q % axis.size for q in reads}) if axis.circular else len([q for q in reads if 0 <= q < axis.size])


@dataclass(frozen=True, eq=False)
class AxisRows:
    """Rows of V along one axis of a convolution: what `axis_rows` finds.

    Attributes:
        pairs: the distinct sets of tap pairs that occur as entries: M of them.
        counts: how many positions have each row type: (N,).
        entries: how often each set occurs in each row type: (N, M).
        diagonal: which set is the entry on V's diagonal, for each row type; -1 where no tap reads the position: (N,).
    """

    pairs: list[Pairs]
    counts: list[int]
    entries: list[list[int]]
    diagonal: list[int]


def axis_rows(axis: AxisShape, side: str) -> AxisRows:
    """Row types of the Gram matrix of a one-channel convolution along one axis, borders included.

    Args:
        axis: the axis.
        side: "col" for WᵀW (rows are inputs), "read" for the inputs that some output reads, "row" for WWᵀ.

    >>> rows = axis_rows(AxisShape(8, 3, 1, 1, 1, 8, circular=False), "col")
    >>> rows.counts  # two positions at either border, and the interior
    [1, 1, 4, 1, 1]
    >>> len(rows.pairs)  # lags -2..2; at lag 0 all taps, or all but the last, or all but the first
    7
    """
    # Entry (i, j) of V sums over the positions of the other side that both i and j meet.
    meetings: list[list[tuple[int, int]]] = [[] for _ in range(axis.size if side == "row" else axis.outputs)]
    for u, t in itertools.product(range(axis.outputs), range(axis.taps)):
        q = axis.stride * u + axis.dilation * t - axis.padding
        if axis.circular or 0 <= q < axis.size:
            q %= axis.size
            row, other = (u, q) if side == "row" else (q, u)
            meetings[other].append((row, t))
    rows: list[dict[int, list[tuple[int, int]]]] = [{} for _ in range(axis.outputs if side == "row" else axis.size)]
    for meeting in meetings:
        for (i, first), (j, second) in itertools.product(meeting, meeting):
            rows[i].setdefault(j, []).append((first, second))
    found: Counter[tuple[Pairs, tuple[Pairs, ...]]] = Counter()
    for i, meets in enumerate(rows):
        if side == "read" and not meets:
            continue
        entry = {j: tuple(sorted(pairs)) for j, pairs in meets.items()}
        found[entry.get(i, ()), tuple(sorted(entry.values()))] += 1
    pairs = sorted({pairs for _, entries in found for pairs in entries})
    times = [Counter(entries) for _, entries in found]
    diagonal = [pairs.index(own) if own else -1 for own, _ in found]
    return AxisRows(pairs, list(found.values()), [[t[p] for p in pairs] for t in times], diagonal)


@dataclass(frozen=True, eq=False)
class Block:
    """Sets of pairs that share pairs, and what they are made of.

    Attributes:
        kinds: the sets, as indices into the product of the axes' sets: (K,).
        mirror: the sets of the transposed entries, in the same order: (K,).
        atoms: pairs of taps that occur in the same sets, each as often as the others of its atom: P of them.
        member: how often each atom occurs in each set: (K, P).
        symmetric: the block is its own mirror.
        single: one set, of one atom, once.
    """

    kinds: list[int]
    mirror: list[int]
    atoms: list[Pairs]
    member: Tensor
    symmetric: bool
    single: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about the Gram matrix of a convolution but its weights.

    Attributes:
        blocks: all sets that occur.
        half: one of each two blocks that mirror each other, and the symmetric ones.
        entries: how often each set occurs in each row type: (N, M).
        diagonal: 1 where a set is the diagonal entry of a row type: (N, M).
        share: of all positions, those with each row type: (N,); sums to 1.
    """

    blocks: list[Block]
    half: list[Block]
    entries: Tensor
    diagonal: Tensor
    share: Tensor


@lru_cache(maxsize=512)
def make_plan(shapes: tuple[AxisShape, ...], side: str) -> Plan:
    """Products over the axes of row types, sets and pairs; taps and sets are numbered with the last axis fastest.

    >>> plan = make_plan(axis_shapes((3, 3), (32, 32), padding=1), "col")
    >>> len(plan.share), sum(len(block.kinds) for block in plan.half)  # row types; matrices to be computed
    (25, 29)
    """
    axes = [axis_rows(shape, side) for shape in shapes]
    taps, sizes = [shape.taps for shape in shapes], [len(axis.pairs) for axis in axes]
    blocks = [_product(factors, taps, sizes) for factors in itertools.product(*map(_axis_blocks, axes))]
    half = [block for block in blocks if block.symmetric or min(block.kinds) < min(block.mirror)]
    entries, diagonal, share = torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, dtype=torch.float64)
    for axis in axes:
        own = torch.tensor(axis.diagonal)[:, None] == torch.arange(len(axis.pairs))
        entries = _kron(entries, torch.tensor(axis.entries, dtype=torch.float32))
        diagonal = _kron(diagonal, own.float())
        share = _kron(share, torch.tensor(axis.counts, dtype=torch.float64) / sum(axis.counts))
    return Plan(blocks, half, entries, diagonal, share)


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product of vectors or matrices (torch.kron refuses some strides of the latter)."""
    if a.ndim == 1:
        return (a[:, None] * b).flatten()
    return (a[:, None, :, None] * b[:, None, :]).flatten(0, 1).flatten(1)


def _axis_blocks(axis: AxisRows) -> list[Block]:
    """Connected components of the sets of one axis under sharing a pair: for zero padding, one for each lag t' - t."""
    index = {pairs: mu for mu, pairs in enumerate(axis.pairs)}
    remaining = list(range(len(axis.pairs)))
    blocks = []
    while remaining:
        kinds = [remaining.pop(0)]
        reached = set(axis.pairs[kinds[0]])
        while more := [mu for mu in remaining if reached & set(axis.pairs[mu])]:
            kinds += more
            reached.update(*(axis.pairs[mu] for mu in more))
            remaining = [mu for mu in remaining if mu not in more]
        atoms: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for pair in sorted(reached):
            atoms.setdefault(tuple(axis.pairs[mu].count(pair) for mu in kinds), []).append(pair)
        mirror = [index[tuple(sorted((s, t) for t, s in axis.pairs[mu]))] for mu in kinds]
        member = torch.tensor(list(atoms), dtype=torch.float32).T
        single = member.tolist() == [[1.0]]
        blocks.append(Block(kinds, mirror, [*map(tuple, atoms.values())], member, set(mirror) == set(kinds), single))
    return blocks


def _product(factors: tuple[Block, ...], taps: list[int], sizes: list[int]) -> Block:
    """The block whose sets of pairs are the products of one block's sets on each axis."""

    def flat(places: tuple[int, ...], lengths: list[int]) -> int:
        index = 0
        for place, length in zip(places, lengths, strict=True):
            index = index * length + place
        return index

    kinds = [flat(mu, sizes) for mu in itertools.product(*(f.kinds for f in factors))]
    mirror = [flat(mu, sizes) for mu in itertools.product(*(f.mirror for f in factors))]
    atoms = []
    for atom in itertools.product(*(f.atoms for f in factors)):
        first_and_second = (zip(*pairs, strict=True) for pairs in itertools.product(*atom))
        atoms.append(tuple((flat(t, taps), flat(s, taps)) for t, s in first_and_second))
    member = torch.ones(1, 1)
    for factor in factors:
        member = _kron(member, factor.member)
    symmetric, single = (all(flags) for flags in zip(*((f.symmetric, f.single) for f in factors), strict=True))
    return Block(kinds, mirror, atoms, member, symmetric, single)
