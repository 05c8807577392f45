"""What a value must be: data, which many sessions can read, each for itself."""

from __future__ import annotations

import asyncio
import csv
import datetime
import enum
import functools
import io
import itertools
import pathlib
import re
import socket
import sqlite3
import tempfile
import time
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import duckdb
import numpy as np
import pandas as pd
import panel as pn
import param
import polars as pl
import pyarrow as pa
import pytest

from core import PATIENCE
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import ValueRefused
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.checks import require_data


@pytest.fixture
def front() -> Iterator[Front]:
    config = Config({})
    config.store = "memory://"
    runtime = Runtime(config)
    yield Front(runtime)
    runtime.close()


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> Any:
    yield 1


def loop_future() -> asyncio.Future[int]:
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


ONCE: dict[str, Callable[[], Any]] = {
    "map": lambda: map(str, range(3)),
    "zip": lambda: zip([1], [2], strict=True),
    "filter": lambda: filter(None, [1]),
    "enumerate": lambda: enumerate([1]),
    "reversed": lambda: reversed([1]),
    "list iterator": lambda: iter([1]),
    "dict values iterator": lambda: iter({"a": 1}.values()),
    "range iterator": lambda: iter(range(3)),
    "itertools": lambda: itertools.chain([1], [2]),
    "itertools.count": itertools.count,
    "generator": generator,
    "async generator": async_generator,
    "csv.reader": lambda: csv.reader(io.StringIO("a,b\n")),
    "csv.DictReader": lambda: csv.DictReader(io.StringIO("a,b\n")),
    "cursor": lambda: sqlite3.connect(":memory:").execute("SELECT 1"),
    "chunks of a csv": lambda: pd.read_csv(io.StringIO("a\n1\n"), chunksize=1),
    "nditer": lambda: np.nditer(np.zeros(3)),
    "text file": Path(__file__).open,
    "binary file": functools.partial(Path(__file__).open, "rb"),
    "raw file": functools.partial(Path(__file__).open, "rb", buffering=0),
    "temporary file": tempfile.NamedTemporaryFile,
    "spooled file": tempfile.SpooledTemporaryFile,
    "bytes as a file": lambda: io.BytesIO(b"a"),
    "text as a file": lambda: io.StringIO("a"),
    "socket": socket.socket,
    "concurrent future": Future,
    "asyncio future": loop_future,
}

REFERENCES: dict[str, Callable[[], Any]] = {
    "widget": pn.widgets.IntSlider,
    "pane": lambda: pn.pane.Markdown("a"),
    "param of a widget": lambda: pn.widgets.IntSlider().param.value,
    "rx": lambda: pn.widgets.IntSlider().rx(),
    "expression": lambda: pn.widgets.IntSlider().rx() + 1,
    "param.rx": lambda: param.rx(1),
    "bind": lambda: pn.bind(str, pn.widgets.IntSlider()),
    "method": lambda: pn.widgets.IntSlider().clone,
    "document": lambda: pn.Column("a").server_doc(),
    "lambda over a widget": lambda: (lambda widget: lambda: widget.value)(pn.widgets.IntSlider()),
    "default of a widget": lambda: lambda widget=pn.widgets.IntSlider(): widget.value,  # noqa: B008
    "partial over a widget": lambda: functools.partial(print, pn.widgets.IntSlider()),
    "partial by name": lambda: functools.partial(print, end=pn.widgets.IntSlider()),
    "object with a widget": lambda: Plain(pn.widgets.IntSlider()),
    "hidden in an object": lambda: Hides(pn.widgets.IntSlider()),
    "method of an object with one": lambda: Plain(pn.widgets.IntSlider()).read,
    "slots": lambda: Slotted(pn.widgets.IntSlider()),
    "parameterized": lambda: Settings(thing=pn.widgets.IntSlider()),
    "all params of a widget": lambda: pn.widgets.IntSlider().param,
    "cached function": lambda: functools.lru_cache(lambda widget=pn.widgets.IntSlider(): widget.value),  # noqa: B008
    "weak reference": lambda: weakref.ref(WIDGET),
}

WIDGET = pn.widgets.IntSlider()


class Plain:
    def __init__(self, thing: Any):
        self.thing = thing

    def read(self) -> Any:
        return self.thing


class Hides:
    def __init__(self, thing: Any):
        self._thing = thing


class Slotted:
    __slots__ = ("thing",)

    def __init__(self, thing: Any):
        self.thing = thing


class Settings(param.Parameterized):
    thing: Any = param.Parameter(allow_refs=False)


class Listing(list[Any]):
    """With something beside its items."""

    def __init__(self, thing: Any):
        super().__init__([1])
        self.thing = thing


class Table(pd.DataFrame):
    _metadata = ["thing"]

    @property
    def _constructor(self) -> type[Table]:
        return Table


class Grid(np.ndarray[Any, Any]):
    pass


def carrying(holder: Any, thing: Any) -> Any:
    holder.thing = thing
    return holder


