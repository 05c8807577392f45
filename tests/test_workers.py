"""What processes say of themselves, and what the monitor shows of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from core import START, Core
from panel_schedule.coordination import processes
from panel_schedule.coordination.processes import KEPT, SPACE, ProcessState
from panel_schedule.coordination.record import Record, of_text, text_of
from panel_schedule.engine.presence import AGAIN, EVERY, Presence, Process
from panel_schedule.executors.base import Load
from panel_schedule.executors.processes import ProcessExecutor
from panel_schedule.executors.threads import ThreadExecutor
from panel_schedule.monitor.workers import MOST, as_html
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.records import Change
from panel_schedule.testing import VirtualClock

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
STATE = ProcessState("web1", 7, NOW - timedelta(minutes=5), {"thread": [1, 2, 40]})


def test_what_is_said_is_read_as_it_was() -> None:
    """It is known for an hour after that, and nobody holds it."""
    told = processes.tell(None, 1, me="a", state=STATE._replace(workers=(["process", "8", "Job 'x'"],)), now=NOW)
    state = of_text(SPACE, text_of(told))[0]
    assert (None, NOW, NOW + KEPT) == (told.owner, processes.heard_at(told), told.expires_at)
    assert (STATE.since, ["process", "8", "Job 'x'"]) == (state.since, list(state.workers[0]))


@pytest.fixture
def core(tmp_path) -> Iterator[Core]:
    clock = VirtualClock(START)
    with Core(clock, FileStore(tmp_path / "store", clock, server="server", persistent=True)) as core:
        yield core


def told(core: Core) -> list[Record]:
    return core.service.store.records.scan(SPACE)


def test_a_process_says_what_it_is_at_while_its_clocks_turn(core: Core) -> None:
    """What is new within seconds, nothing where nothing is; and who ends as it should leaves nothing behind."""
    presence = Presence(core.service)
    assert [] == told(core)
    presence.begin()
    core.go()
    [first] = told(core)
    me = core.service.store.records.me
    assert (me, os.getpid(), START, [0, 0, -1]) == (
        first.name, first.state.pid, first.state.since, first.state.executors["thread"],
    )  # fmt: skip
    core.run_for(3 * EVERY)
    assert first.revision == told(core)[0].revision
    core.thread.load, core.thread.hanging = Load(1, 2, 3), ("Task 'x'",)
    core.run_for(EVERY)
    [second] = told(core)
    assert ([1, 2, 3], ("Task 'x'",)) == (second.state.executors["thread"], second.state.hanging)
    presence.stop()
    presence.release()
    assert [] == told(core)


def test_what_a_process_has_said_is_there_again_when_the_store_has_lost_it(core: Core) -> None:
    """Within a minute."""
    presence, records = Presence(core.service), core.service.store.records
    presence.begin()
    core.go()
    records.write([Change(SPACE, records.me, processes.leave)])
    assert [] == told(core)
    core.run_for(AGAIN)
    assert [records.me] == [record.name for record in told(core)]


def test_who_ends_says_nothing_after_that(core: Core) -> None:
    """Though a thread was about to: what has ended as it should is not taken for dead."""
    presence = Presence(core.service)
    presence.begin()
    presence.release()
    core.go()
    assert [] == told(core)


def test_a_process_that_has_died_is_no_viewer(core: Core, tmp_path) -> None:
    """Whatever it has said of itself."""
    other = FileStore(tmp_path / "store", core.clock, server="server", persistent=True)
    with Core(core.clock, other) as another:
        Presence(another.service).begin()
        another.go()
        other.records.watch(SPACE, "page", 1)
        records = core.service.store.records
        assert ([True], 1) == ([records.alive(each.name) for each in told(core)], records.watchers(SPACE, "page"))
        other.records._liveness._living.close()  # as when it is killed
        records._look_around()
        assert ([False], 0) == ([records.alive(each.name) for each in told(core)], records.watchers(SPACE, "page"))


def test_threads_say_how_many_run_and_wait() -> None:
    executor, begun, released = ThreadExecutor(1), threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        released.wait(10)

    futures = [executor.submit(body) for _ in range(3)]
    executor.flush()
    assert begun.wait(10)
    assert (Load(1, 2, 1), []) == (executor.load, executor.workers)
    released.set()
    for future in futures:
        future.result(10)


def test_worker_processes_say_what_they_run() -> None:
    """By their pids; who is idle is named, too."""
    executor = ProcessExecutor(2)
    with ThreadPoolExecutor(1) as waiting:
        future = executor.submit(os.getpid, "Job 'pid'")
        executor.flush()
        pid = waiting.submit(future.result).result(20)
    assert [(str(pid), "")] == executor.workers
    seen = list[list[tuple[str, str]]]()
    asking = threading.Event()
    worker = executor._kept[0]
    run = worker.run

    def watched(call):
        seen.append(executor.workers)
        asking.set()
        return run(call)

    worker.run = watched  # type: ignore[method-assign]
    future = executor.submit(os.getpid, "Job 'pid'")
    executor.flush()
    assert pid == future.result(20)
    assert [[(str(pid), "Job 'pid'")]] == seen
    executor.stop(0)


def test_the_page_tells_what_each_process_is_at() -> None:
    """This one first; nothing of it is HTML, and of many workers some are named."""
    many = [["process", str(pid), "" if pid else "Job '<b>'"] for pid in range(MOST + 5)]
    state = STATE._replace(
        executors={"thread": [1, 2, 40], "job-process": [1, 0, 2], "loop": [0, 0, -1]}, hanging=["Task '<i>'"],
        workers=[["job-process", *each[1:]] for each in many],
    )  # fmt: skip
    gone = Process("b", STATE._replace(pid=6), NOW - timedelta(minutes=3), alive=False)
    text = as_html([gone, Process("a", state, NOW, alive=True, here=True)], NOW)
    assert text.index("Process 7 on web1, which shows this") < text.index("Process 6 on web1")
    for part in (
        "Alive for 5 min · 2 under way · 2 wait",
        "Hangs: Task &#x27;&lt;i&gt;&#x27;",
        "threads: 1 of 40 run, 2 wait",
        "worker processes of background functions: 1 of 2 run",
        "0: Job &#x27;&lt;b&gt;&#x27;",
        "1: idle",
        "and 5 more",
        "Gone: it died. Last heard 3 min ago.",
    ):
        assert part in text
    assert "event loop" not in text


def test_a_process_without_a_clock_says_so() -> None:
    """As one of an app without tasks."""
    assert "Alive, with nothing on time · 0 under way" in as_html([Process("a", ProcessState(), NOW, alive=True)], NOW)
