"""What a person sees in a real browser."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Page, expect

from servers import EXPIRE_SOON, PanelServer, Serve, eventually, write_files
from windows import NewPage

TASKS = """
    import pathlib
    import pandas as pd
    import panel_schedule as ps

    @ps.schedule(period="1h")
    def asked(numbers=iter(range(1, 100))):
        return f"value {next(numbers)}"

    @ps.schedule(period="200ms")
    def answer(numbers=iter(range(1, 10_000))):
        if pathlib.Path("broken").exists():
            raise ConnectionError("the warehouse is down\\nand more")
        return f"value {next(numbers)}"

    @ps.schedule(period="1h", stale_after="1s")
    def old():
        return "value 1"

    @ps.schedule(period="1h")
    def regions():
        return pathlib.Path("regions").read_text().split() if pathlib.Path("regions").exists() else ["north", "south"]

    @ps.schedule(period="1h", each=regions)
    def sales(region, counts={}):
        counts[region] = counts.get(region, 0) + 1
        return f"{region} {counts[region]}"

    @ps.schedule(period="1h")
    def frame():
        return pd.DataFrame({"a": [1, 2]})
"""

PAGES = {
    "push": """
        import panel as pn
        from tasks import asked
        pn.Column(pn.pane.Str(asked), pn.widgets.Button(name="refresh", on_click=asked.refresh)).servable()
    """,
    "family": """
        import panel as pn
        from tasks import regions, sales
        region = pn.widgets.Select(name="region", options=regions)
        pn.Column(
            region,
            pn.bind(lambda key: sales[key], region),
            pn.widgets.Button(name="refresh", on_click=lambda event: sales[region.value].refresh()),
            pn.widgets.Button(name="list", on_click=regions.refresh),
        ).servable()
    """,
    "badge": "import panel as pn\nfrom tasks import answer\npn.panel(answer).servable()",
    "stale": "import panel as pn\nfrom tasks import old\npn.panel(old).servable()",
    "table": """
        import panel as pn
        from tasks import frame
        pn.extension("tabulator")
        table = pn.widgets.Tabulator(frame, show_index=False)
        table.on_edit(lambda event: print("edited to", event.value, "stored", frame()["a"].tolist(),
                                          "mine", table.value["a"].tolist(), flush=True))
        table.servable()
    """,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelServer]:
    """A server with a page for each test that needs nothing else, and a task for each page."""
    folder = tmp_path_factory.mktemp("site")
    write_files(folder, {"tasks.py": TASKS} | {f"{name}.py": page for name, page in PAGES.items()})
    pages = " ".join(f"{name}.py" for name in PAGES)
    with closing(PanelServer(f"{pages} --setup tasks.py", folder)) as server:
        server.wait_started()
        yield server
        print(server.output())


def test_two_windows_see_the_same_push_without_reloading(site: PanelServer, new_page: NewPage) -> None:
    """A refresh that one visitor asks for reaches the other's open page."""
    mine, yours = new_page(f"{site.url}/push"), new_page(f"{site.url}/push")
    for page in (mine, yours):
        expect(page.get_by_text("value 1")).to_be_visible()
    mine.get_by_role("button", name="refresh").click()
    for page in (mine, yours):
        expect(page.get_by_text("value 2")).to_be_visible()


def test_a_select_has_the_keys_of_a_family_and_shows_the_task_of_one(site: PanelServer, new_page: NewPage) -> None:
    """Each new value of it, and each new key."""
    page = new_page(f"{site.url}/family")
    region = page.get_by_label("region")
    expect(page.get_by_text("north 1")).to_be_visible()
    region.select_option("south")
    expect(page.get_by_text("south 1")).to_be_visible()
    page.get_by_role("button", name="refresh").click()
    expect(page.get_by_text("south 2")).to_be_visible()
    (site.folder / "regions").write_text("south west")
    page.get_by_role("button", name="list").click()
    expect(region.locator("option")).to_have_text(["south", "west"])
    region.select_option("west")
    expect(page.get_by_text("west 1")).to_be_visible()


def test_the_badge_appears_when_a_task_fails_and_goes_when_it_recovers(site: PanelServer, new_page: NewPage) -> None:
    """The last good value stays on the page, under it the age, the badge and the error's first line."""
    page = new_page(f"{site.url}/badge")
    line = page.locator(".line")
    expect(line).to_contain_text("updated just now")
    expect(line.locator(".badge")).to_be_hidden()
    (site.folder / "broken").touch()
    expect(line.locator(".badge")).to_have_text("failed")
    expect(line.locator(".reason")).to_have_text("ConnectionError: the warehouse is down")
    expect(page.get_by_text("value ")).to_be_visible()
    expect(line).to_contain_text(re.compile(r"updated \d+ s ago"))
    (site.folder / "broken").unlink()
    expect(line.locator(".badge")).to_be_hidden()
    assert site.output().count("Traceback") == 1


