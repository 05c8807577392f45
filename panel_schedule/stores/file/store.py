"""The store of all processes on one machine: a directory with a database, and a file for each large value."""

from __future__ import annotations

from pathlib import Path

from ...clock import Clock
from ..base import Store
from ..queue import MOST_BYTES
from .records import FileRecords


class FileStore(Store):
    """
    Values, claims, jobs and answers in a directory that several processes share.

    Parameters
    ----------
    folder : Path
    clock : Clock
    server : str
        Names the server that this process is part of.
    persistent : bool
        Whether the values outlive the server, and a loss of power. Else the directory goes with the last process.
    history_limit : int
        How many records each task's history keeps.
    max_result_bytes : int
        Of what is kept of background runs that have ended.

    Raises
    ------
    StoreError
        When the directory cannot be used, or is not safe.
    """

    records: FileRecords

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        server: str = "",
        persistent: bool = True,
        history_limit: int = 100,
        max_result_bytes: int = MOST_BYTES,
    ):
        records = FileRecords(folder, clock, persistent=persistent, log_limit=history_limit)
        super().__init__(records, clock, server or records.me, max_result_bytes)
