"""Arguments are those of the moment of the call, whatever their caller does to them later."""

from __future__ import annotations

import array
import asyncio
import copyreg
import io
import sys
import threading
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import polars as pl
import pytest
from bokeh.document import Document

from core import PATIENCE
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.functions.task import Retry
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.copies import snapshot


@pytest.fixture(params=["memory", "file"])
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    config = Config({})
    config.store = "memory://" if request.param == "memory" else f"file://{tmp_path / 'store'}"
    config.max_threads = 1
    runtime = Runtime(config)
    yield Front(runtime)
    runtime.close()


@dataclass
class Order:
    items: list[int] = field(default_factory=list)


class Basket:
    def __init__(self, items: list[int]):
        self.items = items


class Slots:
    __slots__ = ("items",)

    def __init__(self, items: list[int]):
        self.items = items


class Guarded(Basket):
    """Is more than data."""

    def __init__(self, items: list[int]):
        super().__init__(items)
        self.lock = threading.Lock()


Pair = namedtuple("Pair", "name items")

# What is passed, what its caller does to it, and what the function is to see of it.
CHANGING: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1], lambda it: it.append(2), list),
    "dict": (lambda: {"a": 1}, lambda it: it.update(a=2), dict),
    "nested": (lambda: {"a": [({"b": [1]},)]}, lambda it: it["a"][0][0]["b"].append(2), repr),
    "ordered dict": (lambda: OrderedDict(a=[1]), lambda it: it["a"].append(2), repr),
    "defaultdict": (lambda: defaultdict(list, a=[1]), lambda it: it["a"].append(2), repr),
    "set": (lambda: {1}, lambda it: it.add(2), set),
    "deque": (lambda: deque([[1]], maxlen=3), lambda it: it[0].append(2), repr),
    "bytearray": (lambda: bytearray(b"a"), lambda it: it.extend(b"b"), bytes),
    "array": (lambda: np.zeros(3), lambda it: it.fill(7), lambda it: it.tolist()),
    "large array": (lambda: np.zeros(200_000), lambda it: it.fill(7), lambda it: float(it.sum())),
    "array of objects": (lambda: np.array([None, [1]], dtype=object), lambda it: it[1].append(2), repr),
    "frame": (lambda: pd.DataFrame({"a": [1]}), lambda it: it.__setitem__("a", 7), lambda it: it.a.tolist()),
    "cell": (lambda: pd.DataFrame({"a": [1]}), lambda it: it.iloc.__setitem__((0, 0), 7), lambda it: it.a.tolist()),
    "series": (lambda: pd.Series([1]), lambda it: it.iloc.__setitem__(0, 7), lambda it: it.tolist()),
    "polars": (lambda: pl.DataFrame({"a": [1]}), lambda it: it.__setitem__((0, "a"), 7), lambda it: it["a"].to_list()),
    "frame in a list": (
        lambda: [pd.DataFrame({"a": [1]})],
        lambda it: it[0].__setitem__("a", 7),
        lambda it: list(it[0].a),
    ),
    "dataclass": (lambda: Order([1]), lambda it: it.items.append(2), lambda it: list(it.items)),
    "namedtuple": (
        lambda: Pair("a", [1]),
        lambda it: it.items.append(2),
        lambda it: (type(it), it.items[:]),
    ),
}


def _error(items: list[int]) -> Exception:
    error = ValueError(items)
    error.items = [1]  # type: ignore[attr-defined]
    return error


def _with_tags(made: Any) -> Any:
    made.tags = [1]
    return made


Tagged = {base: type(f"Tagged{base.__name__}", (base,), {}) for base in (dict, list, tuple, set, deque)}
_UNDER: dict[int, Any] = {}


def _seen_through(show: Callable[[Any], Any], base: Callable[[], Any] = lambda: {"a": [1]}) -> Any:
    """A view of something, which alone can be changed."""

    def make() -> Any:
        under = base()
        shown = show(under)
        _UNDER[id(shown)] = (shown, under)
        return shown

    return make


def _under(shown: Any) -> Any:
    return _UNDER[id(shown)][1]


