"""What the optimizers' parameter groups share."""

from __future__ import annotations

from torch.optim import Optimizer

__all__ = ["fill_missing_options"]


def fill_missing_options(optimizer: Optimizer) -> None:
    """Give every group the default of each option that a state saved by an older version does not have."""
    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            if name != "differentiable":  # torch's own addition, which these groups do not know
                group.setdefault(name, value)
