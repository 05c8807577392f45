"""What every store promises, as tests: the author of a backend subclasses :class:`StoreContract`."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from bokeh.models.widgets import Div
from panel.pane import Markdown

from .entry import Entry
from .errors import RunFenced, ValueRefused
from .run import RunRecord, RunState
from .stores.base import TASK, USER, Claim, Plan, Refusal, Store
from .triggers import Dates, Every, Trigger

START = datetime(2026, 1, 1, tzinfo=UTC)
HOURLY, DAILY = Every("1h"), Every("1d")

# What a thread of a test gets at most, in seconds.
PATIENCE = 20.0


def second(number: float) -> datetime:
    """So many seconds after the beginning of a test."""
    return START + timedelta(seconds=number)


@contextmanager
def raises(kind: type[BaseException], *words: str) -> Iterator[None]:
    """Fail unless such an error is raised that says all of this; for those who have no pytest."""
    caught: BaseException | None = None
    try:
        yield
    except kind as error:
        caught = error
    assert caught is not None, f"no {kind.__name__}"
    assert all(word in str(caught) for word in words), f"{caught!r} lacks one of {words}"


def put(store: Store, name: str, value: Any, space: str = USER, **options: Any) -> Entry:
    return store.publish(space, name, value, now=START, **options)


def claim(store: Store, task: str, run_id: str = "run", at: float = 0, **options: Any) -> Claim:
    """The claim, which has to be free."""
    got = store.claim(task, run_id, now=second(at), **options)
    assert isinstance(got, Claim), got
    return got


def refusal(store: Store, task: str, **options: Any) -> Any:
    """Why there is no claim; None where there is one, which is given back."""
    got = store.claim(task, "asking", now=START, **options)
    if isinstance(got, Claim):
        store.release(got)
        return None
    return got


def enroll(store: Store, task: str, trigger: Trigger = HOURLY, at: float = 0, **how: bool) -> Any:
    return store.enroll([Plan(task, trigger, second(at))], **how)[task]


def ended(number: int, state: RunState = RunState.SUCCEEDED, **more: Any) -> RunRecord:
    return RunRecord(f"run{number}", second(number), state, finished_at=second(number), **more)


def skipped(first: int, last: int, reason: str = "overlap") -> RunRecord:
    return ended(first, RunState.SKIPPED, reason=reason, until=second(last))


def hammer(count: int, body: Callable[[int], object]) -> list[BaseException]:
    """The same in so many threads at once; what went wrong in one of them."""
    barrier, errors = threading.Barrier(count, timeout=PATIENCE), list[BaseException]()

    def work(number: int) -> None:
        try:
            barrier.wait()
            body(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    return errors


class StoreContract:
    """
    The promises of :class:`~panel_schedule.stores.base.Store`.

    A subclass has a fixture `store`: a new, empty store whose histories keep `history_limit` records.

    Attributes
    ----------
    history_limit : int
    scale : int
        How often the tests with many threads do what they do.

    Examples
    --------
    >>> class TestMyStore(StoreContract):          # doctest: +SKIP
    ...     @pytest.fixture
    ...     def store(self):
    ...         return MyStore(history_limit=self.history_limit)
    """

    history_limit = 5
    scale = 300

    # ------------------------------------------------------------ values

    def test_what_is_published_can_be_read(self, store: Store) -> None:
        """The entry says what, which version, and when."""
        published = put(store, "rates", {"EUR": 1}, duration=2.5)
        assert store.entry(USER, "rates") == published == Entry({"EUR": 1}, 1, START, 2.5, None)

    def test_a_value_that_is_not_there_is_none(self, store: Store) -> None:
        """And no error."""
        assert store.entry(USER, "rates") is None

    def test_none_is_a_value(self, store: Store) -> None:
        """Its entry is there."""
        put(store, "rates", None)
        entry = store.entry(USER, "rates")
        assert entry is not None
        assert (entry.value, entry.version) == (None, 1)

    def test_a_large_value_comes_back(self, store: Store) -> None:
        """Whatever becomes of it on the way, and that of the one before."""
        for number in range(3):
            put(store, "numbers", np.full(200_000, number))
            entry = store.entry(USER, "numbers")
            assert entry is not None
            assert entry.value.tolist() == [number] * 200_000

    def test_each_publish_is_a_version(self, store: Store) -> None:
        """From 1, one by one; of each name its own."""
        assert [put(store, name, 0).version for name in ("a", "a", "b", "a")] == [1, 2, 1, 3]

    def test_versions_grow_also_after_a_delete(self, store: Store) -> None:
        """A reader who saw version 2 never sees it again with another value (invariant 10)."""
        put(store, "rates", 1)
        put(store, "rates", 2)
        store.delete(USER, "rates")
        assert put(store, "rates", 3).version == 3

    def test_versions_grow_also_after_a_task_was_forgotten(self, store: Store) -> None:
        """The next task of that name goes on."""
        put(store, "sales", 1, TASK)
        store.forget("sales")
        assert put(store, "sales", 2, TASK).version == 2

    def test_a_deleted_value_is_gone(self, store: Store) -> None:
        """And deleting it once more is a KeyError that names it."""
        put(store, "rates", 1)
        store.delete(USER, "rates")
        assert (store.entry(USER, "rates"), list(store.names(USER))) == (None, [])
        with raises(KeyError, "rates"):
            store.delete(USER, "rates")

    def test_the_namespaces_are_apart(self, store: Store) -> None:
        """A user's name and a task's may be the same (2.2)."""
        put(store, "sales", "user's", USER)
        put(store, "sales", "task's", TASK)
        put(store, "other", 1, TASK)
        store.delete(TASK, "sales")
        entry = store.entry(USER, "sales")
        assert entry is not None
        assert (entry.value, store.entry(TASK, "sales")) == ("user's", None)
        assert (list(store.names(USER)), list(store.names(TASK))) == (["sales"], ["other"])

    def test_names_can_be_iterated_while_they_change(self, store: Store) -> None:
        """It is a snapshot."""
        put(store, "a", 1)
        put(store, "b", 1)
        names = store.names(USER)
        first = next(names)
        put(store, "c", 1)
        store.delete(USER, "b")
        assert sorted([first, *names]) == ["a", "b"]

    def test_what_belongs_to_a_document_is_refused(self, store: Store) -> None:
        """Name, type and path inside the value are in the message; the old value stays (invariant 11)."""
        kept = put(store, "plots", "old")
        for value, path in (
            (Div(), "value is a bokeh.models"),
            (Markdown("x"), "value is a panel.pane"),
            ([1, {"a": (Div(),)}], "value[1]['a'][0] is a bokeh"),
            ({"a": {"b": {Div()}}}, "value['a']['b'][0] is a bokeh"),
        ):
            with raises(ValueRefused, f"ps.store['plots']: {path}"):
                put(store, "plots", value)
        assert store.entry(USER, "plots") == kept
        with raises(ValueRefused, "Task 'plots'"):
            put(store, "plots", Div(), TASK)

    def test_a_value_that_contains_itself_is_no_trap(self, store: Store) -> None:
        """Looking into it ends."""
        ring: list[Any] = []
        ring.append(ring)
        assert put(store, "ring", ring).version == 1

    def test_private_copies_are_apart(self, store: Store) -> None:
        """What is written into one is seen neither in another nor in the value that all share."""
        store.isolate("sales")
        for size in (3, 200_000):
            entry = put(store, "sales", {"numbers": np.zeros(size)}, TASK)
            mine, other = entry.source.load(), entry.source.load()
            mine["numbers"][:] = 1
            mine["more"] = True
            for value in (other, entry.value, entry.source.load()):
                assert list(value) == ["numbers"]
                assert value["numbers"].sum() == 0

    # ------------------------------------------------------------ listeners

    def test_listeners_hear_of_each_change(self, store: Store) -> None:
        """With space, name and the new entry; None when it was deleted."""
        heard: list[Any] = []
        store.subscribe(lambda *change: heard.append(change))
        entry, task = put(store, "rates", 1), put(store, "sales", 2, TASK)
        store.delete(USER, "rates")
        assert heard == [(USER, "rates", entry), (TASK, "sales", task), (USER, "rates", None)]

    def test_listeners_do_not_hear_of_what_was_refused(self, store: Store) -> None:
        """Neither a value that is no data, nor a fenced one, nor a delete of nothing."""
        heard: list[Any] = []
        lost = claim(store, "sales")
        store.release(lost)
        store.subscribe(lambda *change: heard.append(change))
        with raises(ValueRefused):
            put(store, "plots", Div())
        with raises(RunFenced):
            put(store, "sales", 1, TASK, claim=lost)
        with raises(KeyError):
            store.delete(USER, "nothing")
        assert heard == []

    def test_a_listener_may_use_the_store(self, store: Store) -> None:
        """It is called without the store's lock."""
        read: list[Any] = []
        store.subscribe(lambda space, name, entry: read.append(store.entry(space, name)))
        entry = put(store, "rates", 1)
        assert read == [entry]

    # ------------------------------------------------------------ claims

    def test_a_claim_is_exclusive(self, store: Store) -> None:
        """One run holds a task, the others are told so; each task has its own (invariant 6)."""
        got = claim(store, "sales", "run1", mark=second(1))
        assert (got.task, got.run_id, got.attempt) == ("sales", "run1", 1)
        assert refusal(store, "sales", mark=second(2)) == refusal(store, "sales") == Refusal.HELD
        assert refusal(store, "rates", mark=second(1)) is None

    def test_a_slot_is_claimed_once(self, store: Store) -> None:
        """Also after its run has ended; earlier slots are gone with it (invariant 14)."""
        store.release(claim(store, "sales", mark=second(10)))
        answers = [refusal(store, "sales", mark=second(number)) for number in (10, 9, 11)]
        assert answers == [Refusal.HANDLED, Refusal.HANDLED, None]

    def test_an_upstreams_versions_are_claimed_once(self, store: Store) -> None:
        """As a slot is."""
        store.release(claim(store, "sales", mark=10))
        answers = [refusal(store, "sales", mark=number) for number in (10, 9, 11)]
        assert answers == [Refusal.HANDLED, Refusal.HANDLED, None]

    def test_a_run_can_see_more_of_its_upstream(self, store: Store) -> None:
        """Those versions are handled with it; a claim that is lost handles nothing."""
        held = claim(store, "sales", mark=3)
        store.advance(held, 5)
        store.release(held)
        store.advance(held, 9)
        assert [refusal(store, "sales", mark=number) for number in (5, 6)] == [Refusal.HANDLED, None]

    def test_a_refused_claim_handles_no_slot(self, store: Store) -> None:
        """The slot is still there for the next one."""
        held = claim(store, "sales", mark=second(1))
        assert refusal(store, "sales", mark=second(2)) == Refusal.HELD
        store.release(held)
        assert refusal(store, "sales", mark=second(2)) is None

    def test_a_request_needs_no_slot(self, store: Store) -> None:
        """And handles none."""
        enroll(store, "sales")
        store.release(claim(store, "sales", mark=second(10)))
        store.release(claim(store, "sales"))
        row = store.row("sales")
        assert row is not None
        assert row.last_slot == second(10)
        assert refusal(store, "sales", mark=second(11)) is None

    def test_a_first_run_is_for_nothing_where_there_is_a_value(self, store: Store) -> None:
        """Another process was quicker; the slot is not used up."""
        assert refusal(store, "sales", mark=second(1), first=True) is None
        put(store, "sales", 1, TASK)
        assert refusal(store, "sales", mark=second(2), first=True) == Refusal.HANDLED
        assert refusal(store, "sales", mark=second(2)) is None

    def test_later_claims_have_later_fences(self, store: Store) -> None:
        """Of one task, always, also after it was forgotten."""
        fences = []
        for number in range(4):
            if number == 3:
                store.forget("sales")
                enroll(store, "sales", late=True)
            held = claim(store, "sales", f"run{number}")
            fences.append(held.fence)
            store.release(held)
        assert fences == sorted(set(fences))

    def test_the_holder_may_publish(self, store: Store) -> None:
        """As often as it likes; the entries name its run and its wave."""
        held = claim(store, "sales", "run1", mark=second(1), wave=second(1))
        entries = [put(store, "sales", value, TASK, claim=held) for value in (1, 2)]
        found = [(entry.version, entry.run_id, entry.wave) for entry in entries]
        assert found == [(1, "run1", second(1)), (2, "run1", second(1))]

    def test_a_lost_claim_publishes_nothing(self, store: Store) -> None:
        """RunFenced, and nothing changes, however it was lost (invariant 10)."""
        for task, lose in (
            ("released", store.release),
            ("void", store.void),
            ("handed over", store.hand_over),
            ("forgotten", lambda lost: store.forget(lost.task)),
        ):
            enroll(store, task)
            put(store, task, "good", TASK)
            lost = claim(store, task)
            lose(lost)
            before = store.entry(TASK, task)
            with raises(RunFenced, repr(task)):
                put(store, task, "late", TASK, claim=lost)
            with raises(RunFenced, repr(task)):
                store.seal(lost)
            assert store.entry(TASK, task) == before
            assert put(store, task, "next", TASK).version == 2

    def test_a_claim_that_another_run_has_by_now_publishes_nothing(self, store: Store) -> None:
        """The newer value stays."""
        lost = claim(store, "sales", "run1")
        store.release(lost)
        newer = put(store, "sales", "newer", TASK, claim=claim(store, "sales", "run2"))
        with raises(RunFenced):
            put(store, "sales", "late", TASK, claim=lost)
        assert store.entry(TASK, "sales") == newer

    def test_a_void_claim_still_holds_the_task(self, store: Store) -> None:
        """Until the one that void returned is released (invariant 6)."""
        held = store.void(claim(store, "sales"))
        assert refusal(store, "sales") == Refusal.HELD
        store.release(store.void(held))
        assert refusal(store, "sales") is None

    def test_what_is_done_with_a_lost_claim_takes_nothing_from_its_successor(self, store: Store) -> None:
        """Void, release, hand over and advance are harmless."""
        lost = claim(store, "sales", "run1", mark=1)
        store.release(lost)
        current = claim(store, "sales", "run2", mark=2)
        store.void(lost)
        store.release(lost)
        store.hand_over(lost)
        store.advance(lost, 9)
        assert refusal(store, "sales") == Refusal.HELD
        assert put(store, "sales", "value", TASK, claim=current).version == 1
        store.release(current)
        assert refusal(store, "sales", mark=3) is None

    def test_a_run_that_is_handed_over_can_be_had(self, store: Store) -> None:
        """By whoever takes it over, or, where it cannot outlive the process, by the next claim."""
        store.hand_over(claim(store, "sales", "run1", mark=second(1), key=second(1)))
        taken = store.take_over("sales", second(2))
        if taken is None:
            taken = claim(store, "sales", "run2")
        assert isinstance(taken, Claim)
        assert put(store, "sales", 1, TASK, claim=taken).run_id == taken.run_id

    def test_a_live_run_is_not_taken_over(self, store: Store) -> None:
        """However long it takes."""
        held = claim(store, "sales")
        assert store.take_over("sales", second(10**6)) is None
        assert put(store, "sales", 1, TASK, claim=held).version == 1

    def test_the_last_value_of_several_can_be_made_the_final_one(self, store: Store) -> None:
        """The same version, and listeners hear of it."""
        heard: list[Any] = []
        store.subscribe(lambda space, name, entry: heard.append((entry and entry.version, entry and entry.final)))
        held = claim(store, "sales")
        assert not put(store, "sales", 1, TASK, claim=held, final=False).final
        sealed, entry = store.seal(held), store.entry(TASK, "sales")
        assert sealed is not None
        assert sealed == entry
        assert (sealed.value, sealed.version, sealed.final) == (1, 1, True)
        assert heard == [(1, False), (1, True)]

    def test_progress_and_cancel_of_a_run_that_is_over_are_harmless(self, store: Store) -> None:
        """They come late."""
        held = claim(store, "sales", "run1")
        store.progress(held, 50, "half")
        store.cancel("sales", "run1")
        store.release(held)
        store.progress(held, 60, "more")
        store.cancel("sales", "run1")
        assert refusal(store, "sales") is None

    # ------------------------------------------------------------ schedules

    def test_a_schedule_is_remembered_with_the_instant_at_which_it_came(self, store: Store) -> None:
        """Only slots after that can be missed; enrolled again it is the same (invariant 5)."""
        assert store.row("sales") is None
        for at in (1, 9):
            row = enroll(store, "sales", HOURLY, at)
            assert (row.fingerprint, row.first_seen, row.last_slot) == (HOURLY.fingerprint, second(1), None)
            assert (row.override, row.gave_way, row.trigger) == (None, None, None)

    def test_many_are_enrolled_at_once(self, store: Store) -> None:
        """Each has its row."""
        rows = store.enroll(Plan(f"task{number}", Every(number), second(number)) for number in range(1, 4))
        assert {name: row.first_seen for name, row in rows.items()} == {f"task{n}": second(n) for n in range(1, 4)}

    def test_a_task_that_is_defined_anew_has_the_new_schedule(self, store: Store) -> None:
        """A reschedule gives way, and is named; a pause stays, and nothing of the old schedule can be missed."""
        enroll(store, "sales", HOURLY)
        store.release(claim(store, "sales", mark=second(5)))
        store.amend("sales", reschedule=Every("5m"), now=second(6), paused=True)
        row = enroll(store, "sales", DAILY, 7, again=True)
        assert (row.fingerprint, row.first_seen, row.last_slot) == (DAILY.fingerprint, second(7), None)
        assert (row.override, row.gave_way, row.paused) == (None, Every("5m"), True)
        assert enroll(store, "sales", DAILY, 8, again=True).gave_way is None

    def test_a_task_that_is_defined_anew_with_its_schedule_keeps_it(self, store: Store) -> None:
        """And a reschedule, and the slots that were handled."""
        enroll(store, "sales", HOURLY)
        store.release(claim(store, "sales", mark=second(5)))
        store.amend("sales", reschedule=Every("5m"), now=second(6))
        row = enroll(store, "sales", HOURLY, 7, again=True)
        assert (row.override, row.gave_way, row.last_slot) == (Every("5m"), None, second(5))

    def test_a_reschedule_counts_from_its_instant(self, store: Store) -> None:
        """And stays when the task is enrolled as before."""
        enroll(store, "sales", HOURLY)
        store.amend("sales", reschedule=Every("5m"), now=second(6))
        for row in (store.row("sales"), enroll(store, "sales", HOURLY, 7)):
            assert row is not None
            assert (row.override, row.first_seen, row.gave_way) == (Every("5m"), second(6), None)

    def test_an_amend_changes_what_it_names(self, store: Store) -> None:
        """And leaves the rest; of a task that nobody has enrolled it changes nothing."""
        enroll(store, "sales")
        changes: list[tuple[dict[str, Any], tuple[bool, bool]]] = [
            ({"paused": True}, (True, False)),
            ({"removed": True}, (True, True)),
            ({"paused": False}, (False, True)),
            ({"removed": False}, (False, False)),
        ]
        for change, expected in changes:
            store.amend("sales", **change)
            row = store.row("sales")
            assert row is not None
            assert (row.paused, row.removed) == expected
        store.amend("nobody", paused=True)
        assert store.row("nobody") is None

    def test_a_slot_that_was_skipped_is_not_claimed(self, store: Store) -> None:
        """It was handled, unless another one has handled it first: that is compared and set (invariant 7)."""
        enroll(store, "sales")
        assert store.record("sales", skipped(1, 9), second(9))
        assert not store.record("sales", skipped(8, 9, "missed"), second(9))
        assert [refusal(store, "sales", mark=second(number)) for number in (9, 10)] == [Refusal.HANDLED, None]
        assert store.history("sales") == [skipped(1, 9)]

    def test_when_the_clock_steps_back_the_slots_run_again(self, store: Store) -> None:
        """Those that are to come once more; it is told once (invariant 7)."""
        enroll(store, "sales")
        store.release(claim(store, "sales", mark=second(100)))
        assert (store.rewind("sales", second(50)), store.rewind("sales", second(50))) == (True, False)
        row = store.row("sales")
        assert row is not None
        assert (row.first_seen, row.last_slot) == (second(50), None)
        assert refusal(store, "sales", mark=second(60)) is None
        assert not store.rewind("sales", second(70))

    def test_a_step_back_to_before_the_schedule_came(self, store: Store) -> None:
        """Its slots count from there."""
        enroll(store, "sales", at=100)
        assert (store.rewind("sales", second(50)), store.rewind("sales", second(50))) == (True, False)
        row = store.row("sales")
        assert row is not None
        assert row.first_seen == second(50)
        assert not store.rewind("nobody", second(0))

    def test_one_process_says_that_a_value_is_stale(self, store: Store) -> None:
        """And one that it is no longer."""
        enroll(store, "sales")
        answers = [store.flip("sales", stale) for stale in (False, True, True, False, False, True)]
        assert answers == [False, True, False, True, False, True]

    def test_who_looks_on_here_is_known_here(self, store: Store) -> None:
        """A row counts the viewers of other processes."""
        enroll(store, "sales")
        store.watch("sales", 3)
        row = store.row("sales")
        assert row is not None
        assert row.viewers == 0

    def test_a_forgotten_task_leaves_nothing(self, store: Store) -> None:
        """Neither value nor history nor schedule; what others have stays."""
        for task in ("sales", "rates"):
            put(store, task, 1, TASK)
            enroll(store, task, HOURLY)
            store.amend(task, paused=True, reschedule=Every("5m"), now=second(2))
            store.release(claim(store, task, mark=second(1)))
            store.record(task, ended(1))
            store.flip(task, True)
        put(store, "sales", "user's")
        store.forget("sales")
        store.forget("sales")
        assert (store.entry(TASK, "sales"), store.history("sales")) == (None, [])
        assert list(store.names(TASK)) == ["rates"]
        row = enroll(store, "sales", HOURLY, 9, late=True)
        assert (row.first_seen, row.last_slot, row.paused, row.forgotten) == (second(9), None, False, False)
        assert (row.override, row.gave_way, row.outcome, row.error) == (None, None, None, "")
        assert store.flip("sales", True)
        user, other, rates = store.entry(USER, "sales"), store.entry(TASK, "rates"), store.row("rates")
        assert user is not None
        assert other is not None
        assert rates is not None
        assert (user.value, other.value, rates.last_slot) == ("user's", 1, second(1))
        assert store.history("rates") == [ended(1)]

    def test_a_forgotten_task_that_comes_back_may_run_its_slots_again(self, store: Store) -> None:
        """Whoever takes the name next starts afresh, and need not wait for a run of the former one."""
        enroll(store, "sales")
        claim(store, "sales", mark=second(5))
        store.forget("sales")
        enroll(store, "sales", late=True)
        assert refusal(store, "sales", mark=second(5)) is None

    def test_dates_are_a_schedule(self, store: Store) -> None:
        """They come back as they were given."""
        dates = Dates([second(5), second(9)])
        enroll(store, "sales", HOURLY)
        store.amend("sales", reschedule=dates, now=second(1))
        row = store.row("sales")
        assert row is not None
        assert row.override == dates

    # ------------------------------------------------------------ history

    def test_the_history_has_the_newest_first(self, store: Store) -> None:
        """And no more than its limit; nothing where there were no runs."""
        assert store.history("sales") == []
        for number in range(self.history_limit + 3):
            assert store.record("sales", ended(number))
        read = store.history("sales")
        store.record("sales", ended(99))
        assert read == [ended(number) for number in range(self.history_limit + 2, 2, -1)]

    def test_a_record_comes_back_whole(self, store: Store) -> None:
        """Each of its facts."""
        record = RunRecord(
            "run", "key", RunState.FAILED, 2, second(1), second(2), second(3), "ValueError: no", "reason", second(4)
        )
        store.record("sales", record)
        assert store.history("sales") == [record]

    def test_a_skipped_stretch_that_goes_on_becomes_longer(self, store: Store) -> None:
        """For one reason; after another record it is one of its own (invariant 5)."""
        enroll(store, "sales")
        new = [store.record("sales", skipped(at, at, why)) for at, why in enumerate(["overlap", "overlap", "paused"])]
        store.record("sales", ended(3))
        new.append(store.record("sales", skipped(4, 4, "paused")))
        assert new == [True, False, True, True]
        stretches = [(record.key, record.until, record.reason) for record in store.history("sales")]
        assert stretches == [
            (second(4), second(4), "paused"),
            (second(3), None, ""),
            (second(2), second(2), "paused"),
            (second(0), second(1), "overlap"),
        ]

    # ------------------------------------------------------------ threads

    def test_many_writers_share_one_row_of_versions(self, store: Store) -> None:
        """Each version is got once, and each writer's own grow."""
        versions: list[list[int]] = [[] for _ in range(8)]
        rounds = self.scale // 4
        errors = hammer(8, lambda n: versions[n].extend(put(store, "rates", n).version for _ in range(rounds)))
        assert errors == []
        assert sorted(version for own in versions for version in own) == list(range(1, 8 * rounds + 1))
        assert all(own == sorted(own) for own in versions)

    def test_large_values_that_are_written_at_once_are_all_whole(self, store: Store) -> None:
        """Nobody gets an error because another one was quicker."""
        wrong: list[Any] = []

        def body(number: int) -> None:
            for _ in range(self.scale // 20):
                entries = put(store, "numbers", np.full(20_000, number)), store.entry(USER, "numbers")
                wrong.extend(entry for entry in entries if entry is None or len(set(entry.value.tolist())) != 1)

        assert (hammer(4, body), wrong) == ([], [])

    def test_a_slot_that_many_want_is_got_by_one(self, store: Store) -> None:
        """Each slot is claimed once, and no two claims are held at once (invariant 14)."""
        won: list[tuple[int, int]] = []
        holding: list[int] = []
        overlaps: list[int] = []

        def body(number: int) -> None:
            for slot in range(self.scale):
                held = store.claim("sales", f"{number}", now=START, mark=second(slot))
                if isinstance(held, Claim):
                    overlaps.extend(holding)
                    holding.append(number)
                    won.append((slot, held.fence))
                    holding.remove(number)
                    store.release(held)

        errors = hammer(8, body)
        slots, fences = [slot for slot, _ in won], [fence for _, fence in won]
        assert (errors, overlaps) == ([], [])
        assert len(set(slots)) == len(slots)
        assert self.scale - 1 in slots
        assert len(set(fences)) == len(fences)

    def test_nothing_that_lost_its_claim_gets_through(self, store: Store) -> None:
        """While one thread voids claims at random, each value in the store was published by a holder."""
        stop, chance, wrong = threading.Event(), random.Random(3), list[Any]()

        def run() -> None:
            for _ in range(self.scale):
                held = claim(store, "sales", "runner")
                lost = chance.random() < 0.5
                release = store.void(held) if lost else held
                try:
                    put(store, "sales", held.fence, TASK, claim=held)
                    wrong.extend([held] if lost else [])
                except RunFenced:
                    wrong.extend([] if lost else [held])
                store.release(release)

        def body(number: int) -> None:
            if number == 0:
                try:
                    run()
                finally:
                    stop.set()
            last = 0
            while not stop.is_set():
                entry = store.entry(TASK, "sales")
                if entry is not None:
                    if entry.version < last or entry.value < entry.version:
                        wrong.append(entry)
                    last = entry.version

        assert (hammer(3, body), wrong) == ([], [])

    def test_readers_never_see_half_an_entry(self, store: Store) -> None:
        """Value, version and time belong together (invariant 8)."""
        stop, wrong = threading.Event(), list[Any]()

        def body(number: int) -> None:
            if number == 0:
                for count in range(1, self.scale):
                    store.publish(USER, "rates", count, now=second(count))
                stop.set()
            while not stop.is_set():
                entry = store.entry(USER, "rates")
                if entry is not None and not (entry.value == entry.version and second(entry.value) == entry.updated_at):
                    wrong.append(entry)

        assert (hammer(3, body), wrong) == ([], [])

    def test_a_lock_of_the_listener_is_no_trap(self, store: Store) -> None:
        """A listener takes a (reentrant) lock under which others use the store: nobody waits for ever."""
        lock = threading.RLock()

        def listener(*change: Any) -> None:
            with lock:
                pass

        store.subscribe(listener)

        def body(number: int) -> None:
            for count in range(self.scale // 10):
                if number % 2:
                    put(store, "rates", count)
                    store.row("sales")
                else:
                    with lock:
                        store.entry(USER, "rates")
                        store.entry(TASK, f"{number} {count}")

        assert hammer(4, body) == []

    def test_everything_at_once_breaks_nothing(self, store: Store) -> None:
        """All that a store can do, from six threads."""
        names = ["a", "b", "c"]

        def body(number: int) -> None:
            chance = random.Random(number)
            for step in range(self.scale // 5):
                name = chance.choice(names)
                match chance.randrange(11):
                    case 0:
                        put(store, name, step)
                    case 1:
                        with suppress(KeyError):
                            store.delete(USER, name)
                    case 2:
                        list(store.names(USER))
                    case 3:
                        enroll(store, name, late=True)
                    case 4:
                        store.row(name)
                    case 5:
                        store.record(name, skipped(step, step), second(step))
                    case 6:
                        store.history(name)
                    case 7:
                        store.forget(name)
                    case 8:
                        store.amend(name, paused=True, reschedule=DAILY, now=second(step))
                    case 9:
                        store.rewind(name, second(step))
                    case 10:
                        held = store.claim(name, f"{number} {step}", now=START)
                        if isinstance(held, Claim):
                            with suppress(RunFenced):  # it was forgotten
                                put(store, name, step, TASK, claim=held)
                            store.release(held)

        assert hammer(6, body) == []
        for name in names:
            enroll(store, name, late=True)
            assert refusal(store, name) is None
