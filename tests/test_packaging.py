"""What is installed is all that there is in the folder of the package."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_has_every_file_of_the_package(tmp_path):
    """Also what is no Python: the script for Redis, the mark that it is typed."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs the package hatchling")
    [path] = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "panel_schedule").rglob("*") if path.is_file()}
    wanted = {file for file in files if "__pycache__" not in file}
    assert {"panel_schedule/stores/redis.lua", "panel_schedule/py.typed"} <= wanted
    assert set() == wanted - set(ZipFile(path).namelist())
