r"""AdaGrad, AdaDelta, RMSprop, Adam and AdamW: as the lecture prints them, and as they are.

With g = ∇Q(w⁽ᵏ⁻¹⁾), elementwise (seed 004, "Modifications of gradient descent"):

              as printed                                                        torch's form
    AdaGrad   G' = G + g²;              Δ = η g / √(G' + ε)                     Δ = η g / (√G' + ε)
    RMSprop   G' = α G + (1 - α) g²;    Δ = η g / √(G' + ε)                     Δ = η g / (√G' + ε)
    AdaDelta  G' = ρ G + (1 - ρ) g²;    Δ = √E / √(G' + ε) g                    Δ = η √(E + ε) / √(G' + ε) g
              E' = ρ E + (1 - ρ) Δ²
    Adam      m' = β₁ m + (1 - β₁) g,   v' = β₂ v + (1 - β₂) g²
              Δ = η m' / √(v' + ε)                                              Δ = η m̂ / (√v̂ + ε)
    AdamW     Δ = η (m' / √(v' + ε) + ω w)                                      Δ = η (m̂ / (√v̂ + ε) + ω w)

with m̂ = m'/(1 - β₁ᵏ), v̂ = v'/(1 - β₂ᵏ) and w' = w - Δ. AdaDelta's first idea is RMSprop with α = ρ = 0.9.

Errors in print. AdaDelta lacks the ε under the numerator's root: E starts at 0, so Δ = 0 for ever. Adam and AdamW lack
the bias correction: with the usual β the first step is 0.1/√0.001 = 3.16 times too long, the twelfth 6.57 times.
The place of ε matters where G = 0: its root, 10⁻⁵ for AdaGrad, divides instead of ε = 10⁻¹⁰.

Products and quotients are taken in torch's own order (addcmul, addcdiv, lerp): the steps of RMSprop have a length of
about η however near the minimum is, and amplify differences in rounding there by orders of magnitude.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.lecture.descent import Form, Gradient, State

__all__ = ["adadelta", "adagrad", "adam", "adamw", "rmsprop"]


def _root(G: Tensor, eps: float, form: Form) -> Tensor:
    """Divisor √(G + ε) as printed, √G + ε in torch."""
    return (G + eps).sqrt() if form == "printed" else G.sqrt() + eps


def _mean_square(G: Tensor, g: Tensor, rho: float) -> Tensor:
    """Running mean ρ G + (1 - ρ) g²."""
    return torch.addcmul(rho * G, g, g, value=1 - rho)


def adagrad(
    w: Tensor,
    gradient: Gradient,
    state: State = (),
    *,
    eta: float = 1e-2,
    k: int = 1,
    eps: float = 1e-10,
    form: Form = "torch",
) -> tuple[Tensor, State]:
    """One step of AdaGrad; the state is (G,). torch: `torch.optim.Adagrad`, with the lecture's defaults.

    Along a constant gradient the k-th step is η/√k: it never stops growing shorter.

    >>> adagrad(torch.tensor([1.0]), lambda w: 2 * w)[0]  # the first step is η, whatever the gradient
    tensor([0.9900])
    """
    (G,) = state or (torch.zeros_like(w),)
    g = gradient(w)
    G = torch.addcmul(G, g, g)
    return torch.addcdiv(w, g, _root(G, eps, form), value=-eta), (G,)


def rmsprop(
    w: Tensor,
    gradient: Gradient,
    state: State = (),
    *,
    eta: float = 1e-2,
    k: int = 1,
    alpha: float = 0.99,
    eps: float = 1e-8,
    form: Form = "torch",
) -> tuple[Tensor, State]:
    """One step of RMSprop; the state is (G,). torch: `torch.optim.RMSprop`. ``alpha=0.9``: AdaDelta's first idea.

    G starts at 0 without bias correction, in torch too: the first step is η/√(1 - α), ten times η.

    >>> rmsprop(torch.tensor([1.0]), lambda w: 2 * w)[0]
    tensor([0.9000])
    """
    (G,) = state or (torch.zeros_like(w),)
    g = gradient(w)
    G = _mean_square(G, g, alpha)
    return torch.addcdiv(w, g, _root(G, eps, form), value=-eta), (G,)


def adadelta(
    w: Tensor,
    gradient: Gradient,
    state: State = (),
    *,
    eta: float = 1.0,
    k: int = 1,
    rho: float = 0.9,
    eps: float = 1e-6,
    form: Form = "torch",
) -> tuple[Tensor, State]:
    """One step of AdaDelta (second idea: equal dimensions); the state is (G, E). torch: `torch.optim.Adadelta`.

    As printed there is no ε in the numerator (nor an η), and nothing ever moves.

    >>> adadelta(torch.tensor([1.0]), lambda w: 2 * w, form="printed")[0]
    tensor([1.])
    >>> adadelta(torch.tensor([1.0]), lambda w: 2 * w)[0]  # the first step is √(ε/(1 - ρ))
    tensor([0.9968])
    """
    G, E = state or (torch.zeros_like(w), torch.zeros_like(w))
    g = gradient(w)
    G = _mean_square(G, g, rho)
    if form == "printed":
        step, eta = E.sqrt() / (G + eps).sqrt() * g, 1.0
    else:
        step = (E + eps).sqrt() / (G + eps).sqrt() * g
    return w - eta * step, (G, _mean_square(E, step, rho))


def _adam_step(
    w: Tensor, g: Tensor, state: State, *, eta: float, k: int, beta1: float, beta2: float, eps: float, form: Form
) -> tuple[Tensor, State]:
    """The k-th step of Adam from w with the gradient g, and the new (m, v)."""
    m, v = state or (torch.zeros_like(g), torch.zeros_like(g))
    m = m.lerp(g, 1 - beta1)
    v = _mean_square(v, g, beta2)
    if form == "printed":
        return torch.addcdiv(w, m, (v + eps).sqrt(), value=-eta), (m, v)
    root = v.sqrt() / math.sqrt(1 - beta2**k) + eps
    return torch.addcdiv(w, m, root, value=-eta / (1 - beta1**k)), (m, v)


def adam(
    w: Tensor,
    gradient: Gradient,
    state: State = (),
    *,
    eta: float = 1e-3,
    k: int = 1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    form: Form = "torch",
) -> tuple[Tensor, State]:
    """The k-th step of Adam; the state is (m, v). torch: `torch.optim.Adam`.

    >>> printed, _ = adam(torch.tensor([1.0]), lambda w: 2 * w, form="printed")
    >>> right, _ = adam(torch.tensor([1.0]), lambda w: 2 * w)
    >>> printed - 1, right - 1
    (tensor([-0.0032]), tensor([-0.0010]))
    """
    return _adam_step(w, gradient(w), state, eta=eta, k=k, beta1=beta1, beta2=beta2, eps=eps, form=form)


def adamw(
    w: Tensor,
    gradient: Gradient,
    state: State = (),
    *,
    eta: float = 1e-3,
    k: int = 1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    omega: float = 1e-2,
    eps: float = 1e-8,
    form: Form = "torch",
) -> tuple[Tensor, State]:
    """The k-th step of AdamW; the state is (m, v). torch: `torch.optim.AdamW(weight_decay=omega)`.

    The decay ω w stands outside the quotient, as printed; only its Adam part is wrong in print.

    >>> adamw(torch.tensor([1.0]), lambda w: 0 * w, eta=0.1, omega=0.5)[0]  # no gradient: decay alone
    tensor([0.9500])
    """
    g, decayed = gradient(w), w * (1 - eta * omega)
    return _adam_step(decayed, g, state, eta=eta, k=k, beta1=beta1, beta2=beta2, eps=eps, form=form)
