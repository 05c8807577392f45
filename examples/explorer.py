"""The people of all countries: one query for all who choose the same filters, and three views of its answer."""

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui
from bokeh.core.properties import value
from bokeh.models import (
    BoxAnnotation,
    ColumnDataSource,
    CustomJSTickFormatter,
    HoverTool,
    HTMLTemplateFormatter,
    NumberFormatter,
    Range1d,
)
from bokeh.plotting import figure

import panel_schedule as ps
from common.page import (
    AMBER,
    BLUE,
    NARROW,
    ROSE,
    TEAL,
    VIOLET,
    card,
    chart,
    key,
    number,
    page,
    side,
    stacked,
    table,
    tile,
)
from tasks.explorer import EXECUTIONS, FIRST, LAST, OLDEST, REGIONS, STEP, Summary, executions, population

pn.extension("tabulator")

COLORS = dict(zip(REGIONS, [AMBER, BLUE, VIOLET, TEAL, ROSE, "#84cc16"], strict=True))
GREY = "#94a3b8"
PROJECTED = 2024  # from this year on
PEOPLE, SHARE = "People", "Share"

ORIGIN = """
World Population Prospects 2024 of the United Nations (CC BY 3.0 IGO), as bokeh_sampledata has them: 237 countries and
areas, by sex and age group, in **every fifth year**. The years between are **interpolated** on straight lines, which
makes 1,503,054 rows. From 2024 on, where it is shaded, it is a projection, the medium one. Latin America includes the
Caribbean.
"""

# ------------------------------------------------------------ the filters, and the computation

wide = {"sizing_mode": "stretch_width", "margin": (4, 16)}
regions = pmui.CheckBoxGroup(options=list(REGIONS), value=list(REGIONS), **wide | {"margin": (12, 16, 4, 16)})
ages = pmui.IntRangeSlider(label="Ages", value=(65, OLDEST), start=0, end=OLDEST, step=STEP, **wide)
years = pmui.IntRangeSlider(label="Years", value=(FIRST, LAST), start=FIRST, end=LAST, format="0", **wide)
sex = pmui.RadioButtonGroup(options={"All": "All", "Women": "Female", "Men": "Male"}, value="All", size="small", **wide)

data = population.view(regions, ages, years, sex)

measure = pmui.RadioButtonGroup(options=[PEOPLE, SHARE], value=PEOPLE, size="small", **wide)  # how it is drawn

# ------------------------------------------------------------ the charts

lines = ColumnDataSource({"year": [], **{region: [] for region in REGIONS}})
bars = ColumnDataSource({name: [] for name in ("age", "before", "after", "color", "alpha")})

look = {
    "sizing_mode": "stretch_both",
    "tools": "",
    "toolbar_location": None,
    "min_border_left": 60,
    "min_border_right": 20,
    "min_border_bottom": 40,
}

course = figure(x_range=Range1d(FIRST, LAST), y_range=Range1d(0, 1), **look)
areas = course.varea_stack(list(REGIONS), x="year", source=lines, color=list(COLORS.values()), alpha=0.75)
curves = [course.line("year", region, source=lines, color=COLORS[region], line_width=2.5) for region in REGIONS]
course.add_layout(BoxAnnotation(left=PROJECTED, fill_color=GREY, fill_alpha=0.15, line_color=None))
hovered = course.line("year", value(0), source=lines, alpha=0)  # for areas cannot be
tips = [("", "@year"), *((region, f"@{{{region}}}{{0,0.0}}") for region in REGIONS)]
course.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=[hovered]))

pyramid = figure(x_range=Range1d(-1, 1), y_range=Range1d(0, OLDEST + STEP), y_axis_label="Age", **look)
bar = {"y": "age", "height": 0.84 * STEP, "source": bars}
pyramid.hbar(right="after", color="color", alpha="alpha", **bar)
pyramid.hbar(right="before", fill_color=None, line_color=GREY, line_width=1.5, **bar)
pyramid.xaxis.formatter = CustomJSTickFormatter(code="return Math.abs(tick).toLocaleString()")
pyramid.xaxis.ticker.desired_num_ticks = 5


def draw(found: Summary | None, measure: str) -> None:
    """Both charts, in millions or in percent."""
    if found is None:
        return
    draw_course(found, measure == SHARE)
    draw_pyramid(found, measure == SHARE)
    for axis in (course.yaxis, pyramid.xaxis):
        axis.axis_label = "% of the population" if measure == SHARE else "Millions"


def draw_course(found: Summary, share: bool) -> None:
    both = found.regions.pivot(index="year", columns="region", values=["people", "everyone"])
    shown = 100 * both["people"] / both["everyone"] if share else both["people"] / 1e6
    course.x_range.update(start=found.years[0], end=found.years[1])
    course.y_range.end = 1.05 * (shown.max(axis=1) if share else shown.sum(axis=1)).max()
    lines.data = dict(shown.reindex(columns=list(REGIONS), fill_value=np.nan if share else 0).reset_index())
    for glyphs, visible in ((areas, not share), (curves, share)):
        for glyph in glyphs:
            glyph.visible = visible


def draw_pyramid(found: Summary, share: bool) -> None:
    groups = found.groups
    sizes = groups[["before", "after"]]
    sizes = (100 * sizes / sizes.sum() if share else sizes / 1e6).where(groups["sex"] == "Female", lambda size: -size)
    pyramid.x_range.update(start=1.05 * min(0, sizes.min(axis=None)), end=1.05 * max(0, sizes.max(axis=None)))
    bars.data = dict(
        sizes.assign(
            age=groups["age"] + STEP / 2,  # the middle
            color=groups["sex"].map({"Female": ROSE, "Male": BLUE}),
            alpha=groups["wanted"].map({True: 0.85, False: 0.25}),
        )
    )


