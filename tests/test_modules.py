"""One file is one module: an import of the setup script's file gives what Panel has executed (invariant 1)."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import pickle
import sys
from pathlib import Path
from types import ModuleType

import panel as pn
import pytest
from panel.io import reload

from panel_schedule.server.modules import Executed

SCRIPT = """
from __future__ import annotations
import dataclasses
runs.append(1)
class Early:
    class Inner: pass
begin()
@dataclasses.dataclass
class Row:
    n: int
    _: dataclasses.KW_ONLY = None
"""

PLAIN = "begin()\nclass Row: pass\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that is on sys.path as long as an app runs."""
    before = set(sys.modules)
    finders = list(sys.meta_path)
    monkeypatch.setattr(sys, "argv", ["panel", "serve"])
    monkeypatch.setattr(pn.state, "_setup_file_callback", None, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - before:
        del sys.modules[name]


def script(monkeypatch, path: Path, source: str = SCRIPT, **names) -> ModuleType:
    """What Panel makes of ``--setup path``, up to the execution."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    module = ModuleType("panel_setup_module")
    vars(module).update({"__file__": str(path), "runs": [], "begin": Executed().install, **names})
    monkeypatch.setattr(pn.state, "_setup_module", module)
    return module


def execute(module: ModuleType) -> None:
    exec(compile(Path(module.__file__).read_text(), module.__file__, "exec"), vars(module))


def test_an_import_gives_what_was_executed(place, monkeypatch):
    """Also the classes that were defined before the package came; its annotations and pickles know its name."""
    module = script(monkeypatch, place / "tasks_a.py")
    execute(module)
    tasks = importlib.import_module("tasks_a")

    assert module is tasks
    assert [1] == tasks.runs
    assert ["tasks_a"] * 3 == [kind.__module__ for kind in (tasks.Early, tasks.Early.Inner, tasks.Row)]
    assert pickle.loads(pickle.dumps(tasks.Row(1))) == tasks.Row(1)
    assert ["n"] == [field.name for field in dataclasses.fields(tasks.Row)]


@pytest.mark.parametrize("name", ["my-tasks", "01_tasks"])
def test_a_name_that_no_import_statement_can_write_is_a_name(place, monkeypatch, name):
    """Its dataclasses with annotations of text work, and what it defines can be found by reference."""
    module = script(monkeypatch, place / f"{name}.py")
    execute(module)

    assert importlib.import_module(name) is module
    assert pickle.loads(pickle.dumps(module.Row(1))) == module.Row(1)


def test_a_member_of_a_package_is_that_member(place, monkeypatch):
    """Its package comes when somebody asks for it, and has it."""
    (place / "pkg_b").mkdir()
    (place / "pkg_b" / "__init__.py").write_text("executed = True\n")
    (place / "pkg_b" / "helper.py").write_text("from .tasks import Early\n")
    module = script(monkeypatch, place / "pkg_b" / "tasks.py", SCRIPT + "from . import helper\n")
    execute(module)

    package = importlib.import_module("pkg_b")
    assert importlib.import_module("pkg_b.tasks") is package.tasks is module
    assert ("pkg_b.tasks", "pkg_b") == (module.Row.__module__, module.__package__)
    assert (True, module.Early) == (package.executed, package.helper.Early)
    assert "SourceFileLoader" == type(package.__loader__).__name__


def test_a_file_in_a_folder_without_init_is_found_by_either_name(place, monkeypatch):
    module = script(monkeypatch, place / "ops_c" / "tasks_c.py")
    execute(module)

    assert module is importlib.import_module("ops_c.tasks_c") is importlib.import_module("tasks_c")
    assert "tasks_c" == module.__spec__.name


def test_a_helper_that_imports_it_meanwhile_gets_what_there_is(place, monkeypatch):
    """As of any module that is being executed."""
    (place / "helper_d.py").write_text("import tasks_d\nfound = tasks_d.Row\n")
    module = script(monkeypatch, place / "tasks_d.py", SCRIPT + "import helper_d\nafter = 1\n")
    execute(module)

    assert module.Row is module.helper_d.found


def test_another_file_of_that_name_stays_another_module(place, monkeypatch):
    """The app's own, whose folder comes first while it runs."""
    for folder in ("app", "ops"):
        (place / folder).mkdir()
    (place / "app" / "app.py").write_text("")
    (place / "app" / "tasks_e.py").write_text("mine = True\n")
    monkeypatch.setattr(sys, "argv", ["panel", "serve", str(place / "app" / "app.py")])
    module = script(monkeypatch, place / "ops" / "tasks_e.py", PLAIN)
    execute(module)
    monkeypatch.syspath_prepend(place / "app")

    assert importlib.import_module("tasks_e").mine
    assert "panel_setup_module" == module.Row.__module__


@pytest.mark.parametrize("name", ["logging", "zipapp"])
def test_a_module_of_python_stays_what_it_is(place, monkeypatch, name):
    """Whether it is imported already or not: a script of its name, elsewhere, is another one."""
    module = script(monkeypatch, place / "elsewhere" / f"{name}.py", PLAIN)
    execute(module)

    assert "lib/python3" in importlib.import_module(name).__file__
    assert "panel_setup_module" == module.__name__


def test_what_is_taken_out_is_executed_anew(place, monkeypatch):
    """As Panel does under --dev after an edit; it watches the file."""
    monkeypatch.setattr(pn.config, "autoreload", True)
    monkeypatch.setattr(reload, "_local_modules", set())
    module = script(monkeypatch, place / "tasks_f.py")
    execute(module)
    assert {"tasks_f"} == reload._local_modules
    (place / "tasks_f.py").write_text("edited = True\n")
    del sys.modules["tasks_f"]

    assert importlib.import_module("tasks_f").edited
    del sys.modules["tasks_f"]
    assert importlib.import_module("tasks_f").edited


def test_a_reload_executes_it_in_place(place, monkeypatch):
    module = script(monkeypatch, place / "tasks_g.py")
    execute(module)
    (place / "tasks_g.py").write_text("edited = True\n")

    assert module is importlib.reload(importlib.import_module("tasks_g"))
    assert module.edited


def test_a_script_that_runs_later_is_not_given_before(place, monkeypatch):
    """With several processes it runs after the fork; --plugins has imported the package before."""
    module = script(monkeypatch, place / "tasks_h.py", begin=lambda: None)
    pn.state._setup_file_callback = lambda: execute(module)
    Executed().install()
    assert "tasks_h" not in sys.modules
    pn.state._setup_file_callback()

    assert module is importlib.import_module("tasks_h")
    assert "tasks_h" == module.Early.__module__


def test_a_script_that_was_imported_before_the_fork_does_not_run_again(place, monkeypatch):
    """As --warm does."""
    module = script(monkeypatch, place / "tasks_i.py", "name = __name__\n")
    pn.state._setup_file_callback = lambda: execute(module)
    Executed().install()
    imported = importlib.import_module("tasks_i")
    pn.state._setup_file_callback()

    assert "tasks_i" == imported.name
    assert imported is pn.state._setup_module


def test_a_script_that_fails_is_forgotten(place, monkeypatch):
    """As Python forgets a module: the app's import says why."""
    module = script(monkeypatch, place / "tasks_j.py", "runs = []\nraise ValueError('broken')\n")
    pn.state._setup_file_callback = lambda: execute(module)
    Executed().install()

    for give in (pn.state._setup_file_callback, lambda: importlib.import_module("tasks_j")):
        with pytest.raises(ValueError, match="broken"):
            give()


@pytest.mark.parametrize("fails", [False, True])
def test_a_script_that_fails_on_a_loop_is_forgotten(place, monkeypatch, fails):
    """Where the script itself is the first to import the package, and the loop only logs."""
    module = script(monkeypatch, place / "tasks_k.py", SCRIPT + ("raise ValueError('broken')\n" if fails else ""))

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        loop.call_soon(execute, module)
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert fails == ("tasks_k" not in sys.modules)


def test_a_script_that_serves_is_what_its_apps_import(place):
    """It runs as __main__, and stays that."""
    (place / "main_l.py").write_text("raise AssertionError('runs again')\n")
    main = ModuleType("__main__")
    main.__file__ = str(place / "main_l.py")
    executed = Executed()
    executed.install()
    executed.add(main)

    assert main is importlib.import_module("main_l")
    assert ("__main__", None) == (main.__name__, main.__spec__)
