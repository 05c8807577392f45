"""What may happen to the record of an answer, a run or a shared run: in tables, and in walks of several processes."""

from __future__ import annotations

import re
from datetime import datetime
from functools import partial
from inspect import isfunction, signature
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from panel_schedule.coordination import answers, jobs, remote
from panel_schedule.coordination.answers import AnswerState
from panel_schedule.coordination.jobs import JobState, SharedState
from panel_schedule.coordination.record import NOBODY, Record, Refusal
from panel_schedule.coordination.remote import RemoteState
from panel_schedule.functions.run import RunState
from panel_schedule.testing.contracts.tools import second
from walks import NUMBERS, STEPS, WALKS, Walk, turn_of

ME, OTHER, DEAD = "me", "other", "dead"
EARLIER, NOW, LATER = second(0), second(60), second(120)
SUCCEEDED, FAILED, RUNNING = RunState.SUCCEEDED, RunState.FAILED, RunState.RUNNING

# The number of the change, and the fence of what is there before it.
REVISION, FENCE = 9, 3

INSTANTS = {EARLIER: "earlier", NOW: "now", LATER: "later", NOW + answers.EMPTY: "soon", NOW + jobs.KEPT: "tomorrow"}


def alive(owner):
    return owner in (ME, OTHER)


def told(before, after):
    """What an outcome changes, as text: ``"owner=me fence=9 -partial"``."""
    if not isinstance(after, Record):
        return str(after or "deleted")
    before = before or Record(after.space, after.name, type(after.state)(), after.group)
    old, new = (
        {"owner": each.owner, "used": each.used_at, "expires": each.expires_at} | each.state._asdict()
        for each in (before, after)
    )
    changes = [f"{name}={shown(value)}" for name, value in new.items() if value != old[name]]
    changes += [f"-{kind}" for kind in before.parts if kind not in after.parts]
    changes += [f"+{kind}" for kind, count in after.parts.items() for _ in range(count - before.parts.get(kind, 0))]
    return " ".join(changes) or "same"


def shown(value):
    """An instant by its name, and of what is said of an error which one it is."""
    return INSTANTS[value] if isinstance(value, datetime) else f"{value}".partition(":")[0].replace(" ", "") or "''"


def answer(owner=None, *parts, **state):
    state = {"call": "f()", "fence": FENCE} | state
    return Record(answers.SPACE, "key f", AnswerState(**state), "f", owner, EARLIER, LATER, dict.fromkeys(parts, 1))


def run(owner, state=RunState.QUEUED, *, parts=None, **more):
    state = JobState("key", **{"durable": True, "fence": FENCE, "queued_at": EARLIER, "state": state} | more)
    return Record(jobs.SPACE, "run1", state, "f", owner, parts={"arguments": 1} if parts is None else parts)


def shared(run, until=None):
    return Record(jobs.SHARED, "key f", SharedState(run, until), "f", expires_at=until)


def call(home, owner, state=RunState.QUEUED, *parts, **more):
    state = RemoteState(home, state, "" if state is RunState.QUEUED else "celery@host/7", **more)
    return Record(remote.SPACE, "run1.1", state, "Job 'f'", owner, parts=dict.fromkeys(parts or ["call"], 1))


# By the kind of a record: one of that kind.
COMPUTED = {"wanted": (1,), "partials": 2, "percent": 40, "message": "half", "began_at": EARLIER}
OF_ANSWERS = {
    "none": None,
    "empty": answer(),
    "good": answer(None, "value", version=2, basis=(1,), updated_at=EARLIER, duration=1.0),
    "failed": answer(None, "error", failed=FENCE, failed_at=EARLIER),
    "mine": answer(ME, "value", "partial answer", version=2, basis=(0,), **COMPUTED),
    "theirs": answer(OTHER, "partial answer", **COMPUTED),
    "orphan": answer(DEAD, "partial answer", **COMPUTED),
    "orphan again": answer(DEAD, "error", takeovers=1, failed=1, failed_at=EARLIER, **COMPUTED),
}
OF_JOBS = {
    "none": None,
    "queued": run(ME, durable=False),
    "running": run(ME, RUNNING, parts={"arguments": 1, "partial result": 2}, percent=40, message="half"),
    "cancelled": run(ME, RUNNING, cancelled=True),
    "theirs": run(OTHER, RUNNING),
    "orphan": run(DEAD, RUNNING),
    "cancelled orphan": run(DEAD, RUNNING, cancelled=True),
    "crashed": run(DEAD, RUNNING, durable=False),
    "nobody's": run(NOBODY),
    "given back": run("?", cancelled=True),
    "over": run(None, SUCCEEDED, parts={"value": 1}, finished_at=EARLIER),
}
OF_SHARED = {
    "none": None,
    "this": shared("run1"),
    "another": shared("run2"),
    "good": shared("run2", LATER),
    "expired": shared("run2", EARLIER),
}

