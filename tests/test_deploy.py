"""What is in ``examples/deploy`` fits together, and fits the package (`test_topology` runs it)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import compose
import panel_schedule
from panel_schedule.config import ENV_PREFIX, Config

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "deploy"
UNIT, ENVIRONMENT = EXAMPLE / "vm" / "dashboard.service", EXAMPLE / "vm" / "dashboard.env"
DOCKERFILE, COMPOSE = EXAMPLE / "containers" / "Dockerfile", EXAMPLE / "containers" / "compose.yaml"
KUBERNETES = EXAMPLE / "kubernetes"
PROXIES = sorted(EXAMPLE.glob("*/nginx.conf"))
TEXTS = [ROOT / "docs" / "deploy.md", *(path for path in sorted(EXAMPLE.rglob("*")) if path.is_file())]
SECRETS = {"REDIS_PASSWORD": "password", "PANEL_SCHEDULE_SECRET": "secret"}

SECONDS = {"s": 1, "m": 60}


class Process(NamedTuple):
    """
    A server or worker of ours.

    Attributes
    ----------
    where : str
    command : list of str
    environment : dict of str to str
    patience : float
        Seconds between SIGTERM and SIGKILL.
    """

    where: str
    command: list[str]
    environment: dict[str, str]
    patience: float

    def config(self) -> Config:
        return Config(self.environment)


def on_one_machine() -> Iterator[Process]:
    unit = RawConfigParser(strict=False, comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text().replace("\\\n", " "))
    service = unit["Service"]
    assert ENVIRONMENT.read_text().startswith(f"# {service['EnvironmentFile']},")
    lines = (line for line in ENVIRONMENT.read_text().splitlines() if line and not line.startswith("#"))
    environment = dict(line.split("=", 1) for line in lines)
    yield Process("vm", shlex.split(service["ExecStart"]), environment, float(service["TimeoutStopSec"]))


def in_containers() -> Iterator[Process]:
    for name, service in compose.services(COMPOSE, SECRETS).items():
        if name != "redis":
            yield Process(f"compose {name}", service.command, service.environment, service.stop)


@cache
def manifests() -> list[dict[str, Any]]:
    names = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [each for name in names for each in yaml.safe_load_all((KUBERNETES / name).read_text())]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests() if each["kind"] == kind}


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return only


def environment_of(found: dict[str, Any]) -> dict[str, str]:
    """The environment of a container, with what it takes from elsewhere."""
    environment: dict[str, str] = {}
    for source in found.get("envFrom", ()):
        environment |= of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]
    for each in found.get("env", ()):
        if "value" in each:
            environment[each["name"]] = re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], each["value"])
        else:
            secret = each["valueFrom"]["secretKeyRef"]
            environment[each["name"]] = of_kind("Secret")[secret["name"]]["stringData"][secret["key"]]
    return environment


def on_kubernetes() -> Iterator[Process]:
    for name, workload in of_kind("Deployment").items():
        pod, found = workload["spec"]["template"]["spec"], container(workload)
        pause = float(found["lifecycle"]["preStop"]["exec"]["command"][1]) if "lifecycle" in found else 0.0
        patience = pod["terminationGracePeriodSeconds"] - pause
        yield Process(f"kubernetes {name}", found["command"], environment_of(found), patience)


PROCESSES = [*on_one_machine(), *in_containers(), *on_kubernetes()]
WEB = [each for each in PROCESSES if each.command[1] == "serve"]
WORKERS = [each for each in PROCESSES if each not in WEB]


def by_place(process: Process) -> str:
    return process.where


def option(process: Process, name: str) -> str:
    return process.command[process.command.index(name) + 1]


@cache
def options_of(*command: str) -> set[str]:
    usage = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True, timeout=60)
    return set(re.findall(r"--[a-z-]+", usage.stdout))


def test_there_is_all_of_it() -> None:
    assert ["compose web-1", "compose web-2", "kubernetes web", "vm"] == sorted(map(by_place, WEB))
    assert ["compose worker", "kubernetes worker"] == sorted(map(by_place, WORKERS))


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_each_option_that_is_named_exists(text: Path) -> None:
    """Also in comments, and on the page about it."""
    named = re.findall(rf"{ENV_PREFIX}([A-Z_]+)", text.read_text())
    assert set() == {name.lower() for name in named} - set(Config.options())


@pytest.mark.parametrize("process", PROCESSES, ids=by_place)
def test_its_configuration_means_something(process: Process) -> None:
    """Values are shared where several processes need them, and jobs have the time that they were given."""
    config = process.config()
    assert config.store not in ("auto", "memory://")
    if process.where != "vm":
        assert config.store.startswith("redis://")
        assert config.secret
        assert config.namespace != "default"
    assert process.patience >= config.grace_period + 5


@pytest.mark.parametrize("processes", [list(in_containers()), list(on_kubernetes())], ids=["compose", "kubernetes"])
def test_all_processes_have_the_same_store_and_broker(processes: list[Process]) -> None:
    shared = ["PANEL_SCHEDULE_STORE", "PANEL_SCHEDULE_SECRET", "PANEL_SCHEDULE_NAMESPACE", "CELERY_BROKER_URL"]
    assert 1 == len({tuple(process.environment[name] for name in shared) for process in processes})
    store, broker = processes[0].environment["PANEL_SCHEDULE_STORE"], processes[0].environment["CELERY_BROKER_URL"]
    assert store != broker


@pytest.mark.slow
@pytest.mark.unhurried
@pytest.mark.parametrize("process", WEB, ids=by_place)
def test_what_serves_is_known_to_panel(process: Process) -> None:
    options = {word for word in process.command if word.startswith("--")}
    assert set() == options - options_of("panel", "serve")
    assert "--liveness" in options
    assert all((EXAMPLE / word).exists() for word in process.command if word.endswith(".py"))
    assert process.environment["BOKEH_ALLOW_WS_ORIGIN"]


@pytest.mark.parametrize("process", WORKERS, ids=by_place)
def test_what_works_is_known_to_celery(process: Process) -> None:
    assert set() == {word for word in process.command if word.startswith("--")} - options_of("celery", "worker")
    module, _, name = option(process, "--app").partition(":")
    assert f"{name} = " in (EXAMPLE / f"{module}.py").read_text()


def test_the_image_has_what_its_commands_name() -> None:
    """The command that stands in it is that of the compose file."""
    said = DOCKERFILE.read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", said, re.MULTILINE) for word in line.split()]
    assert [] == [name for name in copied if "*" not in name and not (EXAMPLE / name).exists()]
    assert {"app.py", "tasks.py"} <= set(copied)
    ignored = (EXAMPLE / ".dockerignore").read_text().splitlines()
    assert ["*", *(f"!{name}" for name in sorted(copied, key=str))] == ["*", *sorted(ignored[1:])]
    command = re.search(r"^CMD (\[.*\])$", said, re.MULTILINE)
    assert command is not None
    assert yaml.safe_load(command[1]) == compose.services(COMPOSE, SECRETS)["web-1"].command
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\[(.+)\]", (EXAMPLE / "requirements.txt").read_text())[0].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_ports_and_files_of_the_compose_file_fit() -> None:
    found = yaml.safe_load(compose.interpolated(COMPOSE.read_text(), SECRETS))["services"]
    for name in ("web-1", "web-2"):
        web = next(each for each in WEB if each.where == f"compose {name}")
        assert option(web, "--address") == "0.0.0.0"
        assert f":{option(web, '--port')}/liveness" in found[name]["healthcheck"]["test"][-1]
        assert f"server {name}:{option(web, '--port')} resolve;" in (COMPOSE.parent / "nginx.conf").read_text()
        build = found[name]["build"]
        assert (COMPOSE.parent / build["context"] / build["dockerfile"]).samefile(DOCKERFILE)
    (published,) = found["nginx"]["ports"]
    assert f"listen {published.split(':')[1]};" in (COMPOSE.parent / "nginx.conf").read_text()
    assert web.environment["BOKEH_ALLOW_WS_ORIGIN"].endswith(f":{published.split(':')[0]}")
    for each in found.values():
        assert set(each.get("depends_on", ())) <= set(found)
        assert re.fullmatch(r"dashboard|\w+:[\d.]+[\w.-]*", each["image"])
        for volume in each.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (COMPOSE.parent / source).exists()


@pytest.mark.parametrize("process", WEB, ids=by_place)
def test_the_store_keeps_what_it_was_told(process: Process) -> None:
    """Redis writes a log, and drops nothing."""
    if process.where == "vm":
        pytest.skip("its store is a directory")
    if process.where.startswith("compose"):
        command = compose.services(COMPOSE, SECRETS)["redis"].command
    else:
        command = container(of_kind("StatefulSet")["redis"])["args"]
    for name, value in (("--appendonly", "yes"), ("--maxmemory-policy", "noeviction")):
        assert value == command[command.index(name) + 1]


def test_what_kubernetes_selects_is_there() -> None:
    pods = {
        name: each["spec"]["template"]["metadata"]["labels"]
        for kind in ("Deployment", "StatefulSet")
        for name, each in of_kind(kind).items()
    }
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        for each in of_kind(kind).values():
            assert each["spec"]["selector"]["matchLabels"] in pods.values()
    for each in of_kind("Service").values():
        assert each["spec"]["selector"] in pods.values()
    (host,) = (rule for each in of_kind("Ingress").values() for rule in each["spec"]["rules"])
    backend = host["http"]["paths"][0]["backend"]["service"]
    assert backend["port"]["name"] in [port["name"] for port in of_kind("Service")[backend["name"]]["spec"]["ports"]]
    web = next(each for each in WEB if each.where == "kubernetes web")
    assert host["host"] == web.environment["BOKEH_ALLOW_WS_ORIGIN"]
    for name in ("PANEL_SCHEDULE_STORE", "CELERY_BROKER_URL"):
        assert re.search(r"@([\w-]+):6379/", web.environment[name])[1] in of_kind("Service")


def test_a_replica_is_ready_when_its_tasks_have_values_and_lives_while_its_scheduler_turns() -> None:
    """The probes ask what the plugin of its command answers; a start may take longer than a visitor waits for it."""
    found = container(of_kind("Deployment")["web"])
    web = next(each for each in WEB if each.where == "kubernetes web")
    assert [{"name": "http", "containerPort": int(option(web, "--port"))}] == found["ports"]
    probes = {kind: found[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    assert {"startup": "/schedule/readyz", "readiness": "/schedule/readyz", "liveness": "/schedule/healthz"} == {
        kind: probe["httpGet"]["path"] for kind, probe in probes.items()
    }
    assert "panel_schedule" == option(web, "--plugins")
    assert {probe["httpGet"]["path"] for probe in probes.values()} <= {path for path, *_ in panel_schedule.ROUTES}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= web.config().ready_timeout


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda path: path.parent.name)
def test_a_proxy_waits_longer_than_a_first_visitor(proxy: Path) -> None:
    """And lets websockets through."""
    said = proxy.read_text()
    waits = re.search(r"proxy_read_timeout (\d+)s;", said)
    assert waits is not None
    assert int(waits[1]) > max(each.config().ready_timeout for each in WEB)
    assert "proxy_set_header Upgrade $http_upgrade;" in said
    if proxy.parent.name == "vm":
        (vm,) = on_one_machine()
        assert f"proxy_pass http://{option(vm, '--address')}:{option(vm, '--port')};" in said
        assert f"server_name {vm.environment['BOKEH_ALLOW_WS_ORIGIN']};" in said


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
@pytest.mark.parametrize("proxy", PROXIES, ids=lambda path: path.parent.name)
def test_nginx_takes_its_configuration(proxy: Path, tmp_path: Path) -> None:
    """With addresses for names that only containers know; what came with nginx 1.27 is left out for an older one."""
    said = re.sub(r"server web-\d:(\d+) resolve;", r"server 127.0.0.1:\1;", proxy.read_text())
    (tmp_path / "site.conf").write_text(said)
    built = subprocess.run(["nginx", "-V"], capture_output=True, text=True).stderr
    modules = [name for name in ("proxy", "fastcgi", "uwsgi", "scgi") if f"without-http_{name}_module" not in built]
    paths = "".join(f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", *modules))
    main = f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {paths} include {tmp_path}/site.conf; }}"
    (tmp_path / "nginx.conf").write_text(main)
    command = ["nginx", "-t", "-q", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (0, "") == (checked.returncode, checked.stderr)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program that is here in place of the one which is not."""
    said = UNIT.read_text().replace("/opt/dashboard/.venv/bin/panel", shutil.which("true") or "")
    (tmp_path / UNIT.name).write_text(said)
    command = ["systemd-analyze", "verify", "--man=no", tmp_path / UNIT.name]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (0, []) == (checked.returncode, [line for line in checked.stderr.splitlines() if UNIT.name in line])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kustomize_takes_the_manifests() -> None:
    checked = subprocess.run(["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert len(manifests()) == len(list(yaml.safe_load_all(checked.stdout)))
