"""Health, JSON and metrics under ``/schedule``, on a real ``panel serve``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import bench.api
from core import Core
from panel_schedule.config import Config
from panel_schedule.engine.counts import Counts
from panel_schedule.errors import ConfigError, StoreError
from panel_schedule.executors.threads import ThreadExecutor
from panel_schedule.functions.run import RunRecord, RunState
from panel_schedule.http import shared_memory, totals
from panel_schedule.http.health import TURN
from panel_schedule.http.metrics import FAMILIES, PREFIX
from panel_schedule.http.openapi import document
from panel_schedule.http.routes import THREADS
from panel_schedule.http.shared_answer import MOMENT, SharedAnswer
from panel_schedule.http.shared_memory import SharedMemory
from panel_schedule.testing import VirtualClock
from servers import PanelServer, Serve, eventually, write_files

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-that-nobody-guesses"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
BEARER = {"Authorization": f"Bearer {TOKEN}"}

# So many requests are made up of each kind and path.
EXAMPLES = 10

APP = """
    import panel as pn
    from tasks import answer
    pn.pane.Str(str(answer())).servable()
"""

TASKS = """
    import pathlib, time
    import panel_schedule as ps
    from panel_schedule.scheduling.scheduler import Scheduler
    from panel_schedule.stores.base import Store

    @ps.schedule(period="1h")
    def answer():
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        all(run.state.final for run in forever.runs()) and forever.submit()
        return 42

    @ps.background(executor="thread")
    def forever():
        ps.progress(1, 4, "a quarter")
        while not ps.current_run().cancelled:
            time.sleep(0.01)

    @ps.schedule(period="1h", first_run="skip", name="<script>")
    def broken():
        raise ValueError("<b>no</b>")

    @ps.schedule(cron="0 6 * * mon-fri", timezone="America/New_York", first_run="skip")
    def endless():
        while True:
            ps.progress(1, 2)
            time.sleep(0.01)

    @ps.memoize
    def twice(x):
        return 2 * x

    # What hangs while there is a file of its name: a question of the history, as of a store, and of the scheduler.
    def hanging(owner, name):
        asked = getattr(owner, name)

        def ask(*args):
            if pathlib.Path(name).exists():
                print(f"{name} hangs", flush=True)
            while pathlib.Path(name).exists():
                time.sleep(0.05)
            return asked(*args)

        setattr(owner, name, ask)

    hanging(Store, "history")
    hanging(Scheduler, "gate")
"""

FILES = {"app.py": APP + "    from tasks import twice\n    twice(1), twice(1), twice(1)\n", "tasks.py": TASKS}
COMMAND = "app.py --setup tasks.py --plugins panel_schedule"


def api(server: PanelServer, path: str, prefix: str = "") -> str:
    return f"{server.url}{prefix}/schedule/{path}"


def task(server: PanelServer, name: str, prefix: str = "") -> dict:
    return httpx.get(api(server, f"api/tasks/{quote(name, safe='')}", prefix)).json()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and labels, in the order of the labels' names."""
    return {
        (sample.name.removeprefix(PREFIX), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(server: PanelServer, prefix: str = "") -> dict[tuple[str, ...], float]:
    response = httpx.get(api(server, "metrics", prefix))
    assert response.status_code == 200
    return samples(response.text)


# ------------------------------------------------------------ one process, one server


@contextmanager
def serving(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str], **env: str) -> Iterator[PanelServer]:
    """A server for several tests."""
    folder = tmp_path_factory.mktemp("site")
    write_files(folder, files)
    server = PanelServer(COMMAND, folder, env=env)
    try:
        server.wait_started()
        yield server
    finally:
        print(server.output())
        server.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelServer]:
    """A server with a token and no login; its first value is there."""
    with serving(tmp_path_factory, FILES, PANEL_SCHEDULE_TOKEN=TOKEN) as server:
        before = httpx.get(api(server, "readyz"))
        assert (503, {"ready": False, "waiting": 1, "waiting_for": ["answer"]}) == (before.status_code, before.json())
        (server.folder / "go").touch()
        eventually(lambda: httpx.get(api(server, "readyz")).status_code == 200)
        yield server


