r"""The Gauss-Newton matrix of every single sample, exactly: its norm, its trace, all its eigenvalues.

    H_i = H_O,i + H_F,i,   H_O,i = J_iᵀ A_i J_i            seed 003, "decomposition of the Hessian"

with J_i = dz_i/dθ: (K, P) for the K outputs z_i and A_i = d²l/dz_i²: (K, K), for cross-entropy diag(p) - ppᵀ. The P x P
matrix is never formed. With J_i J_iᵀ = R_i R_iᵀ its non-zero eigenvalues are those of the K x K matrix R_iᵀ A_i R_i,
and J_i J_iᵀ is a sum over layers that needs no weight gradient (`jacobian_grams`). A_i comes from differentiating the
loss twice, so any loss will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.curvature.chunks import LossFunction, pairs
from thalweg.curvature.evaluation import require_autograd
from thalweg.curvature.jacobian_grams import bytes_per_sample, check_grams, jacobian_grams
from thalweg.curvature.premises import is_loss_of_all, require_loss_of_output
from thalweg.invariance.twin import detached_copy

__all__ = ["PerSampleGGN", "batches", "loss_reduction", "output_hessians", "per_sample_ggn", "product_eigenvalues"]

MEMORY = 2**28  # bytes of one chunk, unless told otherwise


@dataclass(frozen=True)
class PerSampleGGN:
    """H_O,i of N samples.

    Attributes:
        norms: ||H_O,i||, the largest |eigenvalue|: (N,).
        traces: tr H_O,i: (N,).
        eigenvalues: ascending, (N, K): all that are not zero, and zeros if H_O,i has fewer.
        reduction: "mean" or "sum": how the loss of a batch is made of those of its samples.

    >>> ggn = PerSampleGGN(torch.tensor([4.0]), torch.tensor([7.0]), torch.tensor([[3.0, 4.0]]), "mean")
    >>> ggn.frobenius.item(), ggn.trace
    (5.0, 7.0)
    """

    norms: Tensor
    traces: Tensor
    eigenvalues: Tensor
    reduction: str

    @property
    def frobenius(self) -> Tensor:
        """||H_O,i||_F: (N,)."""
        return self.eigenvalues.square().sum(1).sqrt()

    @property
    def trace(self) -> float:
        """The trace of H_O of the whole loss: the mean or the sum of the samples' losses."""
        total = self.traces.double().sum().item()
        return total / len(self.traces) if self.reduction == "mean" else total


