"""panel-schedule."""

from datetime import UTC, datetime, timedelta

import panel_schedule as ps
from panel_schedule.triggers import Every

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def start(loop):
    ps._runtime.start(loop)


def every_second(name, function, offset):
    ps.schedule(Every("1s", anchor=EPOCH + timedelta(seconds=offset)), name=name, first_run="skip")(function)


def daily(name, function):
    ps.schedule(period="1d", name=name, first_run="skip")(function)
