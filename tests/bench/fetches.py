"""What it costs a replica on another machine to read a large value from a Redis server, first and again."""

from __future__ import annotations

import pickle
import tempfile
import time
from pathlib import Path
from statistics import median

from redis_server import PROGRAM, RedisServer

from .child import Child
from .neighbours import frame
from .table import Table, middle, verdict

ROUNDS = 15
SECRETS = {"": "not signed", "s3cret": "signed"}


class Replica:
    """One of a machine of its own: it has a directory for temporary files that nobody shares."""

    def __init__(self, url: str, secret: str, folder: str):
        import pandas  # noqa: F401
        import redis

        from panel_schedule.clock import SystemClock
        from panel_schedule.stores.redis import RedisStore

        tempfile.tempdir = folder
        self.store = RedisStore(url, SystemClock(), secret=secret)
        self.client = redis.Redis.from_url(url)

    async def write(self, number: int) -> float:
        """Store it in both ways; seconds that ours takes."""
        from panel_schedule.coordination.tasks import USER

        value, now = frame(number), self.store._clock.now()
        self.client.set("plain", pickle.dumps(value, 5))
        begin = time.perf_counter()
        self.store.values.publish(USER, "value", value, now=now)
        return time.perf_counter() - begin

    async def read(self, number: int) -> tuple[float, float, float]:
        """Seconds that ours takes, for the first time and again, and theirs."""
        from panel_schedule.coordination.tasks import USER

        record = self.store.records.read(USER, "value")
        assert record is not None
        begin = time.perf_counter()
        ours = self.store.records.load(record, "value")
        first = time.perf_counter()
        self.store.records.load(record, "value")
        again = time.perf_counter()
        theirs = pickle.loads(self.client.get("plain"))  # type: ignore[arg-type]
        end = time.perf_counter()
        assert ours.equals(theirs)
        assert ours.equals(frame(number))
        return first - begin, again - first, end - again

    async def close(self) -> None:
        self.store.close()


def measure(secret: str) -> list[tuple[float, ...]]:
    """By round, in seconds: to store it, to read it for the first time, again, and as redis-py does."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("server", "writer", "reader"):
            Path(folder, name).mkdir()
        server = RedisServer(Path(folder, "server"))
        writer, reader = (Child(Replica, server.url, secret, str(Path(folder, name))) for name in ("writer", "reader"))
        for number in range(ROUNDS + 1):
            stored = writer.ask("write", number)
            found.append((stored, *reader.ask("read", number)))
        for child in (writer, reader):
            child.ask("close")
            child.close()
        server.stop()
    return found[1:]  # the first round warms up


def tables() -> list[Table]:
    table = Table(
        "The first read of a new 10 MB DataFrame in a replica on another machine",
        ["what", "first, ms", "again, ms", "`redis.get` and `pickle.loads`, ms", "to store it, ms"],
    )
    table.text = (
        f"{ROUNDS} new frames of random floats, on a Redis server on loopback; medians, in brackets the best and the "
        "worst. Ours fetches the pieces into a file and maps it, as do all others of the machine from then on."
    )
    for secret, what in SECRETS.items():
        if not PROGRAM:
            table.add(what, "redis-server is not installed", "", "", "")
            continue
        stored, first, again, theirs = (
            [1e3 * each for each in column] for column in zip(*measure(secret), strict=True)
        )
        table.add(
            what, middle(first, "{:.1f}"), middle(again), middle(theirs, "{:.1f}"), middle(stored, "{:.0f}"),
            must="first: faster", met=verdict(met=median(first) < median(theirs)),
        )  # fmt: skip
    return [table]
