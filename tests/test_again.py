"""What is tried again and when: `Retry`, and what a function raises to say it itself: `ps.Cancel`, `ps.RetryLater`."""

from __future__ import annotations

import pickle
from contextlib import ExitStack

import pytest

import panel_schedule as ps
from core import START, Core, messages, second, short
from panel_schedule.errors import RegistrationError, RunCancelled, RunFailed, RunTimedOut, ScheduleError, TriggerError
from panel_schedule.functions.run import RunState, current_run
from panel_schedule.functions.task import Retry, RetryLater
from panel_schedule.stores.file.store import FileStore
from panel_schedule.testing import VirtualClock


class Answers:
    """A function that gives, or raises, one after another, and notes when it was called."""

    __name__ = "answers"

    def __init__(self, core, *answers):
        self.core, self.answers, self.at = core, list(answers), []

    def __call__(self):
        self.at.append((self.core.clock.now() - START).total_seconds())
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture(params=["task", "job", "memo"])
def ask(request, core):
    """Make a function of each kind, and ask for it: its run."""

    def make(function, **options):
        run = started(function, **options)
        core.go()
        return run

    def started(function, **options):
        match request.param:
            case "task":
                task = core.schedule(period="1d", first_run="skip", name="f", **options)(function)
                core.begin()
                return task.refresh()
            case "job":
                return core.ps.background(executor="thread", name="f", **options)(function).submit()
        return core.ps.memoize(name="f", **options)(function).submit()

    return make


# ------------------------------------------------------------ Retry


def test_only_what_on_names_is_tried_again(core, ask):
    """A subclass, too; and not what never_on names."""
    function = Answers(core, ConnectionResetError(), ConnectionRefusedError(), 1)
    run = ask(function, retry=Retry(5, backoff="1s", on=ConnectionError, never_on=(ConnectionRefusedError,)))

    core.run_for(10)

    assert (RunState.FAILED, [0, 1]) == (run.state, function.at)
    assert isinstance(run.error, ConnectionRefusedError)


def test_what_on_does_not_name_fails_at_once(core, ask):
    function = Answers(core, KeyError("a"), 1)
    run = ask(function, retry=Retry(5, on=(ConnectionError, TimeoutError)))

    core.run_for(10)

    assert (RunState.FAILED, [0]) == (run.state, function.at)


def test_a_timeout_is_tried_again_only_if_it_is_named(core):
    """It is a TimeoutError."""
    retry = Retry(3, on=ConnectionError)
    assert (False, True) == (retry.wants(RunTimedOut("")), Retry(3, on=TimeoutError).wants(RunTimedOut("")))


def test_a_function_says_how_long_the_pauses_are(core, ask):
    """Of the number of the attempt that has failed; 0 is none."""
    function = Answers(core, OSError(), OSError(), OSError(), 1)
    run = ask(function, retry=Retry(5, delay=lambda attempt: [0, "2s", 4][attempt - 1]))

    core.run_for(10)

    assert (RunState.SUCCEEDED, [0, 0, 2, 6]) == (run.state, [round(at) for at in function.at])


@pytest.mark.parametrize("given", ["soon", ZeroDivisionError("odd"), -1])
def test_a_delay_that_fails_ends_the_run_with_its_own_error(core, ask, caplog, given):
    """And is told."""

    def delay(attempt):
        if isinstance(given, Exception):
            raise given
        return given

    function = Answers(core, OSError("mine"), 1)
    run = ask(function, retry=Retry(5, delay=delay))
    core.run_for(10)

    assert (RunState.FAILED, [0], "mine") == (run.state, function.at, str(run.error))
    assert any("its Retry(delay=...) failed" in message for message in messages(caplog))


def test_jitter_makes_pauses_longer_and_differs_between_runs():
    retry = Retry(3, backoff="10s", jitter="5s")
    pauses = [retry.pause(1, f"run {number}") for number in range(100)]

    assert 10 <= min(pauses) < 11 < 14 < max(pauses) < 15
    assert [10.0, 20.0] == retry.delays()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on": "ConnectionError"}, r"Retry\(on='ConnectionError'\) must be an exception class"),
        ({"on": ()}, r"Retry\(on=\(\)\)"),
        ({"never_on": (OSError, "KeyError")}, r"Retry\(never_on="),
        ({"jitter": "soon"}, r"Retry\(jitter='soon'\)"),
        ({"delay": "5s"}, r"Retry\(delay='5s'\) must be a function.*backoff="),
    ],
)
def test_a_retry_that_means_nothing_is_refused(options, reason):
    with pytest.raises(ScheduleError, match=reason):
        Retry(**options)


# ------------------------------------------------------------ Cancel


def test_a_function_cancels_its_own_run(core, ask):
    """It gives nothing, is not tried again, and says why."""
    function = Answers(core, ps.Cancel("nothing new"), 1)
    run = ask(function, retry=3)

    core.run_for(100)

    assert (RunState.CANCELLED, [0], "cancelled: nothing new") == (run.state, function.at, run.reason)
    with pytest.raises(RunCancelled, match="'f': the run was cancelled: nothing new"):
        run.result(0)


