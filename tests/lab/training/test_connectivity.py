"""Paths between networks: where they go, which of them are one path, and what their losses say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thalweg.invariance import find_scale_groups
from thalweg.lab.data.batches import Batches
from thalweg.lab.training.baselines import RandomWalk
from thalweg.lab.training.connectivity import barrier, between, path_losses
from thalweg.lab.training.scale_invariant import Task, train_mode_loss
from thalweg.lab.training.snapshots import Snapshots, cosine_distance, unflattened
from thalweg.nn import MLP


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_task() -> Task:
    """A network in float64 whose normalization has next to no eps, so that invariance is exact."""
    inputs = torch.randn(40, 6, generator=generator(0), dtype=torch.float64)
    labels = torch.randint(3, (40,), generator=generator(1))
    model = MLP(6, (8, 8), 3, generator=generator(2)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-13
    batches = Batches(inputs, labels, batch_size=20, generator=generator(3))
    groups = find_scale_groups(model, cross_entropy, [(inputs, labels)], generator=generator(4))
    return Task(model, cross_entropy, batches, inputs, labels, groups, 1.0, {})


def elsewhere(work: Task, seed: int) -> list[Tensor]:
    """Other weights with the same joint norm."""
    drawn = [
        torch.randn(p.shape, generator=generator(seed), dtype=p.dtype) * (i + 1) for i, p in enumerate(work.invariant)
    ]
    norms = [sum(float(p.detach().square().sum()) for p in params) ** 0.5 for params in (work.invariant, drawn)]
    return [p * norms[0] / norms[1] for p in drawn]


def test_the_straight_path_and_the_great_circle_of_the_whole_vector_have_the_same_losses() -> None:
    work = small_task()
    start, end = [p.detach().clone() for p in work.invariant], elsewhere(work, 5)
    whole = [torch.cat([p.flatten() for p in weights]) for weights in (start, end)]
    angle = math.acos(float(torch.dot(*whole) / whole[0].norm() ** 2))
    losses = path_losses(work, start, end, points=7)
    for i, loss in enumerate(losses):
        t = i / 6
        turned = math.atan2(t * math.sin(angle), 1 - t + t * math.cos(angle))
        (place,) = between([whole[0]], [whole[1]], turned / angle, "turning")
        with torch.no_grad():
            for param, part in zip(work.invariant, unflattened(place, work), strict=True):
                param.copy_(part)
        # eps = 1e-13 of variances of order 1 leaves the invariance exact to rounding
        assert train_mode_loss(work.model, work.loss_fn, work.batches) == pytest.approx(loss, rel=1e-9)


def test_a_path_begins_and_ends_at_its_ends_and_leaves_the_network_alone() -> None:
    work = small_task()
    own = {name: value.clone() for name, value in work.model.state_dict().items()}
    start, end = elsewhere(work, 6), elsewhere(work, 7)
    straight, turning = (path_losses(work, start, end, path, points=3) for path in ("straight", "turning"))
    assert straight[0] == pytest.approx(turning[0], rel=1e-12)
    assert straight[-1] == pytest.approx(turning[-1], rel=1e-12)
    for name, value in work.model.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_groups_that_turn_keep_their_norms_and_pass_equal_angles() -> None:
    u, v = (torch.randn(9, generator=generator(seed), dtype=torch.float64) for seed in (8, 9))
    v = v * u.norm() / v.norm()
    places = [between([u], [v], t, "turning")[0] for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    steps = [cosine_distance(a, b) for a, b in itertools.pairwise(places)]
    assert all(float(place.norm()) == pytest.approx(float(u.norm())) for place in places)
    assert steps == pytest.approx([steps[0]] * 4)
    (near,) = between([u], [u * (1 + 1e-9)], 0.5, "turning")  # no division by the sine of a vanishing angle
    assert torch.allclose(near, u)


def test_barrier_is_measured_from_the_line_between_both_ends() -> None:
    assert barrier([1.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert barrier([1.0, 2.0, 3.0]) == pytest.approx(0.0)
    assert barrier([1.0, 0.0, 0.0, 1.0]) == pytest.approx(-1.0)


def test_a_random_walk_turns_by_the_given_angles_on_its_sphere_and_resumes_bit_for_bit() -> None:
    distances = [0.5, 1e-4, 1.0, 0.2]

    def walk(
        steps: int, resume: dict[str, object] | None = None, at: list[Tensor] | None = None
    ) -> tuple[list[Tensor], RandomWalk]:
        params = [
            torch.nn.Parameter(p.clone())
            for p in at or [torch.ones(3, 4, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]
        ]
        optimizer = RandomWalk(params, distances, elr=0.1, seed=3)
        if resume:
            optimizer.load_state_dict(resume)
        places = [torch.cat([p.detach().flatten() for p in params])]
        for _ in range(steps):
            optimizer.step()
            places.append(torch.cat([p.detach().flatten().clone() for p in params]))
        return places, optimizer

    places, _ = walk(4)
    assert [cosine_distance(a, b) for a, b in itertools.pairwise(places)] == pytest.approx(distances)
    assert [float(place.norm()) for place in places] == pytest.approx([17**0.5] * 5)
    half, optimizer = walk(2)
    rest, _ = walk(2, optimizer.state_dict(), [half[-1][:12].view(3, 4), half[-1][12:]])
    assert torch.equal(rest[-1], places[-1])
    with pytest.raises(ValueError, match="step 5 of a walk of 4"):
        walk(5)


def test_steps_of_a_random_walk_are_isotropic() -> None:
    total = torch.zeros(3, dtype=torch.float64)
    for seed in range(2000):
        weight = torch.nn.Parameter(torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
        RandomWalk([weight], [1.0], elr=0.1, seed=seed).step()
        total += weight.detach().square()
    # a right angle leads onto the equator; a mean square of 2 each way has standard deviation sqrt(2/2000) = 0.03
    assert total / 2000 == pytest.approx(torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64), abs=0.15)


def test_snapshots_are_taken_after_the_epochs_asked_for_and_travel_in_a_state() -> None:
    weight = torch.zeros(2)
    weight[0] = 1.0
    snapshots = Snapshots([weight], [2])
    for epoch in (1, 2, 3):
        weight[1] += 1.0
        assert not snapshots.update({"epoch": epoch})
    again = Snapshots([weight], [2])
    again.load_state_dict(snapshots.state_dict())
    assert {epoch: place.tolist() for epoch, place in again.taken.items()} == {0: [1.0, 0.0], 2: [1.0, 2.0]}
    assert again.from_start()["from_start"] == pytest.approx(1 - 0.1**0.5)  # (1, 3) from (1, 0)
