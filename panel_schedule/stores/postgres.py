"""The store of processes on any number of machines: a PostgreSQL database that all of them reach."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..clock import Clock
from ..config import shown
from ..coordination.record import Record, instant_of, of_text
from ..errors import StoreError
from ..functions.run import RunRecord
from .base import Store
from .fallback import Fallback
from .hurry import LAST, SOON, in_a_hurry, is_leaving
from .postgres_server import PostgresServer, ServerError
from .queue import MOST_BYTES
from .records import whole
from .server_records import LOGS, LOST, PATIENCE, ServerRecords
from .server_steps import run_in, to_json
from .signed import Key

log = logging.getLogger("panel_schedule")

# Of tables and functions: that of `store` in the script.
SCHEMA_VERSION = 1

_SCRIPT = Path(__file__).with_name("postgres.sql").read_text(encoding="utf-8")

# A statement ends before its caller gives it up. What is durable is so as this database has it; of anything else the
# last half second may be lost, and with it nothing before.
_START = """
SET search_path TO "{schema}", pg_temp;
SET statement_timeout TO {timeout};
SET default_transaction_isolation TO 'read committed';
SET client_min_messages TO warning;
SET jit TO off;
SELECT set_config(
    'panel_schedule.durable', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), false
);
SET synchronous_commit TO off
"""

# One of the processes that start at the same time makes it, the others wait. Who may use a schema need not have the
# right to make one. What an earlier release has made gets what is new: its processes go on with that, and so `version`
# stays as it is.
_CREATE = """
DO $create$ BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('panel_schedule'));
    IF to_regnamespace('"{schema}"') IS NULL THEN
        CREATE SCHEMA "{schema}";
    END IF;
    IF to_regclass('"{schema}".failures') IS NULL THEN
        SET LOCAL synchronous_commit TO on;
        EXECUTE $script$ {script} $script$;
    END IF;
