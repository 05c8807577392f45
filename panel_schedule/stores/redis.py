"""The store of processes on any number of machines: a Redis or Valkey server that all of them reach."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..clock import Clock
from ..config import SENTINEL, sentinels_of, shown
from ..coordination.record import Record, of_text
from ..errors import ConfigError, StoreError
from ..functions.run import RunRecord
from .base import Store
from .fallback import Fallback
from .hurry import LAST, SOON, in_a_hurry, is_leaving
from .queue import MOST_BYTES
from .records import whole
from .server_records import LOGS, LOST, PATIENCE, ServerRecords
from .server_steps import instant_in, run_in, to_json
from .signed import Key

log = logging.getLogger("panel_schedule")

# By what the server or the system says of an error, as redis-py has no classes for all of them: what to do about it.
_REMEDIES = {
    ("WRONGPASS", "NOAUTH", "invalid username-password", "Authentication required"): (
        "Correct user and password in ps.config.store: redis://user:password@host."
    ),
    ("NOPERM",): "Give that user the right to all commands on keys and channels 'panel-schedule:*'.",
    ("DB index", "invalid DB", "Invalid Database"): "Correct the number of the database at the end of ps.config.store.",
    ("OOM", "maxmemory"): "Raise the server's maxmemory, or free some of it.",
    ("READONLY",): "Name the primary in ps.config.store: this server is a replica.",
    ("MISCONF",): "Look at that server's disk: it cannot save.",
    ("LOADING",): "It reads its data, and is there in a while.",
    ("Timeout", "timed out"): "Is the server stopped or overloaded, or the network slow?",
    ("certificate", "SSL"): "Correct the certificates, or the scheme: rediss:// is with TLS, redis:// without.",
    ("WRONGTYPE",): "Something else uses these keys: name another namespace in ps.config.namespace.",
}
# Where in the script it failed, as servers of different releases say it: that is no news, and differs each time.
_PLACE = re.compile(
    r"(Error running script \(call to \w+\): )?(@user_script: ?\d+: ?)+-?|\.? script: \w+, on @user_script:\d+"
)
_UNREACHABLE = "Start the server, or correct host and port in ps.config.store."

_FIELDS = ("revision", "created", "group", "owner", "used", "expires", "size", "text", "since")
_SCRIPT = Path(__file__).with_name("redis.lua").read_text(encoding="utf-8")
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class RedisRecords(ServerRecords):
    """
    A `RecordStore` on a Redis or Valkey server (6.2 or later).

    A change is compared and set by one script on the server, which all processes share. What that is worth when the
    server dies is up to the server: with ``appendonly yes`` and ``appendfsync always`` a change is on its disk before
    `write` returns; with ``everysec`` the last second may be lost; without, all since the last snapshot, and with a
    replica what had not reached it. `durable` asks for no more than that.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads them; ``redis+sentinel://``, ``redis+cluster://``.
    clock : Clock
    namespace : str
        Other namespaces on the same server are other stores.
    secret : str
        Each part is signed with it, for its record and for no later version of that; one that is not is never
        unpickled. Without one whoever can write to the server can run code in this process.
    max_value_bytes : int
        Larger parts are refused.
    log_limit : int
        How many lines the log of each record keeps.

    Raises
    ------
    ConfigError
        When redis-py is missing, or the URL means nothing.
    StoreError
        When the server cannot be used.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        namespace: str = "default",
        secret: str = "",
        max_value_bytes: int = 512 * 1024**2,
        log_limit: int = 100,
    ):
        super().__init__(url, clock, namespace, secret, max_value_bytes, log_limit)
        self._redis, self._prefix = _library(), f"panel-schedule:{{{namespace}}}:"
        self._client, self._hurried = self._connected(url, PATIENCE), self._connected(url, SOON)
        self._leaving = self._connected(url, LAST)
        self._open()

    def _connected(self, url: str, timeout: float) -> Any:
        parts, retry = urlsplit(url), self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 1)
        options = {"protocol": 2, "socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry}
        try:
            if parts.scheme == SENTINEL:
                hosts, service, database = sentinels_of(url)
                whose = {"db": database, "username": parts.username, "password": parts.password}
                return self._redis.Sentinel(hosts, sentinel_kwargs=options).master_for(service, **options, **whose)
            if parts.scheme == "redis+cluster":
                return self._redis.RedisCluster.from_url(url.replace("redis+cluster", "redis", 1), **options)
            return self._redis.Redis.from_url(url, **options)
        except ValueError as error:
            raise ConfigError(f"ps.config.store is {self._shown!r}: {error}") from None
        except (self._redis.RedisError, self._redis.exceptions.RedisClusterException, OSError) as error:
            raise self._failed(error) from error

    # ------------------------------------------------------------ the server

    def _run(self, command: str, args: Mapping[str, Any], data: Sequence[bytes] = ()) -> Any:
        given = (1, f"{self._prefix}id", command, self._id, self._last, to_json(args), *data)
        with self._told() as client:
            try:
                reply = client.evalsha(_SHA, *given)
            except self._redis.exceptions.NoScriptError:
                reply = client.eval(_SCRIPT, *given)
        return LOST if reply == b"lost" else reply

    @contextmanager
    def _told(self) -> Iterator[Any]:
        """The client for a call; what goes wrong is one clear line."""
        closed = f"The store {self._shown} is closed. Make another one."
        if self._closed:
            raise StoreError(closed)
        try:
            yield self._hurried if in_a_hurry() else self._leaving if is_leaving() else self._client
        except Exception as error:
            if self._closed:  # meanwhile: its connection was taken from it
                raise StoreError(closed) from error
            if not isinstance(error, (self._redis.RedisError, self._redis.exceptions.RedisClusterException, OSError)):
                raise
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        why = _why(error)
        return StoreError(f"The store {self._shown} cannot be used now: {why}. {_remedy(why)}")

    def _disconnect(self) -> None:
        for client in (self._client, self._hurried, self._leaving):
            client.close()

    @contextmanager
    def _bell(self) -> Iterator[Callable[[float], list[str]]]:
        with self._told() as client, client.pubsub() as bell:
            bell.subscribe(f"{self._prefix}bell")
            yield lambda timeout: _words(bell.get_message(timeout=timeout))

    # ------------------------------------------------------------ reading

    def read(self, space: str, name: str) -> Record | None:
        key = (space, name)
        with self._told() as client:
            values = client.hmget(self._of("record", key), _FIELDS)
        if values[0] is None:  # perhaps all are gone, and are about to come back
            return self._looked_up([key])[key].record
        return self._record(key, values)

    def _record(self, key: Key, values: Sequence[bytes | None]) -> Record | None:
        if values[0] is None:
            return None
        try:
            revision, created, group, owner, used, expires, size, text = [str(each, "utf-8") for each in values[:8]]  # type: ignore[arg-type]
            state, parts = of_text(key[0], text)
            return Record(
                *key, state, group, owner[1:] if owner else None, instant_in(used), instant_in(expires), parts,
                int(size), int(created), int(revision),
            )  # fmt: skip
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"The store {self._shown} has something else in place of {key[0]} {key[1]!r}: {error}. Name another "
                "namespace in ps.config.namespace, or delete that."
            ) from error

    def _named(self, key: Key) -> str:
        return f"{key[0]}\0{key[1]}"

    def _key_of(self, named: bytes) -> Key:
        space, _, name = named.decode().partition("\0")
        return space, name

    def _of(self, what: str, key: Key) -> str:
        return f"{self._prefix}{what}:{self._named(key)}"

    def log(self, space: str, name: str, last: int | None = None) -> list[RunRecord]:
        if last is not None:
            with self._told() as client:
                newest = client.lrange(self._of(LOGS[0], (space, name)), 0, last - 1) if last else []
            return list(map(run_in, newest))
        with self._told() as client, client.pipeline(transaction=False) as both:
            # In this order: a failure that comes in between is in what is read last.
            for log in reversed(LOGS):
                both.lrange(self._of(log, (space, name)), 0, -1)
            failures, lines = (list(map(run_in, found)) for found in both.execute())
        return whole(lines, failures)

    # ------------------------------------------------------------ parts

    def _brought_by(self, reply: Sequence[Any]) -> bytes | None:
        return reply[len(_FIELDS) + 3] if len(reply) > len(_FIELDS) + 3 else None

    def _part(self, key: Key, part: str) -> tuple[bytes | None, bytes | None]:
        since, found = self._call("part", key=self._named(key), field=part)
        return since, found

    def _put(self, stamp: str, field: str, data: bytes) -> None:
        with self._told() as client:  # as an argument of a script it takes the server eight times as long
            client.hset(f"{self._prefix}blob:{stamp}", field, data)

    def _get(self, stamp: str, field: str) -> bytes | None:
        with self._told() as client:
            data: bytes | None = client.hget(f"{self._prefix}blob:{stamp}", field)
        return data

    def _unlink(self, stamps: Collection[str]) -> None:
        with self._told() as client:
            client.unlink(*(f"{self._prefix}blob:{stamp}" for stamp in stamps))


