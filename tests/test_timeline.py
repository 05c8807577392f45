"""The bars of runs over time, and what of them is sent to a browser."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from bokeh.document import Document
from playwright.sync_api import expect

from panel_schedule.functions.run import RunRecord, RunState
from panel_schedule.monitor.timeline import COLORS, MOST_BARS, MOST_ROWS, Bars, Ran, Timeline, arrange, as_numbers, said
from servers import Serve
from windows import NewPage

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

Told = tuple[str, str, RunRecord]
SUCCEEDED, FAILED, RUNNING = RunState.SUCCEEDED, RunState.FAILED, RunState.RUNNING


def ran(name: str, at: float, seconds: float = 1, state: RunState = SUCCEEDED, **more: Any) -> Told:
    """A run that began so many seconds before now."""
    start = NOW - timedelta(seconds=at)
    more = {"key": start, "started_at": start} | more
    if state is not RUNNING:
        more["finished_at"] = start + timedelta(seconds=seconds)
    return name, "task", RunRecord(id=f"{name} {at}", state=state, **more)


def last_hour(runs: list[Told], now: datetime = NOW) -> Bars:
    return arrange(by_function(runs), now - HOUR, now, admin=True)


def by_function(runs: list[Told]) -> list[tuple[str, str, Ran]]:
    """As the monitor keeps them."""
    functions = defaultdict[tuple[str, str], list[RunRecord]](list)
    for name, kind, run in runs:
        functions[name, kind].append(run)
    return [(*each, as_numbers(found)) for each, found in functions.items()]


def lines(bars: Bars) -> list[tuple[str, str, float, float, int]]:
    """Of each bar its row, its outcome, how many seconds before now it begins and how long it is, and of how many."""
    columns, states = bars.columns, list(COLORS)
    return sorted(
        (bars.rows[y], states[state].value, NOW.timestamp() - left / 1000, (end - left) / 1000, count)
        for y, state, left, end, count in zip(
            *(columns[name].tolist() for name in ("y", "outcome", "left", "end", "count")), strict=True
        )
    )


# ------------------------------------------------------------ what becomes of runs


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], []),
        ([ran("a", 60, 2)], [("a", "succeeded", 60, 2, 1)]),
        ([ran("a", 60, state=RUNNING)], [("a", "running", 60, 60, 1)]),
        # Partly, or not at all, within the hour.
        ([ran("a", 3700, 200)], [("a", "succeeded", 3700, 200, 1)]),
        ([ran("a", 3700, 50), ran("a", -1)], []),
        # A pixel is 3.6 s: three of them, from one boundary to the next, cannot be told apart.
        ([ran("a", 600), ran("a", 595, 3)], [("a", "succeeded", 600, 8, 2)]),
        ([ran("a", 600), ran("a", 580)], [("a", "succeeded", 580, 1, 1), ("a", "succeeded", 600, 1, 1)]),
        ([ran("a", 600), ran("b", 600)], [("a", "succeeded", 600, 1, 1), ("b", "succeeded", 600, 1, 1)]),
        (
            [ran("a", 600, state=FAILED), ran("a", 599, state=FAILED), ran("a", 598)],
            [("a", "failed", 599, 1, 1), ("a", "failed", 600, 1, 1), ("a", "succeeded", 598, 1, 1)],
        ),
    ],
)
def test_a_run_is_a_bar_but_for_those_that_cannot_be_told_apart(runs: list[Told], expected: list[tuple]) -> None:
    """And each failure is one of its own."""
    assert expected == lines(last_hour(runs))


def test_what_never_began_has_no_bar() -> None:
    skipped = RunRecord("id", NOW - HOUR / 2, RunState.SKIPPED, reason="paused", until=NOW)
    queued = RunRecord("id", NOW - HOUR / 2, RunState.CANCELLED, queued_at=NOW - HOUR / 2, finished_at=NOW)
    assert [] == lines(last_hour([("a", "task", skipped), ("a", "task", queued)]))


def test_functions_of_one_name_have_a_row_each() -> None:
    _, _, run = ran("a", 60)
    assert ["a", "a (job)", "a (memo)"] == last_hour([("a", kind, run) for kind in ("memo", "task", "job")]).rows


def test_of_one_bar_the_newest_run_is_told_and_the_longest_duration() -> None:
    """Its slot is none where no clock made it."""
    runs = [
        ran("a", 600, 3),
        ran("a", 598, 2, attempt=2),
        ("b", "task", RunRecord("id", "asked", FAILED, 1, NOW, NOW, NOW, "x" * 1000)),
    ]
    columns = last_hour(runs).columns
    slots = columns["slot"].tolist()
    assert ([3000, 0], [2, 1]) == (columns["longest"].tolist(), columns["attempt"].tolist())
    assert (NOW.timestamp() * 1000 - 598_000, True) == (slots[0], np.isnan(slots[1]))
    assert ["", "x" * 200] == columns["error"].tolist()


def test_the_worst_and_then_the_most_recent_have_rows_and_the_rest_is_counted() -> None:
    """Above stands what failed last, then by name, so that no row moves with each run."""
    quiet = [ran(f"task {number:02}", 1000 + number) for number in range(50)]
    runs = [
        *quiet,
        ran("was ill", 3000, state=FAILED),
        ran("was ill", 2900),
        ran("x is ill", 3500, state=RunState.CRASHED),
    ]
    bars = last_hour(runs)
    assert ["x is ill", *(f"task {number:02}" for number in range(38)), "was ill"] == bars.rows
    assert (MOST_ROWS, 12, 51) == (len(bars.rows), bars.left_out, bars.counts[SUCCEEDED])


def test_what_is_under_way_has_a_row() -> None:
    """Though it began long before others have ended."""
    runs = [ran("slow", 1800, state=RUNNING), *(ran(f"quick {number:02}", 5) for number in range(50))]
    assert "slow" in last_hour(runs).rows


def test_rows_do_not_come_and_go_with_each_run() -> None:
    """What ran within the same minute ran as recently, on a timeline of an hour."""
    runs = [ran(f"{number:02}", 5 + number / 10) for number in range(50)]
    before = last_hour(runs).rows
    assert before == last_hour([*runs, ran("49", 2)]).rows
    assert "49" in last_hour([*runs, ran("49", -65)], NOW + timedelta(seconds=70)).rows


def test_what_went_wrong_is_taller_and_drawn_last() -> None:
    columns = last_hour([ran("a", 60, state=FAILED), ran("a", 60), ran("b", 60)]).columns
    assert [0.5, 0.5, 0.86] == columns["height"].tolist()


@pytest.mark.parametrize(
    ("functions", "often"), [(1, 1), (30, 0.02), (500, 0.02)], ids=["all fail", "some fail", "many functions"]
)
def test_a_browser_gets_some_thousand_bars_of_any_number_of_runs_and_each_failure(functions: int, often: float) -> None:
    """As long as these are not too many themselves; and all runs of a row are in some bar."""
    random = np.random.default_rng(1)
    fails = random.random(20_000) < often
    runs = [
        ran(f"{number % functions:03}", at, state=FAILED if bad else SUCCEEDED)
        for number, (at, bad) in enumerate(zip((random.random(20_000) * 3600).tolist(), fails.tolist(), strict=True))
    ]
    bars = last_hour(runs)
    assert 200 < len(bars.keys) <= MOST_BARS
    shown = set(bars.rows)
    assert sum(name in shown for name, _, _ in runs) == bars.columns["count"].sum()
    if often == 0.02:
        bad = sum(run.state is FAILED and name in shown for name, _, run in runs)
        assert bad == np.count_nonzero(bars.columns["height"] > 0.8)


def test_a_full_row_takes_no_room_from_the_others() -> None:
    runs = [ran("full", at / 10) for at in range(36_000)] + [
        ran(f"{each}", at) for each in range(39) for at in range(0, 3600, 40)
    ]
    kept = [line for line in lines(last_hour(runs)) if line[0] != "full"]
    assert (39 * 90, {1}) == (len(kept), {count for *_, count in kept})


def test_successes_are_merged_before_failures() -> None:
    runs = [ran(f"{each}", at) for each in range(40) for at in range(0, 3600, 10)]
    bars = last_hour([*runs, *(ran("0", at, state=FAILED) for at in range(1500))])
    assert 1500 == np.count_nonzero(bars.columns["height"] > 0.8)


@pytest.mark.parametrize(
    ("bars", "text"),
    [
        (Bars(0, 1), "No run in the last day."),
        (Bars(0, 1, counts={SUCCEEDED: 1200, FAILED: 0}), "1,200 succeeded"),
        (Bars(0, 1, counts={RunState.TIMED_OUT: 2}, left_out=7), "2 timed out"),
        (Bars(0, 1, counts={FAILED: 1}, left_out=7), "7 more tasks and functions ran"),
    ],
)
def test_what_there_is_stands_above_it_in_words(bars: Bars, text: str) -> None:
    assert text in said(bars, "day")
    assert "0 failed" not in said(bars, "day")


# ------------------------------------------------------------ colours


def linear(color: str) -> Any:
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    weights = [0.2126, 0.7152, 0.0722]
    dark, light = sorted(float(linear(color) @ weights) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


# Of Machado, Oliveira and Fernandes (2009), at full severity.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("ground", ["#ffffff", "#121212"])
@pytest.mark.parametrize("state", COLORS)
def test_each_colour_stands_out_in_both_themes(state: RunState, ground: str) -> None:
    """As WCAG asks of what is no text."""
    assert contrast(COLORS[state], ground) >= 3


@pytest.mark.parametrize("kind", BLIND)
def test_success_and_failure_differ_for_the_colour_blind(kind: str) -> None:
    well, ill = (np.array(BLIND[kind]) @ linear(COLORS[state]) for state in (SUCCEEDED, FAILED))
    assert np.abs(well - ill).max() > 0.15


# ------------------------------------------------------------ what is sent


class Page:
    """A document with a timeline, and what is sent of it."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.sent: list[str] = []
        document = Document()
        document.add_root(self.timeline._figure)
        document.on_change(self._hear)

    def _hear(self, event: Any) -> None:
        if event.model is self.timeline._source:
            self.sent.append(event.kind)

    def show(self, bars: Bars) -> set[str]:
        """By what kinds of messages its bars become these."""
        self.sent.clear()
        self.timeline.update(bars)
        return set(self.sent)

    def seen(self) -> list[tuple]:
        """The bars that can be seen."""
        data = self.timeline._source.data
        assert self.timeline._bars.rows == self.timeline._names.data["name"]
        return _bars({name: column[data["height"] > 0] for name, column in data.items()})


