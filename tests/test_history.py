"""The history of functions that are called on request: one kind of record for all, and the same in every store."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import textwrap
from datetime import timedelta
from enum import Enum

import numpy as np
import pandas as pd
import pytest

import panel_schedule as package
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.coordination.history import JOB
from panel_schedule.decorators import Front
from panel_schedule.errors import ConfigError, RunCancelled, RunTimedOut
from panel_schedule.executors.logs import fields_of, handle
from panel_schedule.functions.run import RunRecord, RunState
from panel_schedule.hashing.keys import arguments_text
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.codec import encode
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.memory import MemoryStore
from panel_schedule.testing import VirtualClock
from servers import eventually


def front_of(store, **options):
    config = Config({})
    config.store = store
    for name, value in options.items():
        setattr(config, name, value)
    return Front(Runtime(config, SystemClock()))


@pytest.fixture(params=["memory", "file"])
def ps(request, tmp_path):
    front = front_of("memory://" if request.param == "memory" else f"file://{tmp_path / 'store'}", history_limit=5)
    yield front
    front._runtime.grace = 0.0
    front._runtime.close()


def states(function):
    return [record.state for record in function.history]


def test_the_runs_of_a_job_are_its_history(ps):
    """Newest first, with what went wrong; and all of them are records as those of tasks are."""
    job = ps.background(executor="thread", name="job")(lambda number: 1 / number)
    run = job.submit(2)
    assert 0.5 == run.result(10)
    failed = job.submit(0)
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    eventually(lambda: len(job.history) == 2)
    last, first = job.history
    assert (RunState.FAILED, failed.id, f"request {failed.id}") == (last.state, last.id, last.key)
    assert "division by zero" in last.error
    assert (RunState.SUCCEEDED, run.id, "") == (first.state, first.id, first.error)
    assert first.queued_at <= first.started_at <= first.finished_at
    assert {RunRecord} == {type(record) for record in job.history}


def test_what_was_cancelled_is_in_the_history(ps):
    job = ps.background(executor="loop", name="job")(hangs)
    run = job.submit()
    run.cancel("too late")
    with pytest.raises(RunCancelled):
        run.result(10)
    eventually(lambda: states(job) == [RunState.CANCELLED])
    assert "too late" == job.history[0].reason


def test_a_run_that_was_tried_again_is_one_line_with_the_number_of_its_attempts(ps):
    attempts = []

    @ps.background(executor="thread", retry=package.Retry(3, backoff=0.001))
    def job():
        attempts.append(package.current_run().attempt)
        if len(attempts) < 3:
            raise OSError("not yet")

    job.submit().result(10)
    eventually(lambda: [(RunState.SUCCEEDED, 3)] == [(record.state, record.attempt) for record in job.history])


def test_a_history_is_as_long_as_that_of_a_task(ps):
    job = ps.background(executor="thread", name="job")(lambda number: number)
    memo = ps.memoize(name="memo")(lambda number: number)
    runs = [job.submit(number) for number in range(8)]
    assert list(range(8)) == [run.result(10) for run in runs]
    assert list(range(8)) == [memo(number) for number in range(8)]
    eventually(lambda: 5 == len(job.history))
    assert [f"memo({number})" for number in (7, 6, 5, 4, 3)] == [record.key for record in memo.history]


def test_the_computations_of_a_memoized_function_are_its_history(ps):
    """One line for each that was computed, however many have asked; none for what was at hand."""
    memo = ps.memoize(name="memo", stale_if_error=False)(lambda number: 1 / number)
    assert [0.5] * 3 == [memo(2) for _ in range(3)]
    with pytest.raises(ZeroDivisionError):
        memo(0)
    last, first = memo.history
    assert ("memo(0)", RunState.FAILED) == (last.key, last.state)
    assert "division by zero" in last.error
    assert ("memo(2)", RunState.SUCCEEDED, "") == (first.key, first.state, first.error)


def test_a_timeout_is_one_in_the_history(ps):
    memo = ps.memoize(name="memo", timeout=0.05)(hangs)
    job = ps.background(executor="loop", name="job", timeout=0.05)(hangs)
    for run in (memo.submit(), job.submit()):
        with pytest.raises(RunTimedOut):
            run.result(10)
    eventually(lambda: ([RunState.TIMED_OUT],) * 2 == (states(memo), states(job)))
    assert all("timeout of 0.05 s" in function.history[0].error for function in (memo, job))


def test_a_job_that_is_not_taken_is_in_the_history(tmp_path):
    front = front_of(f"file://{tmp_path / 'store'}", max_queued=1)
    job = front.background(executor="loop", name="job")(hangs)
    runs = [job.submit() for _ in range(2)]
    eventually(lambda: [(RunState.SKIPPED, runs[1].id)] == [(each.state, each.id) for each in job.history])
    front._runtime.grace = 0.0
    front._runtime.close()


def test_what_its_process_leaves_at_its_end_is_in_the_history(tmp_path):
    """A run that nobody goes on with was cancelled: the store says so, as its process says nothing any more."""
    here, there = (FileStore(tmp_path / "store", SystemClock(), server=name) for name in ("here", "there"))
    now = SystemClock().now()
    there.queue.enqueue("r1", "job", now=now, payload=encode(None, "it"), synced=False)
    there.queue.enqueue("r2", "job", now=now, payload=encode(None, "it"), synced=False, durable=True)
    there.close()
    assert [("r1", RunState.CANCELLED)] == [(each.id, each.state) for each in here.history("job", JOB)]
    here.queue.cancel("r2")
    assert ["r2", "r1"] == [each.id for each in here.history("job", JOB)]
    here.close()


def test_other_processes_read_it(tmp_path):
    """It is in the store, and not in a process."""
    one, other = (front_of(f"file://{tmp_path / 'store'}") for _ in range(2))
    functions = [front.background(executor="thread", name="job")(double) for front in (one, other)]
    memos = [front.memoize(name="memo")(double) for front in (one, other)]
    assert 4 == functions[0].submit(2).result(10)
    assert 6 == memos[0](3)
    eventually(lambda: len(functions[1].history) == 1)
    assert functions[0].history == functions[1].history
    assert ["memo(3)"] == [record.key for record in memos[1].history]
    for front in (one, other):
        front._runtime.grace = 0.0
        front._runtime.close()


def double(number):
    return 2 * number


async def hangs():
    await asyncio.sleep(600)


# ------------------------------------------------------------ what is kept of a run


def test_what_is_kept_of_a_job(ps):
    """Who has asked for it with what, where it ran; and of a failure where it came from."""

    def job(region, year=0):
        raise ValueError("no such table")

    job = ps.background(executor="thread")(job)
    with pytest.raises(ValueError, match="no such table"):
        job.submit_for("ada", ("north",), {"year": 2026}).result(10)
    eventually(lambda: job.history)
    [run] = job.history
    assert ("ada", "'north', year=2026", ps._runtime.service.store.me) == (run.user, run.arguments, run.owner)
    assert run.traceback.startswith("Traceback (most recent call last):")
    assert 'raise ValueError("no such table")' in run.traceback
    assert run.traceback.endswith("ValueError: no such table")


def test_what_is_kept_of_a_task_and_of_a_computation(ps):
    """The same; nobody has asked for the run of a task."""

    def fails(number=0):
        return 1 / number

    task = ps.schedule(period="1h", first_run="skip", name="task")(lambda: fails())
    memo = ps.memoize(name="memo")(fails)
    for call in (lambda: task.refresh().result(10), lambda: memo(0)):
        with pytest.raises(ZeroDivisionError):
            call()
    eventually(lambda: task.history)
    for [run], arguments in ((task.history, ""), (memo.history, "0")):
        assert ("", arguments, ps._runtime.service.store.me) == (run.user, run.arguments, run.owner)
        assert "in fails\n    return 1 / number" in run.traceback


def test_of_what_ends_well_nothing_long_is_kept(ps):
    job = ps.background(executor="thread", name="job")(lambda number: number)
    job.submit([1, "a", None, {"b": (2.5, True)}]).result(10)
    eventually(lambda: job.history)
    assert ("[1, 'a', None, {'b': (2.5, True)}]", "") == (job.history[0].arguments, job.history[0].traceback)


def test_of_a_traceback_the_end_is_kept(ps):
    def fails():
        raise ValueError("x" * 10_000 + "end")

    job = ps.background(executor="thread", name="job")(fails)
    with pytest.raises(ValueError, match="xend"):
        job.submit().result(10)
    eventually(lambda: job.history)
    text = job.history[0].traceback
    assert (8000, "[...] x", "xend") == (len(text), text[:7], text[-4:])


class Slow:
    """What takes long to say what it is, or cannot; nobody is to ask it."""

    def __repr__(self):
        raise AssertionError("it was asked")

    __str__ = __len__ = __repr__

    @property
    def shape(self):
        raise AssertionError("it was asked")

    @property
    def __class__(self):
        raise AssertionError("what it stands for was asked for")


class SlowMeta(type):
    def __repr__(cls):
        raise AssertionError("it was asked")

    __str__ = __eq__ = __repr__
    __hash__ = type.__hash__


class OfSlowMeta(metaclass=SlowMeta):
    pass


class Region(Enum):
    NORTH = 1

    def __repr__(self):
        raise AssertionError("it was asked")

    __str__ = __format__ = __repr__


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), ""),
        (("a", 2.5, None, b"c"), "'a', 2.5, None, b'c'"),
        (("x" * 1000,), "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx'"),
        ((b"x" * 10**8,), "<bytes of 100000000>"),
        ((list(range(1000)), {1, 2, 3}), "<list of 1000>, {1, 2, 3}"),
        (([[[[[[1]]]]]],), "[[[<list of 1>]]]"),
        (({"rate": 1, "api_key": "hidden"},), "{'rate': 1, 'api_key': ...}"),
        ((Slow(), [Slow()]), "<Slow>, [<Slow>]"),
        ((np.zeros((2, 3)), pd.DataFrame({"a": [1]})), "<ndarray (2, 3)>, <DataFrame (1, 1)>"),
        ((timedelta(1), RunState.FAILED), "datetime.timedelta(days=1), RunState.FAILED"),
        ((Region.NORTH, {"of": Region.NORTH}), "Region.NORTH, {'of': Region.NORTH}"),
        ((int, Region, OfSlowMeta, OfSlowMeta()), "int, Region, OfSlowMeta, <OfSlowMeta>"),
        ((10**5000,), "<int>"),
    ],
)  # fmt: skip
def test_arguments_as_text(args, text):
    """Short, whatever they are; nothing of a class that is not known is called."""
    assert text == arguments_text([f"p{number}" for number in range(9)], args, {})


def test_the_text_of_arguments_has_200_characters():
    told = arguments_text([], ["x" * 50] * 9, {})
    assert (200, "...") == (len(told), told[-3:])


def test_what_is_called_a_secret_is_not_told():
    """By position or by name, in the history and in the log."""
    told = arguments_text(
        ["user", "password", "rest"], ("ada", "hidden", 1, 2), {"apiKey": "hidden", "TOKEN": "hidden"}
    )
    assert "'ada', ..., 1, 2, apiKey=..., TOKEN=..." == told


def test_a_job_that_fails_tells_no_secret(ps, caplog):
    def job(password):
        raise ValueError("no")

    job = ps.background(executor="thread")(job)
    with pytest.raises(ValueError, match="no"):
        job.submit("hidden").result(10)
    eventually(lambda: job.history and "job(...)" in caplog.text)
    assert "..." == job.history[0].arguments
    assert "hidden" not in caplog.text


# ------------------------------------------------------------ how long it is kept


@pytest.mark.parametrize(("history", "there"), [("1h", 0), (timedelta(hours=3), 1), (None, 1), ("", 1)])
def test_the_history_is_as_old_as_the_configuration_says(history, there):
    config = Config({})
    config.store, config.history = "memory://", history
    clock = VirtualClock()
    front = Front(Runtime(config, clock))
    memo = front.memoize(name="memo")(double)
    assert 4 == memo(2)
    clock.advance(7200)
    assert there == len(memo.history)
    front._runtime.close()


def test_a_history_that_is_no_period_is_refused_at_the_start():
    front = front_of("memory://", history="a while")
    with pytest.raises(ConfigError, match=r"ps\.config\.history.*'a while' cannot be read"):
        front._runtime.check()


def test_a_process_without_a_store_forgets_what_has_become_too_old():
    """Now and then, as runs end."""
    clock = VirtualClock()
    store = MemoryStore(clock=clock)
    store.keep_history(timedelta(hours=1))
    for name in ("old", "new"):
        store.do(store.note(JOB, name, RunRecord("id", None, RunState.SUCCEEDED, finished_at=clock.now())))
        clock.advance(4000)
    store.keep_history(None)
    assert ([], ["id"]) == (store.history("old", JOB), [run.id for run in store.history("new", JOB)])


# ------------------------------------------------------------ what it has logged


def logs_and_fails(fails):
    log = logging.getLogger("shop.sales")
    log.warning("%d rows of %s", 3, "<b>sales</b>")
    log.debug("nobody wants to know")
    if fails:
        log.error("no %s", "table", exc_info=KeyError("id"))
        raise ValueError("no")


async def logs_and_fails_on_the_loop(fails):
    await asyncio.sleep(0)
    logs_and_fails(fails)


@pytest.mark.slow
@pytest.mark.unhurried
@pytest.mark.parametrize("executor", ["thread", "loop", "process"])
def test_of_a_failure_it_is_kept_what_was_logged(ps, executor):
    """Whatever its executor is; not what others have logged at that time, and nothing of what ends well."""
    function = logs_and_fails_on_the_loop if executor == "loop" else logs_and_fails
    job = ps.background(executor=executor, name="job")(function)
    job.submit(False).result(30)
    with pytest.raises(ValueError, match="no"):
        job.submit(True).result(30)
    logging.getLogger("shop").warning("somebody else")
    eventually(lambda: len(job.history) == 2)
    failed, well = job.history
    lines = [line.partition(" ") for line in failed.logs.splitlines()]
    assert "" == well.logs
    assert ["WARNING shop.sales: 3 rows of <b>sales</b>", "ERROR shop.sales: no table"] == [
        text.partition(" (KeyError")[0] for _, _, text in lines
    ]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", at) for at, _, _ in lines)


def as_a_worker_process_sends_it(text, *args):
    handle(fields_of(logging.LogRecord("shop.login", logging.WARNING, "", 0, text, args, None)))


@pytest.mark.parametrize("warn", [logging.getLogger("shop.login").warning, as_a_worker_process_sends_it])
def test_what_a_filter_of_a_logger_takes_out_is_not_kept(ps, warn, monkeypatch):
    """A word of a line, or the line; also of what a worker process has sent."""

    def login():
        warn("password=%s", "hidden")
        warn("nobody is to know of hidden")
        raise ValueError("no")

    def redact(record):
        record.msg, record.args = record.getMessage().replace("password=hidden", "password=..."), None
        return "hidden" not in record.msg

    monkeypatch.setattr(logging.getLogger("shop.login"), "filters", [redact])
    job = ps.background(executor="thread", name="job")(login)
    with pytest.raises(ValueError, match="no"):
        job.submit().result(10)
    [failed] = eventually(lambda: job.history)
    assert "WARNING shop.login: password=..." == failed.logs.partition(" ")[2]


def test_the_last_lines_are_kept(ps):
    """So many, and so many characters."""

    def many(count, size):
        for number in range(count):
            logging.getLogger("shop").warning("%d %s", number, "x" * size)
        raise ValueError("no")

    job = ps.background(executor="thread", name="job")(many)
    kept = []
    for count, size in ((60, 1), (60, 500), (1, 10_000)):
        with pytest.raises(ValueError, match="no"):
            job.submit(count, size).result(10)
        eventually(lambda: len(job.history) > len(kept))
        kept.append(job.history[0].logs)
    assert [50, 7, 1] == [len(text.splitlines()) for text in kept]
    assert all("shop: 59 x" in text.splitlines()[-1] for text in kept[:2])
    assert all(len(text) <= 4000 for text in kept)


def test_what_cannot_be_told_of_a_log_line_costs_the_run_nothing(ps, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def wrong():
        logging.getLogger("shop").warning("%d", "no number")
        return 1

    assert 1 == ps.background(executor="thread", name="job")(wrong).submit().result(10)


@pytest.mark.slow
@pytest.mark.unhurried
def test_logging_is_set_up_as_if_nothing_were_kept():
    """No handler is added: without any set-up a warning goes to stderr, and `basicConfig` does what it says."""
    code = """
        import logging, panel_schedule as ps
        @ps.background(executor="thread")
        def job(text): logging.getLogger("shop").warning(text)
        job.submit("bare").result()
        logging.basicConfig(format="SET UP %(message)s")
        job.submit("again").result()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ["bare", "SET UP again"] == done.stderr.splitlines()
