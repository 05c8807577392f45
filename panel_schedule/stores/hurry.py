"""How long a store lets its caller wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Seconds for which an event loop stands still for a store that is busy, at most.
SOON = 0.1

# Seconds for which a process that ends waits for a store that does not answer, with each of its last words.
LAST = 1.0

_hurry = threading.local()


@contextmanager
def hurried(so: Callable[[], bool]) -> Iterator[None]:
    """While ``so()`` an event loop waits for what this thread does: a store that is busy then fails, and soon."""
    outer, _hurry.so = getattr(_hurry, "so", None), so  # in a body that computes another answer on its own thread
    try:
        yield
    finally:
        _hurry.so = outer


def in_a_hurry() -> bool:
    """Whether this thread is to wait for SOON at most."""
    so: Callable[[], bool] | None = getattr(_hurry, "so", None)
    return so is not None and so()


@contextmanager
def leaving() -> Iterator[None]:
    """This thread says the last words of its process."""
    _hurry.leaving = True
    try:
        yield
    finally:
        _hurry.leaving = False


def is_leaving() -> bool:
    """Whether this thread is to wait for LAST at most."""
    return getattr(_hurry, "leaving", False)