def _bars(columns: dict[str, Any]) -> list[tuple]:
    names = ("y", "left", "end", "outcome", "count", "longest", "attempt", "error", "height")
    return sorted(zip(*(columns[name].tolist() for name in names), strict=True))


BEFORE = [ran("b", 600), ran("c", 300, key="asked for"), ran("c", 60, state=RUNNING)]
DATA, STREAM, PATCH = "ColumnDataChanged", "ColumnsStreamed", "ColumnsPatched"


@pytest.mark.parametrize(
    ("runs", "later", "sent"),
    [
        (BEFORE, 0, set()),
        ([*BEFORE, ran("b", 30)], 0, {STREAM}),
        ([*BEFORE, ran("b", 599)], 0, {PATCH}),
        (BEFORE, 10, {PATCH}),
        ([*BEFORE[:2], ran("c", 60, 20)], 10, {STREAM, PATCH}),
        ([*BEFORE, ran("a", 30)], 0, {STREAM, PATCH}),
        (BEFORE[1:], 0, {PATCH}),
        (BEFORE, 3100, {PATCH}),
        ([*BEFORE, *(ran("b", at) for at in range(0, 3600, 10))], 0, {DATA}),
        ([], 0, {PATCH}),
    ],
    ids=[
        "nothing",
        "one",
        "one more of a bar",
        "goes on",
        "ends",
        "a row",
        "forgotten",
        "long ago",
        "many",
        "all gone",
    ],
)
def test_of_what_happens_only_what_is_new_is_sent(runs: list[Told], later: float, sent: set[str]) -> None:
    page, bars = Page(), last_hour(runs, NOW + timedelta(seconds=later))
    page.show(last_hour(BEFORE))
    assert sent == page.show(bars)
    assert _bars(bars.columns) == page.seen()


