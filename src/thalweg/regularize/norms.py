r"""L1 and L2: the penalties of every parameter by its size, with the steps that are their own.

    L2   R(w) = ½ Σ w²    gradient w: torch's ``weight_decay``; own step w ← (1 - η c) w: AdamW's
    L1   R(w) = Σ |w|     gradient sign(w); own step w ← sign(w) max(|w| - η c, 0): the proximal step, exact zeros

A gradient step of L1 never reaches zero but jumps about it by η c; the proximal step (soft threshold) does.

Both take every parameter of every module, biases and normalization included, as ``weight_decay`` does on
``model.parameters()``; ``types=(nn.Linear, nn.Conv2d), exclude="*.bias"`` leaves the weights of layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.regularize.additive import check_rate
from thalweg.regularize.layer import Layer
from thalweg.regularize.penalty import LayerPenalty

__all__ = ["L1", "L2", "soft_threshold"]


def soft_threshold(w: Tensor, threshold: float) -> Tensor:
    """Argmin_z ½ |z - w|² + threshold · Σ |z|, of the shape of w.

    Raises:
        ValueError: a negative threshold, for which that is another formula.

    >>> soft_threshold(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.,  0.,  2.])
    """
    if threshold < 0:
        raise ValueError(f"a threshold must be >= 0, got {threshold}")
    return w.sign() * (w.abs() - threshold).clamp(min=0)


class L2(LayerPenalty):
    """c/2 Σ w² over all parameters: with coefficient c in the loss, exactly SGD's ``weight_decay=c``.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0)
    >>> L2(0.5).step_(model, lr=0.1)
    >>> round(model.weight.item(), 6)  # (1 - 0.1 · 0.5) 2
    1.9
    """

    DEFAULT_TYPES = (nn.Module,)
    ALL_TENSORS = True

    def value(self, layer: Layer) -> Tensor:
        return 0.5 * layer.weight.square().sum()


class L1(LayerPenalty):
    """c Σ |w| over all parameters.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 0.01)
    >>> L1(0.5).step_(model, lr=0.1)  # |w| < η c
    >>> model.weight.item()
    0.0
    """

    DEFAULT_TYPES = (nn.Module,)
    ALL_TENSORS = True

    def value(self, layer: Layer) -> Tensor:
        return layer.weight.abs().sum()

    @torch.no_grad()
    def step_(self, model: nn.Module, lr: float) -> None:
        """The proximal step of every parameter: soft threshold at lr · c(t).

        Raises:
            ValueError: a negative rate, or a weight that is computed from other parameters, for which there is no such
                closed form.
        """
        check_rate(lr)
        layers = self.layers(model)
        for layer in layers:
            if layer.module._parameters.get(layer.tensor) is None:
                raise ValueError(
                    f"L1 has no proximal step for {layer.path}, which is parametrized or pruned: exclude it, or add "
                    "the penalty to the loss"
                )
        self._suspect_forgotten_advance(2)
        if not self._due:
            return
        for layer in layers:
            param = layer.module.get_parameter(layer.tensor)
            param.copy_(soft_threshold(param, lr * float(self._scale) * self.factor(layer)))
