"""Which tasks there are, and what may be registered."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from numbers import Integral, Real
from types import CodeType, FunctionType
from typing import Any, Protocol

import numpy as np

from ..coordination.places import Limit
from ..errors import ConfigError, CycleError, RegistrationError, TriggerError
from ..hashing.content import Content, Refusal
from ..hashing.fingerprint import Origin, difference, innermost
from ..hashing.keys import signature_of
from ..triggers import After, Computed, Cron, Dates, Every, Schedule, Trigger, in_utc, parse_period
from ..triggers.combined import AnyOf, Limited, Own, Skip, is_portable, leaves, own_fingerprint, zone_name
from ..triggers.cron import find_zone
from .calls import is_async
from .task import ONCE, Concurrency, FirstRun, Overlap, Policy, Retry, Task, WhenIdle

log = logging.getLogger("panel_schedule")

ACCEPTED = (
    "Accepted are a period ('15m', '1 hour', a timedelta), a cron expression ('*/15 * * * *'), "
    "an aware datetime or a list of them, a trigger of panel_schedule.triggers or of your own, or a list of triggers."
)

# Where functions run, as their authors name it: what is neither the loop nor a thread is another process.
EXECUTORS = ("loop", "thread", "process", "celery", "dask")

# So many characters of what a trigger of a user's own says of itself are told.
_LONGEST_WORDS = 200

_CRON_FIELD = re.compile(r"[\d*?LW/,#a-z-]+", re.IGNORECASE)


class Registry(Mapping[str, Task[Any]]):
    """The tasks of this process by name, in the order of their registration. Read-only: ``ps.tasks``."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[Any]] = {}
        self._warnings: set[str] = set()

    @property
    def by_name(self) -> dict[str, Task[Any]]:
        """For the runtime alone."""
        return self._tasks

    def __getitem__(self, name: str) -> Task[Any]:
        try:
            return self._tasks[name]
        except KeyError:
            raise KeyError(f"There is no task {name!r}; there are: {', '.join(self._tasks) or 'none'}.") from None

    def get(self, name: str, default: Any = None) -> Task[Any] | Any:
        # Not Mapping's, which would first write the long message above.
        return self._tasks.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"<tasks: {', '.join(self._tasks) or 'none'}>"

    def add(self, task: Task[Any]) -> None:
        self._tasks[task.name] = task

    def discard(self, task: Task[Any]) -> None:
        if self._tasks.get(task.name) is task:
            del self._tasks[task.name]

    def warn_of(self, trigger: Trigger) -> None:
        """Log, once, what is rarely meant as a cron expression says it."""
        for each in leaves(trigger):
            if isinstance(each, Cron) and each.warning and each.warning not in self._warnings:
                self._warnings.add(each.warning)
                log.warning("%s", each.warning)


class Named(Protocol):
    """A function that is known by a name: a task or a background function."""

    name: str
    function: Any


def same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are one, perhaps from two executions of its file (invariant 1)."""
    return one is other or (difference(one, other) is None and may_replace(one, other))


def may_replace(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether they are written in the same place, so that after an edit the one is the other's new definition."""
    return Origin.of(one).same(Origin.of(other))


def was_edited(task: Task[Any], function: Callable[..., Any], policy: Policy) -> bool:
    """Whether the same function comes with other code or another policy. Dates relative to now differ each time."""
    codes = (getattr(innermost(each), "__code__", None) for each in (task.function, function))
    if len(set(map(_unplaced, codes))) > 1:
        return True
    dates = isinstance(policy.trigger, (Dates, Computed))
    return not dates and replace(policy, default=None) != replace(task.policy, default=None)


def _unplaced(part: Any) -> Any:
    """Code wherever it stands: an edit above it moves it."""
    if not isinstance(part, CodeType):
        return part
    return part.replace(co_firstlineno=1, co_consts=tuple(map(_unplaced, part.co_consts)))


def taken(task: Named, function: Callable[..., Any], kind: str = "task") -> RegistrationError:
    """The error for another function under a taken name."""
    same_place = may_replace(task.function, function)
    differ = f" They differ in the {difference(task.function, function)}." if same_place else ""
    return RegistrationError(
        f"{kind.capitalize()} {task.name!r} is defined twice: first as {Origin.of(task.function)}, now as "
        f"{Origin.of(function)}.{differ} Give one of them another name, with name=..."
    )


