"""A model's twin: a float64 copy in training mode, whose weights and eps may be changed at will."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LossFunction", "Twin", "detached_copy", "own_random_state"]

LossFunction = Callable[[Any, Any], Tensor]


def detached_copy(model: nn.Module) -> nn.Module:
    """Deep copy of a model, also where modules hold tensors that autograd made (weight normalization by hooks does).

    >>> layer = nn.Linear(2, 2)
    >>> layer.derived = 2 * layer.weight  # copy.deepcopy(layer) would refuse
    >>> detached_copy(layer).derived.requires_grad
    False
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


@contextmanager
def own_random_state(model: nn.Module) -> Iterator[None]:
    """Seed torch's random state on the model's devices with 0, and put back what it was on leaving."""
    devices = {param.device for param in model.parameters() if param.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng([device.index for device in devices], device_type=kind):
        _seed(model)
        yield


def _seed(model: nn.Module) -> None:
    # torch.manual_seed would also reach devices whose state nobody puts back
    torch.default_generator.manual_seed(0)
    for device in {param.device for param in model.parameters() if param.device.type != "cpu"}:
        torch.get_device_module(device).default_generators[device.index].manual_seed(0)


class Twin:
    """Float64 copy of ``model`` in training mode, with the first batches at hand.

    Every evaluation starts from the same buffers and the same random state (dropout), so that it is a function of the
    weights alone. That seeds torch's random state: use it inside `own_random_state`.

    Args:
        model: any model; called as ``model(input)``.
        loss_fn: ``loss_fn(output, target)``, a scalar.
        batches: pairs (input, target) of tensors, or of tuples, lists and dicts of tensors.
        count: how many batches to read at most.
        samples: how many samples to keep of each batch (first axis); None keeps all.

    Raises:
        ValueError: there are no batches.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, batches: Iterable[Any], *, count: int, samples: int | None
    ) -> None:
        self.model = detached_copy(model).to(torch.float64).train()
        self.loss_fn = detached_copy(loss_fn).to(torch.float64) if isinstance(loss_fn, nn.Module) else loss_fn
        self.params = dict(self.model.named_parameters())
        device = next(iter(self.params.values())).device
        self.batches = [
            (_prepare(x, device, samples), _prepare(target, device, samples)) for x, target in islice(batches, count)
        ]
        if not self.batches:
            raise ValueError("there are no batches: give at least one pair (input, target)")
        self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self._eps = [
            (module, name, value)
            for module in self.model.modules()
            for name, value in vars(module).items()
            if "eps" in name.lower() and isinstance(value, float)
        ]

    def use_eps(self, eps: float | None) -> None:
        """Set every eps a module keeps as an attribute; None brings back those of training."""
        for module, name, value in self._eps:
            setattr(module, name, value if eps is None else eps)

    def loss(self, k: int) -> Tensor:
        """Loss of batch k (modulo the number of batches).

        Raises:
            ValueError: it is not finite or not a scalar, or the batch has one sample where a normalization needs more.
        """
        for buffer, saved in self._buffers:
            buffer.detach().copy_(saved)
        _seed(self.model)
        x, target = self.batches[k % len(self.batches)]
        try:
            loss = self.loss_fn(self.model(x), target)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a batch has too few samples for batch statistics: normalization needs at least two values per "
                "channel; give larger batches"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError("loss_fn must return a scalar tensor, such as the mean over the batch")
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss of batch {k % len(self.batches)} is {loss.item()}: give weights and data with a finite loss"
            )
        return loss

    @contextmanager
    def weights(self, changes: dict[str, Tensor]) -> Iterator[None]:
        """Replace the named weights for a while."""
        saved = {name: self.params[name].detach().clone() for name in changes}
        self._write(changes)
        try:
            yield
        finally:
            self._write(saved)

    def _write(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.params[name].copy_(value)

    @torch.no_grad()
    def change(self, k: int, scales: dict[str, float | Tensor]) -> float:
        """|loss(scaled weights) - loss| / |loss| on batch k."""
        before = self.loss(k)
        with self.weights({name: self.params[name] * alpha for name, alpha in scales.items()}):
            after = self.loss(k)
        return float((after - before).abs() / before.abs().clamp_min(torch.finfo(before.dtype).tiny))

    def perturbed(self, names: Iterable[str], generator: torch.Generator) -> dict[str, Tensor]:
        """Random weights near the model's: w exp(0.3 ξ), which keeps signs; 0.1 ξ where all of a tensor is zero.

        A gradient orthogonal to its weight by accident (weights that start at zero are) is not so here.
        """
        drawn = {}
        for name in names:
            w = self.params[name].detach()
            noise = torch.randn(w.shape, generator=generator, device=generator.device, dtype=w.dtype).to(w.device)
            drawn[name] = w * torch.exp(0.3 * noise) if bool(w.any()) else 0.1 * noise
        return drawn


def _prepare(data: Any, device: torch.device, samples: int | None) -> Any:
    """Tensors on ``device``, floating ones in float64, the first samples of each."""
    if isinstance(data, Tensor):
        data = data.detach().to(device, torch.float64 if data.is_floating_point() else data.dtype)
        return data[:samples] if data.ndim else data
    if isinstance(data, dict):
        return {key: _prepare(value, device, samples) for key, value in data.items()}
    if isinstance(data, (tuple, list)):
        return [_prepare(value, device, samples) for value in data]
    return data
