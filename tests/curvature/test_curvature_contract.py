"""What is promised of every estimator, on small networks of every supported kind and both losses, in float64.

The oracle is the dense Hessian by double backward. Promises: products to 1e-10, eigenvalues, the exact trace and the
norms of single samples to 1e-8; the estimated trace and moments of the density within their error bars, of which each
file counts the share over 200 seeds.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.curvature import (
    CurvatureOperator,
    Krylov,
    decompose,
    eigsh,
    exact_trace,
    exact_trace_obstacle,
    per_sample_ggn,
    spectral_density,
    trace,
)

N, K = 6, 3
LOSSES = {"cross-entropy": cross_entropy, "squared error": mse_loss}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.conv, self.last = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Linear(2, K)

    def forward(self, x):
        h = torch.relu(self.norm(self.stem(x)))
        return self.last((h + self.conv(h)).mean((2, 3)))


# network and the shape of one input
KINDS = {
    "MLP": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K)), (4,)),
    "smooth MLP": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)), (4,)),
    "conv 1-D": (
        lambda: nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(6, K)),
        (1, 6),
    ),
    "conv 2-D": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, K)
        ),
        (1, 4, 4),
    ),
    "maximum pooling": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, K)),
        (1, 5, 5),
    ),
    "average pooling": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, K)),
        (1, 5, 5),
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, K)),
        (1, 3, 3),
    ),
    "residual": (Residual, (1, 4, 4)),
}


def build(kind, loss):
    make, shape = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(), module.running_var.uniform_(0.5, 2.0)
                nn.init.normal_(module.weight), nn.init.normal_(module.bias)
        x = torch.randn(N, *shape, dtype=torch.float64)
        y = torch.arange(N) % K if loss == "cross-entropy" else torch.randn(N, K, dtype=torch.float64)
    return model, LOSSES[loss], x, y


def rows(vector, params):
    def flat(e):
        parts = torch.autograd.grad(e, params, retain_graph=True, allow_unused=True)
        return torch.cat([(p * 0 if a is None else a).flatten() for a, p in zip(parts, params, strict=True)]).detach()

    return torch.stack([flat(e) for e in vector])


def dense_hessian(model, loss_fn, x, y):
    params = list(model.parameters())
    gradient = torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)
    return rows(torch.cat([g.flatten() for g in gradient]), params)


def dense_gauss_newton(model, loss_fn, x, y):
    """J_iᵀ A_i J_i of every sample: (N, P, P)."""
    params, each = list(model.parameters()), []
    for i in range(N):
        z = model(x[i : i + 1])
        leaf = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss_fn(leaf, y[i : i + 1]), leaf, create_graph=True)
        J, A = rows(z[0], params), rows(slope[0], [leaf])
        each.append(J.mT @ A @ J)
    return torch.stack(each)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_estimator_against_the_dense_matrices(kind, loss):
    model, loss_fn, x, y = build(kind, loss)
    H, each = dense_hessian(model, loss_fn, x, y), dense_gauss_newton(model, loss_fn, x, y)
    G, P = each.mean(0), len(H)
    op = CurvatureOperator(model, loss_fn, (x, y))
    V = torch.randn(P, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for part, matrix in {"hessian": H, "ggn": G, "remainder": H - G}.items():
        torch.testing.assert_close(op.with_kind(part) @ V, matrix @ V, rtol=0, atol=1e-10)

    exact = torch.linalg.eigvalsh(H)
    pairs = eigsh(op, 6, "BE", tol=1e-8)
    torch.testing.assert_close(pairs.values, torch.cat([exact[-3:].flip(0), exact[:3].flip(0)]), rtol=0, atol=1e-8)
    torch.testing.assert_close(
        eigsh(op.with_kind("ggn"), 3, tol=1e-8).values, torch.linalg.eigvalsh(G)[-3:].flip(0), rtol=0, atol=1e-8
    )
    norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in (H, G, H - G)]
    assert decompose(op, tol=1e-8)[:3] == pytest.approx(norms, abs=1e-8)

    samples = per_sample_ggn(model, loss_fn, (x, y))
    torch.testing.assert_close(samples.norms, torch.linalg.matrix_norm(each, 2), rtol=0, atol=1e-8)
    torch.testing.assert_close(samples.traces, each.diagonal(dim1=1, dim2=2).sum(1), rtol=0, atol=1e-8)
    if kind == "smooth MLP":
        assert "Tanh" in exact_trace_obstacle(model, x)
    else:
        assert exact_trace(model, loss_fn, (x, y)) == pytest.approx(float(H.trace()), abs=1e-8)

    run = Krylov(op)
    estimate = trace(run, products=24, exact=False)
    assert abs(estimate.value - float(H.trace())) <= estimate.error + 1e-10
    density = spectral_density(run, deflate=3, steps=10)
    assert density.normalized == (kind != "smooth MLP")
    for f in (torch.square, torch.tanh):
        found = density.expect(f)
        assert abs(found.value - float(f(exact).mean())) <= found.error + 1e-8
