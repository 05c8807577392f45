"""
The errors of the package. Each message names the task, the cause and the remedy.

::

    ScheduleError
    ├── ConfigError              an option that means nothing, or was set after the start
    ├── TriggerError             a period, cron expression or date that means nothing
    ├── RegistrationError        a function, name or option that cannot be scheduled
    │   └── CycleError           tasks that wait for each other
    ├── ValueRefused             a value that is not data (a Bokeh model, a Panel object)
    ├── ValueUnreadable          a stored value that cannot be read: torn, foreign, or of other code
    ├── ArgumentUnkeyable        an argument, or a ``key=``, of which no key can be made
    ├── StoreError               a shared store that cannot be used, now or at all
    ├── WouldBlock               a blocking call on a running loop's own thread: use ``await``
    ├── NotReady                 no value within the given timeout
    └── RunError                 how a run ended, for those who wait for its result
        ├── RunCancelled         cancelled or replaced
        ├── RunTimedOut          took longer than its timeout
        ├── RunSkipped           never started
        ├── RunFailed            failed in another process, or by a CancelledError of its own function
        ├── RunCrashed           its process died, and the one that took it over
        └── RunFenced            lost its claim; what it publishes is dropped

What a user's function raises is never wrapped: it keeps its type and traceback.
"""

from __future__ import annotations

__all__ = [
    "ArgumentUnkeyable",
    "ConfigError",
    "CycleError",
    "NotReady",
    "RegistrationError",
    "RunCancelled",
    "RunCrashed",
    "RunError",
    "RunFailed",
    "RunFenced",
    "RunSkipped",
    "RunTimedOut",
    "ScheduleError",
    "StoreError",
    "TriggerError",
    "ValueRefused",
    "ValueUnreadable",
    "WouldBlock",
]
__dir__ = __all__.copy


class ScheduleError(Exception):
    """The root of every error that this package raises itself."""


class ConfigError(ScheduleError, ValueError):
    """An option of ``ps.config`` that means nothing, or that was set after the start."""


class TriggerError(ScheduleError, ValueError):
    """A period, cron expression or date that means nothing."""


class RegistrationError(ScheduleError, ValueError):
    """A function, name or option that cannot be scheduled."""


class CycleError(RegistrationError):
    """Tasks that wait for each other through ``after=`` or ``needs=``."""


class ValueRefused(ScheduleError, TypeError):
    """A value that is not data and therefore cannot be shared by sessions."""


class ValueUnreadable(ScheduleError, ValueError):
    """A stored value that cannot be read: torn, foreign, newer, or of code that has changed."""


class ArgumentUnkeyable(ScheduleError, TypeError):
    """An argument of which no key can be made, or a ``key=`` that fails; so equal calls cannot be found."""


class StoreError(ScheduleError, RuntimeError):
    """A shared store cannot be used: now, and it may be tried again, or not at all."""


class WouldBlock(ScheduleError, RuntimeError):
    """A blocking call on the thread of a running event loop."""


class NotReady(ScheduleError, TimeoutError):
    """No value appeared within the timeout of ``ready`` or ``wait_ready``."""


class RunError(ScheduleError):
    """How a run ended, for those who wait for its result."""


class RunCancelled(RunError):
    """The run was cancelled or replaced."""


class RunTimedOut(RunError, TimeoutError):
    """The run took longer than its timeout."""


class RunSkipped(RunError):
    """The run never started."""


class RunFailed(RunError):
    """The run failed in another process, which has the traceback, or its own function raised a CancelledError."""


class RunCrashed(RunError):
    """The process that ran it died, and so did the one that took it over."""


class RunFenced(RunError):
    """The run has lost its claim: what it publishes is dropped."""
