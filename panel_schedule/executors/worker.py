"""In a worker process: runs one body after another, and tells the server."""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import inspect
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.abc import SourceLoader
from importlib.util import spec_from_file_location
from typing import Any

from ..errors import RunFenced, ScheduleError, ValueUnreadable
from ..functions import remote, spans
from ..functions.calls import PUBLISHED, async_outcome, outcome
from ..functions.run import Run, RunState, _current
from ..serialize.checks import require_data
from ..session import leave_session
from . import forks, logs, wire
from .descendants import adopt_orphans
from .interruption import Interruption
from .process_state import ProcessState
from .wire import Encoded, Gone, Inline, Mapped, Wire, encode

# Progress is sent at most this often, in seconds.
PACE = 0.05


def conduct(
    call: Callable[[], Any],
    publish: Callable[[Any], object],
    started: Callable[[asyncio.Task[Any] | None], object] = lambda task: None,
) -> Any:
    """
    The result of a function, be it async or a generator: each item of one is published.

    Returns
    -------
    object
        What it returned; PUBLISHED when that is None and there were items.
    """
    result = call()
    if inspect.isasyncgen(result) or inspect.isawaitable(result):
        return asyncio.run(_conduct(result, publish, started))
    return outcome(result, publish)


async def _conduct(result: Any, publish: Callable[[Any], object], started: Callable[[Any], object]) -> Any:
    async def yielded(item: Any) -> None:
        publish(item)

    started(asyncio.current_task())
    try:
        return await async_outcome(result, yielded)
    finally:
        started(None)


class _SentSource(SourceLoader):
    """A module of another machine."""

    def __init__(self, file: str, source: str):
        self._file = file
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return self._file

    def get_data(self, path: str | bytes) -> bytes:
        if path != self._file:
            raise FileNotFoundError(path)
        return self._source.encode()


