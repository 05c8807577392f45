"""Named values that every session shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

from .clock import Clock
from .entry import Entry
from .stores.base import USER, Store
from .views import Views


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

    def __init__(self, store: Callable[[], Store], views: Callable[[], Views], clock: Clock):
        self._store = store
        self._views = views
        self._clock = clock

    def entry(self, name: str) -> Entry | None:
        """The value with its version and time; None where there is none."""
        return self._store().entry(USER, name)

    def rx(self, name: str) -> Any:
        """The live value as a reactive expression; it is None until there is a value."""
        return self._views().of_name(_name(name), partial(self.entry, name)).param.value.rx()

    def __getitem__(self, name: str) -> Any:
        entry = self.entry(name)
        if entry is None:
            raise KeyError(name)
        return entry.value

    def __setitem__(self, name: str, value: Any) -> None:
        self._store().publish(USER, _name(name), value, now=self._clock.now())

    def __delitem__(self, name: str) -> None:
        self._store().delete(USER, name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.entry(name) is not None

    def __iter__(self) -> Iterator[str]:
        return self._store().names(USER)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<store: {', '.join(self) or 'empty'}>"


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"Names in ps.store are non-empty strings, and not {name!r}.")
    return name
