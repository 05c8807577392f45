"""The machine that serves the page, sampled once a second."""

from datetime import UTC, datetime
from typing import NamedTuple

import psutil

import panel_schedule as ps

WINDOW = 600  # seconds


class Sample(NamedTuple):
    time: datetime
    cpu: float  # percent of all cores
    memory: float  # percent
    received: int  # bytes since the machine was started
    sent: int
    download: float  # bytes per second
    upload: float


@ps.schedule(period="1s", default=())
def machine() -> tuple[Sample, ...]:
    """The last ten minutes, oldest first."""
    cpu = psutil.cpu_percent(interval=0.5)  # blocks the thread that it has to itself, and nobody else
    memory = psutil.virtual_memory().percent
    network = psutil.net_io_counters()
    now = datetime.now(UTC)
    window = machine()  # its own last value
    download = upload = 0.0
    if window:
        before = window[-1]
        seconds = (now - before.time).total_seconds()
        download = (network.bytes_recv - before.received) / seconds
        upload = (network.bytes_sent - before.sent) / seconds
    return (*window, Sample(now, cpu, memory, network.bytes_recv, network.bytes_sent, download, upload))[-WINDOW:]