def test_a_server_is_ready_when_the_first_values_are_there(site: PanelServer) -> None:
    """Until then `readyz` says 503 and names them, as the fixture has seen."""
    assert {"ready": True, "waiting": 0, "waiting_for": []} == httpx.get(api(site, "readyz")).json()


def test_a_server_lives_while_its_scheduler_turns(site: PanelServer) -> None:
    response = httpx.get(api(site, "healthz"))
    assert (200, {"alive": True}) == (response.status_code, response.json())


@contextmanager
def hanging(server: PanelServer, name: str, *paths: str) -> Iterator[list[Future[httpx.Response]]]:
    """The answers to these questions, all of which wait until the end for what hangs."""
    with ThreadPoolExecutor(len(paths)) as threads:
        before, flag = server.output().count(f"{name} hangs"), server.folder / name
        flag.touch()
        try:
            asked = [threads.submit(httpx.get, api(server, path), timeout=30) for path in paths]
            eventually(lambda: server.output().count(f"{name} hangs") >= before + min(len(paths), THREADS))
            yield asked
        finally:
            flag.unlink()


def test_a_server_lives_and_is_ready_while_its_store_hangs(site: PanelServer) -> None:
    """Kubernetes need not end it: who waits for the store holds up no probe."""
    with hanging(site, "history", *["api/tasks/answer/runs"] * 5) as asked:
        probes = [httpx.get(api(site, path), timeout=2.5) for path in ("healthz", "readyz")]
        assert [False] * 5 == [each.done() for each in asked]
    assert [200] * 2 == [probe.status_code for probe in probes]
    assert [200] * 5 == [each.result().status_code for each in asked]


def test_a_server_whose_scheduler_does_not_say_is_not_ready(site: PanelServer) -> None:
    """A probe waits so many seconds for it and no longer, and then holds up no other."""
    with hanging(site, "gate", "readyz", "readyz") as asked:
        assert [(503, {"ready": False, "waiting": 0, "waiting_for": []})] * 2 == [
            (each.result(2 * TURN).status_code, each.result().json()) for each in asked
        ]
        assert 200 == httpx.get(api(site, "healthz"), timeout=2.5).status_code


def test_the_tasks_are_there_as_json_without_their_values(site: PanelServer) -> None:
    response = httpx.get(api(site, "api/tasks"))
    assert "application/json" == response.headers["content-type"]
    assert ["<script>", "answer", "endless"] == [each["name"] for each in response.json()["tasks"]]
    answer = task(site, "answer")
    assert (1, "idle", "every 1 h", False) == tuple(answer[key] for key in ("version", "state", "schedule", "stale"))
    assert "42" not in json.dumps({**answer, "updated_at": "", "next_run": "", "duration": 0})


def test_a_schedule_is_told_in_words_and_as_the_rule_that_it_is(site: PanelServer) -> None:
    """A program that parses the rule need not parse what is for people."""
    endless = task(site, "endless")
    assert ("06:00 Mon-Fri, New York", "cron '0 6 * * mon-fri' America/New_York") == (
        endless["schedule"], endless["trigger"],
    )  # fmt: skip


def test_a_task_named_script_fails_and_is_escaped_nowhere_as_nothing_is_html(site: PanelServer) -> None:
    url = api(site, "api/tasks/%3Cscript%3E")
    assert 202 == httpx.post(f"{url}/refresh", headers=BEARER).status_code
    eventually(lambda: task(site, "<script>")["state"] == "failed")
    response = httpx.get(f"{url}/runs?limit=1")
    assert ("application/json", "nosniff") == (
        response.headers["content-type"], response.headers["x-content-type-options"],
    )  # fmt: skip
    [run] = response.json()["runs"]
    assert ("failed", "ValueError: <b>no</b>") == (run["state"], run["error"])
    assert 1 <= scrape(site)["runs_total", "task", "failed", "<script>"]


def test_a_run_is_started_and_cancelled(site: PanelServer) -> None:
    url = api(site, "api/tasks/endless")
    assert 409 == httpx.post(f"{url}/cancel", headers=BEARER).status_code
    run = httpx.post(f"{url}/refresh", headers=BEARER).json()["run"]
    assert task(site, "endless")["running"] is True
    cancelled = httpx.post(f"{url}/cancel", headers=BEARER)
    assert (202, run["id"]) == (cancelled.status_code, cancelled.json()["run"]["id"])
    assert "cancelled" == httpx.get(f"{url}/runs?limit=1").json()["runs"][0]["state"]


