"""``ps.store``, and everything that works without a server (2.2)."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import MutableMapping
from types import SimpleNamespace

import pytest
from bokeh.models import Div

import panel_schedule as package
from core import PATIENCE, Core, second
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import ValueRefused
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.entry import Entry
from panel_schedule.stores.values import Values

# ------------------------------------------------------------ a mapping


def test_a_value_is_there_for_everybody(core):
    """Under its name, the very object."""
    value = {"EUR": 1.0}
    core.ps.store["rates"] = value

    assert value is core.ps.store["rates"] is core.ps.store.get("rates")


def test_a_missing_name_is_a_key_error(core):
    """[] raises it with the name, .get gives the default (2.2)."""
    with pytest.raises(KeyError) as caught:
        core.ps.store["rates"]

    assert ("rates",) == caught.value.args
    assert (None, 5) == (core.ps.store.get("rates"), core.ps.store.get("rates", 5))


def test_none_is_a_value(core):
    """It is there."""
    core.ps.store["rates"] = None

    assert ("rates" in core.ps.store, core.ps.store["rates"], core.ps.store.get("rates", 5)) == (True, None, None)


def test_a_deleted_name_is_gone(core):
    """And cannot be deleted twice."""
    core.ps.store["rates"] = 1
    del core.ps.store["rates"]

    assert "rates" not in core.ps.store
    with pytest.raises(KeyError) as caught:
        del core.ps.store["rates"]
    assert ("rates",) == caught.value.args


def test_it_is_a_mutable_mapping(core):
    """With all that a dict can do."""
    store = core.ps.store
    store.update(a=1, b=2)
    store.setdefault("b", 5)
    store.setdefault("c", 3)

    assert isinstance(store, MutableMapping)
    assert ({"a": 1, "b": 2, "c": 3}, 3) == (dict(store), len(store))
    assert (1, 9) == (store.pop("a"), store.pop("a", 9))
    store.clear()
    assert (0, False) == (len(store), bool(store))


def test_iteration_shows_the_users_names_only(core):
    """The tasks' values are a namespace of their own (2.2)."""
    task = core.schedule(period="1h", name="rates")(lambda: "task's")
    core.begin()
    core.ps.store["mine"] = 1
    core.ps.store["rates"] = "user's"

    assert ["mine", "rates"] == list(core.ps.store)
    assert ("task's", "user's") == (task(), core.ps.store["rates"])


def test_deleting_a_name_leaves_the_task_of_that_name_alone(core):
    """And the other way round."""
    task = core.schedule(period="1h", name="rates")(lambda: "task's")
    core.begin()
    core.ps.store["rates"] = "user's"
    del core.ps.store["rates"]
    before = task()
    core.ps.store["rates"] = "user's"
    core.ps.cancel_task("rates")

    assert ("task's", "user's") == (before, core.ps.store["rates"])


def test_the_entry_says_version_and_time(core):
    """None where there is no value."""
    core.ps.store["rates"] = 1
    core.clock.advance(5)
    core.ps.store["rates"] = 2
    entry = core.ps.store.entry("rates")

    assert (2, 2, second(5), None) == (entry.value, entry.version, entry.updated_at, entry.duration)
    assert core.ps.store.entry("weights") is None


@pytest.mark.parametrize("name", ["", 5, None, ("a", "b")])
def test_a_name_is_a_non_empty_string(core, name):
    """The error shows what was given; and nothing of that kind is in the store."""
    with pytest.raises(TypeError, match="non-empty strings"):
        core.ps.store[name] = 1
    assert name not in core.ps.store


def test_what_belongs_to_a_document_is_refused(core):
    """With the name, and the path inside the value; the old value stays (2.1)."""
    core.ps.store["plots"] = "old"

    with pytest.raises(ValueRefused, match=r"ps\.store\['plots'\]: value\[0\] is a bokeh"):
        core.ps.store["plots"] = [Div()]
    assert "old" == core.ps.store["plots"]


def test_it_shows_its_names(core):
    """For the curious."""
    empty = repr(core.ps.store)
    core.ps.store["rates"] = 1

    assert ("<store: empty>", "<store: rates>") == (empty, repr(core.ps.store))


# ------------------------------------------------------------ live


