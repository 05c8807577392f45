"""What a memoized function takes to give an answer that is there, and which calls it takes for the same."""

from __future__ import annotations

import random
import time
import timeit
from asyncio import to_thread
from statistics import median
from typing import Any

from .child import Child
from .memoizers import CELLS, NAMES, OURS, SHARED, doubled, frame, made, memoizer, processes, small, told, total
from .table import Table, middle, verdict

ROUNDS = 15
SECONDS = 0.05
LIMIT = 3.0
CHANGES = 10
FIRSTS = 9

# What is timed, with its name in the table.
HITS = {"small": "small('north', 2026)", "frame": "doubled(frame)"}


class Memos:
    """A process in which the functions are memoized."""

    def __init__(self, kind: str, folder: str):
        import pandas  # noqa: F401

        memoize = memoizer(kind, folder)
        self.small, self.doubled, self.made, self.total, self.told = map(memoize, (small, doubled, made, total, told))
        self.names = {"small": self.small, "doubled": self.doubled, "made": self.made, "frame": frame(0)}
        self.timers: dict[str, tuple[timeit.Timer, int]] = {}

    # ------------------------------------------------------------ how long

    async def hit(self, statement: str) -> float | str:
        """Seconds of a call whose answer is there, or why there is no such thing."""
        return await to_thread(self._hit, statement)  # as a page is served, and not on the loop

    def _hit(self, statement: str) -> float | str:
        try:
            eval(statement, self.names)
        except TypeError as error:
            return type(error).__name__
        return self._time(statement) - self._time("pass")

    def _time(self, statement: str) -> float:
        if statement not in self.timers:
            setup = "\n".join(f"{name} = names['{name}']" for name in self.names)
            timer = timeit.Timer(statement, setup, globals={"names": self.names})
            number, seconds = timer.autorange()
            self.timers[statement] = timer, max(1, int(number * SECONDS / seconds))
        timer, number = self.timers[statement]
        return timer.timeit(number) / number

    async def first(self, what: str, number: int) -> float:
        """Seconds of one call."""
        return await to_thread(self._first, what, number)

    def _first(self, what: str, number: int) -> float:
        function, args = (self.made, (number,)) if what == "frame" else (self.small, ("north", number))
        begin = time.perf_counter()
        answer = function(*args)
        seconds = time.perf_counter() - begin
        assert answer.equals(frame(number)) if what == "frame" else answer == f"north in {number}"
        return seconds

    # ------------------------------------------------------------ how right

    async def changed(self, what: str) -> str:
        """Whether a cell that has changed is noticed: each of some, one after another."""
        return await to_thread(self._changed, what)

    def _changed(self, what: str) -> str:
        data = frame(1, CELLS, 1)
        values = data.to_numpy()
        if what == "array":
            values = data = values.ravel().copy()
        choice, stale = random.Random(0), 0
        try:
            self.total(data)
            for _ in range(CHANGES):
                row = choice.randrange(CELLS)
                if what == "array":
                    values[row] += 1
                else:
                    data.iat[row, 0] += 1
                stale += self.total(data) != total(data)
        except TypeError as error:
            return type(error).__name__
        return f"stale answer, {stale} of {CHANGES}" if stale else "right"

    async def mixed(self, calls: list[str]) -> str:
        """Those of some calls, one after another, that get the answer of another one."""
        return await to_thread(self._mixed, calls)

    def _mixed(self, calls: list[str]) -> str:
        pairs = [eval(call) for call in calls]
        wrong = [call for call, args in zip(calls, pairs, strict=True) if self.told(*args) != told(*args)]
        return f"{', '.join(wrong)} wrong" if wrong else "right"


Found = dict[str, list[Any]]


def measure() -> tuple[dict[str, Found], dict[str, list[str]]]:
    """By figure and memoizer: the seconds of each round. And by memoizer how right it is."""
    hits: dict[str, Found] = {what: {name: [] for name in NAMES} for what in HITS}
    with processes(Memos) as crew:
        children = {name: some[0] for name, some in crew.items()}
        for number in range(ROUNDS + 1):
            for what, statement in HITS.items():
                for name, child in children.items():
                    found = child.ask("hit", statement)
                    if number:  # the first round warms up
                        hits[what][name].append(found)
        right = {name: _rights(child) for name, child in children.items()}
    return hits, right


def _rights(child: Child) -> list[str]:
    changed = [child.ask("changed", what) for what in ("array", "frame")]
    return [*changed, *(child.ask("mixed", calls) for calls in MIXED.values())]


