"""One file is one module: what Panel's setup script has executed is what an import of the same file gives."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dis import opname
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import panel as pn
from panel.io import reload

SETUP = "panel_setup_module"

# What stands between a module and what it imports.
MACHINERY = {"importlib", "_frozen_importlib", "_frozen_importlib_external"}


class Executed(MetaPathFinder):
    """Finds files that were executed without an import. For `sys.meta_path`, before the ordinary finders."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}
        self._given: set[str] = set()
        # By the name of a package that nobody has imported yet: its member that was executed.
        self._members: dict[str, tuple[str, ModuleType]] = {}
        # Under --dev, by the name of a module: the one that has imported it.
        self.importers: dict[str, str] = {}

    def install(self) -> None:
        """Find Panel's setup script, which may run just now, or after the fork of several processes."""
        sys.meta_path.insert(0, self)
        module, callback = pn.state._setup_module, getattr(pn.state, "_setup_file_callback", None)
        if module is None or module.__name__ != SETUP:
            return
        if "__builtins__" in vars(module):  # it has begun
            self._name(module)
            self.add(module)
            self._watch(module)
        elif callback is not None:
            pn.state._setup_file_callback = lambda: self._execute(module, callback)

    def add(self, module: ModuleType) -> None:
        """Let an import of its file give this module."""
        if file := getattr(module, "__file__", None):
            self._modules.setdefault(os.path.realpath(file), module)

    def _execute(self, module: ModuleType, callback: Any) -> None:
        file = os.path.realpath(str(module.__file__))
        for known in list(sys.modules.values()):
            if os.path.realpath(getattr(known, "__file__", None) or "") == file:
                # With --warm the app has imported it before the fork, and its tasks are registered.
                pn.state._setup_module = known  # type: ignore[assignment]
                return
        self._name(module)
        self.add(module)
        try:
            callback()
        except BaseException:
            self._withdraw(module)
            raise

    def _watch(self, module: ModuleType) -> None:
        """When it runs on a loop, which only logs that it has failed."""
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            frame: Any = sys._getframe()
            while frame is not None and frame.f_globals is not vars(module):
                frame = frame.f_back
            if frame is not None:
                loop.call_soon(self._withdraw_unless_ended, module, frame)

    def _withdraw_unless_ended(self, module: ModuleType, frame: Any) -> None:
        if not opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN"):
            self._withdraw(module)

    def _withdraw(self, module: ModuleType) -> None:
        """As Python forgets a module whose execution has failed."""
        self._modules = {file: each for file, each in self._modules.items() if each is not module}
        for name in [name for name, each in list(sys.modules.items()) if each is module]:
            del sys.modules[name]

    def _name(self, module: ModuleType) -> None:
        """Give it the name that an import gives, unless that is another module's."""
        file = Path(os.path.realpath(str(module.__file__)))
        name, root = dotted(file)
        if name in sys.modules or "." in file.stem:
            return
        top = name.partition(".")[0]
        found = PathFinder.find_spec(top, [*app_folders(), *sys.path])
        expected = root / top / "__init__.py" if "." in name or file.name == "__init__.py" else file
        if found is not None and (found.origin is None or os.path.realpath(found.origin) != str(expected)):
            return
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        spec = spec_from_file_location(name, file, submodule_search_locations=folders)
        assert spec is not None
        module.__name__, module.__spec__, module.__loader__, module.__package__ = name, spec, spec.loader, spec.parent
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        _rename(vars(module), name)
        sys.modules[name] = module
        self._given.add(name)
        package, _, last = name.rpartition(".")
        if package in sys.modules:
            setattr(sys.modules[package], last, module)
        elif package:
            self._members[package] = last, module
        if pn.config.autoreload:
            reload._local_modules.add(name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if target is not None:
            return None
        if pn.config.autoreload:
            self.importers[name] = _importer()
        return self._find(name, path)

    def _ordinary(self, name: str, path: Any) -> ModuleSpec | None:
        found = (finder.find_spec(name, path, None) for finder in sys.meta_path if not isinstance(finder, Executed))
        return next((spec for spec in found if spec is not None), None)

    def _find(self, name: str, path: Any) -> ModuleSpec | None:
        member, last = self._members.pop(name, None), name.rpartition(".")[2]
        if member is None and not any(last in (Path(file).stem, Path(file).parent.name) for file in self._modules):
            return None
        if (spec := self._ordinary(name, path)) is None:
            return None
        file = os.path.realpath(spec.origin or "")
        if (module := self._modules.get(file)) is None:
            if member is not None and spec.loader is not None:
                name_there, its = member
                spec.loader = _Telling(spec.loader, lambda package: setattr(package, name_there, its))
            return spec
        if name in self._given:
            # It was given, and taken out of sys.modules since, as --dev does after an edit: the file is to run again.
            del self._modules[file]
            return spec
        self._given.add(name)
        spec.loader = _Given(module)
        return spec


def _importer() -> str:
    """The name of the module whose code imports something just now."""
    frame: Any = sys._getframe(2)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in MACHINERY:
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__"))


class _Telling(Loader):
    """Executes a file as its own loader does, and tells of it."""

    def __init__(self, loader: Any, executed: Callable[[ModuleType], object]):
        self._loader, self._executed = loader, executed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._executed(module)


class _Given(Loader):
    """Loads what is there."""

    def __init__(self, module: ModuleType):
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def dotted(file: Path) -> tuple[str, Path]:
    """The name of a file as a member of the packages that it is in, and the folder that they are in."""
    names = [] if file.name == "__init__.py" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").exists() and folder.name.isidentifier():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names), folder


def app_folders() -> list[str]:
    """Of the apps that are served: while one of them runs, its folder comes first."""
    paths = [Path(argument).absolute() for argument in sys.argv[1:] if os.path.exists(argument)]
    return [str(path if path.is_dir() else path.parent) for path in paths]


def _rename(space: Any, name: str) -> None:
    """What was defined before the module had its name."""
    for value in list(space.values()):
        if isinstance(value, (type, FunctionType)) and value.__module__ == SETUP:
            value.__module__ = name
            if isinstance(value, type):
                _rename(vars(value), name)