class RedisStore(Store):
    """
    Values, claims, jobs and answers on a Redis or Valkey server that any number of machines share.

    Parameters
    ----------
    url : str
    clock : Clock
    server : str
        Names the server that this process is part of.
    history_limit : int
        How many records each task's history keeps.
    max_result_bytes : int
        Of what is kept of background runs that have ended.
    namespace, secret, max_value_bytes
        See `RedisRecords`.
    on_store_loss : {"wait", "run"}
        See `Store`.

    Raises
    ------
    ConfigError, StoreError
        As `RedisRecords` does.
    """

    records: RedisRecords

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        server: str = "",
        history_limit: int = 100,
        max_result_bytes: int = MOST_BYTES,
        namespace: str = "default",
        secret: str = "",
        max_value_bytes: int = 512 * 1024**2,
        on_store_loss: str = "wait",
    ):
        parts = urlsplit(url)
        if not secret and parts.scheme != "unix" and parts.hostname not in (None, "localhost", "127.0.0.1", "::1"):
            log.warning(
                "The store %s is on another host, and ps.config.secret is not set: who can write there can run code "
                "here. Set the same secret in all processes.", shown(url),
            )  # fmt: skip
        records = RedisRecords(
            url, clock, namespace=namespace, secret=secret, max_value_bytes=max_value_bytes, log_limit=history_limit
        )
        runs = on_store_loss == "run"
        fallback = Fallback(records, clock, shown(url), records.lease, history_limit) if runs else None
        super().__init__(records, clock, server or records.me, max_result_bytes, fallback)


def _library() -> Any:
    try:
        import redis
        import redis.backoff
        import redis.retry
    except ImportError:
        raise ConfigError(
            "ps.config.store names a Redis server, which needs the package redis: pip install 'panel-schedule[redis]'"
        ) from None
    return redis


def _why(error: Exception) -> str:
    return _PLACE.sub("", " ".join(str(error).split()).rstrip("."))


def _remedy(why: str) -> str:
    """What to do about it."""
    return next((remedy for words, remedy in _REMEDIES.items() if any(word in why for word in words)), _UNREACHABLE)


def _words(message: Any) -> list[str]:
    """Of a message: who has changed something, and how urgent that is; of none, nothing."""
    if message is None:
        return []
    data = message["data"]
    return data.decode().split(" ") if isinstance(data, bytes) else [message["type"]]
