"""What a person sees of a background job in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from servers import EXPIRE_SOON, PanelServer, Serve, eventually, write_files
from windows import NewPage

# Waits for a file with the word's name, and says where it is: a test lets it go on with `touch`.
JOBS = """
    import pathlib, time
    import panel_schedule as ps

    def until(name, *percent):
        while not pathlib.Path(name).exists():
            ps.progress(*percent, f"waits for {name}")
            time.sleep(0.01)

    def body(word, times=1, percent=(40, 100)):
        print("begins", word, flush=True)
        try:
            until(word, *percent)
        except ps.errors.RunCancelled:
            print("was told to stop", flush=True)
            raise
        finally:
            print("leaves", word, flush=True)
        return f"{word} came {times} times, in {ps.current_run().id}"

    def failing(word, times=1):
        body(word)
        raise ValueError("no such word")

    work = ps.background(name="work", executor="thread")(body)
    dropped = ps.background(name="dropped", executor="thread", retrigger="ignore")(body)
    unknown = ps.background(name="unknown", executor="thread")(lambda word, times: body(word, times, (0, 0)))
    fails = ps.background(name="fails", executor="thread")(failing)
"""

# ?job=dropped shows that one, ?dark=1 any of them in the dark.
APP = """
    import panel as pn
    import panel_schedule as ps
    import jobs

    asked = pn.state.session_args
    pn.extension(theme="dark" if "dark" in asked else "default")
    word = pn.widgets.TextInput(name="Word", value="go")
    word.param.watch(lambda event: print("the word is", event.new, flush=True), "value")
    ps.JobPanel(getattr(jobs, asked.get("job", [b"work"])[0].decode()).job(word, times=3)).servable()