def per_sample_ggn(
    model: nn.Module, loss_fn: LossFunction, data: Any, *, chunk_size: int | None = None, memory: int = MEMORY
) -> PerSampleGGN:
    """Norm, trace and eigenvalues of the Gauss-Newton matrix of every sample, exactly.

    Counts the parameters that require gradients. Linear layers, convolutions and normalizations may hold them, each
    used once or often (weight sharing is fine here); anything without trainable parameters may stand between.

    Cost: one forward pass, K backward passes without weight gradients, and the contraction: 6-10 gradients for K = 10
    on a small CNN. Memory: one chunk.

    Args:
        model: in evaluation mode, or without batch normalization and dropout; called as ``model(x)``; not changed.
        loss_fn: ``loss_fn(output, target)``, the mean or the sum of the samples' losses, twice differentiable.
        data: one pair (x, y), or an iterable of such pairs; samples lie along the first axis.
        chunk_size: samples to hold at once; None takes as many as fit into ``memory``.
        memory: bytes, an estimate.

    Returns:
        The figures of all samples in their order.

    Raises:
        ValueError: no data, no trainable parameter, a layer without a rule, samples that see each other, a loss that is
            not finite, not differentiable twice, neither mean nor sum, or dependent on the weights besides the output.
        TypeError: data that are no pairs.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    >>> ggn = per_sample_ggn(model, nn.functional.mse_loss, (x, y))  # A = I, J Jᵀ = |x|² I
    >>> [round(value, 4) for value in ggn.eigenvalues[0].tolist()], round(ggn.trace, 4)
    ([25.0, 25.0], 50.0)
    """
    require_autograd()
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    named, model = list(model.named_parameters()), detached_copy(model)  # a forward pass may change buffers
    values: list[Tensor] = []
    traces: list[Tensor] = []
    reduction, decided, size = "mean", False, chunk_size or 0
    for x, y in batches(model, data):
        if not values:
            check_grams(model, x)
            size = size or max(1, memory // bytes_per_sample(model, x))
        if not decided:
            with torch.no_grad():
                z = model(x[:4])
            require_loss_of_output(loss_fn, z, y[:4], named)
            reduction, decided = loss_reduction(loss_fn, z, y[:4]), len(x) > 1  # the loss of one sample is both
        for x_chunk, y_chunk in zip(torch.split(x, size), torch.split(y, size), strict=True):
            z, grams = jacobian_grams(model, x_chunk)
            # `loss_reduction` has seen a few samples only
            each = torch.split(z, 1), torch.split(y_chunk, 1)
            if not is_loss_of_all(loss_fn, *each, y_chunk, summed=reduction == "sum"):
                raise _neither()
            A, G = output_hessians(loss_fn, z, y_chunk, reduction=reduction), torch.stack(list(grams.values())).sum(0)
            values.append(product_eigenvalues(A, G))
            traces.append((A * G).sum((1, 2)))
    if not values:
        raise ValueError("there is no data: give a pair (x, y) or an iterable of such pairs")
    eigenvalues = torch.cat(values)
    return PerSampleGGN(eigenvalues.abs().amax(1), torch.cat(traces), eigenvalues, reduction)


def product_eigenvalues(A: Tensor, G: Tensor) -> Tensor:
    """Eigenvalues of A G, ascending, for symmetric A and positive semi-definite G: (…, K, K) to (…, K).

    >>> product_eigenvalues(torch.diag(torch.tensor([2.0, -1.0])), torch.diag(torch.tensor([3.0, 0.0])))
    tensor([0., 6.])
    """
    w, V = torch.linalg.eigh(G)  # G = R Rᵀ, and A R Rᵀ has the non-zero eigenvalues of Rᵀ A R
    R = V * w.clamp(min=0).sqrt().unsqueeze(-2)
    # not eigvalsh: it squares entries, and those of a saturated softmax underflow
    eigenvalues: Tensor = torch.linalg.eigh(R.mT @ A @ R).eigenvalues
    return eigenvalues


def output_hessians(loss_fn: LossFunction, z: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
    """A_i = d²l_i/dz_i² of every sample, by differentiating the loss of the batch twice.

    Args:
        loss_fn: the mean or the sum of the samples' losses, as ``reduction`` says.
        z: outputs, (n, K) or (n, …).
        y: targets.
        reduction: "mean" or "sum".

    Returns:
        (n, K, K), with z flattened.

    Raises:
        ValueError: the loss is not a scalar, not finite or not twice differentiable.

    >>> output_hessians(nn.functional.cross_entropy, torch.zeros(1, 2), torch.tensor([0]))
    tensor([[[ 0.2500, -0.2500],
             [-0.2500,  0.2500]]])
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        loss = loss_fn(z, y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError("loss_fn must return a scalar tensor: the mean or the sum over the batch")
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss is {loss.item()} on {len(z)} of the samples: give weights, data and targets with a finite "
                "one (a mean over ignored targets alone is none)"
            )
        if not loss.requires_grad:
            raise ValueError("the loss does not depend on the output: does loss_fn detach it?")
        (g,) = torch.autograd.grad(loss, z, create_graph=True)
        if not g.requires_grad:
            raise ValueError("the loss is not twice differentiable in the output: its gradient does not depend on it")
        g = g.flatten(1) if g.ndim > 1 else g.unsqueeze(1)
        try:
            rows = [torch.autograd.grad(g[:, c].sum(), z, retain_graph=True)[0] for c in range(g.shape[1])]
        except RuntimeError as error:
            raise ValueError(f"the loss is not twice differentiable: {error}") from error
    A = torch.stack([row.reshape(len(z), -1) for row in rows], 1)
    return A * len(z) if reduction == "mean" else A


def loss_reduction(loss_fn: LossFunction, z: Tensor, y: Tensor) -> str:
    """Whether the loss of a batch is the "mean" or the "sum" of its samples' losses, by its second derivatives.

    They are compared at outputs between 0.1 and 0.9 instead of z: those of a trained network may have none left, and
    these are logits as well as probabilities. Where there are none, as in the linear part of a Huber loss, around a
    target of the outputs' own shape.

    Raises:
        ValueError: it is neither, or its second derivatives are zero.

    >>> loss_reduction(nn.MSELoss(reduction="sum"), torch.zeros(2, 3), torch.zeros(2, 3))
    'sum'
    """
    pattern = torch.linspace(0.1, 0.9, z.numel(), dtype=z.dtype, device=z.device).reshape(z.shape)
    for at in (pattern, y + pattern) if y.shape == z.shape else (pattern,):
        single = torch.cat([output_hessians(loss_fn, at[i : i + 1], y[i : i + 1]) for i in range(len(z))])
        batch = output_hessians(loss_fn, at, y, reduction="sum")
        if bool(single.any()):
            break
    else:
        raise ValueError("the loss is not twice differentiable, or piecewise linear: its second derivatives are zero")
    slack = 10 * math.sqrt(torch.finfo(z.dtype).eps) * single.abs().max()
    for reduction, share in (("mean", 1 / len(z)), ("sum", 1.0)):
        if bool(((batch - share * single).abs() <= share * slack).all()):
            return reduction
    raise _neither()


def _neither() -> ValueError:
    return ValueError(
        "the loss of a batch is neither the mean nor the sum of the losses of its samples (class weights, ignored "
        'targets, or samples that see each other): give a loss that is, such as one with reduction="sum"'
    )


def batches(model: nn.Module, data: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (x, y) of ``data``, which is one such pair or an iterable of them, on the model's device."""
    param = next(model.parameters(), None)
    for x, y in pairs(data):
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or len(x) != len(y) or not len(x):
            raise ValueError(
                "data must be pairs of tensors (x, y) of equal, positive length along the first axis: there is no data "
                "here, or inputs without targets"
            )
        if not x.is_floating_point():
            raise ValueError(f"inputs must be floating-point tensors, got {x.dtype}")
        yield (x, y) if param is None else (x.to(param.device), y.to(param.device))
