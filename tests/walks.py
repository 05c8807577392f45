"""
Walks of several processes over the records of jobs and answers, at random: they die, pause, start again and come late.

A walk takes steps, each a name and a few small numbers; what must hold is checked at each change of a record. A test
walks with Hypothesis, which makes what fails short. ``python -m tests.walks 200000 [seed]`` walks by itself, faster.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar

from panel_schedule.coordination import answers, history, jobs
from panel_schedule.coordination.answers import ERROR, PARTIAL, UNLIMITED, VALUE, AnswerState, Limits
from panel_schedule.coordination.record import Record
from panel_schedule.coordination.tasks import TAKEOVERS
from panel_schedule.errors import RunFenced, StoreError
from panel_schedule.functions.run import RunState
from panel_schedule.stores.cache import Cache
from panel_schedule.stores.memory_records import MemoryRecords
from panel_schedule.stores.queue import Queue
from panel_schedule.stores.records import HELD, Change, Changed, Result
from panel_schedule.testing import VirtualClock

PROCESSES = 3

# So many steps has a walk.
STEPS = 30

# What a step may choose from: one of many things that there are, and whether.
ANY, FLAG = 60, 2

# Seconds that the clock may be moved by.
JUMPS = [1, 60, 3600, 90_000, 8 * 86_400, -1, -60, -3600]

Step = tuple[str, tuple[int, ...]]


# How often a change was made, and refused.
made = Counter[tuple[str, str]]()


class Died(BaseException):
    """The process was killed in the middle of what it did."""


class Process:
    """One of those that share the records, from its start to its end."""

    def __init__(self, name: str):
        self.name = name
        self.dead = False
        # Others take it for dead when its lease has lapsed; it does not know, and goes on.
        self.lapsed = self.has_lapsed = False
        # What it believes to hold: a name, and a fence.
        self.leases: list[tuple[str, int]] = []
        self.subscribers: list[tuple[str, Changed]] = []
        self.queue: Queue
        self.cache: Cache


class World(MemoryRecords):
    """Records as the process sees them whose turn it is; nobody hears of a change unless a step says so."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[str, Process] = {}
        # Steps of others that come in between, each after so many looks at the store.
        self.meanwhile: list[tuple[int, Callable[[], object]]] = []
        self.check: Callable[[Record | None, Record | None, Change], object]
        self.broken = False
        self._newest = 0

    def alive(self, owner: str) -> bool:
        process = self.processes.get(owner)
        return process is not None and not process.dead and not process.lapsed

    def read(self, space: str, name: str) -> Record | None:
        self._let_others()
        return super().read(space, name)

    def scan(self, space: str, *group: str, **options: Any) -> list[Record]:
        self._let_others()
        return super().scan(space, *group, **options)

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        if self.broken:
            raise StoreError("not now")
        return super().load(record, kind, number, what)

    def write(self, changes: Sequence[Change], **options: Any) -> list[Result]:
        self._let_others()
        read = super().read
        before = [read(change.space, change.name) for change in changes]
        results = super().write(changes, **options)
        for old, change, result in zip(before, changes, results, strict=True):
            new = read(change.space, change.name)
            made[getattr(change.apply, "func", change.apply).__name__, result.refusal or "made"] += 1
            if new is not old:
                assert not result.refusal
                assert new is None or new.revision > self._newest
                self.check(old, new, change)
        self._newest = max([self._newest, *(result.record.revision for result in results if result.record)])
        return results

    def subscribe(self, space: str, changed: Changed) -> None:
        self.processes[self.me].subscribers.append((space, changed))

    def _let_others(self) -> None:
        if not self.meanwhile:
            return
        me, (looks, step) = self.me, self.meanwhile.pop()
        if looks:
            self.meanwhile.append((looks - 1, step))
            return
        step()
        self.me = me
        if self.processes[me].dead:
            raise Died


