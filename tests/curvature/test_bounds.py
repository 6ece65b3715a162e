"""No bound that is called proved is exceeded by any network; those that the seed prints and that fail, fail here."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn.functional import cross_entropy, one_hot

from thalweg.curvature.bounds import hessian_bounds
from thalweg.curvature.matricization import matricize

K = 3


def draw(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def chains(draw_):
    """A network of at most about 100 parameters, and the shape of its input."""
    kind = draw_(st.sampled_from(["fully connected", "conv1d", "conv2d", "conv1d with head", "conv2d with head"]))
    layers, depth = [], draw_(st.integers(0, 2))
    if kind == "fully connected":
        widths = [draw_(st.integers(1, 4)) for _ in range(depth + 1)]
        for a, b in zip(widths, [*widths[1:], K], strict=True):
            layers += [nn.Linear(a, b, bias=False), draw_(st.sampled_from([nn.ReLU, nn.LeakyReLU]))()]
        return nn.Sequential(*layers[:-1]).double(), (widths[0],)
    axes = 1 if "1d" in kind else 2
    conv, maximum, average = ((nn.Conv1d, nn.MaxPool1d, nn.AvgPool1d), (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))[
        axes - 1
    ]
    size = draw_(st.integers(3, 6 - axes))
    channels = first = draw_(st.integers(1, 2))
    shape = (first, *[size] * axes)
    for place in range(depth + 1):
        k = draw_(st.integers(1, min(3, size)))
        padding = draw_(st.integers(0, min(1, k - 1)))
        stride = draw_(st.integers(1, 2))
        out = draw_(st.integers(1, 2))
        dilation = draw_(st.integers(1, 2)) if size + 2 * padding > 2 * (k - 1) else 1
        groups = draw_(st.sampled_from([1, channels])) if out == channels else 1
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        layers.append(conv(channels, out, k, bias=False, **options))
        channels, size = out, (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        if place < depth or "head" in kind:
            layers.append(nn.ReLU())
            pool = draw_(st.sampled_from([None, maximum, average]))
            if pool is not None and size >= 2:
                overlap = draw_(st.sampled_from([2, 2, 2, 1]))
                layers.append(pool(2, overlap))
                size = (size - 2) // overlap + 1
    layers.append(nn.Flatten())
    features = channels * size**axes
    if "head" in kind:
        hidden = draw_(st.integers(0, 1))
        for _ in range(hidden):
            layers += [nn.Linear(features, 2, bias=False), nn.ReLU()]
            features = 2
        layers.append(nn.Linear(features, K, bias=False))
    return nn.Sequential(*layers).double(), shape


KINDS = ("normal", "normal", "equal", "signs", "rank one", "one tap")


def weights(kind, shape, g):
    """Weights (out, in, …): drawn, or chosen to bring a bound as low as it goes.

    Equal ones attain the norms of the closed forms, signs their largest entries; with rank one over (in, …) every
    channel does the same, so that norms of products are products of norms; one tap makes a convolution a permutation.
    """
    drawn = torch.randn(shape, generator=g, dtype=torch.float64)
    if kind == "equal":
        return torch.ones_like(drawn)
    if kind == "signs":
        return drawn.sign()
    if kind == "rank one":
        return (drawn.flatten(1)[:, :1] * drawn.flatten(1)[:1]).view(shape)
    if kind == "one tap":
        keep = torch.zeros_like(drawn)
        keep.flatten()[torch.randint(drawn.numel(), (1,), generator=g)] = 1.0
        return keep
    return drawn


@st.composite
def cases(draw_):
    """A chain with random or adversarial weights, inputs and classes."""
    model, shape = draw_(chains())
    g = draw(draw_(st.integers(0, 2**31)))
    kind = draw_(st.sampled_from(KINDS))
    low, high = draw_(st.sampled_from([(-3, 1), (-3, 1), (-8, -4), (1, 3)]))  # also all tiny, all huge
    for param in model.parameters():
        scale = 10 ** (low + (high - low) * torch.rand((), generator=g, dtype=torch.float64))
        param.data = scale * weights(kind, param.shape, g)
    x = torch.randn(3, *shape, generator=g, dtype=torch.float64)
    x = draw_(st.sampled_from([x, x, x.abs(), torch.ones_like(x)]))
    with torch.no_grad():
        classes = model(x).shape[1]
    assume(classes > 1)  # the loss of a single class is zero everywhere
    return model, x, torch.randint(classes, (3,), generator=g)


def assert_nothing_is_exceeded(case):
    table = hessian_bounds(*case)
    for bound in table.values():
        assert bool(torch.isfinite(bound.value).all())
        assert not (bound.proved and bound.violations), f"{bound.name}: {bound.value} < {bound.exact}\n{table}"
    # each of these is at most the next, by the way it is derived; rounding of products of some dozen norms
    names = ["Jacobian", "activations", "operator norms", "closed form"]
    for tighter, looser in pairwise(names):
        slack = table[tighter].rounding + 1e-9 * table[looser].value
        assert bool((table[tighter].value <= table[looser].value + slack).all()), (tighter, looser)
    assert bool((table["operator norms"].value <= table["operator norms, Fourier"].value * (1 + 1e-9)).all())


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_no_proved_bound_is_exceeded(case):
    assert_nothing_is_exceeded(case)


@pytest.mark.slow
@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_no_proved_bound_is_exceeded_by_any_of_2000_networks(case):
    assert_nothing_is_exceeded(case)


def mixed(head=True, scale=1.0, seed=0):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 2, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(8, K, bias=False) if head else nn.Identity(),
    ).double()  # fmt: skip
    g = draw(seed)
    for param in model.parameters():
        param.data = scale * torch.randn(param.shape, generator=g, dtype=torch.float64)
    x = torch.randn(16, 1, 4, 4, generator=g, dtype=torch.float64)
    return model, x, torch.randint(K, (16,), generator=g)


def test_exact_norms_are_those_of_the_dense_matrices():
    model, x, y = mixed()
    table = hessian_bounds(model, x, y)
    for i in range(len(x)):
        H_O = matricize(model, x[i : i + 1]).gauss_newton()
        norm = torch.linalg.matrix_norm(H_O, 2)
        torch.testing.assert_close(table.gauss_newton[i], norm, rtol=1e-8, atol=1e-12)
        sizes, at = [param.numel() for param in model.parameters()], 0
        for p, size in enumerate(sizes):
            block = torch.linalg.matrix_norm(H_O[at : at + size, at : at + size], 2)
            torch.testing.assert_close(table.blocks[i, p], block, rtol=1e-8, atol=1e-12)
            at += size
    assert table.dominant == table.layers[int(table.blocks.median(0).values.argmax())]


def test_hessian_norm_against_autograd():
    model, x, y = mixed()
    params = {name: param.detach() for name, param in model.named_parameters()}

    def loss(theta):
        parts = theta.split([param.numel() for param in params.values()])
        weights = {name: part.view_as(param) for (name, param), part in zip(params.items(), parts, strict=True)}
        return cross_entropy(functional_call(model, weights, (x[:1],)), y[:1])

    H = jacrev(grad(loss))(torch.cat([param.flatten() for param in params.values()]))
    norm = hessian_bounds(model, x[:1], y[:1]).hessian[0]
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(H, 2), rtol=1e-8, atol=1e-12)


def test_lemma_4_as_printed_is_exceeded_by_a_head_of_small_weights():
    """Its ratio is upside down: the term of the head should not vanish with the head's weights."""
    model, x, y = mixed()
    worst = []
    for small in (1e-5, 1e-6, 1e-8):
        model[5].weight.data = small * torch.ones(K, 8, dtype=torch.float64)
        table = hessian_bounds(model, x, y)
        assert table["lemma 4, corrected"].violations == 0
        worst.append(float((table["lemma 4"].exact / table["lemma 4"].value).max()))
        assert small > 1e-6 or table["lemma 4"].violations > len(x) // 2
    assert not table["lemma 4"].proved
    # H_O tends to a constant, the bound falls as w̃²: a hundredfold for each tenth
    assert worst[1] / worst[0] == pytest.approx(100, rel=1e-3)
    assert worst[1] > 1e3


