"""The store of processes on any number of machines: a Redis or Valkey server that all of them reach."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..clock import Clock
from ..config import shown
from ..coordination.record import NOBODY, Logged, Record, Refusal, instant_of, micros, of_text, text_of
from ..errors import ConfigError, ScheduleError, StoreError, ValueRefused, ValueUnreadable
from ..functions.run import RunRecord
from ..serialize.codec import Encoded, Inline, decode, encode
from .base import Store
from .file.history import RUN, row_of, run_of
from .hurry import LAST, SOON, in_a_hurry, is_leaving
from .queue import MOST_BYTES
from .records import ALL, HELD, Change, Changed, Result, Source, Tell, numbered, selected, tell_all

log = logging.getLogger("panel_schedule")

# So many seconds an owner lives without saying so again, on the server's clock; it does three times as often.
LEASE = 15.0

# How often, in seconds, a process looks who has died, and for changes that nothing told it of.
LOOK = 1.0

# Seconds until it tries again to listen.
AGAIN = 1.0

# Seconds until a process reads what is not urgent: most often there is more by then.
MOMENT = 0.001

# Seconds that a call waits for the server.
PATIENCE = 5.0

# Parts up to this size, in bytes, travel with their record; larger ones before it, as keys of their own.
INLINE = 64 * 1024

# Seconds that the server keeps a large part which no record names: who was to write that died before he could.
UNNAMED = 3600

# So many records are remembered.
_REMEMBERED = 4000

# And so many steps that were perhaps made.
_UNSURE = 100

# What stands for the number of a change that is not known yet: greater than any, and in no text by chance.
_AHEAD = 10**39 + secrets.randbits(100)
_AHEAD_TEXT = str(_AHEAD)

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

_FIELDS = ("revision", "created", "group", "owner", "used", "expires", "size", "text")
_LINE = RUN.split(", ")
_SCRIPT = Path(__file__).with_name("redis.lua").read_text(encoding="utf-8")
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Key = tuple[str, str]


class _Row(NamedTuple):
    """A record, None where there is none, and the newest line of its log."""

    record: Record | None
    newest: bytes | None


class _Placed(NamedTuple):
    """A part: what is said of its bytes; these, if they travel with the record, or the stamp of their own key."""

    head: str
    data: bytes
    size: int
    stamp: str
    value: Any


class _Draft:
    """What becomes of one record in a step."""

    def __init__(self, key: Key, row: _Row):
        self._key = key
        self._was = self.record = row.record
        self._text = ""
        self._written = self._anew = False
        # By kind and number; None of one that is dropped.
        self._parts: dict[tuple[str, int], _Placed | None] = {}
        # The newest line of the log as it was, and what stands in its place; lines that are added.
        self._newest: str | bytes | None = row.newest
        self._cleared, self._longer, self._lines = False, "", list[str]()

    def make(self, change: Change, placed: Mapping[tuple[str, int], _Placed]) -> Result:
        """What comes of a change, up to its numbers."""
        old = self.record
        new, line = change.apply(old, _AHEAD), None
        if isinstance(new, Refusal):
            return Result(None, new)
        if isinstance(new, Logged):
            line, new = self._add(new), new.record
        self._written = True
        if new is None:
            self.record, self._anew = None, True
            self._parts.clear()
            self._clear_log()
            return Result(None)
        for kind, number in ((kind, n) for kind, most in (old.parts if old else {}).items() for n in range(most)):
            if number >= new.parts.get(kind, 0):
                self._parts[kind, number] = None
        self._parts |= {part: each for part, each in placed.items() if part[1] < new.parts.get(part[0], 0)}
        self.record = numbered(new, old, old.size if old else 0, _AHEAD)
        values = {part: each.value for part, each in placed.items()}
        return Result(self.record, None, values, line, old.revision if old and old.revision != _AHEAD else 0)

    def _clear_log(self) -> None:
        self._newest, self._cleared, self._longer = None, True, ""
        self._lines.clear()

    def _add(self, logged: Logged) -> RunRecord | None:
        """The line, if there is a new one."""
        entry, merged = logged.entry, logged.merged
        if entry is None:
            self._clear_log()
            return None
        newest = self._lines[-1] if self._lines else self._longer or self._newest
        if merged is not None and newest and (longer := merged(_run(newest), entry)) is not None:
            if self._lines:
                self._lines[-1] = _line(longer)
            else:
                self._longer = _line(longer)
            return None
        self._lines.append(_line(entry))
        return entry

    def told(self, data: list[bytes], at: int) -> dict[str, Any]:
        """As the script takes it; the bytes of parts are added to `data`, of which the first is argument `at`."""
        record, was = self.record, self._was
        told: dict[str, Any] = {"key": _joined(self._key), "was": str(was.revision) if was else ""}
        if not self._written:
            return told
        told["anew"] = self._anew
        if record is None:
            return told
        put = []
        for (kind, number), part in self._parts.items():
            if part is not None:
                put.append((f"{kind}\0{number}", at + len(data), part.size, part.stamp))
                data.append(part.head.encode() + b"\n" + part.data)
        if was is None or self._anew or record.used_at != was.used_at:  # else it may have been used meanwhile
            told["used"] = _instant(record.used_at)
        self._text = text_of(record)
        return told | {
            "group": record.group,
            "owner": "" if record.owner is None else f"={record.owner}",
            "expires": _instant(record.expires_at),
            "text": self._text,
            "drop": [f"{kind}\0{number}" for (kind, number), part in self._parts.items() if part is None],
            "put": put,
            "cleared": self._cleared,
            "longer": self._longer,
            "lines": self._lines,
        }

    def stamps(self) -> set[str]:
        """Of the large parts that it has."""
        return {part.stamp for part in self._parts.values() if part is not None and self.record is not None}

    def row(self, size: int, revision: int) -> _Row:
        """As it is from now on."""
        newest = (self._lines[-1] if self._lines else self._longer) or self._newest
        line = newest.encode() if isinstance(newest, str) else newest
        return _Row(_settled(self.record, size, revision, self._text) if self._written else self._was, line)


class _Step(NamedTuple):
    """Changes as they are sent."""

    changes: Sequence[Change]
    drafts: Mapping[Key, _Draft]
    results: Sequence[Result]
    args: dict[str, Any]
    data: Sequence[bytes]


class RedisRecords:
    """
    A `RecordStore` on a Redis or Valkey server (6.2 or later).

    A change is compared and set by one script on the server, which all processes share. What that is worth when the
    server dies is up to the server: with ``appendonly yes`` and ``appendfsync always`` a change is on its disk before
    `write` returns; with ``everysec`` the last second may be lost; without, all since the last snapshot, and with a
    replica what had not reached it. `durable` asks for no more than that.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads them.
    clock : Clock
    namespace : str
        Other namespaces on the same server are other stores.
    secret : str
        Each part is signed with it, and one that is not is never unpickled. Without one whoever can write to the
        server can run code in this process.
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

    blocking = True

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        namespace: str = "default",
        secret: str = "",
        max_value_bytes: int = 512 * 1024**2,
        log_limit: int = 50,
    ):
        self._redis, self._shown = _library(), shown(url)
        self._clock = clock
        self._namespace, self._prefix = namespace, f"panel-schedule:{{{namespace}}}:"
        self._secret = secret.encode()
        self._max_value_bytes = max_value_bytes
        self._log_limit = log_limit
        self._client, self._hurried = self._connected(url, PATIENCE), self._connected(url, SOON)
        self._leaving = self._connected(url, LAST)
        self.me = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._numbers = count(1)
        # Of the store as this process knows it; and its last number that it has seen.
        self._id, self._last = "", 0
        self._known: dict[Key, _Row] = {}
        # By the ids of their changes: those of which it is not known whether they were made.
        self._unsure: dict[tuple[int, ...], _Step] = {}
        self._watched: dict[str, int] = {}
        self._subscribers: defaultdict[str, list[Changed]] = defaultdict(list)
        self._lost: list[Callable[[], object]] = []
        # Up to which number of which store the subscribers were told; and what is still to be told.
        self._seen = ("", 0)
        self._untold: dict[Key, Record] = {}
        self._trouble = ""
        self._unsigned = False
        self._joining = threading.Lock()
        self._closing, self._closed, self._listening = threading.Event(), False, False
        self._threads: list[threading.Thread] = []
        self._join()
        self._seen = (self._id, self._last)
        self._start(self._renew)

    def _connected(self, url: str, timeout: float) -> Any:
        retry = self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 1)
        try:
            return self._redis.Redis.from_url(
                url, protocol=2, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry
            )
        except ValueError as error:
            raise ConfigError(f"ps.config.store is {self._shown!r}: {error}") from None

    # ------------------------------------------------------------ the server

    def _call(self, command: str, data: Sequence[bytes] = (), **args: Any) -> Any:
        """What the script says, once this process and the server mean the same store."""
        text = _json(args | {"me": self.me, "lease": LEASE * 1e6})
        while True:
            reply = self._run(command, self._id, self._last, text, *data)
            if reply != b"lost":
                return reply
            if self._join():
                self._restore()

    def _run(self, *args: Any) -> Any:
        with self._told() as client:
            try:
                return client.evalsha(_SHA, 1, f"{self._prefix}id", *args)
            except self._redis.exceptions.NoScriptError:
                return client.eval(_SCRIPT, 1, f"{self._prefix}id", *args)

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
            if not isinstance(error, (self._redis.RedisError, OSError)):
                raise
            why = _why(error)
            raise StoreError(f"The store {self._shown} cannot be used now: {why}. {_remedy(why)}") from error

    def _join(self) -> bool:
        """Be alive; whether the store has lost something since this process has seen it."""
        with self._joining:
            args = {
                "me": self.me, "lease": LEASE * 1e6, "watched": list(self._watched.items()), "last": self._last,
                "fresh": secrets.token_hex(8),
            }  # fmt: skip
            id, last = self._run("join", self._id, self._last, _json(args))
            lost, self._id = self._id not in ("", id.decode()), id.decode()
            self._last = max(self._last, int(last))
            if lost:
                self._known.clear()
        return lost

    def _restore(self) -> None:
        """Who has something of a store that has lost it stores it again."""
        log.error("The store %s came back without what it had. It gets what this process has.", self._shown)
        for lost in self._lost:
            lost()

    def _start(self, body: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=body, name="panel-schedule-store", daemon=True))
        Context().run(self._threads[-1].start)

    def _renew(self) -> None:
        """On a thread of its own: whatever else this process waits for, it is alive."""
        pause = LEASE / 3
        while not self._closing.wait(pause):
            try:
                if self._join():
                    self._start(self._restore)  # which may take longer than this process lives without a word
                pause = LEASE / 3
            except ScheduleError as error:
                self._complain_once(error)
                pause = min(AGAIN, LEASE / 3)

    def _complain_once(self, error: Exception) -> None:
        if str(error) != self._trouble and not self._closing.is_set():
            self._trouble = str(error)
            log.error("%s", error)

    # ------------------------------------------------------------ reading

    def read(self, space: str, name: str) -> Record | None:
        with self._told() as client:
            return self._record((space, name), client.hmget(self._of("record", (space, name)), _FIELDS))

    def scan(self, space: str, group: str = ALL, *, owner: str | None = ALL, last: int | None = None) -> list[Record]:
        if last == 0:
            return []
        which: dict[str, Any] = {} if group is ALL else {"group": group}
        if owner is None:
            which["free"] = True
        elif owner is not ALL:
            which["owners"] = [] if owner is HELD else [owner]
        rows = self._rows(self._call("scan", space=space, last=last or False, **which))
        records = [row.record for row in rows.values() if row.record is not None]
        return selected(sorted(records, key=lambda record: record.created), group, owner, last)

    def _rows(self, replies: Iterable[Any]) -> dict[Key, _Row]:
        rows = {}
        for name, newest, *values in replies:
            space, _, name = name.decode().partition("\0")
            rows[space, name] = _Row(self._record((space, name), values), newest)
        return rows

    def _record(self, key: Key, values: Sequence[bytes | None]) -> Record | None:
        if values[0] is None:
            return None
        try:
            revision, created, group, owner, used, expires, size, text = [str(each, "utf-8") for each in values[:8]]  # type: ignore[arg-type]
            state, parts = of_text(key[0], text)
            return Record(
                *key, state, group, owner[1:] if owner else None, _of_instant(used), _of_instant(expires), parts,
                int(size), int(created), int(revision),
            )  # fmt: skip
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"The store {self._shown} has something else in place of {key[0]} {key[1]!r}: {error}. Name another "
                "namespace in ps.config.namespace, or delete that."
            ) from error

    def _of(self, what: str, key: Key) -> str:
        return f"{self._prefix}{what}:{_joined(key)}"

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        source = self.source(record, kind, number, what)
        try:
            return source.load()
        except ValueUnreadable as error:
            raise _unreadable(what, record, kind, error) from error

    def source(self, record: Record, kind: str, number: int = 0, what: str = "") -> Source:
        key, field = (record.space, record.name), f"{kind}\0{number}"
        parts = self._of("parts", key)
        with self._told() as client:
            while (part := client.hget(parts, field)) is not None:
                try:
                    head, data = part.split(b"\n", 1)
                    revision, _, signature, stamp = head.decode().split(" ")
                    if int(revision) > record.revision:
                        break
                    if stamp and (data := self._fetched(client, stamp)) is None:
                        if client.hget(parts, field) != part:  # it was replaced meanwhile
                            continue
                        raise ValueUnreadable("its bytes are gone from the server")
                    self._verify(signature, key, kind, number, data)
                except ValueError as error:
                    raise _unreadable(what, record, kind, error) from error
                return Inline(data)
        raise KeyError(record.name)

    def log(self, space: str, name: str) -> list[RunRecord]:
        with self._told() as client:
            return list(map(_run, client.lrange(self._of("log", (space, name)), 0, -1)))

    # ------------------------------------------------------------ parts

    def _place(self, change: Change, kind: str, number: int, value: Any) -> _Placed:
        encoded = value if isinstance(value, Encoded) else encode(value, change.what)
        try:
            size = encoded.size
            if size > self._max_value_bytes:
                raise ValueRefused(
                    f"{change.what}: the value has {size / 1e6:,.1f} MB, and ps.config.max_value_bytes is "
                    f"{self._max_value_bytes / 1e6:,.1f} MB. Return less, say a path to it, or raise that option."
                )
            data = encoded.tobytes()
        finally:
            if encoded is not value:
                encoded.close()
        try:
            read = decode(bytearray(data))  # what the others get, this process gets as well
        except ValueUnreadable as error:
            raise ValueRefused(
                f"{change.what}: the value can be pickled, but {error}. Return plain data, or mend how its class "
                "pickles."
            ) from error
        signature, stamp = self._signature((change.space, change.name), kind, number, data), ""
        if size > INLINE:
            data, stamp = b"", self._sent(data)
        return _Placed(f"{size} {signature or '-'} {stamp}", data, size, stamp, read)

    # These two are the place for chunks, compression, and a file that the processes of a machine map.

    def _sent(self, data: bytes) -> str:
        """Large bytes are on the server; their stamp."""
        stamp = f"{self.me}.{next(self._numbers)}"
        with self._told() as client:
            client.set(f"{self._prefix}blob:{stamp}", data, ex=UNNAMED)
        return stamp

    def _fetched(self, client: Any, stamp: str) -> bytes | None:
        data: bytes | None = client.get(f"{self._prefix}blob:{stamp}")
        return data

    def _signature(self, key: Key, kind: str, number: int, data: bytes) -> str:
        if not self._secret:
            return ""
        whose = json.dumps((self._namespace, *key, kind, number)).encode()
        signed = hmac.new(self._secret, b"%d %s" % (len(whose), whose), hashlib.sha256)
        signed.update(data)
        return signed.hexdigest()

    def _verify(self, signature: str, key: Key, kind: str, number: int, data: bytes) -> None:
        if hmac.compare_digest(self._signature(key, kind, number, data), signature if self._secret else ""):
            return
        if not self._unsigned:
            self._unsigned = True
            log.error(
                "The store %s has values that were not signed with ps.config.secret. They are not read, and computed "
                "again. All processes need the same secret, and nobody else the right to write there.", self._shown,
            )  # fmt: skip
        raise ValueUnreadable("it was not signed with the secret of this process")

    # ------------------------------------------------------------ writing

    def write(
        self, changes: Sequence[Change], *, durable: bool | None = None, together: bool = False, tell: Tell = Tell.SOON
    ) -> list[Result]:
        if not changes:
            return []
        same = tuple(map(id, changes))
        if (step := self._unsure.pop(same, None)) is not None and not isinstance(done := self._send(step), dict):
            return done
        sent: set[str] = set()
        placed: list[dict[tuple[str, int], _Placed]] = []
        try:
            for change in changes:
                placed.append(made := {})
                for (kind, number), value in change.parts.items():
                    made[kind, number] = self._place(change, kind, number, value)
                    sent |= {made[kind, number].stamp} - {""}
            results, named = self._swap(changes, placed, together, tell)
            sent -= named
        finally:
            if same in self._unsure:  # perhaps they are named; else they expire
                sent.clear()
            if sent:
                with suppress(StoreError), self._told() as client:
                    client.unlink(*(f"{self._prefix}blob:{stamp}" for stamp in sent))
        return results

    def _swap(
        self, changes: Sequence[Change], placed: Sequence[Mapping[tuple[str, int], _Placed]], together: bool, tell: Tell
    ) -> tuple[list[Result], set[str]]:
        """
        The results, and the stamps that are named by records now.

        What this process takes the records to be is compared on the server: one round trip if it is right, and if it is
        not the reply says what they are. A refusal, or an error, is only true of what they are.
        """
        keys = list(dict.fromkeys((change.space, change.name) for change in changes))
        rows, sure = {key: row for key in keys if (row := self._known.get(key)) is not None}, False
        while True:
            if len(rows) < len(keys):
                rows, sure = self._rows(self._call("rows", keys=list(map(_joined, keys)))), True
            drafts = {key: _Draft(key, rows[key]) for key in keys}
            try:
                results = [
                    drafts[change.space, change.name].make(change, made)
                    for change, made in zip(changes, placed, strict=True)
                ]
            except Exception:
                if sure:
                    raise
                rows = {}
                continue
            refused = [result.refusal for result in results if result.refusal is not None]
            if len(refused) == len(results) or (together and refused):
                if sure:
                    return [Result(None, result.refusal) for result in results], set()
                rows = {}
                continue
            data: list[bytes] = []
            args = {
                "changes": [draft.told(data, 5) for draft in drafts.values()],
                "by": f"{self.me}.{next(self._numbers)}",
                "ahead": _AHEAD_TEXT,
                "limit": self._log_limit,
                "tell": f"{self.me} {tell.name}" if tell is not Tell.LATER else False,
            }
            done = self._send(_Step(changes, drafts, results, args, data))
            if not isinstance(done, dict):
                return done, {stamp for draft in drafts.values() for stamp in draft.stamps()}
            rows, sure = done, True

    def _send(self, step: _Step) -> list[Result] | dict[Key, _Row]:
        """
        The results; or the records as they are, if they are not what they were taken to be.

        Where the reply is lost it is not known whether the changes were made. Each step has a name, by which the server
        knows the last one of each record: so the same may be sent again, now, or when the same changes are tried again.
        """
        try:
            answer, *reply = self._call("swap", step.data, **step.args)
        except StoreError:
            if len(self._unsure) >= _UNSURE:
                self._unsure.clear()
            self._unsure[tuple(map(id, step.changes))] = step
            raise
        if answer == b"stale":
            return self._rows(reply)
        if answer == b"gone":
            raise StoreError(f"The store {self._shown} lost a value while it was stored. Try again.")
        revision, *sizes = map(int, reply)
        return self._done(step.drafts, step.results, revision, sizes)

    def _done(
        self, drafts: Mapping[Key, _Draft], results: Sequence[Result], revision: int, sizes: Sequence[int]
    ) -> list[Result]:
        self._last = max(self._last, revision)
        new = {key: draft.row(size, revision) for (key, draft), size in zip(drafts.items(), sizes, strict=True)}
        self._remember(new)
        done = []
        for result in results:
            if (record := result.record) is not None:
                last = new[record.space, record.name].record
                same = record is drafts[record.space, record.name].record
                settled = last if same or last is None else _settled(record, last.size, revision)
                result = result._replace(record=settled)
            done.append(result)
        return done

    def _remember(self, rows: Mapping[Key, _Row]) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known |= rows

    # ------------------------------------------------------------ what is used, and what must go

    def use(self, space: str, names: Collection[str], now: datetime) -> None:
        if names:
            self._call("use", space=space, names=list(names), now=_instant(now))

    def trim(
        self,
        space: str,
        group: str = ALL,
        *,
        entries: int | None = None,
        size: int | None = None,
        keep: str = "",
        larger: bool = False,
    ) -> None:
        limits: dict[str, Any] = {"group": group, "entries": entries, "size": size}
        given = {name: limit for name, limit in limits.items() if limit is not ALL and limit is not None}
        self._call("trim", space=space, keep=keep, larger=larger, **given)

    def sweep(self, now: datetime) -> None:
        while self._call("sweep", now=_instant(now)):
            pass

    # ------------------------------------------------------------ owners and sessions

    def alive(self, owner: str) -> bool:
        return owner != NOBODY and bool(self._call("alive", owner=owner))

    def watch(self, space: str, name: str, sessions: int) -> None:
        key = _joined((space, name))
        with self._joining:
            self._watched |= {key: sessions}
            if not sessions:
                del self._watched[key]
        self._call("watch", watched=[(key, sessions)])

    def watchers(self, space: str, name: str) -> int:
        return int(self._call("watchers", key=_joined((space, name))))

    # ------------------------------------------------------------ who changed what

    def subscribe(self, space: str, changed: Changed, lost: Callable[[], object] = lambda: None) -> None:
        self._subscribers[space].append(changed)
        self._lost.append(lost)

    def listen(self) -> None:
        with self._joining:
            if not self._listening and not self._closing.is_set():
                self._listening = True
                self._start(self._listen)

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                with self._told() as client, client.pubsub() as bell:
                    bell.subscribe(f"{self._prefix}bell")
                    self._hear(bell)
            except ScheduleError as error:
                self._complain_once(error)
            except BaseException:  # of the store's own thread
                log.exception("Reading the store failed at something that is a bug of panel-schedule; it goes on.")
            self._closing.wait(AGAIN)

    def _hear(self, bell: Any) -> None:
        """Until the connection is lost. That it is there, or there again, is a message, too."""
        looked = self._clock.monotonic() - LOOK
        while not self._closing.is_set():
            left = looked + LOOK - self._clock.monotonic()
            words = [_words(bell.get_message(timeout=max(left, 0.001)))]
            if "SOON" in words[0] and self.me not in words[0]:
                self._closing.wait(MOMENT)
            while message := bell.get_message(timeout=0):
                words.append(_words(message))
            if self._closing.is_set():
                return
            # What this process has changed it knows, and tells of with what comes next.
            if any(each and self.me not in each for each in words):
                self._catch_up()
            if any("left" in each for each in words) or self._clock.monotonic() - looked >= LOOK:
                looked = self._clock.monotonic()
                self._catch_up()
                self._look_around()
                self._trouble = ""

    def _catch_up(self) -> None:
        """Tell of what has changed since the last time."""
        if not self._subscribers:
            return
        since = self._seen[1] if self._seen[0] == self._id else 0
        last, *replies = self._call("changes", spaces=list(self._subscribers), since=str(since))
        id = self._id
        self._take_in(replies)
        self._seen, self._last = (id, int(last)), max(self._last, int(last))
        self._tell()

    def _take_in(self, replies: Iterable[Any]) -> None:
        for reply in replies:
            try:
                rows = self._rows([reply])
            except StoreError as error:  # of one record; the others are told
                self._complain_once(error)
                continue
            for key, row in rows.items():
                known = self._known.get(key)
                if row.record is not None and key[0] in self._subscribers:
                    self._untold[key] = row.record
                    if known is not None and (known.record is None or known.record.revision <= row.record.revision):
                        self._known[key] = row

    def _tell(self) -> None:
        """What cannot be taken in now comes again, and holds nothing up."""
        failed: Exception | None = None
        for key, record in list(self._untold.items()):
            if (error := tell_all(self._subscribers[record.space], record)) is not None:
                failed = error
            else:
                del self._untold[key]
        if failed is not None:
            self._complain_once(failed)

    def _look_around(self) -> None:
        """Tell of what processes have left undone that are gone; delete what time asks for."""
        replies = self._call("look", now=_instant(self._clock.now()))
        self._take_in([reply for reply in replies if reply[0].decode().partition("\0")[0] in self._subscribers])
        self._tell()

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        if self._closed:
            return
        self._closing.set()
        with suppress(StoreError):
            self._call("leave")  # which wakes the own listener, too
        self._closed = True
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(LOOK)
        self._client.close()
        self._hurried.close()
        self._leaving.close()


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
        history_limit: int = 50,
        max_result_bytes: int = MOST_BYTES,
        namespace: str = "default",
        secret: str = "",
        max_value_bytes: int = 512 * 1024**2,
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
        super().__init__(records, clock, server or records.me, max_result_bytes)


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


