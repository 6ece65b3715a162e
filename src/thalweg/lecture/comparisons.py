r"""The measurements behind the lecture's checklist: each function runs the lecture's form and torch's, in float64.

One function per row of `thalweg.lecture.checklist.CHECKLIST`, in its order; each takes under a second, draws from a
generator of its own with seed 0 and returns what it found as `Measured` values. The lecture is
long, and so is this file.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, leaky_relu, relu, selu
from torch.optim import lr_scheduler

from thalweg.lecture.adaptive import adadelta, adagrad, adam, adamw, rmsprop
from thalweg.lecture.descent import Gradient, Rule, State, descend, gradient_descent
from thalweg.lecture.dropout import (
    all_masks,
    classic_dropout,
    geometric_average,
    inverted_dropout,
    mask_average,
    mask_probabilities,
)
from thalweg.lecture.inertia import look_ahead, momentum, nesterov
from thalweg.lecture.initialization import forward_gain, glorot, kaiming, lecun, signal_power
from thalweg.lecture.normalization import (
    RunningStatistics,
    batch_norm,
    batch_norm_inference,
    identity_parameters,
    layer_norm,
    within_sigmas,
    z_score,
)
from thalweg.lecture.polynomials import PRINTED_FITS, corrected_fits, evaluate, fit_polynomial, noisy_sample
from thalweg.lecture.polynomials import F as COEFFICIENTS
from thalweg.lecture.shrinkage import l1_norm, lasso, ridge, weight_decay_of_alpha
from thalweg.lecture.surfaces import cosine_gradient, cosine_surface, gradient_of, parabola

__all__ = ["Measured", "torch_path"]

DOUBLE = torch.float64


@dataclass(frozen=True)
class Measured:
    """One quantity on both sides.

    Attributes:
        quantity: what it is.
        lecture: its value by the lecture's form, a number or a tensor.
        reference: its value by torch, or by what ``against`` names.
        corrected: its value by the corrected form, where the printed one is wrong.
        against: what the reference is.
        side: what the first value is, if it is not the lecture's.
    """

    quantity: str
    lecture: Tensor
    reference: Tensor
    corrected: Tensor | None = None
    _: KW_ONLY
    against: str = "torch"
    side: str = "lecture"

    @property
    def difference(self) -> float:
        """Largest absolute difference between lecture and reference."""
        return float((self.lecture - self.reference).abs().max())

    @property
    def equal(self) -> bool:
        """Whether they agree to 1e-12 of the reference's largest entry (or of 1), which is rounding in float64."""
        return _equal(self.lecture, self.reference)

    def __str__(self) -> str:
        if self.equal:
            return f"{self.quantity}: **equal**"
        if self.reference.numel() > 4:
            text = f"{self.quantity}: **differs** from {self.against} by up to {self.difference:.2g}"
            healed = self.corrected is not None and _equal(self.corrected, self.reference)
            return f"{text}, corrected: equal" if healed else text
        values = {self.side: self.lecture, self.against: self.reference, "corrected": self.corrected}
        shown = [f"{_show(value)} ({name})" for name, value in values.items() if value is not None]
        return f"{self.quantity}: **differs**, {', '.join(shown)}"


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max())))


def _show(x: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in x.flatten().tolist())


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def _randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def _least_squares(N: int = 20, d: int = 5) -> tuple[Tensor, Tensor, Gradient]:
    """X: (N, d), y: (N,) and the gradient of ‖X w - y‖²/N."""
    g = _seeded()
    X, y = _randn(N, d, generator=g), _randn(N, generator=g)
    return X, y, lambda w: 2 / N * (X.mT @ (X @ w - y))


def torch_path(
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    gradient: Gradient,
    w: Tensor,
    *,
    steps: int,
    schedule: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler] | None = None,
) -> Tensor:
    """Weights of a torch optimizer after 0, 1, ..., ``steps`` steps: (steps + 1, *shape of w).

    >>> torch_path(lambda p: torch.optim.SGD(p, lr=0.25), lambda w: 2 * w, torch.ones(1), steps=2).flatten()
    tensor([1.0000, 0.5000, 0.2500])
    """
    param = nn.Parameter(w.clone())
    stepper = optimizer([param])
    scheduler = schedule(stepper) if schedule else None
    path = [param.detach().clone()]
    for _ in range(steps):
        param.grad = gradient(param.detach())
        stepper.step()
        if scheduler:
            scheduler.step()
        path.append(param.detach().clone())
    return torch.stack(path)