OF_CALLS = {
    "none": None,
    "queued": call(ME, ME),
    "queued there": call(OTHER, OTHER),
    "queued by the dead": call(DEAD, DEAD),
    "running": call(ME, OTHER, RUNNING, "call", "said", "refused", said=5, heard=3),
    "running here": call(OTHER, ME, RUNNING, "call", "said", said=5, heard=3),
    "cancelled": call(ME, OTHER, RUNNING, "call", cancelled=True),
    "crashed": call(ME, DEAD, RUNNING, "call"),
    "running for the dead": call(DEAD, OTHER, RUNNING, "call"),
    "forsaken": call(DEAD, DEAD, RUNNING, "call"),
    "over": call(ME, None, SUCCEEDED, "value"),
    "over there": call(OTHER, None, FAILED, "error"),
    "over for the dead": call(DEAD, None, SUCCEEDED, "value"),
    "to end for the dead": call(DEAD, OTHER, RUNNING, "call", cancelled=True),
    "ended for the dead": call(DEAD, None, FAILED, "error", cancelled=True),
    "over all the same": call(DEAD, None, SUCCEEDED, "value", cancelled=True),
}

# By what happens: the function, and with what.
held = {"me": ME, "fence": FENCE}
look = {"alive": alive, "now": NOW}
claim = partial(answers.claim, me=ME, function="f", key="key", call="f()", known=0, basis=(1,), **look)
finish = partial(jobs.finish, **held, now=NOW, expires_at=LATER)
TO_ANSWERS = {
    "claim": claim,
    "claim for 2": partial(claim, basis=(2,)),
    "claim beyond 2": partial(claim, known=2),
    "publish": partial(answers.publish, **held),
    "progress": partial(answers.progress, **held, percent=50, message="more"),
    "succeed": partial(answers.succeed, **held, now=NOW, duration=2.0, expires_at=LATER),
    "fail": partial(answers.fail, **held, now=NOW),
    "give up": partial(answers.give_up, **held, now=NOW),
    "bury": partial(answers.bury, **look),
    "invalidate": partial(answers.invalidate, function="f", key="key", now=NOW),
    "expire 2": partial(answers.expire, version=2, at=NOW),
}
TO_JOBS = {
    "enqueue": partial(
        jobs.enqueue, me=ME, id="run1", function="f", key="key", durable=True, user="ann", now=NOW, arguments=True
    ),
    "restore": partial(jobs.restore, held=OF_JOBS["queued"]),
    "begin 2": partial(jobs.begin, **held, now=NOW, attempt=2),
    "again 2": partial(jobs.again, **held, attempt=2),
    "progress": partial(jobs.progress, **held, percent=50, message="more"),
    "publish 0": partial(jobs.publish, **held, number=0),
    "publish 3": partial(jobs.publish, **held, number=3),
    "succeed": partial(finish, state=SUCCEEDED, part="value", error="", reason=""),
    "fail": partial(finish, state=FAILED, part="error", error="KeyError", reason="why"),
    "ask to cancel": partial(jobs.ask_to_cancel, **look),
    "take": partial(jobs.take, me=ME, alive=alive),
    "take once more": partial(jobs.take, me=ME, alive=alive, left=FENCE - 1),
    "let go": partial(jobs.let_go, **held),
    "release": partial(jobs.release, me=ME, now=NOW),
    "bury": partial(jobs.bury, **look),
}
TO_SHARED = {
    "share": partial(jobs.share, function="f", key="key", run="run1", gone="", now=NOW),
    "share for run2": partial(jobs.share, function="f", key="key", run="run1", gone="run2", now=NOW),
    "settle well": partial(jobs.settle, run="run1", good=True, until=LATER),
    "settle for ever": partial(jobs.settle, run="run1", good=True, until=None),
    "settle badly": partial(jobs.settle, run="run1", good=False, until=None),
}