@pytest.mark.parametrize(
    ("name", "conv"),
    [("lemma 2", nn.Conv2d), ("theorem 2", nn.Conv2d), ("lemma 2", nn.Conv1d), ("theorem 1", nn.Conv1d)],
)
def test_the_seed_s_bounds_on_h_o_are_none_on_h_at_small_weights(name, conv):
    """Kernels of one tap: H_O falls as w², but H_F as w, because |p - y| does not fall."""
    model = nn.Sequential(conv(1, 2, 1, bias=False), nn.ReLU(), conv(2, 2, 1, bias=False), nn.Flatten()).double()
    x, y = torch.ones_like(model[0].weight.data[:1]), torch.tensor([0])
    for param in model.parameters():
        param.data = torch.full_like(param.data, 0.02)
    table = hessian_bounds(model, x, y)
    assert table[name].violations == 0
    assert table[f"{name} for H"].violations == 1
    assert table["full Hessian, activations"].violations == 0
    assert table.hessian.item() > 10 * table.gauss_newton.item()


def test_the_predecessor_s_theorem_is_exceeded_at_small_weights_without_biases():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    for param in model.parameters():
        param.data = torch.full_like(param.data, 0.01)
    table = hessian_bounds(model, torch.full((1, 2), 5.0, dtype=torch.float64), torch.tensor([0]))
    assert table["fully connected"].violations == 1
    assert table["full Hessian, operator norms"].violations == 0


def test_average_and_maximum_pooling_differ_in_lemma_3():
    _, x, y = mixed()
    corrected, printed = {}, {}
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        model = nn.Sequential(
            nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), pool, nn.Conv2d(1, 1, 1, bias=False), nn.Flatten()
        )
        table = hessian_bounds(model.double(), x, y)
        printed[type(pool)], corrected[type(pool)] = table["lemma 3"], table["lemma 3, corrected"]
        ratio = float(table["lemma 3"].value[0] / table["theorem 2"].value[0])
        assert ratio == pytest.approx(2.0 ** (-2 * (1 - 1 + 2)))  # k_pool^{-2(L-l+2)} with L = l = 1
    assert not printed[nn.MaxPool2d].proved
    assert printed[nn.AvgPool2d].proved
    ratio = corrected[nn.MaxPool2d].value / printed[nn.MaxPool2d].value
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0))