def require_schedulable(function: Any, name: str | None) -> str:
    """
    Check a function, and return the name of its task.

    Raises
    ------
    RegistrationError
        When it is no function, has required parameters, has no name, or is defined in the served script.
    """
    name = require_nameable(function, name)
    if required := _required_parameters(function):
        raise RegistrationError(
            f"Task {name!r}: its function needs {', '.join(required)}, and a schedule has nothing to give it. "
            "Give the parameters defaults, or schedule functools.partial(function, ...) with name='...'; or make a "
            "family of it, one task for each value of one parameter: each=['north', 'south']."
        )
    return name


def require_family(function: Any, name: str | None) -> str:
    """
    Check a function of which there is to be a task for each key, and return the name of the family.

    Raises
    ------
    RegistrationError
        When it could be no task, or does not take a key and nothing else.
    """
    name = require_nameable(function, name, "family")
    required = _required_parameters(function)
    try:
        signature_of(function).bind("")
    except TypeError:
        required = required or ["none by its place"]
    else:
        if len(required) == 1:
            return name
    raise RegistrationError(
        f"Family {name!r}: each= gives its function one key, and of required parameters it has "
        f"{', '.join(required) or 'none'}. Let it take the key first, and give all others defaults."
    )


def require_nameable(function: Any, name: str | None, kind: str = "task") -> str:
    """
    Check what is to be known by name in all processes, and return the name.

    Raises
    ------
    RegistrationError
        When it is no function, has no name, or is defined in the served script.
    """
    if not callable(function):
        raise RegistrationError(f"Only a function can be made a {kind}, and not {function!r}.")
    if name is not None and (not isinstance(name, str) or not name):
        raise RegistrationError(f"name={name!r} must be a text, and not an empty one: the {kind} is known by it.")
    name = name or getattr(function, "__name__", None)
    if not isinstance(name, str) or name in ("", "<lambda>"):
        raise RegistrationError(f"{function!r} has no name of its own: give the {kind} one, with name='...'.")
    if not is_text(name):
        raise RegistrationError(
            f"{name!r} is no valid text: give the {kind} a name that can be written, with name='...'."
        )
    if (getattr(function, "__module__", "") or "").startswith("bokeh_app_"):
        raise RegistrationError(
            f"{kind.capitalize()} {name!r} is defined in the served script itself, which runs anew for each visitor "
            "and is cleaned up with the session. Move the function to a module of its own, say tasks.py, import it "
            "from there, and serve with `panel serve app.py --setup tasks.py`."
        )
    return name


