"""One run of a function from its start to its end."""

from __future__ import annotations

from ..functions.run import RunState

# Seconds that a coroutine gets to end after its timeout, before a retry is given up.
LAST_WORDS = 1.0

# How a run ends that has gone wrong by itself.
TROUBLE = (RunState.FAILED, RunState.TIMED_OUT, RunState.CRASHED)