def await_run(url: str) -> None:
    """Let a task run, and wait until its history says so."""
    run = httpx.post(f"{url}/refresh", headers=BEARER).json()["run"]["id"]
    eventually(lambda: run in [each["id"] for each in httpx.get(f"{url}/runs").json()["runs"]])


def test_only_admins_see_where_a_failure_came_from(site: PanelServer) -> None:
    """And with what a run was asked for, by whom, and what it has logged."""
    url = api(site, "api/tasks/%3Cscript%3E")
    await_run(url)
    [mine], [anybodys] = (
        httpx.get(f"{url}/runs?limit=1", headers=headers).json()["runs"] for headers in (BEARER, {})
    )  # fmt: skip
    assert 'raise ValueError("<b>no</b>")' in mine["traceback"]
    assert {"user", "arguments", "traceback", "logs"} == mine.keys() - anybodys.keys()
    assert mine["owner"] == anybodys["owner"] != ""


def test_a_history_is_read_page_by_page(site: PanelServer) -> None:
    """From one run on those before it. An empty page is the end; where that run is there no more it is an error."""
    url = api(site, "api/tasks/answer")
    for _ in range(3):
        await_run(url)
    every = [run["id"] for run in httpx.get(f"{url}/runs").json()["runs"]]

    def page(before: str) -> list[str]:
        return [run["id"] for run in httpx.get(f"{url}/runs?limit=2&before={before}").json()["runs"]]

    assert every[1:3] == page(every[0])
    assert [] == page(every[-1])
    gone = httpx.get(f"{url}/runs?before=gone")
    why = "before='gone' is no run in the history of task 'answer', or it is there no more."
    assert (404, {"error": why}) == (gone.status_code, gone.json())


def test_a_task_is_paused_and_resumed(site: PanelServer) -> None:
    url = api(site, "api/tasks/answer")
    assert "paused" == httpx.post(f"{url}/pause", headers=BEARER).json()["task"]["state"]
    site.wait_for("The API: the token asks for 'pause' of 'task answer'")
    assert "idle" == httpx.post(f"{url}/resume", headers=BEARER).json()["task"]["state"]


def test_who_has_the_tasks_already_does_not_get_them_again(site: PanelServer) -> None:
    """By the tag of what is known it is 304, without a body."""
    first = httpx.get(api(site, "api/tasks"))
    again = httpx.get(api(site, "api/tasks"), headers={"If-None-Match": first.headers["etag"]})
    assert (304, b"") == (again.status_code, again.content)
    other = httpx.get(api(site, "api/tasks"), headers={"If-None-Match": '"of another time"'})
    assert (200, first.content) == (other.status_code, other.content)


def test_who_has_made_a_change_sees_it_among_all_tasks(site: PanelServer) -> None:
    """Though the answer for all is good for a moment."""

    def state() -> str:
        return httpx.get(api(site, "api/tasks")).json()["tasks"][1]["state"]

    seen = [state()]
    for change in ("pause", "resume"):
        assert 200 == httpx.post(api(site, f"api/tasks/answer/{change}"), headers=BEARER).status_code
        seen.append(state())
    assert ["idle", "paused", "idle"] == seen


def test_a_run_of_a_background_function_is_cancelled_by_its_id(site: PanelServer) -> None:
    """Admins see the runs under way, and whose they are; one that has ended, or never was, cannot be cancelled."""
    url = api(site, "api/runs")
    assert 401 == httpx.get(url).status_code
    [run] = httpx.get(url, headers=BEARER).json()["runs"]
    assert ("forever", "running", 25, "a quarter", None) == tuple(
        run[name] for name in ("name", "state", "percent", "message", "user")
    )
    cancel = f"{url}/{run['id']}/cancel"
    assert 401 == httpx.post(cancel).status_code
    cancelled = httpx.post(cancel, headers=BEARER)
    assert (202, "cancelled") == (cancelled.status_code, cancelled.json()["run"]["state"])
    assert {"runs": []} == httpx.get(url, headers=BEARER).json()
    again, unknown = (httpx.post(each, headers=BEARER) for each in (cancel, f"{url}/unknown/cancel"))
    assert (409, f"Run {run['id']!r} has ended already: cancelled.") == (again.status_code, again.json()["error"])
    assert (404, True) == (unknown.status_code, "There is no run 'unknown'" in unknown.json()["error"])


