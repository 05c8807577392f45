"""What may be registered, under which name, and what the errors say (invariants 1 and 2)."""

from __future__ import annotations

import functools
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from unittest.mock import MagicMock, Mock

import numpy as np
import pandas as pd
import panel as pn
import pytest

from core import Core, messages, second
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import ConfigError, RegistrationError, ScheduleError, TriggerError
from panel_schedule.functions.calls import is_async
from panel_schedule.functions.registry import Registry
from panel_schedule.functions.task import Retry, Task
from panel_schedule.hashing.fingerprint import Origin
from panel_schedule.runtime import Runtime
from panel_schedule.triggers import Cron, Dates, Every


def executed(source, module="tasks", file="/srv/tasks.py", **names):
    """The functions of a file, executed as a module of some name."""
    space = {"__name__": module, **names}
    exec(compile(source, file, "exec"), space)
    return space


# ------------------------------------------------------------ the same again


def test_a_function_becomes_a_task_under_its_own_name(core):
    """`name` defaults to the function's __name__; the task is what the decorator returns."""

    @core.ps.schedule(period="1m")
    def sales():
        return 1

    assert isinstance(sales, Task)
    assert ("sales", sales) == (sales.name, core.ps.tasks["sales"])
    assert 1 == sales.function()


def test_a_file_that_is_executed_twice_has_its_tasks_once(core):
    """As the setup script, and as an imported module: the second execution gets the same Task (invariant 1)."""
    source = "@schedule(period='1m')\ndef sales():\n    return 1\n"

    setup = executed(source, "panel_setup_module", schedule=core.ps.schedule)
    imported = executed(source, "tasks", schedule=core.ps.schedule)

    assert setup["sales"] is imported["sales"]
    assert 1 == len(core.ps.tasks)


def test_a_task_registered_again_keeps_value_and_schedule(core):
    """Nothing starts anew, also while the clocks run."""
    count = []
    source = "@schedule(period='1h')\ndef sales():\n    count.append(1)\n    return len(count)\n"
    first = executed(source, "panel_setup_module", schedule=core.ps.schedule, count=count)["sales"]
    core.begin()
    second_time = executed(source, "tasks", schedule=core.ps.schedule, count=count)["sales"]
    core.go()

    assert first is second_time
    assert ([1], 1, 1) == (count, first(), first.entry.version)


def test_another_function_under_a_taken_name_is_an_error(core):
    """It names the task, both places and the remedy."""
    source = "@schedule(period='1m')\ndef sales():\n    return 1\n"
    executed(source, file="/srv/one.py", schedule=core.ps.schedule)

    with pytest.raises(RegistrationError, match=r"'sales'.*/srv/one\.py:1.*/srv/two\.py:1.*name="):
        executed(source, file="/srv/two.py", schedule=core.ps.schedule)
    assert "/srv/one.py" == Origin.of(core.ps.tasks["sales"].function).file


def test_another_function_of_the_same_file_under_a_taken_name_is_an_error(core):
    """The qualified names differ."""

    def other():
        return 2

    core.ps.schedule(period="1m", name="sales")(lambda: 1)

    with pytest.raises(RegistrationError, match="'sales'"):
        core.ps.schedule(period="1m", name="sales")(other)


def test_a_lambda_of_a_file_that_is_executed_twice_is_the_same(core):
    """As any function of it."""
    source = "sales = schedule(period='1m', name='sales')(lambda: 1)\n"

    first, again = (executed(source, module, schedule=core.ps.schedule) for module in ("setup", "tasks"))

    assert first["sales"] is again["sales"]


def test_after_an_edit_under_dev_the_new_definition_replaces_the_old_one(core, monkeypatch):
    """Value and history stay; policy and function are new (invariant 1)."""
    source = "@schedule(period={!r})\ndef sales():\n    return {}\n"
    task = executed(source.format("1h", 1), schedule=core.ps.schedule)["sales"]
    core.begin()
    monkeypatch.setattr(pn.config, "autoreload", True)

    edited = executed(source.format("10s", 2), schedule=core.ps.schedule)["sales"]
    before = edited()
    core.run_for(10)

    assert task is edited
    assert (1, 2) == (before, edited())
    assert "every 10 s" == edited.status.schedule
    assert {1, 2} <= {record.attempt + index for index, record in enumerate(edited.history)}


def test_without_dev_an_edited_definition_changes_nothing(core):
    """The running server keeps what it has."""
    source = "@schedule(period='1h')\ndef sales():\n    return {}\n"
    executed(source.format(1), schedule=core.ps.schedule)
    edited = executed(source.format(2), schedule=core.ps.schedule)["sales"]

    assert 1 == edited.function()


def test_a_moved_function_is_the_same_function(core):
    """An edit above it changes its line, and nothing else."""
    source = "@schedule(period='1m')\ndef sales():\n    return 1\n"
    first = executed(source, schedule=core.ps.schedule)["sales"]

    assert first is executed("\n\n\n" + source, schedule=core.ps.schedule)["sales"]


# ------------------------------------------------------------ another one of the same place


class Source:
    """Without a content that could be compared."""

    def __init__(self, name):
        self.name = name

    def load(self, n=0):
        return self.name


@dataclass
class Table:
    name: str

    def load(self, n=0):
        return self.name

    def __call__(self, n=0):
        return self.name


