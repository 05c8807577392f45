"""
The first lines of a worker process, which runs this file as a script.

As a module of the package it would come after ``panel_schedule/__init__.py``, and so after Panel, which takes a second
and 100 MB. Here a stand-in takes the package's place, until somebody asks it for what only the package has.
"""

import importlib
import os
import sys
import threading
from importlib.util import find_spec, spec_from_file_location
from types import ModuleType
from typing import Any

NAME = "panel_schedule"

# Which names of the package do without Panel, and where they are.
LIGHT = {
    "Background": ("functions.remote", "RemoteFunction"),
    "Entry": ("serialize.entry", "Entry"),
    "Family": ("functions.remote", "RemoteFamily"),
    "Memoized": ("functions.remote", "RemoteMemo"),
    "Retry": ("functions.task", "Retry"),
    "Run": ("functions.run", "Run"),
    "RunState": ("functions.run", "RunState"),
    "ScheduleError": ("errors", "ScheduleError"),
    "Task": ("functions.remote", "RemoteTask"),
    "TaskStatus": ("functions.task", "TaskStatus"),
    "background": ("functions.remote", "background"),
    "cancel_task": ("functions.remote", "cancel_task"),
    "config": ("functions.remote", "config"),
    "current_run": ("functions.run", "current_run"),
    "hasher": ("functions.remote", "hasher"),
    "memoize": ("functions.remote", "memoize"),
    "on": ("functions.remote", "on"),
    "progress": ("functions.run", "progress"),
    "schedule": ("functions.remote", "schedule"),
    "schedule_task": ("functions.remote", "schedule_task"),
    "store": ("functions.remote", "store"),
    "tasks": ("functions.remote", "tasks"),
    "track": ("functions.run", "track"),
}


class StandIn(ModuleType):
    """The package, which becomes the real one when it is needed."""

    def __init__(self, init: str):
        super().__init__(NAME)
        spec = spec_from_file_location(NAME, init, submodule_search_locations=[os.path.dirname(init)])
        assert spec is not None
        assert spec.loader is not None
        self.__spec__, self.__loader__, self.__package__ = spec, spec.loader, NAME
        self.__file__, self.__path__ = init, list(spec.submodule_search_locations or ())
        self._load, self._loading, self._loaded = spec.loader.exec_module, threading.RLock(), False

    def __getattr__(self, name: str) -> Any:
        if name in LIGHT:
            return _light(name)
        # What importing a module asks for.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        if find_spec(f"{NAME}.{name}") is not None:
            return importlib.import_module(f"{NAME}.{name}")
        self._become_real()
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        # An import of the module that bears the name of ``ps.config``.
        if name not in LIGHT:
            super().__setattr__(name, value)

    def _become_real(self) -> None:
        with self._loading:
            if not self._loaded:
                self._loaded = True
                try:
                    self._load(self)
                except BaseException:
                    self._loaded = False
                    raise
                # It has those of a scheduler now, which does not run here.
                vars(self).update({name: _light(name) for name in LIGHT})


def _light(name: str) -> Any:
    module, attribute = LIGHT[name]
    return getattr(importlib.import_module(f"{NAME}.{module}"), attribute)


def main() -> None:
    _, wire, lifeline, path = sys.argv
    del sys.argv[1:]
    folder = os.path.dirname(os.path.abspath(__file__))
    # Not the folder of this file, whose modules would be taken for others of their names.
    sys.path[:] = path.split(os.pathsep)
    sys.modules[NAME] = StandIn(os.path.join(folder, "__init__.py"))
    importlib.import_module(f"{NAME}.executors.worker").main(int(wire), int(lifeline))


if __name__ == "__main__":
    main()
