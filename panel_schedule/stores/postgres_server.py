"""A PostgreSQL server as a store uses it: statements, for whose answers nobody waits for ever, and notifications."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError

# So many statements of one process are on their way at the same time, each on a connection of its own.
MOST = 4

_OLDEST = 12

# What libpq takes them for unless the URL says something else: so also a network that is cut is noticed.
_DEFAULTS = {
    "application_name": "panel-schedule",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}

# What to do about an error, by its number (SQLSTATE), and by what is said of one that has none.
_REMEDIES = {
    ("42501",): "Give that user the right to do that, or let its owner create the schema for it.",
    ("25006",): "Name the primary in ps.config.store: this server is a replica, or read-only.",
    ("53100",): "Look at that server's disk: it is full.",
    ("57014", "55P03"): "Is the server overloaded, or does somebody lock its tables?",
    ("40001", "40P01"): "It was in the way of somebody else. Try again.",
    ("54000",): "Give it a shorter name.",
    ("the encoding",): "Name a database with the encoding UTF8 in ps.config.store.",
    ("older than",): "Name a newer server in ps.config.store.",
    ("pg_hba.conf",): "Let the server's pg_hba.conf accept that, or correct ?sslmode= in ps.config.store.",
    ("too many clients", "connection slots", "too many connections"): (
        "Raise the server's max_connections: each process takes three, and three more when it is busy."
    ),
    ("starting up", "not yet accepting", "shutting down", "recovery mode"): "It is there in a while.",
    ("password", "authentication failed", 'role "'): (
        "Correct user and password in ps.config.store: postgresql://user:password@host/database."
    ),
    ('database "',): "Correct the database at the end of ps.config.store, or create it.",
    ("SSL", "certificate"): "Correct the certificates, or ?sslmode= in ps.config.store.",
    ("no answer",): "Is the server stopped or overloaded, or the network slow?",
}
_UNREACHABLE, _UNKNOWN = "Start the server, or correct host and port in ps.config.store.", "Look at the server's log."


class ServerError(Exception):
    """
    What the server does not do.

    Attributes
    ----------
    state : str
        The number of the error (SQLSTATE); "" where the server has said nothing.
    remedy : str
        What to do about it.
    """

    def __init__(self, why: str, state: str = ""):
        super().__init__(" ".join(why.split()).rstrip(".?"))
        self.state = state
        self.remedy = next(
            (remedy for words, remedy in _REMEDIES.items() if state in words or any(word in why for word in words)),
            _UNKNOWN if state else _UNREACHABLE,
        )

    @property
    def denied(self) -> bool:
        """Whether the user has not the right to do that."""
        return self.state == "42501"

    @property
    def missing(self) -> bool:
        """Whether the schema, or something in it, is not there."""
        return self.state in ("3F000", "42P01", "42883")


class ConnectionLost(ServerError):
    """There is no connection, or none any more: what was asked was perhaps done."""


class NoAnswer(ConnectionLost):
    """Nor will another connection give one."""


class Connection:
    """
    One connection.

    Parameters
    ----------
    conninfo : bytes
        As libpq reads it.
    patience : float
        Seconds for which nothing may come from the server while it is waited for.

    Raises
    ------
    ServerError
        From each method; ConnectionLost when it is closed for that.
    """

    def __init__(self, conninfo: bytes, patience: float):
        self._psycopg = _library()
        self._prepared: dict[str, bytes] = {}
        self._pg = self._psycopg.pq.PGconn.connect_start(conninfo)
        with self._closed_when_lost():
            polling = self._psycopg.pq.PollingStatus
            while (state := self._pg.connect_poll()) != polling.OK:
                if state == polling.FAILED:
                    raise ConnectionLost(self._pg.error_message.decode("utf-8", "replace"))
                self._wait(select.POLLIN if state == polling.READING else select.POLLOUT, patience)
            self._pg.nonblocking = 1
            if (version := self._pg.server_version // 10_000) < _OLDEST:
                raise ConnectionLost(f"it is PostgreSQL {version}, which is older than {_OLDEST}")
            if (encoding := self._pg.parameter_status(b"server_encoding")) != b"UTF8":
                raise ConnectionLost(f"the database has the encoding {encoding.decode()}")

    @property
    def open(self) -> bool:
        return bool(self._pg.status == self._psycopg.pq.ConnStatus.OK)

    def ask(self, statement: str, values: tuple[str | bytes, ...], patience: float) -> list[list[Any]]:
        """The rows of a statement, which stays prepared. Values are text, or bytes as they are; rows are of bytes."""
        with self._closed_when_lost():
            name = self._prepared.get(statement)
            if name is None:
                name = b"s%d" % len(self._prepared)
                self._pg.send_prepare(name, statement.encode())
                self._result(patience)
                self._prepared[statement] = name
            self._pg.send_query_prepared(
                name,
                [value if isinstance(value, bytes) else value.encode() for value in values],
                [int(isinstance(value, bytes)) for value in values],
                1,
            )
            result = self._result(patience)
            return [[result.get_value(row, at) for at in range(result.nfields)] for row in range(result.ntuples)]

    def do(self, script: str, patience: float) -> None:
        """Statements, of which all are done or none."""
        with self._closed_when_lost():
            self._pg.send_query(script.encode())
            self._result(patience)

    def hear(self, timeout: float) -> str:
        """What the next notification says, for which it waits so many seconds; "" if there is none."""
        with self._closed_when_lost():
            if (heard := self._pg.notifies()) is None and self._is_ready(select.POLLIN, timeout):
                self._pg.consume_input()
                heard = self._pg.notifies()
            return heard.extra.decode() if heard is not None else ""

    def close(self) -> None:
        """Idempotent."""
        self._pg.finish()

    def _result(self, patience: float) -> Any:
        """Of the last statement that was sent, when all are done."""
        while self._pg.flush():
            self._wait(select.POLLIN | select.POLLOUT, patience)
            self._pg.consume_input()
        results = []
        while True:
            while self._pg.is_busy():
                self._wait(select.POLLIN, patience)
                self._pg.consume_input()
            if (result := self._pg.get_result()) is None:
                break
            results.append(result)
        for result in results:
            if result.status == self._psycopg.pq.ExecStatus.FATAL_ERROR:
                field = self._psycopg.pq.DiagnosticField
                why = result.error_field(field.MESSAGE_PRIMARY) or result.error_message
                state = result.error_field(field.SQLSTATE) or b""
                raise (ServerError if self.open else ConnectionLost)(why.decode("utf-8", "replace"), state.decode())
        return results[-1]

    def _wait(self, events: int, patience: float) -> None:
        if not self._is_ready(events, patience):
            raise NoAnswer("no answer in time")

    def _is_ready(self, events: int, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._pg.socket, events)
        return bool(poll.poll(timeout * 1000))

    @contextmanager
    def _closed_when_lost(self) -> Iterator[None]:
        """And when it is left in the middle of something."""
        try:
            yield
        except ConnectionLost:
            self.close()
            raise
        except ServerError:
            raise
        except self._psycopg.Error as error:
            self.close()
            raise ConnectionLost(str(error)) from error
        except BaseException:
            self.close()
            raise


class PostgresServer:
    """
    As many connections as there are statements at the same time.

    Parameters
    ----------
    url : str
    start : str
        What is done on each of them first.
    most : int
        So many are there at most; who needs a further one waits.

    Raises
    ------
    ConfigError
        When psycopg is missing, or the URL means nothing.
    ServerError
        From each method.
    """

    def __init__(self, url: str, start: str, most: int = MOST):
        psycopg = _library()
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
            conninfo = psycopg.conninfo.make_conninfo(**(_DEFAULTS | given | {"client_encoding": "UTF8"}))
        except psycopg.Error as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"ps.config.store names no PostgreSQL server: {why}.") from None
        self._conninfo, self._start = conninfo.encode(), start
        self._idle: list[Connection] = []
        self._places = threading.Semaphore(most)
        self._closed = False

    def connect(self, patience: float) -> Connection:
        """A connection that is the caller's own."""
        connection = Connection(self._conninfo, patience)
        connection.do(self._start, patience)
        return connection

    def ask(self, statement: str, *values: str | bytes, patience: float) -> list[list[Any]]:
        """
        The rows of a statement.

        One whose answer is lost with its connection is sent again, once: so it has to be one that may be done twice.
        """
        with self._place(patience):
            if (used := self._take()) is not None:
                try:
                    return self._asked(used, statement, values, patience)
                except NoAnswer:
                    raise
                except ConnectionLost:  # most often the server was started anew, and so all are
                    self._drop()
            return self._asked(self.connect(patience), statement, values, patience)

    def do(self, script: str, patience: float) -> None:
        """Statements, of which all are done or none."""
        connection = self.connect(patience)
        try:
            connection.do(script, patience)
        finally:
            connection.close()

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._drop()

    def _asked(
        self, connection: Connection, statement: str, values: tuple[str | bytes, ...], patience: float
    ) -> list[list[Any]]:
        try:
            return connection.ask(statement, values, patience)
        finally:
            if self._closed:
                connection.close()
            elif connection.open:
                self._idle.append(connection)

    @contextmanager
    def _place(self, patience: float) -> Iterator[None]:
        if not self._places.acquire(timeout=patience):
            raise NoAnswer("no answer in time to what other threads have asked")
        try:
            yield
        finally:
            self._places.release()

    def _take(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _drop(self) -> None:
        while (connection := self._take()) is not None:
            connection.close()


def _library() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError:
        raise ConfigError(
            "ps.config.store names a PostgreSQL server, which needs the package psycopg: "
            "pip install 'panel-schedule[postgres]'"
        ) from None
    return psycopg
