"""Every store keeps the promises of the contract that ships with the package."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import documents
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.record import Record, Refusal
from panel_schedule.coordination.tasks import TASK, VALUE
from panel_schedule.errors import StoreError
from panel_schedule.functions.run import RunRecord
from panel_schedule.stores.base import Store
from panel_schedule.stores.fallback import Fallback
from panel_schedule.stores.file import opened
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.memory import MemoryStore
from panel_schedule.stores.memory_records import MemoryRecords
from panel_schedule.stores.records import Change, Changed, Lost, Result
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract, VirtualClock
from panel_schedule.testing.contracts.tools import claim, refusal, second
from servers import eventually


@pytest.fixture(autouse=True)
def threads_that_take_turns_often() -> Iterator[None]:
    """More of what can come in between does; and who only reads, in memory, keeps no writer waiting for the GIL."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore(self.history_limit)


def test_in_the_child_of_a_fork_nobody_holds_a_task():
    """Its run stayed with the parent; what the task has given is there, and its slot was handled."""
    store = MemoryStore()
    held = claim(store, "sales", mark=second(1))
    store.do(store.tasks.publish(7, now=second(1), claim=held))
    child = store.forked()

    entry = child.values.entry(TASK, "sales")
    assert entry is not None
    assert (7, Refusal.HANDLED, None) == (
        entry.value, refusal(child, "sales", mark=second(1)), refusal(child, "sales", mark=second(2)),
    )  # fmt: skip


class TestFileStore(StoreContract):
    """As a script uses it: it asks whenever it wants to know."""

    @pytest.fixture
    def store(self, tmp_path):
        store = FileStore(tmp_path / "store", SystemClock(), persistent=False, history_limit=self.history_limit)
        yield store
        store.close()
        assert not (tmp_path / "store").exists()


class TestListeningFileStore(TestFileStore):
    """As a server uses it: others tell it."""

    @pytest.fixture
    def store(self, tmp_path):
        threads = set(threading.enumerate())
        store = FileStore(tmp_path / "store", SystemClock(), server="server", history_limit=self.history_limit)
        store.listen()
        yield store
        store.close()
        assert set(threading.enumerate()) <= threads


class Unreachable(MemoryRecords):
    """A store of which nothing can be had any more, as far as tasks are concerned."""

    blocking = True

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in ("read", "scan", "write", "load", "source", "log"):
            return method

        def asked(about: Any, *args: Any, **options: Any) -> Any:
            spaces = {each.space for each in about} if name == "write" else {getattr(about, "space", about)}
            if TASK in spaces:
                raise StoreError("Not now.")
            return method(about, *args, **options)

        return asked


class Forgetful(MemoryRecords):
    """A store that can be asked until it is away, and tells nobody anything."""

    blocking, away = True, False

    def subscribe(self, space: str, changed: Changed, lost: Lost = lambda since: None) -> None:
        pass

    def read(self, space: str, name: str) -> Record | None:
        self._ask()
        return super().read(space, name)

    def write(self, changes: Sequence[Change], **options: Any) -> list[Result]:
        self._ask()
        return super().write(changes, **options)

    def scan(self, space: str, *args: Any, **options: Any) -> list[Record]:
        self._ask()
        return super().scan(space, *args, **options)

    def load(self, *args: Any, **options: Any) -> Any:
        self._ask()
        return super().load(*args, **options)

    def log(self, *args: Any, **options: Any) -> list[RunRecord]:
        self._ask()
        return super().log(*args, **options)

    def alive(self, owner: str) -> bool:
        self._ask()
        return super().alive(owner)

    def watch(self, *args: Any) -> None:
        self._ask()
        super().watch(*args)

    def watchers(self, *args: Any) -> int:
        self._ask()
        return super().watchers(*args)

    def _ask(self) -> None:
        if self.away:
            raise StoreError("Not now.")


class TestLostStore(StoreContract):
    """What a process has for itself keeps the promises, too, for tasks."""

    @pytest.fixture
    def store(self):
        records = Unreachable()
        fallback = Fallback(records, SystemClock(), "it", 0.0, self.history_limit)
        store = Store(records, SystemClock(), "server", fallback=fallback)
        yield store
        store.close()

    @pytest.mark.skip("What it has for itself is for minutes; the store deletes what has become too old.")
    def test_what_ended_too_long_ago_is_deleted(self):
        pass


