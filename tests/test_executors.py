"""What every executor promises, and what some of them promise besides."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from itertools import pairwise

import pytest

from core import PATIENCE, HandExecutor
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.executors.loop import MOST, TURN, LoopExecutor
from panel_schedule.executors.threads import GIVEN_BACK, SWITCH_INTERVAL, ThreadExecutor
from panel_schedule.runtime import Runtime
from panel_schedule.testing import BodyContract, ExecutorContract
from servers import eventually

person: contextvars.ContextVar[str] = contextvars.ContextVar("person", default="nobody")


class Adopted(LoopExecutor):
    """On the loop of a server, here in a thread."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.adopt(self.loop)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


class Driven(HandExecutor):
    """The hand-driven one, driven at each flush."""

    def flush(self):
        super().flush()
        self.go()


MAKERS = {
    "adopted loop": Adopted,
    "own loop": LoopExecutor,
    "threads": lambda: ThreadExecutor(4),
    "by hand": Driven,
}


@pytest.fixture(params=MAKERS)
def executor(request):
    """One whose bodies share the test's memory."""
    made = MAKERS[request.param]()
    yield made
    made.stop(0.5)
    if isinstance(made, Adopted):
        made.close()


@pytest.fixture(params=["adopted loop", "own loop"])
def loops(request):
    made = MAKERS[request.param]()
    yield made
    made.stop(0.5)
    if isinstance(made, Adopted):
        made.close()


@pytest.fixture
def threads():
    made = ThreadExecutor(2)
    yield made
    made.stop(1)


def run(executor, body):
    future = executor.submit(body)
    executor.flush()
    return future


class Ends:
    """With the functions of the package, as an author has them; each test has a runtime of its own."""

    @pytest.fixture
    def ps(self):
        config = Config({})
        config.store, config.max_threads, config.max_processes = "memory://", 4, 2
        runtime = Runtime(config)
        yield Front(runtime)
        runtime.grace = 0.0
        runtime.close()

    @pytest.fixture
    def executor(self, ps):
        return ps._runtime.service.executor("job", self.where)


class TestLoop(Ends, ExecutorContract):
    where, is_loop = "loop", True


class TestAdoptedLoop(BodyContract):
    @pytest.fixture
    def executor(self):
        made = Adopted()
        yield made
        made.stop(0.5)
        made.close()


class TestThreads(Ends, ExecutorContract):
    where, places, can_stop = "thread", 4, False


@pytest.mark.slow
class TestProcesses(Ends, ExecutorContract):
    where, places, isolated = "process", 2, True


class TestByHand(BodyContract):
    by_many = False

    @pytest.fixture
    def executor(self):
        made = Driven()
        yield made
        made.stop(0.5)


# ------------------------------------------------------------ what shares its memory


def test_a_future_has_what_the_body_raises(executor):
    """The very exception, with its traceback."""
    error = ValueError("mine")

    def body():
        raise error

    raised = run(executor, body).exception(PATIENCE)

    assert error is raised
    assert "body" == raised.__traceback__.tb_frame.f_code.co_name or raised.__traceback__.tb_next is not None


def test_a_flush_hands_over_everything(executor):
    """In one go, in order of submission."""
    order = []
    futures = [executor.submit(lambda number=number: order.append(number)) for number in range(3)]
    executor.flush()
    wait(futures, PATIENCE)

    assert [0, 1, 2] == sorted(order)


def test_a_body_runs_in_an_empty_context(executor):
    """It sees no session of who submitted it (section 4, traps)."""
    token = person.set("somebody")
    try:
        seen = run(executor, lambda: (person.get(), len(list(contextvars.copy_context())))).result(PATIENCE)
    finally:
        person.reset(token)

    assert ("nobody", 0) == seen


def test_what_a_body_sets_in_its_context_is_its_own(executor):
    """The next body sees nothing of it."""
    run(executor, lambda: person.set("somebody") and None).result(PATIENCE)

    assert "nobody" == run(executor, person.get).result(PATIENCE)


def test_a_lent_place_is_a_context_manager(executor):
    """Whoever waits says so; where there are no places to lend it does nothing."""

    def body():
        with executor.lend():
            return "back"

    assert "back" == run(executor, body).result(PATIENCE)


