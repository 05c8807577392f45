"""Functions that run once for all visitors of a Panel dashboard: on a schedule, on request, for whoever asks."""

import atexit
import os

from . import errors, triggers
from .components import Freshness
from .config import config
from .entry import Entry
from .errors import ScheduleError
from .front import Front
from .jobpanel import JobPanel
from .jobs import Background
from .jobview import Job
from .memo import Memoized
from .memoview import MemoView
from .run import Run, RunState, current_run, progress, track
from .runtime import Runtime
from .server import install
from .task import Retry, Task, TaskStatus
from .views import TaskView

_runtime = Runtime(config)
_front = Front(_runtime)
install(_runtime)
os.register_at_fork(after_in_child=_runtime.forget)
atexit.register(_runtime.close)

background = _front.background
cancel_task = _front.cancel_task
memoize = _front.memoize
on = _front.on
run_forever = _front.run_forever
schedule = _front.schedule
schedule_task = _front.schedule_task
store = _front.store
tasks = _front.tasks

__version__ = "0.1.0"
ROUTES: list[tuple[str, type]] = []  # for ``--plugins panel_schedule``, which has several processes stop as one

__all__ = [
    "Background",
    "Entry",
    "Freshness",
    "Job",
    "JobPanel",
    "MemoView",
    "Memoized",
    "Retry",
    "Run",
    "RunState",
    "ScheduleError",
    "Task",
    "TaskStatus",
    "TaskView",
    "background",
    "cancel_task",
    "config",
    "current_run",
    "errors",
    "memoize",
    "on",
    "progress",
    "run_forever",
    "schedule",
    "schedule_task",
    "store",
    "tasks",
    "track",
    "triggers",
]
__dir__ = __all__.copy  # what is completed after `ps.`
