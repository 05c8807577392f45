"""What stores on a server promise beyond the contracts, as tests: which server it is is all that differs."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

from panel_schedule.coordination.record import Record, Refusal
from panel_schedule.coordination.tasks import USER
from panel_schedule.errors import StoreError, ValueRefused, ValueUnreadable
from panel_schedule.serialize.codec import encode
from panel_schedule.stores import server_records
from panel_schedule.stores.hurry import hurried
from panel_schedule.stores.records import Change, Tell
from panel_schedule.testing.contracts.records import LARGE, SPACE, VALUE, ContractState, Heard
from panel_schedule.testing.contracts.tools import START
from proxy import Proxy

PATIENCE = 20.0


def to(name, number=0, *values, **more):
    """The record has this number and these values from now on."""
    parts = {(VALUE, place): value for place, value in enumerate(values)}
    record = Record(SPACE, name, ContractState(number), parts={VALUE: len(parts)} if parts else {}, **more)
    return Change(SPACE, name, lambda old, revision: record, parts, f"Record {name!r}")


def addition(name, calls=None):
    def apply(old, revision):
        if calls is not None:
            calls.append(old and old.state.number)
        return Record(SPACE, name, ContractState((old.state.number if old else 0) + 1))

    return Change(SPACE, name, apply)


def put(store, *args, tell=Tell.NOW, **more):
    return store.write([to(*args, **more)], tell=tell)[0].record


def number_of(store, name="a"):
    return store.read(SPACE, name).state.number


def eventually(condition):
    """What another thread or the server does before long."""
    pause, left = threading.Event(), PATIENCE
    while not condition():
        pause.wait(0.01)
        left -= 0.01
        assert left > 0


class Unpickled:
    """Whoever reads it is told on."""

    count = 0

    def __reduce__(self):
        return Unpickled.read, ()

    @staticmethod
    def read():
        Unpickled.count += 1
        return "read"


def one_line(error):
    """What is said of it."""
    text = str(error.value)
    assert "\n" not in text
    assert "hidden" not in text
    return text


def calls_of(store, record):
    """Each method once."""
    return [
        lambda: store.read(SPACE, "a"),
        lambda: store.scan(SPACE),
        lambda: put(store, "a", 5, np.zeros(LARGE)),
        lambda: store.write([addition("a")]),
        lambda: store.load(record, VALUE),
        lambda: store.source(record, VALUE),
        lambda: store.log(SPACE, "a"),
        lambda: store.alive(store.me),
        lambda: store.use(SPACE, ["a"], START),
        lambda: store.trim(SPACE),
        lambda: store.watch(SPACE, "a", 1),
        lambda: store.watchers(SPACE, "a"),
        lambda: store.sweep(START),
    ]


KILLED = """
import sys
from importlib import import_module
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.record import Record
from panel_schedule.stores import server_records
from panel_schedule.stores.records import Change
from panel_schedule.testing.contracts.records import SPACE, ContractState

