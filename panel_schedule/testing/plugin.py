"""The fixture ``schedule`` of pytest: ``pytest_plugins = ["panel_schedule.testing.plugin"]`` in ``conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .schedule import Schedule


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    """All tasks, jobs and memoized functions on virtual time, as if nothing had ever run; nothing stays."""
    with Schedule() as schedule:
        yield schedule