def test_whatever_happens_the_bars_that_are_seen_are_those_of_the_runs() -> None:
    """One at a time or many, in two rows or fifty, over hours."""
    random, page, runs, now, kinds = np.random.default_rng(2), Page(), list[Told](), NOW, set[str]()
    states = list(COLORS)
    for step in range(150):
        now += timedelta(seconds=int(random.integers(1, 300)))
        for _ in range(int(random.choice([0, 1, 3, 40, 400], p=[0.2, 0.3, 0.3, 0.17, 0.03]))):
            at = (NOW - now).total_seconds() + random.random() * 300
            runs.append(
                ran(str(random.integers(2 if step < 75 else 50)), at, random.random() * 90, random.choice(states))
            )
        bars = last_hour(runs, now)
        kinds |= page.show(bars)
        assert _bars(bars.columns) == page.seen()
    assert {DATA, STREAM, PATCH} == kinds


def test_sessions_that_are_shown_the_same_bars_do_not_disturb_each_other() -> None:
    """A patch changes what one session has, in place."""
    bars, page = last_hour(BEFORE), Page()
    former = _bars(bars.columns)
    page.show(last_hour([ran("b", at) for at in range(0, 3600, 10)]))
    page.show(bars)
    page.show(last_hour([*BEFORE, ran("a", 30)]))
    assert former == _bars(bars.columns)