# Regularization


def data() -> tuple[Measured, ...]:
    x, y = noisy_sample(100, sigma=0.0, generator=_seeded(), dtype=DOUBLE)
    found = fit_polynomial(x, y, 3)
    return (Measured("coefficients of f", _numbers(*COEFFICIENTS), found, against="a fit without noise"),)


def fits() -> tuple[Measured, ...]:
    one = torch.ones(1, dtype=DOUBLE)
    printed, corrected = (evaluate(_numbers(*table[9]), one) for table in (PRINTED_FITS, corrected_fits()))
    return (Measured("degree 9 at x = 1", printed, evaluate(_numbers(*COEFFICIENTS), one), corrected, against="f(1)"),)


def ridge_and_decay() -> tuple[Measured, ...]:
    X, y, _ = _least_squares(40, 5)
    X, y = X - X.mean(0), y - y.mean()  # no intercept, which a weight decay on all parameters would shrink
    w, _ = ridge(X, y, 20.0)
    decay = weight_decay_of_alpha(20.0, len(X))

    def gradient(w: Tensor) -> Tensor:
        return 2 / len(X) * (X.mT @ (X @ w - y))

    sgd = torch_path(lambda p: torch.optim.SGD(p, lr=0.2, weight_decay=decay), gradient, torch.zeros_like(w), steps=300)
    adamw = torch_path(
        lambda p: torch.optim.AdamW(p, lr=0.005, weight_decay=decay), gradient, torch.zeros_like(w), steps=500
    )
    return (
        Measured("ridge minimum and where SGD(weight_decay) ends", w, sgd[-1]),
        Measured("ridge minimum and where AdamW(weight_decay) ends", w, adamw[-1], against="AdamW"),
    )


def lasso_and_subgradient() -> tuple[Measured, ...]:
    g = _seeded()
    X = _randn(50, 6, generator=g)
    y = X @ _numbers(3, -2, 0, 0, 0, 0) + 0.1 * _randn(50, generator=g)
    X, y = X - X.mean(0), y - y.mean()
    proximal, _ = lasso(X, y, 0.1)
    loss = gradient_of(lambda w: (X @ w - y).square().mean() / 2 + 0.1 * l1_norm([w]))
    subgradient = torch_path(lambda p: torch.optim.SGD(p, lr=0.05), loss, torch.ones_like(proximal), steps=500)[-1]
    what = "exact zeros among 6 weights, 4 of them superfluous"
    printed, right = (_numbers(float((w == 0).sum())) for w in (subgradient, proximal))
    return (Measured(what, printed, right, against="proximal steps", side="torch.norm"),)


def early_stopping() -> tuple[Measured, ...]:
    names = [name for module in (nn, torch.optim, torch.utils) for name in dir(module)]
    found = [name for name in names if "earlystop" in name.lower().replace("_", "")]
    return (Measured("early stopping in torch", _numbers(0), _numbers(len(found))),)


def dropout() -> tuple[Measured, ...]:
    x, p = _numbers(1, 2, 3, 4), 0.25
    masks = all_masks(4, dtype=DOUBLE)
    weights = mask_probabilities(masks, p)
    module = nn.Dropout(p).eval()
    classic = classic_dropout(x, p, training=False)
    return (
        Measured("inverted, mean of all masks", mask_average(masks * x / (1 - p), weights), module(x)),
        Measured("inverted, prediction", inverted_dropout(x, p, training=False), module(x)),
        Measured("classic, mean of all masks", mask_average(masks * x, weights), classic, against="its prediction"),
        Measured("classic, prediction of 1", classic[:1], module(x)[:1]),
    )


