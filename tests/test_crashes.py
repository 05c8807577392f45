"""Processes that die, hang and come back: what the store of files promises then (invariants 8, 10, 14)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import psutil
import pytest

import crash_worker
import views
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.tasks import TASK
from panel_schedule.stores.file.store import FileStore
from servers import PanelServer, Serve, eventually

WORKER = Path(crash_worker.__file__)

# Seconds of the long test; 60 for a release.
SOAK = float(os.environ.get("PANEL_SCHEDULE_TEST_SOAK", "10"))

# What each claim and each publish writes in its own transaction, so that no crash can hide one.
AUDIT = """
    CREATE TABLE claimed (task TEXT, key TEXT, run_id TEXT, owner TEXT, attempt INTEGER, at INTEGER);
    CREATE TABLE published (task TEXT, version INTEGER, run_id TEXT, final INTEGER);
    CREATE TRIGGER claims AFTER UPDATE OF state ON records
    WHEN NEW.space = 'task' AND json_extract(NEW.state, '$[0].fence') IS NOT json_extract(OLD.state, '$[0].fence') BEGIN
        INSERT INTO claimed SELECT name, key, run_id, owner, attempt, started_at FROM task_of WHERE name = NEW.name;
    END;
    CREATE TRIGGER publishes AFTER UPDATE OF state ON records
    WHEN NEW.space = 'task' AND json_extract(NEW.state, '$[0].version') IS NOT json_extract(OLD.state, '$[0].version')
    BEGIN
        INSERT INTO published SELECT name, version, by, final FROM task_of WHERE name = NEW.name;
    END;
    CREATE VIEW task_of AS SELECT name, owner, json_extract(state, '$[0].run_id') AS run_id,
        CASE json_type(state, '$[0].key') WHEN 'integer' THEN '@' ELSE '' END || json_extract(state, '$[0].key') AS key,
        ifnull(json_extract(state, '$[0].attempt'), 1) AS attempt, json_extract(state, '$[0].started_at') AS started_at,
        json_extract(state, '$[0].version') AS version, json_extract(state, '$[0].by') AS by,
        ifnull(json_extract(state, '$[0].final'), 1) AS final
    FROM records WHERE space = 'task';
