"""The directory of a store: private to one user, and, when nobody named it, to one server."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import StoreError
from .liveness import Liveness
from .locks import LockFile

_NAME = re.compile(r"(\d+)-(\w+)")

# Of a directory that is being removed.
_GONE = ".gone"


def private(folder: Path, *, follow: bool = True) -> None:
    """
    Make a directory that only this user can enter, or check the one that is there.

    Raises
    ------
    StoreError
        When it is another user's, can be written by others, or cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat() if follow else folder.lstat()
    except OSError as error:
        raise StoreError(
            f"The store's directory {folder} cannot be made: {error.strerror}. Make it yourself, for the user that "
            "runs the server, or name another one in ps.config.store."
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"The store's directory {folder} is no directory. Name another one in ps.config.store.")
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"The store's directory {folder} belongs to user {found.st_uid}, and the server runs as {os.geteuid()}: "
            "whoever owns it could put anything into it. Name one of your own in ps.config.store, or chown it."
        )
    if found.st_mode & 0o022:
        raise StoreError(
            f"The store's directory {folder} can be written by other users, who could put anything into it. "
            f"Forbid that: chmod 700 {folder}"
        )


def automatic(supervisor: int) -> Path:
    """
    The directory that all processes of one server find without being told, and no other server does.

    Leftovers of servers that were killed are removed on the way.
    """
    root = Path(tempfile.gettempdir()) / f"panel-schedule-{os.geteuid()}"
    private(root, follow=False)
    mine = root / server_id(supervisor)
    for found in root.iterdir():
        if found.suffix == _GONE:
            shutil.rmtree(found, ignore_errors=True)
        elif found != mine and (name := _NAME.fullmatch(found.name)) and _started(int(name[1])) != name[2]:
            remove_if_left(found)
    return mine


def server_id(supervisor: int) -> str:
    """Pid and start time: a pid alone is another process's one day."""
    return f"{supervisor}-{_started(supervisor) or 0}"


@contextmanager
def door(folder: Path) -> Iterator[None]:
    """One process at a time, by a lock on a file: to come, to leave, to build and to tear down."""
    path = folder / "door"
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            file = LockFile(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # torn down meanwhile, as below
            continue
        try:
            file.lock(wait=True)
            with suppress(FileNotFoundError):
                # The one who had it before may have torn the directory down.
                if os.stat(path).st_ino == os.fstat(file.fd).st_ino:
                    yield
                    return
        finally:
            file.close()


def remove_if_left(folder: Path) -> None:
    """Remove the directory of a server, if no process of it is alive."""
    with suppress(OSError), door(folder):
        if not Liveness(folder).anyone():
            # At once, by its name: who comes while it is being removed makes another one.
            gone = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{_GONE}")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _started(pid: int) -> str | None:
    """When a process was started, in whatever unit; None when there is none."""
    try:
        # The name of the program, in parentheses, may contain anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return re.sub(r"\W+", "_", told.stdout.strip()) or None
