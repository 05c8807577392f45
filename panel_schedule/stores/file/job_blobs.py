"""What belongs to a background job and is too large for its row: arguments, partial results, value, error."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from ...errors import StoreError, ValueUnreadable
from .database import Transaction
from .opened import OpenDirectory

ARGUMENTS, PARTIAL, VALUE, ERROR = "arguments", "partial result", "value", "error"


def whose(job: str, kind: str, number: int = 0) -> str:
    """What seals it."""
    return f"{kind} {number} of run {job}"


class JobBlobs:
    """Each one is stored once; a large one is a file, which is its row's."""

    def __init__(self, directory: OpenDirectory):
        self._directory = directory

    def keep(
        self,
        tx: Transaction,
        job: str,
        kind: str,
        inline: bytes | None,
        file: str | None = None,
        number: int = 0,
        attempt: int = 1,
    ) -> None:
        tx.do("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?)", job, kind, number, attempt, inline, file)

    def drop(self, tx: Transaction, which: str, *values: Any) -> list[str]:
        """Their files, to be unlinked after the commit."""
        files = tx.all(f"SELECT file FROM parts WHERE {which} AND file IS NOT NULL", *values)
        tx.do(f"DELETE FROM parts WHERE {which}", *values)
        return [row["file"] for row in files]

    def unlink(self, files: Iterable[str]) -> None:
        for file in files:
            self._directory._blobs.unlink(file)

    def all(self, job: str, what: str, kind: str, start: int = 0) -> list[Any]:
        """
        Of a job that errors call `what`, in order.

        Raises
        ------
        ValueUnreadable
        """
        question = "SELECT number, inline, file FROM parts WHERE job = ? AND kind = ? AND number >= ? ORDER BY number"
        rows = self._directory._read(question, job, kind, start)
        return [self._load(row, f"{what}: its {kind}", whose(job, kind, row["number"])) for row in rows]

    def one(self, job: str, what: str, kind: str) -> Any:
        """The one of its kind. Raises as `all`."""
        found = self.all(job, what, kind)
        if not found:
            raise ValueUnreadable(f"{what}: its {kind} is lost. Submit it again.")
        return found[0]

    def _load(self, row: sqlite3.Row, what: str, whose: str) -> Any:
        try:
            source = self._directory._blobs.source(row["inline"], row["file"], whose)
            try:
                return source.load()
            finally:
                source.close()
        except FileNotFoundError:
            raise ValueUnreadable(f"{what} cannot be read, its file was deleted. Submit it again.") from None
        except OSError as error:  # too many open files, say
            raise StoreError(f"{what} cannot be read now: {error}.") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueUnreadable(f"{what} cannot be read: {error}. Submit it again.") from error