OBJECTS: dict[str, Any] = {
    "mapping proxy": (_seen_through(MappingProxyType), lambda it: _under(it)["a"].append(2), lambda it: dict(it)),
    "proxy of a key": (_seen_through(MappingProxyType), lambda it: _under(it).update(b=2), lambda it: list(it)),
    "keys": (_seen_through(dict.keys), lambda it: _under(it).update(b=2), list),
    "values": (_seen_through(dict.values), lambda it: _under(it)["a"].append(2), repr),
    "items": (_seen_through(dict.items), lambda it: _under(it)["a"].append(2), repr),
    "memory": (
        _seen_through(memoryview, lambda: bytearray(b"ab")),
        lambda it: it.__setitem__(0, 7),
        lambda it: (it.tolist(), it.shape, it.readonly),
    ),
    "arguments of an error": (lambda: _error([1]), lambda it: it.args[0].append(2), lambda it: repr(it.args)),
    "attribute of an error": (lambda: _error([1]), lambda it: it.items.append(2), lambda it: list(it.items)),
    **{
        f"attribute of a {base.__name__}": (
            lambda made=made: _with_tags(made()),
            lambda it: it.tags.append(2),
            lambda it: (type(it).__name__, list(it.tags)),
        )
        for base, made in Tagged.items()
    },
    "name of an index": (
        lambda: pd.Index([1], name="a"),
        lambda it: setattr(it, "name", "b"),
        lambda it: it.name,
    ),
    "names of an index": (
        lambda: pd.MultiIndex.from_tuples([(1, 2)], names=["a", "b"]),
        lambda it: setattr(it, "names", ["c", "d"]),
        lambda it: list(it.names),
    ),
    "name of a frame's index": (
        lambda: pd.DataFrame({"a": [1]}),
        lambda it: setattr(it.index, "name", "b"),
        lambda it: it.index.name,
    ),
    "bytes of a file": (lambda: io.BytesIO(b"abc"), lambda it: it.read(), lambda it: it.read()),
    "text of a file": (lambda: io.StringIO("abc"), lambda it: it.truncate(0), lambda it: it.read()),
    "array.array": (lambda: array.array("i", [1]), lambda it: it.append(2), list),
    "object": (lambda: Basket([1]), lambda it: it.items.append(2), lambda it: list(it.items)),
    "slots": (lambda: Slots([1]), lambda it: it.items.append(2), lambda it: list(it.items)),
    "attribute": (lambda: Basket([1]), lambda it: setattr(it, "items", []), lambda it: list(it.items)),
}  # fmt: skip


def test_a_copy_of_an_error_shares_nothing_with_it_whatever_copies_it(monkeypatch):
    """Where Dask was imported it is copied by its attributes, all of which are one object then."""

    def shared(attributes: dict[str, Any]) -> Exception:
        copied = ValueError([0])
        copied.__dict__ = attributes
        return copied

    monkeypatch.setitem(copyreg.dispatch_table, ValueError, lambda error: (shared, (error.__dict__,)))
    error = _error([0])
    (mine,), _ = snapshot((error,), {})
    error.items.append(2)

    assert ([1], [1, 2]) == (mine.items, error.items)
    assert mine.__dict__ is not error.__dict__


@pytest.mark.parametrize("kind", [*CHANGING, *OBJECTS])
def test_what_waits_for_a_thread_sees_what_was_passed(front, kind):
    """A background function's run that is queued."""
    make, change, look = (CHANGING | OBJECTS)[kind]
    gate = threading.Event()
    busy = front.background(executor="thread", name="busy")(lambda: gate.wait(PATIENCE))
    job = front.background(executor="thread", name="job")(lambda it: look(it))
    busy.submit()
    mine = make()
    runs = job.submit(mine), job.submit(it=mine)
    change(mine)
    gate.set()

    assert [look(make())] * 2 == [run.result(PATIENCE) for run in runs]


@pytest.mark.parametrize("kind", CHANGING)
def test_an_answer_is_of_what_was_passed(front, kind):
    """A memoized function's computation that waits, whose answer everybody gets."""
    make, change, look = CHANGING[kind]
    gate = threading.Event()
    busy = front.memoize(name="busy")(lambda: gate.wait(PATIENCE))
    memo = front.memoize(name="memo")(lambda it: look(it))
    busy.submit()
    mine = make()
    run = memo.submit(mine)
    change(mine)
    gate.set()

    assert look(make()) == run.result(PATIENCE) == memo(make())


