"""The monitor: what it says of each function, to whom, and what may be done there."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count, islice, product
from typing import Any
from unittest.mock import ANY

import httpx
import numpy as np
import panel as pn
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from panel_schedule.cli.live import erase
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import RegistrationError, StoreError
from panel_schedule.functions.run import RunRecord, RunState, current_run
from panel_schedule.http.totals import Totals
from panel_schedule.monitor import watch as watching
from panel_schedule.monitor.actions import act, detail, one_run
from panel_schedule.monitor.rows import DURATIONS, RUNS, Past, listed, past
from panel_schedule.monitor.timeline import as_numbers
from panel_schedule.monitor.watch import ANEW, NEWEST, Watch
from panel_schedule.runtime import Runtime
from panel_schedule.views.admins import refusal
from servers import PanelServer, Serve, eventually, write_files
from windows import NewPage, windows

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SUCCEEDED, FAILED, CANCELLED, SKIPPED = RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED


def ran(*states: RunState) -> list[RunRecord]:
    """Newest first; a run takes a second, and one that was skipped none."""
    later = NOW + timedelta(seconds=1)
    return [
        RunRecord("id", None, state, 1, NOW, None if state is SKIPPED else NOW, later, "no" if state is FAILED else "")
        for state in states
    ]


# ------------------------------------------------------------ what is said, without a server


@pytest.mark.parametrize(
    ("states", "failures", "error", "success", "well"),
    [
        ([], 0, "", False, []),
        ([SUCCEEDED, FAILED], 0, "", True, [0, 1]),
        ([FAILED, FAILED, SUCCEEDED], 2, "no", True, [1, 0, 0]),
        ([SKIPPED, FAILED, CANCELLED, FAILED], 2, "no", False, [0, 1, 0]),
        ([CANCELLED, FAILED], 1, "", False, [0, 1]),
    ],
)
def test_a_history_comes_to(states: list, failures: int, error: str, success: bool, well: list[int]) -> None:
    """Skipped slots are no runs, and who cancels a run makes no failure of it."""
    last = (NOW + timedelta(seconds=1)).timestamp() if success else None
    assert Past(failures, error, last, [[1.0, each] for each in well]) == past(ran(*states))


@pytest.mark.parametrize("new", range(4))
def test_a_history_comes_to_the_same_when_it_is_read_bit_by_bit(new: int) -> None:
    """Whatever is added to what was known: durations are those of the last runs alone."""
    for states in product([SUCCEEDED, FAILED, CANCELLED, SKIPPED], repeat=3):
        runs = ran(*states, FAILED, *[SUCCEEDED] * DURATIONS)
        assert past(runs) == past(runs[:new], past(runs[new:]))


def test_failures_before_the_last_runs_are_listed_after_them() -> None:
    """Whatever has succeeded since: at most as many as there are last runs."""
    newest, failures = ran(*[SUCCEEDED] * RUNS), ran(*[FAILED] * (RUNS + 1))
    assert [*newest, *failures[:RUNS]] == listed([*newest, *ran(SUCCEEDED, CANCELLED), *failures])


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(Config({"PANEL_SCHEDULE_TIMEZONE": "UTC"}))
    yield runtime
    runtime.close()


@pytest.fixture
def front(runtime: Runtime) -> Front:
    return Front(runtime)


class Looking:
    """Somebody who looks: `next` is what is new since the last time, once there is something."""

    def __init__(self, watch: Watch, admin: bool = True):
        self.changed = threading.Event()
        self.watch, self.admin, self.seen = watch, admin, 0
        watch.begin(self.changed.set)

    def next(self) -> dict[str, Any]:
        while True:
            text, self.seen = self.watch.since(self.seen, self.admin)
            if text:
                return json.loads(text)  # type: ignore[no-any-return]
            assert self.changed.wait(10)
            self.changed.clear()

    def until(self, name: str, **expected: Any) -> dict[str, Any]:
        """The news that say this of a function."""
        while True:
            news = self.next()
            for row in news["rows"]:
                if row["name"] == name and expected.items() <= row.items():
                    return news


def test_who_looks_is_told_all_and_then_what_has_changed(runtime: Runtime, front: Front) -> None:
    """Tasks, background and memoized functions; and one that is gone."""
    first, second = (front.schedule(period="1h", first_run="skip", name=name)(lambda: 1) for name in ("a", "b"))
    front.background(executor="thread", name="job")(lambda: 1)
    front.memoize(ttl="5m", after=[first], name="memo")(lambda: 1)
    looking = Looking(Watch(runtime))
    news = looking.next()
    assert {"a": "every 1 h", "b": "every 1 h", "job": "on request", "memo": "kept 5 min, after a"} == {
        row["name"]: row["schedule"] for row in news["rows"]
    }
    assert news["all"]
    second.refresh().result(5)
    news = looking.until("b", state="idle", failures=0)
    assert (["b"], [], False) == ([row["name"] for row in news["rows"]], news["gone"], news["all"])
    front.cancel_task("a")
    assert ["task a"] == looking.next()["gone"]


def test_a_function_does_not_fail_since_its_successes_have_become_too_old(runtime: Runtime, front: Front) -> None:
    """Which failures outlast: those that are older than they say nothing of how it is now."""
    front.background(executor="thread", name="job")(lambda: 1)
    store, ended = runtime.service.store, runtime.clock.now() - timedelta(days=8)
    store.do(store.note("job", "job", RunRecord("a", None, RunState.FAILED, finished_at=ended, error="No.")))
    [row] = Looking(Watch(runtime)).next()["rows"]
    assert (1, 0, "") == (len(runtime.history("job", "job")), row["failures"], row["error"])


def test_nobody_looks_any_more_and_nothing_is_gathered(runtime: Runtime, front: Front) -> None:
    """And who looks again is told how it is then, not how it was."""
    task, watch = front.schedule(period="1h", first_run="skip", name="task")(lambda: 1), Watch(runtime)
    looking = Looking(watch)
    looking.next()
    watch.end(looking.changed.set)
    eventually(lambda: not watch._looking)
    task.pause()
    news = Looking(watch).next()
    assert (["paused"], True) == ([row["state"] for row in news["rows"]], news["all"])


def test_of_a_history_that_has_become_longer_only_the_end_is_read(
    runtime: Runtime, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all of it where that says too little: after many runs at once, when it was deleted, and now and then."""
    front.background(executor="thread", name="job")(lambda: 1)
    store, watch, reads = runtime.service.store, Watch(runtime), list[int | None]()
    read, numbers = store.history, count()

    def history(name: str, kind: str, last: int | None = None) -> list[RunRecord]:
        reads.append(last)
        return read(name, kind, last)

    monkeypatch.setattr(store, "history", history)

    def after(runs: int) -> list[int | None]:
        """What is read when so many have ended, so that the watch knows as much as who reads all."""
        for number in islice(numbers, runs):
            ended = NOW + timedelta(seconds=number)
            state, error = (SUCCEEDED, "") if number % 3 else (FAILED, "No.")
            run = RunRecord(f"{number}", ended, state, 1, ended, ended, ended, error)
            store.do(store.note("job", "job", run))
        reads.clear()
        watch._read_histories()
        found, known = read("job", "job"), watch._pasts["job", "job"]
        assert past(store.complete(found)) == known.past
        assert all(map(np.array_equal, as_numbers(found), known.ran or ()))
        return reads.copy()

    store.keep_history(None)
    assert [None] == after(2)
    assert [] == after(0)
    assert [NEWEST] == after(1)
    assert [NEWEST] == after(NEWEST - 1)
    assert [NEWEST, None] == after(NEWEST)
    erase(store, "job", "job")
    assert [NEWEST, None] == after(1)
    steps = ANEW // (NEWEST - 1) + 1
    assert [[NEWEST]] * steps + [[None]] == [after(NEWEST - 1) for _ in range(steps + 1)]


