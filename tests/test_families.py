"""Families: one function, and a task for each key, as keys come and go."""

from __future__ import annotations

import functools
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import panel_schedule as ps
from core import Core
from job_peer import Host
from panel_schedule.errors import RegistrationError
from panel_schedule.functions.run import RunState
from panel_schedule.testing import Schedule

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
