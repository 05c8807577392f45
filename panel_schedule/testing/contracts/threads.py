"""What every store promises to those who use it at once, as tests."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from typing import Any

import numpy as np

from ...coordination.tasks import TASK, USER, Claim
from ...errors import RunFenced
from ...stores.base import Store
from .tools import DAILY, START, claim, enroll, hammer, observe, put, refusal, second, skipped


class ThreadContract:
    """Many threads write, claim and read, and all that the others promise still holds."""

    scale = 300

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
                entries = put(store, "numbers", np.full(20_000, number)), store.values.entry(USER, "numbers")
                wrong.extend(entry for entry in entries if entry is None or len(set(entry.value.tolist())) != 1)

        assert (hammer(4, body), wrong) == ([], [])

    def test_a_slot_that_many_want_is_got_by_one(self, store: Store) -> None:
        """Each slot is claimed once, and no two claims are held at once (invariant 14)."""
        won: list[tuple[int, int]] = []
        holding: list[int] = []
        overlaps: list[int] = []

        def body(number: int) -> None:
            for slot in range(self.scale):
                held = store.do(store.tasks.claim("sales", f"{number}", now=START, mark=second(slot)))
                if isinstance(held, Claim):
                    overlaps.extend(holding)
                    holding.append(number)
                    won.append((slot, held.fence))
                    holding.remove(number)
                    store.do(store.tasks.release(held))

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
                release = store.tasks.fence(held) if lost else held
                try:
                    put(store, "sales", held.fence, TASK, claim=held)
                    wrong.extend([held] if lost else [])
                except RunFenced:
                    wrong.extend([] if lost else [held])
                store.do(store.tasks.release(release))

        def body(number: int) -> None:
            if number == 0:
                try:
                    run()
                finally:
                    stop.set()
            last = 0
            while not stop.is_set():
                entry = store.values.entry(TASK, "sales")
                if entry is not None:
                    if entry.version < last or entry.value < entry.version:
                        wrong.append(entry)
                    last = entry.version

        assert (hammer(3, body), wrong) == ([], [])

    def test_readers_never_see_half_an_entry(self, store: Store) -> None:
        """Value, version and time belong together (invariant 8)."""
        wrong = list[Any]()

        def act() -> None:
            for count in range(1, self.scale):
                store.values.publish(USER, "rates", count, now=second(count))

        def look() -> None:
            entry = store.values.entry(USER, "rates")
            if entry is not None and not (entry.value == entry.version and second(entry.value) == entry.updated_at):
                wrong.append(entry)

        assert (observe(act, look), wrong) == ([], [])

    def test_a_lock_of_the_listener_is_no_trap(self, store: Store) -> None:
        """A listener takes a (reentrant) lock under which others use the store: nobody waits for ever."""
        lock = threading.RLock()

        def listener(*change: Any) -> None:
            with lock:
                pass

        store.values.subscribe(listener)

        def body(number: int) -> None:
            for count in range(self.scale // 10):
                if number % 2:
                    put(store, "rates", count)
                    store.tasks.row("sales")
                else:
                    with lock:
                        store.values.entry(USER, "rates")
                        store.values.entry(TASK, f"{number} {count}")

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
                            store.values.delete(USER, name)
                    case 2:
                        list(store.values.names(USER))
                    case 3:
                        enroll(store, name, late=True)
                    case 4:
                        store.tasks.row(name)
                    case 5:
                        store.do(store.tasks.record(name, skipped(step, step), second(step)))
                    case 6:
                        store.history(name)
                    case 7:
                        store.tasks.forget(name)
                    case 8:
                        store.tasks.amend(name, paused=True, reschedule=DAILY, now=second(step))
                    case 9:
                        store.do(store.tasks.rewind(name, second(step)))
                    case 10:
                        held = store.do(store.tasks.claim(name, f"{number} {step}", now=START))
                        if isinstance(held, Claim):
                            with suppress(RunFenced):  # it was forgotten
                                put(store, name, step, TASK, claim=held)
                            store.do(store.tasks.release(held))

        assert hammer(6, body) == []
        for name in names:
            enroll(store, name, late=True)
            assert refusal(store, name) is None