# ------------------------------------------------------------ tables

# What happens, to which kinds of record; and what it changes of them, or why it does not.
told_home = {"me": ME, "percent": 40, "message": "half"}
TO_CALLS = {
    "submit": partial(remote.submit, name="run1.1", label="Job 'f'", home=ME, alive=alive),
    "adopt": partial(remote.adopt, home=ME, alive=alive),
    "hear half": partial(remote.hear, home=ME, heard=4, refused=False),
    "hear all": partial(remote.hear, home=ME, heard=5, refused=False),
    "refuse": partial(remote.hear, home=ME, heard=5, refused=True),
    "cancel": partial(remote.cancel, home=ME),
    "drop": partial(remote.drop, home=ME),
    "bury": partial(remote.bury, alive=alive),
    "claim": partial(remote.claim, me=ME, worker="celery@host/9", killable=True),
    "tell": partial(remote.tell, **told_home, said=3),
    "say": partial(remote.tell, **told_home, said=6),
    "succeed": partial(remote.finish, **told_home, said=5, state=SUCCEEDED, part="value", expires_at=LATER),
    "fail": partial(remote.finish, **told_home, said=3, state=FAILED, part="error", expires_at=LATER),
    "lose": partial(remote.lose, worker="celery@host/7"),
    "lose another": partial(remote.lose, worker="celery@host/8"),
}

ANSWERS = """
claim
    none -> owner=me used=now expires=soon call=f() fence=9 wanted=(1,) began_at=now
    empty, failed -> owner=me used=now expires=soon fence=9 wanted=(1,) began_at=now
    good, mine -> handled
    theirs -> held
    orphan -> owner=me used=now expires=soon fence=9 takeovers=1 partials=0 percent=-1 message='' began_at=now
        -partial answer
    orphan again -> owner=None used=now expires=soon wanted=() takeovers=0 failed=3 failed_at=now partials=0
        percent=-1 message='' began_at=None -error
claim for 2
    none -> owner=me used=now expires=soon call=f() fence=9 wanted=(2,) began_at=now
    empty, failed -> owner=me used=now expires=soon fence=9 wanted=(2,) began_at=now
    good, mine -> handled
    theirs -> owner=me used=now expires=soon fence=9 wanted=(2,) partials=0 percent=-1 message='' began_at=now
        -partial answer
    orphan -> owner=me used=now expires=soon fence=9 wanted=(2,) takeovers=1 partials=0 percent=-1 message=''
        began_at=now -partial answer
    orphan again -> owner=None used=now expires=soon wanted=() takeovers=0 failed=3 failed_at=now partials=0
        percent=-1 message='' began_at=None -error
claim beyond 2
    none -> owner=me used=now expires=soon call=f() fence=9 wanted=(1,) began_at=now
    empty, failed -> owner=me used=now expires=soon fence=9 wanted=(1,) began_at=now
    good -> owner=me used=now fence=9 wanted=(1,) began_at=now
    mine -> used=now fence=9 partials=0 percent=-1 message='' began_at=now -partial answer
    theirs -> held
    orphan -> owner=me used=now expires=soon fence=9 takeovers=1 partials=0 percent=-1 message='' began_at=now
        -partial answer
    orphan again -> owner=None used=now expires=soon wanted=() takeovers=0 failed=3 failed_at=now partials=0
        percent=-1 message='' began_at=None -error
publish
    none, empty, good, failed, theirs, orphan, orphan again -> fenced
    mine -> partials=3
progress
    none, empty, good, failed, theirs, orphan, orphan again -> fenced
    mine -> percent=50 message=more
succeed
    none, empty, good, failed, theirs, orphan, orphan again -> fenced
    mine -> owner=None used=now version=9 basis=(1,) updated_at=now duration=2.0 wanted=() partials=0 percent=-1
        message='' began_at=None -partial answer
fail
    none, empty, good, failed, theirs, orphan, orphan again -> fenced
    mine -> owner=None used=now wanted=() failed=3 failed_at=now partials=0 percent=-1 message='' began_at=None
        -partial answer +error
give up
    none, empty, good, failed, theirs, orphan, orphan again -> fenced
    mine -> owner=None used=now wanted=() partials=0 percent=-1 message='' began_at=None -partial answer
bury
    none, empty, good, failed, mine, theirs -> held
    orphan -> owner=None used=now expires=soon wanted=() takeovers=1 partials=0 percent=-1 message=''
        began_at=None -partial answer
    orphan again -> owner=None used=now expires=soon wanted=() takeovers=0 failed=3 failed_at=now partials=0
        percent=-1 message='' began_at=None -error
invalidate
    none, empty -> used=now expires=soon
    good -> used=now expires=soon version=0 basis=() updated_at=None duration=None -value
    failed -> used=now expires=soon failed=0 failed_at=None -error
    mine -> owner=None used=now expires=soon version=0 basis=() wanted=() partials=0 percent=-1 message=''
        began_at=None -value -partial answer
    theirs, orphan -> owner=None used=now expires=soon wanted=() partials=0 percent=-1 message='' began_at=None
        -partial answer
    orphan again -> owner=None used=now expires=soon wanted=() takeovers=0 failed=0 failed_at=None partials=0
        percent=-1 message='' began_at=None -error
expire 2
    none, empty, failed, theirs, orphan, orphan again -> absent
    good, mine -> expires=now
"""