"""

TEXT_AND_GROUND = """element => {
    const numbers = color => color.match(/[\\d.]+/g).map((each, i) => each * (color[0] === "c" && i < 3 ? 255 : 1));
    let ground = [255, 255, 255];
    for (let each = element; each; each = each.assignedSlot ?? each.parentElement ?? each.getRootNode().host) {
        const [red, green, blue, alpha = 1] = numbers(getComputedStyle(each).backgroundColor);
        if (alpha > 0) { ground = [red, green, blue]; break; }
    }
    return [numbers(getComputedStyle(element).color), ground];
}"""

FOCUSED = """() => {
    let focused = document.activeElement;
    while (focused.shadowRoot?.activeElement) focused = focused.shadowRoot.activeElement;
    return [focused.textContent.trim() || focused.tagName, getComputedStyle(focused).outlineStyle];
}"""


class Site:
    """The server that most tests visit; what it says is counted from the beginning of the test."""

    def __init__(self, server: PanelServer):
        self.url, self.folder = f"{server.url}/app", server.folder
        self._server, self._before = server, len(server.output())

    def output(self) -> str:
        return self._server.output()[self._before :]

    def wait_for(self, text: str) -> None:
        eventually(lambda: text in self.output())

    def forget_words(self) -> None:
        for word in self.folder.iterdir():
            if word.is_file() and not word.suffix:
                word.unlink()


@pytest.fixture(scope="module")
def site_server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelServer]:
    folder = tmp_path_factory.mktemp("site")
    write_files(folder, {"app.py": APP, "jobs.py": JOBS})
    with closing(PanelServer("app.py --setup jobs.py", folder)) as server:
        server.wait_started()
        yield server


@pytest.fixture
def site(site_server: PanelServer) -> Iterator[Site]:
    site = Site(site_server)
    yield site
    site.forget_words()
    print(site.output())


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name)


def bar(page: Page) -> Locator:
    return page.get_by_role("progressbar")


def said(page: Page) -> Locator:
    return page.get_by_role("status")


def fill_in(page: Page, word: str) -> None:
    field = page.get_by_label("Word")
    field.fill(word)
    field.press("Enter")


def contrast(element: Locator) -> float:
    """As WCAG defines it: from 1 to 21."""

    def luminance(color: list[float]) -> float:
        parts = (each / 255 for each in color[:3])
        red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted(map(luminance, element.evaluate(TEXT_AND_GROUND)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_run_progress_and_result(site: Site, new_page: NewPage) -> None:
    """From the press of the button to the result: each step is seen, and told to assistive technology."""
    page = new_page(site.url)
    expect(button(page, "Cancel")).to_be_disabled()
    expect(said(page)).to_have_text("")
    button(page, "Run").click()
    expect(said(page)).to_have_text("waits for go")
    expect(bar(page)).to_have_attribute("aria-valuenow", "40")
    expect(bar(page)).to_have_attribute("aria-valuetext", "40 %, waits for go")
    expect(bar(page)).to_have_accessible_name("work")
    expect(page.locator(".time")).to_have_text(re.compile(r"40 % · \d+ s"))
    expect(button(page, "Cancel")).to_be_enabled()
    (site.folder / "go").touch()
    expect(page.get_by_text("go came 3 times")).to_be_visible()
    expect(said(page)).to_have_text(re.compile(r"Done in [\d.]+ s"))
    expect(page.locator(".time")).to_be_hidden()
    expect(button(page, "Cancel")).to_be_disabled()


def test_times_are_counted_by_the_browser(serve: Serve, new_page: NewPage) -> None:
    """Elapsed and remaining time go on while the server says nothing at all."""
    app = """
        import panel as pn
        from panel_schedule.views.job_panel import ProgressBar

        def bar(**told):
            nothing = {"state": "running", "percent": -1, "message": "", "error": "", "position": 0, "elapsed": None}
            return ProgressBar(told=nothing | told, sizing_mode="stretch_width")

        pn.Column(
            bar(percent=25, elapsed=40.0, message="<b>long</b> " * 100),
            bar(elapsed=3590.0),
            bar(percent=2, elapsed=30.0),
            bar(percent=50, elapsed=1.0),
            *(bar(state="queued", position=position) for position in (0, 2, 12, 23)),
            bar(state="succeeded", elapsed=71.0),
            bar(state="timed_out", elapsed=5.0, error="RunTimedOut: too long"),
            bar(state="cancelled"),
            bar(state="idle"),
            width=400,
        ).servable()
    """
    server = serve("app.py", {"app.py": app})
    page = new_page(server.url)
    page.clock.install()
    page.reload()
    times, heads, bars = page.locator(".time"), page.locator(".head"), page.locator(".job")
    expect(times.nth(0)).to_have_text(re.compile(r"25 % · 4\d s · about 2 min left"))
    expect(times.nth(1)).to_have_text(re.compile(r"59 min 5\d s"))
    expect(times.nth(2)).to_have_text(re.compile(r"2 % · 3\d s"))
    expect(times.nth(3)).to_have_text(re.compile(r"50 % · \d s"))
    page.clock.fast_forward(60_000)
    expect(times.nth(0)).to_have_text(re.compile(r"25 % · 1 min 4\d s · about (1 min|5\d s) left"))
    expect(times.nth(1)).to_have_text("1 h 0 min")
    page.clock.fast_forward(60_000)
    expect(times.nth(0)).to_have_text(re.compile(r"25 % · 2 min 4\d s$"))  # longer than it thought: it does not guess
    waiting = [heads.nth(each).inner_text() for each in range(4, 8)]
    assert waiting == ["Queued", "Queued, 2nd in line", "Queued, 12th in line", "Queued, 23rd in line"]
    expect(heads.nth(8)).to_have_text("Done in 1 min 11 s")
    expect(page.get_by_role("status").nth(9)).to_have_text(
        "Timed out after 5.0 s. You can run it again.RunTimedOut: too long"
    )
    expect(heads.nth(10)).to_have_text("Cancelled")
    expect(heads.nth(11)).to_have_text("")
    # A long message is cut off, as text, and breaks nothing.
    expect(heads.nth(0)).to_contain_text("<b>long</b> <b>long</b>")
    assert all(bars.nth(each).evaluate("each => each.scrollWidth <= each.clientWidth") for each in range(12))
    assert heads.nth(0).evaluate("each => each.scrollWidth > each.clientWidth")
    assert bars.nth(0).bounding_box()["height"] == bars.nth(1).bounding_box()["height"]  # type: ignore[index]


def test_motion_is_reduced_for_those_who_want_it(site: Site, new_page: NewPage) -> None:
    """While nothing is known about the progress something moves, but not for everybody."""
    page = new_page(f"{site.url}?job=unknown")
    button(page, "Run").click()
    expect(said(page)).to_have_text("waits for go")
    expect(bar(page)).not_to_have_attribute("aria-valuenow", re.compile(""))
    fill = page.locator(".fill")
    expect(fill).to_have_css("animation-name", "move")
    page.emulate_media(reduced_motion="reduce")
    expect(fill).to_have_css("animation-name", "none")
    (site.folder / "go").touch()
    expect(said(page)).to_contain_text("Done")


def test_cancel(site: Site, new_page: NewPage) -> None:
    """The function is told, the page says so, and it can be run again."""
    page = new_page(site.url)
    button(page, "Run").click()
    expect(said(page)).to_have_text("waits for go")
    button(page, "Cancel").click()
    expect(said(page)).to_have_text(re.compile(r"^Cancelled after [\d.]+ s$"))
    site.wait_for("was told to stop")
    (site.folder / "go").touch()
    button(page, "Run").click()
    expect(said(page)).to_contain_text("Done")


def test_partial_results_stand_in_for_the_result(serve: Serve, new_page: NewPage) -> None:
    """The result of the run before stays, dimmed, until there is something newer."""
    jobs = """
        import pathlib, time
        import panel_schedule as ps

        @ps.background(executor="thread")
        def work(numbers=iter(range(1, 9))):
            number = next(numbers)
            for part in "ab":
                while not pathlib.Path(f"{part}{number}").exists():
                    time.sleep(0.01)
                yield f"part {part} of {number}"
            while not pathlib.Path(f"end{number}").exists():
                time.sleep(0.01)
            return f"result {number}"
    """
    app = """
        import panel_schedule as ps
        from jobs import work
        ps.JobPanel(work.job(), render="It is **{}**.".format).servable()
    """
    server = serve("app.py --setup jobs.py", {"app.py": app, "jobs.py": jobs})
    page = new_page(server.url)
    shown, strong = page.locator(".result"), page.locator(".result strong")
    for number in (1, 2):
        button(page, "Run").click()
        if number == 2:
            expect(shown).to_have_class(re.compile("former"))
            expect(strong).to_have_text("result 1")
        for part in "ab":
            (server.folder / f"{part}{number}").touch()
            expect(strong).to_have_text(f"part {part} of {number}")
            expect(shown).not_to_have_class(re.compile("former"))
        (server.folder / f"end{number}").touch()
        expect(strong).to_have_text(f"result {number}")


def test_an_error_is_readable_and_only_text(serve: Serve, new_page: NewPage) -> None:
    """Type and message, and what can be done; markup in it is shown, not obeyed. The traceback is in the log."""
    attack = "<img src=x onerror='window.attacked = true'>"
    jobs = f"""
        import pathlib, time
        import panel_schedule as ps

        @ps.background(executor="thread")
        def work(word):
            ps.progress(1, 2, "{attack}")
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
            if word == "bad":
                raise ValueError("no such word: {attack}\\nand more")
            return "fine"
    """
    server = serve("app.py --setup jobs.py", {"app.py": APP.replace(", times=3", ""), "jobs.py": jobs})
    page = new_page(server.url)
    fill_in(page, "bad")
    button(page, "Run").click()
    expect(said(page)).to_have_text(attack)
    (server.folder / "go").touch()
    expect(page.locator(".head")).to_have_text(re.compile(r"^Failed after [\d.]+ s\. You can run it again\.$"))
    expect(page.locator(".reason")).to_have_text(f"ValueError: no such word: {attack}")
    expect(page.get_by_text("Traceback")).to_have_count(0)
    assert page.evaluate("window.attacked") is None
    assert page.locator(".job img").count() == 0
    assert server.output().count("Traceback") == 1
    fill_in(page, "good")
    button(page, "Run").click()
    expect(page.get_by_text("fine")).to_be_visible()
    expect(page.locator(".reason")).to_be_hidden()


def test_by_keyboard(site: Site, new_page: NewPage) -> None:
    """Inputs, Run, Cancel; nobody loses the place when a button is of no use, and each ring is visible."""
    page = new_page(f"{site.url}?job=dropped")
    page.get_by_label("Word").focus()
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == ["Run", "solid"]
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text("waits for go")
    expect(button(page, "Run")).to_be_disabled()
    assert page.evaluate(FOCUSED) == ["Run", "solid"]
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == ["Cancel", "solid"]
    page.keyboard.press("Space")
    expect(said(page)).to_contain_text("Cancelled")
    expect(button(page, "Cancel")).to_be_disabled()
    assert page.evaluate(FOCUSED) == ["Cancel", "solid"]
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUSED) == ["Run", "solid"]
    (site.folder / "go").touch()
    page.keyboard.press("Space")
    expect(said(page)).to_contain_text("Done")
    assert page.evaluate(FOCUSED) == ["Run", "solid"]
    assert site.output().count("begins go") == 2


def test_everything_can_be_read_in_both_themes(site: Site, new_page: NewPage) -> None:
    """Message, time, error and buttons stand out from what is behind them."""
    for theme in ("", "&dark=1"):
        page = new_page(f"{site.url}?job=fails{theme}")
        button(page, "Run").click()
        expect(said(page)).to_have_text("waits for go")
        elements = [page.locator(".head"), page.locator(".time"), button(page, "Run"), button(page, "Cancel")]
        assert all(contrast(each) > 4.5 for each in elements)
        filled, track = (
            page.locator(each).evaluate("e => getComputedStyle(e).backgroundColor") for each in (".fill", ".bar")
        )
        assert filled != track
        (site.folder / "go").touch()
        expect(page.locator(".reason")).to_have_text("ValueError: no such word")
        assert contrast(page.locator(".reason")) > 4.5
        site.forget_words()


def test_two_visitors_with_the_same_inputs_have_a_run_each(site: Site, new_page: NewPage) -> None:
    """What one of them cancels goes on for the other, and neither gets the other's result."""
    mine, yours, third = (new_page(site.url) for _ in range(3))
    for page in (mine, yours, third):
        button(page, "Run").click()
        expect(said(page)).to_have_text("waits for go")
    button(third, "Cancel").click()
    expect(said(third)).to_contain_text("Cancelled")
    expect(said(mine)).to_have_text("waits for go")
    (site.folder / "go").touch()
    results = [page.get_by_text("go came 3 times") for page in (mine, yours)]
    for result in results:
        expect(result).to_be_visible()
        expect(result).not_to_have_text("")
    results = [result.inner_text() for result in results]
    assert len(set(results)) == 2
    assert site.output().count("was told to stop") == 1
    expect(third.get_by_text("go came")).to_have_count(0)


