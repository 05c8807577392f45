"""What stands in the database of a file store, as tests read it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

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


def rows(store: Path, question: str, *values: Any) -> list[tuple[Any, ...]]:
    """The answer to a question about its tables, and the views above."""
    with closing(sqlite3.connect(store / "store.db", timeout=5)) as connection:
        connection.executescript(_VIEWS)
        return connection.execute(question, values).fetchall()
