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
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    assert re.search(rf"\b{name}\b", "\n".join(pages)), f"ps.{name} is neither in README.md nor in docs/*.md"


def test_the_package_defines_nothing_itself() -> None:
    lines = Path(ps.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 65


def test_an_import_loads_no_optional_dependency() -> None:
    script = "import sys, panel_schedule; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not LAZY & set(loaded.split())
