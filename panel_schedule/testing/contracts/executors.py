"""What every executor promises, as tests: the author of one subclasses :class:`ExecutorContract`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.io.doc import patch_curdoc
from panel.io.state import set_curdoc

from ...decorators import Front
from ...errors import Cancel, RunCancelled, RunCrashed, RunTimedOut, ValueRefused
from ...executors.base import Executor
from ...functions.background import Background
from ...functions.run import Run, RunState, current_run, progress
from ...functions.task import RetryLater
from .tools import PATIENCE, raises

# How often who waits for a file looks, in seconds.
LOOK = 0.002

_names = count()


def _run(executor: Executor, body: Callable[[], Any]) -> Future[Any]:
    future = executor.submit(body)
    executor.flush()
    return future


class BodyContract:
    """
    The promises of :class:`~panel_schedule.executors.base.Executor`: it is what ``concurrent.futures`` says it is.

    A subclass has a fixture `executor`.
    """

    # Whether bodies may be submitted by several threads at once.
    by_many = True

    def test_a_future_has_what_the_body_returns(self, executor: Executor) -> None:
        assert _run(executor, lambda: 42).result(PATIENCE) == 42

    def test_the_executor_survives_what_a_body_raises(self, executor: Executor) -> None:
        """sys.exit() in a function ends that function."""

        def body() -> None:
            sys.exit("bye")

        assert isinstance(_run(executor, body).exception(PATIENCE), SystemExit)
        assert _run(executor, lambda: 1).result(PATIENCE) == 1

    def test_nothing_starts_before_the_flush(self, executor: Executor, tmp_path: Path) -> None:
        """So that no body wakes up to a lock that is still held."""
        trace = tmp_path / "started"
        future = executor.submit(trace.touch)
        before = trace.exists()
        executor.flush()
        future.result(PATIENCE)
        assert (before, trace.exists()) == (False, True)

    def test_a_flush_of_nothing_does_nothing(self, executor: Executor) -> None:
        """And harms nothing."""
        executor.flush()
        executor.flush()
        assert _run(executor, lambda: 1).result(PATIENCE) == 1

    def test_a_body_that_was_cancelled_before_the_flush_never_starts(self, executor: Executor, tmp_path: Path) -> None:
        """Its future is cancelled, and its callbacks are called once."""
        trace, called = tmp_path / "started", list[Future[Any]]()
        future = executor.submit(trace.touch)
        future.add_done_callback(called.append)
        cancelled = future.cancel()
        executor.flush()
        _run(executor, lambda: None).result(PATIENCE)
        assert (cancelled, trace.exists(), called) == (True, False, [future])
        with raises(CancelledError):
            future.result(0)

    def test_many_submitters_lose_nothing(self, executor: Executor) -> None:
        """From eight threads at once, each body runs once."""
        if not self.by_many:
            return
        futures: list[list[Future[Any]]] = [[] for _ in range(8)]

        def pair(number: int, step: int) -> tuple[int, int]:
            return number, step

        def submit(number: int) -> None:
            for step in range(50):
                futures[number].append(_run(executor, partial(pair, number, step)))

        threads = [threading.Thread(target=submit, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        got = [future.result(PATIENCE) for own in futures for future in own]
        assert got == [(number, step) for number in range(8) for step in range(50)]

    def test_stop_is_fine_twice_and_without_work(self, executor: Executor) -> None:
        """Start and stop are idempotent."""
        executor.stop(0)
        executor.stop(0)

    def test_stop_cancels_what_has_not_started(self, executor: Executor) -> None:
        """It starts nothing more."""
        future = executor.submit(lambda: 1)
        executor.stop(0)
        executor.flush()
        assert future.cancelled()

    def test_stop_waits_for_what_a_future_calls_at_its_end(self, executor: Executor) -> None:
        """It is there that a run ends: a process that went before would lose its value (invariant 19)."""
        begun, told = threading.Event(), list[str]()

        def callback(future: Future[Any]) -> None:
            begun.set()
            time.sleep(0.05)
            told.append(future.result())

        future = executor.submit(lambda: "value")
        future.add_done_callback(callback)
        executor.flush()
        assert begun.wait(PATIENCE)
        executor.stop(PATIENCE)
        assert told == ["value"]

    def test_after_a_stop_it_can_be_used_again(self, executor: Executor) -> None:
        """A server that starts again in the same process finds it working."""
        executor.stop(0)
        assert _run(executor, lambda: 1).result(PATIENCE) == 1


class ExecutorContract(BodyContract):
    """
    The same, and what the author of a function may rely on, wherever it runs.

    A subclass has fixtures `executor`, and `ps`: the public functions of a runtime in which `where` names such an
    executor for background functions.

    Attributes
    ----------
    where : str
    places : int
        How many of its functions run at once; 0 where any number may.
    can_stop : bool
        Whether a function can be ended whatever it does; else it hears of it in `progress`.
    isolated : bool
        Whether it runs in another process, to which it travels.
    is_loop : bool
        Whether only an ``async def`` runs there.

    Examples
    --------
    >>> class TestMyExecutor(ExecutorContract):    # doctest: +SKIP
    ...     where, places, isolated = "mine", 2, True
    ...     @pytest.fixture
    ...     def ps(self):
    ...         return Front(my_runtime)
    ...     @pytest.fixture
    ...     def executor(self, ps):
    ...         return ps._runtime.service.executors["mine"]
    """

    where = ""
    places = 0
    can_stop = True
    isolated = False
    is_loop = False

    # ------------------------------------------------------------ what a function gives

    def test_a_run_has_what_its_function_returns(self, ps: Front) -> None:
        run = self._job(ps, lambda a, *, b: (a, b)).submit(1, b=[2])
        assert (run.result(PATIENCE), run.state, run.attempt) == ((1, [2]), RunState.SUCCEEDED, 1)

    def test_an_error_keeps_its_type_and_names_file_and_line(self, ps: Front) -> None:
        """Of the user's function, wherever it ran."""

        def divide(one: int) -> float:
            return one / 0

        run = self._job(ps, divide).submit(1)
        with raises(ZeroDivisionError):
            run.result(PATIENCE)
        assert run.state is RunState.FAILED
        assert f'{__file__}", line {divide.__code__.co_firstlineno + 1}, in ' in run.traceback
        assert "return one / 0" in run.traceback

    def test_progress_reaches_the_run_while_its_function_works(self, ps: Front, tmp_path: Path) -> None:
        go = tmp_path / "go"

        def work() -> None:
            progress(1, 4, "a quarter")
            while not go.exists():
                time.sleep(LOOK)

        async def work_on_loop() -> None:
            progress(1, 4, "a quarter")
            while not go.exists():
                await asyncio.sleep(LOOK)

        run = self._job(ps, work, work_on_loop).submit()
        _until(run, lambda: (run.percent, run.message) == (25, "a quarter"))
        assert run.state is RunState.RUNNING
        go.touch()
        run.result(PATIENCE)
        assert run.percent == 100

    def test_what_runs_is_in_its_load_and_has_a_worker_where_there_are_any(self, ps: Front, tmp_path: Path) -> None:
        """A worker has a name, and says what it runs; for whoever looks at them."""
        go = tmp_path / "go"

        def work() -> None:
            progress(0)
            while not go.exists():
                time.sleep(LOOK)

        async def work_on_loop() -> None:
            progress(0)
            while not go.exists():
                await asyncio.sleep(LOOK)

        job = self._job(ps, work, work_on_loop)
        run = job.submit()
        _until(run, lambda: run.percent == 0)
        executor = ps._runtime.service.executor("job", self.where)
        load, workers = executor.load, executor.workers
        go.touch()
        run.result(PATIENCE)
        assert load.running >= 1
        assert [name != "" for name, what in workers if job.name in what] == ([True] if self.isolated else [])

    def test_the_last_progress_is_there_with_the_end(self, ps: Front) -> None:
        """However often it was told just before."""

        def work() -> None:
            for number in range(1000):
                progress(number, 1000, f"number {number}")
            raise LookupError

        run = self._job(ps, work).submit()
        with raises(LookupError):
            run.result(PATIENCE)
        assert (run.percent, run.message) == (99, "number 999")

    def test_partials_arrive_in_order(self, ps: Front) -> None:
        """Each one that is published, and all before the end."""

        def work() -> str:
            run = current_run()
            assert run is not None
            for number in range(20):
                run.publish(number)
            return "all"

        run = self._job(ps, work).submit()
        assert (run.result(PATIENCE), list(run.partials)) == ("all", [*range(20)])

    def test_partials_reach_the_run_while_its_function_works(self, ps: Front, tmp_path: Path) -> None:
        go = tmp_path / "go"

        def work() -> Any:
            yield "first"
            while not go.exists():
                time.sleep(LOOK)
            yield "second"

        async def work_on_loop() -> Any:
            yield "first"
            while not go.exists():
                await asyncio.sleep(LOOK)
            yield "second"

        run = self._job(ps, work, work_on_loop).submit()
        _until(run, lambda: bool(run.partials))
        assert (list(run.partials), run.state) == (["first"], RunState.RUNNING)
        go.touch()
        assert (run.result(PATIENCE), list(run.partials)) == ("second", ["first", "second"])

    def test_what_a_generator_returns_is_its_result(self, ps: Front) -> None:
        """Else its last item is, and None of one without any."""

        def returns() -> Any:
            yield 1
            return 2

        def yields() -> Any:
            yield 1
            yield 3

        def nothing() -> Any:
            yield from ()

        async def yields_on_loop() -> Any:
            yield 1
            yield 3

        async def nothing_on_loop() -> Any:
            for item in list[int]():
                yield item

        if not self.is_loop:  # an async generator returns nothing
            run = self._job(ps, returns).submit()
            assert (run.result(PATIENCE), list(run.partials)) == (2, [1])
        assert self._job(ps, yields, yields_on_loop).submit().result(PATIENCE) == 3
        assert self._job(ps, nothing, nothing_on_loop).submit().result(PATIENCE) is None

    def test_an_async_function_is_awaited(self, ps: Front) -> None:
        """On a loop of its own, where it is not the server's."""

        async def work() -> str:
            await asyncio.sleep(0)
            return "awaited"

        if self.is_loop or self.isolated:
            assert self._job(ps, work, work).submit().result(PATIENCE) == "awaited"

    # ------------------------------------------------------------ what it knows

    def test_the_run_is_known_inside(self, ps: Front) -> None:
        """Its id, its function's name, and the attempt."""

        def work() -> Any:
            run = current_run()
            return run and (run.id, run.task, run.attempt)

        job = self._job(ps, work)
        run = job.submit()
        assert run.result(PATIENCE) == (run.id, job.name, 1)

    def test_a_failed_attempt_is_followed_by_another(self, ps: Front) -> None:
        """Which knows that it is one; progress and partials are its own."""

        def work() -> int:
            run = current_run()
            assert run is not None
            run.publish(run.attempt)
            if run.attempt == 1:
                raise LookupError
            return run.attempt

        run = self._job(ps, work, retry=2).submit()
        assert (run.result(PATIENCE), list(run.partials), run.attempt) == (2, [2], 2)

    def test_a_function_cancels_its_own_run(self, ps: Front) -> None:
        """It is not tried again, and says why."""

        def work() -> None:
            raise Cancel("nothing new")

        run = self._job(ps, work, retry=2).submit()
        with raises(RunCancelled, "cancelled: nothing new"):
            run.result(PATIENCE)
        assert (run.state, run.attempt, run.reason) == (RunState.CANCELLED, 1, "cancelled: nothing new")

    def test_a_function_asks_to_be_run_again(self, ps: Front) -> None:
        """After the time that it says, without `retry`."""

        def work() -> int:
            run = current_run()
            if run is not None and run.attempt == 1:
                raise RetryLater("1ms", "not there yet")
            return 42

        run = self._job(ps, work).submit()
        assert (run.result(PATIENCE), run.attempt) == (42, 2)

    def test_a_run_sees_no_session(self, ps: Front) -> None:
        """Whoever has started it (invariant 20)."""

        def work(number: int) -> bool:
            shown, panel = sys.modules.get("bokeh.io"), sys.modules.get("panel")
            seen = [shown and shown.curdoc(), panel and panel.state._curdoc.get()]
            return number in map(id, seen)

        document = Document()
        with patch_curdoc(document), set_curdoc(document):
            assert not self._job(ps, work).submit(id(document)).result(PATIENCE)

    def test_what_it_logs_meets_the_loggers_of_this_process(self, ps: Front, caplog: Any) -> None:
        def work() -> None:
            logging.getLogger("contract").warning("%d sheep", 3)

        self._job(ps, work).submit().result(PATIENCE)
        assert [each.getMessage() for each in caplog.records if each.name == "contract"] == ["3 sheep"]

    # ------------------------------------------------------------ what travels

    def test_an_argument_that_cannot_travel_is_named(self, ps: Front) -> None:
        """With its type, and its path inside; nothing begins."""
        if self.isolated:
            job = self._job(ps, lambda table: table)
            with raises(ValueRefused, job.name, "table", "lock", "['rows'][1]"):
                job.submit(table={"rows": [1, threading.Lock()]}).result(PATIENCE)

    def test_a_result_that_cannot_travel_is_named(self, ps: Front) -> None:
        """And so is a partial; the run has failed."""

        def work(partial: bool) -> Any:
            run = current_run()
            assert run is not None
            value = {"rows": [1, threading.Lock()]}
            if partial:
                run.publish(value)
            return value

        if self.isolated:
            job = self._job(ps, work)
            for partial in (False, True):
                run = job.submit(partial=partial)
                with raises(ValueRefused, job.name, "lock", "['rows'][1]"):
                    run.result(PATIENCE)
                assert run.state is RunState.FAILED

    def test_a_large_value_is_not_read_on_the_event_loop(self, ps: Front) -> None:
        """Nor is an argument made bytes there (invariant 13)."""
        if not self.isolated:
            return
        data = b"x" * 1_000_000

        def work(left: int, data: bytes) -> Any:
            return left, Arriving(), data

        async def submit() -> Any:
            return threading.get_ident(), await self._job(ps, work).submit(Leaving(), data)

        class Leaving:
            """Arrives as the number of the thread on which it was made bytes."""

            def __reduce__(self) -> Any:
                return int, (threading.get_ident(),)

        class Arriving:
            """Arrives as the number of the thread on which it is made of bytes."""

            def __reduce__(self) -> Any:
                return threading.get_ident, ()

        loop, (left, arrived, received) = asyncio.run(submit())
        assert received == data
        assert loop not in (left, arrived)

    # ------------------------------------------------------------ when it is ended

    def test_a_queued_run_that_is_cancelled_never_starts(self, ps: Front, tmp_path: Path) -> None:
        """And holds up nobody."""
        if not self.places:
            return
        go, trace = tmp_path / "go", tmp_path / "started"

        def work() -> None:
            progress(0)
            while not go.exists():
                time.sleep(LOOK)

        job = self._job(ps, work)
        busy = [job.submit() for _ in range(self.places)]
        for run in busy:
            _until(run, partial(_has_begun, run))
        waiting = self._job(ps, trace.touch).submit()
        waiting.cancel()
        assert waiting.state is RunState.CANCELLED
        go.touch()
        for run in busy:
            run.result(PATIENCE)
        self._job(ps, lambda: None).submit().result(PATIENCE)
        assert not trace.exists()

    def test_cancel_ends_a_running_function_and_its_cleanup_code_runs(self, ps: Front, tmp_path: Path) -> None:
        """The run has ended at once; what the function does afterwards is nobody's."""
        cleaned = tmp_path / "cleaned"
        run = self._endless(ps, cleaned).submit()
        _until(run, lambda: run.percent == 0)
        run.cancel()
        assert run.state is RunState.CANCELLED
        with raises(RunCancelled):
            run.result(PATIENCE)
        _appears(cleaned)
        assert self._job(ps, lambda: "next").submit().result(PATIENCE) == "next"

    def test_a_timeout_ends_it(self, ps: Front, tmp_path: Path) -> None:
        """It runs from the beginning of the function, which is told; its cleanup code runs."""
        cleaned = tmp_path / "cleaned"
        run = self._endless(ps, cleaned, timeout="300ms").submit()
        with raises(RunTimedOut, "its timeout of 0.3 s"):
            run.result(PATIENCE)
        assert run.state is RunState.TIMED_OUT
        _appears(cleaned)

    def test_a_function_that_does_not_listen_is_ended(self, ps: Front, tmp_path: Path) -> None:
        """Whatever it waits for."""

        def work() -> None:
            try:
                progress(0)
                time.sleep(3600)
            finally:
                cleaned.touch()

        async def work_on_loop() -> None:
            try:
                progress(0)
                await asyncio.sleep(3600)
            finally:
                cleaned.touch()

        if self.can_stop:
            cleaned = tmp_path / "cleaned"
            run = self._job(ps, work, work_on_loop).submit()
            _until(run, lambda: run.percent == 0)
            run.cancel()
            _appears(cleaned)

    def test_a_worker_process_that_dies_is_a_crash(self, ps: Front) -> None:
        """The run says so, and another worker takes the next one."""
        if self.isolated:
            run = self._job(ps, lambda: os.kill(os.getpid(), signal.SIGKILL)).submit()
            with raises(RunCrashed):
                run.result(PATIENCE)
            assert run.state is RunState.CRASHED
            assert self._job(ps, lambda: 1).submit().result(PATIENCE) == 1

    def test_a_crash_is_tried_again_and_counted_once(self, ps: Front, tmp_path: Path) -> None:
        begun = tmp_path / "begun"

        def work() -> int:
            run = current_run()
            assert run is not None
            with begun.open("a") as file:
                file.write(f"{run.attempt}\n")
            if run.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return run.attempt

        if self.isolated:
            run = self._job(ps, work, retry=2).submit()
            assert (run.result(PATIENCE), run.attempt) == (2, 2)
            assert begun.read_text() == "1\n2\n"

    # ------------------------------------------------------------ when it stops

    def test_stop_lets_what_runs_end_within_the_grace(self, ps: Front, tmp_path: Path) -> None:
        """But for what runs on an event loop, which stops."""
        go = tmp_path / "go"

        def work() -> str:
            progress(0)
            while not go.exists():
                time.sleep(LOOK)
            return "ended"

        if not self.is_loop:
            run = self._job(ps, work).submit()
            _until(run, lambda: run.percent == 0)
            threading.Timer(0.05, go.touch).start()
            ps._runtime.grace = PATIENCE
            ps._runtime.close()
            assert run.result(0) == "ended"

    def test_stop_ends_what_does_not_end(self, ps: Front, tmp_path: Path) -> None:
        """Its cleanup code runs, and that is no failure (invariant 19)."""
        cleaned, failed = tmp_path / "cleaned", list[str]()
        ps.on("failed", lambda job, run: failed.append(job.name))
        run = self._endless(ps, cleaned).submit()
        _until(run, lambda: run.percent == 0)
        ps._runtime.grace = 0.05
        ps._runtime.close()
        assert run.state is RunState.CANCELLED
        _appears(cleaned)
        assert not failed

    # ------------------------------------------------------------ what the tests are written with

    def _job(
        self, ps: Front, function: Callable[..., Any], on_loop: Callable[..., Any] | None = None, **options: Any
    ) -> Background[Any, Any]:
        """A background function; `on_loop` is the same as an ``async def``, for one that waits."""
        if self.is_loop:
            function = on_loop or _awaited(function)
        name = f"job{next(_names)}"
        job: Background[Any, Any] = ps.background(executor=self.where, name=name, **options)(function)
        return job

    def _endless(self, ps: Front, cleaned: Path, **options: Any) -> Background[Any, Any]:
        """What reports its progress for ever, and touches a file in its cleanup code."""

        def work() -> None:
            try:
                while True:
                    progress(0)
                    time.sleep(LOOK)
            finally:
                cleaned.touch()

        async def work_on_loop() -> None:
            try:
                while True:
                    progress(0)
                    await asyncio.sleep(LOOK)
            finally:
                cleaned.touch()

        return self._job(ps, work, work_on_loop, **options)


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return awaited


def _has_begun(run: Run) -> bool:
    """Of a function that reports so."""
    return run.percent == 0


def _until(run: Run, there: Callable[[], bool]) -> None:
    """Wait until something is so that the run tells of."""
    seen = threading.Event()

    def look() -> None:
        if there():
            seen.set()

    unwatch = run.watch(look)
    look()
    assert seen.wait(PATIENCE), f"{run!r} has not come so far"
    unwatch()


def _appears(path: Path) -> None:
    """Wait for what a function does that nobody hears any more."""
    for _ in range(int(PATIENCE / LOOK)):
        if path.exists():
            return
        time.sleep(LOOK)
    raise AssertionError(f"{path.name} is not there")
