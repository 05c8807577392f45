"""What is in a store, as tests read it with SQL and without taking part in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from panel_schedule.coordination import answers, jobs
from panel_schedule.coordination.history import JOB
from panel_schedule.coordination.record import micros, text_of
from store_address import StoreAddress

_VIEWS = """
CREATE TEMP VIEW jobs AS SELECT name AS id, created AS number, record_group AS function, owner,
    ifnull(json_extract(state, '$[0].state'), 'queued') AS state,
    ifnull(json_extract(state, '$[0].attempt'), 1) AS attempt
FROM records WHERE space = 'run';
CREATE TEMP VIEW answers AS SELECT record_group AS function, owner, used_at, revision AS change,
    json_extract(state, '$[0].call') AS call, ifnull(json_extract(state, '$[0].takeovers'), 0) AS takeovers,
    json_extract(state, '$[0].updated_at') AS updated_at
FROM records WHERE space = 'answer' AND name NOT LIKE ' %';
"""

_RECORDS = """
CREATE TABLE records (
    space TEXT, name TEXT, record_group TEXT, owner TEXT, used_at INTEGER, state TEXT, created INTEGER, revision INTEGER
)
"""


def rows(store: Path, question: str, *values: Any) -> list[tuple[Any, ...]]:
    """The answer to a question about the tables of a directory, and the views above."""
    with closing(sqlite3.connect(store / "store.db", timeout=5)) as connection:
        connection.executescript(_VIEWS)
        return connection.execute(question, values).fetchall()


class Onlooker:
    """The same, wherever a store is: on a server there are records, and the views above."""

    def __init__(self, address: StoreAddress):
        self._address = address
        # Makes the directory, or is there as long as the test: who leaves tells the others to look around.
        self._store = address.open()
        if address.is_directory:
            self._store.close()

    def rows(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        if self._address.is_directory:
            return rows(self._address.path, question, *values)
        records = self._store.records
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(_RECORDS + ";" + _VIEWS)
            found = [record for space in (jobs.SPACE, answers.SPACE) for record in records.scan(space)]
            connection.executemany(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (each.space, each.name, each.group, each.owner, micros(each.used_at), text_of(each), each.created,
                     each.revision)
                    for each in found
                ],
            )  # fmt: skip
            return connection.execute(question, values).fetchall()

    def ended(self) -> list[tuple[str, str]]:
        """Id and state of each job in the histories."""
        functions = {record.group for record in self._store.records.scan(jobs.SPACE)}
        return [(run.id, str(run.state)) for name in functions for run in self._store.history(name, JOB)]

    def close(self) -> None:
        self._store.close()