def test_a_reactive_value_follows(core):
    """None until there is one, and again when it was deleted (2.2)."""
    rates = core.ps.store.rx("rates")
    seen = [rates.rx.value]
    for change in (1, 2, None):
        if change is None:
            del core.ps.store["rates"]
        else:
            core.ps.store["rates"] = change
        core.go()
        seen.append(rates.rx.value)

    assert [None, 1, 2, None] == seen


def test_a_reactive_value_begins_with_what_is_there(core):
    """Whenever it is asked for."""
    core.ps.store["rates"] = 1

    assert 1 == core.ps.store.rx("rates").rx.value


def test_reactive_expressions_build_on_it(core):
    """As on any in param."""
    core.ps.store["rates"] = 20
    doubled = core.ps.store.rx("rates") * 2
    before = doubled.rx.value
    core.ps.store["rates"] = 21
    core.go()

    assert [40, 42] == [before, doubled.rx.value]


def test_a_value_that_comes_back_after_a_delete_is_seen(core):
    """Versions only grow, so that nobody takes it for the old one."""
    rates = core.ps.store.rx("rates")
    core.ps.store["rates"] = "first"
    core.go()
    del core.ps.store["rates"]
    core.ps.store["rates"] = "second"
    core.go()

    assert ("second", 2) == (rates.rx.value, core.ps.store.entry("rates").version)


# ------------------------------------------------------------ without a server


def script(text):
    """What a script prints, line by line, in a process that has no server and no loop."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    front, printed = Front(Runtime(Config({}))), []
    public = {name: getattr(front, name) for name in ("on", "run_forever", "schedule", "store")}
    ps = SimpleNamespace(Retry=package.Retry, errors=package.errors, **public)
    try:
        exec(textwrap.dedent(text), {"ps": ps, "print": lambda *words: printed.append(" ".join(map(str, words)))})
    finally:
        front._runtime.service.stop(0)
        logging.disable(logging.NOTSET)  # scripts that expect a failure keep it from being logged
    return printed


def process(text):
    """What a script prints that has a process of its own; its errors fail the test."""
    source = "import panel_schedule as ps\n" + textwrap.dedent(text)
    # From 3.12 on Python warns of any fork beside threads: that is what these tests are about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (ended.returncode, ended.stderr)
    return ended.stdout.splitlines()


def test_in_a_script_refresh_and_result_just_work():
    """Plain and async functions, generators, and one reading another (2.2)."""
    assert ["plain 1", "async 1", "both 2", "last 3", "ready 1", "store 5"] == script("""
        import asyncio

        @ps.schedule(period="1h")
        def plain():
            return 1

        @ps.schedule(period="1h")
        async def later():
            await asyncio.sleep(0.001)
            return 1

        @ps.schedule(period="1h")
        def both():
            return plain() + later()

        @ps.schedule(period="1h")
        def parts():
            yield 1
            yield 3

        @ps.schedule(cron="@daily", timezone="UTC")
        def ready():
            return 1

        print("plain", plain.refresh().result(10))
        print("async", later.refresh().result(10))
        print("both", both.refresh().result(10))
        print("last", parts.refresh().result(10))
        print("ready", ready.wait_ready(10))
        ps.store["five"] = 5
        print("store", ps.store["five"])
    """)


def test_in_a_script_no_clock_ticks():
    """Slots wait for a server, however long the script lives (2.2)."""
    assert ["1"] == script("""
        import threading

        count = []
        other = threading.Event()

        @ps.schedule(period="20ms")
        def ticking():
            count.append(1)

        @ps.schedule(period="1h", timeout="200ms")
        def waits():
            other.wait(10)

        ticking.refresh().result(10)
        try:
            waits.refresh().result(10)  # the service thread is up, and tells the time
        except ps.errors.RunTimedOut:
            other.set()
        print(len(count))
    """)


def test_in_a_script_timeouts_and_retries_work():
    """They need the service thread, and no server."""
    assert ["timed out", "third"] == script("""
        import threading

        release = threading.Event()
        attempts = []

        @ps.schedule(period="1h", timeout="50ms")
        def slow():
            release.wait(10)

        @ps.schedule(period="1h", retry=ps.Retry(3, backoff="5ms"))
        def flaky():
            attempts.append(1)
            if len(attempts) < 3:
                raise OSError("not yet")
            return "third"

        try:
            slow.refresh().result(10)
        except ps.errors.RunTimedOut:
            print("timed out")
        release.set()
        print(flaky.refresh().result(10))
    """)


def test_in_a_script_a_failure_is_raised_where_it_is_waited_for():
    """By result() and by wait_ready(): with its own type."""
    assert ["OSError gone", "OSError gone"] == script("""
        import logging
        logging.disable(logging.CRITICAL)

        @ps.schedule(period="1h")
        def broken():
            raise OSError("gone")

        for wait in (lambda: broken.refresh().result(10), lambda: broken.wait_ready(10)):
            try:
                wait()
            except OSError as exc:
                print(type(exc).__name__, exc)
    """)


def test_in_a_script_what_does_not_come_in_time_is_not_ready():
    """NotReady names the task, and why."""
    assert ["NotReady slow running"] == script("""
        import threading

        release = threading.Event()

        @ps.schedule(period="1h")
        def slow():
            release.wait(10)

        try:
            slow.wait_ready(0.2)
        except TimeoutError as exc:
            print(type(exc).__name__, "slow" * ("'slow'" in str(exc)), "running" * ("running" in str(exc)))
        release.set()
    """)


def test_in_a_script_ready_can_be_awaited():
    """In asyncio.run, where the loop is the script's own."""
    assert ["1", "2"] == script("""
        import asyncio

        @ps.schedule(period="1h")
        def plain():
            return 1

        @ps.schedule(period="1h")
        async def later():
            return 2

        async def main():
            print(await plain.ready(10))
            print(await later.ready(10))

        asyncio.run(main())
    """)