def test_a_process_goes_on_without_its_store_after_the_lease():
    """Before that others take it to be alive, and wait for it."""
    clock, records = VirtualClock(), Unreachable()
    fallback = Fallback(records, clock, "it", 15.0, 50)
    store = Store(records, clock, "server", fallback=fallback)
    for _ in range(2):
        with pytest.raises(StoreError, match="Not now"):
            claim(store, "sales", mark=second(1))
        clock.advance(14.9)
    clock.advance(0.1)
    assert claim(store, "sales", mark=second(1)).fence == 1
    assert store.away
    store.close()


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda store, record: store.read(TASK, "sales"), id="read"),
        pytest.param(lambda store, record: store.scan(TASK), id="scan"),
        pytest.param(lambda store, record: store.load(record, VALUE), id="load"),
        pytest.param(lambda store, record: store.log(TASK, "sales"), id="log"),
        pytest.param(
            lambda store, record: store.write([Change(TASK, "sales", lambda record, revision: record)]), id="write"
        ),
        pytest.param(lambda store, record: store.alive("somebody"), id="alive"),
        pytest.param(lambda store, record: store.watch(TASK, "sales", 1), id="watch"),
        pytest.param(lambda store, record: store.watchers(TASK, "sales"), id="watchers"),
    ],
)
def test_whatever_is_asked_in_vain_for_the_lease_a_process_goes_on(ask: Callable[[Fallback, Record], object]) -> None:
    """Calls are made one after another: one that only ever failed would keep all others waiting."""
    clock, records = VirtualClock(), Forgetful()
    fallback = Fallback(records, clock, "it", 15.0, 50)
    store = Store(records, clock, "server", fallback=fallback)
    store.do(store.tasks.publish(7, now=second(1), claim=claim(store, "sales")))
    record = fallback.read(TASK, "sales")
    records.away = True
    for _ in range(2):
        with pytest.raises(StoreError, match="Not now"):
            ask(fallback, record)
        clock.advance(7.5)
    with suppress(KeyError):  # the value went with the store
        ask(fallback, record)
    assert fallback.away
    store.close()


def test_a_process_that_goes_on_without_its_store_looks_at_all_that_it_knows():
    """That another one's run has ended it may know, as it has written, and have no word of any more."""
    records = Forgetful()
    fallback = Fallback(records, SystemClock(), "it", 0.0, 50)
    store, told = Store(records, SystemClock(), "server", fallback=fallback), []
    store.tasks.subscribe(lambda name: told.append((name, store.tasks.row(name).holder)))
    store.listen()
    held = claim(store, "sales")
    store.do(store.tasks.release(held))
    records.away = True
    assert refusal(store, "costs") is None
    eventually(lambda: ("sales", None) in told)
    store.close()


class TestMemoryRecords(RecordStoreContract):
    @pytest.fixture
    def store(self):
        return MemoryRecords()


class TestRecordsOfTheDocumentation(RecordStoreContract):
    """What docs/stores.md tells to write is a store, in so few lines."""

    source = documents.files(Path(__file__).parent.parent / "docs" / "stores.md")["dict_store.py"]

    @pytest.fixture
    def store(self):
        names: dict[str, Any] = {}
        exec(self.source, names)
        return names["DictStore"]()

    def test_it_is_short(self):
        """Else nobody writes one."""
        assert len([line for line in self.source.splitlines() if line]) <= 60


class TestFileRecords(RecordStoreContract):
    """As a script uses them: until it listens it asks."""

    @pytest.fixture(autouse=True)
    def looks_often(self, monkeypatch):
        """Nothing wakes a process that has changed something itself."""
        monkeypatch.setattr(opened, "LOOK", 0.02)

    @pytest.fixture
    def store(self, tmp_path):
        store = FileStore(tmp_path / "store", SystemClock(), persistent=False)
        yield store.records
        store.close()
        assert not (tmp_path / "store").exists()


class TestListeningFileRecords(TestFileRecords):
    """As a server uses them."""

    @pytest.fixture
    def store(self, tmp_path):
        threads = set(threading.enumerate())
        store = FileStore(tmp_path / "store", SystemClock(), server="server")
        store.listen()
        yield store.records
        store.close()
        # It waits a moment for its thread, and leaves one behind that gets no turn on a busy machine.
        assert eventually(lambda: set(threading.enumerate()) <= threads)


class TestSharedFileRecords(SharedRecordStoreContract):
    @pytest.fixture
    def store(self, opened):
        return opened().records

    @pytest.fixture
    def other(self, opened):
        return opened().records


@pytest.mark.slow
@pytest.mark.unhurried
def test_the_contract_needs_no_pytest():
    """A package that is installed without its test extra can be imported."""
    code = "import sys; sys.modules['pytest'] = None; import panel_schedule.testing as t; print(t.StoreContract)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=True)

    assert "StoreContract" in done.stdout