END $create$
"""

# The owner of a schema, who asks, if that is somebody else, and whether all is there; none where the schema is not.
_WHO = """
SELECT quote_ident(pg_get_userbyid(nspowner)), quote_ident(current_user), (EXISTS (
    SELECT FROM pg_class WHERE relnamespace = pg_namespace.oid AND relname = 'failures'
))::text
FROM pg_namespace WHERE nspname = $1 AND NOT pg_has_role(nspowner, 'USAGE')
"""

# What a user needs that does not own the schema.
_GRANT = (
    'GRANT USAGE ON SCHEMA "{schema}" TO {user}; '
    'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO {user};'
)

_JOIN = 'SELECT "join"($1, $2)'

_COMMAND = """
SELECT CASE WHEN is_whole($3, $4::bigint) THEN "{}"($1, $2) ELSE '"lost"' END
"""

# Whether the server has lost nothing; how old the parts of a record may be, and one of them.
_PART = """
SELECT is_whole($4, $5::bigint)::text, since, parts.revision::text, data
FROM (SELECT) AS one LEFT JOIN (records JOIN parts USING (space, name)) ON space = $1 AND name = $2 AND part = $3
"""

_OID_OF_BYTEA = 17


class PostgresRecords(ServerRecords):
    """
    A `RecordStore` in a schema of its own of a PostgreSQL database (12 or later).

    A change is compared and set by one function on the server, which all processes share. With `durable` it is on the
    server's disk before `write` returns, and on that of its replicas if the database is set up so. Any other one is
    committed with ``synchronous_commit = off``: when the server dies the last half second of them may be lost, none of
    them by half and none before it. The processes notice that, and store again what they have.

    Parameters
    ----------
    url : str
        ``postgresql://`` or ``postgres://``, as libpq reads it. A connection to the server itself, or by a pooler that
        keeps it for the session.
    clock : Clock
    namespace : str
        Each has a schema: other namespaces in the same database are other stores.
    secret : str
        Each part is signed with it, for its record and for no later version of that; one that is not is never
        unpickled. Without one whoever can write to the schema can run code in this process.
    max_value_bytes : int
        Larger parts are refused.
    log_limit : int
        How many lines the log of each record keeps.

    Raises
    ------
    ConfigError
        When psycopg is missing, or the URL means nothing.
    StoreError
        When the database cannot be used.
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
        self._schema = schema_of(namespace)
        start = _START.format(schema=self._schema, timeout=int(PATIENCE * 800))
        # That this process is alive it says on a connection of its own.
        self._server, self._leases = PostgresServer(url, start), PostgresServer(url, start, most=1)
        self._create()
        self._open()

    # ------------------------------------------------------------ the server

    def _run(self, command: str, args: Mapping[str, Any], data: Sequence[bytes] = ()) -> Any:
        given = (_escaped(to_json(args)), _array(data))
        if command == "join":
            [[text]] = self._ask(_JOIN, *given, server=self._leases)
        else:
            # A process that ends does not queue behind its own threads.
            server = self._leases if command == "leave" else self._server
            [[text]] = self._ask(_COMMAND.format(command), *given, self._id, str(self._last), server=server)
        reply = json.loads(_unescaped(text.decode()))
        return LOST if reply == "lost" else reply

    def _ask(self, statement: str, *values: str | bytes, server: PostgresServer | None = None) -> list[list[Any]]:
        with self._told():
            patience = SOON if in_a_hurry() else LAST if is_leaving() else PATIENCE
            ask = (server or self._server).ask
            try:
                return ask(statement, *values, patience=patience)
            except ServerError as error:
                if not error.missing:
                    raise
        self._create()  # somebody has dropped the schema
        with self._told():
            return ask(statement, *values, patience=patience)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong is one clear line."""
        if self._closed:
            raise StoreError(f"The store {self._shown} is closed. Make another one.")
        try:
            yield
        except ServerError as error:
            remedy = (self._rights() if error.denied else "") or error.remedy
            raise StoreError(f"The store {self._shown} cannot be used now: {error}. {remedy}") from error

    def _rights(self) -> str:
        """What gives this user the rights that it lacks; ``""`` where it is not the schema that it may not use."""
        with suppress(ServerError):
            for owner, user, complete in self._server.ask(_WHO, self._schema, patience=PATIENCE):
                grant = _GRANT.format(schema=self._schema, user=user.decode())
                if complete == b"true":
                    return f"Let the owner of its schema, {owner.decode()}, run: {grant}"
                return (
                    f"Its schema lacks what this release needs, and only the owner, {owner.decode()}, can add that: "
                    "let this release open it once with that user in its URL (panel-schedule status --store URL), and "
                    f"then the owner run: {grant}"
                )
        return ""

    def _create(self) -> None:
        """The schema is there; several processes may see to that at the same time."""
        with self._told():
            try:
                question = "SELECT version::text FROM store WHERE to_regclass('failures') IS NOT NULL"
                rows = self._server.ask(question, patience=PATIENCE)
            except ServerError as error:
                if not error.missing:
                    raise
                rows = []
            version = int(rows[0][0]) if rows else 0
            if version < SCHEMA_VERSION:
                self._server.do(_CREATE.format(schema=self._schema, script=_SCRIPT), PATIENCE)
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"The schema {self._schema} of the store {self._shown} was made by a newer panel-schedule (version "
                f"{version}, this one knows {SCHEMA_VERSION}). Upgrade panel-schedule, or name another namespace in "
                "ps.config.namespace."
            )

    def _disconnect(self) -> None:
        self._server.close()
        self._leases.close()

    @contextmanager
    def _bell(self) -> Iterator[Callable[[float], list[str]]]:
        with self._told():
            connection = self._server.connect(PATIENCE)
            try:
                connection.do(f'LISTEN "{self._schema}"', PATIENCE)
                first = iter([["listening"]])
                yield lambda timeout: next(first, None) or connection.hear(timeout).split()
            finally:
                connection.close()

    # ------------------------------------------------------------ reading

    def read(self, space: str, name: str) -> Record | None:
        key, question = (space, name), "SELECT told(records) FROM records WHERE space = $1 AND name = $2"
        rows = self._rows(json.loads(_unescaped(told.decode())) for [told] in self._ask(question, *_words(*key)))
        if not rows:  # perhaps all are gone, and are about to come back
            rows = self._looked_up([key])
        return rows[key].record

    def _named(self, key: Key) -> Key:
        return key

    def _key_of(self, named: list[str]) -> Key:
        space, name = named
        return space, name

    def _record(self, key: Key, values: Sequence[Any]) -> Record | None:
        revision, created, group, owner, used_at, expires_at, size, text, _ = values
        if revision is None:
            return None
        try:
            state, parts = of_text(key[0], text)
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"The store {self._shown} has something else in place of {key[0]} {key[1]!r}: {error}. Name another "
                "namespace in ps.config.namespace, or delete that."
            ) from error
        return Record(
            *key, state, group, owner, instant_of(used_at), instant_of(expires_at), parts, size, created, revision
        )

    def log(self, space: str, name: str, last: int | None = None) -> list[RunRecord]:
        if last is not None:
            question = "SELECT line FROM logs WHERE space = $1 AND name = $2 ORDER BY number DESC LIMIT $3"
            newest = self._ask(question, *_words(space, name), str(last))
            return [run_in(_unescaped(line.decode())) for [line] in newest]
        question = """
            SELECT 'log', line, number FROM logs WHERE space = $1 AND name = $2
            UNION ALL SELECT 'failures', line, number FROM failures WHERE space = $1 AND name = $2
            ORDER BY number DESC
        """
        logs: dict[str, list[RunRecord]] = {log: [] for log in LOGS}
        for log, line, _ in self._ask(question, *_words(space, name)):
            logs[log.decode()].append(run_in(_unescaped(line.decode())))
        return whole(*logs.values())

    # ------------------------------------------------------------ parts

    def _part(self, key: Key, part: str) -> tuple[bytes | None, bytes | None]:
        while True:
            [[whole, since, *found]] = self._ask(_PART, *_words(*key, part), self._id, str(self._last))
            if whole == b"true":
                return (since, b"%s %s" % tuple(found)) if since is not None else (None, None)
            self._join()

    def _put(self, stamp: str, field: str, data: bytes) -> None:
        self._ask("INSERT INTO pieces VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", stamp, field, data)

    def _get(self, stamp: str, field: str) -> bytes | None:
        rows = self._ask("SELECT data FROM pieces WHERE stamp = $1 AND field = $2", stamp, field)
        return rows[0][0] if rows else None

    def _unlink(self, stamps: Collection[str]) -> None:
        for stamp in stamps:
            self._ask("SELECT drop_blob($1)", stamp)


class PostgresStore(Store):
    """
    Values, claims, jobs and answers in a PostgreSQL database that any number of machines share.

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
        See `PostgresRecords`.
    on_store_loss : {"wait", "run"}
        See `Store`.

    Raises
    ------
    ConfigError, StoreError
        As `PostgresRecords` does.
    """

    records: PostgresRecords

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
        host = urlsplit(url).netloc.rpartition("@")[2]
        if not secret and not re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\]|%2F.*)?(:\d*)?", host, re.IGNORECASE):
            log.warning(
                "The store %s is on another host, and ps.config.secret is not set: who can write there can run code "
                "here. Set the same secret in all processes.", shown(url),
            )  # fmt: skip
        records = PostgresRecords(
            url, clock, namespace=namespace, secret=secret, max_value_bytes=max_value_bytes, log_limit=history_limit
        )
        runs = on_store_loss == "run"
        fallback = Fallback(records, clock, shown(url), records.lease, history_limit) if runs else None
        super().__init__(records, clock, server or records.me, max_result_bytes, fallback)


def schema_of(namespace: str) -> str:
    """Its name, which a server cuts off after 63 bytes."""
    name = f"panel_schedule_{namespace}".replace('"', '""')
    if len(name.encode()) <= 63:
        return name
    return f"{name.encode()[:40].decode(errors='ignore')}_{hashlib.sha256(name.encode()).hexdigest()[:20]}"


def _array(data: Sequence[bytes]) -> bytes:
    """As the server takes a ``bytea[]``."""
    head = struct.pack("!iiI", int(bool(data)), 0, _OID_OF_BYTEA) + (struct.pack("!ii", len(data), 1) if data else b"")
    return head + b"".join(struct.pack("!i", len(each)) + each for each in data)


# The server has no NUL in texts: in its place, and in its own, stands one that is hardly ever in them.
_NUL = "␀"


def _words(*texts: str) -> list[str]:
    return [text.replace(_NUL, _NUL + _NUL).replace("\0", f"{_NUL}0") for text in texts]


def _escaped(text: str) -> str:
    """JSON without NUL; a backslash before ``u0000`` may itself be one that stands for a backslash."""
    if r"\u0000" not in text and _NUL not in text:
        return text
    words = {"\\\\": "\\\\", r"\u0000": f"{_NUL}0", _NUL: _NUL + _NUL}
    return re.sub(rf"\\\\|\\u0000|{_NUL}", lambda found: words[found[0]], text)


def _unescaped(text: str) -> str:
    """JSON as it was."""
    if _NUL not in text:
        return text
    return re.sub(f"{_NUL}(.)", lambda found: r"\u0000" if found[1] == "0" else _NUL, text)
