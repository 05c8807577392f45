"""``panel serve --num-procs N``: as simple as one process (invariants 12, 15, 16)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from servers import PanelServer, Serve, eventually
from store_address import StoreAddress
from windows import NewPage

pytestmark = pytest.mark.stores("asked")

TASKS = """
    import os, pathlib, time
    import panel_schedule as ps

    ps.store.setdefault("rates", {"EUR": 1.0})

    @ps.schedule(period="1h")
    def runs(count=[0]):
        count[0] += 1
        print(f"ran in {os.getpid()}", flush=True)
        return {"pid": os.getpid(), "count": count[0]}

    @ps.schedule(after=runs)
    def follower():
        print("followed", flush=True)
        return runs()["count"] * 10

    @ps.schedule(period="1h", first_run="skip", default="none yet")
    def job():
        for done in range(1, 4):
            ps.progress(done, 20, f"step {done}")
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        return "done"
"""

# What stands on the page tells the process that made it, so that a test can ask until it has met them all.
APP = """
    import os
    import panel as pn
    import panel_schedule as ps
    from tasks import follower, job, runs

    view, work = runs.view(), job.view()
    text = lambda *values: f"<p id='state'>{' | '.join(map(str, values))}</p>"
    pn.Column(
        pn.pane.HTML(f"<p id='process'>{os.getpid()}</p>"),
        pn.pane.HTML(pn.bind(
            text, view.param.value, view.param.version, view.param.state, follower, ps.store.rx("rates")
        )),
        pn.pane.HTML(pn.bind(
            lambda *shown: f"<p id='job'>{shown}</p>",
            work.param.state, work.param.percent, work.param.message, job
        )),
        pn.widgets.Button(name="Refresh", on_click=runs.refresh),
        pn.widgets.Button(name="Pause", on_click=lambda event: runs.pause()),
        pn.widgets.Button(name="Resume", on_click=lambda event: runs.resume()),
        pn.widgets.Button(name="Store", on_click=lambda event: ps.store.update(rates={"EUR": 2.0})),
        pn.widgets.Button(name="Work", on_click=job.refresh),
    ).servable()