def of_closure(name):
    def load(n=0):
        return name

    return load


def of_closure_over_an_object(name):
    source = Source(name)

    def load(n=0):
        return source.name

    return load


def of_closure_over_a_function(name):
    inner = of_closure(name)

    def load(n=0):
        return inner(n)

    return load


def of_closure_over_functions(name):
    steps = {"first": [of_closure(name)]}["first"]

    def load(n=0):
        return steps[0](n)

    return load


def of_frame(name):
    frame = pd.DataFrame({"name": [name] * 3})

    def load(n=0):
        return frame.name[0]

    return load


def of_default(name):
    def load(n=0, name=name):
        return name

    return load


def of_keyword_default(name):
    def load(n=0, *, name=name):
        return name

    return load


def of_recursion(name):
    def load(n=0):
        return load(n - 1) if n > 0 else name

    return load


def of_wrapper(name):
    return wrapped(of_closure(name))


def of_lambda(name):
    return (lambda n=0: "north") if name == "north" else (lambda n=0: "south")


def of_two_definitions(name):
    if name == "north":

        def load(n=0):
            return "north"

    else:

        def load(n=0):
            return "south"

    return load


def given(name, n=0):
    return name


PLACES = [
    of_closure,
    of_closure_over_a_function,
    of_closure_over_functions,
    of_frame,
    of_default,
    of_keyword_default,
    of_recursion,
    of_wrapper,
    of_lambda,
    of_two_definitions,
    lambda name: functools.partial(given, name),
    lambda name: functools.partial(given, name=name),
    lambda name: functools.partial(functools.partial(of_closure(name)), n=1),
    lambda name: functools.partial(Table(name).load, 1),
    lambda name: Table(name).load,
    lambda name: Table(name),
    lambda name: functools.cache(of_closure(name)),
]
IDS = [
    "closure", "function", "functions", "frame", "default", "keyword", "recursion", "wrapper", "lambda", "definitions",
    "partial", "partial by name", "partial of partial", "partial of method", "method", "object", "cached",
]  # fmt: skip
DECORATORS = {
    "schedule": lambda ps, function: ps.schedule(period="1h", first_run="skip", name="load")(function),
    "background": lambda ps, function: ps.background(executor="thread", name="load")(function),
    "memoize": lambda ps, function: ps.memoize(name="load")(function),
}


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
@pytest.mark.parametrize("make", [*PLACES, of_closure_over_an_object, lambda name: Source(name).load])
def test_another_function_of_the_same_place_is_an_error(core, decorate, make):
    """Another closure, default, partial argument or object gives other data (invariant 1)."""
    decorate(core.ps, make("north"))

    with pytest.raises(RegistrationError, match=r"'load' is defined twice.*They differ in the .*name="):
        decorate(core.ps, make("south"))


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
@pytest.mark.parametrize("make", PLACES, ids=IDS)
def test_the_same_function_made_again_is_the_same(core, decorate, make):
    """What has a content is compared by it."""
    assert decorate(core.ps, make("north")) is decorate(core.ps, make("north"))


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
def test_what_has_no_content_is_the_same_as_the_same_object_only(core, decorate):
    """Of a connection nobody can say whether it is the same one as another."""
    source = Source("north")
    made = decorate(core.ps, functools.partial(Source.load, source))

    assert made is decorate(core.ps, functools.partial(Source.load, source))
    with pytest.raises(RegistrationError, match="argument 0 of its partial"):
        decorate(core.ps, functools.partial(Source.load, Source("north")))


def test_a_function_of_a_file_that_is_executed_twice_may_use_tasks_and_modules(core):
    """They are the same objects for both executions; its own helpers are not."""
    source = (
        "import math\ndef helper(): pass\n"
        "raw = schedule(period='1m', name='raw', first_run='skip')(helper)\n"
        "def make(*used):\n    def load(): return used\n    return load\n"
        "load = schedule(period='1m', first_run='skip')(make(math, raw, helper))\n"
    )
    first, again = (executed(source, module, schedule=core.ps.schedule) for module in ("__main__", "tasks"))

    assert first["load"] is again["load"]


def test_a_constant_of_another_type_is_another_lambda(core):
    """1 == True, but not as a value."""
    ones = [eval(compile(f"lambda: {one}", "tasks.py", "eval")) for one in ("1", "True")]
    core.ps.memoize(name="one")(ones[0])

    with pytest.raises(RegistrationError, match="'one'"):
        core.ps.memoize(name="one")(ones[1])


def test_another_callback_under_a_taken_name_is_told_from_the_first(core, caplog):
    """As Panel's own does: it warns, and ignores it."""
    first = core.ps.schedule_task("load", functools.partial(given, "north"), period="1h")
    assert first is core.ps.schedule_task("load", functools.partial(given, "north"), period="1h")
    assert [] == messages(caplog)

    assert first is core.ps.schedule_task("load", functools.partial(given, "south"), period="1h")
    assert ["'load'"] == [f"'{message.split(chr(39))[1]}'" for message in messages(caplog)]


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
def test_under_dev_another_closure_replaces_the_first(core, monkeypatch, decorate):
    """As after an edit of the file that makes the function."""
    monkeypatch.setattr(pn.config, "autoreload", True)
    made = decorate(core.ps, of_closure_over_an_object("north"))

    assert made is decorate(core.ps, of_closure_over_an_object("south"))
    assert "south" == made.function()


