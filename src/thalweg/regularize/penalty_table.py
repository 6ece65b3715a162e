"""What a penalty did to every weight of a model, and what it left alone, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PenaltyRow", "PenaltyTable"]


@dataclass(frozen=True)
class PenaltyRow:
    """What one penalty does to one weight.

    Attributes:
        penalty: class of the penalty.
        layer: name of the weight in the model.
        shape: its shape.
        value: R(W); None if the weight is not regularized.
        coefficient: c(t) · f_l, 0 if the weight is not regularized.
        note: why it is not regularized, or a remark on the value.
    """

    penalty: str
    layer: str
    shape: tuple[int, ...]
    value: float | None
    coefficient: float
    note: str = ""


class PenaltyTable(list[PenaltyRow]):
    """Rows for every weight of a model, regularized or not; printing gives a Markdown table and the reasons."""

    @property
    def regularized(self) -> list[PenaltyRow]:
        """The rows with a value."""
        return [row for row in self if row.value is not None]

    @property
    def skipped(self) -> list[PenaltyRow]:
        """The rows without: what is not regularized, and why."""
        return [row for row in self if row.value is None]

    @property
    def total(self) -> float:
        """Σ c(t) f_l R(W_l): what the penalty adds to the loss (on average, if not at every step)."""
        return sum(row.coefficient * row.value for row in self if row.value is not None)

    def __str__(self) -> str:
        lines = ["| penalty | weight | shape | value | coefficient | note |", "|---|---|---|---|---|---|"]
        for row in self.regularized:
            shape = " x ".join(map(str, row.shape))
            cells = row.penalty, row.layer, shape, f"{row.value:.4g}", f"{row.coefficient:.3g}", row.note
            lines.append(f"| {' | '.join(cells)} |")
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in self.skipped:
            reasons.setdefault((row.penalty, row.note), []).append(row.layer)
        if reasons:
            lines += ["", "Not regularized:"]
            lines += [f"- {penalty}: {', '.join(names)}: {note}" for (penalty, note), names in reasons.items()]
        return "\n".join(lines)
