"""The frame regularizer over models: which layers, which side, what it says, and the report beside dense spectra."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from thalweg.operators import LayerOperator
from thalweg.regularize.frame import FrameRegularizer, frame_penalty
from thalweg.regularize.frame_table import frame_report
from thalweg.regularize.gram import gram_side
from thalweg.regularize.initialization import frame_init_

A, B = 0.5, 2.0
SAMPLE = torch.zeros(1, 3, 12, 12)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0):
    """Every kind of layer: m > n, m = n, m < n, stride, depthwise, a shortcut that reads a quarter, dense."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 16, 1, stride=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(24 * 9, 10),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=draw(seed)))
    return model


def quietly(penalty, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return penalty(model)


@pytest.mark.parametrize("side", ["auto", "upper", "skip"])
def test_the_sum_over_layers_is_that_of_dense_definitions(side):
    model = network().double()
    penalty = FrameRegularizer(A, B, side=side).prepare(model, SAMPLE.double())
    expected, shape = 0.0, (3, 12, 12)
    for module in model:
        if not hasattr(module, "weight"):
            continue
        op = LayerOperator.of(module, shape if isinstance(module, nn.Conv2d) else None)
        W, shape = op.dense(), op.output_shape
        m = W.shape[0]
        W = W[:, W.abs().any(0)]  # without the pixels that a shortcut never reads
        col = m >= W.shape[1]
        if not col and side == "skip":
            continue
        V = W.T @ W if col else W @ W.T
        v, off = V.diagonal(), V.abs().sum(1) - V.diagonal()
        low = (v - off - A).clamp(max=0).square() if col or side == "auto" else 0 * v
        expected = expected + (low + (B - v - off).clamp(max=0).square()).mean()
    # float64 sums of some thousand terms
    torch.testing.assert_close(quietly(penalty, model), expected, rtol=1e-12, atol=0)


def test_gershgorin_is_sufficient_and_a_tight_penalty_bounds_the_condition():
    """R = 0 gives A <= λ <= B (the seed's slide 9), so the condition number of V is at most B/A."""
    W = torch.randn(64, 8, dtype=torch.float64, generator=draw()) / 8
    W.requires_grad_()
    optimizer = torch.optim.SGD([W], lr=0.3, momentum=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        R = frame_penalty(W, lower=A, upper=B)
        if R == 0:
            break
        R.backward()
        optimizer.step()
    assert R == 0
    eigenvalues = torch.linalg.eigvalsh((W.T @ W).detach())
    assert eigenvalues[0] >= A
    assert eigenvalues[-1] <= B
    assert eigenvalues[-1] / eigenvalues[0] <= B / A


def test_the_slide_with_j_equal_to_i_can_never_vanish():
    """Printed, the sum includes v_ii: even V = I inside [A, B] costs A², and the lower term never pulls v_ii up."""
    V = torch.eye(4)
    printed = ((V.diagonal() - A - V.abs().sum(1)).clamp(max=0) ** 2).mean()
    assert printed == A**2
    assert frame_penalty(torch.eye(4), lower=A, upper=B) == 0


def test_sides_by_name():
    assert [gram_side(3, 2, side).gram for side in ("auto", "col", "row", "upper", "skip")] == [
        "col",
        "col",
        "row",
        "col",
        "col",
    ]
    assert [gram_side(2, 3, side).gram for side in ("auto", "col", "row", "upper", "skip")] == [
        "row",
        "col",
        "row",
        "row",
        "",
    ]
    assert not gram_side(2, 3, "upper").bounded_below
    assert "no A > 0" in gram_side(2, 3, "col").note
    assert "no A > 0" in gram_side(3, 2, "row").note
    assert "at least 1 of its dimensions is lost" in gram_side(2, 3).note
    assert gram_side(4, 4, read=2).gram == "read"
    assert gram_side(4, 4, read=0).gram == ""


@pytest.mark.filterwarnings("ignore:the Gershgorin form will shrink")
def test_what_is_not_regularized_is_in_the_table():
    model = network()
    model.append(nn.Linear(10, 10))
    model[1] = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    model[3].weight.requires_grad_(False)
    model[-1].weight = nn.Parameter(model[-1].weight.detach())
    model.append(nn.Linear(10, 10))
    model[-1].weight = model[-2].weight
    penalty = FrameRegularizer(A, B, side="skip", exclude="0").prepare(model, SAMPLE)
    reasons = {row.layer: row.note for row in penalty.per_layer(model).skipped}
    assert "reflect" in reasons["1.weight"]
    assert "frozen" in reasons["3.weight"]
    assert "excluded" in reasons["0.weight"]
    assert "rank <= m" in reasons["4.weight"]
    assert "7.weight" in reasons["8.weight"]
    assert "not the weight" in reasons["6.bias"]


def test_zeros_give_the_lower_bound_squared_and_nan_shows():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    penalty = FrameRegularizer(A, B).prepare(model, SAMPLE)
    nn.init.zeros_(model[0].weight)
    assert penalty(model).item() == pytest.approx(A**2)
    nn.init.constant_(model[0].weight, float("nan"))
    assert penalty(model).isnan()
    assert "not finite" in penalty.per_layer(model)[0].note
    assert "not finite" in frame_report(model, (3, 12, 12))[0].note


def test_parametrized_weights_reach_their_originals():
    layer = parametrizations.weight_norm(nn.Linear(4, 6, bias=False))
    FrameRegularizer(A, B)(layer).backward()
    assert layer.parametrizations.weight.original0.grad.any()


def test_sampling_is_unbiased_and_reproducible():
    model = network()[:2]
    exact = quietly(FrameRegularizer(A, B).prepare(model, SAMPLE), model)

    def sampled(seed):
        return FrameRegularizer(A, B, sample=0.25, generator=draw(seed)).prepare(model, SAMPLE)

    values = torch.stack([quietly(sampled(seed), model).detach() for seed in range(100)])
    error = values.std() / math.sqrt(100)
    assert abs(values.mean() - exact) < 4 * error  # four standard errors
    assert error > 0
    assert quietly(sampled(0), model) == values[0]
    assert sampled(0).per_layer(model).total == pytest.approx(exact.item(), rel=1e-5)  # the table is exact, in float32


def test_a_round_of_samples_draws_every_channel_once():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)).double()
    penalty = FrameRegularizer(A, B, sample=0.25, generator=draw()).prepare(model, torch.zeros(1, 8, 6, 6).double())
    exact = quietly(FrameRegularizer(A, B).prepare(model, torch.zeros(1, 8, 6, 6).double()), model)
    first = [quietly(penalty, model)]
    saved = penalty.state_dict()
    rest = [quietly(penalty, model) for _ in range(3)]
    torch.testing.assert_close(
        torch.stack(first + rest).mean(), exact, rtol=1e-12, atol=0
    )  # four parts of two channels
    penalty.load_state_dict(saved)
    assert [quietly(penalty, model) for _ in range(3)] == rest  # a round goes on where it was saved