def test_processes_say_what_they_are_at(site: PanelServer) -> None:
    """As in the monitor; this server has one."""
    [process] = httpx.get(api(site, "api/workers")).json()["processes"]
    assert ("", True, True, []) == tuple(process[name] for name in ("worker", "alive", "here", "queues"))
    assert {"running", "waiting", "places"} == process["executors"]["thread"].keys()


@pytest.mark.parametrize("sent", [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}])
def test_a_change_takes_the_token(site: PanelServer, sent: dict[str, str]) -> None:
    response = httpx.post(api(site, "api/tasks/answer/pause"), headers=sent)
    assert (401, "Bearer") == (response.status_code, response.headers["www-authenticate"])
    assert "idle" == task(site, "answer")["state"]


@pytest.mark.parametrize("path", ["api/tasks/unknown", "api/tasks/unknown/runs"])
def test_a_task_that_is_not_there_is_404(site: PanelServer, path: str) -> None:
    response = httpx.get(api(site, path))
    assert (404, {"error": "There is no task 'unknown'."}) == (response.status_code, response.json())


def test_an_openapi_document_is_what_the_server_gives(site: PanelServer) -> None:
    """
    Of every path, whatever is sent: a status that it names, an answer of its schema, no failure of the server.

    Also what the document does not allow is sent; and half of it is of a task or a run that is there.
    """
    import schemathesis  # here, as it takes a second in each process that looks for tests
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_dict(httpx.get(api(site, "api/openapi.json")).json())
    schema.config.update(base_url=site.url)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert 13 == len(operations)
    met, tasks = defaultdict[str, set[int]](set), ["answer", "<script>", "endless"]
    with requests.Session() as session:

        def send(method: str, path: str) -> Any:
            return session.request(method, api(site, path), headers=BEARER).json()

        def prepare(path: str, name: str) -> str:
            """What is named in its stead: where something can be cancelled it is made before."""
            if "{id}" in path:
                send("POST", "api/tasks/answer/refresh")
                return str(eventually(lambda: send("GET", "api/runs")["runs"])[0]["id"])
            if path.endswith("/cancel"):
                send("POST", f"api/tasks/{quote(name)}/refresh")
            return name

        for operation, mode in product(operations, GenerationMode):
            if mode is GenerationMode.NEGATIVE and not _limits(operation):
                continue  # there is nothing that it does not allow

            @given(case=operation.as_strategy(generation_mode=mode), name=st.sampled_from(["", *tasks]))
            @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            def check(case: schemathesis.Case, name: str) -> None:
                for parameter in case.path_parameters if name else ():
                    case.path_parameters[parameter] = prepare(case.operation.path, name)
                response = case.call_and_validate(headers=BEARER, session=session)
                met[case.operation.label].add(response.status_code)

            check()
        for name, action in product(tasks, ("cancel", "resume")):
            send("POST", f"api/tasks/{quote(name)}/{action}")
        for run in send("GET", "api/runs")["runs"]:
            send("POST", f"api/runs/{run['id']}/cancel")
    changed = {label: codes for label, codes in met.items() if "POST" in label}
    assert [] == [label for label, codes in changed.items() if not codes & {200, 202} or not codes >= {401, 404}]
    assert {200, 400, 404} <= met["GET /schedule/api/tasks/{name}/runs"]


def _limits(operation: Any) -> bool:
    """Whether it says what may be sent, and what may not."""
    return any(each.name in ("limit", "Authorization") for each in operation.iter_parameters())


