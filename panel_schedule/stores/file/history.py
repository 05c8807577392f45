"""How the lines of a log are written down."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...coordination.record import instant_of, micros
from ...functions.run import RunRecord, RunState

RUN = "id, key, state, attempt, queued_at, started_at, finished_at, error, reason, until"

# What most lines do not have, and those of earlier releases never.
MORE = ("owner", "user", "arguments", "traceback", "logs")


def row_of(run: RunRecord) -> tuple[Any, ...]:
    """The values of these columns."""
    key = f"@{micros(run.key)}" if isinstance(run.key, datetime) else run.key
    times = map(micros, (run.queued_at, run.started_at, run.finished_at))
    return (run.id, key, str(run.state), run.attempt, *times, run.error, run.reason, micros(run.until))


def more_of(run: RunRecord) -> dict[str, str]:
    """What else there is of it."""
    return {name: text for name in MORE if (text := getattr(run, name))}


def run_of(row: sqlite3.Row | Mapping[str, Any], more: Mapping[str, str]) -> RunRecord:
    """The other way round. What a newer release has added is left out."""
    queued_at, started_at, finished_at = (instant_of(row[f"{what}_at"]) for what in ("queued", "started", "finished"))
    return RunRecord(
        row["id"], key_of(row["key"]), RunState(row["state"]), row["attempt"], queued_at, started_at, finished_at,
        row["error"], row["reason"], instant_of(row["until"]), *(more.get(name, "") for name in MORE),
    )  # fmt: skip


def key_of(stored: str | None) -> datetime | str | None:
    """The slot or request of a run."""
    return instant_of(int(stored[1:])) if stored and stored.startswith("@") else stored
