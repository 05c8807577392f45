"""Triggers of a user's own class, lists of triggers, and the limits of a schedule."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest

import documents
from core import START, Core, keys, messages, second, short
from panel_schedule.errors import ScheduleError, TriggerError
from panel_schedule.functions.registry import choose_trigger
from panel_schedule.scheduling.planner import Action, Due, decide
from panel_schedule.stores.file.store import FileStore
from panel_schedule.testing import VirtualClock
from panel_schedule.triggers import Cron, Dates, Every, Trigger
from panel_schedule.triggers.words import in_words

PAGE = Path(__file__).parent.parent / "docs" / "schedules.md"

TEN = timedelta(seconds=10)
BERLIN = ZoneInfo("Europe/Berlin")


@dataclass(frozen=True)
class Tens:
    """Every ten seconds, `late` after them."""

    late: int = 0

    def next_after(self, t: datetime) -> datetime:
        return Every("10s", anchor=second(self.late)).next_after(t)

    def __str__(self) -> str:
        return f"tens and {self.late}"


class Pair(NamedTuple):
    """Two instants."""

    first: datetime
    last: datetime

    def next_after(self, t: datetime) -> datetime | None:
        return next((each for each in self if each > t), None)


@dataclass
class Thawed:
    late: int = 0

    def next_after(self, t: datetime) -> datetime:
        return t + TEN


class Opaque:
    def next_after(self, t: datetime) -> datetime:
        return t + TEN


@dataclass(frozen=True)
class Holds:
    what: object

    def next_after(self, t: datetime) -> datetime:
        return t + TEN


class Says:
    """A class that is no dataclass, and says itself what it is."""

    def __init__(self, fingerprint: object):
        self.fingerprint = fingerprint

    def next_after(self, t: datetime) -> datetime:
        return Every("10s").next_after(t)


@dataclass(frozen=True)
class Wrong:
    """Answers as it should until `good`, and then what `answer` says."""

    answer: str
    good: datetime = START - TEN

    def next_after(self, t: datetime) -> object:
        if t < self.good:
            return Every("10s").next_after(t)
        match self.answer:
            case "naive":
                return datetime(2030, 1, 1)
            case "past":
                return t
            case "raises":
                raise LookupError("no calendar for 2030")
        return "tomorrow"


WRONG = [
    ("naive", "has no timezone"),
    ("past", "which is not later"),
    ("raises", "LookupError: no calendar for 2030"),
    ("text", "has to be an aware datetime, not 'tomorrow'"),
]


# ------------------------------------------------------------ of one's own


def test_a_class_with_next_after_is_a_trigger():
    """The protocol has nothing else."""
    assert isinstance(Tens(), Trigger)


@pytest.mark.parametrize("trigger", [Tens(), Says("every 10 s")])
def test_a_trigger_of_ones_own_decides_when_a_task_runs(core, trigger):
    """Slots are what it answers, and a run's key is its slot."""
    task = core.schedule(trigger, first_run="skip")(lambda: 1)
    core.begin()

    core.run_for(30)

    assert [second(10), second(20), second(30)] == keys(task)


def test_a_trigger_ends_with_none(core):
    """After its last instant there is no next run."""
    task = core.schedule(Pair(second(5), second(7)), first_run="skip")(lambda: 1)
    core.begin()

    core.run_for(30)

    assert ([second(5), second(7)], None) == (keys(task), task.status.next_run)


def test_a_trigger_is_told_in_its_own_words(core):
    """Its str; of a dataclass without one its repr; of a class that has neither its name."""
    tasks = [
        core.schedule(trigger, name=name, first_run="skip")(lambda: 1)
        for name, trigger in (("str", Tens(3)), ("repr", Wrong("naive", second(99))), ("name", Says("x")))
    ]

    assert ["tens and 3", repr(Wrong("naive", second(99))), "Says"] == [task.status.schedule for task in tasks]


def test_a_task_is_rescheduled_to_a_trigger_of_ones_own(core):
    """And to a list of triggers."""
    task = core.schedule(period="1h", first_run="skip")(lambda: 1)
    core.begin()

    task.reschedule(Tens(3))
    core.run_for(13.5)
    task.reschedule([Every("20s"), Tens(4)])
    core.run_for(21)

    assert [second(3), second(13), second(14), second(20), second(24), second(34)] == keys(task)


