"""A PostgreSQL server that the tests start."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest

from redis_server import free_port
from servers import eventually

PATHS = [os.environ.get("PATH", ""), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
INITDB, POSTGRES = (shutil.which(name, path=os.pathsep.join(PATHS)) or "" for name in ("initdb", "postgres"))

# What a test waits at most for it to end, in seconds.
PATIENCE = 20.0

HBA = """
local all all trust
host all locked 127.0.0.1/32 scram-sha-256
host refused all 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
"""


class PostgresServer:
    """
    A server on a free port, with nothing of it outside of a directory.

    It does not run as root: then it does as the user ``postgres``.

    Parameters
    ----------
    *options : str
    of : PostgresServer
        It has what this one has by now, but for what that would lose if it was killed.
    """

    def __init__(self, *options: str, of: PostgresServer | None = None):
        pytest.importorskip("psycopg", reason="needs the package psycopg")
        if not POSTGRES:
            pytest.skip("needs PostgreSQL")
        self._user: dict[str, Any] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="ps-pg-"))
        if os.geteuid() == 0:
            postgres = pwd.getpwnam("postgres")
            self._user = {"user": postgres.pw_uid, "group": postgres.pw_gid, "extra_groups": []}
            os.chown(self.folder, postgres.pw_uid, postgres.pw_gid)
        self.options, self.port = options, free_port()
        self.url = f"postgresql://owner@127.0.0.1:{self.port}/postgres"
        if of is None:
            command = [INITDB, "--pgdata", self.folder / "data", "--username", "owner", "--no-sync", "--locale", "C"]
            subprocess.run([*command, "--encoding", "UTF8"], check=True, capture_output=True, cwd="/", **self._user)
            (self.folder / "data" / "pg_hba.conf").write_text(HBA)
        else:
            of.pause()
            subprocess.run(["cp", "-a", of.folder / "data", self.folder], check=True)
            of.go_on()
            (self.folder / "data" / "postmaster.pid").unlink()
        self.start()

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder, "fsync": "off",
            "max_connections": 200, "lc_messages": "C",
        }  # fmt: skip
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        self.process = subprocess.Popen(
            [POSTGRES, "-D", self.folder / "data", *options, *self.options],
            stderr=subprocess.PIPE, text=True, cwd="/", **self._user,
        )  # fmt: skip
        assert any("ready to accept connections" in line for line in self.process.stderr), "it does not start"
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    @cached_property
    def client(self) -> Any:
        import psycopg

        return psycopg.connect(
            self.url, dbname="postgres", autocommit=True, options="-c default_transaction_read_only=off"
        )

    def all(self, question: str, *values: Any) -> list[Any]:
        """The rows that it answers, or the values where there is one in each."""
        cursor = self.client.execute(question, values)
        rows = cursor.fetchall() if cursor.description else []
        return [row[0] if len(row) == 1 else row for row in rows]

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def lose_from_now_on(self) -> None:
        """When it is killed it has lost each commit from now on that nobody waited for."""
        self.all("CHECKPOINT")
        # Whoever commits for good, be it to vacuum a table, takes along what others have committed before.
        for pid in self.all("SELECT pid FROM pg_stat_activity WHERE backend_type <> 'client backend'"):
            os.kill(pid, signal.SIGSTOP)

    def kill(self) -> None:
        """It dies, as when the power fails, but that the system keeps what it was given."""
        processes = self._signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        eventually(lambda: all(map(_is_dead, processes)))  # only then another one may have these data
        self.__dict__.pop("client", None)

    def stop(self) -> None:
        """For good, and so without a checkpoint."""
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: int) -> list[psutil.Process]:
        """To all of its processes, each of which is a group of its own."""
        first = psutil.Process(self.process.pid)
        first.suspend()  # so that it starts no more of them
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return processes


def _is_dead(process: psutil.Process) -> bool:
    """Whoever is to bury it may take his time."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
