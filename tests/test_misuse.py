"""Whatever a public function is given that it cannot use: one sentence says what, of which function, and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import panel as pn
import pytest

import panel_schedule as ps
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import ArgumentUnkeyable, ConfigError, RegistrationError, TriggerError, ValueRefused
from panel_schedule.runtime import Runtime

REG, TRIG = RegistrationError, TriggerError
NAIVE = datetime(2026, 1, 1)
PERIOD = r"cannot be read\. Give '30s'"
SHORT = r"is too short: one millisecond is the least\. Give '30s'"
HOOK = "https://example.org/hook"


def one() -> int:
    return 1


async def waits() -> int:
    return 1


def add(a: int, b: int = 2) -> int:
    return a + b


class Site:
    """A front of its own, with a function of each kind."""

    def __init__(self) -> None:
        self.config = Config({})
        self.front = Front(Runtime(self.config))
        self.task = self.front.schedule("1h", name="sales", first_run="skip", default=0)(one)
        self.job = self.front.background(executor="thread", name="optimise")(add)
        self.memo = self.front.memoize(name="filtered")(add)

    def schedule(self, function: Any = one, **options: Any) -> Any:
        return self.front.schedule(**({"name": "task"} | options))(function)

    def background(self, function: Any = add, **options: Any) -> Any:
        return self.front.background(**({"name": "job"} | options))(function)

    def memoize(self, function: Any = add, **options: Any) -> Any:
        return self.front.memoize(**({"name": "memo"} | options))(function)

    def set(self, option: str, value: Any) -> None:
        setattr(self.config, option, value)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.front._runtime.close()


Misuse = tuple[Callable[[Site], object], type[Exception], str]

MISUSES: dict[str, list[Misuse]] = {
    "schedule": [
        (lambda s: s.front.schedule(one), REG, r"needs a schedule: @ps.schedule\(period='15m'\) above 'one'"),
        (lambda s: s.schedule(), REG, "Task 'task': A schedule is exactly one of .* and none is given"),
        (lambda s: s.schedule(period="1h", cron="* * * * *"), REG, "Task 'task': .* period and cron are given"),
        (lambda s: s.front.schedule("1h")(3), REG, "Only a function can be made a task, and not 3"),
        (lambda s: s.front.schedule("1h")(add), REG, "Task 'add': its function needs a, .* Give the parameters"),
        (lambda s: s.front.schedule("1h")(lambda: 1), REG, "has no name of its own: give the task one, with name="),
        (lambda s: s.front.schedule("1h", name="sales")(waits), REG, "Task 'sales' is defined twice: .* another name"),
        (lambda s: s.schedule(s.task, period="1h"), REG, "is a task already; schedule its function: sales.function"),
        (lambda s: s.schedule(perod="1h"), TypeError, r"ps.schedule\(\) .* 'perod'. Did you mean 'period'\?"),
        (lambda s: s.schedule(name=3, period="1h"), REG, "name=3 must be a text"),
        (lambda s: s.schedule(name="", period="1h"), REG, "name='' must be a text, and not an empty one"),
        (lambda s: s.schedule(period="soon"), TRIG, f"Task 'task': The period 'soon' {PERIOD}"),
        (lambda s: s.schedule(period=True), TRIG, f"Task 'task': The period True {PERIOD}"),
        (lambda s: s.schedule(period=-1), TRIG, f"Task 'task': The period -1 {SHORT}"),
        (lambda s: s.schedule(period=1e30), TRIG, "Task 'task': The period 1e.30 is too long"),
        (lambda s: s.schedule(cron="* * * * *"), TRIG, "Task 'task': .* has no timezone. Name one, timezone="),
        (lambda s: s.schedule(cron="61 * * * *", timezone="UTC"), TRIG, "Task 'task': .*61"),
        (lambda s: s.schedule(cron="0 0 30 2 *", timezone="UTC"), TRIG, "Task 'task': .*0 0 30 2"),
        (lambda s: s.schedule(cron=5, timezone="UTC"), TRIG, "Task 'task': .*5"),
        (lambda s: s.schedule(cron="* * * * *", timezone="Mars"), TRIG, "'Mars' .* is unknown. Use an IANA name"),
        (lambda s: s.schedule(period="1h", timezone="UTC"), REG, "has a meaning for cron schedules only"),
        (lambda s: s.schedule(at=NAIVE), TRIG, "Task 'task': A date to run at has no timezone: .*Add one"),
        (lambda s: s.schedule(at="tomorrow"), TRIG, "Task 'task': 'tomorrow' is no schedule. Accepted are"),
        (lambda s: s.schedule(at=date(2026, 1, 1)), TRIG, "Task 'task': .* is no schedule. Accepted are"),
        (lambda s: s.schedule(at=[]), TRIG, "Task 'task': There is no date to run at. Give at least one"),
        (lambda s: s.schedule(at=[3]), TRIG, "Task 'task': A date to run at has to be an aware datetime, not 3"),
        (lambda s: s.schedule(at=lambda: 1), TRIG, r"Task 'task': at=.* must be a function of the current time"),
        (lambda s: s.schedule(after="sales"), TRIG, "Task 'task': after= takes a task or a list of tasks"),
        (lambda s: s.schedule(after=s.job), TRIG, "after= takes a task or a list of tasks, and not <Background"),
        (lambda s: s.schedule(after=[]), TRIG, "There is no task to run after. Give at least one"),
        (lambda s: s.schedule(period="1h", needs=one), REG, "needs= takes a task or a list of tasks"),
        (lambda s: s.schedule(period="1h", first_run="never"), REG, "first_run='never' is unknown; accepted are"),
        (lambda s: s.schedule(period="1h", executor="gpu"), REG, "Task 'task': executor='gpu' is unknown; accepted"),
        (lambda s: s.schedule(waits, period="1h", executor="thread"), REG, "runs on the event loop, .* Leave"),
        (lambda s: s.schedule(period="1h", timeout="x"), TRIG, f"timeout='x' is no duration. .* {PERIOD}"),
        (lambda s: s.schedule(period="1h", retry="3"), REG, r"retry='3' must be a count of 0 or more, or a Retry"),
        (lambda s: s.schedule(period="1h", overlap="both"), REG, "overlap='both' is unknown; accepted are"),
        (lambda s: s.schedule(period="1h", catch_up="yes"), REG, "catch_up='yes' must be True or False"),
        (lambda s: s.schedule(period="1h", misfire_grace=-1), TRIG, f"misfire_grace=-1 is no duration.* {SHORT}"),
        (lambda s: s.schedule(after=s.task, jitter="1m"), REG, "is about the slots of a clock.* Leave it out"),
        (lambda s: s.schedule(period="1h", jitter="2h"), REG, "longer than the period.* Make it shorter"),
        (lambda s: s.schedule(period="1h", start="x"), TRIG, "start='x' must be a datetime, such as"),
        (lambda s: s.schedule(period="1h", end=NAIVE), TRIG, "end=.* has no timezone.* Give it one"),
        (lambda s: s.schedule(period="1h", skip=3), TRIG, "skip=3 must be a set of dates, or a function"),
        (lambda s: s.schedule(period="1h", when_idle="x"), REG, "when_idle='x' is unknown; accepted are"),
        (lambda s: s.schedule(period="1h", stale_after="x"), TRIG, f"stale_after='x' is no duration. .* {PERIOD}"),
        (lambda s: s.schedule(period="1h", isolate="x"), REG, "isolate='x' must be True, False or None"),
        (lambda s: s.schedule(period="1h", default=pn.pane.Str("x")), ValueRefused, "default=.* Return the data"),
    ],
    "schedule_task": [
        (lambda s: s.front.schedule_task(3, one, period="1h"), REG, "name=3 must be a text"),
        (lambda s: s.front.schedule_task("x", 3, period="1h"), REG, "Only a function can be made a task, and not 3"),
        (lambda s: s.front.schedule_task("x", add, period="1h"), REG, "Task 'x': its function needs a"),
        (lambda s: s.front.schedule_task("x", one), REG, "Task 'x': Give one of period=, cron= and at="),
        (lambda s: s.front.schedule_task("x", one, period="zz"), TRIG, f"Task 'x': The period 'zz' {PERIOD}"),
        (lambda s: s.front.schedule_task("x", one, cron="zz"), TRIG, "Task 'x': .*zz"),
        (lambda s: s.front.schedule_task("x", one, cron="* * * * *", at=iter([])), REG, "Task 'x': With cron=, at= is"),
        (lambda s: s.front.schedule_task("x", one, "1h", threaded="no"), REG, "Task 'x': threaded='no' must be"),
        (lambda s: s.front.schedule_task("x", one, perod="1h"), TypeError, r"ps.schedule_task\(\).*mean 'period'\?"),
    ],
    "cancel_task": [
        (lambda s: s.front.cancel_task("slaes"), KeyError, "There is no task 'slaes'; there are: sales"),
        (lambda s: s.front.cancel_task("sales", wait="x"), REG, "wait='x' must be True or False"),
    ],
    "tasks": [
        (lambda s: s.front.tasks["slaes"], KeyError, "There is no task 'slaes'; there are: sales"),
        (lambda s: s.task.reschedule(), REG, "Task 'sales': A schedule is exactly one of .* none is given"),
        (lambda s: s.task.reschedule(period="x"), TRIG, f"Task 'sales': The period 'x' {PERIOD}"),
        (lambda s: s.task.wait_ready("10s"), TypeError, r"Task 'sales': wait_ready\(\) .*'10s'.* number of seconds"),
        (lambda s: s.task.stream("a", rollover=-1), TypeError, r"sales.stream\('a'\): it takes the names of columns"),
        (lambda s: s.task.stream(["a"], rollover=0), ValueError, "rollover=0.* a whole number of rows, at least 1"),
        (lambda s: s.task.view().pipe(3), TypeError, r"sales: pipe\(\) takes a function of the value, and not 3"),
    ],
    "on": [
        (lambda s: s.front.on("done", add), REG, "There is no event 'done'; there are 'failed'"),
        (lambda s: s.front.on("failed", 3), REG, r"The handler of 'failed' must be a function of \(task, run\)"),
        (lambda s: s.front.on("failed", one), REG, r"The handler of 'failed' must be a function of \(task, run\)"),
        (lambda s: s.front.on("failed", add, timeout="x"), TRIG, f"timeout='x' is no duration. .* {PERIOD}"),
    ],
    "alert": [
        (lambda s: s.front.alert("nowhere"), REG, "ps.alert sends to 'mailto:.*and 'nowhere' is none of these"),
        (lambda s: s.front.alert(3), REG, "ps.alert sends to .* and not to 3"),
        (lambda s: s.front.alert(one), REG, "ps.alert.* function of one argument"),
        (lambda s: s.front.alert("mailto:a@b"), REG, "no server is known for it. Set ps.config.smtp"),
        (lambda s: s.front.alert(HOOK, on=("done",)), REG, r"ps.alert\(on=.*there is no 'done'; there are 'failed'"),
        (lambda s: s.front.alert(HOOK, on="recovered"), REG, "never has anything to say: give 'failed'"),
        (lambda s: s.front.alert(HOOK, after=0), REG, "it is a whole number of failures, at least 1"),
        (lambda s: s.front.alert(HOOK, every="x"), TRIG, f"every='x' is no duration. .* {PERIOD}"),
        (lambda s: s.front.alert(HOOK, tasks=[3]), REG, r"ps.alert\(tasks=\[3\]\): it is a task or its name"),
    ],
    "background": [
        (lambda s: s.front.background(3), REG, "@ps.background in .*: options go by name, as in timeout='10m'"),
        (lambda s: s.front.background(lambda a: a), REG, "has no name of its own: give the job one, with name="),
        (lambda s: s.background(name="optimise", function=one), REG, "Job 'optimise' is defined twice: .* another"),
        (lambda s: s.background(timout=3), TypeError, r"ps.background\(\) .* 'timout'. Did you mean 'timeout'\?"),
        (lambda s: s.background(executor="x"), REG, "Job 'job': executor='x' is unknown; accepted are"),
        (lambda s: s.background(executor="loop"), REG, "Job 'job': a plain function would hold .* thread"),
        (lambda s: s.background(timeout=-1), TRIG, f"timeout=-1 is no duration. .* {SHORT}"),
        (lambda s: s.background(retry=1.5), REG, "retry=1.5 must be a count of 0 or more"),
        (lambda s: s.background(durable=1), REG, "durable=1 must be True or False"),
        (lambda s: s.background(ttl="2d"), TRIG, "ttl='2d' is longer than result_ttl='1d'"),
        (lambda s: s.background(key=3), REG, "Job 'job': key=3 must be a function"),
        (lambda s: s.background(retrigger="x"), REG, "retrigger='x' is unknown; accepted are"),
        (lambda s: s.background(on_session_end="x"), REG, "on_session_end='x' is unknown; accepted are"),
        (lambda s: s.job.submit(), TypeError, r"Job 'optimise': missing .* 'a'. It is called as optimise\(a"),
        (lambda s: s.job.submit(1, c=3), TypeError, r"Job 'optimise': .* 'c'. It is called as optimise\(a"),
        (lambda s: s.job.submit(pn.pane.Str("x")), ValueRefused, "Job 'optimise': argument 'a': .* Pass the data"),
        (lambda s: s.job.submit(s.task.view().param.value), TypeError, "Job 'optimise': argument 'a' is a reference"),
        (lambda s: s.job.submit_at(NAIVE, 1), TRIG, r"Job 'optimise': submit_at\(\): its time has no timezone.*Add"),
        (lambda s: s.job.submit_at("6:00", 1), TRIG, r"submit_at\(\): its time has to be an aware datetime"),
        (lambda s: s.job.submit_in("x", 1), TRIG, r"Job 'optimise': submit_in\(\) takes a period such as '10m'"),
        (lambda s: s.job.submit_in("1m"), TypeError, "Job 'optimise': missing a required argument: 'a'"),
        (lambda s: s.job.submit(1).result("10s"), TypeError, r"result\(\) .*timeout='10s'.* number of seconds"),
    ],
    "Job": [
        (lambda s: s.job.job(c=1), TypeError, r"Job 'optimise': .* 'c'. It takes \(a"),
        (lambda s: s.job.job().start(), TypeError, "Job 'optimise': missing a required argument: 'a'"),
        (lambda s: s.job.job().attach("nope"), KeyError, r"there is no run 'nope', .* optimise.runs\(\) has those"),
        (lambda s: s.job.job().attach(3), TypeError, r"Job 'optimise': attach\(\) takes a run of optimise.submit"),
        (lambda s: ps.JobPanel(s.job), TypeError, r"JobPanel shows a job, made by function.job\(...\)"),
    ],
    "memoize": [
        (lambda s: s.front.memoize(3), REG, "@ps.memoize in .*: options go by name, as in ttl='5m'"),
        (lambda s: s.front.memoize(lambda a: a), REG, "has no name of its own: give .* with name="),
        (lambda s: s.memoize(name="filtered", function=one), REG, "Memoized function 'filtered' is defined twice"),
        (lambda s: s.memoize(tll=3), TypeError, r"ps.memoize\(\) .* 'tll'. Did you mean 'ttl'\?"),
        (lambda s: s.memoize(ttl="x"), TRIG, f"Memoized function 'memo': ttl='x' is no duration. .* {PERIOD}"),
        (lambda s: s.memoize(ttl=one), REG, "ttl=.* must be a plain function, which is called with the answer"),
        (lambda s: s.memoize(max_stale="1h"), TRIG, "begins when ttl= is over, and there is none. Give a ttl"),
        (lambda s: s.memoize(after="sales"), TRIG, "after= takes a task or a list of tasks"),
        (lambda s: s.memoize(max_entries=0), REG, "max_entries=0 must be a whole number of at least 1, or None"),
        (lambda s: s.memoize(max_bytes="x"), REG, "max_bytes='x' must be a whole number of at least 1, or None"),
        (lambda s: s.memoize(key=3), REG, "Memoized function 'memo': key=3 must be a function"),
        (lambda s: s.memoize(ignore="zz"), REG, r"ignore= names 'zz', which is no parameter .* memo\(a"),
        (lambda s: s.memoize(executor="x"), REG, "executor='x' is unknown; accepted are"),
        (lambda s: s.memoize(keep=3), REG, "keep=3 must be a plain function, which is called with the answer"),
        (lambda s: s.memoize(error_ttl="x"), TRIG, f"error_ttl='x' is no duration. .* {PERIOD}"),
        (lambda s: s.memo(), TypeError, "missing 1 required positional argument: 'a'"),
        (lambda s: s.memo(sqlite3.connect(":memory:")), ArgumentUnkeyable, "argument a is a sqlite3.Conn.*ignore="),
        (lambda s: s.memo(pn.pane.Str("x")), ArgumentUnkeyable, "argument a is a panel.* Pass plain data"),
        (lambda s: s.memo.view(c=3), TypeError, r"filtered.view\(\): .* 'c'. It takes \(a"),
        (lambda s: s.memo.view(), TypeError, r"filtered.view\(\): missing a required argument: 'a'. It takes \(a"),
        (lambda s: s.memo.invalidate(), TypeError, "missing 1 required positional argument: 'a'"),
    ],
    "hasher": [
        (lambda s: s.front.hasher("x", one), REG, r"ps.hasher\('x', ...\): it takes a class first"),
        (lambda s: s.front.hasher(Site, 3), REG, r"ps.hasher\(Site, 3\): it takes a plain function second"),
        (lambda s: s.front.hasher(Site, one), REG, r"ps.hasher\(Site, .*\): it takes a plain function second"),
        (lambda s: s.front.hasher(dict, repr), REG, r"ps.hasher\(dict, ...\): plain data counts in full. Name"),
    ],
    "store": [
        (lambda s: s.front.store["nope"], KeyError, "nope"),
        (lambda s: s.front.store.__delitem__("nope"), KeyError, "nope"),
        (lambda s: s.front.store.__setitem__(3, 1), TypeError, "Names in ps.store are non-empty strings, and not 3"),
        (lambda s: s.front.store.rx(""), TypeError, "Names in ps.store are non-empty strings"),
        (lambda s: s.front.store.__setitem__("a", pn.pane.Str("x")), ValueRefused, r"ps.store\['a'\]: .*Return"),
        (lambda s: s.front.store.__setitem__("a", iter([])), ValueRefused, r"ps.store\['a'\]: .* Make a list of it"),
        (lambda s: s.front.store.entries(3), TypeError, r"ps.store.entries\(\) takes a memoized function"),
    ],
    "config": [
        (lambda s: s.set("stroe", "x"), ConfigError, "There is no option ps.config.stroe; there are admins, .*store"),
        (lambda s: s.config.stroe, AttributeError, "There is no option ps.config.stroe; there are admins, .*store"),
        (lambda s: Config({}).__setattr__("store", "mysql://x"), ConfigError, "ps.config.store .* accepted are"),
        (lambda s: Config({}).__setattr__("timezone", "Mars"), ConfigError, "is no IANA time zone such as"),
        (lambda s: Config({}).__setattr__("max_threads", 0), ConfigError, "ps.config.max_threads is 0: .* at least 1"),
        (lambda s: Config({}).__setattr__("admins", "bob"), ConfigError, "ps.config.admins is 'bob'; it is a list"),
        (lambda s: Config({}).__setattr__("token", "x"), ConfigError, "ps.config.token is no token: .* Make one with"),
        (lambda s: Config({"PANEL_SCHEDULE_MAX_THREADS": "x"}), ConfigError, "PANEL_SCHEDULE_MAX_THREADS is 'x'"),
    ],
    "Retry": [
        (lambda s: ps.Retry(0), REG, r"Retry\(max_attempts=0\) must be a whole number of at least 1"),
        (lambda s: ps.Retry(3, backoff=-1), TRIG, rf"Retry\(backoff=-1\) is no duration. .* {SHORT}"),
        (lambda s: ps.Retry(3, on="x"), REG, r"Retry\(on='x'\) must be an exception class or a tuple"),
        (lambda s: ps.Retry(3, delay=3), REG, r"Retry\(delay=3\) must be a function of the number"),
        (lambda s: ps.RetryLater("x"), TRIG, rf"RetryLater\('x'\): The period 'x' {PERIOD}"),
    ],
    "triggers": [
        (lambda s: ps.triggers.Every("x"), TRIG, f"The period 'x' {PERIOD}"),
        (lambda s: ps.triggers.Every("1h", anchor=3), TRIG, "The anchor of a period has to be an aware"),
        (lambda s: ps.triggers.Cron("x", timezone="UTC"), TRIG, "'x'"),
        (lambda s: ps.triggers.Dates([]), TRIG, "There is no date to run at. Give at least one"),
        (lambda s: ps.triggers.After(), TRIG, "There is no task to run after. Give at least one"),
        (lambda s: ps.triggers.Every("1h").next_after(NAIVE), TRIG, r"has no timezone. Use datetime.now"),
        (lambda s: ps.triggers.Every("1h").next_after("x"), TRIG, r"and not with 'x'. Use datetime.now"),
    ],
    "components": [
        (lambda s: ps.Freshness("sales"), TypeError, "Freshness shows a task, made by ps.schedule"),
        (lambda s: s.front.DataHealth(3), TypeError, r"ps.DataHealth\(label=3\): the label is a text"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [pytest.param(*each, id=f"{name} {at}") for name, some in MISUSES.items() for at, each in enumerate(some)],
)
def test_a_misuse_is_told_at_once(
    site: Site, call: Callable[[Site], object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        call(site)


def test_nothing_is_lost_by_any_of_them(site: Site) -> None:
    """What was defined before is there, and works."""
    for some in MISUSES.values():
        for call, error, _ in some:
            with pytest.raises(error):
                call(site)
    assert {"sales": site.task} == dict(site.front.tasks)
    assert 1 == site.task.refresh().result(30)
    assert 3 == site.job.submit(1).result(30) == site.memo(1)


def test_every_function_is_in_the_table() -> None:
    """But those that take nothing, or report whatever they are given."""
    functions = {name for name in ps.__all__ if callable(getattr(ps, name))}
    others = {"current_run", "progress", "run_forever", "stop", "track"}
    assert set() == {name for name in functions if name.islower()} - others - set(MISUSES)


def test_a_date_is_read_in_whatever_zone_it_has(site: Site) -> None:
    """The right use beside it, lest the checks refuse that."""
    assert "2027" in str(site.front.schedule(at=datetime(2027, 1, 1, tzinfo=UTC), name="once")(one))
    site.front.cancel_task("once")