def test_handlers_that_differ_are_two_handlers(core):
    """And the same one again is one."""
    told = []
    for name in ("north", "south", "south"):
        core.ps.on("succeeded", lambda task, run, name=name: told.append(name))
    task = core.schedule(period="1h", name="fetch", first_run="skip")(lambda: 1)
    core.begin()
    task.refresh()
    core.go()

    assert ["north", "south"] == sorted(told)


# ------------------------------------------------------------ callables of all kinds


class Warehouse:
    def __init__(self, rows=3):
        self.rows = rows

    def load(self):
        return self.rows

    async def load_async(self):
        return self.rows

    def query(self, table):
        return table

    def __call__(self):
        return self.rows


class AsyncWarehouse(Warehouse):
    async def __call__(self):
        return self.rows


def plain():
    return "plain"


async def coroutine():
    return "coroutine"


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Warehouse().load, 3),
        (Warehouse().load_async, 3),
        (Warehouse(), 3),
        (AsyncWarehouse(), 3),
        (lambda: 3, 3),
        (functools.partial(Warehouse().query, "sales"), "sales"),
        (functools.partial(coroutine), "coroutine"),
        (wrapped(plain), "plain"),
        (dict, {}),
    ],
    ids=["method", "async method", "object", "async object", "lambda", "partial", "async partial", "wrapper", "class"],
)
def test_every_kind_of_callable_can_be_scheduled_under_a_name(core, function, expected):
    """Bound methods, partials, lambdas, objects with __call__, wrappers and classes (2.1)."""
    task = core.ps.schedule(period="1h", name="given")(function)
    core.begin()

    assert expected == task()


@pytest.mark.parametrize(
    "function", [functools.partial(plain), Warehouse(), lambda: 3], ids=["partial", "object", "lambda"]
)
def test_what_has_no_name_of_its_own_needs_one(core, function):
    """The error says how to give it one."""
    with pytest.raises(RegistrationError, match="name="):
        core.ps.schedule(period="1h")(function)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (plain, False),
        (coroutine, True),
        (functools.partial(coroutine), True),
        (functools.partial(functools.partial(plain)), False),
        (Warehouse().load_async, True),
        (AsyncWarehouse(), True),
        (Warehouse(), False),
        (dict, False),
        (len, False),
    ],
)
def test_async_functions_are_told_from_plain_ones(function, expected):
    """Whatever they are wrapped in."""
    assert expected == is_async(function)


def test_parameters_with_defaults_are_fine(core):
    """Also star arguments and keyword-only ones."""

    def load(table="sales", *args, limit=10, **options):
        return table, limit

    task = core.ps.schedule(period="1h")(load)
    core.begin()

    assert ("sales", 10) == task()


def _positional(table):
    pass


def _keyword(*, table):
    pass


def _both(a, b=1, *, table):
    pass


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        (_positional, "table"),
        (_keyword, "table"),
        (_both, "a, table"),
        (Warehouse().query, "table"),
        (wrapped(_positional), "table"),
    ],
    ids=["positional", "keyword", "both", "method", "wrapper"],
)
def test_a_function_with_required_parameters_is_refused(core, function, missing):
    """The error names the task, the parameters and the remedy (2.1)."""
    with pytest.raises(RegistrationError, match=rf"'{function.__name__}'.*needs {missing},.*partial"):
        core.ps.schedule(period="1h")(function)
    assert {} == dict(core.ps.tasks)


# ------------------------------------------------------------ refusals


def test_the_bare_decorator_is_refused(core):
    """@ps.schedule without a schedule names the function and shows how (2.4)."""
    with pytest.raises(RegistrationError, match=r"@ps\.schedule\(period='15m'\) above 'plain'"):
        core.ps.schedule(plain)


def test_no_schedule_is_refused(core):
    """Exactly one of the five says when."""
    with pytest.raises(RegistrationError, match=r"period=, cron=, at= and after=, and none is given"):
        core.ps.schedule()


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((), {"period": "1m", "cron": "@daily"}, "period and cron"),
        (("1m",), {"period": "1m"}, "when and period"),
        ((), {"at": [second(1)], "period": "1m"}, "period and at"),
    ],
)
def test_two_schedules_are_refused(core, args, kwargs, named):
    """The error names both."""
    with pytest.raises(RegistrationError, match=f"exactly one.*{named} are given"):
        core.ps.schedule(*args, **kwargs)


def test_an_unknown_option_is_refused(core):
    """The error names it, and the option that is spelled nearly so."""
    with pytest.raises(TypeError, match=r"ps\.schedule\(\) got.*'perod'. Did you mean 'period'\?"):
        core.ps.schedule(perod="1m")


