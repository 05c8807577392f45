"""What is done in one transaction of the database."""

from __future__ import annotations

import sqlite3
from typing import Any

# The number that orders a change among all: one more than the last. The rows that carry them are never deleted.
NEXT = "(SELECT 1 + max((SELECT ifnull(max(change), 0) FROM entries), (SELECT ifnull(max(change), 0) FROM tasks)))"


class Transaction:
    """What is done in one transaction; `changed` once anything was."""

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

    def change(self) -> int:
        """The number of the change of a value or task that is being made."""
        self.changed = True
        return int(self._connection.execute(f"SELECT {NEXT}").fetchone()[0])
