"""Families: one function, and a task for each key, as keys come and go."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import panel as pn
import pytest

import panel_schedule as ps
import panel_schedule.runtime
from core import Core, messages
from job_peer import Host
from panel_schedule.coordination.tasks import TASK
from panel_schedule.errors import ConfigError, RegistrationError, TriggerError
from panel_schedule.functions.run import Cause, RunState
from panel_schedule.functions.task import Policy
from panel_schedule.testing import Schedule
from panel_schedule.triggers import Every
from servers import eventually
from test_peers import OnFiles

pytest_plugins = ["panel_schedule.testing.plugin"]


def times(schedule: Schedule, name: str) -> list[str]:
    """When a task ran."""
    return [f"{run.at:%H:%M}" for run in schedule.runs if run.name == name and run.state is RunState.SUCCEEDED]


# ------------------------------------------------------------ fixed keys


def test_each_key_has_a_task(core: Core) -> None:
    """An ordinary one, which is called with its key."""

    @core.ps.schedule(period="1h", each=["north", "south"])
    def sales(region: str) -> str:
        return f"sales of the {region}"

    core.begin()
    assert ["north", "south"] == list(sales)
    assert 2 == len(sales)
    assert ["sales[north]", "sales[south]"] == list(core.ps.tasks)
    assert core.ps.tasks["sales[south]"] is sales["south"]
    assert "sales of the south" == sales["south"]()


def test_all_options_are_for_each_member(core: Core) -> None:
    """But for the keys."""

    @core.ps.schedule(period="1h", each=["north", "south"], timeout="5s", default=0, first_run="skip", retry=2)
    def sales(region: str) -> int:
        return 1

    for task in sales.values():
        policy = task.policy
        assert (5.0, 0, "skip", 3) == (policy.timeout, policy.default, policy.first_run, policy.retry.max_attempts)


def test_an_unknown_key_is_named(core: Core) -> None:
    @core.ps.schedule(period="1h", each=["north", "south"])
    def sales(region: str) -> int:
        return 1

    with pytest.raises(KeyError, match=r"Family 'sales' has no key 'west'; there are: north, south\."):
        sales["west"]
    assert "west" not in sales
    assert None is sales.get("west")


@pytest.mark.parametrize(
    ("each", "said"),
    [
        (["north", 2], "one is 2"),
        ([""], "one is ''"),
        (["\ud800"], "can be written"),
        (["north", "north"], "the key 'north' comes twice"),
        ("north", "'north' is no list of keys"),
        (5, "5 is no list of keys"),
    ],
)
def test_keys_that_mean_nothing_are_refused(core: Core, each: Any, said: str) -> None:
    """Naming the family; nothing of it is made."""
    with pytest.raises(RegistrationError, match=f"Family 'sales': .*{said}"):
        core.ps.schedule(period="1h", each=each, name="sales")(lambda region: 1)
    assert [] == list(core.ps.tasks)


@pytest.mark.parametrize("function", [lambda: 1, lambda one, other: 1, lambda *, region: 1, lambda region="north": 1])
def test_a_function_that_does_not_take_a_key_is_refused(core: Core, function: Callable[..., Any]) -> None:
    with pytest.raises(RegistrationError, match=r"Family 'sales': each= gives its function one key"):
        core.ps.schedule(period="1h", each=["north"], name="sales")(function)


def test_what_could_never_run_is_refused_before_there_is_a_key(core: Core) -> None:
    """An async function in a thread; keys of a task that was cancelled."""

    async def sales(region: str) -> int:
        return 1

    schedule = core.ps.schedule
    with pytest.raises(RegistrationError, match="Family 'sales': an async function runs on the event loop"):
        schedule(period="1h", each=lambda: ["north"], executor="thread")(sales)
    with pytest.raises(ConfigError, match=r"Family 'sales' has executor='celery'"):
        schedule(period="1h", each=lambda: ["north"], executor="celery", name="sales")(lambda region: 1)
    regions = schedule(period="1h", name="regions")(lambda: ["north"])
    core.ps.cancel_task("regions")
    with pytest.raises(RegistrationError, match="Family 'sales' depends on 'regions', which was cancelled"):
        schedule(period="1h", each=regions)(sales)
    assert ([], []) == (list(core.runtime.families), list(core.ps.tasks))


def test_a_schedule_without_keys_names_them(core: Core) -> None:
    """Of a function that needs something."""
    with pytest.raises(RegistrationError, match=r"its function needs region.* each=\['north', 'south'\]"):
        core.ps.schedule(period="1h", name="sales")(lambda region: 1)


def test_the_same_family_again_is_the_same(core: Core) -> None:
    """And another function of that name is refused."""
    schedule = core.ps.schedule(period="1h", each=["north"], name="sales")

    def sales(region: str) -> int:
        return 1

    assert schedule(sales) is schedule(sales)
    with pytest.raises(RegistrationError, match="Family 'sales' is defined twice"):
        schedule(lambda region: 2)


def test_a_family_may_have_the_keys_of_another_one(core: Core) -> None:
    """Whatever lists them."""
    fixed = core.ps.schedule(period="1h", each=["north"], name="fixed")(lambda region: 1)
    live = core.ps.schedule(period="1h", each=lambda: ["south"], name="live")(lambda region: 1)
    of_fixed = core.ps.schedule(period="1h", each=fixed, name="of fixed")(lambda region: 1)
    of_live = core.ps.schedule(period="1h", each=live, name="of live")(lambda region: 1)
    core.begin()
    assert (["north"], ["south"]) == (list(of_fixed), list(of_live))
    assert live.source is of_live.source


# ------------------------------------------------------------ keys that a function lists


def test_a_function_is_asked_for_the_keys_before_each_slot(schedule: Schedule) -> None:
    """Members that come run at once, those that go are gone; who stays keeps its times."""
    keys = ["north"]

    @ps.schedule(period="10m", each=lambda: keys, name="sales")
    def sales(region: str) -> str:
        return region

    schedule.begin()
    assert ["north"] == list(sales)
    keys[:] = ["north", "south"]
    schedule.advance("10m")
    assert ["north", "south"] == list(sales)
    assert "south" == sales["south"]()
    keys[:] = ["south"]
    schedule.advance("10m")
    assert ["south"] == list(sales)
    assert ["sales[]", "sales[south]"] == [name for name in ps.tasks if name.startswith("sales[")]
    assert ["00:00", "00:10"] == times(schedule, "sales[north]")
    assert ["00:10", "00:20"] == times(schedule, "sales[south]")


@pytest.mark.parametrize("kind", ["function", "async function", "generator function", "numpy array"])
def test_a_function_may_list_them_in_any_way(core: Core, kind: str) -> None:
    def plain() -> Any:
        return ("north", "south") if kind == "function" else np.array(["north", "south"])

    async def on_a_loop() -> list[str]:
        return ["north", "south"]

    def one_by_one() -> Iterator[str]:
        yield "north"
        yield "south"

    each: Any = {"async function": on_a_loop, "generator function": one_by_one}.get(kind, plain)
    sales = core.ps.schedule(period="1h", each=each, name="sales")(lambda region: region)
    core.begin()
    assert {"north": "north", "south": "south"} == {key: task() for key, task in sales.items()}
    assert ["north", "south"] == core.ps.tasks["sales[]"]()
    assert {str} == set(map(type, sales))


def test_the_keys_are_asked_for_at_once_also_where_members_skip_their_first_run(core: Core) -> None:
    """Else nobody would know whom there is until the first slot."""
    sales = core.ps.schedule(period="1h", each=lambda: ["north"], name="sales", first_run="skip")(lambda region: 1)
    core.begin()
    assert ["north"] == list(sales)
    assert None is sales["north"].entry


@pytest.mark.parametrize("answer", [ConnectionError("no database"), None, ["north", 2], ["north", "north"]])
def test_keys_that_cannot_be_had_stay_as_they_are(core: Core, answer: Any) -> None:
    """And that is seen, as of any task."""
    answers = [["north", "south"], answer]
    failed = core.events("failed")

    def each() -> Any:
        if isinstance(now := answers.pop(0), Exception):
            raise now
        return now

    sales = core.ps.schedule(period="1m", each=each, name="sales")(lambda region: 1)
    core.begin()
    core.run_for(60)
    assert ["north", "south"] == list(sales)
    assert [("failed", "sales[]")] == failed
    assert "failed" == core.ps.tasks["sales[]"].status.state
    assert 2 == sales["north"].entry.version  # type: ignore[union-attr]


def test_a_members_run_waits_for_the_keys_of_its_slot(core: Core) -> None:
    """One whose key goes does not run once more."""
    listing, ran = core.held("each"), list[str]()
    sales = core.ps.schedule(period="1m", each=listing, name="sales")(ran.append)
    core.begin()
    listing.finish(["north", "south"])
    core.go()
    ran.clear()
    core.run_for(60)
    assert [] == ran
    listing.finish(["south"])
    core.go()
    assert ["south"] == ran == list(sales)


def test_a_run_in_flight_of_a_key_that_goes_is_cancelled(core: Core) -> None:
    """And what it gives comes too late."""
    keys, body = core.ps.schedule(period="1h", name="keys")(lambda: keys_now), core.held("body")
    keys_now = ["north"]
    sales = core.ps.schedule(period="1h", each=keys, name="sales")(lambda region: body())
    core.begin()
    north = sales["north"]
    run = core.run_of(north)
    keys_now = []
    keys.refresh()
    core.go()
    assert (RunState.CANCELLED, Cause.REMOVED) == (run.state, run.reason)
    body.finish("late")
    core.go()
    assert ([], None) == (list(sales), core.service.store.values.entry(TASK, "sales[north]"))


def test_a_key_that_comes_back_begins_anew(core: Core) -> None:
    """Without the value and the history of before."""
    keys_now, calls = ["north"], list[str]()
    keys = core.ps.schedule(period="1h", name="keys")(lambda: list(keys_now))
    sales = core.ps.schedule(period="1h", each=keys, name="sales", default="none")(calls.append)
    core.begin()
    before = sales["north"]
    for keys_now[:] in ([], ["north"]):
        keys.refresh()
        core.go()
    assert before is not sales["north"]
    assert ["north", "north"] == calls
    assert 1 == len(sales["north"].history)


def test_pages_wait_for_the_members_that_there_are_at_the_start(core: Core) -> None:
    """And not for those that come later; these run in the background."""
    keys_now, body = ["north"], core.held("body")
    listing = core.held("listing")
    sales = core.ps.schedule(period="1m", each=listing, name="sales")(lambda region: body())
    core.begin()
    assert [core.ps.tasks["sales[]"]] == core.runtime.waiting_for()
    listing.finish(keys_now)
    assert [core.ps.tasks["sales[]"], sales["north"]][1:] == core.runtime.waiting_for()
    core.go()
    body.finish(1)
    core.go()
    assert [] == core.runtime.waiting_for()
    core.run_for(60)
    listing.finish(["north", "south"])
    core.go()
    assert 2 == body.flying
    assert [] == core.runtime.waiting_for()


@pytest.mark.parametrize("when", ["before a look", "during a look"])
def test_pages_wait_for_members_whose_keys_have_come_this_moment(core: Core, when: str) -> None:
    """Though nobody has made them yet."""
    listing, body, follow = core.held("listing"), core.held("body"), core.runtime._follow
    sales = core.ps.schedule(period="1m", each=listing, name="sales")(lambda region: body())
    core.begin()

    def list_keys() -> None:
        sales._changing = True
        listing.finish(["north"])
        core.go()
        sales._changing = False

    if when == "before a look":
        list_keys()
        waiting = core.runtime.waiting_for()
        assert ["sales[north]"] == [task.name for task in waiting]
    else:
        core.runtime._follow = lambda family: (follow(family), list_keys())  # type: ignore[method-assign]
        assert ["sales[]"] == [task.name for task in core.runtime.waiting_for()]


def test_pages_wait_for_no_family_that_one_of_them_has_defined(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for no such task."""
    monkeypatch.setattr(panel_schedule.runtime, "_in_session", lambda: True)
    body = core.held("body")
    core.ps.schedule(period="1m", each=lambda: ["north"], name="sales")(lambda region: body())
    monkeypatch.undo()
    core.begin()
    assert (1, []) == (body.flying, core.runtime.waiting_for())


