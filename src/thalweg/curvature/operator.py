r"""The Hessian of a loss over a data set, as a matrix that is only ever multiplied.

    H = ∇²L(θ) = H_O + H_F,    H_O = (1/N) Σᵢ Jᵢᵀ Aᵢ Jᵢ,    H_F = (1/N) Σᵢ Σ_c (∂lᵢ/∂z_c) ∇²z_c        seed 003, (4)

with zᵢ = f_θ(xᵢ) the output, lᵢ the loss of one sample, Jᵢ = ∂zᵢ/∂θ and Aᵢ = ∇²_z lᵢ. H_O is the Gauss-Newton matrix
(the Fisher matrix for cross-entropy), H_F the remainder. L is defined in `chunks`, the products in `second_order`.

Activations and adjoints of all the data are kept if they fit the memory budget: a product then costs two gradients
(Gauss-Newton: 1.33). Beyond it each product computes them anew, chunk by chunk, for three gradients (1.67), and the
columns of `matmat` share that work. Keeping costs nothing but memory (the set-up *is* one gradient), so there is no
number of products below which it would not pay; a linearization by torch.func.linearize costs 15 to 30 gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.curvature.chunks import LossFunction, read_batches, sample_count
from thalweg.curvature.evaluation import Mode, evaluation_copy, require_autograd
from thalweg.curvature.graph import Network
from thalweg.curvature.premises import is_separable, require_loss_of_output
from thalweg.curvature.recording import Recording, add_up
from thalweg.curvature.second_order import Kind, Maybe, Tape

__all__ = ["CurvatureOperator", "NumpyOperator"]

KINDS = ("hessian", "ggn", "remainder")


class CurvatureOperator:
    """Hessian, Gauss-Newton matrix or remainder of a loss at a model's present weights, a symmetric (P, P) operator.

    The weights are copied: later changes to the model do not reach the operator. Its rows follow
    ``model.named_parameters()``, of which those with ``requires_grad`` count.

    Args:
        model: called as ``model(input)``; left as it is.
        loss_fn: ``loss_fn(output, target)``, a scalar, as a rule the mean over the batch.
        data: one pair (input, target) or an iterable of such pairs, read once and kept.
        kind: "hessian", "ggn" (H_O) or "remainder" (H_F).
        params: which parameters, by name; None takes all. The others are constants.
        mode: what to do with batch normalization and dropout in training mode: "refuse", "eval" or "batch" (see
            `evaluation_copy`); with "batch" no batch is cut.
        memory: bytes for activations kept and for the work on one chunk, estimated from two samples.

    Attributes:
        shape: (P, P).
        names: the parameters that count.
        products: how many products with a vector have been computed.

    Raises:
        ValueError: no data, no trainable parameter, parameters of several types or complex, a loss that is not finite,
            not a scalar, not twice differentiable, independent of the output or dependent on the weights besides, a
            model that fails on the data or is random, layers in training mode, or a batch that exceeds the budget and
            cannot be cut.
        TypeError: data that are no pairs.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> H = CurvatureOperator(model, nn.functional.mse_loss, (x, y))  # 2/N Σ x xᵀ = diag(1, 4)
    >>> H @ torch.tensor([1.0, 1.0])
    tensor([1., 4.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        *,
        kind: Kind = "hessian",
        params: Callable[[str], bool] | None = None,
        mode: Mode = "refuse",
        memory: int = 2 * 2**30,
    ) -> None:
        _require_kind(kind)
        require_autograd()
        self.loss_fn, self._mode, self._memory = loss_fn, mode, memory
        self.model = evaluation_copy(model, mode)
        active = {
            name: param
            for name, param in self.model.named_parameters()
            if param.requires_grad and param.numel() and (params is None or params(name))
        }
        for name, param in self.model.named_parameters():
            param.requires_grad_(name in active)  # of the copy
        if not active:
            which = "has no trainable parameter" if params is None else "has no trainable parameter that params selects"
            raise ValueError(f"the model {which}: at least one must have requires_grad=True")
        if len({(param.dtype, param.device) for param in active.values()}) > 1:
            raise ValueError(
                "the parameters are of several types or on several devices: convert or select them by params"
            )
        first = next(iter(active.values()))
        if first.is_complex():
            raise ValueError(f"the parameters are {first.dtype}: hold their real and imaginary parts as two tensors")
        self.dtype, self.device = first.dtype, first.device
        self.names, self._params = tuple(active), list(active.values())
        self.shape = (sum(param.numel() for param in self._params),) * 2
        self.products = 0
        self.batches = read_batches(data, self.device)
        largest = max((x for x, _ in self.batches), key=sample_count)
        self._recording = Recording(
            Network(self.model, active),
            loss_fn,
            self.batches,
            memory=memory,
            whole=mode == "batch" or not is_separable(self.model, largest),
            forward_only=kind == "ggn",
        )
        x, y = self._recording.first
        with torch.no_grad():
            z = self.model(x)
        require_loss_of_output(loss_fn, z, y, ((name, p) for name, p in model.named_parameters() if name in active))
        self.kind = self._known(kind)

    @property
    def cached(self) -> bool:
        """Whether the activations of all the data are kept."""
        return self._recording.cached

    @property
    def traced(self) -> bool:
        """Whether the model is taken operation by operation; as a whole a product costs about 3 gradients."""
        return self._recording.network.graph is not None

    @property
    def outputs(self) -> int:
        """K, the numbers that the model returns for a sample."""
        return self._recording.outputs

    def loss(self) -> Tensor:
        """L, a scalar."""
        return self._recording.loss.clone()

    def gradient(self) -> Tensor:
        """∇L: (P,)."""
        return self.flatten(self._recording.gradient())

    def matvec(self, v: Tensor) -> Tensor:
        """The product with v: (P,).

        Raises:
            ValueError: v is no vector of P numbers.
        """
        if not isinstance(v, Tensor) or v.shape != (self.shape[0],):
            raise ValueError(f"a product needs a tensor of {self.shape[0]} numbers, got {_described(v)}")
        return self.matmat(v.unsqueeze(1)).squeeze(1)

    def matmat(self, V: Tensor) -> Tensor:
        """The product with every column of V: (P, k), at the cost of k products; without a cache they share a pass.

        Raises:
            ValueError: V does not have P rows.
        """
        if not isinstance(V, Tensor) or V.ndim != 2 or len(V) != self.shape[0]:
            raise ValueError(f"a product needs a tensor of {self.shape[0]} rows, got {_described(V)}")
        columns = [self._split(v) for v in V.to(self.device, self.dtype).mT.contiguous()]
        sums: list[list[Maybe]] = [[] for _ in columns]
        for tape in self.tapes():
            sums = [add_up([total, tape.product(v, self.kind)]) for v, total in zip(columns, sums, strict=True)]
        self.products += len(columns)
        return torch.stack([self.flatten(total) for total in sums], 1) if sums else V.new_zeros(V.shape)

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matmat(other) if isinstance(other, Tensor) and other.ndim > 1 else self.matvec(other)

    def dense(self) -> Tensor:
        """The matrix itself: (P, P), by P products; made exactly symmetric. For small P.

        >>> CurvatureOperator(nn.Linear(1, 1), nn.functional.mse_loss, (torch.ones(1, 1), torch.ones(1, 1))).dense()
        tensor([[2., 2.],
                [2., 2.]])
        """
        matrix = self.matmat(torch.eye(self.shape[0], dtype=self.dtype, device=self.device))
        return (matrix + matrix.mT) / 2

    def with_kind(self, kind: Kind) -> CurvatureOperator:
        """The same loss, weights and cache seen as another matrix, with a count of its own."""
        other = copy.copy(self)
        other.kind, other.products = self._known(kind), 0
        return other

    def restrict(self, params: Callable[[str], bool]) -> CurvatureOperator:
        """The diagonal block of the parameters that ``params`` selects by name, on a recording of its own."""
        return CurvatureOperator(
            self.model,
            self.loss_fn,
            self.batches,
            kind=self.kind,
            params=params,
            mode=self._mode,
            memory=self._memory,
        )

    def tapes(self) -> Iterator[Tape]:
        """The linearized chunks of the data, kept or made anew."""
        return self._recording.sweep()

    def flatten(self, parts: Sequence[Maybe]) -> Tensor:
        """A tensor for each parameter, None for zero, as one vector: (P,)."""
        pairs = zip(parts, self._params, strict=True)
        return torch.cat([(torch.zeros_like(param) if part is None else part).reshape(-1) for part, param in pairs])

    def unflatten(self, v: Tensor) -> dict[str, Tensor]:
        """v: (P,) as a tensor for each parameter (views)."""
        return dict(zip(self.names, self._split(v), strict=True))

    def numpy(self) -> NumpyOperator:
        """The operator on NumPy arrays, as ``scipy.sparse.linalg.aslinearoperator`` and SciPy's solvers take it."""
        return NumpyOperator(self)

    def _known(self, kind: Kind) -> Kind:
        _require_kind(kind)
        if kind != "hessian" and not self._recording.one_tensor:
            raise ValueError(
                "the model must return one tensor for a Gauss-Newton matrix and a remainder: the loss is taken as a "
                "whole, of which only the Hessian is known"
            )
        return kind

    def _split(self, v: Tensor) -> list[Tensor]:
        parts = torch.split(v, [param.numel() for param in self._params])
        return [part.view(param.shape) for part, param in zip(parts, self._params, strict=True)]


def _described(v: Any) -> str:
    return f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else f"{type(v).__name__} (numpy() is for arrays)"


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


class NumpyOperator:
    """What SciPy asks of a linear operator, without SciPy.

    >>> H = CurvatureOperator(nn.Linear(1, 1), nn.functional.mse_loss, (torch.ones(1, 1), torch.ones(1, 1))).numpy()
    >>> H.matvec(np.array([1.0, 0.0]))
    array([2., 2.], dtype=float32)
    """

    def __init__(self, operator: CurvatureOperator) -> None:
        self._operator = operator
        self.shape = operator.shape
        self.dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype

    def matvec(self, v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The product with v: (P,) or (P, 1)."""
        return self.matmat(v.reshape(-1, 1)).reshape(v.shape)

    def matmat(self, V: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The product with V: (P, k)."""
        out: np.ndarray[Any, Any] = self._operator.matmat(torch.tensor(np.ascontiguousarray(V))).cpu().numpy()
        return out

    rmatvec, rmatmat = matvec, matmat
