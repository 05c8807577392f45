"""What every store promises of runs, as tests."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

from ...clock import SystemClock
from ...coordination import history
from ...coordination.record import Refusal
from ...coordination.tasks import TASK, Claim
from ...errors import RunFenced
from ...functions.run import RunRecord, RunState
from ...stores.base import Store
from ...stores.records import Change, Request
from .tools import claim, ended, enroll, put, raises, refusal, row_of, second, skipped


class RunContract:
    """One run at a time has a task, it alone publishes, and the history has what became of it."""

    history_limit = 5

    # ------------------------------------------------------------ claims

    def test_a_claim_is_exclusive(self, store: Store) -> None:
        """One run holds a task, the others are told so; each task has its own (invariant 6)."""
        got = claim(store, "sales", "run1", mark=second(1))
        assert (got.task, got.run_id, got.attempt) == ("sales", "run1", 1)
        assert refusal(store, "sales", mark=second(2)) == refusal(store, "sales") == Refusal.HELD
        assert refusal(store, "rates", mark=second(1)) is None

    def test_a_slot_is_claimed_once(self, store: Store) -> None:
        """Also after its run has ended; earlier slots are gone with it (invariant 14)."""
        store.do(store.tasks.release(claim(store, "sales", mark=second(10))))
        answers = [refusal(store, "sales", mark=second(number)) for number in (10, 9, 11)]
        assert answers == [Refusal.HANDLED, Refusal.HANDLED, None]

    def test_an_upstreams_versions_are_claimed_once(self, store: Store) -> None:
        """As a slot is."""
        store.do(store.tasks.release(claim(store, "sales", mark=10)))
        answers = [refusal(store, "sales", mark=number) for number in (10, 9, 11)]
        assert answers == [Refusal.HANDLED, Refusal.HANDLED, None]

    def test_a_run_can_see_more_of_its_upstream(self, store: Store) -> None:
        """Those versions are handled with it; a claim that is lost handles nothing."""
        held = claim(store, "sales", mark=3)
        store.do(store.tasks.advance(held, 5))
        store.do(store.tasks.release(held))
        store.do(store.tasks.advance(held, 9))
        assert [refusal(store, "sales", mark=number) for number in (5, 6)] == [Refusal.HANDLED, None]

    def test_a_refused_claim_handles_no_slot(self, store: Store) -> None:
        """The slot is still there for the next one."""
        held = claim(store, "sales", mark=second(1))
        assert refusal(store, "sales", mark=second(2)) == Refusal.HELD
        store.do(store.tasks.release(held))
        assert refusal(store, "sales", mark=second(2)) is None

    def test_a_request_needs_no_slot(self, store: Store) -> None:
        """And handles none."""
        enroll(store, "sales")
        store.do(store.tasks.release(claim(store, "sales", mark=second(10))))
        store.do(store.tasks.release(claim(store, "sales")))
        assert row_of(store, "sales").last_slot == second(10)
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
                store.tasks.forget("sales")
                enroll(store, "sales", late=True)
            held = claim(store, "sales", f"run{number}")
            fences.append(held.fence)
            store.do(store.tasks.release(held))
        assert fences == sorted(set(fences))

    def test_the_holder_may_publish(self, store: Store) -> None:
        """As often as it likes; the entries name its run, its wave, and how long it took."""
        held = claim(store, "sales", "run1", mark=second(1), wave=second(1))
        entries = [put(store, "sales", value, TASK, claim=held, duration=2.5) for value in (1, 2)]
        found = [(entry.version, entry.run_id, entry.wave, entry.duration) for entry in entries]
        assert found == [(1, "run1", second(1), 2.5), (2, "run1", second(1), 2.5)]

    def test_a_lost_claim_publishes_nothing(self, store: Store) -> None:
        """RunFenced, and nothing changes, however it was lost (invariant 10)."""
        for task, lose in (
            ("released", lambda lost: store.do(store.tasks.release(lost))),
            ("fence", store.tasks.fence),
            ("handed over", lambda lost: store.do(store.tasks.hand_over(lost))),
            ("forgotten", lambda lost: store.tasks.forget(lost.task)),
        ):
            enroll(store, task)
            put(store, task, "good", TASK)
            lost = claim(store, task)
            lose(lost)
            before = store.values.entry(TASK, task)
            with raises(RunFenced, repr(task)):
                put(store, task, "late", TASK, claim=lost)
            with raises(RunFenced, repr(task)):
                store.do(store.tasks.finalize(lost))
            assert store.values.entry(TASK, task) == before
            assert put(store, task, "next", TASK).version == 2

    def test_a_claim_that_another_run_has_by_now_publishes_nothing(self, store: Store) -> None:
        """The newer value stays."""
        lost = claim(store, "sales", "run1")
        store.do(store.tasks.release(lost))
        newer = put(store, "sales", "newer", TASK, claim=claim(store, "sales", "run2"))
        with raises(RunFenced):
            put(store, "sales", "late", TASK, claim=lost)
        assert store.values.entry(TASK, "sales") == newer

    def test_a_void_claim_still_holds_the_task(self, store: Store) -> None:
        """Until the one that `fence` returned is released (invariant 6)."""
        held = store.tasks.fence(claim(store, "sales"))
        assert refusal(store, "sales") == Refusal.HELD
        store.do(store.tasks.release(store.tasks.fence(held)))
        assert refusal(store, "sales") is None

    def test_what_is_done_with_a_lost_claim_takes_nothing_from_its_successor(self, store: Store) -> None:
        """To fence, release, hand over and advance are harmless."""
        lost = claim(store, "sales", "run1", mark=1)
        store.do(store.tasks.release(lost))
        current = claim(store, "sales", "run2", mark=2)
        store.tasks.fence(lost)
        store.do(store.tasks.release(lost))
        store.do(store.tasks.hand_over(lost))
        store.do(store.tasks.advance(lost, 9))
        assert refusal(store, "sales") == Refusal.HELD
        assert put(store, "sales", "value", TASK, claim=current).version == 1
        store.do(store.tasks.release(current))
        assert refusal(store, "sales", mark=3) is None

    def test_a_run_that_is_handed_over_can_be_had(self, store: Store) -> None:
        """By whoever takes it over, or, where it cannot outlive the process, by the next claim."""
        store.do(store.tasks.hand_over(claim(store, "sales", "run1", mark=second(1), key=second(1))))
        taken = store.do(store.tasks.take_over("sales", second(2)))
        if taken is None:
            taken = claim(store, "sales", "run2")
        assert isinstance(taken, Claim)
        assert put(store, "sales", 1, TASK, claim=taken).run_id == taken.run_id

    def test_a_live_run_is_not_taken_over(self, store: Store) -> None:
        """However long it takes."""
        held = claim(store, "sales")
        assert store.do(store.tasks.take_over("sales", second(10**6))) is None
        assert put(store, "sales", 1, TASK, claim=held).version == 1

    def test_the_last_value_of_several_can_be_made_the_final_one(self, store: Store) -> None:
        """The same version, and listeners hear of it."""
        heard: list[Any] = []
        store.values.subscribe(
            lambda space, name, entry: heard.append((entry and entry.version, entry and entry.final))
        )
        held = claim(store, "sales")
        assert not put(store, "sales", 1, TASK, claim=held, final=False).final
        sealed, entry = store.do(store.tasks.finalize(held)), store.values.entry(TASK, "sales")
        assert sealed is not None
        assert sealed == entry
        assert (sealed.value, sealed.version, sealed.final) == (1, 1, True)
        assert heard == [(1, False), (1, True)]

    def test_progress_and_cancel_of_a_run_that_is_over_are_harmless(self, store: Store) -> None:
        """They come late."""
        held = claim(store, "sales", "run1")
        store.do(store.tasks.progress(held, 50, "half"))
        store.do(store.tasks.cancel("sales", "run1"))
        store.do(store.tasks.release(held))
        store.do(store.tasks.progress(held, 60, "more"))
        store.do(store.tasks.cancel("sales", "run1"))
        assert refusal(store, "sales") is None

    # ------------------------------------------------------------ history

    def test_the_history_has_the_newest_first(self, store: Store) -> None:
        """And no more than its limit; nothing where there were no runs."""
        assert store.history("sales") == []
        for number in range(self.history_limit + 3):
            assert store.do(store.tasks.record("sales", ended(number)))
        read = store.history("sales")
        store.do(store.tasks.record("sales", ended(99)))
        assert read == [ended(number) for number in range(self.history_limit + 2, 2, -1)]

    def test_a_record_comes_back_whole(self, store: Store) -> None:
        """Each of its facts, whichever log has it."""
        times, texts = (
            (second(1), second(2), second(3)),
            ("owner", "us\0er", "'a', b=\"ü\"", "in f\n  \\u0000", "log\n"),
        )
        failed = RunRecord("run1", "key", RunState.FAILED, 2, *times, "ValueError: no", "reason", second(4), *texts)
        well = RunRecord("run2", None, RunState.SUCCEEDED, 1, *times, "", "", None, "owner", "user", "1, 2")
        for record in (failed, well):
            store.do(store.tasks.record("sales", record))
        assert store.history("sales") == [well, failed]

    def test_a_failure_is_not_pushed_out_by_successes(self, store: Store) -> None:
        """The last ones stay, whole, behind what is newer; and each is one line."""
        failures = [
            ended(number, RunState.FAILED, traceback=f"in {number}") for number in range(self.history_limit + 2)
        ]
        for failure in failures:
            store.do(store.tasks.record("sales", failure))
        assert store.history("sales") == failures[:1:-1]
        successes = [ended(100 + number) for number in range(self.history_limit + 2)]
        for success in successes[:2]:
            store.do(store.tasks.record("sales", success))
        assert store.history("sales") == successes[1::-1] + failures[:1:-1]
        for success in successes[2:]:
            store.do(store.tasks.record("sales", success))
        assert store.history("sales") == successes[:1:-1] + failures[:1:-1]

    def test_the_last_lines_of_a_history_are_read_alone(self, store: Store) -> None:
        """As many as are asked for, without what is long of a failure; the log of failures is not read for them."""
        failed = ended(1, RunState.FAILED, traceback="in 1")
        assert store.history("sales", last=2) == []
        for record in (failed, ended(2)):
            store.do(store.tasks.record("sales", record))
        assert store.history("sales", last=2) == [ended(2), failed.brief] != store.history("sales")
        for number in range(3, self.history_limit + 2):
            store.do(store.tasks.record("sales", ended(number)))
        newest = [ended(number) for number in range(self.history_limit + 1, 1, -1)]
        for last in (0, 1, self.history_limit, self.history_limit + 3):
            assert store.history("sales", last=last) == newest[:last]
        assert store.history("sales") == [*newest, failed]

    def test_a_history_is_deleted_with_its_failures(self, store: Store) -> None:
        """And begins anew."""
        store.do(store.tasks.record("sales", ended(1, RunState.FAILED)))
        store.do(Request(Change(TASK, "sales", history.erase), lambda result: None))
        assert store.history("sales") == []
        store.do(store.tasks.record("sales", ended(2)))
        assert store.history("sales") == [ended(2)]

    def test_what_ended_too_long_ago_is_in_no_history(self, store: Store) -> None:
        """A failure is there four times as long; what has ended lately, or never began to, stays."""
        now, hour = SystemClock().now(), timedelta(hours=1)
        failed, ages = RunState.FAILED, (5, 3.9, 2, 0.9)
        there = [
            RunRecord(f"{state} {age}", None, state, 1, None, None, now - age * hour)
            for age in ages for state in (failed, RunState.SUCCEEDED)
        ]  # fmt: skip
        for record in there:
            store.do(store.tasks.record("sales", record))
        store.keep_history(hour)
        wanted = {"failed 3.9", "failed 2", "failed 0.9", "succeeded 0.9"}
        runs = store.history("sales")
        assert {record.id for record in runs} == wanted
        assert {record.id for record in store.complete(runs)} == {"failed 0.9", "succeeded 0.9"}

    def test_what_ended_too_long_ago_is_deleted(self, store: Store) -> None:
        """When it is swept, from both logs."""
        now, hour = SystemClock().now(), timedelta(hours=1)
        for age in (5, 2, 0.5):
            for state in (RunState.FAILED, RunState.SUCCEEDED):
                run = RunRecord(f"{state} {age}", None, state, 1, None, None, now - age * hour)
                store.do(store.tasks.record("sales", run))
                store.do(store.note("job", "report", run))
        store.keep_history(hour)
        store.records.sweep(now)
        store.keep_history(None)
        wanted, until, pause = ["succeeded 0.5", "failed 0.5", "failed 2"], 1000, threading.Event()
        while [run.id for run in store.history("sales")] != wanted and until:  # its own thread may be about to
            pause.wait(0.01)
            until -= 1
        assert [run.id for run in store.history("sales")] == wanted
        assert [run.id for run in store.history("report", "job")] == wanted

    def test_a_skipped_stretch_that_goes_on_becomes_longer(self, store: Store) -> None:
        """For one reason; after another record it is one of its own (invariant 5)."""
        enroll(store, "sales")
        new = [
            store.do(store.tasks.record("sales", skipped(at, at, why)))
            for at, why in enumerate(["overlap", "overlap", "paused"])
        ]
        store.do(store.tasks.record("sales", ended(3)))
        new.append(store.do(store.tasks.record("sales", skipped(4, 4, "paused"))))
        assert new == [True, False, True, True]
        stretches = [(record.key, record.until, record.reason) for record in store.history("sales")]
        assert stretches == [
            (second(4), second(4), "paused"),
            (second(3), None, ""),
            (second(2), second(2), "paused"),
            (second(0), second(1), "overlap"),
        ]
