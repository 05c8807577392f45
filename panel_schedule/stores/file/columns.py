"""How instants, keys and schedules stand in the columns of a database."""

from __future__ import annotations

import logging
import pickle
from datetime import datetime
from typing import Any

from ...coordination.record import instant_of, micros
from ...errors import ValueRefused, is_interrupt
from ...triggers import Dates, Every
from ..base import Mark

log = logging.getLogger("panel_schedule")


def stored_key(key: datetime | str | None) -> str | None:
    return f"@{micros(key)}" if isinstance(key, datetime) else key


def key_of(stored: str | None) -> datetime | str | None:
    return instant_of(int(stored[1:])) if stored and stored.startswith("@") else stored


def stored_mark(mark: Mark | None) -> Any:
    return micros(mark) if isinstance(mark, datetime) else mark


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