# ------------------------------------------------------------ loops


def test_a_coroutine_is_awaited(loops):
    """Bodies may be async."""

    async def body():
        await asyncio.sleep(0)
        return "awaited"

    assert "awaited" == run(loops, body).result(PATIENCE)


def test_a_running_coroutine_gets_its_cancelled_error(loops):
    """cancel() of its future reaches it; the future is done when it has really ended (18)."""
    entered, cleaned = threading.Event(), []

    async def body():
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    future = run(loops, body)
    assert entered.wait(PATIENCE)
    future.cancel()

    assert isinstance(future.exception(PATIENCE), asyncio.CancelledError)
    assert [True] == cleaned


def test_a_coroutine_may_catch_its_cancel(loops):
    """Then its result counts."""
    entered = threading.Event()

    async def body():
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "tidied up"

    future = run(loops, body)
    assert entered.wait(PATIENCE)
    future.cancel()

    assert "tidied up" == future.result(PATIENCE)


def test_each_coroutine_has_a_context_of_its_own(loops):
    """Also beside others on the same loop."""

    async def body(name):
        person.set(name)
        await asyncio.sleep(0)
        return person.get()

    futures = [loops.submit(lambda name=name: body(name)) for name in "abc"]
    loops.flush()

    assert ["a", "b", "c"] == [future.result(PATIENCE) for future in futures]


def test_bodies_run_on_the_adopted_loop():
    """And not on one of our own."""
    executor = Adopted()

    async def body():
        return asyncio.get_running_loop()

    try:
        assert executor.loop is run(executor, body).result(PATIENCE)
        assert executor.loop is executor.adopted
    finally:
        executor.stop(0)
        executor.close()


def test_a_loop_of_our_own_serves_until_another_is_adopted():
    """A script that starts a server later goes over to its loop."""
    executor = LoopExecutor()

    async def body():
        return asyncio.get_running_loop()

    own = run(executor, body).result(PATIENCE)
    server = Adopted()
    executor.adopt(server.loop)
    try:
        assert own is not server.loop
        assert server.loop is run(executor, body).result(PATIENCE)
    finally:
        executor.stop(0)
        server.close()


def test_a_closed_loop_is_no_longer_used():
    """What runs on it is given up, what comes later runs on a loop of our own."""
    executor, entered = Adopted(), threading.Event()

    async def body():
        entered.set()
        await asyncio.Event().wait()

    stranded = run(executor, body)
    assert entered.wait(PATIENCE)
    executor.close()

    assert executor.adopted is None
    assert 1 == run(executor, lambda: 1).result(PATIENCE)
    other = Adopted()
    executor.adopt(other.loop)
    assert isinstance(stranded.exception(PATIENCE), asyncio.CancelledError)
    executor.stop(0)
    other.close()


def test_stop_cancels_coroutines_and_waits_for_them(loops):
    """Up to the grace period: when it returns, they have ended (19)."""
    entered, cleaned = threading.Event(), []

    async def body():
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    future = run(loops, body)
    assert entered.wait(PATIENCE)
    loops.stop(PATIENCE)

    assert ([True], True) == (cleaned, future.done())


def test_stop_does_not_wait_longer_than_the_grace_period(loops):
    """A coroutine that does not end is left behind."""
    entered, release = threading.Event(), threading.Event()

    async def body():
        entered.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    future = run(loops, body)
    assert entered.wait(PATIENCE)
    loops.stop(0.05)
    before = future.done()
    release.set()

    assert not before
    assert future.result(PATIENCE) is None


def test_stop_on_the_loops_own_thread_does_not_wait():
    """It would wait for itself."""
    executor, entered = Adopted(), threading.Event()

    async def body():
        entered.set()
        await asyncio.Event().wait()

    future = run(executor, body)
    assert entered.wait(PATIENCE)

    async def stops():
        executor.stop(PATIENCE)
        return future.done()

    stopped = asyncio.run_coroutine_threadsafe(stops(), executor.loop).result(2)

    assert not stopped
    assert isinstance(future.exception(PATIENCE), asyncio.CancelledError)
    executor.close()