def with_attrs(frame: Any, thing: Any) -> Any:
    frame.attrs["thing"] = thing
    return frame


@dataclass
class Record:
    thing: Any


@attrs.define
class Attrs:
    thing: Any


class Colour(enum.Enum):
    RED = "red"


class Rows:
    """Gives a fresh iterator each time."""

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


@pytest.mark.parametrize("kind", [*ONCE, *REFERENCES])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_data_is_refused(kind):
    """It can be used once, or it belongs to one session; nested, too."""
    make = (ONCE | REFERENCES)[kind]
    for value in (make(), {"a": [make()]}):
        with pytest.raises(ValueRefused, match=r"^Task 'sales': value"):
            require_data(value, "Task 'sales'")


HOLDERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "dict": (lambda it: {"a": 1, "north": it}, "value['north'] is"),
    "key": (lambda it: {it: 1}, "value key "),
    "list": (lambda it: [0.5, "a", it], "value[2] is"),
    "tuple": (lambda it: (it,), "value[0] is"),
    "set": (lambda it: {it}, "value[0] is"),
    "deque": (lambda it: deque([it]), "value[0] is"),
    "defaultdict": (lambda it: defaultdict(list, a=it), "value['a'] is"),
    "dataclass": (Record, "value.thing is"),
    "attrs": (Attrs, "value.thing is"),
    "namespace": (lambda it: types.SimpleNamespace(thing=it), "value.thing is"),
    "object": (Plain, "value.thing is"),
    "slots": (Slotted, "value.thing is"),
    "parameterized": (lambda it: Settings(thing=it), "value.thing is"),
    "method": (lambda it: Plain(it).read, "value.__self__.thing is"),
    "built-in method": (lambda it: it.__next__, "value.__self__ is"),
    "closure": (lambda it: lambda: it, "value closing over it is"),
    "default": (lambda it: lambda a=it: a, "value's default 0 is"),
    "partial": (lambda it: functools.partial(print, 1, it), "value.args[1] is"),
    "keyword of a partial": (lambda it: functools.partial(print, end=it), "value.keywords['end'] is"),
    "array of objects": (lambda it: np.array([1, it], dtype=object), "value[1] is"),
    "column": (lambda it: pd.DataFrame({"n": [1, 2], "a": [1, it]}, dtype=object), "value['a'][1] is"),
    "column with braces": (lambda it: pd.DataFrame({"{a}": [1, it]}, dtype=object), "value['{a}'][1] is"),
    "series": (lambda it: pd.Series([1, it], dtype=object), "value[1] is"),
    "dict values": (lambda it: {"a": it}.values(), "value[0] is"),
    "dict items": (lambda it: {"a": it}.items(), "value[0][1] is"),
    "read-only dict": (lambda it: types.MappingProxyType({"a": it}), "value['a'] is"),
    "exception": (ValueError, "value.args[0] is"),
    "attribute of an exception": (lambda it: carrying(ValueError("a"), it), "value.thing is"),
    "attribute of a list": (Listing, "value.thing is"),
    "cached function": (lambda it: functools.lru_cache(lambda: it), "value.__wrapped__ closing over it is"),
    "attrs of a frame": (lambda it: with_attrs(pd.DataFrame({"a": [1]}), it), "value.attrs['thing'] is"),
    "attrs of a series": (lambda it: with_attrs(pd.Series([1]), it), "value.attrs['thing'] is"),
    "metadata of a frame": (lambda it: carrying(Table({"a": [1]}), it), "value.thing is"),
    "column of a subclass": (lambda it: Table({"a": [1, it]}, dtype=object), "value['a'][1] is"),
    "array of a subclass": (lambda it: np.array([1, it], dtype=object).view(Grid), "value[1] is"),
    "attribute of an array": (lambda it: carrying(np.zeros(2).view(Grid), it), "value.thing is"),
    "deep": (lambda it: {"a": [({"b": Record([it])},)]}, "value['a'][0][0]['b'].thing[0] is"),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_path_leads_to_the_culprit(holder):
    make, path = HOLDERS[holder]
    with pytest.raises(ValueRefused, match=re.escape(path) + ".*list_iterator, which can be used once"):
        require_data(make(iter([1])), "Task 'sales'")


def test_a_coroutine_is_awaited_or_refused(front):
    """Where it is nested, too; then nobody can close it for its author."""

    async def later() -> None:
        pass

    nested = later()
    with pytest.raises(ValueRefused, match=r"value\[0\] is a builtins.coroutine, which is still to come"):
        require_data([nested], "Task 'sales'")
    nested.close()


def test_a_run_is_no_value(front):
    run = front.background(executor="thread", name="job")(lambda: 1).submit()
    with pytest.raises(ValueRefused, match="still to come"):
        front.store["run"] = run
    run.result(PATIENCE)


