r"""Random initialization: LeCun, Glorot, Kaiming, and the gain that each activation needs.

For a layer of m inputs and n outputs (seed 004, "Initialization of weights: random"):

    "LeCun"  U(±1/√m)            variance 1/(3m); what `torch.nn.Linear` draws by default
    LeCun    U(±√(3/m))          variance 1/m, which is what LeCun et al. 1998 (Efficient BackProp, 4.6) ask for
    Glorot   U(±√(6/(m + n)))    variance 2/(m + n)      `torch.nn.init.xavier_uniform_`
    Kaiming  N(0, 2/m)           variance 2/m            `torch.nn.init.kaiming_normal_(nonlinearity="relu")`

In a chain of wide layers x' = f(W x) with independent weights of variance s/m, W x is normal with variance h = s E x²
and E x'² = E f(√h z)², z ~ N(0, 1). The s that keeps h = 1 from layer to layer is

    s = gain²,  gain = 1/√E f(z)²         and 1/√E f'(z)² keeps the gradient's mean square at h = 1,

both found by quadrature. The lecture prescribes Kaiming, s = 2, for ReLU, LeakyReLU, ELU and SELU alike. That is
right for the first two; ELU needs 1.55 and SELU 1: with s = 2 their E x² after 20 layers is 6.8 and 70 times that of
the input (in the limit of infinite width, about which networks scatter). The lecture calls the logistic sigmoid
symmetric; it is not odd about 0, and its E x² stays near 1/4 for every s in use, most of it the mean's square.
`torch.nn.init.calculate_gain` agrees for ReLU and LeakyReLU; it has 5/3 for tanh (quadrature: 1.59), 3/4 for SELU (1),
1 for the sigmoid (1.85) and nothing for ELU (1.25).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["backward_gain", "forward_gain", "gaussian_mean", "glorot", "kaiming", "lecun", "signal_power"]

Activation = Callable[[Tensor], Tensor]


def lecun(
    m: int,
    n: int,
    *,
    form: Literal["printed", "paper"] = "paper",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """W: (n, m), uniform: variance 1/(3m) as printed, 1/m as in the paper that the lecture names.

    torch: `torch.nn.Linear` draws the printed form by default (`kaiming_uniform_` with a = √5).

    Args:
        m: inputs of the layer.
        n: outputs of the layer.
        form: "printed" U(±1/√m) or "paper" U(±√(3/m)).
        generator: draws the weights.
        dtype: of the weights.
        device: of the weights.

    >>> g = torch.Generator().manual_seed(0)
    >>> round(float(lecun(100, 400, generator=g).var() * 100), 2)
    1.0
    """
    bound = math.sqrt((1 if form == "printed" else 3) / m)
    return torch.empty(n, m, dtype=dtype, device=device).uniform_(-bound, bound, generator=generator)


def glorot(
    m: int,
    n: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """W: (n, m), U(±√(6/(m + n))): the draws of `torch.nn.init.xavier_uniform_`, bit for bit.

    The lecture's "variances about one" forwards and backwards needs m = n and the linear part of the activation: the
    factors per layer are 2m/(m + n) and 2n/(m + n).

    >>> float(glorot(2, 4, generator=torch.Generator().manual_seed(0)).abs().max()) <= 1
    True
    """
    bound = math.sqrt(6 / (m + n))
    return torch.empty(n, m, dtype=dtype, device=device).uniform_(-bound, bound, generator=generator)


def kaiming(
    m: int,
    n: int,
    *,
    gain: float = math.sqrt(2),
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """W: (n, m), N(0, gain²/m): the draws of `torch.nn.init.kaiming_normal_(nonlinearity="relu")`, bit for bit.

    Args:
        m: inputs of the layer.
        n: outputs of the layer.
        gain: √2 is the lecture's N(0, 2/m); `forward_gain` gives every other activation its own.
        generator: draws the weights.
        dtype: of the weights.
        device: of the weights.

    >>> g = torch.Generator().manual_seed(0)
    >>> round(float(kaiming(100, 400, generator=g).var() * 100), 1)
    2.0
    """
    return torch.empty(n, m, dtype=dtype, device=device).normal_(0, gain / math.sqrt(m), generator=generator)


def gaussian_mean(f: Activation, *, std: float = 1.0) -> float:
    """E f(std·z) for z ~ N(0, 1), by 20 Gauss-Legendre nodes on each unit interval of (-12, 12).

    Exact to rounding for functions smooth between integers, such as every activation of the lecture at std = 1.

    >>> gaussian_mean(torch.square), gaussian_mean(torch.relu) * math.sqrt(2 * math.pi)
    (1.0..., 1.0...)
    """
    nodes, weights = np.polynomial.legendre.leggauss(20)
    z = torch.as_tensor(np.arange(-12, 12)[:, None] + (nodes + 1) / 2).flatten()
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.as_tensor(weights / 2).repeat(24) @ (density * f(std * z)))


def forward_gain(f: Activation) -> float:
    """1/√E f(z)²: weights of variance gain²/m keep the variance of W x at 1.

    torch: `torch.nn.init.calculate_gain`, equal for linear, ReLU and LeakyReLU only.

    >>> round(forward_gain(torch.relu) ** 2, 12), round(forward_gain(torch.tanh), 4)
    (2.0, 1.5925)
    """
    return 1 / math.sqrt(gaussian_mean(lambda z: f(z).square()))


def backward_gain(f: Activation) -> float:
    """1/√E f'(z)²: weights of variance gain²/n keep the gradient's mean square where W x has variance 1.

    >>> round(backward_gain(torch.relu) ** 2, 12), round(backward_gain(torch.tanh), 4)
    (2.0, 1.4674)
    """

    def squared_slope(z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.requires_grad_()
            (slope,) = torch.autograd.grad(f(z).sum(), z)
        return slope.square()

    return 1 / math.sqrt(gaussian_mean(squared_slope))


def signal_power(f: Activation, s: float, *, layers: int, start: float = 1.0) -> Tensor:
    """E x² after 0, 1, ..., ``layers`` wide layers x' = f(W x) with weights of variance s/m.

    Args:
        f: the activation.
        s: variance of a weight times m: 1/3 for the printed "LeCun", 1 for LeCun's, 2 for Kaiming's.
        layers: how many layers.
        start: mean square of the input.

    Returns:
        (layers + 1,) in float64.

    >>> signal_power(torch.relu, 2.0, layers=3), signal_power(torch.nn.functional.selu, 2.0, layers=20)[-1]
    (tensor([1., 1., 1., 1.], dtype=torch.float64), tensor(69.9673, dtype=torch.float64))
    """
    q = [start]
    for _ in range(layers):
        q.append(gaussian_mean(lambda z: f(z).square(), std=math.sqrt(s * q[-1])))
    return torch.tensor(q, dtype=torch.float64)