module, kind, url, namespace = sys.argv[1:]
server_records.LEASE = 0.5
store = getattr(import_module(module), kind)(url, SystemClock(), namespace=namespace)
store.write([Change(SPACE, "a", lambda old, revision: Record(SPACE, "a", ContractState(), owner=store.me))])
print(store.me, flush=True)
sys.stdin.read()
"""


class ServerRecordsTests:
    """
    A subclass has these fixtures, and says how it is looked at the server and what is done to it.

    server
        It has a `url` and a `port`.
    mortal
        Another one, of the test's own, that keeps what it was told when it is killed.
    opened
        ``opened(url, kind=Store)`` opens stores, on the first server by default; all of one test on one namespace.

    And these methods:

    calls(server)
        How many commands it has got so far.
    until(server, owner, store)
        Until when that is alive, in seconds; None when it is not known.
    listeners(server, store), cut(server)
        How many connections wait for word of changes; those are lost.
    blobs(server, store)
        The large parts that are there, and those of them that go if nobody names them.
    empty(server, store), expire(server, store), forget(server, store)
        Nothing is left of the store; this process has not said for an hour that it is alive; it is not known any more.
    """

    store: type

    @pytest.fixture
    def looks_never(self, monkeypatch):
        """So that only messages tell anything."""
        monkeypatch.setattr(server_records, "LOOK", 3600.0)

    @pytest.fixture
    def proxied(self, server):
        """A proxy, and the URL by which it is reached."""
        proxy = Proxy(server.port)
        yield proxy, server.url.replace(f":{server.port}", f":{proxy.port}")
        proxy.close()

    def trips(self, server, call):
        """How many round trips it takes."""
        before = self.calls(server)
        call()
        return self.calls(server) - before

    def listening(self, server, store):
        """A subscriber, once it listens."""
        heard = Heard()
        store.subscribe(SPACE, heard)
        store.listen()
        eventually(lambda: self.listeners(server, store))
        return heard

    def test_a_change_is_one_round_trip(self, server, opened):
        """From the second on: what this process left is what it takes the record to be. A refusal is one, too."""
        store = opened()
        put(store, "a", 1, "value")
        wrong = Change(SPACE, "a", lambda old, revision: Refusal.HELD)

        assert [1, 1, 1, 1] == [
            self.trips(server, lambda: store.write([addition("a")])),
            self.trips(server, lambda: put(store, "a", 2, np.zeros(10))),
            self.trips(server, lambda: store.write([addition("a"), to("a", 3)], together=True)),
            self.trips(server, lambda: store.write([wrong])),
        ]

    def test_a_change_is_made_anew_when_another_process_was_quicker(self, server, opened):
        """Of what the record is by then; that costs a second round trip, and no third."""
        store, other, calls = opened(), opened(), []
        store.write([addition("a")])
        other.write([addition("a")])

        assert 2 == self.trips(server, lambda: store.write([addition("a", calls)]))
        assert ([1, 2], 3) == (calls, number_of(other))

    def test_a_refusal_is_never_of_yesterday(self, opened):
        """Nor is an error: it is true of what the record is, and not of what this process has seen last."""
        store, other = opened(), opened()

        def claim(me, old, revision):
            if old is not None and old.owner:
                raise LookupError("held")
            return Record(SPACE, "a", ContractState(), owner=me)

        put(store, "a", owner="me")
        put(other, "a")
        assert store.write([Change(SPACE, "a", partial(claim, "me"))])[0].record is not None
        put(other, "a", owner="other")
        with pytest.raises(LookupError):
            store.write([Change(SPACE, "a", partial(claim, "me"))])

    @pytest.mark.parametrize("changes", [1, 2])
    def test_a_change_whose_reply_is_lost_is_made_once(self, proxied, opened, changes):
        """It is sent again, and the server sees that it has made it."""
        proxy, url = proxied
        store, other = opened(url), opened()
        store.write([addition("a"), addition("b")])
        proxy.cut = 1

        results = store.write([addition("a"), addition("b")][:changes])

        assert (1, 2) == (proxy.cuts, number_of(other))
        assert [other.read(SPACE, name) for name in "ab"][:changes] == [result.record for result in results]
        store.write([addition("a")])
        assert 3 == number_of(other)

    def test_a_change_that_is_tried_again_is_made_once(self, server, proxied, opened, monkeypatch):
        """Also when nobody could say whether it was made: its parts are there, and what comes of it."""
        proxy, url = proxied
        store, other = opened(url), opened()
        put(store, "a")
        value = np.zeros(LARGE)
        changes = [addition("b"), to("a", 5, value)]
        send = store._send

        def send_in_vain(step):
            proxy.cut = 3
            return send(step)

        monkeypatch.setattr(store, "_send", send_in_vain)
        with pytest.raises(StoreError, match="cannot be used now"):
            store.write(changes)
        monkeypatch.setattr(store, "_send", send)
        made = other.read(SPACE, "b")
        assert (1, 5) == (made.state.number, number_of(other))
        proxy.cut = 0

        results = store.write(changes)

        assert [made, other.read(SPACE, "a")] == [result.record for result in results]
        assert (LARGE, 1) == (len(other.load(results[1].record, VALUE)), len(self.blobs(server, store)[0]))
        assert 2 == store.write(changes)[0].record.state.number

    def test_an_owner_lives_as_long_as_it_says_so(self, server, opened, monkeypatch):
        """On a thread of its own, on the server's clock."""
        monkeypatch.setattr(server_records, "LEASE", 0.3)
        store, other = opened(), opened()

        first = self.until(server, store.me, store)
        eventually(lambda: self.until(server, store.me, store) > first + 0.3)
        assert other.alive(store.me)

    @pytest.mark.usefixtures("looks_often")
    def test_what_a_killed_process_has_left_is_told(self, server, opened, monkeypatch):
        """Within its lease."""
        monkeypatch.setattr(server_records, "LEASE", 0.5)
        store, heard = opened(), Heard()
        command = [
            sys.executable,
            "-c",
            KILLED,
            type(store).__module__,
            type(store).__name__,
            server.url,
            store._namespace,
        ]
        killed = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        owner = killed.stdout.readline().strip()
        assert store.alive(owner)
        store.subscribe(SPACE, heard)
        store.listen()
        killed.kill()
        killed.communicate()

        eventually(lambda: not store.alive(owner))
        heard.records.clear()
        assert heard.of(store.read(SPACE, "a"))
        assert store.alive(store.me)
        put(store, "a")
        eventually(lambda: self.until(server, owner, store) is None)

    @pytest.mark.usefixtures("looks_never")
    def test_who_finds_a_dead_process_tells_the_others(self, server, opened):
        """So each of many needs to look but seldom."""
        store, finder, gone = opened(), opened(), opened()
        held = put(gone, "a", owner=gone.me)
        heard = self.listening(server, store)
        assert heard.of(held)
        heard.records.clear()
        assert store.alive(gone.me)
        self.expire(server, gone)
        for _ in range(2):
            assert 1 == len(finder._call("look", now="0"))

        assert heard.of(held)
        eventually(lambda: not store.alive(gone.me))  # all are, while nobody was heard of for a lease

    @pytest.mark.usefixtures("looks_never")
    @pytest.mark.parametrize("tell", [Tell.NOW, Tell.SOON])
    def test_a_message_wakes_who_listens(self, server, opened, tell):
        store, other = opened(), opened()
        heard = self.listening(server, store)
        assert heard.of(put(other, "a", tell=tell))

    @pytest.mark.usefixtures("looks_never")
    def test_what_can_wait_comes_with_the_next_change(self, server, opened):
        """Nobody is woken for it."""
        store, other = opened(), opened()
        heard = self.listening(server, store)
        later = put(other, "later", tell=Tell.LATER)
        assert heard.of(put(other, "now"))
        assert heard.of(later)

    @pytest.mark.usefixtures("looks_never")
    def test_after_each_reconnect_it_is_looked(self, server, opened):
        """What was changed meanwhile woke nobody."""
        store, other = opened(), opened()
        heard = self.listening(server, store)
        for number in range(3):
            missed = put(other, "a", number, tell=Tell.LATER)
            self.cut(server)
            assert heard.of(missed)

    @pytest.mark.usefixtures("looks_often")
    def test_what_cannot_be_taken_in_now_is_told_again(self, server, opened):
        """And holds up nothing else."""
        store, other, failing = opened(), opened(), [True, True]

        def changed(record):
            if failing:
                failing.pop()
                raise StoreError("Not now.")

        store.subscribe(SPACE, changed)
        heard = self.listening(server, store)
        record = put(other, "a")
        eventually(lambda: not failing)
        assert heard.of(record)

    @pytest.mark.parametrize("size", [1, LARGE])
    @pytest.mark.parametrize("theirs", ["", "another"])
    def test_what_was_not_signed_with_the_secret_is_never_unpickled(self, opened, caplog, size, theirs):
        """It is unreadable, which is logged once; what was signed is read by all who have the secret."""
        ours, other, foreign = opened(secret="s3cret"), opened(secret="s3cret"), opened(secret=theirs)
        for name in "ab":
            put(foreign, name, 1, [Unpickled(), b"x" * size])
        Unpickled.count = 0
        with caplog.at_level(logging.ERROR):
            for name in "ab":
                with pytest.raises(ValueUnreadable, match=r"value of contract .*not signed with the secret"):
                    ours.load(ours.read(SPACE, name), VALUE)
        assert (0, 1) == (Unpickled.count, caplog.text.count("ps.config.secret"))

        put(ours, "a", 1, [Unpickled(), b"x" * size])
        Unpickled.count = 0
        assert "read" == other.load(other.read(SPACE, "a"), VALUE)[0]
        assert 1 == Unpickled.count

    def test_a_value_without_signature_is_computed_again(self, opened):
        """The layer above takes it for none."""
        foreign, ours = opened(kind=self.store), opened(kind=self.store, secret="s3cret")
        foreign.values.publish(USER, "rates", 1, now=START)
        assert ours.values.entry(USER, "rates") is None
        ours.values.publish(USER, "rates", 2, now=START)
        assert 2 == ours.values.entry(USER, "rates").value

    def test_a_value_that_is_too_large_is_refused_by_name(self, server, opened):
        """It changes nothing."""
        store = opened(max_value_bytes=1_000_000)
        kept = put(store, "a", 1, "old")
        with pytest.raises(
            ValueRefused, match=r"Record 'a': the value has 2.0 MB, and ps.config.max_value_bytes is 1.0 MB"
        ):
            put(store, "a", 2, b"x" * 2_000_000)
        assert ([kept], "old") == (store.scan(SPACE), store.load(kept, VALUE))
        assert ([], []) == self.blobs(server, store)

    def test_a_large_part_goes_with_its_record(self, server, opened):
        """Nothing stays of one that was replaced, deleted, trimmed, swept, refused, or never named."""
        store, large = opened(), np.zeros(LARGE)
        for gone in (
            lambda: put(store, "a", 1, "small"),
            lambda: put(store, "a"),
            lambda: store.write([Change(SPACE, "a", lambda old, revision: None)]),
            lambda: store.trim(SPACE, entries=0),
            lambda: store.sweep(START),
        ):
            put(store, "a", 1, large, expires_at=START)
            assert (1, 0) == tuple(map(len, self.blobs(server, store)))
            gone()
            assert ([], []) == self.blobs(server, store)
        refusing = to("a", 1, large)._replace(apply=lambda old, revision: Refusal.HELD)
        store.write([refusing])
        store.write([to("b"), refusing], together=True)
        store.write([to("a", 1, large), to("a", 2, "small")])
        assert ([], []) == self.blobs(server, store)

    def test_a_large_part_that_nobody_came_to_name_expires(self, server, opened):
        """Whoever was to do so has died."""
        store = opened()
        store._blobs.send("stamp.1", encode(np.zeros(LARGE), "A value"))
        assert (1, 1) == tuple(map(len, self.blobs(server, store)))

    def test_namespaces_are_apart(self, opened):
        one, other = opened(), opened(namespace="another")
        put(one, "a", 1)
        assert (None, []) == (other.read(SPACE, "a"), other.scan(SPACE))

    def test_every_call_of_a_store_whose_server_is_gone_is_a_store_error(self, mortal, opened):
        """Nothing else leaks; and when the server is back, with all it had, everything goes on by itself."""
        store, lost, heard = opened(mortal.url), [], Heard()
        store.subscribe(SPACE, heard, lost.append)
        store.listen()
        record = put(store, "b", 1, np.zeros(LARGE))
        mortal.kill()
        for call in calls_of(store, record):
            with pytest.raises(StoreError, match="Start the server") as error:
                call()
            one_line(error)

        mortal.start()

        assert record == store.read(SPACE, "b")
        for call in calls_of(store, record):
            call()
        assert heard.of(store.read(SPACE, "a"))
        assert [] == lost

    def test_every_call_of_a_closed_store_is_a_store_error(self, opened):
        store = opened()
        record = put(store, "b", 1, "value")
        store.close()
        for call in calls_of(store, record):
            with pytest.raises(StoreError, match="is closed"):
                call()

    def test_a_call_amid_the_close_is_a_store_error(self, opened):
        """Whatever becomes of its connection."""
        for _ in range(20):
            store, errors = opened(), []

            def call(store=store, errors=errors):
                while True:
                    try:
                        store.scan(SPACE)
                    except BaseException as exc:
                        errors.append(exc)
                        return

            threads = [threading.Thread(target=call) for _ in range(4)]
            for thread in threads:
                thread.start()
            store.close()
            for thread in threads:
                thread.join(PATIENCE)
            assert [StoreError] * 4 == [type(error) for error in errors]

    def test_a_server_that_stands_still_holds_no_event_loop(self, mortal, opened, monkeypatch):
        """Others wait for it, for a while."""
        monkeypatch.setattr(sys.modules[self.store.__module__], "PATIENCE", 0.5)
        store = opened(mortal.url)
        put(store, "a")
        mortal.pause()
        with hurried(lambda: True), pytest.raises(StoreError, match="Is the server stopped"):
            store.read(SPACE, "a")
        with pytest.raises(StoreError, match="Is the server stopped"):
            store.read(SPACE, "a")
        mortal.go_on()
        assert 0 == number_of(store)

    @pytest.mark.usefixtures("looks_often")
    def test_a_store_that_came_back_empty_gets_what_the_processes_have(self, server, opened):
        """No version goes back, and no number: a late write of before is not taken for one of now."""
        stores = [opened(kind=self.store) for _ in range(2)]
        for store in stores:
            store.listen()
        for _ in range(3):
            entry = stores[0].values.publish(USER, "rates", {"EUR": 1}, now=START)
        eventually(lambda: stores[1].values.known(USER, "rates") == entry)
        before = stores[0].records.read(USER, "rates")
        self.empty(server, stores[0].records)

        eventually(lambda: stores[0].records.read(USER, "rates") is not None)
        after = stores[0].records.read(USER, "rates")
        assert after.revision > before.revision
        assert (3, 3) == (entry.version, after.state.version)
        assert [4, 5] == [store.values.publish(USER, "rates", {}, now=START).version for store in stores]
        assert all(store.records.alive(other.records.me) for store in stores for other in stores)

    def test_who_follows_what_is_known_again(self, server, opened):
        """When the store has lost it, or when this process was taken for dead."""
        store, other = opened(), opened()
        store.watch(SPACE, "a", 3)
        for lose in (self.empty, self.forget):
            lose(server, store)
            assert 0 == other.watchers(SPACE, "a")
            store._join()
            assert 3 == other.watchers(SPACE, "a")
