"""Where the store is that the processes of a test share, and what of it can be seen from outside."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from panel_schedule.clock import Clock, SystemClock
from panel_schedule.stores import server_records
from panel_schedule.stores.base import Store
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.postgres import PostgresStore
from panel_schedule.stores.redis import RedisStore

_ON_SERVERS: Any = {"redis": RedisStore, "postgresql": PostgresStore}


class StoreAddress(NamedTuple):
    """
    A store, as each process of a test is told of it.

    Attributes
    ----------
    url : str
    namespace : str
        Of the test, where others use the server as well.
    lease : float, optional
        Seconds in place of those of a server's store, for tests in which a process dies.
    """

    url: str
    namespace: str = "default"
    lease: float | None = None

    @classmethod
    def of(cls, path: Path) -> StoreAddress:
        """Of a directory."""
        return cls(f"file://{quote(str(path))}")

    @property
    def is_directory(self) -> bool:
        return urlsplit(self.url).scheme == "file"

    @property
    def path(self) -> Path:
        """Of a directory."""
        return Path(unquote(urlsplit(self.url).path))

    def env(self) -> dict[str, str]:
        """Of a server that uses it."""
        return {"PANEL_SCHEDULE_STORE": self.url, "PANEL_SCHEDULE_NAMESPACE": self.namespace}

    def constants(self) -> dict[str, float]:
        """What `server_records` has in every process of the test."""
        return {} if self.lease is None else {"LEASE": self.lease, "LOOK": self.lease / 3}

    def hasten(self) -> None:
        """In a process of the test's own."""
        vars(server_records).update(self.constants())

    def large_parts(self) -> list[str]:
        """Those that a store keeps beside its records."""
        if self.is_directory:
            return sorted(path.name for path in (self.path / "values").iterdir())
        with closing(self.open()) as store:
            records: Any = store.records
            if isinstance(store, PostgresStore):
                return [stamp for (stamp,) in records._ask(f'SELECT stamp FROM "{records._schema}".blobs')]
            return list(records._client.scan_iter(f"{records._prefix}blob:*"))

    def open(self, clock: Clock | None = None, **options: Any) -> Store:
        clock, options = clock or SystemClock(), {"server": "server"} | options
        if self.is_directory:
            return FileStore(self.path, clock, **options)
        make = _ON_SERVERS[urlsplit(self.url).scheme]
        return make(self.url, clock, namespace=self.namespace, **options)
