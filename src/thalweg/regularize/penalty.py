r"""What every penalty is: a scalar of a model's weights, the sum over its layers of c(t) · f_l · R(W_l).

R is the penalty of one layer, a pure function of its weight; c(t) is the coefficient after t optimizer steps; f_l is a
factor of the layer, 1 unless a penalty says otherwise. With ``every=N`` the sum is taken at every N-th step, N times as
strong: the same on average, at a fraction of the cost.

    penalty = SoftOrthogonality(1e-2, exclude="stem") + L2(5e-4)
    loss = cross_entropy(model(x), y) + penalty(model)        coupled: part of the loss
    penalty.step_(model, lr)                                  or decoupled: a step of its own beside the optimizer's
    penalty.advance()                                         once per optimizer step, as a scheduler's step

A penalty of one's own subclasses `LayerPenalty` and defines ``value(layer)``; optionally ``unsuitable(layer)`` (a
reason to leave the layer out), ``note(layer)`` (a remark in the table) and ``factor(layer)`` (f_l). It draws at random
from ``self.generator`` only, whose state is part of ``state_dict``; a penalty that needs map sizes reads
``layer.input_shape``, which `LayerPenalty.prepare` learns from one dry forward.

Rules that hold for all of them:

- Weights are read as the layer applies them: parametrizations and pruning masks are part of what is penalized. A weight
  shared by several layers counts once. Frozen weights are left out. Whatever is left out is in the table.
- The arithmetic is done in float32 or wider, with autocast off.
- Distributed training: add the penalty to the loss on **every** rank. Gradients are averaged, and the average of equal
  terms is the term. (Random penalties may draw differently on each rank: the average of unbiased terms is unbiased.)
  A step of its own is taken on every rank too, and nothing averages that: there random penalties need generators with
  one seed, or the ranks' weights drift apart.
- Gradient accumulation: add it once per optimizer step, not once per micro-batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg.operators import input_shapes
from thalweg.operators.weights import at_rest, uncompiled
from thalweg.regularize.additive import Penalty, PenaltySum
from thalweg.regularize.coefficients import Schedule, constant
from thalweg.regularize.layer import CONVOLUTIONS, TRANSPOSED, Layer
from thalweg.regularize.penalty_table import PenaltyRow, PenaltyTable
from thalweg.regularize.selection import check_matched, not_by_name, select, shell_patterns, unusable

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CONVOLUTIONS",
    "TRANSPOSED",
    "Layer",
    "LayerPenalty",
    "Penalty",
    "PenaltyOptions",
    "PenaltyRow",
    "PenaltySum",
    "PenaltyTable",
]

PATIENCE = 100  # evaluations at step 0 before a forgotten `advance` is suspected; a line search makes about twenty


class PenaltyOptions(TypedDict, total=False):
    """Options of every `LayerPenalty`, described there."""

    types: tuple[type[nn.Module], ...]
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    schedule: Schedule
    every: int
    generator: torch.Generator | None


class LayerPenalty(Penalty):
    """c(t) Σ_l f_l R(W_l) over the chosen layers of a model; subclasses say what R is.

    Args:
        coefficient: c >= 0.
        types: modules whose ``weight`` is regularized, a class or several; by default those of the penalty,
            `DEFAULT_TYPES`.
        include: shell patterns (``"blocks.*.conv1"``); a weight needs one that matches its module's name or its own.
        exclude: patterns of weights to leave out. A pattern that matches nothing in the model is an error.
        schedule: t -> factor of c, a pure function of the number of optimizer steps; see `thalweg.regularize.constant`.
        every: N: evaluate at every N-th step only, with N times the coefficient.
        generator: source of all random draws.

    Raises:
        ValueError: an option out of range; on evaluation, a model in which nothing is selected.
        TypeError: an option of another kind; on evaluation, something that is not a model.

    >>> class Trace(LayerPenalty):
    ...     def value(self, layer: Layer) -> Tensor:
    ...         return layer.weight.trace()
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> for layer in model:
    ...     _ = nn.init.eye_(layer.weight)
    >>> print(Trace(0.5, exclude="1").per_layer(model))
    | penalty | weight | shape | value | coefficient | note |
    |---|---|---|---|---|---|
    | Trace | 0.weight | 2 x 2 | 2 | 0.5 |  |
    <BLANKLINE>
    Not regularized:
    - Trace: 1.weight: excluded by '1'
    """

    DEFAULT_TYPES: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
    ALL_TENSORS: ClassVar[bool] = False  # regularize every parameter of the modules, not ``weight`` alone

    def __init__(
        self,
        coefficient: float = 1.0,
        *,
        types: tuple[type[nn.Module], ...] | None = None,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        schedule: Schedule | None = None,
        every: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= coefficient < float("inf"):
            raise ValueError(f"the coefficient of a penalty must be >= 0 and finite, got {coefficient}")
        if not (every >= 1 and every % 1 == 0):
            raise ValueError(f"every={every}: a penalty is evaluated at every N-th step with a whole N >= 1")
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule is a function of the number of steps, such as ramp(1000), got {schedule!r}")
        if not isinstance(generator, (torch.Generator, type(None))):
            raise TypeError(f"generator is a torch.Generator or None, got {generator!r}")
        self.coefficient = coefficient
        self.types = self.DEFAULT_TYPES if types is None else _classes(types)
        self.include, self.exclude = shell_patterns(include), shell_patterns(exclude)
        self.schedule = constant() if schedule is None else schedule
        self.every = every
        self.generator = generator
        self.input_shapes: dict[str, tuple[int, ...] | None] = {}  # None for what the dry forward did not reach
        self._timed = schedule is not None or every > 1
        self._evaluations = 0
        self.step = 0
        self.advance(0)

    # What a subclass defines

    def value(self, layer: Layer) -> Tensor:
        """R(W): a scalar, differentiable in the layer's weight."""
        raise NotImplementedError

    def unsuitable(self, layer: Layer) -> str:
        """Why the penalty has no meaning for this layer; "" if it has."""
        return ""

    def note(self, layer: Layer) -> str:
        """A remark for the table."""
        return ""

    def factor(self, layer: Layer) -> float:
        """f_l."""
        return 1.0

    # What every penalty does

    def forward(self, model: nn.Module) -> Tensor:
        if torch.compiler.is_compiling():
            return self._sum(model)
        self._suspect_forgotten_advance(4)  # past Module.__call__
        with parametrize.cached():  # a parametrized weight is computed once, however often it is looked at
            return self._sum(model)

    def _sum(self, model: nn.Module) -> Tensor:
        layers = self.layers(model)
        device = next(layers[0].module.parameters()).device
        total = torch.zeros((), device=device)
        if not self._due:
            return total
        with torch.autocast(device_type=device.type, enabled=False):
            for layer in layers:
                total = total + self.factor(layer) * self.value(layer).to(device)
        return self._scale.to(total.dtype) * total

    @torch.no_grad()
    def per_layer(self, model: nn.Module) -> PenaltyTable:
        model = uncompiled(model)
        state = None if self.generator is None else self.generator.get_state()
        devices = {param.device for param in model.parameters() if param.device.type != "cpu"}
        kind = next((device.type for device in devices), "cuda")
        with at_rest(model), torch.random.fork_rng([device.index for device in devices], device_type=kind):
            table = PenaltyTable(self._row(entry) for entry in self._select(model))
        if self.generator is not None and state is not None:
            self.generator.set_state(state)
        return table

    def prepare(self, model: nn.Module, sample: Tensor | tuple[Any, ...]) -> Self:
        shapes, model = input_shapes(model, sample), uncompiled(model)
        known = {*shapes, *shapes.unused}
        of = {module: shapes.get(name) for name, module in model.named_modules() if name in known}
        names = model.named_modules(remove_duplicate=False)  # a shared module is the same by all of its names
        self.input_shapes = {name: of[module] for name, module in names if module in of}
        return self

    def advance(self, steps: int = 1) -> None:
        self.step += steps
        self._due = self.step % self.every == 0
        # A tensor, so that a compiled penalty is not compiled anew for every value of the schedule.
        scale = self.every * self.coefficient * self.schedule(self.step)
        with torch.inference_mode(False):  # it will be part of a graph
            self._scale = torch.tensor(scale, dtype=torch.float64, device="cpu")  # mixes with any device's scalars

    def layers(self, model: nn.Module) -> list[Layer]:
        """The weights that are regularized.

        Raises:
            ValueError: none is, or a pattern matches nothing.
        """
        entries = self._select(model)
        layers = [layer for layer, reason in entries if not reason]
        if not layers:
            reasons = "; ".join(f"{layer.path}: {why}" for layer, why in entries[:5]) or "it has no parameters"
            raise ValueError(f"{type(self).__name__} regularizes no weight of the given model ({reasons})")
        return layers

    def get_extra_state(self) -> dict[str, Any]:
        state = None if self.generator is None else self.generator.get_state()
        return {"step": self.step, "generator": state, "input_shapes": self.input_shapes}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        missing = self.get_extra_state().keys() - state.keys()
        if missing:
            raise ValueError(
                f"this is not the state of a {type(self).__name__}: it has no {', '.join(sorted(missing))}; load the "
                "state of a penalty that was made alike"
            )
        if (self.generator is None) != (state["generator"] is None):
            saved = "without one" if state["generator"] is None else "with one"
            raise ValueError(
                f"{type(self).__name__} has generator={self.generator} and was saved {saved}, so that its draws would "
                "not be continued: make it as it was saved"
            )
        self.step, self.input_shapes = state["step"], dict(state["input_shapes"])
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())
        self.advance(0)

    def extra_repr(self) -> str:
        return f"{self.coefficient}, include={[*self.include]}, exclude={[*self.exclude]}, every={self.every}"

    def _select(self, model: nn.Module) -> list[tuple[Layer, str]]:
        """Every weight of the model and why it is left out, "" if it is not."""
        entries = select(model, self.input_shapes, self._reason, once="counted")
        check_matched({**self.include, **self.exclude}, (layer for layer, _ in entries), type(self).__name__)
        return entries

    def _reason(self, layer: Layer, parts: Sequence[Tensor]) -> str:
        """Why a weight is left out; "" if it is not."""
        if not isinstance(layer.module, self.types):
            return f"{type(layer.module).__name__} is not among the types of this penalty"
        if not self.ALL_TENSORS and layer.not_the_weight:
            return layer.not_the_weight
        if not self.ALL_TENSORS and layer.weight.ndim < 2:
            return "not a matrix: it has fewer than two dimensions"
        return not_by_name(layer, self.include, self.exclude) or unusable(layer, parts) or self.unsuitable(layer)

    def _row(self, entry: tuple[Layer, str]) -> PenaltyRow:
        layer, reason = entry
        weight, penalty = layer.weight, type(self).__name__
        if reason:
            return PenaltyRow(penalty, layer.path, tuple(weight.shape), None, 0.0, reason)
        with torch.autocast(device_type=weight.device.type, enabled=False):
            value = float(self.value(layer))
        coefficient = self.coefficient * self.schedule(self.step) * self.factor(layer)
        note = self.note(layer) if weight.isfinite().all() else "the weight is not finite"
        return PenaltyRow(penalty, layer.path, tuple(weight.shape), value, coefficient, note)

    def _suspect_forgotten_advance(self, stacklevel: int) -> None:
        if not self._timed or self.step:
            return
        self._evaluations += 1
        if self._evaluations == PATIENCE:
            warnings.warn(
                f"{type(self).__name__} has a schedule or every > 1 and was evaluated {PATIENCE} times at step 0: call "
                "its advance() once per optimizer step",
                stacklevel=stacklevel + 1,
            )


def _classes(types: Any) -> tuple[type[nn.Module], ...]:
    given = (types,) if isinstance(types, type) else tuple(types)
    if not all(isinstance(kind, type) for kind in given):
        raise TypeError(f"types are classes of modules, such as (nn.Linear, nn.Conv2d), got {types!r}")
    return given
