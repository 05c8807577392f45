"""What type checkers see of the package: they are to complain of the lines that say so, and of no other."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import panel_schedule as ps


@ps.schedule(period="1h")
def sales() -> dict[str, int]:
    return {"north": 1}


@ps.schedule("@daily", timezone="UTC")
async def rates() -> list[float]:
    return [1.0]


@ps.schedule(after=sales)
def steps() -> Iterator[int]:
    yield 1


@ps.schedule(after=sales)
async def later() -> AsyncIterator[str]:
    yield "a"


@ps.background
def job(region: str, years: int = 1) -> bytes:
    return b""


@ps.background(executor="loop", timeout="1m")
async def waits(region: str) -> float:
    return 1.0


@ps.memoize
def answer(region: str) -> set[int]:
    return {1}


@ps.memoize(ttl="5m", keep=bool)
async def fetched(url: str) -> str:
    return url


@ps.memoize(ttl=lambda found: "1h")
def parts(n: int) -> Iterator[complex]:
    yield 1j


async def main() -> None:
    assert_type(sales(), dict[str, int])
    assert_type(rates(), list[float])
    assert_type(steps(), int)
    assert_type(later(), str)
    assert_type(await sales.refresh(), dict[str, int])
    assert_type(await rates.ready(), list[float])
    assert_type(sales.view().value, dict[str, int])
    assert_type(job("north"), bytes)
    assert_type(await job.submit("north", years=2), bytes)
    assert_type(job.submit("north").result(1), bytes)
    assert_type(await waits.submit("north"), float)
    assert_type(await waits("north"), float)
    assert_type(answer("north"), set[int])
    assert_type(answer.submit("north").result(), set[int])
    assert_type(answer.view("north").value, set[int] | None)
    assert_type(await fetched("a"), str)
    assert_type(await fetched.submit("a"), str)
    assert_type(fetched.refresh("a").value, str)
    assert_type(fetched.view("a").value, str | None)
    assert_type(parts.submit(1).result(), complex)
    answer.submit(1)  # wrong
    job("north", days=1)  # wrong
    job.submit()  # wrong
    ps.memoize(tll="5m")  # wrong
    ps.schedule(perod="5m")  # wrong
    sales("north")  # wrong