def test_a_coroutine_holds_up_no_other(loops):
    """They run side by side."""
    there = asyncio.Event()

    async def first():
        await there.wait()
        return 1

    async def second():
        there.set()
        return 2

    futures = [loops.submit(first), loops.submit(second)]
    loops.flush()

    assert [1, 2] == [future.result(PATIENCE) for future in futures]


# ------------------------------------------------------------ the turns of a loop


@pytest.fixture
def by_turns():
    """An executor, and what lets its loop turn once."""
    loop, executor = asyncio.new_event_loop(), LoopExecutor()
    executor.adopt(loop)

    def turn():
        loop.call_soon(loop.stop)
        loop.run_forever()

    yield executor, turn
    executor.stop(0)
    turn()
    loop.close()


def counts(turn, done, total):
    """How many there were more after each turn, until all are there."""
    found = [len(done)]
    while len(done) < total:
        turn()
        found.append(len(done))
    return [after - before for before, after in pairwise(found)]


def test_thousands_of_bodies_start_over_many_turns_of_the_loop(by_turns):
    """In between pages are served."""
    (executor, turn), begun = by_turns, []
    for number in range(1000):
        executor.submit(partial(begun.append, number))
    executor.flush()

    assert MOST >= max(counts(turn, begun, 1000))
    assert list(range(1000)) == begun


def test_slow_bodies_start_one_by_one(by_turns):
    """As many as take some milliseconds; the first turn cannot know that they are slow."""
    (executor, turn), begun = by_turns, []

    def body():
        time.sleep(2 * TURN)
        begun.append(1)

    for _ in range(20):
        executor.submit(body)
    executor.flush()

    first, *others = filter(None, counts(turn, begun, 20))
    assert first < MOST
    assert {1} == set(others)


def test_thousands_of_bodies_that_end_at_once_are_told_of_over_many_turns(by_turns):
    (executor, turn), ended = by_turns, []
    event = asyncio.Event()
    futures = [executor.submit(event.wait) for _ in range(1000)]
    for future in futures:
        future.add_done_callback(lambda future: ended.append(future.result()))
    executor.flush()
    while not all(future.running() for future in futures):
        turn()
    event.set()

    assert MOST >= max(counts(turn, ended, 1000))
    assert not executor.busy


def test_what_is_over_when_the_executor_stops_is_told_of(by_turns):
    """Also what has been waiting for its turn."""
    (executor, turn), event = by_turns, asyncio.Event()
    futures = [executor.submit(event.wait) for _ in range(1000)]
    executor.flush()
    while not all(future.running() for future in futures):
        turn()
    event.set()
    turn()
    executor.stop(0)

    assert all(future.done() for future in futures)
    assert not executor.busy


# ------------------------------------------------------------ threads


def test_at_most_so_many_bodies_run_at_once(threads):
    """The rest waits its turn."""
    lock, running, most = threading.Lock(), [0], [0]
    entered, step = threading.Semaphore(0), threading.Semaphore(0)

    def body():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        entered.release()
        assert step.acquire(timeout=PATIENCE)
        with lock:
            running[0] -= 1

    futures = [threads.submit(body) for _ in range(20)]
    threads.flush()
    for _ in range(2):
        assert entered.acquire(timeout=PATIENCE)
    for _ in futures:
        step.release()
    wait(futures, PATIENCE)

    assert 2 == most[0]


def test_bodies_start_first_come_first_served():
    """In the order of their submission."""
    executor, order = ThreadExecutor(1), []
    futures = [executor.submit(lambda number=number: order.append(number)) for number in range(50)]
    executor.flush()
    wait(futures, PATIENCE)

    assert list(range(50)) == order


def test_threads_are_used_again(threads):
    """One after another, one thread does it all."""
    names = {run(threads, lambda: threading.current_thread().name).result(PATIENCE) for _ in range(1)}
    for _ in range(20):
        future = run(threads, lambda: threading.current_thread().name)
        names.add(future.result(PATIENCE))

    assert len(names) <= 2


def test_no_body_waits_while_a_place_is_free():
    """Two bodies handed over one right after the other both run, however quick the idle thread is."""
    executor, starved = ThreadExecutor(2), 0
    for _ in range(1500):
        both = threading.Barrier(2)

        def body(both=both):
            try:
                both.wait(1)
            except threading.BrokenBarrierError:
                return 1
            return 0

        one = run(executor, body)
        two = run(executor, body)
        starved += one.result(PATIENCE) + two.result(PATIENCE)
        if starved:
            break

    assert 0 == starved