JOBS = """
enqueue
    none -> owner=me used=now key=key durable=True user=ann queued_at=now +arguments
    queued, running, cancelled, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> handled
restore
    none -> owner=me key=key fence=3 queued_at=earlier +arguments
    queued, running, cancelled, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> handled
begin 2
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued -> state=running attempt=2 started_at=now
    running -> attempt=2 percent=-1 message='' started_at=now -partial result
    cancelled -> attempt=2 started_at=now
again 2
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued -> attempt=2
    running, cancelled -> state=queued attempt=2
progress
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued, running, cancelled -> percent=50 message=more
publish 0
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued, cancelled -> +partial result
    running -> same
publish 3
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued, cancelled -> +partial result +partial result +partial result +partial result
    running -> +partial result +partial result
succeed
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued -> owner=None expires=later state=succeeded finished_at=now -arguments +value
    running -> owner=None expires=later state=succeeded percent=100 finished_at=now -arguments +value
    cancelled -> owner=None expires=later state=succeeded cancelled=False finished_at=now -arguments +value
fail
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued, running -> owner=None expires=later state=failed reason=why error=KeyError finished_at=now -arguments
        +error
    cancelled -> owner=None expires=later state=failed reason=why error=KeyError cancelled=False finished_at=now
        -arguments +error
ask to cancel
    none, over -> absent
    queued, running, theirs -> cancelled=True
    cancelled -> same
    orphan, crashed, nobody's -> owner=None expires=tomorrow state=cancelled reason=cancelled error=RunCancelled
        finished_at=now -arguments
    cancelled orphan, given back -> owner=None expires=tomorrow state=cancelled reason=cancelled error=RunCancelled
        cancelled=False finished_at=now -arguments
take
    none, queued, running, cancelled, theirs, cancelled orphan, crashed, given back, over -> held
    orphan -> owner=me state=queued attempt=2 fence=4
    nobody's -> owner=me fence=4
take once more
    none, theirs, cancelled orphan, crashed, given back, over -> held
    queued, running, cancelled -> same
    orphan -> owner=me state=queued attempt=2 fence=4
    nobody's -> owner=me fence=4
let go
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued, running -> owner=''
    cancelled -> owner=?
release
    none, theirs, orphan, cancelled orphan, crashed, nobody's, given back, over -> fenced
    queued -> owner=None expires=tomorrow state=cancelled reason=cancelled error=RunCancelled finished_at=now
        -arguments
    running -> owner='' state=queued
    cancelled -> owner=None expires=tomorrow state=cancelled reason=cancelled error=RunCancelled cancelled=False
        finished_at=now -arguments
bury
    none, queued, running, cancelled, theirs, nobody's, over -> held
    orphan -> owner=''
    cancelled orphan, given back -> owner=None expires=tomorrow state=cancelled reason=cancelled error=RunCancelled
        cancelled=False finished_at=now -arguments
    crashed -> owner=None expires=tomorrow state=crashed error=RunCrashed finished_at=now -arguments
"""

