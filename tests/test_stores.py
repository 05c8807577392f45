"""What every store promises."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from datetime import timedelta

import pytest
from bokeh.models import Div
from panel.pane import Markdown

from core import PATIENCE, START, second
from panel_schedule.errors import RunFenced, ValueRefused
from panel_schedule.run import RunRecord, RunState
from panel_schedule.stores.base import TASK, USER, Entry, Row
from panel_schedule.stores.memory import MemoryStore
from panel_schedule.triggers import Every

HISTORY = 5

MAKERS = {"memory": lambda: MemoryStore(HISTORY)}


@pytest.fixture(params=MAKERS)
def store(request):
    return MAKERS[request.param]()


def put(store, name, value, space=USER, **options):
    return store.publish(space, name, value, now=START, **options)


def record(number, reason=""):
    return RunRecord(f"run{number}", second(number), RunState.SUCCEEDED, reason=reason)


# ------------------------------------------------------------ values


def test_what_is_published_can_be_read(store):
    """The entry says what, which version, and when."""
    published = put(store, "rates", {"EUR": 1}, duration=2.5)

    assert Entry({"EUR": 1}, 1, START, 2.5, None) == published == store.entry(USER, "rates")


def test_a_value_that_is_not_there_is_none(store):
    """And no error."""
    assert store.entry(USER, "rates") is None


def test_none_is_a_value(store):
    """Its entry is there."""
    put(store, "rates", None)

    assert (None, 1) == (store.entry(USER, "rates").value, store.entry(USER, "rates").version)


def test_each_publish_is_a_version(store):
    """From 1, one by one; of each name its own."""
    versions = [put(store, name, 0).version for name in ("a", "a", "b", "a")]

    assert [1, 2, 1, 3] == versions


def test_versions_grow_also_after_a_delete(store):
    """A reader who saw version 2 never sees it again with another value (invariant 10)."""
    put(store, "rates", 1)
    put(store, "rates", 2)
    store.delete(USER, "rates")

    assert 3 == put(store, "rates", 3).version


def test_versions_grow_also_after_a_task_was_forgotten(store):
    """The next task of that name goes on."""
    put(store, "sales", 1, TASK)
    store.forget("sales")

    assert 2 == put(store, "sales", 2, TASK).version


def test_a_deleted_value_is_gone(store):
    """And deleting it once more is a KeyError that names it."""
    put(store, "rates", 1)
    store.delete(USER, "rates")

    assert (None, []) == (store.entry(USER, "rates"), list(store.names(USER)))
    with pytest.raises(KeyError) as caught:
        store.delete(USER, "rates")
    assert ("rates",) == caught.value.args


def test_the_namespaces_are_apart(store):
    """A user's name and a task's may be the same (2.2)."""
    put(store, "sales", "user's", USER)
    put(store, "sales", "task's", TASK)
    put(store, "other", 1, TASK)
    store.delete(TASK, "sales")

    assert "user's" == store.entry(USER, "sales").value
    assert (["sales"], ["other"]) == (list(store.names(USER)), list(store.names(TASK)))


def test_names_can_be_iterated_while_they_change(store):
    """It is a snapshot."""
    put(store, "a", 1)
    put(store, "b", 1)
    names = store.names(USER)
    first = next(names)
    put(store, "c", 1)
    store.delete(USER, "b")

    assert ["a", "b"] == [first, *names]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Div(), "value is a bokeh.models"),
        (Markdown("x"), "value is a panel.pane"),
        ([1, {"a": (Div(),)}], r"value\[1\]\['a'\]\[0\] is a bokeh"),
        ({"a": {"b": {Div()}}}, r"value\['a'\]\['b'\]\[0\] is a bokeh"),
    ],
    ids=["model", "pane", "nested", "set"],
)
def test_what_belongs_to_a_document_is_refused(store, value, path):
    """Name, type and path inside the value are in the message; the old value stays (invariant 11)."""
    put(store, "plots", "old")

    with pytest.raises(ValueRefused, match=rf"ps\.store\['plots'\]: {path}"):
        put(store, "plots", value)
    assert ("old", 1) == (store.entry(USER, "plots").value, store.entry(USER, "plots").version)


def test_a_refused_value_of_a_task_names_the_task(store):
    """Invariant 11."""
    with pytest.raises(ValueRefused, match="Task 'plots'"):
        put(store, "plots", Div(), TASK)


def test_a_value_that_contains_itself_is_no_trap(store):
    """Looking into it ends."""
    ring = []
    ring.append(ring)

    assert 1 == put(store, "ring", ring).version


# ------------------------------------------------------------ listeners


def test_listeners_hear_of_each_change(store):
    """With space, name and the new entry; None when it was deleted."""
    heard = []
    store.subscribe(lambda *change: heard.append(change))
    entry = put(store, "rates", 1)
    task = put(store, "sales", 2, TASK)
    store.delete(USER, "rates")

    assert [(USER, "rates", entry), (TASK, "sales", task), (USER, "rates", None)] == heard


def test_listeners_do_not_hear_of_what_was_refused(store):
    """Neither a value that is no data, nor a fenced one, nor a delete of nothing."""
    heard = []
    claim = store.claim("sales", "run", second(1))
    store.release(claim)
    store.subscribe(lambda *change: heard.append(change))
    with pytest.raises(ValueRefused):
        put(store, "plots", Div())
    with pytest.raises(RunFenced):
        put(store, "sales", 1, TASK, claim=claim)
    with pytest.raises(KeyError):
        store.delete(USER, "nothing")

    assert [] == heard


def test_a_listener_may_use_the_store(store):
    """It is called without the store's lock."""
    read = []
    store.subscribe(lambda space, name, entry: read.append(store.entry(space, name)))
    entry = put(store, "rates", 1)

    assert [entry] == read


