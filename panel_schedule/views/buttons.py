"""Buttons that keep the keyboard's focus."""

from __future__ import annotations

from typing import Any, ClassVar

import panel as pn
import param


class SteadyButton(pn.widgets.Button):
    """
    A button that can be of no use for a while. It looks so, and assistive technology says so.

    It is not ``disabled``: Bokeh then builds the button anew, and who works by keyboard loses the place on the page.
    A press still comes through; what it calls must bear that.
    """

    useless = param.Boolean(default=False, doc="Whether a press has no effect now.")

    _rename: ClassVar[dict[str, str | None]] = {"useless": "html_attributes"}

    _stylesheets = [
        *pn.widgets.Button._stylesheets,
        """
        :host .bk-btn { transition: opacity 0.15s; }
        :host .bk-btn:focus-visible { outline: 2px solid var(--panel-on-background-color, #212529);
                                       outline-offset: 2px; }
        :host([aria-disabled="true"]) .bk-btn { opacity: 0.5; cursor: not-allowed; box-shadow: none; }
        """,
    ]

    def _process_param_change(self, params: dict[str, Any]) -> dict[str, Any]:
        properties: dict[str, Any] = super()._process_param_change(params)
        if "html_attributes" in properties:
            properties["html_attributes"] = {"aria-disabled": "true"} if self.useless else {}
        return properties