def test_a_trigger_that_cannot_be_told_again_is_refused():
    """Each message says what to do."""
    for trigger, reason in (
        (Thawed(), r"Thawed is not frozen.*@dataclass\(frozen=True\)"),
        (Opaque(), r"Opaque is the same schedule in another process cannot be told.*frozen dataclass.*fingerprint"),
        (Holds(threading.Lock()), r"its field 'what' .*attribute fingerprint"),
        (Says(5), "fingerprint of the trigger Says must be a text.*not 5"),
        (Tens, r"Tens is a class of triggers.*Tens\(\.\.\.\)"),
    ):
        with pytest.raises(TriggerError, match=reason):
            choose_trigger(trigger)


def test_two_triggers_with_the_same_fields_are_the_same_schedule():
    """And of one with others, or of another class, they are not."""
    same, other, another = choose_trigger(Tens(3)), choose_trigger(Tens(4)), choose_trigger(Pair(second(1), second(2)))

    assert choose_trigger(Tens(3)).fingerprint == same.fingerprint
    assert 3 == len({same.fingerprint, other.fingerprint, another.fingerprint})


def test_long_words_are_cut(core):
    """They are in each record, and on each page."""
    task = core.schedule(Holds("x" * 1000), first_run="skip")(lambda: 1)

    assert f"Holds(what='{'x' * 188}..." == task.status.schedule


@pytest.mark.parametrize(("answer", "reason"), WRONG)
def test_a_wrong_answer_is_told_where_the_task_is_made(core, answer, reason):
    """The message names the task and the trigger."""
    with pytest.raises(TriggerError, match=rf"Task 'feed': .*Wrong\(.*{reason}"):
        core.schedule(Wrong(answer), name="feed")(lambda: 1)


@pytest.mark.parametrize(("answer", "reason"), WRONG)
def test_a_wrong_answer_later_on_stops_that_task_only(core, caplog, answer, reason):
    """The log names the task, once; its status says why; the others go on."""
    task = core.schedule(Wrong(answer, second(15)), name="feed", first_run="skip")(lambda: 1)
    other = core.schedule(period="10s", name="other", first_run="skip")(lambda: 1)
    core.begin()

    core.run_for(60)

    assert ([second(10), second(20)], 6) == (keys(task), len(keys(other)))
    assert ("failed", True, None) == (task.status.state, task.status.stale, task.status.next_run)
    assert reason.partition("'")[0] in task.status.error
    assert 1 == sum("Task 'feed': its schedule failed" in message for message in messages(caplog))


def test_a_stopped_task_goes_on_with_another_schedule(core):
    """And is well again with its next value."""
    task = core.schedule(Wrong("past", second(15)), first_run="skip")(lambda: 1)
    core.begin()
    core.run_for(30)

    task.reschedule(period="1m")
    core.run_for(30)

    assert ("idle", False) == (task.status.state, task.status.stale)
    assert second(60) == keys(task)[-1]


def test_a_trigger_that_changes_is_found_out(core):
    """What a store has is of the one that was scheduled."""
    trigger = Says("one")
    task = core.schedule(trigger, first_run="skip")(lambda: 1)
    core.begin()

    trigger.fingerprint = "another"
    core.run_for(20)

    assert "is not frozen: its fingerprint has become 'another'" in task.status.error


def test_processes_share_the_slots_of_a_trigger_of_ones_own(tmp_path):
    """Each runs once; the store has the words of it, and its fingerprint."""
    with ExitStack() as stack:
        clock = VirtualClock(START)
        cores = [stack.enter_context(Core(clock, FileStore(tmp_path, clock, server="one"))) for _ in range(2)]
        tasks = [core.schedule(Tens(3), name="task", first_run="skip")(lambda: 1) for core in cores]
        for core in cores:
            core.begin()
        for _ in range(40):
            for core in cores:
                core.run_for(0.5)
                core.hear()

        assert sorted(set(keys(tasks[0]))) == keys(tasks[0])
        assert [second(3), second(13), second(23), second(33)] == keys(tasks[0])
        [record] = cores[0].store.records.scan("task")
        assert ("tens and 3", {"value"}) == (record.state.schedule, set(record.parts))


