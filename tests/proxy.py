"""A proxy between processes and a server, which loses, delays and cuts what it passes."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """
    Passes bytes between any number of connections and a server on this machine.

    Attributes
    ----------
    port : int
        Where it listens, on the loopback address.
    to : int
        Where connections go that come from now on.
    cut : int
        So many of the next replies never arrive: their connections are closed instead.
    torn : int
        The same, after half of the reply.
    lose : bytes
        The same of each request that these are in, as long as there are any.
    delay : float
        Seconds that each request waits.
    cuts : int
        How many replies were cut or torn.
    """

    def __init__(self, port: int):
        self.to, self.cut, self.torn, self.cuts, self.delay = port, 0, 0, 0, 0.0
        self.lose, self._losing = b"", set[tuple[socket.socket, ...]]()
        self._open, self._closed = threading.Event(), threading.Event()
        self._open.set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def stall(self) -> None:
        """Pass nothing, and close nothing: as a network that has lost its way."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def drop(self) -> None:
        """Close all connections."""
        for pair in list(self._pairs):
            _end(pair)

    def close(self) -> None:
        # Who waits in accept() keeps the port open until somebody comes.
        self._closed.set()
        self._open.set()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._door.close()
        self.drop()

    def _serve(self) -> None:
        while not self._closed.is_set():
            theirs, _ = self._door.accept()
            try:
                ours = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                theirs.close()
                continue
            for each in (theirs, ours):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.add(pair := (theirs, ours))
            threading.Thread(target=self._pass, args=(pair, theirs, ours, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(pair, ours, theirs, True), daemon=True).start()

    def _pass(self, pair: tuple[socket.socket, ...], source: socket.socket, sink: socket.socket, reply: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                if reply and (self.cut or pair in self._losing):
                    self.cut, self.cuts = max(self.cut - 1, 0), self.cuts + 1
                    break
                if reply and self.torn:
                    self.torn, self.cuts = self.torn - 1, self.cuts + 1
                    sink.sendall(data[: len(data) // 2])
                    break
                if not reply and self.lose and self.lose in data:
                    self._losing.add(pair)
                if not reply and self.delay:
                    self._closed.wait(self.delay)
                    with suppress(BlockingIOError):
                        data += source.recv(1 << 22, socket.MSG_DONTWAIT)  # one request waits once
                sink.sendall(data)
        _end(pair)
        self._losing.discard(pair)
        self._pairs.discard(pair)  # type: ignore[arg-type]


def _end(pair: tuple[socket.socket, ...]) -> None:
    for each in pair:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