@pytest.mark.filterwarnings("ignore:the Gershgorin form will shrink")
@pytest.mark.parametrize("options", [{"sample": 0.25}, {"form": "spectral"}], ids=lambda o: next(iter(o)))
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "accelerator",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
            ],
        ),
    ],
)
def test_its_state_comes_from_a_file_of_no_code_onto_any_device(options, device, tmp_path):
    """In the middle of a round of samples, or with the vectors of the power steps: the next value is the same."""
    model, sample = nn.Conv2d(8, 8, 3, padding=1).double(), torch.zeros(1, 8, 6, 6).double()
    penalty = FrameRegularizer(A, B, generator=draw(), **options).prepare(model, sample)
    penalty(model)
    torch.save(penalty.state_dict(), tmp_path / "penalty.pt")
    expected = penalty(model)
    other = FrameRegularizer(A, B, generator=draw(1), **options)
    other.load_state_dict(torch.load(tmp_path / "penalty.pt", weights_only=True))
    if device == "accelerator":
        model.to(torch.accelerator.current_accelerator())
    value = other(model)
    value.backward()
    # the same float64 sums, on an accelerator in another order
    torch.testing.assert_close(value.cpu(), expected, rtol=0 if device == "cpu" else 1e-9, atol=0)


def test_a_start_that_collapses_is_warned_of_once():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    with torch.no_grad():
        model[0].weight.normal_(0, math.sqrt(2 / 144), generator=draw())
    penalty = FrameRegularizer(A, B).prepare(model, torch.zeros(1, 16, 8, 8))
    with pytest.warns(UserWarning, match=r"1 layer.* in 0\.weight .* times its diagonal .*frame_init_"):
        penalty(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty(model)
        frame_init_(model, A, B, generator=draw())
        FrameRegularizer(A, B).prepare(model, torch.zeros(1, 16, 8, 8))(model)


def test_collapse_is_what_the_warning_says():
    """Pure minimization from He: λ_min stays at 0. From the helper, with noise, it is led back into [A, B]."""
    spectra = []
    for start in ("He", "frame"):
        conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        with torch.no_grad():
            conv.weight.normal_(0, math.sqrt(2 / 72), generator=draw(1))
            if start == "frame":
                noise = conv.weight.clone()
                frame_init_(conv, A, B, generator=draw(2))
                conv.weight.add_(noise, alpha=0.1)
        penalty = FrameRegularizer(A, B).prepare(conv, torch.zeros(1, 8, 6, 6))
        optimizer = torch.optim.SGD(conv.parameters(), lr=0.5, momentum=0.9)
        for _ in range(120):
            optimizer.zero_grad()
            quietly(penalty, conv).backward()
            nn.utils.clip_grad_norm_(conv.parameters(), 0.1)
            optimizer.step()
        values = LayerOperator.of(conv, (8, 6, 6)).singular_values().square()
        spectra.append((float(values.min()), float(values.max())))
    assert spectra[0][0] < 0.01
    assert spectra[1][0] >= 0.99 * A  # the last step may sit on the boundary
    assert spectra[1][1] <= 1.01 * B


def test_its_own_step_is_that_of_polyak():
    """W - η R/|∇R|² ∇R in each layer, toward [A (1 + margin), B (1 - margin)], by autograd of the dense definition."""
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=draw(3), dtype=p.dtype))
    expected = []
    for layer in model:
        W = layer.weight.detach().clone().requires_grad_()
        V = W.T @ W if len(W) > 4 else W @ W.T
        v, off = V.diagonal(), V.abs().sum(1) - V.diagonal()
        R = ((v - off - 1.2 * A).clamp(max=0).square() + (0.8 * B - v - off).clamp(max=0).square()).mean()
        (g,) = torch.autograd.grad(R, W)
        expected.append((W - 0.7 * R / g.square().sum() * g).detach())
    penalty = FrameRegularizer(A, B, margin=0.2, every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        penalty.step_(model, 0.7)
        penalty.advance()
        penalty.step_(model, 0.7)  # not due
    for layer, weight in zip(model, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-12, atol=1e-14)  # sums of some ten products
        assert layer.weight.grad is None


@pytest.mark.filterwarnings("ignore:the Gershgorin form will shrink")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_its_own_step_has_the_length_of_float32_in_half_precision(dtype, error):
    """The square of this gradient, of norm 23,000, is beyond float16."""
    layer = nn.Linear(64, 256, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0, 0.6, generator=draw(5))
    half = copy.deepcopy(layer).to(dtype)
    layer.weight.data = half.weight.data.float()
    for member in (layer, half):
        FrameRegularizer(A, B).step_(member, 1.0)
    # gradient and weights are rounded to the ε of their dtype
    torch.testing.assert_close(half.weight.float(), layer.weight, rtol=error, atol=error)


def test_its_own_step_reads_a_parametrized_weight_no_more_than_it_must():
    """A spectral norm takes a power step at every reading: here one to choose layers and one for the value."""
    layer = parametrizations.spectral_norm(nn.Linear(4, 6, bias=False))
    penalty, readings = FrameRegularizer(A, B), []
    layer.parametrizations.weight[0].register_forward_hook(lambda module, *_: readings.append(module.training))
    before = layer.parametrizations.weight.original.detach().clone()
    penalty.step_(layer, 1.0)
    assert readings.count(True) == 2  # and the look at the start leaves no trace
    assert not torch.equal(layer.parametrizations.weight.original, before)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), (4, 6, 6)),
        (nn.Conv2d(8, 16, 3, stride=2, padding=1), (8, 8, 8)),
        (nn.Linear(48, 10), (48,)),
        (nn.Linear(16, 64), (16,)),
    ],
    ids=["square", "m < n", "classifier", "redundant"],
)
@pytest.mark.parametrize(("scale", "noise"), [(0.6, 5e-4), (1.7, 5e-3)], ids=["below A", "above B"])
def test_one_step_size_leads_every_layer_back(layer, shape, scale, noise):
    """Tight frames scaled out of [A, B] and perturbed: 120 steps of η = 1 for all, though their gradients differ."""
    frame_init_(layer, A, B, generator=draw())
    with torch.no_grad():
        layer.weight.mul_(scale).add_(torch.randn(layer.weight.shape, generator=draw(4)), alpha=noise)
    operator = LayerOperator.of(layer, shape if len(shape) > 1 else None)
    penalty = FrameRegularizer(A, B).prepare(layer, torch.zeros(1, *shape))
    assert penalty(layer) > 0
    for _ in range(120):
        penalty.step_(layer, 1.0)
    assert penalty(layer) == 0  # inside the margin, within 60 to 120 steps
    values = operator.singular_values().square()
    assert values.min() >= A
    assert values.max() <= B