def test_an_option_of_nothing_is_refused_with_those_that_there_are(core):
    with pytest.raises(TypeError, match=r"ps\.background\(\) got.*'xyz'. There are .*executor, timeout, retry"):
        core.ps.background(xyz=1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("executor", "celerie", r"executor='celerie'.*'loop', 'thread'"),
        ("overlap", "never", r"overlap='never'.*'skip', 'queue', 'replace'"),
        ("first_run", "later", r"first_run='later'.*'wait', 'background', 'skip'"),
        ("when_idle", "sleep", r"when_idle='sleep'.*'run', 'skip'"),
        ("retry", -1, r"retry=-1"),
        ("retry", True, r"retry=True"),
        ("retry", "twice", r"retry='twice'"),
        ("needs", "raw", r"needs=.*'raw'"),
        ("needs", 5, r"needs=.*5"),
        ("needs", plain, r"needs=.*plain"),
        ("timeout", "soon", r"timeout.*'soon'"),
        ("timeout", 0, r"timeout.*0"),
        ("timeout", -5, r"timeout.*-5"),
        ("stale_after", "old", r"stale_after.*'old'"),
        ("stale_after", True, r"stale_after.*True"),
        ("catch_up", "no", r"catch_up='no' must be True or False"),
        ("catch_up", 1, r"catch_up=1 must be True or False"),
        ("catch_up", None, r"catch_up=None must be True or False"),
        ("isolate", "yes", r"isolate='yes' must be True, False or None"),
        ("isolate", 0, r"isolate=0 must be True, False or None"),
        ("name", 5, r"name=5 must be a text"),
        ("name", "", r"name='' must be a text"),
        ("timeout", np.timedelta64(5, "m"), r"timeout.*pandas\.Timedelta"),
        ("retry", 1.0, r"retry=1\.0"),
        ("needs", MagicMock(), r"needs=.*MagicMock"),
        ("needs", Mock(spec=Task), r"needs=.*Mock"),
        ("catch_up", Mock(), r"catch_up=.*Mock"),
        ("executor", Mock(), r"executor=.*Mock.*'loop', 'thread'"),
        ("retry", Mock(), r"retry=.*Mock"),
    ],
)
def test_an_option_that_means_nothing_is_refused(core, option, value, message):
    """The error names the option, what was given and what is accepted."""
    with pytest.raises(ScheduleError, match=message):
        core.ps.schedule(period="1m", **{option: value})(plain)
    assert {} == dict(core.ps.tasks)


