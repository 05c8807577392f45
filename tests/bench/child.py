"""A process of its own that stays, and does what it is told over its standard input."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from importlib import import_module
from typing import Any

from .fresh import ROOT, command, environment


class Child:
    """
    An instance of `kind` in another process; what goes there and back is JSON.

    Parameters
    ----------
    kind : type
    *args
        Its arguments.
    store : str
        The URL of the store that the process uses.
    """

    def __init__(self, kind: type, *args: Any, store: str = "memory://"):
        self._process = subprocess.Popen(
            command("child", kind.__module__, kind.__name__, json.dumps(args)),
            cwd=ROOT,
            env={**environment(), "PANEL_SCHEDULE_STORE": store},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, method: str, *args: Any) -> None:
        """Let it begin; several can be at it at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps((method, args)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, method: str, *args: Any) -> Any:
        self.tell(method, *args)
        return self.answer()

    def close(self) -> None:
        self._process.communicate()


def all_of(children: list[Child], method: str, *args: Any) -> list[Any]:
    """What all answer, who work at the same time."""
    for child in children:
        child.tell(method, *args)
    return [child.answer() for child in children]


async def _serve(module: str, name: str, arguments: str) -> None:
    one = getattr(import_module(module), name)(*json.loads(arguments))
    commands = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        method, args = json.loads(line)
        answer = getattr(one, method)(*args)
        print(json.dumps(await answer if inspect.isawaitable(answer) else answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
