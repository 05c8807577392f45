"""Worker processes: what runs in them, how it ends, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import linecache
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import numpy as np
import psutil
import pytest

import panel_schedule as ps
from core import PATIENCE
from panel_schedule import Run
from panel_schedule.errors import (
    RunCancelled,
    RunCrashed,
    RunFailed,
    RunFenced,
    ScheduleError,
    ValueRefused,
    ValueUnreadable,
)
from panel_schedule.executors import descendants, processes
from panel_schedule.executors.processes import ProcessExecutor, RemoteCall
from panel_schedule.functions.calls import PUBLISHED
from panel_schedule.serialize.errors import traceback_text

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def others():
    """Processes of other tests, a browser say, are nobody's business here."""
    _others.update(each.pid for each in psutil.Process().children())
    yield
    _others.clear()


@pytest.fixture
def executor():
    made = ProcessExecutor(2)
    yield made
    made.stop(0)
    assert not children()


@pytest.fixture
def quick(monkeypatch):
    """A short grace for what does not listen."""
    monkeypatch.setattr(processes, "GRACE", 0.3)


def send(executor, function, *args, name="Task 'sales'", **who) -> Future:
    future = executor.submit(RemoteCall(name, function, args, **who))
    executor.flush()
    return future


_others: set[int] = set()


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.pid not in _others]


def gone(pid: int) -> bool:
    """Whether a process is gone, or was at least killed: who reaps orphans may take a moment."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition, patience=PATIENCE) -> bool:
    limit = time.monotonic() + patience
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True


def descriptors() -> set[str]:
    """What is open in this process, by number; but for events, which libraries of other tests have, as ZeroMQ."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")
    return {each for each in found if "[event" not in each}


class Told:
    """What the function has published, for tests that wait for it."""

    def __init__(self):
        self.partials = []
        self._here = threading.Semaphore(0)

    def __call__(self, partial):
        self.partials.append(partial)
        self._here.release()

    def wait(self):
        assert self._here.acquire(timeout=PATIENCE)
        return self.partials[-1]


# ------------------------------------------------------------ what runs there


def test_a_function_runs_in_another_process(executor):
    """And its process is kept for the next one."""
    pids = {send(executor, os.getpid).result(PATIENCE) for _ in range(5)}

    assert os.getpid() not in pids
    assert 1 == len(pids)


def test_arguments_and_closures_travel(executor):
    """Positional, by keyword, and what a lambda closes over."""
    ten = 10
    remote_call = RemoteCall("Task 'sales'", lambda a, *, b: (a, b, ten), (1,), {"b": [2]})
    future = executor.submit(remote_call)
    executor.flush()

    assert (1, [2], 10) == future.result(PATIENCE)


def test_functions_of_the_setup_script_travel(executor):
    """Its module is not in sys.modules; its helpers and classes go along."""
    module = ModuleType("panel_setup_module")
    exec(
        "class Rate:\n    def __init__(self, value): self.value = value\n"
        "def helper(): return Rate(5)\ndef function(): return helper()",
        vars(module),
    )

    assert 5 == send(executor, module.function).result(PATIENCE).value


def test_a_decorated_function_travels(executor, tmp_path, monkeypatch):
    """Under its name the module has something else by then."""
    (tmp_path / "decorated.py").write_text("def function(): return 3\noriginal = function\nfunction = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import decorated

    assert 3 == send(executor, decorated.original).result(PATIENCE)


MODULE = """
import threading
class Made:
    def __init__(self, function): self.function = function
lock, loaded = threading.Lock(), []
@Made
def load():
    with lock:
        loaded.append(1)
        return len(loaded)
@Made
def fail():
    raise ValueError("here")
class Reader:
    @Made
    def rows(): return len(loaded)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that makes a module with decorated functions, under a name of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, source=MODULE):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return make


@pytest.mark.parametrize("wrap", [lambda f: f, functools.partial, lambda f: lambda: f()], ids=["", "partial", "nested"])
def test_a_decorated_function_is_its_modules_own(executor, module, wrap):
    """Its locks and what it has loaded are the module's, and stay there."""
    functions = module("own_module")
    counts = [send(executor, wrap(functions.load.function)).result(PATIENCE) for _ in range(2)]

    assert [1, 2] == counts
    assert 2 == send(executor, functions.Reader.rows.function).result(PATIENCE)
    assert [] == functions.loaded


def closure(error):
    def fails():
        def inner():
            raise error("here")

        inner()

    return fails


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (closure(ValueError), 'raise error("here")'),
        (lambda: int("here"), 'lambda: int("here")'),
        (lambda: [int(each) for each in ["here"]], "lambda: [int(each) for each in"),
    ],
    ids=["closure", "lambda", "comprehension"],
)
def test_a_traceback_names_the_file_and_the_line_of_what_travels_by_value(executor, function, line):
    """Of each frame, in every version of Python."""
    text = str(send(executor, function).exception(PATIENCE).__cause__)

    assert f'File "{__file__}", line' in text
    assert line in text
    assert "<dynamic-code>" not in text


def test_a_traceback_names_the_file_and_the_line_of_a_modules_function(executor, module):
    text = str(send(executor, module("failing_module").fail.function).exception(PATIENCE).__cause__)

    assert "failing_module.py" in text
    assert 'raise ValueError("here")' in text


CELL = """
def outer():
    def inner(): return 1 / 0  # here
    return inner()
"""


def entered(file: str) -> ModuleType:
    """What a notebook does with a cell, and Python 3.13.0 with what is typed at its prompt."""
    linecache.cache[file] = len(CELL), None, CELL.splitlines(True), file
    module = ModuleType("__main__")
    exec(compile(CELL, file, "exec"), vars(module))
    return module


def typed(file: str) -> ModuleType:
    """What later versions do at their prompt."""
    code = compile(CELL, file, "exec")
    linecache._register_code(code, CELL, file)
    module = ModuleType("__main__")
    exec(code, vars(module))
    return module


WITH_A_PROMPT = pytest.mark.skipif(not hasattr(linecache, "_getlines_from_code"), reason="Python before 3.13.1")


@pytest.mark.parametrize("made", [entered, pytest.param(typed, marks=WITH_A_PROMPT)])
def test_a_traceback_shows_the_lines_of_a_cell(executor, made):
    """They are in no file: the worker process is given them."""
    file = f"<{made.__name__} 7>"
    text = str(send(executor, made(file).outer).exception(PATIENCE).__cause__)

    assert f'File "{file}", line 4, in outer\n    return inner()\n' in text
    assert f'File "{file}", line 3, in inner\n    def inner(): return 1 / 0  # here\n' in text


def test_a_function_of_a_module_that_was_edited_since_is_the_servers(executor, module, tmp_path):
    """What runs is what the server has; it is restarted to get the new one."""
    functions = module("edited_module", MODULE + "@Made\ndef answer(): return 'old'\n")
    (tmp_path / "edited_module.py").write_text(MODULE + "@Made\ndef answer(): return 'newer'\n")

    assert "old" == send(executor, functions.answer.function).result(PATIENCE)


def test_a_function_of_a_module_that_cannot_be_imported_there_is_a_copy(executor, module, tmp_path, caplog):
    """The module and the cause are named, once."""
    functions = module("broken_module", MODULE + "@Made\ndef answer(): return 42\n")
    (tmp_path / "broken_module.py").write_text("raise OSError('the port is taken')\n")

    assert [42, 42] == [send(executor, functions.answer.function).result(PATIENCE) for _ in range(2)]
    said = [message for message in caplog.messages if "the port is taken" in message]
    assert 1 == len(said)
    assert "'broken_module'" in said[0]


