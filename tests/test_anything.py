"""Whatever happens: random lives of tasks, against the invariants."""

from __future__ import annotations

import asyncio
import logging
import random
import threading

import pytest

from core import PATIENCE, Core, messages
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.functions.run import RunState
from panel_schedule.runtime import Runtime
from panel_schedule.stores.records import HELD


def real(ledger):
    """Those that were to run; what tells of a value that got stale only looks like a run."""
    return {run: times for run, times in ledger.items() if run.reason != "stale"}


class World:
    """Eight tasks of all kinds, which depend on each other, fail, hang and come back, by chance."""

    def __init__(self, core, chance):
        self.core = core
        self.chance = chance
        self.flying = set()
        self.overlaps = []
        self.lingering = []
        self.tasks = []
        for number in range(8):
            self.add(f"task{number}")

    def add(self, name):
        choice, some = self.chance.choice, self.some
        after = some()
        when = {"after": after} if after else {"period": choice(["7s", "30s", "60s"])}
        decorate = self.core.schedule(
            **when,
            name=name,
            overlap=choice(["skip", "queue", "replace"]),
            timeout=choice([None, "20s"]),
            retry=choice([0, 2]),
            first_run=choice(["background", "skip"]),
            needs=some(),
        )
        self.tasks.append(decorate(choice([self.plain, self.coroutine])(name)))

    def some(self):
        """None, one or two of the tasks there are."""
        return self.chance.sample(self.tasks, min(len(self.tasks), self.chance.choice([0, 0, 1, 2])))

    def plain(self, name):
        def body():
            self.enter(name)
            try:
                if self.chance.random() < 0.5:
                    self.core.thread.park()
                return self.outcome(name)
            finally:
                self.flying.discard(name)

        return body

    def coroutine(self, name):
        async def body():
            self.enter(name)
            try:
                if self.chance.random() < 0.5:
                    self.lingering.append(event := asyncio.Event())
                    await event.wait()
                return self.outcome(name)
            finally:
                self.flying.discard(name)

        return body

    def enter(self, name):
        if name in self.flying:
            self.overlaps.append(name)
        self.flying.add(name)

    def outcome(self, name):
        if self.chance.random() < 0.2:
            raise OSError("by chance")
        return name

    def step(self):
        """One thing that a user, a server or the clock may do."""
        core, task = self.core, self.chance.choice(self.tasks)
        state = core.scheduler.states[task.name]
        match self.chance.randrange(12):
            case 0:
                task.refresh()
            case 1 if state.run is not None:
                state.run.cancel()
            case 2 if state.queued is not None:
                state.queued.cancel()
            case 3:
                self.chance.choice([task.pause, task.resume])()
            case 4 if core.thread.parked:
                core.thread.release(body=self.chance.choice(core.thread.parked))
            case 5 if self.lingering:
                self.lingering.pop(self.chance.randrange(len(self.lingering))).set()
            case 6 if self.chance.random() < 0.1:
                core.clock.step(self.chance.choice([-3600, -10, 10, 3600]))
            case _:
                core.advance(self.chance.choice([1, 5, 10, 70]))
        core.go()

    def come_to_rest(self):
        """Nothing hangs any more, and time passes."""
        for _ in range(20):
            while self.core.thread.parked or self.lingering:
                for body in list(self.core.thread.parked):
                    self.core.thread.release(body=body)
                while self.lingering:
                    self.lingering.pop().set()
                self.core.go()
            self.core.advance(60)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_hour_leaves_the_scheduler_sane(seed, ledger):
    """
    At every moment a run has its claim and a claim its run, and bodies of a task never overlap; in the end each run
    has ended once, and all tasks can run again (invariants 6, 10, 17).
    """
    with Core() as core:
        world = World(core, random.Random(seed))
        core.begin()
        for _ in range(250):
            world.step()
            claims = {record.name: record.state for record in core.service.store.records.scan("task", owner=HELD)}
            for state in core.scheduler.states.values():
                assert (state.run is None) == (state.claim is None)
                held, claim = claims.get(state.task.name), state.claim
                assert (held and (held.run_id, held.fence)) == (claim and (claim.run_id, claim.fence))
        for task in world.tasks:
            task.pause()
        world.come_to_rest()
        refreshed = [task.refresh() for task in world.tasks]
        world.come_to_rest()

        assert [] == world.overlaps
        assert {1} == set(real(ledger).values())
        assert {RunState.SUCCEEDED, RunState.FAILED, RunState.TIMED_OUT} >= {run.state for run in refreshed}
        assert not any(task.status.running for task in world.tasks)


def test_a_second_of_everything_at_once_breaks_nothing(ledger, caplog):
    """Real threads, a real loop and a real clock, and four threads that refresh, cancel, pause and read."""
    caplog.set_level(logging.ERROR)
    config = Config({})
    config.max_threads = 3
    runtime = Runtime(config)
    front, overlaps, flying = Front(runtime), [], set()
    loop = asyncio.new_event_loop()
    server = threading.Thread(target=loop.run_forever, daemon=True)
    tasks, enough = [], threading.Event()
    runs = threading.Semaphore(0)

    def enter(name):
        if name in flying:
            overlaps.append(name)
        flying.add(name)

    def plain(name, *reads):
        def body():
            enter(name)
            try:
                return [read() for read in reads]
            finally:
                flying.discard(name)
                runs.release()

        return body

    def coroutine(name, *reads):
        async def body():
            enter(name)
            try:
                await asyncio.sleep(0.001)
                return [read() for read in reads]
            finally:
                flying.discard(name)
                runs.release()

        return body

    def parts(name, *reads):
        def body():
            enter(name)
            try:
                for read in reads:
                    yield read()
            finally:
                flying.discard(name)
                runs.release()

        return body

    for number in range(12):
        make, overlap = (plain, coroutine, parts)[number % 3], ("skip", "queue", "replace")[number // 3 % 3]
        when = {"after": tasks[-2:]} if number % 4 == 3 else {"period": f"{3 + number}ms"}
        decorate = front.schedule(
            **when, name=f"task{number}", first_run="background", overlap=overlap, timeout="50ms", retry=number % 2
        )
        tasks.append(decorate(make(f"task{number}", *tasks[-3:])))

    def disturb(seed):
        chance = random.Random(seed)
        while not enough.is_set():
            task = chance.choice(tasks)
            run = task.refresh()
            match chance.randrange(5):
                case 0:
                    run.cancel()
                case 1:
                    task.pause()
                    task.resume()
                case 2:
                    task(), task.status, task.history
                case _:
                    run.add_done_callback(lambda run: run.state)
            enough.wait(0.002)

    server.start()
    runtime.start(loop)
    threads = [threading.Thread(target=disturb, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(1500):
        assert runs.acquire(timeout=PATIENCE)
    enough.set()
    for thread in threads:
        thread.join(PATIENCE)
    runtime.grace = PATIENCE
    runtime.stop()
    loop.call_soon_threadsafe(loop.stop)
    server.join(PATIENCE)
    loop.close()

    assert [] == overlaps
    assert [] == [message for message in messages(caplog) if "bug" in message]
    assert {1} == set(real(ledger).values())