def test_each_process_says_that_its_schedule_has_failed(tmp_path):
    """Also the one that has left the last slot to another."""
    with ExitStack() as stack:
        clock = VirtualClock(START)
        cores = [stack.enter_context(Core(clock, FileStore(tmp_path, clock, server="one"))) for _ in range(2)]
        tasks = [core.schedule(Wrong("past", second(15)), name="task", first_run="skip")(lambda: 1) for core in cores]
        for core in cores:
            core.begin()
        for _ in range(120):
            for core in cores:
                core.run_for(0.1)
                core.hear(), core.go()

        assert [second(10), second(20)] == keys(tasks[0])
        assert ["failed", "failed"] == [task.status.state for task in tasks]


def test_a_reschedule_to_a_trigger_of_ones_own_reaches_other_processes(tmp_path):
    """It is stored as it is."""
    with ExitStack() as stack:
        clock = VirtualClock(START)
        cores = [stack.enter_context(Core(clock, FileStore(tmp_path, clock, server="one"))) for _ in range(2)]
        tasks = [core.schedule(period="1h", name="task", first_run="skip")(lambda: 1) for core in cores]
        for core in cores:
            core.begin()
        tasks[0].reschedule(Tens(3))
        for core in cores:
            core.go(), core.hear(), core.go()

        assert ("tens and 3", second(3)) == (tasks[1].status.schedule, tasks[1].status.next_run)


# ------------------------------------------------------------ lists


def test_a_list_of_triggers_means_any_of_them(core):
    """The earliest next; what two say at the same time runs once."""
    task = core.schedule([Every("20s"), Tens(5), Dates(second(20))], first_run="skip")(lambda: 1)
    core.begin()

    core.run_for(40)

    assert [second(5), second(15), second(20), second(25), second(35), second(40)] == keys(task)


def test_a_list_is_told_in_words():
    """Of each."""
    trigger = choose_trigger([Cron("0 6 * * *", timezone="Europe/Berlin"), Every("1h")])

    assert "06:00 every day, Berlin or every 1 h" == in_words(trigger)


@pytest.mark.parametrize("wrong", [[Every("1h"), "15m"], [Every("1h"), second(1)], [Every("1h"), None]])
def test_a_list_has_triggers_alone(wrong):
    """A text could be a period or a cron expression, for which there is no one time zone."""
    with pytest.raises(TriggerError, match="list of triggers means any of them"):
        choose_trigger(wrong)


# ------------------------------------------------------------ start, end and skip


def hours(limits: dict[str, object], count: int, first: str = "2026-03-27", zone: str | None = "Europe/Berlin"):
    """The next times, local, of ``period="12h"`` and some limits."""
    trigger = choose_trigger(period="12h", timezone=zone, **limits)
    t: datetime | None = datetime.fromisoformat(first).replace(tzinfo=BERLIN)
    found = []
    while len(found) < count and t is not None and (t := trigger.next_after(t)) is not None:
        found.append(f"{t.astimezone(BERLIN):%d %H:%M}")
    return found


def test_no_slot_is_before_the_start_or_after_the_end():
    """Both are included; a naive one is local time; the grid of the period stays where it is."""
    limits = {"start": datetime(2026, 3, 28, 13), "end": datetime(2026, 3, 29, 14)}

    assert ["28 13:00", "29 01:00", "29 14:00"] == hours(limits, 9)


def test_a_start_in_a_gap_is_when_the_gap_ends_and_in_a_fold_the_first_pass():
    """As of clocks that were not moved: 02:30 is 03:30."""
    for start, expected in (
        (datetime(2026, 3, 29, 2, 30), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 2, 30), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
    ):
        trigger = choose_trigger(period="1m", timezone="Europe/Berlin", start=start)
        assert expected == trigger.next_after(datetime(2026, 1, 1, tzinfo=UTC))


def test_days_are_skipped_on_the_clock_of_the_zone():
    """A day that has 23 hours, too; a set of dates, and a function that says the same."""
    day = date(2026, 3, 29)
    expected = ["27 01:00", "27 13:00", "28 01:00", "28 13:00", "30 02:00"]

    assert expected == hours({"skip": {day}}, 5) == hours({"skip": lambda each: each == day}, 5)


