"""What every store promises of values, as tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from bokeh.models.widgets import Div
from panel.pane import Markdown

from ...coordination.tasks import TASK, USER
from ...errors import RunFenced, ValueRefused
from ...serialize.entry import Entry
from ...stores.base import Store
from .tools import START, claim, entry_of, put, raises


class ValueContract:
    """What is published can be read, and listeners hear of it."""

    # ------------------------------------------------------------ values

    def test_what_is_published_can_be_read(self, store: Store) -> None:
        """The entry says what, which version, and when."""
        published = put(store, "rates", {"EUR": 1})
        assert store.values.entry(USER, "rates") == published == Entry({"EUR": 1}, 1, START, None, None)

    def test_a_value_that_is_not_there_is_none(self, store: Store) -> None:
        """And no error."""
        assert store.values.entry(USER, "rates") is None

    def test_none_is_a_value(self, store: Store) -> None:
        """Its entry is there."""
        put(store, "rates", None)
        entry = entry_of(store, USER, "rates")
        assert (entry.value, entry.version) == (None, 1)

    def test_a_large_value_comes_back(self, store: Store) -> None:
        """Whatever becomes of it on the way, and that of the one before."""
        for number in range(3):
            put(store, "numbers", np.full(200_000, number))
            assert entry_of(store, USER, "numbers").value.tolist() == [number] * 200_000

    def test_each_publish_is_a_version(self, store: Store) -> None:
        """From 1, one by one; of each name its own."""
        assert [put(store, name, 0).version for name in ("a", "a", "b", "a")] == [1, 2, 1, 3]

    def test_versions_grow_also_after_a_delete(self, store: Store) -> None:
        """A reader who saw version 2 never sees it again with another value (invariant 10)."""
        put(store, "rates", 1)
        put(store, "rates", 2)
        store.values.delete(USER, "rates")
        assert put(store, "rates", 3).version == 3

    def test_versions_grow_also_after_a_task_was_forgotten(self, store: Store) -> None:
        """The next task of that name goes on."""
        put(store, "sales", 1, TASK)
        store.tasks.forget("sales")
        assert put(store, "sales", 2, TASK).version == 2

    def test_a_deleted_value_is_gone(self, store: Store) -> None:
        """And deleting it once more is a KeyError that names it."""
        put(store, "rates", 1)
        store.values.delete(USER, "rates")
        assert (store.values.entry(USER, "rates"), list(store.values.names(USER))) == (None, [])
        with raises(KeyError, "rates"):
            store.values.delete(USER, "rates")

    def test_the_namespaces_are_apart(self, store: Store) -> None:
        """A user's name and a task's may be the same (2.2)."""
        put(store, "sales", "user's", USER)
        put(store, "sales", "task's", TASK)
        put(store, "other", 1, TASK)
        store.values.delete(TASK, "sales")
        assert (entry_of(store, USER, "sales").value, store.values.entry(TASK, "sales")) == ("user's", None)
        assert (list(store.values.names(USER)), list(store.values.names(TASK))) == (["sales"], ["other"])

    def test_names_can_be_iterated_while_they_change(self, store: Store) -> None:
        """It is a snapshot."""
        put(store, "a", 1)
        put(store, "b", 1)
        names = store.values.names(USER)
        first = next(names)
        put(store, "c", 1)
        store.values.delete(USER, "b")
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
        assert store.values.entry(USER, "plots") == kept
        with raises(ValueRefused, "Task 'plots'"):
            put(store, "plots", Div(), TASK)

    def test_a_value_that_contains_itself_is_no_trap(self, store: Store) -> None:
        """Looking into it ends."""
        ring: list[Any] = []
        ring.append(ring)
        assert put(store, "ring", ring).version == 1

    def test_private_copies_are_apart(self, store: Store) -> None:
        """What is written into one is seen neither in another nor in the value that all share."""
        store.values.isolate("sales")
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
        store.values.subscribe(lambda *change: heard.append(change))
        entry, task = put(store, "rates", 1), put(store, "sales", 2, TASK)
        store.values.delete(USER, "rates")
        assert heard == [(USER, "rates", entry), (TASK, "sales", task), (USER, "rates", None)]

    def test_listeners_do_not_hear_of_what_was_refused(self, store: Store) -> None:
        """Neither a value that is no data, nor a fenced one, nor a delete of nothing."""
        heard: list[Any] = []
        lost = claim(store, "sales")
        store.do(store.tasks.release(lost))
        store.values.subscribe(lambda *change: heard.append(change))
        with raises(ValueRefused):
            put(store, "plots", Div())
        with raises(RunFenced):
            put(store, "sales", 1, TASK, claim=lost)
        with raises(KeyError):
            store.values.delete(USER, "nothing")
        assert heard == []

    def test_a_listener_may_use_the_store(self, store: Store) -> None:
        """It is called without the store's lock."""
        read: list[Any] = []
        store.values.subscribe(lambda space, name, entry: read.append(store.values.entry(space, name)))
        entry = put(store, "rates", 1)
        assert read == [entry]
