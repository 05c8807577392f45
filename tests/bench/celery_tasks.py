"""What `celeries` measures, as its worker and its peers have it: our job, and the same as a task of Celery itself."""

from __future__ import annotations

import os

from celery import Celery

import panel_schedule as ps

PLACE = os.environ["BENCH_CELERY"]

app = Celery("bench", broker=f"{PLACE}/1", backend=f"{PLACE}/2")
ps.config.celery = app
ps.config.store = f"{PLACE}/0"


@ps.background(executor="celery")
def trivial(number: int) -> int:
    return number


@app.task
def bare(number: int) -> int:
    return number