def test_a_quick_worker_does_not_take_the_promise_of_another():
    """A thread that has fetched its body, and has not said so yet, is no idle one."""
    executor, held, other = ThreadExecutor(2), threading.Event(), threading.Event()
    run(executor, lambda: None).result(PATIENCE)

    class Watched:
        """The queue, which stops a thread that has just taken a body."""

        def __init__(self, queue):
            self.queue = queue
            self.stops = False
            self.taken = threading.Event()

        def get(self):
            item = self.queue.get()
            if self.stops:
                self.taken.set()
                held.wait(PATIENCE)
            return item

        def __getattr__(self, name):
            return getattr(self.queue, name)

    executor._queue = Watched(executor._queue)
    for _ in range(2):  # from the second on, the thread waits in the watched one
        run(executor, lambda: None).result(PATIENCE)
    executor._queue.stops = True
    run(executor, lambda: None)
    assert executor._queue.taken.wait(PATIENCE)
    run(executor, other.set)
    try:
        # One body is in the hands of a thread that has not begun; the other has a place of its own.
        assert 2 == executor._threads - executor._idle
    finally:
        held.set()
    assert other.wait(PATIENCE)


def test_a_lent_place_is_taken_by_another_body():
    """A reader that waits on the only thread lets in what it waits for."""
    executor, there = ThreadExecutor(1), threading.Event()

    def reader():
        with executor.lend():
            return there.wait(PATIENCE)

    waiting = run(executor, reader)
    run(executor, there.set)

    assert waiting.result(PATIENCE)


def test_four_lent_places_let_in_what_came_later():
    """Four readers on four threads, and the body they wait for (9)."""
    executor, there, all_in = ThreadExecutor(4), threading.Event(), threading.Barrier(5, timeout=PATIENCE)

    def reader():
        all_in.wait()
        with executor.lend():
            return there.wait(PATIENCE)

    readers = [run(executor, reader) for _ in range(4)]
    upstream = run(executor, there.set)
    all_in.wait()

    assert [True] * 4 == [future.result(PATIENCE) for future in readers]
    assert upstream.done()


def test_a_place_given_back_is_not_there_twice():
    """After the loan at most as many bodies run at once as before."""
    executor, there, back = ThreadExecutor(1), threading.Event(), threading.Event()

    def reader():
        with executor.lend():
            there.wait(PATIENCE)
        back.set()
        return inside()

    lock, running, most = threading.Lock(), [0], [0]
    step = threading.Semaphore(0)

    def inside():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        assert step.acquire(timeout=PATIENCE)
        with lock:
            running[0] -= 1

    futures = [run(executor, reader)]
    run(executor, there.set).result(PATIENCE)
    assert back.wait(PATIENCE)
    futures += [run(executor, inside) for _ in range(5)]
    for _ in futures:
        step.release()
    wait(futures, PATIENCE)

    assert 1 == most[0]


def test_stop_waits_for_threads_up_to_the_grace_period():
    """What ends in time has ended; what does not is left behind."""
    executor, release = ThreadExecutor(2), threading.Event()
    entered = threading.Barrier(2, timeout=PATIENCE)

    def body():
        entered.wait()
        release.wait(PATIENCE)

    future = run(executor, body)
    entered.wait()
    executor.stop(0.02)
    before = future.done()
    threading.Timer(0.02, release.set).start()
    executor.stop(PATIENCE)

    assert [False, True] == [before, future.done()]


def test_a_thread_that_runs_cannot_be_cancelled(threads):
    """The future is done when the body has really ended."""
    entered, release = threading.Event(), threading.Event()

    def body():
        entered.set()
        release.wait(PATIENCE)
        return "ended"

    future = run(threads, body)
    assert entered.wait(PATIENCE)
    refused = not future.cancel()
    release.set()

    assert refused
    assert "ended" == future.result(PATIENCE)


