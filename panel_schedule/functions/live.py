"""What type checkers know of the views of tasks and memoized functions, which are made in a layer above."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


class LiveValue(Protocol[T_co]):
    """A value as one session sees it; see ``ps.TaskView`` and ``ps.MemoView``, whose params these are."""

    param: Any

    @property
    def value(self) -> T_co: ...
    @property
    def version(self) -> int: ...
    @property
    def updated_at(self) -> datetime | None: ...
    @property
    def running(self) -> bool: ...
    @property
    def percent(self) -> int: ...
    @property
    def message(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def stale(self) -> bool: ...

    def pipe(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...


class LiveTask(LiveValue[T_co], Protocol[T_co]):
    """``task.view()``."""

    @property
    def state(self) -> str: ...
    @property
    def next_run(self) -> datetime | None: ...


class LiveAnswer(LiveValue[T_co], Protocol[T_co]):
    """``function.view(...)``."""

    @property
    def rx(self) -> Any: ...

    def refresh(self, _event: object = None) -> Any: ...
