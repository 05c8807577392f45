"""What functions in worker processes ask: tasks' values, memoized functions' answers, runs, and ``ps.store``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from ..clock import Clock
from ..errors import RegistrationError, ScheduleError
from ..functions.run import Run, _current, place
from ..stores.base import USER, Store
from .state import TaskState


class Desk(Protocol):
    """What is to be found at the scheduler's."""

    clock: Clock
    store: Store
    states: dict[str, TaskState]
    compute: Callable[[str, Any, Any], Any]
    submit: Callable[[Run, str, Any, Any], Run]
    find: Callable[[Run, str], Run]


def answer(desk: Desk, run: Run, question: str, name: str = "", value: Any = None) -> Any:
    """
    Answer a question that `run` asks; on a thread that may wait.

    Raises
    ------
    KeyError
        When nothing is stored under that name.
    """
    match question:
        case "task":
            if (state := desk.states.get(name)) is None:
                raise RegistrationError(f"Task {name!r} is not scheduled any more; schedule its function again.")
            # Its own slot says which value it is to see, and for which it waits.
            _current.set(run)
            return state.task()
        case "memo":
            # Its own run says what waits for what.
            _current.set(run)
            return desk.compute(name, *value)
        case "submit":
            return desk.submit(run, name, *value).id
        case "run":
            return getattr(desk.find(run, name), value)
        case "cancel":
            return desk.find(run, name).cancel(value)
        case "result":
            child, ended = desk.find(run, name), threading.Event()
            child.add_done_callback(lambda _: ended.set())
            with place:
                ended.wait(value)
            return (True, child.result()) if child.state.final else (False, None)
        case "get":
            if (entry := desk.store.entry(USER, name)) is None:
                raise KeyError(name)
            return entry.shared
        case "set":
            return desk.store.publish(USER, name, value, now=desk.clock.now()) and None
        case "delete":
            return desk.store.delete(USER, name)
        case "names":
            return list(desk.store.names(USER))
    raise ScheduleError(f"A worker process asks {question!r}, to which there is no answer.")
