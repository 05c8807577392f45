"""The children of a fork: a SIGTERM for one of them ends it, however early it comes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def register(in_child: Callable[[], object]) -> None:
    """
    Have `in_child`, which gives SIGTERM its default meaning back, called in the child of each fork.

    Until then SIGTERM is blocked there. Python would take it by the handler of its parent, and forget that: such a
    child of a `multiprocessing.Pool` is never ended, and its pool waits for it without end.
    """
    mask = threading.local()

    def block() -> None:
        # Each of these may raise: a handler is called in them.
        mask.former = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.__dict__.pop("former", []))

    def restore_in_child() -> None:
        in_child()
        restore()

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=restore_in_child)