class Walk:
    """
    A walk of any kind.

    Attributes
    ----------
    STEPS : dict
        By the name of a step: how many choices each of its numbers has, the first of which says whose step it is.
    """

    SPACE: ClassVar[str]
    STEPS: ClassVar[dict[str, tuple[int, ...]]] = {
        "kill": (PROCESSES,),
        "stop": (PROCESSES,),
        "lapse": (PROCESSES,),
        "hear_of_the_dead": (PROCESSES,),
        "move_clock": (PROCESSES, len(JUMPS)),
        "sweep": (PROCESSES,),
    }

    def __init__(self) -> None:
        self.clock, self.world = VirtualClock(), World()
        self.world.check = self.check
        self.processes = [self._started(number) for number in range(PROCESSES)]

    def step(self, step: Step, meanwhile: Step | None = None, looks: int = 0) -> None:
        """One process does something; another one something else in the middle of it."""
        if meanwhile is not None and meanwhile[1][0] != step[1][0]:
            self.world.meanwhile.append((looks, lambda: self._do(meanwhile)))
        self._do(step)
        self.world.meanwhile.clear()
        self.check_all()

    def _do(self, step: Step) -> None:
        name, (number, *choices) = step
        if self.processes[number].dead:
            self.processes[number] = self._started(number)
        process = self.processes[number]
        self.world.me = process.name
        with suppress(Died):
            getattr(self, name)(process, *choices)

    def check(self, old: Record | None, new: Record | None, change: Change) -> None:
        """What must hold of each change."""

    def check_all(self) -> None:
        """What must hold after each step."""

    def end(self) -> None:
        """What is good in the end: those that are dead start, those that live know it, and all do what is left."""
        for process in self.processes:
            process.lapsed = False
        for number in range(PROCESSES):
            self._do(("hear_of_the_dead", (number,)))

    def _started(self, number: int) -> Process:
        process = Process(f"{number}.{len(self.world.processes)}")
        self.world.processes[process.name], self.world.me = process, process.name
        process.queue, process.cache = Queue(self.world, self.clock), Cache(self.world, self.clock)
        return process

    def _lease(self, process: Process, choice: int) -> tuple[str, int]:
        """One that it had once, whether it has it now or not."""
        return process.leases[-1 - choice % len(process.leases)] if process.leases else ("nothing", 1)

    # ------------------------------------------------------------ steps of any process

    def kill(self, process: Process) -> None:
        process.dead = True

    def stop(self, process: Process) -> None:
        process.queue.release()
        process.cache.release()
        process.dead = True

    def lapse(self, process: Process) -> None:
        """Or its lease is there again."""
        process.lapsed = not process.lapsed
        process.has_lapsed = True

    def hear_of_the_dead(self, process: Process) -> None:
        for record in self.world.scan(self.SPACE, owner=HELD):
            if record.owner and not self.world.alive(record.owner):
                for space, changed in process.subscribers:
                    if space == record.space:
                        changed(record)

    def move_clock(self, process: Process, choice: int) -> None:
        self.clock.step(JUMPS[choice])

    def sweep(self, process: Process) -> None:
        self.world.sweep(self.clock.now())


