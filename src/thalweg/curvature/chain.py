r"""A network as a chain of linear layers with locally linear maps between them, and the norms of its links.

    z = Λ⁽ᴸ⁺¹⁾ T⁽ᴸ⁺¹⁾ … Λ⁽¹⁾ T⁽¹⁾ x          seed 003, "networks as a product of matrices" (there Λ⁽ᴸ⁺¹⁾ = I)

T⁽ᵖ⁾ is a linear layer or a convolution, Λ⁽ᵖ⁾ whatever follows it up to the next one: ReLU, pooling, flattening. Norms
are bounded from above, and exact where that is affordable:

    ||T||    of a small layer from its matrix; of a larger convolution from the Fourier transform on a torus that is
             large enough for its matrix to be a part of the circular one (1.0 to 1.8 times the truth)
    ||Λ||    1 for ReLU and maxima over disjoint windows, 1/√taps for averages over disjoint windows
    κ        sup ||unfold(h)||/|h|, at most √min(windows an input entry is in, positions); 1 for a linear layer
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from thalweg.curvature.evaluation import require_fixed_function, require_repeatable

__all__ = ["Layer", "Link", "between_norm", "chain", "layer_matrix", "layer_norm", "torus_norm"]

ISOMETRIC = (nn.Flatten, nn.Unflatten, nn.Identity, _DropoutNd)
POOLS = (_MaxPoolNd, _AvgPoolNd, _AdaptiveMaxPoolNd, _AdaptiveAvgPoolNd)
DENSE = 2**20  # entries of the largest matrix, and of the basis it is made from, whose norm is taken exactly


Layer = nn.Linear | _ConvNd


@dataclass(frozen=True)
class Between:
    """A locally linear map, and what it was applied to."""

    name: str
    module: nn.Module
    h: Tensor


@dataclass(frozen=True)
class Link:
    """A linear layer T⁽ᵖ⁾ and the maps that make up Λ⁽ᵖ⁾.

    Attributes:
        name: the layer's name in the model.
        module: the layer.
        h: its input, (n, …).
        positions: entries of its output map, 1 for a linear layer.
        after: what follows up to the next layer.
    """

    name: str
    module: Layer
    h: Tensor
    positions: int
    after: tuple[Between, ...]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution."""
        return isinstance(self.module, _ConvNd)

    @property
    def kappa(self) -> float:
        """Upper bound on ||unfold(h)||/|h|."""
        if not isinstance(self.module, _ConvNd):
            return 1.0
        # tap j reads the entry from a position only if the stride divides entry - j·dilation: every (stride/gcd)-th tap
        windows = math.prod(
            -(-k // (stride // math.gcd(stride, dilation)))
            for k, stride, dilation in zip(
                self.module.kernel_size, self.module.stride, self.module.dilation, strict=True
            )
        )
        return math.sqrt(min(windows, self.positions))


@torch.no_grad()
def chain(model: nn.Module, x: Tensor) -> tuple[list[Link], Tensor]:
    """Follow ``x`` through the leaves of a model in the order in which they are registered.

    Args:
        model: linear layers and convolutions padded by zeros, ReLU, leaky ReLU, pooling, flattening; what stands before
            the first linear layer counts as preparation of x.
        x: inputs, (n, …).

    Returns:
        The links, and the outputs z.

    Raises:
        ValueError: a layer of another kind, active dropout, a model that does something else than calling its leaves in
            turn or fails on x, no inputs, or outputs that are not finite.

    >>> links, z = chain(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 2, 2))
    >>> [link.name for link in links], links[1].h.shape
    (['1', '3'], torch.Size([1, 3]))
    """
    if not len(x):
        raise ValueError("there is no data: give at least one input along the first axis")
    require_fixed_function(model)
    z = require_repeatable(lambda: model(x))
    links: list[Link] = []
    h = x
    for name, module in model.named_modules():
        if any(module.children()) or isinstance(module, nn.Sequential):
            continue
        if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not module.transposed):
            if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
                raise ValueError(f"layer {name!r} pads by {module.padding_mode!r}: bounds are known for zeros only")
            if isinstance(module, nn.Linear) and h.ndim != 2:
                raise ValueError(f"layer {name!r} is linear and gets {h.ndim - 1} axes: flatten its input")
            a = module(h)
            links.append(Link(name, module, h.clone(), a[0, 0].numel(), ()))
        else:
            between_norm(module, h)  # to refuse what has none
            if links:
                links[-1] = replace(links[-1], after=(*links[-1].after, Between(name, module, h.clone())))
            a = module(h)
        h = a
    if not links:
        raise ValueError("the model has no linear layer or convolution")
    if len({id(link.module.weight) for link in links}) < len(links):
        raise ValueError("two layers share one weight: the terms of a bound are for weights of their own")
    if isinstance(z, Tensor) and not bool(torch.isfinite(z).all()):
        raise ValueError("the outputs are not finite: give weights and inputs with which they are")
    if not isinstance(z, Tensor) or z.shape != h.shape or not torch.allclose(z, h):
        raise ValueError(
            "the model does more than call its leaves in the order of their registration: write it as nn.Sequential"
        )
    return links, z