def is_text(name: str) -> bool:
    """Whether it can be written: half of a pair of code units, as file names of unknown encoding have, cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_no_cycle(task: Task[Any], policy: Policy) -> None:
    """
    Raise when tasks wait for each other.

    Raises
    ------
    CycleError
        Naming the way round.
    """

    def visit(here: Task[Any], path: list[str]) -> None:
        waits_for = policy if here is task else here.policy
        for upstream in (*waits_for.upstream, *waits_for.needs):
            if upstream is task:
                raise CycleError(
                    f"Task {task.name!r} waits for itself: {' -> '.join([*path, here.name, task.name])}. "
                    "Take one of these out of after= or needs=."
                )
            visit(upstream, [*path, here.name])

    visit(task, [])


@lru_cache(maxsize=256)
def _every(period: str) -> Every:
    """One for all tasks that share a period."""
    return Every(period)


def choose_trigger(
    when: Any = None,
    *,
    period: Any = None,
    cron: str | None = None,
    at: Any = None,
    after: Any = None,
    timezone: str | None = None,
    default_timezone: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    skip: Any = None,
) -> Schedule:
    """
    Build the one trigger that the arguments of ``ps.schedule`` describe.

    Raises
    ------
    RegistrationError
        When none is given, or more than one.
    TriggerError
        When it means nothing.
    """
    given = {"when": when, "period": period, "cron": cron, "at": at, "after": after}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        what = "none is given" if not named else f"{' and '.join(named)} are given"
        raise RegistrationError(
            f"A schedule is exactly one of the first argument, period=, cron=, at= and after=, and {what}. {ACCEPTED}"
        )
    zone = timezone or default_timezone
    if after is not None:
        trigger: Schedule = After(*tasks_of("after", after))
    elif cron is not None:
        trigger = Cron(cron, timezone=zone)
    elif period is not None:
        trigger = _every(period) if type(period) is str else Every(period)
    elif at is not None:
        trigger = _dates(at)
    else:
        trigger = _positional(when, zone)
    if not (start is None and end is None and skip is None):
        return _limited(trigger, timezone or zone_name(trigger) or default_timezone, start, end, skip)
    if timezone is not None and not isinstance(trigger, Cron):
        raise RegistrationError(
            f"timezone={timezone!r} has a meaning for cron schedules only: periods stand on the Unix epoch in UTC, "
            "and dates carry their own. For a local time of day use cron=."
        )
    return trigger


def _limited(trigger: Schedule, timezone: str | None, start: Any, end: Any, skip: Any) -> Limited:
    """Within `start=`, `end=` and `skip=`."""
    if isinstance(trigger, (After, Computed, Dates)):
        raise RegistrationError(
            f"start=, end= and skip= limit a period, a cron expression or a trigger, and here it is {trigger}. Leave "
            "out dates that are not wanted; in what follows other tasks return early."
        )
    zone = None if timezone is None else find_zone(timezone, "schedule")
    limits = []
    for option, at in (("start", start), ("end", end)):
        if at is not None and not isinstance(at, datetime):
            raise TriggerError(f"{option}={at!r} must be a datetime, such as datetime(2026, 1, 5, 9).")
        if at is not None and at.tzinfo is None:
            if zone is None:
                raise TriggerError(
                    f"{option}={at!r} has no timezone, and neither has the schedule. Give it one, tzinfo=UTC, or the "
                    "schedule, timezone='Europe/Berlin', or set ps.config.timezone."
                )
            at = at.replace(tzinfo=zone)
        limits.append(None if at is None else in_utc(at, f"{option}="))
    first, last = limits
    if first is not None and last is not None and first > last:
        raise TriggerError(f"start={start!r} is later than end={end!r}: the task would never run. Exchange them.")
    days, said = _days(skip)
    if days is not None and zone is None:
        raise TriggerError(
            "skip= is of days, and which day it is depends on the time zone. Name one, timezone='Europe/Berlin' or "
            "'UTC', or set ps.config.timezone."
        )
    return Limited(trigger, first, last, days, None if zone is None else zone.key, said)


def _days(skip: Any) -> tuple[Skip | None, str]:
    """What `skip=` means, and its fingerprint."""
    if skip is None:
        return None, ""
    if isinstance(skip, (set, frozenset, list, tuple)):
        for day in skip:
            if not isinstance(day, date) or isinstance(day, datetime):
                raise TriggerError(
                    f"skip= has {day!r}, and takes dates: datetime.date(2026, 12, 25). Of a datetime it is .date()."
                )
        days = frozenset(skip)
        return days or None, " ".join(map(str, sorted(days)))
    if callable(skip) and not isinstance(skip, type):
        return skip, _label(skip)
    raise TriggerError(
        f"skip={skip!r} must be a set of dates, or a function that says of a date whether nothing runs on it. Of a "
        "calendar that works out its dates, as those of the package holidays, it is skip=calendar.__contains__."
    )


def require_answer(task: str, trigger: Schedule, now: datetime) -> None:
    """
    Ask once what the user's own code says when a task runs: what is wrong with it is told where it is written.

    Raises
    ------
    TriggerError
        Names the task.
    """
    if is_portable(trigger) or isinstance(trigger, (After, Computed)):
        return
    try:
        trigger.next_after(now)
    except TriggerError as error:
        raise TriggerError(f"{task}: {error}") from error.__cause__


def panels_trigger(at: Any, period: Any, cron: str | None, now: datetime) -> tuple[Schedule, datetime | None]:
    """
    What ``pn.state.schedule_task`` means by its arguments: a trigger, and the instant before which it is silent.

    Raises
    ------
    RegistrationError, TriggerError
        When they mean nothing.
    """
    moving = isinstance(at, Iterator) or callable(at)
    if cron is not None:
        if moving:
            raise RegistrationError("With cron=, at= is one datetime, from which it begins.")
        return Cron(cron, timezone="UTC", dialect="panel"), None if at is None else _local(at)
    if isinstance(at, Iterator):
        return Computed.from_iterable(map(_local, at), _label(at)), None
    if callable(at):

        def naive_utc(instant: datetime) -> datetime | None:
            answer = at(instant.replace(tzinfo=None))
            return answer.replace(tzinfo=UTC) if isinstance(answer, datetime) and answer.tzinfo is None else answer

        return Computed(naive_utc, _label(at)), None
    if period is not None:
        start = None if at is None else _local(at)
        return Every(parse_period(period), anchor=start or now), start
    if at is None:
        raise RegistrationError("Give one of period=, cron= and at=, to say when it runs.")
    return Dates(_local(at)), None


def _local(at: Any) -> datetime:
    if not isinstance(at, datetime):
        raise TriggerError(f"at= takes a datetime, an iterator of them or a callable, and not {at!r}.")
    return at.astimezone(UTC)


def _label(source: Any) -> str:
    return getattr(source, "__qualname__", None) or type(source).__name__


def limit(option: str, value: Any) -> int | None:
    """The count that a value of an option means; None is no limit."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise RegistrationError(f"{option}={value!r} must be a whole number of at least 1, or None for no limit.")
    return int(value)


