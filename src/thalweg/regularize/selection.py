"""Which weights of a model are taken, by shell patterns of their names, and why the others are left out.

One rule for penalties and for `thalweg.regularize.frame_init_`: a pattern that matches nothing is an error, a weight
shared by several layers is taken once, a frozen one is not, and whatever is left out has a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate

from torch import Tensor, nn

from thalweg.regularize.layer import Layer, weights_of

__all__ = ["Patterns", "check_matched", "not_by_name", "select", "shell_patterns", "unusable"]

Patterns = dict[str, re.Pattern[str]]


def shell_patterns(texts: str | Sequence[str]) -> Patterns:
    """One pattern or several, compiled, by their texts.

    Raises:
        TypeError: something else than strings.

    >>> list(shell_patterns("blocks.*"))
    ['blocks.*']
    """
    given = [texts] if isinstance(texts, str) else texts
    if given is None or not all(isinstance(text, str) for text in given):
        raise TypeError(f"a shell pattern such as 'blocks.*.conv1', or a list of them, is expected, got {texts!r}")
    return {text: re.compile(translate(text)) for text in given}


def not_by_name(layer: Layer, include: Patterns, exclude: Patterns) -> str:
    """Why a weight is left out by its name; "" if it is not.

    >>> not_by_name(Layer("stem", nn.Linear(2, 2)), shell_patterns("*"), shell_patterns(["fc", "stem"]))
    "excluded by 'stem'"
    """
    if not any(layer.matches(pattern) for pattern in include.values()):
        return "not included by name"
    return next((f"excluded by {text!r}" for text, pattern in exclude.items() if layer.matches(pattern)), "")


def unusable(layer: Layer, parts: Sequence[Tensor]) -> str:
    """Why a weight can neither be moved nor have a spectrum; "" if it can.

    Args:
        layer: the weight.
        parts: the parameters that it is made of.
    """
    if not any(part.requires_grad for part in parts):
        return "frozen: it does not require a gradient"
    if parts[0].is_complex():
        return "complex weights are not supported"
    return "" if layer.weight.numel() else "it has no elements"


def check_matched(patterns: Patterns, layers: Iterable[Layer], asker: str) -> None:
    """Refuse patterns that match none of the layers.

    Args:
        patterns: by their texts.
        layers: every weight of a model.
        asker: whose patterns they are, for the message.

    Raises:
        ValueError: there is one, or there are no layers.
    """
    layers = list(layers)
    if patterns and not layers:
        raise ValueError(f"{asker}: the given model has no weights")
    for layer in layers:
        patterns = {text: pattern for text, pattern in patterns.items() if not layer.matches(pattern)}
    if patterns:
        raise ValueError(
            f"{asker}: no weight of the model matches {', '.join(sorted(map(repr, patterns)))}; patterns are compared "
            "with names of modules and of their weights, as in model.named_parameters()"
        )


def select(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...] | None],
    reason: Callable[[Layer, Sequence[Tensor]], str],
    *,
    once: str,
) -> list[tuple[Layer, str]]:
    """Every weight of the model and why it is left out, "" if it is not.

    Args:
        model: any model.
        shapes: what its modules take, by their names, as far as it is known.
        reason: why a weight is left out, from it and the parameters that it is made of.
        once: what happens once to a weight that several layers share.

    >>> tied = nn.Linear(2, 2, bias=False)
    >>> entries = select(nn.Sequential(tied, tied), {}, unusable, once="counted")
    >>> [(layer.path, why) for layer, why in entries]
    [('0.weight', ''), ('1.weight', 'counted once, as 0.weight')]
    """
    entries: list[tuple[Layer, str]] = []
    taken: dict[tuple[int, ...], str] = {}
    for layer, parts in weights_of(model, shapes):
        key = tuple(id(part) for part in parts)
        why = f"{once} once, as {taken[key]}" if key in taken else reason(layer, parts)
        if not why:
            taken[key] = layer.path
        entries.append((layer, why))
    return entries