def _unreadable(what: str, record: Record, kind: str, why: Exception) -> ValueUnreadable:
    return ValueUnreadable(f"{what or f'The {kind} of {record.space} {record.name!r}'} cannot be read: {why}.")


def _settled(record: Record | None, size: int, revision: int, text: str = "") -> Record | None:
    """With its numbers, now that they are known."""
    if record is None:
        return None
    text, state = text or text_of(record), record.state
    if _AHEAD_TEXT in text:
        state, _ = of_text(record.space, text.replace(_AHEAD_TEXT, str(revision)))
    created = revision if record.created == _AHEAD else record.created
    return record._replace(state=state, size=size, created=created, revision=revision)


def _joined(key: Key) -> str:
    return f"{key[0]}\0{key[1]}"


def _instant(instant: datetime | None) -> str:
    return "" if instant is None else str(micros(instant))


def _of_instant(text: str) -> datetime | None:
    return instant_of(int(text)) if text else None


def _line(run: RunRecord) -> str:
    return _json(dict(zip(_LINE, row_of(run), strict=True)))


def _run(line: str | bytes) -> RunRecord:
    return run_of(json.loads(line))


def _words(message: Any) -> list[str]:
    """Of a message: who has changed something, and how urgent that is; of none, nothing."""
    if message is None:
        return []
    data = message["data"]
    return data.decode().split(" ") if isinstance(data, bytes) else [message["type"]]