def test_the_time_goes_on_but_not_for_whoever_looks_at_a_part_of_it() -> None:
    page = Page()
    time = page.timeline._figure.x_range
    for later in (0, 10):
        page.show(last_hour(BEFORE, NOW + timedelta(seconds=later)))
        assert (NOW + timedelta(seconds=later) - HOUR).timestamp() * 1000 == time.start
    time.update(start=1e12, end=1.1e12)
    page.show(last_hour(BEFORE, NOW + timedelta(seconds=20)))
    assert (1e12, 1.1e12) == (time.start, time.end)
    assert (NOW + timedelta(seconds=20) - HOUR).timestamp() * 1000 == time.reset_start


def test_another_span_is_shown_whatever_one_looked_at() -> None:
    page = Page()
    time = page.timeline._figure.x_range
    page.show(last_hour(BEFORE))
    time.update(start=1e12, end=1.1e12)
    page.timeline.span = "week"
    page.show(arrange(by_function(BEFORE), NOW - page.timeline.length, NOW, admin=True))
    assert (NOW - timedelta(days=7)).timestamp() * 1000 == time.start


def test_a_row_has_its_name_beside_it_which_is_cut_where_it_is_long() -> None:
    page = Page()
    page.show(last_hour([ran("a", 60), ran("b" * 40, 60)]))
    plot = page.timeline._figure
    assert ([0, 1], {0: "a", 1: f"{'b' * 21}…"}) == (plot.yaxis.ticker.ticks, plot.yaxis.major_label_overrides)
    assert (1.5, -0.5) == (plot.y_range.start, plot.y_range.end)


# ------------------------------------------------------------ in a browser

# The narrowest bar in pixels, as it is drawn.
NARROWEST = """() => {
    const models = Bokeh.documents.flatMap((each) => [...each._all_models.values()])
    const plot = models.find((each) => each.type === "Figure"), {left, right} = plot.renderers[0].data_source.data
    const pixel = (plot.x_range.end - plot.x_range.start) / plot.inner_width
    return Math.min(...Array.from(left, (each, i) => (right[i] - each) / pixel))
}"""


# What stands below the axis.
TICKS = """() => {
    const models = Bokeh.documents.flatMap((each) => [...each._all_models.values()])
    const plot = models.find((each) => each.type === "Figure"), {ticker, formatter} = plot.below[0]
    const {major} = ticker.get_ticks(plot.x_range.start, plot.x_range.end, plot.x_range, 0)
    return formatter.doFormat(major, {loc: 0})
}"""


def test_a_run_of_a_moment_can_be_seen_and_asked_what_it_was(serve: Serve, new_page: NewPage) -> None:
    """However far one looks back, in the time of where one is; and nothing of what is said is HTML."""
    app = """
        from datetime import UTC, datetime, timedelta
        import panel as pn
        from panel_schedule.functions.run import RunRecord, RunState
        from panel_schedule.monitor.timeline import Timeline, arrange, as_numbers

        timeline, now = Timeline(), datetime(2026, 1, 1, 12, tzinfo=UTC)
        at, took = now - timedelta(minutes=30), timedelta(milliseconds=5)
        run = RunRecord("id", at, RunState.FAILED, 2, at, at, at + took, "KeyError: <b>a</b> &amp;")
        name = "<img src=x onerror=alert(1)>"

        def show(*_):
            timeline.update(arrange([(name, "task", as_numbers([run]))], now - timeline.length, now, admin=True))

        timeline.param.watch(show, "span")
        show()
        timeline.servable()
    """
    server = serve("app.py", {"app.py": app})
    page = new_page(f"{server.url}/app", zone="America/New_York")
    figure = page.locator(".bk-Figure")
    expect(figure).to_be_visible()
    hour = [f"06:{minutes}0" for minutes in range(6)] + ["07:00"]
    week = [f"{day} Dec" for day in ("Fri 26", "Sat 27", "Sun 28", "Mon 29", "Tue 30", "Wed 31")] + ["Thu 01 Jan"]
    for span, ticks in (("hour", hour), ("week", week), ("hour", hour)):
        page.get_by_role("button", name=span).click()
        page.wait_for_function(f"({NARROWEST})() >= 2.99")
        page.wait_for_function(f"({TICKS})().join() === {','.join(ticks)!r}")
    box = figure.bounding_box()
    assert box is not None
    tooltip = page.locator(".bk-Tooltip")
    for x in range(int(box["width"] * 0.5), int(box["width"] * 0.7), 2):
        page.mouse.move(box["x"] + x, box["y"] + 12)
        if tooltip.count():
            break
    for text in (
        "<img src=x onerror=alert(1)>",
        "failed",
        "2026-01-01 06:30:00 (2026-01-01 11:30:00 UTC)",
        "5.0 ms",
        "KeyError: <b>a</b> &amp;",
    ):
        expect(tooltip).to_contain_text(text)
