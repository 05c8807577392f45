"""How a value is shown that nobody has said how to show."""

from __future__ import annotations

import json
from html import escape
from typing import Any, ClassVar

import panel as pn

from .table import table


class Text(pn.pane.Str):
    """Text as it is. Panel's own pane lets HTML through, and with it scripts."""

    # No choice of `pn.panel`.
    priority: ClassVar[bool] = False

    def _transform_object(self, obj: Any) -> Any:
        return super()._transform_object("" if obj is None else escape(str(obj)))


def display(value: Any) -> Any:
    """
    A value on a page: as ``pn.panel`` shows it, but text as it is, and the beginning of a table.

    Text may be a stranger's, be it through the arguments or the data of a function: as Markdown, or wherever else HTML
    gets through, it would run in the reader's browser.
    """
    if isinstance(value, str):
        return Text(str(value))
    if (shown := table(value)) is not None:
        return shown
    pane = pn.panel(value)
    if type(pane) is pn.pane.Str or (isinstance(pane, pn.pane.JSON) and not _is_json(value)):
        return Text(value)
    return pane


def _is_json(value: Any) -> bool:
    """Whether a browser can read it; of what it cannot Panel shows a part as HTML."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