def average_of_models() -> tuple[Measured, ...]:
    g, p = _seeded(), 0.5
    x, W, V = _randn(8, generator=g), _randn(5, 8, generator=g), _randn(3, 5, generator=g)
    masks = all_masks(8, dtype=DOUBLE)
    weights = mask_probabilities(masks, p)
    thinned, scaled = (masks * x) @ W.mT, W @ ((1 - p) * x)
    average = mask_average(thinned.relu() @ V.mT, weights)
    return (
        Measured("linear output", scaled, mask_average(thinned, weights)),
        Measured("softmax, geometric mean", scaled.softmax(-1), geometric_average(thinned.softmax(-1), weights)),
        Measured("ReLU behind the mask", V @ scaled.relu(), average, against="average of 256"),
    )


def choice_of_p() -> tuple[Measured, ...]:
    module = nn.Dropout()
    with torch.random.fork_rng(devices=[]):  # torch's module takes no generator
        outputs = torch.stack([module(torch.tensor([1.0, 2.0])) for _ in range(100)])
    values = torch.stack([column.unique() for column in outputs.T]).double()
    return (
        Measured("default p", _numbers(0.5), _numbers(module.p)),
        Measured("values of the printed sample", torch.tensor([[0.0, 2.0], [0.0, 4.0]]).double(), values),
    )


# Initialization


