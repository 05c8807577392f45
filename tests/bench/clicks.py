"""A click on a button in a real browser, until the result of the background job stands on the page."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from servers import PanelServer
from windows import launch, windows

from .dashes import MISSING, dash_server, managers
from .dashes import NAMES as DASHES
from .fresh import environment
from .table import Table, middle, verdict

CLICKS = 24
DASH_CLICKS = 6
LIMIT = 50.0
JOB_PAGE = Path(__file__).with_name("job_page.py")

ROWS = {
    "process": ("panel-schedule, `executor='process'`", "`on_click=job.start`, `job.param.value`"),
    "thread": ("panel-schedule, `executor='thread'`", "`on_click=job.start`, `job.param.value`"),
    "disk": (DASHES["disk"], "`@app.callback(..., background=True)`"),
    "celery": (DASHES["celery"], "`@app.callback(..., background=True)`"),
    "bare": ("Panel, without a job", "`on_click=` sets a pane"),
}

# A function of the button's name and the text to come: the milliseconds from the click until that stands anywhere.
CLICK = """
([name, expected]) => new Promise((resolve, reject) => {
  const roots = root => [root, ...[...root.querySelectorAll("*")].flatMap(e => e.shadowRoot ? roots(e.shadowRoot) : [])]
  const all = roots(document.body)
  const button = all.flatMap(root => [...root.querySelectorAll("button")]).find(e => e.textContent.trim() == name)
  const observers = all.map(root => new MutationObserver(look))
  const limit = setTimeout(() => reject(new Error(`${expected} did not come`)), 10000)
  let begin
  function look() {
    if (!all.some(root => root.textContent.includes(expected))) return
    const spent = performance.now() - begin
    clearTimeout(limit)
    observers.forEach(each => each.disconnect())
    resolve(spent)
  }
  observers.forEach((each, i) => each.observe(all[i], {subtree: true, childList: true, characterData: true}))
  begin = performance.now()
  button.click()
})
"""


class Buttons:
    """The buttons of one page, each clicked again and again."""

    def __init__(self, page: Page):
        self.page = page
        self.clicks: dict[str, int] = {}

    def click(self, name: str) -> float:
        """Milliseconds until the result is there."""
        self.clicks[name] = self.clicks.get(name, 0) + 1
        return self.page.evaluate(CLICK, [name, f"{name} {self.clicks[name]} done"])


def measure() -> dict[str, list[float]]:
    """Milliseconds of each click."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        servers = {
            name: stack.enter_context(dash_server(place))[0] for name, place in stack.enter_context(managers()).items()
        }
        ours = PanelServer(str(JOB_PAGE), folder, env={**environment(), "BENCH_SHOW": "quick"})
        stack.callback(ours.close)
        ours.wait_started()
        playwright = stack.enter_context(sync_playwright())
        open_page = stack.enter_context(windows(stack.enter_context(launch(playwright, folder))))
        page = Buttons(open_page(f"{ours.url}/job_page"))
        page.page.get_by_role("button", name="bare").wait_for()
        dashes = {}
        for name, url in servers.items():
            dashes[name] = Buttons(open_page(url))
            dashes[name].page.get_by_role("button", name="quick").wait_for()
        # The first ones warm up.
        for number in range(CLICKS + 1):
            for name in ("process", "thread", "bare"):
                spent = page.click(name)
                if number:
                    found.setdefault(name, []).append(spent)
            for name, other in dashes.items() if number <= DASH_CLICKS else ():
                spent = other.click("quick")
                if number:
                    found.setdefault(name, []).append(spent)
    return found


def tables() -> list[Table]:
    found = measure()
    table = Table("From a click to the result on the page", ["what", "written as", "ms", "times ours"])
    for name, row in ROWS.items():
        if name not in found:
            table.add(*row, MISSING, "")
            continue
        ours = name in ("process", "thread")
        table.add(
            *row,
            middle(found[name], "{:.1f}"),
            f"{median(found[name]) / median(found['process']):.1f}",
            must=f"<= {LIMIT:g} ms" if ours else "",
            met=verdict(met=median(found[name]) <= LIMIT) if ours else "",
        )
    table.text = (
        "A trivial job: from `button.click()` in a real Chromium until its result is in the page, by the browser's own "
        f"clock, on `panel serve` and on Dash's `app.run`. {CLICKS} clicks of each of ours after one to warm up, "
        f"{DASH_CLICKS} of Dash's, by turns; medians, in brackets the least and the most. Dash's page asks for the "
        "result at its default interval, each second; ours is told. The last row has no job at all: what is left is "
        "the browser's, the websocket's and Bokeh's."
    )
    return [table]
