"""What a reader may do to what he has read: `isolate`, and the copies that views hand out."""

from __future__ import annotations

import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import polars as pl
import pytest

from core import PATIENCE
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import RegistrationError
from panel_schedule.runtime import Runtime
from panel_schedule.serialize import copies


@pytest.fixture(params=["memory", "file"])
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    config = Config({})
    config.store = "memory://" if request.param == "memory" else f"file://{tmp_path / 'store'}"
    runtime = Runtime(config)
    yield Front(runtime)
    runtime.close()


def task_of(front: Front, value: object, **options: object):
    task = front.schedule(period="1h", first_run="skip", name="task", **options)(lambda: value)
    task.refresh().result(PATIENCE)
    return task


def test_each_read_is_ones_own(front):
    """What one reader does to the value nobody else sees, nor does a later read."""
    task = task_of(front, {"frame": pd.DataFrame({"a": np.arange(5.0)}), "list": [1, 2]}, isolate=True)
    first, second = task(), task()
    first["frame"].loc[0, "a"] = 99
    first["list"].append(3)
    first["new"] = True

    for other in (second, task(), task.entry.value):
        assert (0.0, [1, 2], False) == (other["frame"].loc[0, "a"], other["list"], "new" in other)


def test_arrays_can_be_written_in_place(front):
    """A library that wants a writable buffer gets one."""
    task = task_of(front, np.zeros(100_000), isolate=True)
    mine = task()
    mine += 1

    assert (100_000, 0) == (mine.sum(), task().sum())


def test_without_it_all_share_one_object(front):
    """The default of what is no frame, at no cost: read-only by convention."""
    task = task_of(front, [1, 2])

    assert task() is task()


def test_a_view_shows_the_value_all_the_same(front):
    """Sessions get it through their views as ever."""
    task = task_of(front, pd.DataFrame({"a": [1]}), isolate=True)

    assert [1] == list(task.view().value["a"])


def test_before_the_first_value_there_is_the_default(front):
    """And no copy of it is made."""
    default = []
    task = front.schedule(period="1h", first_run="skip", name="task", isolate=True, default=default)(lambda: 1)

    assert task() is default


def test_a_new_value_replaces_the_private_copies_source(front):
    """A reader keeps what it has; the next read is of the new version."""
    values = iter([np.zeros(50_000), np.ones(50_000)])
    task = front.schedule(period="1h", first_run="skip", name="task", isolate=True)(lambda: next(values))
    task.refresh().result(PATIENCE)
    old = task()
    task.refresh().result(PATIENCE)

    assert (0, 50_000) == (old.sum(), task().sum())


@pytest.mark.alone
def test_the_cost_does_not_grow_with_the_size(front):
    """A hundred times the data, and no more than three times the time: pages are copied when they are written."""

    def cost(rows: int) -> float:
        task = front.schedule(period="1h", first_run="skip", name=f"task{rows}", isolate=True)(lambda: np.zeros(rows))
        task.refresh().result(PATIENCE)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            task()
            times.append(time.perf_counter() - start)
        return min(times)

    assert cost(10_000_000) < 3 * cost(100_000) + 20e-6


# ------------------------------------------------------------ isolate=None: frames are the reader's own


def frame() -> pd.DataFrame:
    return pd.DataFrame({"sold": [1, 2]})


class Sales(pd.DataFrame):
    """A subclass that does not tell pandas how it is made."""


@pytest.fixture
def reads(front: Front) -> dict[str, Callable[[], pd.DataFrame]]:
    """All ways to what one task, job, memoized function or name has for everybody."""
    task = task_of(front, frame())
    run = task.refresh()
    run.result(PATIENCE)

    @front.background(executor="thread", name="job", ttl="1h")
    def job(n):
        return frame()

    memo = front.memoize(name="memo")(lambda n: frame())
    done = job.submit(1)
    done.result(PATIENCE)
    front.store["frame"] = frame()
    return {
        "task()": task,
        "task.entry": lambda: task.entry.value,
        "task.wait_ready": task.wait_ready,
        "run.result": run.result,
        "run.value": lambda: run.value,
        "job run": lambda: done.value,
        "joined job": lambda: job.submit(1).result(PATIENCE),
        "memo()": lambda: memo(1),
        "memo.submit": lambda: memo.submit(1).result(PATIENCE),
        "memo.entry": lambda: memo.entry(1).value,
        "store[]": lambda: front.store["frame"],
        "store.get": lambda: front.store.get("frame"),
        "store.entry": lambda: front.store.entry("frame").value,
    }


