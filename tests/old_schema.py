"""The tables of earlier releases, and a database that is made one of theirs again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

# Since schema 1.
TASKS = """
CREATE TABLE entries (
    space TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, updated_at INTEGER, duration REAL,
    run_id TEXT, final INTEGER, wave INTEGER, inline BLOB, file TEXT, change INTEGER NOT NULL,
    PRIMARY KEY (space, name)
);
CREATE INDEX changed_entries ON entries (change);
CREATE TABLE tasks (
    name TEXT PRIMARY KEY, server TEXT NOT NULL, fingerprint TEXT NOT NULL, trigger BLOB, override BLOB,
    first_seen INTEGER NOT NULL, last_slot INTEGER, last_version INTEGER NOT NULL DEFAULT 0,
    paused INTEGER NOT NULL DEFAULT 0, removed INTEGER NOT NULL DEFAULT 0, forgotten INTEGER NOT NULL DEFAULT 0,
    stale INTEGER NOT NULL DEFAULT 0, outcome TEXT, error TEXT NOT NULL DEFAULT '', cancelled TEXT NOT NULL DEFAULT '',
    owner TEXT, run_id TEXT, fence INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0,
    takeovers INTEGER NOT NULL DEFAULT 0, key TEXT, wave INTEGER, started_at INTEGER,
    percent INTEGER NOT NULL DEFAULT -1, message TEXT NOT NULL DEFAULT '',
    published INTEGER NOT NULL DEFAULT 0, over INTEGER NOT NULL DEFAULT 0, change INTEGER NOT NULL
);
CREATE INDEX changed_tasks ON tasks (change);
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, task TEXT NOT NULL, id TEXT NOT NULL, key TEXT, state TEXT NOT NULL,
    attempt INTEGER NOT NULL, queued_at INTEGER, started_at INTEGER, finished_at INTEGER,
    error TEXT NOT NULL, reason TEXT NOT NULL, until INTEGER
);
CREATE INDEX runs_of_task ON runs (task, number);
CREATE TABLE viewers (
    owner TEXT NOT NULL, task TEXT NOT NULL, viewers INTEGER NOT NULL, PRIMARY KEY (owner, task)
) WITHOUT ROWID;
"""

# Since schema 2.
JOBS = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, function TEXT NOT NULL, key TEXT NOT NULL,
    durable INTEGER NOT NULL, owner TEXT, state TEXT NOT NULL, attempt INTEGER NOT NULL DEFAULT 1,
    fence INTEGER NOT NULL DEFAULT 1, percent INTEGER NOT NULL DEFAULT -1, message TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '', cancelled INTEGER NOT NULL DEFAULT 0,
    partials INTEGER NOT NULL DEFAULT 0, queued_at INTEGER, started_at INTEGER, finished_at INTEGER,
    expires_at INTEGER, change INTEGER NOT NULL, user TEXT
);
CREATE INDEX IF NOT EXISTS changed_jobs ON jobs (change);
CREATE INDEX IF NOT EXISTS jobs_of_function ON jobs (function, key);
CREATE INDEX IF NOT EXISTS unfinished_jobs ON jobs (owner) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS expiring_jobs ON jobs (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS parts (
    job TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, attempt INTEGER NOT NULL, inline BLOB, file TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS parts_of_job ON parts (job, kind, number);
CREATE INDEX IF NOT EXISTS files_of_jobs ON parts (file) WHERE file IS NOT NULL;
CREATE TABLE IF NOT EXISTS swept (change INTEGER NOT NULL);
"""

# Since schema 3.
ANSWERS = """
CREATE TABLE IF NOT EXISTS answers (
    function TEXT NOT NULL, key TEXT NOT NULL, call TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 0,
    basis TEXT NOT NULL DEFAULT '', updated_at INTEGER, duration REAL, size INTEGER NOT NULL DEFAULT 0,
    used_at INTEGER NOT NULL, expires_at INTEGER, owner TEXT, fence INTEGER NOT NULL DEFAULT 0,
    wanted TEXT NOT NULL DEFAULT '', takeovers INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    failed_at INTEGER, partials INTEGER NOT NULL DEFAULT 0, change INTEGER NOT NULL, file TEXT, partial_file TEXT,
    error BLOB, inline BLOB, partial_inline BLOB, PRIMARY KEY (function, key)
);
CREATE INDEX IF NOT EXISTS changed_answers ON answers (change);
CREATE INDEX IF NOT EXISTS used_answers ON answers (function, used_at, size, updated_at) WHERE updated_at NOT NULL;
CREATE INDEX IF NOT EXISTS files_of_answers ON answers (file) WHERE file NOT NULL;
CREATE INDEX IF NOT EXISTS partials_of_answers ON answers (partial_file) WHERE partial_file NOT NULL;
CREATE INDEX IF NOT EXISTS empty_answers ON answers (used_at) WHERE updated_at IS NULL;
CREATE INDEX IF NOT EXISTS expiring_answers ON answers (expires_at) WHERE expires_at NOT NULL;
CREATE INDEX IF NOT EXISTS unfinished_answers ON answers (owner) WHERE owner NOT NULL;
CREATE TABLE IF NOT EXISTS counted (changes INTEGER NOT NULL);
INSERT INTO counted SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counted);
"""

# Schema 4 as it was first, before runs had `more`, and failures a log of their own.
SCHEMA_4 = """
CREATE TABLE records (
    space TEXT NOT NULL, name TEXT NOT NULL, record_group TEXT NOT NULL, owner TEXT, used_at INTEGER,
    expires_at INTEGER, size INTEGER NOT NULL, created INTEGER NOT NULL, revision INTEGER NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (space, name)
);
CREATE INDEX changed_records ON records (revision);
CREATE INDEX groups_of_records ON records (space, record_group, created);
CREATE INDEX used_records ON records (space, record_group, used_at, size);
CREATE INDEX held_records ON records (owner) WHERE owner NOT NULL;
CREATE INDEX expiring_records ON records (expires_at) WHERE expires_at NOT NULL;
CREATE TABLE blobs (
    space TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, revision INTEGER NOT NULL,
    size INTEGER NOT NULL, inline BLOB, file TEXT, seal TEXT
);
CREATE UNIQUE INDEX blobs_of_record ON blobs (space, name, kind, number);
CREATE INDEX files_of_blobs ON blobs (file) WHERE file NOT NULL;
CREATE TABLE erased (revision INTEGER NOT NULL);
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, task TEXT NOT NULL, id TEXT NOT NULL, key TEXT, state TEXT NOT NULL,
    attempt INTEGER NOT NULL, queued_at INTEGER, started_at INTEGER, finished_at INTEGER,
    error TEXT NOT NULL, reason TEXT NOT NULL, until INTEGER
);
CREATE INDEX runs_of_task ON runs (task, number);
CREATE TABLE viewers (
    owner TEXT NOT NULL, space TEXT NOT NULL, name TEXT NOT NULL, sessions INTEGER NOT NULL,
    PRIMARY KEY (space, name, owner)
) WITHOUT ROWID;
"""


def as_of_schema(version: int, path: Path, *commands: str, **values: Any) -> None:
    """Give a database the tables that this version had, and what the commands put there."""
    with closing(sqlite3.connect(path)) as database:
        for table in ("records", "blobs", "erased", "runs", "failures", "viewers"):
            database.execute(f"DROP TABLE {table}")
        database.executescript(TASKS + (JOBS if version > 1 else "") + (ANSWERS if version > 2 else ""))
        for command in commands:
            database.execute(command, values)
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
