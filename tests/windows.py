"""Browser windows for the tests: each one a visitor, none of them with a network beyond this machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Route, expect

NewPage = Callable[..., Page]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 25_000  # milliseconds
ELSEWHERE = re.compile(r"^https?://(?!(127\.0\.0\.1|localhost)[:/])")

expect.set_options(timeout=PATIENCE)


def launch(playwright: Playwright, home: Path) -> Browser:
    """A headless Chromium of this machine, at `home` in that folder. No name but localhost resolves in it."""
    found = [path for path in map(shutil.which, BROWSERS) if path]
    assert found, "no Chromium is installed: run setup_scripts/system_packages.sh"
    return playwright.chromium.launch(
        executable_path=found[0],
        env={**os.environ, "HOME": str(home)},
        args=[
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        ],
    )


@contextmanager
def windows(browser: Browser) -> Iterator[NewPage]:
    """Give a function that opens windows; close them in the end, and fail if a page had an error."""
    opened: list[BrowserContext] = []
    errors: list[str] = []

    def open_page(url: str, *, allow: Sequence[str] = (), zone: str | None = None) -> Page:
        def note(error: str) -> None:
            if not any(each in error for each in ("favicon.ico", *allow)):
                errors.append(error)

        context = browser.new_context(timezone_id=zone)
        context.set_default_timeout(PATIENCE)
        context.route(ELSEWHERE, _answer_as_if_cut_off)
        context.on("weberror", lambda uncaught: note(str(uncaught.error)))
        context.on("console", lambda m: note(f"{m.text} ({m.location['url']})") if m.type == "error" else None)
        opened.append(context)
        page = context.new_page()
        page.goto(url)
        return page

    try:
        yield open_page
    finally:
        for context in opened:
            context.close()
    assert not errors, "errors in the browser:\n" + "\n".join(errors)


def _answer_as_if_cut_off(route: Route) -> None:
    """Panel's templates and icons ask for web fonts, and do without; nothing else may come from outside."""
    if route.request.resource_type in ("stylesheet", "font"):
        route.fulfill(content_type="text/css", body="")
    else:
        route.abort()
