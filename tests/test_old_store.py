"""A store that an earlier version has made is read: values, history, answers, pauses and jobs survive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent

# The run that was left behind there: a durable job whose argument is a task.
LEFT_BEHIND = "rKbzlE9S-TW57"


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
