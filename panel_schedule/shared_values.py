"""Named values that every session shares."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

from .clock import Clock
from .coordination.tasks import USER
from .errors import ScheduleError
from .functions.memoize import Memoized
from .functions.registry import is_text
from .functions.remote import store_here
from .functions.run import on_a_loop
from .serialize.checks import require_data
from .serialize.copies import PLAIN, as_it_is_now, own_copy
from .serialize.entry import Entry
from .serialize.errors import bare, first_line
from .stores.base import Store
from .stores.values import whose
from .views.base import Views

log = logging.getLogger("panel_schedule")

_DELETED = object()
_ABSENT = object()


class NamedValues(MutableMapping[str, Any]):
    """
    Named values that every session shares: ``ps.store``.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> ps.store["rates"] = {"EUR": 1.0, "USD": 1.1}
    >>> ps.store["rates"]["USD"]
    1.1
    >>> ps.store.entry("rates").version
    1
    >>> ps.store.get("weights") is None
    True
    >>> del ps.store["rates"]
    """

    def __init__(
        self,
        store: Callable[[], Store],
        views: Callable[[], Views],
        clock: Clock,
        aside: Callable[[Callable[[], object]], object],
        answers: Callable[[Memoized[Any, Any]], dict[str, Entry]],
    ):
        self._store = store
        self._views = views
        self._clock = clock
        self._aside = aside
        self._answers = answers
        self._lock = threading.Lock()
        # Values on their way to the store, which this process sees at once.
        self._pending: dict[str, Any] = {}

    def entry(self, name: str) -> Entry | None:
        """The value with its version and time; None where there is none."""
        # First this: what is not on its way any more when it is looked for is in the store by then.
        value = self._pending.get(name, _ABSENT)
        entry = self._store().values.entry(USER, name)
        if value is _ABSENT:
            return entry
        version = entry.version if entry is not None else 0
        return None if value is _DELETED else Entry(value, version + 1, self._clock.now())

    def entries(self, function: Memoized[Any, Any]) -> dict[str, Entry]:
        """
        What is kept of a memoized function, the answer that was used last first.

        Returns
        -------
        dict of str to Entry
            By the call as text, ``"filtered('north', 2026)"``.
        """
        if not isinstance(function, Memoized):
            raise TypeError(f"ps.store.entries() takes a memoized function, made by ps.memoize, and not {function!r}.")
        return self._answers(function)

    def rx(self, name: str) -> Any:
        """The live value as a reactive expression; it is None until there is a value."""
        return self._views().of_name(_name(name), partial(self.entry, name)).param.value.rx()

    def __getitem__(self, name: str) -> Any:
        entry = self.entry(name)
        if entry is None:
            raise KeyError(name)
        shared = entry.shared
        return shared if type(shared) in PLAIN else entry.value

    def __setitem__(self, name: str, value: Any) -> None:
        require_data(value, whose(USER, _name(name)))
        self._put(name, own_copy(value))

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._put(name, _DELETED)

    def _put(self, name: str, value: Any) -> None:
        if not (self._store().blocking and on_a_loop()):
            self._write(name, value)
            return
        # To serialise and to store it may take long: the loop has pages to serve.
        value = as_it_is_now(value)
        with self._lock:
            waiting = name in self._pending
            self._pending[name] = value
        if not waiting:
            self._aside(partial(self._write_pending, name))

    def _write(self, name: str, value: Any) -> None:
        if value is _DELETED:
            self._store().values.delete(USER, name)
        else:
            self._store().values.publish(USER, name, value, now=self._clock.now())

    def _write_pending(self, name: str) -> None:
        while True:
            with self._lock:
                value = self._pending[name]
            try:
                self._write(name, value)
            except KeyError:
                pass  # deleted by somebody else meanwhile
            except BaseException as error:  # of a thread of ours
                told = isinstance(error, ScheduleError)
                log.error("%s", error if told else first_line(error), exc_info=None if told else bare(error))
            with self._lock:
                if self._pending[name] is value:
                    del self._pending[name]
                    return

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.entry(name) is not None

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            pending = dict(self._pending)
        names = dict.fromkeys(self._store().values.names(USER))
        for name, value in pending.items():
            names.pop(name, None) if value is _DELETED else names.setdefault(name)
        return iter(list(names))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __reduce__(self) -> Any:
        return store_here, ()  # a function in a worker process may use it by its own name

    def __repr__(self) -> str:
        return f"<store: {', '.join(self) or 'empty'}>"


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"Names in ps.store are non-empty strings, and not {name!r}.")
    if not is_text(name):
        raise TypeError(f"{name!r} is no valid text, and names in ps.store are.")
    return name
