"""The front door: small, sorted, documented, and cheap to open."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import panel_schedule as ps
from panel_schedule import testing

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


@pytest.mark.slow
@pytest.mark.unhurried
def test_an_import_loads_no_optional_dependency() -> None:
    """Panel itself loads psutil where it is installed."""
    script = "import panel, sys; panels = set(sys.modules); import panel_schedule; print(*set(sys.modules) - panels)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "panel_schedule.config" in loaded
    assert not LAZY & {name.partition(".")[0] for name in loaded}


def test_the_package_shows_its_names_and_nothing_else() -> None:
    """What is completed after ``ps.``: not the modules that it is made of, nor what they import."""
    assert ps.__all__ == dir(ps)


@pytest.mark.parametrize("module", [ps.errors, ps.triggers, testing], ids=lambda module: module.__name__)
def test_a_public_module_shows_its_names_and_nothing_else(module: ModuleType) -> None:
    assert sorted(module.__all__) == dir(module)


def test_all_errors_are_shown() -> None:
    defined = {name for name, value in vars(ps.errors).items() if isinstance(value, type)}
    assert defined == set(dir(ps.errors))


@pytest.mark.parametrize("jedi", [False, True])
def test_ipython_completes_the_names_and_nothing_else(jedi: bool) -> None:
    """Whether it asks the module itself or reads its source."""
    shell = InteractiveShell()
    shell.user_ns["ps"] = ps
    shell.Completer.use_jedi = jedi
    with provisionalcompleter():
        completed = {completion.text.lstrip(".") for completion in shell.Completer.completions("ps.", 3)}
    assert set(ps.__all__) == {name.removeprefix("ps.") for name in completed}


def test_a_star_imports_the_names() -> None:
    space: dict[str, object] = {}
    exec("from panel_schedule import *", space)
    assert set(ps.__all__) == space.keys() - {"__builtins__"}
