r"""Every bound of seed 003 on the Hessian of one sample, as printed and corrected, and tighter ones, beside the truth.

For l = cross-entropy(f(x), y) and a chain of linear layers T⁽ᵖ⁾ with locally linear Λ⁽ᵖ⁾ between (`chain`), with
τ_s = ||T⁽ˢ⁾||, λ_s = ||Λ⁽ˢ⁾||, λ = Π λ_s, and U_p the input h_p of layer p unfolded, with a row of ones for a bias:

    closed form                 |x|²/2 Σ_p κ_p² Π_{s≠p} t_s                                 sizes, largest weights
    operator norms              |x|²/2 λ² Σ_p κ_p² Π_{s≠p} τ_s²                             all inputs of length |x|
    activations                 ||A|| Σ_p ||U_p||² Π_{s>p} τ_s² Π_{s>=p} λ_s²                this input
    Jacobian                    ||A|| ||J||²                                                this input
    full Hessian                ||H_O|| + |p - y| ||M||                                    or any bound on ||H_O||
                                M_pp = 0,  M_pq = M_qp = ||U_p|| κ_q Π_{p<s≠q} τ_s Π_{s>=p} λ_s  for p < q

The last is not in the seed: H_F = Σ_c (p - y)_c d²z_c/dθ² moves two layers at once and never one layer twice, so the
norms of its blocks are at most the entries of |p - y| M.

The seed's forms (`closed_forms`) bound ||H_O|| only. Where it takes them for bounds on ||H|| the table says so, and
that nothing proves it: for small weights they are exceeded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from thalweg.curvature.bound_terms import (
    activation_terms,
    between_norms,
    column_norms,
    coupling,
    hessian_norms,
    norm_terms,
)
from thalweg.curvature.chain import Link, chain, layer_norm, torus_norm
from thalweg.curvature.closed_forms import closed_form
from thalweg.curvature.evaluation import require_autograd
from thalweg.curvature.jacobian_grams import jacobian_grams
from thalweg.curvature.per_sample import output_hessians, product_eigenvalues
from thalweg.curvature.printed_bounds import layer_size, printed_bounds

__all__ = ["Bound", "HessianBounds", "hessian_bounds"]


@dataclass(frozen=True)
class Bound:
    """One bound on n samples.

    Attributes:
        name: of the bound; with "for H" where the seed applies one for H_O to H.
        quantity: "H_O" or "H", the matrix whose norm is bounded.
        value: the bound, (n,).
        exact: the norm itself, (n,).
        proved: whether a proof is known; printed forms may lack one.
        note: what is wrong with it, or what it needs.
        by_layer: its terms, (n, layers), if it is a sum over layers.
        rounding: what ``exact`` may be off by, (n,).
    """

    name: str
    quantity: str
    value: Tensor
    exact: Tensor
    proved: bool
    note: str
    by_layer: Tensor | None
    rounding: Tensor

    @property
    def looseness(self) -> float:
        """Median of bound/exact over the samples with a norm above rounding; NaN if there are none."""
        seen = self.exact > self.rounding
        return float((self.value[seen] / self.exact[seen]).median()) if bool(seen.any()) else math.nan

    @property
    def violations(self) -> int:
        """Samples whose norm exceeds the bound by more than rounding."""
        return int((self.exact > self.value + self.rounding).sum())


@dataclass(frozen=True)
class HessianBounds(Mapping[str, Bound]):
    """All bounds that apply to a network, by name; print it for a table.

    Attributes:
        layers: names of the linear layers.
        bounds: in the order of the table.
        omitted: bounds that do not apply, and why.
        gauss_newton: ||H_O|| of each sample, exactly, (n,).
        hessian: ||H|| of each sample, to 10⁻¹⁰ of it in double precision (`hessian_norms`), (n,); NaN if not wanted.
        blocks: ||J_pᵀ A J_p||, the norm of layer p's diagonal block of H_O, exactly, (n, layers).
        layer_norms: ||T⁽ᵖ⁾||, from above.
    """

    layers: tuple[str, ...]
    bounds: tuple[Bound, ...]
    omitted: Mapping[str, str]
    gauss_newton: Tensor
    hessian: Tensor
    blocks: Tensor
    layer_norms: tuple[float, ...]

    def __getitem__(self, name: str) -> Bound:
        for bound in self.bounds:
            if bound.name == name:
                return bound
        raise KeyError(self.omitted.get(name, name))

    def __iter__(self) -> Iterator[str]:
        return (bound.name for bound in self.bounds)

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def dominant(self) -> str:
        """The layer whose diagonal block of H_O has the largest norm on the median sample."""
        return self.layers[int(self.blocks.median(0).values.argmax())]

    def __str__(self) -> str:
        lines = [
            "| bound | on | median value | bound / exact | exceeded | proved | largest term |",
            "|---|---|---|---|---|---|---|",
        ]
        n = len(self.gauss_newton)
        for b in self.bounds:
            largest = "" if b.by_layer is None else self.layers[int(b.by_layer.median(0).values.argmax())]
            lines.append(
                f"| {b.name} | {b.quantity} | {float(b.value.median()):.3g} | {b.looseness:.3g} | {b.violations}/{n} | "
                f"{'yes' if b.proved else 'no'} | {largest} |"
            )
        lines += [
            "",
            f"exact, median: H_O {float(self.gauss_newton.median()):.3g}, H {float(self.hessian.median()):.3g}",
            "",
            "| layer | norm of T | block of H_O |",
            "|---|---|---|",
        ]
        for name, norm, block in zip(self.layers, self.layer_norms, self.blocks.median(0).values.tolist(), strict=True):
            lines.append(f"| {name}{' (dominant)' if name == self.dominant else ''} | {norm:.3g} | {block:.3g} |")
        lines += ["", *(f"{b.name}: {b.note}" for b in self.bounds if b.note)]
        lines += [f"omitted, {name}: {reason}" for name, reason in self.omitted.items()]
        return "\n".join(lines)


def hessian_bounds(model: nn.Module, x: Tensor, y: Tensor, *, exact_hessian: bool = True) -> HessianBounds:
    """Bounds on ||H_O|| and ||H|| of every sample's cross-entropy, each beside the exact norm.

    Cost: K + 1 passes, one norm of each layer, and the exact norm of H, which is by far the dearest part: some dozens
    of Hessian products per sample.

    Args:
        model: a chain of linear layers and convolutions with ReLU, leaky ReLU, pooling between (see
            `thalweg.curvature.chain.chain`), in evaluation mode.
        x: inputs, (n, …).
        y: classes, (n,), or their probabilities, (n, K).
        exact_hessian: whether to compute ||H||; without it, bounds on H stand beside NaN.

    Returns:
        A table, indexed by the names of the bounds.

    Raises:
        ValueError: the model is no such chain, shares weights, fails on x, or does not return (n, K); or y holds
            something else than classes or probabilities.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = model[0].weight.data.zero_()  # p = (1/2, 1/2): H = H_O = A ⊗ x xᵀ has norm |x|²/2
    >>> table = hessian_bounds(model, torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    >>> table["operator norms"].value.item(), table["operator norms"].exact.item()
    (12.5, 12.5)
    """
    require_autograd()
    links, z = chain(model, x)
    if z.ndim != 2 or z.shape[1] < 2:
        raise ValueError(
            f"the model must return (n, K) logits, K at least 2, got {tuple(z.shape)}: end it with nn.Flatten()"
        )
    _require_targets(z, y)
    tau, lam = [layer_norm(link) for link in links], between_norms(links)
    x2 = links[0].h.flatten(1).square().sum(1)
    biased = next((link.name for link in links if link.module.bias is not None), None)

    A, residual = output_hessians(nn.functional.cross_entropy, z, y), _residual(z, y)
    curvature: Tensor = torch.linalg.matrix_norm(A, 2)
    J, blocks = _gauss_newton(model, links, x)
    norms = product_eigenvalues(A, J)[:, -1]
    jacobian2 = torch.linalg.eigvalsh(J)[:, -1]
    eps = 1e3 * torch.finfo(z.dtype).eps
    truth = {"H_O": norms, "H": torch.full_like(norms, math.nan)}
    if exact_hessian:
        truth["H"] = hessian_norms(model, x, y)
    # A is off by ε where p is nearly a single class, and H_O by ε ||J||²; H_F by a share of itself, of H - H_O
    rounding = {"H_O": eps * jacobian2, "H": eps * (jacobian2 + truth["H"])}
    rows: dict[str, Bound] = {}

    def add(name: str, value: Tensor, *, quantity: str = "H_O", proved: bool = True, note: str = "") -> None:
        by_layer, value = (value, value.sum(1)) if value.ndim == 2 else (None, value)
        rows[name] = Bound(name, quantity, value, truth[quantity], proved, note, by_layer, rounding[quantity])

    omitted: dict[str, str] = {}
    if biased is not None:
        without = ("lemmas 2-4, theorems 1-2", "closed form", "operator norms")
        omitted = dict.fromkeys(without, f"layer {biased!r} has a bias")
    else:
        for name, value, proved, note in printed_bounds(links, x2, tau, omitted):
            add(name, value, proved=proved, note=note, quantity="H" if name == "fully connected" else "H_O")
            if name in ("lemma 2", "theorem 1", "theorem 2"):
                add(
                    f"{name} for H", value, quantity="H", proved=False, note="the seed's ||H|| ~ ||H_O||: no bound on H"
                )
        add("closed form", closed_form(x2, [layer_size(link) for link in links]) * math.prod(lam) ** 2)
        fourier = [
            torus_norm(ln.module, ln.h.shape[2:]) if isinstance(ln.module, _ConvNd) else t
            for ln, t in zip(links, tau, strict=True)
        ]
        add("operator norms", norm_terms(links, x2, tau))
        add("operator norms, Fourier", norm_terms(links, x2, fourier))
    columns = torch.stack([column_norms(link) for link in links], 1)
    add("activations", activation_terms(links, curvature, columns, tau))
    add("Jacobian", curvature * jacobian2)
    if biased is None:
        before = [ln.kappa * math.prod(tau[:p]) * math.prod(lam[:p]) for p, ln in enumerate(links)]
        far = residual * coupling(links, x2.sqrt().unsqueeze(1) * x2.new_tensor(before), tau)
        add("full Hessian, operator norms", rows["operator norms"].value + far, quantity="H")
    near = residual * coupling(links, columns, tau)
    add("full Hessian, activations", rows["activations"].value + near, quantity="H")
    add("full Hessian, exact H_O", norms + near, quantity="H")
    block_norms = torch.stack([product_eigenvalues(A, block)[:, -1] for block in blocks], 1)
    names = tuple(link.name for link in links)
    return HessianBounds(names, tuple(rows.values()), omitted, norms, truth["H"], block_norms, tuple(tau))


def _require_targets(z: Tensor, y: Tensor) -> None:
    probabilities = y.is_floating_point() and y.shape == z.shape
    classes = not y.is_floating_point() and y.shape == z.shape[:1] and bool(((y >= 0) & (y < z.shape[1])).all())
    if not probabilities and not classes:
        raise ValueError(
            f"y must hold a class from 0 to {z.shape[1] - 1} for each of the {len(z)} samples, or their probabilities, "
            f"{tuple(z.shape)}: got {y.dtype} of shape {tuple(y.shape)}"
            + ("" if y.is_floating_point() or not y.numel() else f" from {int(y.min())} to {int(y.max())}")
        )


@torch.enable_grad()
def _residual(z: Tensor, y: Tensor) -> Tensor:
    """|dl/dz| = |p - y|: (n,)."""
    (r,) = torch.autograd.grad(nn.functional.cross_entropy(z := z.detach().requires_grad_(), y, reduction="sum"), z)
    norm: Tensor = r.norm(dim=1)
    return norm


def _gauss_newton(model: nn.Module, links: Sequence[Link], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """J Jᵀ: (n, K, K) over all trainable parameters, and each layer's share of it."""
    _, grams = jacobian_grams(model, x)
    names = {id(param): name for name, param in model.named_parameters()}
    blocks = []
    for link in links:
        own = [grams[names[id(p)]] for p in link.module.parameters() if names[id(p)] in grams]
        blocks.append(torch.stack([torch.zeros_like(next(iter(grams.values()))), *own]).sum(0))
    return torch.stack(blocks).sum(0), blocks