def test_what_numpy_counts_and_decides_is_taken(core):
    """Its integers and booleans are none to `isinstance`, and mean the same."""
    task = core.ps.schedule(np.int64(60), retry=np.int32(2), catch_up=np.bool_(False), timeout=np.float32(5))(plain)
    assert (Every("1m"), Retry(3), False, 5.0) == (
        task.policy.trigger, task.policy.retry, task.policy.catch_up, task.policy.timeout
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ps: ps.schedule_task("t", print, period="1h", threaded="no"), "threaded='no' must be True or False"),
        (lambda ps: ps.cancel_task("known", wait="no"), "wait='no' must be True or False"),
        (lambda ps: ps.on("failed", None), "handler of 'failed' must be a function"),
        (lambda ps: Retry(max_attempts=0), r"Retry\(max_attempts=0\)"),
        (lambda ps: Retry(max_attempts=2.0), r"Retry\(max_attempts=2\.0\)"),
        (lambda ps: Retry(backoff=-1), r"Retry\(backoff=-1\) is no duration"),
        (lambda ps: Retry(max_delay="long"), r"Retry\(max_delay='long'\) is no duration"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(core, wrong, message):
    core.ps.schedule(period="1h", name="known", first_run="skip")(plain)
    with pytest.raises(ScheduleError, match=message):
        wrong(core.ps)


@pytest.mark.parametrize("where", ["when", "period", "cron", "after", "timezone", "name"])
def test_a_mock_is_no_schedule(core, where):
    """It has every attribute, and so seems to be everything."""
    for mock in (Mock(), MagicMock(), Mock(spec=Every), Mock(spec=Task)):
        options = {} if where in ("when", "period", "cron", "after") else {"cron": "* * * * *", "timezone": "UTC"}
        args = [mock] if where == "when" else []
        with pytest.raises(ScheduleError):
            core.ps.schedule(*args, **options | ({} if args else {where: mock}))(plain)


def test_a_mock_may_be_the_function(core):
    """Registered twice it is compared with itself; that ended never."""
    function = Mock(return_value=3)
    for decorate in (
        core.ps.schedule(period="1h", name="f", first_run="skip"),
        core.ps.background(executor="thread", name="f"),
        core.ps.memoize(name="f"),
    ):
        assert decorate(function) is decorate(function)
        with suppress(RegistrationError):
            decorate(Mock())


@pytest.mark.parametrize("after", ["raw", 5, plain, ["raw"], [], MagicMock()])
def test_after_takes_tasks(core, after):
    """Anything else is refused, with what was given."""
    with pytest.raises(ScheduleError, match=r"after"):
        core.ps.schedule(after=after)


def test_a_follower_of_a_cancelled_task_is_refused(core):
    """The error names both; it does not come as a KeyError from inside."""
    raw = core.ps.schedule(period="1m", name="raw")(plain)
    core.ps.cancel_task("raw")

    with pytest.raises(ScheduleError, match="'raw'"):
        core.ps.schedule(after=raw, name="child")(coroutine)
    assert {} == dict(core.ps.tasks)


@pytest.mark.parametrize("what", [{"at": datetime(2026, 1, 1)}, {"at": [datetime(2026, 1, 1)]}])
def test_a_naive_datetime_is_refused(core, what):
    """The error says that the timezone is missing, and how to add one."""
    with pytest.raises(TriggerError, match="no timezone"):
        core.ps.schedule(**what)


def test_a_positional_naive_datetime_is_refused(core):
    """The positional form is as strict."""
    with pytest.raises(TriggerError, match="no timezone"):
        core.ps.schedule(datetime(2026, 1, 1))


def test_a_cron_schedule_needs_a_zone(core):
    """Argument or ps.config; the error names both (invariant 4)."""
    with pytest.raises(ScheduleError, match=r"timezone"):
        core.ps.schedule(cron="0 4 * * *")


def test_the_zone_of_the_configuration_is_the_default():
    """ps.config.timezone serves cron schedules, and disturbs no others."""
    with Core(timezone="Europe/Berlin") as core:
        daily = core.ps.schedule(cron="0 4 * * *", first_run="skip", name="daily")(plain)
        often = core.ps.schedule(period="1m", first_run="skip", name="often")(plain)
        elsewhere = core.ps.schedule(cron="0 4 * * *", timezone="UTC", first_run="skip", name="elsewhere")(plain)
        core.begin()

        due = [task.status.next_run for task in (daily, often, elsewhere)]

    assert [second(3 * 3600), second(60), second(4 * 3600)] == due


def test_the_next_run_is_told_in_the_zone_of_the_schedule():
    """On the clock that its author reads: cron's own, else that of the configuration, and else UTC."""
    with Core(timezone="Asia/Tokyo") as core:
        tasks = [
            core.ps.schedule(cron="0 4 * * *", timezone="Europe/Berlin", first_run="skip", name="berlin")(plain),
            core.ps.schedule(cron="0 4 * * *", first_run="skip", name="tokyo")(plain),
            core.ps.schedule(period="1m", first_run="skip", name="often")(plain),
            core.ps.schedule(at=second(5), first_run="skip", name="once")(plain),
            core.ps.schedule_task("panel's", plain, cron="0 4 * * *"),
        ]
        core.begin()
        tasks[1].reschedule(cron="0 4 * * *", timezone="America/New_York")
        told = [str(task.status.next_run.tzinfo) for task in tasks]
        shown = [str(task.view().next_run.tzinfo) for task in tasks]

    assert ["Europe/Berlin", "America/New_York", "Asia/Tokyo", "Asia/Tokyo", "UTC"] == told == shown


def test_without_a_zone_the_next_run_is_told_in_utc(core):
    task = core.ps.schedule(period="1m", first_run="skip")(plain)
    last = core.ps.schedule(at=datetime.max.replace(tzinfo=UTC), name="last")(plain)
    core.begin()
    assert (UTC, datetime.max.replace(tzinfo=UTC)) == (task.status.next_run.tzinfo, last.status.next_run)


@pytest.mark.parametrize("when", [{"period": "1m"}, {"at": [second(1)]}])
def test_a_zone_without_cron_is_refused(core, when):
    """It would mean nothing; the error says what to write instead."""
    with pytest.raises(RegistrationError, match=r"timezone='Europe/Berlin'.*cron="):
        core.ps.schedule(timezone="Europe/Berlin", **when)


def test_a_function_of_the_served_script_is_refused(core):
    """Panel's own test; the error says where to put it (invariant 2)."""
    space = executed("def sales():\n    return 1\n", "bokeh_app_1234567890")

    with pytest.raises(RegistrationError, match=r"'sales'.*served script.*tasks\.py.*--setup"):
        core.ps.schedule(period="1m")(space["sales"])


def test_a_task_is_not_scheduled_again(core):
    """Its function is."""
    task = core.ps.schedule(period="1m")(plain)

    with pytest.raises(RegistrationError, match=r"plain\.function"):
        core.ps.schedule(period="1h", name="again")(task)


@pytest.mark.parametrize("nothing", [None, 5, "sales", [plain]])
def test_what_cannot_be_called_is_refused(core, nothing):
    """The error shows it."""
    with pytest.raises(RegistrationError, match="function"):
        core.ps.schedule(period="1m")(nothing)


# ------------------------------------------------------------ the positional form


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("15m", Every("15m")),
        ("5 minutes", Every("5m")),
        ("1 hour 30 minutes", Every("90m")),
        (90, Every(90)),
        (0.5, Every(0.5)),
        (timedelta(days=1), Every("1d")),
        (second(5), Dates(second(5))),
        ([second(5), second(9)], Dates([second(5), second(9)])),
        ({second(5)}, Dates([second(5)])),
        ("0 */15 * * * *", Cron("0 */15 * * * *", timezone="UTC")),
        ("2 4 * * mon,fri", Cron("2 4 * * mon,fri", timezone="UTC")),
        ("@daily", Cron("@daily", timezone="UTC")),
        (Every("7s", anchor=second(3)), Every("7s", anchor=second(3))),
    ],
    ids=str,
)
def test_the_first_argument_says_what_it_is(when, expected):
    """Period, cron expression, dates, or a trigger."""
    with Core(timezone="UTC") as core:
        assert expected == core.ps.schedule(when)(plain).policy.trigger


@pytest.mark.parametrize("when", ["soon", "15", "15 parsecs", "* * * *", "", "1m 1m", object(), 5j, b"15m"])
def test_a_first_argument_that_means_nothing_is_refused(when):
    """The error shows it, and what is accepted."""
    with Core(timezone="UTC") as core, pytest.raises(ScheduleError):
        core.ps.schedule(when)(plain)


