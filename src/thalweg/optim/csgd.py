r"""CSGD: the gradient step of a factorized layer, taken by the weight that is never factorized.

Seed 000 writes a layer's weight as A = W₁W₂ with W₁ orthogonal, lets SGD move both factors and reads off how the
product moves. With G = dL/dA and K = G Aᵀ:

    A' = A - lr (G + G Aᵀ A)                 seed 000, section 2: first order in lr
    A' = (I - lr K)(A - lr G)                the same step with its lr² term kept: ``exact``

Neither depends on which orthogonal W₁ is chosen, so W₁ = I will do and no factorization is ever computed. The step is
*re-anchored*: each one starts from a fresh factorization of the current A, so CSGD is not the trajectory of a two-layer
network (those differ by a few per cent after lr·t = 2, however small lr is).

Deviations from the seed: the seed drops the lr² term (kept by ``exact=True``), multiplies left to right (here the
cheapest association, 4·m·n·min(m, n) flops for any shape) and knows only the right side of one square-rooted pair;
``side`` and ``depth`` name the other members of the family. Learning rates are stable up to about 2 / (h (1 + s²)), h
the largest Hessian eigenvalue and s the largest singular value of A (`stable_lr`): weights that grow shorten it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from thalweg.optim._options import fill_missing_options

__all__ = ["CSGD", "Side", "direction_gain", "reparam_direction", "reparam_groups", "stable_lr"]

Side = Literal["right", "left", "both", "balanced"]
SIDES = ("right", "left", "both", "balanced")


def reparam_direction(weight: Tensor, grad: Tensor, *, side: Side = "right", depth: int = 2, lr: float = 0.0) -> Tensor:
    r"""Direction D of the step A - lr·D that moves the product of a factorized layer (seed 000, sections 2-3).

    ========  =====================================================  =======================================
    side      factors (Q orthogonal)                                 D to first order
    ========  =====================================================  =======================================
    right     A = Q₁ … Q_{N-1} (Qᵀ A)                                G + (N-1) G Aᵀ A
    left      A = (A Qᵀ) Q₁ … Q_{N-1}                                G + (N-1) A Aᵀ G
    both      N-1 orthogonal factors on either side of the weight    G + (N-1) (G Aᵀ A + A Aᵀ G)
    balanced  N factors with equal singular values s^{1/N}           Σⱼ (A Aᵀ)^{(N-j)/N} G (Aᵀ A)^{(j-1)/N}
    ========  =====================================================  =======================================

    N = ``depth``. N = 1 is plain SGD; ``side="balanced"`` is the implicit step of a deep linear network (Arora, Cohen,
    Hazan 2018) and costs one SVD. To first order every side descends: <G, D> >= <G, G>, for ``balanced`` <G, D> >= 0.

    Args:
        weight: A: (m, n), or (b, m, n) for b independent matrices.
        grad: G = dL/dA, same shape.
        side: where the orthogonal factors stand.
        depth: N >= 1, the number of factors (for ``both``: N-1 orthogonal ones on either side of the weight).
        lr: 0 gives the first-order direction; the step's own learning rate gives the exact one, for which
            A - lr·D = (I - lr G Aᵀ)^{N-1} (A - lr G) on the right, and the mirror image on the left.

    Returns:
        D, same shape as ``weight``; ``grad`` itself where D = G.

    Raises:
        ValueError: unknown side, depth below 1, tensors that are not matrices of equal shape, or ``balanced`` with
            ``lr`` (its exact step needs the factors themselves).

    >>> A, G = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> reparam_direction(A, G)  # G (I + Aᵀ A)
    tensor([[0., 2.],
            [5., 0.]])
    """
    _check_family(side, depth, exact=bool(lr))
    if weight.ndim not in (2, 3) or weight.shape != grad.shape:
        raise ValueError(
            f"reparam_direction needs (m, n) or (b, m, n) and a gradient of the same shape, got {tuple(weight.shape)} "
            f"and {tuple(grad.shape)}: reshape a convolution's weight to (out, in*k*k) first"
        )
    if side == "balanced":
        return _balanced_direction(weight, grad, depth)
    A, G, D = weight, grad, grad
    # To first order the N-1 orthogonal factors contribute equally: one product, scaled.
    passes, scale = (depth - 1, 1.0) if lr else (min(depth - 1, 1), float(depth - 1))
    if side in ("right", "both"):
        for _ in range(passes):
            P = torch.sub(A, D, alpha=lr) if lr else A
            D = _add_product(D, G, A.mT, P, scale)
    if side in ("left", "both"):
        for _ in range(passes):
            P = torch.sub(A, D, alpha=lr) if lr else A
            D = _add_product(D, P, A.mT, G, scale)
    return D


def _add_product(D: Tensor, X: Tensor, Y: Tensor, Z: Tensor, scale: float) -> Tensor:
    """D + scale·X Y Z for X, Z: (m, n) and Y: (n, m), associated the cheap way: 4·m·n·min(m, n) flops."""
    left, right = (X, Y @ Z) if X.shape[-1] <= X.shape[-2] else (X @ Y, Z)
    if D.ndim == 2:
        return torch.addmm(D, left, right, alpha=scale)
    return torch.baddbmm(D, left, right, alpha=scale)


def _balanced_direction(A: Tensor, G: Tensor, N: int) -> Tensor:
    """Σⱼ (A Aᵀ)^{(N-j)/N} G (Aᵀ A)^{(j-1)/N}, in the singular basis of A = U diag(s) Vᵀ."""
    if N == 1:
        return G
    dtype = torch.promote_types(A.dtype, torch.float32)  # there is no SVD in half precision
    U, s, Vh = torch.linalg.svd(A.to(dtype), full_matrices=False)
    UtG, GV = U.mT @ G.to(dtype), G.to(dtype) @ Vh.mT
    r = s.pow(2 / N)
    rows, columns = r.unsqueeze(-1), r.unsqueeze(-2)
    D: Tensor = U @ (rows ** (N - 1) * UtG) + (GV * columns ** (N - 1)) @ Vh  # j = 1 and j = N
    if N > 2:
        between = sum(rows ** (N - j) * columns ** (j - 1) for j in range(2, N))
        D = D + U @ (between * (UtG @ Vh.mT)) @ Vh
    return D.to(G.dtype)


def direction_gain(s_max: float, *, side: Side = "right", depth: int = 2) -> float:
    """λ_max(P) of the linear P: G -> D: how many times longer than G the first-order direction can be.

    With s the weight's largest singular value:
    1 + (N-1) s² on the right or left, 1 + 2 (N-1) s² on both sides, N s^{2(N-1)/N} if balanced.

    >>> direction_gain(2.0)
    5.0
    """
    _check_family(side, depth, exact=False)
    if side == "balanced":
        return float(depth * s_max ** (2 * (depth - 1) / depth))
    return 1.0 + (2 if side == "both" else 1) * (depth - 1) * s_max**2


def stable_lr(curvature: float, s_max: float, *, side: Side = "right", depth: int = 2) -> float:
    """Largest learning rate at which a CSGD step is sure to be stable: 2 / (h g), with g the `direction_gain`.

    Sharp for L = ||A - M||²/2 (h = 1); beyond it the loss may stay finite while the singular values explode.

    Args:
        curvature: h > 0, the largest eigenvalue of the loss Hessian.
        s_max: s >= 0, the largest singular value of the weight.
        side: where the orthogonal factors stand, as for `reparam_direction`.
        depth: N of `reparam_direction`.

    >>> stable_lr(1.0, 2.0)
    0.4
    """
    gain = direction_gain(s_max, side=side, depth=depth)
    return 2.0 / (curvature * gain) if gain else float("inf")


class CSGD(Optimizer):
    r"""SGD whose step on every weight matrix is that of the factorized layer (seed 000).

    Each parameter with two or more dimensions is seen as a matrix of shape (out, everything else), or as ``blocks``
    stacked matrices (grouped convolutions, packed attention projections: see `reparam_groups`); D is its
    `reparam_direction`. Scalars and vectors (biases, normalization gains) get D = G: plain SGD, bit for bit.

        D ← reparam_direction(A, G + λA)           coupled weight decay λ (default): singular values shrink by s + s³
        B ← μ B + (1 - dampening) D                momentum: B holds *directions*, each made with the A of its time
        A ← A - lr B                               or D + μ B for Nesterov
        A ← (1 - lr λ) A - lr B                    ``decoupled=True``: λ stays out of D, as AdamW's; shrink by s

    Cost: 4·m·n·min(m, n) flops per matrix, memory one (m, n) and one min(m, n)² temporary. Clipping G beforehand does
    not bound the step, which grows with s²; watch ``lr < stable_lr(...)``.

    Args:
        params: parameters, named parameters or groups, as for every torch optimizer.
        lr: learning rate >= 0; a one-element tensor is accepted.
        momentum: μ >= 0.
        dampening: damping of D in the buffer.
        nesterov: step along D + μ B.
        weight_decay: λ >= 0.
        decoupled: apply λ outside D.
        side: "right" (the seed's), "left", "both" or "balanced".
        exact: keep every power of lr in the step.
        depth: number of factors; 1 is SGD.
        maximize: ascend.
        blocks: how many equal matrices are stacked along the first axis of each parameter with two or more dimensions.

    Raises:
        ValueError: an option out of range, or a parameter whose first axis ``blocks`` does not divide.
        RuntimeError: sparse gradients or complex parameters, which the matrix product has no rule for.

    >>> weight = nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> optimizer = CSGD([weight], lr=0.1)
    >>> weight.grad = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> optimizer.step()
    >>> weight.data
    tensor([[ 2.0000, -0.2000],
            [-0.5000,  1.0000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        side: Side = "right",
        exact: bool = False,
        depth: int = 2,
        maximize: bool = False,
        blocks: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "side": side,
            "exact": exact,
            "depth": depth,
            "maximize": maximize,
            "blocks": blocks,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, after checking its options."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except (ValueError, RuntimeError):
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in options that a state saved by an older version does not have."""
        super().__setstate__(state)
        fill_missing_options(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; ``closure`` re-evaluates the model and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.is_sparse:
            raise RuntimeError("CSGD does not support sparse gradients")
        lr, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
        if group["maximize"]:
            grad = -grad
        if decay and not group["decoupled"]:
            grad = grad.add(param, alpha=decay)
        direction = grad if param.ndim < 2 else _direction(param, grad, group, lr)
        if momentum:
            state = self.state[param]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = direction.clone()
            else:
                buffer.mul_(momentum).add_(direction, alpha=1 - group["dampening"])
            direction = direction.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        if decay and group["decoupled"]:
            param.mul_(1 - lr * decay)
        param.add_(direction, alpha=-lr)


def _direction(param: Tensor, grad: Tensor, group: dict[str, Any], lr: float) -> Tensor:
    """`reparam_direction` of a parameter of any shape: (out, …) as one matrix, or as ``blocks`` of them."""
    A, G, blocks = param, grad, group["blocks"]
    if param.ndim > 2:
        A, G = A.flatten(1), G.flatten(1)
    if blocks > 1:
        size = (blocks, A.shape[0] // blocks, A.shape[1])
        A, G = A.reshape(size), G.reshape(size)
    D = reparam_direction(A, G, side=group["side"], depth=group["depth"], lr=lr if group["exact"] else 0.0)
    return D if D.ndim == param.ndim == 2 else D.reshape(param.shape)


def reparam_groups(model: nn.Module, *, side: Side = "right") -> list[dict[str, Any]]:
    """Parameter groups for `CSGD` in which every weight is seen as the matrices its layer applies.

    Grouped convolutions, attention's packed ``in_proj_weight`` and recurrent gates become ``blocks``; the weight of a
    transposed convolution, stored input-first, gets the mirrored side. Everything else is one matrix.

    >>> groups = reparam_groups(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Linear(8, 2)))
    >>> [(group["blocks"], group["side"], len(group["params"])) for group in groups]
    [(1, 'right', 3), (2, 'right', 1)]
    """
    mirror: dict[Side, Side] = {"right": "left", "left": "right"}
    layout: dict[nn.Parameter, tuple[int, Side]] = {}  # a shared parameter is laid out as where it first appears
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            blocks, its_side = 1, side
            if isinstance(module, nn.modules.conv._ConvNd) and name == "weight":
                blocks, its_side = module.groups, mirror.get(side, side) if module.transposed else side
            elif isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
                blocks = 3
            elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and name.startswith(("weight_ih", "weight_hh")):
                blocks = param.shape[0] // module.hidden_size
            layout.setdefault(param, (blocks, its_side) if param.ndim > 1 else (1, side))
    return [
        {"params": [param for param, key in layout.items() if key == wanted], "blocks": wanted[0], "side": wanted[1]}
        for wanted in sorted(set(layout.values()))
    ]


def _check_family(side: str, depth: int, *, exact: bool) -> None:
    if side not in SIDES:
        raise ValueError(f"Invalid side: {side!r}; expected one of {', '.join(SIDES)}")
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"Invalid depth: {depth!r}; expected an integer >= 1 (1 is plain SGD, 2 is the seed's CSGD)")
    if side == "balanced" and exact:
        raise ValueError(
            "side='balanced' has no exact step without its factors: use exact=False, or train the factors themselves"
        )


def _check_group(group: dict[str, Any]) -> None:
    lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not momentum >= 0.0:
        raise ValueError(f"Invalid momentum value: {momentum}")
    if not decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {decay}")
    if group["nesterov"] and (momentum <= 0 or group["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    _check_family(group["side"], group["depth"], exact=group["exact"])
    blocks = group["blocks"]
    if not isinstance(blocks, int) or blocks < 1:
        raise ValueError(f"Invalid blocks: {blocks!r}; expected an integer >= 1")
    for param in group["params"]:
        if param.is_complex():
            raise RuntimeError("CSGD does not support complex parameters")
        if param.ndim > 1 and param.shape[0] % blocks:
            raise ValueError(
                f"blocks={blocks} does not divide the first axis of a parameter of shape {tuple(param.shape)}"
            )