@pytest.mark.parametrize("kind", ["list", "large array", "frame"])
def test_on_a_loop_as_well(front, kind):
    """Where the key of large arguments is made by another thread."""
    make, change, look = CHANGING[kind]
    memo = front.memoize(name="memo")(lambda it: look(it))
    job = front.background(executor="thread", name="job", ttl="1h")(lambda it: look(it))

    @front.memoize(name="async_memo")
    async def async_memo(it):
        return look(it)

    @front.background(executor="loop", name="async_job")
    async def async_job(it):
        return look(it)

    async def ask() -> list[Any]:
        asked = []
        for call in (memo.submit, job.submit, async_memo, async_job.submit):
            mine = make()
            asked.append(call(mine))
            change(mine)
        return [await each for each in asked]

    assert [look(make())] * 4 == asyncio.run(ask())
    assert look(make()) == memo(make()) == job.submit(make()).result(PATIENCE)


def test_a_worker_process_gets_what_was_passed(front):
    """Though an array is not copied when it is packed."""
    total = front.background(executor="process", name="total")(lambda it: float(it.sum()))
    mine = np.ones(200_000)
    run = total.submit(mine)
    mine[:] = 7

    assert 200_000 == run.result(60)


def test_an_answer_does_not_change_with_its_argument(front):
    """One that is a view of it, or the argument itself, computed by the caller's own thread."""
    tail = front.memoize(name="tail")(lambda array, head: array[head:])
    same = front.memoize(name="same")(lambda it: it)
    data, items = np.arange(4), [1, [2]]
    tail(data, 1), same(items)
    data[:] = 77
    items[1].append(3)

    assert [1, 2, 3] == tail(np.arange(4), 1).tolist()
    assert [1, [2]] == same([1, [2]])


def test_a_result_does_not_change_with_its_argument(front):
    same = front.background(executor="thread", name="same", ttl="1h")(lambda it: it)
    items = [1]
    same.submit(items).result(PATIENCE)
    items.append(2)

    assert [1] == same.submit([1]).result(PATIENCE)


def test_a_function_changes_nothing_of_its_callers(front):
    def sort(numbers):
        numbers.sort()
        return numbers

    memo, job = front.memoize(name="memo")(sort), front.background(executor="thread", name="job")(sort)
    mine = [2, 1]
    assert [1, 2] == memo(mine) == job.submit(mine).result(PATIENCE)
    assert [2, 1] == mine


def test_each_attempt_gets_what_was_passed(front):
    """What the first one has done to its arguments is gone."""

    @front.background(executor="thread", name="job", retry=Retry(2, backoff=0.01))
    def job(items):
        items.append("seen")
        if len(tries) < 1:
            tries.append(1)
            raise ValueError("once more")
        return items

    tries: list[int] = []
    assert ["a", "seen"] == job.submit(["a"]).result(PATIENCE)


def test_a_view_shows_what_was_passed(front):
    """Arguments that are values are those of the call that made it."""
    memo = front.memoize(name="memo")(lambda it, n: [*it, n])
    slider = pn.widgets.IntSlider(value=1)
    mine = [0]
    view = memo.view(mine, n=slider)
    mine.append(5)
    slider.value = 2

    assert [0, 2] == memo([0], 2) == view._call[0][0] + [2]