def concurrency(max_running: Any, group: Any) -> Concurrency | None:
    """What ``max_running=`` and ``group=`` limit; None where they limit nothing."""
    if max_running is None and group is None:
        return None
    if group is not None and not (isinstance(group, str) and group):
        raise RegistrationError(f"group={group!r} must be a name of ps.config.groups.")
    return Concurrency(limit("max_running", max_running), group)


def limits_of(what: str, concurrency: Concurrency, groups: Mapping[str, int]) -> tuple[Limit, ...]:
    """
    The limits of a function, its own first.

    Raises
    ------
    ConfigError
        When there is no such group: names `what` is in it.
    """
    max_running, group = concurrency
    if group is not None and group not in groups:
        raise ConfigError(
            f"{what}: its group={group!r} is none of ps.config.groups, which has "
            f"{', '.join(map(repr, groups)) or 'none'}. Say how many runs it stands: "
            f"ps.config.groups = {{{group!r}: 2}}, at the top of the setup script."
        )
    own = () if max_running is None else (Limit(what, max_running),)
    return own if group is None else (*own, Limit(f"group {group!r}", groups[group]))


def names(option: str, value: Any) -> tuple[str, ...]:
    """The names that a value of an option has: one, or several."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    found = set(value) if several else {value}
    if not all(isinstance(each, str) for each in found):
        raise RegistrationError(f"{option}={value!r} must be the name of a parameter, or a list of such.")
    return tuple(sorted(found))


def takes(function: Any, arguments: int) -> bool:
    """Whether it is a function that can be called with so many positional arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # one written in C may not say
        pass
    return True


def of_answer(option: str, value: Any) -> Callable[[Any], Any]:
    """A value of an option that is to be a function of one answer."""
    if not takes(value, 1) or is_async(value):
        raise RegistrationError(f"{option}={value!r} must be a plain function, which is called with the answer.")
    return value  # type: ignore[no-any-return]


def isolation(isolate: Any) -> bool | None:
    """What ``isolate=`` means."""
    if not (isolate is None or isinstance(isolate, (bool, np.bool_))):
        raise RegistrationError(f"isolate={isolate!r} must be True, False or None (data frames only).")
    return None if isolate is None else bool(isolate)


def as_retry(retry: Any) -> Retry:
    """The policy that ``retry=`` means."""
    if isinstance(retry, Retry):
        return retry
    if type(retry) is int and not retry:  # nearly always; to ask an abstract class takes long
        return ONCE
    if isinstance(retry, bool) or not isinstance(retry, Integral) or retry < 0:
        raise RegistrationError(f"retry={retry!r} must be a count of 0 or more, or a Retry(...).")
    return Retry(max_attempts=int(retry) + 1) if retry else ONCE


