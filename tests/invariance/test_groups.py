"""`find_scale_groups` against groups listed by hand, for every kind of architecture."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from thalweg.invariance.groups import find_scale_groups
from thalweg.nn import MLP, ConvNet, PreActResNet

CLASSES = 3


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(n=12, d=5, count=2):
    g = draw(1)
    return [(torch.randn(n, d, generator=g), torch.randint(CLASSES, (n,), generator=g)) for _ in range(count)]


def images(n=8, size=8, channels=2, count=2):
    g = draw(1)
    return [
        (torch.randn(n, channels, size, size, generator=g), torch.randint(CLASSES, (n,), generator=g))
        for _ in range(count)
    ]


def tokens(n=16, length=5, count=3):
    g = draw(1)
    return [
        (torch.randint(7, (n, length), generator=g), torch.randint(CLASSES, (n,), generator=g)) for _ in range(count)
    ]


class PostActBlock(nn.Module):
    def __init__(self, c_in, c_out, affine):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out, affine=affine)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, affine=affine)
        self.down = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn3 = nn.Identity() if c_in == c_out else nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x):
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + self.bn3(self.down(x)))


class PostActResNet(nn.Sequential):
    def __init__(self, affine):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4, affine=affine)
        self.a = PostActBlock(4, 4, affine)
        self.b = PostActBlock(4, 6, affine)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(6, CLASSES)


class Transformer(nn.Module):
    """Two pre-norm blocks: embeddings and the last weights of all branches add to one residual stream."""

    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(7, 8)
        self.pos = nn.Parameter(torch.randn(5, 8, generator=draw()))
        block = {"dropout": 0.1, "batch_first": True, "norm_first": True}
        self.a = nn.TransformerEncoderLayer(8, 2, 12, **block)
        self.b = nn.TransformerEncoderLayer(8, 2, 12, **block)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.b(self.a(self.tok(x) + self.pos))).mean(1))


class Tied(nn.Module):
    """One weight in two layers is one tensor; the second layer is normalized too, unless ``leak``."""

    def __init__(self, leak):
        super().__init__()
        self.first = nn.Linear(5, 5, bias=False)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList(nn.BatchNorm1d(5, affine=False) for _ in range(2))
        self.last = nn.Linear(5, CLASSES, bias=False)
        self.leak = leak

    def forward(self, x):
        h = torch.relu(self.norms[0](self.first(x)))
        h = self.second(h) if self.leak else self.norms[1](self.second(h))
        return self.last(torch.tanh(h))


class Twice(nn.Module):
    """norm(W W x + V x): the square of one scale goes with the other."""

    def __init__(self):
        super().__init__()
        self.W, self.V = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.norm = nn.BatchNorm1d(5, affine=False)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.W(self.W(x)) + self.V(x))))


class Half(nn.Module):
    """norm(U x + V₂ V₁ x): two overlapping groups, of which one can be listed."""

    def __init__(self):
        super().__init__()
        self.U, self.V1, self.V2 = nn.Linear(5, 6, bias=False), nn.Linear(5, 9, bias=False), nn.Linear(9, 6, bias=False)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.U(x) + self.V2(self.V1(x)))))


def vgg():
    def layer(c_in, c_out):
        return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*layer(2, 4), *layer(4, 6), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def layer_norm_mlp():
    return nn.Sequential(
        nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 7, bias=False), nn.LayerNorm(7), nn.ReLU(),
        nn.Linear(7, CLASSES),
    )  # fmt: skip


def group_norm_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.GroupNorm(2, 4, affine=False), nn.ReLU(),
        nn.Conv2d(4, 6, 3), nn.GroupNorm(6, 6, affine=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES),
    )  # fmt: skip


def normalized_weights(normalize):
    return nn.Sequential(normalize(nn.Linear(5, 6)), nn.ReLU(), normalize(nn.Linear(6, CLASSES)))


def frozen_stem():
    model = PreActResNet(2, 4, CLASSES, blocks=(1, 1))
    model.stem.requires_grad_(False)
    return model


def affine_mlp():
    return MLP(5, (6, 7), CLASSES, affine=True)


# model, batches, {group: each filter by itself}
CASES = {
    "pre-activation ResNet, two stages": (
        lambda: PreActResNet(2, 4, CLASSES, blocks=(2, 2)),
        images,
        {
            ("stem.weight", "blocks.0.conv2.weight", "blocks.1.conv2.weight"): False,
            ("blocks.0.conv1.weight",): True,
            ("blocks.1.conv1.weight",): True,
            ("blocks.2.conv1.weight",): True,
            ("blocks.2.conv2.weight", "blocks.2.shortcut.1.weight", "blocks.3.conv2.weight"): False,
            ("blocks.3.conv1.weight",): True,
        },
    ),
    "the same with affine parameters": (
        lambda: PreActResNet(2, 4, CLASSES, blocks=(1, 1), affine=True),
        images,
        {
            ("stem.weight", "blocks.0.conv2.weight"): False,
            ("blocks.0.norm1.weight", "blocks.0.norm1.bias"): False,
            ("blocks.0.conv1.weight",): True,
            ("blocks.1.norm1.weight", "blocks.1.norm1.bias"): False,
            ("blocks.1.conv1.weight",): True,
            # the residual stream of stage 2 can be scaled from the convolutions or from what precedes them
            ("blocks.1.conv2.weight", "blocks.1.shortcut.1.weight"): False,
            ("blocks.1.norm2.weight", "blocks.1.norm2.bias", "blocks.1.shortcut.0.weight"): False,
        },
    ),
    "post-activation ResNet": (
        lambda: PostActResNet(affine=False),
        images,
        {(f"{name}.weight",): True for name in ("stem", "a.conv1", "a.conv2", "b.conv1", "b.conv2", "b.down")},
    ),
    "the same with affine parameters, post-activation": (
        lambda: PostActResNet(affine=True),
        images,
        {
            **{(f"{name}.weight",): True for name in ("stem", "a.conv1", "a.conv2", "b.conv1", "b.conv2", "b.down")},
            **{(f"{name}.weight", f"{name}.bias"): False for name in ("a.bn1", "b.bn1")},
            # the stream of block a feeds only normalized convolutions; that of b feeds the last layer
            ("bn.weight", "bn.bias", "a.bn2.weight", "a.bn2.bias"): False,
        },
    ),
    "VGG with affine BN and convolution biases": (
        vgg,
        images,
        {("0.weight",): True, ("1.weight", "1.bias"): False, ("4.weight",): True},
    ),
    "published ConvNet": (
        lambda: ConvNet(2, 4, CLASSES),
        images,
        {(f"features.{k}.weight",): True for k in (0, 3, 7, 11)},
    ),
    "MLP with LayerNorm": (
        layer_norm_mlp,
        vectors,
        {("0.weight", "0.bias"): False, ("3.weight",): False},
    ),
    "GroupNorm: two channels a group, one channel a group": (
        group_norm_net,
        images,
        {("0.weight",): False, ("3.weight",): True},
    ),
    "weight norm": (
        lambda: normalized_weights(weight_norm),
        vectors,
        {(f"{k}.parametrizations.weight.original1",): True for k in (0, 2)},
    ),
    "weight norm by hooks": (
        lambda: normalized_weights(nn.utils.weight_norm),
        vectors,
        {(f"{k}.weight_v",): True for k in (0, 2)},
    ),
    "spectral norm": (
        lambda: normalized_weights(spectral_norm),
        vectors,
        {(f"{k}.parametrizations.weight.original",): False for k in (0, 2)},
    ),
    "transformer": (
        Transformer,
        tokens,
        {
            (
                "pos", "tok.weight",
                *(f"{b}.{end}" for b in "ab" for end in (
                    "self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias")),
            ): False
        },
    ),
    "no normalization": (lambda: ConvNet(2, 4, CLASSES, normalize=False), images, {}),
    "tied weights": (lambda: Tied(leak=False), vectors, {("first.weight",): True}),
    "tied weights, one use not normalized": (lambda: Tied(leak=True), vectors, {}),
    "frozen stem": (
        frozen_stem,
        images,
        {
            ("blocks.0.conv1.weight",): True,
            ("blocks.1.conv1.weight",): True,
            ("blocks.1.conv2.weight", "blocks.1.shortcut.1.weight"): False,
        },
    ),
    "affine MLP": (
        affine_mlp,
        vectors,
        {("hidden.1.weight",): True, ("hidden.2.weight", "hidden.2.bias"): False, ("hidden.4.weight",): True},
    ),
    "unequal exponents": (Twice, vectors, {}),
    "overlapping groups": (Half, vectors, {("U.weight", "V2.weight"): False}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("build", "batches", "expected"), CASES.values(), ids=CASES.keys())
def test_groups_are_those_listed_by_hand(build, batches, expected):
    torch.manual_seed(0)  # networks that draw their weights from the global state
    model = build()
    groups = find_scale_groups(model, cross_entropy, batches())
    assert {frozenset(group.names): group.filters for group in groups} == {
        frozenset(names): filters for names, filters in expected.items()
    }
    names = [name for name, _ in model.named_parameters()]
    assert sorted([name for group in groups for name in group.names] + list(groups.skipped)) == sorted(names)
    params = dict(model.named_parameters())
    assert [group.numel for group in groups] == [sum(params[name].numel() for name in group.names) for group in groups]
    above, below = groups.gap
    assert above > 1e-3
    assert below < 1e-9


def test_every_listed_group_is_invariant_by_an_independent_check():
    model = PreActResNet(2, 4, CLASSES, blocks=(2, 2), affine=True, generator=draw()).double()
    x, y = images()[0]
    groups = find_scale_groups(model, cross_entropy, images())
    with torch.no_grad():
        before = cross_entropy(model(x.double()), y)
        for group in groups:
            scaled = copy.deepcopy(model)
            for name in group.names:
                scaled.get_parameter(name).mul_(2.0)
            after = cross_entropy(scaled(x.double()), y)
            # at the eps of training, 1e-5, the invariance is only as good as the eps is small beside the variance
            torch.testing.assert_close(after, before, rtol=1e-3, atol=0)
            assert group.deviation < 1e-3


def test_reasons_name_the_symmetry_that_is_no_invariance():
    torch.manual_seed(0)
    skipped = find_scale_groups(vgg(), cross_entropy, images()).skipped
    assert "gradient is zero" in skipped["0.bias"]
    assert skipped["5.weight"] == "scales only against others: 5.weight, 5.bias up, 9.weight down"
    assert skipped["11.bias"] == "the loss changes when it is scaled"
    assert skipped["9.bias"] == "scales only against others: 9.weight, 9.bias up, 11.weight down"
    skipped = find_scale_groups(Twice(), cross_entropy, vectors()).skipped
    assert skipped["V.weight"] == "scales only with unequal exponents: W.weight^0.5, V.weight^1"
    skipped = find_scale_groups(Half(), cross_entropy, vectors()).skipped
    assert skipped["V1.weight"] == "scales only against others: V1.weight up, V2.weight down"
    assert find_scale_groups(frozen_stem(), cross_entropy, images()).skipped["stem.weight"].startswith("frozen")


def test_a_group_that_overlaps_a_listed_one_is_named():
    class Ratios(nn.Module):
        """A function of b/c, d/e and a/(b d): the groups are {a, b, c} and {a, d, e}."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Parameter(torch.tensor([1.0 + k])) for k in range(5))

        def forward(self, x):
            return torch.stack([self.b / self.c, self.d / self.e, self.a / (self.b * self.d)], 1).sin() * x

    batches = [(torch.randn(8, 3, generator=draw(k)), torch.zeros(8, 3)) for k in range(3)]
    groups = find_scale_groups(Ratios(), mse_loss, batches)
    assert [group.names for group in groups] == [("a", "d", "e")]
    assert groups.skipped["b"] == "scales only together with a member of another group: a, b, c"


