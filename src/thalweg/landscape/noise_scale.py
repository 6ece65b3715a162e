r"""Gradient noise scale: the batch size at which a gradient's noise is as large as the gradient.

    B = tr Σ / |G|²      G = E g_i, Σ = Cov g_i over samples                 McCandlish et al. 2018, eq. 2.9 ("simple")

Both parts are estimated without bias: from per-sample gradients g_i, i = 1 … N,

    tr Σ = Σ_i |g_i - ḡ|² / (N - 1),   |G|² = |ḡ|² - tr Σ / N

or from the squared norms of two batches of b < B samples each drawn independently (appendix A.1), free where training
with several devices has both:

    |G|² = (B |G_B|² - b |G_b|²) / (B - b),   tr Σ = (|G_b|² - |G_B|²) / (1/b - 1/B)

A ratio of unbiased estimates is biased itself: average the two parts over steps first, then divide. An estimate of |G|²
may be negative near a minimum; the scale is then infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad

from thalweg.curvature.evaluation import require_independent_samples
from thalweg.curvature.premises import require_loss_of_output
from thalweg.landscape._objective import LossFunction, evaluate, flat_parameters, require_deterministic
from thalweg.landscape._samples import each_sample, one_number, parts_of

__all__ = ["NoiseScale", "gradient_noise_scale", "noise_scale_from_norms"]


@dataclass(frozen=True)
class NoiseScale:
    """Unbiased estimates of ``noise``, tr Σ, and of ``signal``, the squared norm of G.

    >>> NoiseScale(noise=6.0, signal=2.0).scale
    3.0
    """

    noise: float
    signal: float

    @property
    def scale(self) -> float:
        """Noise over signal; infinite where the estimate of |G|² is not positive."""
        return self.noise / self.signal if self.signal > 0 else float("inf")


def gradient_noise_scale(model: nn.Module, loss_fn: LossFunction, data: Any, *, chunk: int = 50) -> NoiseScale:
    """Noise scale from the gradient of every sample; costs one pass and the memory of ``chunk`` gradients.

    Args:
        model: in evaluation mode if it has batch normalization or dropout; it is not touched.
        loss_fn: ``loss_fn(output, target)``, the mean over the batch; called with batches of one.
        data: a pair (inputs, targets), or batches of them.
        chunk: samples differentiated at a time.

    Raises:
        TypeError: data that are no pairs, or can be read only once.
        ValueError: fewer than two samples, inputs without targets, batch statistics, a random output, no trainable
            parameter, a loss of a sample that is not one number or reads the parameters themselves, or a gradient that
            is not finite.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.ones(2, 1), torch.tensor([[-1.0], [-2.0]])  # gradients 2 and 4
    >>> gradient_noise_scale(model, nn.functional.mse_loss, data)
    NoiseScale(noise=2.0, signal=8.0)
    """
    require_independent_samples(model)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: at least one sample at a time expected")
    params, theta = flat_parameters(model)
    require_deterministic(model, data)
    x, y = next(parts_of(data, theta.device, 1))
    with torch.no_grad():
        require_loss_of_output(loss_fn, evaluate(model, {}, x), y, model.named_parameters())

    def loss(params: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        return one_number(loss_fn(evaluate(model, params, x), y))

    def gradient(x: Any, y: Any) -> Tensor:
        return torch.cat([part.reshape(-1) for part in grad(loss)(params, x, y).values()])

    n, mean, spread = 0, torch.zeros_like(theta), theta.new_zeros(())
    for x, y in parts_of(data, theta.device, chunk):
        g = each_sample(gradient, x, y)
        # Chan's update keeps the digits that Σ|g|² - N|ḡ|² cancels
        count, centre = len(g), g.mean(dim=0)
        spread = spread + (g - centre).square().sum() + (centre - mean).square().sum() * n * count / (n + count)
        mean, n = torch.lerp(mean, centre, count / (n + count)), n + count
    if n < 2:
        raise ValueError(f"{n} sample: at least two expected, for a variance")
    if not bool(torch.isfinite(spread)):
        raise ValueError("a sample's gradient is not finite: give weights and data with a finite loss")
    noise = float(spread) / (n - 1)
    return NoiseScale(noise, float(mean.square().sum()) - noise / n)


def noise_scale_from_norms(small: float, large: float, small_batch: int, large_batch: int) -> NoiseScale:
    """Noise scale from the squared gradient norms of a small and a large batch.

    Args:
        small: |G_b|², best averaged over many batches.
        large: |G_B|².
        small_batch: b >= 1.
        large_batch: B > b.

    Raises:
        ValueError: batch sizes out of order.

    >>> noise_scale_from_norms(3.0, 2.0, 1, 2)  # |G|² = 1 and tr Σ = 2: 1 + 2/1 and 1 + 2/2
    NoiseScale(noise=2.0, signal=1.0)
    """
    b, B = small_batch, large_batch
    if not 1 <= b < B:
        raise ValueError(f"batches of {b} and {B} samples: a small one of at least 1 and a larger one expected")
    return NoiseScale((small - large) / (1 / b - 1 / B), (B * large - b * small) / (B - b))