def fine_tuning() -> tuple[Measured, ...]:
    g = _seeded()
    frozen, slow, fast = (nn.Parameter(_randn(3, generator=g)) for _ in range(3))
    frozen.requires_grad_(False)
    before = [p.detach().clone() for p in (frozen, slow, fast)]
    groups: list[dict[str, Any]] = [{"params": [frozen, slow], "lr": 0.01}, {"params": [fast], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, weight_decay=0.1)
    (slow.sum() + fast.sum() + frozen.sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    moved = [p.detach() - start for p, start in zip((frozen, slow, fast), before, strict=True)]
    return (
        Measured("movement of frozen weights", torch.zeros(3, dtype=DOUBLE), moved[0]),
        Measured("a step at a tenth of the rate", -0.01 * (1 + 0.1 * before[1]), moved[1]),
    )


def lecun_variance() -> tuple[Measured, ...]:
    m, n = 50, 40
    theirs = nn.init.kaiming_uniform_(torch.empty(n, m), a=math.sqrt(5), generator=_seeded())
    printed, paper = (signal_power(torch.tanh, s, layers=20)[-1:] for s in (1 / 3, 1.0))
    return (
        Measured("draws of nn.Linear", lecun(m, n, form="printed", generator=_seeded()), theirs),
        Measured("variance times m", _numbers(1 / 3), _numbers(1), against="LeCun 1998"),
        Measured("E x² after 20 tanh layers", printed, paper, against="LeCun 1998"),
    )


def glorot_variance() -> tuple[Measured, ...]:
    m, n = 50, 25
    theirs = nn.init.xavier_uniform_(torch.empty(n, m), generator=_seeded())
    factors = _numbers(2 * m / (m + n), 2 * n / (m + n))
    return (
        Measured("draws", glorot(m, n, generator=_seeded()), theirs),
        Measured("factor of the variances forwards, backwards, m = 2n", _numbers(1, 1), factors, against="exact"),
    )


def kaiming_variance() -> tuple[Measured, ...]:
    theirs = nn.init.kaiming_normal_(torch.empty(40, 50), nonlinearity="relu", generator=_seeded())
    return (Measured("draws", kaiming(50, 40, generator=_seeded()), theirs),)


def symmetric_gains() -> tuple[Measured, ...]:
    needed = _numbers(*(forward_gain(f) ** 2 for f in (torch.sigmoid, torch.tanh)))
    gains = _numbers(*(nn.init.calculate_gain(name) ** 2 for name in ("sigmoid", "tanh")))
    what = "variance times m that keeps Var(W x), sigmoid and tanh"
    return (
        Measured(f"{what}, m = n", _numbers(1, 1), needed, against="quadrature"),
        Measured(f"{what}, calculate_gain²", gains, needed, against="quadrature", side="torch"),
    )


def asymmetric_gains() -> tuple[Measured, ...]:
    needed = _numbers(*(forward_gain(f) ** 2 for f in (relu, elu, leaky_relu, selu)))
    what = "variance times m that keeps Var(W x), ReLU, ELU, LeakyReLU, SELU"
    kaiming_s, lecun_s = (signal_power(selu, s, layers=20)[-1:] for s in (2.0, 1.0))
    return (
        Measured(what, _numbers(2, 2, 2, 2), needed, against="quadrature"),
        Measured("E x² after 20 SELU layers", kaiming_s, lecun_s, against="N(0, 1/m)"),
    )


# Normalization


def standard_scores() -> tuple[Measured, ...]:
    x = _randn(10, 1, generator=_seeded())
    z = z_score(x)
    return (
        Measured("P(|z| < 3) to four digits", _numbers(0.9973), _numbers(round(within_sigmas(3), 4)), against="erf"),
        Measured("with torch.std(correction=0)", z, (x - x.mean(0)) / x.std(0, correction=0)),
        Measured("with torch.std(), N = 10", z, (x - x.mean(0)) / x.std(0)),
    )


def batch_normalization() -> tuple[Measured, ...]:
    x = 0.1 * _randn(16, 3, generator=_seeded()) + 2
    module = nn.BatchNorm1d(3, dtype=DOUBLE)
    in_training = module(x).detach()
    running = RunningStatistics.initial(x).updated(x)
    printed, corrected = (batch_norm(x, *identity_parameters(x, eps=eps)) for eps in (0.0, 1e-5))
    return (
        Measured("training", batch_norm(x), in_training),
        Measured("prediction with running statistics", batch_norm_inference(x, running), module.eval()(x).detach()),
        Measured("identity by the printed γ, σ = 0.1", printed, x, corrected, against="x"),
    )


def place_of_normalization() -> tuple[Measured, ...]:
    x = 3 * _randn(1000, 1, generator=_seeded())
    module = nn.BatchNorm1d(1, affine=False, dtype=DOUBLE)
    before, after = torch.tanh(batch_norm(x)), batch_norm(torch.tanh(x))
    return (
        Measured("before", before, torch.tanh(module(x))),
        Measured("after", after, module(torch.tanh(x))),
        Measured("E y²", before.square().mean(0), after.square().mean(0), against="after tanh", side="before tanh"),
    )


def layer_normalization() -> tuple[Measured, ...]:
    x = _randn(4, 6, generator=_seeded())
    return (Measured("output", layer_norm(x), nn.LayerNorm(6, dtype=DOUBLE)(x).detach()),)


# Gradient descent and its rate


def parabola_descent() -> tuple[Measured, ...]:
    etas = _numbers(0.01, 0.1, 0.5, 0.9, 1.0, 1.01)
    gradient = gradient_of(parabola)
    sgds = [partial(torch.optim.SGD, lr=eta) for eta in etas.tolist()]
    theirs = torch.stack([torch_path(sgd, gradient, _numbers(1), steps=20)[-1, 0] for sgd in sgds])
    return (Measured("x after 20 steps, (1 - 2η)²⁰ for six rates", (1 - 2 * etas) ** 20, theirs),)


def surface_gradient() -> tuple[Measured, ...]:
    x = _randn(100, 2, generator=_seeded())
    return (Measured("2 (cos² x₁ + cos² x₂) sin 2xᵢ", cosine_gradient(x), gradient_of(cosine_surface)(x)),)


def stop_rules() -> tuple[Measured, ...]:
    _, _, gradient = _least_squares()
    start = torch.ones(5, dtype=DOUBLE)
    ours = descend(gradient_descent, gradient, start, eta=0.1, steps=100).w
    eta, tolerance = 0.1, 1e-6
    stopped = descend(gradient_descent, lambda w: 2 * w, _numbers(1), eta=eta, steps=1000, tolerance=tolerance)
    # step k of x² from 1 moves by 2η (1 - 2η)ᵏ⁻¹
    exact = 1 + math.ceil(math.log(tolerance / (2 * eta)) / math.log(1 - 2 * eta))
    return (
        Measured("100 steps", ours, torch_path(lambda p: torch.optim.SGD(p, lr=0.1), gradient, start, steps=100)),
        Measured("steps until x² moves by 10⁻⁶", _numbers(stopped.steps), _numbers(exact), against="exact"),
    )


def _rates(schedule: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], count: int) -> Tensor:
    """Learning rates of a torch scheduler from 0.1 at k = 0, 1, ..., count."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = schedule(optimizer)
    rates = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(count):
        optimizer.step()
        scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return _numbers(*rates)


def constant_rate() -> tuple[Measured, ...]:
    theirs = _rates(lambda o: lr_scheduler.ConstantLR(o, factor=1.0), 20)
    return (Measured("rates", torch.full_like(theirs, 0.1), theirs),)


def linear_rate() -> tuple[Measured, ...]:
    ours = 0.1 * (1 - torch.arange(21, dtype=DOUBLE) / 20)
    return (
        Measured("LinearLR", ours, _rates(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 20), 20)),
        Measured("PolynomialLR", ours, _rates(lambda o: lr_scheduler.PolynomialLR(o, 20, 1.0), 20)),
    )


def exponential_rate() -> tuple[Measured, ...]:
    K = -1 / math.log(0.9)
    ours = 0.1 * torch.exp(-torch.arange(21, dtype=DOUBLE) / K)
    theirs = _rates(lambda o: lr_scheduler.ExponentialLR(o, 0.9), 20)
    return (Measured(f"rates for gamma = 0.9, which is K = {K:.2f}", ours, theirs),)


def warmup_rate() -> tuple[Measured, ...]:
    k = torch.arange(11, dtype=DOUBLE)
    ours = 0.1 * (0.25 + 0.75 * (k / 10))
    return (Measured("linear rise", ours, _rates(lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 10), 10)),)


def shapes() -> tuple[Measured, ...]:
    words = {
        "constant": "constant", "exp": "exponential", "str": "linear", "sig": "sigmoid",
        "rep": "repeat", "trap": "trapez", "str+": "warmup", "sig+": "warmup",
    }  # fmt: skip
    names = " ".join(dir(lr_scheduler)).lower()
    return (Measured("shapes with a class", _numbers(len(words)), _numbers(sum(w in names for w in words.values()))),)


# Stochastic gradient and its modifications


def stochastic_gradient() -> tuple[Measured, ...]:
    gradients, n = _randn(6, 1, generator=_seeded()), 2
    batches = torch.stack([gradients[list(pick)].mean(0) for pick in itertools.combinations(range(6), n)])
    variance = gradients.var(0, correction=0) / n * (6 - n) / (6 - 1)
    return (
        Measured("mean over all batches", batches.mean(0), gradients.mean(0), against="full gradient"),
        Measured("variance σ²/n (l - n)/(l - 1)", variance, batches.var(0, correction=0), against="all batches"),
    )


def _paths(
    rule: Callable[..., tuple[Tensor, State]],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    *,
    eta: float,
    decay: float = 1.0,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """100 steps of least squares, printed, torch's and corrected, at the rate η decayᵏ⁻¹."""
    _, _, gradient = _least_squares()
    start = torch.ones(5, dtype=DOUBLE)

    def path(form: str) -> Tensor:
        return descend(rule, gradient, start, eta=lambda k: eta * decay ** (k - 1), steps=100, form=form, **options).w

    schedule = None if decay == 1 else lambda o: lr_scheduler.ExponentialLR(o, decay)
    return path("printed"), torch_path(optimizer, gradient, start, steps=100, schedule=schedule), path("torch")


def momentum_forms() -> tuple[Measured, ...]:
    def sgd(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, lr=0.05, momentum=0.9)

    return (
        Measured("100 steps, constant η", *_paths(momentum, sgd, eta=0.05)),
        Measured("100 steps, η 0.9ᵏ", *_paths(momentum, sgd, eta=0.05, decay=0.9)),
    )


def nesterov_forms() -> tuple[Measured, ...]:
    def sgd(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)

    def ahead(decay: float) -> Tensor:
        _, _, gradient = _least_squares()
        w = torch.ones(5, dtype=DOUBLE)
        state: State = ()
        points = [w]
        for k in range(1, 101):
            w, state = nesterov(w, gradient, state, eta=0.05 * decay ** (k - 1), form="printed")
            points.append(look_ahead(w, state))
        return torch.stack(points)

    printed, theirs, corrected = _paths(nesterov, sgd, eta=0.05)
    _, decayed, _ = _paths(nesterov, sgd, eta=0.05, decay=0.9)
    return (
        Measured("w - α h in 100 steps, constant η", ahead(1.0), theirs),
        Measured("w in 100 steps", printed, theirs, corrected),
        Measured("w - α h in 100 steps, η 0.9ᵏ", ahead(0.9), decayed),
    )


def sgd_signature() -> tuple[Measured, ...]:
    parameters = inspect.signature(torch.optim.SGD).parameters
    return (
        Measured("number of arguments", _numbers(5), _numbers(len(parameters))),
        Measured("default lr (0: required)", _numbers(0), _numbers(parameters["lr"].default)),
    )


def adagrad_forms() -> tuple[Measured, ...]:
    defaults = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))]).defaults
    small = lambda w: torch.full_like(w, 1e-8)  # noqa: E731
    first = [adagrad(_numbers(0), small, form=form)[0] / -0.01 for form in ("printed", "torch")]
    theirs = torch_path(torch.optim.Adagrad, small, _numbers(0), steps=1)[-1] / -0.01
    return (
        Measured("default η and ε", _numbers(0.01, 1e-10), _numbers(defaults["lr"], defaults["eps"])),
        Measured("100 steps", *_paths(adagrad, lambda p: torch.optim.Adagrad(p, lr=0.1), eta=0.1)),
        Measured("first step/η for g = 10⁻⁸", first[0], theirs, first[1]),
    )