def test_a_stale_value_says_so(site: PanelServer, new_page: NewPage) -> None:
    """``stale_after``: a value that grows old without an error is marked."""
    page = new_page(f"{site.url}/stale")
    expect(page.locator(".badge")).to_have_text("stale")
    expect(page.get_by_text("value 1")).to_be_visible()


def test_an_edit_in_one_browser_changes_nothing_in_another(site: PanelServer, new_page: NewPage) -> None:
    """An editable Tabulator writes into the session's own frame: not into the other page, nor the stored value."""
    mine, yours = new_page(f"{site.url}/table"), new_page(f"{site.url}/table")
    cell = '.tabulator-cell[tabulator-field="a"]'
    expect(yours.locator(cell).first).to_have_text("1")
    mine.locator(cell).first.click()
    mine.keyboard.press("Control+A")
    mine.keyboard.type("99")
    mine.keyboard.press("Enter")
    site.wait_for("edited to 99 stored [1, 2] mine [99, 2]")
    expect(yours.locator(cell).first).to_have_text("1")
    late = new_page(f"{site.url}/table")
    expect(late.locator(cell).first).to_have_text("1")


def test_a_closed_tab_leaves_no_view_behind(serve: Serve, new_page: NewPage) -> None:
    """Invariant 20, with a real tab: what is counted is counted by the task, so that no visit adds to it."""
    tasks = """
        import panel_schedule as ps
        from panel_schedule import _runtime

        @ps.schedule(period="200ms")
        def answer():
            print("views now", len(_runtime.views), flush=True)
    """
    app = """
        import panel as pn
        from tasks import answer
        pn.Column(answer, pn.pane.Str("here I am"), answer.view().pipe(str)).servable()
        answer.view()
    """
    server = serve(f"app.py --setup tasks.py {EXPIRE_SOON}", {"app.py": app, "tasks.py": tasks})
    page = new_page(server.url)
    expect(page.get_by_text("here I am")).to_be_visible()
    server.wait_for("views now 1")
    page.close()
    eventually(lambda: server.output().rstrip().endswith("views now 0"))


def test_the_starting_page_becomes_the_dashboard_by_itself(serve: Serve, new_page: NewPage) -> None:
    """Who waited longer than ``ready_timeout`` sees what is missing, and then the page without a reload by hand."""
    tasks = """
        import pathlib, time
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def answer():
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
            return "value 1"
    """
    app = "import panel as pn\nfrom tasks import answer\npn.pane.Str(answer).servable()"
    env = {"PANEL_SCHEDULE_READY_TIMEOUT": "1"}
    server = serve("app.py --setup tasks.py", {"app.py": app, "tasks.py": tasks}, env=env)
    page = new_page(server.url)
    expect(page.get_by_text("It waits for its first data: answer")).to_be_visible()
    (server.folder / "go").touch()
    expect(page.get_by_text("value 1")).to_be_visible()


def test_what_is_pushed_is_sent_at_once(serve: Serve, new_page: NewPage) -> None:
    """Not held back by the kernel until the browser has acknowledged what came before: 40 ms (TCP_NODELAY)."""
    app = """
        import gc, socket
        import panel as pn
        import panel_schedule
        from bokeh.server.views.ws import WSHandler

        def look():
            handlers = [each for each in gc.get_objects() if issubclass(type(each), WSHandler)]
            sockets = [each.ws_connection.stream.socket for each in handlers]
            print("nodelay", [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets], flush=True)

        pn.state.onload(look)
        pn.pane.Str("here I am").servable()
    """
    server = serve("app.py", {"app.py": app})
    new_page(server.url)
    server.wait_for("nodelay [1]")


def test_a_badge_says_the_worst_of_all_that_a_page_shows(serve: Serve, new_page: NewPage) -> None:
    """And opens a list of each, in which nothing is taken for HTML; Escape closes it."""
    tasks = """
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def prices():
            return 42

        @ps.schedule(period="1h", first_run="background", name="<b id=bold>orders</b>")
        def orders():
            raise ConnectionError("no <i>route</i> to host")
    """
    app = """
        import panel as pn, panel_schedule as ps
        from tasks import prices, orders
        badge = ps.DataHealth()
        late = pn.Column()
        pn.state.onload(lambda: late.append(pn.panel(orders)))
        pn.Column(badge, pn.panel(prices), late).servable()
    """
    server = serve("app.py --setup tasks.py", {"app.py": app, "tasks.py": tasks})
    page = new_page(f"{server.url}/app")
    button = page.locator(".health button")
    expect(button).to_contain_text("1 of 2 failed")
    button.click()
    rows = page.locator(".health li")
    expect(rows.nth(0)).to_contain_text("<b id=bold>orders</b>")
    expect(rows.nth(0)).to_contain_text("ConnectionError: no <i>route</i> to host")
    expect(rows.nth(1)).to_contain_text("fresh for")
    button.press("Escape")
    expect(page.locator(".health ul")).to_be_hidden()


