"""
The fenced blocks of the documentation, and what they promise.

A block of ``python`` runs: all those of a page one after the other, in one namespace. After a comment
such as ``<!-- file: tasks.py -->`` a block of any kind is that file instead, in the folder where the
page's blocks run and its ``panel serve`` lines serve.

``python documents.py PAGE`` runs the blocks of a page; the line numbers of a traceback are the page's.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FENCE = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    language: str
    text: str
    line: int
    file: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in its order; `line` is that of a block's first line."""
    source = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], source.count("\n", 0, found.start("text")) + 1, found["file"])
        for found in FENCE.finditer(source)
    ]


def files(page: Path) -> dict[str, str]:
    """The files that a page shows; of several versions of one the last."""
    return {block.file: block.text for block in blocks(page) if block.file}


def commands(page: Path, program: str) -> Iterator[str]:
    """What follows `program` on the lines of a page's ``bash`` blocks, without their prompts and comments."""
    for block in blocks(page):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                command = re.split(r"\s#", line.removeprefix("$ "))[0].strip()
                if command.startswith(f"{program} "):
                    yield command.removeprefix(f"{program} ").strip()


def run(page: Path) -> None:
    """Run the Python blocks of a page; a block may ``await``."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python" and not block.file:
            source = "\n" * (block.line - 1) + block.text
            result = eval(
                compile(source, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True), namespace
            )
            if inspect.iscoroutine(result):
                asyncio.run(result)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
