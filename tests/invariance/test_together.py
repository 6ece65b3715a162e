"""The pieces of seed 001 on one network: groups found, sphere kept, monitored numbers consistent, regime told."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from thalweg.invariance import History, ScaleMonitor, classify_regime, find_scale_groups
from thalweg.nn import MLP
from thalweg.optim import SphereSGD


def test_from_groups_to_a_regime() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(512, 16, generator=draw), torch.randint(4, (512,), generator=draw)
    model = MLP(16, (32, 32), 4, generator=draw)
    batches = [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 512, 64)]
    groups = find_scale_groups(model, cross_entropy, batches, generator=draw)
    assert sum(group.numel for group in groups) == 16 * 32 + 32 * 32
    params = dict(model.named_parameters())
    optimizer = SphereSGD([{"params": [params[name] for name in group.names]} for group in groups], 2e-3)
    losses = []
    with ScaleMonitor(model, optimizer, groups) as monitor:
        radius = None
        for _ in range(60):
            for x, y in batches:
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                radius = radius or monitor.last["rho"]
                assert abs(monitor.last["rho"] / radius - 1) < 1e-5  # float32 retraction
    per_epoch = torch.tensor(losses).view(60, -1).mean(1).tolist()
    cosines = torch.tensor([row["cosine_distance"] for row in monitor.rows]).view(60, -1).mean(1).tolist()
    regime = classify_regime(History(per_epoch, cosine_distances=cosines, steps=len(losses)))
    assert regime.label == "convergence", regime
    assert max(abs(row["radial_cosine"]) for row in monitor.rows) < 1e-3