def flag(option: str, value: Any) -> bool:
    """True or False, numpy's too: nothing else, as ``"no"`` would be true."""
    if not isinstance(value, (bool, np.bool_)):
        raise RegistrationError(f"{option}={value!r} must be True or False.")
    return bool(value)


def tasks_of(option: str, value: Any) -> tuple[Task[Any], ...]:
    """The tasks that a value of an option names: one, or several."""
    if type(value) is tuple and not value:
        return value
    several = isinstance(value, Iterable) and not isinstance(value, str) and not callable(value)
    tasks = tuple(value) if several else (value,)
    for task in tasks:
        if not issubclass(type(task), Task):  # a Mock says of itself that it is one
            error = TriggerError if option == "after" else RegistrationError
            hint = " Of a family it takes those that there are: list(family.values())." * isinstance(value, Mapping)
            raise error(f"{option}= takes a task or a list of tasks, and not {task!r}.{hint}")
    return tasks


# By kind and text: to call an enum takes ten times as long, and thousands of tasks may be registered.
_MEMBERS: dict[tuple[type[StrEnum], str], StrEnum] = {
    (kind, str(member)): member for kind in (FirstRun, Overlap, WhenIdle) for member in kind
}


def choice(kind: type[StrEnum], option: str, value: Any) -> Any:
    """The member that a value of an option means."""
    if type(value) is str and (member := _MEMBERS.get((kind, value))) is not None:  # nearly always
        return member
    try:
        return kind(value)
    except ValueError:
        accepted = ", ".join(map(repr, map(str, kind)))
        raise RegistrationError(f"{option}={value!r} is unknown; accepted are {accepted}.") from None


def require_executor(executor: Any) -> None:
    """
    Raise where there is none of this name.

    Raises
    ------
    RegistrationError
    """
    if executor not in EXECUTORS:
        raise RegistrationError(f"executor={executor!r} is unknown; accepted are {', '.join(map(repr, EXECUTORS))}.")


def require_fitting(what: str, decorator: str, function: Any, executor: str | None, key: Any) -> None:
    """
    Raise unless a function can run on request, where and for whom its options say.

    Raises
    ------
    RegistrationError
        When it is a method, is async or not where it should be, or its ``key=`` is no function: names `what` it is.
    """
    if executor == "loop" and not is_async(function):
        raise RegistrationError(
            f"{what}: a plain function would hold the event loop, and with it every open page. Let it run in a thread, "
            "executor='thread', or in a process; or write it as an `async def`."
        )
    if executor == "thread" and is_async(function):
        raise RegistrationError(
            f"{what}: an async function runs on an event loop, not in a thread. Write executor='loop', or 'process' "
            "for a loop of its own."
        )
    qualname = getattr(function, "__qualname__", "").rpartition("<locals>.")[2]
    if "." in qualname and list(signature_of(function).parameters)[:1] in (["self"], ["cls"]):
        raise RegistrationError(
            f"{what} is a method, and the decorator sees no object that it belongs to. Make a function of it that "
            "takes what it needs of the object, or decorate the object's own method: "
            f"ps.{decorator}(name='...')(obj.{function.__name__})."
        )
    if key is not None and not callable(key):
        raise RegistrationError(
            f"{what}: key={key!r} must be a function, which is called as it is itself, and returns what counts of the "
            "arguments."
        )


def duration(option: str, value: Any, *, zero: bool = False) -> timedelta:
    """The time that a value of an option means; with `zero` it may be none at all."""
    if zero and not isinstance(value, bool) and value in (None, 0, timedelta()):
        return timedelta()
    try:
        return parse_period(value)
    except TriggerError as exc:
        raise TriggerError(f"{option}={value!r} is no duration. {exc}") from None


def _positional(when: Any, zone: str | None) -> Schedule:
    if isinstance(when, Trigger):
        return _schedule(when)
    if isinstance(when, (list, tuple)) and any(isinstance(each, Trigger) for each in when):
        return AnyOf(tuple(_member(each) for each in when))
    if callable(when):
        raise RegistrationError(
            f"@ps.schedule needs a schedule: @ps.schedule(period='15m') above "
            f"{getattr(when, '__name__', when)!r}. {ACCEPTED}"
        )
    if isinstance(when, (timedelta, Real)):
        return Every(when)  # type: ignore[arg-type]  # mypy knows no numbers.Real
    if not isinstance(when, str):
        return _dates(when)
    if when.strip().startswith("@") or (len(when.split()) > 4 and _looks_like_cron(when)):
        return Cron(when, timezone=zone)
    try:
        return Every(when)
    except TriggerError:
        if _looks_like_cron(when):
            return Cron(when, timezone=zone)
        raise


