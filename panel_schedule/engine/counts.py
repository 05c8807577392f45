"""How often what has happened in this process: what its metrics are made of."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from typing import Any

from ..coordination import history
from ..coordination.tasks import TASK
from ..functions.run import RunRecord, RunState

# The upper ends of the buckets of durations, in seconds; the last one has none.
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

Key = tuple[str, ...]


class Counts:
    """
    Numbers that only grow, by what they count and its labels. On any thread.

    ``("runs", name, kind, outcome)``, ``("duration", name, kind, bucket)`` with the number of the bucket as text,
    ``("seconds", name, kind)`` with the sum of the durations, ``("skipped", name, reason)``, ``("conflicts", name)``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = Counter[Key]()

    def add(self, what: str, *labels: str) -> None:
        """One more."""
        with self._lock:
            self._numbers[(what, *labels)] += 1

    def logged(self, space: str, name: str, run: RunRecord) -> None:
        """A run has ended, and is in the history."""
        if run.state is RunState.SKIPPED and space == TASK:
            return  # which is counted slot by slot
        kind, name = (TASK, name) if space == TASK else history.parts_of(name)
        if run.state is RunState.SKIPPED:
            self.add("skipped", name, run.reason)
            return
        with self._lock:
            self._numbers["runs", name, kind, run.state.value] += 1
            if (duration := run.duration) is not None:
                self._numbers["duration", name, kind, str(bisect_left(BUCKETS, duration))] += 1
                self._numbers["seconds", name, kind] += max(0.0, duration)  # type: ignore[assignment]

    def snapshot(self) -> dict[Key, Any]:
        """All of them as they are now."""
        with self._lock:
            return dict(self._numbers)
