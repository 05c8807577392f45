"""A function of this package in a fresh interpreter, so that no peer inherits another's state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Where a child finds what its parent found: the package, and the modules of ``tests``."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def command(module: str, *args: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", f"{__package__}.{module}", *args]


def fresh(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function(*args)`` returns in a process of its own; both ways as JSON."""
    done = subprocess.run(
        command("fresh", function.__module__, function.__name__, json.dumps(args)),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    module, name, arguments = sys.argv[1:]
    print(json.dumps(getattr(import_module(module), name)(*json.loads(arguments))))
