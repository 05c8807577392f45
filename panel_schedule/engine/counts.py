"""How often what has happened in this process: what its metrics are made of."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict

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
        # Of the runs of a function that ended so: how many, the sum of their seconds, and how many in each bucket.
        self._ended: dict[Key, list[float]] = {}

    def add(self, what: str, *labels: str) -> None:
        """One more."""
        with self._lock:
            self._numbers[(what, *labels)] += 1

    def logged(self, space: str, name: str, run: RunRecord) -> None:
        """A run has ended, and is in the history."""
        if run.state is RunState.SKIPPED:
            if space != TASK:  # of a task each slot is counted where it is left out
                self.add("skipped", history.parts_of(name)[1], run.reason)
            return
        key = (space, name, run.state._value_)  # of which an enum is no quick part
        if (ended := self._ended.get(key)) is None:
            with self._lock:
                ended = self._ended.setdefault(key, [0.0] * (len(BUCKETS) + 3))
        started, finished = run.started_at, run.finished_at
        with self._lock:
            ended[0] += 1
            if started is not None and finished is not None:
                seconds = max(0.0, (finished - started).total_seconds())
                ended[1] += seconds
                ended[2 + bisect_left(BUCKETS, seconds)] += 1

    def ended(self, kind: str, function: str) -> int:
        """How many runs of a function that is called on request have ended."""
        name = history.name_of(kind, function)
        with self._lock:
            return int(sum(ended[0] for key, ended in self._ended.items() if key[:2] == (history.SPACE, name)))

    def snapshot(self) -> dict[Key, float]:
        """All of them as they are now."""
        with self._lock:
            numbers = defaultdict[Key, float](float, self._numbers)
            for (space, name, outcome), (count, seconds, *buckets) in self._ended.items():
                kind, function = (TASK, name) if space == TASK else history.parts_of(name)
                numbers["runs", function, kind, outcome] += count
                if any(buckets):
                    numbers["seconds", function, kind] += seconds
                for number, entered in enumerate(buckets):
                    if entered:
                        numbers["duration", function, kind, str(number)] += entered
        return dict(numbers)
