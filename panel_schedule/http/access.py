"""Who may see what, and who may change it; and what all answers have in common."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NoReturn, TypeVar

import panel as pn
from bokeh.server.views.auth_request_handler import AuthRequestHandler
from tornado.web import Finish

from ..errors import StoreError
from ..executors.threads import ThreadExecutor
from ..functions.task import Task
from ..runtime import Runtime
from ..views.admins import any_name

log = logging.getLogger("panel_schedule")

T = TypeVar("T")

# What a browser sends across sites only after it has asked, and is never told that it may.
HEADER = "X-Requested-With"


class Handler(AuthRequestHandler):
    """
    Answers in JSON.

    Parameters
    ----------
    runtime : Runtime
    threads : ThreadExecutor
        For what may have to wait, as the event loop must not.
    """

    def initialize(self, runtime: Runtime, threads: ThreadExecutor) -> None:
        self.runtime = runtime
        self._threads = threads

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    async def aside(self, call: Callable[..., T], *args: Any) -> T:
        """What it returns, from a thread that may wait."""
        return await self.wait(asyncio.wrap_future(in_thread(self._threads, partial(call, *args))))

    async def wait(self, answer: Awaitable[T]) -> T:
        """The same of what comes from a thread; where the store cannot be asked it has answered."""
        try:
            return await answer
        except StoreError as error:
            self.refuse(503, str(error))

    def find(self, name: str) -> Task[Any]:
        """The task of this name; where there is none it has answered."""
        if (task := self.runtime.tasks.get(name)) is None:
            self.refuse(404, f"There is no task {name!r}.")
        return task

    # ------------------------------------------------------------ who asks

    @property
    def server(self) -> Any:
        """Bokeh's application."""
        return self.application

    @property
    def has_login(self) -> bool:
        provider = self.server.auth_provider
        return provider.get_user is not None or provider.get_user_async is not None

    @property
    def user(self) -> str | None:
        """Who is logged in."""
        if not self.has_login:
            return None
        user = self.current_user
        return user.decode("utf-8", "replace") if isinstance(user, bytes) else user

    @property
    def has_token(self) -> bool:
        token = self.runtime.config.token
        kind, _, given = self.request.headers.get("Authorization", "").partition(" ")
        return bool(token) and kind.lower() == "bearer" and hmac.compare_digest(_bytes(given.strip()), _bytes(token))

    @property
    def may_read(self) -> bool:
        """As Panel's pages: everybody where there is no login."""
        return not self.has_login or bool(self.user) or self.has_token

    @property
    def is_admin(self) -> bool:
        """Who sees arguments, users and tracebacks, and may make changes."""
        return self.has_token or (self.user in self.runtime.config.admins and not self.any_name)

    @property
    def any_name(self) -> bool:
        """Whether ``--basic-auth`` has one password for all, with which anybody may give any name."""
        return any_name(pn.state._server_config.get(self.server, {}).get("basic_auth", pn.config.basic_auth))

    def require_reader(self) -> None:
        if not self.may_read:
            self._challenge("Log in, or send the token of ps.config.token as 'Authorization: Bearer <token>'.")

    def require_admin(self) -> None:
        """For what only admins see."""
        config = self.runtime.config
        if self.has_token:
            return
        if not (config.token or config.admins):
            self.refuse(403, "This is for admins, and neither ps.config.token nor ps.config.admins is set.")
        if self.user is None:
            self._challenge("This takes the token of ps.config.token, as 'Authorization: Bearer <token>'.")
        if not self.is_admin:
            why = "All users share one password, so that each may give any name. Let --basic-auth name a file of users."
            self.refuse(403, why if self.any_name else f"User {self.user!r} is none of ps.config.admins.")

    def require_change(self) -> None:
        """For a change. A page of another site cannot send the token, nor the header, in its visitor's name."""
        self.require_admin()
        if not (self.has_token or self.request.headers.get(HEADER)):
            self.refuse(403, f"A change by a user who is logged in takes the header {HEADER!r}, with any value.")

    def log_change(self, action: str, what: str) -> None:
        """Who asks for it: a warning, as the monitor's is."""
        who = "the token" if self.has_token else f"user {self.user!r}"
        log.warning("The API: %s asks for %r of %r", who, action, what)

    def check_xsrf_cookie(self) -> None:
        """`require_change` does it."""

    # ------------------------------------------------------------ answers

    def answer(self, content: dict[str, Any] | bytes, status: int = 200) -> None:
        """JSON, or what it is made of."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(content if isinstance(content, bytes) else json.dumps(content))

    def refuse(self, status: int, why: str) -> NoReturn:
        self.answer({"error": why}, status)
        raise Finish

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:
            methods = [method for method in self.SUPPORTED_METHODS if method.lower() in vars(type(self))]
            self.set_header("Allow", ", ".join(methods))
        self.answer({"error": self._reason}, status_code)

    def _challenge(self, why: str) -> NoReturn:
        self.set_header("WWW-Authenticate", "Bearer")
        self.refuse(401, why)


def all_tasks(runtime: Runtime) -> list[Task[Any]]:
    """By name; on any thread."""
    tasks = runtime.tasks
    return [task for name in sorted(tasks) if (task := tasks.get(name)) is not None]


def in_thread(threads: ThreadExecutor, call: Callable[[], Any]) -> Future[Any]:
    """Call it at once, as far as there is a thread for it."""
    future = threads.submit(call)
    threads.flush()
    return future


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
