r"""The law of the mean of k losses drawn without replacement, as points on a grid and their probabilities.

For few losses the sum has the characteristic function e_k(exp(iωx_1), …, exp(iωx_N)) / C(N, k), with the elementary
symmetric polynomial e_k from power sums by Newton's identities: exact but for the grid, up to k = 4√N or so, beyond
which the identities lose digits. A loss between two nodes is shared by them, which keeps its mean; the grid starts at
the median, near which a trained network has nearly all losses, so that those are not smeared over a cell that the
largest loss makes wide.

For many, with f = k / n of n = N - 1 others (one sample is outside), far losses j, and μ and n_r of the rest,

    k m = Σ_j B_j (x_j - μ) + k μ + k_r (1 - f)(U - V),   B_j = 1 with probability f, k_r = f n_r

with independent means U of k_r and V of n_r - k_r of the rest, with replacement: variance exact, skewness to O(1 / N).
A far loss is drawn once at most, so it has a B of its own: with replacement d_k would be off by 32 per cent for one
loss unlike 2999 others, and by 1 per cent for 20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Array", "Law", "dot", "mean_law", "sum_laws"]

Array = np.ndarray[Any, np.dtype[Any]]
Law = tuple[Array, Array]  # points and their probabilities
CELLS = 2**14
FINEST = {8: 2**17, 64: 2**16, 256: CELLS}  # for sums of up to so many losses, if the largest is far out
TAIL = 20.0  # a grid leaves out a mass below 2 exp(-20)
FAR = 20.0  # mean absolute deviations
FARTHEST = 64  # losses at most


def sum_laws(x: Array, most: int) -> Iterator[tuple[int, Law]]:
    """Law of the sum of n of the centred x without replacement, n = 0 … most (at most 256).

    >>> for n, (points, p) in sum_laws(np.array([-1.0, 1.0]), 1):
    ...     print(n, points, p)
    0 [0.] [1.]
    1 [-1.  1.] [0.5 0.5]
    """
    N, done, origin = len(x), 1, float(np.median(x))
    yield 0, (np.zeros(1), np.ones(1))
    yield 1, (x, np.full(N, 1 / N))
    wide = np.abs(x).max() / (FAR * np.abs(x).mean())
    for last, finest in ((min(size, most), finest) for size, finest in FINEST.items()):
        if last <= done:
            continue
        cells = min(finest, CELLS * 2 ** max(0, math.ceil(math.log2(wide))))
        frequencies = np.arange(cells // 2 + 1)
        step = 2 * _reach(x, last, last * float(x.var()), 1.0) / (cells - 4)
        z = np.fft.fft(_on_grid((x - origin) / step, cells))
        p = np.stack([z[j * frequencies % cells] for j in range(1, last + 1)]) / N  # power sums of exp(iωx)
        e = np.ones((last + 1, len(frequencies)), dtype=complex)  # e_k / C(N, k)
        for n in range(1, last + 1):
            j = np.arange(1, n + 1)
            weights = -np.cumprod(-(n - j + 1) / (N - n + j)) * N / n  # (-1)^(j-1) C(N, n-j) / C(N, n) · N / n
            e[n] = np.einsum("j,jw,jw->w", weights, e[n - 1 :: -1], p[:n])
            if n > done:
                yield n, _unrolled(np.fft.irfft(e[n], cells), step, n * origin)
        done = last


def mean_law(x: Array, k: int) -> Law:
    """Law of the mean of k of N - 1 others, for centred x and k far from 1 and from N - 1."""
    n, cells = len(x) - 1, CELLS
    f = k / n
    variance = (x @ x) / n * (1 / k - 1 / n)  # makes E(l_i - m)² = S² (1 + 1/k), as it is
    order = np.argsort(-np.abs(x))
    count = min(FARTHEST, int((np.abs(x) > FAR * np.abs(x).mean()).sum()))
    rest = x[order[count:]]
    far = (x[order[:count]] - rest.mean()) / k
    rest, n_r = rest - np.median(rest), n - count
    k_r = round(f * n_r)
    a, b = (1 - f) / k, 1 / n
    step = 2 * _reach(x, max(k, n - k), float(variance), max(a, b)) / (cells - 4)
    u, v = (np.fft.rfft(_on_grid(rest * scale / step, cells) / len(rest)) for scale in (a, b))
    p = np.fft.irfft(u**k_r * v.conj() ** (n_r - k_r), cells)
    for cell, share in zip(*_cells(far / step), strict=True):
        there = np.roll(p, cell)
        p = (1 - f) * p + f * ((1 - share) * there + share * np.roll(there, 1))
    points, p = _unrolled(p, step, -f * float(far.sum()))
    points -= dot(p, points)
    return points * np.sqrt(variance / dot(p, points**2)), p  # the grid's cells have widened it a little


def dot(p: Array, values: Array) -> float:
    """The scalar product, in this thread: BLAS would start others, and wait for them a hundred times as long."""
    return float((p * values).sum())


def _reach(x: Array, k: int, variance: float, scale: float) -> float:
    """Bernstein: a sum of k centred terms, each at most ``scale``·max|x|, stays within it but for exp(-TAIL)."""
    most = scale * float(np.abs(x).max())
    return min(float(np.sqrt(2 * TAIL * variance)) + 2 / 3 * TAIL * most, k * most)


def _on_grid(u: Array, cells: int) -> Array:
    """Count per cell of a periodic grid; a point between two cells is shared, which keeps its mean."""
    cell, share = _cells(u)
    return np.bincount(cell % cells, 1 - share, cells) + np.bincount((cell + 1) % cells, share, cells)


def _cells(u: Array) -> tuple[Array, Array]:
    """The node at or below every point, and the share of the next one."""
    cell = np.floor(u).astype(np.int64)
    return cell, u - cell


def _unrolled(p: Array, step: float, offset: float) -> Law:
    """A periodic law, whose node i is the point i·``step`` + ``offset``, on the period around 0."""
    first = -round(offset / step) - len(p) // 2
    nodes = np.arange(first, first + len(p))
    return nodes * step + offset, np.roll(p, -first)