class JobWalk(Walk):
    """Background jobs: who runs each, and which one equal calls share."""

    SPACE = jobs.SPACE
    STEPS = Walk.STEPS | {
        "submit": (PROCESSES, 3, FLAG),
        "begin": (PROCESSES, ANY),
        "try_again": (PROCESSES, ANY),
        "publish": (PROCESSES, ANY),
        "finish": (PROCESSES, ANY, 3),
        "cancel": (PROCESSES, ANY),
        "look": (PROCESSES, ANY),
        "take": (PROCESSES, FLAG),
    }
    # So often a run is tried at most.
    ATTEMPTS = 3

    def __init__(self) -> None:
        super().__init__()
        self.submitted = 0
        # Who got each run that was accepted, in order: the fence is how many. And those that have ended.
        self.holders = defaultdict[str, list[str]](list)
        self.ended = set[str]()

    def check(self, old: Record | None, new: Record | None, change: Change) -> None:
        if change.space in (jobs.SHARED, history.SPACE):
            return
        me, alive = self.world.me, self.world.alive
        assert new is not None
        holders = self.holders[new.name]
        if old is None:
            assert (new.owner, new.state.fence, holders) == (me, 1, [])
            holders.append(me)
            for record in self._unfinished() if new.state.key else ():
                # One that was ever taken for dead may have been replaced, and go on by now.
                alike = record.name != new.name and record.state.key == new.state.key
                assert not alike or record.state.cancelled or self._was_given_up(record)
            return
        # What is over stays as it is, and what another process holds that lives can only be asked to end.
        assert old.owner is not None
        if old.owner != me and alive(old.owner):
            assert new == old._replace(state=old.state._replace(cancelled=True), revision=new.revision)
        if new.state.fence != old.state.fence:
            assert not alive(old.owner)
            assert old.state.durable
            assert new.owner == me
            assert new.state.attempt == old.state.attempt + (old.state.state is RunState.RUNNING)
            holders.append(me)
        else:
            assert new.owner == old.owner or not new.owner or not alive(new.owner)
            assert old.state.attempt <= new.state.attempt
        assert new.state.fence == len(holders)
        assert new.state.state.final == (new.owner is None)
        assert new.state.state is not RunState.RUNNING or new.state.attempt <= self.ATTEMPTS
        if new.owner is None:
            self.ended.add(new.name)

    def _was_given_up(self, record: Record) -> bool:
        holder = self.world.processes.get(record.owner or "")
        return holder is None or holder.dead or holder.has_lapsed or record.state.fence > 1

    def check_all(self) -> None:
        for shared in self.world.scan(jobs.SHARED):
            run = self.world.read(jobs.SPACE, shared.state.run)
            assert run is None or not run.state.state.final or run.state.state is RunState.SUCCEEDED

    def _unfinished(self) -> list[Record]:
        return MemoryRecords.scan(self.world, jobs.SPACE, owner=HELD)

    def end(self) -> None:
        super().end()
        [first, *_] = self.processes
        while first.queue.orphans():
            self._do(("take", (0, 0)))
        for number, process in enumerate(self.processes):
            for choice in range(len(process.leases)):
                self._do(("finish", (number, choice, 1)))
        assert self.ended == self.holders.keys()

    # ------------------------------------------------------------ steps

    def submit(self, process: Process, key: int, durable: int) -> None:
        self.submitted += 1
        id, now = f"run{self.submitted}", self.clock.now()
        known = process.queue.enqueue(
            id, "f", now=now, payload=None, key=["", "a", "b"][key], durable=bool(durable), synced=False
        )
        if known is None:
            process.leases.append((id, 1))
        else:
            assert known.state is RunState.SUCCEEDED or not (known.state.final or known.orphan or known.cancelled)

    def begin(self, process: Process, choice: int) -> None:
        id, fence = self._lease(process, choice)
        row = process.queue.job(id)
        with suppress(RunFenced):
            process.queue.begin(id, fence, self.clock.now(), row.attempt if row else 1)

    def try_again(self, process: Process, choice: int) -> None:
        id, fence = self._lease(process, choice)
        row = process.queue.job(id)
        if row is not None and row.attempt < self.ATTEMPTS:
            with suppress(RunFenced):
                process.queue.again(id, fence, row.attempt + 1)

    def publish(self, process: Process, choice: int) -> None:
        with suppress(RunFenced):
            process.queue.add_partial(*self._lease(process, choice), choice % 3, "partial")

    def finish(self, process: Process, choice: int, how: int) -> None:
        state = [RunState.SUCCEEDED, RunState.FAILED, RunState.CRASHED][how]
        self._finish(process, *self._lease(process, choice), state)

    def _finish(self, process: Process, id: str, fence: int, state: RunState) -> None:
        now = self.clock.now()
        with suppress(RunFenced):
            process.queue.end(id, fence, state, now=now, value=id, expires_at=now + timedelta(hours=1))
            assert (process.name, fence) == (self.holders[id][-1], len(self.holders[id]))

    def cancel(self, process: Process, choice: int) -> None:
        process.queue.cancel(self._any(choice))

    def look(self, process: Process, choice: int) -> None:
        process.queue.job(self._any(choice))

    def _any(self, choice: int) -> str:
        return f"run{self.submitted - choice % (self.submitted + 1)}"

    def take(self, process: Process, broken: int) -> None:
        for orphan in process.queue.orphans()[:1]:
            self.world.broken = bool(broken)
            try:
                taken = process.queue.take(orphan.id, self.clock.now())
            except StoreError:
                continue
            finally:
                self.world.broken = False
            if taken is not None:
                [job, _] = taken
                process.leases.append((job.id, job.fence))
                if job.attempt > max(self.ATTEMPTS, 1 + TAKEOVERS):
                    self._finish(process, job.id, job.fence, RunState.CRASHED)


