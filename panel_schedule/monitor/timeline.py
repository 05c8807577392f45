"""All runs of the last hour, day or week as bars over time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import panel as pn
import param
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    CustomJSTicker,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    Range1d,
)
from bokeh.plotting import figure
from panel.viewable import Viewer

from ..coordination.tasks import TASK
from ..functions.run import RunRecord, RunState
from ..serialize.errors import type_of

# Rows that are shown, and bars that a browser gets.
MOST_ROWS = 40
MOST_BARS = 5000

# What ran within such a part of the time ran as recently: rows are not to come and go with each run.
RECENT = 60

# Pixels: of a wide page between the axes, of the narrowest bar, of a row, and of what is above and below the rows.
WIDTH = 1000
NARROWEST = 3
ROW = 22
FRAME = 60

# Characters of a name beside its row, and of an error: more nobody reads there.
LONGEST_NAME = 22
LONGEST_ERROR = 200

# From so many bars that are new or changed on, all are sent anew.
MANY = 300

SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}

# In the order in which they are drawn, so that what went wrong lies on top; it is taller, too. The colours differ for
# the colour-blind, with a contrast of 3:1 and more to white and to Panel's dark ground.
COLORS = {
    RunState.SUCCEEDED: "#009371",
    RunState.CANCELLED: "#808080",
    RunState.RUNNING: "#3b8fd4",
    RunState.TIMED_OUT: "#b069c9",
    RunState.CRASHED: "#7a73e0",
    RunState.FAILED: "#d55e00",
}
_NUMBERS = {state: number for number, state in enumerate(COLORS)}
_FIRST_BAD = _NUMBERS[RunState.TIMED_OUT]

# All but errors are numbers, which a server sends by the thousand at once; at text it looks one by one.
_COLUMNS = ("y", "left", "end", "right", "height", "outcome", "count", "longest", "attempt", "slot", "error")


@dataclass(frozen=True, slots=True)
class Bars:
    """
    What a timeline shows; made by `arrange`.

    Attributes
    ----------
    since, until : float
        Milliseconds since 1970.
    rows : list of str
        Their names, from above.
    left_out : int
        How many more tasks and functions have runs.
    counts : dict of RunState to int
        Runs by outcome, those without a row included.
    columns : dict of str to array
        What there is to know of each bar; times in milliseconds.
    keys : list of tuple
        By which a bar is found again among the next ones.
    """

    since: float
    until: float
    rows: list[str] = field(default_factory=list)
    left_out: int = 0
    counts: dict[RunState, int] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=lambda: {name: np.zeros(0) for name in _COLUMNS})
    keys: list[tuple[Any, ...]] = field(default_factory=list)


class Ran(NamedTuple):
    """
    Runs of one function, as numbers, of which no garbage collection looks at each one. Made by `as_numbers`.

    Attributes
    ----------
    outcome, left, right, attempt, slot : array
        Times in milliseconds since 1970; `right` is nan of one that is under way, `slot` where no clock made it.
    errors, types : list of str
        What went wrong, and of what type that is.
    """

    outcome: Any
    left: Any
    right: Any
    attempt: Any
    slot: Any
    errors: list[str]
    types: list[str]


def as_numbers(runs: Iterable[RunRecord]) -> Ran:
    """Of runs those that have begun; one without an end is under way."""
    begun = [run for run in runs if run.started_at is not None and run.state in _NUMBERS]
    return Ran(
        np.array([_NUMBERS[run.state] for run in begun], dtype=np.int64),
        np.array([_milliseconds(run.started_at) for run in begun], dtype=float),
        np.array([_milliseconds(run.finished_at) for run in begun], dtype=float),
        np.array([run.attempt for run in begun], dtype=np.int32),
        np.array([_milliseconds(run.key) for run in begun], dtype=float),
        [run.error[:LONGEST_ERROR] for run in begun],
        [type_of(run.error) for run in begun],
    )


def _milliseconds(instant: object) -> float:
    return instant.timestamp() * 1000 if isinstance(instant, datetime) else math.nan


def arrange(runs: Iterable[tuple[str, str, Ran]], since: datetime, until: datetime, admin: bool) -> Bars:
    """
    Make bars of runs. Call it on a thread: of 50,000 runs it takes some hundredths of a second.

    What cannot be told apart is one bar: runs of a row with the same outcome that begin within 3 pixels, or within more
    where there are too many bars. Of those that went wrong each is a bar of its own as long as there is room.

    Parameters
    ----------
    runs : iterable of (str, str, Ran)
        The name and kind (``"task"``, ``"job"`` or ``"memo"``) of what has run, and its runs, in one part or several.
    since, until : datetime
        Aware.
    admin : bool
        Whether it is told of more than tasks what an error says.

    Returns
    -------
    Bars
        At most `MOST_BARS` in `MOST_ROWS`: of what failed last, then of what failed meanwhile, then of what is under
        way, then of what ran most recently. What failed last is above the others; both are by name.
    """
    first, last = since.timestamp() * 1000, until.timestamp() * 1000
    owners: dict[tuple[str, str], int] = {}
    parts = [(owners.setdefault((name, kind), len(owners)), ran) for name, kind, ran in runs if len(ran.errors)]
    if not parts:
        return Bars(first, last)
    kinds = [kind for _, kind in owners]
    whose = np.repeat([number for number, _ in parts], [len(ran.errors) for _, ran in parts])
    state, left, right, attempt, slot = (np.concatenate([ran[column] for _, ran in parts]) for column in range(5))
    told = (ran.errors if admin or kinds[number] == TASK else ran.types for number, ran in parts)
    errors = list(chain.from_iterable(told))
    right = np.where(np.isnan(right), last, right)
    inside = np.flatnonzero((left <= last) & (right >= first))
    if not len(inside):
        return Bars(first, last)
    state, left, right = state[inside], left[inside], np.maximum(left, right)[inside]
    there, owner = np.unique(whose[inside], return_inverse=True)
    called = list(owners)
    names = [_called(*called[number]) for number in there.tolist()]
    counts = dict(zip(COLORS, np.bincount(state, minlength=len(COLORS)).tolist(), strict=True))
    rows, row = _rows(names, owner, left, state, (last - first) / RECENT)

    at = np.flatnonzero(row >= 0)
    place = np.full(len(row), -1)
    place[at] = _places(row[at], left[at], state[at], NARROWEST * (last - first) / WIDTH)
    # Each bar begins where one of these changes; the outcome first, as that is the order in which they are drawn.
    at = at[np.lexsort((left[at], place[at], row[at], state[at]))]
    row, left, right, state, place = (column[at] for column in (row, left, right, state, place))
    begin = np.flatnonzero(np.r_[True, (np.diff(state) != 0) | (np.diff(row) != 0) | (np.diff(place) != 0)])
    count = np.diff(np.r_[begin, len(at)])
    end = np.maximum.reduceat(right, begin)
    newest = inside[at[begin + count - 1]]
    columns = {
        "y": row[begin],
        "left": left[begin],
        "end": end,
        "right": end,  # which the browser moves until the bar can be seen
        "height": np.where(state[begin] >= _FIRST_BAD, 0.86, 0.5),
        "outcome": state[begin],
        "count": count,
        "longest": np.maximum.reduceat(right - left, begin),
        "attempt": attempt[newest],
        "slot": slot[newest],
        "error": np.array([errors[each] for each in newest.tolist()], dtype=object),
    }
    columns |= {name: columns[name].astype(np.int32) for name in ("y", "outcome", "count", "attempt")}
    shown = [rows[each] for each in row[begin].tolist()]
    keys = list(zip(shown, state[begin].tolist(), place[begin].tolist(), strict=True))
    return Bars(first, last, rows, len(names) - len(rows), counts, columns, keys)


def _called(name: str, kind: str) -> str:
    return name if kind == TASK else f"{name} ({kind})"


def _rows(names: list[str], owner: Any, left: Any, state: Any, moment: float) -> tuple[list[str], Any]:
    """The names of the rows, and of each run its row, -1 where it has none."""
    size, bad = len(names), state >= _FIRST_BAD
    by_time = np.argsort(left, kind="stable")
    latest, failed_last = np.empty(size), np.empty(size, dtype=bool)
    latest[owner[by_time]], failed_last[owner[by_time]] = left[by_time], bad[by_time]
    has_failed = np.bincount(owner, weights=bad, minlength=size) > 0
    runs = np.bincount(owner, weights=state == _NUMBERS[RunState.RUNNING], minlength=size) > 0
    by_name = np.argsort(np.argsort(names))
    chosen = np.lexsort((by_name, -(latest // moment), ~runs, ~has_failed, ~failed_last))[:MOST_ROWS].tolist()
    chosen.sort(key=lambda each: (not failed_last[each], names[each]))
    row = np.full(size, -1)
    row[chosen] = np.arange(len(chosen))
    return [names[each] for each in chosen], row[owner]


def _places(row: Any, left: Any, state: Any, narrowest: float) -> Any:
    """Of each run a number that those of its row and outcome share which are one bar with it."""
    # A lane is a row's part that is well, or the one that is not. The places of a lane are so many milliseconds wide.
    lane = 2 * row + (state >= _FIRST_BAD)
    width = np.where(np.arange(lane.max() + 1) % 2 == 0, narrowest, 0.001)
    well = np.arange(len(width)) % 2 == 0
    while True:
        place = np.floor(left / width[lane]).astype(np.int64)
        bars = np.unique((lane * len(COLORS) + state) * (place.max() + 1) + place)
        if len(bars) <= MOST_BARS:
            return place
        crowded = np.bincount(bars // (place.max() + 1) // len(COLORS), minlength=len(width))
        too_many = crowded > MOST_BARS / np.count_nonzero(crowded)
        if (well & too_many).any():
            too_many &= well
        width = np.where(too_many, np.maximum(2 * width, narrowest), width)


_STYLE = """
div { display: flex; flex-wrap: wrap; gap: 0.2em 1.2em; font-size: 0.95em; }
i { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em; border-radius: 2px; }
"""

# Bars that are narrower than can be seen are made as wide as that, however far one zooms.
_WIDEN = """
const {left, end, right} = source.data
const least = narrowest * (range.end - range.start) / (plot.inner_width || width)
for (let i = 0; i < left.length; i++) right[i] = Math.max(end[i], left[i] + least)
source.change.emit()
"""

# What is said of a bar. Nothing of it is HTML: Bokeh puts it in as text.
_OUTCOME = """
const count = source.data.count[special_vars.index]
return (count > 1 ? `${count} runs ` : "") + names[value].replace("_", " ")
"""
_TOOK = """
const several = source.data.count[special_vars.index] > 1 ? " at most" : ""
if (value < 1000) return `${value.toFixed(value < 10 ? 1 : 0)} ms${several}`
let left = Math.round(value / 1000)
if (left < 60) return `${(value / 1000).toFixed(left < 10 ? 2 : 1)} s${several}`
const parts = []
for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
  if (left >= size) parts.push(`${Math.floor(left / size)} ${unit}`)
  left %= size
}
return parts.slice(0, 2).join(" ") + several
"""
_INSTANT = """
if (isNaN(value)) return "none, it was asked for"
const utc = new Date(value).toISOString().replace("T", " ").slice(0, 19) + " UTC"
const minutes = new Date(value).getTimezoneOffset()
const here = new Date(value - 60000 * minutes).toISOString().replace("T", " ").slice(0, 19)
return minutes ? `${here} (${utc})` : utc
"""

# Ticks at round times of whoever looks, wherever that is.
_TICKS = """
const {start, end} = cb_data, minute = 60000, hour = 60 * minute, day = 24 * hour
const minutes = [1, 2, 5, 10, 15, 30], hours = [1, 2, 3, 6, 12, 24, 48]
const steps = [...minutes.map((each) => each * minute), ...hours.map((each) => each * hour)]
const step = steps.find((each) => end - start <= 8 * each) ?? 7 * day
const ticks = []
const at = new Date(start)
at.setHours(0, 0, 0, 0)
if (step < day) {
  // From midnight to midnight: days have 23 or 25 hours where clocks are moved.
  for (; at <= end; at.setDate(at.getDate() + 1)) {
    const next = new Date(at)
    next.setDate(next.getDate() + 1)
    for (let tick = +at; tick < next - step / 2; tick += step) if (tick >= start && tick <= end) ticks.push(tick)
  }
} else {
  for (; at <= end; at.setDate(at.getDate() + step / day)) if (at >= start) ticks.push(+at)
}
return ticks
"""
_TICK = """
const at = new Date(tick), two = (number) => String(number).padStart(2, "0")
if (at.getHours() || at.getMinutes()) return `${two(at.getHours())}:${two(at.getMinutes())}`
return at.toLocaleDateString("en-GB", {weekday: "short", day: "2-digit", month: "short"})
"""


class Timeline(Viewer):
    """
    A row for each task or function, and in it a bar for each run: when it ran, how long, and what came of it.

    Parameters
    ----------
    span : str
        ``"hour"``, ``"day"`` or ``"week"``, as its user has chosen. Who has the runs watches it, and calls `update`
        with the bars of that time.

    Examples
    --------
    >>> from datetime import UTC, datetime
    >>> timeline, now = Timeline(), datetime(2026, 1, 1, tzinfo=UTC)
    >>> timeline.update(arrange([], now - timeline.length, now, admin=True))
    """

    span: Any = param.Selector(default="hour", objects=list(SPANS), doc="How far back it goes.")

    def __init__(self, **params: Any):
        super().__init__(**params)
        self._bars = Bars(0.0, 1.0)
        self._source = ColumnDataSource({name: column.copy() for name, column in self._bars.columns.items()})
        self._names = ColumnDataSource({"name": list[str]()})
        # Of each bar that is shown its place in the source, where those also stay that are hidden.
        self._places: dict[tuple[Any, ...], int] = {}
        self._time, self._rows = Range1d(start=0.0, end=1.0), FixedTicker(ticks=[])
        self._figure = self._draw()
        self._said = pn.pane.HTML(stylesheets=[_STYLE], sizing_mode="stretch_width", margin=(0, 10))
        choice = pn.widgets.RadioButtonGroup.from_param(self.param.span, width=220)
        self._page = pn.Column(choice, self._said, pn.pane.Bokeh(self._figure), sizing_mode="stretch_width")

    @property
    def length(self) -> timedelta:
        """How far back it goes."""
        return SPANS[self.span]

    def __panel__(self) -> Any:
        return self._page

    def _draw(self) -> figure:
        # No tool is at work by itself: on a phone the page is to scroll under a finger.
        source, plot = self._source, figure(
            x_range=self._time, y_range=Range1d(start=0.5, end=-0.5), height=FRAME + ROW, sizing_mode="stretch_width",
            x_axis_type="datetime", x_axis_label="Your time", tools="xpan,xwheel_zoom,reset", toolbar_location="right",
            active_drag=None, active_scroll=None, background_fill_color=None, border_fill_color=None,
            outline_line_color=None, min_border_left=24,  # for half of the label of a tick
        )  # fmt: skip
        plot.toolbar.logo = None
        colors = LinearColorMapper(palette=list(COLORS.values()), low=-0.5, high=len(COLORS) - 0.5)
        plot.hbar(
            y="y", left="left", right="right", height="height", source=source, line_color=None,
            fill_color={"field": "outcome", "transform": colors},
        )  # fmt: skip
        plot.xaxis.ticker, plot.xaxis.formatter = CustomJSTicker(major_code=_TICKS), CustomJSTickFormatter(code=_TICK)
        plot.yaxis.ticker = self._rows
        ink = "#dddddd" if pn.config.theme == "dark" else "#444444"
        for axis in plot.axis:
            axis.update(
                axis_line_color=None, major_tick_line_color=None, minor_tick_line_color=None,
                major_label_text_color=ink, axis_label_text_color=ink, axis_label_text_font_style="normal",
            )  # fmt: skip
        plot.xgrid[0].update(grid_line_color="#808080", grid_line_alpha=0.3)
        plot.ygrid[0].grid_line_color = None
        hover = HoverTool(
            tooltips=[
                ("", "@y{custom}"),
                ("outcome", "@outcome{custom}"),
                ("start", "@left{custom}"),
                ("duration", "@longest{custom}"),
                ("slot", "@slot{custom}"),
                ("attempt", "@attempt"),
                ("error", "@error{custom}"),
            ],
            formatters={
                "@left": CustomJSHover(code=_INSTANT),
                "@y": CustomJSHover(code="return names.data.name[value]", args={"names": self._names}),
                "@outcome": CustomJSHover(code=_OUTCOME, args={"source": source, "names": list(COLORS)}),
                "@longest": CustomJSHover(code=_TOOK, args={"source": source}),
                "@slot": CustomJSHover(code=_INSTANT),
                "@error": CustomJSHover(code="return value || 'none'"),
            },
        )
        if "limit" in HoverTool.properties():  # before 3.8 Bokeh shows as many as there are
            hover.limit = 3
        plot.add_tools(hover)
        widen = CustomJS(
            args={"source": source, "range": self._time, "plot": plot, "narrowest": NARROWEST, "width": WIDTH},
            code=_WIDEN,
        )
        for model, news in [(source, ["data", "streaming", "patching"]), (self._time, ["start", "end"])]:
            for each in news:
                model.js_on_change(each, widen)
        plot.js_on_change("inner_width", widen)
        return plot

    def update(self, bars: Bars) -> None:
        """
        Show these from now on; under the lock of the session's document.

        Only what is new or has changed is sent, and whoever looks at a part of the time goes on looking at that.
        """
        former, self._bars = self._bars, bars
        self._send(bars)
        plot, size = self._figure, max(1, len(bars.rows))
        if bars.rows != former.rows:
            self._names.data = {"name": bars.rows}
            self._rows.ticks = list(range(len(bars.rows)))
            plot.yaxis.major_label_overrides = {at: _short(name) for at, name in enumerate(bars.rows)}
            plot.y_range.update(start=size - 0.5, end=-0.5)
            plot.height = FRAME + size * ROW
        time = self._time
        # As far to the right as the last run can be seen.
        end, was = (each.until + 0.01 * (each.until - each.since) for each in (bars, former))
        if (time.start, time.end) in ((former.since, was), (0.0, 1.0)) or end - bars.since != was - former.since:
            time.update(start=bars.since, end=end)
        time.update(reset_start=bars.since, reset_end=end)
        self._said.object = said(bars, self.span)

    def _send(self, bars: Bars) -> None:
        there, new = self._source.data, bars.columns
        at = np.array([self._places.get(key, -1) for key in bars.keys], dtype=np.int64)
        more, known = np.flatnonzero(at < 0), np.flatnonzero(at >= 0)
        patches = {name: _changed(there[name], at[known], new[name][known]) for name in _COLUMNS}
        gone = sorted(set(range(len(there["y"]))) - set(at[known].tolist()))
        patches["height"] += [(each, 0.0) for each in gone if there["height"][each]]
        if len(more) + max(map(len, patches.values())) > MANY or len(gone) > MOST_BARS // 5:
            # Copies, as a patch changes them in place, and other sessions have the same bars.
            self._source.data = {name: column.copy() for name, column in new.items()}
            self._places = {key: place for place, key in enumerate(bars.keys)}
            return
        if changes := {name: patch for name, patch in patches.items() if patch}:
            self._source.patch(changes)
        if len(more):
            self._places |= {bars.keys[each]: len(there["y"]) + number for number, each in enumerate(more.tolist())}
            self._source.stream({name: column[more] for name, column in new.items()})


def _changed(there: Any, at: Any, new: Any) -> list[tuple[int, Any]]:
    """What of a column is another one now, with its place."""
    old = there[at]
    differ = (old != new) & ((old == old) | (new == new))  # a slot that is none is not equal to itself
    return list(zip(at[differ].tolist(), new[differ].tolist(), strict=True))


def said(bars: Bars, span: str) -> str:
    """What the colours mean, with how many runs there are of each, and what is not shown; as HTML."""
    counts = [
        f'<span><i style="background: {color}"></i>{bars.counts[state]:,} {state.value.replace("_", " ")}</span>'
        for state, color in COLORS.items()
        if bars.counts.get(state)
    ]
    if not counts:
        return f"<div>No run in the last {span}.</div>"
    if bars.left_out:
        shown = f"shown are the {MOST_ROWS} that failed, run now or ran last."
        counts.append(f"<span>{bars.left_out:,} more tasks and functions ran; {shown}</span>")
    return f"<div>{''.join(counts)}</div>"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
