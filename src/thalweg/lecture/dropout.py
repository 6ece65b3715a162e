r"""Classic and inverted dropout, and the average over all 2ᴺ thinned networks.

    classic    training: y = r ⊙ x,  prediction: y = (1 - p) x          seed 004, "Regularization: dropout"
    inverted   training: y = r ⊙ x / (1 - p),  prediction: y = x        the same section; `torch.nn.Dropout`

where r keeps each neuron with probability 1 - p. Both are equal in expectation to their own prediction; the classic
form is not in torch. "Dropout is equivalent to averaging 2ᴺ models": exact for a linear output, and for softmax of a
linear output if the mean is the renormalized geometric one; beyond a nonlinearity scaling by 1 - p only approximates
the average. The 2ᴺ models have equal weight for p = 1/2 only: a mask that drops j neurons weighs pʲ (1 - p)ᴺ⁻ʲ.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "all_masks",
    "classic_dropout",
    "geometric_average",
    "inverted_dropout",
    "keep_mask",
    "mask_average",
    "mask_probabilities",
]


def _check(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"a neuron is dropped with probability {p}: p must be at least 0 and below 1")


def keep_mask(x: Tensor, p: float, *, generator: torch.Generator | None = None) -> Tensor:
    """r: independent zeros with probability p and ones otherwise, in x's shape, dtype and device.

    >>> keep_mask(torch.ones(4), 0.5, generator=torch.Generator().manual_seed(2)).sum() <= 4
    tensor(True)
    """
    _check(p)
    return torch.empty_like(x, requires_grad=False).bernoulli_(1 - p, generator=generator)


def classic_dropout(
    x: Tensor, p: float = 0.5, *, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Dropped while training, multiplied by 1 - p in prediction. Not in torch.

    >>> classic_dropout(torch.tensor([1.0, 2.0]), training=False)
    tensor([0.5000, 1.0000])
    """
    _check(p)
    return x * keep_mask(x, p, generator=generator) if training else x * (1 - p)


def inverted_dropout(
    x: Tensor, p: float = 0.5, *, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Dropped and divided by 1 - p while training, untouched in prediction: `torch.nn.Dropout(p)`.

    >>> set(inverted_dropout(torch.ones(99), generator=torch.Generator().manual_seed(0)).tolist()) == {0.0, 2.0}
    True
    """
    _check(p)
    return x * keep_mask(x, p, generator=generator) / (1 - p) if training else x


def all_masks(N: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """The 2ᴺ masks of N neurons: (2ᴺ, N) of zeros and ones, for N <= 20.

    Raises:
        ValueError: more neurons than masks can be listed for.

    >>> all_masks(2)
    tensor([[0., 0.],
            [0., 1.],
            [1., 0.],
            [1., 1.]])
    """
    if not 0 <= N <= 20:
        raise ValueError(f"{N} neurons have 2^{N} masks: take 20 neurons or fewer")
    bits = torch.arange(2**N, device=device).unsqueeze(1) >> torch.arange(N - 1, -1, -1, device=device)
    return (bits & 1).to(dtype or torch.get_default_dtype())


def mask_probabilities(masks: Tensor, p: float) -> Tensor:
    """P(r) = (1 - p)^{kept} p^{dropped} of each mask, (2ᴺ, N) to (2ᴺ,).

    >>> mask_probabilities(all_masks(2), 0.25)
    tensor([0.0625, 0.1875, 0.1875, 0.5625])
    """
    _check(p)
    return (masks * (1 - p) + (1 - masks) * p).prod(1)


def mask_average(outputs: Tensor, probabilities: Tensor) -> Tensor:
    """Σ P(r) y(r): the average of the 2ᴺ models' outputs, (2ᴺ, ...) to (...).

    >>> masks = all_masks(3)
    >>> w, x = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 1.0, 4.0])
    >>> mask_average((masks * x) @ w, mask_probabilities(masks, 0.5)), (0.5 * x) @ w  # a linear output: equal
    (tensor(1.5000), tensor(1.5000))
    """
    average: Tensor = torch.tensordot(probabilities, outputs, dims=1)
    return average


def geometric_average(outputs: Tensor, probabilities: Tensor) -> Tensor:
    """Π y(r)^{P(r)}, renormalized to sum 1: the average of the 2ᴺ models' class probabilities, (2ᴺ, c) to (c,).

    >>> geometric_average(torch.tensor([[0.2, 0.8], [0.8, 0.2]]), torch.tensor([0.5, 0.5]))
    tensor([0.5000, 0.5000])
    """
    return mask_average(outputs.log(), probabilities).softmax(-1)
