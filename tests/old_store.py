"""
What made ``tests/data/schema3.zip``, and reads it: ``old_store.py make FOLDER``, ``old_store.py read FOLDER RUN_ID``.

The archive is of the last version before the modules moved, and never made anew: it is what users have on their disks.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

import panel_schedule as ps

computed: list[int] = []


@ps.schedule(period="1d", first_run="skip")
def sales() -> pd.DataFrame:
    return pd.DataFrame({"region": ["north", "south"], "sold": [1, 3]})


@ps.schedule(period="1d", first_run="skip")
def large() -> Any:
    return np.arange(100_000.0)


@ps.schedule(cron="0 5 * * *", timezone="UTC", first_run="skip")
def paused() -> int:
    return 1


@ps.schedule(period="1d", first_run="skip")
def failing() -> int:
    if "FAIL" in os.environ:
        raise ConnectionError("the database is down")
    return 7


@ps.memoize(ttl="3650d")
def answer(number: int) -> int:
    computed.append(number)
    return 2 * number


@ps.background(executor="thread", durable=True, result_ttl="3650d")
def total(task: Any, factor: int) -> int:
    if "FAIL" in os.environ:  # left behind
        threading.Event().wait()
    return factor * int(task()["sold"].sum())


def make() -> None:
    os.environ["FAIL"] = "yes"
    ps.store["note"] = {"text": "kept", "numbers": [1, 2]}
    for task in (sales, large):
        task.refresh().result()
    paused.refresh().result()
    paused.pause()
    del os.environ["FAIL"]
    failing.refresh().result()
    os.environ["FAIL"] = "yes"
    with suppress(ConnectionError):
        failing.refresh().result()
    answer(21)
    run = total.submit(sales, 10)
    while run.state != "running":
        time.sleep(0.01)
    print(run.id, flush=True)


def read(id: str) -> None:
    ps._runtime.service.start()
    found = {
        "note": ps.store["note"],
        "sales": sales()["sold"].tolist(),
        "large": float(large().sum()),
        "paused": [paused.status.state, paused()],
        "failing": [failing(), [record.state for record in failing.history]],
        "answer": answer(21),
        "tasks": [task.entry is not None and task.entry.version for task in ps.tasks.values()],
        "computed": computed,
        "total": total.runs() and ps._runtime.dispatcher.find(id).result(20),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.modules["old_store"] = sys.modules["__main__"]
    ps.config.store = f"file://{sys.argv[2]}"
    make() if sys.argv[1] == "make" else read(sys.argv[3])
    os._exit(0)