def test_printed_it_says_what_it_aims_at():
    penalty = FrameRegularizer(A, B, 0.1, form="spectral", exclude="stem")
    assert repr(penalty) == (
        "FrameRegularizer(0.5, 2.0, 0.1, include=['*'], exclude=['stem'], every=1, form='spectral', side='auto')"
    )


def test_zeros_and_a_frame_stay_where_they_are():
    for weight in (torch.zeros(3, 3), torch.eye(3)):
        layer = nn.Linear(3, 3)
        layer.weight.data.copy_(weight)
        FrameRegularizer(A, B).step_(layer, 1.0)
        assert torch.equal(layer.weight, weight)


def test_a_margin_without_room_is_refused_by_the_step():
    with pytest.raises(ValueError, match="margin"):
        FrameRegularizer(0.9, 1.0).step_(nn.Linear(2, 2), 1.0)


def test_the_report_is_that_of_dense_matrices():
    model = network()
    report = frame_report(model, (3, 12, 12), lower=A, upper=B)
    assert [row.name for row in report] == ["0", "1", "2", "3", "4", "6"]
    shape = (3, 12, 12)
    rows = iter(report)
    for module in model:
        if not hasattr(module, "weight"):
            continue
        row, op = next(rows), LayerOperator.of(module, shape if isinstance(module, nn.Conv2d) else None)
        shape = op.output_shape
        W = op.dense().detach().double().numpy()
        assert (row.m, row.n) == W.shape
        W = W[:, np.abs(W).any(0)]
        V = W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
        values = np.linalg.eigvalsh(V)
        off = np.abs(V).sum(1) - V.diagonal()
        low, high = V.diagonal() - off, V.diagonal() + off
        expected = [values[0], values[-1], low.min(), high.max(), ((low < A) | (high > B)).mean()]
        found = [row.lambda_min, row.lambda_max, row.circle_min, row.circle_max, row.violating]
        # the model is float32: eigenvalues to 1e-5 of the largest
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert row.lost == row.n - np.linalg.matrix_rank(W.astype(np.float32))
        assert row.condition == pytest.approx(row.lambda_max / row.lambda_min)
    text = str(report)
    assert "cannot be recovered" in text
    assert "never read" in text