def test_a_task_of_a_module_runs_there_by_reference(executor, module):
    """The worker registers it, and nothing ticks there."""
    source = (
        "import threading\nimport panel_schedule as ps\nlock = threading.Lock()\n"
        "@ps.schedule(period='1s', name='of a module')\ndef load():\n    return lock.acquire(False)\n"
        "@ps.memoize(name='of a module')\ndef answer(n=0):\n    return lock.acquire(False)\n"
        "@ps.background(name='of a module')\ndef job():\n    return lock.acquire(False)\n"
    )
    tasks = module("tasks_of_a_module", source)
    functions = [each.function for each in (tasks.load, tasks.answer, tasks.job)]
    try:
        assert [True, False, False] == [send(executor, function).result(PATIENCE) for function in functions]
    finally:
        ps.cancel_task("of a module")
        del ps._runtime.jobs["of a module"], ps._runtime.memos["of a module"]


def test_methods_and_partials_travel(executor):
    """As they do everywhere."""

    class Portfolio:
        def __init__(self, value):
            self.value = value

        def double(self):
            return 2 * self.value

    assert 8 == send(executor, Portfolio(4).double).result(PATIENCE)
    assert 1024 == send(executor, partial(pow, 2), 10).result(PATIENCE)


def test_an_instance_comes_back_as_one_of_its_class(executor):
    """Also of a class that travels by value."""

    class Rate:
        pass

    assert type(send(executor, Rate).result(PATIENCE)) is Rate


def test_what_is_on_the_servers_path_can_be_imported(executor, tmp_path, monkeypatch):
    """Also what came onto it after the worker was started."""
    send(executor, os.getpid).result(PATIENCE)
    (tmp_path / "latecomer.py").write_text("def function(): return __name__")
    monkeypatch.syspath_prepend(tmp_path)
    import latecomer

    assert "latecomer" == send(executor, latecomer.function).result(PATIENCE)


def test_a_module_of_the_app_can_be_imported(executor, tmp_path):
    """Bokeh has its folder on the path only while the app's script runs."""
    (tmp_path / "app_helpers").mkdir()
    (tmp_path / "app_helpers" / "__init__.py").write_text("from .rates import rate")
    (tmp_path / "app_helpers" / "rates.py").write_text("def rate(): return __name__")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import app_helpers

    def function():
        with contextlib.suppress(ModuleNotFoundError):
            import nowhere  # noqa: F401
        import app_helpers

        return app_helpers.rate()

    assert "app_helpers.rates" == send(executor, app_helpers.rate).result(PATIENCE)
    assert "app_helpers.rates" == send(executor, function).result(PATIENCE)


def test_an_async_function_runs_on_a_loop_of_the_worker(executor):
    """And is awaited."""

    async def function():
        await asyncio.sleep(0)
        return os.getpid()

    assert os.getpid() != send(executor, function).result(PATIENCE)


@pytest.mark.alone
def test_a_bare_worker_knows_neither_panel_nor_numpy(executor):
    """It starts in tens of milliseconds and takes tens of megabytes."""

    def function():
        import panel_schedule as ps

        ps.progress(1, 2)
        list(ps.track([1]))
        heavy = {"panel", "bokeh", "numpy", "pandas"} & set(sys.modules)
        return heavy, ps.current_run().state, ps.RunState.RUNNING, ps.errors.RunFailed.__name__

    started = time.monotonic()
    future = send(executor, function)

    assert (set(), "running", "running", "RunFailed") == future.result(PATIENCE)
    assert time.monotonic() - started < 2
    memory = psutil.Process(send(executor, os.getpid).result(PATIENCE)).memory_info().rss
    assert memory < 60e6


def test_the_whole_package_is_there_for_who_asks(executor):
    """In the very module that the light names came from."""

    def function():
        import panel_schedule as ps

        before = ps, ps.progress, ps.schedule, ps.config
        ps.JobPanel  # noqa: B018
        import panel_schedule as again

        there = again, again.progress, again.schedule, again.config
        return before == there, "panel" in sys.modules, repr(ps.store)

    assert (True, True, "<store of the server>") == send(executor, function).result(30)


def test_a_worker_inherits_nothing(executor):
    """No descriptor, no signal handler; a process group of its own in the server's session; nice."""
    listening = __import__("socket").create_server(("127.0.0.1", 0))
    os.set_inheritable(listening.fileno(), True)

    def function():
        sockets = 0
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # of the listing itself
                sockets += os.readlink(f"/proc/self/fd/{fd}").startswith("socket")
        return sockets, os.getpgrp() == os.getpid(), os.getsid(0), os.nice(0), os.readlink("/proc/self/fd/0")

    try:
        sockets, leads, session, nice, stdin = send(executor, function).result(PATIENCE)
    finally:
        listening.close()
    assert (1, True, os.getsid(0), 19, "/dev/null") == (sockets, leads, session, nice, stdin)


# ------------------------------------------------------------ the run there


def test_the_run_is_known_there(executor):
    """Its id, key, attempt and task."""
    run = Run("sales", NOW, NOW)
    run.attempt = 3

    def function():
        import panel_schedule as ps

        run = ps.current_run()
        return run.id, run.key, run.attempt, run.task

    assert (run.id, NOW, 3, "sales") == send(executor, function, run=run).result(PATIENCE)


def test_begin_comes_before_the_function(executor, tmp_path):
    """In the server; what it raises is how the body ends, and the function does not run."""
    trace = tmp_path / "trace"

    def refuse():
        raise RunCancelled("no")

    future = send(executor, trace.touch, begin=refuse)

    assert isinstance(future.exception(PATIENCE), RunCancelled)
    assert not trace.exists()
    assert 1 == send(executor, lambda: 1).result(PATIENCE)


def test_partials_arrive_in_order(executor):
    """Of a generator, of an async one, and published by hand."""

    def items():
        yield from range(100)

    async def aitems():
        for number in range(100):
            yield number

    def by_hand():
        import panel_schedule as ps

        for number in range(100):
            ps.current_run().publish(number)

    got = [], [], []
    pairs = zip([items, aitems, by_hand], got, strict=True)
    results = [send(executor, function, receive=own.append).result(PATIENCE) for function, own in pairs]

    assert [PUBLISHED, PUBLISHED, None] == results
    assert ([*range(100)],) * 3 == got


def test_what_a_generator_returns_is_its_result(executor):
    """None without any item is a result as well."""

    def returns():
        yield 1
        return 2

    def nothing():
        yield from ()

    assert [2, None] == [send(executor, f, receive=id).result(PATIENCE) for f in (returns, nothing)]


def test_a_slow_receiver_slows_the_function_down(executor):
    """Nothing piles up."""
    ahead, release = [], threading.Event()

    def items(path):
        for number in range(20):
            with open(path, "w") as file:
                file.write(str(number))
            yield number

    path = f"/tmp/panel-schedule-{os.getpid()}"

    def receive(number):
        release.wait(0.01)
        ahead.append(int(Path(path).read_text()) - number)

    assert PUBLISHED is send(executor, items, path, receive=receive).result(PATIENCE)
    os.unlink(path)
    assert max(ahead) <= 1


def test_a_refused_partial_closes_the_generator(executor, tmp_path):
    """What the receiver raised is how the body ends, and the cleanup code runs."""
    trace = tmp_path / "trace"

    def items():
        try:
            yield 1
        finally:
            trace.touch()

    def receive(_):
        raise RunFenced("too late")

    error = send(executor, items, receive=receive).exception(PATIENCE)

    assert (RunFenced, "too late", True) == (type(error), str(error), trace.exists())


