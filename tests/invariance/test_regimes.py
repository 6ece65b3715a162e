"""Regimes of synthetic histories and of the toy, and the search for their boundaries."""

import math

import numpy as np
import pytest
import torch

from thalweg.invariance.regimes import History, bisect_regimes, classify_regime
from thalweg.invariance.toy import SphereToy

DIGITS = {  # 1 - cos, loss, what the loss does: a sweep over ELR of a digits network with 20% random labels
    1e-4: (8e-7, 0.214, "falls"),
    1.2e-3: (6e-6, 0.018, "falls"),
    4e-3: (3e-5, 0.0094, "falls"),
    1.4e-2: (0.014, 0.665, "flat"),
    2.5e-2: (0.024, 0.973, "flat"),
    4.6e-2: (0.048, 1.28, "flat"),
    8.6e-2: (0.78, 3.97, "flat"),
    0.29: (0.996, 5.2, "flat"),
    1.0: (1.0, 5.6, "flat"),
}
EXPECTED = ["convergence"] * 3 + ["chaotic equilibrium"] * 3 + ["divergence"] * 3


def history(distance, loss, kind, *, n=200, noise=0.1, seed=0, **options):
    """``n`` epochs of 10 steps whose loss ends at ``loss``, after a fall from 5.5 or flat since the first tenth."""
    random, t = np.random.default_rng(seed), np.linspace(0, 1, n)
    share = t if kind == "falls" else np.minimum(1, 10 * t)
    losses = 5.5 ** (1 - share) * loss**share * np.exp(noise * random.standard_normal(n))
    distances = distance * np.exp(noise * random.standard_normal(n))
    options = {"random_loss": 5.6} | options
    return History(losses.tolist(), distances.tolist(), steps=10 * n, **options)


def toy_history(toy, elr, steps=2000, seed=0):
    points = toy.simulate(toy.start(torch.Generator().manual_seed(seed)), elr, steps)[:-1]
    ess = elr * toy.gradient(points).flatten(1).norm(dim=-1)
    return History(toy.loss(points).tolist(), ess=ess.tolist(), random_loss=toy.random_level)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_level", [True, False])
def test_the_digits_sweep(seed, with_level):
    options = {} if with_level else {"random_loss": None}
    labels = [classify_regime(history(*row, seed=seed, **options)).label for row in DIGITS.values()]
    assert labels == EXPECTED


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("strength", "label"),
    # on the toy 1 - cos = 1 - 1/A in equilibrium: ESS = 1 at A = √2 and 1 - cos = 1/2 at A = 2
    [
        (0.1, "convergence"),
        (0.5, "convergence"),
        (0.9, "convergence"),
        (1.03, "chaotic equilibrium"),
        (1.3, "chaotic equilibrium"),
        (1.6, "transition"),
        (3.0, "divergence"),
        (30.0, "divergence"),
    ],
)
def test_the_toy(strength, label, seed):
    toy = SphereToy([0.5, 1.0, 2.0])
    assert classify_regime(toy_history(toy, strength * toy.threshold, seed=seed)).label == label


def test_a_run_that_escapes_and_returns_is_a_transition():
    run = history(1e-3, 0.03, "falls")
    losses = list(run.losses)
    losses[150:158] = [0.8] * 8
    found = classify_regime(History(losses, run.cosine_distances, steps=2000, random_loss=5.6))
    assert found.label == "transition"
    assert "escaped" in found.reason
    assert found.evidence["escape"] > 1.5


def test_a_flat_loss_that_has_not_moved_is_no_equilibrium():
    found = classify_regime(history(8e-7, 5.0, "flat", noise=0.01))
    assert found.label == "transition"
    assert "train longer" in found.reason
    assert found.evidence["wandering"] == pytest.approx(2000 * 8e-7, rel=0.01)  # Σ 2d over half of the steps


