"""What files declare that are executed anew, as under ``--dev``: all of it takes effect at once, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..hashing.fingerprint import innermost


class Edit:
    """
    What becomes of the functions of a process while files are executed anew.

    Parameters
    ----------
    modules : collection of str
        The names of the modules that were taken out, to be executed anew.

    Attributes
    ----------
    declared : dict
        By task, background or memoized function, the function that was declared for it so far.
    """

    def __init__(self, modules: Collection[str]):
        self.declared: dict[Any, Callable[..., Any]] = {}
        self._modules = modules
        self._changes: list[Callable[[], object]] = []
        self._undo: list[Callable[[], object]] = []

    def add(self, known: Any, function: Callable[..., Any], change: Callable[[], object]) -> None:
        """A function was declared, and this is what comes of it, once all files have been executed."""
        self.declared[known] = function
        self._changes.append(change)

    def on_failure(self, undo: Callable[[], object]) -> None:
        """Call this when the files cannot be executed to their end."""
        self._undo.append(undo)

    def latest(self, known: Any) -> Callable[..., Any]:
        """The function that something has, or is to get."""
        return self.declared.get(known, known.function)  # type: ignore[no-any-return]

    def leaves(self, known: Any) -> bool:
        """Whether something was declared by these modules, and not again."""
        return known not in self.declared and module_of(known.function) in self._modules

    def leaves_handler(self, function: Callable[..., Any]) -> bool:
        """Whether a handler of before is of these modules."""
        return module_of(function) in self._modules

    def apply(self) -> None:
        """All has been executed."""
        for change in self._changes:
            change()

    def undo(self) -> None:
        """Something could not be executed: leave all as it was."""
        for undo in reversed(self._undo):
            undo()


def module_of(function: Any) -> str:
    """The name of the module in whose code a function stands."""
    return str(getattr(innermost(function), "__globals__", {}).get("__name__", ""))
