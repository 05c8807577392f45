"""Real ``panel serve`` processes for the tests, and what waits for them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import TypeVar
from uuid import uuid4

import psutil

T = TypeVar("T")

# Sessions end almost as soon as their window is closed.
EXPIRE_SOON = "--check-unused-sessions 50 --unused-session-lifetime 50"

MARK = "PANEL_SCHEDULE_TEST_SERVER"
RUNNING_AT = re.compile(r"Bokeh app running at: (http://127\.0\.0\.1:(\d+))")


def eventually(condition: Callable[[], T], timeout: float = 20.0) -> T:
    """
    The first true result of ``condition()``, asked again and again until `timeout` seconds have passed.

    Only for what happens in another process or a browser, which give this one no signal to wait for.
    Inside this process wait for an event, a future or the virtual clock instead.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s, the last answer was {result!r}"
        time.sleep(0.01)
    return result


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write each source under its name, without the indentation that it has in a test."""
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source), encoding="utf-8")


class PanelServer:
    """
    A ``panel serve`` process in a session of its own, on a free port of the loopback address.

    Its command is what a user types after ``panel serve``. What its files print must be flushed: then a line comes in
    one piece, whatever its siblings print meanwhile (Python writes "a, b" in four where nothing is buffered). An
    environment variable marks the process and all that come from it, so that they are found whatever session or
    parent they have by then. `patience` is how many seconds `close` gives what is left behind.
    """

    def __init__(self, command: str, folder: Path, *, env: Mapping[str, str] | None = None):
        self.command = command
        self.folder = folder
        self.patience = 15.0
        self.mark = uuid4().hex
        self.url: str | None = None
        self.port: int | None = None
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "panel", "serve", *shlex.split(command), "--address", "127.0.0.1", "--port", "0"],
            cwd=folder,
            env={**os.environ, **(env or {}), MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def output(self) -> str:
        """All that the server and its children have printed so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, text: str, timeout: float = 20.0) -> None:
        """Wait until `text` has been printed; fail at once when the output ends without it."""
        self._wait_until(lambda: text in "".join(self._lines), timeout, f"{text!r} was not printed")

    def wait_started(self, timeout: float = 30.0) -> None:
        """Wait until the server listens; `url` and `port` are known from then on."""
        self._wait_until(lambda: self.url is not None, timeout, "the server did not start")

    def wait_exit(self, timeout: float = 20.0) -> int:
        """The exit code, once the process has ended by itself; negative for a signal."""
        code = self.process.wait(timeout)
        self._reader.join(self.patience)  # its pipe stays open while a child that was left behind holds it
        return code

    def stop(self, timeout: float = 15.0) -> int:
        """Ask the process to end as ``kill`` does, wait for it, and give its exit code. Again does nothing."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait_exit(timeout)

    def descendants(self) -> list[psutil.Process]:
        """The live processes that came from this server, without the server itself."""
        return [each for each in psutil.process_iter() if each.pid != self.process.pid and self._is_ours(each)]

    def close(self) -> None:
        """Stop the server whatever it takes; fail if it had to be killed or left a child behind."""
        with suppress(subprocess.TimeoutExpired, AssertionError):
            self.stop()
            eventually(lambda: not self.descendants(), self.patience)
        left = [each for each in psutil.process_iter() if self._is_ours(each)]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait_exit()
        assert not left, f"panel serve {self.command}\nleft {', '.join(map(str, left))}\n{self.output()}"

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:  # ended meanwhile, a zombie, or another user's
            return False

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                if self.url is None and (found := RUNNING_AT.search(line)):
                    self.url, self.port = found[1], int(found[2])
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait_until(self, condition: Callable[[], bool], timeout: float, complaint: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._ended, timeout)
            reason = "before the output ended" if self._ended else f"within {timeout} s"
            assert condition(), f"{complaint} {reason}:\n{''.join(self._lines)}"


Serve = Callable[..., PanelServer]
