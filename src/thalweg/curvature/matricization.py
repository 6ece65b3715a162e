r"""A network at one input as a product of matrices, and its Gauss-Newton matrix made of them: lemma 1, built.

    z = Λ⁽ᴸ⁺¹⁾ T⁽ᴸ⁺¹⁾ … Λ⁽¹⁾ T⁽¹⁾ x                         seed 003, "networks as a product of matrices"
    H_O = Qᵀ Fᵀ A F Q                                       seed 003, lemma 1

    F = [F₁ … F_{L+1}],   F_p = dz/dvec T⁽ᵖ⁾ = G_p ⊗ h_pᵀ,   G_p = dz/d(T⁽ᵖ⁾h_p),   h_p = Λ⁽ᵖ⁻¹⁾T⁽ᵖ⁻¹⁾ … T⁽¹⁾ x
    Q = blockdiag(Q⁽ᵖ⁾),  Q⁽ᵖ⁾ = dvec T⁽ᵖ⁾/dvec W⁽ᵖ⁾

vec stacks rows, so that vec W is ``W.flatten()``. Everything is dense: this is the picture for small networks, against
which the fast forms (`per_sample`, `bounds`) are tested. Λ⁽ᵖ⁾ is the Jacobian of what follows layer p: zeros and ones
for ReLU, one 1 in each row for max pooling, equal numbers for averages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacrev

from thalweg.curvature.chain import Layer, chain, layer_matrix

__all__ = ["Matricization", "matricize", "weight_derivative"]

LARGEST = 2**26  # numbers in the largest matrix


@dataclass(frozen=True)
class Matricization:
    """The factors of one network at one input, in the order p = 1 … L+1.

    Attributes:
        names: the layers.
        T: their matrices, (out_p, in_p).
        Lambda: the maps between, (in_{p+1}, out_p).
        Q: dvec T⁽ᵖ⁾/dvec W⁽ᵖ⁾, (out_p·in_p, numbers in W⁽ᵖ⁾); the identity for linear layers.
        x: the input of the first layer, flattened.
        z: the model's outputs.

    >>> W, one = torch.tensor([[1.0, 2.0]]), torch.eye(1)
    >>> net = Matricization(("fc",), (W,), (one,), (torch.eye(2),), torch.tensor([3.0, 4.0]), torch.tensor([11.0]))
    >>> net.output, net.gauss_newton(2 * one)  # A x xᵀ
    (tensor([11.]), tensor([[18., 24.],
            [24., 32.]]))
    """

    names: tuple[str, ...]
    T: tuple[Tensor, ...]
    Lambda: tuple[Tensor, ...]
    Q: tuple[Tensor, ...]
    x: Tensor
    z: Tensor

    @property
    def h(self) -> tuple[Tensor, ...]:
        """h_p: what layer p is applied to, by multiplication from x."""
        inputs = [self.x]
        for T, Lambda in zip(self.T, self.Lambda, strict=True):
            inputs.append(Lambda @ (T @ inputs[-1]))
        return tuple(inputs[:-1])

    @property
    def output(self) -> Tensor:
        """The product Λ⁽ᴸ⁺¹⁾ T⁽ᴸ⁺¹⁾ … T⁽¹⁾ x, which is z."""
        return self.Lambda[-1] @ (self.T[-1] @ self.h[-1])

    @property
    def G(self) -> tuple[Tensor, ...]:  # noqa: N802
        """G_p = dz/d(T⁽ᵖ⁾ h_p) = Λ⁽ᴸ⁺¹⁾ T⁽ᴸ⁺¹⁾ … T⁽ᵖ⁺¹⁾ Λ⁽ᵖ⁾: (K, out_p)."""
        products = [self.Lambda[-1]]
        for T, Lambda in zip(reversed(self.T[1:]), reversed(self.Lambda[:-1]), strict=True):
            products.append(products[-1] @ T @ Lambda)
        return tuple(reversed(products))

    @property
    def F(self) -> tuple[Tensor, ...]:  # noqa: N802
        """F_p = G_p ⊗ h_pᵀ: (K, out_p·in_p)."""
        return tuple(torch.kron(G, h.unsqueeze(0)) for G, h in zip(self.G, self.h, strict=True))

    def gauss_newton(self, A: Tensor | None = None) -> Tensor:
        """Qᵀ Fᵀ A F Q over the weights of all layers, flattened in their order.

        Args:
            A: d²l/dz², (K, K); None is that of cross-entropy, diag(p) - ppᵀ.
        """
        if A is None:
            p = torch.softmax(self.z, 0)
            A = torch.diag(p) - torch.outer(p, p)
        J = torch.cat([F @ Q for F, Q in zip(self.F, self.Q, strict=True)], 1)
        return J.mT @ A @ J


def matricize(model: nn.Module, x: Tensor) -> Matricization:
    """Write the network at one input as the product of matrices that it is there.

    Args:
        model: a chain of layers without biases (see `thalweg.curvature.chain.chain`).
        x: one input with its batch axis, (1, …).

    Raises:
        ValueError: more than one input, a bias, a model that is no chain, or matrices of more than 2²⁶ numbers.

    >>> model = nn.Sequential(nn.Conv1d(1, 1, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2, bias=False))
    >>> x = torch.tensor([[[1.0, -2.0, 0.5, 3.0]]])
    >>> net = matricize(model, x)
    >>> [tuple(T.shape) for T in net.T], [tuple(Q.shape) for Q in net.Q]
    ([(3, 4), (2, 3)], [(12, 2), (6, 6)])
    >>> torch.allclose(net.output, model(x)[0])
    True
    """
    if len(x) != 1:
        raise ValueError(f"the matrices depend on the input: give one, of shape (1, …), got {tuple(x.shape)}")
    links, z = chain(model, x)
    T: list[Tensor] = []
    Lambda: list[Tensor] = []
    Q: list[Tensor] = []
    for link in links:
        if link.module.bias is not None:
            raise ValueError(f"layer {link.name!r} has a bias, which a product of matrices has not: set bias=False")
        Q.append(weight_derivative(link.module, link.h.shape[1:]))  # refuses what is too large
        T.append(layer_matrix(link.module, link.h.shape[1:]))
        step = torch.eye(len(T[-1]), dtype=z.dtype, device=z.device)
        for between in link.after:
            columns = between.h[0].numel()
            # a ReLU in place must not change what it is linearized at
            jacobian = jacrev(lambda h, module=between.module: module(h * 1))(between.h)
            step = jacobian.reshape(-1, columns).detach() @ step
        Lambda.append(step)
    names = tuple(link.name for link in links)
    return Matricization(names, tuple(T), tuple(Lambda), tuple(Q), links[0].h.flatten(), z.flatten())


def weight_derivative(module: Layer, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Q = dvec T/dvec W of a linear layer or convolution, for inputs of the shape given: zeros and ones.

    Its largest singular value is √positions: the columns are orthogonal, and each has a 1 for every position at which
    its weight meets the input.

    >>> Q = weight_derivative(nn.Conv1d(1, 1, 2, bias=False), (1, 4))
    >>> Q.mT @ Q
    tensor([[3., 0.],
            [0., 3.]])
    """
    weight = module.weight
    numbers, inputs = weight.numel(), math.prod(shape)
    if isinstance(module, nn.Linear):
        return torch.eye(numbers, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        outputs = module(weight.new_zeros(1, *shape)).numel()
    if outputs * inputs * numbers > LARGEST:
        raise ValueError(
            f"Q would have {outputs}·{inputs} rows and {numbers} columns: matricize is for small networks, "
            "hessian_bounds and per_sample_ggn do without the matrix"
        )

    def matrix(W: Tensor) -> Tensor:
        basis = torch.eye(inputs, dtype=weight.dtype, device=weight.device).reshape(inputs, *shape)
        image: Tensor = torch.func.functional_call(module, {"weight": W}, (basis,))
        return image.reshape(inputs, -1).mT.flatten()

    units = torch.eye(numbers, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        origin = matrix(torch.zeros_like(weight))  # the bias, if there is one
        return torch.stack([matrix(unit.reshape(weight.shape)) - origin for unit in units], 1)