def test_a_finished_run_has_converged_although_it_is_flat():
    losses = [5.0 * 0.7**t for t in range(60)] + [5.0 * 0.7**60] * 140
    found = classify_regime(History(losses, [1e-9] * 200, steps=2000))
    assert found.label == "convergence"
    assert found.evidence["fall"] == pytest.approx(1)
    assert classify_regime(History([0.0] * 50, [0.0] * 50)).label == "convergence"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses": [1.0] * 90 + [math.nan] * 10}, "loss is not finite at record 90"),
        ({"cosine_distances": [math.inf] * 100}, "step length is not finite at record 0"),
        ({"variances": [1.0] * 60 + [4e-5] * 40, "eps": 1e-5}, "4 eps"),
    ],
)
def test_what_the_arithmetic_spoiled_is_invalid(change, words):
    found = classify_regime(History(**({"losses": [1.0] * 100, "cosine_distances": [0.02] * 100} | change)))
    assert found.label == "invalid"
    assert words in found.reason


def test_a_healthy_variance_changes_nothing():
    plain = {"losses": [1.0] * 100, "cosine_distances": [0.02] * 100}
    with_variance = classify_regime(History(**plain, variances=[0.1] * 100, eps=1e-5))
    assert with_variance.label == classify_regime(History(**plain)).label == "chaotic equilibrium"
    assert with_variance.evidence["variance"] == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("distance", "loss", "words"),
    [(0.4, 1.0, "between"), (0.9, 1.0, "random directions"), (0.02, 4.0, "random directions")],
)
def test_steps_and_level_that_contradict_one_another_are_a_transition(distance, loss, words):
    found = classify_regime(history(distance, loss, "flat"))
    assert found.label == "transition"
    assert words in found.reason


def test_a_loss_between_falling_and_flat_is_a_transition():
    losses = np.exp(-0.7 * np.linspace(0, 1, 200))  # falls 1.3 times from middle to end
    found = classify_regime(History(losses.tolist(), [0.02] * 200))
    assert found.label == "transition"
    assert 1.1 < found.evidence["fall"] < 1.5
    slow = classify_regime(History(losses.tolist(), [1e-6] * 200))  # in such steps no equilibrium is reached
    assert slow.label == "convergence"
    assert "slowly" in slow.reason


def test_ess_and_cosine_distance_are_the_same_evidence():
    tangent = np.linspace(0.1, 0.3, 50)
    by_ess = classify_regime(History([1.0] * 50, ess=tangent.tolist()))
    by_distance = classify_regime(History([1.0] * 50, (1 - 1 / np.sqrt(1 + tangent**2)).tolist()))
    assert by_ess.evidence == pytest.approx(by_distance.evidence, rel=1e-12)  # 1 - cos near 0.01: no digits lost


def test_bad_histories_are_named():
    with pytest.raises(ValueError, match="at least 16"):
        classify_regime(History([1.0] * 5, [0.1] * 5))
    with pytest.raises(ValueError, match="cosine_distances"):
        classify_regime(History([1.0] * 50))
    with pytest.raises(ValueError, match=">= 0"):
        classify_regime(History([-1.0] * 50, [0.1] * 50))
    with pytest.raises(ValueError, match="eps"):
        classify_regime(History([1.0] * 50, [0.1] * 50, variances=[1.0] * 50))


# ---- boundaries ----


class Synthetic:
    """Training whose regime is known: a list of (highest ELR, label), with labels flipped where asked."""

    def __init__(self, *regimes, flips=()):
        self.regimes, self.flips, self.batches = regimes, dict(flips), []

    def __call__(self, elrs):
        self.batches.append(list(elrs))
        return [self.run(i, elr) for i, elr in enumerate(elrs)]

    def run(self, i, elr):
        label = next(label for highest, label in self.regimes if elr <= highest)
        if len(self.batches) == 1:
            label = self.flips.get(i, label)
        shape = {"C": (1e-5, 0.01, "falls"), "E": (0.02, 0.8, "flat"), "D": (0.9, 5.0, "flat"), "T": (0.4, 2, "flat")}
        return history(*shape[label])


