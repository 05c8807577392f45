"""Functions in the workers of Celery, which this file alone imports."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from ..clock import Clock
from ..config import shown
from ..coordination.processes import ProcessState
from ..errors import ConfigError, ScheduleError
from .calls import Calls
from .elsewhere import RemoteExecutor

log = logging.getLogger("panel_schedule")

# The one task that is registered with an app.
TASK = "panel-schedule"

# Seconds that workers get to say that they are there.
PING = 1.0

INSTALL = "pip install 'panel-schedule[celery]'"


def require(app: Any, store: str, what: str) -> None:
    """
    Raise unless `what` can run in the workers of an app, with the store of this name.

    Raises
    ------
    ConfigError
    """
    if app is None:
        write = "Write" if find_spec("celery") else f"{INSTALL}; then write"
        raise ConfigError(
            f"{what} has executor='celery', and ps.config.celery is not set. {write} in the file with the "
            "tasks: ps.config.celery = Celery('dashboard', broker='redis://host:6379/1')."
        )
    if not (app.conf.broker_url or app.conf.broker_write_url):
        raise ConfigError(
            f"{what} has executor='celery', and the Celery app {app.main!r} names no broker: "
            f"Celery({app.main!r}, broker='redis://host:6379/1')."
        )
    if store == "auto" or store.startswith("memory:"):
        raise ConfigError(
            f"{what} has executor='celery', whose workers must reach the store, and ps.config.store is {store!r}. Set "
            "ps.config.store = 'redis://host:6379/0', or 'file:///a/directory' where all are on one machine."
        )


def register(
    app: Any,
    make: Callable[[str, str, bool], bool],
    lose: Callable[[str, str], object],
    where: Callable[[], str],
    ready: Callable[[Callable[[], ProcessState]], object],
    ended: Callable[[], object],
) -> None:
    """
    Let the workers of an app make calls.

    Parameters
    ----------
    app : celery.Celery
    make : callable
        ``make(name, worker, killable)``, in a worker, the call of this name; whether it was there.
    lose : callable
        ``lose(name, worker)``, in the process that has started a worker process, when that has died at a call.
    where : callable
        ``where()`` names the store in which calls are.
    ready : callable
        ``ready(state)``, in the process that starts the others of a worker, whenever it begins to take messages;
        ``state()`` is what it is at.
    ended : callable
        ``ended()``, there, when it ends as it should.
    """
    from celery.signals import worker_process_init, worker_ready, worker_shutdown
    from celery.worker.request import Request

    # Processes of the prefork pool, which make one call at a time.
    children = set[int]()
    worker_process_init.connect(lambda **_: children.add(os.getpid()), weak=False)

    def lost(name: str, worker: str) -> None:
        with suppress(ScheduleError):  # its lease ends
            lose(name, worker)

    class CallRequest(Request):  # type: ignore[misc]
        """In the process that starts the others: a message, and the process that has got it."""

        def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
            name, worker = self.args[0], _worker(self.hostname, self.worker_pid)
            if self.worker_pid and self.worker_pid != os.getpid():
                threading.Thread(target=lost, args=[name, worker], daemon=True).start()
            return super().on_failure(exc_info, *args, **kwargs)

    def make_call(self: Any, name: str, place: str) -> None:
        there = make(name, _worker(self.request.hostname, os.getpid()), os.getpid() in children)
        if not there and place != where():
            log.error(
                "A server has sent a call that is in its store, %s, and the store of this worker is %s. Give both the "
                "same ps.config.store and ps.config.namespace.", place, where(),
            )  # fmt: skip

    options = {"acks_late": True, "reject_on_worker_lost": True, "ignore_result": True}
    app.task(name=TASK, bind=True, Request=CallRequest, **options)(make_call)

    def begin(sender: Any, **_: Any) -> None:
        if sender.app is app:
            ready(lambda: _state(sender))

    def end(sender: Any, **_: Any) -> None:
        if sender.app is app:
            ended()

    worker_ready.connect(begin, weak=False)
    worker_shutdown.connect(end, weak=False)


def _state(consumer: Any) -> ProcessState:
    """What a worker is at; messages of other tasks than ours count as well, as they take its places."""
    from celery.worker import state

    # Those that run are among those that it has.
    running, has = len(state.active_requests), len(state.reserved_requests)
    return ProcessState(
        executors={"celery": [running, max(0, has - running), consumer.pool.num_processes]},
        worker=consumer.hostname,
        queues=sorted(consumer.app.amqp.queues.consume_from),
    )


def _worker(host: str, pid: int) -> str:
    return f"{host}/{pid}"


class CeleryExecutor(RemoteExecutor):
    """
    In the workers of a Celery app, which are as many as its users start.

    Parameters
    ----------
    app : celery.Celery
    calls : Calls
    clock : Clock
    where : str
        Names the store, without a password.
    """

    def __init__(self, app: Any, calls: Calls, clock: Clock, where: str):
        super().__init__(calls, clock)
        self._app, self._where = app, where

    def send(self, name: str) -> None:
        try:
            self._app.send_task(TASK, args=[name, self._where], task_id=name, ignore_result=True, retry=False)
        except Exception as error:  # each broker has its own
            raise ScheduleError(
                f"The Celery broker {self._broker} cannot be reached: {' '.join(str(error).split()).rstrip('.')}. What "
                "is to run there waits; start the broker, or correct the address in the Celery app."
            ) from error

    def kill(self, name: str) -> None:
        self._app.control.revoke(name, terminate=True, signal="SIGKILL")

    def complaint(self) -> str:
        try:
            if self._app.control.ping(timeout=PING):
                return ""
        except Exception as error:
            log.debug("The workers of Celery cannot be asked: %s", error)
        return (
            f"it waits, and no Celery worker answers on {self._broker}. Start one: celery -A tasks:celery_app worker, "
            "naming the file with the tasks and the Celery app in it."
        )

    @property
    def _broker(self) -> str:
        """Its address, without user and password."""
        return shown(self._app.connection_for_write().as_uri())