def test_a_new_column_is_the_readers_own(reads):
    """``df = sales(); df["share"] = ...`` is what people write."""
    for read in reads.values():
        mine = read()
        mine["share"] = 0.5
        mine.loc[0, "sold"] = 99

    changed = {name: read() for name, read in reads.items() if list(read()) != ["sold"] or read().sold[0] != 1}
    assert {} == changed


def test_what_is_kept_under_a_name_is_that_of_the_moment(front):
    """As arguments are: who has put it there goes on with the frame."""
    mine = frame()
    front.store["frame"] = mine
    mine["share"] = 0.5
    mine.loc[0, "sold"] = 99

    assert (["sold"], 1) == (list(front.store["frame"]), front.store["frame"].sold[0])


def test_the_caller_who_waits_for_an_answer_gets_a_copy_of_his_own(front):
    """Also who computes it, and those who join him."""
    memo = front.memoize(name="memo")(lambda: frame())
    mine = memo()
    mine["share"] = 0.5

    assert ["sold"] == list(memo())


@pytest.mark.parametrize("kind", ["task", "yielded", "async", "memo", "job", "partial"])
def test_a_frame_that_its_function_keeps_and_changes_is_nobodys(front, kind):
    """What was returned is what is read."""
    mine = pd.DataFrame({"a": [1]})

    def plain():
        return mine

    def generator():
        yield mine
        mine["b"] = 7
        yield mine.copy()

    def yields():
        yield mine
        mine["c"] = 7

    async def on_the_loop():
        return mine

    if kind == "memo":
        read = front.memoize(name="kept")(plain)
        read()
    elif kind in ("job", "partial"):
        run = front.background(executor="thread", name="kept")(plain if kind == "job" else generator).submit()
        run.result(PATIENCE)
        read = run.result if kind == "job" else lambda: run.partials[0]
    else:
        function = {"task": plain, "yielded": yields, "async": on_the_loop}[kind]
        read = front.schedule(period="1h", first_run="skip", name="kept")(function)
        read.refresh().result(PATIENCE)
    mine["b"] = 7
    mine.loc[0, "a"] = 5

    assert ["a"] == list(read().columns)
    assert 1 == read().loc[0, "a"]


def test_a_series_is_the_readers_own(front):
    task = task_of(front, pd.Series([1, 2]))
    mine = task()
    mine[0] = 99

    assert [1, 2] == task().tolist()


def test_a_polars_frame_is_the_readers_own(front):
    """Cells and columns of one can be set, too."""
    task = task_of(front, pl.DataFrame({"a": [1, 2]}))
    mine = task()
    mine[0, "a"] = 99
    mine.insert_column(0, pl.Series("b", [1, 2]))

    assert {"a": [1, 2]} == task().to_dict(as_series=False)


def test_what_describes_a_frame_is_the_readers_own(front):
    """Its names and attributes, not only its cells."""
    task = task_of(front, frame())
    mine = task()
    mine.attrs["unit"] = "EUR"
    mine.columns = ["bought"]
    mine.index.name = "row"

    assert ({}, ["sold"], None) == (task().attrs, list(task()), task().index.name)


def test_a_subclass_stays_what_it_is(front):
    assert Sales is type(task_of(front, Sales({"sold": [1]}))())


def test_a_default_frame_is_the_readers_own(front):
    task = front.schedule(period="1h", first_run="skip", name="task", default=frame())(frame)
    mine = task()
    mine["share"] = 0.5

    assert ["sold"] == list(task())


def test_isolate_false_gives_the_very_object(front):
    """To each reader, of whatever kind."""
    task = front.schedule(period="1h", first_run="skip", name="task", isolate=False)(frame)
    run = task.refresh()

    assert task.wait_ready() is task() is task.entry.value is run.result(PATIENCE)


def test_a_default_is_the_very_object_with_isolate_false(front):
    default = frame()
    task = front.schedule(period="1h", first_run="skip", name="task", isolate=False, default=default)(frame)

    assert task() is default


def test_a_result_is_private_with_isolate_true(front):
    task = front.schedule(period="1h", first_run="skip", name="task", isolate=True)(lambda: [1])
    run = task.refresh()
    run.result(PATIENCE).append(2)

    assert [1] == task.entry.value == run.result()


@pytest.mark.parametrize("value", ["yes", 1, 0, "none"])
def test_another_isolate_is_refused(front, value):
    with pytest.raises(RegistrationError, match=r"isolate=.* must be True, False or None"):
        front.schedule(period="1h", isolate=value)


def test_to_read_what_is_no_frame_costs_as_little_as_ever(front):
    """No look at the value at each read."""
    task = task_of(front, {"frame": frame()})

    assert not task._aside
    assert task() is task()


# ------------------------------------------------------------ what a view hands out


