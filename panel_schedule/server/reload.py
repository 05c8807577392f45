"""``panel serve --dev``: what was edited is executed anew, whether a page asks for it or not."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import Context
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType

import panel as pn
from panel.io import reload

from .modules import MACHINERY, SETUP, app_folders, dotted

log = logging.getLogger("panel_schedule")

# How often files are looked at, in seconds. An edit counts when two looks in a row have found the same, or when so many
# have found something: of a file that is written again and again.
PAUSE = 0.2
MOST_LOOKS = 5

# Never executed anew: what others hold on to.
_KEPT = ("panel_schedule", "panel", "bokeh", "param", "__main__", "__mp_main__")

# The names of apps' own modules, one for each session, begin like that.
_APP = "bokeh_app_"


@cache
def _real(file: str) -> str | None:
    """The path of a source file; None of one that is not the user's."""
    return os.path.realpath(file) if file.endswith(".py") and not reload.in_denylist(file) else None


class Reloader:
    """
    Watches the files of a server's own modules, in place of Panel's watcher, which executes none and forgets some.

    Parameters
    ----------
    importers : Mapping
        By the name of a module, the one that imported it.
    declaring : callable
        Gives the names of the modules that have declared functions.
    edit : callable
        Gets the names of the modules that are executed anew, and gives what surrounds that.

    Attributes
    ----------
    error : str
        Why the last edit is not in force; ``""`` when it is.
    """

    def __init__(
        self,
        importers: Mapping[str, str],
        declaring: Callable[[], set[str]],
        edit: Callable[[set[str]], AbstractContextManager[None]],
    ):
        self.error = ""
        self._importers, self._declares, self._edit = importers, declaring, edit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._panels = reload._reload
        # Modules that have declared functions; whether one was edited that lies elsewhere, as Panel tells them apart.
        self._declaring: set[str] = set()
        self._elsewhere = False
        # By file: its module, and what it was like when it was executed; what differs since the last look.
        self._modules: dict[str, str] = {}
        self._known = (0, 0)
        self._seen: dict[str, object] = {}
        self._changing: dict[str, object] = {}
        self._looks = 0  # in a row that have found something

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch, on the loop that serves. Idempotent."""
        if self._loop is not loop:
            self._loop = loop
            reload._reload = lambda module_paths, changes: None
            loop.call_soon(self._look, loop, context=Context())

    def end(self) -> None:
        """Nothing is served any more."""
        self._loop = None
        reload._reload = self._panels

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        changed = self._changed()
        self._looks = self._looks + 1 if changed else 0
        if changed and (changed == self._changing or self._looks >= MOST_LOOKS):  # nobody is writing it just now
            self._looks = 0
            self._seen.update(changed)
            if modules := {self._modules[file] for file in changed if file in self._modules}:
                self._execute(modules, list(changed))
            self._panels({}, set())  # lets all pages load again
        self._changing = changed
        loop.call_later(PAUSE, self._look, loop, context=Context())

    def _changed(self) -> dict[str, object]:
        known = len(sys.modules), len(self._importers)
        if known != self._known:
            self._known = known
            own = self._own()
            self._modules.update((file, name) for name, file in _files() if name in reload._modules)
            self._modules.update((file, name) for name, file in own.items())
            self._modules.update(self._missing(own))
        now = {file: _stat(file) for file in {*self._modules, *map(os.path.realpath, reload._watched_files)}}
        return {file: there for file, there in now.items() if there != self._seen.setdefault(file, there)}

    def _missing(self, own: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """The files, there or not, of modules that could not be imported."""
        folders = {*app_folders(), *(_place(name, file) for name, file in own.items())}
        for name, importer in list(self._importers.items()):
            if name not in sys.modules and (importer in own or importer.startswith(_APP)):
                for folder in folders:
                    path = os.path.join(os.path.realpath(folder), *name.split("."))
                    yield f"{path}.py", name
                    yield os.path.join(path, "__init__.py"), name

    def _own(self) -> dict[str, str]:
        """By name, the files of all modules that an edit of one of them executes anew."""
        tops = {_top(name) for name in self._declaring} - sys.stdlib_module_names
        listed = reload._local_modules | reload._modules if self._elsewhere else reload._local_modules
        folders = app_folders()
        own = {}
        if (setup := pn.state._setup_module) is not None:
            file = os.path.realpath(str(setup.__file__))
            own[setup.__name__] = file
            folders.append(str(dotted(Path(file))[1]))
        within = tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)
        for name, file in _files():
            if name in listed or _top(name) in tops or file.startswith(within):
                own[name] = file
        return own

    def _execute(self, edited: set[str], files: list[str]) -> None:
        self._declaring |= self._declares()
        self._elsewhere |= not edited.isdisjoint(reload._modules - self._own().keys())
        own = self._own()
        entries = self._entries(own)
        former = {name: sys.modules.pop(name) for name in own if name in sys.modules}
        importlib.invalidate_caches()
        for file in files:
            # Another edit of the same second and length would be taken for what it was compiled from.
            with suppress(OSError, NotImplementedError):
                os.unlink(cache_from_source(file))
        try:
            with _importable(own), self._edit(set(own)):
                for name in entries:
                    _import(name, own[name])
        except (Exception, SystemExit) as error:
            for name in self._own():
                sys.modules.pop(name, None)
            sys.modules.update(former)
            self.error = _told(error)
            log.error("What was edited cannot be executed, and what was there before goes on:\n%s", self.error)
        else:
            self.error = ""
            log.info("Executed anew: %s", ", ".join(entries))
        self._known = (0, 0)

    def _entries(self, own: Mapping[str, str]) -> list[str]:
        """What is to be imported, in order: the setup script, and what the apps import that declares functions."""
        setup = pn.state._setup_module
        first: list[str] = [] if setup is None else [setup.__name__]
        found = {self._entry(name, own) for name in self._declaring if name in own}
        if setup is not None:  # which imports what no app has
            found &= reload._local_modules | reload._modules
        return [*first, *(name for name in own if name in found and name not in first)]

    def _entry(self, name: str, own: Mapping[str, str]) -> str:
        """Which of them has led to the import of this one."""
        way = {name}
        while (importer := self._importers.get(name, "")) in own and importer not in way:
            name = importer
            way.add(name)
        return name


def _files() -> Iterator[tuple[str, str]]:
    """The modules that are there, with their files, as far as they may be executed anew."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and _top(name) not in _KEPT and not name.startswith(_APP):
            # Not by its attribute, which would load a lazy one.
            file = object.__getattribute__(module, "__dict__").get("__file__")
            if isinstance(file, str) and (real := _real(file)) is not None:
                yield name, real


