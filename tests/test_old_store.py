"""A store that an earlier version has made is read: values, history, answers, pauses and jobs survive."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from old_schema import SCHEMA_4
from panel_schedule.clock import SystemClock
from panel_schedule.functions.run import RunRecord, RunState
from panel_schedule.stores.file.history import RUN, row_of
from panel_schedule.stores.file.store import FileStore

HERE = Path(__file__).parent

# The run that was left behind there: a durable job whose argument is a task.
LEFT_BEHIND = "rKbzlE9S-TW57"


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_store_of_before_the_modules_moved_is_read(tmp_path: Path) -> None:
    """By schema 3; nothing in it is computed anew, and the run that was left behind is run."""
    with zipfile.ZipFile(HERE / "data" / "schema3.zip") as archive:
        archive.extractall(tmp_path)
    for folder in (tmp_path / "store", *(tmp_path / "store").glob("*/")):
        folder.chmod(0o700)
    done = subprocess.run(
        [sys.executable, str(HERE / "old_store.py"), "read", str(tmp_path / "store"), LEFT_BEHIND],
        capture_output=True, text=True, timeout=60, env=os.environ.copy(),
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    assert json.loads(done.stdout) == {
        "note": {"text": "kept", "numbers": [1, 2]},
        "sales": [1, 3],
        "large": 4999950000.0,
        "paused": ["paused", 1],
        "failing": [7, ["failed", "succeeded"]],
        "answer": 42,
        "tasks": [1, 1, 1, 1],
        # Its code is other bytes in another Python, which may give another answer.
        "computed": [] if sys.version_info[:2] == (3, 11) else [21],
        "total": 40,
    }


def test_a_release_without_the_log_of_failures_has_the_same_store_open(tmp_path: Path) -> None:
    """It goes on reading and writing what it knows, before and after this one has opened the store (schema 4)."""

    def run(id: str, state: RunState, **more: str) -> RunRecord:
        return RunRecord(id, None, state, finished_at=datetime(2026, 1, 1, tzinfo=UTC), **more)

    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as earlier:
        earlier.executescript(f"PRAGMA journal_mode = WAL; PRAGMA user_version = 4; {SCHEMA_4}")
        write = f"INSERT INTO runs ({RUN}, task) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        earlier.execute(write, (*row_of(run("r1", RunState.FAILED)), "sales"))
        with closing(FileStore(folder, SystemClock())) as store:
            assert [run("r1", RunState.FAILED)] == store.history("sales")
            failed = run("r2", RunState.FAILED, owner="me", traceback="in f")
            store.do(store.tasks.record("sales", failed))
            earlier.execute(write, (*row_of(run("r3", RunState.SUCCEEDED)), "sales"))
            assert [run("r3", RunState.SUCCEEDED), failed, run("r1", RunState.FAILED)] == store.history("sales")
            rows = earlier.execute("SELECT * FROM runs WHERE task = 'sales' ORDER BY number").fetchall()
            assert (["r1", "r2", "r3"], 4) == (
                [row[2] for row in rows], earlier.execute("PRAGMA user_version").fetchone()[0],
            )  # fmt: skip
