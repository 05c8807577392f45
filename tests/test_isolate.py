"""isolate=True: each read is a private copy-on-write view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core import PATIENCE
from panel_schedule.config import Config
from panel_schedule.front import Front
from panel_schedule.runtime import Runtime


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
    """The default, at no cost: read-only by convention."""
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
