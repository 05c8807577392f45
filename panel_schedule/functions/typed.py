"""What type checkers know of the decorators: what becomes of a function of which kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from .background import Background
from .family import Family
from .memoize import Memoized
from .task import Task

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:

    class AsyncBackground(Background[P, T]):
        """Of an ``async def``, whose plain call gives a coroutine."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]: ...  # type: ignore[override]

    class SteppedBackground(Background[P, T]):
        """Of a generator function, whose plain call gives an iterator."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]: ...  # type: ignore[override]

    class AsyncSteppedBackground(Background[P, T]):
        """Of an async generator function."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]: ...  # type: ignore[override]

    class AsyncMemoized(Memoized[P, T]):
        """Of an ``async def``, or of an async generator function: a call is awaited."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]: ...  # type: ignore[override]


# Each is tried in turn: what nothing before it has taken is a plain function.


class TaskDecorator(Protocol):
    """What ``ps.schedule(...)`` returns."""

    @overload
    def __call__(self, function: Callable[[], Coroutine[Any, Any, T]], /) -> Task[T]: ...
    @overload
    def __call__(self, function: Callable[[], AsyncIterator[T]], /) -> Task[T]: ...
    @overload
    def __call__(self, function: Callable[[], Iterator[T]], /) -> Task[T]: ...
    @overload
    def __call__(self, function: Callable[[], T], /) -> Task[T]: ...
    # With ``each=``: a required parameter, which is the key.
    @overload
    def __call__(self, function: Callable[[str], Coroutine[Any, Any, T]], /) -> Family[T]: ...
    @overload
    def __call__(self, function: Callable[[str], AsyncIterator[T]], /) -> Family[T]: ...
    @overload
    def __call__(self, function: Callable[[str], Iterator[T]], /) -> Family[T]: ...
    @overload
    def __call__(self, function: Callable[[str], T], /) -> Family[T]: ...


class BackgroundDecorator(Protocol):
    """What ``ps.background(...)`` returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncBackground[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[T]], /) -> AsyncSteppedBackground[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Iterator[T]], /) -> SteppedBackground[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Background[P, T]: ...


class MemoDecorator(Protocol):
    """What ``ps.memoize(...)`` returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncMemoized[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[T]], /) -> AsyncMemoized[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Iterator[T]], /) -> Memoized[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Memoized[P, T]: ...