# ------------------------------------------------------------ claims


def test_a_claim_is_exclusive(store):
    """One run holds a task; the others get None (invariant 6)."""
    first = store.claim("sales", "run1", second(1))

    assert "run1" == first.run_id
    assert [None, None] == [store.claim("sales", "run2", second(2)), store.claim("sales", "run3", None)]


def test_claims_of_different_tasks_are_apart(store):
    """Each has its own."""
    assert None not in (store.claim("sales", "run1", second(1)), store.claim("rates", "run2", second(1)))


def test_a_slot_is_claimed_once(store):
    """Also after its run has ended; earlier slots are gone with it (invariant 14)."""
    store.release(store.claim("sales", "run1", second(10)))

    claims = [store.claim("sales", "run2", second(number)) for number in (10, 9, 11)]

    assert [True, True, False] == [claim is None for claim in claims]


def test_a_refused_claim_handles_no_slot(store):
    """The slot is still there for the next one."""
    held = store.claim("sales", "run1", second(1))
    store.claim("sales", "run2", second(2))
    store.release(held)

    assert store.claim("sales", "run3", second(2)) is not None


def test_a_request_needs_no_slot(store):
    """And handles none."""
    store.release(store.claim("sales", "run1", second(10)))
    store.release(store.claim("sales", "run2", None))

    assert second(10) == (store.row("sales") or store.amend("sales", fingerprint="f", first_seen=START)).last_slot
    assert store.claim("sales", "run3", second(11)) is not None


def test_later_claims_have_later_fences(store):
    """Of one task, always, also after it was forgotten."""
    fences = []
    for number in range(3):
        claim = store.claim("sales", f"run{number}", None)
        fences.append(claim.fence)
        store.release(claim)
    store.forget("sales")
    fences.append(store.claim("sales", "after", None).fence)

    assert sorted(set(fences)) == fences


def test_the_holder_may_publish(store):
    """As often as it likes; the entries name its run."""
    claim = store.claim("sales", "run1", second(1))

    entries = [put(store, "sales", value, TASK, claim=claim) for value in (1, 2)]

    assert [(1, "run1"), (2, "run1")] == [(entry.version, entry.run_id) for entry in entries]


@pytest.mark.parametrize("how", ["released", "void", "taken over"])
def test_a_lost_claim_publishes_nothing(store, how):
    """RunFenced, and nothing changes (invariant 10)."""
    put(store, "sales", "good", TASK)
    claim = store.claim("sales", "run1", second(1))
    if how == "void":
        store.void(claim)
    else:
        store.release(claim)
    if how == "taken over":
        put(store, "sales", "newer", TASK, claim=store.claim("sales", "run2", second(2)))
    before = store.entry(TASK, "sales")

    with pytest.raises(RunFenced, match="'sales'"):
        put(store, "sales", "late", TASK, claim=claim)
    assert before == store.entry(TASK, "sales")
    assert before.version + 1 == put(store, "sales", "next", TASK).version


def test_a_void_claim_still_holds_the_task(store):
    """Until the one that void returned is released (invariant 6)."""
    claim = store.claim("sales", "run1", second(1))
    held = store.void(claim)
    refused = store.claim("sales", "run2", second(2))
    store.release(held)

    assert refused is None
    assert store.claim("sales", "run3", second(2)) is not None