"""


class Audited:
    """A store in ``folder / "store"`` that remembers every claim and every value, and can be asked from outside."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self.folder, self.path = folder, folder / "store"
        FileStore(self.path, SystemClock()).close()
        with closing(sqlite3.connect(self.path / "store.db")) as connection:
            connection.executescript(AUDIT)

    def rows(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        return views.rows(self.path, question, *values)

    def await_values(self, number: int, timeout: float = 10.0) -> None:
        """Wait until that many have been published from now on."""
        (before,) = self.rows("SELECT count(*) FROM published")[0]
        eventually(lambda: self.rows("SELECT count(*) FROM published")[0][0] >= before + number, timeout)

    def ends_of(self, task: str) -> list[tuple[str, int]]:
        """State and attempt of each run that has ended."""
        return self.rows("SELECT state, attempt FROM runs WHERE task = ? AND state != 'skipped' ORDER BY number", task)

    def slots_with_two_results(self) -> list[tuple[Any, ...]]:
        return self.rows(
            "SELECT task, key, count(*) FROM published JOIN (SELECT DISTINCT task, key, run_id FROM claimed) "
            "USING (task, run_id) WHERE final GROUP BY task, key HAVING count(*) > 1"
        )

    def slots_of_two_runs(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT task, key FROM claimed GROUP BY task, key HAVING count(DISTINCT run_id) > 1")

    def runs_of_two_slots(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT run_id FROM claimed GROUP BY run_id HAVING count(DISTINCT task || ' ' || key) > 1")

    def runs_with_two_ends(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT task, id FROM runs WHERE state != 'skipped' GROUP BY task, id HAVING count(*) > 1")

    def lost_runs(self) -> list[tuple[Any, ...]]:
        """Those that have not ended and that nobody will take over."""
        return self.rows(
            "SELECT task, run_id FROM claimed EXCEPT SELECT task, id FROM runs EXCEPT SELECT name, run_id FROM task_of"
        )

    def lost_slots(self, period: timedelta) -> list[tuple[str, int]]:
        """Those between the first and the last of a task that nobody claimed, and of which no record says why."""
        lost, step = [], period // timedelta(microseconds=1)
        for (task,) in self.rows("SELECT name FROM task_of WHERE name NOT LIKE '%dates of %'"):
            claims = self.rows("SELECT key FROM claimed WHERE task = ? AND key GLOB '@*'", task)
            ran = {int(key[1:]) for (key,) in claims}
            skipped = [
                (int(key[1:]), until or int(key[1:]))
                for key, until in self.rows("SELECT key, until FROM runs WHERE task = ? AND state = 'skipped'", task)
            ]
            last = max([*ran, *(until for _, until in skipped)])
            lost += [
                (task, slot)
                for slot in range(min(ran), last, step)
                if slot not in ran and not any(first <= slot <= until for first, until in skipped)
            ]
        return lost

    def unreferenced(self) -> set[str]:
        known = {file for (file,) in self.rows("SELECT file FROM blobs WHERE file NOT NULL")}
        return {path.name for path in (self.path / "values").iterdir()} - known

    def assert_sound(self) -> None:
        """What must hold whoever died: at most one claim and one result per slot, and a store that opens."""
        assert [] == self.slots_with_two_results()
        assert [] == self.slots_of_two_runs()
        assert [] == self.runs_of_two_slots()
        assert [] == self.runs_with_two_ends()
        store = FileStore(self.path, SystemClock())
        try:
            assert [("ok",)] == self.rows("PRAGMA integrity_check")
            assert set() == self.unreferenced()
            assert [] == list(self.path.glob("*.corrupt-*"))
            for (task,) in self.rows("SELECT name FROM task_of WHERE version NOT NULL"):
                assert store.values.entry(TASK, task) is not None
        finally:
            store.close()


class Nursery:
    """Forks workers from a process that has imported everything."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def fork(self, **order: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


class House(Audited):
    """A store, and the workers that live on it."""

    def __init__(self, nursery: Nursery, folder: Path, *, workers: int, readers: int = 1, tasks: int, period: str):
        super().__init__(folder)
        self._nursery, self._order = nursery, {"folder": str(folder), "tasks": tasks, "period": period}
        self.workers = [self.fork() for _ in range(workers)]
        self.readers = [self.fork(reads=True) for _ in range(readers)]

    def fork(self, reads: bool = False) -> int:
        return self._nursery.fork(reads=reads, **self._order)

    def arm(self, point: str, attempt: int = 1) -> None:
        crash_worker.bomb(self.folder, point, attempt).touch()

    def journal(self, what: str) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        # A line that is being written has no end yet.
        lines = map(json.loads, path.read_text().split("\n")[:-1]) if path.exists() else ()
        return [line for line in lines if line["what"] == what]

    def living(self) -> list[int]:
        self.workers = [pid for pid in self.workers if alive(pid)]
        return self.workers

    def refill(self, workers: int) -> None:
        missing = workers - len(self.living())
        self.workers += [self.fork() for _ in range(missing)]

    def all_publish(self, after: float = 0.0) -> bool:
        """Whether each process has seen a value of each task since then."""
        seen = {(line["pid"], line["task"]) for line in self.journal("saw") if line["at"] > after}
        return len(seen) >= (len(self.living()) + len(self.readers)) * self._order["tasks"]

    def ends(self, death: dict[str, Any]) -> list[tuple[str, float]]:
        """What became of the slot at which a process died: the state of its run, and when it ended."""
        # Before its claim another process may have found it busy with the slot before.
        skipped = "skipped" if death["point"] == "before the claim" else None
        found = self.rows(
            "SELECT state, finished_at FROM runs WHERE task = ? AND key = ? AND (state != 'skipped' OR state = ?)",
            *(death["task"], death["key"], skipped),
        )
        return [(state, finished_at / 1e6) for state, finished_at in found]

    def end(self, number: int = signal.SIGKILL) -> None:
        for pid in [*self.workers, *self.readers]:
            if alive(pid):
                os.kill(pid, number)
        eventually(lambda: not any(map(alive, [*self.workers, *self.readers])))

    def assert_seen_well(self) -> None:
        """Nobody saw half a value, nor an older one after a newer one."""
        newest: Counter[tuple[int, str]] = Counter()
        for line in self.journal("saw"):
            assert line["whole"], line
            key = line["pid"], line["task"]
            assert newest[key] < line["version"], line
            newest[key] = line["version"]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with closing(Nursery()) as nursery:
        yield nursery


MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(nursery: Nursery, tmp_path: Path) -> Iterator[MakeHouse]:
    houses: list[House] = []

    def make(**options: Any) -> House:
        houses.append(House(nursery, tmp_path / f"house{len(houses)}", **options))
        return houses[-1]

    yield make
    for house in houses:
        house.end()
        print((house.folder / "log").read_text())


@pytest.fixture
def audited(tmp_path: Path) -> Audited:
    return Audited(tmp_path)


# ------------------------------------------------------------ kill -9 at each point

POINTS = (
    "before the claim",
    "after the claim",
    "in the function",
    "in the file",
    "between the file and the commit",
    "after the commit",
)
HOUSES, ROUNDS = 5, 2


@pytest.mark.alone
@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_is_killed_anywhere_costs_no_slot_and_no_value(make_house: MakeHouse, point: str) -> None:
    """10 times each. Another process ends its run within 2 s, once; nobody sees half a value; no file is left over."""
    houses = [make_house(workers=2, tasks=2, period="400ms") for _ in range(HOUSES)]
    for house in houses:
        eventually(house.all_publish)
    for number in range(ROUNDS):
        for house in houses:
            house.arm(point)
        deaths = [eventually(lambda house=house, number=number: house.journal("died")[number:]) for house in houses]
        for house, (death,) in zip(houses, deaths, strict=True):
            ((state, at),) = eventually(lambda house=house, death=death: house.ends(death))
            print(f"{point}: {state} {at - death['at']:.3f} s after the kill")
            assert state in ("succeeded", "skipped")
            assert at - death["at"] < 2.0
            eventually(lambda death=death: not alive(death["pid"]))
            house.refill(2)
    now = time.time()
    for house in houses:
        eventually(lambda house=house: house.all_publish(now))
    for house in houses:
        house.end()
        house.assert_seen_well()
        house.assert_sound()


@pytest.mark.alone
def test_the_run_of_an_hourly_task_is_finished_at_once_too(make_house: MakeHouse) -> None:
    """No other slot comes that would meet the claim of the dead: the living look for them."""
    houses = {(point, number): make_house(workers=0, tasks=1, period="1h") for point in POINTS for number in range(2)}
    for (point, _), house in houses.items():
        house.arm(point)
        house.refill(2)
    for (point, _), house in houses.items():
        (death,) = eventually(lambda house=house: house.journal("died"))
        ((state, at),) = eventually(lambda house=house, death=death: house.ends(death))
        print(f"{point}: {state} {at - death['at']:.3f} s after the kill")
        assert "succeeded" == state
        assert at - death["at"] < 2.0
    for house in houses.values():
        house.end()
        house.assert_seen_well()
        house.assert_sound()


@pytest.mark.alone
def test_a_task_that_kills_every_process_is_given_up_and_its_next_slot_runs(make_house: MakeHouse) -> None:
    """One takeover, then the run is `crashed`: the last good value stays, and the schedule goes on."""
    house = make_house(workers=3, tasks=1, period="1s")
    eventually(house.all_publish)
    house.arm("in the function", attempt=2)
    house.arm("in the function", attempt=1)
    first, second = eventually(lambda: house.journal("died")[1:] and house.journal("died"))

    assert (first["key"], first["task"], 1, 2) == (second["key"], second["task"], first["attempt"], second["attempt"])
    ((state, at),) = eventually(lambda: house.ends(first))
    assert "crashed" == state
    assert at - second["at"] < 2.0
    eventually(lambda: house.all_publish(at))
    house.end()
    house.assert_seen_well()
    house.assert_sound()


def test_what_a_process_left_behind_is_removed_by_the_living(make_house: MakeHouse) -> None:
    """Half a file, and one that the commit has replaced, whoever of the others wrote it."""
    house = make_house(workers=3, tasks=1, period="200ms")
    for number, point in enumerate((*POINTS[3:5], *4 * POINTS[5:])):
        eventually(house.all_publish)
        house.arm(point)
        (*_, death) = eventually(lambda number=number: house.journal("died")[number:])
        eventually(lambda death=death: not alive(death["pid"]))
        house.refill(3)
    # A file is there for a moment before and after its commit; those stay.
    before = house.unreferenced()
    eventually(lambda: not before & house.unreferenced())


def test_a_store_that_another_program_holds_for_a_moment_opens(audited: Audited) -> None:
    """One that recovers it after a crash, or makes a backup: a process that starts just then waits for it."""
    holder = sqlite3.connect(audited.path / "store.db", check_same_thread=False)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("CREATE TABLE held (value)")
    threading.Timer(0.3, holder.close).start()
    FileStore(audited.path, SystemClock()).close()


# ------------------------------------------------------------ for a longer time


def test_processes_come_and_go_and_no_slot_is_lost_or_run_twice(make_house: MakeHouse) -> None:
    """4 processes, 10 tasks at 5 Hz, a kill every half second or so, and sometimes of all."""
    dice, kills = random.Random(14), 0
    house = make_house(workers=4, tasks=10, period="200ms")
    eventually(house.all_publish)
    until = time.monotonic() + SOAK
    while time.monotonic() < until:
        for pid in dice.sample(house.workers, dice.choice((1, 1, 1, 2, 4))):
            os.kill(pid, signal.SIGKILL)
            kills += 1
            eventually(lambda pid=pid: not alive(pid))
        house.refill(4)
        house.await_values(dice.randint(1, 100))
    now = time.time()
    eventually(lambda: house.all_publish(now))
    house.end(signal.SIGINT)
    slots, published = house.rows("SELECT (SELECT count(*) FROM claimed), (SELECT count(*) FROM published)")[0]
    print(f"{kills} kills in {SOAK:g} s: {slots} claims, {published} values")
    assert [] == house.lost_slots(timedelta(milliseconds=200))
    assert [] == house.lost_runs()
    house.assert_seen_well()
    house.assert_sound()


# ------------------------------------------------------------ a real server of two processes

APP = """
    import os
    import panel as pn
    from tasks import answer
    pn.pane.Str(f"the answer is {answer()}").servable()
    print(f"built with {answer()} by {os.getpid()}", flush=True)
"""

TICKS = """
    import os, time
    import panel_schedule as ps

    def tick():
        return os.getpid()

    for number in range(4):
        ps.schedule(period="200ms", name=f"tick{number}")(tick)

    @ps.schedule(period="1h")
    def answer():
        return 42
"""

# What a pool can pickle; the names of the setup script cannot be imported.
HELPER = """
    import threading, time
    import panel_schedule as ps

    def look(_):
        time.sleep(1)
        return ps._runtime.started, threading.active_count()
"""


@pytest.fixture
def serve_two(serve: Serve, audited: Audited) -> Serve:
    """Serve the app and ``TICKS`` with more tasks, by two processes, on the audited store."""

    def start(
        tasks: str = "", *, env: dict[str, str] | None = None, ticks: str = TICKS, processes: int = 2, **options: Any
    ) -> PanelServer:
        files = {"app.py": APP, "helper.py": HELPER, "tasks.py": dedent(ticks) + dedent(tasks)}
        env = {
            "PANEL_SCHEDULE_STORE": f"file://{audited.path}",
            "PANEL_SCHEDULE_HISTORY_LIMIT": "100000",
            **(env or {}),
        }
        return serve(f"app.py --setup tasks.py --num-procs {processes}", files, env=env, **options)

    return start


def page(server: PanelServer) -> bool:
    """Whether a page came; a process that dies just then takes its visitors with it."""
    try:
        return httpx.get(f"{server.url}/app", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def test_a_task_that_segfaults_costs_two_processes_and_not_the_server(serve_two: Serve, audited: Audited) -> None:
    """Its run ends `crashed`, and so do those of its later slots, at the first death; all else goes on."""
    server = serve_two(
        """
        import ctypes

        @ps.schedule(period="3s", first_run="background")
        def deadly():
            ctypes.string_at(0)
        """
    )
    eventually(lambda: len(audited.ends_of("deadly")) >= 2, timeout=20)
    assert [("crashed", 2), ("crashed", 1)] == audited.ends_of("deadly")[:2]
    eventually(lambda: page(server))
    server.wait_for("built with 42")
    audited.await_values(8)
    assert server.process.poll() is None
    assert server.stop() in (0, -signal.SIGTERM)
    audited.assert_sound()


def test_a_failing_first_run_ends_all_processes_of_a_server(serve_two: Serve) -> None:
    """Non-zero, within 5 s of the failure, and the supervisor does not try again and again."""
    server = serve_two(
        """
        @ps.schedule(period="1h")
        def broken():
            print("failing at", time.time(), "in", os.getpid(), flush=True)
            raise ConnectionError("the warehouse is down")
        """,
        wait=False,
    )
    code = server.wait_exit()
    first, *_ = [line.split() for line in server.output().splitlines() if line.startswith("failing at")]
    took = time.time() - float(first[2])
    print(f"exit code {code}, {took:.2f} s after the failure")
    assert code != 0
    assert took < 5.0
    eventually(lambda: not server.descendants())
    assert server.output().count("failing at") <= 2
    assert server.output().count("the server stops") <= 2
    assert "restarting" not in server.output()


def test_a_pool_of_forks_inside_a_task_ticks_nothing(serve_two: Serve) -> None:
    """Its processes have no clock, and the server stops without them."""
    server = serve_two(
        """
        import multiprocessing
        from helper import look

        def tell():
            print("ticked in", os.getpid(), flush=True)

        ps.schedule(period="100ms", name="tell")(tell)

        @ps.schedule(period="1h", first_run="background")
        def pool():
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pids = [process.pid for process in multiprocessing.active_children()]
                looks = pool.map(look, range(2))
            print("pool of", pids, looks, flush=True)
        """
    )
    server.wait_for("pool of")
    (told,) = [line for line in server.output().splitlines() if line.startswith("pool of")]
    ticked = set(re.findall(r"ticked in (\d+)", server.output()))
    assert not ticked & set(re.findall(r"\d+", told.split("]")[0]))
    assert 2 == told.count("(False, 1)"), told
    assert server.stop() in (0, -signal.SIGTERM)
    assert not server.descendants()


def test_a_task_that_holds_the_gil_loses_no_claim(serve_two: Serve, audited: Audited) -> None:
    """For 3 s its process is deaf. Nobody takes its run over, and the other process does all the rest."""
    server = serve_two(
        """
        import ctypes, sqlite3

        def holds_claims():
            database = sqlite3.connect(os.environ["PANEL_SCHEDULE_STORE"].removeprefix("file://") + "/store.db")
            owner = f"{os.getpid()}-*"
            return database.execute(
                "SELECT 1 FROM records WHERE space = 'task' AND name != 'deaf' AND owner GLOB ?", [owner]
            ).fetchall()

        @ps.schedule(period="1h", first_run="background")
        def deaf():
            service = ps._runtime.service
            while True:
                with service.lock:  # amid a transaction nobody else could write
                    if answer.entry is not None and not service.outbox._pending and not holds_claims():
                        print("deaf at", time.time(), flush=True)
                        ctypes.PyDLL(None).usleep(3_000_000)
                        return
                time.sleep(0.01)
        """
    )
    eventually(lambda: audited.ends_of("deaf"))
    assert [("succeeded", 1)] == audited.ends_of("deaf")
    ((owner, attempt),) = audited.rows("SELECT owner, attempt FROM claimed WHERE task = 'deaf'")
    assert 1 == attempt
    deaf_at = int(float(server.output().split("deaf at ")[1].split()[0]) * 1e6)
    ((meanwhile,),) = audited.rows(
        "SELECT count(*) FROM claimed WHERE owner != ? AND at BETWEEN ? AND ?", owner, deaf_at, deaf_at + 3_000_000
    )
    print(f"{meanwhile} runs of the other process in 3 s")
    assert meanwhile >= 15
    assert page(server)


def test_a_stopped_process_keeps_nobody_from_publishing(serve_two: Serve, audited: Audited) -> None:
    """Values go on in the other; when it is continued it catches up, and runs no old slot again."""
    server = serve_two()
    audited.await_values(8)
    children = [child for child in server.descendants() if child.ppid() == server.process.pid]
    # The one that has the tasks, if it is one alone; and then the other, which has got them meanwhile.
    for stopped in sorted(children, key=lambda child: -len(claims_of(child, audited))):
        others = {child: len(claims_of(child, audited)) for child in children if child != stopped}
        eventually(lambda stopped=stopped: stop_empty_handed(stopped, audited))
        try:
            audited.await_values(40, timeout=5.0)
            assert page(server)
            assert 0 == len(claims_of(stopped, audited, held=True))
            assert all(len(claims_of(child, audited)) > before for child, before in others.items())
        finally:
            stopped.resume()
        eventually(lambda stopped=stopped: page(server) and f"built with 42 by {stopped.pid}" in server.output())
    server.stop()
    assert [] == audited.lost_slots(timedelta(milliseconds=200))
    audited.assert_sound()


def stop_empty_handed(process: psutil.Process, audited: Audited) -> bool:
    """Stop a process, but not while it holds a claim or the database: of that nobody could relieve it."""
    process.suspend()
    try:
        with closing(sqlite3.connect(audited.path / "store.db", timeout=0.5)) as connection:
            connection.execute("BEGIN IMMEDIATE")
        if not claims_of(process, audited, held=True):
            return True
    except sqlite3.OperationalError:
        pass
    process.resume()
    return False


def claims_of(process: psutil.Process, audited: Audited, held: bool = False) -> list[tuple[Any, ...]]:
    return audited.rows(f"SELECT * FROM {'task_of' if held else 'claimed'} WHERE owner GLOB ?", f"{process.pid}-*")


def test_readers_on_every_thread_wait_for_one_slow_task_without_a_deadlock(serve_two: Serve) -> None:
    """4 threads, 4 readers: they give their places back while they wait (invariant 9)."""
    server = serve_two(
        """
        import pathlib, threading
        import panel_schedule as ps

        def read(number):
            pathlib.Path(f"reading {number}").touch()
            print(f"reader {number} has read {slow()}\\n", end="", flush=True)
            return number

        for number in range(4):
            ps.schedule(period="1h", name=f"reader{number}")(lambda number=number: read(number))

        @ps.schedule(period="1h")
        def slow():
            while len(list(pathlib.Path().glob("reading *"))) < 4:
                time.sleep(0.01)
            return 7

        @ps.schedule(period="1h")
        def answer():
            return 42
        """,
        ticks="import os, time",
        env={"PANEL_SCHEDULE_MAX_THREADS": "4"},
    )
    assert page(server)
    for number in range(4):
        server.wait_for(f"reader {number} has read 7")


def test_a_server_that_was_killed_starts_warm(serve_two: Serve, audited: Audited) -> None:
    """The first visitor sees the value of before, which is not computed again; the run in flight is."""
    tasks = """
        import pathlib
        import panel_schedule as ps

        @ps.schedule(period="1d")
        def answer():
            return os.environ["VALUE"]

        @ps.schedule(period="1d", first_run="background")
        def long():
            print("long runs", ps.current_run().attempt, flush=True)
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
    """
    first = serve_two(tasks, ticks="import os, time", env={"VALUE": "BEFORE"})
    assert page(first)
    first.wait_for("built with BEFORE")
    first.wait_for("long runs 1")
    os.killpg(first.process.pid, signal.SIGKILL)
    first.wait_exit()
    second = serve_two(tasks, ticks="import os, time", env={"VALUE": "AFTER"})
    assert page(second)
    second.wait_for("built with BEFORE")
    second.wait_for("long runs 2")
    (second.folder / "go").touch()
    eventually(lambda: audited.ends_of("long"))
    assert [("succeeded", 2)] == audited.ends_of("long")
    assert 1 == len(audited.rows("SELECT * FROM claimed WHERE task = 'answer'"))
    second.stop()
    audited.assert_sound()


def test_servers_follow_each_other_on_one_store(serve_two: Serve, audited: Audited) -> None:
    """A rolling restart: no slot is lost, and none is run twice; also where the setup script runs before the fork."""
    first = serve_two()
    audited.await_values(8)
    second = serve_two(processes=0)
    assert page(second)
    first.stop()
    eventually(lambda: any(claims_of(child, audited) for child in second.descendants()))
    audited.await_values(40)
    assert page(second)
    second.stop()
    assert [] == audited.lost_slots(timedelta(milliseconds=200))
    assert [] == audited.lost_runs()
    audited.assert_sound()