SHARED_RUNS = """
share
    none -> run=run1
    this, another, good -> held
    expired -> expires=None run=run1 until=None
share for run2
    none, another -> run=run1
    this -> held
    good, expired -> expires=None run=run1 until=None
settle well
    none -> deleted
    this -> expires=later until=later
    another, good, expired -> same
settle for ever
    none -> deleted
    this, another, good, expired -> same
settle badly
    none, this -> deleted
    another, good, expired -> same
"""


CALLS = """
submit
    none -> owner=me home=me +call
    queued, running, cancelled, crashed, over -> handled
    queued there, running here, running for the dead, over there, over for the dead, to end for the dead, over all the
        same -> held
    queued by the dead -> owner=me home=me
    forsaken -> owner=me home=me state=queued worker=''
    ended for the dead -> owner=me home=me state=queued worker='' cancelled=False -error +call
adopt
    none, cancelled, forsaken, to end for the dead, ended for the dead -> absent
    queued, queued there, running, running here, crashed, over, over there -> held
    queued by the dead -> owner=me home=me
    running for the dead, over for the dead, over all the same -> home=me
hear half
    none, queued, queued there, queued by the dead, running here, running for the dead, forsaken, over, over there, over
        for the dead, to end for the dead, ended for the dead, over all the same -> fenced
    running -> heard=4 -refused
    cancelled, crashed -> heard=4
hear all
    none, queued, queued there, queued by the dead, running here, running for the dead, forsaken, over, over there, over
        for the dead, to end for the dead, ended for the dead, over all the same -> fenced
    running -> heard=5 -said -refused
    cancelled, crashed -> heard=5
refuse
    none, queued, queued there, queued by the dead, running here, running for the dead, forsaken, over, over there, over
        for the dead, to end for the dead, ended for the dead, over all the same -> fenced
    running -> heard=5 -said
    cancelled, crashed -> heard=5 +refused
cancel
    none, queued there, queued by the dead, running here, running for the dead, forsaken, over, over there, over for the
        dead, to end for the dead, ended for the dead, over all the same -> absent
    queued -> deleted
    running, crashed -> cancelled=True
    cancelled -> same
drop
    none, queued there, queued by the dead, running here, running for the dead, forsaken, over there, over for the dead,
        to end for the dead, ended for the dead, over all the same -> absent
    queued, running, cancelled, crashed, over -> deleted
bury
    none, queued, queued there, running, running here, cancelled, crashed, running for the dead, over, over there, over
        for the dead, to end for the dead, ended for the dead, over all the same -> held
    queued by the dead, forsaken -> deleted
claim
    none -> absent
    queued -> state=running worker=celery@host/9 killable=True
    queued there, queued by the dead -> owner=me state=running worker=celery@host/9 killable=True
    running, running here, cancelled, crashed, running for the dead, forsaken, over, over there, over for the dead, to
        end for the dead, ended for the dead, over all the same -> handled
tell
    none, queued, queued there, queued by the dead, running, cancelled, crashed, running for the dead, forsaken, over,
        over there, over for the dead, to end for the dead, ended for the dead, over all the same -> fenced
    running here -> percent=40 message=half said=3
say
    none, queued, queued there, queued by the dead, running, cancelled, crashed, running for the dead, forsaken, over,
        over there, over for the dead, to end for the dead, ended for the dead, over all the same -> fenced
    running here -> percent=40 message=half said=6
succeed
    none, queued, queued there, queued by the dead, running, cancelled, crashed, running for the dead, forsaken, over,
        over there, over for the dead, to end for the dead, ended for the dead, over all the same -> fenced
    running here -> owner=None expires=later state=succeeded percent=40 message=half -call +value
fail
    none, queued, queued there, queued by the dead, running, cancelled, crashed, running for the dead, forsaken, over,
        over there, over for the dead, to end for the dead, ended for the dead, over all the same -> fenced
    running here -> owner=None expires=later state=failed percent=40 message=half said=3 -call +error
lose
    none, queued, queued there, queued by the dead, over, over there, over for the dead, ended for the dead, over all
        the same -> absent
    running, running here, cancelled, crashed, running for the dead, forsaken, to end for the dead -> owner=?
lose another
    none, queued, queued there, queued by the dead, running, running here, cancelled, crashed, running for the dead,
        forsaken, over, over there, over for the dead, to end for the dead, ended for the dead, over all the same ->
        absent
"""


