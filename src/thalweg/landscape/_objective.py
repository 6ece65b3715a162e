"""The loss of a model on fixed data as a function L(θ) of its trainable parameters, seen as one vector.

Measuring never touches the model: parameters are replaced by `torch.func.functional_call`, and buffers by copies, so
that a batch normalization in training mode uses the statistics of its batch and leaves the running ones as they were.
What modules note on themselves in a forward pass (the last activation, a weight computed by a hook) is put back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thalweg.curvature.chunks import LossFunction, map_tensors, pairs, read_batches, sample_count, take
from thalweg.curvature.evaluation import (
    require_autograd,
    require_fixed_function,
    require_repeatable,
    twice_differentiable,
)
from thalweg.curvature.premises import require_loss_of_output

__all__ = [
    "LossFunction",
    "Objective",
    "batches_of",
    "device_of",
    "evaluate",
    "few_samples",
    "flat_parameters",
    "require_deterministic",
]


def batches_of(data: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Batches (input, target) of ``data``, read by `pairs`, on a device, one after the other.

    Raises:
        TypeError: an iterator, which could be read only once, or something else than pairs.
        ValueError: there are no samples.
    """
    if isinstance(data, Iterator):
        raise TypeError("data is an iterator, which can be read only once: give a pair (inputs, targets) or a list")
    empty = True
    for pair in pairs(data):
        yield from read_batches([pair], device)
        empty = False
    if empty:
        raise ValueError("there is no data: give at least one batch (input, target)")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter or buffer lies; the CPU if it has none."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def flat_parameters(model: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
    """Trainable parameters by name, detached, and all of them as one vector, in that order.

    Raises:
        ValueError: there are none.
    """
    params = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    if not params:
        raise ValueError("the model has no trainable parameter: set requires_grad on those that span the landscape")
    return params, torch.cat([param.reshape(-1) for param in params.values()])


def few_samples(data: Any, device: torch.device) -> tuple[Any, Any]:
    """The first two samples of the first batch, the whole batch where input and target do not have as many."""
    x, y = next(batches_of(data, device))
    return (take(x, 0, 2), take(y, 0, 2)) if sample_count(x) == sample_count(y) else (x, y)


def require_deterministic(model: nn.Module, data: Any) -> None:
    """Refuse a model that draws at random.

    Raises:
        ValueError: layers such as dropout in training mode, or outputs that differ from call to call.
    """
    require_fixed_function(model)
    x, _ = few_samples(data, device_of(model))
    require_repeatable(lambda: evaluate(model, {}, x))


def evaluate(model: nn.Module, params: Mapping[str, Tensor], x: Any) -> Any:
    """The model's output with other parameters, and copies of its buffers.

    A lookup's gradient is dense and that of the loss: ``sparse`` changes its layout, ``scale_grad_by_freq`` itself.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = module.scale_grad_by_freq = False
    try:
        return functional_call(model, {**buffers, **params}, (x,))
    finally:
        for present, before in attributes:
            present.clear()
            present.update(before)


class Objective:
    """L(θ), its gradient and its Hessian's products; the mean over all samples of ``data``.

    Args:
        model: called as ``model(input)``, in the mode it is in.
        loss_fn: ``loss_fn(output, target)``, the mean over the batch.
        data: a pair (inputs, targets), or batches that can be read more than once.

    Raises:
        ValueError: no trainable parameter, no samples, or a random output; at the first value, a loss that reads the
            parameters themselves.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> objective = Objective(model, nn.functional.mse_loss, (torch.ones(1, 1), torch.zeros(1, 1)))
    >>> loss, gradient = objective.gradient(torch.tensor([3.0]))
    >>> loss.item(), gradient.tolist(), objective.products(torch.tensor([3.0]))(torch.tensor([1.0])).tolist()
    (9.0, [6.0], [2.0])
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, data: Any) -> None:
        require_deterministic(model, data)
        self.model, self.loss_fn, self.data = model, loss_fn, data
        self.params, self.theta = flat_parameters(model)
        self._asked = False

    def on(self, data: Any) -> Objective:
        """The same model and parameters on other data."""
        other = copy.copy(self)
        other.data = data
        return other

    def at_present(self) -> Objective:
        """The same data at the parameters that the model has by now."""
        require_fixed_function(self.model)
        other = copy.copy(self)
        other.params, other.theta = flat_parameters(self.model)
        return other

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """The vector θ cut into parameters."""
        parts = torch.split(theta, [param.numel() for param in self.params.values()])
        return {
            name: part.view_as(param).to(param.dtype)
            for (name, param), part in zip(self.params.items(), parts, strict=True)
        }

    @torch.no_grad()
    def value(self, theta: Tensor) -> Tensor:
        """L(θ), a scalar; it may be infinite or NaN."""
        params, total, n = self.named(theta), theta.new_zeros(()), 0
        for x, y in batches_of(self.data, theta.device):
            size = sample_count(x)
            total, n = total + size * self._loss(params, x, y), n + size
        return total / n

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ) and ∇L(θ)."""
        total, gradient, n = theta.new_zeros(()), torch.zeros_like(theta), 0
        for x, y in batches_of(self.data, theta.device):
            loss, _, g = self._differentiate(theta, x, y, create_graph=False)
            size = sample_count(x)
            total, gradient, n = total + size * loss.detach(), gradient.add_(g, alpha=size), n + size
        return total / n, gradient / n

    def products(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """Products v -> H(θ) v. One batch keeps its graph for all of them; several batches rebuild theirs in turn."""
        batches = list(batches_of(self.data, theta.device))
        n = sum(sample_count(x) for x, _ in batches)
        kept = self._differentiate(theta, *batches[0], create_graph=True) if len(batches) == 1 else None

        def product(v: Tensor) -> Tensor:
            total = torch.zeros_like(theta)
            for x, y in batches:
                _, leaf, gradient = kept or self._differentiate(theta, x, y, create_graph=True)
                if gradient.requires_grad:  # a loss linear in θ has no second derivative
                    (Hv,) = torch.autograd.grad(
                        gradient, leaf, v, retain_graph=kept is not None, materialize_grads=True
                    )
                    total.add_(Hv, alpha=sample_count(x) / n)
            return total

        return product

    def _loss(self, params: Mapping[str, Tensor], x: Any, y: Any) -> Tensor:
        z = evaluate(self.model, params, x)
        if not self._asked:  # of the first whole batch: a loss may hold what belongs to all of it
            require_loss_of_output(self.loss_fn, map_tensors(Tensor.detach, z), y, self.model.named_parameters())
            self._asked = True
        loss = self.loss_fn(z, y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError("loss_fn must return a scalar tensor, the mean over the batch")
        return loss.reshape(())

    def _differentiate(self, theta: Tensor, x: Any, y: Any, *, create_graph: bool) -> tuple[Tensor, Tensor, Tensor]:
        require_autograd()
        with torch.enable_grad(), twice_differentiable() if create_graph else nullcontext():
            leaf = theta.detach().requires_grad_()
            loss = self._loss(self.named(leaf), x, y)
            if not loss.requires_grad:
                raise ValueError(
                    "the loss does not depend on the trainable parameters: does the model or loss_fn detach its output?"
                )
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
        return loss, leaf, gradient
