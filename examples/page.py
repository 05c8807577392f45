"""What the pages have in common: the frame around them, cards and tiles."""

from html import escape

import panel as pn
import panel_material_ui as pmui

PAGES = {"machine": "Machine", "stocks": "Stocks", "quakes": "Quakes"}

THEME = {
    "palette": {"primary": {"main": "#2563eb"}},
    "shape": {"borderRadius": 10},
}

TILE = """
.tile { line-height: 1.3; font-variant-numeric: tabular-nums; white-space: nowrap; }
.label { font-size: 13px; opacity: 0.65; }
.value { font-size: 28px; font-weight: 600; letter-spacing: -0.01em; }
.value small { font-size: 15px; font-weight: 500; opacity: 0.65; }
.note { font-size: 13px; opacity: 0.65; overflow: hidden; text-overflow: ellipsis; }
"""


def page(name: str, title: str, lead: str, *main) -> pmui.Page:
    links = [
        pmui.Button(name=label, href=path, target="_self", color="light", variant="outlined" if path == name else "text")
        for path, label in PAGES.items()
    ]
    intro = pmui.Column(
        pmui.Typography(title, variant="h5", margin=(0, 10)),
        pmui.Typography(lead, variant="body2", margin=(0, 10), sx={"opacity": 0.7}),
        sizing_mode="stretch_width",
    )
    return pmui.Page(
        title="panel-schedule",
        header=[pmui.Row(*links)],
        main=[pmui.Column(intro, *main, sizing_mode="stretch_width", margin=(10, 14), max_width=1600)],
        theme_config=THEME,
        busy_indicator=None,
    )


def row(*cards) -> pn.viewable.Viewable:
    return pmui.Row(*cards, sizing_mode="stretch_width")


def card(*content, title: str = "", **params) -> pmui.Paper:
    heading = [pmui.Typography(title, variant="subtitle2", margin=(4, 10, 0, 10))] if title else []
    return pmui.Paper(*heading, *content, variant="outlined", margin=6, **({"sizing_mode": "stretch_width"} | params))


def tile(label: str, value: str, unit: str = "", note: str = "") -> str:
    return (
        f"<div class='tile'><div class='label'>{escape(label)}</div>"
        f"<div class='value'>{escape(value)} <small>{escape(unit)}</small></div>"
        f"<div class='note'>{escape(note)}</div></div>"
    )


def tiles(*contents) -> pn.viewable.Viewable:
    """A row of tiles; each is the HTML of `tile`, or a live reference to it."""
    return row(*(card(pn.pane.HTML(html, stylesheets=[TILE], sizing_mode="stretch_width", margin=(6, 12))) for html in contents))
