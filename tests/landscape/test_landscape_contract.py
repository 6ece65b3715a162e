"""What every measurement of a model keeps: the model as it was, its dtype, and one clear sentence for bad input."""

import copy
from collections import UserDict
from collections.abc import Mapping

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.invariance.twin import detached_copy
from thalweg.landscape import (
    EdgeOfStability,
    average_sharpness,
    bezier_path,
    filter_normalised_plane,
    gradient_noise_scale,
    linear_path,
    loss_increments,
    loss_surface,
    neighbourhood,
    per_sample_losses,
    sam_sharpness,
    spherical_path,
    sufficient_size,
    worst_case_sharpness,
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def other(model):
    twin = detached_copy(model)
    with torch.no_grad():
        for param in twin.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=draw(3), dtype=param.dtype).to(param.device))
    return twin


def surface(model, loss_fn, data):
    return loss_surface(model, loss_fn, data, filter_normalised_plane(model), [0.0, 0.5], [0.0, 0.5])


def edge(model, loss_fn, data):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return EdgeOfStability(model, loss_fn, data, optimizer, first=3).measure()


WHOLE_BATCH = {  # also with batch statistics
    "surface": surface,
    "line": lambda m, f, d: linear_path(m, other(m), f, d, points=3),
    "bezier": lambda m, f, d: bezier_path(m, other(m), f, d, points=3, steps=3),
    "sphere": lambda m, f, d: spherical_path(m, other(m), f, d, points=3),
    "sam": lambda m, f, d: sam_sharpness(m, f, d, radius=0.1),
    "worst": lambda m, f, d: worst_case_sharpness(m, f, d, radius=0.1, steps=2),
    "average": lambda m, f, d: average_sharpness(m, f, d, radius=0.1, samples=2),
    "edge": edge,
}
PER_SAMPLE = {"losses": per_sample_losses, "noise": gradient_noise_scale}
ALL = WHOLE_BATCH | PER_SAMPLE


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3)]
    return nn.Sequential(*layers).double()


