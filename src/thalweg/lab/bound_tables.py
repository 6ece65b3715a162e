"""Tables of what bounds on Hessians are worth: growth of bound and norm, looseness, what was exceeded.

Results have ``H_O``, ``H`` and, for each bound, "name: log10", "name: loose", "name: exceeded", "name: excess" and
"name: proved" (`thalweg.lab.training.landscape_bounds`). A family is the results in which one setting varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thalweg.lab.experiment import Result, Study, Table
from thalweg.lab.slopes import least_squares_slope
from thalweg.lab.tables import mean_std

__all__ = [
    "FULL",
    "OWN",
    "PRINTED",
    "Family",
    "bound_names",
    "exceeded_table",
    "growth_table",
    "log_norm",
    "looseness_table",
    "norm_slopes",
]

PRINTED = {  # name in the table of bounds: the statement, where it stands
    "lemma 2": ("Lemma 2 bounds the norm of H_O", "lemma 2"),
    "theorem 1": ("Theorem 1 (1-D) bounds the norm of H_O", "theorem 1"),
    "theorem 2": ("Theorem 2 (2-D) bounds the norm of H_O", "theorem 2"),
    "lemma 3": ("Lemma 3 (pooling) bounds the norm of H_O", "lemma 3"),
    "lemma 4": ("Lemma 4 (linear layers behind the convolutions) bounds the norm of H_O", "lemma 4"),
    "lemma 2 for H": ("Lemma 2 also bounds the norm of H, as ||H|| ~ ||H_O||", "lemma 2 with the decomposition"),
    "theorem 1 for H": ("Theorem 1 also bounds the norm of H", "theorem 1 with the decomposition"),
    "theorem 2 for H": ("Theorem 2 also bounds the norm of H", "theorem 2 with the decomposition"),
    "fully connected": ("The predecessor's theorem, without biases, bounds the norm of H", "the predecessor's theorem"),
    "lemma 3, corrected": ("Lemma 3 with the exponent corrected for maxima bounds the norm of H_O", "lemma 3"),
    "lemma 4, corrected": ("Lemma 4 with its ratio turned over bounds the norm of H_O", "lemma 4"),
}
OWN = ("closed form", "operator norms", "operator norms, Fourier", "activations", "Jacobian")
FULL = ("full Hessian, operator norms", "full Hessian, activations", "full Hessian, exact H_O")
GROWTH_NOTE = (
    "Slopes of logarithms by least squares, mean ± std over seeds: e-folds a layer for depth, powers otherwise. "
    "Theorem: 2 in two dimensions, 1 in one."
)
LOOSENESS_NOTE = (
    "Median over images of bound/exact, as its decimal logarithm. H_O, H: median exact norms. Printed: lemma 3 with "
    "pooling, lemma 4 with linear layers, else theorem 2 or 1, the predecessor's theorem for the perceptron. The last "
    "two columns bound H."
)
LOOSE = {
    "H_O": "H_O", "H": "H", "printed": "printed", "corrected": "corrected", "lemma 2: loose": "lemma 2",
    "closed form: loose": "closed form", "operator norms: loose": "operator norms", "activations: loose": "activations",
    "Jacobian: loose": "Jacobian", "full Hessian, activations: loose": "H, activations",
    "full Hessian, exact H_O: loose": "H, exact H_O",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Results in which the setting ``varied`` differs, and the seed."""

    varied: str
    results: Sequence[Result]


def bound_names(results: Sequence[Result]) -> list[str]:
    """Bounds that some result has, printed ones first."""
    have = {key.removesuffix(": log10") for r in results for key in r.values if key.endswith(": log10")}
    return [name for name in (*PRINTED, *OWN, *FULL) if name in have]