# What a browser may make of its copy of the badge's model: buttons that it was not given.
FORGE = """() => {
    const badge = Bokeh.documents.flatMap((each) => [...each._all_models.values()]).find((each) => each.data?.told)
    badge.data.setv({told: {items: badge.data.told.items.map((item) => ({...item, run: "Run now"}))}})
}"""


def test_only_an_admin_runs_something_by_the_badge_whatever_a_browser_sends(serve: Serve, new_page: NewPage) -> None:
    """A button for each task and answer. Of a user who is none the server takes no such message."""
    tasks = """
        import panel_schedule as ps

        @ps.schedule(period="1h", first_run="skip", name="<b>prices</b>")
        def prices():
            print("prices ran", flush=True)
            return 42

        @ps.memoize
        def answer(number):
            print("answer ran", flush=True)
            return number
    """
    app = """
        import panel as pn, panel_schedule as ps
        from tasks import answer, prices
        prices.view(), answer.view(7)
        echo = pn.widgets.Button(name="echo", on_click=lambda _: print("echo of", pn.state.user, flush=True))
        pn.Column(ps.DataHealth(), echo).servable()
    """
    files = {"app.py": app, "tasks.py": tasks, "users.json": '{"ada": "pass", "bob": "pass"}'}
    options = "--basic-auth users.json --cookie-secret a-secret-of-cookies"
    server = serve(f"app.py --setup tasks.py {options}", files, env={"PANEL_SCHEDULE_ADMINS": "ada"})

    def page_of(user: str) -> Page:
        page = new_page(f"{server.url}/app", allow=["logo_stacked.png"])
        page.get_by_placeholder("username").fill(user)
        page.get_by_placeholder("password").fill("pass")
        page.get_by_placeholder("password").press("Enter")
        page.locator(".health > button").click()
        expect(page.locator(".health li")).to_have_count(2)
        return page

    bob, button = page_of("bob"), {"name": re.compile("Run now: ")}
    expect(bob.locator(".health li").nth(1)).to_contain_text("old")
    expect(bob.get_by_role("button", **button)).to_have_count(0)
    bob.evaluate(FORGE)
    expect(bob.get_by_role("button", **button)).to_have_count(2)
    for each in bob.get_by_role("button", **button).all():
        each.click()
    bob.get_by_role("button", name="echo").press("Enter")
    server.wait_for("echo of bob")
    ada = page_of("ada")
    assert (0, 1) == (server.output().count("prices ran"), server.output().count("answer ran"))
    ada.get_by_role("button", name="Run now: <b>prices</b>").click()
    server.wait_for("prices ran")
    expect(bob.locator(".health > button")).to_have_text("All 2 up to date")
    ada.get_by_role("button", name="Run now: answer").click()
    eventually(lambda: server.output().count("answer ran") == 2)


def test_a_page_says_by_itself_that_its_server_is_gone(serve: Serve, new_page: NewPage) -> None:
    """And that a value is older than promised, which a server that hangs cannot say; grey is what waits."""
    tasks = """
        import threading
        import panel_schedule as ps

        @ps.schedule(period="1h", stale_after="1s")
        def answer():
            return 42

        @ps.schedule(period="1h", first_run="background")
        def never():
            threading.Event().wait(60)
    """
    app = """
        import panel as pn, panel_schedule as ps
        from tasks import answer, never
        pn.Column(ps.Freshness(answer, label="Answer"), ps.Freshness(never, label="Never")).servable()
    """
    env = {"PANEL_SCHEDULE_GRACE_PERIOD": "0"}
    server = serve("app.py --setup tasks.py", {"app.py": app, "tasks.py": tasks}, env=env)
    page = new_page(f"{server.url}/app", allow=["WebSocket", "websocket", "Lost", "ERR_CONNECTION", "Failed to"])
    answer, never = page.locator(".line").nth(0), page.locator(".line").nth(1)
    expect(never).to_have_attribute("data-kind", "waiting")
    server.process.send_signal(signal.SIGSTOP)
    expect(answer).to_have_attribute("data-kind", "stale", timeout=10_000)
    server.process.send_signal(signal.SIGCONT)
    server.process.kill()
    expect(answer).to_have_attribute("data-kind", "gone", timeout=10_000)
    expect(answer).to_contain_text("server gone, last value")
    expect(never).to_contain_text("server gone, no value yet")
