"""How often a memoized function is computed when many want the same answer at the same time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from threading import Barrier
from typing import Any

from .memoizers import NAMES, PAUSE, executions, memoizer, processes, slow, slowly
from .table import Table, verdict

CALLERS = 20
PROCESSES = 4
ROUNDS = 5
AHEAD = 0.2

COLUMNS = {
    "threads": f"{CALLERS} threads",
    "coroutines": f"{CALLERS} coroutines of an `async def`",
    "processes": f"{PROCESSES} processes of {CALLERS // PROCESSES} threads",
}


class Crowd:
    """A process in which several ask for the same at once; what each of them got, and when the last one had it."""

    def __init__(self, kind: str, folder: str):
        memoize = memoizer(kind, folder)
        self.slow, self.slowly = memoize(slow), memoize(slowly)

    async def threads(self, callers: int, name: str, at: float) -> Any:
        executions.clear()
        barrier, loop = Barrier(callers), asyncio.get_running_loop()
        with ThreadPoolExecutor(callers) as pool:
            asked = [loop.run_in_executor(pool, self._one, barrier, name, at) for _ in range(callers)]
            found = await asyncio.gather(*asked)
        return len(executions), Counter(found), time.time() - at

    def _one(self, barrier: Barrier, name: str, at: float) -> str:
        barrier.wait(10)
        time.sleep(max(0.0, at - time.time()))
        try:
            return self._checked(self.slow(name), name)
        except Exception as error:
            return type(error).__name__

    async def coroutines(self, callers: int, name: str, at: float) -> Any:
        executions.clear()
        await asyncio.sleep(max(0.0, at - time.time()))
        found = await asyncio.gather(*(self._await(name) for _ in range(callers)))
        return len(executions), Counter(found), time.time() - at

    async def _await(self, name: str) -> str:
        try:
            found = self.slowly(name)
            return self._checked(await found if inspect.isawaitable(found) else found, name)
        except Exception as error:
            return type(error).__name__

    def _checked(self, found: Any, name: str) -> str:
        assert found == name
        return ""


# Executions, how many callers got an error and which, and the seconds until all had theirs; of each round.
Rounds = list[tuple[int, dict[str, int], float]]


def measure(kind: str) -> dict[str, Rounds]:
    found: dict[str, Rounds] = {figure: [] for figure in COLUMNS}
    with processes(Crowd, PROCESSES, (kind,)) as crew:
        children = crew[kind]
        for number in range(ROUNDS + 1):
            for figure, rounds in found.items():
                those, method = (children, "threads") if figure == "processes" else (children[:1], figure)
                if not number:  # the first round warms up
                    those = children
                at = time.time() + AHEAD
                for child in those:
                    child.tell(method, CALLERS // len(those), f"{figure} {number}", at)
                count, errors, last = 0, Counter[str](), 0.0
                for executed, got, seconds in [child.answer() for child in those]:
                    count, errors, last = count + executed, errors + Counter(got), max(last, seconds)
                del errors[""]
                if number:
                    rounds.append((count, errors, last))
    return found


def _cell(rounds: Rounds) -> str:
    counts = sorted(count for count, _, _ in rounds)
    shown = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    for name in {name for _, errors, _ in rounds for name in errors}:
        return f"{shown}; {max(errors[name] for _, errors, _ in rounds)} callers: {name}"
    return f"{shown}, {median(seconds for _, _, seconds in rounds) * 1e3:.0f} ms"


def tables() -> list[Table]:
    table = Table(f"Executions for {CALLERS} equal calls at the same time", ["what", *COLUMNS.values()])
    for name, title in NAMES.items():
        found = measure(name)
        once = {
            figure: all(count == 1 and not errors for count, errors, _ in rounds) for figure, rounds in found.items()
        }
        if name == "ours":
            del once["processes"]
        must = {"ours": "1 in a process", "shared": "1 in all"}.get(name, "")
        table.add(title, *map(_cell, found.values()), must=must, met=verdict(**once) if must else "")
    table.text = (
        f"A function that takes {PAUSE * 1000:.0f} ms, called with an argument that is new: {ROUNDS} rounds, the "
        "fewest and the most executions, in how many ms from the common start all callers had the answer (median), "
        "and how many of them got an error instead. The threads wait at a barrier, and for an instant that all "
        "processes have been told; the coroutines are gathered on one loop. A `memory://` store, as all that is not "
        "`file://`, `to_disk` or FileSystemCache, is each process's own. For an `async def` "
        "flask-caching wants Flask's `async` extra, which is not installed; `lru_cache` and the copy keep the "
        "coroutine, which can be awaited once and not pickled."
    )
    return [table]