def test_twenty_clicks_end_in_one_state(site: Site, new_page: NewPage) -> None:
    """Each replaces the one before: the last one's result is shown, and nothing runs any more."""
    page = new_page(site.url)
    button(page, "Run").evaluate("each => { for (let i = 0; i < 20; i++) each.click(); }")
    fill_in(page, "clicked")
    site.wait_for("the word is clicked")
    eventually(lambda: site.output().count("begins") == site.output().count("leaves") + 1)
    expect(said(page)).to_have_text("waits for go")
    (site.folder / "go").touch()
    expect(said(page)).to_contain_text("Done")
    expect(page.get_by_text("go came 3 times")).to_have_count(1)
    expect(button(page, "Cancel")).to_be_disabled()
    expect(bar(page)).to_have_attribute("aria-valuenow", "100")
    output = site.output()
    assert output.count("begins") == output.count("leaves") == output.count("was told to stop") + 1


def test_the_inputs_are_those_of_the_start(site: Site, new_page: NewPage) -> None:
    """What is changed while it runs counts for the next run."""
    page = new_page(site.url)
    fill_in(page, "first")
    button(page, "Run").click()
    expect(said(page)).to_have_text("waits for first")
    fill_in(page, "second")
    (site.folder / "first").touch()
    expect(page.get_by_text("first came 3 times")).to_be_visible()
    (site.folder / "second").touch()
    button(page, "Run").click()
    expect(page.get_by_text("second came 3 times")).to_be_visible()


