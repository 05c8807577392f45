"""Print the newest Python of 3.12 to 3.14, if it is newer than the one which runs this: on the PATH, or pyenv's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def candidates(version: str) -> Iterator[str | Path]:
    if on_path := shutil.which(f"python{version}"):
        yield on_path
    programs = filter(None, map(shutil.which, ("pyenv", "python3")))  # where pyenv is, whatever HOME is
    roots = [os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", *(Path(p).resolve().parents[1] for p in programs)]
    for versions in (*(Path(root) / "versions" for root in roots), Path(sys.base_prefix).parent):
        yield from sorted(versions.glob(f"{version}.*/bin/python{version}"), reverse=True)


def works(python: str | Path) -> bool:
    """A shim of pyenv may be for a version that is not chosen here, a system's Python without what makes a venv."""
    return not subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True).returncode


newer = (f"3.{minor}" for minor in range(14, max(11, sys.version_info.minor), -1))
found = filter(works, (each for version in newer for each in candidates(version)))
print(next(found, ""))
