"""Panel's own ``pn.state.schedule_task``."""

import time
from datetime import datetime, timedelta

import panel as pn


def start(loop):
    pass


def every_second(name, function, offset):
    at = datetime.fromtimestamp(int(time.time()) + 2 + offset)
    pn.state.schedule_task(name, function, at=at, period="1s")


def daily(name, function):
    pn.state.schedule_task(name, function, at=datetime.now() + timedelta(days=1), period="1d")