def test_in_a_script_ready_raises_what_the_first_run_raised():
    """Instead of waiting for a value that nobody will make."""
    assert ["OSError"] == script("""
        import asyncio, logging
        logging.disable(logging.CRITICAL)

        @ps.schedule(period="1h")
        def broken():
            raise OSError("gone")

        async def main():
            try:
                await asyncio.wait_for(broken.ready(), 3)
            except OSError as exc:  # a TimeoutError is one
                print(type(exc).__name__)

        asyncio.run(main())
    """)


def test_in_a_running_loop_blocking_calls_name_await():
    """result() and wait_ready() of something unfinished raise WouldBlock (2.2)."""
    assert ["WouldBlock True", "WouldBlock True", "WouldBlock True", "1"] == script("""
        import asyncio, threading

        release = threading.Event()

        @ps.schedule(period="1h")
        def slow():
            release.wait(10)
            return 1

        async def main():
            run = slow.refresh()
            for blocking in (run.result, slow.wait_ready, ps.run_forever):
                try:
                    blocking()
                except RuntimeError as exc:
                    print(type(exc).__name__, "`" in str(exc))
            release.set()
            print(await run)

        asyncio.run(main())
    """)


def test_threads_of_a_script_share_one_run():
    """Twenty callers at once, one computation (section 4, traps: pn.cache computes twenty times)."""
    assert ["1 {42}"] == script("""
        import threading
        from concurrent.futures import ThreadPoolExecutor

        count, all_in = [], threading.Barrier(20)
        gate = threading.Event()

        @ps.schedule(period="1h")
        def slow():
            count.append(1)
            gate.wait(10)
            return 42

        def caller(_):
            all_in.wait(10)
            run = slow.refresh()
            all_in.wait(10)
            gate.set()
            return run.result(10)

        with ThreadPoolExecutor(20) as pool:
            results = set(pool.map(caller, range(20)))
        print(len(count), results)
    """)


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_script_needs_no_more_than_the_package():
    """In a process of its own, it ends without a word when it is done (2.2)."""
    assert ["1"] == process("""
        @ps.schedule(period="1h")
        async def later():
            return 1

        print(later.refresh().result(10))
    """)


