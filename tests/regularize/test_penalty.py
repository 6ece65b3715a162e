"""The machinery of penalties: which weights, when, how strongly, and what is said about it."""

import copy
import os
import pickle
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations, prune

from thalweg.operators import LayerOperator
from thalweg.regularize import (
    L1,
    L2,
    SRIP,
    FrameRegularizer,
    HypersphericalEnergy,
    LayerPenalty,
    PenaltySum,
    SoftOrthogonality,
    frame_report,
    ramp,
    soft_orthogonality,
    srip_table,
    stair,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def regularized(penalty, model):
    return [row.layer for row in penalty.per_layer(model).regularized]


# Which weights


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["0.weight", "2.weight", "4.weight"]),
        ({"include": "0"}, ["0.weight"]),
        ({"include": ["0", "4.weight"]}, ["0.weight", "4.weight"]),
        ({"exclude": "[24]"}, ["0.weight"]),
        ({"exclude": ["0", "2.*"]}, ["4.weight"]),
        ({"types": (nn.Linear,)}, ["0.weight", "2.weight", "4.weight"]),
        ({"types": nn.Linear}, ["0.weight", "2.weight", "4.weight"]),
        ({"types": [nn.Conv2d, nn.Linear]}, ["0.weight", "2.weight", "4.weight"]),
    ],
)
def test_selection_by_name_and_type(options, expected):
    assert regularized(SoftOrthogonality(**options), network()) == expected


def test_reasons_are_given_for_all_that_is_left_out():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[3].requires_grad_(False)
    model.table = nn.Embedding(3, 2)
    model.again = model[0]
    table = SoftOrthogonality(exclude="2").per_layer(model)
    notes = {row.layer: row.note for row in table.skipped}
    assert notes == {
        "0.bias": "not the weight of its layer",
        "1.weight": "BatchNorm2d is not among the types of this penalty",
        "1.bias": "BatchNorm2d is not among the types of this penalty",
        "2.weight": "excluded by '2'",
        "2.bias": "not the weight of its layer",
        "3.weight": "frozen: it does not require a gradient",
        "3.bias": "not the weight of its layer",
        "4.bias": "not the weight of its layer",
        "table.weight": "Embedding is not among the types of this penalty",
        "again.weight": "counted once, as 0.weight",
        "again.bias": "not the weight of its layer",
    }
    assert [row.layer for row in table.regularized] == ["0.weight", "4.weight"]
    assert [row.layer for row in table][:4] == ["0.weight", "0.bias", "1.weight", "1.bias"]  # in the model's order
    assert "2.weight: excluded by '2'" in str(table)


def test_a_shared_weight_counts_where_it_is_not_excluded():
    model = network()
    model[4] = nn.Linear(6, 6).double()
    model[4].weight = model[2].weight
    assert regularized(SoftOrthogonality(), model) == ["0.weight", "2.weight"]
    assert regularized(SoftOrthogonality(exclude="2"), model) == ["0.weight", "4.weight"]


def test_patterns_that_match_nothing_and_empty_selections_are_errors():
    with pytest.raises(ValueError, match=r"no weight of the model matches 'fc', 'stem\.\*'"):
        SoftOrthogonality(include=["*", "fc"], exclude="stem.*")(network())
    with pytest.raises(ValueError, match=r"regularizes no weight of the given model \(0\.weight: Linear is not among"):
        SoftOrthogonality(types=(nn.Conv2d,))(network())
    with pytest.raises(ValueError, match="SoftOrthogonality: the given model has no weights"):
        SoftOrthogonality()(nn.ReLU())
    with pytest.raises(ValueError, match="it has no parameters"):
        L2(include=())(nn.ReLU())
    with pytest.raises(ValueError, match="must be >= 0 and finite, got -1"):
        L2(-1)
    for every in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"every={every}: .* with a whole N >= 1"):
            L2(every=every)
    with pytest.raises(ValueError, match="LazyLinear has an uninitialized weight: call the model once on real data"):
        L2()(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": "Linear"}, "types are classes of modules, such as .* got 'Linear'"),
        ({"include": None}, "a shell pattern .* is expected, got None"),
        ({"exclude": [nn.Linear]}, "a shell pattern .* is expected, got .*Linear"),
        ({"schedule": 0.5}, "schedule is a function of the number of steps, .* got 0.5"),
        ({"generator": 0}, "generator is a torch.Generator or None, got 0"),
    ],
)
def test_options_of_another_kind_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        SoftOrthogonality(**options)