class Workplace:
    """
    Where the bodies run that the server sends, one at a time, on the main thread.

    SIGTERM stops the one that runs: an error is raised in it wherever it is, but not while a message is half sent.
    """

    def __init__(self, line: Wire):
        self._wire = line
        self._run: Run | None = None
        # One message at a time; and one question, with its answer, at a time.
        # Again by the same thread, too: signal handlers and `__del__` may log, even amid a message.
        self._sending = threading.RLock()
        self._amid = False
        self._logged = deque[Encoded]()
        self._asking = threading.Lock()
        self._name = ""
        self._told = (-1, "")
        self._news = threading.Event()
        self._reporter: threading.Thread | None = None
        self._interruption = Interruption()
        self._undisturbed = self._interruption.undisturbed
        self._state: ProcessState | None = None

    def serve(self) -> None:
        """Until the server is gone."""
        signal.signal(signal.SIGTERM, self._stop)
        # Not ignored, which its children would inherit: Ctrl-C is the server's business.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        remote.asker = self.ask
        sys.meta_path.append(self)
        forks.register(self._leave)
        sys.unraisablehook = self._interruption.unraisable
        logs.send_records(self._log)
        self._wire.send(wire.READY)
        while True:
            kind, told = self._wire.receive()
            if kind == wire.HELLO:
                self._wire.send(wire.READY)
                continue
            _, body = self._wire.receive()
            self._work(told.load(), body)
            del told, body

    def _work(self, told: Any, body: Inline | Mapped) -> None:
        self._name, task, identity, key, attempt, asked, sys.path[:], settings = told
        run = Run(task, key, datetime.min.replace(tzinfo=UTC))
        run.id, run.attempt, run.state, run.asked = identity, attempt, RunState.RUNNING, asked
        run._execution, run._changed = self, self._report
        self._interruption.begin(run)
        self._run, self._told = run, (-1, "")
        if self._state is None:
            self._state = ProcessState()
        self._state.follow(settings)
        contextvars.Context().run(self._conclude, run, body)
        if not self._state.restore():
            raise Gone  # another worker takes the next one

    def _conclude(self, run: Run, body: Inline | Mapped) -> None:
        kind, result = self._outcome(run, body)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        value = None
        if kind == wire.RETURNED:
            try:
                require_data(result, self._name)
                value = encode(result, self._name)
            except BaseException as error:
                kind, result = wire.RAISED, error
        if kind == wire.RAISED:
            value = wire.encode_error(result, self._name)
        with self._asking:  # a thread that was left behind may be waiting for an answer
            self._tell()
            with self._sending:
                self._send_logged()
                self._run = self._interruption.run = None
            try:
                self._wire.send(kind, value)
            except Gone:
                raise
            except OSError as error:  # no memory for a large value
                self._wire.send(wire.RAISED, wire.encode_error(error, self._name))

    def _outcome(self, run: Run, body: Inline | Mapped) -> tuple[bytes, Any]:
        signal.signal(signal.SIGTERM, self._stop)  # whatever the body before has made of it
        try:
            try:
                self._interruption.open()
                _current.set(run)
                known = len(sys.modules)
                function, args, kwargs = self._unpack(body)
                if self._state is not None and len(sys.modules) != known:
                    self._state.imported()
                leave_session(self._name)
                spans.enter_carried(run.asked)
                result = conduct(partial(function, *args, **kwargs), run.publish, self._interruption.awaits)
            except asyncio.CancelledError:
                run.check()
                raise
            finally:
                self._interruption.is_open = False
        except BaseException as error:
            return wire.RAISED, error
        return (wire.PUBLISHED, None) if result is PUBLISHED else (wire.RETURNED, result)

    def _unpack(self, body: Inline | Mapped) -> Any:
        try:
            return body.load()
        except ValueUnreadable as error:
            assert self._run is not None
            self._run.check()  # what the stop has raised in there
            raise ValueUnreadable(
                f"{self._name}: its function or arguments cannot be read in a worker process: {error}. What they need "
                "must be importable there, from the server's sys.path."
            ) from error.__cause__

    # ------------------------------------------------------------ what it asks and tells

    def ask(self, *question: Any) -> Any:
        """What the server answers; waits for it. Raises what answering has raised."""
        return self._converse(wire.QUESTION, question)

    def previous(self) -> Any:
        return self.ask("previous")

    def publish_inside(self, partial: Any) -> None:
        if remote.asker is None:
            raise ScheduleError(f"{self._name}: a child of its worker process cannot publish. Hand it to its parent.")
        require_data(partial, self._name)
        self._converse(wire.PARTIAL, partial)

    def _converse(self, kind: bytes, value: Any) -> Any:
        with self._undisturbed():
            encoded = encode(value, self._name)
        with self._asking:
            if self._run is None:
                raise RunFenced(f"{self._name}: a thread of it goes on after its end, and is not heard any more.")
            # After a stop there may be an answer on its way, to a question that nobody asks any more.
            self._run.check()
            with self._undisturbed(), self._sending:
                self._send(kind, encoded)
            self._wait()
            with self._undisturbed():
                kind, answer = self._wire.receive()
        with self._undisturbed():
            if kind == wire.REFUSAL:
                raise wire.decode_error(answer, self._name)
            return answer.load()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """
        For `sys.meta_path`: modules that the server has from where it does not look any more, as Bokeh's apps do.

        On another machine they come as text.
        """
        if remote.asker is None or self._run is None or any(map(os.path.isdir, path or ())):
            return None
        file, folders = self._converse(wire.MODULE, name)
        if file is None:
            return None
        if os.path.exists(file):
            return spec_from_file_location(name, file, submodule_search_locations=folders)
        if (source := self.ask("source", name)) is None:
            return None
        loader = _SentSource(file, source)
        return spec_from_file_location(name, file, loader=loader, submodule_search_locations=folders)

    def _wait(self) -> None:
        waiter = select.poll()
        waiter.register(self._wire.fileno(), select.POLLIN)
        try:
            self._interruption.wait()
            waiter.poll()
        finally:
            self._interruption.waits = False

    def _report(self) -> None:
        if not self._news.is_set():
            self._news.set()
            if self._reporter is None:
                self._reporter = threading.Thread(target=self._keep_telling, name="panel-schedule-news", daemon=True)
                contextvars.Context().run(self._reporter.start)

    def _keep_telling(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            with suppress(Gone):
                self._tell()
            time.sleep(PACE)

    def _tell(self) -> None:
        with self._sending:
            run = self._run
            if run is not None and self._told != (news := (run.percent, run.message)):
                self._told = news
                self._send(wire.PROGRESS, encode(news, self._name))

    def _log(self, fields: dict[str, Any]) -> bool:
        """Whether a record was sent: only a run's are, and not those of a child process."""
        if self._run is None:
            return False
        with self._undisturbed():
            self._logged.append(encode(fields, self._name))
            with self._sending:
                if not self._amid:
                    self._send_logged()
        return True

    def _send_logged(self) -> None:
        while self._logged and self._run is not None:
            with suppress(Gone):
                self._send(wire.LOG, self._logged.popleft())

    def _send(self, kind: bytes, value: Encoded) -> None:
        self._amid = True
        try:
            self._wire.send(kind, value)
        finally:
            self._amid = False

    # ------------------------------------------------------------ when it is stopped

    def _stop(self, *_: object) -> None:
        if self._run is None:
            os._exit(0)
        self._interruption.stop()

    def _leave(self) -> None:
        """In the child of a fork: it is nobody's worker."""
        remote.asker = self._run = self._interruption.run = None
        self._wire.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _die_with_the_server(lifeline: int) -> None:
    """End this process and its children when the other end of a pipe, which the server has, is closed."""
    if hasattr(fcntl, "F_SETSIG"):
        # By Linux itself, whatever the interpreter is busy with. PR_SET_PDEATHSIG would leave the children.
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_watch, args=[lifeline], name="panel-schedule-lifeline", daemon=True).start()


def _watch(lifeline: int) -> None:
    with suppress(OSError):
        os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def main(sock: int, lifeline: int) -> None:
    """What a worker process does, from its inherited descriptors on."""
    for fd in (sock, lifeline):
        os.set_inheritable(fd, False)
    os.register_at_fork(after_in_child=partial(os.close, lifeline))
    _die_with_the_server(lifeline)
    adopt_orphans()
    try:
        Workplace(Wire(socket.socket(fileno=sock))).serve()
    except Gone:
        os.killpg(0, signal.SIGKILL)