def test_a_step_beyond_its_field_is_warned_of_once(core, caplog):
    """However often, and by whichever function, the expression is given."""
    task = core.ps.schedule("*/90 * * * *", timezone="UTC")(plain)
    core.ps.schedule(cron="*/90 * * * *", timezone="UTC", name="again")(plain)
    task.reschedule(cron="*/90 * * * *", timezone="UTC")
    core.ps.schedule_task("panel's", plain, cron="*/90 * * * *")

    (message,) = messages(caplog)
    assert 'period="90m"' in message


def test_every_second_is_warned_of(core, caplog):
    """Six fields that begin with * are rarely meant; the warning names the remedy (section 5)."""
    core.ps.schedule("* * * * * *", timezone="UTC")

    assert ["0 * * * * *"] == [message.split("'")[-2] for message in messages(caplog)]


# ------------------------------------------------------------ ps.tasks


def test_the_tasks_are_a_live_read_only_mapping(core):
    """In the order of registration; iterating survives a registration meanwhile."""
    tasks = core.ps.tasks
    core.ps.schedule(period="1m", name="b")(plain)
    core.ps.schedule(period="1m", name="a")(coroutine)
    seen = []
    for name in tasks:
        seen.append(name)
        core.ps.schedule(period="1m", name=f"{name}2" if len(name) == 1 else name)(plain if name == "b" else coroutine)

    assert ["b", "a"] == seen
    assert ["b", "a", "b2", "a2"] == list(tasks)
    assert (4, True, False) == (len(tasks), "a" in tasks, "c" in tasks)
    with pytest.raises(TypeError):
        tasks["c"] = 1


def test_a_missing_task_is_a_key_error_that_names_the_others(core):
    """And .get gives the default, as of any mapping."""
    core.ps.schedule(period="1m", name="sales")(plain)

    with pytest.raises(KeyError, match=r"'sale'.*sales"):
        core.ps.tasks["sale"]
    assert core.ps.tasks.get("sale") is None


def test_an_empty_registry_says_so():
    """Instead of an empty list."""
    with pytest.raises(KeyError, match="none"):
        Registry()["sales"]


# ------------------------------------------------------------ configuration


def config(environ=None, **options):
    made = Config(environ or {})
    for option, value in options.items():
        setattr(made, option, value)
    return made


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("MAX_THREADS", "3", 3),
        ("GRACE_PERIOD", "2.5", 2.5),
        ("HISTORY_LIMIT", "7", 7),
        ("READY_TIMEOUT", "10", 10.0),
        ("TIMEZONE", "Europe/Berlin", "Europe/Berlin"),
        ("STORE", "memory://", "memory://"),
    ],
)
def test_each_option_is_an_environment_variable(option, text, value):
    """PANEL_SCHEDULE_<NAME> (2.5)."""
    assert value == getattr(config({f"PANEL_SCHEDULE_{option}": text}), option.lower())


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("MAX_THREADS", "many"),
        ("MAX_THREADS", "0"),
        ("GRACE_PERIOD", "-1"),
        ("TIMEZONE", "Berlin"),
        ("STORE", "ftp://"),
    ],
)
def test_an_environment_variable_that_means_nothing_names_itself(option, text):
    """So that it is found."""
    with pytest.raises(ConfigError, match=rf"(?i){option}.*{text}"):
        config({f"PANEL_SCHEDULE_{option}": text})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_threads", 0),
        ("max_threads", "3"),
        ("max_threads", True),
        ("grace_period", float("inf")),
        ("grace_period", float("nan")),
        ("timezone", "Mars/Olympus"),
        ("store", "ftp://x"),
        ("store", 5),
    ],
)
def test_an_option_of_the_configuration_that_means_nothing_is_refused(option, value):
    """The error names it."""
    with pytest.raises(ValueError, match=option):
        config(**{option: value})


def test_an_unknown_option_of_the_configuration_is_refused():
    """A typing error must not pass silently; the error lists the options."""
    with pytest.raises(ConfigError, match=r"timezon.*max_threads"):
        config(timezon="UTC")


def test_the_configuration_freezes_at_the_first_start():
    """A later assignment raises, and says where to put it (2.5)."""
    frozen = config()
    runtime = Runtime(frozen)
    frozen.timezone = "UTC"
    Front(runtime).store["rates"] = 1

    with pytest.raises(ConfigError, match=r"ps\.config\.timezone.*setup script.*PANEL_SCHEDULE_TIMEZONE"):
        frozen.timezone = "Europe/Berlin"
    frozen.timezone = "UTC"  # a setup script that the app imports is executed twice
    assert "UTC" == frozen.timezone


def test_registering_tasks_does_not_freeze_the_configuration():
    """Nothing has started yet."""
    open_ = config()
    Front(Runtime(open_)).schedule(period="1m", name="sales")(plain)
    open_.max_threads = 2

    assert 2 == open_.max_threads


def test_a_default_zone_is_read_when_the_task_is_registered():
    """Setting it after a cron task that names none comes too late, and the task says so at once."""
    with pytest.raises(ScheduleError, match="timezone"):
        Front(Runtime(config())).schedule(cron="@daily")


# ------------------------------------------------------------ sessions