def adagrad_slowdown() -> tuple[Measured, ...]:
    k = torch.arange(1, 101, dtype=DOUBLE)
    theirs = torch_path(lambda p: torch.optim.Adagrad(p, lr=1.0, eps=0.0), torch.ones_like, _numbers(0), steps=100)
    return (Measured("steps/η = 1/√k for constant g", k.rsqrt(), -theirs.diff(dim=0).flatten()),)


def adadelta_first_idea() -> tuple[Measured, ...]:
    paths = _paths(rmsprop, lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9), eta=0.01, alpha=0.9)
    return (Measured("100 steps", *paths),)


def adadelta_forms() -> tuple[Measured, ...]:
    paths = _paths(adadelta, torch.optim.Adadelta, eta=1.0)
    moved = [(path[-1] - path[0]).norm().reshape(1) for path in paths]
    return (Measured("distance after 100 steps", *moved), Measured("100 steps", *paths))


def rmsprop_forms() -> tuple[Measured, ...]:
    defaults = torch.optim.RMSprop([nn.Parameter(torch.zeros(1))]).defaults
    return (
        Measured("default η and α", _numbers(0.01, 0.99), _numbers(defaults["lr"], defaults["alpha"])),
        Measured("100 steps", *_paths(rmsprop, lambda p: torch.optim.RMSprop(p, lr=0.01), eta=0.01)),
    )


