"""What raises where a worker process can see it: a file of its own, for what imports Panel takes a worker seconds."""

from __future__ import annotations

import asyncio
import os
from typing import Any


async def inner() -> None:
    task = asyncio.ensure_future(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await task


def plain() -> None:
    asyncio.run(inner())


class Panic(BaseException):
    pass


class Bad:
    """Raises it when it is pickled, or when it is read again."""

    def __init__(self, error: BaseException, later: bool):
        self.error, self.later = error, later

    def __reduce__(self) -> Any:
        if self.later:
            return throw, (self.error,)
        raise self.error


def throw(error: BaseException) -> None:
    raise error


class Unpickled:
    """Raises it when another process reads it."""

    def __init__(self, error: BaseException):
        self.error, self.home = error, os.getpid()

    def __reduce__(self) -> Any:
        return elsewhere, (self.home, self.error)


def elsewhere(home: int, error: BaseException) -> int:
    if os.getpid() != home:
        raise error
    return 1
