"""`make_scale_invariant`: all that is left to train is scale-invariant, and every change is reported."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm

from thalweg.invariance.convert import make_scale_invariant
from thalweg.invariance.groups import find_scale_groups
from thalweg.nn import MLP, ConvNet, PreActResNet


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(*shape):
    g = draw(1)
    return [(torch.randn(8, *shape, generator=g), torch.randint(3, (8,), generator=g)) for _ in range(2)]


def norms_of_all_kinds():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True),
        nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 3),
    )  # fmt: skip


def normalized_weights(normalize):
    def build():
        layers = nn.Flatten(), normalize(nn.Linear(128, 6)), nn.ReLU(), normalize(nn.Linear(6, 5)), nn.Tanh()
        return nn.Sequential(*layers, normalize(nn.Linear(5, 3)))

    return build


MODELS = {
    "ConvNet": lambda: ConvNet(2, 4, 3, affine=True),
    "ResNet": lambda: PreActResNet(2, 4, 3, blocks=(1, 1), affine=True),
    "MLP": lambda: MLP(128, (6, 5), 3, affine=True),
    "norms of all kinds": norms_of_all_kinds,
    "weight norm": normalized_weights(weight_norm),
    "weight norm by hooks": normalized_weights(nn.utils.weight_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_everything_left_to_train_is_scale_invariant(build):
    torch.manual_seed(0)
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = {name for name, _ in model.named_parameters()}
    conversion = make_scale_invariant(model, last_layer_norm=3.0)

    groups = find_scale_groups(conversion.model, cross_entropy, batches(2, 8, 8))
    assert sorted(name for group in groups for name in group.names) == sorted(conversion.trainable)
    assert len(groups) >= 2
    frozen = {name for name, change in conversion.changes.items() if "frozen" in change}
    assert set(groups.skipped) == frozen

    # the model itself is as it was, and each of its parameters is either in the report or still trained
    assert {name for name, _ in model.named_parameters()} == names
    assert all(param.requires_grad for param in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert names <= set(conversion.changes) | set(conversion.trainable)
    last = [layer for layer in conversion.model.modules() if isinstance(layer, nn.Linear)][-1]
    assert last.weight.norm().item() == pytest.approx(3.0)
    assert not last.weight.requires_grad


def test_converting_the_ordinary_network_gives_the_published_one():
    ordinary = ConvNet(2, 4, 3, affine=True, generator=draw())
    published = ConvNet(2, 4, 3, generator=draw())
    converted = make_scale_invariant(ordinary).model
    x = batches(2, 8, 8)[0][0]
    torch.testing.assert_close(converted(x), published(x), rtol=0, atol=0)
    ours = {name: weight.requires_grad for name, weight in converted.named_parameters()}
    assert ours == {name: weight.requires_grad for name, weight in published.named_parameters()}


def test_the_report_reads_as_text():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    text = str(make_scale_invariant(model, generator=draw()))
    assert text.splitlines() == [
        "5 parameters changed, 1 left to train",
        "  0.bias: removed",
        "  1.weight: removed",
        "  1.bias: removed",
        "  3.weight: drawn anew, rescaled to norm 10 and frozen",
        "  3.bias: frozen",
        "to train",
        "  0.weight",
    ]


def test_generator_draws_the_same_last_layer_for_different_networks():
    def last(seed, generator):
        torch.manual_seed(seed)
        return make_scale_invariant(MLP(5, (6,), 3, affine=True), generator=generator).model.last.weight

    assert torch.equal(last(0, draw(228)), last(1, draw(228)))
    assert not torch.equal(last(0, None), last(1, None))


def test_attention_loses_its_biases():
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True), 1, enable_nested_tensor=False
    )
    conversion = make_scale_invariant(model, last_layer="layers.0.linear2")
    assert "layers.0.self_attn.in_proj_bias" in conversion.changes
    assert not [name for name in conversion.trainable if "bias" in name]
    x = torch.randn(2, 5, 8, generator=draw())
    assert conversion.model(x).isfinite().all()
    assert conversion.model.eval()(x).isfinite().all()


def test_the_last_layer_can_be_named():
    model = nn.ModuleDict({"head": nn.Linear(6, 3), "body": nn.Linear(4, 6), "norm": nn.BatchNorm1d(6)})
    assert make_scale_invariant(model, last_layer="head").trainable == ("body.weight",)
    assert make_scale_invariant(model).trainable == ("head.weight",)  # the one defined last is taken otherwise
    with pytest.raises(ValueError, match=r"no linear or convolution layer called 'tail'; it has head, body"):
        make_scale_invariant(model, last_layer="tail")


def test_refusals_say_why():
    with pytest.raises(ValueError, match="has no normalization"):
        make_scale_invariant(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="nothing is left to train"):
        make_scale_invariant(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        make_scale_invariant(nn.BatchNorm1d(4))
    model = MLP(5, (6,), 3, affine=True)
    for norm in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be positive"):
            make_scale_invariant(model, last_layer_norm=norm)
    nn.init.zeros_(model.last.weight)
    with pytest.raises(ValueError, match="is zero and cannot be rescaled"):
        make_scale_invariant(model)
    assert make_scale_invariant(model, generator=draw()).model.last.weight.norm().item() == pytest.approx(10)
