"""Sharpness against closed forms of quadratics, and the adaptive kind against rescaling."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.landscape import average_sharpness, sam_sharpness, worst_case_sharpness


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic(seed=0, at_minimum=False, scales=(3.0, 1.0, 0.5, 0.1)):
    """L(w) = mean (x·w - y)²; returns the model, data, H and the gradient at w."""
    g = draw(seed)
    x = torch.randn(20, 4, generator=g, dtype=torch.float64) * torch.tensor(scales)
    y = torch.randn(20, 1, generator=g, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    w = torch.linalg.lstsq(x, y).solution if at_minimum else torch.randn(4, 1, generator=g, dtype=torch.float64)
    model.weight.data = w.T.contiguous()
    H = 2 * x.T @ x / 20
    return model, (x, y), H, (2 * x.T @ (x @ w - y) / 20).flatten()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("radius", [0.01, 1.0])
def test_one_step_on_a_quadratic(adaptive, radius):
    model, data, H, g = quadratic()
    T = model.weight.detach().flatten().abs() if adaptive else torch.ones(4, dtype=torch.float64)
    delta = radius * T**2 * g / (T * g).norm()
    found = sam_sharpness(model, mse_loss, data, radius=radius, adaptive=adaptive)
    assert found == pytest.approx((g @ delta + delta @ H @ delta / 2).item(), rel=1e-9)


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_at_a_minimum_is_the_top_eigenvalue(adaptive):
    model, data, H, _ = quadratic(at_minimum=True)
    T = model.weight.detach().flatten().abs() if adaptive else torch.ones(4, dtype=torch.float64)
    top = torch.linalg.eigvalsh(T[:, None] * H * T)[-1].item()
    found = worst_case_sharpness(
        model, mse_loss, data, radius=0.3, adaptive=adaptive, steps=100, generator=draw()
    )  # fmt: skip
    assert found == pytest.approx(0.3**2 * top / 2, rel=1e-6)  # 100 steps of a power iteration


@pytest.mark.parametrize("seed", range(4))
def test_worst_case_solves_the_trust_region_problem(seed):
    """max gᵀδ + δᵀHδ/2 over |δ| = ρ: (μ - H) δ = g with μ > λ_max, found by a root of |δ(μ)| = ρ."""
    model, data, H, g = quadratic(seed)
    values, vectors = torch.linalg.eigh(H)
    c, radius = vectors.T @ g, 0.5
    mu = brentq(lambda m: float((c / (m - values)).norm()) - radius, float(values[-1]) + 1e-9, 1e4, xtol=1e-12)
    delta = vectors @ (c / (mu - values))
    found = worst_case_sharpness(model, mse_loss, data, radius=radius, steps=100, generator=draw())
    assert found == pytest.approx((g @ delta + delta @ H @ delta / 2).item(), rel=1e-6)
    assert found >= sam_sharpness(model, mse_loss, data, radius=radius)


class Bowl(nn.Module):
    """L(w) = w·H w / 2 + g·w with any eigenvalues, at w = 0."""

    def __init__(self, values, gradient):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(values), dtype=torch.float64))
        self.values, self.gradient = torch.tensor(values).double(), torch.tensor(gradient).double()

    def forward(self, x):
        return (self.values @ self.weight.square() / 2 + self.gradient @ self.weight).expand(len(x))


ONE = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("steps", [20, 200])
@pytest.mark.parametrize("values", [(1.0, -100.0, 0.5), (1.0, -5.0, 0.1), (-1.0, -2.0, -3.0)])
@pytest.mark.parametrize("gradient", [(0.0, 0.0, 0.0), (1e-3, 1e-3, -1e-3), (0.5, -1.0, 0.3)])
@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_worst_case_where_the_loss_bends_down(values, gradient, radius, steps):
    """Saddles and maxima: the truth by the trust-region problem in the ball, its interior included."""
    v, c = torch.tensor(values).double(), torch.tensor(gradient).double()
    low = max(float(v.max()), 0.0)
    if not c.any():
        truth = radius**2 * low / 2
    else:
        inside = -c / v
        if v.max() < 0 and inside.norm() <= radius:
            delta = inside
        else:
            mu = brentq(lambda m: float((c / (m - v)).norm()) - radius, low + 1e-13, 1e6, xtol=1e-14)
            delta = c / (mu - v)
        truth = (c @ delta + delta.square() @ v / 2).item()
    found = worst_case_sharpness(Bowl(values, gradient), lambda z, _: z.mean(), ONE, radius=radius, steps=steps)
    assert 0 <= found <= truth * (1 + 1e-9) + 1e-15
    # a first-order ascent: at a saddle with 100 times as much curvature downwards 20 steps come half as far
    assert found >= (0.999 if steps == 200 and values[1] > -100 else 0.5) * truth - 1e-9


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_on_a_quadratic_is_the_trace(adaptive):
    model, data, H, _ = quadratic()
    T = model.weight.detach().flatten().abs() if adaptive else torch.ones(4, dtype=torch.float64)
    truth = 0.3**2 * (T**2 * H.diagonal()).sum().item() / 2
    found = average_sharpness(
        model, mse_loss, data, radius=0.3, adaptive=adaptive, samples=2000, generator=draw()
    )  # fmt: skip
    assert abs(found.value - truth) < 4 * found.error
    # δᵀHδ/2 has variance tr(THT)² / 2 · ρ⁴; the spread of a sample of 2000 is known to a tenth
    spread = 0.3**2 * ((T[:, None] * H * T).square().sum() / 2).sqrt().item() / 2000**0.5
    assert found.error == pytest.approx(spread, rel=0.2)


def test_stated_errors_cover_the_truth():
    model, data, H, _ = quadratic(scales=(1.0, 1.0, 1.0, 1.0))
    truth = 0.1**2 * H.trace().item() / 2
    inside = 0
    for seed in range(200):
        found = average_sharpness(model, mse_loss, data, radius=0.1, samples=30, generator=draw(seed))
        inside += abs(found.value - truth) <= 2 * found.error
    # two errors of 30 draws hold the truth in 0.945 of cases, in about 0.93 for sums of four squares; less 3.5
    # standard errors (0.018) of 200 draws
    assert inside >= 174


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


@given(st.floats(0.1, 10))
@settings(max_examples=20)
def test_adaptive_does_not_notice_rescaling_between_layers(alpha):
    model = two_layers()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight.mul_(alpha)
        scaled[0].bias.mul_(alpha)
        scaled[2].weight.div_(alpha)
    data = torch.randn(10, 4, generator=draw(), dtype=torch.float64), torch.arange(10) % 3
    options = {"radius": 0.2, "adaptive": True}
    for measure in (
        lambda m: sam_sharpness(m, cross_entropy, data, **options),
        lambda m: worst_case_sharpness(m, cross_entropy, data, steps=5, generator=draw(1), **options),
        lambda m: average_sharpness(m, cross_entropy, data, samples=5, generator=draw(1), **options).value,
    ):
        assert measure(scaled) == pytest.approx(measure(model), rel=1e-6)


def test_plain_sharpness_does_notice():
    model, scaled = two_layers(), two_layers()
    with torch.no_grad():
        scaled[0].weight.mul_(10.0)
        scaled[0].bias.mul_(10.0)
        scaled[2].weight.div_(10.0)
    data = torch.randn(10, 4, generator=draw(), dtype=torch.float64), torch.arange(10) % 3
    values = [sam_sharpness(m, cross_entropy, data, radius=0.05) for m in (model, scaled)]
    assert values[1] > 2 * values[0]


def test_zero_gradient_and_zero_weights():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = torch.eye(2), torch.zeros(2, 1)
    assert sam_sharpness(model, mse_loss, data, radius=1.0) == 0
    # H = I: the worst case is ρ²/2 in every direction; adaptively nothing may move
    assert worst_case_sharpness(model, mse_loss, data, radius=1.0, generator=draw()) == pytest.approx(0.5)
    assert worst_case_sharpness(model, mse_loss, data, radius=1.0, adaptive=True, generator=draw()) == 0


class Root(nn.Module):
    """|w|: a loss without a gradient at 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.weight.square().sum().sqrt().expand(len(x))


