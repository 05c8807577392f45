"""A Redis server that the tests start, and what may stand between it and its clients."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server") or ""

# What a test waits at most for it to end, in seconds.
PATIENCE = 20.0


def free_port() -> int:
    """One that a server of a cluster can have: it uses the one 10,000 above, too."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            if (port := free.getsockname()[1]) < 55_000:
                return port


class RedisServer:
    """A server on a free port, with nothing of it outside of a directory."""

    def __init__(self, folder: Path, *options: str):
        redis = pytest.importorskip("redis", reason="needs the package redis")
        if not PROGRAM:
            pytest.skip("needs redis-server")
        self.port = free_port()
        self.folder, self.options = folder, options
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port, protocol=2)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
                "--unixsocket", str(self.folder / "sock"), *self.options,
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert any("eady to accept connections" in line for line in self.process.stdout), "it does not start"
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def stop(self) -> None:
        self.go_on()
        self.process.terminate()
        self.process.wait(PATIENCE)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def calls(self) -> int:
        """How many scripts it has run."""
        stats = self.client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


class Proxy:
    """Between a client and a server, on a port of its own; drops the next `cut` replies, with their connections."""

    def __init__(self, port: int):
        self._to, self.cut, self.cuts = port, 0, 0
        self._open = list[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                theirs, _ = self._door.accept()
            except OSError:
                return
            try:
                ours = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                theirs.close()
                continue
            self._open += [theirs, ours]
            threading.Thread(target=self._pass, args=(theirs, ours, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(ours, theirs, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, reply: bool) -> None:
        try:
            while data := source.recv(65536):
                if reply and self.cut:
                    self.cut, self.cuts = self.cut - 1, self.cuts + 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def switch(self, port: int) -> None:
        """To another server, as after a failover."""
        self._to, gone, self._open = port, self._open, []
        for each in gone:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.close()