def test_a_reloaded_page_follows_its_run_again(serve: Serve, new_page: NewPage) -> None:
    """The page's address carries the run's id: progress and partials are there again, and then the result."""
    jobs = """
        import pathlib, time
        import panel_schedule as ps

        @ps.background(executor="thread", on_session_end="continue")
        def work():
            print("begins", flush=True)
            ps.progress(40, 100, "at forty")
            yield "a part"
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
            return "the result"
    """
    app = """
        import panel as pn
        from jobs import work

        job = work.job()
        location = pn.state.location
        if "run" in location.query_params:
            job.attach(location.query_params["run"])
        job.param.watch(lambda event: location.update_query(run=job.run.id), "running")
        pn.panel(job).servable()
    """
    server = serve(f"app.py --setup jobs.py {EXPIRE_SOON}", {"app.py": app, "jobs.py": jobs})
    page = new_page(f"{server.url}/app")
    button(page, "Run").click()
    expect(page.get_by_text("a part")).to_be_visible()
    page.wait_for_url(re.compile("run="))
    page.reload()
    expect(said(page)).to_have_text("at forty")
    expect(page.get_by_text("a part")).to_be_visible()
    expect(page.locator(".time")).to_contain_text("40 %")
    (server.folder / "go").touch()
    expect(page.get_by_text("the result")).to_be_visible()
    page.reload()
    expect(page.get_by_text("the result")).to_be_visible()
    expect(said(page)).to_contain_text("Done in")
    assert server.output().count("begins") == 1


