r"""Channel pruning by the Taylor criterion: drop the feature maps whose removal changes the loss least, to first order.

Let z be the feature map of a channel (the output of a convolution, or one unit of a linear layer) and C the loss of one
example. Setting z to 0 changes C by about Σ z · ∂C/∂z. The criterion of a channel is the size of that change,

    Θ = mean over examples of |mean over positions of z · ∂C/∂z|,    Θ̂ = Θ / √(Σ Θ² over the layer's channels)

and the channels of smallest Θ̂ in the whole network are removed. Normalizing by layer makes layers comparable.

Source: Molchanov, Tyree, Karras, Aila, Kautz, "Pruning convolutional neural networks for resource efficient inference",
ICLR 2017, equations 6-8 (seed 002 names it among the existing solutions). There pruning alternates with fine-tuning:
score, prune a few channels, train on, repeat.

Deviations: z is the layer's own output, where the paper takes it after the activation; a channel that feeds a
normalization layer with a bias therefore leaves that bias behind. Channels are masked by `torch.nn.utils.prune`, not
cut out: the network computes the pruned function at the old cost. ``prune.remove`` makes the masks permanent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from thalweg.operators import applied_weight
from thalweg.regularize.layer import CONVOLUTIONS, TRANSPOSED

__all__ = ["prune_channels_", "taylor_scores"]


def taylor_scores(
    model: nn.Module,
    loss_fn: Callable[[Any, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    types: tuple[type[nn.Module], ...] = CONVOLUTIONS,
) -> dict[str, Tensor]:
    """Θ̂ of every output channel of the model's layers of the given types.

    The model is in evaluation mode meanwhile, so that examples do not mix and no running average moves.

    Args:
        model: any model; not changed.
        loss_fn: (output, target) -> mean loss of a batch.
        batches: (input, target) pairs.
        types: layers whose channels are scored: convolutions, or linear layers with features on the last axis.

    Returns:
        Layer name -> (channels,), with Σ Θ̂² = 1 unless no channel matters; layers that are not reached are not in it.

    Raises:
        ValueError: no batch, or no layer of the types is reached.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0], [4.0]]))
    >>> taylor_scores(model, lambda y, _: y.sum(), [(torch.ones(1, 1), torch.ones(1))], types=(nn.Linear,))
    {'': tensor([0.6000, 0.8000])}
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, types)}
    outputs: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, _: object, output: Tensor) -> Tensor:
        if not output.requires_grad:  # a frozen network
            output = output.detach().requires_grad_().clone()
        outputs.append((module, output))
        return output

    handles = [module.register_forward_hook(record) for module in names]
    modes = {module: module.training for module in model.modules()}
    theta: dict[str, Tensor] = {}
    try:
        model.eval()
        for x, target in batches:
            outputs.clear()
            with torch.enable_grad():
                loss = loss_fn(model(x), target)
                gradients = torch.autograd.grad(loss, [z for _, z in outputs], allow_unused=True)
            for (module, z), gradient in zip(outputs, gradients, strict=True):
                if gradient is not None:
                    product = z.detach() * gradient * len(x)  # of a mean over the batch, to that of one example
                    if isinstance(module, nn.Linear):
                        product = product.movedim(-1, 1)
                    effect = product.flatten(2).mean(2) if product.ndim > 2 else product
                    theta[names[module]] = theta.get(names[module], torch.zeros(())) + effect.abs().sum(0)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not theta:
        raise ValueError(f"no output of a layer of types {[t.__name__ for t in types]} reaches the loss of a batch")
    return {name: row / row.norm().clamp(min=torch.finfo(row.dtype).tiny) for name, row in theta.items()}


def prune_channels_(model: nn.Module, scores: Mapping[str, Tensor], amount: int | float) -> dict[str, list[int]]:
    """Mask the output channels of smallest score, over all layers at once; every layer keeps at least one.

    Weight and bias of a channel are set to zero by `torch.nn.utils.prune` and stay so while training goes on. Channels
    that are masked already do not count.

    Args:
        model: changed in place.
        scores: layer name -> (channels,), as from `taylor_scores`.
        amount: how many channels to mask, or which fraction of those left if it is a float.

    Returns:
        Layer name -> the channels masked by this call.

    Raises:
        ValueError: a fraction outside [0, 1], more channels than can be spared, scores that are not finite or not one
            for each channel, or a layer whose weight cannot be masked by rows (transposed or parametrized).

    >>> model = nn.Linear(3, 2)
    >>> prune_channels_(model, {"": torch.tensor([0.6, 0.8])}, 1)
    {'': [0]}
    >>> model(torch.ones(1, 3))[0, 0].item()
    0.0
    """
    candidates: list[tuple[float, str, int]] = []
    spare = 0
    for name, theta in scores.items():
        module = model.get_submodule(name)
        _check_rows(name, module, theta)
        mask = getattr(module, "weight_mask", None)
        alive = range(len(theta)) if mask is None else mask.flatten(1).any(1).nonzero().flatten().tolist()
        candidates += [(float(theta[channel]), name, channel) for channel in alive]
        spare += max(len(alive) - 1, 0)
    if isinstance(amount, float) and not 0 <= amount <= 1:
        raise ValueError(f"amount={amount}: a fraction of the channels lies between 0 and 1; give a count as an int")
    count = round(amount * len(candidates)) if isinstance(amount, float) else amount
    if not 0 <= count <= spare:
        raise ValueError(f"{count} channels cannot be masked: {len(candidates)} are left, and every layer keeps one")
    left = {name: sum(other == name for _, other, _ in candidates) for name in scores}
    chosen: dict[str, list[int]] = {}
    for _, name, channel in sorted(candidates):
        if count and left[name] > 1:
            chosen.setdefault(name, []).append(channel)
            left[name] -= 1
            count -= 1
    for name, channels in chosen.items():
        module = model.get_submodule(name)
        for tensor in ("weight", "bias"):
            value = getattr(module, tensor, None)
            if value is not None:
                keep = torch.ones_like(value)
                keep[channels] = 0
                prune.custom_from_mask(module, tensor, keep)  # type: ignore[no-untyped-call]
        channels.sort()
    return chosen


def _check_rows(name: str, module: nn.Module, theta: Tensor) -> None:
    """Refuse scores that do not say which rows of the weight to mask."""
    if isinstance(module, TRANSPOSED):
        reason = f"the rows of a {type(module).__name__}'s weight are its inputs"
    elif parametrize.is_parametrized(module, "weight"):
        reason = "its weight is parametrized: remove the parametrization first"
    elif theta.shape != (rows := len(applied_weight(module)),):
        reason = f"it has {rows} channels and scores of shape {tuple(theta.shape)}"
    elif not theta.isfinite().all():
        reason = "its scores are not finite"
    else:
        return
    raise ValueError(f"channels of {name or 'the model'} cannot be masked: {reason}")
