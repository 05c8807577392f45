"""Every snippet of the documentation does what it says; `documents` has the conventions."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import httpx
import pytest

import documents
import panel_schedule
from servers import Serve, write_files

ROOT = Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

# Imports what takes long once, and forks a process for each line: what runs it, the page or module, and where.
NURSERY = """
import doctest, gc, importlib, json, os, signal, sys
from pathlib import Path
import numpy, pandas, panel, panel_schedule
import documents

def examples(name):
    sys.exit(doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed)

def blocks(page):
    documents.run(Path(page))

gc.freeze()  # else each of them looks at the end for garbage in all that has been imported here
for line in sys.stdin:
    what, name, folder = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        output = os.open(os.path.join(folder, "output"), os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(output, 1), os.dup2(output, 2)
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.exit(globals()[what](name))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

RunPython = Callable[[str, str], None]


def commands(program: str) -> list[tuple[Path, str]]:
    return [(page, command) for page in PAGES for command in documents.commands(page, program)]


def is_shown(page: Path, command: str) -> bool:
    """Whether the page itself has the files that the command names."""
    named = {word for word in shlex.split(command) if word.endswith(".py")}
    return bool(named) and named <= set(documents.files(page))


def modules_with_doctests() -> list[str]:
    found = pkgutil.walk_packages(panel_schedule.__path__, "panel_schedule.")
    paths = {module.name: module.module_finder.find_spec(module.name).origin for module in found}
    return [name for name, path in paths.items() if ">>> " in Path(path).read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    paths = os.pathsep.join([str(ROOT), str(Path(documents.__file__).parent)])
    with subprocess.Popen(
        [sys.executable, "-P", "-c", NURSERY],
        cwd=tmp_path_factory.mktemp("nursery"),
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield process


@pytest.fixture
def run_python(nursery: subprocess.Popen[str], tmp_path: Path) -> RunPython:
    """Each page and each module in a process of its own: the registry and the options are one per process."""

    def run(what: str, name: str) -> None:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        nursery.stdin.write(json.dumps([what, name, str(tmp_path)]) + "\n")
        code = nursery.stdout.readline()
        assert code == "0\n", (tmp_path / "output").read_text()

    return run


@cache
def serve_options() -> set[str]:
    usage = subprocess.run([sys.executable, "-m", "panel", "serve", "--help"], capture_output=True, text=True).stdout
    return set(re.findall(r"--[a-z-]+", usage))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path, run_python: RunPython) -> None:
    write_files(tmp_path, documents.files(page))
    run_python("blocks", str(page))


@pytest.mark.parametrize("name", modules_with_doctests())
def test_the_examples_in_docstrings_run(name: str, run_python: RunPython) -> None:
    run_python("examples", name)


@pytest.mark.parametrize(("page", "command"), commands("panel serve"))
def test_a_panel_serve_command_works(page: Path, command: str, serve: Serve) -> None:
    """Its options exist; and where its page shows the files that it names, they are served."""
    options = {word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")}
    assert options <= serve_options()
    if is_shown(page, command):
        server = serve(command, documents.files(page))
        for app in takewhile(lambda word: not word.startswith("--"), shlex.split(command)):
            assert httpx.get(f"{server.url}/{Path(app).stem}", timeout=30).status_code == 200
        assert "Traceback" not in server.output()


@pytest.mark.parametrize(("page", "command"), commands("make"))
def test_a_make_command_has_its_target(page: Path, command: str) -> None:
    for word in shlex.split(command):
        name, assigned, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if assigned else rf"^{name}:", MAKEFILE, re.MULTILINE), word


def test_the_readme_serves_what_it_shows() -> None:
    readme = ROOT / "README.md"
    assert any(is_shown(readme, command) for command in documents.commands(readme, "panel serve"))


def test_every_option_of_the_configuration_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [] == [option for option in panel_schedule.config.options() if f"`{option}`" not in text]


def test_a_block_of_the_readme_that_is_a_file_says_which() -> None:
    """Its first line does: the comment before it shows nowhere."""
    shown = documents.files(ROOT / "README.md")
    assert {name: f"# {name}" for name in shown} == {name: text.splitlines()[0] for name, text in shown.items()}