def test_what_void_returns_publishes_nothing_either_if_voided_again(store):
    """Each void makes the claims before it worthless."""
    claim = store.claim("sales", "run1", second(1))
    held = store.void(claim)
    again = store.void(held)
    store.release(held)

    assert store.claim("sales", "run2", second(2)) is None
    store.release(again)
    assert store.claim("sales", "run2", second(2)) is not None


def test_voiding_a_lost_claim_takes_nothing_from_its_successor(store):
    """Harmless, like its release."""
    lost = store.claim("sales", "run1", second(1))
    store.release(lost)
    current = store.claim("sales", "run2", second(2))
    store.void(lost)
    store.release(lost)

    assert 1 == put(store, "sales", "value", TASK, claim=current).version


def test_releasing_twice_is_harmless(store):
    """Whoever has it now keeps it."""
    first = store.claim("sales", "run1", second(1))
    store.release(first)
    store.release(first)
    current = store.claim("sales", "run2", second(2))
    store.release(first)

    assert store.claim("sales", "run3", second(3)) is None
    store.release(current)


# ------------------------------------------------------------ rows


def test_a_row_is_made_by_the_first_amend(store):
    """None before."""
    before = store.row("sales")
    row = store.amend("sales", fingerprint="every", first_seen=START)

    assert (None, Row("every", START)) == (before, row)
    assert row == store.row("sales")


def test_an_amend_changes_what_it_names(store):
    """And leaves the rest."""
    store.amend("sales", fingerprint="every", first_seen=START)
    store.amend("sales", paused=True)
    row = store.amend("sales", override=Every("1h"))

    assert Row("every", START, None, True, Every("1h")) == row == store.row("sales")


def test_the_row_knows_the_last_slot(store):
    """Claimed or skipped, and whether the row was there before."""
    store.release(store.claim("sales", "run1", second(5)))
    store.amend("sales", fingerprint="every", first_seen=START)
    claimed = store.row("sales").last_slot
    skipped = store.amend("sales", last_slot=second(9)).last_slot
    reset = store.amend("sales", last_slot=None).last_slot

    assert (second(5), second(9), None) == (claimed, skipped, reset)


def test_a_slot_that_was_skipped_is_not_claimed(store):
    """It was handled; after a reset it is there again (invariant 7)."""
    store.amend("sales", fingerprint="every", first_seen=START, last_slot=second(9))
    skipped = store.claim("sales", "run1", second(9))
    store.amend("sales", last_slot=None)

    assert skipped is None
    assert store.claim("sales", "run2", second(9)) is not None


def test_rows_of_different_tasks_are_apart(store):
    """Each has its own."""
    store.amend("sales", fingerprint="a", first_seen=START)
    store.amend("rates", fingerprint="b", first_seen=second(1), paused=True)

    assert (Row("a", START), Row("b", second(1), None, True)) == (store.row("sales"), store.row("rates"))


# ------------------------------------------------------------ history


def test_the_history_has_the_newest_first(store):
    """And no more than its limit."""
    for number in range(HISTORY + 3):
        store.record("sales", record(number))

    assert [record(number) for number in range(HISTORY + 2, 2, -1)] == store.history("sales")


def test_a_task_without_runs_has_an_empty_history(store):
    """And no error."""
    assert [] == store.history("sales")


def test_a_record_can_replace_the_newest(store):
    """A stretch that goes on becomes longer instead of another one (invariant 5)."""
    store.record("sales", record(1))
    stretch = record(2, "overlap")
    store.record("sales", stretch)
    store.record("sales", record(3, "overlap"), replaces=stretch)

    assert [record(3, "overlap"), record(1)] == store.history("sales")


def test_a_record_replaces_no_other_than_the_newest(store):
    """After another record it is one of its own."""
    stretch = record(1, "overlap")
    store.record("sales", stretch)
    store.record("sales", record(2))
    store.record("sales", record(3, "overlap"), replaces=stretch)

    assert [record(3, "overlap"), record(2), stretch] == store.history("sales")


def test_a_history_that_was_read_does_not_change(store):
    """It is a snapshot."""
    store.record("sales", record(1))
    read = store.history("sales")
    store.record("sales", record(2))

    assert [record(1)] == read


def test_a_forgotten_task_leaves_nothing(store):
    """Neither value, row nor history; what others have stays."""
    for task in ("sales", "rates"):
        put(store, task, 1, TASK)
        store.amend(task, fingerprint="f", first_seen=START, last_slot=second(1))
        store.record(task, record(1))
    put(store, "sales", "user's")
    store.forget("sales")
    store.forget("sales")

    assert (None, None, []) == (store.entry(TASK, "sales"), store.row("sales"), store.history("sales"))
    assert "user's" == store.entry(USER, "sales").value
    assert (1, second(1), [record(1)]) == (
        store.entry(TASK, "rates").value,
        store.row("rates").last_slot,
        store.history("rates"),
    )


