"""A notebook's kernel: cells that define tasks, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

EXAMPLES = Path(__file__).parent.parent / "examples"

Run = Callable[..., list[str]]


def outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell printed or showed."""
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [out.get("text", "") + "".join(map(str, out.get("data", {}).values())) for out in cell.outputs]
            texts += ["\n".join(out.traceback) for out in cell.outputs if out.output_type == "error"]
            shown.append("".join(texts).strip())
    return shown


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One for all tests, as a person's is there for hours."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path_factory.mktemp("kernel")))
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def run(kernel: KernelManager) -> Iterator[Run]:
    """Execute cells; what each of them showed. The tasks that they define are gone after the test."""

    def execute(*cells: str, allow_errors: bool = False) -> list[str]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        NotebookClient(notebook, km=kernel, timeout=60, allow_errors=allow_errors).execute()
        return outputs(notebook)

    yield execute
    execute("for name in list(ps.tasks): ps.cancel_task(name)")


DEFINE = """
import panel_schedule as ps

@ps.schedule(period="1h")
def {name}():
    return {value}
"""


def test_a_cell_waits_for_the_first_value(run: Run) -> None:
    """``first_run="wait"``: the next line finds it."""
    *_, shown = run(DEFINE.format(name="answer", value=42) + "\nprint(answer())")
    assert shown == "42"


FAMILY = """
import panel_schedule as ps

@ps.schedule(period="1h", each={each})
def sales(region):
    return f"{{region}} {number}"

print(list(sales))
"""


@pytest.mark.parametrize("each", ["{}", "lambda: {}"])
def test_a_cell_defines_a_family_and_defines_it_anew(run: Run, each: str) -> None:
    """It waits for the keys; their tasks, and then others, have values."""
    show = "print([await task.ready(20) for task in sales.values()])"
    first, _, again, shown = run(
        FAMILY.format(each=each.format(["north", "south"]), number=1),
        show,
        FAMILY.format(each=each.format(["south", "west"]), number=2),
        """
        import asyncio
        while (values := [sales[key]() for key in sales]) != ["south 2", "west 2"]:
            await asyncio.sleep(0.01)
        print(values, *ps.tasks)
        """,
    )
    assert ("['north', 'south']", "['south', 'west']") == (first, again)
    source = "sales[] " if "lambda" in each else ""
    assert f"['south 2', 'west 2'] {source}sales[south] sales[west]" == shown


def test_a_failing_first_run_is_a_traceback_in_the_cell(run: Run) -> None:
    """Of a plain function in the very cell, of an async one as soon as it has failed."""
    plain, _, later = run(
        DEFINE.format(name="failing", value="1 / 0"),
        DEFINE.format(name="other", value="2 / 0").replace("def", "async def"),
        """
        import asyncio
        while not other.status.error:
            await asyncio.sleep(0.01)
        print(other.status.error)
        """,
        allow_errors=True,
    )
    assert "ZeroDivisionError" in plain
    assert later == "ZeroDivisionError: division by zero"


def test_a_traceback_of_a_worker_process_shows_the_line_of_the_cell(run: Run) -> None:
    *_, shown = run(
        """
        import panel_schedule as ps

        @ps.schedule(period="1h", executor="process", first_run="background")
        def divide():
            return [1 / number for number in (1, 0)]
        """,
        """
        run = divide.refresh()
        try: await run
        except ZeroDivisionError: print(run.traceback)
        """,
    )
    assert "return [1 / number for number in (1, 0)]" in shown
    assert "line 5, in divide" in shown


def test_a_task_whose_first_run_fails_has_its_name(run: Run) -> None:
    """So that it can be looked at, and ended."""
    failed, shown = run(DEFINE.format(name="boom", value="1 / 0"), "print(boom.status.state); boom.remove_schedule()")
    assert "ZeroDivisionError" in failed
    assert shown == "failed"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_task_prints_and_the_log_says_is_in_no_later_cell(run: Run, kind: str) -> None:
    """Runs that print and fail go on while other cells run."""
    _, *later = run(
        DEFINE.format(name="loud", value="print('out') or 1 / 0").replace("def", kind).replace("1h", "20ms"),
        """
        import asyncio
        async with asyncio.timeout(20):
            while len(loud.history) < 25:
                await asyncio.sleep(0.01)
        """,
        "loud.remove_schedule(); print('mine')",
    )
    assert later == ["", "mine"]


def test_another_function_replaces_the_first_and_keeps_value_and_history(run: Run) -> None:
    """Invariant 1: the version goes on, and the new function's value is there."""
    *_, shown = run(
        DEFINE.format(name="replaced", value=1),
        DEFINE.format(name="replaced", value=2),
        "print(replaced(), replaced.entry.version, len(replaced.history), len(ps.tasks))",
    )
    assert shown == "2 2 2 1"


def test_a_new_function_that_fails_leaves_the_value(run: Run) -> None:
    """The cell shows the traceback, the task its last good value."""
    *_, failed, shown = run(
        DEFINE.format(name="kept", value=1),
        DEFINE.format(name="kept", value="1 / 0"),
        "print(kept(), kept.status.stale)",
        allow_errors=True,
    )
    assert "ZeroDivisionError" in failed
    assert shown == "1 True"


def test_twenty_reruns_leave_one_timer(run: Run) -> None:
    """Edited each time."""
    cells = [DEFINE.format(name="edited", value=number) for number in range(20)]
    *_, shown = run(*cells, "print(len(ps._runtime.service.timers), edited())")
    assert shown == "1 19"


def test_slots_run_on_the_kernels_loop_and_reach_what_is_shown(run: Run) -> None:
    """An async task runs on the kernel's own loop; ``task.rx()`` follows it from cell to cell."""
    *_, shown = run(
        """
        import asyncio, panel_schedule as ps
        kernel = asyncio.get_running_loop()

        @ps.schedule(period="50ms")
        async def ticks(numbers=iter(range(1, 10_000))):
            assert asyncio.get_running_loop() is kernel
            return next(numbers)
        """,
        "await ticks.ready(10); doubled = ticks.rx() * 2; first = doubled.rx.value",
        """
        async with asyncio.timeout(10):
            while doubled.rx.value <= first:
                await asyncio.sleep(0.01)
        print("live", ticks.status.error)
        """,
    )
    assert shown == "live"


def test_a_task_is_displayed(run: Run) -> None:
    """``task`` as the last line of a cell shows the value and its freshness, as Panel shows anything."""
    *_, shown = run("import panel as pn; pn.extension()", DEFINE.format(name="displayed", value=42), "displayed")
    assert "FreshnessLine" in shown
    assert "&lt;pre&gt;42" in shown


def test_the_example_runs() -> None:
    """``examples/prototyping.ipynb``, as a person would run it from top to bottom."""
    notebook = nbformat.read(EXAMPLES / "prototyping.ipynb", as_version=4)
    try:
        NotebookClient(notebook, timeout=60, resources={"metadata": {"path": EXAMPLES}}).execute()
    except CellExecutionError as error:
        pytest.fail(str(error))
    assert any(outputs(notebook))