def images(n=8):
    g = draw(1)
    return torch.randn(n, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_left_as_it_was(name):
    model = network().train(name in WHOLE_BATCH)
    model[4].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    ALL[name](model, cross_entropy, images())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[1].training == (name in WHOLE_BATCH)
    assert all(param.requires_grad for param in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_without_a_generator_equal_calls_are_equal(name):
    model = network().train(name in WHOLE_BATCH)
    model[4].eval()
    first, second = (ALL[name](model, cross_entropy, images()) for _ in range(2))
    first, second = (vars(found) if hasattr(found, "__dict__") else found for found in (first, second))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


LAYER = nn.Linear(1, 1)
DRAWS = {
    "increments": lambda losses: loss_increments(losses, permutations=20).mean,
    "size": lambda losses: sufficient_size(losses, 0.1, permutations=20).confident,
    "neighbourhood": lambda _: next(iter(neighbourhood(LAYER, torch.eye(2), scale=1.0, count=1))),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_draws_without_a_generator_leaves_the_global_state(name):
    losses = torch.rand(30, generator=draw(), dtype=torch.float64)
    state = torch.get_rng_state()
    first, second = (DRAWS[name](losses) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_global_random_state_is_not_used(name):
    model = network().train(name in WHOLE_BATCH)
    model[4].eval()
    state = torch.get_rng_state()
    ALL[name](model, cross_entropy, images())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ALL)
def test_batches_add_up_to_the_whole(name):
    """A loader of uneven batches is the whole set, as long as samples do not see each other."""
    model = network().eval()
    if name in ("line", "bezier", "sphere"):
        model[1] = nn.Identity()  # running statistics are refused there
    x, y = images(9)
    whole, parts = (
        ALL[name](model, cross_entropy, data) for data in [(x, y), list(zip(x.split(4), y.split(4), strict=True))]
    )
    if name == "bezier":  # takes one batch a step
        whole, parts = whole.losses[[0, -1]], parts.losses[[0, -1]]
    whole, parts = (getattr(found, "losses", found) for found in (whole, parts))
    if not isinstance(whole, (torch.Tensor, float)):
        whole, parts = (list(vars(found).values()) for found in (whole, parts))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)  # float64, sums in another order


class Named(nn.Module):
    """Inputs of several tensors, as a dict or a tuple."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3).double()

    def forward(self, inputs):
        first, second = inputs.values() if isinstance(inputs, Mapping) else inputs
        return self.last(first).tanh() + self.last(second)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "make",
    [lambda a, b: {"a": a, "b": b}, lambda a, b: UserDict(a=a, b=b), lambda a, b: (a, b)],
    ids=["dict", "mapping", "tuple"],
)
def test_inputs_of_several_tensors(name, make):
    torch.manual_seed(0)
    model, y = Named(), torch.arange(9) % 3
    a, b = torch.randn(2, 9, 4, generator=draw(), dtype=torch.float64)
    stacked = nn.Sequential(Stacked(model))
    expected = ALL[name](stacked, cross_entropy, (torch.stack([a, b], dim=1), y))
    batches = [(make(a[:5], b[:5]), y[:5]), (make(a[5:], b[5:]), y[5:])]
    found = [ALL[name](model, cross_entropy, data) for data in [(make(a, b), y), batches]]
    if name == "bezier":  # takes one batch a step
        found = found[:1]
    for one in found:
        torch.testing.assert_close(figures(one), figures(expected), rtol=1e-9, atol=1e-9)  # float64


class Stacked(nn.Module):
    """The same model with its inputs in one tensor."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x[:, 0], x[:, 1]))


def figures(found):
    if isinstance(found, (torch.Tensor, float)):
        return found
    return {key: value for key, value in vars(found).items() if value is not None}


@pytest.mark.parametrize("name", ALL)
def test_targets_may_be_none(name):
    model, x = nn.Linear(4, 4), torch.randn(8, 4, generator=draw())

    def loss(output, _):
        return output.square().mean()

    found = [ALL[name](model, loss, data) for data in [(x, None), [(x, None)], (x, x)]]
    for one in found[:2]:
        torch.testing.assert_close(figures(one), figures(found[2]))


class Noting(nn.Module):
    """Keeps on itself what it last did."""

    def __init__(self):
        super().__init__()
        self.last, self.calls, self.seen = nn.Linear(4, 3), 0, None

    def forward(self, x):
        self.calls += 1
        self.seen = self.last(x)
        return self.seen


@pytest.mark.parametrize("name", ALL)
def test_what_modules_note_on_themselves_is_left(name):
    """The deprecated weight normalization keeps the weight it last computed, for whoever reads it next."""
    data = torch.randn(6, 4, generator=draw()), torch.arange(6) % 3
    noting, normed = Noting(), Named().float().last
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(normed)
    before, weight = noting(data[0]), normed.weight
    for model in (noting, normed):
        ALL[name](model, cross_entropy, data)
        with pytest.raises(ZeroDivisionError):
            ALL[name](model, lambda output, y: 1 / 0, data)
    assert noting.seen is before
    assert noting.calls == 1
    assert normed.weight is weight


class Lookup(nn.Module):
    """Some rows looked up twice, so that their gradient would be halved."""

    def __init__(self, **options):
        super().__init__()
        self.rows, self.last = nn.Embedding(4, 5, **options).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        return self.last(self.rows(x).mean(1))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("option", ["sparse", "scale_grad_by_freq"])
def test_lookups_have_the_gradient_of_the_loss(name, option):
    data = torch.randint(4, (9, 6), generator=draw()), torch.arange(9) % 3
    plain, model = Lookup(), Lookup(**{option: True})
    model.load_state_dict(plain.state_dict())
    found, expected = (figures(ALL[name](net, cross_entropy, data)) for net in (model, plain))
    torch.testing.assert_close(found, expected)
    assert getattr(model.rows, option)


@pytest.mark.parametrize("name", ["bezier", "sam", "worst"])
def test_a_loss_without_a_gradient(name):
    data = torch.ones(6, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match="does not depend on the trainable parameters"):
        ALL[name](nn.Linear(4, 3), lambda output, y: cross_entropy(output.detach(), y), data)


@pytest.mark.parametrize("name", ["bezier", "sam", "worst", "edge"])
def test_inference_mode(name):
    data = torch.ones(6, 4), torch.arange(6) % 3
    with torch.inference_mode(), pytest.raises(ValueError, match="inside torch.inference_mode"):
        ALL[name](nn.Linear(4, 3), cross_entropy, data)
    with torch.no_grad():
        ALL[name](nn.Linear(4, 3), cross_entropy, data)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "data", [torch.ones(6, 4), [(torch.ones(6, 4), torch.ones(6), torch.ones(6))], [{"x": torch.ones(6, 4)}]]
)
def test_data_that_are_no_pairs(name, data):
    with pytest.raises(TypeError, match=r"must be a pair \(input, target\) or an iterable of such pairs"):
        ALL[name](nn.Linear(4, 3), cross_entropy, data)


class Recurrent(nn.Module):
    """A GRU, which torch cannot differentiate for all samples at once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(4, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0][:, -1]


UNVECTORISED = {
    "mask": (lambda: nn.Linear(4, 3), lambda z, y: z[y > 0].square().sum(), torch.randn(7, 3, generator=draw())),
    "if": (
        lambda: nn.Linear(4, 3),
        lambda z, y: z.square().mean() if z.sum().item() > 0 else z.mean(),
        torch.ones(7, 3),
    ),
    "gru": (Recurrent, cross_entropy, torch.arange(7) % 3),
    "instance norm": (
        lambda: nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(), nn.Linear(12, 3)),
        cross_entropy,
        torch.arange(7) % 3,
    ),
}


@pytest.mark.parametrize("case", UNVECTORISED)
def test_samples_one_by_one_where_they_cannot_be_vectorised(case):
    make, loss_fn, y = UNVECTORISED[case]
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(7, 3, 4, generator=draw(), dtype=torch.float64)
    x = x[:, 0] if isinstance(model, nn.Linear) else x
    alone = [loss_fn(model(x[i : i + 1]), y[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(per_sample_losses(model, loss_fn, (x, y)), torch.stack(alone))
    params = list(model.parameters())
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]) for loss in alone]
    found = gradient_noise_scale(model, loss_fn, (x, y), chunk=4)
    assert found.noise == pytest.approx(torch.stack(rows).T.cov().trace().item(), rel=1e-10)  # float64


@pytest.mark.parametrize("name", PER_SAMPLE)
@pytest.mark.parametrize("y", [torch.zeros(5, dtype=torch.long), torch.tensor(0)])
def test_another_number_of_targets(name, y):
    with pytest.raises(ValueError, match="a batch has 6 inputs and targets of shape"):
        ALL[name](nn.Linear(4, 3), cross_entropy, (torch.ones(6, 4), y))


@pytest.mark.parametrize("name", PER_SAMPLE)
@pytest.mark.parametrize("loss_fn", [lambda z, y: 1.0, lambda z, y: z.sum(0)], ids=["number", "vector"])
def test_a_loss_of_a_sample_is_one_number(name, loss_fn):
    with pytest.raises(ValueError, match=r"must return one number|gave the shape \(3,\) for 6 samples"):
        ALL[name](nn.Linear(4, 3), loss_fn, (torch.ones(6, 4), torch.zeros(6)))


@pytest.mark.parametrize("name", [*WHOLE_BATCH, "noise"])
def test_a_penalty_inside_the_loss_is_refused(name):
    """It would keep the value that it has at the model's own weights."""
    model = network().eval()
    if name in ("line", "bezier", "sphere"):
        model[1] = nn.Identity()  # running statistics are refused there

    def penalized(z, y):
        return cross_entropy(z, y) + model[0].weight.square().sum()

    with pytest.raises(ValueError, match=r"reads the parameter '0\.weight' besides the model's output"):
        ALL[name](model, penalized, images())


@pytest.mark.parametrize("name", ALL)
def test_active_dropout(name):
    model = network().train()
    model[1].eval()
    with pytest.raises(ValueError, match=r"layer '4' \(Dropout\) is random"):
        ALL[name](model, cross_entropy, images())


class FunctionalDropout(nn.Module):
    """What no layer shows."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.dropout(self.last(x), 0.5, training=self.training)


@pytest.mark.parametrize("name", ALL)
def test_random_outputs(name):
    data = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
    with pytest.raises(ValueError, match="output is random"):
        ALL[name](FunctionalDropout(), cross_entropy, data)
    ALL[name](FunctionalDropout().eval(), cross_entropy, data)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_instance_norm_leaves_samples_apart(name):
    model = network()
    model[1], model[4] = nn.InstanceNorm2d(3), nn.Identity()
    assert ALL[name](model.train(), cross_entropy, images()) is not None


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_batch_statistics_where_samples_must_be_apart(name):
    with pytest.raises(ValueError, match=r"layer '1' .*normalizes by the statistics of the batch"):
        ALL[name](network().train(), cross_entropy, images())


@pytest.mark.parametrize("name", ["line", "bezier", "sphere"])
def test_running_statistics_on_a_path(name):
    with pytest.raises(ValueError, match="running statistics, which belong to the ends"):
        ALL[name](network().eval(), cross_entropy, images())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("data", [[], (torch.ones(0, 4), torch.ones(0, dtype=torch.long))])
def test_no_data(name, data):
    with pytest.raises(ValueError, match="there is no data"):
        ALL[name](nn.Linear(4, 3), cross_entropy, data)


@pytest.mark.parametrize("name", ALL)
def test_an_iterator(name):
    with pytest.raises(TypeError, match="read only once"):
        ALL[name](nn.Linear(4, 3), cross_entropy, iter([(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))]))


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"losses"}))
def test_nothing_to_train(name):
    frozen = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        ALL[name](frozen, cross_entropy, (torch.ones(2, 4), torch.zeros(2, dtype=torch.long)))


@pytest.mark.parametrize("name", sorted(WHOLE_BATCH))
def test_a_loss_per_sample_where_one_is_needed(name):
    data = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="scalar tensor"):
        ALL[name](nn.Linear(4, 3), nn.CrossEntropyLoss(reduction="none"), data)


@pytest.mark.parametrize("name", ["sam", "worst", "average", "edge", "noise"])
def test_a_loss_that_is_not_finite(name):
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, float("inf"))
    with pytest.raises(ValueError, match="not finite|the loss is nan"):
        ALL[name](model, cross_entropy, (torch.ones(2, 4), torch.zeros(2, dtype=torch.long)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", sorted(ALL))
def test_an_accelerator_runs_everything(name):
    device = torch.accelerator.current_accelerator()
    model = network().float().eval().to(device)
    model[1] = nn.Identity()
    x, y = images()
    there = ALL[name](model, cross_entropy, (x.float().to(device), y.to(device)))
    brought = ALL[name](model, cross_entropy, (x.float(), y))  # as a loader gives them
    torch.testing.assert_close(figures(brought), figures(there))