@pytest.mark.parametrize("path", document("")["paths"])
def test_each_path_of_the_document_gives_what_its_schema_says(site: PanelServer, path: str) -> None:
    """Of a task that is there."""
    [(method, operation)] = document("")["paths"][path].items()
    url = f"{site.url}{path.replace('{name}', 'endless').replace('{id}', 'unknown')}"
    response = httpx.request(method, url, headers=BEARER)
    told = operation["responses"][str(response.status_code)]["content"]["application/json"]["schema"]
    jsonschema.validate(response.json(), {**document(""), **told})


def test_every_metric_is_scraped_and_the_dashboard_names_no_other(site: PanelServer) -> None:
    """The panels of `grafana.json` ask for metrics and labels that are there, and for all of them."""
    dashboard = (ROOT / "examples" / "deploy" / "grafana.json").read_text(encoding="utf-8")
    found = json.loads(dashboard)
    asked = [target["expr"] for panel in found["panels"] for target in panel.get("targets", ())]
    families = {family.name for family in text_string_to_metric_families(httpx.get(api(site, "metrics")).text)}
    assert {PREFIX + name.removesuffix("_total") for name in FAMILIES} == families
    named = {re.sub("_(bucket|sum|count)$", "", name) for expr in asked for name in re.findall(PREFIX + r"\w+", expr)}
    assert {PREFIX + name for name in FAMILIES} == named
    labels = {label for family in FAMILIES.values() for label in family.labels} | {"le", "instance", "job"}
    used = {label for expr in asked for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(", ")}
    used |= {label for expr in asked for label in re.findall(r"(\w+)[=!]~?\"", expr)}
    assert set() == used - labels


def test_a_hit_of_the_cache_is_no_run(site: PanelServer) -> None:
    """Of three equal calls of the page one computes."""
    httpx.get(f"{site.url}/app", timeout=30)
    found = scrape(site)
    assert (1, 2) == (found["runs_total", "memo", "succeeded", "twice"], found["cache_hits_total", "twice"])


def test_an_open_page_is_a_session(site: PanelServer) -> None:
    before = scrape(site)["sessions",]
    httpx.get(f"{site.url}/app", timeout=30)
    assert before + 1 == scrape(site)["sessions",]


# ------------------------------------------------------------ several processes, a prefix


COUNTING = """
    import os, threading
    import panel_schedule as ps

    @ps.schedule(period="1h", default=0)
    def answer():
        return os.getpid()

    @ps.schedule(period="0.2s")
    def tick():
        print(f"ran in {os.getpid()}", flush=True)
"""


def test_any_process_of_a_server_gives_the_sums_of_all_and_none_ever_falls(serve: Serve) -> None:
    """With a prefix, and over the death of one of them: exactly as many runs are counted as there were."""
    files, prefix, seen = {"app.py": APP, "tasks.py": COUNTING}, "/some/where", list[float]()
    server = serve(f"{COMMAND} --num-procs 2 --prefix some/where", files, env={"PANEL_SCHEDULE_TOKEN": TOKEN})
    assert prefix == httpx.get(api(server, "api/openapi.json", prefix)).json()["servers"][0]["url"]

    def count() -> float:
        """On a connection of its own, which either process may take."""
        seen.append(scrape(server, prefix).get(("runs_total", "task", "succeeded", "tick"), 0.0))
        return seen[-1]

    def change(action: str) -> None:
        response = httpx.post(api(server, f"api/tasks/tick/{action}", prefix), headers=BEARER)
        assert 200 == response.status_code

    def ran() -> int:
        return server.output().count("ran in")

    eventually(lambda: count() >= 5)
    change("pause")
    # What one process says then has in it what both have counted.
    eventually(lambda: task(server, "tick", prefix)["state"] == "paused" and count() == ran())
    former = {each.pid for each in server.descendants()}
    os.kill(int(re.findall(r"ran in (\d+)", server.output())[-1]), signal.SIGKILL)
    [new] = eventually(lambda: {each.pid for each in server.descendants()} - former)
    server.wait_for(f"process id: {new}\n")
    assert [ran()] * 6 == [count() for _ in range(6)]
    change("resume")
    eventually(lambda: count() >= ran() > seen[0] + 10)
    assert sorted(seen) == seen