@dataclass(frozen=True, slots=True)
class Report:
    table: pd.DataFrame
    title: str = ""


Pair = namedtuple("Pair", "name table")


class Tables(dict):
    pass


HOLDERS = {
    "bare": (lambda f: f, lambda v: v),
    "dict": (lambda f: {"t": f, "n": 1}, lambda v: v["t"]),
    "list": (lambda f: [1, f], lambda v: v[1]),
    "tuple": (lambda f: (f, 2), lambda v: v[0]),
    "dataclass": (Report, lambda v: v.table),
    "namedtuple": (lambda f: Pair("a", f), lambda v: v.table),
    "dict subclass": (lambda f: Tables(t=f), lambda v: v["t"]),
    "nested": (lambda f: {"a": [(1, {"b": Report(f)})]}, lambda v: v["a"][0][1]["b"].table),
    "twice": (lambda f: {"a": f, "b": [f]}, lambda v: v["b"][0]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_frame_in_something_is_each_views_own(front, holder):
    """As a bare one is; and what it is in keeps its type."""
    make, take = HOLDERS[holder]
    task = task_of(front, make(frame()))
    name = front.store.rx("name")
    front.store["name"] = make(frame())
    memo = front.memoize(name="memo")(lambda: make(frame()))
    job = front.background(executor="thread", name="job")(lambda: make(frame())).job()
    job.start().result(PATIENCE)
    pairs = [
        (task.view().value, lambda: task.entry.shared),
        (name.rx.value, lambda: front.store.entry("name").shared),
        (memo.view().value if memo() is not None else None, lambda: memo.entry().shared),
        (job.value, lambda: job.run.shared),
    ]
    for mine, shared in pairs:
        assert type(mine) is type(shared())
        take(mine).loc[0, "sold"] = 99
        take(mine)["share"] = 1
        assert {"sold": [1, 2]} == take(shared()).to_dict("list")


def test_what_holds_no_frame_is_handed_out_as_it_is(front):
    """The very object, and the parts of one that has a frame elsewhere."""
    plain = task_of(front, {"a": [1, 2, {"b": (3,)}]})
    mixed = front.schedule(period="1h", first_run="skip", name="mixed")(lambda: {"f": frame(), "rows": [1, [2]]})
    mixed.refresh().result(PATIENCE)

    assert plain.view().value is plain()
    assert mixed.view().value["rows"] is mixed()["rows"]


def test_frames_are_looked_for_once_for_all_views(front, monkeypatch):
    """And not by each of hundreds of sessions."""
    looks = list[object]()
    walk = copies.walk
    monkeypatch.setattr(copies, "walk", lambda value, inside: looks.append(value) or walk(value, inside))
    task = task_of(front, {"rows": list(range(1000)), "f": frame()})
    counted = len(looks)
    for _ in range(10):
        task.entry.for_page()

    assert counted == len(looks)


def test_a_cycle_is_copied_once():
    value: dict[str, object] = {"f": frame(), "rows": []}
    value["rows"].append(value)  # type: ignore[union-attr]
    mine = copies.own_copies(value, copies.holding_frames(value))

    assert mine["rows"][0] is mine is not value
    assert mine["f"] is not value["f"]


def test_frames_are_found_while_another_thread_imports_pandas(front, monkeypatch):
    """It is among the modules then, and has no DataFrame yet, nor a version."""
    monkeypatch.setitem(sys.modules, "pandas", ModuleType("pandas"))
    monkeypatch.setitem(sys.modules, "polars", ModuleType("polars"))
    task = task_of(front, {"a": [object]})

    assert task() is task.view().value is task.entry.value


def test_before_pandas_3_a_page_gets_a_full_copy(monkeypatch):
    """As what is written into a shallow one would reach everybody; unless copy-on-write is switched on."""
    value = {"f": frame()}
    deep = list[bool]()
    monkeypatch.setattr(pd.DataFrame, "copy", lambda self, deep=True, log=deep: log.append(deep) or self)
    monkeypatch.setattr(pd, "__version__", "2.3.1")
    for option in (False, "warn", True):
        monkeypatch.setattr(pd, "get_option", lambda name, option=option: option)
        copies.own_copies(value, copies.holding_frames(value))
    copies.own_copy(value["f"])

    assert [True, True, False, False] == deep


def test_a_partial_result_is_the_readers_own(front):
    """Of a run that several follow."""

    def publishes():
        yield frame()

    run = front.background(executor="thread", name="job")(publishes).submit()
    run.result(PATIENCE)
    for mine in (run.partials[-1], next(iter(run.partials)), run.partials[:][0]):
        mine["share"] = 0.5

    assert ["sold"] == list(run.partials[0])
