"""The monitor and its JSON behind what stands before a server: a login of somebody else's, a proxy with a path."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from servers import PanelServer, Serve
from windows import NewPage

FILES = {
    "tasks.py": """
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def sales():
            return 42
    """,
    "app.py": "import panel as pn; pn.pane.Str('app').servable()",
}
COMMAND = "app.py --setup tasks.py --plugins panel_schedule"


class Provider:
    """
    An OAuth provider that knows everybody by what `user` says, and sends them to `back`.

    As its code and as its token it gives the name of the user.
    """

    def __init__(self) -> None:
        self.user, self.back = "", ""
        self.asked: list[dict[str, str]] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
                if path == "/authorize":
                    self.send_response(302)
                    given = urlencode({"code": provider.user, "state": query["state"][0]})
                    self.send_header("Location", f"{provider.back}?{given}")
                    self.end_headers()
                else:
                    self._say({"email": self.headers["Authorization"].removeprefix("Bearer ")})

            def do_POST(self) -> None:
                body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                provider.asked.append({name: value[0] for name, value in body.items()})
                self._say({"access_token": body["code"][0], "token_type": "bearer"})

            def _say(self, content: dict[str, str]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with closing(Provider()) as provider:
        yield provider


@pytest.fixture
def guarded(serve: Serve, provider: Provider) -> PanelServer:
    """A server that leaves the login to the provider."""
    oauth = "--oauth-provider generic --oauth-key key --oauth-secret secret --cookie-secret a-secret-of-cookies"
    where = {name: f"{provider.url}/{name.lower()}" for name in ("AUTHORIZE", "TOKEN", "USER")}
    env = {f"PANEL_OAUTH_{name}_URL": url for name, url in where.items()} | {"PANEL_SCHEDULE_ADMINS": "ada@example.org"}
    server = serve(f"{COMMAND} {oauth}", FILES, env=env)
    provider.back = f"{server.url}/login"
    return server


def test_json_is_behind_an_oauth_login_and_only_admins_change_something(
    guarded: PanelServer, provider: Provider
) -> None:
    """Who is logged in is who the provider says, by what ``pn.state.user`` is."""
    url, header = f"{guarded.url}/schedule/api/tasks", {"X-Requested-With": "curl"}
    assert 401 == httpx.get(url).status_code
    found = []
    for user in ("ada@example.org", "bob@example.org"):
        provider.user = user
        with httpx.Client(follow_redirects=True) as client:
            assert 200 == client.get(f"{guarded.url}/schedule").status_code
            answers = (
                client.get(url),
                client.post(f"{url}/sales/pause", headers=header),
                client.post(f"{url}/sales/pause"),
            )
            found.append([answer.status_code for answer in answers])
    assert [[200, 200, 403], [200, 403, 403]] == found
    assert ("ada@example.org", "key", "secret") == tuple(
        provider.asked[0][name] for name in ("code", "client_id", "client_secret")
    )


def test_the_monitor_is_behind_an_oauth_login(guarded: PanelServer, provider: Provider, new_page: NewPage) -> None:
    """Who comes to it is sent to the provider and back, and has the buttons of an admin."""
    provider.user = "ada@example.org"
    page = new_page(f"{guarded.url}/schedule")
    expect(page).to_have_url(f"{guarded.url}/schedule")
    page.locator(".monitor > table > tbody > tr").click()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("dialog .answer")).to_have_text("sales: paused.")
    assert "user 'ada@example.org' asks for 'pause' of 'task sales'" in guarded.output()


# ------------------------------------------------------------ a path before a proxy


class Path:
    """A proxy that has a server below a path, which it does not tell the server."""

    def __init__(self, port: int, path: str):
        self._port, self._lines = port, re.compile(rb"^(GET|POST) " + re.escape(path.encode()))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}{path}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                here, there = self._door.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                for one, other, lines in ((here, there, self._lines), (there, here, None)):
                    threading.Thread(target=self._pass_on, args=[one, other, lines], daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, lines: re.Pattern[bytes] | None) -> None:
        with suppress(OSError):
            while data := one.recv(65536):  # a browser sends one request after another
                other.sendall(lines.sub(rb"\1 ", data) if lines else data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def test_the_monitor_and_json_are_below_the_path_of_a_proxy(serve: Serve, new_page: NewPage) -> None:
    """With ``--root-path``, and the websocket over which it is pushed."""
    server = serve(f"{COMMAND} --root-path /behind/ --allow-websocket-origin '*'", FILES)
    assert server.port is not None
    with closing(Path(server.port, "/behind")) as proxy:
        assert ["sales"] == [each["name"] for each in httpx.get(f"{proxy.url}/schedule/api/tasks").json()["tasks"]]
        assert "/behind" == httpx.get(f"{proxy.url}/schedule/api/openapi.json").json()["servers"][0]["url"]
        page = new_page(f"{proxy.url}/schedule")
        expect(page.locator(".monitor h2")).to_have_text("All 1 are well")
        page.goto(f"{proxy.url}/schedule/")
        expect(page).to_have_url(f"{proxy.url}/schedule")
        expect(page.locator(".monitor h2")).to_have_text("All 1 are well")
