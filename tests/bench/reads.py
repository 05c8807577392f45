"""What it costs to read a value of 1 KB that is there: in the process that has it, and in a script that shares it."""

from __future__ import annotations

import os
import time
import timeit
from multiprocessing import Manager
from statistics import median
from tempfile import TemporaryDirectory

from .child import Child
from .fresh import fresh
from .table import Table, middle, verdict

ROUNDS = 15
SECONDS = 0.05
VALUE = os.urandom(1024)

# The name, what a page's author writes, and how many times slower than ours it must be.
READS = {
    "panel-schedule": ("task()", None),
    "`pn.state.cache`": ("pn.state.cache['value']", 3),
    "a `pn.cache`d function": ("cached()", 50),
    "flask-caching SimpleCache": ("simple.get('value')", None),
    "flask-caching FileSystemCache": ("files.get('value')", None),
    "diskcache": ("disk['value']", None),
    "`multiprocessing.Manager().dict()`": ("shared['value']", None),
}


# What is read in a script that has no server, of what another process has put there.
SCRIPT = {
    "panel-schedule, `file://` store": "ps.store['value']",
    "the same, once another process has stored another name": "ps.store['value']",
    "diskcache": "disk['value']",
    "SQLite's own `PRAGMA data_version`": "sqlite.execute('PRAGMA data_version').fetchone()",
}


class Script:
    """A process without a server or a task."""

    def __init__(self, folder: str):
        import sqlite3

        import diskcache

        import panel_schedule as ps

        self.store, self.disk = ps.store, diskcache.Cache(f"{folder}/disk")
        sqlite = sqlite3.connect(f"{folder}/sqlite", isolation_level=None)
        sqlite.execute("PRAGMA journal_mode = WAL")
        self.names = {"ps": ps, "disk": self.disk, "sqlite": sqlite}
        self.number = 0

    def put(self) -> None:
        self.store["value"] = self.disk["value"] = VALUE

    def put_another(self) -> None:
        self.number += 1
        self.store["another"] = self.number

    def read(self, statement: str) -> float:
        """Microseconds of CPU time per read, less the empty loop's."""
        setup = "\n".join(f"{name} = names['{name}']" for name in self.names)
        read, nothing = (
            timeit.Timer(each, setup, time.process_time, {"names": self.names}) for each in (statement, "pass")
        )
        number = _repeats(read)
        return (read.timeit(number) - nothing.timeit(number)) / number * 1e6

    def read_once(self) -> float:
        begin = time.process_time()
        self.store["value"]
        return (time.process_time() - begin) * 1e6


def measure_script() -> dict[str, list[float]]:
    """Microseconds of CPU time per read of each round, by name."""
    found: dict[str, list[float]] = {name: [] for name in SCRIPT}
    with TemporaryDirectory() as folder:
        writer, reader = (Child(Script, folder, store=f"file://{folder}/store") for _ in range(2))
        writer.ask("put")
        for _ in range(ROUNDS):
            for name, statement in SCRIPT.items():
                if name.startswith("the same"):
                    writer.ask("put_another")
                    found[name].append(reader.ask("read_once"))
                else:
                    found[name].append(reader.ask("read", statement))
        for child in (writer, reader):
            child.close()
    return found


def measure() -> dict[str, float]:
    """Microseconds per read, by name: the median round less the median empty loop."""
    import diskcache
    import flask
    import flask_caching
    import panel as pn

    import panel_schedule as ps

    with TemporaryDirectory() as folder, Manager() as manager:
        task = ps.schedule(period="1h", name="value")(lambda: VALUE)
        task.refresh().result()
        pn.state.cache["value"] = VALUE
        cached = pn.cache(lambda: VALUE)
        simple = flask_caching.Cache(flask.Flask("a"), config={"CACHE_TYPE": "SimpleCache"}).cache
        files = flask_caching.Cache(
            flask.Flask("b"), config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": f"{folder}/flask"}
        ).cache
        disk = diskcache.Cache(f"{folder}/disk")
        disk["value"] = VALUE
        shared = manager.dict(value=VALUE)
        for cache in (simple, files):
            cache.set("value", VALUE)
        names = {"task": task, "pn": pn, "cached": cached, "simple": simple, "files": files, "disk": disk}
        names["shared"] = shared
        statements = {name: statement for name, (statement, _) in READS.items()} | {"nothing": "pass"}
        for statement in list(statements.values())[:-1]:
            assert eval(statement, names) == VALUE, statement
        # The names are locals of the timed loop, as they are, or nearly, in a page's code.
        setup = "\n".join(f"{name} = names['{name}']" for name in names)
        timers = {
            name: timeit.Timer(statement, setup, globals={"names": names}) for name, statement in statements.items()
        }
        numbers = {name: _repeats(timer) for name, timer in timers.items()}
        rounds = [
            {name: timer.timeit(numbers[name]) / numbers[name] for name, timer in timers.items()} for _ in range(ROUNDS)
        ]
        disk.close()
    times = {name: median(measured[name] for measured in rounds) for name in timers}
    return {name: (times[name] - times["nothing"]) * 1e6 for name in READS}


def _repeats(timer: timeit.Timer) -> int:
    number, seconds = timer.autorange()
    return max(1, int(number * SECONDS / seconds))


def tables() -> list[Table]:
    times = fresh(measure)
    ours = times["panel-schedule"]
    table = Table("Reading a value", ["what", "read as", "us", "of ours"])
    for name, (statement, factor) in READS.items():
        ratio = times[name] / ours
        must, met = (f">= {factor} times ours", ratio >= (factor or 0)) if factor else ("", None)
        if name == "panel-schedule":
            must, met = "<= 0.3 us", ours <= 0.3
        table.add(
            name,
            f"`{statement}`",
            f"{times[name]:.3f}",
            f"{ratio:.1f}",
            must=must,
            met="" if met is None else verdict(met=met),
        )
    table.text = (
        f"A value of 1 KB (bytes) that is there, read {ROUNDS} times for {SECONDS * 1000:.0f} ms by each in turn, in "
        "one process; medians, less the empty loop's. Ours is a call, a look whether a run is reading (its reads are "
        "ordered), and an attribute. flask-caching copies by pickle and diskcache asks SQLite on each read; the "
        "manager asks another process."
    )
    script = Table("Reading a value in a script, of another process", ["what", "read as", "us of CPU"])
    for name, spent in measure_script().items():
        ours = name.startswith("panel-schedule")
        met = verdict(met=median(spent) <= 2) if ours else ""
        script.add(name, f"`{SCRIPT[name]}`", middle(spent), must="<= 2 us" if ours else "", met=met)
    script.text = (
        f"1 KB of bytes that another process has put there, in a process without a server or a task, {ROUNDS} rounds "
        f"for {SECONDS * 1000:.0f} ms by each in turn; medians, less the empty loop's, in brackets the best and the "
        "worst; CPU time, as nobody waits for anything but a core. Ours compares the head of SQLite's index of its "
        "log, which each commit of any process changes, with what it was before the last question, and asks only where "
        "it differs: the second row is one read after a commit, of a process that has slept. The last row is what it "
        "takes to ask SQLite the same by its own means."
    )
    return [table, script]