def test_a_refused_partial_is_raised_where_it_was_published(executor):
    """The function may catch it."""

    def function():
        import panel_schedule as ps

        try:
            ps.current_run().publish(1)
        except ps.errors.RunFenced:
            return "caught"

    def receive(_):
        raise RunFenced("too late")

    assert "caught" == send(executor, function, receive=receive).result(PATIENCE)


@pytest.mark.alone
def test_progress_is_coalesced_and_the_last_one_arrives_before_the_result(executor):
    """However often the function reports."""
    run, told = Run("sales", NOW, NOW), []
    run._changed = lambda: told.append((run.percent, run.message))

    def function():
        import panel_schedule as ps

        started = time.perf_counter()
        for number in range(50_000):
            ps.progress(number + 1, 50_000, f"{number}")
        return (time.perf_counter() - started) / 50_000

    future = send(executor, function, run=run)
    at_the_end = []
    future.add_done_callback(lambda _: at_the_end.append(told[-1]))

    assert future.result(PATIENCE) < 50e-6
    assert (100, "49999") == told[-1]
    assert len(told) < 60
    assert eventually(lambda: at_the_end == [(100, "49999")])


def test_progress_reaches_the_run_while_the_function_works(executor):
    """Within a moment."""
    run, half = Run("sales", NOW, NOW), threading.Event()
    run._changed = lambda: half.set() if run.percent == 50 else None

    def function():
        import panel_schedule as ps

        ps.progress(1, 2)
        ps.current_run().publish("reported")

    send(executor, function, run=run, receive=lambda _: half.wait(2) or time.sleep(1)).result(PATIENCE)

    assert half.is_set()


# ------------------------------------------------------------ what it reads


class Server:
    """Answers as a scheduler does."""

    def __init__(self):
        self.names = {"rates": 1}

    def __call__(self, kind, *args):
        match kind, args:
            case "task", (name,):
                return {"sales": 7}[name]
            case "get", (name,):
                return self.names[name]
            case "set", (name, value):
                self.names[name] = value
            case "delete", (name,):
                del self.names[name]
            case "names", ():
                return list(self.names)


def make_task(name="sales"):
    from panel_schedule.functions.task import Policy, Task
    from panel_schedule.triggers import Every

    return Task(name, lambda: 0, Policy(Every("1h")), host=None)


def test_a_function_reads_tasks_of_the_server(executor):
    """By their names in its code; threads of its own may too."""
    sales = make_task()

    def function():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            return sales(), [future.result() for future in [pool.submit(sales) for _ in range(20)]], repr(sales)

    got = send(executor, function, answer=Server()).result(PATIENCE)

    assert (7, [7] * 20, "<Task 'sales' of the server>") == got


def test_a_function_reads_and_writes_the_store(executor):
    """``ps.store`` is a mapping there too."""

    def function():
        import panel_schedule as ps

        ps.store["weights"] = ps.store["rates"] + 1
        del ps.store["rates"]
        return ps.store.get("rates"), "weights" in ps.store, dict(ps.store), len(ps.store)

    server = Server()

    assert (None, True, {"weights": 2}, 1) == send(executor, function, answer=server).result(PATIENCE)
    assert {"weights": 2} == server.names


def test_the_store_may_be_used_by_its_own_name(executor):
    """``from panel_schedule import store``; what comes back is the real one again."""
    from panel_schedule import store

    assert store is send(executor, lambda: (store["rates"], store)[1], answer=Server()).result(PATIENCE)


def test_everything_else_of_a_task_is_refused_there(executor):
    """With the remedy."""
    sales = make_task()
    error = send(executor, lambda: sales.refresh()).exception(PATIENCE)

    assert isinstance(error, AttributeError)
    assert "'refresh' of task 'sales' is the server's" in str(error)
    assert "Do the rest in the server" in str(error)


def test_a_task_that_comes_back_is_looked_up_by_its_name(executor):
    """One that nobody knows here is a clear error."""
    sales = make_task("nobody knows it")
    error = send(executor, lambda: sales).exception(PATIENCE)

    assert "this process has none of that name" in str(error)


def test_the_objects_of_an_imported_module_ask_the_server(executor, module):
    """They are what a pickled one is there, and their functions are the plain ones."""
    tasks = module(
        "real_tasks",
        "import panel_schedule as ps\n"
        "ps.config.timezone = ps.config.timezone\n"
        "@ps.schedule('1h', first_run='skip', name='sales', retry=ps.Retry(2))\n"
        "def sales(): return 'computed here'\n"
        "@ps.schedule(after=sales)\n"
        "def report() -> ps.Task[int]: return sales(), sales.function(), sales is ps.tasks['sales']\n"
        "@ps.memoize(ttl='1h')\n"
        "def filtered(x): return 'computed here'\n"
        "@ps.memoize\n"
        "async def awaited(x): return 'computed here'\n"
        "@ps.background\n"
        "def job(x):\n"
        "    'Its text.'\n"
        "    return 'computed here'\n"
        "ps.on('failed', print)\n"
        "def look():\n"
        "    import asyncio\n"
        "    return (filtered(1), filtered.function(1), asyncio.run(awaited(2)), job(3), job.submit(3).id,\n"
        "            job.__name__, job.__doc__, isinstance(sales, ps.Task), ps.config.timezone)\n"
        "def refresh(): return sales.refresh()\n"
        "def objects(): return sales, filtered, job\n",
    )

    def answer(kind, *question):
        return {"task": 7, "memo": question[1:], "submit": "id"}[kind]

    try:
        assert (7, "computed here", True) == send(executor, tasks.report.function, answer=answer).result(PATIENCE)
        found = send(executor, tasks.look, answer=answer).result(PATIENCE)
        expected = (((1,), {}),), "computed here", (((2,), {}),), "computed here", "id", "job", "Its text.", True
        assert (*expected, ps.config.timezone) == found
        objects = tasks.sales, tasks.filtered, tasks.job
        assert objects == send(executor, tasks.objects).result(PATIENCE)
        error = send(executor, tasks.refresh).exception(PATIENCE)
        assert isinstance(error, ScheduleError)
        assert "Do the rest in the server" in str(error)
    finally:
        forget(tasks.sales, tasks.report, tasks.filtered, tasks.awaited, tasks.job)


def forget(*objects):
    for each in objects:
        for known in (ps._runtime.tasks._tasks, ps._runtime.jobs, ps._runtime.memos):
            if known.get(each.name) is each:
                ps.cancel_task(each.name) if isinstance(each, ps.Task) else known.pop(each.name)


def test_a_module_with_tasks_is_imported_without_panel(executor, module):
    """The first function of a fresh worker waits for what it uses, and not for the package."""
    tasks = module(
        "light_tasks",
        "import sys\n"
        "import panel_schedule as ps\n"
        "from panel_schedule.errors import ScheduleError\n"
        "from panel_schedule.triggers import Every\n"
        "ps.config.max_processes = 2\n"
        "@ps.schedule(Every('1h'), first_run='skip', name='light')\n"
        "def light(): return {'panel', 'bokeh', 'numpy', 'param'} & set(sys.modules)\n"
        "@ps.memoize(name='light', after=light)\n"
        "def answer() -> ps.Entry | None: pass\n"
        "@ps.background(name='light', retry=ps.Retry(max_attempts=2))\n"
        "def job(): pass\n",
    )
    try:
        assert set() == send(executor, tasks.light.function).result(PATIENCE)
    finally:
        forget(tasks.light, tasks.answer, tasks.job)


# ------------------------------------------------------------ values


@pytest.mark.alone
def test_a_large_result_arrives_without_a_copy(executor):
    """As memory that both processes map."""

    def function():
        import numpy as np

        return np.ones(40_000_000)

    before = psutil.Process().memory_full_info().uss
    future = send(executor, function)
    wait([future], PATIENCE)
    started = time.perf_counter()
    value = future.result()
    grown = psutil.Process().memory_full_info().uss - before

    assert 40_000_000 == value.shape[0]
    assert 1 == value[-1]
    assert time.perf_counter() - started < 0.1
    assert grown < 50e6
    value[0] = 5
    assert 5 == value[0]


