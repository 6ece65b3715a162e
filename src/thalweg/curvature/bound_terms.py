r"""The terms of the computable bounds on a Hessian, and the norms they are compared with.

For a chain of layers (`chain`) with τ_s >= ||T⁽ˢ⁾|| and λ_s >= ||Λ⁽ˢ⁾||, a perturbation dW of layer p moves the output
by at most

    ||U_p|| |dW| Π_{s>p} τ_s Π_{s>=p} λ_s,        ||U_p|| <= κ_p |h_p|,   |h_p| <= |x| Π_{s<p} τ_s λ_s

and a second one of layer q > p moves that movement: q's own factor τ_q becomes κ_q |dW'|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from thalweg.curvature.chain import Link, between_norm
from thalweg.curvature.layer_jacobians import unfolded
from thalweg.operators import power_iteration

__all__ = ["activation_terms", "between_norms", "column_norms", "coupling", "hessian_norms", "norm_terms"]

DENSE = 1000  # parameters up to which the norm of the full Hessian comes from the matrix itself
STEPS = 50  # of the power iteration otherwise


def between_norms(links: Sequence[Link]) -> list[float]:
    """λ_p >= ||Λ⁽ᵖ⁾|| for each link."""
    return [math.prod(between_norm(step.module, step.h) for step in link.after) for link in links]


def norm_terms(links: Sequence[Link], x2: Tensor, tau: Sequence[float]) -> Tensor:
    """|x|²/2 κ_p² Π_{s≠p} τ_s² Π λ_s² for x2 = |x|²: (n, layers)."""
    lam = math.prod(between_norms(links))
    terms = [
        (link.kappa * lam * math.prod(t for s, t in enumerate(tau) if s != p)) ** 2 for p, link in enumerate(links)
    ]
    return 0.5 * x2.unsqueeze(1) * x2.new_tensor(terms)


def activation_terms(links: Sequence[Link], curvature: Tensor, tau: Sequence[float]) -> Tensor:
    """||A|| ||U_p||² Π_{s>p} τ_s² Π_{s>=p} λ_s² for curvature = ||A||, (n,): (n, layers)."""
    lam = between_norms(links)
    reach = [math.prod(tau[p + 1 :]) * math.prod(lam[p:]) for p in range(len(links))]
    columns = torch.stack([column_norms(link) for link in links], 1)
    return curvature.unsqueeze(1) * (columns * columns.new_tensor(reach)).square()


def coupling(links: Sequence[Link], movement: Tensor, tau: Sequence[float]) -> Tensor:
    """||M|| of M_pq = M_qp = m_p κ_q Π_{p<s≠q} τ_s Π_{s>=p} λ_s, p < q, with movement m_p >= ||U_p||: (n, layers)."""
    lam = between_norms(links)
    M = movement.new_zeros(len(movement), len(links), len(links))
    for p in range(len(links)):
        for q in range(p + 1, len(links)):
            others = math.prod(tau[s] for s in range(p + 1, len(links)) if s != q)
            M[:, p, q] = M[:, q, p] = movement[:, p] * links[q].kappa * others * math.prod(lam[p:])
    norm: Tensor = torch.linalg.matrix_norm(M, 2)
    return norm


def column_norms(link: Link) -> Tensor:
    """||U_p||: largest singular value of the columns that the weight meets, with a row of ones for a bias: (n,)."""
    U = unfolded(link.module, link.h)
    if link.module.bias is not None:
        U = torch.cat([U, torch.ones_like(U[:, :, :1])], 2)
    gram = U @ U.mT if U.shape[2] <= U.shape[3] else U.mT @ U
    norm: Tensor = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).amax(1).sqrt()
    return norm


def hessian_norms(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, bool]:
    """||H|| of the cross-entropy of each sample over the trainable parameters, and whether it is exact.

    From the whole matrix for up to 1000 parameters; by 50 steps of the power iteration for more, which approaches the
    norm from below.
    """
    params = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    sizes = [param.numel() for param in params.values()]

    def loss(theta: Tensor, xi: Tensor, yi: Tensor) -> Tensor:
        parts = zip(params.items(), torch.split(theta, sizes), strict=True)
        weights = {name: part.reshape(param.shape) for (name, param), part in parts}
        return nn.functional.cross_entropy(functional_call(model, weights, (xi.unsqueeze(0),)), yi.unsqueeze(0))

    theta, P = torch.cat([param.flatten() for param in params.values()]), sum(sizes)
    if P <= DENSE:
        dense = vmap(jacrev(grad(loss)), in_dims=(None, 0, 0), chunk_size=max(1, 2**22 // P**2))
        return torch.linalg.eigvalsh(dense(theta, x, y)).abs().amax(1), True
    generator = torch.Generator(x.device).manual_seed(0)
    start = torch.randn(P, generator=generator, dtype=theta.dtype, device=theta.device)
    norms = []
    for xi, yi in zip(x, y, strict=True):

        def product(v: Tensor, xi: Tensor = xi, yi: Tensor = yi) -> Tensor:
            return grad(lambda t: grad(loss)(t, xi, yi) @ v)(theta)  # type: ignore[no-any-return]

        norms.append(abs(power_iteration(product, start, steps=STEPS)[0]))
    return theta.new_tensor(norms), False
