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
    ├── Cancel                   what a function raises to end its own run as cancelled
    └── RunError                 how a run ended, for those who wait for its result
        ├── RunCancelled         cancelled or replaced
        ├── RunTimedOut          took longer than its timeout
        ├── RunSkipped           never started
        ├── RunFailed            failed in another process, or of what is no Exception, or of a CancelledError
        ├── RunCrashed           its process died, and the one that took it over
        └── RunFenced            lost its claim; what it publishes is dropped

An exception that a user's function raises is never wrapped: it keeps its type and traceback. What is none (SystemExit,
KeyboardInterrupt, a panic of a compiled extension) would end the thread or the event loop of who waits: he gets a
RunFailed that it has caused.
"""

from __future__ import annotations

import signal
import threading
from opcode import opmap

__all__ = [
    "ArgumentUnkeyable",
    "Cancel",
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


class Cancel(ScheduleError):
    """
    A function raises it to end its own run as cancelled: it gives no value, is not tried again, and has not failed.

    Its text is why: ``raise ps.Cancel("the feed has nothing new")``. Who waits for the run gets a `RunCancelled`.
    """


class RunError(ScheduleError):
    """How a run ended, for those who wait for its result."""


class RunCancelled(RunError):
    """The run was cancelled or replaced."""


class RunTimedOut(RunError, TimeoutError):
    """The run took longer than its timeout."""


class RunSkipped(RunError):
    """The run never started."""


class RunFailed(RunError):
    """
    The run failed in another process, which has the traceback; or of what its function raised, which is its cause.

    That is a CancelledError, or no Exception.
    """


class RunCrashed(RunError):
    """The process that ran it died, and so did the one that took it over."""


class RunFenced(RunError):
    """The run has lost its claim: what it publishes is dropped."""


def may_be_interrupt(error: BaseException) -> bool:
    """
    Whether it may be a Ctrl-C, which is the business of the thread that it comes to.

    Only the main thread gets one, and none where this package takes the signal: in a server and in its workers.
    """
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    return not (getattr(handler, "__module__", None) or "").startswith(__package__)


def is_interrupt(error: BaseException) -> bool:
    """The same, and no ``raise`` of a function or an object of the user's."""
    if not may_be_interrupt(error):
        return False
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is None or str(frames.tb_frame.f_globals.get("__name__")).startswith("asyncio"):  # its second Ctrl-C
        return True
    # A signal comes between two instructions.
    return frames.tb_frame.f_code.co_code[frames.tb_lasti] != opmap["RAISE_VARARGS"]
