"""Tables, times and durations as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

# A cell that would make the table wider is cut.
WIDEST = 60

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """
    Columns as wide as they need to be; an empty cell is a dash.

    Where a row would be wider than `width` each one is several lines, one for each cell that is not empty.
    """
    lines = [list(headers), *([_cut(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        wide = max(map(len, headers))
        return "\n\n".join(
            "\n".join(
                f"{header:{wide}}  {' '.join(cell.split())}" for header, cell in zip(headers, row, strict=True) if cell
            )
            for row in rows
        )
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cut(cell: str) -> str:
    cell = " ".join(cell.split())
    return cell if len(cell) <= WIDEST else f"{cell[: WIDEST - 1]}…"


def lasting(duration: timedelta) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``: the two largest units, without a sign."""
    left, said = round(abs(duration).total_seconds()), list[str]()
    for unit, seconds in _UNITS:
        number, left = divmod(left, seconds)
        if number or (unit == "s" and not said):
            said.append(f"{number} {unit}")
        elif said:
            break
    return " ".join(said[:2])


def ago(instant: datetime | None, now: datetime) -> str:
    """How long ago, or in how long, an instant is; ``""`` of None."""
    if instant is None:
        return ""
    return f"in {lasting(instant - now)}" if instant > now else f"{lasting(now - instant)} ago"


def local(instant: datetime | None) -> str:
    """An instant with its zone: ``Mon 2026-03-30 06:00:00 CEST``."""
    return f"{instant:%a %Y-%m-%d %H:%M:%S %Z}" if instant is not None else ""


def iso(instant: datetime | None) -> str | None:
    """As JSON has it."""
    return None if instant is None else instant.isoformat()
