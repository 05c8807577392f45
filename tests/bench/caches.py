"""Where else several processes keep a value: each behind ``put`` and ``get``, and what a page's author writes."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

NAMES = {
    "task": "panel-schedule, a task's value",
    "store": "panel-schedule, a named value",
    "manager": "`multiprocessing.Manager().dict()`",
    "disk": "diskcache",
    "flask": "flask-caching FileSystemCache",
    "redis": "Redis",
}

STATEMENTS = {
    "task": "task()",
    "store": "ps.store['value']",
    "manager": "shared['value']",
    "disk": "disk['value']",
    "flask": "files.get('value')",
    "redis": "redis.get('value')",
}


@contextmanager
def places(folder: str) -> Iterator[dict[str, Any]]:
    """Where each peer keeps its values; those that are not installed are left out."""
    with multiprocessing.Manager() as manager, redis_server() as port:
        shared = manager.dict()
        key = bytes(multiprocessing.current_process().authkey)
        found: dict[str, Any] = {
            "task": f"file://{folder}/tasks",
            "store": f"file://{folder}/names",
            "manager": (key.hex(), pickle.dumps(shared).hex()),
            "disk": f"{folder}/disk",
            "flask": f"{folder}/flask",
        }
        yield found | ({"redis": port} if port is not None else {})


@contextmanager
def redis_server() -> Iterator[int | None]:
    """Its port; None where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        listens(port, 5)
        yield port
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port: int, seconds: float) -> None:
    """Wait until somebody listens there."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < deadline, f"nobody listens at {port}"
        time.sleep(0.05)


class Cache:
    """One of the peers, in this process."""

    def __init__(self, kind: str, place: Any):
        self.names: dict[str, Any] = {}
        self.put, self.get = getattr(self, f"_{kind}")(place)

    def _manager(self, place: tuple[str, str]) -> Any:
        key, proxy = map(bytes.fromhex, place)
        multiprocessing.current_process().authkey = key
        shared = self.names["shared"] = pickle.loads(proxy)
        return shared.__setitem__, shared.__getitem__

    def _disk(self, folder: str) -> Any:
        import diskcache

        disk = self.names["disk"] = diskcache.Cache(folder)
        return disk.__setitem__, disk.__getitem__

    def _flask(self, folder: str) -> Any:
        import flask
        import flask_caching

        options = {"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": folder}
        files = self.names["files"] = flask_caching.Cache(flask.Flask("bench"), config=options).cache
        return files.set, files.get

    def _redis(self, port: int) -> Any:
        # By its name alone: a module of this package must not be found instead.
        from redis import Redis

        redis = self.names["redis"] = Redis("127.0.0.1", port)

        def put(name: str, value: Any) -> None:
            redis.set(name, value if isinstance(value, bytes) else pickle.dumps(value, 5))

        def get(name: str) -> Any:
            return pickle.loads(redis.get(name))

        return put, get

    def _store(self, url: str) -> Any:
        import panel_schedule as ps

        self.names["ps"] = ps
        return ps.store.__setitem__, ps.store.__getitem__