MIXED = {
    "`f('ab', 'c')` after `f('a', 'bc')`": ["('a', 'bc')", "('ab', 'c')"],
    "`f(1, 2)`, `f(1.0, 2)`, `f(True, 2)`": ["(1, 2)", "(1.0, 2)", "(True, 2)"],
}


def measure_elsewhere() -> dict[str, Found]:
    """By figure and memoizer, in seconds: what another process has computed, asked for first, and again."""
    found: dict[str, Found] = {}
    with processes(Memos, 2, SHARED) as crew:
        for number in range(FIRSTS + 1):
            for what in HITS:
                for name, (author, reader) in crew.items():
                    seconds = author.ask("first", what, number), reader.ask("first", what, number)
                    again = reader.ask("hit", f"made({number})" if what == "frame" else f"small('north', {number})")
                    if number:  # the first one opens files and databases
                        for figure, value in zip(("made", "first", "again"), (*seconds, again), strict=True):
                            found.setdefault(f"{what} {figure}", {}).setdefault(name, []).append(value)
    return found


def tables() -> list[Table]:
    hits, right = measure()
    return [_hits(hits), _rightness(right), _elsewhere(measure_elsewhere())]


def _hits(hits: dict[str, Found]) -> Table:
    table = Table(
        "A hit of a memoized function",
        ["what", "two small arguments, us", "times ours", "a 10 MB DataFrame, and one as the answer, ms", "times ours"],
    )
    for name, title in NAMES.items():
        cells = []
        for what, factor, form in (("small", 1e6, "{:.2f}"), ("frame", 1e3, "{:.1f}")):
            cells += _compared(hits[what][name], hits[what]["ours"], factor, form)
        ours = name in OURS
        table.add(
            title,
            *cells,
            must=f"<= {LIMIT:g} us, and faster than `pn.cache`" if ours else "",
            met=verdict(
                small=median(hits["small"][name]) * 1e6 <= LIMIT,
                frame=median(hits["frame"][name]) < median(hits["frame"]["panel"]),
            )
            if ours
            else "",
        )
    table.text = (
        f"`{HITS['small']}`, and a frame of 125,000 rows of 10 floats as argument, the same object each time, with one "
        f"as large as the answer. {ROUNDS} rounds of {SECONDS * 1000:.0f} ms by turns, each in a process of its own, "
        "less the empty loop's; median, in brackets the least and the most. Ours reads each byte of the frame; "
        "`pn.cache` and Streamlit hash a sample of its rows, and flask-caching the text that `repr` makes of it. "
        "flask-caching and Streamlit unpickle a copy for each caller, the others give all the same object. "
        "Streamlit's row is an imitation of its `st.cache_data` (`tests/bench/memoizers.py`)."
    )
    return table


def _compared(found: list[Any], ours: list[Any], factor: float, form: str) -> list[str]:
    if isinstance(found[0], str):
        return [found[0], ""]
    return [middle((each * factor for each in found), form), f"{median(found) / median(ours):.1f}"]


def _rightness(right: dict[str, list[str]]) -> Table:
    table = Table(
        "Which calls a memoized function takes for the same",
        ["what", "a changed cell of an array", "a changed cell of a DataFrame", *MIXED],
    )
    for name, cells in right.items():
        ours = name in OURS
        table.add(
            NAMES[name],
            *cells,
            must="right" if ours else "",
            met=verdict(met=set(cells) == {"right"}) if ours else "",
        )
    table.text = (
        f"The sum of {CELLS:,} floats, asked for again after one of them, at random, was changed in place: "
        f"{CHANGES} times. And the `repr` of two arguments; what is wrong got the answer of an earlier call."
    )
    return table


def _elsewhere(found: dict[str, Found]) -> Table:
    table = Table(
        "What another process has computed",
        ["what", "a short text, the first call, ms", "again, us", "a 10 MB DataFrame, the first call, ms", "again, us"],
    )
    columns: list[tuple[str, float, str]] = [
        ("small first", 1e3, "{:.2f}"), ("small again", 1e6, "{:.1f}"),
        ("frame first", 1e3, "{:.2f}"), ("frame again", 1e6, "{:.1f}"),
    ]  # fmt: skip
    for name in SHARED:
        table.add(
            NAMES[name],
            *(middle((each * factor for each in found[figure][name]), form) for figure, factor, form in columns),
        )
    table.text = (
        f"{FIRSTS} answers to one or two small arguments by turns, each computed and kept by another process just "
        "before; median, in brackets the least and the most. The process has slept until then, and goes on with cold "
        "caches. Ours maps the frame, which all processes share; the others unpickle a copy, each time."
    )
    return table