def test_a_task_that_cancels_its_run_keeps_its_value_and_has_not_failed(core):
    """The next slot runs as ever."""
    task = core.schedule(period="10s", first_run="skip")(Answers(core, 1, ps.Cancel(), 3))
    events = core.events("failed")
    core.begin()

    core.run_for(25)
    seen = task(), task.status.error, task.status.stale
    core.run_for(10)

    assert (1, "", False) == seen
    assert [("succeeded", ""), ("cancelled", "cancelled"), ("succeeded", "")] == short(task.history)
    assert (3, []) == (task(), events)


def test_a_job_that_gets_a_cancelled_run_has_failed(core):
    """What another function has cancelled is no word of its own."""
    inner = core.ps.background(executor="thread", name="inner")(Answers(core, ps.Cancel()))
    run = inner.submit()
    core.go()

    def outer():
        return run.result(0)

    outer_run = core.ps.background(executor="thread", name="outer")(outer).submit()
    core.go()

    assert RunState.FAILED is outer_run.state


# ------------------------------------------------------------ RetryLater


def test_a_function_asks_to_be_run_again(core, ask):
    """After the time that it says, each as an attempt; three in all without `retry`."""
    function = Answers(core, RetryLater("5m"), RetryLater(60, "still not"), 3)
    run = ask(function)

    core.run_for(400)

    assert (RunState.SUCCEEDED, [0, 300, 360], 3) == (run.state, function.at, run.attempt)


def test_who_asks_once_more_than_allowed_has_failed(core, ask):
    """The message says how to allow it."""
    function = Answers(core, *[RetryLater("1m", "no file")] * 9)
    run = ask(function, retry=1)

    core.run_for(1000)

    assert (RunState.FAILED, [0, 60]) == (run.state, function.at)
    with pytest.raises(RunFailed, match=r"again in 1m: no file, and this was the last of 2 attempts.*max_attempts=4"):
        run.result(0)


def test_what_a_function_asks_for_is_no_trouble_in_the_log(core, ask, caplog):
    """Retry and never_on are about failures, which it is not."""
    run = ask(Answers(core, RetryLater("1m"), 1), retry=Retry(3, never_on=Exception))

    core.run_for(100)

    assert (RunState.SUCCEEDED, []) == (run.state, messages(caplog))


def test_the_slot_stays_and_the_next_ones_are_skipped(core):
    """The run that comes again is for the same slot; what comes meanwhile is an overlap."""
    keys = []

    def function():
        run = current_run()
        keys.append((run.key, run.attempt))
        if run.attempt == 1:
            raise RetryLater("25s")

    task = core.schedule(period="10s", first_run="skip")(function)
    core.begin()
    core.run_for(36)

    assert [(second(10), 1), (second(10), 2)] == keys
    assert [("skipped", "overlap"), ("succeeded", "")] == short(task.history)


def test_another_server_goes_on_with_a_slot_that_was_to_come_again(tmp_path):
    """As with any retry: who stops hands it over, and the next one runs it at once."""
    clock = VirtualClock(START)
    with ExitStack() as stack:
        one = stack.enter_context(Core(clock, FileStore(tmp_path, clock, server="one", persistent=True)))
        one.service.outbox.drain = lambda timeout: one.go()
        first = Answers(one, RetryLater("1h"))
        one.schedule(period="1d", first_run="background", name="task")(first)
        one.begin()
        one.go()
        one.runtime.close()
        other = stack.enter_context(Core(clock, FileStore(tmp_path, clock, server="other", persistent=True)))
        second_ = Answers(other, "there")
        task = other.schedule(period="1d", first_run="skip", name="task")(second_)
        other.begin()
        for _ in range(3):
            other.go(), other.hear()

        assert ([0], [0], "there") == (first.at, second_.at, task())


def test_who_asks_while_the_server_stops_is_stopped_and_has_not_failed(core):
    """So that the slot is left to another one."""
    function = core.held("task")
    task = core.schedule(period="10s", first_run="skip")(function)
    core.begin()
    core.run_for(10)
    run = core.run_of(task)

    core.service.stopping = True
    function.finish(RetryLater("1h"))
    core.go()

    assert (RunState.CANCELLED, "") == (run.state, task.status.error)


def test_it_travels():
    """As errors do between processes."""
    error = pickle.loads(pickle.dumps(RetryLater("5m", "no file")))
    assert (300, "again in 5m: no file") == (error.delay, str(error))


@pytest.mark.parametrize("delay", ["soon", 0, None, -1])
def test_a_delay_that_means_nothing_is_refused(delay):
    """Where it is raised, with what would do."""
    with pytest.raises(TriggerError, match="Give '30s'"):
        RetryLater(delay)


def test_the_names_are_public():
    assert (Retry, RetryLater) == (ps.Retry, ps.RetryLater)
    assert issubclass(ps.Cancel, ScheduleError)
    assert not issubclass(RegistrationError, ps.Cancel)