def test_of_replicas_each_counts_its_own_runs(serve: Serve, tmp_path: Path) -> None:
    """So their sum is how many there were, whichever has run them; an age is the same in all."""
    env = {"PANEL_SCHEDULE_TOKEN": TOKEN, "PANEL_SCHEDULE_STORE": f"file://{tmp_path / 'store'}"}
    replicas = [serve(COMMAND, {"app.py": APP, "tasks.py": COUNTING}, env=env) for _ in range(2)]
    runs, age = ("runs_total", "task", "succeeded", "tick"), ("value_age_seconds", "tick")
    eventually(lambda: sum(replica.output().count("ran in") for replica in replicas) >= 5)
    assert 200 == httpx.post(api(replicas[0], "api/tasks/tick/pause"), headers=BEARER).status_code
    eventually(lambda: ["paused"] * 2 == [task(replica, "tick")["state"] for replica in replicas])

    def counted() -> list[float]:
        return [scrape(replica).get(runs, 0.0) for replica in replicas]

    eventually(lambda: counted() == [float(replica.output().count("ran in")) for replica in replicas])
    first, second = (scrape(replica)[age] for replica in replicas)
    assert abs(first - second) < 5


# ------------------------------------------------------------ who may do what


@pytest.fixture
def behind_login(serve: Serve) -> Callable[..., PanelServer]:
    def start(own_passwords: bool = True, **environment: str) -> PanelServer:
        options = "--basic-auth users.json --cookie-secret a-secret-of-cookies"
        users = json.dumps({"ada": "pass", "bob": "pass"})
        options = options if own_passwords else options.replace("users.json", "pass")
        env = {f"PANEL_SCHEDULE_{name}": value for name, value in environment.items()}
        return serve(f"{COMMAND} {options}", {**FILES, "go": "", "users.json": users}, env=env)

    return start


def login(server: PanelServer, user: str) -> httpx.Client:
    client = httpx.Client(follow_redirects=True)
    client.post(f"{server.url}/login", data={"username": user, "password": "pass"})
    assert client.cookies.get("user")
    return client


def test_behind_a_login_strangers_see_that_a_server_lives_and_nothing_else(behind_login: Callable) -> None:
    """
    A token opens it, and so does a login; only admins among the users change something, and with a header. The log
    says who has asked for what, and nothing of what was refused.
    """
    server = behind_login(TOKEN=TOKEN, ADMINS="ada, grace")
    paths = ["api/tasks", "api/tasks/answer", "api/tasks/answer/runs", "api/workers", "api/openapi.json", "metrics"]
    assert [401] * 6 == [httpx.get(api(server, path)).status_code for path in paths]
    assert [200] * 6 == [httpx.get(api(server, path), headers=BEARER).status_code for path in paths]
    assert {"alive": True} == httpx.get(api(server, "healthz")).json()
    assert {"ready": True, "waiting": 0} == httpx.get(api(server, "readyz")).json()
    pause, header = api(server, "api/tasks/answer/pause"), {"X-Requested-With": "curl"}
    with closing(login(server, "ada")) as ada, closing(login(server, "bob")) as bob:
        assert [200] * 6 == [bob.get(api(server, path)).status_code for path in paths]
        runs = api(server, "api/runs")
        assert [401, 403, 200] == [httpx.get(runs).status_code, bob.get(runs).status_code, ada.get(runs).status_code]
        id = ada.get(runs).json()["runs"][0]["id"]
        cancel = f"{runs}/{id}/cancel"
        assert [403, 403, 202] == [
            bob.post(cancel, headers=header).status_code, ada.post(cancel).status_code,
            ada.post(cancel, headers=header).status_code,
        ]  # fmt: skip
        assert [403, 403] == [bob.post(pause).status_code, bob.post(pause, headers=header).status_code]
        assert "idle" == bob.get(api(server, "api/tasks/answer")).json()["state"]
        # As a form of another site would have it sent in her name.
        assert 403 == ada.post(pause).status_code
        assert "idle" == ada.get(api(server, "api/tasks/answer")).json()["state"]
        assert "paused" == ada.post(pause, headers=header).json()["task"]["state"]
        server.wait_for("'task answer'")
        logged = re.findall("The API: (.*)", server.output())
        assert [
            f"user 'ada' asks for 'cancel' of 'run {id} of forever'",
            "user 'ada' asks for 'pause' of 'task answer'",
        ] == logged
    assert 401 == httpx.post(pause, headers=header).status_code