@pytest.mark.parametrize(
    "call",
    [
        lambda penalty, x: penalty(x),
        lambda penalty, x: penalty.step_(x, 0.1),
        lambda penalty, x: penalty.per_layer(x),
        lambda penalty, x: penalty.prepare(x, torch.zeros(1, 2)),
    ],
)
@pytest.mark.parametrize("penalty", [SoftOrthogonality(), L1(), FrameRegularizer(0.5, 2.0), L1() + L2()])
def test_what_is_no_model_is_named(penalty, call):
    for given, name in ((nn.Linear(2, 2).weight, "Parameter"), ([nn.Linear(2, 2)], "list")):
        with pytest.raises(TypeError, match=f"a model is expected, a torch.nn.Module, got {name}"):
            call(penalty, given)


@pytest.mark.parametrize("penalty", [SoftOrthogonality(), L1(), FrameRegularizer(0.5, 2.0), L1() + L2()])
def test_a_rate_that_leads_up_is_refused_and_one_of_zero_leaves_the_weights(penalty):
    model = network()
    before = copy.deepcopy(model.state_dict())
    for lr in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="a step down a penalty has a rate >= 0"):
            penalty.step_(model, lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a start that collapses
        penalty.step_(model, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:the Gershgorin form will shrink")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "make", [SoftOrthogonality, lambda: FrameRegularizer(0.5, 2.0), lambda: FrameRegularizer(0.5, 2.0, form="spectral")]
)
def test_a_step_of_its_own_is_the_same_where_gradients_are_off(make, mode):
    """In inference mode it did nothing, and did not say so."""
    moved = []
    for context in (torch.enable_grad, mode):
        model = network()
        torch.manual_seed(1)
        with context():
            make().step_(model, 0.1)
        moved.append(model[0].weight.detach())
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], network()[0].weight)


def test_a_sum_takes_its_terms_one_by_one():
    with pytest.raises(TypeError, match=r"as in PenaltySum\(p, q\), got \[SoftOrthogonality"):
        PenaltySum([SoftOrthogonality(), L2()])


