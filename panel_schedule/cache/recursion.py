"""Functions that wait for each other: each must end, and none may take the last place while it only waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..engine.service import Service
from ..errors import WouldBlock
from ..functions.run import _current
from .computation import Computation

# So many functions deep a thread computes what it waits for itself: each takes several frames of its stack, of 1000.
DEEPEST = 40


class Recursion:
    """Of the calling thread or coroutine: what it computes, and what that waits for."""

    def __init__(self, service: Service):
        self._service = service
        self._here = threading.local()

    @property
    def has_room(self) -> bool:
        """Whether this thread's stack has room for one more function: deep in a recursion another thread goes on."""
        return getattr(self._here, "depth", 0) < DEEPEST

    def help(self, computation: Computation) -> None:
        """Compute it on this thread, if it can be."""
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            computation.help()
        finally:
            self._here.depth -= 1

    @contextmanager
    def awaiting(self, other: Computation) -> Iterator[None]:
        """
        What the calling function does until it has the answer of another one.

        Raises
        ------
        WouldBlock
            When that one waits for it.
        """
        run = _current.get()
        own = None if run is None else run._execution
        if not isinstance(own, Computation):  # no memoized function
            yield
            return
        with self._service.locked:
            ahead, seen = [other], set[Computation]()
            while ahead:
                computation = ahead.pop()
                if computation is own and other is own:
                    raise WouldBlock(
                        f"{own.call} waits for itself, which would never end. Call the plain function there, "
                        f"{own.memo.name}.function(...), or let the recursion come to other arguments."
                    )
                if computation is own:
                    raise WouldBlock(
                        f"{own.call} waits for {other.call}, which waits for it: neither would ever end. Let one of "
                        "them do without the other."
                    )
                if computation not in seen:
                    seen.add(computation)
                    ahead += computation.waits_for
            own.waits_for.append(other)
        try:
            yield
        finally:
            with self._service.locked:
                own.waits_for.remove(other)