# Panel does not always hold the document's lock where an input changes, and Bokeh's models insist on it.
pn.bind(lambda *now: pn.state.execute(lambda: draw(*now)), data, measure, watch=True)
draw(data.value, measure.value)

# ------------------------------------------------------------ the table and the words


def big(people: float) -> tuple[str, str]:
    """A number of people that can be read at a glance, and its unit."""
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if people >= size:
            return f"{people / size:.2f}", unit
    return f"{people:,.0f}", ""


def ranked(found: Summary, measure: str) -> pd.DataFrame:
    by = "share" if measure == SHARE else "people"
    return found.countries.assign(share=(100 * found.countries["share"]).round(1)).sort_values(by, ascending=False)


def tell(found: Summary | None, label: str, say) -> str:
    return say(found) if found else number(label, "...", note="is being computed")


def people(found: Summary) -> str:
    before, after = (found.regions.loc[found.regions["year"] == year, "people"].sum() for year in found.years)
    return number(f"{found.ages}, {found.years[1]}", *big(after), note=f"{' '.join(big(before))} in {found.years[0]}")


def part(found: Summary) -> str:
    both = found.regions.groupby("year")[["people", "everyone"]].sum()
    before, after = (100 * (both["people"] / both["everyone"])[list(found.years)]).tolist()
    return number("Of the population", f"{after:.1f}", "%", f"{before:.1f} % in {found.years[0]}")


def took(found: Summary) -> str:
    return number("The query", f"{1000 * found.seconds:.0f}", "ms", f"{found.rows:,} rows summed up")


def counted(_: object) -> str:
    return number("Executions", f"{executions()}", note="for all visitors together")


def course_title(found: Summary) -> str:
    return key(COLORS, f"{found.ages}, {found.years[0]} to {found.years[1]}")


def pyramid_title(found: Summary) -> str:
    before, after = found.years
    return key({"Men": BLUE, "Women": ROSE}, f"{after}, outlined {before}")


def table_title(found: Summary) -> str:
    return key({}, f"{found.ages}, {found.years[1]}")


right = dict.fromkeys(["people", "growth"], "right")
countries = table(
    data.pipe(ranked, measure),
    sizing_mode="stretch_both",
    min_height=240,
    titles={"country": "Country", "people": "People", "share": "Share", "growth": "Growth"},
    formatters={
        "people": NumberFormatter(format="0,0"),
        "share": HTMLTemplateFormatter(
            template=f"""<div style="display: flex; align-items: center; gap: 8px">
                <span style="flex: none; width: calc((100% - 60px) * <%= value / 100 %>); height: 10px;
                             border-radius: 3px; background: {BLUE}"></span>
                <%= value.toFixed(1) %> %</div>"""
        ),
        "growth": HTMLTemplateFormatter(template="&times; <%= value.toFixed(1) %>"),
    },
    widths={"country": "32%", "people": "29%"},
    text_align=right,
    header_align=right,
)

# ------------------------------------------------------------ the page

busy = pmui.LinearProgress(
    active=data.param.running,
    sx=data.param.running.rx.where(*({"opacity": opacity, "transition": "opacity 0.3s"} for opacity in (1, 0))),
    margin=(0, 6),
    sizing_mode="stretch_width",
)

controls = card(
    regions,
    ages,
    years,
    sex,
    pmui.Typography("Only how it is drawn: computes nothing", variant="caption", margin=(12, 16, 0, 16)),
    measure,
    pmui.Button(
        name="Compute anew", on_click=data.refresh, disabled=data.param.running, variant="outlined",
        sizing_mode="stretch_width", margin=(14, 16, 6, 16),
    ),
    pn.Column(ps.Freshness(data), margin=(0, 6), sizing_mode="stretch_width"),
    pn.pane.Markdown(
        ORIGIN, sizing_mode="stretch_width", margin=(0, 16), styles={"font-size": "12px", "opacity": "0.7"}
    ),
    sizing_mode="stretch_both",
    min_height=720,
    sx={"overflow": "auto"},
)  # fmt: skip

charts = stacked(
    card(chart(course), title=data.pipe(course_title), sizing_mode="stretch_both", min_height=300),
    side(card(chart(pyramid), title=data.pipe(pyramid_title), sizing_mode="stretch_both", min_height=300), 320),
    sizing_mode="stretch_both",
)
charts.stylesheets = [f"{NARROW} {{ :host {{ flex: none !important; height: auto !important; }} }}"]

page(
    "explorer",
    "The people of the world, explored",
    "Who chooses the same filters shares one query, and all that a page shows is drawn from its answer.",
    pmui.Alert(
        title=data.param.error,
        severity="error",
        visible=data.param.error.rx.bool(),
        sx={"py": 0, "alignItems": "center", "& .MuiAlertTitle-root": {"fontSize": 14, "mb": 0}},
        margin=6,
        sizing_mode="stretch_width",
    ),
    stacked(
        side(controls, 330),
        pmui.Column(
            busy,
            stacked(
                tile(pn.bind(tell, data, "People", people)),
                tile(pn.bind(tell, data, "Of the population", part)),
                tile(pn.bind(tell, data, "The query", took)),
                tile(pn.bind(counted, ps.store.rx(EXECUTIONS))),
                share=40,
            ),
            charts,
            card(countries, title=data.pipe(table_title), sizing_mode="stretch_both", min_height=280),
            sizing_mode="stretch_both",
        ),
        sizing_mode="stretch_both",
    ),
).servable()