def test_a_member_that_goes_before_its_first_value_stops_no_server(core: Core) -> None:
    """Whoever waits for pages waits for it no more."""
    core.runtime.config._frozen = False
    core.runtime.config.first_run_failure = "exit"
    fatal = list[Any]()
    core.runtime.fatal = lambda task, run: fatal.append(task)
    keys = core.ps.schedule(period="1h", name="keys")(lambda: keys_now)
    keys_now, body = ["north"], core.held("body")
    core.ps.schedule(period="1h", each=keys, name="sales")(lambda region: body())
    core.begin()
    assert ["sales[north]"] == [task.name for task in core.runtime.waiting_for()]
    keys_now = []
    keys.refresh()
    core.go()
    assert ([], []) == (fatal, core.runtime.waiting_for())


# ------------------------------------------------------------ keys that are the value of a task


def test_the_keys_follow_each_value_of_a_task(core: Core) -> None:
    """Its last one, not what a generator yields on the way."""

    @core.ps.schedule(period="1h", first_run="skip")
    def regions() -> Iterator[list[str]]:
        yield ["north"]
        seen.append(list(sales))
        yield ["north", "south"]

    seen = list[list[str]]()
    sales = core.ps.schedule(period="1h", each=regions, name="sales")(lambda region: region)
    core.begin()
    with pytest.raises(KeyError, match="as task 'regions', whose value lists them, has none yet"):
        sales["north"]
    regions.refresh()
    core.go()
    assert ([[]], ["north", "south"]) == (seen, list(sales))
    assert "south" == sales["south"]()


