"""
What 10, 100 and 1,000 replicas ask of one Redis server: the real coordination and mirror, many of them in this process.

The clock is moved by hand, 5 ms at a time: a replica hears of a change when the next step begins. No web server, no
other process; the server and all that is asked of it are real.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from .table import Table, verdict

# How many replicas, and how many tasks each of them has: those of all together are kept in this process.
SIZES = ((10, 1000), (100, 1000), (1000, 100))
if os.environ.get("PANEL_SCHEDULE_BENCH_ALL"):
    SIZES = ((10, 1000), (100, 1000), (1000, 1000))

PERIOD = 600
SLOTS = 3
STEP = timedelta(milliseconds=5)


class Asked(NamedTuple):
    """
    What was asked of the server meanwhile.

    Attributes
    ----------
    by : Counter
        By replica and command, how often.
    tried : int
        Claims.
    late : float
        Seconds of the clock, p99, from the slot until its function was called.
    received, sent : int
        Bytes, by the server.
    """

    by: Counter[tuple[int, str]]
    tried: int
    late: float
    received: int
    sent: int


class Replicas:
    """So many replicas with so many tasks; `slot` lets the next slot come."""

    def __init__(self, server: Any, stack: ExitStack, replicas: int, tasks: int):
        from core import START, Core
        from panel_schedule.stores.redis import RedisStore
        from panel_schedule.testing import VirtualClock

        self.server, self.clock = server, VirtualClock(START)
        self.by: Counter[tuple[int, str]] = Counter()
        self.tried, self.calls = 0, 0
        # When the slot is, and how many seconds of the clock later each function was called.
        self.due, self.late = self.clock.now(), list[float]()
        self.cores = []
        for number in range(replicas):
            store = RedisStore(server.url, self.clock, namespace=f"bench-{replicas}")
            self._count(store, number)
            core = stack.enter_context(Core(self.clock, store))
            for task in range(tasks):
                core.ps.schedule(period=PERIOD, name=f"task {task}", first_run="skip")(self._work)
            self.cores.append(core)
        for core in self.cores:
            core.begin()
        self.hear()

    def _work(self) -> int:
        self.calls += 1
        self.late.append((self.clock.now() - self.due).total_seconds())
        return self.calls

    def _count(self, store: Any, number: int) -> None:
        records, claim, run = store.records, store.tasks.claim, store.records._run

        def counted(command: str, *args: Any) -> Any:
            self.by[number, command] += 1
            return run(command, *args)

        def tried(*args: Any, **options: Any) -> Any:
            self.tried += 1
            return claim(*args, **options)

        def other(*args: Any, **options: Any) -> Any:
            self.by[number, str(args[0])] += 1
            return execute(*args, **options)

        records._run, store.tasks.claim = counted, tried
        execute = records._client.execute_command

        def executed(*args: Any, **options: Any) -> Any:
            return execute(*args, **options) if str(args[0]).startswith("EVAL") else other(*args, **options)

        records._client.execute_command = executed

    def hear(self) -> None:
        """Each replica is woken, once, when something was published since it has looked."""
        for core in self.cores:
            if core.store.records._seen[1] < self.newest():
                core.hear()
                core.go()

    def newest(self) -> int:
        return int(self.server.client.get(f"{self.cores[0].store.records._prefix}revision"))

    def slot(self) -> Asked:
        """The next slot, from its instant on until all is quiet."""
        slot = min(state.next for state in self.cores[0].scheduler.states.values())
        self.clock.advance((slot - self.clock.now()).total_seconds())
        self.due = slot
        self.by.clear()
        self.late.clear()
        before, self.tried = self._traffic(), 0
        for _ in range(110):
            for core in self.cores:
                core.tick()
            self.hear()
            self.clock.advance(STEP)
        received, sent = (now - then for now, then in zip(self._traffic(), before, strict=True))
        return Asked(Counter(self.by), self.tried, quantiles(self.late, n=100)[98], received, sent)

    def _traffic(self) -> tuple[int, int]:
        stats = self.server.client.info("stats")
        return stats["total_net_input_bytes"], stats["total_net_output_bytes"]


def tables() -> Iterator[Table]:
    from redis_server import RedisServer

    table = Table(
        "Many replicas on one Redis server, simulated",
        [
            *("replicas x tasks", "changes a slot", "wake-ups a replica", "reads", "claims a slot", "KB a slot"),
            *("late at p99, s", "after a death: claims", "late, s"),
        ],
        text=(
            "All tasks are due at the same instant, once each ten minutes of a clock that is moved by hand; a replica "
            "hears of a change 5 ms later. `changes a slot`: writes of all replicas, for each slot. `wake-ups a "
            "replica`: how often one that has no run looks what has changed, for all slots of that instant together. "
            "`reads`: anything else that it asks, but that it renews its lease each 5 s of this computer's clock. "
            "`claims a slot`: tried by all replicas together. `KB a slot`: what the server sends and receives. `after "
            "a death`: claims tried for each slot when the process that had had all tasks is gone. `late`: of that "
            "clock, from the slot until its function is called: no load and no network is in it, only who waits for "
            "whom."
        ),
    )  # fmt: skip
    for replicas, tasks in SIZES:
        with TemporaryDirectory() as folder, ExitStack() as stack:
            server = RedisServer(Path(folder))
            stack.callback(server.stop)
            group = Replicas(server, stack, replicas, tasks)
            group.slot()
            asked = [group.slot() for _ in range(SLOTS)]
            slots = SLOTS * tasks
            first = asked[-1].by.most_common(1)[0][0][0]
            changes = sum(count for each in asked for (_, what), count in each.by.items() if what == "swap") / slots
            others = [number for number in range(replicas) if not any(each.by[number, "swap"] for each in asked)]
            wakes = max(each.by[number, "changes"] for each in asked for number in others)
            reads = sum(
                count for each in asked for (number, what), count in each.by.items()
                if number in others and what not in ("changes", "join")
            )  # fmt: skip
            tried = sum(each.tried for each in asked) / slots
            size = sum(each.received + each.sent for each in asked) / slots / 1024
            gone = next(core for number, core in enumerate(group.cores) if number == first)
            group.cores.remove(gone)
            death = group.slot()
            late = max(each.late for each in asked)
            table.add(
                f"{replicas} x {tasks}", f"{changes:.3f}", f"{wakes}", f"{reads}", f"{tried:.2f}", f"{size:.1f}",
                f"{late:.3f}", f"{death.tried / tasks:.2f}", f"{death.late:.3f}",
                must="claims <= 2, reads 0", met=verdict(claims=tried <= 2, reads=reads == 0),
            )  # fmt: skip
            assert group.calls == tasks * (SLOTS + 2)
    yield table
