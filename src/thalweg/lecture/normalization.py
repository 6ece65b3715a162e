r"""Z-score, batch normalization (training and prediction) and layer normalization.

    z = (x - μ)/σ,  σ² = 1/N Σ (xᵢ - μ)²                                   seed 004, "Normalization", z-score
    x̂ = (x - μ_B)/√(σ_B² + ε),  y = γ x̂ + β                               the batch normalization layer
    μ, σ² over the features of one sample instead of the mini-batch         layer normalization

The lecture stops at training. In prediction one sample has no batch, so running statistics stand in for μ_B and σ_B²:

    μ ← (1 - a) μ + a μ_B,   σ² ← (1 - a) σ² + a m/(m - 1) σ_B²             `torch.nn.BatchNorm1d(momentum=a)`

where torch's "momentum" a is the weight of the *new* value, and the variance stored is the unbiased one although the
mini-batch is normalized by the biased one. The identity needs γ = √(σ² + ε), not the printed √σ².
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "RunningStatistics",
    "batch_norm",
    "batch_norm_inference",
    "identity_parameters",
    "layer_norm",
    "within_sigmas",
    "z_score",
]


def z_score(x: Tensor) -> Tensor:
    """(x - μ)/σ of each feature of x: (N, d), with the population's σ (1/N). Not in torch; `sklearn`'s StandardScaler.

    `torch.std` divides by N - 1 unless ``correction=0``. A constant feature becomes NaN, as the formula says.

    >>> z_score(torch.tensor([[1.0], [2.0], [3.0]])).flatten()
    tensor([-1.2247,  0.0000,  1.2247])
    """
    return (x - x.mean(0)) / torch.std(x, 0, correction=0)


def within_sigmas(k: float) -> float:
    """Probability erf(k/√2) that a normal variable lies within k standard deviations of its mean.

    >>> round(within_sigmas(3), 4)
    0.9973
    """
    return math.erf(k / math.sqrt(2))


@dataclass(frozen=True)
class RunningStatistics:
    """μ and σ² of each feature, (d,), as seen over past mini-batches.

    >>> running = RunningStatistics.initial(torch.zeros(4, 2)).updated(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    >>> running.mean, running.var
    (tensor([0.1000, 0.1000]), tensor([1.1000, 0.9000]))
    """

    mean: Tensor
    var: Tensor

    @classmethod
    def initial(cls, x: Tensor) -> RunningStatistics:
        """μ = 0 and σ² = 1 for the features of x: (m, d)."""
        return cls(x.new_zeros(x.shape[1:]), x.new_ones(x.shape[1:]))

    def updated(self, x: Tensor, *, momentum: float = 0.1) -> RunningStatistics:
        """The statistics after the mini-batch x: (m, d), m > 1."""
        x = x.detach()
        return RunningStatistics(
            (1 - momentum) * self.mean + momentum * x.mean(0),
            (1 - momentum) * self.var + momentum * x.var(0, correction=1),
        )


def batch_norm(x: Tensor, gamma: Tensor | float = 1.0, beta: Tensor | float = 0.0, *, eps: float = 1e-5) -> Tensor:
    """γ (x - μ_B)/√(σ_B² + ε) + β for a mini-batch x: (m, d): `torch.nn.BatchNorm1d` in training.

    >>> batch_norm(torch.tensor([[0.0], [2.0]]), 3.0, 1.0, eps=0.0).flatten()
    tensor([-2.,  4.])
    """
    return gamma * (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt() + beta


def batch_norm_inference(
    x: Tensor,
    running: RunningStatistics,
    gamma: Tensor | float = 1.0,
    beta: Tensor | float = 0.0,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """γ (x - μ)/√(σ² + ε) + β with running statistics: `torch.nn.BatchNorm1d` in prediction. Not in the lecture.

    >>> running = RunningStatistics(torch.tensor([1.0]), torch.tensor([4.0]))
    >>> batch_norm_inference(torch.tensor([[5.0]]), running, eps=0.0)
    tensor([[2.]])
    """
    return gamma * (x - running.mean) / (running.var + eps).sqrt() + beta


def identity_parameters(x: Tensor, *, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """(γ, β) with which `batch_norm` leaves x: (m, d) as it is: γ = √(σ_B² + ε), β = μ_B.

    The lecture prints ``eps=0``, which is the identity only of a layer without ε.

    >>> x = torch.tensor([[1.0], [5.0]])
    >>> batch_norm(x, *identity_parameters(x, eps=1e-5))
    tensor([[1.],
            [5.]])
    """
    return (x.var(0, correction=0) + eps).sqrt(), x.mean(0)


def layer_norm(x: Tensor, gamma: Tensor | float = 1.0, beta: Tensor | float = 0.0, *, eps: float = 1e-5) -> Tensor:
    """γ (x - μ)/√(σ² + ε) + β with μ, σ² over the features of each sample x: (..., d): `torch.nn.LayerNorm(d)`.

    Training and prediction are the same. The lecture's signature lacks torch's later ``bias=True``.

    >>> layer_norm(torch.tensor([[0.0, 2.0]]), eps=0.0)
    tensor([[-1.,  1.]])
    """
    mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return gamma * (x - mean) / (var + eps).sqrt() + beta