def test_large_arguments_and_partials_travel_too(executor):
    """Both ways."""
    array, got = np.arange(1_000_000), []

    def items(array):
        yield array + 1
        return array.sum()

    assert array.sum() == send(executor, items, array, receive=got.append).result(PATIENCE)
    assert (got[0] == array + 1).all()


def test_an_argument_that_cannot_travel_is_named(executor):
    """Job, argument, type, path and remedy."""

    def function(frame, scale):
        pass

    remote_call = RemoteCall("Job 'optimise'", function, ({"deep": [threading.Lock()]}, 1))
    with pytest.raises(ValueRefused) as refused:
        remote_call.pack()

    for part in ("Job 'optimise': argument 'frame'", "value['deep'][0]", "_thread.lock", "Pass plain data"):
        assert part in str(refused.value)
    assert "argument 'frame'" in str(send(executor, function, threading.Lock(), 1).exception(PATIENCE))


def test_what_in_a_function_cannot_travel_is_named(executor):
    """Its closure, or a global that it uses."""
    connection = threading.Lock()
    script = {"__name__": "panel_setup_module", "lock": connection}
    exec("def function():\n    return lock", script)

    closes = send(executor, lambda: connection).exception(PATIENCE)
    uses = send(executor, script["function"]).exception(PATIENCE)

    assert "'connection', which its function closes over" in str(closes)
    assert "global 'lock', which its function uses" in str(uses)


def test_a_result_that_cannot_travel_is_refused(executor):
    """The old value stays: task, type and path (11)."""

    def function():
        return {"locks": [threading.Lock()]}

    error = send(executor, function).exception(PATIENCE)

    assert isinstance(error, ValueRefused)
    for part in ("Task 'sales'", "value['locks'][0]", "_thread.lock"):
        assert part in str(error)


def test_a_result_of_what_is_unknown_here_is_named(executor):
    """It pickles there, and does not unpickle here."""

    def function():
        import types

        module = types.ModuleType("only_there")
        exec("class Thing: pass", vars(module))
        sys.modules["only_there"] = module
        return module.Thing()

    error = send(executor, function).exception(PATIENCE)

    assert isinstance(error, ValueUnreadable)
    assert "Task 'sales'" in str(error)
    assert "only_there" in str(error)


# ------------------------------------------------------------ errors


def test_an_error_keeps_its_type_traceback_and_notes(executor):
    """The traceback from the function on, as text."""

    def function():
        error = ZeroDivisionError("mine")
        error.add_note("a note")
        raise error

    error = send(executor, function).exception(PATIENCE)

    assert (ZeroDivisionError, ("mine",), ["a note"]) == (type(error), error.args, error.__notes__)
    text = traceback_text(error)
    assert text.startswith("Traceback")
    assert "raise error" in text
    assert "executors" not in text


def test_an_error_that_does_not_pickle_is_told(executor):
    """Neither here nor there."""

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    class Locked(Exception):
        lock = None

    def unpickles_not():
        raise Odd("a", "b")

    def pickles_not():
        error = Locked("c")
        error.lock = threading.Lock()
        raise error

    for function, line in ((unpickles_not, "Odd: a b"), (pickles_not, "Locked: c")):
        error = send(executor, function).exception(PATIENCE)
        assert isinstance(error, RunFailed)
        assert line in str(error)
        assert function.__name__ in traceback_text(error)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_ends_an_interpreter_ends_the_function_only(executor, kind):
    """The worker lives on."""

    def function():
        raise kind("x")

    pid = send(executor, os.getpid).result(PATIENCE)
    assert type(send(executor, function).exception(PATIENCE)) is kind
    assert pid == send(executor, os.getpid).result(PATIENCE)


def test_memory_that_cannot_be_had_is_an_ordinary_error(executor):
    """And no crash."""

    def function():
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        return bytearray(2**31)

    assert isinstance(send(executor, function).exception(PATIENCE), MemoryError)


@pytest.mark.parametrize(
    ("die", "how"),
    [
        (lambda: os._exit(7), "exit code 7"),
        (lambda: os._exit(0), "exit code 0"),
        (lambda: os.kill(os.getpid(), 9), "SIGKILL"),
        (lambda: __import__("ctypes").string_at(0), "SIGSEGV"),
        (lambda: os.abort(), "SIGABRT"),
    ],
)
def test_a_process_that_dies_is_a_crash(executor, die, how):
    """The error names task, cause and remedy; the next body has a new process."""
    error = send(executor, die).exception(PATIENCE)

    assert isinstance(error, RunCrashed)
    assert "Task 'sales'" in str(error)
    assert how in str(error)
    assert 1 == send(executor, lambda: 1).result(PATIENCE)


def test_a_crash_takes_the_children_along(executor):
    """Also those that were forked, and hold what their parent held."""
    told = Told()

    def function():
        import panel_schedule as ps

        if (forked := os.fork()) == 0:
            time.sleep(600)
        started = subprocess.Popen(["sleep", "600"])
        ps.current_run().publish([forked, started.pid])
        os._exit(1)

    error = send(executor, function, receive=told).exception(PATIENCE)

    assert isinstance(error, RunCrashed)
    assert all(eventually(partial(gone, pid)) for pid in told.partials[0])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be asked for them")
@pytest.mark.parametrize("killed", [True, False])
def test_a_crash_takes_along_children_in_sessions_of_their_own(executor, killed):
    """They are known by what they have inherited: their parent is gone."""
    told = Told()

    def function():
        import panel_schedule as ps

        child = subprocess.Popen(["sh", "-c", "sleep 60; true"], start_new_session=True)
        ps.current_run().publish(child.pid)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)

    error = send(executor, function, receive=told).exception(PATIENCE)

    assert isinstance(error, RunCrashed)
    assert eventually(partial(gone, told.partials[0]))


@pytest.fixture
def left_behind():
    """A process that a worker has left behind, in a session of its own: itself, and what it has inherited."""
    mark = uuid4().hex
    child = subprocess.Popen(["sleep", "60"], env=os.environ | {descendants.MARK: mark}, start_new_session=True)
    yield child, mark
    child.kill()
    child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be asked for them")
