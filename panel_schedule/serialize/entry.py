"""The envelope in which a value travels."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .copies import holding_frames, is_frame, own_copies, own_copy


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A stored value.

    Attributes
    ----------
    value : object
        As ``task()`` reads it: a data frame or series is the reader's own copy, anything else the shared object.
    shared : object
        The very object, which everybody shares: read-only by convention.
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

    shared: Any
    version: int
    updated_at: datetime
    duration: float | None = None
    run_id: str | None = None
    final: bool = True
    wave: datetime | None = None
    # What private copies are made from, of a task with isolate=True: has a ``load()``.
    source: Any = field(default=None, repr=False, compare=False)
    # Of a task with isolate=False, whose readers get the very object.
    exact: bool = field(default=False, repr=False, compare=False)
    # What of it has to be copied for a page, once it was looked for: that takes long in a large value.
    _holding: frozenset[int] | None = field(default=None, repr=False, compare=False)

    @property
    def value(self) -> Any:
        if self.source is not None:
            return self.source.load()
        return self.shared if self.exact else own_copy(self.shared)

    @property
    def is_private(self) -> bool:
        """Whether `value` is another object each time."""
        return self.source is not None or (not self.exact and is_frame(self.shared))

    @property
    def holding(self) -> frozenset[int]:
        """What of it has to be copied for a page."""
        if (holding := self._holding) is None:
            holding = holding_frames(self.shared)
            object.__setattr__(self, "_holding", holding)
        return holding

    def for_page(self) -> Any:
        """It with copies of a page's own of all its tables, which an editable one writes into."""
        return own_copies(self.shared, self.holding)
