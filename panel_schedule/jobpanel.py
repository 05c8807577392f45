"""Panel components that show a job."""

from __future__ import annotations

from typing import Any

import panel as pn
from panel.viewable import Viewer

from .jobview import Job


class Progress(Viewer):
    """The bar."""

    def __init__(self, job: Job, **params: Any):
        super().__init__(**params)
        self._bar = pn.indicators.Progress(value=job.param.percent)

    def __panel__(self) -> Any:
        return self._bar


class JobPanel(Viewer):
    """The panel."""

    def __init__(self, job: Job, **params: Any):
        super().__init__(**params)
        self._column = pn.Column(job.run_button, job.cancel_button, job.progress, job.param.error, job.pipe(lambda v: v))

    def __panel__(self) -> Any:
        return self._column
