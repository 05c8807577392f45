"""The monitor in a FastAPI app, as its page of the documentation has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from bokeh.core.types import ID
from bokeh.util.token import generate_jwt_token
from playwright.sync_api import Page, expect
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.web import create_signed_value
from tornado.websocket import websocket_connect

import documents
from servers import eventually, write_files
from windows import NewPage

pytest.importorskip("bokeh_fastapi", reason="pip install 'panel[fastapi]'")

PAGE = Path(__file__).parent.parent / "docs" / "operating.md"

SECRET = "what the login signs with"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("fastapi")
    write_files(folder, documents.files(PAGE))
    door = socket.create_server(("127.0.0.1", 0))
    command = [sys.executable, "-m", "uvicorn", "main:app", "--fd", str(door.fileno())]
    env = {**os.environ, "LOGIN_SECRET": SECRET, "PANEL_SCHEDULE_ADMINS": "ada"}
    with subprocess.Popen(command, cwd=folder, pass_fds=[door.fileno()], env=env) as server:
        try:
            url = f"http://127.0.0.1:{door.getsockname()[1]}"
            assert {"waiting_for": []} == eventually(lambda: _ready(url))
            yield url
        finally:
            server.terminate()
            door.close()


def _ready(url: str) -> dict | None:
    answer = httpx.get(f"{url}/schedule/readyz", timeout=30)
    return answer.json() if answer.status_code == 200 else None


def cookie(user: str) -> str:
    return create_signed_value(SECRET, "login", user).decode()


def visit(new_page: NewPage, url: str, user: str, query: str = "") -> Page:
    page = new_page("about:blank", allow=["404"])
    page.context.add_cookies([{"name": "login", "value": cookie(user), "url": url}])
    page.goto(f"{url}/schedule{query}")
    expect(page.locator(".monitor h2")).to_have_text("All 1 are well")
    return page


def test_the_monitor_is_an_application_of_fastapi(url: str, new_page: NewPage) -> None:
    """And the tasks run; what it gives as JSON is what its few lines say."""
    assert [("sales", 1)] == [
        (each["name"], each["version"]) for each in httpx.get(f"{url}/schedule/api/tasks").json()["tasks"]
    ]
    page = visit(new_page, url, "bob")
    page.goto(f"{url}/dashboard")
    expect(page.locator("body")).to_contain_text("north")


def test_who_is_an_admin_is_what_the_app_says(url: str, new_page: NewPage) -> None:
    """He has the buttons, and no other one has."""
    bob, ada = visit(new_page, url, "bob"), visit(new_page, url, "ada")
    for page, why_not in ((bob, "user 'bob' is none of ps.config.admins"), (ada, "")):
        expect(page.locator(".foot")).to_contain_text(why_not or "seen from process")
        page.locator(".monitor > table > tbody > tr").first.click()
    expect(bob.locator("dialog ol li")).to_have_count(5)
    expect(bob.get_by_role("button", name="Pause")).to_be_hidden()
    ada.get_by_role("button", name="Pause").click()
    expect(ada.locator("dialog .answer")).to_have_text("sales: paused.")
    ada.get_by_role("button", name="Resume").click()
    expect(ada.locator("dialog .answer")).to_contain_text("sales: goes on")


def test_an_admin_who_is_sent_to_a_session_is_none_there(url: str, new_page: NewPage) -> None:
    """Who has made up its name can be in it, too."""
    ada = visit(new_page, url, "ada", "?bokeh_session_id=known")
    expect(ada.locator(".foot")).to_contain_text("the address of this page names its session")


CLAIMED = {"X-User": "ada", "Cookie": "login=ada; user=ada"}


@pytest.mark.parametrize("claimed", [{}, CLAIMED])
def test_nobody_is_in_without_the_login(url: str, claimed: dict[str, str]) -> None:
    """Whatever he says of himself."""
    assert 401 == httpx.get(f"{url}/schedule", headers=claimed).status_code


async def test_nobody_is_in_by_the_websocket_alone(url: str) -> None:
    """With a token that says of cookies and headers what its maker likes: nobody signs it."""
    payload = {"cookies": {"login": "ada", "user": "ada"}, "headers": CLAIMED, "arguments": {}}
    token = generate_jwt_token(ID("made-up"), expiration=300, extra_payload=payload)
    request = HTTPRequest(f"ws{url.removeprefix('http')}/schedule/ws", headers={**CLAIMED, "Origin": url})
    with pytest.raises(HTTPClientError, match="403"):
        await websocket_connect(request, subprotocols=["bokeh", token])
