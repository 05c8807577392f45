"""What a run that failed keeps: its error, and nothing of who raised it or waited for it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import queue
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from core import PATIENCE, Core
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import NotReady, RunCancelled
from panel_schedule.functions.run import Run
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.errors import another, traceback_text


@pytest.fixture
def ps() -> Iterator[Front]:
    runtime = Runtime(Config({}), SystemClock())
    runtime.grace = 0.0
    yield Front(runtime)
    runtime.close()


class Page:
    """What the frames of a body, or of who waits for it, hold."""

    alive: weakref.WeakSet[Page] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


@pytest.fixture(autouse=True)
def _log_that_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """pytest keeps what is logged, with the frames."""
    caplog.set_level(logging.CRITICAL + 1, "panel_schedule")


def no_page_left() -> bool:
    """As soon as the thread of a body has come to its end, which nobody is told of."""
    until = time.monotonic() + PATIENCE
    while Page.alive and time.monotonic() < until:
        gc.collect()
    return not Page.alive


class NeedsTwo(Exception):
    """Cannot be copied by its arguments."""

    def __init__(self, one: int, other: int):
        super().__init__(f"{one} and {other}")
        self.one = one


def fail() -> None:
    page = Page()  # noqa: F841
    try:
        json.loads("{")
    except ValueError as error:
        raise NeedsTwo(1, 2) from error


async def fail_async() -> None:
    fail()


def start(ps: Front, kind: str) -> Callable[[], Run]:
    match kind:
        case "task in a thread":
            return ps.schedule(period="1h", first_run="skip")(fail).refresh
        case "task on the loop":
            return ps.schedule(period="1h", first_run="skip")(fail_async).refresh
        case "job in a thread":
            return ps.background(executor="thread")(fail).submit
        case "job on the loop":
            return ps.background(executor="loop")(fail_async).submit
        case "job in a process":
            return ps.background(executor="process")(fail).submit
        case "memoized function":
            return ps.memoize(error_ttl="1h")(fail).submit
    raise AssertionError(kind)


KINDS = (
    "task in a thread", "task on the loop", "job in a thread", "job on the loop", "job in a process",
    "memoized function",
)  # fmt: skip


def wait_blocking(run: Run) -> None:
    page = Page()  # noqa: F841
    run.result(PATIENCE)


def wait_on_a_loop(run: Run) -> None:
    async def callback() -> None:
        page = Page()  # noqa: F841
        await run

    asyncio.run(callback())


@pytest.mark.parametrize("wait", [wait_blocking, wait_on_a_loop])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_run_keeps_no_frame_of_its_function_nor_of_who_waited(ps: Front, kind: str, wait: Any) -> None:
    run = start(ps, kind)()
    for _ in range(2):
        with suppress(Exception):
            wait(run)
    assert run.error is not None
    assert no_page_left()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "process" not in kind])
def test_each_who_waits_gets_the_error_with_type_attributes_and_place(ps: Front, kind: str) -> None:
    run = start(ps, kind)()
    caught = []
    for _ in range(3):
        with pytest.raises(NeedsTwo, match="1 and 2") as info:
            run.result(PATIENCE)
        caught.append(info.value)
    assert 3 == len({id(error) for error in caught} - {id(run.error)})
    assert [1, 1, 1] == [error.one for error in caught]
    assert 1 == len({len(list(_frames(error))) for error in caught})
    for text in (run.traceback, traceback_text(caught[-1])):
        assert __file__ in text
        assert "in fail\n" in text
        assert "JSONDecodeError" in text
        assert text.endswith("NeedsTwo: 1 and 2")


def _frames(error: BaseException) -> Iterator[Any]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def test_a_plain_call_of_a_memoized_function_that_fails_keeps_no_caller(ps: Front) -> None:
    """It is computed on the thread of its caller, be it inside of another error of his."""
    memo = ps.memoize(error_ttl="1h")(fail)

    def call() -> None:
        page = Page()
        try:
            raise KeyError(page)
        except KeyError:
            memo()

    for _ in range(2):
        with suppress(NeedsTwo):
            call()
    # The caller's own error has been its context, with arguments of his: these are no frames.
    failure = ps._runtime.single_flight.failing(memo)
    assert 1 == len(failure)
    assert not [
        frame
        for _, error in ps._runtime.single_flight._failed[memo].values()
        for frame in _frames(error)
        if frame.f_back
    ]


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_a_run_that_was_ended_keeps_no_frame_of_who_waited(ps: Front, how: str) -> None:
    go = threading.Event()

    @ps.background(executor="thread", timeout=0.01 if how == "timed out" else None)
    def job() -> None:
        page = Page()  # noqa: F841
        go.wait(PATIENCE)

    run = job.submit()
    if how == "cancelled":
        run.cancel()
    for wait in (wait_blocking, wait_on_a_loop):
        with suppress(Exception):
            wait(run)
    go.set()
    ps._runtime.service.executors["job-thread"].stop(PATIENCE)
    assert run.error is not None
    assert no_page_left()


@pytest.mark.parametrize("kind", ["task in a thread", "job in a thread", "memoized function", "handler"])
def test_what_a_log_keeps_of_a_failure_has_no_frame_of_its_function(ps: Front, kind: str) -> None:
    kept = queue.SimpleQueue[logging.LogRecord]()
    handler, log = logging.Handler(), logging.getLogger("panel_schedule")
    handler.emit = kept.put  # type: ignore[method-assign]
    log.setLevel(logging.ERROR)
    log.addHandler(handler)
    try:
        if kind == "handler":
            ps.on("succeeded", lambda task, run: fail())
            ps.background(executor="thread", name="job")(lambda: 1).submit()
        elif kind == "memoized function":
            memo = ps.memoize(fail)
            ps._runtime.single_flight.join(memo, memo.keys.local((), {}), (), {}, refresh=True)
        else:
            start(ps, kind)()
        record = kept.get(timeout=PATIENCE)
    finally:
        log.removeHandler(handler)
    assert record.exc_info is not None
    assert "raise NeedsTwo(1, 2) from error" in logging.Formatter().formatException(record.exc_info)
    assert no_page_left()


def test_what_waits_for_a_first_value_keeps_no_frame(core: Core) -> None:
    @core.schedule(period="1h")
    def task() -> None:
        fail()

    core.begin()

    def wait() -> None:
        page = Page()  # noqa: F841
        task.wait_ready(0)

    for _ in range(2):
        with suppress(NotReady, NeedsTwo):
            wait()
    assert no_page_left()


def test_a_retried_run_keeps_no_frame_of_its_attempt(core: Core) -> None:
    job = core.ps.background(executor="thread", retry=1)(fail)
    run = job.submit()
    core.go()
    assert isinstance(run.error, NeedsTwo)
    assert 2 == run.attempt
    assert no_page_left()


def _raised(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011
        function()
    return info.value


class Slotted(OSError):
    __slots__ = ("code",)

    def __init__(self, code: int, more: int):
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class Mixed(ValueError, OSError):
    pass


class Silent(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    def __copy__(self) -> Silent:
        raise SystemExit

    __reduce_ex__ = __deepcopy__ = __copy__  # type: ignore[assignment]


ERRORS: dict[str, Callable[[], Any]] = {
    "of the system": lambda: open("/nowhere/at/all"),  # noqa: SIM115
    "of a text": lambda: b"\xff".decode(),
    "of JSON": lambda: json.loads("{"),
    "of a command": lambda: _throw(subprocess.CalledProcessError(1, "rm")),
    "of a key": lambda: {}["k"],
    "of an import": lambda: __import__("nowhere_at_all"),
    "of Python": lambda: compile("a b", "file", "exec"),
    "slotted": lambda: _throw(Slotted(1, 2)),
    "of two kinds": lambda: _throw(Mixed("m")),
    "an exit": lambda: _throw(SystemExit(3)),
    "a group": lambda: _throw(ExceptionGroup("both", [_raised(lambda: {}["k"]), ValueError("v")])),
    "with a note": lambda: _throw(_noted(ValueError("v"))),
}


def _throw(error: BaseException) -> None:
    raise error


def _noted(error: BaseException) -> BaseException:
    error.add_note("with a remedy")
    return error


@pytest.mark.parametrize("name", ERRORS)
def test_another_error_says_the_same_in_full(name: str) -> None:
    error = _raised(ERRORS[name])
    copy = another(another(error))
    assert copy is not error
    assert (type(error), str(error), repr(error)) == (type(copy), str(copy), repr(copy))
    assert traceback_text(error) == traceback_text(copy)


def test_another_error_calls_nothing_of_its_class() -> None:
    assert isinstance(another(Silent("s")), Silent)


def test_another_error_keeps_neither_frames_nor_the_object_that_lacks_an_attribute() -> None:
    def function() -> None:
        page = Page()
        try:
            page.text  # type: ignore[attr-defined]  # noqa: B018
        except AttributeError as error:
            raise ExceptionGroup("all", [error, RunCancelled("r")]) from error

    copy = another(_raised(function))
    assert no_page_left()
    assert "has no attribute 'text'" in traceback_text(copy)


def test_of_a_long_chain_of_errors_the_last_ones_are_kept() -> None:
    last = ValueError("first")
    for number in range(5000):
        following = ValueError(number)
        following.__context__, last = last, following
    assert "4999" in traceback_text(another(last))


def test_errors_that_have_each_other_as_context_are_kept() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert "other" in str(another(one).__context__)