def test_a_change_needs_no_cookie_of_bokehs(serve: Serve) -> None:
    """The token is what a page of another site does not have."""
    server = serve(f"{COMMAND} --enable-xsrf-cookies", {**FILES, "go": ""}, env={"PANEL_SCHEDULE_TOKEN": TOKEN})
    pause = api(server, "api/tasks/answer/pause")
    assert [401, 200] == [httpx.post(pause, headers=headers).status_code for headers in ({}, BEARER)]


def test_where_all_share_one_password_nobody_is_an_admin_by_his_name(behind_login: Callable) -> None:
    """Whoever logs in there may say that he is ada."""
    server = behind_login(own_passwords=False, ADMINS="ada")
    with closing(login(server, "ada")) as ada:
        response = ada.post(api(server, "api/tasks/answer/pause"), headers={"X-Requested-With": "curl"})
        assert (403, True) == (response.status_code, "one password" in response.json()["error"])
        assert "idle" == ada.get(api(server, "api/tasks/answer")).json()["state"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelServer]:
    """A server with no option set, and without prometheus-client."""
    hidden = "import sys\nsys.modules['prometheus_client'] = None\n"
    with serving(tmp_path_factory, {**FILES, "go": "", "sitecustomize.py": hidden}, PYTHONPATH=".") as server:
        yield server


@pytest.mark.parametrize("sent", [{}, BEARER, {"Authorization": "Bearer x"}])
def test_without_token_and_admins_changes_are_off(bare: PanelServer, sent: dict[str, str]) -> None:
    response = httpx.post(api(bare, "api/tasks/answer/pause"), headers=sent)
    assert (403, True) == (response.status_code, "ps.config.token" in response.json()["error"])
    assert "idle" == task(bare, "answer")["state"]


def test_metrics_without_their_package_say_which_one(bare: PanelServer) -> None:
    response = httpx.get(api(bare, "metrics"))
    assert (501, True) == (response.status_code, "pip install 'panel-schedule[metrics]'" in response.json()["error"])


# ------------------------------------------------------------ without a server


@pytest.mark.parametrize("token", ["short", "with spaces in between", "ümlaut" * 4, 5])
def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused(token: object) -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        Config({}).token = token


@pytest.mark.parametrize("names", ["ada", [1], [""], ["guest"]])
def test_admins_are_names_of_users(names: object) -> None:
    with pytest.raises(ConfigError, match=r"ps\.config\.admins"):
        Config({}).admins = names


def test_admins_are_separated_by_commas_in_the_environment() -> None:
    assert ["ada", "grace"] == Config({"PANEL_SCHEDULE_ADMINS": "ada, grace,"}).admins