def test_the_report_names_what_is_left_out():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.ConvTranspose1d(4, 4, 3))
    model.forward = lambda x: model[1](x)
    report = frame_report(model, (4,))
    assert [row.name for row in report.skipped] == ["0", "2"]
    assert "Embedding is neither" in str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_in_float32(dtype):
    """At C = 512 squares of row sums reach 3e4, near the largest float16."""
    layer = nn.Linear(16, 32).to(dtype)
    value = quietly(FrameRegularizer(A, B), layer)
    assert value.dtype == torch.float32
    value.backward()
    assert layer.weight.grad.dtype == dtype
    assert value.item() == pytest.approx(frame_penalty(layer.weight.float(), lower=A, upper=B).item(), rel=1e-6)


def test_autocast_does_not_reach_the_products():
    model = network()
    penalty = FrameRegularizer(A, B).prepare(model, SAMPLE)
    expected = quietly(penalty, model)
    fresh = FrameRegularizer(A, B).prepare(model, SAMPLE)  # which looks at the start first
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quietly(penalty, model) == expected
        assert quietly(fresh, model) == expected
    report = frame_report(model, (3, 12, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frame_report(model, (3, 12, 12)) == report
        value = frame_penalty(model[0].weight, (3, 12, 12), padding=1, lower=A, upper=B)
    assert value == frame_penalty(model[0].weight, (3, 12, 12), padding=1, lower=A, upper=B)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frame_penalty(torch.eye(2), lower=2.0, upper=1.0), "0 <= A <= B"),
        (lambda: frame_penalty(torch.eye(2), lower=0.0, upper=1.0, side="both"), "side must be"),
        (lambda: frame_penalty(torch.eye(2), lower=0.0, upper=1.0, boundary="zero"), "boundary must be"),
        (lambda: frame_penalty(torch.ones(2, 2, 3), lower=0.0, upper=1.0), "size of its input map"),
        (lambda: frame_penalty(torch.ones(2, 2, 3), (3, 8), lower=0.0, upper=1.0), "takes an input_shape"),
        (lambda: frame_penalty(torch.ones(3, 2, 3), (4, 8), groups=2, lower=0.0, upper=1.0), "multiple of groups"),
        (lambda: frame_penalty(torch.ones(2, 2, 5), (2, 3), lower=0.0, upper=1.0), "no room"),
        (lambda: frame_penalty(torch.ones(2, 2, 3), (2, 8), stride=(1, 1), lower=0.0, upper=1.0), "for each of 1 axes"),
        (lambda: frame_penalty(torch.ones(2, 2, 3), (2, 8), stride=0, lower=0.0, upper=1.0), "an integer >= 1"),
        (lambda: frame_penalty(torch.ones(2, 2, 3), (2, 8), padding=-1, lower=0.0, upper=1.0), "an integer >= 0"),
        (lambda: frame_penalty(torch.ones(2, 2, 3), (2, 8), groups=0, lower=0.0, upper=1.0), "a multiple of groups=0"),
        (lambda: frame_penalty(torch.eye(2) + 0j, lower=0.0, upper=1.0), "a real weight .* got torch.complex64"),
        (lambda: frame_penalty(torch.ones(2, 2, 3), (2, 8), padding="full", lower=0.0, upper=1.0), "'same' or 'valid'"),
        (lambda: FrameRegularizer(-1.0, 1.0), "0 <= A <= B"),
        (lambda: FrameRegularizer(0.0, 1.0, sample=0.0), "0 < sample <= 1"),
        (lambda: FrameRegularizer(0.0, 1.0, form="exact"), "form must be"),
        (lambda: FrameRegularizer(0.0, 1.0, side="both"), "side must be"),
        (lambda: FrameRegularizer(0.0, 1.0)(nn.Conv2d(2, 2, 3)), "prepare"),
        (lambda: FrameRegularizer(0.0, 1.0, form="spectral")(nn.Conv2d(2, 2, 3)), "prepare"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