FORK = """
    import os, sys, threading

    count = []

    @ps.schedule(period="20ms", first_run="background")
    def ticking():
        count.append(os.getpid())
        return os.getpid()

    def in_child(body):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                body()
                sys.stdout.flush()
                os._exit(0)
            except BaseException as exc:
                print("failed", repr(exc))
                sys.stdout.flush()
                os._exit(1)
        os.waitpid(pid, 0)
"""


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_forked_child_ticks_nothing():
    """A user's own Pool(fork) beside a running scheduler has no scheduler of its own (section 4)."""
    assert ["ticks 0", "threads 1"] == process(
        FORK
        + """
    import asyncio, time
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    first = threading.Event()
    ps.on("succeeded", lambda task, run: first.set())
    ps._runtime.start(loop)
    assert first.wait(10)

    def child():
        before = len(count)
        time.sleep(0.2)  # the one way to see that nothing happens
        print("ticks", len(count) - before)
        print("threads", threading.active_count())

    in_child(child)
    """
    )


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_forked_child_can_refresh():
    """With a value of its own, which its readers see; the parent's stays the parent's."""
    assert ["child True True", "parent True"] == process(
        FORK
        + """
    for _ in range(3):
        ticking.refresh().result(10)

    def child():
        result = ticking.refresh().result(10)
        print("child", result == os.getpid(), ticking() == os.getpid())

    in_child(child)
    print("parent", ticking() == os.getpid() == ticking.refresh().result(10))
    """
    )


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_forked_child_can_use_the_store():
    """No lock was taken with it."""
    assert ["child 2", "parent 1"] == process(
        FORK
        + """
    ps.store["value"] = 1

    def child():
        ps.store["value"] = 2
        print("child", ps.store["value"])

    in_child(child)
    print("parent", ps.store["value"])
    """
    )


def test_awaiting_a_run_from_another_loop_is_fine():
    """Any loop may await any run."""
    with Core() as core:
        task = core.schedule(period="1h", first_run="skip", name="task")(lambda: 1)
        run = task.refresh()
        core.go()

        async def reads():
            return await run

        assert 1 == asyncio.run(reads())


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_run_in_flight_ends_before_the_interpreter_does():
    """A daemon thread that is cut off inside of an extension would abort the process."""
    assert ["started", "ended"] == process("""
        import threading, time
        started = threading.Event()

        @ps.schedule(period="1h", first_run="skip")
        def slow():
            print("started", flush=True)
            started.set()
            time.sleep(0.05)
            print("ended", flush=True)

        slow.refresh()
        started.wait(10)
    """)


# ------------------------------------------------------------ a store on a disk


@pytest.fixture
def on_disk(tmp_path):
    """``ps.store`` of a runtime whose values are files, and what waits until they are written."""
    config = Config({})
    config.store = f"file://{tmp_path / 'store'}"
    runtime = Runtime(config)
    yield Front(runtime).store, runtime.service.outbox.drain
    runtime.close()


async def test_on_the_loop_a_value_is_there_at_once_and_stored_aside(on_disk):
    """The event loop neither serialises nor writes (invariant 13), and whoever wrote reads what was written."""
    (on_disk, drain), threads = on_disk, []

    class Spy:
        def __reduce__(self):
            threads.append(threading.current_thread())
            return (dict, ())

    on_disk["a"] = 1
    on_disk["a"] = 2
    on_disk["spy"] = Spy()
    del on_disk["a"]
    on_disk["b"] = 3

    assert (False, 3, {"spy", "b"}) == ("a" in on_disk, on_disk["b"], set(on_disk))
    with pytest.raises(KeyError):
        on_disk["a"]
    await asyncio.to_thread(drain, PATIENCE)
    assert (False, 3, {}) == ("a" in on_disk, on_disk["b"], on_disk["spy"])
    assert threads
    assert threading.current_thread() not in threads


async def test_on_the_loop_a_value_is_there_also_while_it_comes_in(on_disk, monkeypatch):
    """It is written at the very moment at which somebody looks."""
    (on_disk, drain), names, entry = on_disk, Values.names, Values.entry

    def late(look):
        def looked(*args):
            found = look(*args)
            found = found if found is None or isinstance(found, Entry) else iter(list(found))
            drain(PATIENCE)
            return found

        return looked

    monkeypatch.setattr(Values, "names", late(names))
    on_disk["a"] = 1
    assert ["a"] == list(on_disk)
    monkeypatch.setattr(Values, "names", names)
    monkeypatch.setattr(Values, "entry", late(entry))
    on_disk["b"] = 2
    assert 2 == on_disk["b"]
    on_disk["b"] = 3
    assert 3 == on_disk["b"]


async def test_on_the_loop_a_figure_is_refused_at_once(on_disk):
    """Before anything is handed over."""
    with pytest.raises(ValueRefused, match="plot"):
        on_disk[0]["plot"] = Div()


def test_elsewhere_what_cannot_be_stored_is_refused_at_once(on_disk):
    """By name, type and path."""
    with pytest.raises(ValueRefused, match=r"ps\.store\['lock'\].*lock"):
        on_disk[0]["lock"] = {"a": threading.Lock()}
    assert "lock" not in on_disk[0]
