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


@pytest.fixture
def ask(kernel: KernelManager, run: Run) -> Iterator[Callable[..., tuple[str, str]]]:
    """
    Execute one cell as JupyterLab does, with the cell's id: ``ask(cell, id)`` gives its error's name and its output.

    With `interrupted` the kernel is interrupted as soon as the cell has printed something.
    """
    client = kernel.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)

    def execute(code: str, cell: str = "", interrupted: bool = False) -> tuple[str, str]:
        content = {"code": code, "silent": False, "store_history": False, "stop_on_error": False}
        message = client.session.msg("execute_request", content, metadata={"cellId": cell})
        client.shell_channel.send(message)
        error, shown = "", ""
        while True:
            reply = client.get_iopub_msg(timeout=60)
            if reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            kind, content = reply["msg_type"], reply["content"]
            if kind == "stream":
                shown += content["text"]
                if interrupted:
                    kernel.interrupt_kernel()
                    interrupted = False
            elif kind == "error":
                error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return error, shown.strip()

    yield execute
    client.stop_channels()


Ask = Callable[..., tuple[str, str]]

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


def test_what_the_log_says_of_a_task_is_in_the_cell_that_has_defined_it_last(run: Run) -> None:
    """Also where a thread of ours has spoken for that task before."""
    cell = DEFINE.format(name="failing", value="1 / 0")
    first, second = run(cell, cell, allow_errors=True)
    for shown in (first, second):
        assert "Task 'failing' failed" in shown


# ------------------------------------------------------------ waiting in a cell

JOBS = """
import asyncio, threading, time
import panel_schedule as ps

go, began = threading.Event(), threading.Event()

@ps.background(executor="thread")
def held():
    began.set()
    go.wait(30)
    return "done"

@ps.background(executor="loop")
async def echo(value):
    await asyncio.sleep(0)
    return value

@ps.memoize
def doubled(number):
    return number * 2
"""


def test_a_cell_awaits_a_run_or_asks_for_its_result(run: Run) -> None:
    """In a thread, and of an async function: that has another loop than the kernel's, which the cell blocks."""
    *_, shown = run(JOBS, "go.set(); print(await held.submit(), held.submit().result(), echo.submit('here').result())")
    assert shown == "done done here"


def test_a_result_that_the_kernels_loop_is_making_is_awaited(run: Run) -> None:
    """To wait for it in the cell, which blocks that loop, would never end."""
    *_, refused, shown = run(
        JOBS,
        """
        event = asyncio.Event()

        @ps.background(executor="loop")
        async def waits():
            await event.wait()
            return 1

        run = waits.submit()
        while run.state != "running":
            await asyncio.sleep(0.01)
        """,
        "try: run.result()\nexcept RuntimeError as error: print(error)",
        "event.set(); print(await run)",
    )
    assert "Write `await run` there." in refused
    assert shown == "1"


def test_a_call_of_a_memoized_function_says_nothing_of_the_loop(run: Run) -> None:
    """It warns in a page, where others wait."""
    *_, shown = run(JOBS, "print(doubled(21))")
    assert shown == "42"


@pytest.mark.parametrize(
    ("wait", "error"), [("run.result()", "KeyboardInterrupt"), ("await run", "CancelledError")], ids=["result", "await"]
)
def test_an_interrupt_ends_the_cell_that_waits_and_not_the_run(ask: Ask, wait: str, error: str) -> None:
    """At once; the next cell works, and has the result."""
    ask(JOBS)
    ask("run = held.submit()")
    assert ask(f"print('waits'); {wait}", interrupted=True) == (error, "waits")
    assert ask("print(run.state); go.set(); print(await run)") == ("", "running\ndone")