def _told(error: BaseException) -> str:
    """The error as Python prints it, from the first line of the user's on."""
    frames = error.__traceback__
    while frames is not None and _top(frames.tb_frame.f_globals.get("__name__", "")) in {*MACHINERY, *_KEPT}:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def _top(name: str) -> str:
    return name.partition(".")[0]


def _stat(file: str) -> object:
    try:
        there = os.stat(file)
    except OSError:
        return None
    return there.st_mtime_ns, there.st_size, there.st_ino


@contextmanager
def _importable(own: Mapping[str, str]) -> Iterator[None]:
    """With the folders of the apps first, as while one runs, and last those where the modules were found."""
    apps = app_folders()
    places = {_place(name, file) for name, file in own.items()} - {*apps, *sys.path}
    sys.path[:] = [*apps, *sys.path, *sorted(places)]
    try:
        yield
    finally:
        for folder in [*apps, *places]:
            with suppress(ValueError):
                sys.path.remove(folder)


def _place(name: str, file: str) -> str:
    """The folder in which an import finds it."""
    path = Path(file)
    return str(path.parents[name.count(".") + (path.name == "__init__.py")])


def _import(name: str, file: str) -> None:
    if not os.path.exists(file):
        return  # and what it has declared goes
    if name != SETUP:
        importlib.import_module(name)
        return
    # A module of another file has the name that this one would have.
    module = ModuleType(SETUP)
    module.__file__ = file
    exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