class AnswerWalk(Walk):
    """Memoized functions: who computes each answer, and which one it is."""

    SPACE = answers.SPACE
    STEPS = Walk.STEPS | {
        "claim": (PROCESSES, 2, 3, 3),
        "publish": (PROCESSES, ANY),
        "progress": (PROCESSES, ANY),
        "succeed": (PROCESSES, ANY, 3),
        "fail": (PROCESSES, ANY),
        "give_up": (PROCESSES, ANY),
        "invalidate": (PROCESSES, 3),
    }
    KEYS = ["a", "b"]

    def __init__(self) -> None:
        super().__init__()
        # Of each answer the newest version and fence, the value; and how many have died on it one after another.
        self.versions, self.fences, self.deaths = Counter[str](), Counter[str](), Counter[str]()
        self.values = dict[str, Any]()

    def check(self, old: Record | None, new: Record | None, change: Change) -> None:
        me, alive = self.world.me, self.world.alive
        assert new is not None
        name, owner = new.name, old.owner if old is not None else None
        before, after = old.state if old is not None else AnswerState(), new.state
        claimed, published = after.fence != before.fence, after.version not in (0, before.version)
        forgotten = getattr(change.apply, "func", None) is answers.invalidate
        if claimed:
            assert new.owner == me
            assert after.fence > max(self.fences[name], before.version)
            assert owner in (None, me) or not alive(owner) or not answers.serves(before.wanted, after.wanted)
            self.fences[name] = after.fence
        else:
            assert new.owner in (owner, None)
        assert not forgotten or (new.owner, after.version) == (None, 0)
        if published:
            assert (owner, before.fence) == (me, self.fences[name])
            assert after.version > self.versions[name]
            self.versions[name] = after.version
        if old is not None and owner not in (None, me) and alive(owner) and not (claimed or forgotten):
            assert new == old._replace(expires_at=new.expires_at, revision=new.revision)
        # One that kills its process is taken over so often, and has failed then.
        if owner not in (None, me) and not alive(owner) and new.owner != owner and not forgotten:
            self.deaths[name] += 1
        elif old is None or forgotten or (owner is not None and new.owner is None):
            self.deaths[name] = 0
        assert self.deaths[name] <= TAKEOVERS or after.failed == after.fence or published
        if new.owner is None and after.failed == after.fence:
            self.deaths[name] = 0
        # Of what there is it says what it is.
        assert (VALUE in new.parts) == (after.version > 0)
        assert (PARTIAL in new.parts) == (after.partials > 0)
        assert ERROR not in new.parts or after.failed
        assert new.owner is not None or (after.wanted, after.partials, after.percent, after.message) == ((), 0, -1, "")
        assert new.owner is not None or new.expires_at is not None or after.version
        assert published or old is None or old.used_at is None or (new.used_at and new.used_at >= old.used_at)

    def check_all(self) -> None:
        for record in self.world.scan(self.SPACE):
            if record.state.version:
                assert self.world.load(record, VALUE) == self.values[record.name]

    def end(self) -> None:
        super().end()
        for record in self.world.scan(self.SPACE, owner=HELD):
            [holder] = [process for process in self.processes if process.name == record.owner]
            assert (record.name, record.state.fence) in holder.leases

    # ------------------------------------------------------------ steps

    def claim(self, process: Process, key: int, known: int, basis: int) -> None:
        row = process.cache.look("f", self.KEYS[key])
        version = [0, row.version if row is not None else 0, 10**9][known]
        mine, row = process.cache.claim("f", self.KEYS[key], "f()", known=version, basis=(basis,), now=self.clock.now())
        if mine:
            assert row.version <= version
            process.leases.append((answers.name_of("f", row.key), row.fence))

    def publish(self, process: Process, choice: int) -> None:
        key, fence = self._computation(process, choice)
        with suppress(RunFenced):
            process.cache.publish("f", key, fence, "partial")

    def progress(self, process: Process, choice: int) -> None:
        process.cache.progress("f", *self._computation(process, choice), choice, "so far")

    def succeed(self, process: Process, choice: int, room: int) -> None:
        (name, _), (key, fence) = self._lease(process, choice), self._computation(process, choice)
        limits, now = [UNLIMITED, Limits(entries=1), Limits(size=1)][room], self.clock.now()
        with suppress(RunFenced):
            row, value = process.cache.put(
                "f", key, fence, fence, now=now, duration=1, expires_at=now + timedelta(days=1), limits=limits
            )
            assert row.version == self.versions[name]
            self.values[name] = value

    def fail(self, process: Process, choice: int) -> None:
        with suppress(RunFenced):
            process.cache.fail("f", *self._computation(process, choice), ValueError(), now=self.clock.now())

    def give_up(self, process: Process, choice: int) -> None:
        process.cache.give_up("f", *self._computation(process, choice))

    def invalidate(self, process: Process, key: int) -> None:
        process.cache.invalidate("f", [*self.KEYS, None][key])

    def _computation(self, process: Process, choice: int) -> tuple[str, int]:
        name, fence = self._lease(process, choice)
        return name.partition(" ")[0], fence


WALKS = [JobWalk, AnswerWalk]


# The numbers that are steps.
NUMBERS = 2**48


def turn_of(kind: type[Walk], number: int) -> tuple[Step, Step | None, int]:
    """What a number below NUMBERS stands for: a step, perhaps another one in the middle of it, and when that is."""

    def some(most: int) -> int:
        nonlocal number
        number, choice = divmod(number, most)
        return choice

    def step() -> Step:
        name = list(kind.STEPS)[some(len(kind.STEPS))]
        return name, tuple(map(some, kind.STEPS[name]))

    return step(), step() if some(3) == 2 else None, some(3)


def main(count: str, seed: str = "0") -> None:
    """So many walks; those with the same seed are the same."""
    for number in range(int(count)):
        kind, chance, turns = WALKS[number % len(WALKS)], random.Random(f"{seed} {number}"), list[Any]()
        walk = kind()
        try:
            for _ in range(STEPS):
                turns.append(turn_of(kind, chance.randrange(NUMBERS)))
                walk.step(*turns[-1])
            walk.end()
        except BaseException:
            print(f"Walk {number} of seed {seed} failed:", *turns, sep="\n")
            raise
    print(*(f"{times:9} {change} {what}" for (change, what), times in sorted(made.items())), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