def _step_lengths(rule: Rule | Callable[..., Any], optimizer: Any, **options: float) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 1, 12 and 1000 along a constant gradient 1, divided by η: printed, torch's, corrected."""

    def chosen(path: Tensor) -> Tensor:
        return (-path.diff(dim=0).flatten() / 1e-3)[[0, 11, 999]]

    ours = [
        chosen(descend(rule, torch.ones_like, _numbers(0), eta=1e-3, steps=1000, form=form, **options).w)
        for form in ("printed", "torch")
    ]
    return ours[0], chosen(torch_path(optimizer, torch.ones_like, _numbers(0), steps=1000)), ours[1]


def adam_forms() -> tuple[Measured, ...]:
    return (
        Measured("steps 1, 12, 1000 over η for constant g", *_step_lengths(adam, torch.optim.Adam)),
        Measured("100 steps", *_paths(adam, lambda p: torch.optim.Adam(p, lr=0.01), eta=0.01)),
    )


def adamw_forms() -> tuple[Measured, ...]:
    start = _numbers(1, -2)
    alone = [descend(adamw, torch.zeros_like, start, eta=1e-3, steps=10, form=form).w for form in ("printed", "torch")]
    return (
        Measured("decay alone, 10 steps", alone[0], torch_path(torch.optim.AdamW, torch.zeros_like, start, steps=10)),
        Measured("100 steps", *_paths(adamw, lambda p: torch.optim.AdamW(p, lr=0.01), eta=0.01)),
    )
