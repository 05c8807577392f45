"""What a param that tells something looks like where it is laid out as it is: text, or a bar, and no input."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn
import param


class Percent(param.Integer):  # type: ignore[type-arg]
    """How far something has come: 0 to 100, -1 while unknown. Laid out as it is, it is a bar."""

    def __init__(self, **params: Any):
        super().__init__(default=-1, bounds=(-1, 100), **params)


class Text(param.String):  # type: ignore[type-arg]
    """What is said to people. Laid out as it is, it is plain text."""

    def __init__(self, **params: Any):
        super().__init__(default="", **params)


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
