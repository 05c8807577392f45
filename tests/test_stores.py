"""Every store keeps the promises of the contract that ships with the package."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import documents
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.record import Refusal
from panel_schedule.coordination.tasks import TASK
from panel_schedule.stores.file import opened
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.memory import MemoryStore
from panel_schedule.stores.memory_records import MemoryRecords
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract
from panel_schedule.testing.contracts.tools import claim, refusal, second


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
        threads = threading.active_count()
        store = FileStore(tmp_path / "store", SystemClock(), server="server", history_limit=self.history_limit)
        store.listen()
        yield store
        store.close()
        assert threads == threading.active_count()


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
        threads = threading.active_count()
        store = FileStore(tmp_path / "store", SystemClock(), server="server")
        store.listen()
        yield store.records
        store.close()
        assert threads == threading.active_count()


class TestSharedFileRecords(SharedRecordStoreContract):
    @pytest.fixture
    def store(self, opened):
        return opened().records

    @pytest.fixture
    def other(self, opened):
        return opened().records


def test_the_contract_needs_no_pytest():
    """A package that is installed without its test extra can be imported."""
    code = "import sys; sys.modules['pytest'] = None; import panel_schedule.testing as t; print(t.StoreContract)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=True)

    assert "StoreContract" in done.stdout