def rows(table, happenings, kinds):
    """What happens, the kind of the record that it happens to, both as they are, and the outcome."""
    for line in re.sub(r"\n {8}", " ", table.strip()).splitlines():  # an outcome may take several lines
        if not line.startswith(" "):
            what = line
            continue
        names, _, outcome = line.strip().partition(" -> ")
        for kind in names.split(", "):
            yield pytest.param(happenings[what], kinds[kind], outcome, id=f"{what}: {kind}")


TABLES = [
    *rows(ANSWERS, TO_ANSWERS, OF_ANSWERS), *rows(JOBS, TO_JOBS, OF_JOBS), *rows(SHARED_RUNS, TO_SHARED, OF_SHARED),
    *rows(CALLS, TO_CALLS, OF_CALLS),
]  # fmt: skip


@pytest.mark.parametrize(("happen", "record", "outcome"), TABLES)
def test_what_becomes_of_a_record(happen, record, outcome):
    assert outcome == told(record, happen(record, REVISION))


def test_the_tables_have_everything_that_may_happen_to_everything():
    """Each function, and each kind of record once."""
    pairs = [(TO_ANSWERS, OF_ANSWERS), (TO_JOBS, OF_JOBS), (TO_SHARED, OF_SHARED), (TO_CALLS, OF_CALLS)]
    wanted = [f"{what}: {kind}" for happenings, kinds in pairs for what in happenings for kind in kinds]
    assert sorted(wanted) == sorted(row.id for row in TABLES)
    tried = {happen.func for happenings, _ in pairs for happen in happenings.values()}
    assert tried == {
        value
        for module in (answers, jobs, remote)
        for value in vars(module).values()
        if isfunction(value) and value.__module__ == module.__name__ and "revision" in signature(value).parameters
    }


@pytest.mark.parametrize("lost", [{"fence": FENCE - 1}, {"fence": FENCE + 1}, {"me": OTHER}])
@pytest.mark.parametrize(
    ("happen", "record"),
    [
        pytest.param(happen, record, id=f"{what}: {kind}")
        for happenings, kinds in ((TO_ANSWERS, OF_ANSWERS), (TO_JOBS, OF_JOBS))
        for what, happen in happenings.items()
        for kind, record in kinds.items()
        if "fence" in happen.keywords and (record is None or record.owner != OTHER)
    ],
)
def test_who_has_lost_it_changes_nothing(happen, record, lost):
    """Whatever it is by now (invariants 6 and 10)."""
    assert happen(record, REVISION, **lost) is Refusal.FENCED


@pytest.mark.parametrize(
    "what", [what for what, to in TO_ANSWERS.items() if "now" in to.keywords and what != "succeed"]
)
def test_a_clock_that_was_set_back_makes_no_answer_older(what):
    """But for one that is there anew, which was used when it says that it was made."""
    for record in OF_ANSWERS.values():
        after = TO_ANSWERS[what](record, REVISION, now=second(-60))
        assert record is None or isinstance(after, Refusal) or after.used_at == record.used_at


# ------------------------------------------------------------ walks


def machine_of(kind: type[Walk]) -> type[RuleBasedStateMachine]:
    """One number for each turn: drawing its steps one by one takes three times as long."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.walk = kind()

        @rule(turn=st.integers(0, NUMBERS - 1).map(partial(turn_of, kind)))
        def step(self, turn: Any) -> None:
            self.walk.step(*turn)

        def teardown(self) -> None:
            self.walk.end()

    return Machine


@pytest.mark.slow
@pytest.mark.unhurried
@pytest.mark.parametrize("kind", WALKS)
def test_what_is_promised_holds_on_every_walk(kind):
    """
    Of several processes that die, pause, lose their leases, start again and hear of nothing, at any moment.

    At most one that lives has what it holds, and who has lost it changes nothing (invariant 6); fences and versions
    grow (10); what is left is taken once, and so often at most (14); nothing is lost, and what is over stays as it is
    (17); who asks for the same shares it.
    """
    run_state_machine_as_test(
        machine_of(kind),
        settings=settings(max_examples=1000, stateful_step_count=STEPS, deadline=None, derandomize=True),
    )
