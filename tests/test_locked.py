"""The scheduler's lock, and what waits for it to be free."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from core import PATIENCE
from panel_schedule.engine.lock import Bell, Locked


def locked_with(released=lambda: None, changed=lambda task: None):
    return Locked(threading.RLock(), released, changed)


def is_free(locked):
    """Whether another thread gets the lock."""
    taken = threading.Event()

    def take():
        with locked:
            taken.set()

    threading.Thread(target=take, daemon=True).start()
    return taken.wait(2)


def test_what_is_deferred_is_called_when_the_lock_is_free():
    """After the outermost block, and not before."""
    locked, called = locked_with(), []
    with locked:
        with locked:
            locked.deferred.append(lambda: called.append(is_free(locked)))
        within = list(called)

    assert ([], [True]) == (within, called)


def test_what_another_thread_defers_is_called_by_that_thread_alone():
    """Once: whoever has just given the lock back, with nothing to do, must not take it along (17)."""
    called, changed = [], []
    other_in, other_out = threading.Event(), threading.Event()

    def other():
        with locked:
            locked.deferred.append(lambda: called.append(threading.current_thread()))
            locked.touched.add("task")
            other_in.set()
            other_out.wait(PATIENCE)

    thread = threading.Thread(target=other)

    def released():
        if not thread.ident:  # the lock is free, and the other one takes it
            thread.start()
            assert other_in.wait(PATIENCE)

    locked = locked_with(released, lambda task: changed.append(threading.current_thread()))
    with locked:
        pass
    early = list(called)
    other_out.set()
    thread.join(PATIENCE)

    assert [] == early
    assert ([thread], [thread]) == (called, changed)


def test_a_deferred_call_that_raises_loses_no_other():
    """Each belongs to a run of its own, which somebody may wait for (17)."""
    locked, called = locked_with(), []

    def fails():
        raise ZeroDivisionError

    with suppress(ZeroDivisionError), locked:
        locked.deferred.append(fails)
        locked.deferred.append(lambda: called.append(1))
    with locked:
        pass

    assert [1] == called
    assert is_free(locked)


def test_the_lock_is_free_after_an_exception_inside():
    """Whatever was deferred before it is called."""
    locked, called = locked_with(), []
    with suppress(ZeroDivisionError), locked:
        locked.deferred.append(lambda: called.append(1))
        raise ZeroDivisionError

    assert [1] == called
    assert is_free(locked)


def test_the_lock_is_free_after_a_wait_that_could_not_be_settled():
    """A bug in there is bad enough without a deadlock."""
    locked = locked_with()

    def settle():
        raise ZeroDivisionError

    locked.waits, locked.settle = [1], settle
    with pytest.raises(ZeroDivisionError), locked:
        pass
    locked.waits = []

    assert is_free(locked)


def test_a_bell_rung_before_the_sleep_wakes_at_once():
    """Once, however often it was rung."""
    bell, woken = Bell(), threading.Event()
    bell.ring()
    bell.ring()
    bell.wait(PATIENCE)

    def sleeps():
        bell.wait(PATIENCE)
        woken.set()

    thread = threading.Thread(target=sleeps, daemon=True)
    thread.start()
    asleep = not woken.is_set()
    bell.ring()

    assert asleep
    assert woken.wait(PATIENCE)
