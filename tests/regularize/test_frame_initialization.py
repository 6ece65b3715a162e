"""Tight frames and delta-orthogonal kernels: true spectra of the initialized operators."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from thalweg.operators import LayerOperator
from thalweg.regularize import SoftOrthogonality
from thalweg.regularize.frame import frame_penalty
from thalweg.regularize.initialization import frame_init_, tight_frame

A, B = 0.5, 2.0


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 10.0), st.integers(0, 50))
def test_a_tight_frame_has_one_eigenvalue(m, n, bound, seed):
    M = tight_frame(m, n, bound=bound, generator=draw(seed), dtype=torch.float64)
    assert M.shape == (m, n)
    V = M.T @ M if m >= n else M @ M.T
    torch.testing.assert_close(V, bound * torch.eye(min(m, n), dtype=torch.float64), rtol=0, atol=1e-13 * bound)


def test_tight_frames_are_uniform():
    """E M = 0 and E |M_11|² = c/m: the signs of the QR decomposition would bias the diagonal."""
    generator = draw()
    samples = torch.stack([tight_frame(3, 3, generator=generator, dtype=torch.float64) for _ in range(2000)])
    assert samples.mean(0).abs().max() < 4 * (1 / 3 / 2000) ** 0.5  # four standard errors
    assert (samples.square().mean(0) - 1 / 3).abs().max() < 0.03


LAYERS = {
    "stride 1": (nn.Conv2d(6, 6, 3, padding=1), "delta-tight frame"),
    "redundant": (nn.Conv2d(4, 9, 3, padding=1), "delta-tight frame"),
    "m < n": (nn.Conv2d(9, 4, 3, padding=1), "delta-orthogonal rows"),
    "stride 2": (nn.Conv2d(4, 8, 3, stride=2, padding=1), "delta-orthogonal rows"),
    "stride 2, redundant": (nn.Conv2d(2, 10, 3, stride=2, padding=1), "delta-tight frame"),
    "stride 3": (nn.Conv2d(4, 4, 3, stride=3, padding=1), "delta-orthogonal rows"),
    "shortcut": (nn.Conv2d(4, 8, 1, stride=2), "delta-tight frame"),
    "depthwise": (nn.Conv2d(5, 5, 3, padding=1, groups=5), "delta-tight frame"),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), "delta-tight frame"),
    "circular": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "delta-tight frame"),
    "dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2), "delta-tight frame"),
    "valid": (nn.Conv2d(4, 3, 3), "delta-orthogonal rows"),
    "rectangular": (nn.Conv2d(4, 4, (1, 5), padding=(0, 2)), "delta-tight frame"),
    "1-D": (nn.Conv1d(3, 3, 3, padding=1), "delta-tight frame"),
    "3-D": (nn.Conv3d(2, 2, 3, padding=1), "delta-tight frame"),
    "dense": (nn.Linear(5, 8), "tight frame"),
    "dense, m < n": (nn.Linear(8, 5), "orthogonal rows"),
}


@pytest.mark.parametrize("known", [True, False], ids=["map known", "map unknown"])
@pytest.mark.parametrize(("layer", "kind"), LAYERS.values(), ids=LAYERS)
def test_the_true_spectrum_is_one_point(layer, kind, known):
    axes = layer.weight.ndim - 2
    shape = (layer.in_channels, *[8, 8, 4][:axes]) if axes else (layer.in_features,)
    (done,) = frame_init_(layer, A, B, sample=torch.zeros(1, *shape) if known else None, generator=draw())
    assert done.kind == kind
    op = LayerOperator.of(layer, shape)
    values = op.singular_values().square()
    values = values[values > 1e-6] if kind.endswith("tight frame") else values  # unread pixels have zero columns
    if known or "stride 3" not in str(layer):
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-5)  # √(A B), in float32
    assert done.lower == pytest.approx(1.0, abs=1e-5)
    assert done.upper == pytest.approx(1.0, abs=1e-5)
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups") if axes}
    R = frame_penalty(
        layer.weight, shape, lower=A, upper=B, circular=axes and layer.padding_mode == "circular", **options
    )
    assert R == 0
    assert "m < n" not in done.note or kind.endswith("rows")


def test_a_model_is_reported_line_by_line():
    model = nn.Sequential(
        nn.Embedding(3, 3),
        nn.Linear(4, 4),
        parametrizations.orthogonal(nn.Linear(4, 4)),
        nn.Conv1d(2, 2, 3, padding_mode="reflect", padding=1),
        nn.Linear(4, 2),
    )
    kept = model[4].weight.detach().clone()
    lines = frame_init_(model, A, B, exclude="4", generator=draw())
    assert [line.name for line in lines] == ["0", "1", "2", "3", "4"]
    assert [line.kind for line in lines] == ["not initialized", "tight frame", *["not initialized"] * 3]
    assert ["neither" in lines[0].note, "parametrized" in lines[2].note, "reflect" in lines[3].note] == [True] * 3
    assert torch.equal(model[4].weight, kept)


def blocks():
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    )


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, ["0.0", "0.1", "1.0"]),
        ({"include": "0.*"}, ["0.0", "0.1"]),
        ({"include": ["1.*", "0.0.weight"]}, ["0.0", "1.0"]),
        ({"exclude": "*.0"}, ["0.1"]),
        ({"exclude": ["1*", "0.1"]}, ["0.0"]),
    ],
)
def test_selection_by_shell_patterns_as_in_penalties(options, chosen):
    model = blocks()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    lines = frame_init_(model, A, B, generator=draw(), **options)
    assert [line.name for line in lines] == ["0.0", "0.1", "1.0"]
    assert [line.name for line in lines if line.kind == "tight frame"] == chosen
    moved = [name for name, param in model.named_parameters() if not torch.equal(param, before[name])]
    assert moved == [f"{name}.weight" for name in chosen]
    penalty = SoftOrthogonality(**options)
    assert [row.layer for row in penalty.per_layer(model).regularized] == moved
    reasons = {row.layer: row.note for row in penalty.per_layer(model).skipped}
    assert all(line.note == reasons[f"{line.name}.weight"] for line in lines if line.name not in chosen)


@pytest.mark.parametrize("options", [{"include": ["*", "fc"]}, {"exclude": "fc"}, {"exclude": ["0.0", "fc"]}])
def test_a_pattern_that_matches_nothing_is_refused_before_anything_is_written(options):
    model = blocks()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    with pytest.raises(ValueError, match="frame_init_: no weight of the model matches 'fc'; patterns are compared"):
        frame_init_(model, A, B, **options)
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())


def test_a_name_that_is_part_of_an_excluded_one_is_no_match():
    """``name in "fc"`` is true for "f", and for the "" of a model that is one layer."""
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="matches 'fc'"):
        frame_init_(layer, A, B, exclude="fc")


def test_frozen_and_odd_weights_are_left_alone_with_the_reason_of_the_penalties():
    model = nn.Sequential(
        nn.Linear(4, 4).requires_grad_(False),
        nn.Linear(4, 4, dtype=torch.complex64),
        nn.Linear(4, 1, bias=False),
        nn.LSTM(4, 3, bias=False),
        nn.Linear(4, 4),
    )
    model[2].weight = nn.Parameter(torch.empty(0, 4))
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    lines = {line.name: line for line in frame_init_(model, A, B, generator=draw())}
    assert {name: line.note for name, line in lines.items()} == {
        "0": "frozen: it does not require a gradient",
        "1": "complex weights are not supported",
        "2": "it has no elements",
        "3.weight_ih_l0": "LSTM is neither a dense layer nor a convolution",
        "3.weight_hh_l0": "LSTM is neither a dense layer nor a convolution",
        "4": "",
    }
    moved = [name for name, param in model.named_parameters() if not torch.equal(param, before[name])]
    assert moved == ["4.weight"]
    with pytest.raises(ValueError, match="LazyLinear has an uninitialized weight: call the model once on real data"):
        frame_init_(nn.Sequential(nn.LazyLinear(3)), A, B)
    with pytest.raises(TypeError, match="a model is expected, a torch.nn.Module, got Parameter"):
        frame_init_(nn.Linear(2, 2).weight, A, B)


def test_a_shared_weight_is_the_frame_of_its_first_layer():
    """Written a second time, for a stride of 2, it would have λ_min = 0 in the first, whose line says otherwise."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    model[1].weight = model[0].weight
    first, second = frame_init_(model, A, B, sample=torch.zeros(1, 4, 6, 6), generator=draw())
    bounds = LayerOperator.of(model[0], (4, 6, 6)).frame_bounds()
    assert (first.lower, first.upper) == pytest.approx((bounds.lower, bounds.upper), abs=1e-5)  # float32
    assert (second.kind, second.note) == ("not initialized", "initialized once, as 0.weight")