def test_a_forgotten_task_may_run_its_slots_again(store):
    """Whoever takes the name next starts afresh."""
    store.release(store.claim("sales", "run1", second(5)))
    store.forget("sales")

    assert store.claim("sales", "run2", second(5)) is not None


# ------------------------------------------------------------ threads


def hammer(count, body):
    """The same in so many threads at once; what went wrong in one of them."""
    barrier, errors = threading.Barrier(count, timeout=PATIENCE), []

    def work(number):
        try:
            barrier.wait()
            body(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 2)
    return errors


def test_many_writers_share_one_row_of_versions(store):
    """8 x 500 publishes are versions 1 to 4000, each once."""
    versions = [[] for _ in range(8)]

    errors = hammer(8, lambda n: versions[n].extend(put(store, "rates", n).version for _ in range(500)))

    assert [] == errors
    assert list(range(1, 4001)) == sorted(version for own in versions for version in own)
    assert all(own == sorted(own) for own in versions)


def test_a_slot_that_many_want_is_got_by_one(store):
    """8 threads, 300 slots: each slot is claimed once, and no two claims are held at once (invariant 14)."""
    won, holding, overlaps = [[] for _ in range(8)], [], []

    def body(number):
        for slot in range(300):
            claim = store.claim("sales", f"{number}", second(slot))
            if claim is not None:
                if holding:
                    overlaps.append(slot)
                holding.append(number)
                won[number].append((slot, claim.fence))
                holding.remove(number)
                store.release(claim)

    errors = hammer(8, body)
    slots = [slot for own in won for slot, _ in own]
    fences = [fence for own in won for _, fence in own]

    assert ([], []) == (errors, overlaps)
    assert len(set(slots)) == len(slots)
    assert 299 in slots
    assert len(set(fences)) == len(fences)


def test_nothing_that_lost_its_claim_gets_through(store):
    """While one thread voids claims at random, each value in the store was published by a holder."""
    stop, chance, wrong = threading.Event(), random.Random(3), []

    def body(number):
        if number == 0:
            for _ in range(3000):
                claim = store.claim("sales", "runner", None)
                if claim is None:
                    continue
                fate = chance.random()
                held = store.void(claim) if fate < 0.5 else claim
                try:
                    put(store, "sales", claim.fence, TASK, claim=claim)
                    if fate < 0.5:
                        wrong.append(claim)
                except RunFenced:
                    if fate >= 0.5:
                        wrong.append(claim)
                store.release(held)
            stop.set()
        else:
            last = 0
            while not stop.is_set():
                entry = store.entry(TASK, "sales")
                if entry is not None:
                    if entry.version < last or entry.value < entry.version:
                        wrong.append(entry)
                    last = entry.version

    errors = hammer(3, body)

    assert ([], []) == (errors, wrong)


def test_readers_never_see_half_an_entry(store):
    """Value, version and time belong together (invariant 8)."""
    stop, wrong = threading.Event(), []

    def body(number):
        if number == 0:
            for count in range(1, 3000):
                store.publish(USER, "rates", count, now=START + timedelta(seconds=count))
            stop.set()
        else:
            while not stop.is_set():
                entry = store.entry(USER, "rates")
                if entry is not None and not (entry.value == entry.version and second(entry.value) == entry.updated_at):
                    wrong.append(entry)

    errors = hammer(3, body)

    assert ([], []) == (errors, wrong)


def test_everything_at_once_breaks_nothing(store):
    """All that a store can do, from six threads."""
    names = ["a", "b", "c"]

    def body(number):
        chance = random.Random(number)
        for step in range(400):
            name = chance.choice(names)
            match chance.randrange(9):
                case 0:
                    put(store, name, step)
                case 1:
                    with suppress(KeyError):
                        store.delete(USER, name)
                case 2:
                    list(store.names(USER))
                case 3:
                    store.amend(name, fingerprint="f", first_seen=START, last_slot=second(step))
                case 4:
                    store.row(name)
                case 5:
                    store.record(name, record(step))
                case 6:
                    store.history(name)
                case 7:
                    store.forget(name)
                case 8:
                    claim = store.claim(name, f"{number}", None)
                    if claim is not None:
                        put(store, name, step, TASK, claim=claim)
                        store.release(claim)

    assert [] == hammer(6, body)
    assert all(store.claim(name, "last", None) is not None for name in names)
