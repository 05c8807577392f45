"""A file with tasks, imported as the app imports it, and what its errors say."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from importlib import import_module
from pathlib import Path

from ..server.modules import dotted

# Files that lie here, or in a folder of this name, are no user's, also where they lie inside of a folder of one's.
_OTHERS = [Path(__file__).resolve().parent.parent, Path(sysconfig.get_path("stdlib")).resolve()]
_INSTALLED = "site-packages"


class Unusable(Exception):
    """The file cannot be imported; the message has the lines of its own in the traceback."""


def root_of(path: Path) -> Path:
    """The folder that is to be on the path: of the file, or of the package that it is in."""
    return dotted(Path(os.path.realpath(path)))[1]


def load(path: Path) -> None:
    """
    Import a file, with its own folder, or that of its package, first on the path.

    Raises
    ------
    Unusable
    """
    file = Path(os.path.realpath(path))
    name, root = dotted(file)
    sys.path.insert(0, str(root))
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:
        raise Unusable(f"{path} cannot be imported.\n\n{own_lines(error, root)}") from error
    if os.path.realpath(module.__file__ or "") != str(file):
        raise Unusable(
            f"{path} would be the module {name!r}, which is {module.__file__ or 'a part of Python'} already. Give the "
            "file another name."
        )


def own_lines(error: BaseException, root: Path) -> str:
    """The traceback of an error with the lines of files in a folder alone."""
    told = traceback.TracebackException.from_exception(error)
    pending, seen = [told], set[int]()
    while pending:
        each = pending.pop()
        if id(each) not in seen:
            seen.add(id(each))
            each.stack = traceback.StackSummary.from_list([line for line in each.stack if _is_own(line, root)])
            pending += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
    return "".join(told.format()).rstrip()


def _is_own(line: traceback.FrameSummary, root: Path) -> bool:
    file = Path(os.path.realpath(line.filename))
    if line.filename.startswith("<"):  # no file at all
        return False
    if not file.is_relative_to(root) or any(file.is_relative_to(folder) for folder in _OTHERS):
        return False
    return _INSTALLED not in file.relative_to(root).parts