@pytest.mark.parametrize("factor", [3.0, 1.5, 1.1])
@pytest.mark.parametrize(("first", "second"), [(3e-3, 0.07), (2e-4, 0.5), (0.011, 0.03)])
def test_both_boundaries_are_found_to_the_factor_asked_for(first, second, factor):
    train = Synthetic((first, "C"), (second, "E"), (math.inf, "D"))
    found = bisect_regimes(train, 1e-4, 1.0, factor=factor)
    for boundary, truth in ((found.convergence, first), (found.divergence, second)):
        assert boundary.lower <= truth < boundary.upper
        assert boundary.upper / boundary.lower <= factor * (1 + 1e-9)
        assert boundary.undecided == ()
    assert found.trainings == sum(map(len, train.batches)) == len(found.regimes)
    # each gap of the sweep, 4/6 decades wide, is halved until it is the factor wide
    rounds = math.ceil(math.log2(max(1.0, math.log(10 ** (4 / 6)) / math.log(factor))))
    assert found.trainings <= 7 + 2 * (rounds + 1)
    assert len(train.batches) <= 1 + rounds + 1


def test_an_equilibrium_narrower_than_the_sweep_is_found():
    found = bisect_regimes(Synthetic((0.012, "C"), (0.03, "E"), (math.inf, "D")), 1e-4, 1.0, factor=1.3, points=4)
    assert found.convergence.lower <= 0.012 < found.convergence.upper
    assert found.divergence.lower <= 0.03 < found.divergence.upper


def test_a_zone_of_transitions_is_closed_in_from_both_ends():
    found = bisect_regimes(Synthetic((2e-3, "C"), (9e-3, "T"), (0.1, "E"), (math.inf, "D")), 1e-4, 1.0, factor=1.2)
    zone = found.convergence
    assert zone.lower <= 2e-3 < zone.undecided[0] <= zone.lower * 1.2 * (1 + 1e-9)
    assert zone.undecided[-1] <= 9e-3 < zone.upper <= zone.undecided[-1] * 1.2 * (1 + 1e-9)
    assert zone.lower < zone.estimate < zone.upper
    assert found.divergence.undecided == ()


@pytest.mark.parametrize("flips", [{0: "E"}, {6: "E"}, {3: "D"}, {1: "D"}])
def test_a_mislabelled_run_does_no_harm(flips):
    # the sweep: 1e-4, 4.6e-4, 2.2e-3 | 1e-2, 4.6e-2 | 0.22, 1
    found = bisect_regimes(Synthetic((5e-3, "C"), (0.1, "E"), (math.inf, "D"), flips=flips), 1e-4, 1.0, factor=1.3)
    assert found.convergence.lower <= 5e-3 < found.convergence.upper
    assert found.divergence.lower <= 0.1 < found.divergence.upper


def test_a_range_without_a_boundary_says_so():
    found = bisect_regimes(Synthetic((math.inf, "C")), 1e-4, 1e-3)
    assert (found.convergence, found.divergence, found.trainings) == (None, None, 7)
    found = bisect_regimes(Synthetic((1e-2, "E"), (math.inf, "D")), 1e-4, 1.0)
    assert found.convergence is None
    assert found.divergence.lower <= 1e-2 < found.divergence.upper


def test_boundaries_of_the_toy():
    toy = SphereToy([0.5, 1.0, 2.0])
    found = bisect_regimes(
        lambda elrs: [toy_history(toy, elr, steps=1000) for elr in elrs],
        0.05 * toy.threshold,
        20 * toy.threshold,
        factor=1.1,
    )
    assert found.convergence.lower <= 1.001 * toy.threshold  # in 1,000 steps, within a thousandth, either may come
    assert found.convergence.upper >= 0.97 * toy.threshold
    assert found.convergence.upper / found.convergence.lower <= 1.3
    # where 1 - cos = 1 - 1/A leaves ESS < 1 and enters divergence
    assert found.divergence.lower == pytest.approx(math.sqrt(2) * toy.threshold, rel=0.1)
    assert found.divergence.upper == pytest.approx(2 * toy.threshold, rel=0.1)


def test_bad_searches_are_named():
    with pytest.raises(ValueError, match="factor > 1"):
        bisect_regimes(Synthetic((math.inf, "C")), 1e-4, 1.0, factor=1.0)
    with pytest.raises(ValueError, match="returned 1 histories"):
        bisect_regimes(lambda elrs: [history(1e-5, 0.01, "falls")], 1e-4, 1.0)
