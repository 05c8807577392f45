"""
What ``examples/deploy/containers/compose.yaml`` says, on this machine: its commands, environment and health checks.

Three replicas of it behind a proxy, and two workers, while visitors look on and ask for reports; in the middle the
replicas are replaced one by one. ``TOPOLOGY_SECONDS=60`` lets the traffic go on for so long.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPError

from compose import Service, services
from redis_server import RedisServer
from servers import PanelServer, eventually
from sticky_proxy import StickyProxy
from visitors import Visitor

pytest.importorskip("celery", reason="needs the package celery")

EXAMPLE = Path(__file__).parent.parent / "examples" / "deploy"
COMPOSE = EXAMPLE / "containers" / "compose.yaml"

REPLICAS, WORKERS, VISITORS = ("web-1", "web-2", "web-3"), ("worker-1", "worker-2"), 6
SECONDS = float(os.environ.get("TOPOLOGY_SECONDS", "20"))
SECRETS = {"REDIS_PASSWORD": "of-redis", "PANEL_SCHEDULE_SECRET": "of-the-values"}

# Each run is told of by the process where it was.
LOG = '\nps.on("succeeded", lambda task, run: print(f"succeeded {task.name} {run.id} {run.key}", flush=True))\n'

# What the store has of all runs, for a script that has the same one.
ASK = """
import json, tasks
print(json.dumps({
    "version": tasks.orders.entry.version,
    "orders": [(each.id, str(each.key), each.state, each.reason) for each in tasks.orders.history],
    "reports": [(each.id, each.state, each.attempt) for each in tasks.report.history],
}))
"""


class Topology:
    """The services of the compose file, as processes."""

    def __init__(self, folder: Path):
        for name in ("app.py", "tasks.py"):
            shutil.copy(EXAMPLE / name, folder)
        with (folder / "tasks.py").open("a") as tasks:
            tasks.write(LOG)
        self.folder = folder
        self.replicas: dict[str, PanelServer] = {}
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.started: list[PanelServer] = []
        self._services = services(COMPOSE, SECRETS)
        (folder / "redis").mkdir()
        self.redis = RedisServer(folder / "redis", *self._services["redis"].command[1:])

    def environment(self, service: Service, **more: str) -> dict[str, str]:
        here = f"@127.0.0.1:{self.redis.port}/"
        found = {name: value.replace("@redis:6379/", here) for name, value in service.environment.items()}
        # All history is asked for; and the grace period is shorter than a report, so that some are handed over.
        return {**found, "PANEL_SCHEDULE_HISTORY_LIMIT": "100000", "PANEL_SCHEDULE_GRACE_PERIOD": "1", **more}

    def start(self, name: str, origin: str) -> None:
        """Start a replica; a third one is as the second."""
        service = self._services.get(name, self._services["web-2"])
        program, verb, *command = service.command
        assert (program, verb) == ("panel", "serve")
        env = self.environment(service, BOKEH_ALLOW_WS_ORIGIN=origin)
        self.replicas[name] = PanelServer(" ".join(command), self.folder, env=env)
        self.started.append(self.replicas[name])

    def start_worker(self, name: str) -> None:
        service = self._services["worker"]
        with (self.folder / f"{name}.log").open("wb") as output:
            self.workers[name] = subprocess.Popen(
                [sys.executable, "-m", *service.command, "--hostname", f"{name}@%h"],
                cwd=self.folder,
                env={**os.environ, **self.environment(service)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_healthy(self, name: str) -> None:
        """As ``docker compose up --wait`` does."""
        server = self.replicas[name]
        server.wait_started()
        python, *command = self._services["web-1"].healthcheck
        assert python == "python"
        check = [word.replace(":5006/", f":{server.port}/") for word in command]
        eventually(lambda: subprocess.run([sys.executable, *check], capture_output=True).returncode == 0, 30)

    def replace(self, name: str, origin: str) -> None:
        """As ``docker compose up --no-deps --wait`` does with a service whose image is another one."""
        assert 0 == self.replicas[name].stop(self._services["web-1"].stop)
        self.start(name, origin)
        self.wait_healthy(name)

    def log(self) -> str:
        workers = [(self.folder / f"{name}.log").read_text(errors="replace") for name in self.workers]
        return "\n".join([*(server.output() for server in self.started), *workers])

    def succeeded(self, name: str) -> list[str]:
        """The ids of the runs that have succeeded, as the log says."""
        return re.findall(rf"^succeeded {name} (\S+)", self.log(), re.MULTILINE)

    def ask(self) -> dict[str, Any]:
        env = {**os.environ, **self.environment(self._services["web-1"])}
        script = subprocess.run([sys.executable, "-c", ASK], cwd=self.folder, env=env, capture_output=True, text=True)
        assert script.returncode == 0, script.stderr
        return json.loads(script.stdout)

    def close(self) -> None:
        with ExitStack() as closing:
            closing.callback(self.redis.stop)
            for server in self.started:
                server.process.terminate()
                closing.callback(server.close)
            for worker in self.workers.values():
                worker.terminate()
                closing.callback(_see_end, worker)


def _see_end(worker: subprocess.Popen[bytes]) -> None:
    try:
        worker.wait(30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


class Reader:
    """A visitor who looks on, asks for a report now and then, and opens the page again when its connection is lost."""

    def __init__(self, url: str):
        self.url = url
        # Of each session the numbers of the values that it was shown, as they came.
        self.sessions: list[list[int]] = []
        self.accepted: list[str] = []
        self.refused: list[str] = []
        self.asking = True
        self.until = sys.maxsize
        self.newest = 0

    async def stay(self) -> None:
        while self.newest < self.until:
            try:
                page = await Visitor.open(self.url)
            except (HTTPError, OSError) as error:
                self.refused.append(repr(error))
                await asyncio.sleep(0.1)
                continue
            with suppress(ConnectionError):
                await self._look(page)
            await page.close()

    async def _look(self, page: Visitor) -> None:
        seen: list[int] = []
        self.sessions.append(seen)
        content = await page.document()
        button = _button(json.loads(content), "Report")
        while self.newest < self.until:
            for found in map(int, re.findall(r"value (\d+)", content)):
                if [found] == seen[-1:]:
                    continue  # what came while the page was loading is in it, and sent to it
                self.newest = found
                seen.append(found)
                if self.asking and found % 3 == 0:
                    await page.click(button)
            self.accepted += re.findall(r"accepted ([\w-]+)", content)
            _, content = await page.read()


def _button(document: Any, label: str) -> str:
    """The id of the button with this label."""
    nested = [document]
    while nested:
        each = nested.pop()
        if isinstance(each, dict):
            if each.get("attributes", {}).get("label") == label:
                return each["id"]
            nested += each.values()
        elif isinstance(each, list):
            nested += each
    raise AssertionError(f"no button {label!r} in the page")


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Topology]:
    topology = Topology(tmp_path)
    try:
        yield topology
    finally:
        print(topology.log())
        topology.close()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120 + 2 * SECONDS)
async def test_a_rolling_restart_loses_nothing(topology: Topology) -> None:
    """Each slot is published once, each report that was accepted ends once, and each session sees each value."""
    async with StickyProxy({}) as proxy:
        origin = f"127.0.0.1:{proxy.port}"
        for name in WORKERS:
            topology.start_worker(name)
        for name in REPLICAS:
            topology.start(name, origin)
        for name in REPLICAS:
            await asyncio.to_thread(topology.wait_healthy, name)
        proxy.replicas = {name: topology.replicas[name].port for name in REPLICAS}

        began = time.monotonic()
        readers = [Reader(f"http://{origin}/app") for _ in range(VISITORS)]
        looking = asyncio.gather(*(reader.stay() for reader in readers))
        await _until(lambda: time.monotonic() - began > SECONDS / 4)
        for name in REPLICAS:
            await asyncio.to_thread(topology.replace, name, origin)
            proxy.replicas = {**proxy.replicas, name: topology.replicas[name].port}
        await _until(lambda: time.monotonic() - began > SECONDS)
        for reader in readers:
            reader.asking = False
        accepted = [run for reader in readers for run in reader.accepted]
        with suppress(AssertionError):  # which are missing, and what became of them, is told below
            await _until(lambda: set(accepted) <= set(topology.succeeded("report")))
        for reader in readers:
            reader.until = max(each.newest for each in readers) + 2
        await asyncio.wait_for(looking, 20)

    known = await asyncio.to_thread(topology.ask)
    orders = [(run, key) for run, key, state, _ in known["orders"] if state == "succeeded"]
    reports = {run: (state, attempt) for run, state, attempt in known["reports"]}
    sessions = [seen for reader in readers for seen in reader.sessions]
    print(
        f"{time.monotonic() - began:.0f} s, {len(orders)} values, {len(sessions)} sessions of {VISITORS} visitors with "
        f"{sum(map(len, sessions))} values shown, {len(accepted)} reports accepted, {len(known['reports'])} ended, "
        f"attempts {Counter(attempt for _, attempt in reports.values())}; "
        f"other ends of orders: {[each for each in known['orders'] if each[2] != 'succeeded']}; "
        f"refused: {[each for reader in readers for each in reader.refused]}"
    )
    # No slot twice, in the store or in the logs, and no version that no slot has made.
    assert len(orders) == len({key for _, key in orders}) == known["version"]
    told = topology.succeeded("orders")
    assert len(told) == len(set(told))
    assert {run for run, _ in orders} <= set(told)
    # No report lost, and none that ended twice.
    assert len(accepted) >= SECONDS / 6 * VISITORS / 2
    assert len(known["reports"]) == len(reports)
    assert dict.fromkeys(accepted, ("succeeded",)) == {run: reports.get(run, ())[:1] for run in accepted}
    assert [] == [run for run, times in Counter(topology.succeeded("report")).items() if times > 1]
    # Whoever has his page open sees each value, and nobody is turned away.
    for seen in sessions:
        assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert [] == [each for reader in readers for each in reader.refused]
    assert all(len(reader.sessions) > 1 for reader in readers)


async def _until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, condition, 60)
