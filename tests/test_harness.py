"""What the fixtures promise, with plain Panel apps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, expect

from servers import EXPIRE_SOON, PanelServer, Serve, eventually, write_files
from windows import NewPage, windows

HELLO = """
    import panel as pn
    pn.pane.Str("hello").servable()
"""

EVERYTHING = """
    import pandas as pd
    import panel as pn
    from bokeh.plotting import figure

    pn.extension("tabulator")
    plot = figure(height=200)
    plot.line([1, 2], [1, 2])
    table = pn.widgets.Tabulator(pd.DataFrame({"city": ["Oslo"]}))
    button = pn.widgets.Button(name="go", icon="player-play")
    pn.template.TEMPLATE(title="page", main=[pn.Column("hello", table, plot, button)]).servable()
"""

TEMPLATES = ("FastListTemplate", "MaterialTemplate", "BootstrapTemplate")

GOODBYE = """
    import panel as pn
    pn.state.on_session_destroyed(lambda context: print("goodbye", flush=True))
    pn.pane.Str("hello").servable()
"""

PARENT = """
    import subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    print("the child is", child.pid, flush=True)
"""


def test_a_server_is_ready_when_serve_returns_and_all_of_it_is_gone_when_it_has_stopped(serve: Serve) -> None:
    """Files, arguments and environment have reached it."""
    tasks = """
        import os
        print("setup by", os.environ["WHO"], flush=True)
    """
    server = serve("app.py --setup lib/tasks.py", {"app.py": HELLO, "lib/tasks.py": tasks}, env={"WHO": "me"})
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert httpx.get(f"{server.url}/app").status_code == 200
    server.wait_for("setup by me")
    server.stop()
    assert not psutil.pid_exists(server.process.pid)
    assert not server.descendants()


def test_waiting_for_a_server_that_ends_fails_at_once_and_shows_what_it_printed(serve: Serve) -> None:
    server = serve("missing.py", wait=False)
    with pytest.raises(AssertionError, match=r"did not start before the output ended:\n(.|\n)*missing\.py"):
        server.wait_started()
    assert server.wait_exit() == 1
    assert "missing.py" in server.output()


def test_a_child_left_behind_is_a_failure_and_is_ended(tmp_path: Path) -> None:
    write_files(tmp_path, {"app.py": HELLO, "tasks.py": PARENT})
    server = PanelServer("app.py --setup tasks.py", tmp_path)
    server.wait_for("the child is")
    server.patience = 0.3
    try:
        (child,) = eventually(server.descendants)
    finally:
        with pytest.raises(AssertionError, match=r"left .*pid="):
            server.close()
    eventually(lambda: not child.is_running())


def test_eventually_gives_up() -> None:
    with pytest.raises(AssertionError, match="the last answer was 0"):
        eventually(lambda: 0, timeout=0.0)


def test_two_windows_are_two_visitors(serve: Serve, new_page: NewPage) -> None:
    server = serve("app.py", {"app.py": "import panel as pn\npn.pane.Str(f'{id(pn.state.curdoc)}').servable()"})
    first, second = new_page(server.url), new_page(server.url)
    shown = [page.locator("pre").text_content() for page in (first, second)]
    assert len(set(shown)) == 2


def test_a_closed_window_soon_ends_its_session(serve: Serve, new_page: NewPage) -> None:
    server = serve(f"app.py {EXPIRE_SOON}", {"app.py": GOODBYE})
    page = new_page(server.url)
    expect(page.get_by_text("hello")).to_be_visible()
    page.close()
    server.wait_for("goodbye")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelServer]:
    folder = tmp_path_factory.mktemp("templates")
    write_files(folder, {f"{template}.py": EVERYTHING.replace("TEMPLATE", template) for template in TEMPLATES})
    with closing(PanelServer(" ".join(f"{template}.py" for template in TEMPLATES), folder)) as server:
        server.wait_started()
        yield server


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_tables_and_plots_render_without_a_network(
    templates: PanelServer, new_page: NewPage, template: str
) -> None:
    page = new_page(f"{templates.url}/{template}")
    expect(page.get_by_text("hello")).to_be_visible()
    expect(page.get_by_text("Oslo")).to_be_visible()
    expect(page.locator(".bk-Canvas")).to_be_visible()


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("console.error('broken')", "broken"),
        ("new Promise(done => setTimeout(() => { done(); throw new Error('uncaught') }))", "uncaught"),
        ("fetch('http://example.com/').catch(() => 0)", "example.com"),
    ],
)
def test_an_error_in_a_page_is_a_failure(browser: Browser, script: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint), windows(browser) as new_page:
        new_page("about:blank").evaluate(script)


def test_an_expected_error_in_a_page_is_allowed(new_page: NewPage) -> None:
    new_page("about:blank", allow=["broken"]).evaluate("console.error('broken')")