def test_two_tasks_of_one_function_need_two_names(core):
    """One function may serve several tasks."""
    one = core.ps.schedule(period="1m", name="one")(plain)
    two = core.ps.schedule(period="1h", name="two")(plain)

    assert one is not two
    assert ["one", "two"] == list(core.ps.tasks)


def test_no_warning_for_ordinary_tasks(core, caplog):
    """A plain registration is silent."""
    with caplog.at_level(logging.WARNING):
        core.ps.schedule(period="1m")(plain)
        core.ps.schedule(at=[datetime(2026, 1, 1, tzinfo=UTC)], name="dates")(coroutine)

    assert [] == messages(caplog)


@pytest.mark.parametrize(("autoreload", "schedule"), [(True, "every 5 min"), (False, "every 1 h")])
def test_an_edited_schedule_counts_as_an_edit_under_dev_only(core, monkeypatch, autoreload, schedule):
    """The function is the same to the letter; its period is not (1)."""
    monkeypatch.setattr(pn.config, "autoreload", autoreload)
    core.begin()
    for period in ("1h", "5m"):
        task = core.ps.schedule(period=period, first_run="skip", name="edited")(plain)

    assert schedule == task.status.schedule


def test_an_error_before_the_function_is_known_names_the_line(core):
    """A period that means nothing: the decorator's own line, or the name that was given."""
    with pytest.raises(ScheduleError, match=r"@ps.schedule in .*test_registry.py:\d+: The period '15 minuts'"):
        core.ps.schedule(period="15 minuts")
    with pytest.raises(ScheduleError, match="Task 'sales': The period '15 minuts'"):
        core.ps.schedule(period="15 minuts", name="sales")


def test_a_handler_of_a_file_that_runs_twice_is_one_handler(core):
    """The setup script is imported by the app, too; whoever mails on failure mails once."""
    told = []
    for module in ("panel_setup_module", "tasks"):
        code = compile("ps.on('succeeded', lambda task, run: told.append(task.name))", "tasks.py", "exec")
        exec(code, {"ps": core.ps, "told": told, "__name__": module})
    task = core.schedule(period="1h", name="fetch", first_run="skip")(lambda: 1)
    core.begin()
    task.refresh()
    core.go()

    assert ["fetch"] == told


def test_a_name_that_is_no_text_is_refused(core):
    """Half of a pair of code units cannot be written anywhere."""
    with pytest.raises(RegistrationError, match="no valid text"):
        core.ps.schedule(period="1h", name="sales \udcff")(lambda: 1)


def test_tasks_with_the_same_period_share_the_trigger(core):
    """It is a value; and there may be thousands of tasks."""
    one, other, third = (
        core.schedule(period=period, name=name)(lambda: 1)
        for name, period in zip("abc", ("1d", "1d", "2d"), strict=True)
    )

    assert one.policy.trigger is other.policy.trigger
    assert one.policy.trigger != third.policy.trigger


# ------------------------------------------------------------ files that are executed anew, under --dev

EDITABLE = """
@ps.schedule(period="1h")
def sales():
    return 1

@ps.background
def work():
    pass

@ps.memoize
def answer(x):
    return 1

ps.on("succeeded", lambda task, run: told.append("first"))
"""


@pytest.fixture
def edit(core, monkeypatch):
    """Execute a file anew: ``edit(source)``; what it has said is in ``edit.told``."""
    told = []

    def execute(source):
        with core.ps._runtime.edit({"tasks"}):
            return executed(source, "tasks", ps=core.ps, told=told)

    execute.told = told
    execute(EDITABLE)
    core.begin()
    core.go()
    monkeypatch.setattr(pn.config, "autoreload", True)
    return execute


def declared(core):
    runtime = core.ps._runtime
    return {name: each.function.__name__ for name, each in (*runtime.tasks.items(), *runtime.jobs.items())} | {
        name: each.function.__name__ for name, each in runtime.memos.items()
    }


def test_what_a_file_declares_no_more_is_gone(core, edit):
    """Tasks, background and memoized functions, and handlers; what is new is there."""
    del edit.told[:]
    edit(
        "@ps.schedule(period='1h')\ndef bought():\n    return 2\nps.on('succeeded', lambda t, r: told.append('new'))\n"
    )
    core.go()

    assert {"bought": "bought"} == declared(core)
    assert (2, ["new"]) == (core.ps.tasks["bought"](), edit.told)


def test_a_file_that_fails_at_its_end_changes_nothing(core, edit):
    """Though it has declared other functions, under old and new names, by then."""
    before = declared(core)
    sales, work = core.ps.tasks["sales"], core.ps._runtime.jobs["work"]
    functions = sales.function, work.function, sales.policy
    more = EDITABLE.replace("return 1", "return 2").replace("1h", "2h").replace("first", "second")
    with pytest.raises(ZeroDivisionError):
        edit(f"{more}\n@ps.schedule(period='1m')\ndef more():\n    return 3\n1 / 0\n")
    del edit.told[:]
    core.run_for(3600)

    assert before == declared(core)
    assert functions == (sales.function, work.function, sales.policy)
    assert (1, 2, ["first"]) == (sales(), sales.entry.version, edit.told)


