"""
In a notebook: what a function prints, and the log says of it, belongs to the cell that has defined it.

The kernel gives what comes without a cell to the one that runs at that moment, whoever has printed it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

log = logging.getLogger("panel_schedule")

# By "Task 'sales'", as errors and the log have it, the header of the cell; "" is the cell that came last.
_cells: dict[str, Any] = {}

# What the cell that runs has defined; and what others have, with the id of the cell: whom to tell when it is gone.
_new: dict[str, Callable[[str], object]] = {}
_defined: dict[str, tuple[str, Callable[[str], object]]] = {}

_NAME = re.compile(r"(?:Task|Job|Memoized function) '[^']*'")


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    return hasattr(_shell(), "kernel")


def remember(name: str, undefined: Callable[[str], object]) -> None:
    """
    The cell that runs now has defined this function.

    Parameters
    ----------
    undefined : callable
        Called with the name when the same cell has run again, and has not defined it again.
    """
    if header := getattr(sys.stdout, "parent_header", None):
        if not _cells:
            log.addFilter(_of_its_cell)
            _shell().events.register("post_run_cell", _cell_has_run)
            _wake_at_signals()
        _cells[name] = _cells[""] = header
        _new[name] = undefined


def _cell_has_run(result: Any) -> None:
    """What it defined before, and not this time, is gone; unless another cell has defined it since, or it failed."""
    new, cell = dict(_new), _cell_id()
    _new.clear()
    for name in new:
        _defined.pop(name, None)
    if cell and result.success:
        for name, (by, undefined) in list(_defined.items()):
            if by == cell:
                del _defined[name]
                undefined(name)
    _defined.update({name: (cell, undefined) for name, undefined in new.items()})


def _cell_id() -> str:
    """Of the cell that runs, which keeps it when it is edited; "" where the client does not say it."""
    metadata = _shell().get_parent().get("metadata") or {}
    return metadata.get("cellId") or ""


def _wake_at_signals() -> None:
    """
    Let an interrupt end a cell at once that awaits something.

    The kernel's handler cancels it by a callback of the loop, which sleeps on until something else happens.
    """
    with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):  # Windows; no loop; another thread
        # Any handler lets the loop hear of all signals. This one is ignored by default.
        asyncio.get_running_loop().add_signal_handler(signal.SIGURG, lambda: None)


def speak(name: str, own: bool = False) -> None:
    """
    From here on what is printed in this context, unless it is a cell's, goes to the cell of a function.

    Parameters
    ----------
    own : bool
        Whether it is that of a thread of ours, which speaks for one function after another.
    """
    if _cells:
        found = _NAME.search(name)
        header = _cells.get(found[0] if found else "", _cells[""])
        for variable in _headers():
            if variable.get(None) is None or (own and found):
                variable.set(header)


def _of_its_cell(record: logging.LogRecord) -> bool:
    """A filter that lets all pass: what our own threads, and the loop's callbacks, say has no cell by itself."""
    thread = threading.current_thread()
    own = thread.name.startswith("panel-schedule")
    if own or thread is threading.main_thread():
        speak(record.getMessage(), own)
    return True


def _headers() -> Iterator[ContextVar[Any]]:
    """Where the kernel looks for the cell of what is printed, displayed or raised."""
    shell = _shell()
    for channel in (sys.stdout, sys.stderr, getattr(shell, "display_pub", None), getattr(shell, "displayhook", None)):
        if isinstance(variable := getattr(channel, "_parent_header", None), ContextVar):
            yield variable


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
