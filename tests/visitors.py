"""Visitors without a browser: they open a page and its websocket as a browser does, by the hundred."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

TOKEN = re.compile(r'"token":"([^"]+)"')
READY = {
    "events": [
        {
            "kind": "MessageSent",
            "msg_type": "bokeh_event",
            "msg_data": {"type": "event", "name": "document_ready", "values": {"type": "map", "entries": []}},
        }
    ]
}


class Visitor:
    """One open page: a session of its own, with its websocket."""

    def __init__(self, socket: WebSocketClientConnection):
        self._socket = socket
        # Bytes of all messages that were read.
        self.received = 0

    @classmethod
    async def open(cls, url: str) -> Visitor:
        client = AsyncHTTPClient()
        page = await client.fetch(HTTPRequest(url, request_timeout=60))
        found = TOKEN.search(page.body.decode())
        assert found is not None, f"no session token in the page at {url}"
        address = url.replace("http://", "ws://") + "/ws"
        cookies = "; ".join(cookie.partition(";")[0] for cookie in page.headers.get_list("Set-Cookie"))
        request = HTTPRequest(address, headers={"Origin": url.rsplit("/", 1)[0], "Cookie": cookies})
        socket = await websocket_connect(request, subprotocols=["bokeh", found[1]], max_message_size=1 << 30)
        # A message is three fragments: without this each would wait for the delayed acknowledgement of the last.
        socket.protocol.stream.set_nodelay(True)
        visitor = cls(socket)
        await visitor.read_until("ACK")
        await visitor.send("PATCH-DOC", READY)
        await visitor.read_until("OK")
        return visitor

    async def document(self) -> str:
        """All of the page as it is now, as JSON text."""
        await self.send("PULL-DOC-REQ", {})
        return await self.read_until("PULL-DOC-REPLY")

    async def click(self, button: str) -> None:
        """Press a button, by the id of its model."""
        values = {"type": "map", "entries": [["model", {"id": button}]]}
        event = {"type": "event", "name": "button_click", "values": values}
        await self.send(
            "PATCH-DOC", {"events": [{"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": event}]}
        )

    async def send(self, kind: str, content: dict[str, Any]) -> None:
        for fragment in ({"msgid": uuid.uuid4().hex, "msgtype": kind}, {}, content):
            await self._socket.write_message(json.dumps(fragment))

    async def read(self) -> tuple[str, str]:
        """The next message of the server: its type, and its content as JSON text."""
        header = json.loads(await self._text())
        await self._text()
        content = await self._text()
        for _ in range(2 * header.get("num_buffers", 0)):
            self.received += len(await self._socket.read_message() or "")
        return header["msgtype"], content

    async def read_until(self, kind: str, containing: str = "") -> str:
        """Read on until a message of this type, with this text in it; the content of that."""
        while True:
            found, content = await self.read()
            if found == kind and containing in content:
                return content

    async def _text(self) -> str:
        message = await self._socket.read_message()
        if message is None:
            raise ConnectionError("the server closed the websocket")
        assert isinstance(message, str)
        self.received += len(message)
        return message

    async def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def visitors(url: str, count: int, *, at_once: int = 10) -> AsyncIterator[list[Visitor]]:
    """
    `count` open pages, closed at the end.

    Some at once, for the server's first answer waits 40 ms for a delayed acknowledgement. But a session whose
    websocket does not come in its lifetime, since many are built at once, ends, and another one is built for it.
    """
    pages: list[Visitor] = []
    while len(pages) < count:
        pages += await asyncio.gather(*(Visitor.open(url) for _ in range(min(at_once, count - len(pages)))))
    try:
        yield pages
    finally:
        for page in pages:
            await page.close()
