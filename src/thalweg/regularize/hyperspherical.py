r"""Minimum hyperspherical energy: the filters of a layer as charges that repel each other on the unit sphere.

With w̃ᵢ = wᵢ / |wᵢ| the directions of the N filters (rows of the kernel matrix, biases aside),

    E_s(W) = mean_{i<j} f_s(d_ij),      f_0(d) = log(1/d),   f_s(d) = d^{-s}
    d_ij = |w̃ᵢ - w̃ⱼ|   or, angular (a0, a1, a2),   d_ij = arccos⟨w̃ᵢ, w̃ⱼ⟩ / π

The half-space form adds -wᵢ to the filters of a layer, so that opposite filters repel too.

Source: Liu, Lin, Liu, Liu, Yu, Dai, Song, "Learning towards minimum hyperspherical energy", NeurIPS 2018, equation 1,
and its published code (wy1iu/MHE): coefficient 1 for hidden layers (0.1 for a1 and a2), ten times that for the output
layer, which stays in full space; every convolution and the classifier; s = 0 unless another is asked for.

Deviations. The code adds 1e-4 to |wᵢ|², so its energy depends on the length of a filter: at |wᵢ| = 0.01 its cosines
are halved. Here it does not. The code's s = 0 takes log 1/d², twice the definition. The energy of equal directions is
infinite and its gradient undefined: d² is held above 1e-6, within which a pair feels no force (the code adds 1e-4 to
angles; its chords are kept apart by the first deviation only). Filters of zeros have no direction and are left out of
the mean. Groups of a convolution see different inputs, so only filters of one group are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from thalweg.regularize.layer import Layer, check_matrices
from thalweg.regularize.penalty import LayerPenalty, PenaltyOptions
from thalweg.regularize.selection import check_matched, shell_patterns

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HypersphericalEnergy", "hyperspherical_energy"]

Power = Literal[0, 1, 2]
CLOSEST = 1e-6  # of d²: below it a float32 chord is rounding error
OUTPUT_FACTOR = 10.0


def hyperspherical_energy(W: Tensor, *, power: Power = 0, angular: bool = False, half_space: bool = False) -> Tensor:
    """E_s of the rows of W: (N, d), or the mean over the pairs in each group of W: (g, N, d).

    Args:
        W: filters; rows of zeros are left out.
        power: s.
        angular: angles over π in place of chords.
        half_space: the energy of the 2N vectors w and -w; opposite pairs included, whose energy is constant.

    Returns:
        A scalar, 0 if there is no pair.

    Raises:
        ValueError: another power, or a tensor of another shape.

    >>> W = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])  # angles π/2, π/2, π
    >>> round(float(hyperspherical_energy(W, power=2)), 4)  # (1/2 + 1/2 + 1/4) / 3
    0.4167
    """
    if power not in (0, 1, 2):
        raise ValueError(f"power={power!r}: the energy is defined here for s = 0, 1 and 2")
    check_matrices(W)
    norm = torch.linalg.vector_norm(W, dim=-1, keepdim=True)
    alive = norm != 0  # NaN stays, and is seen
    directions = W / torch.where(alive, norm, 1.0)
    cosines = directions @ directions.mT
    pairs = torch.triu(alive & alive.mT, diagonal=1)
    energies = _energy(cosines, power, angular)
    count = pairs.sum()
    if half_space:
        # (i, j), (-i, -j), (i, -j), (-i, j) for every pair, and (i, -i) at angle π for every filter
        opposite = (0.0, 1.0, 1.0)[power] if angular else (-math.log(2), 1 / 2, 1 / 4)[power]
        energies = 2 * (energies + _energy(-cosines, power, angular))
        own, count = alive.sum(), 4 * count + alive.sum()
        total = torch.where(pairs, energies, 0.0).sum() + own * opposite
    else:
        total = torch.where(pairs, energies, 0.0).sum()
    energy: Tensor = total / count.clamp(min=1)
    return energy


def _energy(cosines: Tensor, power: Power, angular: bool) -> Tensor:
    """f_s(d) from the cosines."""
    if angular:
        inside = 1 - CLOSEST / 2  # the derivative of arccos is infinite at ±1
        d = torch.arccos(cosines.clamp(-inside, inside)) / math.pi
        return -torch.log(d) if power == 0 else torch.pow(d, -power)
    square = (2 - 2 * cosines).clamp(min=CLOSEST)
    return -torch.log(square) / 2 if power == 0 else torch.pow(square, -power / 2)


class HypersphericalEnergy(LayerPenalty):
    """MHE over a model's layers, with the published weights of hidden and output layers.

    Args:
        coefficient: of hidden layers; by default the published 1, or 0.1 for angular s = 1 and 2. Output layers get ten
            times as much.
        power: s of `hyperspherical_energy`.
        angular: angles in place of chords (a0, a1, a2).
        half_space: hidden layers repel -w too; output layers do not.
        output: patterns of the output layers' names, as for ``include``; by default the last `torch.nn.Linear` of the
            model; () for none.
        options: those of `LayerPenalty`.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 2, bias=False))
    >>> [row.coefficient for row in HypersphericalEnergy(power=2, angular=True).per_layer(model)]
    [0.1, 1.0]
    """

    def __init__(
        self,
        coefficient: float | None = None,
        *,
        power: Power = 0,
        angular: bool = False,
        half_space: bool = False,
        output: str | Sequence[str] | None = None,
        **options: Unpack[PenaltyOptions],
    ) -> None:
        if power not in (0, 1, 2):
            raise ValueError(f"power={power!r}: the energy is defined here for s = 0, 1 and 2")
        published = 0.1 if angular and power > 0 else 1.0
        super().__init__(published if coefficient is None else coefficient, **options)
        self.power: Power = power
        self.angular = angular
        self.half_space = half_space
        self.output = None if output is None else shell_patterns(output)

    def value(self, layer: Layer) -> Tensor:
        half_space = self.half_space and not self._is_output(layer)
        return hyperspherical_energy(layer.matrices, power=self.power, angular=self.angular, half_space=half_space)

    def factor(self, layer: Layer) -> float:
        return OUTPUT_FACTOR if self._is_output(layer) else 1.0

    def unsuitable(self, layer: Layer) -> str:
        return "" if layer.matrices.shape[1] > 1 else "one filter in a group: there is no pair to repel"

    def note(self, layer: Layer) -> str:
        dead = int((layer.matrices == 0).all(-1).sum())
        return f"{dead} filters of zeros left out" if dead else ""

    def _is_output(self, layer: Layer) -> bool:
        if self.output is None:
            return layer.final
        return any(layer.matches(pattern) for pattern in self.output.values())

    def _select(self, model: nn.Module) -> list[tuple[Layer, str]]:
        entries = super()._select(model)
        check_matched(self.output or {}, (layer for layer, _ in entries), f"{type(self).__name__}(output=...)")
        return entries
