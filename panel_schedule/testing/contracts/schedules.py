"""What every store promises of schedules, as tests."""

from __future__ import annotations

from typing import Any

from ...coordination.record import Refusal
from ...coordination.tasks import TASK, USER
from ...stores.base import Store
from ...stores.tasks import Plan
from ...triggers import Dates, Every
from .tools import DAILY, HOURLY, claim, ended, enroll, entry_of, put, refusal, row_of, second, skipped


class ScheduleContract:
    """A schedule is remembered, with what was changed about it and which of its slots were handled."""

    def test_a_schedule_is_remembered_with_the_instant_at_which_it_came(self, store: Store) -> None:
        """Only slots after that can be missed; enrolled again it is the same (invariant 5)."""
        assert store.tasks.row("sales") is None
        for at in (1, 9):
            row = enroll(store, "sales", HOURLY, at)
            assert (row.fingerprint, row.first_seen, row.last_slot) == (HOURLY.fingerprint, second(1), None)
            assert (row.override, row.gave_way, row.trigger) == (None, None, None)

    def test_many_are_enrolled_at_once(self, store: Store) -> None:
        """Each has its row."""
        rows = store.tasks.enroll(Plan(f"task{number}", Every(number), second(number)) for number in range(1, 4))
        assert {name: row.first_seen for name, row in rows.items()} == {f"task{n}": second(n) for n in range(1, 4)}

    def test_a_task_that_is_defined_anew_has_the_new_schedule(self, store: Store) -> None:
        """A reschedule gives way, and is named; a pause stays, and nothing of the old schedule can be missed."""
        enroll(store, "sales", HOURLY)
        store.do(store.tasks.release(claim(store, "sales", mark=second(5))))
        store.tasks.amend("sales", reschedule=Every("5m"), now=second(6), paused=True)
        row = enroll(store, "sales", DAILY, 7, again=True)
        assert (row.fingerprint, row.first_seen, row.last_slot) == (DAILY.fingerprint, second(7), None)
        assert (row.override, row.gave_way, row.paused) == (None, Every("5m"), True)
        assert enroll(store, "sales", DAILY, 8, again=True).gave_way is None

    def test_a_task_that_is_defined_anew_with_its_schedule_keeps_it(self, store: Store) -> None:
        """And a reschedule, and the slots that were handled."""
        enroll(store, "sales", HOURLY)
        store.do(store.tasks.release(claim(store, "sales", mark=second(5))))
        store.tasks.amend("sales", reschedule=Every("5m"), now=second(6))
        row = enroll(store, "sales", HOURLY, 7, again=True)
        assert (row.override, row.gave_way, row.last_slot) == (Every("5m"), None, second(5))

    def test_a_reschedule_counts_from_its_instant(self, store: Store) -> None:
        """And stays when the task is enrolled as before."""
        enroll(store, "sales", HOURLY)
        store.tasks.amend("sales", reschedule=Every("5m"), now=second(6))
        for row in (row_of(store, "sales"), enroll(store, "sales", HOURLY, 7)):
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
            store.tasks.amend("sales", **change)
            row = row_of(store, "sales")
            assert (row.paused, row.removed) == expected
        store.tasks.amend("nobody", paused=True)
        assert store.tasks.row("nobody") is None

    def test_a_slot_that_was_skipped_is_not_claimed(self, store: Store) -> None:
        """It was handled, unless another one has handled it first: that is compared and set (invariant 7)."""
        enroll(store, "sales")
        assert store.do(store.tasks.record("sales", skipped(1, 9), second(9)))
        assert not store.do(store.tasks.record("sales", skipped(8, 9, "missed"), second(9)))
        assert [refusal(store, "sales", mark=second(number)) for number in (9, 10)] == [Refusal.HANDLED, None]
        assert store.history("sales") == [skipped(1, 9)]

    def test_when_the_clock_steps_back_the_slots_run_again(self, store: Store) -> None:
        """Those that are to come once more; it is told once (invariant 7)."""
        enroll(store, "sales")
        store.do(store.tasks.release(claim(store, "sales", mark=second(100))))
        assert [store.do(store.tasks.rewind("sales", second(50))) for _ in range(2)] == [True, False]
        row = row_of(store, "sales")
        assert (row.first_seen, row.last_slot) == (second(50), None)
        assert refusal(store, "sales", mark=second(60)) is None
        assert not store.do(store.tasks.rewind("sales", second(70)))

    def test_a_step_back_to_before_the_schedule_came(self, store: Store) -> None:
        """Its slots count from there."""
        enroll(store, "sales", at=100)
        assert [store.do(store.tasks.rewind("sales", second(50))) for _ in range(2)] == [True, False]
        assert row_of(store, "sales").first_seen == second(50)
        assert not store.do(store.tasks.rewind("nobody", second(0)))

    def test_one_process_says_that_a_value_is_stale(self, store: Store) -> None:
        """And one that it is no longer."""
        enroll(store, "sales")
        answers = [
            store.do(store.tasks.mark_stale("sales", stale)) for stale in (False, True, True, False, False, True)
        ]
        assert answers == [False, True, False, True, False, True]

    def test_who_looks_on_here_is_known_here(self, store: Store) -> None:
        """A row counts the viewers of other processes, where that is asked for."""
        store.tasks.count_viewers("sales")
        enroll(store, "sales")
        store.tasks.watch("sales", 3)
        assert row_of(store, "sales").viewers == 0

    def test_a_forgotten_task_leaves_nothing(self, store: Store) -> None:
        """Neither value nor history nor schedule; what others have stays."""
        for task in ("sales", "rates"):
            put(store, task, 1, TASK)
            enroll(store, task, HOURLY)
            store.tasks.amend(task, paused=True, reschedule=Every("5m"), now=second(2))
            store.do(store.tasks.release(claim(store, task, mark=second(1))))
            store.do(store.tasks.record(task, ended(1)))
            store.do(store.tasks.mark_stale(task, True))
        put(store, "sales", "user's")
        store.tasks.forget("sales")
        store.tasks.forget("sales")
        assert (store.values.entry(TASK, "sales"), store.history("sales")) == (None, [])
        assert list(store.values.names(TASK)) == ["rates"]
        row = enroll(store, "sales", HOURLY, 9, late=True)
        assert (row.first_seen, row.last_slot, row.paused, row.forgotten) == (second(9), None, False, False)
        assert (row.override, row.gave_way, row.outcome, row.error) == (None, None, None, "")
        assert store.do(store.tasks.mark_stale("sales", True))
        assert (entry_of(store, USER, "sales").value, entry_of(store, TASK, "rates").value) == ("user's", 1)
        assert row_of(store, "rates").last_slot == second(1)
        assert store.history("rates") == [ended(1)]

    def test_a_forgotten_task_that_comes_back_may_run_its_slots_again(self, store: Store) -> None:
        """Whoever takes the name next starts afresh, and need not wait for a run of the former one."""
        enroll(store, "sales")
        claim(store, "sales", mark=second(5))
        store.tasks.forget("sales")
        enroll(store, "sales", late=True)
        assert refusal(store, "sales", mark=second(5)) is None

    def test_dates_are_a_schedule(self, store: Store) -> None:
        """They come back as they were given."""
        dates = Dates([second(5), second(9)])
        enroll(store, "sales", HOURLY)
        store.tasks.amend("sales", reschedule=dates, now=second(1))
        assert row_of(store, "sales").override == dates
