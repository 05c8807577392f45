"""Type checkers see what a task, a run, a job and an answer give, and what is wrong with a call."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TYPED = ROOT / "tests" / "typed_front.py"
WRONG = {number for number, line in enumerate(TYPED.read_text().splitlines(), 1) if line.endswith("# wrong")}


def by_mypy(folder: Path) -> set[int]:
    """As `make lint` calls it, whose cache saves most of the time."""
    command = [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'pyproject.toml'}", str(TYPED)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT).stdout
    print(shown)
    return {int(number) for number in re.findall(r"typed_front\.py:(\d+): error", shown)}


def by_pyright(folder: Path) -> set[int]:
    pytest.importorskip("basedpyright", reason="is pyright with all that it needs")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--level", "error", "--pythonpath", sys.executable]
    shown = subprocess.run([*command, str(TYPED)], capture_output=True, text=True, timeout=100, cwd=folder).stdout
    print(shown)
    return {each["range"]["start"]["line"] + 1 for each in json.loads(shown)["generalDiagnostics"]}


@pytest.mark.slow
@pytest.mark.parametrize("check", [by_mypy, by_pyright])
def test_a_type_checker_sees_what_they_give_and_complains_of_what_is_wrong(
    tmp_path: Path, check: Callable[[Path], set[int]]
) -> None:
    assert WRONG == check(tmp_path)