def test_keys_that_come_while_tasks_come_and_go_are_the_ones_that_hold() -> None:
    """What is called meanwhile may look at the family itself."""

    def listed(*keys: str) -> Any:
        return SimpleNamespace(value=keys, final=True)

    def come(policy: Any, name: str, function: Any) -> None:
        tasks[name] = SimpleNamespace(name=name)
        if name == "sales[north]":
            source.known = listed("south")
            family.follow(come, lambda task: tasks.pop(task.name))

    tasks, source = dict[str, Any](), SimpleNamespace(known=listed("north", "west"), name="regions")
    family = ps.Family("sales", str, tasks, lambda family: None)
    family.become(str, Policy(Every("1h"), needs=(source,)), source, None)  # type: ignore[arg-type]
    family.follow(come, lambda task: tasks.pop(task.name))
    assert ["sales[south]"] == list(tasks)


def test_a_value_that_lists_no_keys_is_told(core: Core, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and the keys stay."""
    values = [["north"], 5]
    regions = core.ps.schedule(period="1h", name="regions")(lambda: values.pop(0))
    sales = core.ps.schedule(period="1h", each=regions, name="sales")(lambda region: region)
    core.begin()
    regions.refresh()
    core.go()
    assert ["north"] == list(sales) == list(sales)
    said = [message for message in messages(caplog) if "Family" in message]
    assert [
        "Family 'sales': 5 is no list of keys. Give texts, as in ['north', 'south']. The keys stay as they are."
    ] == said


def test_in_a_script_the_keys_come_when_they_are_asked_for() -> None:
    """Where no clock runs."""
    with Core() as core:
        sales = core.ps.schedule(period="1h", each=lambda: ["north"], name="sales")(lambda region: region)
        assert sales.source is not None
        sales.source.refresh()
        core.go()
        run = sales["north"].refresh()
        core.go()
        assert "north" == run.result()


# ------------------------------------------------------------ other tasks, and other uses


def test_a_family_is_no_task_where_one_is_wanted(core: Core) -> None:
    """What to write is named."""
    sales = core.ps.schedule(period="1h", each=["north"], name="sales")(lambda region: region)
    with pytest.raises(TriggerError, match=r"not 'north'\. Of a family .* list\(family\.values\(\)\)"):
        core.ps.schedule(after=sales, name="sum")
    with pytest.raises(RegistrationError, match="it is a task or its name"):
        core.ps.alert(lambda alert: None, tasks=sales)  # type: ignore[arg-type]
    with pytest.raises(RegistrationError, match="is no plain function"):
        core.ps.schedule(period="1h", name="again")(sales)
    followed = core.ps.schedule(after=list(sales.values()), name="sum")(lambda: sales["north"]() * 2)
    core.begin()
    assert "northnorth" == followed()


def test_an_edit_under_dev_is_of_all_members(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other keys, too; what has none any more goes."""
    source = "@schedule(period='1h', each={}, name='sales')\ndef sales(region):\n    return {}\n"

    def executed(*parts: Any) -> ps.Family[int]:
        space: dict[str, Any] = {"schedule": core.ps.schedule, "__name__": "tasks"}
        exec(compile(source.format(*parts), "tasks.py", "exec"), space)
        family: ps.Family[int] = space["sales"]
        return family

    first = executed(["north", "south"], 1)
    core.begin()
    monkeypatch.setattr(pn.config, "autoreload", True)
    again = executed(["south", "west"], 2)
    core.go()
    assert first is again
    assert {"south": 2, "west": 2} == {key: task() for key, task in again.items()}
    executed("lambda: ['east']", 3)
    core.go()
    assert ["sales[]", "sales[east]"] == list(core.ps.tasks)
    executed(["east"], 3)
    assert ["sales[east]"] == list(core.ps.tasks)


def test_what_a_test_has_listed_is_gone_after_it() -> None:
    """And what was listed before is back."""
    keys = ["before"]
    sales = ps.schedule(period="1h", each=lambda: keys, name="listed")(lambda region: region)
    try:
        with Schedule() as schedule:
            keys[:] = ["outer"]
            schedule.begin()
            with Schedule() as inner:
                assert "listed[outer]" not in ps.tasks
                keys[:] = ["inner"]
                inner.begin()
                assert ["inner"] == list(sales)
                assert "wait" == sales["inner"].policy.first_run
            assert "listed[outer]" in ps.tasks
            keys[:] = ["later"]
            schedule.advance("1h")
            assert ["listed[]", "listed[later]"] == [name for name in ps.tasks if name.startswith("listed[")]
        assert "listed[outer]" not in ps.tasks
    finally:
        ps.cancel_task("listed[]")
        del ps._runtime.families["listed"]


def test_it_is_pickled_by_its_name() -> None:
    """As a task is."""
    sales = ps.schedule(period="1h", each=["north"], name="pickled", first_run="skip")(lambda region: region)
    try:
        assert sales is pickle.loads(pickle.dumps(sales))
    finally:
        ps.cancel_task("pickled[north]")
        del ps._runtime.families["pickled"]


# ------------------------------------------------------------ several processes


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[OnFiles]:
    """Two processes of a server."""
    with ExitStack() as stack:
        server = OnFiles(tmp_path / "store", stack)
        server.join(), server.join()
        yield server


def families(server: OnFiles, keys: list[str], body: Callable[[str], Any]) -> list[ps.Family[Any]]:
    """Of each process, with keys that are listed each minute."""
    return [core.ps.schedule(period="1m", each=lambda: keys, name="sales")(body) for core in server.cores]


def test_one_process_asks_for_the_keys_and_all_have_the_members(pair: OnFiles) -> None:
    """Each of which runs once for each slot."""
    keys, ran = ["north"], list[str]()
    made = families(pair, keys, ran.append)
    pair.begin()
    keys[:] = ["north", "south"]
    pair.run_for(61)
    assert [["north", "south"]] * 2 == [list(sales) for sales in made]
    assert {"north": 2, "south": 1} == Counter(ran)
    keys[:] = ["south"]
    pair.run_for(60)
    assert [["sales[]", "sales[south]"]] * 2 == [list(core.ps.tasks) for core in pair.cores]
    assert [["sales[]", "sales[south]"]] * 2 == [list(core.scheduler.states) for core in pair.cores]
    record = pair.cores[0].service.store.records.read(TASK, "sales[north]")
    assert record is not None
    assert (True, None) == (record.state.forgotten, record.state.updated_at)


def test_a_run_in_another_process_is_cancelled_when_its_key_goes(pair: OnFiles) -> None:
    """Whichever process has asked for the keys."""
    keys = ["north"]
    one, other = pair.cores
    body = other.held("body")
    made = families(pair, keys, lambda region: body() if region == "south" else None)
    pair.begin()
    keys[:] = ["south"]
    other.ps.tasks["sales[]"].refresh()
    while other.go():
        pass
    run = other.run_of(made[1]["south"])
    pair.settle()
    keys[:] = []
    one.ps.tasks["sales[]"].refresh()
    pair.settle()
    assert RunState.CANCELLED is run.state
    assert [[], []] == [list(sales) for sales in made]


def test_a_key_that_comes_back_stays_though_another_process_hears_late_that_it_went(pair: OnFiles) -> None:
    """It makes it forgotten once more, and they have it all the same."""
    keys = ["north"]
    one, other = pair.cores
    made = families(pair, keys, lambda region: region)
    pair.begin()
    for keys[:] in ([], ["north"]):
        one.ps.tasks["sales[]"].refresh()
        while one.go():
            pass
    other.service.store.tasks.forget("sales[north]")
    pair.settle()
    assert [["north"]] * 2 == [list(sales) for sales in made]
    assert ["north"] * 2 == [sales["north"]() for sales in made]


def test_a_script_forgets_no_member_for_others(pair: OnFiles) -> None:
    """Which have clocks, and hear of new keys before it looks."""
    keys, (server, script) = ["north"], pair.cores
    forgotten = list[str]()
    script.service.store.tasks.forget = forgotten.append  # type: ignore[method-assign]
    made = families(pair, keys, lambda region: region)
    server.begin()
    assert ["north"] == list(made[1])
    keys[:] = ["south"]
    server.ps.tasks["sales[]"].refresh()
    server.go()
    assert ["south"] == list(made[1])
    script.go()
    assert ([], ["sales[]", "sales[south]"]) == (forgotten, list(script.scheduler.states))


def test_a_server_that_starts_again_in_its_process_has_the_keys_of_now(pair: OnFiles) -> None:
    """And no task of those that went meanwhile."""
    keys, (one, other) = ["north", "south"], pair.cores
    [sales, _] = families(pair, keys, lambda region: region)
    pair.begin()
    pair.stop(one)
    keys[:] = ["south"]
    other.ps.tasks["sales[]"].refresh()
    pair.settle()
    one.runtime._service, one.runtime._make_store = None, pair.make_store  # type: ignore[method-assign]
    try:
        assert ["sales[]", "sales[south]"] == sorted(one.runtime.scheduler.states)
        assert ["south"] == list(sales)
    finally:
        one.runtime.grace = 0.0
        one.runtime.close()


def test_a_new_server_has_the_keys_and_values_of_the_last_one(pair: OnFiles) -> None:
    """Before it has asked for them; what came meanwhile comes with the next slot."""
    keys = ["north"]
    families(pair, keys, lambda region: region)
    pair.begin()
    pair.restart()
    keys[:] = ["north", "south"]
    core = pair.join()
    [sales] = families(pair, keys, lambda region: region)
    assert ["north"] == list(sales)
    pair.begin()
    assert ["north"] == [task() for task in sales.values()]
    assert [] == core.runtime.waiting_for()
    pair.run_for(61)
    assert ["north", "south"] == [task() for task in sales.values()]


SALES = """
import os, pathlib
import panel_schedule as ps

folder = pathlib.Path(__file__).parent

@ps.schedule(period="1d")
def regions():
    return (folder / "keys").read_text().split()

@ps.schedule(period="1d", each=regions, executor="process")
def sales(region):
    with open(folder / "ran", "a") as ran:
        print(region, file=ran)
    return f"{region} of {os.getpid()}"

@ps.schedule(period="1d", executor="process", first_run="skip")
def summary():
    return os.getpid(), {key: sales[key]() for key in sales}, "north" in sales, sales.get("north")
"""


def test_processes_with_clocks_of_their_own_agree(tmp_path: Path) -> None:
    """On who is there, and on its one value; as do their worker processes, in which a member runs as any task."""
    (tmp_path / "tasks_of_families.py").write_text(SALES)
    source = "import sys; sys.path.insert(0, str(folder))\nfrom tasks_of_families import *\n"
    keys, ran = tmp_path / "keys", tmp_path / "ran"
    keys.write_text("north south")
    with ExitStack() as hosts:
        both = [Host(tmp_path, source, jobs="") for _ in range(2)]
        for host in both:
            hosts.callback(host.kill)
        values = "{key: task() for key, task in sales.items()}"
        eventually(lambda: all(len(set(filter(None, host(values).values()))) == 2 for host in both))
        assert both[0](values) == both[1](values)
        keys.write_text("south west")
        both[1]("regions.refresh().result()")
        for host in both:
            eventually(lambda host=host: host(values).get("west"))  # type: ignore[misc]
        assert both[0](values) == both[1](values)
        assert ["south", "west"] == both[0]("list(sales)") == both[1]("list(sales)")
        assert {"north": 1, "south": 1, "west": 1} == Counter(ran.read_text().split())
        worker, *read = both[0]("summary.refresh().result()")
        assert worker not in [host.process.pid for host in both]
        assert [both[0](values), False, None] == read
