"""Functions that run once for all visitors of a Panel dashboard: on a schedule, on request, for whoever asks."""

import atexit
import os

from . import errors, triggers
from .config import config
from .decorators import Front
from .errors import Cancel, ScheduleError
from .functions.background import Background
from .functions.family import Family
from .functions.memoize import Memoized
from .functions.run import Run, RunState, current_run, progress, track
from .functions.task import Retry, RetryLater, Task, TaskStatus
from .http.routes import routes
from .runtime import Runtime
from .serialize.entry import Entry
from .server.panel import install
from .views.base import TaskView
from .views.components import Freshness
from .views.job import Job
from .views.job_panel import JobPanel
from .views.memo import MemoView

_front = Front(_runtime := Runtime(config))
os.register_at_fork(after_in_child=_runtime.forget)
atexit.register(_runtime.close)

schedule_task, cancel_task, schedule, hasher = _front.schedule_task, _front.cancel_task, _front.schedule, _front.hasher
background, memoize, run_forever, DataHealth = _front.background, _front.memoize, _front.run_forever, _front.DataHealth
alert, on, stop, store, tasks = _front.alert, _front.on, _front.stop, _front.store, _front.tasks

__version__ = "0.1.0"
ROUTES, Monitor = routes(_runtime, install(_runtime))  # for ``--plugins``, which has several processes stop as one, too

__all__ = [
    "Background",
    "Cancel",
    "DataHealth",
    "Entry",
    "Family",
    "Freshness",
    "Job",
    "JobPanel",
    "MemoView",
    "Memoized",
    "Monitor",
    "Retry",
    "RetryLater",
    "Run",
    "RunState",
    "ScheduleError",
    "Task",
    "TaskStatus",
    "TaskView",
    "alert",
    "background",
    "cancel_task",
    "config",
    "current_run",
    "errors",
    "hasher",
    "memoize",
    "on",
    "progress",
    "run_forever",
    "schedule",
    "schedule_task",
    "stop",
    "store",
    "tasks",
    "track",
    "triggers",
]
__dir__ = __all__.copy  # what is completed after `ps.`
