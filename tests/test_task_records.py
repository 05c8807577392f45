"""What may happen to the record of a task: tables of it, and walks of processes that die, pause and come late."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import getmembers, isfunction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import booleans, integers, sampled_from

from panel_schedule.coordination import tasks
from panel_schedule.coordination.record import NOBODY, Logged, Record, Refusal
from panel_schedule.coordination.tasks import OVERRIDE, TAKEOVERS, TASK, TRIGGER, VALUE, Claim, TaskState
from panel_schedule.functions.run import RunRecord, RunState

# More of them by hand.
WALKS = int(os.environ.get("PANEL_SCHEDULE_TEST_WALKS", "1000"))

START = datetime(2026, 1, 1, tzinfo=UTC)


def second(number: float) -> datetime:
    return START + timedelta(seconds=number)


def alive(owner: str) -> bool:
    return owner in ("me", "other")


HELD = Claim("t", "r1", 3)
ENROLLED = TaskState(server="s", fingerprint="f", first_seen=second(0), last_slot=second(5), last_version=4, fence=3)
RUNNING = ENROLLED._replace(run_id="r1", started_at=second(5), key=second(5))

# By its name a record, of which there may be none.
RECORDS: dict[str, Record | None] = {
    "none": None,
    "value": Record(TASK, "t", TaskState(version=2, updated_at=second(1), by="r0"), parts={VALUE: 1}),
    "free": Record(TASK, "t", ENROLLED, parts={TRIGGER: 1, OVERRIDE: 1}),
    "mine": Record(TASK, "t", RUNNING, owner="me"),
    "other's": Record(TASK, "t", RUNNING._replace(run_id="r2", fence=4), owner="other"),
    "dead": Record(TASK, "t", RUNNING, owner="gone"),
    "dead twice": Record(TASK, "t", RUNNING._replace(takeovers=TAKEOVERS), owner="gone"),
    "dead, over": Record(TASK, "t", RUNNING._replace(over=True), owner="gone"),
    "dead, published": Record(TASK, "t", RUNNING._replace(published=True), owner="gone"),
    "replaced": Record(TASK, "t", ENROLLED._replace(superseded=("e", "h"), scheduled_by="other")),
    "replaced by one gone": Record(TASK, "t", ENROLLED._replace(superseded=("e", "h"), scheduled_by="gone")),
    "handed over": Record(TASK, "t", RUNNING, owner=NOBODY),
    "over": Record(TASK, "t", RUNNING._replace(over=True), owner="me"),
    "newer": Record(TASK, "t", ENROLLED._replace(fence=8)),
    "requested": Record(TASK, "t", ENROLLED._replace(requested="q1")),
    "forgotten": Record(TASK, "t", ENROLLED._replace(forgotten=True)),
}

ENDED = RunRecord("r1", second(5), RunState.FAILED, finished_at=second(6), error="no")


def claim(mark: Any = None, first: bool = False, run_id: str = "r9") -> Any:
    return partial(tasks.claim, me="me", server="s", task="t", run_id=run_id, now=second(9), key=None, mark=mark,
                   wave=None, first=first, unreadable=0)  # fmt: skip


def publish(claim: Claim | None = HELD) -> Any:
    return partial(tasks.publish, space=TASK, name="t", now=second(9), duration=1.0, claim=claim, final=True, me="me")


def enroll(server: str = "s", fingerprint: str = "f", again: bool = False, late: bool = False) -> Any:
    return partial(tasks.enroll, name="t", server=server, fingerprint=fingerprint, portable=False, first_seen=second(9),
                   again=again, late=late, unreadable=0, me="me", alive=alive)  # fmt: skip


def note(mark: Any = None, claim: Claim | None = None, release: bool = False) -> Any:
    return partial(tasks.note, task="t", run=ENDED, mark=mark, claim=claim, release=release)


ALONE = Record(TASK, "t", RUNNING._replace(last_version=9), owner="me", revision=9)
REJOIN = partial(tasks.rejoin, base=Record(TASK, "t", ENROLLED), held=ALONE, written=(), me="me")
TAKE = partial(tasks.take_over, me="me", alive=alive, now=second(9))
SUCCEED = partial(tasks.succeed, publish=publish(), claim=HELD, run=RunRecord("r1", second(5), RunState.SUCCEEDED))
AMEND = partial(tasks.amend, paused=True, removed=None, rescheduled=None)

# The call, then what becomes of each record: a refusal, or what is told of the new one.
TABLE: list[tuple[str, Any, dict[str, str]]] = [
    ("claim", claim(), {"none": "me fence 1", "value": "me fence 1", "free": "me fence 4", "mine": "held",
                        "other's": "held", "dead": "held", "dead twice": "held", "dead, over": "held",
                        "dead, published": "held", "handed over": "held", "over": "held", "forgotten": "handled"}),
    ("claim a slot", claim(second(5)), {"none": "me fence 1", "value": "me fence 1", "free": "handled",
                                        "mine": "handled", "forgotten": "handled"}),
    ("claim the next slot", claim(second(6)), {"free": "me fence 4", "mine": "held"}),
    ("claim once more", claim(second(5), run_id="r1"), {"mine": "me fence 3", "other's": "handled", "dead": "handled"}),
    ("claim versions", claim(4), {"none": "me fence 1", "free": "handled"}),
    ("claim newer versions", claim(5), {"free": "me fence 4"}),
    ("claim for a first value", claim(first=True), {"none": "me fence 1", "value": "handled", "free": "me fence 4",
                                                    "mine": "held"}),
    ("claim for a request", claim("q1"), {"none": "handled", "free": "handled", "requested": "me fence 4 requested -",
                                          "mine": "handled", "forgotten": "handled"}),
    ("claim for a request that is handled", claim("q0"), {"requested": "handled"}),
    ("claim a slot after a request", claim(second(6)), {"requested": "me fence 4 requested -"}),
    ("request", partial(tasks.request, id="q2"), {"none": "absent", "value": "absent", "free": "ok requested q2",
                                                  "mine": "held", "other's": "held", "dead": "held",
                                                  "over": "me requested q2", "requested": "held",
                                                  "forgotten": "absent"}),
    ("publish", publish(), {"none": "fenced", "value": "fenced", "free": "fenced", "mine": "me version 1",
                            "other's": "fenced", "dead": "fenced", "handed over": "fenced", "over": "fenced",
                            "forgotten": "fenced"}),
    ("publish unclaimed", publish(None), {"none": "version 1", "value": "version 3", "free": "version 1",
                                          "mine": "me version 1"}),
    ("finalize", partial(tasks.finalize, claim=HELD, me="me"), {"none": "fenced", "free": "fenced", "mine": "me",
                                                                "other's": "fenced", "dead": "fenced",
                                                                "over": "fenced"}),
    ("succeed", SUCCEED, {"none": "fenced", "free": "fenced", "mine": "ok version 1 succeeded", "other's": "fenced",
                          "dead": "fenced", "handed over": "fenced", "over": "fenced", "forgotten": "fenced"}),
    ("succeed with newer versions", partial(SUCCEED, version=9), {"mine": "ok version 1 succeeded last 9"}),
    ("succeed with older versions", partial(SUCCEED, version=1), {"mine": "ok version 1 succeeded last 4"}),
    ("delete", tasks.delete, {"none": "absent", "value": "no value", "free": "absent"}),
    ("restore", partial(tasks.restore, held=Record(TASK, "t", TaskState(version=2, updated_at=second(1))), lost=False),
     {"none": "version 2", "value": "handled", "free": "version 2"}),
    ("restore bytes", partial(tasks.restore, held=Record(TASK, "t", TaskState(version=2)), lost=True),
     {"value": "version 2"}),
    ("restore an older one", partial(tasks.restore, held=Record(TASK, "t", TaskState(version=1)), lost=True),
     {"value": "handled"}),
    ("outrank", partial(tasks.outrank, version=2), {"none": "handled", "value": "version 3", "forgotten": "ok"}),
    ("outrank one of before", partial(tasks.outrank, version=1), {"value": "handled"}),
    ("reinstate", partial(tasks.reinstate, held=Record(TASK, "t", RUNNING, owner="me", revision=9)),
     {"none": "me fence 3", "value": "me fence 3 version 2", "free": "ok fence 3", "mine": "me fence 3",
      "other's": "other fence 4", "forgotten": "ok fence 3"}),
    ("reinstate a request", partial(tasks.reinstate, held=Record(TASK, "t", ENROLLED._replace(requested="q1"),
                                                                 revision=9)),
     {"none": "ok requested q1", "free": "ok requested q1", "other's": "other fence 4 requested -"}),
    ("reinstate what is there", partial(tasks.reinstate, held=Record(TASK, "t", RUNNING, owner="me")),
     {"free": "handled"}),
    ("rejoin with a run", REJOIN, {"none": "me fence 3", "value": "me fence 3 version 2", "free": "me fence 3 last 9",
                                   "mine": "me fence 3", "other's": "other fence 4 last 9"}),
    ("rejoin with a run that is nobody's", partial(REJOIN, held=ALONE._replace(state=RUNNING._replace(run_id="r7"))),
     {"handed over": "nobody's fence 3"}),
    ("rejoin with one that it had", REJOIN, {"handed over": "me fence 3"}),
    ("rejoin with an older run", partial(REJOIN, base=None), {"newer": "ok fence 8 last 9"}),
    ("rejoin without a run", partial(REJOIN, held=Record(TASK, "t", ENROLLED._replace(fence=7), revision=9)),
     {"free": "ok fence 7", "mine": "ok fence 7", "other's": "other fence 4"}),
    ("rejoin when another has it there", partial(REJOIN, held=Record(TASK, "t", RUNNING, owner="gone")),
     {"free": "ok fence 3", "dead": "gone fence 3"}),
    ("enroll", enroll(), {"none": "first 9", "value": "first 9", "free": "handled", "mine": "handled",
                          "forgotten": "handled"}),
    ("enroll in another server, asked for", enroll("x"), {"requested": "first 5 requested q1"}),
    ("enroll in another server", enroll("x"), {"free": "first 5", "mine": "me first 5", "forgotten": "first 9"}),
    ("enroll another schedule", enroll(fingerprint="g"), {"free": "handled"}),
    ("enroll another schedule again", enroll(fingerprint="g", again=True), {"free": "first 9", "mine": "me first 9"}),
    ("enroll a newer one", enroll("x", "g"), {"free": "first 9", "replaced": "first 9"}),
    ("enroll an older one", enroll("x", "e"), {"replaced": "handled", "replaced by one gone": "first 9"}),
    ("enroll late", enroll(late=True), {"forgotten": "first 9", "free": "handled"}),
    ("amend", AMEND, {"none": "absent", "value": "absent", "free": "ok", "mine": "me"}),
    ("reschedule", partial(tasks.amend, paused=None, removed=None, rescheduled=second(8)), {"free": "first 8"}),
    ("rewind", partial(tasks.rewind, now=second(3)), {"none": "absent", "value": "absent", "free": "first 3",
                                                      "mine": "me first 3"}),
    ("rewind to later", partial(tasks.rewind, now=second(7)), {"free": "handled"}),
    ("mark stale", partial(tasks.mark_stale, stale=True), {"none": "handled", "free": "ok"}),
    ("mark fresh", partial(tasks.mark_stale, stale=False), {"free": "handled"}),
    ("forget a request", tasks.forget, {"requested": "ok requested -"}),
    ("forget", tasks.forget, {"none": "absent", "value": "no value", "free": "ok", "mine": "ok", "other's": "ok"}),
    ("advance", partial(tasks.advance, claim=HELD, version=7), {"none": "fenced", "free": "fenced", "mine": "me",
                                                                "other's": "fenced"}),
    ("progress", partial(tasks.progress, claim=HELD, percent=5, message=""), {"none": "fenced", "mine": "me",
                                                                              "other's": "fenced"}),
    ("release", partial(tasks.release, claim=HELD), {"none": "fenced", "free": "fenced", "mine": "ok",
                                                     "other's": "fenced", "over": "ok"}),
    ("abandon", tasks.abandon, {"none": "absent", "free": "absent", "mine": "ok", "other's": "ok"}),
    ("hand over", partial(tasks.hand_over, claim=HELD), {"none": "fenced", "free": "fenced", "mine": "nobody's",
                                                         "other's": "fenced"}),
    ("take over", TAKE, {"none": "held", "value": "held", "free": "held", "mine": "held", "other's": "held",
                         "dead": "me fence 4", "handed over": "me fence 4",
                         "dead twice": "ok crashed", "dead, over": "ok", "dead, published": "ok succeeded"}),
    ("take over once more", partial(TAKE, left=("r1", 0)), {"mine": "me fence 3", "other's": "held",
                                                            "dead": "me fence 4"}),
    ("take over from a later attempt", partial(TAKE, left=("r1", 1)), {"mine": "held"}),
    ("cancel", partial(tasks.cancel, run_id="r1"), {"none": "absent", "free": "absent", "mine": "me",
                                                    "other's": "absent"}),
    ("note", note(), {"none": "ok failed", "free": "ok failed", "mine": "me failed", "other's": "other failed"}),
    ("note a slot", note(second(6)), {"none": "absent", "free": "ok failed", "forgotten": "handled"}),
    ("note a slot of before", note(second(5)), {"free": "handled", "mine": "handled"}),
    ("note a request", note("q1"), {"requested": "ok failed requested -", "free": "handled", "mine": "handled"}),
    ("note a slot beside a request", note(second(6)), {"requested": "ok failed requested q1"}),
    ("note under a claim", note(claim=HELD), {"none": "ok failed", "value": "ok failed", "free": "fenced",
                                              "mine": "me failed", "other's": "fenced", "over": "me failed"}),
    ("note and release", note(claim=HELD, release=True), {"none": "ok failed", "value": "ok failed", "free": "fenced",
                                                          "mine": "ok failed", "other's": "fenced",
                                                          "over": "ok failed"}),
]  # fmt: skip

CASES = [(what, apply, kind, told) for what, apply, row in TABLE for kind, told in row.items()]


def matches(told: str, record: Record, logged: RunRecord | None) -> bool:
    words = told.split()
    state: TaskState = record.state
    owner = {"me": "me", "other": "other", "gone": "gone", "nobody's": NOBODY}.get(words[0])
    facts = {
        "fence": lambda number: state.fence == int(number),
        "version": lambda number: state.version == int(number) and VALUE in record.parts,
        "last": lambda number: state.last_version == int(number),
        "requested": lambda id: state.requested == id.replace("-", ""),
        "first": lambda number: state.first_seen == second(int(number)),
    }
    for name, number in pairwise(words):
        if name in facts and not facts[name](number):
            return False
    outcomes = [word for word in words if word in ("failed", "crashed", "succeeded")]
    return (
        record.owner == owner
        and [str(logged.state) if logged is not None else None] == (outcomes or [None])
        and ("no value" not in told or VALUE not in record.parts)
        and bool(state.run_id) == (record.owner is not None)
    )


@pytest.mark.parametrize(("what", "apply", "kind", "told"), CASES, ids=[f"{case[0]}: {case[2]}" for case in CASES])
def test_what_becomes_of_a_record(what, apply, kind, told):
    outcome = apply(RECORDS[kind], 1)
    if isinstance(outcome, Refusal):
        assert told == outcome
        return
    record, logged = (outcome.record, outcome.entry) if isinstance(outcome, Logged) else (outcome, None)
    assert matches(told, record, logged), (told, record)


def test_the_table_has_every_function():
    """What may happen is all there."""
    applied = {apply.func if isinstance(apply, partial) else apply for _, apply, _ in TABLE}
    there = {each for name, each in getmembers(tasks, isfunction)
             if each.__module__ == tasks.__name__ and not name.startswith("_")}  # fmt: skip
    assert there - applied == {tasks.extended, tasks.has_newer, tasks.is_another, tasks.is_newer}


def test_only_what_a_process_has_changed_alone_is_changed_when_it_is_back():
    """Of its schedule; what others have changed meanwhile stays so."""
    base = Record(TASK, "t", ENROLLED, parts={TRIGGER: 1, OVERRIDE: 1})
    there = base._replace(state=ENROLLED._replace(stale=True, last_slot=second(7)), parts={TRIGGER: 1})
    held = base._replace(state=ENROLLED._replace(paused=True, last_slot=second(6)))

    rejoined = tasks.rejoin(there, 9, base=base, held=held, written=(), me="me")
    state = rejoined.state
    assert (True, True, second(7), {TRIGGER: 1}) == (state.paused, state.stale, state.last_slot, rejoined.parts)
    assert {TRIGGER: 1, OVERRIDE: 1} == tasks.rejoin(there, 9, base=base, held=held, written={OVERRIDE}, me="me").parts
    dropped = held._replace(parts={TRIGGER: 1})
    assert {TRIGGER: 1} == tasks.rejoin(base, 9, base=base, held=dropped, written=(), me="me").parts


class Walk(RuleBasedStateMachine):
    """Three processes and one task. A process that is taken for dead may go on for a while, and know nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.record: Record | None = None
        self.now = 0
        self.names = ["a", "b", "c"]
        self.alive = set(self.names)
        self.claims: dict[str, Claim] = {}
        self.slots: set[datetime] = set()
        self.fence = self.version = self.taken = 0

    def make(self, apply: Any) -> Any:
        """The outcome; what must hold of every change does."""
        before = self.record
        outcome = apply(before, 1)
        if isinstance(outcome, Refusal):
            return outcome
        after = outcome.record if isinstance(outcome, Logged) else outcome
        # Who has the lease has it until it gives it back or is dead; the next fence is greater (invariants 6, 10).
        if before is not None and before.owner != after.owner and after.owner not in (None, NOBODY):
            assert before.owner is None or before.owner not in self.alive
            assert after.state.fence > self.fence
        self.fence, self.record = after.state.fence, after
        return outcome

    @rule(seconds=integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(seconds=integers(1, 5))
    def the_clock_steps_back(self, seconds: int) -> None:
        self.now -= seconds
        if not isinstance(self.make(partial(tasks.rewind, now=second(self.now))), Refusal):
            self.slots = {slot for slot in self.slots if slot <= second(self.now)}

    @rule()
    def request(self) -> None:
        self.make(partial(tasks.request, id=f"q{self.now} {self.fence}"))

    @rule(who=integers(0, 2))
    def claim_for_a_request(self, who: int) -> None:
        name, asked = self.names[who], self.record.state.requested if self.record is not None else ""
        outcome = self.make(partial(
            tasks.claim, me=name, server="s", task="t", run_id=f"r{self.fence}{name}", now=second(self.now), key=None,
            mark=asked or "q", wave=None, first=False, unreadable=0,
        ))  # fmt: skip
        if not isinstance(outcome, Refusal):
            assert asked
            assert "" == outcome.state.requested  # one claim for each request
            self.claims[name] = Claim("t", outcome.state.run_id, outcome.state.fence)
            self.taken = 0

    @rule(who=integers(0, 2), slot=booleans())
    def claim(self, who: int, slot: bool) -> None:
        name, mark = self.names[who], second(self.now) if slot else None
        outcome = self.make(partial(
            tasks.claim, me=name, server="s", task="t", run_id=f"r{self.fence}{name}", now=second(self.now), key=mark,
            mark=mark, wave=None, first=False, unreadable=0,
        ))  # fmt: skip
        if not isinstance(outcome, Refusal):
            if mark is not None:
                assert mark not in self.slots  # invariant 14: a slot is handled once
                self.slots.add(mark)
            self.claims[name] = Claim("t", outcome.state.run_id, outcome.state.fence)
            self.taken = 0

    @rule(who=integers(0, 2), final=booleans())
    def publish(self, who: int, final: bool) -> None:
        name = self.names[who]
        if (held := self.claims.get(name)) is not None:
            outcome = self.make(partial(
                tasks.publish, space=TASK, name="t", now=second(self.now), duration=None, claim=held, final=final,
                me=name,
            ))  # fmt: skip
            if not isinstance(outcome, Refusal):
                assert (name, held.fence) == (outcome.owner, self.fence)

    @rule(who=integers(0, 2), state=sampled_from([RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED]))
    def end(self, who: int, state: RunState) -> None:
        if (held := self.claims.pop(self.names[who], None)) is not None:
            owner = self.record.owner if self.record is not None else None
            run = RunRecord(held.run_id, None, state)
            self.make(partial(tasks.note, task="t", run=run, mark=None, claim=held, release=True))
            if self.record is not None and owner != self.names[who]:
                assert self.record.owner == owner  # it has lost its lease, and ends nobody else's

    @rule(who=integers(0, 2))
    def hand_over(self, who: int) -> None:
        if (held := self.claims.pop(self.names[who], None)) is not None:
            self.make(partial(tasks.hand_over, claim=held))

    @rule(who=integers(0, 2), goes_on=booleans())
    def die(self, who: int, goes_on: bool) -> None:
        name = self.names[who]
        self.alive.discard(name)
        if not goes_on:
            self.claims.pop(name, None)
            self.names[who] = f"{name}'"
            self.alive.add(self.names[who])

    @rule(who=integers(0, 2))
    def take_over(self, who: int) -> None:
        name = self.names[who]
        if name not in self.alive:
            return
        owner = self.record.owner if self.record is not None else None
        outcome = self.make(partial(tasks.take_over, me=name, alive=self.alive.__contains__, now=second(self.now)))
        if isinstance(outcome, Record) and outcome.owner == name:
            self.claims[name] = Claim("t", outcome.state.run_id, outcome.state.fence)
            self.taken += owner != NOBODY
            assert self.taken <= TAKEOVERS

    @rule(server=sampled_from("st"), fingerprint=sampled_from("fg"), again=booleans(), late=booleans())
    def enroll(self, server: str, fingerprint: str, again: bool, late: bool) -> None:
        outcome = self.make(partial(
            tasks.enroll, name="t", server=server, fingerprint=fingerprint, portable=False, first_seen=second(self.now),
            again=again, late=late, unreadable=0, me=server, alive=lambda owner: owner == "s",
        ))  # fmt: skip
        if not isinstance(outcome, Refusal) and outcome.state.last_slot is None:
            self.slots.clear()  # another schedule, whose slots are others

    @rule()
    def forget(self) -> None:
        if not isinstance(self.make(tasks.forget), Refusal):
            self.slots.clear()  # who takes the name next starts afresh

    @invariant()
    def nothing_goes_back(self) -> None:
        """Versions only grow (invariant 17), and a record says whose it is."""
        if self.record is not None:
            state: TaskState = self.record.state
            assert state.version >= self.version
            self.version = state.version
            assert bool(state.run_id) == (self.record.owner is not None)


TestWalk = pytest.mark.unhurried(pytest.mark.slow(Walk.TestCase))
TestWalk.settings = settings(
    max_examples=WALKS, stateful_step_count=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
