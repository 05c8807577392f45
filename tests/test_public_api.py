"""The front door: small, sorted, documented, and cheap to open."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import panel_schedule as ps

ROOT = Path(__file__).parent.parent
LAZY = {"redis", "celery", "dask", "psutil", "httpx", "duckdb", "IPython"}


def test_the_names_are_sorted() -> None:
    assert sorted(set(ps.__all__)) == ps.__all__


@pytest.mark.parametrize("name", ps.__all__)
def test_a_name_exists_and_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(ps, name))


@pytest.mark.parametrize("name", ps.__all__)
def test_a_name_is_in_the_documentation(name: str) -> None:
    """As code, after a backtick or a dot: ``on`` and ``store`` are words, too."""
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    mentioned = any(re.search(rf"[`.]{name}\b", page) for page in pages)
    assert mentioned, f"ps.{name} is neither in README.md nor in docs/*.md"


def test_the_front_door_is_small() -> None:
    lines = Path(ps.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 75, "the names, and what they are made of; the rest belongs in a module"


def test_an_import_loads_no_optional_dependency() -> None:
    """Panel itself loads psutil where it is installed."""
    script = "import panel, sys; panels = set(sys.modules); import panel_schedule; print(*set(sys.modules) - panels)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "panel_schedule.config" in loaded
    assert not LAZY & {name.partition(".")[0] for name in loaded}
