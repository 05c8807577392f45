"""A figure as it is printed and published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Table:
    """
    Rows of text under a heading, with a paragraph that says what was measured.

    The last two columns are always what is required and whether it is met; most rows leave them empty.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    text: str = ""

    def add(self, *cells: str, must: str = "", met: str = "") -> None:
        self.rows.append([*cells, must, met])

    def __str__(self) -> str:
        rows = [[*self.columns, "must", "met"], *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        lines = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
        return f"## {self.title}\n\n" + "\n".join(lines) + f"\n\n{self.text}\n"


def verdict(**claims: bool) -> str:
    """``"yes"``, ``"no"``, or which is which: ``"p50 yes, p99 no"``."""
    if len(set(claims.values())) == 1:
        return "yes" if all(claims.values()) else "no"
    return ", ".join(f"{name.replace('_', ' ')} {'yes' if holds else 'no'}" for name, holds in claims.items())


def middle(values: Iterable[float], form: str = "{:.2f}") -> str:
    """The median, with the extremes of the rounds."""
    values = list(values)
    shown = [form.format(value) for value in (median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"
