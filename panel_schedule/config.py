"""Options, read once when the package starts and handed down from there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo

import param

from .errors import ConfigError

ENV_PREFIX = "PANEL_SCHEDULE_"


class Config(param.Parameterized):
    """
    Options of the package, ``ps.config``.

    Each is also an environment variable, ``PANEL_SCHEDULE_<NAME>``. Set them before the
    first task starts: afterwards an assignment raises.

    Raises
    ------
    ConfigError
        When an option means nothing, or is set after the start.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> ps.config.timezone = "Europe/Berlin"
    >>> ps.config.timezone
    'Europe/Berlin'
    """

    store = param.String(
        default="auto",
        doc="""
        Where values live. ``"auto"``: in memory, and with several server processes in a
        private directory that exactly these share and that goes with them. ``"file:///dir"``:
        in a directory that keeps them over restarts. ``"redis://host:6379/0"``, ``"rediss://..."`` with TLS,
        ``"unix:///socket"``: on a Redis or Valkey server, for processes on any number of machines;
        ``"redis+sentinel://host:26379,host:26379/service/0"``: on the one that Sentinel names;
        ``"redis+cluster://host:6379"``: on a cluster;
        ``"postgresql://host:5432/database"``: in a PostgreSQL database.
        ``"memory://"``: in this process, always.""",
    )

    namespace = param.String(
        default="default",
        doc="""
        Keeps apps apart, and versions of one app, that use the same Redis server or PostgreSQL database.""",
    )

    secret = param.String(
        default="",
        doc="""
        Signs the values on a Redis or PostgreSQL server: what was not signed with it is never unpickled. The same in
        all processes, and known to nobody else.""",
    )

    max_value_bytes = param.Integer(
        default=512 * 1024**2,
        bounds=(1, 512 * 1024**2),
        doc="""
        The size of the largest value that a Redis or PostgreSQL server is given, 512 MB at most.""",
    )

    on_store_loss: Any = param.Selector(
        default="wait",
        objects=["wait", "run"],
        doc="""
        What becomes of tasks when a Redis or PostgreSQL server that was there cannot be used any more: ``"wait"`` until
        it can, while the last good values go on being served, or ``"run"``: after 15 seconds each process runs them for
        itself, and brings them together when the server is there again. Jobs and memoized functions wait.""",
    )

    timezone = param.String(
        default=None,
        allow_None=True,
        doc="""
        IANA name, such as ``"Europe/Berlin"``, of the zone of cron schedules that name none.""",
    )

    smtp = param.String(
        default="",
        doc="""
        The server that sends the mail of ``ps.alert``: ``"smtp://user:password@host:587"``, with STARTTLS where it has
        that, or ``"smtps://..."``; ``"?from=dashboard@example.org"`` behind it names the sender.""",
    )

    celery: Any = param.Parameter(
        default=None,
        doc="""
        A Celery app, in whose workers functions with ``executor="celery"`` run: ``Celery("dash", broker="redis://...")``.
        Set in the file with the tasks, which the workers import.""",
    )

    dask: Any = param.Parameter(
        default=None,
        doc="""
        The Dask cluster on whose workers functions with ``executor="dask"`` run: the address of its scheduler,
        ``"tcp://scheduler:8786"``, or a ``distributed.Client`` that has one.""",
    )

    max_threads = param.Integer(
        default=8,
        bounds=(1, None),
        doc="""
        How many plain functions may run at once, each in a worker thread.""",
    )

    max_processes = param.Integer(
        default=2,
        bounds=(1, None),
        doc="""
        How many functions may run at once in worker processes of each server process: so many background
        jobs, as many tasks, and as many memoized functions. The workers start when they are needed.""",
    )

    groups = param.Dict(
        default={},
        doc="""
        How many runs go at the same time of all functions with ``group=`` of this name, in all processes that share
        the store: ``{"warehouse": 2}``. In the environment ``warehouse=2,api=5``.""",
    )

    grace_period = param.Number(
        default=5.0,
        bounds=(0, None),
        doc="""
        Seconds that running functions get to finish when the server stops.""",
    )

    history: Any = param.Parameter(
        default="7d",
        doc="""
        How long the history has a run that has ended: a period such as ``"7d"``, or a timedelta; of one that has
        failed four times as long. None, or ``""`` in the environment: for ever.""",
    )

    history_limit = param.Integer(
        default=100,
        bounds=(1, None),
        doc="""
        How many runs the history of each function keeps; and so many that have failed, whatever comes after them.""",
    )

    first_run_failure: Any = param.Selector(
        default=None,
        objects=[None, "exit", "serve"],
        doc="""
        What becomes of a server when a first run fails that it waits for, after all attempts: ``"exit"`` with the
        traceback, or ``"serve"`` pages that show the failure, while the schedule goes on. By default exit under
        ``panel serve --setup``, and serve in any other host.""",
    )

    max_result_bytes = param.Integer(
        default=256 * 1024**2,
        bounds=(0, None),
        doc="""
        How many bytes of results and partial results are kept of background runs that have ended, of all functions
        together: in each process, and in a store that processes share. The oldest runs go first.""",
    )

    max_queued = param.Integer(
        default=10_000,
        bounds=(1, None),
        doc="""
        How many runs of one background function may wait in each process; a further one is refused.""",
    )

    token = param.String(
        default="",
        doc="""
        Whoever sends it, as ``Authorization: Bearer <token>``, may see and change all that ``/schedule`` has over HTTP.
        At least 16 characters, which nobody can guess.""",
    )

    admins = param.List(
        default=[],
        doc="""
        The names of the users who may refresh, pause, resume and cancel, and see arguments, users and tracebacks, as
        Panel's login knows them. In the environment separated by commas.""",
    )

    ready_timeout = param.Number(
        default=60.0,
        bounds=(1, 240),
        doc="""
        Seconds that a first visitor waits for the first values before a page says that the
        server is starting. Bokeh's session token expires after 300.""",
    )

    _frozen = False
    _wrong: ConfigError | None = None

    def __init__(self, environ: Mapping[str, str] = os.environ, *, strict: bool = True):
        super().__init__(name="config")
        for option in self.options():
            if (text := environ.get(ENV_PREFIX + option.upper())) is not None:
                try:
                    self._read(option, text)
                except ConfigError as error:
                    if strict:
                        raise
                    self._wrong = self._wrong or error

    @classmethod
    def options(cls) -> list[str]:
        """The names of all options."""
        return sorted(set(cls.param) - {"name"})

    def check(self) -> None:
        """Refuse what the environment says, if it means nothing; called before the first task starts."""
        if self._wrong is not None:
            raise self._wrong

    def freeze(self) -> None:
        """Refuse every later assignment; called when the first task starts."""
        self._frozen = True

    def _read(self, option: str, text: str) -> None:
        kinds: dict[type, Callable[[str], Any]] = {
            param.Integer: int,
            param.Number: float,
            param.List: _names,
            param.Dict: _sizes,
        }
        kind = kinds.get(type(self.param[option]), str)
        try:
            setattr(self, option, kind(text))
        except ConfigError:
            raise
        except ValueError as exc:
            raise ConfigError(f"The environment variable {ENV_PREFIX}{option.upper()} is {text!r}: {exc}") from None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._no_option(name), name=name, obj=self)

    def _no_option(self, name: str) -> str:
        return f"There is no option ps.config.{name}; there are {', '.join(self.options())}."

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).param and not name.startswith("_"):
            raise ConfigError(self._no_option(name))
        if name in type(self).param:
            if self._frozen and value == getattr(self, name):
                return  # by a setup script that the app imports, and so runs again
            if self._frozen:
                raise ConfigError(
                    f"ps.config.{name} was set after a task or the store was first used, when it no longer has any "
                    "effect. Set it at the top of the setup script, or as "
                    f"{ENV_PREFIX}{name.upper()} in the environment."
                )
            if check := _CHECKS.get(name):
                check(value)
            if value is True or value is False or value == float("inf"):
                raise ConfigError(
                    f"ps.config.{name} is {value!r}, which is no number that can be waited for or counted."
                )
        try:
            super().__setattr__(name, value)
        except ValueError as exc:
            raise ConfigError(f"ps.config.{name} is {value!r}: {exc}") from None