@pytest.mark.parametrize("before", [b"0", None])
def test_a_child_that_is_about_to_be_another_program_is_waited_for(left_behind, monkeypatch, before):
    """For some milliseconds of ``execve`` it has no environment; `before` is that what its stat says of it then."""
    child, mark = left_behind
    folder, looks = f"/proc/{child.pid}/", 0

    def early(path, mode):
        nonlocal looks
        looks += path == folder + "environ"
        if not path.startswith(folder) or looks > 1:
            return open(path, mode)
        if path.endswith("environ"):
            return BytesIO()
        *fields, start, end, status = Path(path).read_bytes().split(b" ")
        return BytesIO(b" ".join((*fields, before or start, before or end, status)))

    monkeypatch.setattr(descendants, "open", early, raising=False)
    descendants.kill_descendants(reaped(), mark)

    assert -signal.SIGKILL == child.wait(PATIENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be asked for them")
def test_a_child_of_a_process_that_ends_meanwhile_is_found(left_behind, monkeypatch):
    """As that of a daemon, which is made after the processes were listed, and before its parent was looked at."""
    child, mark = left_behind
    ended, listed = reaped(), os.listdir("/proc")
    lists = [[str(ended), *(each for each in listed if each != str(child.pid))]]
    monkeypatch.setattr(descendants.os, "listdir", lambda path: lists.pop() if lists else [str(child.pid)])

    descendants.kill_descendants(ended, mark)

    assert -signal.SIGKILL == child.wait(PATIENCE)


def reaped() -> int:
    """The number of a process that is there no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_an_idle_process_that_was_killed_is_replaced(executor):
    """No body pays for it."""
    pid = send(executor, os.getpid).result(PATIENCE)
    os.kill(pid, signal.SIGKILL)
    assert eventually(partial(gone, pid))

    assert pid != send(executor, os.getpid).result(PATIENCE)


def test_an_interpreter_that_does_not_start_is_an_error(executor, monkeypatch):
    """And no endless loop."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    error = send(executor, lambda: 1).exception(PATIENCE)
    assert isinstance(error, RunCrashed)
    assert "/nowhere/python" in str(error)

    monkeypatch.setattr(sys, "executable", "/bin/false")
    error = send(executor, lambda: 1).exception(PATIENCE)
    assert isinstance(error, RunCrashed)
    assert "exit code 1 before it could begin" in str(error)


# ------------------------------------------------------------ cancel


def make_asleep():
    def asleep(path):
        import panel_schedule as ps

        try:
            ps.current_run().publish(os.getpid())
            time.sleep(600)
        finally:
            Path(path).touch()

    return asleep


# It travels by value: a worker need not import this file, and Panel with it.
asleep = make_asleep()


@pytest.mark.alone
def test_cancel_interrupts_the_function_and_its_cleanup_code_runs(executor, tmp_path):
    """At once (18); the process is replaced."""
    told, trace = Told(), tmp_path / "trace"
    future = send(executor, asleep, trace, receive=told)
    pid = told.wait()
    started = time.monotonic()

    assert not future.cancel()
    error = future.exception(PATIENCE)

    assert isinstance(error, RunCancelled)
    assert trace.exists()
    assert time.monotonic() - started < processes.GRACE / 2
    assert gone(pid)
    assert pid != send(executor, os.getpid).result(PATIENCE)


def test_what_ignores_its_cancel_is_killed_with_its_children(executor, quick):
    """After the grace."""
    told = Told()

    def function():
        import panel_schedule as ps

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        ps.current_run().publish([os.getpid(), child.pid])
        while True:
            time.sleep(1)

    future = send(executor, function, receive=told)
    pids = told.wait()
    future.cancel()

    assert isinstance(future.exception(PATIENCE), RunCancelled)
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be asked for them")
@pytest.mark.parametrize("daemon", [False, True])
def test_children_in_sessions_of_their_own_die_with_a_cancelled_run(executor, quick, tmp_path, daemon):
    """Also those whose parent is gone, as a daemon's is."""
    sleeps = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    forks = "import os, sys; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0);" + sleeps
    path = tmp_path / "pid"

    def function(code, path):
        subprocess.Popen([sys.executable, "-c", code, path], start_new_session=True).wait()
        time.sleep(60)

    future = send(executor, function, forks if daemon else sleeps, str(path))
    limit = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.005)
    child = psutil.Process(int(path.read_text()))
    future.cancel()
    with pytest.raises(RunCancelled):
        future.result(PATIENCE)
    assert psutil.wait_procs([child], timeout=PATIENCE)[1] == []


def test_a_function_may_catch_its_cancel(executor):
    """Then its result counts."""
    told = Told()

    def function():
        import panel_schedule as ps

        try:
            ps.current_run().publish(1)
            time.sleep(600)
        except ps.errors.RunCancelled:
            return ps.current_run().cancelled

    future = send(executor, function, receive=told)
    told.wait()
    future.cancel()

    assert future.result(PATIENCE) is True


def test_an_async_function_is_cancelled_as_one(executor, tmp_path):
    """It may await in its cleanup code."""
    told, trace = Told(), tmp_path / "trace"

    async def function():
        import panel_schedule as ps

        try:
            ps.current_run().publish(1)
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            trace.touch()

    future = send(executor, function, receive=told)
    told.wait()
    future.cancel()

    assert isinstance(future.exception(PATIENCE), RunCancelled)
    assert trace.exists()


def test_cancel_reaches_what_waits_for_an_answer(executor, tmp_path):
    """A function that reads a task which is not there yet."""
    trace, asked, release, sales = tmp_path / "trace", threading.Event(), threading.Event(), make_task()

    def function():
        try:
            sales()
        finally:
            trace.touch()

    def answer(*_):
        asked.set()
        release.wait(PATIENCE)

    future = send(executor, function, answer=answer)
    assert asked.wait(PATIENCE)
    future.cancel()

    assert eventually(trace.exists)
    release.set()
    assert isinstance(future.exception(PATIENCE), RunCancelled)


def test_cancel_while_the_process_starts(executor, tmp_path):
    """The function does not run."""
    trace = tmp_path / "trace"
    future = send(executor, trace.touch)
    eventually(future.running)
    future.cancel()

    assert isinstance(future.exception(PATIENCE), RunCancelled)
    assert not trace.exists()


def test_a_cancel_never_meets_another_body(executor):
    """Three hundred times, at every moment of a body's life."""
    chance = random.Random(1)
    for number in range(300):
        victim = send(executor, lambda number=number: number)
        other = send(executor, lambda number=number: -number)
        if chance.random() < 0.9:
            limit = time.perf_counter() + chance.random() * 0.0005
            while time.perf_counter() < limit:
                pass
        else:
            wait([victim], PATIENCE)
        victim.cancel()
        assert -number == other.result(PATIENCE)
        wait([victim], PATIENCE)
        assert victim.cancelled() or isinstance(victim.exception(0), RunCancelled) or victim.result(0) == number


# ------------------------------------------------------------ many, and the end


