"""The one error a user can cause: a sentence saying what was given, what was expected, what to do. Exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["LabError"]


class LabError(Exception):
    """Bad input or a broken environment, told in one sentence; the command line prints it and exits with 2."""

    @classmethod
    def unknown(cls, kind: str, given: str, known: Iterable[str]) -> LabError:
        """Say that there is no such thing, and name the nearest known one.

        >>> str(LabError.unknown("data set called", "digit", ["digits", "mnist"]))
        "there is no data set called 'digit', did you mean 'digits'? Known: digits, mnist"
        """
        names = list(known)
        near = difflib.get_close_matches(given, names, n=1)
        hint = f", did you mean {near[0]!r}? " if near else ". "
        return cls(f"there is no {kind} {given!r}{hint}Known: {', '.join(names)}")