"""


# Bokeh with several processes asks a CDN for what the other process has told the page of.
CDN = ["cdn.", "ERR_"]


def in_each_process(server: PanelServer, new_page: NewPage, number: int) -> list[Any]:
    """A window that each of the processes serves."""
    pages: dict[str, Any] = {}
    for _ in range(40):
        page = new_page(f"{server.url}/app", allow=CDN)
        process = page.locator("#process").text_content(timeout=20_000)
        if process in pages:
            page.context.close()
        else:
            pages[process] = page
        if len(pages) == number:
            return list(pages.values())
    pytest.fail(f"only {len(pages)} of {number} processes answered")


def shows(page: Any, what: str, pattern: str) -> Callable[[], bool]:
    return lambda: re.search(pattern, page.locator(f"#{what}").text_content() or "") is not None


def test_every_page_shows_the_same_whichever_process_serves_it(
    serve: Serve, new_page: NewPage, address: StoreAddress
) -> None:
    """One run each, and what one page does all pages see: values, states, progress, pause, stored names."""
    files, env = {"app.py": APP, "tasks.py": TASKS}, {} if address.is_directory else address.env()
    server = serve("app.py --setup tasks.py --num-procs 2", files, env=env)
    one, other = in_each_process(server, new_page, 2)
    for page in (one, other):
        eventually(shows(page, "state", r"'count': 1} \| 1 \| idle \| 10 \| {'EUR': 1.0}"))
    assert (1, 1) == (server.output().count("ran in"), server.output().count("followed"))

    one.get_by_role("button", name="Refresh").click()
    for page in (one, other):
        eventually(shows(page, "state", r"\| 2 \| idle \|"))
    eventually(lambda: server.output().count("followed") == 2)

    other.get_by_role("button", name="Pause").click()
    eventually(shows(one, "state", r"\| paused \|"))
    one.get_by_role("button", name="Resume").click()
    eventually(shows(other, "state", r"\| idle \|"))

    one.get_by_role("button", name="Store").click()
    eventually(shows(other, "state", r"{'EUR': 2.0}"))

    one.get_by_role("button", name="Work").click()
    for page in (one, other):
        eventually(shows(page, "job", r"'running', 15, 'step 3', 'none yet'"))
    (server.folder / "go").touch()
    for page in (one, other):
        eventually(shows(page, "job", r"'idle', .*'done'"))
    assert 2 == server.output().count("ran in")
    assert "Traceback" not in server.output()


@pytest.mark.parametrize("processes", [0, 4])
def test_each_slot_runs_once_and_nothing_is_left(
    serve: Serve, processes: int, tmp_path: Path, address: StoreAddress
) -> None:
    """Also with as many processes as cores, where the setup script runs before the fork."""
    tasks = """
        import panel_schedule as ps

        ps.store.setdefault("seen", 1)

        @ps.schedule(period="100ms")
        def ticks():
            slot = ps.current_run().key
            print("slot", slot.isoformat(), flush=True)
            return slot
    """
    app = "import panel as pn\nfrom tasks import ticks\npn.pane.Str(ticks).servable()"
    command = f"app.py --setup tasks.py --num-procs {processes}"
    (tmp_path / "tmp").mkdir()
    env = {"TMPDIR": str(tmp_path / "tmp"), **({} if address.is_directory else address.env())}
    server = serve(command, {"app.py": app, "tasks.py": tasks}, env=env)
    eventually(lambda: server.output().count("slot ") >= 10, timeout=30)
    assert 200 == httpx.get(f"{server.url}/app", timeout=30).status_code
    server.stop()
    eventually(lambda: not server.descendants())

    slots = re.findall(r"slot (\S+)", server.output())
    assert len(slots) == len(set(slots))
    assert "Traceback" not in server.output()
    assert [] == list((tmp_path / "tmp").glob("panel-schedule-*/*"))


def test_memory_in_several_processes_says_what_that_means(serve: Serve) -> None:
    """It was asked for: each process has values of its own."""
    files, env = {"app.py": APP, "tasks.py": TASKS}, {"PANEL_SCHEDULE_STORE": "memory://"}
    server = serve("app.py --setup tasks.py --num-procs 2", files, env=env, wait=False)
    server.wait_for("each process runs every task itself")


def test_a_restart_serves_the_last_good_value_at_once(serve: Serve, new_page: NewPage, address: StoreAddress) -> None:
    """From the first request, though its first run would take long; what is fresh is not run again."""
    tasks = """
        import time
        import panel_schedule as ps

        @ps.schedule(period="1d")
        def daily():
            print("daily runs", flush=True)
            return "from yesterday"

        @ps.schedule(period="1s")
        def slow():
            print("slow runs", flush=True)
            if (before := slow()) is not None:
                time.sleep(60)
            return "slow, but there"
    """
    app = "import panel as pn\nfrom tasks import daily, slow\npn.Row(pn.pane.Str(daily), pn.pane.Str(slow)).servable()"
    env = {**address.env(), "PANEL_SCHEDULE_GRACE_PERIOD": "0.2"}
    first = serve("app.py --setup tasks.py", {"app.py": app, "tasks.py": tasks}, env=env)
    eventually(lambda: first.output().count("slow runs") >= 2)
    first.stop()
    second = serve("app.py --setup tasks.py", env=env)
    started = time.monotonic()
    page = new_page(f"{second.url}/app")

    page.get_by_text("from yesterday").wait_for()
    page.get_by_text("slow, but there").wait_for()
    assert time.monotonic() - started < 30
    assert 1 == first.output().count("daily runs") + second.output().count("daily runs")


def test_workers_of_another_server_are_told_to_share_a_store(tmp_path: Path) -> None:
    """Each of them looks like a server of one process; what can be recognised is named (invariant 15)."""
    script = """
        import asyncio, logging
        logging.basicConfig()
        from panel_schedule import _runtime, schedule
        from panel_schedule.server.panel import Gate

        @schedule(period="1h", first_run="skip")
        def task():
            pass

        async def main():
            Gate(_runtime)._start()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        asyncio.run(main())
    """
    for store, expected in (("auto", True), (f"file://{tmp_path}/store", False)):
        env = {**os.environ, "SERVER_SOFTWARE": "gunicorn/23.0", "PANEL_SCHEDULE_STORE": store}
        run = subprocess.run(
            [sys.executable, "-c", dedent(script)], env=env, capture_output=True, text=True, timeout=60
        )
        assert (0, expected) == (run.returncode, "one of several workers of gunicorn" in run.stderr), run.stderr