def test_an_interrupt_ends_a_cell_that_waits_for_a_first_value(ask: Ask) -> None:
    """The task goes on; the same cell again waits for it, and begins no second run."""
    ask(JOBS)
    define = """
@ps.schedule(period="1h")
def slow():
    print("begins")
    go.wait(30)
    return 1
"""
    error, shown = ask(define, interrupted=True)
    assert (error, shown) == ("KeyboardInterrupt", "begins")
    ask("threading.Timer(0.2, go.set).start()")
    assert ask(define) == ("", "")
    assert ask("print(slow(), len(slow.history))") == ("", "1 1")


# ------------------------------------------------------------ what a cell does not define any more


def test_a_task_that_its_cell_names_otherwise_ends(ask: Ask) -> None:
    """The cell says so; a task of another cell goes on."""
    ask(DEFINE.format(name="other", value=0), "one")
    ask(DEFINE.format(name="before", value=1), "two")
    assert ask(DEFINE.format(name="after", value=2), "two") == (
        "", "Task 'before' has ended: the cell that defined it does so no longer.",
    )  # fmt: skip
    assert ask("print(*ps.tasks)") == ("", "other after")


@pytest.mark.parametrize(("code", "left"), [("pass", ""), ("1 / 0", "kept")])
def test_a_task_that_its_cell_has_no_more_ends(ask: Ask, code: str, left: str) -> None:
    """Unless the cell has failed, which may have been before it came to its task."""
    ask(DEFINE.format(name="kept", value=1), "one")
    ask(code, "one")
    assert ask("print(*ps.tasks)") == ("", left)


@pytest.mark.parametrize(
    "define",
    [DEFINE.format(name="same", value=1), "ps.schedule_task('same', callback, period='1h')"], ids=["schedule", "pair"],
)  # fmt: skip
def test_a_task_whose_cell_runs_again_unchanged_goes_on(ask: Ask, define: str) -> None:
    """It is the same one."""
    ask("import panel_schedule as ps\ndef callback(): return 1")
    ask(define + "\nfirst = ps.tasks['same']", "one")
    ask(define, "one")
    assert ask("print(ps.tasks.get('same') is first)") == ("", "True")


def test_a_task_that_has_moved_to_another_cell_goes_on(ask: Ask) -> None:
    """Its old cell does not define it any more, and has it no more."""
    ask(DEFINE.format(name="moved", value=1), "one")
    ask(DEFINE.format(name="moved", value=1), "two")
    ask("pass", "one")
    assert ask("print(*ps.tasks)") == ("", "moved")


@pytest.mark.parametrize(
    ("decorator", "call"),
    [("background(executor='thread')", "{}.submit().result()"), ("memoize", "{}()")], ids=["background", "memoize"],
)  # fmt: skip
def test_a_function_is_defined_again_and_under_another_name(run: Run, decorator: str, call: str) -> None:
    """The new one is called; under the old name the old one is still there, as any function is."""
    define = f"import panel_schedule as ps\n@ps.{decorator}\ndef {{name}}(): return {{value}}"
    *_, shown = run(
        define.format(name="once", value=1) + "\n" + call.format("once"),
        define.format(name="once", value=2),
        define.format(name="twice", value=3),
        f"print({call.format('once')}, {call.format('twice')})",
    )
    assert shown == "2 3"


# ------------------------------------------------------------ the end of all


def test_after_a_stop_nothing_runs_and_a_cell_begins_anew(run: Run) -> None:
    """Clocks stand still, jobs are cancelled, values stay; what is defined again runs again."""
    define = DEFINE.format(name="ticking", value="next(numbers)").replace("1h", "20ms")
    _, _, _, stopped, later = run(
        JOBS + "numbers = iter(range(10_000))",
        define,
        "ps.store['kept'] = 5; run = held.submit(); ps.stop(); ps.stop(); last = ticking()",
        """
        await asyncio.sleep(0.1)
        ours = [t for t in threading.enumerate() if t.name == "panel-schedule"]
        print(run.state, ps.store["kept"], *ps.tasks, ticking() == last, ours)
        """,
        define + "print(ticking() > last, list(ps.tasks), echo.submit(1).result())",
    )
    assert stopped == "cancelled 5 True []"
    assert later == "True ['ticking'] 1"


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
