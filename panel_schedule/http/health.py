"""Whether a server lives, and whether it is ready to serve: what the probes of Kubernetes and load balancers ask."""

from __future__ import annotations

import asyncio
from typing import Any

from .access import Handler

# Seconds that the thread which serves all tasks has to go round.
TURN = 3.0


class Healthz(Handler):
    """200 while the process lives and its scheduler turns; 503 when that is stuck. Without a login."""

    async def get(self) -> None:
        try:
            turns = await asyncio.wait_for(self.aside(self.runtime.turns, TURN), 2 * TURN)
        except TimeoutError:
            turns = False
        self.answer({"alive": turns}, 200 if turns else 503)


class Readyz(Handler):
    """
    503 until the tasks of ``first_run="wait"`` have their values, and again when the server stops. Without a login.

    It names those tasks to who may see tasks, and says to others how many there are. Where its scheduler is stuck, so
    that nobody knows, it is not ready.
    """

    async def get(self) -> None:
        try:
            ready, waiting = await asyncio.wait_for(self.aside(self._state), TURN)
        except TimeoutError:
            ready, waiting = False, []
        content: dict[str, Any] = {"ready": ready, "waiting": len(waiting)}
        if self.may_read:
            content["waiting_for"] = waiting
        self.answer(content, 200 if ready else 503)

    def _state(self) -> tuple[bool, list[str]]:
        waiting = sorted(task.name for task in self.runtime.waiting_for())
        return not (waiting or self.runtime.stopping), waiting