def test_unused_and_empty_parameters_are_named():
    model = MLP(5, (6,), CLASSES)
    model.spare = nn.Parameter(torch.ones(3))
    model.empty = nn.Parameter(torch.ones(0))
    groups = find_scale_groups(model, cross_entropy, vectors())
    assert [group.names for group in groups] == [("hidden.1.weight",)]
    assert groups.skipped["spare"] == "unused: the loss does not depend on it"
    assert groups.skipped["empty"].startswith("not examined")
    assert "spare: unused" in str(groups)
    assert "hidden.1.weight" in str(groups)


def test_weights_at_zero_are_no_accidental_groups():
    """<g, w> = 0 at w = 0 whatever the network; perturbed weights show that it is not so elsewhere."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    assert len(find_scale_groups(model, cross_entropy, vectors())) == 0


def test_a_locally_constant_function_of_the_scale_is_refuted():
    class Stairs(nn.Module):
        """The gradient does not see w's scale, but round() does."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x):
            return (x * self.w / self.w.norm()).sum(1, keepdim=True) + self.w.norm().round()

    batches = [(torch.randn(8, 2, generator=draw(k)), torch.zeros(8, 1)) for k in range(3)]
    groups = find_scale_groups(Stairs(), mse_loss, batches)
    assert len(groups) == 0
    assert "yet scaling it changes the loss" in groups.skipped["w"]


