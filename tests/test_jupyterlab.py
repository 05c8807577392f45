"""What a person sees in JupyterLab: a value that goes on changing in its cell, and nothing of it in any other one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, expect

from servers import eventually
from windows import windows

pytest.importorskip("jupyterlab", reason="needs the package jupyterlab")

# Panel's scripts are in the notebook, as the browser reaches no other machine.
CELLS = (
    """
    import panel as pn
    import panel_schedule as ps
    pn.extension(inline=True)
    """,
    """
    @ps.schedule(period="200ms")
    def tick(numbers=iter(range(1, 10_000))):
        number = next(numbers)
        if number == 5:
            print("five")
        return f"value {number}"
    """,
    "tick",
    "print('mine')",
    "ps.stop(); print('last', tick())",
)

# Cells that are out of sight are no part of the page by default.
SETTINGS = Path("settings", "@jupyterlab", "notebook-extension", "tracker.jupyterlab-settings")

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook in a JupyterLab, which reads and writes no settings but its own."""
    cells = [nbformat.v4.new_code_cell(dedent(cell).strip()) for cell in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "live.ipynb")
    (tmp_path / SETTINGS).parent.mkdir(parents=True)
    (tmp_path / SETTINGS).write_text('{"windowingMode": "none"}')
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("SETTINGS", "WORKSPACES")}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--IdentityProvider.token="]
    path = tmp_path / "log"
    with path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=tmp_path, env=os.environ | own, stdout=log, stderr=log
        )
        try:
            found = eventually(lambda: re.search(r"http://127\.0\.0\.1:\d+/lab", path.read_text()), 60)
            assert found is not None
            yield f"{found[0]}/tree/live.ipynb"
        finally:
            process.terminate()
            process.wait(30)
            print(path.read_text())


def test_a_card_is_live_until_all_is_stopped(lab: str, browser: Browser) -> None:
    """A task as the last line of a cell: its value and its age change, in the browser, while no cell runs."""
    with windows(browser) as open_page:
        page = open_page(lab)
        expect(page.get_by_text("(ipykernel) | Idle")).to_be_visible()
        cells = page.locator(".jp-CodeCell")
        _, definition, card, other, last = [cells.nth(number) for number in range(len(CELLS))]

        def run(cell: Locator) -> Locator:
            cell.locator(".cm-content").click()
            page.keyboard.press("Shift+Enter")
            return cell.locator(".jp-OutputArea-output")

        run(cells.first)
        printed = run(definition)
        run(card)
        mine = run(other)
        value = card.get_by_text(re.compile(r"^value \d+$"))
        expect(value).to_be_visible()
        shown = value.inner_text()
        expect(value).not_to_have_text(shown)
        expect(card.locator(".line")).to_contain_text("updated")
        expect(printed).to_have_text("five\n")
        expect(mine).to_have_text("mine\n")
        stopped = run(last)
        expect(stopped).to_have_text(re.compile(r"last value \d+"))
        expect(value).to_have_text(stopped.inner_text().strip().removeprefix("last "))
        expect(card.locator(".badge")).to_have_text("no longer updated")
