"""What makes a model no function of its weights, or samples see each other: by layer, and by calling it twice."""

import pytest
import torch
from torch import nn

from thalweg.curvature.evaluation import (
    evaluation_copy,
    is_random,
    require_fixed_function,
    require_independent_samples,
    require_repeatable,
)


@pytest.mark.parametrize(
    ("module", "random"),
    [
        (nn.Dropout(0.5), True),
        (nn.Dropout2d(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.RReLU(), True),
        (nn.LSTM(2, 2, 2, dropout=0.1), True),
        (nn.LSTM(2, 2), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.BatchNorm1d(2), False),
        (nn.ReLU(), False),
    ],
    ids=str,
)
def test_random_layers(module, random):
    assert is_random(module.train()) == random
    assert not is_random(module.eval())
    model = nn.Sequential(nn.Identity(), module.train())
    if random:
        with pytest.raises(ValueError, match=rf"layer '1' \({type(module).__name__}\) is random in training mode"):
            require_fixed_function(model)
        with pytest.raises(ValueError, match="'1' .* is in training mode"):
            evaluation_copy(model, "refuse")
    else:
        require_fixed_function(model)
    require_fixed_function(model.eval())


@pytest.mark.parametrize(
    ("module", "apart"),
    [
        (nn.BatchNorm1d(2), False),
        (nn.BatchNorm2d(2).eval(), True),
        (nn.BatchNorm1d(2, track_running_stats=False).eval(), False),
        (nn.SyncBatchNorm(2), False),
        (nn.InstanceNorm1d(2), True),
        (nn.LayerNorm(2), True),
    ],
    ids=str,
)
def test_layers_whose_samples_see_each_other(module, apart):
    if apart:
        require_independent_samples(module)
    else:
        with pytest.raises(ValueError, match=rf"the model \({type(module).__name__}\) normalizes by the statistics"):
            require_independent_samples(module)


def test_spectral_normalization_moves_its_vectors_in_training_mode():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="_SpectralNorm.* is in training mode"):
        evaluation_copy(model, "refuse")
    twin = evaluation_copy(model, "batch")
    before = twin[0].weight.clone()
    twin(torch.ones(1, 3))
    assert torch.equal(twin[0].weight, before)


def test_a_model_that_fails_is_told_from_one_that_is_random():
    with pytest.raises(ValueError, match="called as model.input., fails on the data: mat1 and mat2"):
        require_repeatable(lambda: nn.Linear(2, 2)(torch.ones(1, 3)))


def test_what_layers_do_not_show_is_seen_by_calling_twice():
    x = torch.ones(4, 8)
    assert require_repeatable(lambda: x) is x
    assert require_repeatable(lambda: x / 0).isinf().all()
    assert require_repeatable(lambda: x.long()).dtype == torch.int64
    assert require_repeatable(lambda: (x, 1)) == (x, 1)
    with pytest.raises(ValueError, match="output is random"):
        require_repeatable(lambda: nn.functional.dropout(x))
