"""One computation of an answer: what is asked, who waits for it, and how far it has come."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

from ..coordination.answers import Basis
from ..functions.memoize import Memoized
from ..functions.run import Run


class Computation:
    """
    A computation, in this process or followed in another one.

    Attributes
    ----------
    memo : Memoized
    key : hashable
    args, kwargs : tuple, dict
    basis : tuple of int
        The versions of the tasks of ``after=`` for which it is made.
    run : Run
        What ``ps.current_run()`` is inside.
    waiters : list of Run
        Of each caller that waits for it.
    refresh : bool
        Whether an answer that is there is no reason not to compute.
    renews : bool
        Whether only a fresh one is.
    wanted : bool
        Whether it is computed though nobody waits for it.
    heard : bool
        Whether somebody who waits gets to hear of a failure as an error that is raised.
    held : bool
        Whether an event loop stands still until it has ended.
    kept : bool
        Whether its answer is kept, as it was not invalidated meanwhile.
    ready : bool
        Whether this process may begin it.
    begun : bool
    future : Future or None
        Its place in an executor.
    waits_for : list of Computation
        What its function waits for; a coroutine may wait for several.
    last : object
        Its newest partial answer.
    digest : str
        Its key in a shared store.
    fence : int
        Its right to store the answer, or that of the process that computes it; 0 where it has none.
    remote : bool
        Whether another process computes it.
    known : int
        The version in the store that was not good enough.
    partials : int
        How many partial answers that process had published.
    """

    __slots__ = (
        "args",
        "basis",
        "begun",
        "digest",
        "fence",
        "future",
        "heard",
        "held",
        "kept",
        "key",
        "known",
        "kwargs",
        "last",
        "memo",
        "partials",
        "ready",
        "refresh",
        "remote",
        "renews",
        "run",
        "waiters",
        "waits_for",
        "wanted",
    )  # fmt: skip

    def __init__(self, memo: Memoized[Any, Any], key: Hashable, args: Any, kwargs: Any, basis: Basis, run: Run):
        self.memo = memo
        self.key = key
        self.args, self.kwargs = args, kwargs
        self.basis = basis
        self.run = run
        self.waiters: list[Run] = []
        self.refresh = self.renews = self.wanted = self.heard = self.ready = self.begun = self.remote = False
        self.held, self.kept = False, True
        self.future: Future[Any] | None = None
        self.waits_for: list[Computation] = []
        self.last: Any = None
        self.digest = ""
        self.fence = self.known = self.partials = 0

    @property
    def name(self) -> str:
        """As errors and the log have it."""
        return f"Memoized function {self.memo.name!r}"

    @property
    def call(self) -> str:
        """``filtered('north', 2026)``"""
        return self.memo.call_text(self.args, self.kwargs)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.run.state.final
