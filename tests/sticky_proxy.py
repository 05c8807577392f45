"""What stands before several replicas: a proxy that keeps each visitor at his own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Self

COOKIE = re.compile(rb"^cookie:.*\bvisitor=([\w-]+)", re.IGNORECASE | re.MULTILINE)
CONNECTION = re.compile(rb"^connection:[^\n]*\n", re.IGNORECASE | re.MULTILINE)
WEBSOCKET = re.compile(rb"^upgrade: *websocket", re.IGNORECASE | re.MULTILINE)


class StickyProxy:
    """
    Sends a new visitor to the next replica, one with a cookie to the same as before, and whom that refuses to another.

    `replicas` are the ports of the replicas by their names, and may change. One request for each connection.
    """

    def __init__(self, replicas: Mapping[str, int]):
        self.replicas = replicas
        self._turn = count()
        self._open = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, visitor: asyncio.StreamReader, to_visitor: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._pass_on(visitor, to_visitor)
        finally:
            self._open.discard(task)
            to_visitor.close()

    async def _pass_on(self, visitor: asyncio.StreamReader, to_visitor: asyncio.StreamWriter) -> None:
        request = await visitor.readuntil(b"\r\n\r\n")
        name, replica, to_replica = await self._connect(request)
        try:
            if not WEBSOCKET.search(request):
                request = CONNECTION.sub(b"", request)[:-2] + b"Connection: close\r\n\r\n"
            to_replica.write(request)
            response = await replica.readuntil(b"\r\n\r\n")
            to_visitor.write(response[:-2] + b"Set-Cookie: visitor=%s; Path=/\r\n\r\n" % name.encode())
            ways = [asyncio.create_task(_copy(visitor, to_replica)), asyncio.create_task(_copy(replica, to_visitor))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
        finally:
            to_replica.close()

    async def _connect(self, request: bytes) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        names = sorted(self.replicas)
        cookie = COOKIE.search(request)
        known = cookie is not None and cookie[1].decode() in names
        first = names.index(cookie[1].decode()) if cookie and known else next(self._turn)
        for each in range(first, first + len(names)):
            name = names[each % len(names)]
            with suppress(ConnectionRefusedError):
                return name, *await asyncio.open_connection("127.0.0.1", self.replicas[name])
        raise ConnectionRefusedError("no replica is there")


async def _copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            to.write(data)
            await to.drain()