def looseness_table(families: Mapping[str, Family]) -> Table:
    """How far bounds lie above the norm, by all that varies; of at least one family."""
    import pandas as pd

    parts = []
    for name, family in families.items():
        told = [replace(r, values={**r.values, **_as_printed(r)}) if r.values else r for r in family.results]
        have = {key: heading for key, heading in LOOSE.items() if any(key in r.values for r in told)}
        formats = {key: ".3g" if key in ("H_O", "H") else ".1f" for key in have}
        part = mean_std(told, {family.varied: "value"}, have, formats=formats).drop(columns="seeds")
        part.insert(0, "varied", name)
        part["value"] = part["value"].map(lambda value: value if isinstance(value, str) else f"{value:g}")
        parts.append(part)
    whole = pd.concat(parts, ignore_index=True)
    columns = [key for key in ("varied", "value", *LOOSE.values(), "not averaged") if key in whole.columns]
    if "not averaged" in columns:
        whole["not averaged"] = whole["not averaged"].fillna("")
    return Table("Bound over exact norm", whole[columns], LOOSENESS_NOTE)


def _as_printed(result: Result) -> dict[str, float]:
    """The looseness of the seed's most special bound on the network, as printed and corrected."""
    special = ("lemma 4", "lemma 3", "theorem 2", "theorem 1", "fully connected")
    name = next(name for name in special if f"{name}: loose" in result.values)
    corrected = f"{name}, corrected: loose"
    found = {"printed": result.values[f"{name}: loose"]}
    return found | ({"corrected": result.values[corrected]} if corrected in result.values else {})


def exceeded_table(study: Study) -> Table:
    """How often and how far the norm of an image lies above a bound."""
    import pandas as pd

    rows = []
    for name in bound_names(study.results):
        found = [r for r in study.results if f"{name}: exceeded" in r.values]
        excess = max(r.values[f"{name}: excess"] for r in found)
        share = [r.values[f"{name}: exceeded"] for r in found]
        proved = sum(r.values[f"{name}: proved"] for r in found)
        rows.append(
            {
                "bound": name,
                "on": "H" if name.endswith("for H") or name in FULL or name == "fully connected" else "H_O",
                "proved": "yes" if proved == len(found) else "no" if not proved else "for averages",
                "networks": len(found),
                "networks exceeding it": sum(value > 0 for value in share),
                "largest exact/bound": f"{excess:.3g}" if excess else "below 1",
            }
        )
    return Table("What was exceeded", pd.DataFrame(rows), "All networks and images; proved as in the documentation.")


def norm_slopes(family: Family, key: str, keep: Callable[[float], bool] = lambda value: True) -> dict[int, float]:
    """Seed -> slope of ln(norm) along a family: per layer for depth, else against the logarithm of what varies.

    Args:
        family: of numbers.
        key: "H_O", "H" or a bound's name.
        keep: which values take part.
    """
    found = {}
    for seed in sorted({r.seed for r in family.results}):
        points = [(getattr(r.config, family.varied), log_norm(r, key)) for r in family.results if r.seed == seed]
        points = [(value, y) for value, y in points if keep(value) and math.isfinite(y)]
        if len(points) > 1:
            x = [float(value) if family.varied == "layers" else math.log(value) for value, _ in points]
            found[seed] = least_squares_slope(x, [y for _, y in points])
    return found


def log_norm(result: Result, key: str) -> float:
    """The natural logarithm of an exact norm or of a bound; NaN where there is none."""
    if key in ("H_O", "H"):
        value = result.values.get(key, math.nan)
        return math.log(value) if value > 0 else math.nan
    return math.log(10) * result.values.get(f"{key}: log10", math.nan)


def growth_table(families: Mapping[str, Family]) -> Table:
    """How fast the norms and the bounds on them grow."""
    import numpy as np
    import pandas as pd

    def cell(slopes: Mapping[int, float]) -> str | None:
        values = list(slopes.values())
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        return f"{np.mean(values):.1f}{spread}" if values else None

    rows = []
    for name, family in families.items():
        if family.varied not in ("layers", "filters", "kernel", "scale"):
            continue
        theorem = "theorem 1" if "1-D" in name else "theorem 2"
        row: dict[str, Any] = {"varied": name, "per": "layer" if family.varied == "layers" else "power"}
        for key in ("H_O", "H", theorem, "lemma 2", "closed form", "operator norms", "activations", "Jacobian"):
            row["theorem" if key == theorem else key] = cell(norm_slopes(family, key))
        rows.append(row)
    return Table("Growth of the norm and of its bounds", pd.DataFrame(rows), GROWTH_NOTE)