def test_half_is_reached_where_the_seed_has_root_two():
    model = nn.Linear(4, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    table = hessian_bounds(
        nn.Sequential(model), torch.randn(5, 4, generator=draw(0), dtype=torch.float64), torch.tensor([0] * 5)
    )
    assert table["operator norms"].looseness == pytest.approx(1.0, rel=1e-9)
    assert table["lemma 2"].looseness == pytest.approx(2 * math.sqrt(2), rel=1e-9)


def test_biases_leave_the_bounds_that_know_them():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 2), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, K)
    )
    g = draw(0)
    for scale in (0.01, 1.0, 10.0):
        for param in model.double().parameters():
            param.data = scale * torch.randn(param.shape, generator=g, dtype=torch.float64)
        x = torch.randn(8, 1, 5, generator=g, dtype=torch.float64)
        table = hessian_bounds(model, x, torch.randint(K, (8,), generator=g))
        assert set(table) == {"activations", "Jacobian", "full Hessian, activations", "full Hessian, exact H_O"}
        assert all(bound.proved and not bound.violations for bound in table.values())
    assert "'0' has a bias" in table.omitted["operator norms"]
    with pytest.raises(KeyError, match="has a bias"):
        table["operator norms"]


def test_class_probabilities_are_targets_too():
    model, x, y = mixed()
    probabilities = one_hot(y, K).double()
    torch.testing.assert_close(hessian_bounds(model, x, probabilities).hessian, hessian_bounds(model, x, y).hessian)


def test_without_the_exact_hessian_the_rest_is_there():
    table = hessian_bounds(*mixed(), exact_hessian=False)
    assert bool(table.hessian.isnan().all())
    assert math.isnan(table["full Hessian, activations"].looseness)
    assert table["activations"].looseness >= 1


def test_the_table_in_words():
    text = str(hessian_bounds(*mixed()))
    for line in ("| lemma 4 |", "| activations |", "(dominant)", "exact, median: H_O"):
        assert line in text


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 1)), torch.ones(1, 1, 2, 2), "nn.Flatten"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), torch.ones(1, 2), "BatchNorm1d"),
        (nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), torch.ones(1, 2), "random in training mode"),
        (
            nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
            torch.ones(1, 1, 4),
            "'reflect'",
        ),
        (nn.Sequential(nn.Linear(2, 2), nn.Flatten()), torch.ones(1, 3, 2), "flatten its input"),
        (nn.Sequential(nn.Linear(2, 2)), torch.ones(0, 2), "there is no data"),
        (nn.Sequential(nn.Linear(2, 2)), torch.full((1, 2), torch.inf), "outputs are not finite"),
        (nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), torch.ones(1, 2), "no trainable parameter"),
    ],
)
def test_networks_that_are_refused(model, x, message):
    with pytest.raises(ValueError, match=message):
        hessian_bounds(model, x, torch.zeros(len(x), dtype=torch.long))


def test_shared_weights_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match="share one weight"):
        hessian_bounds(model, torch.ones(1, 2), torch.tensor([0]))


@pytest.mark.parametrize(
    "y",
    [
        torch.tensor([0, -100]),
        torch.tensor([0, 2]),
        torch.tensor([0, 1, 0]),
        torch.tensor([[0], [1]]),
        torch.ones(2),
    ],
    ids=["ignored", "too large", "too many", "two axes", "no classes"],
)
def test_targets_that_are_no_classes_are_refused(y):
    with pytest.raises(ValueError, match="y must hold a class from 0 to 1 for each of the 2 samples"):
        hessian_bounds(nn.Sequential(nn.Linear(2, 2)), torch.ones(2, 2), y)


def test_a_single_logit_is_refused():
    with pytest.raises(ValueError, match="K at least 2"):
        hessian_bounds(nn.Sequential(nn.Linear(2, 1)), torch.ones(2, 2), torch.tensor([0, 0]))


def test_inputs_of_another_type_are_refused():
    with pytest.raises(ValueError, match="fails on the data: .* same dtype"):
        hessian_bounds(nn.Sequential(nn.Linear(2, 2)).double(), torch.ones(2, 2), torch.tensor([0, 0]))


def test_gradients_may_be_switched_off_around_it():
    expected = hessian_bounds(*mixed())
    with torch.no_grad():
        table = hessian_bounds(*mixed())
    assert all(torch.equal(table[name].value, bound.value) for name, bound in expected.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same():
    model, x, y = mixed()
    here = hessian_bounds(model, x, y)
    there = hessian_bounds(model.cuda(), x.cuda(), y.cuda())
    for name, bound in here.items():  # other kernels, other order of summation
        torch.testing.assert_close(there[name].value.cpu(), bound.value, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(there[name].exact.cpu(), bound.exact, rtol=1e-8, atol=1e-12)