def test_a_schedule_that_skips_every_day_has_no_slot():
    """It is not looked for for ever."""
    assert [] == hours({"skip": lambda day: True}, 1)


def test_limits_are_told_in_words():
    trigger = choose_trigger(
        cron="0 6 * * *", timezone="Europe/Berlin", start=datetime(2026, 7, 1), skip={date(2026, 12, 25)}
    )

    assert "06:00 every day, Berlin, from 2026-07-01 00:00:00 CEST, but not on 2026-12-25" == in_words(trigger)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"start": datetime(2026, 1, 1)}, "start=.* has no timezone"),
        ({"end": date(2026, 1, 1)}, "end=.* must be a datetime"),
        ({"start": second(2), "end": second(1)}, "is later than end=.*never run"),
        ({"skip": {date(2026, 1, 1)}}, "skip= is of days.*time zone"),
        ({"skip": {second(1)}, "timezone": "UTC"}, r"skip= has .*\.date\(\)"),
        ({"skip": {date(2026, 1, 1): "New Year"}, "timezone": "UTC"}, r"calendar\.__contains__"),
        ({"skip": {date(2026, 1, 1)}, "timezone": "Europe/Berln"}, "Is it 'Europe/Berlin'"),
        ({"period": None, "at": second(5), "start": second(1)}, "limit a period"),
    ],
)
def test_limits_that_mean_nothing_are_refused(options, reason):
    with pytest.raises(ScheduleError, match=reason):
        choose_trigger(**{"period": "1h"} | options)


def test_a_skip_that_fails_stops_its_task_only(core):
    """As any code of the user's that says when a task runs."""

    def broken(day: date) -> bool:
        if day > date(2026, 1, 1):
            raise LookupError("no calendar")
        return False

    task = core.schedule(period="12h", skip=broken, timezone="UTC", first_run="skip")(lambda: 1)
    core.begin()

    core.run_for(100_000)

    assert [second(43_200)] == keys(task)
    assert "failed for 2026-01-02: LookupError: no calendar" in task.status.error


# ------------------------------------------------------------ whole days of a zone


def test_whole_days_stay_at_their_time_of_day():
    """Over both changes of the clock, from an anchor in the middle."""
    trigger = Every("2w", anchor=datetime(2026, 6, 1, 9), timezone="Europe/Berlin")
    found, t = [], datetime(2026, 3, 1, tzinfo=UTC)
    while (t := trigger.next_after(t)).year == 2026:
        found.append(t.astimezone(BERLIN))

    assert {(0, 9, 0)} == {(each.weekday(), each.hour, each.minute) for each in found}
    assert {timedelta(days=14)} == {b.date() - a.date() for a, b in pairwise(found)}
    assert date(2026, 6, 1) in {each.date() for each in found}


def test_a_time_that_spring_skips_runs_at_the_end_of_the_gap():
    """As with cron."""
    trigger = Every("7d", anchor=datetime(2026, 3, 22, 2, 30), timezone="Europe/Berlin")

    assert datetime(2026, 3, 29, 1, tzinfo=UTC) == trigger.next_after(datetime(2026, 3, 28, tzinfo=UTC))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"anchor": None}, r"give it, anchor=date\("),
        ({"anchor": second(1)}, "without a timezone of its own"),
        ({"anchor": datetime(2026, 1, 5, 9), "period": "36h"}, "whole days"),
        ({"anchor": date(2026, 1, 5), "timezone": "Mars"}, "'Mars'"),
    ],
)
def test_whole_days_that_mean_nothing_are_refused(options, reason):
    with pytest.raises(TriggerError, match=reason):
        Every(**{"period": "2w", "timezone": "Europe/Berlin"} | options)


# ------------------------------------------------------------ jitter and misfire_grace


def test_jitter_makes_each_slot_late_and_leaves_its_key(core):
    """By less than it says, and by another part each time."""
    started = []
    task = core.schedule(period="1m", jitter="30s", first_run="skip")(lambda: started.append(core.clock.now()))
    core.begin()

    core.run_for(700)

    late = [(at - slot).total_seconds() for at, slot in zip(started, keys(task), strict=True)]
    assert [second(60 * number) for number in range(1, 12)] == keys(task)
    assert 0 <= min(late) < max(late) < 30
    assert len(late) == len(set(late))


