r"""Row sums of |V| and the diagonal of V for a layer's Gram matrix V, without forming it, and their gradient.

S_i = Σ_j |v_ij| is a sum over the sets of tap pairs of `thalweg.regularize.row_types`:

    one matrix product for each pair of taps (half of them: v_ij = v_ji), accumulated straight into the sums V needs;
    |·| summed along rows and columns once per set, wherever on the map and however often it occurs;
    in the other direction sign(V) times row weights.

For a 3 x 3 kernel with padding 1, on any map: 45 r² l multiply-adds for S, 81 r² l for a gradient, and memory for 29
matrices r x r (r row channels, l summed ones). A sample of n row channels cannot use the symmetry: 243 n r l in all,
as three products of large matrices, and memory for 243 matrices n x r.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.regularize.row_types import Block, Plan

__all__ = ["circles", "circles_gradient", "kernel_of_taps", "taps_of_kernel"]


def taps_of_kernel(kernel: Tensor, side: str) -> Tensor:
    """X: (g, T, r, l) from a kernel (g, out, in, taps…): r is out for "row", in otherwise."""
    K = kernel.flatten(3) if kernel.ndim > 3 else kernel.unsqueeze(3)
    return K.permute((0, 3, 1, 2) if side == "row" else (0, 3, 2, 1)).contiguous()


def kernel_of_taps(X: Tensor, side: str) -> Tensor:
    """The inverse of `taps_of_kernel`, up to the shape of the taps: (g, out, in, T)."""
    return X.permute((0, 2, 3, 1) if side == "row" else (0, 3, 2, 1))


def circles(X: Tensor, plan: Plan, rows: Tensor | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Absolute row sums S and diagonal v of V, for each of N row types, g groups and n row channels.

    Args:
        X: (g, T, r, l): the taps of g groups as matrices of r row channels and l summed ones.
        plan: what the layer's geometry says about V.
        rows: indices of n row channels; None is all r.

    Returns:
        S: (N, g, n) and v: (N, g, n), and the sets' matrices (K, g, n, r) for each of the plan's blocks: half of them
        if ``rows`` is None.
    """
    Y = X if rows is None else X[:, :, rows]
    g, _, n, _ = Y.shape
    entries, on_diagonal = plan.entries.to(X), plan.diagonal.to(X)
    sums, diagonal = X.new_zeros(entries.shape[1], g, n), X.new_zeros(entries.shape[1], g, n)
    sets = []
    pairs = None if rows is None else _pairs(Y, X)
    for block in plan.half if rows is None else plan.blocks:
        V = _sets(X, block) if pairs is None else _sets_of_pairs(pairs, block)
        size = V.abs()
        sums[block.kinds] = size.sum(-1)
        if block.symmetric:
            diagonal[block.kinds] = V.gather(-1, _own(V, rows)).squeeze(-1)
        elif rows is None:
            sums[block.mirror] = size.sum(-2)
        sets.append(V)
    return torch.tensordot(entries, sums, dims=1), torch.tensordot(on_diagonal, diagonal, dims=1), sets


def circles_gradient(
    X: Tensor, plan: Plan, sets: list[Tensor], dS: Tensor, dv: Tensor, rows: Tensor | None = None
) -> Tensor:
    """dR/dX from dR/dS and dR/dv, both (N, g, n); ``sets`` from `circles` are overwritten."""
    Y = X if rows is None else X[:, :, rows]
    dX, dpairs = torch.zeros_like(X), X.new_zeros(0) if rows is None else X.new_zeros(*Y.shape[:3], *X.shape[1:3])
    w = torch.tensordot(plan.entries.T.to(X), dS, dims=1)
    u = torch.tensordot(plan.diagonal.T.to(X), dv, dims=1)
    for block, V in zip(plan.half if rows is None else plan.blocks, sets, strict=True):
        D = V.sign_()
        if rows is None:  # v_ij and v_ji at once
            D.mul_(w[block.kinds].unsqueeze(-1) + w[block.mirror].unsqueeze(-2))
        else:
            D.mul_(w[block.kinds].unsqueeze(-1))
        if block.symmetric:
            diagonal = u[block.kinds] if rows is not None else 2 * u[block.kinds]
            D.scatter_add_(-1, _own(V, rows), diagonal.unsqueeze(-1))
        if not block.single:
            D = torch.tensordot(block.member.T.to(X), D, dims=1)
        if rows is None:
            _add_sets_gradient(dX, X, D, block)
        else:
            for d, atom in zip(D, block.atoms, strict=True):
                for t, s in atom:
                    dpairs[:, t, :, s] = d
    if rows is None:
        return dX
    D = dpairs.flatten(3).flatten(1, 2)
    dX = (D.mT @ Y.flatten(1, 2)).reshape(X.shape)
    return dX.index_add_(2, rows, (D @ X.flatten(1, 2)).reshape(Y.shape))


def _own(V: Tensor, rows: Tensor | None) -> Tensor:
    """Column of the diagonal entry in every row of V (K, g, n, r): (K, g, n, 1)."""
    own = torch.arange(V.shape[2], device=V.device) if rows is None else rows
    return own.expand(V.shape[:3]).unsqueeze(-1)


def _sets(X: Tensor, block: Block) -> Tensor:
    """Σ X_t X_t'ᵀ over the pairs of each set: (K, g, r, r)."""
    G = X.new_empty(len(block.atoms), X.shape[0], X.shape[2], X.shape[2])
    for out, atom in zip(G, block.atoms, strict=True):
        for i, (t, s) in enumerate(atom):
            torch.baddbmm(out, X[:, t], X[:, s].mT, beta=int(i > 0), out=out)
    return G if block.single else torch.tensordot(block.member.to(X), G, dims=1)


def _add_sets_gradient(dX: Tensor, X: Tensor, D: Tensor, block: Block) -> None:
    """The derivative of the atoms' sums: dX_t += D X_t' and, but for a block's own mirror, dX_t' += Dᵀ X_t."""
    for d, atom in zip(D, block.atoms, strict=True):
        for t, s in atom:
            dX[:, t].baddbmm_(d, X[:, s])
            if not block.symmetric:
                dX[:, s].baddbmm_(d.mT, X[:, t])


def _pairs(Y: Tensor, X: Tensor) -> Tensor:
    """Y_t X_t'ᵀ for all pairs of taps, by one product: (g, T, n, T, r)."""
    return (Y.flatten(1, 2) @ X.flatten(1, 2).mT).reshape(*Y.shape[:3], *X.shape[1:3])


def _sets_of_pairs(pairs: Tensor, block: Block) -> Tensor:
    """The sums over the pairs of each set from the products of all: (K, g, n, r)."""
    G = pairs.new_zeros(len(block.atoms), pairs.shape[0], pairs.shape[2], pairs.shape[4])
    for out, atom in zip(G, block.atoms, strict=True):
        for t, s in atom:
            out += pairs[:, t, :, s]
    return G if block.single else torch.tensordot(block.member.to(G), G, dims=1)
