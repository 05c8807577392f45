"""The monitor in a FastAPI app, as its page of the documentation has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

import documents
from servers import eventually, write_files
from windows import NewPage

pytest.importorskip("bokeh_fastapi", reason="pip install 'panel[fastapi]'")

PAGE = Path(__file__).parent.parent / "docs" / "operating.md"


def test_the_monitor_is_an_application_of_fastapi(tmp_path: Path, new_page: NewPage) -> None:
    """And the tasks run; what it gives as JSON is what its few lines say."""
    write_files(tmp_path, documents.files(PAGE))
    door = socket.create_server(("127.0.0.1", 0))
    command = [sys.executable, "-m", "uvicorn", "main:app", "--fd", str(door.fileno())]
    with subprocess.Popen(command, cwd=tmp_path, pass_fds=[door.fileno()], env={**os.environ}) as server:
        try:
            url = f"http://127.0.0.1:{door.getsockname()[1]}"
            assert {"waiting_for": []} == eventually(lambda: _ready(url))
            assert [("sales", 1)] == [
                (each["name"], each["version"]) for each in httpx.get(f"{url}/schedule/api/tasks").json()["tasks"]
            ]
            page = new_page(f"{url}/schedule", allow=["404"])
            expect(page.locator(".monitor h2")).to_have_text("All 1 are well")
            page.goto(f"{url}/dashboard")
            expect(page.locator("body")).to_contain_text("north")
        finally:
            server.terminate()
            door.close()


def _ready(url: str) -> dict | None:
    answer = httpx.get(f"{url}/schedule/readyz", timeout=30)
    return answer.json() if answer.status_code == 200 else None
