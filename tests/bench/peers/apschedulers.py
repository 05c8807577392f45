"""APScheduler's AsyncIOScheduler."""

import time
from datetime import UTC, datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler

scheduler = AsyncIOScheduler(timezone=UTC)


def start(loop):
    scheduler.configure(event_loop=loop, timezone=UTC)
    scheduler.start()


def every_second(name, function, offset):
    first = datetime.fromtimestamp(int(time.time()) + 2 + offset, UTC)
    scheduler.add_job(function, "interval", seconds=1, start_date=first, id=name)


def daily(name, function):
    scheduler.add_job(function, "interval", days=1, id=name)
