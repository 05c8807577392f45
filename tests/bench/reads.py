"""What it costs to read a value of 1 KB that is there."""

from __future__ import annotations

import os
import timeit
from multiprocessing import Manager
from statistics import median
from tempfile import TemporaryDirectory

from .fresh import fresh
from .table import Table, verdict

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
    return [table]
