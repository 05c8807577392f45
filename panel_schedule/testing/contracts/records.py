"""What every store of records promises, as tests: the author of a backend subclasses :class:`RecordStoreContract`."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...coordination.record import NOBODY, Record, Refusal, state_of
from ...errors import ValueRefused
from ...functions.run import RunState
from ...serialize.codec import encode
from ...stores.records import HELD, NO_PARTS, Change, RecordStore, Result, Tell
from .tools import PATIENCE, START, hammer, observe, raises

SPACE, OTHER_SPACE = "contract", "contract too"

# The parts of the records here.
VALUE, ITEM = "value", "item"

# More than a store keeps beside its records, if it keeps large values elsewhere.
LARGE = 20_000


@state_of(OTHER_SPACE)
@state_of(SPACE)
class ContractState(NamedTuple):
    """One of each kind that a state may have."""

    number: int = 0
    text: str = ""
    flag: bool = False
    ratio: float | None = None
    at: datetime | None = None
    kind: RunState = RunState.QUEUED
    numbers: tuple[int, ...] = ()


class RecordStoreContract:
    """
    The promises of :class:`~panel_schedule.stores.records.RecordStore`.

    A subclass has a fixture `store`: a new, empty store.

    Attributes
    ----------
    scale : int
        How often the tests with many threads do what they do.

    Examples
    --------
    >>> class TestMyStore(RecordStoreContract):    # doctest: +SKIP
    ...     @pytest.fixture
    ...     def store(self):
    ...         return MyStore()
    """

    scale = 300

    # ------------------------------------------------------------ reading

    def test_a_record_that_is_not_there_is_none(self, store: RecordStore) -> None:
        """And no error."""
        assert (store.read(SPACE, "a"), store.scan(SPACE)) == (None, [])

    def test_a_record_comes_back_as_it_was(self, store: RecordStore) -> None:
        """To the microsecond, and with the types of its state."""
        instant = START + timedelta(microseconds=1)
        for state in (
            ContractState(),
            ContractState(-(2**62), 'ü"\n\0', True, 0.1, instant, RunState.FAILED, (3, 1)),
        ):
            wanted = Record(SPACE, "a", state, "group", "owner", instant, START, {VALUE: 1, ITEM: 2})
            parts = {(VALUE, 0): 1, (ITEM, 0): 2, (ITEM, 1): 3}
            [result] = store.write([Change(SPACE, "a", _always(wanted), parts)])
            record = store.read(SPACE, "a")
            assert record is not None
            assert record == result.record
            assert record._replace(size=0, created=0, revision=0) == wanted
            assert list(map(type, record.state)) == list(map(type, state))

    def test_any_text_names_a_record(self, store: RecordStore) -> None:
        """In any space, and any group; each record is another one."""
        names = ["", "a", "A", "a b", "ä", "a%", "a_", "'; --", "a\0b", "\x1f", "x" * 500]
        for number, name in enumerate(names):
            _put(store, name, number, group=name)
            store.write([_to(name, -number, space=OTHER_SPACE)])
        assert [_number(store, name) for name in names] == list(range(len(names)))
        assert [_number(store, name, OTHER_SPACE) for name in names] == [-n for n in range(len(names))]
        assert [_names(store, name) for name in names] == [[name] for name in names]

    def test_a_scan_finds_a_group_or_an_owner(self, store: RecordStore) -> None:
        """HELD is whatever is not nobody's to begin with: what anybody may take, too."""
        for name, group, owner in (("a", "x", None), ("b", "x", "me"), ("c", "y", "me"), ("d", "y", NOBODY)):
            _put(store, name, group=group, owner=owner)
        assert (_names(store), _names(store, "x"), _names(store, "z")) == (["a", "b", "c", "d"], ["a", "b"], [])
        for owner, found in ((None, ["a"]), ("me", ["b", "c"]), (NOBODY, ["d"]), (HELD, ["b", "c", "d"]), ("?", [])):
            assert [record.name for record in store.scan(SPACE, owner=owner)] == found
        assert [record.name for record in store.scan(SPACE, "y", owner="me")] == ["c"]
        assert store.scan(OTHER_SPACE) == []

    def test_a_scan_is_in_the_order_in_which_records_were_made(self, store: RecordStore) -> None:
        """However often each was changed; one that was made anew is the youngest."""
        for name in ("c", "a", "b", "d", "a"):
            _put(store, name)
        _delete(store, "c")
        _put(store, "c")
        assert _names(store) == ["a", "b", "d", "c"]

    def test_a_scan_may_be_for_the_last_ones(self, store: RecordStore) -> None:
        """Those that were made last, in the same order; of the group and the owner that are asked for."""
        for number in range(6):
            _put(store, f"{number}", group="even" if number % 2 == 0 else "odd", owner="me" if number < 4 else None)
        for last, found in ((2, ["4", "5"]), (9, ["0", "1", "2", "3", "4", "5"]), (0, [])):
            assert [record.name for record in store.scan(SPACE, last=last)] == found
        assert [record.name for record in store.scan(SPACE, "even", last=2)] == ["2", "4"]
        assert [record.name for record in store.scan(SPACE, "even", owner="me", last=1)] == ["2"]

    # ------------------------------------------------------------ writing

    def test_a_change_is_made_of_what_is_there(self, store: RecordStore) -> None:
        """Its function gets the record as it is, and the number that the change has."""
        seen: list[Record | None] = []

        def apply(record: Record | None, revision: int) -> Record:
            seen.append(record)
            return Record(SPACE, "a", ContractState(revision))

        made = _record(store.write([Change(SPACE, "a", apply)])[0])
        changed = _record(store.write([Change(SPACE, "a", apply)])[0])
        assert (seen[0], seen[-1]) == (None, made)
        assert (made.state.number, changed.state.number) == (made.revision, changed.revision)
        assert store.read(SPACE, "a") == changed

    def test_revisions_grow_whatever_is_changed_or_deleted(self, store: RecordStore) -> None:
        """Who saw one number never sees it again with another record (invariant 10)."""
        revisions = list[int]()
        for delete in (
            lambda: None,
            lambda: _delete(store, "a"),
            lambda: store.sweep(_at(1)),
            lambda: store.trim(SPACE, entries=0),
        ):
            for _ in range(2):
                revisions.append(_put(store, "a", 1, {(VALUE, 0): 1}, expires_at=_at(0)).revision)
                delete()
        assert all(one < other for one, other in pairwise([0, *revisions]))

    def test_a_record_knows_when_it_was_made(self, store: RecordStore) -> None:
        """By the number of its first change; one that was deleted is made anew."""
        first = _put(store, "a")
        assert first.created == first.revision
        assert _put(store, "a").created == first.created
        _delete(store, "a")
        assert _put(store, "a").created > first.revision

    def test_the_numbers_of_a_record_are_the_stores(self, store: RecordStore) -> None:
        """Whatever the change says of them."""
        wrong = Record(SPACE, "a", ContractState(), size=-1, created=-1, revision=-1)
        for _ in range(2):
            record = _record(store.write([Change(SPACE, "a", _always(wrong))])[0])
            assert record.size == 0
            assert 0 < record.created <= record.revision

    def test_a_refusal_changes_nothing(self, store: RecordStore) -> None:
        """Neither the record nor its parts; the result says why."""
        for reason in Refusal:
            assert store.write([_refused("a", reason)]) == [Result(None, reason)]
            assert store.read(SPACE, "a") is None
        kept = _put(store, "a", 1, {(VALUE, 0): "old"})
        assert store.write([_refused("a", Refusal.HELD)]) == [Result(None, Refusal.HELD)]
        assert store.read(SPACE, "a") == kept
        assert store.load(kept, VALUE) == "old"

    def test_several_changes_are_one_step(self, store: RecordStore) -> None:
        """They have one number, and results in their order; one that is refused costs the others nothing."""
        results = store.write([_to("a", 1), _refused("b", Refusal.FENCED), _to("c", 3, {(VALUE, 0): "c"})])
        assert [result.refusal for result in results] == [None, Refusal.FENCED, None]
        first, last = _record(results[0]), _record(results[2])
        assert (first.name, last.name, first.revision) == ("a", "c", last.revision)
        assert store.scan(SPACE) == [first, last] or store.scan(SPACE) == [last, first]
        assert (results[2].parts, store.load(last, VALUE)) == ({(VALUE, 0): "c"}, "c")

    def test_changes_that_belong_together_are_all_made_or_none(self, store: RecordStore) -> None:
        """What is refused says so; what is not has no record."""
        kept = _put(store, "a", 1, {(VALUE, 0): "old"})
        changes = [_to("a", 2, {(VALUE, 0): "new"}), _to("b", 2), _refused("c", Refusal.HANDLED)]
        assert [result.refusal for result in store.write(changes, together=True)] == [None, None, Refusal.HANDLED]
        assert [result.record for result in store.write(changes, together=True)] == [None, None, None]
        assert (store.scan(SPACE), store.load(kept, VALUE)) == ([kept], "old")
        assert None not in [result.record for result in store.write(changes[:2], together=True)]
        assert [_number(store, name) for name in "ab"] == [2, 2]

    def test_a_change_in_a_step_is_made_of_what_one_before_has_left(self, store: RecordStore) -> None:
        """Of the same record: it may be there by then, or gone, with its parts."""
        for together in (False, True):
            changes = [_to("a", 1, {(VALUE, 0): "a"}), _addition("a", 2), _change("a", {(ITEM, 0): "b"}, {ITEM: 1})]
            record = _record(store.write(changes, together=together)[-1])
            assert (store.read(SPACE, "a"), record.state.number) == (record, 3)
            assert (store.load(record, ITEM), dict(record.parts)) == ("b", {ITEM: 1})
            store.write([_deletion("a"), _addition("a", 5), _deletion("a"), _addition("a", 7)], together=together)
            assert _number(store, "a") == 7

    def test_none_deletes_a_record(self, store: RecordStore) -> None:
        """And its parts; deleting nothing is no error."""
        kept = _put(store, "a", 1, {(VALUE, 0): "old"})
        for _ in range(2):
            assert store.write([_deletion("a")]) == [Result(None)]
            assert (store.read(SPACE, "a"), store.scan(SPACE)) == (None, [])
        with raises(KeyError):
            store.load(kept, VALUE)

    def test_an_error_of_a_change_changes_nothing(self, store: RecordStore) -> None:
        """It comes to who made the change."""

        def apply(record: Record | None, revision: int) -> Record:
            raise LookupError("wrong")

        kept = _put(store, "a", 1, {(VALUE, 0): "old"})
        with raises(LookupError, "wrong"):
            store.write([_to("a", 2, {(VALUE, 0): "new"}), Change(SPACE, "b", apply)])
        assert (store.scan(SPACE), store.load(kept, VALUE)) == ([kept], "old")
        assert _put(store, "a", 3).state.number == 3

    def test_a_change_may_be_urgent_and_durable(self, store: RecordStore) -> None:
        """Which is nothing to who reads it."""
        for number, tell in enumerate(Tell):
            for durable in (False, True):
                store.write([_to("a", number)], durable=durable, tell=tell)
                assert _number(store, "a") == number

    # ------------------------------------------------------------ parts

    def test_a_part_can_be_loaded(self, store: RecordStore) -> None:
        """As the result of the change has it; None is one, and a large one, too."""
        for value in (None, 0, "text", b"bytes", {"a": [1, 2.5]}, (1,)):
            [result] = store.write([_to("a", 1, {(VALUE, 0): value})])
            assert result.parts == {(VALUE, 0): value}
            assert store.load(_record(result), VALUE) == value
        for number in range(3):
            record = _put(store, "a", number, {(VALUE, 0): np.full(LARGE, number)})
            assert set(store.load(record, VALUE, what="The value").tolist()) == {number}

    def test_a_part_may_be_encoded_already(self, store: RecordStore) -> None:
        """It is what it was then, whatever becomes of the value; its bytes are still the caller's."""
        value = np.zeros(LARGE)
        encoded = encode(value, "The value")
        [result] = store.write([_to("a", 1, {(VALUE, 0): encoded})])
        encoded.close()
        value[:] = 1
        assert set(store.load(_record(result), VALUE).tolist()) == set(result.parts[VALUE, 0].tolist()) == {0}

    def test_a_part_stays_as_long_as_the_record_names_it(self, store: RecordStore) -> None:
        """Also when another one comes, or is replaced."""
        before = _put(store, "a", 1, {(ITEM, 0): "a", (ITEM, 1): "b"})
        after = _record(store.write([_change("a", {(ITEM, 1): "B", (ITEM, 2): "C"}, {ITEM: 3})])[0])
        assert [store.load(after, ITEM, number) for number in range(3)] == ["a", "B", "C"]
        assert store.load(before, ITEM, 0) == "a"
        for lost in (1, 2):
            with raises(KeyError):
                store.load(before, ITEM, lost)

    def test_a_part_that_the_record_does_not_name_any_more_is_gone(self, store: RecordStore) -> None:
        """It does not come back when it is named again."""
        before = _put(store, "a", 1, {(ITEM, 0): "a", (ITEM, 1): "b", (VALUE, 0): np.zeros(LARGE)})
        after = _record(store.write([_change("a", {}, {ITEM: 1})])[0])
        again = _record(store.write([_change("a", {}, {ITEM: 2, VALUE: 1})])[0])
        for record in (before, after, again):
            assert store.load(record, ITEM, 0) == "a"
            for kind, number in ((ITEM, 1), (VALUE, 0), ("unknown", 0)):
                with raises(KeyError):
                    store.load(record, kind, number)

    def test_a_part_that_the_record_never_names_is_not_kept(self, store: RecordStore) -> None:
        """Whether there is a record from then on, or none."""
        for kinds in ({}, {ITEM: 1}, None):
            record = store.write([_change("a", {(ITEM, 1): np.zeros(LARGE)}, kinds)])[0].record
            assert record is None or record.size == 0
        named = _put(store, "a", 1, {(ITEM, 0): 0, (ITEM, 1): 1})
        assert [store.load(named, ITEM, number) for number in (0, 1)] == [0, 1]

    def test_parts_may_come_in_any_order(self, store: RecordStore) -> None:
        """One that is not there yet is a KeyError."""
        record = _put(store, "a", 1, {(ITEM, 1): "b"})
        with raises(KeyError):
            store.load(record, ITEM, 0)
        record = _record(store.write([_change("a", {(ITEM, 0): "a"}, {ITEM: 2})])[0])
        assert [store.load(record, ITEM, number) for number in (0, 1)] == ["a", "b"]

    def test_a_part_of_a_record_that_was_made_anew_is_another_one(self, store: RecordStore) -> None:
        """Who has read the old record does not get it."""
        old = _put(store, "a", 1, {(VALUE, 0): "old"})
        _delete(store, "a")
        new = _put(store, "a", 1, {(VALUE, 0): "new"})
        with raises(KeyError):
            store.load(old, VALUE)
        assert store.load(new, VALUE) == "new"

    def test_the_size_of_a_record_is_that_of_its_parts(self, store: RecordStore) -> None:
        """It grows and shrinks with them."""
        assert _put(store, "a").size == 0
        small = _put(store, "a", 1, {(ITEM, 0): b"x" * 100}).size
        large = _put(store, "b", 1, {(ITEM, 0): b"x" * 100_000}).size
        both = _record(store.write([_change("a", {(ITEM, 1): b"x" * 100_000}, {ITEM: 2})])[0]).size
        assert 0 < small < 100_000 <= large
        assert both == small + large
        assert _record(store.write([_change("a", {}, {ITEM: 2})])[0]).size == both
        assert _record(store.write([_change("a", {}, {ITEM: 1})])[0]).size == small
        assert _record(store.write([_change("a", {}, {})])[0]).size == 0

    def test_a_part_that_cannot_be_stored_changes_nothing(self, store: RecordStore) -> None:
        """What a store of one process keeps as it is."""
        kept, lock = _put(store, "a", 1, {(VALUE, 0): "old"}), threading.Lock()
        try:
            results = store.write([_to("b", 2), _to("a", 2, {(VALUE, 0): lock})])
        except ValueRefused:
            assert (store.scan(SPACE), store.load(kept, VALUE)) == ([kept], "old")
        else:
            assert store.load(_record(results[1]), VALUE) is lock

    # ------------------------------------------------------------ what is used, and what must go

    def test_what_is_used_says_when(self, store: RecordStore) -> None:
        """It is no change, never goes back, and harms nothing that is not there."""
        made = [_put(store, name) for name in "ab"]
        for now, used_at in ((_at(5), _at(5)), (_at(3), _at(5)), (_at(9), _at(9))):
            store.use(SPACE, ["a", "nothing"], now)
            assert store.read(SPACE, "a") == made[0]._replace(used_at=used_at)
        assert (store.read(SPACE, "b"), len(store.scan(SPACE))) == (made[1], 2)
        store.use(SPACE, [], START)

    def test_what_was_used_longest_ago_goes(self, store: RecordStore) -> None:
        """What never was goes first, and of equals the oldest."""
        for name, used_at in (("a", _at(9)), ("b", None), ("c", _at(1)), ("d", _at(1)), ("e", _at(5))):
            _put(store, name, 1, {(VALUE, 0): 1}, used_at=used_at)
        store.use(SPACE, ["c"], _at(7))
        for entries, left in ((9, "abcde"), (5, "abcde"), (4, "acde"), (3, "ace"), (1, "a"), (0, "")):
            store.trim(SPACE, entries=entries)
            assert "".join(_names(store)) == left

    def test_only_so_many_bytes_stay(self, store: RecordStore) -> None:
        """Without a limit all of them do."""
        sizes = [_put(store, name, 1, {(VALUE, 0): b"x" * 1000}, used_at=_at(n)).size for n, name in enumerate("abc")]
        store.trim(SPACE)
        for size, left in ((sum(sizes), "abc"), (sum(sizes) - 1, "bc"), (sizes[2], "c"), (sizes[2], "c")):
            store.trim(SPACE, size=size)
            assert "".join(_names(store)) == left

    def test_what_is_trimmed_is_of_the_group(self, store: RecordStore) -> None:
        """Others neither go nor count; of all groups, if none is named."""
        for name, group in (("a", "x"), ("b", "x"), ("c", "y")):
            _put(store, name, 1, {(VALUE, 0): 1}, group=group)
        store.write([_to("a", 1, {(VALUE, 0): 1}, space=OTHER_SPACE)])
        store.trim(SPACE, "x", entries=1)
        assert _names(store) == ["b", "c"]
        store.trim(SPACE, entries=1)
        assert (_names(store), len(store.scan(OTHER_SPACE))) == (["c"], 1)

    def test_what_is_held_or_has_no_parts_is_not_trimmed(self, store: RecordStore) -> None:
        """Nor does it count."""
        for name, owner, parts in (("a", "me", 1), ("b", NOBODY, 1), ("c", None, 0), ("d", None, 1), ("e", None, 1)):
            _put(store, name, 1, {(VALUE, 0): 1} if parts else NO_PARTS, owner=owner)
        store.trim(SPACE, entries=1, size=10**6)
        assert _names(store) == ["a", "b", "c", "e"]

    def test_one_stays_in_any_case(self, store: RecordStore) -> None:
        """The one that is named, be it the oldest."""
        for name in "abc":
            _put(store, name, 1, {(VALUE, 0): 1})
        store.trim(SPACE, entries=1, keep="a")
        assert _names(store) == ["a"]
        store.trim(SPACE, entries=0, keep="a")
        assert _names(store) == ["a"]

    def test_what_is_larger_than_all_the_room_counts_if_that_is_asked(self, store: RecordStore) -> None:
        """Else it pushes nothing out, and stays."""
        sizes = [_put(store, name, 1, {(VALUE, 0): b"x" * 1000 * (n + 1)}).size for n, name in enumerate("abc")]
        store.trim(SPACE, size=sizes[1])
        assert _names(store) == ["b", "c"]
        store.trim(SPACE, size=sizes[1], larger=True)
        assert _names(store) == []

    def test_what_has_expired_is_swept(self, store: RecordStore) -> None:
        """With its parts; not what is held, and not before its time."""
        gone = _put(store, "a", 1, {(VALUE, 0): np.zeros(LARGE)}, expires_at=_at(1))
        _put(store, "b", expires_at=_at(2))
        _put(store, "c")
        for name, owner in (("d", "me"), ("e", NOBODY)):
            _put(store, name, owner=owner, expires_at=_at(0))
        for now, left in ((_at(0), "abcde"), (_at(1), "bcde"), (_at(9), "cde")):
            store.sweep(now)
            assert "".join(_names(store)) == left
        with raises(KeyError):
            store.load(gone, VALUE)

    # ------------------------------------------------------------ owners and sessions

    def test_this_process_is_alive(self, store: RecordStore) -> None:
        """Nobody is not, nor is one that never was."""
        assert [store.alive(owner) for owner in (store.me, NOBODY, "never was")] == [True, False, False]

    def test_the_sessions_of_this_process_are_no_watchers(self, store: RecordStore) -> None:
        """Who asks knows them."""
        for sessions in (2, 1, 0, 0):
            store.watch(SPACE, "a", sessions)
            assert store.watchers(SPACE, "a") == 0

    # ------------------------------------------------------------ subscribers

    def test_a_subscriber_hears_of_each_change(self, store: RecordStore) -> None:
        """Of its space, with the record; also of what this process has changed, however urgent it is."""
        heard, others = Heard(), Heard()
        store.subscribe(SPACE, heard)
        store.subscribe(OTHER_SPACE, others)
        store.listen()
        for tell in (Tell.NOW, Tell.SOON, Tell.LATER):
            results = store.write([_to("a", 1), _to("b", 2), _refused("c", Refusal.HELD)], tell=tell)
            for result in results[:2]:
                assert heard.of(_record(result))
        assert ({record.name for record in heard.records}, others.records) == ({"a", "b"}, [])

    def test_nobody_hears_of_what_was_used(self, store: RecordStore) -> None:
        """That is no change."""
        heard = _listen(store)
        assert heard.of(_put(store, "a"))
        store.use(SPACE, ["a"], _at(5))
        assert heard.of(_put(store, "b"))
        assert [record.name for record in heard.records] == ["a", "b"]

    def test_all_subscribers_hear_of_all_changes(self, store: RecordStore) -> None:
        """What one of them fails at costs the others nothing, nor who made the change, nor this one what follows."""
        first, last, failing = Heard(), Heard(), Heard(failing=True)
        for heard in (first, failing, last):
            store.subscribe(SPACE, heard)
        store.listen()
        for name in "abc":
            [result, other] = store.write([_to(name), _to(f"{name} too")], tell=Tell.NOW)
            for heard in (first, failing, last):
                assert heard.of(_record(result))
                assert heard.of(_record(other))

    def test_a_subscriber_may_use_the_store(self, store: RecordStore) -> None:
        """It is called without the store's lock."""
        heard = Heard()

        def changed(record: Record) -> None:
            if record.name == "a":
                store.write([_to("b", record.state.number)], tell=Tell.NOW)
            heard(record)

        store.subscribe(SPACE, changed)
        store.listen()
        assert heard.of(_put(store, "a", 7))
        assert (_number(store, "b"), heard.of(_read(store, "b"))) == (7, True)

    def test_listening_twice_is_listening(self, store: RecordStore) -> None:
        """Nobody hears of anything twice for that."""
        heard = _listen(store)
        store.listen()
        assert heard.of(_put(store, "a")) and heard.of(_put(store, "b"))  # noqa: PT018
        assert len(heard.records) == 2

    # ------------------------------------------------------------ many threads

    def test_no_change_of_many_threads_is_lost(self, store: RecordStore) -> None:
        """Each is made of what the one before has left, and has its own number (invariant 10)."""
        revisions: list[list[int]] = [[] for _ in range(8)]
        rounds = self.scale // 4

        def body(number: int) -> None:
            for _ in range(rounds):
                record = _record(store.write([_addition("a", 1)])[0])
                revisions[number].append(record.revision)

        assert hammer(8, body) == []
        assert _number(store, "a") == 8 * rounds
        assert len({revision for own in revisions for revision in own}) == 8 * rounds
        assert all(own == sorted(own) for own in revisions)

    def test_one_of_many_threads_gets_what_all_want(self, store: RecordStore) -> None:
        """No two hold it at once (invariant 6)."""
        holding, overlaps, got = list[int](), list[int](), list[int]()

        def claim(owner: str | None) -> Callable[[Record | None, int], Record | Refusal]:
            def apply(record: Record | None, revision: int) -> Record | Refusal:
                held = record is not None and record.owner is not None
                return Refusal.HELD if held and owner else Record(SPACE, "a", ContractState(revision), owner=owner)

            return apply

        def body(number: int) -> None:
            for _ in range(self.scale):
                [result] = store.write([Change(SPACE, "a", claim(f"{number}"))])
                if result.record is not None:
                    overlaps.extend(holding)
                    holding.append(number)
                    got.append(result.record.state.number)
                    holding.remove(number)
                    store.write([Change(SPACE, "a", claim(None))])

        assert (hammer(8, body), overlaps) == ([], [])
        assert len(set(got)) == len(got) > 0

    def test_nobody_sees_half_a_step(self, store: RecordStore) -> None:
        """What is moved from one record to another is in one of them."""
        chance, wrong = random.Random(0), list[Any]()
        store.write([_to("a", 0), _to("b", 0)])

        def act() -> None:
            for _ in range(self.scale):
                moved = chance.randrange(1, 100)
                store.write([_addition("a", -moved), _addition("b", moved)])

        def look() -> None:
            records = store.scan(SPACE)
            if sum(record.state.number for record in records) or len({record.revision for record in records}) > 1:
                wrong.append(records)

        assert (observe(act, look), wrong) == ([], [])

    def test_a_part_belongs_to_its_record(self, store: RecordStore) -> None:
        """A reader gets the one that the record that it has read was made with, or none."""
        wrong = list[Any]()

        def act() -> None:
            for count in range(self.scale // 3):
                _put(store, "a", count, {(VALUE, 0): np.full(LARGE if count % 2 else 10, count)})

        def look() -> None:
            if (record := store.read(SPACE, "a")) is not None:
                with suppress(KeyError):
                    value = store.load(record, VALUE)
                    if set(value.tolist()) != {record.state.number}:
                        wrong.append((record, value))

        assert (observe(act, look), wrong) == ([], [])

    def test_a_lock_of_a_subscriber_is_no_trap(self, store: RecordStore) -> None:
        """It takes a lock under which others use the store: nobody waits for ever."""
        lock = threading.RLock()

        def changed(record: Record) -> None:
            with lock:
                pass

        store.subscribe(SPACE, changed)
        store.listen()

        def body(number: int) -> None:
            for count in range(self.scale // 10):
                if number % 2:
                    _put(store, "a", count)
                else:
                    with lock:
                        store.read(SPACE, "a")
                        store.scan(SPACE)

        assert hammer(4, body) == []

    def test_everything_at_once_breaks_nothing(self, store: RecordStore) -> None:
        """All that a store can do, from six threads."""
        names = ["a", "b", "c"]
        _listen(store)

        def body(number: int) -> None:
            chance = random.Random(number)
            for step in range(self.scale // 5):
                name = chance.choice(names)
                match chance.randrange(9):
                    case 0 | 1:
                        value = np.full(chance.choice([1, LARGE]), step)
                        _put(store, name, step, {(VALUE, 0): value}, used_at=_at(step), expires_at=_at(step))
                    case 2:
                        _delete(store, name)
                    case 3:
                        store.scan(SPACE, owner=None, last=2)
                    case 4:
                        store.use(SPACE, names, _at(step))
                    case 5:
                        store.trim(SPACE, entries=2, keep=name)
                    case 6:
                        store.sweep(_at(step))
                    case 7:
                        store.watch(SPACE, name, step % 2)
                        store.watchers(SPACE, name)
                    case 8:
                        with suppress(KeyError):
                            store.load(_read(store, name), VALUE)

        assert hammer(6, body) == []
        for name in names:
            assert store.load(_put(store, name, 1, {(VALUE, 0): name}), VALUE) == name

    # ------------------------------------------------------------ the end

    def test_closing_twice_is_closing(self, store: RecordStore) -> None:
        """Whether anybody listens or not."""
        _listen(store)
        _put(store, "a", 1, {(VALUE, 0): 1})
        store.close()
        store.close()


class SharedRecordStoreContract:
    """
    What a :class:`~panel_schedule.stores.records.RecordStore` promises beyond that if several processes share it.

    A subclass has a fixture `store`: a new, empty store, and a fixture `other`: the same one as another process
    has it. Both must be able to be closed.
    """

    def test_each_process_is_another_owner(self, store: RecordStore, other: RecordStore) -> None:
        """They know of each other that they live; of one that is gone, that it does not."""
        assert store.me != other.me
        assert (store.alive(other.me), other.alive(store.me)) == (True, True)
        other.close()
        assert (store.alive(store.me), store.alive(other.me)) == (True, False)

    def test_what_one_writes_the_other_reads(self, store: RecordStore, other: RecordStore) -> None:
        """At once, with its parts; and one row of numbers is for both."""
        for number, (writer, reader) in enumerate([(store, other), (other, store)] * 2):
            record = _put(writer, "a", number, {(VALUE, 0): np.full(LARGE, number)})
            assert reader.read(SPACE, "a") == record
            assert set(reader.load(record, VALUE).tolist()) == {number}
            assert record.revision < _put(reader, "b").revision
        _delete(other, "a")
        assert store.read(SPACE, "a") is None

    def test_no_change_of_two_processes_is_lost(self, store: RecordStore, other: RecordStore) -> None:
        """Each is made of what the one before has left."""

        def body(number: int) -> None:
            for _ in range(50):
                (store, other)[number % 2].write([_addition("a", 1)])

        assert hammer(4, body) == []
        assert _number(store, "a") == _number(other, "a") == 200

    def test_what_one_changes_the_other_hears(self, store: RecordStore, other: RecordStore) -> None:
        """However urgent it is."""
        heard = _listen(other)
        for tell in (Tell.NOW, Tell.SOON, Tell.LATER):
            assert heard.of(_record(store.write([_to("a")], tell=tell)[0]))

    def test_what_one_leaves_undone_the_other_hears(self, store: RecordStore, other: RecordStore) -> None:
        """When it is gone."""
        left = _put(store, "a", owner=store.me)
        heard = _listen(other)
        assert other.alive(store.me)
        store.close()
        assert heard.of(left)

    def test_each_knows_how_many_sessions_of_others_follow_a_record(
        self, store: RecordStore, other: RecordStore
    ) -> None:
        """Those of one that is gone do not."""
        for sessions in (2, 3, 0, 1):
            store.watch(SPACE, "a", sessions)
            assert (store.watchers(SPACE, "a"), other.watchers(SPACE, "a")) == (0, sessions)
            assert (other.watchers(SPACE, "b"), other.watchers(OTHER_SPACE, "a")) == (0, 0)
        store.close()
        assert other.watchers(SPACE, "a") == 0


class Heard:
    """A subscriber that can be waited for."""

    def __init__(self, failing: bool = False):
        self.records: list[Record] = []
        self._failing = failing
        self._arrived = threading.Condition()

    def __call__(self, record: Record) -> None:
        with self._arrived:
            self.records.append(record)
            self._arrived.notify_all()
        if self._failing:
            raise LookupError("a bug of the subscriber")

    def of(self, wanted: Record) -> bool:
        """Whether it hears of this record, or of a later change of it, in time."""
        with self._arrived:
            return self._arrived.wait_for(
                lambda: any(
                    (record.space, record.name) == (wanted.space, wanted.name) and record.revision >= wanted.revision
                    for record in self.records
                ),
                PATIENCE,
            )


def _listen(store: RecordStore) -> Heard:
    """From now on it is heard what changes."""
    heard = Heard()
    store.subscribe(SPACE, heard)
    store.listen()
    return heard


def _at(hours: float) -> datetime:
    """Long after whatever a store thinks the time is: it may delete what has expired by itself."""
    return START + timedelta(days=36_500, hours=hours)


def _always(record: Record) -> Callable[[Record | None, int], Record]:
    return lambda old, revision: record


def _counted(parts: Mapping[tuple[str, int], Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for kind, number in parts:
        counts[kind] = max(number + 1, counts.get(kind, 0))
    return counts


def _to(
    name: str, number: int = 0, parts: Mapping[tuple[str, int], Any] = NO_PARTS, space: str = SPACE, **more: Any
) -> Change:
    """Whatever the record is, it is this one from then on, with these parts."""
    record = Record(space, name, ContractState(number), parts=_counted(parts), **more)
    return Change(space, name, _always(record), parts, f"Record {name!r}")


def _change(name: str, parts: Mapping[tuple[str, int], Any], kinds: Mapping[str, int] | None) -> Change:
    """It has so many parts of each kind, these among them; None deletes it."""

    def apply(record: Record | None, revision: int) -> Record | None:
        before = record or Record(SPACE, name, ContractState())
        return None if kinds is None else before._replace(parts=kinds)

    return Change(SPACE, name, apply, parts)


def _addition(name: str, number: int) -> Change:
    def apply(record: Record | None, revision: int) -> Record:
        return Record(SPACE, name, ContractState(number + (record.state.number if record else 0)))

    return Change(SPACE, name, apply)


def _refused(name: str, reason: Refusal) -> Change:
    return Change(SPACE, name, lambda record, revision: reason, {(VALUE, 0): "refused"})


def _deletion(name: str) -> Change:
    return Change(SPACE, name, lambda record, revision: None)


def _delete(store: RecordStore, name: str) -> None:
    store.write([_deletion(name)])


def _put(
    store: RecordStore, name: str, number: int = 0, parts: Mapping[tuple[str, int], Any] = NO_PARTS, **more: Any
) -> Record:
    return _record(store.write([_to(name, number, parts, **more)], tell=Tell.NOW)[0])


def _record(result: Result) -> Record:
    assert result.record is not None, result.refusal
    return result.record


def _read(store: RecordStore, name: str, space: str = SPACE) -> Record:
    record = store.read(space, name)
    if record is None:
        raise KeyError(name)
    return record


def _number(store: RecordStore, name: str, space: str = SPACE) -> Any:
    return _read(store, name, space).state.number


def _names(store: RecordStore, *group: str) -> list[str]:
    return [record.name for record in store.scan(SPACE, *group)]
