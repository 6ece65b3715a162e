r"""Orthogonal convolutions: the convolution as an operator, not its kernel matrix, is pushed to orthonormal rows.

Two rows of a convolution's block-Toeplitz matrix overlap at shifts that are multiples of the stride S. Over all these

    R(K) = |Conv(K, K, stride S, padding P) - I₀|_F²,   P = ⌊(k - 1)/S⌋ · S
         = Σ_e |A_e - [e = 0] I|_F²,   A_e[o, o'] = Σ_{i,t} K[o, i, t] K[o', i, t + e],   e ∈ {-P, …, -S, 0, S, …, P}²

I₀ the identity at shift zero: (O, O) in the middle of zeros. R = 0 if and only if the operator has orthonormal rows on
an endless (or circular) map. With more rows than columns, O > I·S², that cannot be and columns take their place.

Source: Wang, Chen, Chakraborty, Yu, "Orthogonal convolutional neural networks", CVPR 2020, sections 3.2-3.4.

Computed as Σ_e, with A_{-e} = A_eᵀ counted twice and only the taps that overlap: 45·O²·I products for a 3x3 kernel of
stride 1, in place of 225 by Conv(K, K). Columns are the rows of the transposed kernel; under a stride, of the kernel of
the S² phases of the input (space to depth), which has stride 1. Frobenius norms of both sides differ by a constant,
R_columns = R_rows + I·S² - O, so which is taken changes the value, not the gradient.

Deviations. The released code (samaonline/Orthogonal-Convolutional-Neural-Networks) fixes P = 1. For a 3x3 kernel of
stride 2 the output then has shifts -1 and 1 only and the identity lands on shift (1, 1): a zero-padded average of the
wrong thing. For stride 1 it misses the shifts ±2. It also sums norms that are not squared and regularizes by hand the
first convolution of each block and the shortcuts, never the stem. Here the paper's formula holds for every stride,
dilation, group and dimension, for all convolutions that are not excluded. Borders of zero-padded maps are ignored, as
in the paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.operators.convolution import per_axis
from thalweg.regularize.gram import grouped_kernel
from thalweg.regularize.layer import CONVOLUTIONS, TRANSPOSED, Layer
from thalweg.regularize.penalty import LayerPenalty, PenaltyOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ConvOrthogonality", "conv_orthogonality"]


def conv_orthogonality(
    weight: Tensor, *, stride: int | Sequence[int] = 1, dilation: int | Sequence[int] = 1, groups: int = 1
) -> Tensor:
    """R of a convolution given as to `torch.nn.functional.conv2d`, in any number of dimensions.

    Args:
        weight: (O, I / groups, k…).
        stride: S.
        dilation: spacing of the taps.
        groups: independent convolutions side by side; their R is summed.

    Raises:
        ValueError: no kernel, or a stride, dilation or number of groups that does not fit it.

    >>> delta = torch.zeros(2, 2, 3, 3)
    >>> delta[:, :, 1, 1] = torch.eye(2)  # the identity is orthogonal
    >>> conv_orthogonality(delta), conv_orthogonality(delta.roll(1, 3)), conv_orthogonality(2 * delta)
    (tensor(0.), tensor(0.), tensor(18.))
    """
    taps = weight.shape[2:]
    if not taps or groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"a kernel (O, I / groups, k…) with O a multiple of groups={groups} expected, got shape "
            f"{tuple(weight.shape)}"
        )
    strides, dilations = per_axis(stride, len(taps), "stride"), per_axis(dilation, len(taps), "dilation")
    # In units of taps: rows meet where the dilated shift is a multiple of S. Pixels that are never read do not count.
    steps = [min(S // math.gcd(S, d), k) for S, d, k in zip(strides, dilations, taps, strict=True)]
    K = grouped_kernel(weight, groups)
    if K.shape[1] > K.shape[2] * math.prod(steps):
        K = _phases(K, steps).transpose(1, 2)
        steps = [1] * len(taps)
    return _shift_energy(K, steps)


def _shift_energy(K: Tensor, steps: Sequence[int]) -> Tensor:
    """Σ_e |A_e - [e = 0] I|_F² over the multiples e of ``steps``, K: (groups, O, I, k…)."""
    taps = K.shape[3:]
    places = list(itertools.product(*map(range, taps)))
    X = dict(zip(places, K.flatten(3).movedim(3, 0).contiguous().unbind(0), strict=True))  # tap -> (groups, O, I)
    total = torch.zeros((), dtype=K.dtype, device=K.device)
    for e in itertools.product(*(range(-((k - 1) // s) * s, k, s) for k, s in zip(taps, steps, strict=True))):
        if e < (0,) * len(taps):
            continue  # A_{-e} = A_eᵀ: counted twice at e
        pairs = [(X[t], X[u]) for t in places if (u := tuple(a + b for a, b in zip(t, e, strict=True))) in X]
        A = pairs[0][0] @ pairs[0][1].mT
        for here, there in pairs[1:]:
            A = torch.baddbmm(A, here, there.mT)
        if any(e):
            total = total + 2 * A.square().sum()
        else:
            total = total + (A - torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)).square().sum()
    return total


def _phases(K: Tensor, steps: Sequence[int]) -> Tensor:
    """The stride-1 kernel (groups, O, I · ∏s, ⌈k/s⌉…) on the phases of the input that a kernel of stride s reads."""
    padding = [pad for k, s in zip(reversed(K.shape[3:]), reversed(steps), strict=True) for pad in (0, -k % s)]
    K = torch.nn.functional.pad(K, padding)
    for axis, s in enumerate(steps, start=3):
        shape = K.shape
        K = K.reshape(*shape[:axis], shape[axis] // s, s, *shape[axis + 1 :])  # tap = s · coarse + phase
        K = K.movedim(axis + 1, 3).flatten(2, 3)
    return K


class ConvOrthogonality(LayerPenalty):
    """R over a model's convolutions, transposed ones included (their operator is the transpose).

    Args:
        coefficient: 0.1 is the default of the released code, for norms that are not squared; the paper's own values for
            the squared form on CIFAR are not verified.
        options: those of `LayerPenalty`; the paper leaves out the stem: ``exclude="stem"``.

    >>> model = torch.nn.Conv2d(1, 1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0)
    >>> ConvOrthogonality(1.0)(model).detach()  # (2² - 1)²
    tensor(9.)
    """

    DEFAULT_TYPES = (*CONVOLUTIONS, *TRANSPOSED)

    def __init__(self, coefficient: float = 0.1, **options: Unpack[PenaltyOptions]) -> None:
        super().__init__(coefficient, **options)

    def value(self, layer: Layer) -> Tensor:
        module: Any = layer.module
        return conv_orthogonality(layer.weight, stride=module.stride, dilation=module.dilation, groups=module.groups)

    def unsuitable(self, layer: Layer) -> str:
        return "" if hasattr(layer.module, "stride") else f"{type(layer.module).__name__} is not a convolution"
