"""The frame around a page, and what stands in it: cards, tiles, charts, tables."""

from collections.abc import Callable
from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.custom import JSComponent
from panel.util import edit_readonly

import panel_schedule as ps

PAGES = {
    "machine": "Machine",
    "stocks": "Stocks",
    "quakes": "Quakes",
    "portfolio": "Portfolio",
    "explorer": "Explorer",
}
BLUE, VIOLET, TEAL, AMBER, ROSE = "#3b82f6", "#a855f7", "#14b8a6", "#f59e0b", "#f43f5e"

THEME = {
    "light": {"palette": {"primary": {"main": "#1d4ed8"}}, "shape": {"borderRadius": 10}},
    "dark": {"palette": {"primary": {"main": "#2563eb"}}, "shape": {"borderRadius": 10}},
}

NUMBER = """
.label, .note { font-size: 13px; opacity: 0.7; overflow: hidden; text-overflow: ellipsis; }
.label, .note, .value { line-height: 1.4; white-space: nowrap; }
.value { font-size: 27px; font-weight: 600; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.value small { font-size: 15px; font-weight: 500; opacity: 0.7; }
"""

TABLE = """
:host .tabulator { font-size: 13px; }
:host .tabulator .tabulator-cell { padding: 9px 10px; }
:host .tabulator .tabulator-arrow { display: none; }
"""


PHONE = "@media (max-width: 600px)"


def page(path: str, title: str, lead: str, *main) -> pmui.Page:
    """The frame: a header with links to all examples, a title with a sentence under it, the content."""
    links = [
        pmui.Button(
            name=name,
            href=to,
            target="_self",
            color="light",
            variant="outlined" if to == path else "text",
            margin=(5, 2),
            sx={PHONE: {"px": 0.75, "minWidth": 0, "fontSize": 13}},
        )
        for to, name in PAGES.items()
    ]
    intro = [
        pmui.Typography(title, variant="h5", margin=(8, 10, 0, 10)),
        pmui.Typography(lead, variant="body2", margin=(0, 10, 8, 10), sx={"opacity": 0.75}),
    ]
    frame = pmui.Page(
        title="panel-schedule",
        header=[pmui.Row(*links)],
        main=[pmui.Column(*intro, *main, sizing_mode="stretch_both", margin=(4, 14))],
        theme_config=THEME,
        sx={
            PHONE: {"& h3.title": {"display": "none"}},  # the links need its place
            "& .main-content": {"overflowY": "auto"},  # a narrow page is higher than the window
        },
    )
    # For its busy indicator Panel walks through all models of the page, twice for each event: that can take 0.2 s.
    with edit_readonly(frame):
        frame.busy = False
    return frame


def row(*content, **params) -> pmui.Row:
    return pmui.Row(*content, **{"sizing_mode": "stretch_width"} | params)


NARROW = "@media (max-width: 900px)"


def stacked(*content, share: int = 100, **params) -> pmui.Row:
    """A row that is broken up where the page is narrow: there each part takes at least `share` percent of the width."""
    for part in content:
        broken = f":host {{ flex: 1 1 {share}% !important; height: auto !important; }}"
        part.stylesheets = [*part.stylesheets, f"{NARROW} {{ {broken} }}"]
    return row(*content, sx={NARROW: {"flexWrap": "wrap", "alignContent": "flex-start"}}, **params)


def side(part, width: int):
    """A part of a `stacked` row that is this wide, in pixels, where it is not broken up."""
    part.stylesheets = [*part.stylesheets, f":host {{ flex: 0 0 {width}px !important; }}"]
    return part


def card(*content, title: str = "", task: ps.Task | None = None, **params) -> pmui.Paper:
    """A card; beside its title it says how fresh the value of a task is."""
    heading = []
    if title:
        heading.append(pn.pane.HTML(title, styles={"font-size": "14px", "font-weight": "600"}, margin=(8, 4, 4, 14)))
    if task:
        heading.append(pn.Column(ps.Freshness(task), margin=(5, 0, 0, 0)))
    params = {"sizing_mode": "stretch_width", "margin": 6, "sx": {"overflow": "hidden"}} | params
    return pmui.Paper(*([row(*heading)] if heading else []), *content, **params)


def number(label: str, value: str, unit: str = "", note: str = "") -> str:
    """Something to be read from afar."""
    return (
        f"<div class='label'>{escape(label)}</div>"
        f"<div class='value'>{escape(value)} <small>{escape(unit)}</small></div>"
        f"<div class='note'>{escape(note)}</div>"
    )


def live(content) -> pn.pane.HTML:
    """What `number` makes, or a reference to it."""
    look = {"stylesheets": [NUMBER], "sizing_mode": "stretch_width", "min_height": 56, "margin": (6, 14, 8, 14)}
    return pn.pane.HTML(content, **look)


def tile(content, task: ps.Task | None = None) -> pmui.Paper:
    """A small card for a number."""
    fresh = [pn.Column(ps.Freshness(task), margin=(-12, 4, 4, 4))] if task else []
    return card(live(content), *fresh)


class Ago(JSComponent):
    """A sentence in which ``{}`` stands for how long ago something was: counted on in the browser."""

    told = param.Dict(default={"text": "", "age": 0}, doc="The sentence, and the age in seconds when it was sent.")

    _esm = """
    const UNITS = [[3600, "h"], [60, "min"], [1, "s"]];

    export function render({ model, el }) {
      const line = el.appendChild(document.createElement("div"));
      let born;
      const write = () => {
        const age = (Date.now() - born) / 1000;
        const unit = UNITS.find(([size]) => age >= size);
        const text = model.told.text.replace("{}", unit ? `${Math.floor(age / unit[0])} ${unit[1]} ago` : "just now");
        if (line.textContent !== text) line.textContent = text;
      };
      const take = () => { born = Date.now() - 1000 * model.told.age; write(); };
      model.on("told", take);
      take();
      const timer = setInterval(write, 1000);
      model.on("remove", () => clearInterval(timer));
    }
    """

    _stylesheets = [
        ":host { font-size: 13px; line-height: 1.4; color: var(--panel-on-background-color); opacity: 0.75; }"
    ]


def chart(figure) -> pn.pane.Bokeh:
    """A figure that takes the height that is left."""
    return pn.pane.Bokeh(figure, sizing_mode="stretch_both", min_height=180, margin=0)


def key(colors: dict[str, str], note: str = "") -> str:
    """A chart's title that is its legend as well."""
    names = [f"<span style='color: {color}'>●</span>&nbsp;{escape(name)}" for name, color in colors.items()]
    return " &nbsp; ".join([*names, f"<span style='font-weight: 400; opacity: 0.7'>{escape(note)}</span>"])


def table(value, **params) -> pn.widgets.Tabulator:
    """A live DataFrame, to be read."""
    look = {"stylesheets": [TABLE], "layout": "fit_columns", "sizing_mode": "stretch_width"}
    use = {"disabled": True, "show_index": False, "sortable": False}
    widget = pn.widgets.Tabulator(**look | use | params)
    # What reaches a Tabulator while it is still loading is an error in the browser's console.
    pn.state.onload(lambda: widget.param.update(value=value))
    return widget


def follow(task: ps.Task, draw: Callable[[Any], object]) -> None:
    """Call `draw` with the value that is there, and with each one that comes."""
    view = task.view()
    view.param.watch(lambda event: draw(event.new), "value")
    if view.version:
        draw(view.value)
