"""A schedule in words, for people: "every 15 min", "06:00 Mon-Fri, New York", "after raw"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from . import Cron, Trigger
from .combined import AnyOf, Limited
from .cron import Numbers

__all__ = ["in_words"]

# So many times of a day are told one by one.
_FEW = 4

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Whose zones are known by the name of a town.
_CONTINENTS = {
    "Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific",
}  # fmt: skip


def in_words(trigger: Trigger) -> str:
    """
    A schedule as one would say it.

    Parameters
    ----------
    trigger : Trigger

    Returns
    -------
    str
        Of a cron expression that no few words say, the expression itself.

    Examples
    --------
    >>> in_words(Cron("0 6 * * mon-fri", timezone="America/New_York"))
    '06:00 Mon-Fri, New York'
    >>> in_words(Cron("0 6 15w * *", timezone="Europe/Berlin"))
    "cron '0 6 15w * *', Berlin"
    """
    if isinstance(trigger, AnyOf):
        return " or ".join(map(in_words, trigger.triggers))
    if isinstance(trigger, Limited):
        return f"{in_words(trigger.trigger)}{trigger.limits}"
    if not isinstance(trigger, Cron):
        return str(trigger)
    said = None if trigger.numbers is None else _cron(trigger.numbers)
    return f"{said or f'cron {trigger.expr!r}'}, {_zone(trigger.timezone)}"


def _cron(numbers: Numbers) -> str | None:
    minute, hour, day, month, weekday, second = numbers
    # Which days say most of a time that is told, and are told in any case; and nothing of "every 15 min".
    days, time = _days(day, month, weekday), _times(second, minute, hour)
    if time is None:
        return None
    return f"{time} {days or 'every day'}" if time[0].isdigit() else " ".join(filter(None, [time, days]))


def _times(second: Sequence[int] | None, minute: Sequence[int] | None, hour: Sequence[int] | None) -> str | None:
    if second != [0]:
        step = _step(second, 60)
        if minute is None and hour is None and step:
            return "every second" if step == 1 else f"every {step} s"
        if second is None or len(second) > 1:
            return None
    if minute is not None and hour is not None and len(minute) * len(hour) <= _FEW:
        seconds = "" if second == [0] or second is None else f":{second[0]:02}"
        return _and([f"{h:02}:{m:02}{seconds}" for h, m in product(hour, minute)])
    if second != [0]:
        return None
    if step := _step(minute, 60):
        often = "every minute" if step == 1 else f"every {step} min"
        return often if hour is None else _between(often, hour)
    if minute is None or len(minute) > 1:
        return None
    step = _step(hour, 24)
    if step == 1:
        return "every hour" if minute == [0] else f"every hour at :{minute[0]:02}"
    if step:
        return f"every {step} h" if minute == [0] else f"every {step} h at :{minute[0]:02}"
    return None if hour is None else _between("every hour" if minute == [0] else f"every hour at :{minute[0]:02}", hour)


def _between(often: str, hour: Sequence[int]) -> str | None:
    """Within hours that follow each other."""
    if list(hour) != list(range(hour[0], hour[-1] + 1)):
        return None
    return f"{often} from {hour[0]:02}:00 to {hour[-1]:02}:59"


def _step(numbers: Sequence[int] | None, size: int) -> int:
    """The distance of numbers that go round without a jump from 0; 0 where there is a jump."""
    if numbers is None:
        return 1
    step = size // len(numbers)
    return step if list(numbers) == list(range(0, size, step)) and size % step == 0 and len(numbers) > 1 else 0


def _days(day: Sequence[int] | None, month: Sequence[int] | None, weekday: Sequence[int] | None) -> str:
    said = []
    if weekday is not None:
        said.append(_ranges(sorted((number - 1) % 7 for number in weekday), _DAYS))
    if day is not None:
        said.append(f"on day {day[0]}" if len(day) == 1 else f"on days {_and([str(number) for number in day])}")
    if month is not None:
        said.append(f"in {_ranges([number - 1 for number in month], _MONTHS)}")
    return " ".join(said)


def _ranges(numbers: Sequence[int], names: Sequence[str]) -> str:
    """``Mon-Fri``, ``Mon, Fri``: three and more that follow each other are a range."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and stretches[-1][-1] == number - 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    said = []
    for each in stretches:
        said += [f"{names[each[0]]}-{names[each[-1]]}"] if len(each) > 2 else [names[number] for number in each]
    return ", ".join(said)


def _and(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _zone(name: str) -> str:
    """A town, where the name of a zone has one."""
    continent, _, rest = name.partition("/")
    return rest.rpartition("/")[2].replace("_", " ") if continent in _CONTINENTS and rest else name
