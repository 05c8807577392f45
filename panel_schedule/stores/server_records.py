"""Records on a server that any number of machines reach: what is the same whichever server it is."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import Context
from datetime import datetime
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from ..clock import Clock
from ..config import shown
from ..coordination.record import NOBODY, Record
from ..errors import ScheduleError, StoreError, ValueRefused, ValueUnreadable
from ..serialize.codec import Encoded, Inline, encode
from .hurry import in_a_hurry
from .local_files import LocalFiles
from .records import (
    ALL,
    HELD,
    HOUR,
    LOGGED,
    Change,
    Changed,
    LogAge,
    Lost,
    Result,
    Source,
    Tell,
    selected,
    tell_all,
)
from .server_blobs import Blobs
from .server_losses import Kept
from .server_steps import AHEAD_TEXT, NONE, Draft, Placed, Row, Step, instant_text, settled, since_in
from .signed import Head, Key, Signer

log = logging.getLogger("panel_schedule")

# So many seconds an owner lives without saying so again, on the server's clock; it does three times as often.
LEASE = 15.0

# How often, in seconds, a process looks who has died, and for changes that nothing told it of; the first one that finds
# somebody tells the others.
LOOK = 3.0

# Seconds that an owner is believed to be alive without asking again, unless it was said to be gone.
BELIEF = 1.0

# Seconds until it tries again to listen.
AGAIN = 1.0

# Seconds until a process reads what is not urgent: most often there is more by then.
MOMENT = 0.001

# Seconds that a call waits for the server.
PATIENCE = 5.0

# Parts up to this size, in bytes, travel with their record; larger ones before it, as keys of their own.
INLINE = 64 * 1024

# Values up to this size, in bytes, may come with the word of a change.
SMALL = 4096

# How commands name the two logs of a record.
LOGS = ("log", "failures")

# So many records are looked at in one step for lines that are too old.
MANY = 100

# So many records are remembered.
_REMEMBERED = 4000

# And so many steps that were perhaps made.
_UNSURE = 100

# The reply to a command of a process that means another store than the server.
LOST: Any = type("Lost", (), {"__repr__": lambda self: "LOST"})()


class ServerRecords(ABC):
    """
    A `RecordStore` on a server: what a process knows of it, and what it asks it.

    A change is made here, and compared and set there. What the server does for it in one step is a command, see
    ``redis.lua`` and ``postgres.sql``; a subclass brings commands there, and their replies back.

    Parameters
    ----------
    url : str
    clock : Clock
    namespace : str
    secret : str
        Parts are signed with it.
    max_value_bytes : int
        Larger parts are refused.
    log_limit : int
        How many lines the log of each record keeps.
    """

    blocking = True

    def __init__(self, url: str, clock: Clock, namespace: str, secret: str, max_value_bytes: int, log_limit: int):
        self._shown, self._clock, self._log_limit = shown(url), clock, log_limit
        self.log_age: LogAge | None = None
        # From when on it is looked again for lines that are too old.
        self._forgets_at = 0.0
        self._namespace, self._max_value_bytes = namespace, max_value_bytes
        self._signer = Signer(namespace, secret)
        files = LocalFiles(self._signer.name(f"{_server(url)} {namespace}"), clock)
        self._blobs = Blobs(self._begin, self._put, self._get, files, self._signer.signs)
        self._unsigned = False
        self.me = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._numbers = count(1)
        # Of the store as this process knows it; and its last number that it has seen.
        self._id, self._last = "", 0
        self._known: dict[Key, Row] = {}
        # By the ids of their changes: those of which it is not known whether they were made.
        self._unsure: dict[tuple[int, ...], Step] = {}
        # By owner, until when it is believed to be alive.
        self._believed: dict[str, float] = {}
        self._watched: dict[Key, int] = {}
        self._subscribers: defaultdict[str, list[Changed]] = defaultdict(list)
        self._lost: list[Lost] = []
        # Up to which number of which store the subscribers were told; and what is still to be told.
        self._seen = ("", 0)
        self._untold: dict[Key, Record] = {}
        # The values that have come with what is being told: with the number of the record, and how old they may be.
        self._brought: dict[Key, tuple[int, Any, bytes]] = {}
        self._trouble = ""
        # Whether the store has lost something that it is to get again, one thread at a time; the number up to which it
        # has lost nothing; and what this process stores again by itself.
        self._owing, self._is_filling, self._filling = False, False, threading.RLock()
        self._filler = 0  # the thread that does, or did
        self._survived = 0
        # The numbers of changes that were lost: those after the first of each pair, up to the second.
        self._gone: list[tuple[int, int]] = []
        self._kept = Kept(self.me, log_limit)
        self._joining = threading.Lock()
        self._closing, self._closed, self._listening = threading.Event(), False, False
        self._threads: list[threading.Thread] = []

    @property
    def lease(self) -> float:
        """Seconds for which others take this process to be alive without a word of it."""
        return LEASE

    def _open(self) -> None:
        """The last step of the constructor."""
        self._join()
        self._seen = (self._id, self._last)
        self._start(self._renew)

    # ------------------------------------------------------------ what a server brings

    @abstractmethod
    def _run(self, command: str, args: Mapping[str, Any], data: Sequence[bytes] = ()) -> Any:
        """The reply to a command; LOST where this process and the server do not mean the same store."""

    @abstractmethod
    def _named(self, key: Key) -> Any:
        """How commands name a record."""

    @abstractmethod
    def _key_of(self, named: Any) -> Key:
        """How replies do."""

    @abstractmethod
    def _record(self, key: Key, values: Sequence[Any]) -> Record | None:
        """Of what a reply says: revision, created, group, owner, used, expires, size, text, since."""

    def _brought_by(self, reply: Sequence[Any]) -> bytes | None:
        """The value that a reply to `changes` has with a record, as `_part` gives it."""
        return None

    @abstractmethod
    def _part(self, key: Key, part: str) -> tuple[str | bytes | None, bytes | None]:
        """How old the parts of a record may be, as it was put; and one of them, with its revision before it."""

    @abstractmethod
    def _put(self, stamp: str, field: str, data: bytes) -> None:
        """A piece of a large part, whose beginning was told."""

    @abstractmethod
    def _get(self, stamp: str, field: str) -> bytes | None: ...

    @abstractmethod
    def _unlink(self, stamps: Collection[str]) -> None:
        """Delete large parts that no record names."""

    @abstractmethod
    def _bell(self) -> AbstractContextManager[Callable[[float], list[str]]]:
        """
        A connection that is told of changes.

        Its function waits so many seconds for a message, and gives its words: who has changed something, and how urgent
        that is; none when there is no message. That the connection is there is one, too.
        """

    @abstractmethod
    def _disconnect(self) -> None: ...

    # ------------------------------------------------------------ the server

    def _call(self, command: str, data: Sequence[bytes] = (), **args: Any) -> Any:
        """What the script says, once this process and the server mean the same store."""
        args |= {"me": self.me, "lease": int(LEASE * 1e6)}
        while True:
            if self._owing or self._is_filling:
                self._fill()
            if (reply := self._run(command, args, data)) is not LOST:
                return reply
            self._join()

    def _join(self) -> None:
        """Be alive; and see whether the store has lost something since this process has looked."""
        with self._joining:
            args = {
                "me": self.me, "lease": int(LEASE * 1e6), "id": self._id, "last": self._last,
                "fresh": secrets.token_hex(8), "survived": True,
                "watched": [(self._named(key), sessions) for key, sessions in self._watched.items()],
            }  # fmt: skip
            id, last, survived = map(as_text, self._run("join", args))
            known, self._id = self._id, id
            if known not in ("", id):
                if int(survived) < self._last:
                    self._gone.append((int(survived), self._last))
                    self._survived = min(self._survived, int(survived)) if self._owing else int(survived)
                    self._known.clear()
                    self._owing = True
                    log.error("The store %s came back without what it had. It gets what this process has.", self._shown)
                elif self._seen[0] == known:
                    self._seen = (id, self._seen[1])
            self._last = max(self._last, int(last))

    def _fill(self) -> None:
        """
        Who has something of a store that has lost it stores it again, before anything else is done here.

        What fails is tried again, at the next call.
        """
        busy = StoreError(f"The store {self._shown} is being filled again. Wait for that.")
        if in_a_hurry():  # an event loop waits
            if self._owing and not self._is_filling:
                self._start(self._fill_aside)
            raise busy
        if not self._filling.acquire(timeout=PATIENCE):
            raise busy
        try:
            while self._owing and not self._is_filling:
                self._is_filling, self._owing, self._filler = True, False, threading.get_ident()
                try:
                    self._ask_for_lost(self._survived)
                except BaseException:
                    self._owing = True
                    raise
                finally:
                    self._is_filling = False
        finally:
            self._filling.release()

    def _ask_for_lost(self, since: int) -> None:
        failed: StoreError | None = None
        for lost in [*self._lost, self._write_lines, self._let_go]:
            try:
                lost(since)
            except StoreError as error:
                failed = error
        if failed is not None:
            raise failed

    def _write_lines(self, since: int) -> None:
        for key, change, logs in self._kept.lines():
            if change is not None:
                self.write([change])
            for log, lines in zip(LOGS, logs, strict=True):
                if lines:
                    self._call("lines", key=self._named(key), log=log, lines=lines, limit=self._log_limit)

    def _let_go(self, since: int) -> None:
        """What the store has as it was when this process still held it is as it was left; else anybody may take it."""
        for space in list(self._subscribers):
            for there in self.scan(space, owner=self.me):
                if (change := self._kept.as_left(there)) is not None:
                    self.write([change], tell=Tell.NOW)

    def _start(self, body: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=body, name="panel-schedule-store", daemon=True))
        Context().run(self._threads[-1].start)

    def _renew(self) -> None:
        """On a thread of its own: whatever else this process waits for, it is alive."""
        pause = LEASE / 3
        while not self._closing.wait(pause):
            try:
                self._join()
                if self._owing and not self._is_filling:  # it may take longer than a process lives without a word
                    self._start(self._fill_aside)
                if not self._is_filling:
                    self._blobs.sweep(lambda stamps: list(map(as_text, self._call("blobs", stamps=stamps))))
                pause = LEASE / 3
            except ScheduleError as error:
                self._complain_once(error)
                pause = min(AGAIN, LEASE / 3)

    def _fill_aside(self) -> None:
        try:
            self._fill()
        except ScheduleError as error:
            self._complain_once(error)
        except BaseException:  # of the store's own thread
            log.exception("Filling the store again failed at something that is a bug of panel-schedule.")

    def _complain_once(self, error: Exception) -> None:
        if str(error) != self._trouble and not self._closing.is_set():
            self._trouble = str(error)
            log.error("%s", error)

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

    def _looked_up(self, keys: Sequence[Key]) -> dict[Key, Row]:
        last, *replies = self._call("rows", keys=list(map(self._named, keys)))
        self._last = max(self._last, int(last))
        return self._rows(replies)

    def _rows(self, replies: Iterable[Any]) -> dict[Key, Row]:
        rows = {}
        for name, newest, *values in replies:
            key = self._key_of(name)
            rows[key] = Row(self._record(key, values), newest, since_in(values[8]))
        return rows

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        source = self.source(record, kind, number, what)
        try:
            return source.load()
        except OSError as error:
            raise StoreError(f"{_name(what, record, kind)} cannot be read now: {error}.") from error
        except ValueUnreadable as error:
            raise _unreadable(what, record, kind, error) from error
        finally:
            source.close()

    def source(self, record: Record, kind: str, number: int = 0, what: str = "") -> Source:
        key = (record.space, record.name)
        brought = self._brought.get(key) if (kind, number) == ("value", 0) else None
        part: bytes | None
        self._last = max(self._last, record.revision)  # a server that is behind that has lost it
        while True:
            if brought is not None and brought[0] == record.revision:
                (_, since, part), brought = brought, None
            else:
                since, part = self._part(key, f"{kind}\0{number}")
            if part is None or any(survived < record.revision <= last for survived, last in self._gone):
                raise KeyError(record.name)  # that record is no more; its parts may be those of the one before it
            try:
                words, data = part.split(b"\n", 1)
                revision, _, text = words.decode().partition(" ")
                if int(revision) > record.revision:
                    raise KeyError(record.name)
                text, _, signature = text.rpartition(" ")
                head = Head.of(text)
                self._verify(signature, key, kind, number, head, since)
                if (source := self._opened(head, data)) is not None:
                    return source
                if self._part(key, f"{kind}\0{number}")[1] == part:
                    raise ValueUnreadable("its bytes are gone from the server")
            except OSError as error:  # too many open files, say
                raise StoreError(f"{_name(what, record, kind)} cannot be read now: {error}.") from error
            except ValueError as error:
                raise _unreadable(what, record, kind, error) from error

    def _opened(self, head: Head, data: bytes) -> Source | None:
        """What it is loaded from; None where its bytes are gone."""
        if head.stamp:
            return self._blobs.open(head)
        if self._signer.digest(data) != head.digest:
            self._refuse()
        return Inline(data)

    # ------------------------------------------------------------ parts

    def _place(self, change: Change, kind: str, number: int, value: Any) -> Placed:
        encoded = value if isinstance(value, Encoded) else encode(value, change.what)
        try:
            if encoded.size > self._max_value_bytes:
                raise ValueRefused(
                    f"{change.what}: the value has {encoded.size / 1e6:,.1f} MB, and ps.config.max_value_bytes is "
                    f"{self._max_value_bytes / 1e6:,.1f} MB. Return less, say a path to it, or raise that option."
                )
            return self._placed(encoded)
        except ValueUnreadable as error:
            raise ValueRefused(
                f"{change.what}: the value can be pickled, but {error}. Return plain data, or mend how its class "
                "pickles."
            ) from error
        except OSError as error:
            raise StoreError(f"{change.what}: the value cannot be stored now: {error}.") from error
        finally:
            if encoded is not value:
                encoded.close()

    def _placed(self, encoded: Encoded) -> Placed:
        """What the others get, this process gets as well."""
        if encoded.size <= INLINE:
            data = encoded.tobytes()
            return Placed(Head(len(data), digest=self._signer.digest(data)), data, Inline(data).load())
        stamp = f"{self.me}.{next(self._numbers)}"
        head, mapped = self._blobs.send(stamp, encoded)
        try:
            return Placed(head, b"", mapped.load())
        except BaseException:
            self._discard({stamp})
            raise
        finally:
            mapped.close()

    def _begin(self, stamp: str, pieces: int, seconds: int) -> None:
        self._call("begin", stamp=stamp, pieces=pieces, seconds=seconds)

    def _verify(self, signature: str, key: Key, kind: str, number: int, head: Head, since: str | bytes | None) -> None:
        if not self._signer.has_signed(signature, key, kind, number, head):
            self._refuse()
        if not self._signer.is_current(key, kind, head, since_in(since).get(kind, 0)):
            raise ValueUnreadable("it is an older one, which somebody has put back")

    def _refuse(self) -> None:
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
        placed: list[dict[tuple[str, int], Placed]] = []
        try:
            for change in changes:
                placed.append(made := {})
                for (kind, number), value in change.parts.items():
                    made[kind, number] = self._place(change, kind, number, value)
                    sent |= {made[kind, number].head.stamp} - {""}
            results, named = self._swap(changes, placed, durable, together, tell)
            sent -= named
        finally:
            if same in self._unsure:  # perhaps they are named; else they expire
                sent.clear()
            if sent:
                self._discard(sent)
        return results

    def _discard(self, stamps: Collection[str]) -> None:
        """Nobody names these; what stays expires."""
        with suppress(StoreError):
            self._unlink(stamps)

    def _swap(
        self,
        changes: Sequence[Change],
        placed: Sequence[Mapping[tuple[str, int], Placed]],
        durable: bool | None,
        together: bool,
        tell: Tell,
    ) -> tuple[list[Result], set[str]]:
        """
        The results, and the stamps that are named by records now.

        What this process takes the records to be is compared on the server: one round trip if it is right, and if it is
        not the reply says what they are. A refusal, or an error, is only true of what they are.
        """
        keys = list(dict.fromkeys((change.space, change.name) for change in changes))
        # One that this process has not met is most often a new one.
        rows, sure = {key: self._known.get(key) or NONE for key in keys}, False
        while True:
            if len(rows) < len(keys):
                rows, sure = self._looked_up(keys), True
            drafts = {key: Draft(key, self._named(key), rows[key]) for key in keys}
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
                "changes": [draft.told(data, self._last, self._signer.sign) for draft in drafts.values()],
                "by": f"{self.me}.{next(self._numbers)}",
                "ahead": AHEAD_TEXT,
                "limit": self._log_limit,
                "durable": any(draft.stamps() - {""} for draft in drafts.values()) if durable is None else durable,
                "tell": f"{self.me} {tell.name}" if tell is not Tell.LATER else False,
            }
            done = self._send(Step(changes, drafts, results, args, data))
            if not isinstance(done, dict):
                return done, {stamp for draft in drafts.values() for stamp in draft.stamps()}
            rows, sure = done, True

    def _send(self, step: Step) -> list[Result] | dict[Key, Row]:
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
        if (answer := as_text(answer)) == "stale":
            return self._rows(reply)
        if answer == "gone":
            raise StoreError(f"The store {self._shown} lost a value while it was stored. Try again.")
        revision, *sizes = map(int, reply)
        return self._done(step.drafts, step.results, revision, sizes)

    def _done(
        self, drafts: Mapping[Key, Draft], results: Sequence[Result], revision: int, sizes: Sequence[int]
    ) -> list[Result]:
        self._last = max(self._last, revision)
        new = {key: draft.row(size, revision) for (key, draft), size in zip(drafts.items(), sizes, strict=True)}
        self._remember(new)
        for key, draft in drafts.items():
            record = new[key].record
            self._kept.note_lines(key, record, *draft.log)
            # On the way to what it was before it may have had another owner, or none. But what other threads had begun
            # to ask before that is no part of it.
            if not (self._is_filling and self._filler == threading.get_ident()):
                # A larger one is not lost so soon.
                self._kept.note_held(key, record, draft.values, small=record is not None and record.size <= INLINE)
        done = []
        for result in results:
            if (record := result.record) is not None:
                last = new[record.space, record.name].record
                same = record is drafts[record.space, record.name].record
                now = last if same or last is None else settled(record, last.size, revision)
                result = result._replace(record=now)
            done.append(result)
        return done

    def _remember(self, rows: Mapping[Key, Row]) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        for key, row in rows.items():
            if row.record is not None:
                self._known[key] = row
                self._signer.remember(key, row.since)
            else:  # who makes it again has to know a number that is greater than all that it had
                self._known.pop(key, None)

    # ------------------------------------------------------------ what is used, and what must go

    def use(self, space: str, names: Collection[str], now: datetime) -> None:
        if names:
            self._call("use", space=space, names=list(names), now=instant_text(now))

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
        while self._call("sweep", now=instant_text(now)):
            pass
        self._forget_lines(now)

    def _forget_lines(self, now: datetime) -> None:
        """Those that are too old, some records at a time."""
        if self.log_age is None or self._clock.monotonic() < self._forgets_at:
            return
        self._forgets_at = self._clock.monotonic() + HOUR
        before = {log: instant_text(now - age) for log, age in zip(LOGS, self.log_age, strict=True)}
        for space in LOGGED:
            first = 0
            while self._call("forget", space=space, before=before, first=first, most=MANY) == MANY:
                first += MANY

    # ------------------------------------------------------------ owners and sessions

    def alive(self, owner: str) -> bool:
        if owner == NOBODY:
            return False
        now = self._clock.monotonic()
        if self._listening and self._believed.get(owner, 0.0) > now:
            return True
        there = bool(self._call("alive", owner=owner))
        if there:
            self._believed[owner] = now + BELIEF
        return there

    def watch(self, space: str, name: str, sessions: int) -> None:
        key = (space, name)
        with self._joining:
            self._watched |= {key: sessions}
            if not sessions:
                del self._watched[key]
        self._call("watch", watched=[(self._named(key), sessions)])

    def watchers(self, space: str, name: str) -> int:
        return int(self._call("watchers", key=self._named((space, name))))

    # ------------------------------------------------------------ who changed what

    def subscribe(self, space: str, changed: Changed, lost: Lost = lambda since: None) -> None:
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
                with self._bell() as bell:
                    self._hear(bell)
            except ScheduleError as error:
                self._complain_once(error)
            except BaseException:  # of the store's own thread
                log.exception("Reading the store failed at something that is a bug of panel-schedule; it goes on.")
            self._closing.wait(AGAIN)

    def _hear(self, bell: Callable[[float], list[str]]) -> None:
        """Until the connection is lost. That it is there, or there again, is a message, too."""
        looked = self._clock.monotonic() - LOOK
        while not self._closing.is_set():
            left = looked + LOOK - self._clock.monotonic()
            words = [bell(max(left, 0.001))]
            if "SOON" in words[0] and self.me not in words[0]:
                self._closing.wait(MOMENT)
            while more := bell(0):
                words.append(more)
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
        last, *replies = self._call("changes", spaces=list(self._subscribers), since=str(since), small=SMALL)
        id = self._id
        self._take_in(replies)
        self._seen, self._last = (id, int(last)), max(self._last, int(last))
        self._tell()
        self._brought.clear()

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
                    self._kept.hear(row.record)
                    if (part := self._brought_by(reply)) is not None:
                        self._brought[key] = (row.record.revision, reply[10], part)
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
        self._believed.clear()
        now = self._clock.now()
        self._forget_lines(now)
        replies = self._call("look", now=instant_text(now))
        self._take_in([reply for reply in replies if self._key_of(reply[0])[0] in self._subscribers])
        self._tell()

    def close(self) -> None:
        if self._closed:
            return
        self._closing.set()
        with suppress(StoreError):
            self._call("leave")  # which wakes the own listener, too
        self._closed = True
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(AGAIN)
        self._blobs.close()
        self._disconnect()


def as_text(value: str | bytes) -> str:
    """What a server says, which may be bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _server(url: str) -> str:
    """It, without who asks."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _name(what: str, record: Record, kind: str) -> str:
    return what or f"The {kind} of {record.space} {record.name!r}"


def _unreadable(what: str, record: Record, kind: str, why: Exception) -> ValueUnreadable:
    return ValueUnreadable(f"{_name(what, record, kind)} cannot be read: {why}.")