def test_an_idle_thread_keeps_no_value_alive(threads):
    """What a body returned is its reader's alone."""
    gone = threading.Event()

    class Value:
        pass

    future = run(threads, Value)
    # Its thread may still be on its way from the result to its next wait.
    watch = weakref.ref(future.result(PATIENCE), lambda value: gone.set())
    del future

    assert gone.wait(PATIENCE), watch()


def test_the_switch_interval_is_short_while_a_body_runs_and_restored_after():
    """So that a loop beside it keeps its rhythm (16)."""
    before = sys.getswitchinterval()
    executor, release = ThreadExecutor(2), threading.Event()
    entered = threading.Barrier(3, timeout=PATIENCE)

    def body():
        entered.wait()
        release.wait(PATIENCE)

    futures = [run(executor, body), run(executor, body)]
    entered.wait()
    during = sys.getswitchinterval()
    release.set()
    wait(futures, PATIENCE)

    assert pytest.approx(SWITCH_INTERVAL) == during
    assert pytest.approx(before) == sys.getswitchinterval()


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["threads.ThreadExecutor(2)", "loop.LoopExecutor()"], ids=["threads", "own loop"])
def test_no_thread_keeps_the_interpreter_from_exiting(executor):
    """An endless body ends with the process: these are daemons (section 4)."""
    script = f"""
import asyncio, threading
from panel_schedule.executors import loop, threads
entered = threading.Event()
executor = {executor}
if isinstance(executor, loop.LoopExecutor):
    async def body():
        entered.set()
        await asyncio.Event().wait()
else:
    def body():
        entered.set()
        threading.Event().wait()
executor.submit(body)
executor.flush()
assert entered.wait(10)
print("leaving")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)

    assert "leaving\n" == ended.stdout
    assert "Traceback" not in ended.stderr


# ------------------------------------------------------------ bodies that nobody waits for any more


@pytest.fixture
def hung(threads):
    """Bodies that do not end: ``hung(3)`` gives their futures; they end with the test."""
    going, end = threading.Semaphore(0), threading.Event()

    def body():
        going.release()
        end.wait(PATIENCE)

    def start(count, name="deaf"):
        futures = [threads.submit(body, name) for _ in range(count)]
        threads.flush()
        for _ in futures:
            assert going.acquire(timeout=PATIENCE)
        return futures

    start.end = end.set
    yield start
    end.set()


def test_a_body_that_is_cancelled_and_goes_on_gives_its_place_to_another(threads, hung):
    """Also when all places are lost so, again and again."""
    for _ in range(3):
        for future in hung(2):
            assert not future.cancel()
    assert 1 == run(threads, lambda: 1).result(PATIENCE)
    assert ("deaf",) == threads.hanging


def test_a_place_that_was_given_back_is_not_given_twice(threads, hung):
    """At most so many bodies run at once as there are places, and those that nobody waits for."""
    (left,) = hung(1)
    left.cancel()
    left.cancel()
    hung(2)
    late = run(threads, lambda: 1)
    with pytest.raises(TimeoutError):
        late.result(0.05)
    hung.end()
    assert 1 == late.result(PATIENCE)


def test_when_it_ends_at_last_the_pool_is_as_before(threads, hung):
    futures = hung(2)
    for future in futures:
        future.cancel()
    futures += hung(2)
    hung.end()
    for future in futures:
        future.result(PATIENCE)
    assert eventually(lambda: threads._threads == threads._places == 2)
    assert () == threads.hanging


def test_beyond_a_limit_no_place_is_given_back_and_the_log_says_once_who_hangs(threads, hung, caplog):
    for number in range(GIVEN_BACK):
        for future in hung(2, f"deaf {number % 2}"):
            future.cancel()
    for future in hung(2, "deaf"):
        future.cancel()
    late = run(threads, lambda: 1)
    with pytest.raises(TimeoutError):
        late.result(0.05)
    (line,) = [each.message for each in caplog.records if each.levelname == "ERROR"]
    assert line.startswith("16 functions still run though nobody waits for them any more")
    assert "deaf 0, deaf 1" in line
    hung.end()
    assert 1 == late.result(PATIENCE)


def test_a_stop_gives_no_place_to_what_waits(threads, hung):
    """What has not begun never does."""
    hung(2)
    late = run(threads, lambda: 1)
    threads.stop(0)
    assert late.cancelled()
