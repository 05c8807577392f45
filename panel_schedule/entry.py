"""The envelope in which a value travels."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A stored value.

    Attributes
    ----------
    value : object
        Shared by everybody who reads it: read-only by convention.
    version : int
        From 1; only grows.
    updated_at : datetime
        Aware UTC.
    duration : float or None
        Seconds that its run took; None of a value that was simply put there.
    run_id : str or None
    final : bool
        False of what a generator has yielded before its last value.
    wave : datetime or None
        The slot, or the upstream's, for which the run was made.
    """

    value: Any
    version: int
    updated_at: datetime
    duration: float | None = None
    run_id: str | None = None
    final: bool = True
    wave: datetime | None = None
    # What private copies are made from, of a task with isolate=True: has a ``load()``.
    source: Any = field(default=None, repr=False, compare=False)