def test_a_job_that_waits_takes_what_its_widgets_had(front):
    """At the click, and not when the one before it has ended."""
    gate = threading.Event()

    @front.background(executor="thread", name="job", retrigger="queue")
    def work(items):
        gate.wait(PATIENCE)
        return items

    job = work.job()
    mine = [1]
    job.start([])
    job.start(mine)
    mine.append(2)
    first = job.run
    gate.set()
    first.result(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while job.run is first and time.monotonic() < deadline:
        time.sleep(0.001)

    assert [1] == job.run.result(PATIENCE)


async def _work() -> None:
    pass


def _coroutine() -> Any:
    """Closed, and so no warning that nobody awaited it."""
    coroutine = _work()
    coroutine.close()
    return coroutine


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "iterator": (lambda: iter([1]), r"argument 'it': it is a builtins.list_iterator, which can be used once"),
    "generator": (
        lambda: (each for each in [1]),
        "it is a builtins.generator, which can be used once: a second attempt",
    ),
    "map in a list": (lambda: [[map(str, [1])]], r"it\[0\]\[0\] is a builtins.map, which can be used once"),
    "file": (lambda: open(__file__), "it is a _io.TextIOWrapper, which can be read once.* Pass its name"),  # noqa: SIM115
    "coroutine": (_coroutine, "it is a builtins.coroutine, which is still to come"),
    "future": (lambda: {"a": Future()}, r"it\['a'\] is a concurrent.futures._base.Future, which is still to come"),
    "widget in a list": (
        lambda: [pn.widgets.IntSlider()],
        r"it\[0\] is a panel.widgets.slider.IntSlider, which belongs",
    ),
    "param in a dict": (lambda: {"a": pn.widgets.IntSlider().param.value}, r"it\['a'\] is a param.* is a reference"),
    "expression in a record": (lambda: Order(pn.rx(1)), r"it.items is a param.reactive.rx, which is a reference"),
    "pane": (lambda: pn.pane.Str("a"), "it is a panel.pane.markup.Str, which belongs to one document"),
    "method of a pane": (lambda: pn.pane.Str("a").clone, r"it.__self__ is a panel.pane.markup.Str, which belongs"),
    "closure over a pane": (lambda: (lambda pane: lambda: pane)(pn.pane.Str("a")), "it closing over pane is a panel"),
    "document": (lambda: (Document(),), r"it\[0\] is a bokeh.document.document.Document, which belongs"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("executor", ["thread", "loop", "process"])
def test_what_is_a_sessions_or_used_once_is_refused(front, executor, kind):
    """Also inside; and the run does not begin."""
    make, message = REFUSED[kind]

    async def body(it):
        raise AssertionError

    job = front.background(executor=executor, name="job")(body if executor == "loop" else lambda it: 1 / 0)
    with pytest.raises(TypeError, match=message):
        job.submit(make())
    assert [] == job.runs()


@pytest.mark.parametrize("kind", REFUSED)
def test_of_a_memoized_function_as_well(front, kind):
    """There is no key for it."""
    memo = front.memoize(name="memo")(lambda it: 1 / 0)
    with pytest.raises(TypeError, match="memo"):
        memo(REFUSED[kind][0]())


def test_a_job_may_wait_for_another_ones_run(front):
    job = front.background(executor="thread", name="job")(lambda it: it[0].result(PATIENCE))
    assert 3 == job.submit([front.background(executor="thread", name="three")(lambda: 3).submit()]).result(PATIENCE)


def test_what_cannot_be_copied_is_passed_as_it_is(front):
    """A lock, a connection, an object that has one; and a task stays a task."""
    task = front.schedule(period="1h", first_run="skip", name="task")(lambda: 1)
    given = [threading.Lock(), Guarded([1]), task, print, Order, sys.stdout, (threading.Event(),)]
    (mine,), named = snapshot((given,), {"it": given})

    assert mine is named["it"] is not given
    assert all(new is old for new, old in zip(mine, given, strict=True))


def test_what_cannot_change_is_not_copied():
    values = ("a", 1, (1, ("b",)), frozenset([1]), b"a", range(3), Path("a"), pd.Timestamp(0), None)

    assert all(new is old for new, old in zip(snapshot(values, {})[0], values, strict=True))


def test_a_cycle_and_a_deep_one_are_no_trouble():
    ring: list[Any] = [1]
    ring.append(ring)
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    (mine, _), _ = snapshot((ring, deep), {})

    assert mine[1] is mine is not ring
    ring.append(2)
    assert 2 == len(mine)


def test_a_hit_of_plain_arguments_copies_nothing(front, monkeypatch):
    """It takes a microsecond."""
    memo = front.memoize(name="memo")(lambda a, b: a + b)
    memo(1, 2)
    monkeypatch.setattr("panel_schedule.hashing.keys.snapshot", None)

    assert 3 == memo(1, 2)


def test_a_value_on_its_way_to_the_store_is_what_it_was(front):
    """On a loop it is written a moment later."""

    async def put() -> None:
        mine = [1]
        front.store["mine"] = mine
        if front._runtime.service.store.blocking:
            mine.append(2)

    asyncio.run(put())
    deadline = time.monotonic() + PATIENCE
    while front.store._pending and time.monotonic() < deadline:
        time.sleep(0.001)

    assert [1] == front.store["mine"]