# How servers are named.
REDIS = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
POSTGRES = ("postgresql", "postgres")
SENTINEL = "redis+sentinel"


def sentinels_of(url: str) -> tuple[list[tuple[str, int]], str, int]:
    """
    Where the sentinels are, and which service and database of theirs is meant.

    Raises
    ------
    ConfigError
    """
    parts = urlsplit(url)
    hosts = [re.fullmatch(r"(\[.+\]|[^:]+)(?::(\d+))?", host) for host in parts.netloc.rpartition("@")[2].split(",")]
    which = re.fullmatch(r"/([^/]+)(?:/(\d*))?", parts.path)
    if which is None or None in hosts:
        raise ConfigError(
            f"ps.config.store is {shown(url)!r}, and a server of Redis Sentinel is named by the sentinels, the service "
            "and the number of a database: 'redis+sentinel://user:password@host:26379,host:26379/service/0'."
        )
    return [(host[1].strip("[]"), int(host[2] or 26379)) for host in hosts if host], which[1], int(which[2] or 0)


def shown(url: str) -> str:
    """A URL as messages name it: without password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if "@" in url or "?" in url else url


def _check_store(url: str) -> None:
    if url in ("auto", "memory://"):
        return
    accepted = (
        "'auto', 'memory://', 'file:///a/directory', 'redis://host:6379/0', 'rediss://...', 'unix:///a/socket', "
        "'redis+sentinel://host:26379,host:26379/service/0', 'redis+cluster://host:6379' and "
        "'postgresql://host:5432/database'"
    )
    if not isinstance(url, str):
        raise ConfigError(f"ps.config.store is {url!r}; accepted are {accepted}.")
    try:
        parts = urlsplit(url)
        if parts.scheme in POSTGRES:
            _check_postgres(url, parts)
            return
        if parts.scheme != SENTINEL:
            parts.port  # noqa: B018
    except ValueError as error:
        raise ConfigError(f"ps.config.store names no server: {error}; accepted are {accepted}.") from None
    if parts.scheme in REDIS:
        _check_redis(url, parts)
        return
    if parts.scheme != "file":
        raise ConfigError(f"ps.config.store is {shown(url)!r}; accepted are {accepted}.")
    if parts.netloc or not parts.path.startswith("/") or parts.path == "/" or "%00" in parts.path:
        raise ConfigError(
            f"ps.config.store is {url!r}, and a file store is named by the absolute path of a directory after three "
            "slashes: 'file:///var/lib/myapp'."
        )


def _check_redis(url: str, parts: SplitResult) -> None:
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise ConfigError(
            f"ps.config.store is {shown(url)!r}, and the socket of a Redis server is named by its absolute path: "
            "'unix:///run/redis/redis.sock?db=0'."
        )
    if parts.scheme == SENTINEL:
        sentinels_of(url)
        return
    if parts.scheme != "unix" and not (parts.hostname and re.fullmatch(r"(/\d*)?", parts.path)):
        raise ConfigError(
            f"ps.config.store is {shown(url)!r}, and a Redis server is named by its host, port and the number of a "
            "database: 'redis://user:password@host:6379/0'."
        )


def _check_postgres(url: str, parts: SplitResult) -> None:
    """It may name several servers; all that it leaves out libpq has an answer to."""
    hosts = parts.netloc.rpartition("@")[2]
    if not all(re.fullmatch(r"(\[.*\]|[^:]*)(:\d*)?", host) for host in hosts.split(",")) or "/" in parts.path[1:]:
        raise ConfigError(
            f"ps.config.store is {shown(url)!r}, and a PostgreSQL server is named by its host, port and the name of a "
            "database: 'postgresql://user:password@host:5432/database'."
        )


def _check_namespace(name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.:@/-]+", name):
        raise ConfigError(f"ps.config.namespace is {name!r}; it is a name of letters, digits and any of '_.:@/-'.")


def _check_celery(app: Any) -> None:
    if app is not None and not (hasattr(app, "send_task") and hasattr(app, "conf")):
        raise ConfigError(
            f"ps.config.celery is {app!r}, which is no Celery app. Write in the file with the tasks: "
            "ps.config.celery = Celery('dashboard', broker='redis://host:6379/1')."
        )


def _check_dask(cluster: Any) -> None:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(cluster).__mro__}
    if cluster is None or ("distributed", "Client") in kinds:
        return
    if not (isinstance(cluster, str) and re.fullmatch(r"[a-z]+://[^\s/]+(/.*)?", cluster)):
        raise ConfigError(
            f"ps.config.dask is {cluster!r}; it is the address of a Dask scheduler, 'tcp://scheduler:8786', or a "
            "distributed.Client."
        )


def _check_smtp(url: str) -> None:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("smtp", "smtps") and parts.hostname and parts.path in ("", "/") and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        right = None
    if url != "" and not right:
        # Not what it is: there may be a password in it.
        raise ConfigError(
            "ps.config.smtp is no mail server; one is named by its host and port: 'smtp://user:password@host:587'. "
            "Characters such as @ and / in user or password are written as %40 and %2F."
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _sizes(text: str) -> dict[str, int]:
    return {name.strip(): int(size) for name, _, size in (each.partition("=") for each in _names(text))}


def _check_groups(groups: Any) -> None:
    if not isinstance(groups, dict) or not all(
        isinstance(name, str) and name and type(size) is int and size > 0 for name, size in groups.items()
    ):
        raise ConfigError(
            f"ps.config.groups is {groups!r}; it says by the name of each group how many runs of it go at the same "
            "time, at least 1: {'warehouse': 2}."
        )


def _check_token(token: str) -> None:
    if not isinstance(token, str) or not (token == "" or re.fullmatch(r"[\x21-\x7e]{16,}", token)):
        raise ConfigError(
            "ps.config.token is no token: it takes at least 16 letters, digits or signs, without spaces. Make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'."
        )


def _check_admins(names: Any) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ConfigError(f"ps.config.admins is {names!r}; it is a list of the names of users: ['ada', 'grace'].")
    if "guest" in names:
        raise ConfigError("ps.config.admins has 'guest', which is everybody who has not logged in.")


def _check_timezone(name: str | None) -> None:
    if name is None:
        return
    try:
        ZoneInfo(name)
    except (KeyError, TypeError, ValueError, OSError):
        raise ConfigError(
            f"ps.config.timezone is {name!r}, which is no IANA time zone such as 'Europe/Berlin'."
        ) from None


_CHECKS = {
    "store": _check_store,
    "admins": _check_admins,
    "token": _check_token,
    "celery": _check_celery,
    "dask": _check_dask,
    "groups": _check_groups,
    "namespace": _check_namespace,
    "smtp": _check_smtp,
    "timezone": _check_timezone,
}

# What is wrong in the environment is said at the first use: of an import that fails in a setup script a server with
# several processes takes no notice.
config = Config(strict=False)
