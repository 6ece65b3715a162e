"""Schedules against their published tables."""

import pytest

from thalweg.regularize import SRIP_IMAGENET, constant, ramp, srip_table, stair


def published(epoch, first):
    """adjust_ortho_decay_rate of the SRIP scripts, for a base of 1; epochs count from 1."""
    if epoch > 120:
        return 0.0
    if epoch > 70:
        return 1e-6
    if epoch > 50:
        return 1e-4
    if epoch > first:
        return 1e-3
    return 1.0


def test_srip_tables_as_in_the_scripts():
    cifar, imagenet = srip_table(7), srip_table(7, factors=SRIP_IMAGENET)
    for step in range(130 * 7):
        assert cifar(step) == published(step // 7 + 1, 20)
        assert imagenet(step) == published(step // 7 + 1, 30)


def test_shapes():
    assert constant()(10**9) == 1
    assert [ramp(2, start=0.5)(t) for t in (0, 1, 2, 3)] == [0.5, 0.75, 1, 1]
    assert [stair({3: 0.1, 1: 0.5})(t) for t in range(5)] == [1, 0.5, 0.5, 0.1, 0.1]


def test_errors():
    with pytest.raises(ValueError, match="at least one step, got 0"):
        ramp(0)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        srip_table(0)
