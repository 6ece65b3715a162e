r"""The frame regularizer of seed 002: keep the eigenvalues of every layer's Gram matrix in [A, B].

    A |z|² <= Σ_k <z, w_k>² = |W z|² <= B |z|²  for all z    <=>    A <= λ_i(V) <= B,  V = WᵀW     seed 002, slides 8-10

``form="gershgorin"`` is the seed's penalty: rows of V must be diagonally dominant within [A, B] (`frame_penalty`).
``form="spectral"`` puts the same hinge on the eigenvalues themselves (`thalweg.regularize.spectral`): beyond the seed.

The gradient of the seed's penalty grows with width, and a step that is harmless to one layer throws another away. Its
decoupled step needs no such constant, because the least value is known, R = 0: it is Polyak's, for each layer
(`thalweg.regularize.polyak`). Signs of entries v_ij that dance around 0 lengthen ∇R and shorten it: wide layers move
slowly.

What the slides leave open, and what is done here:

- For m < n no A > 0 exists: rank V <= m. ``side="auto"`` then bounds the spectrum of WWᵀ instead (no output direction
  collapses), and the table says how many input dimensions are lost; ``"upper"`` keeps B only; ``"skip"`` leaves such
  layers out. "Every layer is invertible" (slide 9) fails for 7 of 37 layers of ResNet-34 and 22 of 54 of ResNet-50.
- Diagonal dominance is sufficient, not necessary, and the gap grows with width: from He's initialization the seed's
  penalty shrinks the weights instead of building a frame, because W = 0 is a stationary point with R = A². Start from
  `frame_init_`, or use the spectral form; a start that would collapse is warned of.
- Convolutions are block-Toeplitz with borders, which `thalweg.regularize.circles` sums exactly;
  ``boundary="interior"`` leaves borders out: an upper estimate on small maps (1.7 times R on 8 x 8, 3.7 on 4 x 4).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg.operators.weights import at_rest
from thalweg.regularize.additive import check_rate
from thalweg.regularize.collapse import radius_ratio, warn_of_collapse
from thalweg.regularize.gershgorin import frame_penalty, gershgorin_penalty
from thalweg.regularize.gram import (
    BOUNDARIES,
    Boundary,
    GramSide,
    LayerMap,
    Side,
    check_bounds,
    gram_side,
    unsupported,
)
from thalweg.regularize.layer import CONVOLUTIONS, Layer
from thalweg.regularize.penalty import LayerPenalty, PenaltyOptions
from thalweg.regularize.penalty_table import PenaltyTable
from thalweg.regularize.polyak import polyak_step_
from thalweg.regularize.probing import layer_estimate, layer_factor

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FrameRegularizer", "frame_penalty"]


class FrameRegularizer(LayerPenalty):
    """Keep the spectrum of every layer's Gram matrix in [A, B], by Gershgorin's circles or by the eigenvalues.

    The default is the seed's penalty, exact, at every step. Its cost is divided by ``every=4`` (the full penalty every
    fourth step, four times as strong: a fourth of the γ that is stable) or ``sample=1/8`` (an eighth of the row
    channels at each step: unbiased but noisy; eight steps draw all of them, and where eight divides their number the
    mean has no noise).

    Decoupled, ``step_(model, 1.0)`` after every step of the optimizer, the Gershgorin form makes Polyak's step in each
    layer, with a coefficient of 1: no constant depends on the layers. ``every`` and ``sample`` weaken it too far.

    Convolutions need the sizes of their maps: call ``prepare(model, sample)`` once.

    Args:
        lower: A >= 0.
        upper: B >= A.
        coefficient: γ. Gershgorin form, A = .5, B = 2, part of the loss: .01 to .1 at every step; the gradient grows
            with width, so scale γ down or clip. Spectral form: 1, with ``step_(model, 0.2)`` after every step.
        form: "gershgorin" or "spectral".
        boundary: of the Gershgorin form: "exact" or "interior".
        side: which Gram matrix; see `thalweg.regularize.gram_side`.
        sample: of the Gershgorin form: share of the row channels to draw at each step, in random order round by round;
            1/sample, rounded up, is the number of draws in a round.
        probes: of the spectral form: at most so many random images a layer, as its noise demands.
        margin: the spectral form and all of `step_` aim at [A (1 + margin), B (1 - margin)], so that noise and the loss
            do not lead out of [A, B].
        options: those of `LayerPenalty`; ``generator`` draws samples and probes.

    Raises:
        ValueError: an option out of range.

    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.5]]))
    >>> FrameRegularizer(1.0, 2.0)(model).detach()
    tensor(2.2812)
    """

    DEFAULT_TYPES: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, *CONVOLUTIONS)

    def __init__(
        self,
        lower: float,
        upper: float,
        coefficient: float = 1.0,
        *,
        form: Literal["gershgorin", "spectral"] = "gershgorin",
        boundary: Boundary = "exact",
        side: Side = "auto",
        sample: float = 1.0,
        probes: int = 6,
        margin: float = 0.1,
        **options: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__(coefficient, **options)
        check_bounds(lower, upper)
        gram_side(1, 1, side)
        if form not in ("gershgorin", "spectral") or boundary not in BOUNDARIES:
            raise ValueError(
                "form must be 'gershgorin' or 'spectral' and boundary 'exact' or 'interior', got "
                f"form={form!r}, boundary={boundary!r}"
            )
        if not 0 < sample <= 1 or probes < 1 or not 0 <= margin < 1:
            raise ValueError(
                f"expected 0 < sample <= 1, probes >= 1 and 0 <= margin < 1, got sample={sample}, probes={probes}, "
                f"margin={margin}"
            )
        self.lower, self.upper, self.form, self.boundary, self.side = lower, upper, form, boundary, side
        self.sample, self.probes, self.margin = sample, probes, margin
        self._vectors: dict[str, Tensor] = {}  # of the power steps, by the weight's name
        self._parts: dict[str, list[Tensor]] = {}  # of the row channels, to be drawn in this round
        self._start_checked = False
        if form == "spectral":
            self._aim()

    def forward(self, model: nn.Module) -> Tensor:
        if torch.compiler.is_compiling():
            if self.form == "spectral" or self.sample < 1:  # it branches on λ_max, or on the shapes of what it draws
                value: Tensor = self._outside_the_graph(model)
                return value
        else:
            self._check_start(model, 4)  # past Module.__call__
        return super().forward(model)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _outside_the_graph(self, model: nn.Module) -> Tensor:
        return self.forward(model)

    def value(self, layer: Layer) -> Tensor:
        if self.form == "spectral":
            return self._spectral_value(layer)
        return self._gershgorin_value(layer, self.lower, self.upper)

    def step_(self, model: nn.Module, lr: float) -> None:
        """Move the weights past the optimizer: `Penalty.step_`; in the Gershgorin form by Polyak's step in each layer.

        Args:
            model: the model.
            lr: η, times the coefficient. Gershgorin form: a share of Polyak's step, 1 at best, and no N times as much
                with ``every=N``. Spectral form: 0.1 to 0.2. In both it stays constant while the optimizer's decays.

        Raises:
            ValueError: the margin leaves nothing of [A, B], or a negative rate.
        """
        if self.form == "spectral":
            super().step_(model, lr)
            return
        check_rate(lr)
        aim = self._aim()
        self._check_start(model, 2)
        self._suspect_forgotten_advance(2)
        if not self._due:
            return
        with parametrize.cached():
            layers = self.layers(model)
        for layer in layers:
            params = [param for param in layer.module.parameters() if param.requires_grad]
            autocast = torch.autocast(device_type=params[0].device.type, enabled=False)
            with parametrize.cached(), torch.inference_mode(False), torch.enable_grad(), autocast:
                value = self._gershgorin_value(layer, *aim)
            polyak_step_(value, params, lr * self.coefficient * self.schedule(self.step))

    def _gershgorin_value(self, layer: Layer, lower: float, upper: float) -> Tensor:
        layer_map, side = self._geometry(layer)
        kernel, rows = layer.kernel, None
        if self.sample < 1:
            rows = self._draw(layer.path, kernel.shape[1 if side.gram == "row" else 2], kernel.device)
        return gershgorin_penalty(
            kernel, layer_map.axes, side.gram, lower if side.bounded_below else -math.inf, upper, rows
        )

    def _draw(self, path: str, channels: int, device: torch.device) -> Tensor:
        """Row channels, each as likely as any other, and each of them once in a round."""
        if not self._parts.get(path):
            source = device if self.generator is None else self.generator.device
            order = torch.randperm(channels, generator=self.generator, device=source).to(device)
            self._parts[path] = list(order.tensor_split(min(channels, math.ceil(1 / self.sample))))
        return self._parts[path].pop().to(device)  # a round may go on where its state was loaded

    def unsuitable(self, layer: Layer) -> str:
        reason = unsupported(layer.module)
        if reason:
            return reason
        if self._needs_map and isinstance(layer.module, CONVOLUTIONS) and layer.input_shape is None:
            if layer.name in self.input_shapes:
                return "its input map is unknown: the forward pass of prepare() did not reach it"
            alternative = "" if self.form == "spectral" else ", or choose boundary='interior'"
            raise ValueError(
                f"the size of the input map of {layer.path} is not known: call prepare(model, sample) with the very "
                f"model that is regularized, since layers go by their names{alternative}"
            )
        _, side = self._geometry(layer)
        return "" if side.gram else side.note

    def note(self, layer: Layer) -> str:
        return self._geometry(layer)[1].note

    def factor(self, layer: Layer) -> float:
        if self.form != "spectral":
            return 1.0
        return layer_factor(*self._geometry(layer), self.probes)

    def per_layer(self, model: nn.Module) -> PenaltyTable:
        kept = self.sample, dict(self._vectors)
        self.sample = 1.0
        try:
            return super().per_layer(model)
        finally:
            self.sample, self._vectors = kept

    def get_extra_state(self) -> dict[str, Any]:
        parts = {path: list(left) for path, left in self._parts.items()}
        return super().get_extra_state() | {"vectors": dict(self._vectors), "parts": parts}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._vectors = dict(state["vectors"])
        self._parts = {path: list(left) for path, left in state["parts"].items()}

    def extra_repr(self) -> str:
        return f"{self.lower}, {self.upper}, {super().extra_repr()}, form={self.form!r}, side={self.side!r}"

    @property
    def _needs_map(self) -> bool:
        return self.form == "spectral" or self.boundary == "exact"

    def _geometry(self, layer: Layer) -> tuple[LayerMap, GramSide]:
        boundary = "exact" if self.form == "spectral" else self.boundary
        layer_map = LayerMap.of_module(layer.module, layer.weight, layer.input_shape, boundary)
        return layer_map, layer_map.gram_side(self.side)

    def _spectral_value(self, layer: Layer) -> Tensor:
        lower, upper = self._aim()
        value, largest, vector = layer_estimate(
            layer,
            *self._geometry(layer),
            lower=lower,
            upper=upper,
            probes=self.probes,
            vector=self._vectors.get(layer.path),
            generator=self.generator,
        )
        if 0 < largest < math.inf:
            self._vectors[layer.path] = vector
        # Far above B the hinge is steep; this keeps the step of the largest singular value below its size.
        scale = min(1.0, self.upper / largest) if largest > 0 else 1.0
        return value.detach() + scale * (value - value.detach())

    def _aim(self) -> tuple[float, float]:
        """The bounds with the margin."""
        lower, upper = self.lower * (1 + self.margin), self.upper * (1 - self.margin)
        if lower > upper:
            raise ValueError(
                f"margin={self.margin} leaves nothing of [A, B] = [{self.lower}, {self.upper}]: choose a smaller one"
            )
        return lower, upper

    def _check_start(self, model: nn.Module, stacklevel: int) -> None:
        if self._start_checked:
            return
        self._start_checked = True
        ratios = {}
        if self.form == "gershgorin" and self.lower > 0:
            with at_rest(model), torch.no_grad(), parametrize.cached():
                for layer in self.layers(model):
                    layer_map, side = self._geometry(layer)
                    with torch.autocast(device_type=layer.weight.device.type, enabled=False):
                        if side.bounded_below:
                            ratios[layer.path] = radius_ratio(layer.kernel, layer_map.axes, side.gram)
        warn_of_collapse(ratios, self.lower, self.upper, stacklevel=stacklevel + 1)
