"""What is due, and what to do about it: pure functions of a policy, a state and an instant."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from ..functions.run import Cause
from ..functions.task import Overlap
from ..triggers import After, Computed, Trigger
from ..triggers.coming import slot_after
from ..triggers.cron import TICK

# A slot that is served this late still counts as on time for a task with catch_up=False, unless `misfire_grace` says
# otherwise.
# As long as the service may go without looking at the wall clock.
ON_TIME = timedelta(seconds=30)

# The wall clock may step back this far unnoticed: the slots in between are not run again.
STEP_BACK = timedelta(seconds=30)

_FARTHEST = timedelta(days=366 * 30)


class Action(StrEnum):
    """What a due slot leads to."""

    RUN = "run"
    QUEUE = "queue"
    REPLACE = "replace"
    SKIP = "skip"


class Stretch(NamedTuple):
    """Slots that were skipped for one reason: from `first` to `last`, both included."""

    first: datetime
    last: datetime
    reason: Cause


class Due(NamedTuple):
    """
    The slots of a task that are due.

    Attributes
    ----------
    first, latest : datetime
        The same, when nothing was missed.
    upcoming : datetime or None
        The first slot that is not due yet.
    """

    first: datetime
    latest: datetime
    upcoming: datetime | None


class Decision(NamedTuple):
    """What to do with what is due: an action for the latest slot, and the slots left out."""

    action: Action
    slot: datetime
    skipped: Stretch | None = None


def due(trigger: Trigger, first: datetime | None, now: datetime) -> Due | None:
    """
    Collect what is due of a trigger whose next unhandled slot is `first`.

    Returns
    -------
    Due or None
        None when `first` is still to come, or there is none.
    """
    if first is None or first > now:
        return None
    upcoming = trigger.next_after(first)
    if upcoming is None or upcoming > now:
        return Due(first, first, upcoming)
    latest = latest_slot(trigger, first, now)
    return Due(first, latest, trigger.next_after(latest))


def latest_slot(trigger: Trigger, after: datetime | None, now: datetime) -> datetime:
    """
    The last slot not later than `now`, when `after` is known to be one.

    Looks back in widening steps, then halves the gap: a month of seconds is never enumerated.
    """
    found = last_slot(trigger, now, not_before=after)
    return found if found is not None else (after or now)


# What a value may be older than promised before a page takes it for stale by itself: it is on its way.
ALLOWANCE = timedelta(seconds=2)


def second_slot(trigger: Trigger, after: datetime) -> datetime | None:
    """Until when a value of that time is fresh by its schedule alone; None where no clock says so."""
    if isinstance(trigger, (After, Computed)):
        return None
    first = slot_after(trigger, after)
    second = slot_after(trigger, first) if first is not None else None
    return None if second is None else second + ALLOWANCE


def last_slot(trigger: Trigger, now: datetime, not_before: datetime | None = None) -> datetime | None:
    """The last slot not later than `now` and not earlier than `not_before`; None where there is none."""
    oldest = max(not_before - TICK, _floor(now)) if not_before else _floor(now)
    step = timedelta(seconds=1)
    known_empty = now  # no slot in (known_empty, now]
    while True:
        start = max(now - step, oldest)
        slot = trigger.next_after(start)
        if slot is not None and slot <= now:
            break
        if start == oldest:
            return None
        known_empty, step = start, step * 2
    while True:
        following = trigger.next_after(slot)
        if following is None or following > now:
            return slot
        # A slot follows, so the last one lies in [following, known_empty]: try the middle of that.
        slot = following
        middle = slot + (known_empty - slot) / 2
        beyond = trigger.next_after(middle)
        if beyond is not None and beyond <= now:
            slot = beyond
        else:
            known_empty = middle


def decide(
    pending: Due,
    now: datetime,
    *,
    overlap: Overlap = Overlap.SKIP,
    catch_up: bool = True,
    grace: timedelta | None = None,
    late_by: timedelta = timedelta(),
    paused: bool = False,
    idle: bool = False,
    busy: Cause | None = None,
    trigger: Trigger | None = None,
) -> Decision:
    """
    Choose what happens to the slots that are due: at most the latest of them runs.

    Parameters
    ----------
    pending : Due
    now : datetime
    overlap, catch_up
        The task's policy.
    grace : timedelta, optional
        How late a slot may begin; by default as `catch_up` says.
    late_by : timedelta
        By how much the latest slot is late on purpose.
    paused : bool
        The task is paused.
    idle : bool
        Nobody watches, and the task is not to run then.
    busy : Cause, optional
        An earlier run holds the claim.
    trigger : Trigger, optional
        To name the last missed slot before the one that runs; without it, the first is named.
    """
    if paused:
        return _skip(pending, Cause.PAUSED)
    if idle:
        return _skip(pending, Cause.IDLE)
    if grace is None and not catch_up:
        grace = ON_TIME
    if grace is not None and now - pending.latest > grace + late_by:
        return _skip(pending, Cause.MISSED)
    if busy is not None and overlap is Overlap.SKIP:
        return _skip(pending, busy)
    missed = None
    if pending.first < pending.latest:
        last = latest_slot(trigger, pending.first, pending.latest - TICK) if trigger else pending.first
        missed = Stretch(pending.first, last, Cause.MISSED)
    if busy is None:
        return Decision(Action.RUN, pending.latest, missed)
    if overlap is Overlap.QUEUE or busy is Cause.ABANDONED:
        return Decision(Action.QUEUE, pending.latest, missed)
    return Decision(Action.REPLACE, pending.latest, missed)


def _skip(pending: Due, cause: Cause) -> Decision:
    return Decision(Action.SKIP, pending.latest, Stretch(pending.first, pending.latest, cause))


def _floor(now: datetime) -> datetime:
    """The earliest instant that is looked back to: a generation ago."""
    return now - _FARTHEST
