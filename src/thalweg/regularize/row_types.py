r"""Which taps of a convolution's kernel meet in which entries of its Gram matrix: few sets, however large the map is.

V is WᵀW (``"col"``: rows are inputs; ``"read"``: only those that some output reads) or WWᵀ (``"row"``: outputs). For a
convolution it has one block for each two positions, a sum Σ G[t, t'] of products of taps, G[t, t'] = X_t X_t'ᵀ with X_t
the kernel's slice at tap t. Along one axis, the row of V at a position is described by the set of pairs (t, t') that
meet in each of its entries; positions with equal descriptions form a *row type*. A 3-tap axis with zero padding 1 has 5
row types and 7 sets, at any map size; each phase of a stride adds its own. In several dimensions both multiply.

Everything is found by enumerating one axis at a time (`axis_rows`), without most of its middle, which repeats itself:
borders, stride, dilation, circular wrap-around on maps smaller than the kernel, are no separate cases. Seed 002 (slide
6) writes W as a dense block-Toeplitz matrix; for 512 channels on a 4 x 4 map that is 8192 x 8192.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from thalweg.regularize.axes import AxisShape, middle, shortened

__all__ = ["AxisRows", "Block", "Pairs", "Plan", "axis_rows", "make_plan"]

Pairs = tuple[tuple[int, int], ...]  # taps (t, t') that meet in one entry of V, with repetition, in order


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
    axis, periods = shortened(axis)
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
    repeated = middle(axis, side)
    for i, meets in enumerate(rows):
        if side == "read" and not meets:
            continue
        entry = {j: tuple(sorted(pairs)) for j, pairs in meets.items()}
        found[entry.get(i, ()), tuple(sorted(entry.values()))] += 1 + periods * (i in repeated)
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

    >>> from thalweg.regularize.axes import axis_shapes
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
    sets: dict[tuple[int, int], Counter[int]] = {}  # pair -> how often it occurs in each set
    for mu, pairs in enumerate(axis.pairs):
        for pair in pairs:
            sets.setdefault(pair, Counter())[mu] += 1
    remaining = dict.fromkeys(range(len(axis.pairs)))
    blocks = []
    while remaining:
        kinds = [next(iter(remaining))]
        del remaining[kinds[0]]
        reached: set[tuple[int, int]] = set()
        for mu in kinds:  # grows meanwhile
            for pair in set(axis.pairs[mu]) - reached:
                reached.add(pair)
                more = [nu for nu in sets[pair] if nu in remaining]
                kinds += more
                for nu in more:
                    del remaining[nu]
        kinds.sort()
        atoms: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
        for pair in sorted(reached):
            atoms.setdefault(tuple(sorted(sets[pair].items())), []).append(pair)
        member = torch.zeros(len(kinds), len(atoms))
        row = {mu: place for place, mu in enumerate(kinds)}
        for column, counts in enumerate(atoms):
            for mu, count in counts:
                member[row[mu], column] = count
        mirror = [index[tuple(sorted((s, t) for t, s in axis.pairs[mu]))] for mu in kinds]
        single = member.shape == (1, 1) and bool(member == 1)
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
