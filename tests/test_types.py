"""What type checkers see of what the decorators make."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_overloads

import pytest

import panel_schedule as ps
from panel_schedule.decorators import Front
from panel_schedule.functions.live import LiveAnswer, LiveTask

# An error is expected in the lines that say so, and in no other.
CODE = """
from collections.abc import AsyncIterator, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any, assert_type

import panel_schedule as ps

@ps.schedule(period="15m")
def plain() -> list[int]:
    return [1]

@ps.schedule("0 6 * * *", timezone="UTC", needs=plain, retry=ps.Retry(3))
async def coroutine() -> list[int]:
    return [1]

@ps.schedule(period="15m")
def steps() -> Iterator[str]:
    yield "a"

@ps.schedule(after=[plain, steps])
async def async_steps() -> AsyncIterator[str]:
    yield "a"

@ps.background
def bare_job(x: int, y: str = "") -> float:
    return 1.0

@ps.background(timeout="10m", retry=2)
def job(x: int, y: str = "") -> float:
    return 1.0

@ps.background(executor="loop")
async def async_job(x: int) -> float:
    return 1.0

@ps.background
def stepped_job(x: int) -> Iterator[float]:
    yield 1.0

@ps.memoize
def bare_memo(x: int) -> float:
    return 1.0

@ps.memoize(ttl="5m", after=plain)
def memo(x: int) -> float:
    return 1.0

@ps.memoize
async def async_memo(x: int) -> float:
    return 1.0

@ps.memoize(ttl="5m")
async def async_steps_memo(x: int) -> AsyncIterator[float]:
    yield 1.0

@ps.schedule(period="5m", each=["north", "south"])
def sales(region: str) -> list[int]:
    return [1]

@ps.schedule(after=plain, each=lambda: ["north"])
async def async_sales(region: str) -> float:
    return 1.0

@ps.schedule(period="5m", each=plain)
def steps_of_sales(region: str) -> Iterator[bytes]:
    yield b""

class Source:
    def read(self) -> bytes:
        return b""

method = ps.schedule(period="1h", name="method")(Source().read)

async def use() -> None:
    assert_type(plain(), list[int])
    assert_type(coroutine(), list[int])
    assert_type(steps(), str)
    assert_type(async_steps(), str)
    assert_type(method(), bytes)
    assert_type(sales, ps.Family[list[int]])
    assert_type(sales["north"](), list[int])
    assert_type(await async_sales["north"].refresh(), float)
    assert_type([task() for task in steps_of_sales.values()], list[bytes])
    assert_type(plain.refresh().result(), list[int])
    assert_type(await coroutine.refresh(), list[int])
    assert_type(await plain.ready(), list[int])
    assert_type(plain.view().value, list[int])
    assert_type(plain.view().next_run, datetime | None)
    assert_type(bare_job(1), float)
    assert_type(job(1), float)
    assert_type(await async_job(1), float)
    assert_type(next(stepped_job(1)), float)
    assert_type(job.submit(1, y=""), ps.Run[float])
    assert_type(bare_job.submit(1).result(5), float)
    assert_type(await async_job.submit(1), float)
    assert_type(await stepped_job.submit(1), float)
    assert_type(job.submit_in("10m", 1), ps.Run[float])
    assert_type(job.submit_at(datetime.now(UTC), 1, y="a"), ps.Run[float])
    assert_type(bare_memo(1), float)
    assert_type(memo(x=1), float)
    assert_type(await async_memo(1), float)
    assert_type(await async_steps_memo(1), float)
    assert_type(await memo.submit(1), float)
    assert_type(memo.refresh(1).result(), float)
    assert_type(memo.view(1).value, float | None)
    assert_type(async_memo.view(x=1).value, float | None)
    ps.Freshness(plain)
    ps.Freshness(memo.view(1))
    plain.function()
    run: ps.Run = job.submit(1)
    print(run.state)
    job.submit("a")  # error
    job.submit()  # error
    job.submit_in("5m", "a")  # error
    bare_job("a")  # error
    memo("a")  # error
    memo.submit(z=1)  # error
    plain.value  # error
    plain(1)  # error
    sales[1]  # error
    ps.schedule(perod="1h")  # error
    ps.background(excutor="thread")  # error
    ps.memoize(ttl="5m", max_entries="many")  # error
"""

# What other packages say of themselves is read for a minute, and says nothing of ours.
OTHERS = (
    "bokeh",
    "celery",
    "cloudpickle",
    "distributed",
    "numpy",
    "pandas",
    "panel",
    "param",
    "psycopg",
    "redis",
    "tornado",
)
SETTINGS = "[mypy]\n" + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in OTHERS)


def wrong(output: str) -> set[int]:
    """The lines that a checker calls wrong."""
    return {int(number) for number in re.findall(r"code\.py:(\d+)(?::\d+)?(?: -|:) error", output)}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, "-m", "mypy", "--strict", "code.py"], id="mypy"),
        pytest.param(
            ["basedpyright", "--level", "error", "--pythonpath", sys.executable, "code.py"],
            id="pyright",
            marks=pytest.mark.skipif(shutil.which("basedpyright") is None, reason="basedpyright is not installed"),
        ),
    ],
)
@pytest.mark.slow
@pytest.mark.unhurried
def test_a_checker_sees_what_each_gives(tmp_path: Path, command: list[str]) -> None:
    """And each misuse, down to a misspelt option."""
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    expected = {number for number, line in enumerate(CODE.splitlines(), 1) if "# error" in line}
    assert expected == wrong(ended.stdout), ended.stdout + ended.stderr


@pytest.mark.parametrize("name", ["background", "memoize"])
def test_a_checker_knows_all_options(name: str) -> None:
    """Those that stand there for checkers are those that there are."""

    def stand_in() -> None: ...

    stand_in.__module__, stand_in.__qualname__ = Front.__module__, f"Front.{name}"
    told, there = (inspect.signature(each).parameters for each in (get_overloads(stand_in)[-1], getattr(Front, name)))
    assert [(each.name, each.kind, each.default, each.annotation) for each in there.values()][2:] == [
        (each.name, each.kind, each.default, each.annotation) for each in told.values()
    ][2:]


@pytest.mark.parametrize(("view", "known"), [(ps.TaskView, LiveTask), (ps.MemoView, LiveAnswer)])
def test_a_checker_knows_all_that_a_view_has(view: type, known: type) -> None:
    """What `task.view()` is said to give has the public names of what it gives."""
    base = {name for kind in view.__mro__ if kind.__module__.partition(".")[0] == "param" for name in vars(kind)}
    public = {name for name in dir(view) if not name.startswith("_")} - base
    told = {name for kind in known.__mro__ for name in vars(kind) if not name.startswith("_")} - {"register"}
    assert public == told