def test_nothing_of_a_file_runs_before_its_end(core, edit):
    """A function may call what is defined below it."""
    source = "@ps.schedule(period='1h')\ndef {}():\n    return below()\nps.go()\ndef below():\n    return 2\n"
    core.ps.go = core.go
    for name in ("sales", "bought"):
        edit(source.format(name))
        core.go()
        assert 2 == core.ps.tasks[name]()


def test_another_function_may_have_the_name_of_one_that_is_gone(core, edit):
    """It was renamed, or has moved to another file; value and history stay."""
    task = core.ps.tasks["sales"]
    edit("@ps.schedule(period='1h', name='sales')\ndef total():\n    return 2\n")
    core.go()

    assert task is core.ps.tasks["sales"]
    assert ("total", 2, 2) == (task.function.__name__, task(), task.entry.version)


def test_two_functions_of_one_name_are_an_error_after_an_edit(core, edit):
    """As at the start; and the one that there was stays."""
    one = "@ps.schedule(period='1h', name='sales')\ndef {}():\n    pass\n"
    with pytest.raises(RegistrationError, match="defined twice"):
        edit(one.format("first") + one.format("second"))

    assert "sales" == core.ps.tasks["sales"].function.__name__


def test_a_function_that_an_edit_only_moves_does_not_run(core, edit):
    """Its slots stay what they are."""
    version = core.ps.tasks["sales"].entry.version
    edit(f"# a line\n{EDITABLE}")
    core.go()

    assert version == core.ps.tasks["sales"].entry.version


def test_a_new_task_whose_first_run_fails_ends_no_server(core, edit, monkeypatch):
    """Which served before it came."""
    ended = []
    core.ps._runtime.fatal = lambda task, run: ended.append(task)
    monkeypatch.setattr(pn.state, "_setup_module", object())
    edit("@ps.schedule(period='1h')\ndef fails():\n    1 / 0\n")
    core.go()

    assert ("failed", []) == (core.ps.tasks["fails"].status.state, ended)


FAMILY = "@ps.schedule(period='1h', each={each})\ndef orders(region):\n    return region + {number!r}\n"


@pytest.mark.parametrize("each", ["{}", "lambda: {}"], ids=["fixed keys", "a function"])
def test_a_family_is_what_its_file_says(core, edit, each):
    """Its keys, and its function; and it is gone with all of its tasks when the file has it no more."""

    def values():
        core.go()
        return {name: task() for name, task in core.ps.tasks.items() if name != "orders[]"}

    edit(FAMILY.format(each=each.format(["north", "south"]), number="1"))
    assert {"orders[north]": "north1", "orders[south]": "south1"} == values()
    south, family = core.ps.tasks["orders[south]"], core.ps._runtime.families["orders"]
    with pytest.raises(ZeroDivisionError):
        edit(FAMILY.format(each=each.format(["south", "west"]), number="2") + "1 / 0\n")
    core.run_for(3600)
    assert {"orders[north]": "north1", "orders[south]": "south1"} == values()
    assert ["north", "south"] == list(family)
    edit(FAMILY.format(each=each.format(["south", "west"]), number="2"))
    assert {"orders[south]": "south2", "orders[west]": "west2"} == values()
    assert south is core.ps.tasks["orders[south]"]
    assert ["south", "west"] == list(family)
    edit("")
    assert ({}, {}) == (values(), core.ps._runtime.families)
    assert "orders[]" not in core.ps.tasks


def test_a_callback_that_is_scheduled_as_with_panel_follows_its_file(core, edit):
    """It stays as long as the file has it, and runs anew where it was edited."""
    panels = EDITABLE + "def panels():\n    return {}\nps.schedule_task('panels', panels, period='1h')\n"
    versions = []
    for number in (1, 1, 1, 2):
        core.run_for(60)
        edit(panels.format(number))
        core.go()
        versions.append((core.ps.tasks["panels"](), core.ps.tasks["panels"].entry.version))
    assert [(1, 1), (1, 1), (1, 1), (2, 2)] == versions
    edit(EDITABLE)
    assert "panels" not in core.ps.tasks


@pytest.mark.parametrize(
    "declared_as",
    [
        "@ps.schedule(period='1h', group='nobody')\ndef sales():",
        "@ps.background(group='nobody')\ndef work():",
        "@ps.memoize(group='nobody')\ndef answer(x):",
    ],
)
def test_an_edit_that_names_no_group_changes_nothing(core, edit, declared_as):
    """As any that cannot be executed."""
    before, sales = declared(core), core.ps.tasks["sales"]
    with pytest.raises(ConfigError, match="group='nobody'"):
        edit(f"{declared_as}\n    return 3\n@ps.schedule(period='1m')\ndef more():\n    return 3\n")
    core.go()
    assert before == declared(core)
    assert (1, None) == (sales(), sales.policy.concurrency)


def retrying(function):
    """As a library does it."""
    return functools.wraps(function)(lambda: function())


def test_a_function_in_a_wrapper_is_that_of_its_file(core, edit):
    """It is gone when the file has it no more, and runs when its body is edited."""
    core.ps.retrying = retrying
    for number in (1, 2):
        edit(f"@ps.schedule(period='1h')\n@ps.retrying\ndef bought():\n    return {number}\n")
        core.go()
        assert number == core.ps.tasks["bought"]()
    edit("")
    assert {} == dict(core.ps.tasks)