def test_five_hundred_bodies_from_eight_threads(executor):
    """Each is answered with its own."""
    futures = [[] for _ in range(8)]

    def submitter(number):
        futures[number] += [send(executor, lambda n=n: n) for n in range(number, 500, 8)]

    threads = [threading.Thread(target=submitter, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert list(range(500)) == sorted(future.result(PATIENCE) for own in futures for future in own)
    assert len(children()) <= 2


def test_at_most_so_many_run_at_once_and_a_lent_place_lets_in_another(executor):
    """A reader that waits in a worker lets in what it waits for."""
    there, sales = threading.Event(), make_task()

    def answer(*_):
        with executor.lend():
            return there.wait(PATIENCE)

    readers = [send(executor, lambda: sales(), answer=answer) for _ in range(2)]
    send(executor, lambda: 1).add_done_callback(lambda _: there.set())

    assert [True, True] == [reader.result(PATIENCE) for reader in readers]
    assert eventually(lambda: len(children()) <= 2)


def test_nothing_leaks(executor):
    """No descriptor, thread, process or zombie, also with errors, crashes, cancels and large values."""
    me = psutil.Process()

    def bodies(count):
        for _ in range(count):
            send(executor, lambda: np.ones(20_000)).result(PATIENCE)
            send(executor, lambda: 1 / 0).exception(PATIENCE)
        send(executor, lambda: os._exit(1)).exception(PATIENCE)
        future = send(executor, time.sleep, 600)
        eventually(future.running)
        future.cancel()
        future.exception(PATIENCE)

    bodies(2)
    gc.collect()
    before, there = me.num_fds(), descriptors()
    bodies(100)
    gc.collect()
    # Those of the worker that was cancelled last are just being closed, and its successor's are there.
    assert eventually(lambda: me.num_fds() <= before + 4)
    assert len(children()) <= 2
    executor.stop(1)
    gc.collect()
    assert not children()
    assert eventually(lambda: not descriptors() - there), descriptors() - there
    assert eventually(lambda: not [t for t in threading.enumerate() if t.name == "panel-schedule-stop"])


def test_stop_lets_what_runs_end_by_itself(executor, tmp_path):
    """Within the grace."""
    told, trace = Told(), tmp_path / "go"

    def function():
        import panel_schedule as ps

        ps.current_run().publish(1)
        while not trace.exists():
            time.sleep(0.005)
        return "ended"

    future = send(executor, function, receive=told)
    told.wait()
    threading.Timer(0.05, trace.touch).start()
    executor.stop(PATIENCE)

    assert "ended" == future.result(0)
    assert not children()


@pytest.mark.alone
def test_stop_ends_what_does_not_end(executor, tmp_path):
    """First with its cleanup code, then by force."""
    told, trace = Told(), tmp_path / "trace"
    gentle = send(executor, asleep, trace, receive=told)

    def stubborn():
        import panel_schedule as ps

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ps.current_run().publish(1)
        time.sleep(600)

    hard = send(executor, stubborn, receive=told)
    told.wait(), told.wait()
    started = time.monotonic()
    executor.stop(0)

    assert time.monotonic() - started < 2
    assert isinstance(gentle.exception(0), RunCancelled)
    assert isinstance(hard.exception(0), RunCancelled)
    assert trace.exists()
    assert not children()


class Packed:
    """An argument that takes its time to be pickled."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __reduce__(self):
        self.begun.set()
        assert self.go.wait(PATIENCE)
        return int, ()


def test_what_is_still_packed_at_the_stop_leaves_no_worker_behind(executor):
    slow = Packed()
    future = send(executor, lambda given: given, slow)
    assert slow.begun.wait(PATIENCE)

    executor.stop(0)
    slow.go.set()

    with pytest.raises(RunCancelled):
        future.result(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while children():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.alone
def test_hurry_ends_a_stop_that_waits(executor):
    """Nothing is left behind all the same."""
    told = Told()

    def function():
        import panel_schedule as ps

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ps.current_run().publish(1)
        time.sleep(600)

    send(executor, function, receive=told)
    told.wait()
    threading.Timer(0.05, executor.hurry).start()
    started = time.monotonic()
    executor.stop(60)

    assert time.monotonic() - started < 5
    assert eventually(lambda: not children())


PARENT = """
import os, subprocess, sys, time
from panel_schedule.executors.processes import RemoteCall, ProcessExecutor

def function():
    import panel_schedule as ps
    child = subprocess.Popen(["sleep", "600"])
    forked = os.fork()
    if not forked:
        time.sleep(600)
    ps.current_run().publish([os.getpid(), child.pid, forked])
    {busy}

def receive(pids):
    print(*pids, flush=True)

executor = ProcessExecutor(1)
executor.submit(RemoteCall("Task 'sales'", function, receive=receive))
executor.flush()
if {forks} and os.fork() == 0:
    time.sleep(5)
    os._exit(0)
sys.stdin.read()
"""


@pytest.mark.parametrize("busy", ["time.sleep(600)", "sum(range(10**12))"], ids=["asleep", "holding the interpreter"])
@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "exit"])
def test_no_process_survives_the_server(busy, kill):
    """Neither the worker nor its children, however the server ends."""
    script = PARENT.format(busy=busy, forks=False)
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert 3 == len(pids)
    if kill:
        parent.kill()
    parent.communicate(timeout=PATIENCE)

    assert all(eventually(partial(gone, pid)) for pid in pids)


def test_a_forked_child_of_the_server_keeps_no_worker_alive():
    """A user's own pool, say."""
    script = PARENT.format(busy="time.sleep(600)", forks=True)
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait(PATIENCE)

    assert all(eventually(partial(gone, pid), 3) for pid in pids)
    parent.stdin.close()
    parent.stdout.close()


def test_a_remote_call_runs_here_too():
    """As an ordinary body."""
    got = []

    def items():
        yield 1
        yield 2

    assert PUBLISHED is RemoteCall("Task 'sales'", items, receive=got.append)()
    assert [1, 2] == got


def leave_behind(what):
    import gc
    import io
    import logging
    import socket
    import threading
    import warnings

    match what:
        case "folder":
            os.chdir("/")
        case "environment":
            os.environ["REGION"], os.environ["TZ"] = "north", "Asia/Tokyo"
            del os.environ["PATH"]
            time.tzset()
        case "umask":
            os.umask(0o777)
        case "alarm":
            signal.alarm(1)
        case "timer":
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
        case "handler":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        case "mask":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        case "output":
            sys.stdout = sys.stderr = io.StringIO()
        case "arguments":
            sys.argv[:] = ["a"]
        case "hook":
            sys.excepthook = threading.excepthook = lambda *_: None
        case "limit":
            resource.setrlimit(resource.RLIMIT_NOFILE, (99, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        case "recursion":
            sys.setrecursionlimit(77)
            gc.disable()
            socket.setdefaulttimeout(1)
        case "warnings":
            warnings.simplefilter("error")
        case "logging":
            logging.getLogger("mine").addHandler(logging.NullHandler())
            logging.getLogger().setLevel(1)
            logging.disable(50)


def look_around():
    import gc
    import logging
    import socket
    import threading
    import warnings

    mask = os.umask(0)
    os.umask(mask)
    loggers = [(each.handlers[:], each.level) for each in (logging.getLogger(), logging.getLogger("mine"))]
    return [
        os.getcwd(), dict(os.environ), time.localtime(0)[:6], mask, signal.getitimer(signal.ITIMER_REAL)[0],
        signal.getitimer(signal.ITIMER_VIRTUAL)[0], signal.getsignal(signal.SIGUSR1),
        repr(signal.getsignal(signal.SIGTERM))[:30], signal.pthread_sigmask(signal.SIG_BLOCK, []),
        repr(sys.stdout), repr(sys.stderr), sys.argv, sys.excepthook is sys.__excepthook__,
        threading.excepthook is threading.__excepthook__, resource.getrlimit(resource.RLIMIT_NOFILE),
        sys.getrecursionlimit(), gc.isenabled(), socket.getdefaulttimeout(), repr(warnings.filters), repr(loggers),
        logging.root.manager.disable,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def warm():
    """One process for many tests: what this file imports takes it longer than most of what they do."""
    made = ProcessExecutor(1)
    yield made
    made.stop(0)


@pytest.mark.parametrize(
    "what",
    ["folder", "environment", "umask", "alarm", "timer", "handler", "mask", "output", "arguments", "hook", "limit",
     "recursion", "warnings", "logging"],
)  # fmt: skip
def test_nothing_of_a_run_meets_the_next(warm, what):
    """In the same process, which stays warm."""
    before, pid = send(warm, look_around).result(PATIENCE), send(warm, os.getpid).result(PATIENCE)
    send(warm, leave_behind, what).result(PATIENCE)
    assert before == send(warm, look_around).result(PATIENCE)
    assert pid == send(warm, os.getpid).result(PATIENCE)


@pytest.mark.parametrize("number", [1, 2])
def test_what_cannot_be_put_back_costs_the_process(number):
    def function(number):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return os.getpid()

    executor = ProcessExecutor(1)
    try:
        assert send(executor, function, number).result(PATIENCE) != send(executor, os.getpid).result(PATIENCE)
    finally:
        executor.stop(0)


# ------------------------------------------------------------ what is logged there


class Kept(logging.Handler):
    """The records that a logger has handled, and their lines."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.setFormatter(logging.Formatter("FMT %(name)s %(levelname)s %(message)s"))

    def emit(self, record):
        self.records.append(record)

    @property
    def lines(self):
        return [self.format(record) for record in self.records]


@pytest.fixture
def kept():
    """What reaches the handler of the server's logger "shop", whose level is INFO."""
    logger, handler = logging.getLogger("shop"), Kept()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.handlers[:], logger.filters[:], logger.propagate = [], [], True
    logger.setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)


def make_log_once():
    def log_once(name="shop.orders", level=logging.INFO):
        logging.getLogger(name).log(level, "order %d of %s", 7, "Ann")

    return log_once


# It travels by value: a worker need not import this file.
log_once = make_log_once()


def test_what_is_logged_meets_the_servers_loggers(executor, kept):
    """Name, level, message, place and process are the record's own, the format is the handler's."""
    pid = send(executor, os.getpid).result(PATIENCE)
    send(executor, log_once).result(PATIENCE)
    send(executor, log_once, "shop.orders", logging.DEBUG).result(PATIENCE)

    assert ["FMT shop.orders INFO order 7 of Ann"] == kept.lines
    (record,) = kept.records
    assert (pid, "log_once", __file__) == (record.process, record.funcName, record.pathname)


@pytest.mark.parametrize("kind", ["async", "generator", "thread"])
def test_whatever_kind_of_function_logs(executor, kept, kind):
    async def asynchronous():
        log_once()

    def generator():
        yield 1
        log_once()

    def in_a_thread():
        thread = threading.Thread(target=log_once)
        thread.start()
        thread.join()

    functions = {"async": asynchronous, "generator": generator, "thread": in_a_thread}
    send(executor, functions[kind]).result(PATIENCE)

    assert ["FMT shop.orders INFO order 7 of Ann"] == kept.lines


def test_an_error_is_logged_with_its_traceback(executor, kept):
    """As text: nothing of it is unpickled in the server."""

    def function():
        try:
            raise OSError("no such shop")
        except OSError:
            logging.getLogger("shop").exception("failed", stack_info=True)

    send(executor, function).result(PATIENCE)

    (line,) = kept.lines
    assert line.startswith("FMT shop ERROR failed\nTraceback")
    assert "OSError: no such shop" in line
    assert "in function" in kept.records[0].stack_info


def test_what_is_added_to_a_record_comes_along(executor, kept):
    """Data as they are, anything else as text."""

    class Customer:
        def __str__(self):
            return "Ann"

    def function():
        added = {"who": Customer(), "count": 3, "tags": ["a", Customer()], "by": {1: None}}
        logging.getLogger("shop").info(Customer(), extra=added)

    send(executor, function).result(PATIENCE)

    (record,) = kept.records
    assert ("Ann", "Ann", 3, ["a", "Ann"], {"1": None}) == (
        record.msg, record.who, record.count, record.tags, record.by
    )  # fmt: skip


def test_a_message_that_cannot_be_made_ends_nothing(executor, kept, capfd):
    """The place is named, as Python does."""

    def function():
        logging.getLogger("shop").info("%d %d", 1)
        endless = []
        endless.append(endless)
        logging.getLogger("shop").info("endless", extra={"endless": endless})
        log_once()
        return 1

    assert 1 == send(executor, function).result(PATIENCE)
    assert "FMT shop.orders INFO order 7 of Ann" == kept.lines[-1]
    assert "not enough arguments for format string" in capfd.readouterr().err


def test_the_levels_are_the_servers(executor, kept):
    """Those of the moment when the run begins; what nobody wants is not even sent."""

    def enabled():
        logging.getLogger("shop.quiet").setLevel(logging.DEBUG)  # nobody else's
        names = ["shop", "shop.orders", "elsewhere"]
        return [logging.getLogger(name).isEnabledFor(logging.INFO) for name in names]

    logger = logging.getLogger("shop")
    seen = [send(executor, enabled).result(PATIENCE)]
    logger.setLevel(logging.WARNING)
    seen.append(send(executor, enabled).result(PATIENCE))
    logger.setLevel(logging.DEBUG)
    logging.disable(logging.INFO)
    seen.append(send(executor, enabled).result(PATIENCE))
    logging.disable(logging.NOTSET)
    logger.disabled = True
    seen.append(send(executor, enabled).result(PATIENCE))
    logger.disabled = False

    root = logging.root.isEnabledFor(logging.INFO)
    assert [[True, True, root], [False, False, root], [False] * 3, [False, True, root]] == seen


def test_a_filter_of_the_server_knows_the_run(executor, kept):
    """As it does when the function runs in a thread."""

    def add(record):
        record.run = ps.current_run().id
        return True

    logging.getLogger("shop").addFilter(add)
    run = Run("sales", NOW, NOW)
    send(executor, log_once, "shop", run=run).result(PATIENCE)

    assert [run.id] == [record.run for record in kept.records]


def test_what_is_logged_while_an_answer_is_awaited_comes_in_order(executor, kept):
    """By other threads of the function."""
    ended = threading.Event()

    def function():
        import panel_schedule as ps

        def count():
            for number in range(2000):
                logging.getLogger("shop").info("%d", number)

        thread = threading.Thread(target=count)
        thread.start()
        for number in range(100):
            ps.current_run().publish(number)
        thread.join()

    future = send(executor, function, receive=lambda _: ended.wait(0.001))
    future.result(PATIENCE)

    assert [str(number) for number in range(2000)] == [record.msg for record in kept.records]


def test_a_handler_that_hangs_holds_up_its_own_run_alone(executor, kept):
    """What is logged meanwhile waits in the worker: nothing grows."""
    hanging, release = threading.Event(), threading.Event()

    def hang(record):
        hanging.set()
        return release.wait(PATIENCE)

    def function(path):
        for number in range(3000):
            logging.getLogger("shop").info("%d", number)
            if number % 10 == 0:
                path.write_text(str(number))
        return number

    logging.getLogger("shop").filters[:] = [hang]
    path = Path(f"/tmp/panel-schedule-{os.getpid()}")
    future = send(executor, function, path)
    assert hanging.wait(PATIENCE)
    assert 1 == send(executor, lambda: 1).result(PATIENCE)
    sent = int(path.read_text() or 0)
    release.set()

    assert 2999 == future.result(PATIENCE)
    path.unlink()
    assert sent < 2900
    assert 3000 == len(kept.records)


def test_a_handler_that_raises_ends_nothing(executor, kept, capfd):
    """Not even with an error that is no Exception; its traceback is on stderr."""

    def fail(record):
        raise SystemExit("handler")

    kept.emit = fail

    assert send(executor, log_once).exception(PATIENCE) is None
    said = capfd.readouterr().err
    assert "SystemExit: handler" in said
    assert "order 7 of Ann" in said


def test_warnings_are_logged_where_the_server_captures_them(executor, capfd):
    """Else they are on stderr, as they are there."""
    import warnings

    def function():
        warnings.warn("old", stacklevel=1)

    kept, logger = Kept(), logging.getLogger("py.warnings")
    logger.addHandler(kept)
    logging.captureWarnings(True)
    try:
        send(executor, function).result(PATIENCE)
        captured = capfd.readouterr().err
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(kept)
    send(executor, function).result(PATIENCE)

    assert ["UserWarning: old"] == [line.splitlines()[0].split(": ", 1)[1] for line in kept.lines]
    assert ("UserWarning: old" in captured, "UserWarning: old" in capfd.readouterr().err) == (False, True)


def test_a_handler_of_the_functions_own_works_within_its_run(executor, kept):
    """And is taken away after it; the server has the record as well."""

    def function(own):
        import io

        text = io.StringIO()
        if own:
            logging.getLogger("shop").addHandler(logging.StreamHandler(text))
            logging.getLogger("shop").propagate = False
        log_once()
        return text.getvalue(), len(logging.getLogger("shop").handlers)

    seen = [send(executor, function, own).result(PATIENCE) for own in (True, False)]

    assert [("order 7 of Ann\n", 1), ("", 0)] == seen
    assert ["FMT shop.orders INFO order 7 of Ann"] * 2 == kept.lines


SET_UP = """
import logging, logging.config, os
log = logging.getLogger("shop")
log.addHandler(logging.FileHandler(os.environ["LOG"], mode="w"))
log.propagate = False
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"file": {"class": "logging.handlers.RotatingFileHandler", "filename": os.environ["LOG"] + "2"}},
    "loggers": {"shop": {"handlers": ["file"], "level": "INFO"}},
})
class Made:
    def __init__(self, function): self.function = function
@Made
def report(where): log.info("from a %s", where)
"""


@pytest.mark.parametrize("late", [False, True], ids=["", "imported by the function"])
def test_what_a_module_sets_up_at_its_import_is_the_servers(executor, kept, module, tmp_path, monkeypatch, late):
    """No line is written twice, and no file is opened again, which would empty it."""
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    name = f"set_up_{late}"
    report = module(name, SET_UP.replace('mode="w"))', 'mode="w"))\nlog.handlers[:-1] = []')).report.function

    def imports(where):
        importlib.import_module(name).report.function(where)

    report("thread")
    for _ in range(2):
        send(executor, imports if late else report, "process").result(PATIENCE)

    assert ["from a thread", "from a process", "from a process"] == (tmp_path / "log2").read_text().splitlines()
    assert "" == (tmp_path / "log").read_text()


def test_the_root_loggers_set_up_is_the_servers(tmp_path):
    """Of a module that removes other handlers first, in a process of its own."""
    (tmp_path / "tasks.py").write_text(
        "import logging\n"
        "logging.basicConfig(level=logging.INFO, format='FMT %(name)s %(message)s', force=True)\n"
        "logging.getLogger().addHandler(logging.FileHandler('log', mode='w'))\n"
        "class Made:\n    def __init__(self, function): self.function = function\n"
        "@Made\ndef report(where): logging.getLogger('shop').info('from a %s', where)\n"
    )
    script = (
        "import tasks\nfrom functools import partial\nfrom panel_schedule.executors.processes import ProcessExecutor\n"
        "tasks.report.function('thread')\nexecutor = ProcessExecutor(1)\n"
        "for _ in range(2):\n    future = executor.submit(partial(tasks.report.function, 'process'))\n"
        "    executor.flush()\n    future.result(10)\nexecutor.stop(0)"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)

    lines = ["from a thread", "from a process", "from a process"]
    assert [f"FMT shop {line}" for line in lines] == ended.stderr.splitlines()
    assert lines == (tmp_path / "log").read_text().splitlines()


def test_what_a_child_or_a_left_thread_logs_is_on_stderr(executor, kept, capfd):
    """It is no part of a run any more."""

    def child():
        if not os.fork():
            log_once("shop.child")
            os._exit(0)
        os.wait()

    def leave():
        threading.Timer(0.05, log_once, ["shop.thread"]).start()

    send(executor, child).result(PATIENCE)
    send(executor, leave).result(PATIENCE)
    said = ""

    def both():
        nonlocal said
        said += capfd.readouterr().err
        return "shop.child" in said and "INFO:shop.thread:order 7 of Ann" in said

    assert eventually(both)
    assert [] == kept.lines


def test_a_signal_handler_may_log_amid_a_message(executor, kept):
    """Each record arrives whole, and once."""

    def function():
        handled = 0

        def handler(*_):
            nonlocal handled
            handled += 1
            logging.getLogger("shop").info("signal")
            signal.setitimer(signal.ITIMER_REAL, 0.0002)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        for _ in range(3000):
            logging.getLogger("shop").info("record")
        signal.setitimer(signal.ITIMER_REAL, 0)
        return handled

    handled = send(executor, function).result(PATIENCE)
    said = [record.msg for record in kept.records]

    assert handled > 0
    assert (3000, handled) == (said.count("record"), said.count("signal"))


@pytest.mark.alone
def test_a_function_that_logs_can_be_stopped(executor, kept):
    """At once, and its cleanup code logs, too."""
    told = Told()

    def function():
        import panel_schedule as ps

        try:
            ps.current_run().publish(1)
            while True:
                logging.getLogger("shop").info("again")
        finally:
            logging.getLogger("shop").info("cleaned")

    future = send(executor, function, receive=told)
    told.wait()
    started = time.monotonic()
    future.cancel()

    assert isinstance(future.exception(PATIENCE), RunCancelled)
    assert time.monotonic() - started < processes.GRACE
    assert "cleaned" == kept.records[-1].msg


def test_what_is_printed_is_not_lost():
    """Output of a worker is the server's, also into a pipe."""
    script = (
        "from panel_schedule.executors.processes import ProcessExecutor\n"
        "executor = ProcessExecutor(1)\nfuture = executor.submit(lambda: print('hello'))\n"
        "executor.flush()\nfuture.result(10)\nexecutor.stop(0)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)

    assert ("hello\n", "") == (ended.stdout, ended.stderr)


@pytest.mark.alone
def test_a_submit_is_quick_and_forks_nothing_here(executor):
    """The caller may be the event loop."""
    started = time.perf_counter()
    future = send(executor, os.getpid)
    took = time.perf_counter() - started
    future.result(PATIENCE)

    assert took < 0.05


def test_a_pool_of_the_functions_own_works(executor):
    """Forks of a worker are ordinary processes."""

    def function():
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2])

    assert [1, 2] == send(executor, function).result(PATIENCE)
    with contextlib.suppress(OSError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("part", ["worker", "server"])
def test_a_child_of_a_fork_is_ended_by_sigterm_however_early_it_comes(part):
    """As `multiprocessing.Pool` sends it: Python would hand it to the handler of the parent, or forget it."""
    script = {
        "worker": "import socket, threading\n"
        "from panel_schedule.executors.worker import Workplace\n"
        "from panel_schedule.executors.wire import Wire\n"
        "near, far = socket.socketpair()\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGCONT)).start()\n"
        "signal.signal(signal.SIGCONT, lambda *_: fork())\n"
        "Workplace(Wire(near)).serve()\n",
        "server": "import asyncio\n"
        "import panel_schedule as ps\n"
        "from panel_schedule.server.shutdown import Stopping\n"
        "stopping = Stopping(ps._runtime)\n"
        "loop = asyncio.new_event_loop()\n"
        "loop.call_soon(lambda: (stopping.watch(loop), fork()))\n"
        "loop.run_forever()\n",
    }[part]
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal\n"
            # Before everybody else's hooks: nothing of the parent is undone in the child by then.
            "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
            "def fork():\n"
            "    pid = os.fork()\n"
            "    if not pid:\n"
            "        os._exit(7)\n"
            "    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
            "    print(ended, signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
            "    os._exit(0)\n" + script,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )

    assert f"{-signal.SIGTERM} set()" == ended.stdout.strip()


@pytest.mark.parametrize("where", ["a hook of a fork", "__del__"])
def test_a_cancel_is_not_lost_where_python_forgets_what_is_raised(executor, where):
    def function():
        import panel_schedule as ps

        class Garbage:
            def __del__(self):
                sum(range(1000))

        ps.current_run().publish("begun")
        while where == "__del__":
            Garbage()
        while True:
            if not (pid := os.fork()):
                os._exit(0)
            os.waitpid(pid, 0)

    for _ in range(20):
        told = Told()
        future = send(executor, function, receive=told)
        told.wait()
        started = time.monotonic()
        future.cancel()

        assert isinstance(future.exception(PATIENCE), RunCancelled)
        assert time.monotonic() - started < processes.GRACE / 2  # by itself: it was not killed
