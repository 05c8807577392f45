"""What is done in one transaction of the database."""

from __future__ import annotations

import sqlite3
from typing import Any


class Transaction:
    """What is done in one transaction; `changed` where the others have to hear of it."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection
        self.changed = False

    def one(self, question: str, *values: Any) -> sqlite3.Row | None:
        """The first row of the answer."""
        row: sqlite3.Row | None = self._connection.execute(question, values).fetchone()
        return row

    def all(self, question: str, *values: Any) -> list[sqlite3.Row]:
        return self._connection.execute(question, values).fetchall()

    def do(self, command: str, *values: Any) -> int:
        """How many rows were affected."""
        return self._connection.execute(command, values).rowcount


def seal_of(space: str, name: str, kind: str, number: int) -> str:
    """What a part says of itself: nothing is read in place of another one."""
    return f"{kind} {number} of {space} {name}"