@pytest.mark.parametrize("measure", [sam_sharpness, worst_case_sharpness])
def test_a_gradient_that_is_not_finite(measure):
    with pytest.raises(ValueError, match="its gradient is not"):
        measure(Root(), lambda z, _: z.mean(), (torch.ones(1, 1), torch.zeros(1)), radius=0.1)


def test_average_needs_no_gradient():
    """|δ| of two normal weights has the mean (π/2)^½ ρ; and an error rate has no gradient at all."""
    found = average_sharpness(
        Root(), lambda z, _: z.mean(), (torch.ones(1, 1), torch.zeros(1)), radius=0.1, samples=2000
    )
    assert abs(found.value - 0.1 * (torch.pi / 2) ** 0.5) < 4 * found.error
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[1.0], [0.0]])
    data = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    found = average_sharpness(model, lambda z, y: (z.argmax(1) != y).float().mean(), data, radius=1.0, samples=2000)
    assert abs(found.value - 0.2398) < 4 * found.error  # P(1 + ξ < ξ') = Φ(-1/√2)


def test_the_length_of_a_tiny_gradient():
    """A fitted network's gradient in float32: its square is below the smallest number."""
    model = Bowl((0.0, 0.0), (3e-30, 4e-30)).float()
    model.values, model.gradient = model.values.float(), model.gradient.float()
    found = sam_sharpness(model, lambda z, _: z.mean(), (torch.ones(1, 1), torch.zeros(1)), radius=1.0)
    assert found == pytest.approx(5e-30, rel=1e-6)


@pytest.mark.parametrize("measure", [sam_sharpness, worst_case_sharpness, average_sharpness])
@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_radius(measure, radius):
    with pytest.raises(ValueError, match="a positive number"):
        measure(nn.Linear(2, 1), mse_loss, (torch.ones(2, 2), torch.ones(2, 1)), radius=radius)


@pytest.mark.parametrize(("measure", "option"), [(worst_case_sharpness, "steps"), (average_sharpness, "samples")])
def test_counts(measure, option):
    with pytest.raises(ValueError, match=f"{option}=0"):
        measure(nn.Linear(2, 1), mse_loss, (torch.ones(2, 2), torch.ones(2, 1)), radius=1.0, **{option: 0})