def test_a_view_is_no_value(front):
    task = front.schedule(period="1h", first_run="skip", name="task")(lambda: 1)
    with pytest.raises(ValueRefused):
        front.store["view"] = {"a": task.view()}


def test_the_global_widget_of_a_function_belongs_to_its_page():
    """A lambda of an app's script sees it as a global name."""
    function = eval("lambda: widget.value", {"widget": pn.widgets.IntSlider()})
    with pytest.raises(ValueRefused, match="value using widget is a panel"):
        require_data(function, "Task 'sales'")


class Page:
    def read(self) -> Any:
        return WIDGET.value


@pytest.mark.parametrize("value", [Page().read, lambda: lambda: WIDGET.value, Page.read])
def test_the_global_widget_of_a_method_or_of_a_function_inside(value):
    with pytest.raises(ValueRefused, match="using WIDGET is a panel"):
        require_data(value, "Task 'sales'")


GOOD: dict[str, Any] = {
    "range": range(3),
    "dict views": [{"a": 1}.keys(), {"a": 1}.values(), {"a": 1}.items()],
    "path": pathlib.Path("a"),
    "pattern": re.compile("a"),
    "times": [datetime.datetime(2026, 1, 1), datetime.timedelta(1), Decimal(1)],
    "enum": Colour.RED,
    "classes": [Colour, Plain, int],
    "functions": [len, print, require_data, re.compile, functools.partial(print, 1), "a".upper],
    "modules": [np, re],
    "containers": [Counter("a"), OrderedDict(a=1), frozenset([1]), bytearray(b"a"), memoryview(b"a")],
    "pandas": [pd.DataFrame({"a": [1], "b": ["x"]}), pd.Series([1]), pd.Index([1]), pd.Timestamp(0), pd.NA],
    "multi": pd.DataFrame({("a", "b"): [1]}).groupby([0]),
    "polars": [pl.DataFrame({"a": [1]}), pl.Series([1]), pl.LazyFrame({"a": [1]}), pl.col("a")],
    "arrow": [pa.table({"a": [1]}), pa.array([1])],
    "relation": duckdb.sql("SELECT 1"),
    "numpy": [np.zeros(3), np.float64(1), np.random.default_rng(1), np.ma.array([1]), np.dtype("f8")],
    "objects": [Plain(1), Slotted(1), Record([1]), Attrs(1), Settings(thing=1), object(), Rows()],
    "hidden iterator": Hides(itertools.count()),
    "connection": sqlite3.connect(":memory:"),
    "exception": ValueError("a"),
    "nothing": [None, ..., NotImplemented],
}


@pytest.mark.parametrize("kind", GOOD)
def test_ordinary_data_is_accepted(kind):
    require_data(GOOD[kind], "Task 'sales'")


def test_depth_and_cycles_are_no_trouble():
    """Whatever is inside of itself is looked at once."""
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    ring: dict[str, Any] = {}
    ring["self"] = [ring]
    require_data(deep, "deep")
    require_data(ring, "ring")


def test_a_million_numbers_are_looked_at_in_no_time():
    """The types of a part of them."""
    numbers = [float(number) for number in range(1_000_000)]
    start = time.thread_time()
    require_data({"numbers": numbers}, "Task 'sales'")

    assert time.thread_time() - start < 0.05


# ------------------------------------------------------------ everywhere


def test_it_is_refused_wherever_a_value_comes_in(front, caplog):
    """A task, what a generator yields, a job and its partial results, an answer, a name, a default."""
    once = ONCE["map"]

    def yields() -> Iterator[Any]:
        yield once()

    tasks = [
        front.schedule(period="1h", first_run="skip", name="task")(once),
        front.schedule(period="1h", first_run="skip", name="yields")(yields),
        front.schedule(period="1h", first_run="skip", name="process", executor="process")(once),
    ]
    job = front.background(executor="thread", name="job")(once)
    partials = front.background(executor="thread", name="partials")(yields)
    memo = front.memoize(name="memo")(once)
    for call in (
        *(task.refresh().result for task in tasks),
        job.submit().result,
        partials.submit().result,
        memo.submit().result,
    ):
        with pytest.raises(ValueRefused, match="can be used once"):
            call(PATIENCE)
    with pytest.raises(ValueRefused, match=r"Memoized function 'memo': value is a builtins.map"):
        memo()
    with pytest.raises(ValueRefused, match=r"ps.store\['rows'\]: value is a builtins.map"):
        front.store["rows"] = once()
    with pytest.raises(ValueRefused, match=r"default=: value is a builtins.map"):
        front.schedule(period="1h", default=once())


def test_it_is_refused_by_a_file_store(tmp_path: Path):
    """Though some of it can be pickled."""
    config = Config({})
    config.store = f"file://{tmp_path / 'store'}"
    runtime = Runtime(config)
    try:
        with pytest.raises(ValueRefused, match="can be used once"):
            Front(runtime).store["rows"] = {"a": iter([1])}
    finally:
        runtime.close()