def test_who_asks_what_is_new_waits_for_no_texts(
    runtime: Runtime, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the event loop that asks, and those of a thousand functions take their time."""
    front.schedule(period="1h", first_run="skip", name="task")(lambda: 1)
    watch, make, waits = Watch(runtime), watching._told, list[bool]()

    def made_while_somebody_asks(*args: Any) -> Any:
        asks = threading.Thread(target=watch.since, args=(0, True), daemon=True)
        asks.start()
        asks.join(5)
        waits.append(asks.is_alive())
        return make(*args)

    monkeypatch.setattr(watching, "_told", made_while_somebody_asks)
    Looking(watch).next()
    assert not waits[0]


def test_a_task_that_fails_says_how_often_and_why(runtime: Runtime, front: Front) -> None:
    def fail() -> None:
        raise ValueError("no <b>table</b>\nsecond line")

    task = front.schedule(period="1h", first_run="skip")(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="no <b>table"):
            task.refresh().result(5)
    news = Looking(Watch(runtime)).until("fail", failures=2)
    assert ("failed", "ValueError: no <b>table</b>") == (news["rows"][0]["state"], news["rows"][0]["error"])


def test_a_timeline_has_what_is_under_way_and_reads_no_history_for_who_opens_it(
    runtime: Runtime, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks, background and memoized functions; and it is made once for all who look within a second."""
    begun, released = threading.Barrier(4), threading.Event()

    def body() -> None:
        begun.wait(10)
        released.wait(10)

    task = front.schedule(period="1h", first_run="skip", name="task")(body)
    job = front.background(executor="thread", name="job")(body)
    memo = front.memoize(name="memo", executor="thread")(body)
    quick = front.background(executor="thread", name="quick")(lambda: 1)
    quick.submit().result(5)
    runs = [task.refresh(), job.submit(), memo.submit()]
    begun.wait(10)
    watch = Watch(runtime)
    looking = Looking(watch)
    looking.until("quick", durations=[[ANY, 1]])
    monkeypatch.setattr(runtime.service.store, "history", None)
    eventually(lambda: watch._live)
    bars = watch.bars(timedelta(hours=1), admin=True)
    assert ["job (job)", "memo (memo)", "quick (job)", "task"] == bars.rows
    assert (1, 3) == (bars.counts[SUCCEEDED], bars.counts[RunState.RUNNING])
    assert bars is watch.bars(timedelta(hours=1), admin=True)
    released.set()
    for run in runs:
        run.result(5)


def test_a_timeline_has_what_other_processes_compute(tmp_path: Any) -> None:
    """An answer of a memoized function is in no history before it is there."""
    begun, released = threading.Event(), threading.Event()

    def slow(number: int) -> int:
        begun.set()
        released.wait(10)
        return number

    here, there = (Runtime(Config({"PANEL_SCHEDULE_STORE": f"file://{tmp_path}/store"})) for _ in range(2))
    try:
        memos = [Front(runtime).memoize(executor="thread")(slow) for runtime in (here, there)]
        run = memos[1].submit(1)
        assert begun.wait(10)
        watch = Watch(here)
        Looking(watch).until("slow", updated=None)
        eventually(lambda: watch._live)
        bars = watch.bars(timedelta(hours=1), admin=True)
        assert (["slow (memo)"], {RunState.RUNNING: 1}) == (
            bars.rows, {state: count for state, count in bars.counts.items() if count},
        )  # fmt: skip
        released.set()
        assert 1 == run.result(10)
        eventually(lambda: not watch._live)
    finally:
        released.set()
        for runtime in (here, there):
            runtime.close()


def test_answers_at_hand_and_hits_are_those_of_all_processes_of_the_server(runtime: Runtime, front: Front) -> None:
    """As their sums say; what this process adds to these is counted once."""
    memo = front.memoize(name="memo", max_bytes=100_000)(lambda number: "x" * 1000)
    for number in (1, 2, 1):
        memo(number)
    counts, there = Totals(runtime, lambda: 0).read()
    assert (1, 2) == (counts["hits", "memo"], there["answers", "memo"])
    assert 2000 <= there["bytes", "memo"] < 4000
    counted = {
        ("hits", "memo"): 3000,
        ("runs", "memo", "memo", "succeeded"): 900,
        ("runs", "memo", "memo", "failed"): 100,
    }
    others = counted, {("answers", "memo"): 7, ("bytes", "memo"): 1_234_567}
    [row] = Looking(Watch(runtime, lambda: others)).next()["rows"]
    assert "7 at hand (1.23 MB), 3,000 hits (75 %)" == row["message"]


def away(*_: Any, **__: Any) -> Any:
    raise StoreError("The store is away.")


def test_a_store_that_is_away_is_named_and_tasks_are_told_nevertheless(
    runtime: Runtime, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process knows without it goes on being right."""
    front.schedule(period="1h", first_run="skip", name="task")(lambda: 1)
    monkeypatch.setattr(runtime.service.store.records, "scan", away)
    looking = Looking(Watch(runtime))
    looking.until("task", state="idle")
    assert "The store is away." == looking.next()["head"]["trouble"]
    front.schedule(period="1h", first_run="skip", name="late")(lambda: 1)
    assert "The store is away." == looking.until("late", state="idle")["head"]["trouble"]


def test_of_the_processes_this_one_is_told_while_the_store_is_away(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And why no other one is."""
    records, watch = runtime.service.store.records, Watch(runtime)
    assert "away" not in watch.workers()
    monkeypatch.setattr(records, "scan", away)
    for said in ("The store is away.", "which shows this"):
        assert said in watch.workers()


def test_one_function_from_near(runtime: Runtime, front: Front) -> None:
    """A task has its next five times in the zone of its schedule."""
    front.schedule(cron="0 6 * * mon-fri", timezone="America/New_York", first_run="skip", name="task")(lambda: 1)
    shown = detail(runtime, "task task", admin=False)
    assert 5 == len(shown["next"])
    assert re.fullmatch(r"\w{3} \d\d \w{3} 06:00:00 E[SD]T", shown["next"][0]["text"])


def test_a_failure_of_last_night_is_opened_however_often_it_has_run_well_since(runtime: Runtime, front: Front) -> None:
    well = iter([False, *[True] * RUNS])
    job = front.background(executor="thread", name="job")(lambda: 1 if next(well) else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.submit().result(5)
    for _ in range(RUNS):
        job.submit().result(5)
    eventually(lambda: len(job.history) > RUNS)
    last = detail(runtime, "job job", admin=False)["runs"][-1]
    assert "ZeroDivisionError: division by zero" == one_run(runtime, "job job", last["run"], admin=True)["error"]


# What only admins are told of a run.
FOR_ADMINS = {"user", "arguments", "traceback", "logs"}


def test_one_run_from_near(runtime: Runtime, front: Front) -> None:
    """Who asked for it, with what, and where its failure came from: only admins are told. Its id is told to nobody."""

    def fail(region: str, password: str) -> None:
        logging.getLogger("shop").warning("slow")
        raise ValueError("no")

    job = front.background(executor="thread", name="job")(fail)
    run = job.submit_for("ada", ("north",), {"password": "hidden"})
    with pytest.raises(ValueError, match="no"):
        run.result(5)
    eventually(lambda: job.history)
    [row] = detail(runtime, "job job", admin=False)["runs"]
    mine, anybodys = (one_run(runtime, "job job", row["run"], admin) for admin in (True, False))
    assert FOR_ADMINS == mine.keys() - anybodys.keys()
    assert ("ada", "'north', password=...") == (mine["user"], mine["arguments"])
    assert "in fail" in mine["traceback"]
    assert mine["logs"].endswith("WARNING shop: slow")
    assert ("failed", "ValueError", 1, False) == tuple(anybodys[name] for name in ("state", "error", "attempt", "live"))
    assert ["Asked for", "Began", "Ended"] == [name for name, _ in anybodys["times"]]
    assert not any(secret in json.dumps([row, mine]) for secret in (run.id, "hidden"))
    with pytest.raises(RegistrationError, match="in the history no more"):
        one_run(runtime, "job job", "another", True)


@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_what_an_error_says_is_for_admins_where_a_visitor_has_given_the_arguments(
    runtime: Runtime, front: Front, kind: str
) -> None:
    """Others hear its type: in the table, of each run, and over time. A task has no arguments: all are told."""

    def find(user: str = "bob@x") -> None:
        raise KeyError(user)

    if kind == "task":
        run = front.schedule(period="1h", first_run="skip")(find).refresh()
    elif kind == "job":
        run = front.background(executor="thread")(find).submit("bob@x")
    else:
        run = front.memoize(executor="thread")(find).submit("bob@x")
    with pytest.raises(KeyError):
        run.result(5)
    watch = Watch(runtime)
    for admin in (True, False):
        line = "KeyError: 'bob@x'" if admin or kind == "task" else "KeyError"
        looking = Looking(watch, admin)
        looking.until("find", error=line, failures=1)
        [row] = detail(runtime, f"{kind} find", admin)["runs"]
        page = one_run(runtime, f"{kind} find", row["run"], admin)
        bars = watch.bars(timedelta(hours=1), admin)
        assert [line] * 3 == [row["error"], page["error"], *bars.columns["error"]]
        watch.end(looking.changed.set)


@pytest.mark.parametrize("kind", ["task", "job"])
def test_a_run_under_way_from_near(runtime: Runtime, front: Front, kind: str) -> None:
    """How far it is. Partial results are for admins; so is what a background function says to whoever asked for it."""
    published, released = threading.Event(), threading.Event()

    def steps() -> int:
        run = current_run()
        assert run is not None
        run.report(50, "half")
        for number in range(7):
            run.publish({"step": number, "data": "x" * 1000})
        published.set()
        released.wait(10)
        return 1

    if kind == "job":
        run = front.background(executor="thread", name="steps")(steps).submit()
    else:
        run = front.schedule(period="1h", first_run="skip")(steps).refresh()
    assert published.wait(10)
    [[row], [whole]] = (detail(runtime, f"{kind} steps", admin)["live"] for admin in (False, True))
    for_admins = {"message"} if kind == "job" else set()
    assert {"user"} | for_admins == whole.keys() - row.keys()
    assert ("half", 50) == (whole["message"], row["percent"])
    mine, anybodys = (one_run(runtime, f"{kind} steps", row["run"], admin) for admin in (True, False))
    assert ("running", True, 50) == tuple(anybodys[name] for name in ("state", "live", "percent"))
    assert "half" == mine["message"]
    assert FOR_ADMINS | {"partials", "first"} | for_admins == mine.keys() - anybodys.keys()
    looking = Looking(Watch(runtime))
    news = looking.until("steps", state="running")
    assert ("half" in json.dumps(news)) == (kind == "task")
    if kind == "job":  # those of a task are versions of its value
        assert (3, 5) == (mine["first"], len(mine["partials"]))
        assert mine["partials"][0].startswith("{'step': 2, 'data': 'xxx")
        assert all(len(text) <= 200 for text in mine["partials"])
    released.set()
    run.result(10)
    assert [] == detail(runtime, f"{kind} steps", admin=False)["live"]


def test_what_is_done_with_each_kind(runtime: Runtime, front: Front) -> None:
    task = front.schedule(period="1h", first_run="skip", name="task")(lambda: 1)
    act(runtime, "task task", "pause")
    assert "paused" == task.status.state
    act(runtime, "task task", "resume")
    assert "idle" == task.status.state
    assert "task: runs every 15 min from now on." == act(runtime, "task task", "reschedule", ("15m",))
    act(runtime, "task task", "reschedule", ("0 6 * * *",))
    assert "06:00" in detail(runtime, "task task", admin=False)["next"][0]["text"]
    assert "task: no run is under way." == act(runtime, "task task", "cancel")
    act(runtime, "task task", "refresh")
    assert 1 == task.wait_ready(5)

    released = threading.Event()
    job = front.background(executor="thread", name="job")(lambda: released.wait(10))
    run = job.submit()
    assert "job: 1 cancelled." == act(runtime, "job job", "cancel")
    assert "cancelled" == run.state
    released.set()

    computed = list[int]()
    memo = front.memoize(name="memo")(lambda number: computed.append(number))
    memo(1), memo(1)
    act(runtime, "memo memo", "invalidate")
    memo(1)
    assert [1, 1] == computed


def test_who_cancels_all_runs_is_told_that_the_store_is_away(
    runtime: Runtime, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that there are none."""
    front.background(executor="thread", name="job")(lambda: 1)
    monkeypatch.setattr(runtime.service.store.records, "scan", away)
    with pytest.raises(StoreError, match="The store is away"):
        act(runtime, "job job", "cancel")


@pytest.mark.parametrize(
    ("id", "action", "given"),
    [("task x", "pause", ()), ("x", "pause", ()), ("task task", "remove", ()), ("task task", "pause", ("x",)),
     ("memo task", "invalidate", ()), ("task task", "invalidate", ()), ("task task", "reschedule", ())],
)  # fmt: skip
def test_a_browser_may_ask_for_anything(runtime: Runtime, front: Front, id: str, action: str, given: tuple) -> None:
    task = front.schedule(period="1h", first_run="skip", name="task")(lambda: 1)
    with pytest.raises(RegistrationError, match="There is no"):
        act(runtime, id, action, given)
    assert "idle" == task.status.state


def test_whom_the_program_names_is_who_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Panel knows; and nobody is one in a session that the address of the page names."""
    monkeypatch.setattr(type(pn.state), "user", property(lambda self: "ada"))
    assert ("", True) == (refusal(["ada"], "ada"), "user 'bob' is none" in refusal(["ada"], "bob"))
    for name in ("bokeh-session-id", "bokeh_session_id"):
        monkeypatch.setattr(type(pn.state), "session_args", property(lambda self, name=name: {name: [b"known"]}))
        for user in (None, "ada"):
            assert "names its session" in refusal(["ada"], user)


@pytest.mark.parametrize(
    ("admins", "password", "user", "why_not"),
    [
        ([], "users.json", "ada", "names nobody"),
        (["ada"], "users.json", "ada", ""),
        (["ada"], "users.json", "bob", "user 'bob' is none"),
        (["ada"], "users.json", None, "not logged in"),
        (["ada"], "one for all", "ada", "share one password"),
    ],
)
def test_who_may_change_something(
    admins: list[str], password: str, user: str | None, why_not: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.json").write_text("{}")
    monkeypatch.setattr(pn.config, "basic_auth", password)
    monkeypatch.setattr(type(pn.state), "user", property(lambda self: user))
    found = refusal(admins)
    assert (why_not in found) if why_not else found == ""


# ------------------------------------------------------------ in a browser


# To import the other design does something to all pages of a server.
TASKS = """
    import logging, os, pathlib, time
    import panel_material_ui
    import panel_schedule as ps

    @ps.schedule(period="1h", name="<script>document.title = 'hurt'</script>", first_run="background")
    def failing():
        logging.getLogger("shop").warning("<b>slow</b>")
        raise ConnectionError("no <img src=x onerror=alert(1)> to host")

    @ps.schedule(cron="0 6 * * mon-fri", timezone="America/New_York")
    def prices():
        return 42

    @ps.schedule(period="1h", first_run="skip")
    def endless():
        while True:
            ps.progress(1, 2)
            time.sleep(0.01)

    @ps.schedule(after=prices)
    def doubled():
        return 2 * prices()

    @ps.memoize(ttl="5m")
    def twice(number):
        return 2 * number

    @ps.background(executor="thread")
    def report():
        for percent in (10, 50, 90):
            ps.progress(percent, 100)
            while not pathlib.Path(f"after {percent}").exists():
                time.sleep(0.01)

    @ps.memoize(ttl="1h")
    def stamp():
        return time.time_ns()

    @ps.background(executor="thread")
    def stays():
        try:
            while True:
                ps.progress(0)
                time.sleep(0.01)
        finally:
            pathlib.Path(f"ended {os.getpid()}").touch()
"""

# Says in its title which process has made the page.
ASKS = """
    import os
    import panel as pn
    from tasks import stamp, stays
    if "start" in pn.state.session_args:
        stays.submit()
    pn.state.curdoc.title = f"{os.getpid()} {stamp()}"
"""

START = """
    from tasks import report
    report.submit()
"""

APP = """
    import panel as pn
    from tasks import prices
    pn.pane.Str(str(prices())).servable()
"""

OWN = """
    import panel as pn, panel_schedule as ps
    pn.Column("# On call", ps.Monitor()).servable()
"""

# What a login page and Panel's admin page ask the network for, an icon that nobody has, and tables of the admin page
# that are told something while another tab is shown.
ALLOWED = ["ERR_FAILED", "404", "rowManager"]

# As somebody would who wants buttons that he may not have.
FORGE = """() => {
    for (const model of Bokeh.documents[0]._all_models.values()) {
        if (model.data?.why_not !== undefined) model.data.why_not = "";
    }
}"""


def row(page: Page, name: str) -> Locator:
    return page.locator(".monitor > table > tbody > tr").filter(has=page.locator(".title", has_text=name))


def process_of(page: Page) -> str:
    expect(page.locator(".foot")).to_contain_text("seen from process")
    return page.locator(".foot").inner_text().rpartition(" ")[2]


class Site:
    """A server of two processes with a prefix and a login, and its visitors."""

    def __init__(self, server: PanelServer, open_page: NewPage):
        self.server, self.url = server, f"{server.url}/some/where/schedule"
        self._open = open_page

    def visit(self, user: str) -> Page:
        page = self._open(self.url, allow=ALLOWED)
        expect(page).to_have_url(re.compile("/some/where/login"))
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", "pass")
        page.press("input[name=password]", "Enter")
        expect(page.locator(".monitor h2")).to_contain_text("of 8 failing")
        return page

    def ask_another(self, page: Page, query: str = "") -> tuple[str, str]:
        """What the visitor of a page is given by a process that does not serve it: which that is, and its stamp."""
        cookies = {each["name"]: each["value"] for each in page.context.cookies()}
        url, here = f"{self.url.replace('schedule', 'asks')}{query}", process_of(page)

        def asked() -> tuple[str, str] | None:
            process, stamp = re.findall(
                r"<title>(\d+) (\d+)</title>", httpx.get(url, cookies=cookies, timeout=30).text
            )[0]
            return (process, stamp) if process != here else None

        return eventually(asked)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelServer]:
    folder = tmp_path_factory.mktemp("site")
    users = json.dumps({"ada": "pass", "bob": "pass"})
    write_files(
        folder,
        {"app.py": APP, "own.py": OWN, "asks.py": ASKS, "start.py": START, "tasks.py": TASKS, "users.json": users},
    )
    login = "--basic-auth users.json --cookie-secret a-secret-of-cookies"
    options = f"--setup tasks.py --plugins panel_schedule --num-procs 2 --prefix some/where {login}"
    server = PanelServer(
        f"app.py own.py asks.py start.py --admin {options}", folder, env={"PANEL_SCHEDULE_ADMINS": "ada"}
    )
    with closing(server):
        server.wait_started()
        yield server
        print(server.output())


@pytest.fixture
def site(server: PanelServer, browser: Browser) -> Iterator[Site]:
    with windows(browser) as open_page:
        yield Site(server, open_page)


def test_an_admin_sees_what_fails_and_pauses_it_for_all_processes(site: Site) -> None:
    """By keyboard; a user of the other process sees it. Names and errors are text, whatever is in them."""
    ada, bob = site.visit("ada"), site.visit("bob")
    here = process_of(ada)

    def elsewhere() -> bool:
        bob.reload()
        return process_of(bob) != here

    eventually(elsewhere, timeout=30)
    assert ["Schedule", "Schedule"] == [ada.title(), bob.title()]
    first = ada.locator(".monitor > table > tbody > tr").first
    expect(first).to_contain_text("<script>document.title = 'hurt'</script>")
    expect(first).to_contain_text("ConnectionError: no <img src=x onerror=alert(1)> to host")
    ada.keyboard.press("/")
    ada.keyboard.type("new york")
    ada.keyboard.press("ArrowDown")
    expect(ada.locator(".monitor > table > tbody > tr")).to_have_count(1)
    expect(row(ada, "prices")).to_contain_text("06:00 Mon-Fri, New York")
    ada.keyboard.press("Enter")
    expect(ada.locator("dialog ol li")).to_have_count(5)
    ada.get_by_role("button", name="Pause").click()
    expect(ada.locator("dialog .answer")).to_have_text("prices: paused.")
    expect(row(bob, "prices")).to_have_attribute("data-kind", "paused")
    ada.get_by_role("button", name="Resume").click()
    expect(row(bob, "prices")).to_have_attribute("data-kind", "fresh")
    ada.keyboard.press("Escape")
    expect(ada.locator("dialog")).to_be_hidden()
    assert "user 'ada' asks for 'pause' of 'task prices'" in site.server.output()


def test_a_run_is_started_and_cancelled(site: Site) -> None:
    ada = site.visit("ada")
    row(ada, "endless").click()
    ada.get_by_role("button", name="Run now").click()
    expect(ada.locator("dialog .state")).to_contain_text("running · 50 %")
    ada.get_by_role("button", name="Cancel").click()
    expect(ada.locator("dialog .scroll")).to_contain_text("cancelled")


def test_what_is_open_of_a_background_function_moves_on(site: Site) -> None:
    """The runs under way, and the one that is opened, though nothing else of the function is new."""
    ada = site.visit("ada")
    assert ada.request.get(site.url.replace("schedule", "start")).ok
    expect(row(ada, "report")).to_have_attribute("data-kind", "running")
    row(ada, "report").click()
    shown = ada.locator("dialog .rest")
    expect(shown).to_contain_text("10 %")
    (site.server.folder / "after 10").touch()
    expect(shown).to_contain_text("50 %")
    shown.locator("tr[data-kind=running]").click()
    expect(shown.locator(".run")).to_contain_text("50 %")
    (site.server.folder / "after 50").touch()
    expect(shown.locator(".run")).to_contain_text("90 %")
    (site.server.folder / "after 90").touch()


def test_an_answer_that_another_process_holds_is_computed_anew_once_it_is_invalidated(site: Site) -> None:
    """In a page of this one."""
    ada = site.visit("ada")
    _, held = site.ask_another(ada)
    assert held == site.ask_another(ada)[1]
    row(ada, "stamp").click()
    ada.get_by_role("button", name="Invalidate").click()
    expect(ada.locator("dialog .answer")).to_have_text("stamp: all answers are forgotten.")
    eventually(lambda: held != site.ask_another(ada)[1])


def test_a_job_that_runs_in_another_process_is_cancelled(site: Site) -> None:
    """In a page of this one: its function ends there."""
    ada = site.visit("ada")
    there, _ = site.ask_another(ada, "?start")
    expect(row(ada, "stays")).to_have_attribute("data-kind", "running")
    row(ada, "stays").click()
    ada.get_by_role("button", name="Cancel all").click()
    expect(ada.locator("dialog .answer")).to_have_text(re.compile(r"stays: [1-9]\d* cancelled."))
    eventually((site.server.folder / f"ended {there}").exists)
    expect(ada.locator("dialog .scroll tr[data-kind=running]")).to_have_count(0)


def test_a_task_is_rescheduled(site: Site) -> None:
    """What is wrong with a schedule is said, to who has gone on until something else is done."""
    ada = site.visit("ada")
    row(ada, "endless").click()
    when = ada.get_by_label("New schedule")
    when.fill("30m")
    ada.get_by_role("button", name="Reschedule").click()
    expect(ada.locator("dialog .answer")).to_have_text("endless: runs every 30 min from now on.")
    expect(row(ada, "endless").locator(".schedule")).to_have_text("every 30 min")
    when.fill("soon")
    when.evaluate("each => { each.form.requestSubmit(); each.closest('dialog').close(); }")
    expect(ada.locator(".note")).to_contain_text("'soon'")
    row(ada, "prices").click()
    expect(ada.locator(".note")).to_have_text("")


def test_a_click_on_a_heading_sorts(site: Site) -> None:
    """A second one the other way round."""
    bob = site.visit("bob")
    heading, names = bob.get_by_role("columnheader", name="Name"), bob.locator(".monitor > table .title")
    in_order = sorted(names.all_inner_texts(), key=str.lower)
    expect(heading).to_have_attribute("aria-sort", "none")
    for order, expected in (("ascending", in_order), ("descending", in_order[::-1])):
        heading.get_by_role("button").click()
        expect(heading).to_have_attribute("aria-sort", order)
        assert expected == names.all_inner_texts()


def test_an_admin_opens_a_run_that_has_failed(site: Site) -> None:
    """By keyboard: its traceback and what it has logged are text. Escape leads back to the runs, and then away."""
    ada = site.visit("ada")
    row(ada, "<script>").click()
    run = ada.locator("dialog .scroll tr[data-kind=failed]").first
    run.focus()
    for _ in range(2):
        ada.keyboard.press("Enter")
        shown = ada.locator("dialog .rest")
        expect(shown).to_contain_text('raise ConnectionError("no <img src=x onerror=alert(1)> to host")')
        expect(shown).to_contain_text("WARNING shop: <b>slow</b>")
        ada.keyboard.press("Escape")
        expect(run).to_be_focused()
    ada.keyboard.press("Escape")
    expect(ada.locator("dialog")).to_be_hidden()


def test_who_is_no_admin_opens_a_run_without_what_is_for_admins(site: Site) -> None:
    """It is not even sent."""
    bob = site.visit("bob")
    heard = list[str]()
    bob.on("websocket", lambda socket: socket.on("framereceived", lambda frame: heard.append(str(frame))))
    bob.reload()
    row(bob, "<script>").click()
    bob.locator("dialog .scroll tr[data-kind=failed]").first.click()
    expect(bob.locator("dialog .rest")).to_contain_text("Process")
    assert any("Asked for" in frame for frame in heard)
    assert not any("Traceback (most recent" in frame or "WARNING shop" in frame for frame in heard)


def test_who_is_no_admin_has_no_buttons_and_those_he_forges_do_nothing(site: Site) -> None:
    bob = site.visit("bob")
    expect(bob.locator(".foot")).to_contain_text("user 'bob' is none of ps.config.admins")
    row(bob, "prices").click()
    expect(bob.locator("dialog ol li")).to_have_count(5)
    expect(bob.get_by_role("button", name="Pause")).to_be_hidden()
    bob.evaluate(FORGE)
    bob.get_by_role("button", name="Pause").click()
    expect(bob.locator("dialog .answer")).to_contain_text("user 'bob' is none of ps.config.admins")
    expect(row(bob, "prices")).to_have_attribute("data-kind", "fresh")


def test_nobody_sees_anything_without_the_login(server: PanelServer) -> None:
    site = f"{server.url}/some/where"
    for path in ("schedule", "schedule/"):
        response = httpx.get(f"{site}/{path}", follow_redirects=True)
        assert "/login" in str(response.url)
        assert "panel_schedule" not in response.text


GROUND = """each => {
    for (; each; each = each.assignedSlot ?? each.parentElement ?? each.getRootNode().host) {
        const { backgroundColor } = getComputedStyle(each);
        if (backgroundColor !== "rgba(0, 0, 0, 0)") return backgroundColor;
    }
    return "rgb(255, 255, 255)";
}"""


def test_runs_over_time_and_what_is_made_of_what_have_tabs(site: Site) -> None:
    """They are drawn when they are looked at; and who comes back finds all functions again."""
    page = site.visit("bob")
    here = process_of(page)
    page.get_by_text("Timeline", exact=True).click()
    expect(page.locator("body")).to_contain_text(re.compile(r"\d+ failed"))
    page.get_by_text("Graph", exact=True).click()
    expect(page.locator("g[data-state]")).to_have_count(2)
    expect(page.locator("body")).to_contain_text("4 tasks and functions are connected with no other one")
    page.get_by_text("Workers", exact=True).click()
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("article").first).to_contain_text(f"Process {here} on")
    page.get_by_text("Functions", exact=True).click()
    expect(row(page, "prices")).to_have_attribute("data-kind", "fresh")


def test_it_is_part_of_a_page_of_ones_own_and_of_the_admins(site: Site) -> None:
    """Of the page of Panel's ``--admin``."""
    page = site.visit("bob")
    for path in ("own", "admin"):
        page.goto(site.url.replace("schedule", path))
        if path == "admin":
            page.get_by_text("Schedule", exact=True).click()
        expect(page.locator(".monitor h2")).to_contain_text("1 of 8 failing")


INK = "each => getComputedStyle(each).color"


def brightness(color: str) -> int:
    return sum(map(int, re.findall(r"\d+", color)[:3]))


def test_it_is_readable_in_both_themes_on_a_phone_too(site: Site) -> None:
    """Nothing is wider than the window, and text is light where its ground is dark."""
    page = site.visit("bob")
    for theme in ("default", "dark"):
        page.goto(f"{site.url}?theme={theme}")
        for width in (1280, 420):
            page.set_viewport_size({"width": width, "height": 800})
            expect(row(page, "prices")).to_be_visible()
            assert width >= page.evaluate("document.documentElement.scrollWidth")
        for tab, texts in (("Functions", [".monitor h2"]), ("Workers", ["article h3", "nav >> text=Timeline"])):
            page.get_by_text(tab, exact=True).click()
            for text in texts:
                ink, ground = (brightness(page.locator(text).first.evaluate(code)) for code in (INK, GROUND))
                assert (ink > ground + 300) if theme == "dark" else (ground > ink + 300)
            assert 420 >= page.evaluate("document.documentElement.scrollWidth")


def test_it_opens_before_the_first_values_are_there(serve: Serve, new_page: NewPage) -> None:
    """It says what they wait for; and its address neither becomes an app of the server nor takes the place of one."""
    tasks = """
        import threading
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def never():
            threading.Event().wait(60)
    """
    files, env = {"app.py": "import tasks", "tasks.py": tasks}, {"PANEL_SCHEDULE_GRACE_PERIOD": "0"}
    server = serve("app.py --setup tasks.py --plugins panel_schedule", files, env=env)
    page = new_page(f"{server.url}/schedule")
    expect(row(page, "never")).to_have_attribute("data-kind", "running")
    expect(page.locator(".foot")).to_contain_text("ps.config.admins names nobody")
    assert "/app" == httpx.get(server.url).headers["location"].lstrip(".")


def test_a_page_is_made_in_several_steps_of_the_loop(serve: Serve) -> None:
    """Other sessions are served in between: to build it, and to write it, takes Panel longer than they should wait."""
    tasks = """
        import asyncio
        import panel.io.server
        from panel.viewable import Viewable
        import panel_schedule as ps

        turn = 0

        def turns():
            global turn
            turn += 1
            asyncio.get_running_loop().call_soon(turns)

        def told(where, name):
            function = getattr(where, name)

            def call(*args, **kwargs):
                if not turn:
                    turns()
                print("step", turn, flush=True)
                return function(*args, **kwargs)

            setattr(where, name, call)

        told(ps.Monitor, "__init__")
        told(Viewable, "server_doc")
        told(panel.io.server, "server_html_page_for_session")
    """
    server = serve("app.py --setup tasks.py --plugins panel_schedule", {"app.py": "", "tasks.py": tasks})
    assert 200 == httpx.get(f"{server.url}/schedule").status_code
    assert 3 == len(set(re.findall(r"step \d+", server.output())))