def test_reading_a_spectral_norm_leaves_its_power_iteration():
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    frame_init_(layer, A, B)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_pruned_weight_is_left_alone_not_set_until_the_next_forward_pass():
    layer = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=8)
    before = layer.weight_orig.detach().clone()
    line = frame_init_(layer, A, B, generator=draw())[0]
    assert (line.kind, line.note) == (
        "not initialized",
        "its weight is pruned or computed by a hook: initialize it before",
    )
    assert torch.equal(layer.weight_orig, before)


def test_a_compiled_model_goes_by_the_names_of_the_model_inside():
    models = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 2)) for _ in range(2)]
    sample = torch.zeros(1, 3, 4, 4)
    lines = frame_init_(models[0], A, B, sample=sample, exclude=["2"], generator=draw())
    compiled = torch.compile(models[1], backend="eager")
    assert frame_init_(compiled, A, B, sample=sample, exclude=["2"], generator=draw())[0] == lines[0]
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert not torch.equal(models[0][2].weight, models[1][2].weight)  # excluded: as torch drew them


def test_scale_is_the_geometric_mean_of_the_bounds():
    layer = nn.Linear(3, 3)
    frame_init_(layer, 1.0, 9.0, generator=draw())
    torch.testing.assert_close(layer.weight @ layer.weight.T, 3 * torch.eye(3), rtol=0, atol=1e-5)
    frame_init_(layer, 0.0, 9.0, generator=draw())
    torch.testing.assert_close(layer.weight @ layer.weight.T, 4.5 * torch.eye(3), rtol=0, atol=1e-5)


def test_draws_come_from_the_generator_alone():
    state = torch.random.get_rng_state()
    layers = [nn.utils.skip_init(nn.Linear, 4, 4) for _ in range(3)]
    for layer, seed in zip(layers, (0, 0, 1), strict=True):
        frame_init_(layer, A, B, generator=draw(seed))
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not torch.equal(layers[0].weight, layers[2].weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="0 <= A <= B"):
        frame_init_(nn.Linear(2, 2), 2.0, 1.0)
    for lower, upper in ((0.0, 0.0), (0.5, float("inf"))):
        with pytest.raises(ValueError, match="finite and satisfy 0 <= A <= B and B > 0"):
            frame_init_(nn.Linear(2, 2), lower, upper)
    for m, n, bound in ((0, 2, 1.0), (2, 2, -1.0), (2, 2, float("nan"))):
        with pytest.raises(ValueError, match="a tight frame has m, n >= 1 and a finite bound >= 0, got"):
            tight_frame(m, n, bound=bound)
