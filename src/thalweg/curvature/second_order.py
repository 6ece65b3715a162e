r"""The Hessian pass: one tangent sweep forward and one backward over activations that are kept.

A network is a composition of nodes a = f(h₁, h₂, …), some of whose inputs are parameters. Linearized at its inputs, a
node is three maps (`Node`):

    push   ḣ     -> J ḣ                  tangents go forward
    pull   ā     -> Jᵀ ā                 adjoints go backward, ā = ∂L/∂a
    bend   ā, ḣ  -> ∇²⟨ā, f⟩ ḣ           its own curvature; zero for ReLU, pooling, sums

With z the output and A = ∇²_z L, the derivative of back-propagation along v (Pearlmutter 1994) is

    ȧ = push(ḣ)                          from ḣ = v at the parameters, to ż
    h̄' = pull(ā') + bend(ā, ḣ)           from ā' = A ż at the output, to H v at the parameters

The two terms of the second line are H_O v = Jᵀ A J v (Gauss-Newton: no bend, ā not needed) and H_F v (remainder: ā' = 0
at the output), equation (4) of seed 003. With F the work of a forward pass a gradient is 3 F; keeping h and ā, H v is
6 F = 2 gradients and H_O v is 4 F = 1.33; computing them afresh adds 3 F and F.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Kind", "LossHead", "Node", "Tape"]

Kind = Literal["hessian", "ggn", "remainder"]
Slot = Any
Maybe = Tensor | None


@dataclass
class Node:
    """One operation of the network, linearized at its inputs; None stands for a tangent or adjoint that is zero.

    Attributes:
        value: a = f(h₁, …).
        push: J: one tangent per operand, at least one not None.
        pull: Jᵀ: one adjoint per operand, None where nobody wants it.
        bend: ∇²⟨ā, f⟩, tensors of its own making; None where f is linear around here.
    """

    value: Tensor
    push: Callable[..., Tensor]
    pull: Callable[[Tensor], Sequence[Maybe]]
    bend: Callable[..., Sequence[Maybe]] | None = None


class LossHead:
    """L as a function of the output z alone: its value, its gradient ∂L/∂z, and products with A = ∇²_z L.

    Raises:
        ValueError: the loss is no scalar or does not depend on z.
    """

    def __init__(self, loss: Callable[[Tensor], Tensor], z: Tensor) -> None:
        with torch.enable_grad():
            self._z = z.detach().requires_grad_()
            value = loss(self._z)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError("loss_fn must return a scalar tensor, such as the mean over the batch")
            if not value.requires_grad:
                raise ValueError("the loss does not depend on the model's output: does loss_fn detach it?")
            (self._gradient,) = torch.autograd.grad(value.reshape(()), self._z, create_graph=True)
        self._loss = loss
        self.value, self.gradient = value.detach().reshape(()), self._gradient.detach()

    @property
    def output(self) -> Tensor:
        """The output z."""
        return self._z.detach()

    def curve(self, tangent: Tensor) -> Maybe:
        """A ż; None for a loss that is linear in z.

        Raises:
            ValueError: the loss has no second derivative that autograd knows.
        """
        if not self._gradient.requires_grad:
            return None
        try:
            (product,) = torch.autograd.grad(self._gradient, self._z, tangent, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise ValueError(f"the loss is not twice differentiable: {error}") from error
        return None if product is None else product.detach()

    def check_curvature(self) -> None:
        """Refuse a loss with kinks instead of curvature, such as L1: A = 0 everywhere, and yet the gradient varies.

        Raises:
            ValueError: so it is, or autograd knows no second derivative.
        """
        z = self._z.detach()
        pattern = torch.linspace(-1, 1, max(z.numel(), 2), dtype=z.dtype, device=z.device)[: z.numel()].view(z.shape)
        if _is_zero(self.curve(pattern)):
            others = [LossHead(self._loss, shift * pattern) for shift in (1.0, -1.0, 1e3, -1e3)]
            flat = all(_is_zero(other.curve(pattern)) for other in others)
            if flat and any(not torch.equal(other.gradient, others[0].gradient) for other in others):
                raise ValueError(
                    "the loss is not twice differentiable: its gradient jumps between pieces where it is linear in the "
                    "model's output; smooth it, as smooth_l1_loss smooths l1_loss"
                )


def _is_zero(product: Maybe) -> bool:
    return product is None or not bool(product.any())


@dataclass
class _Entry:
    node: Node
    inputs: tuple[Slot, ...]
    output: Slot
    adjoint: Maybe = None
    release: tuple[Slot, ...] = ()


class Tape:
    """The nodes of one chunk of data in the order of their evaluation, and the sweeps over them.

    Args:
        entries: (node, slots of its operands, slot of its value); slots are any hashable names, None a constant.
        params: slots of each parameter, more than one where it is shared.
        output: slot of z.
        head: the loss at z.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Node, tuple[Slot, ...], Slot]],
        params: Sequence[Sequence[Slot]],
        output: Slot,
        head: LossHead,
    ) -> None:
        self._entries = [_Entry(node, inputs, slot) for node, inputs, slot in entries]
        self._params, self._output, self.head = params, output, head
        self._has_adjoints = False
        seen = {output}
        for entry in reversed(self._entries):  # a tangent is let go after its last reader, unless a bend wants it back
            entry.release = tuple({slot for slot in entry.inputs if slot is not None and slot not in seen})
            seen.update(entry.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes of all values along the tape."""
        return sum(entry.node.value.nbytes for entry in self._entries)

    @torch.no_grad()
    def gradient(self) -> list[Maybe]:
        """∂L/∂θ by plain back-propagation; keeps the adjoints that the bends need."""
        self._has_adjoints = True
        return self._backward(self.head.gradient, keep=True)

    @torch.no_grad()
    def pull(self, adjoint: Tensor) -> list[Maybe]:
        """Jᵀ u for an adjoint u of the output."""
        return self._backward(adjoint, keep=False)

    def _backward(self, adjoint: Tensor, *, keep: bool) -> list[Maybe]:
        adjoints: dict[Slot, Maybe] = {self._output: adjoint}
        for entry in reversed(self._entries):
            at = adjoints.pop(entry.output, None)
            if at is not None:
                if keep and entry.node.bend is not None:
                    entry.adjoint = at
                _collect(adjoints, entry.inputs, entry.node.pull(at))
        return [_total(adjoints, slots) for slots in self._params]

    @torch.no_grad()
    def product(self, tangent: Sequence[Tensor], kind: Kind) -> list[Maybe]:
        """H v, H_O v or H_F v for v given parameter by parameter."""
        bent = kind != "ggn"
        if bent and not self._has_adjoints:
            self.gradient()
        tangents: dict[Slot, Tensor] = {
            slot: v for slots, v in zip(self._params, tangent, strict=True) for slot in slots
        }
        inputs: list[list[Maybe]] = []  # the tangents each bend wants back
        for entry in self._entries:
            dots = [tangents.get(slot) for slot in entry.inputs]
            if any(dot is not None for dot in dots):
                tangents[entry.output] = entry.node.push(*dots)
            inputs.append(dots if bent and entry.adjoint is not None else [])
            for slot in entry.release:
                tangents.pop(slot, None)
        dz = tangents.get(self._output)
        start = None if dz is None or kind == "remainder" else self.head.curve(dz)
        adjoints: dict[Slot, Maybe] = {} if start is None else {self._output: start}
        for entry in reversed(self._entries):
            dots, adjoint = inputs.pop(), adjoints.pop(entry.output, None)
            if adjoint is not None:
                _collect(adjoints, entry.inputs, entry.node.pull(adjoint))
            if any(dot is not None for dot in dots):
                assert entry.node.bend is not None
                _collect(adjoints, entry.inputs, entry.node.bend(entry.adjoint, *dots), own=True)
        return [_total(adjoints, slots) for slots in self._params]


def _collect(adjoints: dict[Slot, Maybe], slots: Sequence[Slot], parts: Sequence[Maybe], *, own: bool = False) -> None:
    """Add the parts to the adjoints of their slots, into the memory of ``parts`` where it is their ``own``."""
    for slot, part in zip(slots, parts, strict=True):
        if part is None or slot is None:
            continue
        before = adjoints.get(slot)
        if before is None:
            adjoints[slot] = part
        else:
            adjoints[slot] = part.add_(before) if own else before + part


def _total(adjoints: dict[Slot, Maybe], slots: Sequence[Slot]) -> Maybe:
    parts = [part for slot in slots if (part := adjoints.get(slot)) is not None]
    return sum(parts[1:], parts[0]) if parts else None