def test_while_what_is_counted_waits_to_be_written_it_is_not_written_again(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose count takes long asks for it once, not every two seconds."""
    monkeypatch.setattr(totals.supervisor, "find", lambda: 1)
    monkeypatch.setattr(totals, "task_id", lambda: 0)
    counted = totals.Totals(core.runtime, lambda: 0)
    counted._made_in = 0  # it has been forked since
    later, asked = [], list[Future]()
    loop = SimpleNamespace(call_later=lambda seconds, *call: later.append(call))

    def aside(publish: Callable) -> Future:
        asked.append(Future())
        return asked[-1]

    counted.begin(loop, aside)
    seen = []
    for ended in (False, False, True, False):
        if ended:
            asked[-1].set_result(None)
        again, *given = later.pop()
        again(*given)
        seen.append(len(asked))
    assert [1, 1, 2, 2] == seen


def test_a_text_in_shared_memory_is_the_last_one_that_was_written() -> None:
    memory = SharedMemory()
    assert b"" == memory.read(3)
    for text in (b"one", b"two", b"three"):
        assert memory.write(3, text)
        assert text == memory.read(3)
    assert b"" == memory.read(2)


def test_a_text_that_has_no_room_leaves_the_one_before_it() -> None:
    memory = SharedMemory()
    memory.write(0, b"one")
    assert not memory.write(0, os.urandom(shared_memory.PLACE))
    assert not memory.write(shared_memory.PLACES, b"two")
    assert b"one" == memory.read(0)


def test_a_text_that_is_half_written_is_not_read() -> None:
    memory = SharedMemory()
    memory.write(0, b"one")
    memory.write(0, b"two")
    written = memory._memory.find(zlib.compress(b"two", 1))
    memory._memory[written] ^= 1
    assert b"" == memory.read(0)


@pytest.mark.parametrize(
    ("space", "name", "run", "expected"),
    [
        ("task", "a", {"state": RunState.SUCCEEDED}, {("runs", "a", "task", "succeeded"): 1}),
        ("task", "a", {"state": RunState.SKIPPED}, {}),
        ("history", "job a b", {"state": RunState.CRASHED}, {("runs", "a b", "job", "crashed"): 1}),
        ("history", "job a", {"state": RunState.SKIPPED, "reason": "x"}, {("skipped", "a", "x"): 1}),
        (
            "task",
            "a",
            {"state": RunState.FAILED, "started_at": NOW, "finished_at": NOW + timedelta(seconds=2)},
            {("runs", "a", "task", "failed"): 1, ("duration", "a", "task", "5"): 1, ("seconds", "a", "task"): 2.0},
        ),
    ],
)
def test_a_line_of_the_history_is_counted(space: str, name: str, run: dict, expected: dict) -> None:
    counts = Counts()
    counts.logged(space, name, RunRecord("id", None, **run))
    assert expected == counts.snapshot()


def test_each_slot_that_is_skipped_counts(core: Core) -> None:
    """Also where the line of the history for the one before it only becomes longer."""
    slow = core.held("slow")
    core.schedule(period="1s", first_run="skip")(slow)
    core.begin()
    core.run_for(4)
    slow.finish("done")
    assert 3 == core.runtime.counts.snapshot()["skipped", "slow", "overlap"]


# ------------------------------------------------------------ when many ask


class Asked:
    """What is asked for, which counts how often it was made, and fails while it is told to."""

    def __init__(self) -> None:
        self.made, self.error, self.clock = 0, None, VirtualClock(NOW)
        self.answer = SharedAnswer(self.make, ThreadExecutor(1), self.clock)

    def make(self) -> dict[str, int]:
        self.made += 1
        if self.error is not None:
            raise self.error
        return {"made": self.made}

    async def bodies(self, count: int) -> list[dict[str, int]]:
        return [json.loads(made.body) for made in await asyncio.gather(*(self.answer.get() for _ in range(count)))]


async def test_all_who_ask_within_a_moment_get_the_same() -> None:
    """It is made once for them, and anew for who asks later."""
    asked = Asked()
    assert [{"made": 1}] * 50 == await asked.bodies(50)
    asked.clock.advance(0.9 * MOMENT)
    assert [{"made": 1}] == await asked.bodies(1)
    asked.clock.advance(0.2 * MOMENT)
    assert [{"made": 2}] * 2 == await asked.bodies(2)


async def test_what_is_made_when_something_changes_is_for_those_who_asked_before() -> None:
    """Who asks after a change is not told of the time before it."""
    asked = Asked()
    before = asyncio.create_task(asked.answer.get())
    await asyncio.sleep(0)
    asked.answer.forget()
    assert [{"made": 2}] == await asked.bodies(1)
    assert {"made": 1} == json.loads((await before).body)


async def test_an_answer_that_cannot_be_made_is_not_kept() -> None:
    """All who have asked hear why, and the next one asks anew."""
    asked = Asked()
    asked.error = StoreError("gone")
    heard = await asyncio.gather(*(asked.answer.get() for _ in range(3)), return_exceptions=True)
    assert [StoreError] * 3 == [type(error) for error in heard]
    asked.error = None
    assert [{"made": 2}] == await asked.bodies(1)


@pytest.mark.slow
def test_the_figures_of_the_api_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python -m tests.bench api` measures, in a second: that answers come, and tasks run meanwhile."""
    monkeypatch.setattr(bench.api, "WARM_UP", 0.0)
    found = bench.api.measure(rate=50.0, seconds=1.0, rounds=1)
    assert {1} == {len(figures) for figures in found.values()}
    assert all(figures[0] > 0 for figures in found.values())
