"""Whatever a function or its value raises ends its run as a failure, and no thread of ours."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from core import PATIENCE, Core
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import ArgumentUnkeyable, RunCancelled, RunFailed, ValueRefused, ValueUnreadable
from panel_schedule.functions.run import Run, RunState
from panel_schedule.functions.task import Retry
from panel_schedule.runtime import Runtime
from raising import Bad, Panic, Unpickled, inner, plain, throw
from servers import eventually


@pytest.fixture(params=["memory", "file"])
def ps(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    config = Config({})
    config.max_threads = 1
    if request.param == "file":
        config.store = f"file://{tmp_path / 'store'}"
    runtime = Runtime(config, SystemClock())
    runtime.grace = 0.0
    yield Front(runtime)
    runtime.close()


def future() -> None:
    waiting = Future[None]()
    waiting.cancel()
    waiting.result()


def generator() -> Iterator[int]:
    yield 1
    future()


_numbers = count()


def start(ps: Front, kind: str, function: Callable[[], Any], executor: str = "thread", **policy: Any) -> Run:
    name = f"{kind} {next(_numbers)}"
    match kind:
        case "task":
            options = {"period": "1h", "first_run": "skip", "executor": executor, **policy}
            return ps.schedule(name=name, **options)(function).refresh()
        case "job":
            return ps.background(name=name, executor=executor, **policy)(function).submit()
    return ps.memoize(name=name, executor=executor, **policy)(function).submit()


@pytest.mark.parametrize("function", [plain, future, generator, inner])
@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_what_was_cancelled_inside_of_a_function_is_its_failure(ps: Front, kind: str, function: Any) -> None:
    run = start(ps, kind, function, "loop" if function is inner else "thread")
    with pytest.raises(RunFailed, match="though nobody has cancelled the run"):
        run.result(PATIENCE)
    assert RunState.FAILED is run.state
    assert f"in {function.__name__}" in run.traceback


def test_a_plain_call_of_a_memoized_function_fails_of_what_was_cancelled_inside(ps: Front) -> None:
    with pytest.raises(RunFailed, match="though nobody has cancelled the run"):
        ps.memoize(future)()


def test_a_coroutine_that_somebody_cancels_is_no_failure(ps: Front) -> None:
    async def sleeps() -> None:
        await asyncio.sleep(PATIENCE)

    run = ps.background(executor="loop")(sleeps).submit()
    run.cancel()
    with pytest.raises(RunCancelled):
        run.result(PATIENCE)
    assert RunState.CANCELLED is run.state


ERRORS = [Panic, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, CancelledError]
every = pytest.mark.parametrize("raised", ERRORS)
leaving = pytest.mark.parametrize("raised", ERRORS[:4])


@pytest.fixture
def error(raised: type[BaseException]) -> BaseException:
    return raised("odd")


@every
@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_what_a_function_or_its_value_raises_ends_the_run_and_not_the_thread(
    ps: Front, kind: str, error: BaseException
) -> None:
    functions = {
        "raises": lambda: throw(error),
        "pickles": lambda: Bad(error, False),
        "reads": lambda: Bad(error, True),
    }
    for name, function in functions.items():
        function.__name__ = name
        run = start(ps, kind, function)
        with suppress(BaseException):  # in memory nothing is pickled, and nothing fails
            run.result(PATIENCE)
        assert run.state in (RunState.FAILED, RunState.SUCCEEDED)
    assert 1 == start(ps, kind, one).result(PATIENCE)


def one() -> int:
    return 1


# ------------------------------------------------------------ for those who wait


@leaving
@pytest.mark.parametrize("executor", ["thread", "loop"])
@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_what_a_function_raises_ends_neither_the_loop_nor_the_thread_of_who_waits(
    ps: Front, kind: str, executor: str, error: BaseException
) -> None:
    async def on_the_loop() -> None:
        raise error

    async def page() -> Run:
        run = start(ps, kind, on_the_loop if executor == "loop" else lambda: throw(error), executor)
        with pytest.raises(RunFailed, match=type(error).__name__) as caught:
            await run
        assert type(error) is type(caught.value.__cause__)
        return run

    run = asyncio.run(page())
    with pytest.raises(RunFailed, match=type(error).__name__):
        run.result(PATIENCE)
    assert type(error) is type(run.error)
    assert type(error).__name__ in run.traceback


@leaving
def test_a_plain_call_of_a_memoized_function_that_raises_it_is_a_failure(ps: Front, error: BaseException) -> None:
    memo = ps.memoize(name="memo")(lambda: throw(error))
    with pytest.raises(RunFailed, match=type(error).__name__):
        memo()
    assert not ps._runtime.single_flight._all
    assert_all_goes_on(ps)


@leaving
def test_a_callback_of_a_run_that_raises_it_keeps_nobody_waiting(ps: Front, error: BaseException) -> None:
    def fails(run: Run) -> None:
        raise error

    go = threading.Event()
    run = ps.background(executor="thread", name="job")(lambda: go.wait(PATIENCE)).submit()
    run.add_done_callback(fails)
    run.watch(lambda: throw(error))
    told = threading.Event()
    run.add_done_callback(lambda run: told.set())
    go.set()
    assert told.wait(PATIENCE)
    assert run.result(PATIENCE)


def test_a_task_that_a_coroutine_has_started_does_not_end_the_loop(ps: Front) -> None:
    async def leaves() -> None:
        raise SystemExit(3)

    async def function() -> None:
        await asyncio.ensure_future(leaves())

    run = ps.background(executor="loop")(function).submit()
    with pytest.raises(RunFailed, match="SystemExit"):
        run.result(PATIENCE)
    assert_all_goes_on(ps)


def in_a_thread(function: Callable[[], Any]) -> Any:
    """Where a KeyboardInterrupt is nobody's Ctrl-C."""
    caught = Future[Any]()

    def call() -> None:
        try:
            caught.set_result(function())
        except BaseException as error:
            caught.set_exception(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return caught.result(PATIENCE)


async def one_async() -> int:
    return 1


def assert_all_goes_on(ps: Front) -> None:
    """Each kind, and each thread of ours."""
    for kind in ("task", "job", "memo"):
        assert 1 == start(ps, kind, one).result(PATIENCE)
        assert 1 == start(ps, kind, one_async, "loop").result(PATIENCE)
    assert ps._runtime.service._serving is None or ps._runtime.service._serving.is_alive()
    with ps._runtime.service.locked:
        pass


# ------------------------------------------------------------ arguments


class Argument:
    """Raises it from one of its methods."""

    def __init__(self, error: BaseException):
        self.error = error


METHODS = (
    "__hash__", "__eq__", "__reduce__", "__reduce_ex__", "__getstate__", "__copy__", "__deepcopy__", "__repr__",
    "__getattr__", "__len__", "__iter__", "__bool__", "__class__", "__dict__",
)  # fmt: skip


def argument(method: str, error: BaseException) -> Any:
    def raises(*args: Any) -> Any:
        raise error

    kind = type("Argument", (Argument,), {method: property(raises) if method in ("__class__", "__dict__") else raises})
    made = object.__new__(kind)
    return made


@leaving
@pytest.mark.parametrize("where", ["thread", "loop"])
def test_an_argument_that_raises_it_ends_the_call_and_no_thread(ps: Front, where: str, error: BaseException) -> None:
    memo = ps.memoize(name="memo", executor="thread")(lambda value: 1)
    shared = ps.background(name="shared", executor="thread", ttl="1h")(lambda value: 1)
    job = ps.background(name="job", executor="thread", retry=1)(lambda value: 1)
    runs = list[Run]()

    def submit() -> None:
        for method in METHODS:
            for function in (memo, shared, job):
                with suppress(Exception, *({} if where == "thread" else {type(error)})):
                    runs.append(function.submit([argument(method, error)] * 3))
            if where == "thread":
                with suppress(Exception):
                    memo([argument(method, error)])

    async def submit_there() -> None:
        submit()

    if where == "thread":
        in_a_thread(submit)
    else:
        asyncio.run(submit_there())
    for run in runs:
        with suppress(Exception):
            run.result(PATIENCE)
        assert run.state.final
    assert not ps._runtime.single_flight._all
    assert_all_goes_on(ps)


@every
def test_a_key_that_raises_it_is_an_argument_of_which_no_key_can_be_made(ps: Front, error: BaseException) -> None:
    def fails(value: int) -> Any:
        raise error

    memo = ps.memoize(key=fails, name="memo")(lambda value: value)
    job = ps.background(executor="thread", ttl="1h", key=fails, name="job")(lambda value: value)

    def call() -> None:
        for submit in (memo, memo.submit, job.submit):
            with pytest.raises(ArgumentUnkeyable, match=type(error).__name__):
                submit(1)

    in_a_thread(call)
    assert_all_goes_on(ps)


# ------------------------------------------------------------ handlers, partial results, dates, ps.store


@every
@pytest.mark.parametrize("executor", ["thread", "loop"])
def test_a_handler_that_raises_it_has_failed_and_is_called_again(
    ps: Front, executor: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    called, seen = queue.SimpleQueue[str](), queue.SimpleQueue[str]()

    def handler(task: Any, run: Run) -> None:
        called.put(run.id)
        raise error

    async def on_the_loop(task: Any, run: Run) -> None:
        handler(task, run)

    ps.on("succeeded", on_the_loop if executor == "loop" else handler)
    ps.on("succeeded", lambda task, run: seen.put(run.id))
    for _ in range(2):
        run = start(ps, "job", one)
        assert run.id == called.get(timeout=PATIENCE) == seen.get(timeout=PATIENCE)
    # It is said after the call, on the thread of the handler.
    says = [f"of the event 'succeeded' failed: {type(error).__name__}"] * 2
    eventually(lambda: says == [text for line in caplog.messages for text in says[:1] if text in line])


@leaving
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("executor", ["thread", "loop"])
@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_a_partial_result_that_raises_it_ends_the_run(
    ps: Front, kind: str, executor: str, later: bool, error: BaseException
) -> None:
    def yields() -> Iterator[Any]:
        yield Bad(error, later)
        yield 1

    async def on_the_loop() -> Any:
        yield Bad(error, later)
        yield 1

    def publishes() -> int:
        run = ps.current_run()
        assert run is not None
        run.publish(Bad(error, later))
        return 1

    for function in (on_the_loop,) if executor == "loop" else (yields, publishes):
        run = start(ps, kind, function, executor)
        with suppress(Exception):
            run.result(PATIENCE)
        assert run.state in (RunState.FAILED, RunState.SUCCEEDED)
    assert_all_goes_on(ps)


@leaving
def test_what_a_coroutine_stores_and_cannot_be_stored_holds_up_nothing(ps: Front, error: BaseException) -> None:
    async def page() -> None:
        for later in (False, True):
            with suppress(type(error)):  # in memory it is written at once
                ps.store["name"] = Bad(error, later)
            ps.store["other"] = later
            await asyncio.sleep(0)

    asyncio.run(page())
    ps._runtime.service.outbox.drain(PATIENCE)
    ps.store["name"] = 2
    assert (2, True) == (ps.store["name"], ps.store["other"])
    assert_all_goes_on(ps)


@leaving
def test_dates_that_raise_it_end_no_clock(core: Core, error: BaseException) -> None:
    asked = []

    def dates(now: datetime) -> datetime:
        asked.append(now)
        if len(asked) in (2, 3):
            raise error
        return now + timedelta(minutes=1)

    task = core.ps.schedule(at=dates, first_run="skip", name="dates")(one)
    other = core.ps.schedule(period="1m", first_run="skip", name="other")(one)
    in_a_thread(core.begin)
    in_a_thread(lambda: core.run_for(600))
    assert len(task.history) > 3
    assert len(other.history) > 8


# ------------------------------------------------------------ worker processes


# A worker process that is started on a busy machine.
WHILE_STARTING = 6 * PATIENCE

in_memory = pytest.mark.parametrize("ps", ["memory"], indirect=True)


def in_worker(name: str, error: BaseException, ps: Front) -> Callable[..., Any]:
    def cancels(value: Any = None) -> None:
        plain()

    def gives(value: Any = None) -> Any:
        return Bad(error, False)

    def gives_unread(value: Any = None) -> Any:
        return Bad(error, True)

    def raises(value: Any = None) -> Any:
        raise error

    def yields(value: Any = None) -> Iterator[Any]:
        yield Bad(error, True)

    def stores(value: Any = None) -> Any:
        store["name"] = Bad(error, True)

    store = ps.store
    found: Callable[..., Any] = locals()[name]
    return found


@in_memory
@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_what_was_cancelled_inside_of_a_function_in_a_worker_process_is_its_failure(ps: Front, kind: str) -> None:
    attempts = {"retry": Retry(max_attempts=2, backoff=0.01)} if kind != "memo" else {}
    run = start(ps, kind, in_worker("cancels", Panic(), ps), "process", **attempts)
    with pytest.raises(RunFailed, match="though nobody has cancelled the run"):
        run.result(WHILE_STARTING)
    assert (RunState.FAILED, 2 if attempts else 1) == (run.state, run.attempt)
    assert "in inner" in run.traceback


@in_memory
@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_whatever_is_raised_in_or_on_the_way_to_a_worker_process_ends_the_run_only(ps: Front, kind: str) -> None:
    for raised in ERRORS[:4] if kind == "job" else ERRORS[:1]:
        error = raised("odd")
        for name in ("gives", "gives_unread", "raises", "yields", "stores"):
            run = start(ps, kind, in_worker(name, error, ps), "process")
            with pytest.raises((RunFailed, ValueRefused, ValueUnreadable)):
                run.result(WHILE_STARTING)
            assert RunState.FAILED is run.state, name
        if kind != "task":
            options = {"executor": "process", "name": f"{kind} {error!r}"}
            make = ps.background(**options) if kind == "job" else ps.memoize(**options, key=id)
            function = make(lambda value: 1)
            with pytest.raises(ValueUnreadable, match=raised.__name__):
                function.submit(Unpickled(error)).result(WHILE_STARTING)
    assert os.getpid() != start(ps, kind, os.getpid, "process").result(WHILE_STARTING)


# ------------------------------------------------------------ read later


@leaving
def test_what_raises_it_when_a_later_server_reads_it_is_lost_and_computed_anew(
    tmp_path: Path, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    computed = list[str]()

    def front() -> Front:
        config = Config({})
        config.store = f"file://{tmp_path / 'store'}"
        runtime = Runtime(config, SystemClock())
        runtime.grace = 0.0
        return Front(runtime)

    def value(kind: str) -> Any:
        computed.append(kind)
        return Later(error)

    def use(ps: Front) -> None:
        ps.schedule(period="1h", first_run="skip", name="task")(lambda: value("task"))
        memo = ps.memoize(name="memo")(lambda: value("memo"))
        job = ps.background(executor="thread", ttl="1h", name="job")(lambda: value("job"))
        ps.tasks["task"].refresh().result(PATIENCE)
        for function in (memo, job):
            assert isinstance(function.submit().result(PATIENCE), Later)
        ps.store["name"] = Later(error)
        ps._runtime.close()

    Later.now = False
    use(front())
    Later.now = True
    ps = front()
    assert ps.store.get("name") is None
    for record in list(ps._runtime.service.store.values.names("user")):
        assert ps.store.get(record) is None
    Later.now = False
    use(ps)
    assert ["task", "memo", "job"] == computed[:3]
    assert {"task", "memo"} <= set(computed[3:])


class Later:
    now = False

    def __init__(self, error: BaseException):
        self.error = error

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state)
        if Later.now:
            raise self.error