def _member(trigger: Any) -> Schedule:
    """One of a list."""
    if not isinstance(trigger, Trigger) or isinstance(trigger, (After, Computed)):
        raise TriggerError(
            f"A list of triggers means any of them, and one of this is {trigger!r}. Let all of them be periods, cron "
            "expressions, dates or triggers of your own, as in [Every('15m'), Cron('0 6 * * *', timezone='UTC')]."
        )
    return _schedule(trigger)


def _schedule(trigger: Trigger) -> Schedule:
    """A trigger, which may be of a user's own class, as the scheduler has it."""
    kind = type(trigger)
    if kind.__module__ == Every.__module__ or issubclass(kind, (AnyOf, Limited, Own)):
        return trigger  # type: ignore[return-value]
    if isinstance(trigger, type):
        raise TriggerError(f"{trigger.__qualname__} is a class of triggers. Give one of them: {trigger.__name__}(...).")
    name = kind.__qualname__
    if (params := getattr(kind, "__dataclass_params__", None)) is not None and not params.frozen:
        raise TriggerError(
            f"The trigger {name} is not frozen: all processes take it for the same schedule for ever. Write "
            "@dataclass(frozen=True) above its class."
        )
    said = getattr(trigger, "fingerprint", None)
    if said is None:
        said = _digest(trigger, name)
    elif not isinstance(said, str):
        raise TriggerError(
            f"The fingerprint of the trigger {name} must be a text that says all that its answers depend on, and not "
            f"{said!r}."
        )
    speaks = kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__
    words = str(trigger) if speaks else name
    return Own(
        trigger, own_fingerprint(said), words if len(words) <= _LONGEST_WORDS else f"{words[:_LONGEST_WORDS]}..."
    )


def _digest(trigger: Any, name: str) -> str:
    """Of the fields: not of the file that has the class, which lies elsewhere after a release."""
    unsure = f"Whether the trigger {name} is the same schedule in another process cannot be told"
    if is_dataclass(trigger):
        parts: dict[Any, Any] = {each.name: getattr(trigger, each.name) for each in fields(trigger) if each.compare}
    elif isinstance(trigger, tuple):
        parts = dict(enumerate(trigger))
    else:
        raise TriggerError(
            f"{unsure}. Make its class a frozen dataclass, or let it have an attribute fingerprint, a text that says "
            "all that its answers depend on."
        )
    content = Content()
    content.add(name)
    for field, value in parts.items():
        try:
            content.add([field, value])
        except Refusal as refusal:
            raise TriggerError(
                f"{unsure}: its field {field!r}{refusal.path.removeprefix('[1]')} {refusal}. Let it have an attribute "
                "fingerprint, a text that says all that its answers depend on."
            ) from None
    return content.digest().hex()


def _looks_like_cron(text: str) -> bool:
    fields = text.split()
    return len(fields) > 1 and all(map(_CRON_FIELD.fullmatch, fields)) and not fields[1].isalpha()


def _dates(at: Any) -> Schedule:
    if isinstance(at, (datetime, list, tuple, set, frozenset)):
        return Dates(at)
    if isinstance(at, Iterator):
        return Computed.from_iterable(at, _label(at))
    if callable(at):
        if not takes(at, 1):
            raise TriggerError(f"at={at!r} must be a function of the current time, at(now), that gives the next date.")
        return Computed(at, _label(at))
    if isinstance(at, Iterable) and not isinstance(at, (str, bytes)):
        return Dates(list(at))
    raise TriggerError(f"{at!r} is no schedule. {ACCEPTED}")


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__"):
        # The quick way, for plain functions: thousands of tasks may be registered.
        code, defaults = function.__code__, function.__kwdefaults__ or {}
        count = code.co_argcount - len(function.__defaults__ or ())
        keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        return [*code.co_varnames[:count], *(name for name in keywords if name not in defaults)]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
