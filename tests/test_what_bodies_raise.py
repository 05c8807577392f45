"""Whatever a function or its value raises ends its run as a failure, and no thread of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from core import PATIENCE
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.errors import RunCancelled, RunFailed
from panel_schedule.front import Front
from panel_schedule.run import Run, RunState
from panel_schedule.runtime import Runtime


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


async def inner() -> None:
    task = asyncio.ensure_future(asyncio.sleep(PATIENCE))
    await asyncio.sleep(0)
    task.cancel()
    await task


def plain() -> None:
    asyncio.run(inner())


def future() -> None:
    waiting = Future[None]()
    waiting.cancel()
    waiting.result()


def generator() -> Iterator[int]:
    yield 1
    future()


def start(ps: Front, kind: str, function: Callable[[], Any], executor: str = "thread") -> Run:
    match kind:
        case "task":
            return ps.schedule(period="1h", first_run="skip", executor=executor)(function).refresh()
        case "job":
            return ps.background(executor=executor)(function).submit()
    return ps.memoize(executor=executor)(function).submit()


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


class Panic(BaseException):
    pass


class Bad:
    """Raises it when it is pickled, or when it is read again."""

    def __init__(self, error: BaseException, later: bool):
        self.error, self.later = error, later

    def __reduce__(self) -> Any:
        if self.later:
            return throw, (self.error,)
        raise self.error


def throw(error: BaseException) -> None:
    raise error


ERRORS = [Panic("p"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError(), CancelledError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
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
