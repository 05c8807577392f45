"""What a param that tells something looks like where it is laid out as it is: text, or a bar, and no input."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn
import param
from panel.custom import JSComponent


class Percent(param.Integer):  # type: ignore[type-arg]
    """How far something has come: 0 to 100, -1 while unknown. Laid out as it is, it is a bar."""

    def __init__(self, **params: Any):
        super().__init__(default=-1, bounds=(-1, 100), **params)


class Text(param.String):  # type: ignore[type-arg]
    """What is said to people. Laid out as it is, it is plain text."""

    def __init__(self, **params: Any):
        super().__init__(default="", **params)


class Told(JSComponent):
    """What the browser draws, and counts the seconds of, so that a page on which nothing happens costs nothing."""

    label = param.String(default="", doc="What it is about.")

    # In one piece, so that the browser never sees the state of one moment with the percent of another.
    told = param.Dict(default={}, doc="What there is to say.")


class Bar(pn.indicators.Progress):
    """Empty while nothing is known, where Panel's would say that something is under way."""

    def _process_param_change(self, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("value") == -1:
            params = params | {"value": 0}
        properties: dict[str, Any] = super()._process_param_change(params)
        return properties


class PlainText(pn.widgets.StaticText):
    """The text alone, with nothing in it taken for HTML."""

    def __init__(self, **params: Any):
        super().__init__(**params | {"label": ""})

    def _process_param_change(self, params: dict[str, Any]) -> dict[str, Any]:
        if isinstance(params.get("value"), str):
            params = params | {"value": escape(params["value"])}
        properties: dict[str, Any] = super()._process_param_change(params)
        return properties


pn.Param.mapping[Percent] = Bar
pn.Param.mapping[Text] = PlainText
