"""Every penalty on every odd layer: a right answer or a clear sentence, and nothing left out in silence."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from thalweg.regularize import (
    L1,
    L2,
    SRIP,
    ConvOrthogonality,
    DoubleSoftOrthogonality,
    FrameRegularizer,
    HypersphericalEnergy,
    MutualCoherence,
    SoftOrthogonality,
)

pytestmark = pytest.mark.filterwarnings("ignore:the Gershgorin form will shrink")  # what weights here start from

MEMBERS = {
    "SO": SoftOrthogonality,
    "DSO": DoubleSoftOrthogonality,
    "MC": MutualCoherence,
    "SRIP": SRIP,
    "MHE": HypersphericalEnergy,
    "OCNN": ConvOrthogonality,
    "frame": lambda coefficient, **o: FrameRegularizer(0.5, 2.0, coefficient, **o),
    "spectral": lambda coefficient, **o: FrameRegularizer(0.5, 2.0, coefficient, form="spectral", **o),
    "L1": L1,
    "L2": L2,
}


def filled(value):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    nn.init.constant_(conv.weight, value)
    return conv


def tied():
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(first, second)


def twice():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), conv)


def beside(layer):
    """An odd layer next to one that all penalties of convolutions take."""
    return nn.Sequential(layer, nn.Conv2d(layer.out_channels, 3, 3, padding=1))


VECTOR, IMAGE = torch.zeros(1, 6), torch.zeros(1, 3, 8, 8)
CASES = {
    "dense, m < n": (lambda: nn.Linear(6, 3), VECTOR),
    "convolution, m < n": (lambda: nn.Conv2d(3, 2, 3, padding=1), IMAGE),
    "1 x 1, stride 2": (lambda: nn.Conv2d(3, 6, 1, stride=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3), IMAGE),
    "one filter": (lambda: nn.Conv2d(3, 1, 3), IMAGE),
    "shared weight": (tied, IMAGE),
    "shared module": (twice, IMAGE),
    "frozen": (lambda: nn.Conv2d(3, 4, 3).requires_grad_(False), IMAGE),
    "zeros": (lambda: filled(0.0), IMAGE),
    "NaN": (lambda: filled(math.nan), IMAGE),
    "transposed": (lambda: beside(nn.ConvTranspose2d(3, 4, 3)), IMAGE),
    "reflected": (lambda: beside(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), IMAGE),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)), IMAGE),
    "pruned": (lambda: prune.l1_unstructured(nn.Conv2d(3, 4, 3, padding=1), "weight", amount=0.5), IMAGE),
    "no weight": (lambda: nn.BatchNorm2d(3), IMAGE),
}

LOST = "the input cannot be recovered, at least"
NO_TYPE = "is not among the types of this penalty"
SENTENCES = {  # what the table says of the weight, beside the penalties that say it; of the others it says nothing
    "dense, m < n": {("frame", "spectral"): LOST, ("OCNN",): NO_TYPE},
    "convolution, m < n": {("frame", "spectral"): LOST},
    "1 x 1, stride 2": {("frame", "spectral"): "144 of n = 192 inputs are never read; WᵀW is bounded on the others"},
    "depthwise": {("frame", "spectral"): LOST, ("MHE",): "one filter in a group: there is no pair to repel"},
    "one filter": {("frame", "spectral"): LOST, ("MHE",): "one filter in a group: there is no pair to repel"},
    "frozen": {tuple(MEMBERS): "frozen: it does not require a gradient"},
    "zeros": {("MHE",): "4 filters of zeros left out"},
    "NaN": {tuple(MEMBERS): "the weight is not finite"},
    "transposed": {("frame", "spectral"): f"ConvTranspose2d {NO_TYPE}"},
    "reflected": {("frame", "spectral"): "padding_mode='reflect' is not supported: use 'zeros' or 'circular'"},
    "no weight": {tuple(name for name in MEMBERS if name not in ("L1", "L2")): f"BatchNorm2d {NO_TYPE}"},
}


def sentence(case, member):
    return next((text for names, text in SENTENCES.get(case, {}).items() if member in names), "")


def make(name, model, sample):
    return MEMBERS[name](0.5, generator=torch.Generator().manual_seed(0)).prepare(model, sample)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("case", CASES)
def test_a_right_answer_or_a_clear_sentence(case, name):
    build, sample = CASES[case]
    torch.manual_seed(0)
    model = build().double()
    sample = sample.double()
    table = make(name, model, sample).per_layer(model)

    weight = next(row for row in table if row.layer in ("weight", "0.weight"))
    said = sentence(case, name)
    assert said in weight.note
    assert bool(said) == bool(weight.note)
    assert all(row.note for row in table.skipped)
    names = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    own = {n.replace("parametrizations.", "").removesuffix(".original0").removesuffix(".original1") for n in names}
    assert {row.layer for row in table} == {n.removesuffix("_orig") for n in own}
    assert len(table) == len({row.layer for row in table})

    if not table.regularized:
        with pytest.raises(ValueError, match="regularizes no weight of the given model") as error:
            make(name, model, sample)(model)
        assert table.skipped[0].note in str(error.value)
        return
    value = make(name, model, sample)(model)
    # the table draws the same numbers and adds the same terms in another order
    torch.testing.assert_close(value.item(), table.total, rtol=1e-9, atol=0, equal_nan=True)
    assert value.isnan() == (case == "NaN")
    value.backward()
    if case != "NaN":
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize(("case", "second"), [("shared weight", "1.weight"), ("shared module", "2.weight")])
def test_what_is_shared_counts_once_under_the_name_that_is_left(name, case, second):
    torch.manual_seed(0)
    model = CASES[case][0]().double()
    notes = {row.layer: row.note for row in make(name, model, IMAGE.double()).per_layer(model)}
    assert notes[second] == "counted once, as 0.weight"
    penalty = MEMBERS[name](0.5, exclude="0", generator=torch.Generator().manual_seed(0)).prepare(model, IMAGE.double())
    table = penalty.per_layer(model)
    assert {row.layer: row.note for row in table.skipped}["0.weight"] == "excluded by '0'"
    assert second in {row.layer for row in table.regularized}
    alone = make(name, model, IMAGE.double()).per_layer(model)
    value = next(row.value for row in alone if row.layer == "0.weight")
    assert next(row.value for row in table if row.layer == second) == pytest.approx(value, rel=1e-12)