def test_a_closed_tab_cancels(serve: Serve, new_page: NewPage) -> None:
    """``on_session_end="cancel"``, the default: nobody will read it."""
    server = serve(f"app.py --setup jobs.py {EXPIRE_SOON}", {"app.py": APP, "jobs.py": JOBS})
    page = new_page(server.url)
    button(page, "Run").click()
    expect(said(page)).to_have_text("waits for go")
    page.close()
    server.wait_for("was told to stop")


def test_who_waits_sees_the_place_in_line(serve: Serve, new_page: NewPage) -> None:
    """It moves up as those before it end."""
    env = {"PANEL_SCHEDULE_MAX_THREADS": "1"}
    server = serve("app.py --setup jobs.py", {"app.py": APP, "jobs.py": JOBS}, env=env)
    pages = [new_page(server.url) for _ in range(3)]
    for page, words in zip(pages, ["waits for go", "Queued, 1st in line", "Queued, 2nd in line"], strict=True):
        button(page, "Run").click()
        expect(said(page)).to_have_text(words)
    expect(button(pages[1], "Cancel")).to_be_enabled()
    button(pages[1], "Cancel").click()
    expect(said(pages[1])).to_have_text("Cancelled")
    expect(said(pages[2])).to_have_text("Queued, 1st in line")
    (server.folder / "go").touch()
    expect(said(pages[2])).to_contain_text("Done")
    assert server.output().count("begins") == 2
