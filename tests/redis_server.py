"""A Redis server that the tests start, and what may stand between it and its clients."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
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
