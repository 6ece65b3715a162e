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

from thalweg.curvature.blocks import spectral_norm
from thalweg.curvature.chain import Link, between_norm
from thalweg.curvature.layer_jacobians import unfolded
from thalweg.curvature.operator import CurvatureOperator

__all__ = ["activation_terms", "between_norms", "column_norms", "coupling", "hessian_norms", "norm_terms"]

DENSE = 100  # parameters up to which the whole matrix takes less time than the set-up of products


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


def activation_terms(links: Sequence[Link], curvature: Tensor, columns: Tensor, tau: Sequence[float]) -> Tensor:
    """||A|| ||U_p||² Π_{s>p} τ_s² Π_{s>=p} λ_s² for curvature = ||A||, (n,), columns = ||U_p||: (n, layers)."""
    lam = between_norms(links)
    reach = [math.prod(tau[p + 1 :]) * math.prod(lam[p:]) for p in range(len(links))]
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


def hessian_norms(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """||H|| of the cross-entropy of each sample over the trainable parameters: (n,).

    From the matrices of all samples at once for up to 100 parameters. For more, the larger of both ends of the spectrum
    by Lanczos to a residual of 10⁻¹⁰ of it (10³ ε in other precisions): some dozens of products instead of P.
    """
    params = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    sizes = [param.numel() for param in params.values()]
    if sum(sizes) > DENSE:
        tol = max(1e-10, 1e3 * torch.finfo(x.dtype).eps)
        samples = zip(torch.split(x, 1), torch.split(y, 1), strict=True)
        operators = (CurvatureOperator(model, nn.functional.cross_entropy, sample) for sample in samples)
        return x.new_tensor([spectral_norm(op, tol) for op in operators])

    def loss(theta: Tensor, xi: Tensor, yi: Tensor) -> Tensor:
        parts = zip(params.items(), torch.split(theta, sizes), strict=True)
        weights = {name: part.reshape(param.shape) for (name, param), part in parts}
        return nn.functional.cross_entropy(functional_call(model, weights, (xi.unsqueeze(0),)), yi.unsqueeze(0))

    theta = torch.cat([param.flatten() for param in params.values()])
    dense = vmap(jacrev(grad(loss)), in_dims=(None, 0, 0), chunk_size=256)
    # not eigvalsh, which squares entries: beside 1e-158, the curvature of a saturated softmax, it loses half the digits
    norms: Tensor = torch.linalg.matrix_norm(dense(theta, x, y), 2)
    return norms
