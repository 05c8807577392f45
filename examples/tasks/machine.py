"""The machine that serves the page, sampled once a second."""

from datetime import UTC, datetime
from typing import Any

import psutil

import panel_schedule as ps

WINDOW = 600  # seconds


@ps.schedule(period="1s")
def machine() -> dict[str, list[Any]]:
    """
    The last ten minutes, oldest first.

    By name: the time, percent of all cores and of the memory, bytes since the machine was started, and bytes a second
    that came in and, below zero, that went out.
    """
    cpu = psutil.cpu_percent(interval=0.5)  # blocks the thread that it has to itself, and nobody else
    memory = psutil.virtual_memory().percent
    network = psutil.net_io_counters()
    now = datetime.now(UTC)
    window = ps.current_run().previous or {}
    came = went = 0.0
    if window:
        seconds = (now - window["time"][-1]).total_seconds()
        came = (network.bytes_recv - window["received"][-1]) / seconds
        went = (network.bytes_sent - window["sent"][-1]) / seconds
    sample = {
        "time": now,
        "cpu": cpu,
        "memory": memory,
        "received": network.bytes_recv,
        "sent": network.bytes_sent,
        "in": came,
        "out": -went,
    }
    return {name: [*window.get(name, ()), each][-WINDOW:] for name, each in sample.items()}
