"""What it costs to claim a slot that other processes want, too."""

from __future__ import annotations

import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from .child import Child, all_of
from .table import Table, verdict

PROCESSES = 4
# How many slots there are at each instant, how many instants, and the seconds between them.
PATTERNS = {"together": (100, 12, 0.4), "one by one": (1, 300, 0.01)}


class Claimant:
    """A process that claims each slot when it is due, and gives it back at once."""

    def __init__(self, folder: str):
        from panel_schedule.clock import SystemClock
        from panel_schedule.stores.file.store import FileStore

        self.store = FileStore(Path(folder), SystemClock(), server="bench")
        self.store.values.subscribe(lambda *_: None)
        self.store.listen()

    def ready(self) -> None:
        """It is, by now."""

    def claim(self, who: int, slots: int, instants: int, gap: float, begin: float) -> dict[str, list[float]]:
        from panel_schedule.coordination.tasks import Claim

        times: dict[str, list[float]] = {"won": [], "refused": [], "released": []}
        for number in range(instants):
            at = begin + number * gap
            while (left := at - time.time()) > 0:
                time.sleep(left)
            mark = datetime.fromtimestamp(at, UTC)
            for slot in range(slots):
                start = time.perf_counter()
                claim = self.store.do(
                    self.store.tasks.claim(
                        f"task {slot}", f"run {who} {number}", now=mark, key=mark, mark=mark, wave=mark
                    )
                )
                seconds = time.perf_counter() - start
                won = isinstance(claim, Claim)
                times["won" if won else "refused"].append(seconds)
                if won:
                    start = time.perf_counter()
                    self.store.do(self.store.tasks.release(claim))
                    times["released"].append(time.perf_counter() - start)
        return times


class Bare:
    """What SQLite takes for one row, and nothing else."""

    def __init__(self, folder: str):
        self.database = sqlite3.connect(f"{folder}.db", timeout=5, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = NORMAL")
        self.database.execute("CREATE TABLE IF NOT EXISTS tasks (name TEXT PRIMARY KEY, slot REAL)")
        for slot in range(100):
            self.database.execute("INSERT OR IGNORE INTO tasks VALUES (?, 0)", [f"task {slot}"])

    def ready(self) -> None:
        """It is, by now."""

    def claim(self, who: int, slots: int, instants: int, gap: float, begin: float) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {"won": [], "refused": []}
        for number in range(instants):
            at = begin + number * gap
            while (left := at - time.time()) > 0:
                time.sleep(left)
            for slot in range(slots):
                start = time.perf_counter()
                done = self.database.execute(
                    "UPDATE tasks SET slot = ? WHERE name = ? AND slot < ?", [at, f"task {slot}", at]
                ).rowcount
                times["won" if done else "refused"].append(time.perf_counter() - start)
        return times


Times = dict[str, list[float]]


def measure() -> dict[tuple[type, str], Times]:
    """In seconds, by claimant and pattern."""
    found: dict[tuple[type, str], Times] = {}
    with TemporaryDirectory() as folder:
        crews = {
            kind: [Child(kind, f"{folder}/{kind.__name__}") for _ in range(PROCESSES)] for kind in (Claimant, Bare)
        }
        for pattern, numbers in PATTERNS.items():
            for kind, crew in crews.items():
                all_of(crew, "ready")
                begin = time.time() + 0.2
                for who, child in enumerate(crew):
                    child.tell("claim", who, *numbers, begin)
                times: Times = {}
                for child in crew:
                    for what, some in child.answer().items():
                        times.setdefault(what, []).extend(some)
                slots, instants, _ = numbers
                assert len(times["won"]) == slots * instants, "each slot is had once"
                found[kind, pattern] = times
        for child in (child for crew in crews.values() for child in crew):
            child.close()
    return found


def tables() -> list[Table]:
    columns = ("won", "refused", "released")
    table = Table(
        f"A claim, with {PROCESSES} processes at it",
        ["what", "slots", "got, us", "refused, us", "given back, us"],
    )
    names = {Claimant: "panel-schedule", Bare: "one `UPDATE` of bare SQLite"}
    shown = {
        "together": f"{PATTERNS['together'][0]} at each instant",
        "one by one": f"one each {PATTERNS['one by one'][2] * 1000:.0f} ms",
    }
    for (kind, pattern), times in measure().items():
        middles = {what: median(some) * 1e6 for what, some in times.items()}
        must = kind is Claimant and pattern == "together"
        table.add(
            names[kind],
            shown[pattern],
            *(f"{middles[what]:.0f}" if what in middles else "" for what in columns),
            must="medians <= 100 us" if must else "",
            met=verdict(got=middles["won"] <= 100, refused=middles["refused"] <= 100) if must else "",
        )
    table.text = (
        f"{PROCESSES} processes want each slot at the same instant, on {os.cpu_count()} cores; one gets it, and gives "
        "it back. Medians of all. With one slot at a time each process sleeps before it and goes on with cold caches: "
        "what SQLite takes for a single row is then the machine's, as the last row shows."
    )
    return [table]
