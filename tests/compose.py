"""What a compose file says, for processes on this machine instead of containers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# ${NAME}, ${NAME:-default}, ${NAME:?what is missing}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Service(NamedTuple):
    """
    Attributes
    ----------
    command : list of str
    environment : dict of str to str
    healthcheck : list of str
        A command that succeeds when it is there.
    stop : float
        Seconds that it gets to end.
    """

    command: list[str]
    environment: dict[str, str]
    healthcheck: list[str]
    stop: float


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """The text of a compose file, with its variables as they are in the environment."""

    def value(found: re.Match[str]) -> str:
        name, kind, text = found.groups()
        if name in variables:
            return variables[name]
        assert kind == "-", f"{name} is not set: {text or 'it has no default'}"
        return text

    return VARIABLE.sub(value, text)


def services(path: Path, variables: Mapping[str, str]) -> dict[str, Service]:
    """The services of a compose file that name a command."""
    text = interpolated(path.read_text(encoding="utf-8"), variables)
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return {name: _service(each) for name, each in found.items() if "command" in each}


def _service(said: Mapping[str, Any]) -> Service:
    units = {"s": 1.0, "m": 60.0}
    stop = said.get("stop_grace_period", "10s")
    return Service(
        command=shlex.split(said["command"]),
        environment={name: str(value) for name, value in said.get("environment", {}).items()},
        healthcheck=said["healthcheck"]["test"][1:] if "healthcheck" in said else [],
        stop=float(stop[:-1]) * units[stop[-1]],
    )