class Wrapped(nn.Module):
    """As DistributedDataParallel and others hold a model: by another name."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize(
    ("form", "end"), [("gershgorin", "by their names, or choose"), ("spectral", "by their names$")]
)
def test_a_model_by_other_names_than_the_prepared_one_is_refused_not_half_regularized(form, end):
    """The dense layer needs no map: without this the convolution would have been left out and nothing said."""
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(70, 3))
    penalty = FrameRegularizer(0.5, 2.0, form=form).prepare(model, torch.zeros(1, 2, 7, 9))
    for call in (penalty, penalty.per_layer, lambda m: penalty.step_(m, 0.1)):
        with pytest.raises(ValueError, match=f"the input map of module.0.weight is not known: .*{end}"):
            call(Wrapped(model))
    penalty.prepare(Wrapped(model), torch.zeros(1, 2, 7, 9))
    assert regularized(penalty, Wrapped(model)) == ["module.0.weight", "module.2.weight"]


def test_a_convolution_that_the_dry_forward_does_not_reach_is_in_the_table():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(70, 3))
    model.aside = nn.Conv2d(2, 2, 3)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    penalty = FrameRegularizer(0.5, 2.0).prepare(model, torch.zeros(1, 2, 7, 9))
    resumed = FrameRegularizer(0.5, 2.0)
    resumed.load_state_dict(penalty.state_dict())
    for member in (penalty, resumed):
        notes = {row.layer: row.note for row in member.per_layer(model).skipped}
        assert notes["aside.weight"] == "its input map is unknown: the forward pass of prepare() did not reach it"


def test_types_without_a_matrix_are_left_out_with_the_reason():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.LayerNorm(3, bias=False))
    table = SoftOrthogonality(types=(nn.Module,)).per_layer(model)
    assert [row.note for row in table] == ["", "not a matrix: it has fewer than two dimensions"]


def test_map_sizes_reach_the_layers():
    seen = {}

    class Sizes(LayerPenalty):
        def value(self, layer):
            seen[layer.name] = layer.input_shape
            return layer.weight.sum()

    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(70, 3))
    Sizes()(model)
    assert seen == {"0": None, "2": None}
    penalty = Sizes().prepare(model, torch.zeros(1, 2, 7, 9))
    penalty(model)
    assert seen == {"0": (2, 7, 9), "2": (70,)}
    resumed = Sizes()
    resumed.load_state_dict(penalty.state_dict())
    assert resumed.input_shapes == seen


def test_a_compiled_model_goes_by_the_names_of_the_model_inside():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(70, 3))
    compiled = torch.compile(model, backend="eager")
    penalty = SoftOrthogonality(exclude="2").prepare(compiled, torch.zeros(1, 2, 7, 9))
    assert penalty.input_shapes == {"0": (2, 7, 9), "2": (70,)}
    assert regularized(penalty, compiled) == regularized(penalty, model) == ["0.weight"]
    assert torch.equal(penalty(compiled), penalty(model))
    penalty.step_(compiled, 0.1)


def test_parametrized_weights_are_read_as_the_layer_applies_them():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), parametrizations.orthogonal(nn.Linear(4, 3)))
    table = SoftOrthogonality(1.0).per_layer(model)
    assert [row.layer for row in table.regularized] == ["0.weight", "1.weight"]
    first, second = (row.value for row in table.regularized)
    assert first == pytest.approx(float(soft_orthogonality(model[0].weight.detach())), rel=1e-6)
    assert second < 1e-10  # orthogonal by construction, in float32
    SoftOrthogonality(1.0)(model).backward()
    original = model[0].parametrizations.weight
    assert not torch.nn.utils.parametrize._cache
    assert original.original0.grad.abs().sum() > 0
    before = original.original0.detach().clone()
    SoftOrthogonality(1.0).step_(model, 0.01)
    assert not torch.equal(original.original0, before)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_computed_by_a_deprecated_hook_are_named(wrap):
    model = nn.Sequential(wrap(nn.Linear(4, 3)), nn.Linear(3, 2))
    notes = {row.layer: row.note for row in SoftOrthogonality().per_layer(model).skipped}
    report = {row.name: row.note for row in frame_report(model, (4,)).skipped}
    for name, param in model[0].named_parameters():
        if name != "bias":
            assert "computed by a hook, a deprecated form: use torch.nn.utils.parametrizations" in notes[f"0.{name}"]
            assert param.ndim < 2 or report[f"0.{name}"] == notes[f"0.{name}"]
    x = torch.randn(4, generator=torch.Generator().manual_seed(0))
    y = model[0](x)
    torch.testing.assert_close(LayerOperator.of(model[0]).matvec(x) + model[0].bias, y)


def test_a_table_does_not_move_the_power_iteration_of_a_spectral_norm():
    model = parametrizations.spectral_norm(nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    first, second = (SoftOrthogonality().per_layer(model).total for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_pruned_weights_are_read_behind_their_mask_even_before_a_forward_pass():
    model = nn.Linear(4, 3).double()
    prune.l1_unstructured(model, "weight", amount=6)
    for _ in range(2):  # the second time torch's own attribute would be stale
        SoftOrthogonality(1.0)(model).backward()
        assert (model.weight_orig.grad[model.weight_mask == 0] == 0).all()
        SoftOrthogonality(1.0).step_(model, 0.01)
    masked = (model.weight_orig * model.weight_mask).detach()
    assert SoftOrthogonality(1.0)(model).item() == pytest.approx(soft_orthogonality(masked).item(), rel=1e-12)


# When and how strongly


def test_every_n_steps_with_n_times_the_coefficient_is_the_same_on_average():
    model = network()
    penalty, plain = SoftOrthogonality(0.1, every=4), SoftOrthogonality(0.1)
    values = []
    for _ in range(8):
        values.append(penalty(model).item())
        penalty.advance()
    assert values[1:4] == values[5:] == [0, 0, 0]
    assert sum(values) / 8 == pytest.approx(plain(model).item(), rel=1e-12)
    assert penalty.per_layer(model).total == pytest.approx(plain(model).item(), rel=1e-12)
    before = copy.deepcopy(model.state_dict())
    penalty.advance()
    penalty.step_(model, 0.1)  # not due
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_schedules_follow_the_count_of_steps_and_the_state():
    model = network()
    penalty, plain = SoftOrthogonality(0.1, schedule=ramp(4)), SoftOrthogonality(0.1)(model).item()
    for factor in (0, 0.25, 0.5):
        assert penalty(model).item() == pytest.approx(factor * plain, rel=1e-12)
        penalty.advance()
    resumed = SoftOrthogonality(0.1, schedule=ramp(4))
    resumed.load_state_dict(penalty.state_dict())
    assert resumed(model).item() == pytest.approx(0.75 * plain, rel=1e-12)
    assert resumed.per_layer(model)[0].coefficient == pytest.approx(0.075)


def test_a_forgotten_advance_is_noticed_once():
    model = network()
    penalty = SoftOrthogonality(every=2)
    with pytest.warns(UserWarning, match=r"100 times at step 0: call its advance\(\)"):
        assert all(penalty(model) > 0 for _ in range(100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            penalty(model)
            SoftOrthogonality()(model)


@pytest.mark.filterwarnings("ignore:the Gershgorin form will shrink")
@pytest.mark.parametrize(
    "penalty", [SoftOrthogonality(0.1, every=2), L1(every=2), FrameRegularizer(0.5, 2.0, schedule=ramp(4))]
)
def test_a_forgotten_advance_is_noticed_in_decoupled_steps_too(penalty):
    model = network()
    for _ in range(99):
        penalty.step_(model, 1e-6)
    with pytest.warns(UserWarning, match=r"100 times at step 0: call its advance\(\)"):
        penalty.step_(model, 1e-6)


def test_state_survives_a_file_that_may_hold_no_code(tmp_path):
    penalty = SRIP(generator=torch.Generator().manual_seed(3), every=2) + L1()
    penalty.advance(3)
    torch.save(penalty.state_dict(), tmp_path / "penalty.pt")
    other = SRIP(generator=torch.Generator(), every=2) + L1()
    other.load_state_dict(torch.load(tmp_path / "penalty.pt", weights_only=True))
    penalty.advance()
    other.advance()
    model = network()
    assert torch.equal(penalty(model), other(model))


@pytest.mark.parametrize("saved", [None, torch.Generator().manual_seed(3)])
def test_a_state_that_would_draw_otherwise_is_refused(saved):
    other = torch.Generator() if saved is None else None
    with pytest.raises(ValueError, match="SRIP has generator=.* its draws would not be continued"):
        SRIP(generator=other).load_state_dict(SRIP(generator=saved).state_dict())


def test_a_state_of_another_penalty_is_refused():
    with pytest.raises(ValueError, match="not the state of a FrameRegularizer: it has no parts, vectors; load"):
        FrameRegularizer(0.5, 2.0).load_state_dict(SoftOrthogonality().state_dict())


@pytest.mark.filterwarnings("ignore:the Gershgorin form will shrink")
@pytest.mark.parametrize(
    "penalty",
    [
        SRIP(generator=torch.Generator().manual_seed(3), schedule=srip_table(2), exclude="4"),
        FrameRegularizer(0.5, 2.0, sample=0.5, schedule=ramp(4), generator=torch.Generator().manual_seed(3)),
        FrameRegularizer(0.5, 2.0, form="spectral", generator=torch.Generator().manual_seed(3)) + L1(every=2),
        HypersphericalEnergy(output="4", schedule=stair({1: 0.5})),
    ],
)
def test_pickled_it_goes_on_where_it_was(penalty):
    """As a part of a model that is saved whole, or sent to the processes of ``spawn``."""
    model = network()
    for _ in range(2):
        penalty(model)
        penalty.advance()
    twin = pickle.loads(pickle.dumps(penalty))
    for _ in range(3):
        assert torch.equal(twin(model), penalty(model))
        penalty.advance()
        twin.advance()
    assert twin.per_layer(model) == penalty.per_layer(model)


def test_copies_draw_on_by_themselves():
    model = network()
    penalty = SRIP(generator=torch.Generator().manual_seed(3))
    twin = copy.deepcopy(penalty)
    assert torch.equal(penalty(model), twin(model))


# Sums


def test_sums_add_values_tables_and_steps():
    model = network()
    a, b, c = SoftOrthogonality(0.1, exclude="4"), L2(0.01), L1(0.02, every=2)
    total = a + b + c
    assert isinstance(total, PenaltySum)
    assert len(list(total)) == 3
    assert total(model).item() == pytest.approx(sum(p(model).item() for p in (a, b, c)), rel=1e-12)
    assert len(total.per_layer(model)) == sum(len(p.per_layer(model)) for p in (a, b, c))
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    total.step_(one, 0.1)
    for penalty in (a, b, c):
        penalty.step_(other, 0.1)
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))
    total.advance()
    assert [p.step for p in (a, b, c)] == [1, 1, 1]
    assert total(model).item() == pytest.approx(a(model).item() + b(model).item(), rel=1e-12)
    with pytest.raises(TypeError):
        a + 1.0
    with pytest.raises(TypeError):
        sum([a, b], start=1)
    assert sum([a, b])(model).item() == pytest.approx(a(model).item() + b(model).item(), rel=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        PenaltySum()


def test_a_penalty_of_ones_own_defines_one_method():
    class Spread(LayerPenalty):
        def value(self, layer):
            return layer.matrices.var()

    model = nn.Conv2d(2, 4, 3, groups=2).double()
    assert Spread(2.0)(model).item() == pytest.approx(2 * model.weight.var().item(), rel=1e-12)


# Gradient accumulation and distributed training


def test_added_once_per_optimizer_step_it_is_the_penalty_of_the_whole_batch():
    """Four micro-batches; a penalty in the loss of each of them would count four times, divided by four or not."""
    x, y = data()
    whole, parts = network(), network()
    penalties = [SoftOrthogonality(0.1, schedule=ramp(2), every=2) + L2(0.01) for _ in range(2)]
    for _ in range(3):
        for model in (whole, parts):
            model.zero_grad()
        (nn.functional.mse_loss(whole(x), y) + penalties[0](whole)).backward()
        for k in range(4):
            rows = slice(2 * k, 2 * k + 2)
            loss = nn.functional.mse_loss(parts(x[rows]), y[rows]) / 4
            (loss if k else loss + penalties[1](parts)).backward()
        with torch.no_grad():
            for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
                # the same sums in another order
                torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-13)
                a.sub_(0.1 * a.grad)
                b.sub_(0.1 * b.grad)
        for penalty in penalties:
            penalty.advance()


def rank_gradients(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(network())
    x, y = data()
    half = slice(4 * rank, 4 * rank + 4)
    loss = nn.functional.mse_loss(model(x[half]), y[half]) + total_penalty()(model.module)
    loss.backward()
    torch.save([param.grad for param in model.parameters()], f"{folder}/{rank}.pt")
    while not Path(folder, f"{1 - rank}.pt").exists():  # a failure of the other ends this process too
        time.sleep(0.01)
    os._exit(0)  # without tearing the group down, which has waited for ever once


def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=g, dtype=torch.float64), torch.randn(8, 3, generator=g, dtype=torch.float64)


def total_penalty():
    draws = [torch.Generator().manual_seed(seed) for seed in (2, 3)]
    rows = FrameRegularizer(0.5, 2.0, 0.1, sample=0.5, generator=draws[1])
    return SoftOrthogonality(0.1) + SRIP(0.1, generator=draws[0]) + rows + L2(0.01)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_on_every_rank_it_gives_the_gradient_of_one_process(tmp_path):
    torch.multiprocessing.spawn(rank_gradients, (str(tmp_path),), nprocs=2)
    model = network()
    x, y = data()
    (nn.functional.mse_loss(model(x), y) + total_penalty()(model)).backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for param, gradient in zip(model.parameters(), gradients, strict=True):
            # the same sums in another order
            torch.testing.assert_close(gradient, param.grad, rtol=1e-10, atol=1e-13)
