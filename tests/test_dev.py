"""``panel serve --dev``: what an edit changes is soon in force, and one that fails changes nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import panel.models  # noqa: F401, registers the models of its pages
import pytest
from bokeh.client import pull_session

from servers import PanelServer, eventually, write_files
from visitors import Visitor

pytestmark = pytest.mark.slow

TASKS = """
import panel_schedule as ps

@ps.schedule(period="1h")
def answer():
    print("computed FIRST", flush=True)
    return "FIRST"

@ps.schedule(period="100ms", first_run="background")
def old():
    print("old ticks", flush=True)

@ps.background
def old_job():
    pass

@ps.memoize
def old_memo(x):
    return x
"""

# It imports none of the files that are edited.
NAMES = """
import panel as pn, panel_schedule as ps
print("there are " + " ".join([*ps.tasks, *ps._runtime.jobs, *ps._runtime.memos]), flush=True)
pn.pane.Str("a page").servable()
"""

APP = """
import panel as pn, panel_schedule as ps
from tasks import answer
pn.pane.Str(f"the answer is {answer()}").servable()
"""

IN_A_PACKAGE = {
    "tasks.py": "import panel_schedule as ps\nfrom shop.jobs.daily import *\n",
    "shop/__init__.py": "",
    "shop/jobs/__init__.py": "",
    "shop/jobs/daily.py": TASKS,
}

# By their names: the command, the files, and which of them declares the functions.
SITES = {
    "set up": ("--setup tasks.py", {"tasks.py": TASKS, "app.py": ""}, "tasks.py"),
    "imported": ("", {"app.py": APP, **IN_A_PACKAGE}, "shop/jobs/daily.py"),
    "two processes": ("--setup tasks.py --num-procs 2", {"app.py": APP, **IN_A_PACKAGE}, "shop/jobs/daily.py"),
}


class Site:
    """A server under ``--dev``, and the file of its functions."""

    def __init__(self, server: PanelServer, file: Path):
        self.server, self.file = server, file
        self.processes = 2 if "--num-procs 2" in server.command else 1
        self._edited = 0

    def edit(self, change: Callable[[str], str]) -> None:
        self._edited = len(self.server.output())
        self.file.write_text(change(self.file.read_text()))

    def replace(self, former: str, new: str) -> None:
        self.edit(lambda source: source.replace(former, new))

    def since(self) -> str:
        """What was printed since the last edit."""
        return self.server.output()[self._edited :]

    def says(self, text: str, times: int = 1) -> None:
        eventually(lambda: self.since().count(text) >= times)

    def names(self) -> str:
        """What there is, as a page finds it that imports none of the files."""
        before = self.server.output().count("there are")
        assert 200 == httpx.get(f"{self.server.url}/names", timeout=30).status_code
        eventually(lambda: self.server.output().count("there are") > before)
        return re.findall(r"there are (.*)", self.server.output())[-1]

    def page(self) -> str:
        """The texts of the app's page."""
        session = pull_session(url=f"{self.server.url}/app")
        try:
            return " ".join(str(getattr(model, "text", "")) for model in session.document.models)
        finally:
            session.close()


@pytest.fixture(scope="module", params=SITES.values(), ids=SITES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests of a way to set up."""
    command, files, file = request.param
    folder = tmp_path_factory.mktemp("site")
    write_files(folder, {"names.py": NAMES, **files})
    server = PanelServer(f"app.py names.py --dev {command}", folder)
    try:
        server.wait_started()
        server.wait_for("computed FIRST")
        server.wait_for("old ticks")
        yield Site(server, folder / file)
    finally:
        print(server.output())
        server.close()


@pytest.fixture
def site(server: Site) -> Iterator[Site]:
    """The file is as it was before, and after."""
    yield server
    server.edit(lambda source: TASKS)
    server.says("old ticks")


def test_a_changed_function_runs_though_nobody_opens_a_page(site: Site) -> None:
    """Once in each process at most; and again when the next edit comes at once, while Panel does not look."""
    for former, new in (("FIRST", "SECOND"), ("SECOND", "THIRD")):
        site.replace(former, new)
        site.says(f"computed {new}")
    site.replace('period="1h"', "period='2h'")
    site.says("computed THIRD")

    printed = site.server.output()
    for word, edits in (("SECOND", 1), ("THIRD", 2)):
        assert edits <= printed.count(f"computed {word}") <= edits * site.processes


def test_a_file_that_is_written_again_and_again_is_executed(site: Site) -> None:
    """As by an editor that saves at each key: not only when it is left alone."""
    words = iter(range(10_000))

    def written() -> bool:
        word = f"NUMBER{next(words)}"
        site.edit(lambda source: re.sub(r'"(FIRST|NUMBER\d+)"', f'"{word}"', source).replace("old ticks", "ticks anew"))
        return "ticks anew" in site.server.output()

    eventually(written)


def test_what_is_renamed_or_deleted_is_gone(site: Site) -> None:
    """No ghost of it runs on, whatever it was; the others stay."""
    site.replace("old", "new")
    site.says("new ticks")
    for _ in range(3):  # whichever process answers
        eventually(lambda: site.names() == "answer new new_job new_memo")
    ended = site.since().count("old ticks")
    site.says("new ticks", site.since().count("new ticks") + 5)
    assert site.since().count("old ticks") <= ended + 1  # a run of before may be under way

    site.edit(lambda source: source[: source.index('@ps.schedule(period="100ms"')])
    eventually(lambda: site.names() == "answer")


def test_a_syntax_error_is_shown_and_the_old_ones_go_on(site: Site) -> None:
    """Until the next edit, whatever pages were opened meanwhile."""
    site.edit(lambda source: source.replace("FIRST", "FOURTH") + "def broken(:\n")
    site.says("SyntaxError")
    eventually(lambda: "def broken(:" in site.page())
    site.says("old ticks", site.since().count("old ticks") + 3)
    assert "computed FOURTH" not in site.since()

    site.replace("def broken(:\n", "")
    site.says("computed FOURTH")
    eventually(lambda: "def broken" not in site.page())


def test_an_open_page_loads_again(site: Site) -> None:
    """The one that shows an error, too."""

    async def edits() -> None:
        for former, new in (("def old_memo(", "def old_memo(("), ("def old_memo((", "def old_memo(")):
            page = await asyncio.wait_for(Visitor.open(f"{site.server.url}/app"), 20)
            site.replace(former, new)
            await asyncio.wait_for(page.read_until("PATCH-DOC", '"reload"'), 20)
            await page.close()
            if new == "def old_memo((":
                site.says("SyntaxError", site.processes)

    asyncio.run(edits())
