"""Penalties as terms of a loss: what every one of them can do, and their sum, which can do the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thalweg.regularize.penalty_table import PenaltyTable

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Penalty", "PenaltySum", "check_rate"]


class Penalty(nn.Module):
    """What `LayerPenalty` and `PenaltySum` have in common."""

    def forward(self, model: nn.Module) -> Tensor:
        """The penalty of the model's weights at this step: a scalar to add to the loss."""
        raise NotImplementedError

    def per_layer(self, model: nn.Module) -> PenaltyTable:
        """The penalty of every weight, and what is not regularized and why; draws nothing from the generators."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, sample: Tensor | tuple[Any, ...]) -> Self:
        """Learn every layer's input shape from one forward pass of ``sample``; returns the penalty."""
        raise NotImplementedError

    def advance(self, steps: int = 1) -> None:
        """Count an optimizer step, as ``scheduler.step()`` does: schedules and ``every`` go by this count."""
        raise NotImplementedError

    def step_(self, model: nn.Module, lr: float) -> None:
        """Move the weights by ``-lr`` times the penalty's gradient, past the optimizer: its state and ``.grad`` stay.

        The decoupled form, as AdamW's weight decay: called before or after ``optimizer.step()`` in place of adding the
        penalty to the loss. (AdamW decays before its step: then `L2` gives AdamW itself.)

        Raises:
            ValueError: a negative rate.
        """
        check_rate(lr)
        with torch.inference_mode(False), torch.enable_grad():
            value = self(model)
        if not value.requires_grad:  # not at this step
            return
        params = [param for param in model.parameters() if param.requires_grad]
        gradients = torch.autograd.grad(value, params, allow_unused=True)
        with torch.no_grad():
            for param, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    param.sub_(gradient, alpha=lr)

    def __add__(self, other: Penalty) -> PenaltySum:
        if not isinstance(other, Penalty):
            return NotImplemented
        return PenaltySum(self, other)

    def __radd__(self, other: int) -> Self:
        """The start of the built-in ``sum``: 0 + p is p."""
        if other != 0:
            return NotImplemented
        return self


def check_rate(lr: float) -> None:
    """Refuse a rate that leads up, as optimizers do."""
    if not lr >= 0:
        raise ValueError(f"lr={lr}: a step down a penalty has a rate >= 0")


class PenaltySum(Penalty):
    """The sum of penalties, each with its own coefficient, schedule and choice of layers; made by ``p + q``.

    Raises:
        ValueError: no penalty.
        TypeError: something else than penalties.

    >>> from thalweg.regularize import L1, L2
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> penalty = L1(0.5) + L2(0.25)
    >>> penalty(model).detach(), [row.coefficient * row.value for row in penalty.per_layer(model)]
    (tensor(3.), [2.0, 1.0])
    """

    def __init__(self, *penalties: Penalty) -> None:
        super().__init__()
        if not penalties:
            raise ValueError("a sum of penalties needs at least one")
        self.terms = nn.ModuleList()
        for penalty in penalties:
            if not isinstance(penalty, Penalty):
                raise TypeError(f"penalties one by one are expected, as in PenaltySum(p, q), got {penalty!r}")
            self.terms.extend(penalty.terms if isinstance(penalty, PenaltySum) else [penalty])

    def __iter__(self) -> Iterator[Penalty]:
        for term in self.terms:
            assert isinstance(term, Penalty)
            yield term

    def forward(self, model: nn.Module) -> Tensor:
        total, *others = [term.forward(model) for term in self]
        for other in others:
            total = total + other.to(total.device)
        return total

    def per_layer(self, model: nn.Module) -> PenaltyTable:
        return PenaltyTable(row for term in self for row in term.per_layer(model))

    def prepare(self, model: nn.Module, sample: Tensor | tuple[Any, ...]) -> Self:
        for term in self:
            term.prepare(model, sample)
        return self

    def advance(self, steps: int = 1) -> None:
        for term in self:
            term.advance(steps)

    def step_(self, model: nn.Module, lr: float) -> None:
        """The terms' own steps one after the other: a proximal step stays proximal."""
        for term in self:
            term.step_(model, lr)