def test_jitter_is_the_same_in_every_process_and_another_of_every_task():
    """It is worked out of the name and the slot alone."""
    with Core() as one, Core() as other:
        policies = [core.schedule(period="1m", jitter="30s", name="a")(lambda: 1).policy for core in (one, other)]

    parts = [policy.late_by(name, second(60)) for policy in policies for name in ("a", "b")]
    assert parts[:2] == parts[2:]
    assert timedelta(seconds=10, microseconds=533494) == parts[0] != parts[1]


def test_a_slot_later_than_misfire_grace_is_skipped(core):
    """Up to that it is caught up; jitter is no lateness."""
    task = core.schedule(period="1m", misfire_grace="20s", jitter="10s", first_run="skip")(lambda: 1)
    core.begin()

    core.advance(119.9)
    core.advance(50)  # 49.9 s after the second slot
    core.advance(25)  # 14.9 s after the third one

    assert [("skipped", "missed"), ("succeeded", "")] == short(task.history)
    assert [second(180)] == keys(task)


def test_what_is_late_on_purpose_is_in_time():
    """So much later than its grace a slot may begin."""
    pending = Due(second(0), second(0), None)
    late = [decide(pending, second(25), grace=2 * TEN, late_by=late_by).action for late_by in (TEN, timedelta())]

    assert [Action.RUN, Action.SKIP] == late


def test_a_value_with_jitter_is_promised_for_as_much_longer(core):
    """Or a page would call it late each time."""
    task, plain = (
        core.schedule(period="1m", jitter=jitter, name=name, first_run="skip")(lambda: 1)
        for name, jitter in (("task", "30s"), ("plain", None))
    )
    core.begin()
    core.run_for(100)

    promises = [each.promise()[1] for each in (task, plain)]
    assert timedelta(seconds=30) == promises[0] - promises[1]


def test_misfire_grace_without_catch_up_is_more_than_thirty_seconds(core):
    """Which is but the default."""
    long, short_ = (
        core.schedule(period="1h", catch_up=False, misfire_grace=grace, name=name, first_run="skip")(lambda: 1)
        for name, grace in (("long", "5m"), ("short", None))
    )
    core.begin()

    core.advance(3600 + 200)

    assert ([second(3600)], []) == (keys(long), keys(short_))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"period": "1m", "jitter": "2m"}, "longer than the period"),
        ({"period": "1m", "jitter": "soon"}, "jitter='soon' is no duration"),
        ({"period": "1m", "misfire_grace": 0}, "misfire_grace=0 is no duration"),
        ({"jitter": "1m"}, "about the slots of a clock"),
        ({"misfire_grace": "1m"}, "about the slots of a clock"),
    ],
)
def test_options_of_lateness_that_mean_nothing_are_refused(core, options, reason):
    raw = core.schedule(period="1h", name="raw", first_run="skip")(lambda: 1)
    with pytest.raises(ScheduleError, match=reason):
        core.schedule(**({} if "period" in options else {"after": raw}) | options)(lambda: 2)


# ------------------------------------------------------------ the documentation


def test_the_recipe_for_holidays_asks_its_calendar(monkeypatch, tmp_path):
    """Of a package that works out its dates when they are asked, and is none of this one's dependencies."""

    class Calendar(dict[date, str]):
        def __contains__(self, day: object) -> bool:
            return day == date(2026, 5, 1)

    holidays = ModuleType("holidays")
    vars(holidays)["country_holidays"] = lambda *where, **options: Calendar()
    monkeypatch.setitem(sys.modules, "holidays", holidays)
    with Core() as core:
        monkeypatch.setitem(sys.modules, "panel_schedule", SimpleNamespace(schedule=core.ps.schedule))
        exec(documents.files(PAGE)["holiday_tasks.py"], {"__name__": "holiday_tasks"})
        trigger = core.ps.tasks["report"].policy.trigger

    assert date(2026, 5, 4) == trigger.next_after(datetime(2026, 4, 30, 12, tzinfo=UTC)).date()
