"""What the pages have in common: the frame around them, cards and tiles."""

from html import escape

import panel as pn
import panel_material_ui as pmui

import panel_schedule as ps

PAGES = {"machine": "Machine", "stocks": "Stocks", "quakes": "Quakes"}
BLUE, VIOLET, TEAL, AMBER, ROSE = COLORS = ["#3b82f6", "#a855f7", "#14b8a6", "#f59e0b", "#f43f5e"]

SHAPE = {"shape": {"borderRadius": 10}}
THEME = {
    "light": {"palette": {"primary": {"main": "#1d4ed8"}, "background": {"default": "#f3f5f9"}}, **SHAPE},
    "dark": {"palette": {"primary": {"main": "#1e3a8a"}}, **SHAPE},
}

STYLE = """
.tile { line-height: 1.35; font-variant-numeric: tabular-nums; white-space: nowrap; }
.label, .note { font-size: 13px; opacity: 0.7; overflow: hidden; text-overflow: ellipsis; }
.value { font-size: 27px; font-weight: 600; letter-spacing: -0.01em; }
.value small { font-size: 15px; font-weight: 500; opacity: 0.7; }
"""


def page(name: str, title: str, lead: str, *main) -> pmui.Page:
    """The frame: a header with links to all examples, a title with one sentence under it, the content."""
    links = [
        pmui.Button(name=label, href=path, target="_self", color="light", variant="outlined" if path == name else "text")
        for path, label in PAGES.items()
    ]
    intro = [
        pmui.Typography(title, variant="h5", margin=(8, 10, 0, 10)),
        pmui.Typography(lead, variant="body2", margin=(0, 10, 8, 10), sx={"opacity": 0.75}),
    ]
    return pmui.Page(
        title="panel-schedule",
        header=[pmui.Row(*links)],
        main=[pmui.Column(*intro, *main, sizing_mode="stretch_width", margin=(4, 14), max_width=1700, align="center")],
        theme_config=THEME,
    )


def row(*cards, **params) -> pmui.Row:
    return pmui.Row(*cards, **{"sizing_mode": "stretch_width", **params})


def card(*content, title: str = "", task: ps.Task | None = None, **params) -> pmui.Paper:
    """A card, with how fresh a task's value is beside its title."""
    heading = []
    if title:
        heading = [row(pn.pane.HTML(title, styles={"font-size": "14px", "font-weight": "600"}, margin=(8, 4, 4, 14)))]
    if task:
        heading[0].append(pn.Column(ps.Freshness(task), margin=(5, 0, 0, 0)))
    params = {"sizing_mode": "stretch_width", "margin": 6, "sx": {"overflow": "hidden"}} | params
    return pmui.Paper(*heading, *content, **params)


def tile(label: str, value: str, unit: str = "", note: str = "") -> str:
    """A number to read from afar."""
    return (
        f"<div class='tile'><div class='label'>{escape(label)}</div>"
        f"<div class='value'>{escape(value)} <small>{escape(unit)}</small></div>"
        f"<div class='note'>{escape(note) or '&nbsp;'}</div></div>"
    )


def tiles(*contents) -> pmui.Row:
    """A row of tiles: live references to what `tile` returns."""
    return row(*(card(pn.pane.HTML(html, stylesheets=[STYLE], sizing_mode="stretch_width", margin=(6, 14, 8, 14))) for html in contents))


def key(**colors: str) -> str:
    """A chart's title that is its legend, too."""
    return " &nbsp; ".join(f"<span style='color: {color}'>●</span> {escape(name)}" for name, color in colors.items())
