"""The linear program for the sparsest non-negative symmetry against the list of all extreme rays."""

from itertools import combinations

import numpy as np
import pytest
import torch

from thalweg.invariance.symmetries import disjoint_groups, ray_through, symmetry_space

N = 7


def null_space_of(rows):
    """Measurements S, twenty rows with noise of 1e-13, whose null space the given integer vectors span."""
    V = torch.tensor(rows, dtype=torch.float64).reshape(-1, N)
    noise = torch.Generator().manual_seed(0)
    S = torch.randn(20, N, dtype=torch.float64, generator=noise)
    S = S - S @ torch.linalg.pinv(V) @ V if len(V) else S
    return S + 1e-13 * torch.randn(20, N, dtype=torch.float64, generator=noise)


def extreme_rays(S):
    """Every support on which the null space is one line of positive numbers."""
    rays = []
    for size in range(1, N + 1):
        for support in combinations(range(N), size):
            _, values, Vh = np.linalg.svd(S.numpy()[:, support])
            if (values < 1e-9).sum() == 1:
                line = Vh[-1] / Vh[-1][np.argmax(np.abs(Vh[-1]))]
                if (line > 1e-6).all():
                    ray = np.zeros(N)
                    ray[list(support)] = line
                    rays.append(ray)
    return rays


@pytest.mark.parametrize("seed", range(30))
def test_ray_through_a_tensor_is_the_shortest_of_all(seed):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(-1, 2, (1 + seed % 4, N), generator=g).tolist()
    S = null_space_of(rows)
    scale = torch.rand(N, generator=g, dtype=torch.float64) + 0.5
    space = symmetry_space(S, scale)
    rays = extreme_rays(S)
    for i in range(N):
        through = [ray.sum() / ray[i] for ray in rays if ray[i] > 1e-6]
        found = ray_through(space, i)
        if not through:
            assert found is None
            continue
        assert found[i] == pytest.approx(1)
        assert (found > -1e-9).all()
        assert np.abs(S.numpy() @ found).max() < 1e-9
        # ties are broken by costs that differ by up to 1e-3 of each entry
        assert found.sum() == pytest.approx(min(through), rel=2e-3)


@pytest.mark.parametrize("seed", range(10))
def test_signed_ray_solves_the_equations_and_is_no_longer_than_the_positive_one(seed):
    g = torch.Generator().manual_seed(seed)
    S = null_space_of(torch.randint(-1, 2, (3, N), generator=g).tolist())
    space = symmetry_space(S, torch.ones(N))
    for i in range(N):
        signed, positive = ray_through(space, i, signed=True), ray_through(space, i)
        inside = torch.linalg.lstsq(S[:, [j for j in range(N) if j != i]], -S[:, i]).solution
        possible = (S[:, [j for j in range(N) if j != i]] @ inside + S[:, i]).norm() < 1e-9
        assert (signed is not None) == bool(possible)
        if signed is not None:
            assert np.abs(S.numpy() @ signed).max() < 1e-9
            assert positive is None or np.abs(signed).sum() <= positive.sum() * (1 + 2e-3)


def test_groups_do_not_depend_on_the_order_of_the_columns():
    groups = [{0, 1, 2}, {3}, {5, 6}]  # 4 moves only against 3
    rows = [[float(i in group) for i in range(N)] for group in groups] + [[0, 0, 0, -1, 1, 0, 0]]
    rows[-1][3] = 0.0
    rows[-1][5] = -1.0
    for seed in range(5):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed)).tolist()
        space = symmetry_space(null_space_of(rows)[:, order], torch.ones(N))
        found = [{order[i] for i in indices} for indices in disjoint_groups(space)]
        assert sorted(map(sorted, found)) in ([[0, 1, 2], [3], [5, 6]], [[0, 1, 2], [3], [4, 6]])
        sizes = [10 if order[i] == 5 else 1 for i in range(N)]
        space = symmetry_space(null_space_of(rows)[:, order], torch.ones(N), sizes=sizes)
        assert {5, 6} in [{order[i] for i in indices} for indices in disjoint_groups(space)]


def test_everything_or_nothing_is_a_symmetry():
    everything = symmetry_space(torch.full((4, 2), 1e-15, dtype=torch.float64), torch.ones(2))
    assert disjoint_groups(everything) == [(1,), (0,)]
    nothing = symmetry_space(torch.eye(3, dtype=torch.float64), torch.ones(3))
    assert disjoint_groups(nothing) == []
    assert disjoint_groups(symmetry_space(torch.zeros(3, 0), torch.ones(0))) == []
