"""What the page shows, whatever it is deployed on: a task every two seconds, a shared answer, and a job."""

import os
import time
from random import Random

import panel_schedule as ps

# Jobs run in worker processes of the web server, and where there is a broker in Celery's workers.
JOBS = "process"
if broker := os.environ.get("CELERY_BROKER_URL"):
    from celery import Celery

    celery_app = ps.config.celery = Celery("dashboard", broker=broker)
    JOBS = "celery"

REGIONS = ["north", "south"]


@ps.schedule(period="2s")
def orders() -> dict[str, int]:
    """Orders of the last two seconds in each region; in earnest a query."""
    return {region: Random().randrange(50, 100) for region in REGIONS}


@ps.memoize(ttl="10m")
def forecast(region: str) -> int:
    """Orders that are expected tomorrow: slow, and the same for everybody."""
    time.sleep(1)
    return sum(Random(region).choices(range(50, 100), k=100))


@ps.background(executor=JOBS, durable=True, retry=2, timeout="10m", on_session_end="continue")
def report(region: str) -> str:
    """What takes its time, and is not lost when a server stops."""
    for _ in ps.track(range(20), message="page {}"):
        time.sleep(0.1)
    return f"20 pages on the orders of the {region}"
