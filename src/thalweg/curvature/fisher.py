r"""The Fisher matrix of a classifier by sampling labels, at a cost that does not know the number of classes K.

For cross-entropy A = diag(p) - ppᵀ is the covariance of the one-hot label y ~ p, so that with s_m = p - e_{y_m}

    A = E[s sᵀ] ≈ S Sᵀ,   S = (s_1, …, s_M)/√M            `sampled_factors`, K x M in place of K x K
    tr H_O = E |(1/√N) Σ_i ε_i J_iᵀ s_i|²                  `fisher_trace`, with random signs ε_i

A draw of the second line is one backward pass over all the data, half of a Gauss-Newton product. Both are unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.curvature.chunks import sample_count
from thalweg.curvature.operator import CurvatureOperator
from thalweg.curvature.second_order import LossHead
from thalweg.curvature.trace import Estimate, error_bar

__all__ = ["fisher_trace", "sampled_factors"]


def sampled_factors(logits: Tensor, samples: int, *, generator: torch.Generator) -> Tensor:
    """S: (n, K, M) with E[S Sᵀ] = diag(p) - ppᵀ for p = softmax(logits).

    Args:
        logits: (n, K).
        samples: M, labels to draw for each row.
        generator: draws them, on the device of the logits.

    Raises:
        ValueError: logits that are no finite matrix, or no samples.

    >>> draw = torch.Generator().manual_seed(0)
    >>> S = sampled_factors(torch.zeros(1, 2), 1000, generator=draw)[0]
    >>> S @ S.T
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """
    if logits.ndim != 2 or samples < 1:
        raise ValueError(f"logits must be (n, K) and samples at least 1, got {tuple(logits.shape)} and {samples}")
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the logits are not finite: give weights and inputs with which they are")
    p = torch.softmax(logits, 1)
    labels = torch.multinomial(p, samples, replacement=True, generator=generator)
    S = p.unsqueeze(2).repeat(1, 1, samples)
    S = S.scatter_add_(1, labels.unsqueeze(1), -torch.ones_like(S[:, :1]))
    factors: Tensor = S / samples**0.5
    return factors


def fisher_trace(op: CurvatureOperator, *, draws: int = 32, generator: torch.Generator | None = None) -> Estimate:
    """The trace of the Gauss-Newton matrix of a mean cross-entropy over ``op``'s data.

    Args:
        op: of any kind; its loss must be ``torch.nn.functional.cross_entropy`` of (n, K) logits.
        draws: backward passes, at least 4.
        generator: draws labels and signs; None is a generator of its own.

    Raises:
        ValueError: fewer than 4 draws, or a loss whose Hessian in the output is not that of a mean cross-entropy.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.zero_()  # p = 1/2: tr = (p(1 - p) + p(1 - p)) |x|²
    >>> round(fisher_trace(CurvatureOperator(model, torch.nn.functional.cross_entropy, (x, y))).value, 6)
    0.5
    """
    if draws < 4:
        raise ValueError(f"an error bar needs at least 4 draws, got {draws}")
    generator = torch.Generator(op.device).manual_seed(0) if generator is None else generator
    sums = torch.zeros(draws, op.shape[0], dtype=op.dtype, device=op.device)
    total = sum(sample_count(x) for x, _ in op.batches)
    for tape in op.tapes():
        logits = tape.head.output
        _check_cross_entropy(tape.head, total)
        S = sampled_factors(logits, draws, generator=generator) * draws**0.5
        signs = torch.randint(2, (len(logits), 1, draws), generator=generator, device=op.device) * 2 - 1
        for j, u in enumerate((S * signs).unbind(2)):
            sums[j] += op.flatten(tape.pull(u))
    mean, error = error_bar(sums.double().square().sum(1) / total)
    return Estimate(mean, error, False)


def _check_cross_entropy(head: LossHead, total: int) -> None:
    """Compare A with that of cross-entropy on all rows, as weights and ignored targets may come late."""
    logits = head.output
    if logits.ndim == 2:
        v = torch.linspace(1, 2, logits.numel(), dtype=logits.dtype, device=logits.device).view(logits.shape)
        p, curved = torch.softmax(logits, 1), head.curve(v)
        expected = (p * v - p * (p * v).sum(1, keepdim=True)) / total
        tolerance = torch.finfo(p.dtype).eps ** 0.5
        if curved is not None and bool((curved - expected).abs().max() <= tolerance * expected.abs().max()):
            return
    raise ValueError("labels can only be sampled for a mean cross-entropy of (n, K) logits: the loss is another one")
