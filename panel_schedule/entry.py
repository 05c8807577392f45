"""The envelope in which a value travels."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    value: Any
    version: int
    updated_at: datetime
    duration: float | None = None
    run_id: str | None = None