def test_hidden_eps_is_told_from_invariance():
    """An eps that no attribute holds breaks the invariance by about eps: not a group, unless the tolerance says so."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.last = nn.Linear(5, 6, bias=False), nn.Linear(6, CLASSES)

        def forward(self, x):
            h = self.w(x)
            return self.last(torch.tanh((h - h.mean(0)) / (h.var(0) + 1e-6).sqrt()))

    assert len(find_scale_groups(Hidden(), cross_entropy, vectors())) == 0
    assert [g.names for g in find_scale_groups(Hidden(), cross_entropy, vectors(), tolerance=1e-2)] == [("w.weight",)]


def test_the_training_eps_shows_in_the_deviation():
    """With variance v before the normalization, doubling the weights moves the outputs by about eps/v."""
    deviations = []
    for scale in (1.0, 1e-2):
        model = MLP(5, (6, 7), CLASSES, generator=draw())
        with torch.no_grad():
            model.hidden[1].weight.mul_(scale)
        deviations.append(find_scale_groups(model, cross_entropy, vectors())[0].deviation)
    assert 0 < deviations[0] < 1e-3
    assert deviations[1] > 100 * deviations[0]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_left_as_they_were(training):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), weight_norm(nn.Linear(6, CLASSES)))
    model.train(training)
    model[1].train(not training)  # modes of single modules count too
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*vectors(24)[0]), batch_size=12, shuffle=True)
    random_state = torch.random.get_rng_state()
    groups = find_scale_groups(model, cross_entropy, loader)
    assert len(groups) == 2
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(param.grad is None for name, param in model.named_parameters() if name != "0.weight")
    assert model[1].eps == 1e-5


def test_results_are_the_same_each_time_and_whatever_the_dtype():
    def find(dtype, seed):
        torch.manual_seed(seed)
        model = MLP(5, (6, 7), CLASSES, generator=draw()).to(dtype)
        model.hidden.append(nn.Dropout(0.3))
        return find_scale_groups(model, cross_entropy, vectors())

    first = find(torch.float32, 0)
    assert find(torch.float32, 1) == first  # the caller's random state plays no part
    assert [group.names for group in find(torch.float64, 0)] == [group.names for group in first]
    assert (
        find_scale_groups(MLP(5, (6, 7), CLASSES, generator=draw()), cross_entropy, vectors(), generator=draw(9)).gap
        != find_scale_groups(MLP(5, (6, 7), CLASSES, generator=draw()), cross_entropy, vectors()).gap
    )


def test_a_loss_module_with_its_own_weights_and_nested_batches():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(5, (6,), CLASSES)

        def forward(self, inputs):
            return self.net(inputs["x"])

    batches = [({"x": x}, (y,)) for x, y in vectors()]
    groups = find_scale_groups(Two(), lambda output, target: cross_entropy(output, target[0]), batches)
    assert [group.names for group in groups] == [("net.hidden.1.weight",)]
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    assert len(find_scale_groups(MLP(5, (6,), CLASSES), loss, vectors())) == 1
    assert loss.weight.dtype == torch.float32


def test_errors_say_what_to_do():
    model = MLP(5, (6,), CLASSES)
    with pytest.raises(ValueError, match="no batches"):
        find_scale_groups(model, cross_entropy, [])
    with pytest.raises(ValueError, match="too few samples"):
        find_scale_groups(model, cross_entropy, [(x[:1], y[:1]) for x, y in vectors()])
    with pytest.raises(ValueError, match="loss of batch 0 is nan"):
        find_scale_groups(model, cross_entropy, [(x * float("nan"), y) for x, y in vectors()])
    with pytest.raises(ValueError, match="scalar"):
        find_scale_groups(model, lambda output, target: output, vectors())
    with pytest.raises(ValueError, match="depends on no trainable"):
        find_scale_groups(model, lambda output, target: cross_entropy(output.detach(), target), vectors())
    with pytest.raises(ValueError, match="probes cannot tell"):
        find_scale_groups(affine_mlp(), cross_entropy, vectors(), probes=2)
    with pytest.raises(ValueError, match="no trainable parameters"):
        find_scale_groups(model.requires_grad_(False), cross_entropy, vectors())
