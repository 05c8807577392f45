"""What the contracts are written with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ...coordination.tasks import USER, Claim
from ...functions.run import RunRecord, RunState
from ...serialize.entry import Entry
from ...stores.base import Store
from ...stores.tasks import Plan, Row
from ...triggers import Every, Schedule

START = datetime(2026, 1, 1, tzinfo=UTC)
HOURLY, DAILY = Every("1h"), Every("1d")

# What a thread of a test gets at most, in seconds.
PATIENCE = 20.0


def second(number: float) -> datetime:
    """So many seconds after the beginning of a test."""
    return START + timedelta(seconds=number)


@contextmanager
def raises(kind: type[BaseException], *words: str) -> Iterator[None]:
    """Fail unless such an error is raised that says all of this; for those who have no pytest."""
    caught: BaseException | None = None
    try:
        yield
    except kind as error:
        caught = error
    assert caught is not None, f"no {kind.__name__}"
    assert all(word in str(caught) for word in words), f"{caught!r} lacks one of {words}"


def put(store: Store, name: str, value: Any, space: str = USER, claim: Claim | None = None, **options: Any) -> Entry:
    """Store a value, as a run does that has the claim, or as nobody's."""
    if claim is None:
        return store.values.publish(space, name, value, now=START)
    entry: Entry = store.do(store.tasks.publish(value, now=START, claim=claim, **options))
    return entry


def claim(store: Store, task: str, run_id: str = "run", at: float = 0, **options: Any) -> Claim:
    """The claim, which has to be free."""
    got = store.do(store.tasks.claim(task, run_id, now=second(at), **options))
    assert isinstance(got, Claim), got
    return got


def refusal(store: Store, task: str, **options: Any) -> Any:
    """Why there is no claim; None where there is one, which is given back."""
    got = store.do(store.tasks.claim(task, "asking", now=START, **options))
    if isinstance(got, Claim):
        store.do(store.tasks.release(got))
        return None
    return got


def row_of(store: Store, task: str) -> Row:
    """What it says of a task, which it knows."""
    row = store.tasks.row(task)
    assert row is not None
    return row


def entry_of(store: Store, space: str, name: str) -> Entry:
    """What it has under this name, which is there."""
    entry = store.values.entry(space, name)
    assert entry is not None
    return entry


def enroll(store: Store, task: str, trigger: Schedule = HOURLY, at: float = 0, **how: bool) -> Any:
    return store.tasks.enroll([Plan(task, trigger, second(at))], **how)[task]


def ended(number: int, state: RunState = RunState.SUCCEEDED, **more: Any) -> RunRecord:
    return RunRecord(f"run{number}", second(number), state, finished_at=second(number), **more)


def skipped(first: int, last: int, reason: str = "overlap") -> RunRecord:
    return ended(first, RunState.SKIPPED, reason=reason, until=second(last))


def hammer(count: int, body: Callable[[int], object]) -> list[BaseException]:
    """The same in so many threads at once; what went wrong in one of them."""
    barrier, errors = threading.Barrier(count, timeout=PATIENCE), list[BaseException]()

    def work(number: int) -> None:
        try:
            barrier.wait()
            body(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    return errors


def observe(act: Callable[[], object], look: Callable[[], object]) -> list[BaseException]:
    """Look in two threads until another one has acted; what went wrong in one of them."""
    over = threading.Event()

    def body(number: int) -> None:
        while number and not over.is_set():
            look()
        if not number:
            try:
                act()
            finally:
                over.set()

    return hammer(3, body)
