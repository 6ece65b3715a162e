"""A multilayer perceptron whose every trainable weight is scale-invariant (seed 001, section 3).

    x -> [linear without bias - BN without affine parameters - ReLU] for each hidden layer -> frozen random linear layer

The smallest network with the phenomena of the seed: on 8x8 digits it shows three regimes and the periodic behaviour in
minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.nn.default_init import draw_default_
from thalweg.nn.last_layer import freeze_last_layer_

__all__ = ["MLP"]


class MLP(nn.Module):
    """Bias-free perceptron with batch normalization.

    Args:
        in_features: numbers in one input; images are flattened.
        hidden: widths of the hidden layers.
        classes: number of outputs.
        affine: the ordinary network: normalization with affine parameters, last layer trained.
        last_layer_norm: Frobenius norm of the frozen last layer; 10 for cross-entropy, smaller for squared error.
        generator: draws the initial weights (torch's defaults); None leaves them to the global random state.

    >>> model = MLP(64, (96, 96), generator=torch.Generator().manual_seed(0))
    >>> [name for name, weight in model.named_parameters() if weight.requires_grad]
    ['hidden.1.weight', 'hidden.4.weight']
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (96, 96),
        classes: int = 10,
        *,
        affine: bool = False,
        last_layer_norm: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        features = in_features
        for width in hidden:
            layers += [nn.Linear(features, width, bias=False), nn.BatchNorm1d(width, affine=affine), nn.ReLU()]
            features = width
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Linear(features, classes, bias=False)
        if generator is not None:
            draw_default_(self, generator)
        if not affine:
            freeze_last_layer_(self.last, last_layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``: (N, ...) with ``in_features`` numbers each."""
        logits: Tensor = self.last(self.hidden(x))
        return logits