def between_norm(module: nn.Module, h: Tensor) -> float:
    """Upper bound on ||Λ|| of one map at any point, which also bounds |Λh|/|h|.

    >>> between_norm(nn.AvgPool2d(2), torch.ones(1, 1, 4, 4)), between_norm(nn.MaxPool1d(3, 2), torch.ones(1, 1, 5))
    (0.5, 1.4142135623730951)
    """
    if isinstance(module, (nn.ReLU, *ISOMETRIC)):
        return 1.0
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, POOLS):
        size = h.shape[2:]
        if isinstance(module, (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)):
            wanted = module.output_size
            out = tuple(wanted) if isinstance(wanted, (tuple, list)) else (wanted,) * len(size)
            target = [s if o is None else o for s, o in zip(size, out, strict=True)]
            if any(s % t for s, t in zip(size, target, strict=True)):
                raise ValueError(f"{type(module).__name__} from {tuple(size)} to {tuple(target)} has unequal windows")
            kernel = stride = [s // t for s, t in zip(size, target, strict=True)]
        else:
            kernel, stride = _tuple(module.kernel_size, len(size)), _tuple(module.stride, len(size))
        if isinstance(module, _MaxPoolNd) and any(d != 1 for d in _tuple(module.dilation, len(size))):
            stride = [1] * len(size)
        if isinstance(module, _AvgPoolNd):
            padded = any(_tuple(module.padding, len(size)))
            plain = not module.ceil_mode and (module.count_include_pad or not padded)
            if not plain or getattr(module, "divisor_override", None):
                raise ValueError("no bound for average pooling with ceil_mode, divisor_override or uncounted padding")
        # an input entry is in so many windows; ||Λ||² <= ||Λ||₁ ||Λ||_∞ with rows that sum to 1
        windows = math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
        averages = isinstance(module, (_AvgPoolNd, _AdaptiveAvgPoolNd))
        return math.sqrt(windows / math.prod(kernel)) if averages else math.sqrt(windows)
    raise ValueError(
        f"no bound for a layer of type {type(module).__name__}: use linear layers, convolutions, ReLU, leaky ReLU, "
        "pooling"
    )


def _tuple(value: Any, axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else [*value] * (axes // len(value))


@torch.no_grad()
def layer_matrix(module: Layer, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """T: the matrix of a linear layer or convolution without its bias, for inputs of the shape given (no batch axis).

    For a convolution in one dimension it is the Toeplitz matrix of the seed, in two it is Toeplitz in blocks.

    Returns:
        (numbers in the output, numbers in the input).

    >>> layer = nn.Conv1d(1, 1, 3, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0, 2.0, 3.0]]]))
    >>> layer_matrix(layer, (1, 5))
    tensor([[1., 2., 3., 0., 0.],
            [0., 1., 2., 3., 0.],
            [0., 0., 1., 2., 3.]])
    """
    weight = module.weight
    numbers = math.prod(shape)
    basis = torch.eye(numbers, dtype=weight.dtype, device=weight.device).reshape(numbers, *shape)
    out = module(basis)
    if module.bias is not None:
        out = out - module(torch.zeros_like(basis[:1]))
    return out.reshape(numbers, -1).mT.contiguous()  # type: ignore[no-any-return]


def layer_norm(link: Link) -> float:
    """||T||, from above: exact if it is at most 1024 x 1024 or so or the layer is linear, by Fourier if larger."""
    module = link.module
    if isinstance(module, nn.Linear):
        return float(torch.linalg.matrix_norm(module.weight.detach(), 2))
    inputs, outputs = link.h[0].numel(), module.out_channels * link.positions
    if inputs * max(inputs, outputs) <= DENSE:
        return float(torch.linalg.matrix_norm(layer_matrix(module, link.h.shape[1:]), 2))
    return torus_norm(module, link.h.shape[2:])


@torch.no_grad()
def torus_norm(module: _ConvNd, size: torch.Size | tuple[int, ...]) -> float:
    """||T|| of a convolution from above: max over frequencies ω of the largest singular value of W^(ω): (out, in).

    The circular convolution on a torus of side size + reach - 1 contains every window of the padded one (side = size is
    enough without padding); a stride drops rows. Cost: one FFT of the kernel and an SVD for every frequency.

    >>> layer = nn.Conv1d(1, 1, 2, bias=False)
    >>> _ = layer.weight.data.fill_(1.0)  # the truth is 2 cos(π/10) = 1.902: T is 4 x 5
    >>> torus_norm(layer, (5,))
    2.0
    """
    W, axes = module.weight.detach(), len(size)
    padded = any(module._reversed_padding_repeated_twice)
    reach = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    side = [s + r - 1 if padded else s for s, r in zip(size, reach, strict=True)]
    kernel = W.new_zeros(*W.shape[:2], *reach)
    taps: tuple[Any, ...] = (..., *(slice(None, None, d) for d in module.dilation))
    kernel[taps] = W
    missing = [p for s, r in zip(reversed(side), reversed(reach), strict=True) for p in (0, s - r)]
    kernel = nn.functional.pad(kernel, missing)
    spectrum = torch.fft.fftn(kernel, dim=tuple(range(2, 2 + axes))).flatten(2)  # (out, in per group, frequencies)
    blocks = spectrum.reshape(module.groups, -1, *spectrum.shape[1:]).permute(0, 3, 1, 2)
    return float(torch.linalg.matrix_norm(blocks, 2).max())
