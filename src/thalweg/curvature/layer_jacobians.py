r"""How the outputs of a network move with the weights of one layer, sample by sample, without weight gradients.

    J_n = dz_n/dW,   row c:  (J_n)_c = vec(D_nc U_nᵀ)          D_nc = dz_nc/da_n: (out, T),  U_n: (in, T)

A layer a = W u applies its weight W: (out, in) to T columns: one for a vector, one for each token, one for each
position of a convolution, whose U is the unfolded input. The K x K Gram matrix J_n J_nᵀ comes from the rows or from
<(J_n)_c, (J_n)_c'> = <D_nc (U_nᵀ U_n), D_nc'>, whichever takes fewer multiplications: the second for T = 1, where it is
(D_n D_nᵀ)|u_n|² (Goodfellow 2015, arXiv 1510.01799), the first for wide feature maps.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["is_supported", "layer_gram", "layer_jacobian", "unfolded"]

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def is_supported(module: nn.Module) -> bool:
    """Whether the Jacobian of this layer's own parameters is known here."""
    return isinstance(module, (nn.Linear, *NORMS)) or (isinstance(module, _ConvNd) and not module.transposed)


def unfolded(module: nn.Module, h: Tensor) -> Tensor:
    """U: the columns that the weight of a linear layer or a convolution is applied to.

    Args:
        module: a linear layer or a convolution in one, two or three dimensions, with any of its options.
        h: its input, (n, …).

    Returns:
        (n, groups, in, T), ``in`` in the order of the flattened weight.

    >>> import torch
    >>> layer = nn.Conv1d(1, 1, 2, bias=False)
    >>> unfolded(layer, torch.tensor([[[1.0, 2.0, 3.0]]]))[0, 0]
    tensor([[1., 2.],
            [2., 3.]])
    """
    if isinstance(module, nn.Linear):
        return h.reshape(len(h), 1, -1, h.shape[-1]).mT
    assert isinstance(module, _ConvNd)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    U = nn.functional.pad(h, module._reversed_padding_repeated_twice, mode=mode)
    axes = len(module.kernel_size)
    for axis, (k, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        U = U.unfold(axis, dilation * (k - 1) + 1, stride)[..., ::dilation]  # (n, channels, positions…, kernel…)
    U = U.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return U.reshape(len(h), module.groups, -1, math.prod(U.shape[2 + axes :]))


def layer_jacobian(module: nn.Module, parameter: str, h: Tensor, D: Tensor) -> Tensor:
    """J: the derivatives of K outputs in one parameter of one layer, for every sample.

    Args:
        module: a layer that `is_supported`.
        parameter: "weight" or "bias".
        h: its input, (n, …).
        D: derivatives of the outputs in what the layer returned, (n, K, …).

    Returns:
        (n, K, numbers in the parameter).

    >>> import torch
    >>> layer, h, D = nn.Linear(2, 1), torch.tensor([[3.0, 4.0]]), torch.tensor([[[2.0]]])
    >>> layer_jacobian(layer, "weight", h, D), layer_jacobian(layer, "bias", h, D)
    (tensor([[[6., 8.]]]), tensor([[[2.]]]))
    """
    n, K = D.shape[:2]
    if isinstance(module, NORMS):
        J = D * _normalized(module, h).unsqueeze(1) if parameter == "weight" else D
        if isinstance(module, nn.LayerNorm):
            return J.reshape(n, K, -1, math.prod(module.normalized_shape)).sum(2)
        return J.flatten(3).sum(3) if J.ndim > 3 else J
    D = _columns(module, D)
    if parameter == "bias":
        return D.sum(-1).reshape(n, K, -1)
    U = unfolded(module, h)
    groups, out = D.shape[2:4]
    J = D.transpose(1, 2).reshape(n, groups, K * out, -1) @ U.mT
    return J.reshape(n, groups, K, -1).transpose(1, 2).reshape(n, K, -1)


def layer_gram(module: nn.Module, parameter: str, h: Tensor, D: Tensor) -> Tensor:
    """J Jᵀ of `layer_jacobian`: (n, K, K)."""
    if isinstance(module, NORMS) or parameter == "bias":
        J = layer_jacobian(module, parameter, h, D)
        return J @ J.mT
    U, D_ = unfolded(module, h), _columns(module, D)
    (n, K, groups, out, T), inner = D_.shape, U.shape[2]
    if T * T * (inner + K * out) + K * K * out * T >= K * out * inner * (T + K):
        J = layer_jacobian(module, parameter, h, D)
        return J @ J.mT
    D_ = D_.transpose(1, 2)  # (n, groups, K, out, T)
    DM = (D_.reshape(n, groups, K * out, T) @ (U.mT @ U)).reshape(n, groups, K, out * T)
    return (DM @ D_.reshape(n, groups, K, out * T).mT).sum(1)


def _columns(module: nn.Module, D: Tensor) -> Tensor:
    """D as (n, K, groups, out, T)."""
    n, K = D.shape[:2]
    if isinstance(module, nn.Linear):
        return D.reshape(n, K, 1, -1, D.shape[-1]).mT
    assert isinstance(module, _ConvNd)
    return D.reshape(n, K, module.groups, module.out_channels // module.groups, -1)


def _normalized(module: nn.Module, h: Tensor) -> Tensor:
    """What the gain multiplies."""
    if isinstance(module, _BatchNorm):
        return nn.functional.batch_norm(h, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
    if isinstance(module, nn.GroupNorm):
        return nn.functional.group_norm(h, module.num_groups, None, None, module.eps)
    assert isinstance(module, nn.LayerNorm)
    return nn.functional.layer_norm(h, module.normalized_shape, None, None, module.eps)
