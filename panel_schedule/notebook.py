"""
In a notebook: what a function prints, and the log says of it, belongs to the cell that has defined it.

The kernel gives what comes without a cell to the one that runs at that moment, whoever has printed it.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

log = logging.getLogger("panel_schedule")

# By "Task 'sales'", as errors and the log have it, the header of the cell; "" is the cell that came last.
_cells: dict[str, Any] = {}

_NAME = re.compile(r"(?:Task|Job|Memoized function) '[^']*'")


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    return hasattr(_shell(), "kernel")


def remember(name: str) -> None:
    """The cell that runs now has defined this function."""
    header = getattr(sys.stdout, "parent_header", None)
    if header and in_notebook():
        if not _cells:
            log.addFilter(_of_its_cell)
        _cells[name] = _cells[""] = header


def speak(name: str) -> None:
    """From here on what is printed in this context, unless it is a cell's, goes to the cell of a function."""
    if _cells:
        found = _NAME.search(name)
        header = _cells.get(found[0] if found else "", _cells[""])
        for variable in _headers():
            if variable.get(None) is None:
                variable.set(header)


def _of_its_cell(record: logging.LogRecord) -> bool:
    """A filter that lets all pass: what our own threads, and the loop's callbacks, say has no cell by itself."""
    thread = threading.current_thread()
    if thread is threading.main_thread() or thread.name.startswith("panel-schedule"):
        speak(record.getMessage())
    return True


def _headers() -> Iterator[ContextVar[Any]]:
    """Where the kernel looks for the cell of what is printed, displayed or raised."""
    shell = _shell()
    for channel in (sys.stdout, sys.stderr, getattr(shell, "display_pub", None), getattr(shell, "displayhook", None)):
        if isinstance(variable := getattr(channel, "_parent_header", None), ContextVar):
            yield variable


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
