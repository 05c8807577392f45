"""How instants, keys and schedules stand in the columns of a database."""

from __future__ import annotations

import logging
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

from ...errors import ValueRefused, is_interrupt
from ...triggers import Dates, Every
from ..base import Mark

log = logging.getLogger("panel_schedule")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)


def micros(instant: datetime | None) -> int | None:
    """Microseconds since 1970: exact, and in order."""
    return None if instant is None else (instant - EPOCH) // _TICK


def instant_of(micros: int | None) -> datetime | None:
    """The other way round."""
    return None if micros is None else EPOCH + micros * _TICK


def stored_key(key: datetime | str | None) -> str | None:
    return f"@{micros(key)}" if isinstance(key, datetime) else key


def key_of(stored: str | None) -> datetime | str | None:
    return instant_of(int(stored[1:])) if stored and stored.startswith("@") else stored


def stored_mark(mark: Mark | None) -> Any:
    return micros(mark) if isinstance(mark, datetime) else mark


def storable(text: str) -> str:
    """What can be stored: a file name in an error may be no valid text."""
    return text.encode("utf-8", "backslashreplace").decode()


def portable(trigger: Any) -> bytes | None:
    """What the other processes of this server get instead of their own, if it means the same there."""
    return pickle.dumps(trigger) if isinstance(trigger, (Dates, Every)) else None


def pickled(task: str, trigger: Any) -> bytes:
    try:
        return pickle.dumps(trigger)
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise ValueRefused(
            f"Task {task!r}: the schedule {trigger} cannot be shared by processes ({error}). Reschedule it to a "
            "period, a cron expression or dates."
        ) from error


def unpickled(task: str, data: bytes | None) -> Any:
    try:
        return None if data is None else pickle.loads(data)
    except BaseException as error:
        if is_interrupt(error):
            raise
        log.error("Task %r: a schedule that was stored cannot be read, so the one in the code holds: %s", task, error)
        return None
