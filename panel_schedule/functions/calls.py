"""What a function gives: its value, or, of a generator, one after another."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import aclosing, closing
from types import FunctionType
from typing import Any

from ..errors import RunFailed


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it needs an event loop: a coroutine function or an async generator."""
    if isinstance(function, FunctionType):
        # The same at a tenth of the time: thousands of tasks may be registered.
        return bool(function.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
    plain = inspect.isroutine(function) or hasattr(function, "func")
    call = function if plain else type(function).__call__
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)


# What a cancelled future raises, on a loop and elsewhere.
CANCELLED = (asyncio.CancelledError, CancelledError)


def cancelled_inside(name: str, error: BaseException) -> RunFailed:
    """What a function has raised whose run nobody cancelled; who waits would take the error itself for his own end."""
    failed = RunFailed(
        f"{name}: its function raised {type(error).__name__}, though nobody has cancelled the run: something that it "
        "waited for was cancelled. Catch the error where that is awaited."
    )
    failed.__cause__ = error
    return failed


# What a generator function gives that has yielded, and returned None: its last item was the final one.
PUBLISHED = object()


def outcome(result: Any, yielded: Callable[[Any], object]) -> Any:
    """
    The value that a call has given.

    Parameters
    ----------
    result : object
        What the function returned. A generator is run to its end; it is closed, and its cleanup code called, also
        when `yielded` raises.
    yielded : callable
        Called with each item.
    """
    if not inspect.isgenerator(result):
        return result
    count = 0
    with closing(result):
        while True:
            try:
                item = next(result)
            except StopIteration as stop:
                return PUBLISHED if stop.value is None and count else stop.value
            yielded(item)
            count += 1


async def async_outcome(result: Any, yielded: Callable[[Any], Awaitable[object]]) -> Any:
    """The same of an async function, and of a plain generator that runs on an event loop."""
    count = 0
    if inspect.isasyncgen(result):
        async with aclosing(result):
            async for item in result:
                await yielded(item)
                count += 1
        return PUBLISHED if count else None
    if not inspect.isgenerator(result):
        return await result
    with closing(result):
        while True:
            try:
                item = next(result)
            except StopIteration as stop:
                return PUBLISHED if stop.value is None and count else stop.value
            await yielded(item)
            count += 1
