"""A real ``panel serve``: when it starts serving, and when it does not."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import httpx
import panel.models  # noqa: F401, registers the models of its pages
import pytest
from bokeh.client import pull_session

from servers import Serve, eventually

APP = """
    import panel as pn
    from tasks import answer
    pn.pane.Str(f"the answer is {answer()}").servable()
"""

FAILING = """
    import panel_schedule as ps

    @ps.schedule(period="1h")
    def answer():
        return look_up()

    def look_up():
        raise ConnectionError("the warehouse is down")
"""


def page(url: str) -> str:
    response = httpx.get(url, timeout=30)
    assert response.status_code == 200
    return response.text


@pytest.mark.smoke
def test_no_page_is_built_before_the_first_value_is_there(serve: Serve) -> None:
    """Invariant 8: a document that asks for the value finds it, however long the first run takes."""
    tasks = """
        import pathlib, time
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def answer():
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
            return 42
    """
    app = APP + "\n    print('built with', answer(), flush=True)\n"
    server = serve("app.py --setup tasks.py", {"app.py": app, "tasks.py": tasks})
    with httpx.Client(timeout=1.0) as client:
        try:
            client.get(f"{server.url}/app")
        except httpx.ReadTimeout:
            held = True
    assert held
    assert "built" not in server.output()
    (server.folder / "go").touch()
    page(f"{server.url}/app")
    server.wait_for("built with 42")


@pytest.mark.alone
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_failing_first_run_stops_the_server_and_shows_why(serve: Serve, executor: str) -> None:
    """It exits non-zero within 2 s of the failure; the last lines name the task and show the user's traceback."""
    timed = FAILING.replace('period="1h"', f'period="1h", executor="{executor}"')
    timed = timed.replace("raise Conn", 'import time; print("failing at", time.time(), flush=True); raise Conn')
    server = serve("app.py --setup tasks.py", {"app.py": APP, "tasks.py": timed}, wait=False)
    assert server.wait_exit() != 0
    failed_at = float(server.output().split("failing at ")[1].split()[0])
    assert time.time() - failed_at < 2.0
    last = server.output().split("panel-schedule: ")[-1]
    assert "the first run of task 'answer' failed" in last
    assert f'File "{server.folder / "tasks.py"}", line 9, in look_up\n' in last
    assert 'raise ConnectionError("the warehouse is down")\n' in last
    assert last.rstrip().endswith("ConnectionError: the warehouse is down")
    assert "panel_schedule/" not in last
    assert server.output().count("Traceback") == 1


def test_a_failing_first_run_in_the_background_does_not_stop_the_server(serve: Serve) -> None:
    tasks = FAILING.replace('period="1h"', 'period="1h", first_run="background", default="unknown"')
    server = serve("app.py --setup tasks.py", {"app.py": APP, "tasks.py": tasks})
    server.wait_for("the warehouse is down")
    page(f"{server.url}/app")
    assert server.process.poll() is None


def test_a_visitor_who_waited_too_long_is_told_that_the_server_is_starting(serve: Serve) -> None:
    """After ``ready_timeout`` there is a page, and it is not the app's."""
    tasks = """
        import threading
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def answer():
            threading.Event().wait(20)
    """
    app = APP + "\n    print('built', flush=True)\n"
    env = {"PANEL_SCHEDULE_READY_TIMEOUT": "1", "PANEL_SCHEDULE_GRACE_PERIOD": "0"}
    server = serve("app.py --setup tasks.py", {"app.py": app, "tasks.py": tasks}, env=env)
    page(f"{server.url}/app")
    assert "built" not in server.output()


def test_tasks_of_an_imported_module_start_with_the_first_visitor_and_warn_once(serve: Serve) -> None:
    """Invariant 2: without --setup a task works, does not hold the page, and one warning names --setup."""
    tasks = """
        import panel_schedule as ps

        @ps.schedule(period="1h", default="not there yet")
        def answer():
            print("computing", flush=True)
            return 42

        @ps.schedule(period="1h")
        def other():
            return 1
    """
    server = serve("app.py", {"app.py": APP, "tasks.py": tasks})
    page(f"{server.url}/app")
    page(f"{server.url}/app")
    server.wait_for("computing")
    assert server.output().count("computing") == 1
    assert server.output().count("--setup tasks.py") == 1


def test_a_task_in_the_served_script_is_refused_and_told_where_to_go(serve: Serve) -> None:
    """Invariant 2."""
    app = """
        import panel as pn
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def answer():
            return 42
    """
    server = serve("app.py", {"app.py": app})
    httpx.get(f"{server.url}/app", timeout=30)
    server.wait_for("Task 'answer' is defined in the served script itself")
    server.wait_for("panel serve app.py --setup tasks.py")


@pytest.mark.parametrize("options", ["", "--num-procs 2", "--num-procs 2 --warm --plugins panel_schedule"])
def test_the_setup_script_that_the_app_imports_is_one_module(serve: Serve, options: str) -> None:
    """Invariant 1: it runs once in a process; values, answers and errors are of the classes that the app knows."""
    tasks = """
        import enum, os
        import panel_schedule as ps
        print(f"the file runs in {os.getpid()}", flush=True)

        class Region(enum.Enum):
            NORTH = "n"

        class NoData(Exception):
            pass

        @ps.schedule(period="1h")
        def answer():
            print("the task runs", flush=True)
            return {Region.NORTH: 42}

        @ps.background(executor="thread")
        def job():
            raise NoData
    """
    app = """
        import threading
        import panel as pn
        from tasks import NoData, Region, answer, job

        def look():
            try:
                job.submit().result(20)
            except NoData:
                print("caught it,", answer()[Region.NORTH], flush=True)

        if pn.state.session_args is not None and answer() is not None:
            threading.Thread(target=look).start()
        pn.pane.Str("page").servable()
    """
    server = serve(f"app.py --setup tasks.py {options}", {"app.py": app, "tasks.py": tasks})
    page(f"{server.url}/app")
    server.wait_for("caught it, 42")
    runs = re.findall(r"the file runs in (\d+)", server.output())
    assert len(runs) == len(set(runs))
    assert server.output().count("the task runs") == 1


def test_an_edit_under_dev_replaces_the_function_and_keeps_the_value(serve: Serve) -> None:
    """Invariant 1, under ``--dev``: the new definition replaces the old one."""
    tasks = """
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def answer():
            print("computed FIRST", flush=True)
            return "FIRST"
    """
    server = serve("app.py --dev --setup tasks.py", {"app.py": APP, "tasks.py": tasks})
    page(f"{server.url}/app")
    server.wait_for("computed FIRST")
    path = server.folder / "tasks.py"
    path.write_text(path.read_text().replace("FIRST", "SECOND"))
    eventually(lambda: page(f"{server.url}/app") and "computed SECOND" in server.output(), timeout=20)
    assert server.output().count("computed SECOND") == 1


def test_what_an_edit_under_dev_takes_out_of_its_file_is_gone(serve: Serve) -> None:
    """A task that is renamed or deleted runs no more; one that stays keeps its runs, and sees what was edited."""
    tasks = """
        import panel_schedule as ps

        word = "FIRST"

        @ps.schedule(period="200ms", first_run="background")
        def old():
            print("old runs", flush=True)

        @ps.schedule(period="200ms", first_run="background")
        def stays():
            print("stays with", word, flush=True)

        @ps.background
        def work():
            pass
    """
    app = """
        import panel as pn, panel_schedule as ps
        from tasks import stays

        print("tasks are", *ps.tasks, flush=True)
        pn.Column("a page").servable()
    """
    server = serve("app.py --dev --setup tasks.py", {"app.py": app, "tasks.py": tasks})
    page(f"{server.url}/app")
    server.wait_for("tasks are old stays")
    path = server.folder / "tasks.py"
    path.write_text(path.read_text().replace("old", "new").replace("FIRST", "SECOND"))
    eventually(lambda: page(f"{server.url}/app") and "tasks are stays new" in server.output(), timeout=20)
    # Not at its end: a run of before may be under way.
    ended = server.output().count("old runs")
    many = server.output().count("stays with SECOND") + 5
    eventually(lambda: server.output().count("stays with SECOND") >= many)
    assert server.output().count("old runs") <= ended + 1

    def all_gone() -> bool:
        # Again and again: while Panel begins to watch the file anew it overlooks an edit.
        path.write_text("word = 'THIRD'\nstays = None\n")
        return bool(page(f"{server.url}/app")) and re.search(r"^tasks are$", server.output(), re.M) is not None

    eventually(all_gone, timeout=20)


def test_ctrl_c_ends_the_server_quickly_and_quietly(serve: Serve) -> None:
    """No stack trace on the terminal, while a thread and a coroutine are in the middle of a run."""
    tasks = """
        import asyncio, threading
        import panel_schedule as ps

        @ps.schedule(period="1h", first_run="background")
        def stuck():
            threading.Event().wait(60)

        @ps.schedule(period="1h", first_run="background")
        async def waiting():
            print("both run", flush=True)
            await asyncio.sleep(60)

        @ps.schedule(period="1h")
        def answer():
            return 42
    """
    env = {"PANEL_SCHEDULE_GRACE_PERIOD": "0.2"}
    server = serve("app.py --setup tasks.py", {"app.py": APP, "tasks.py": tasks}, env=env)
    server.wait_for("both run")
    server.process.send_signal(2)
    server.wait_exit(15)
    assert "Traceback" not in server.output()


def test_what_a_coroutine_cleans_up_is_done_before_the_server_goes(serve: Serve) -> None:
    """SIGTERM cancels it, and its cleanup code runs to its end."""
    tasks = """
        import asyncio
        import panel_schedule as ps

        @ps.schedule(period="1h", first_run="background")
        async def waiting():
            print("it runs", flush=True)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                print("cleaned up", flush=True)

        @ps.schedule(period="1h")
        def answer():
            return 42
    """
    server = serve("app.py --setup tasks.py", {"app.py": APP, "tasks.py": tasks})
    server.wait_for("it runs")
    server.stop(5)
    assert "cleaned up" in server.output()


def test_an_error_that_cannot_say_what_it_is_fails_its_run_and_nothing_else(serve: Serve) -> None:
    """Its ``__str__`` raises; the page still opens, with the last good value."""
    tasks = """
        import panel_schedule as ps

        class Bad(Exception):
            def __str__(self):
                return self.missing

        @ps.schedule(period="100ms")
        def answer(numbers=iter(range(100))):
            if next(numbers) > 0:
                raise Bad
            return 42
    """
    app = "import panel as pn\nfrom tasks import answer\npn.Column(answer).servable()\nprint('built', flush=True)"
    server = serve("app.py --setup tasks.py", {"app.py": app, "tasks.py": tasks})
    server.wait_for("'answer' failed")
    page(f"{server.url}/app")
    server.wait_for("built")


def texts(url: str) -> str:
    """What a new session's page says."""
    session = pull_session(url=url)
    try:
        return " ".join(str(model.text) for model in session.document.models if hasattr(model, "text"))
    finally:
        session.close()


@pytest.mark.parametrize("processes", ["1", "2", "0"])
@pytest.mark.parametrize("store", ["file://{}/app.py", "nonsense"])
def test_a_store_that_cannot_be_opened_ends_the_server(
    serve: Serve, tmp_path: Path, processes: str, store: str
) -> None:
    """With one line and a non-zero exit, and no restarts (2.5): there is nothing to serve."""
    tasks = FAILING.replace("return look_up()", "return 42")
    env = {"PANEL_SCHEDULE_STORE": store.format(tmp_path)}
    files = {"app.py": APP, "tasks.py": tasks}
    server = serve(f"app.py --setup tasks.py --num-procs {processes}", files, env=env, wait=False)
    assert server.wait_exit() != 0
    assert "panel-schedule: " in server.output()
    assert "ps.config.store" in server.output()
    assert "Traceback" not in server.output()
    assert server.output().count("Starting Bokeh server with process id") <= (os.cpu_count() or 1) + 2


def test_a_store_that_cannot_be_opened_is_what_the_page_of_another_host_says(serve: Serve, tmp_path: Path) -> None:
    """Without --setup nothing is ended: page and log say what is wrong, until it is mended."""
    tasks = FAILING.replace("return look_up()", "return 42")
    files = {
        "app.py": "import panel as pn\nfrom tasks import answer\npn.Column(answer).servable()",
        "tasks.py": tasks,
        "named.py": 'import panel as pn, panel_schedule as ps\npn.pane.Str(ps.store.rx("rates")).servable()',
        "store": "a file",
    }
    server = serve("app.py named.py", files, env={"PANEL_SCHEDULE_STORE": f"file://{tmp_path}/store"})
    for name in ("named", "app", "named"):
        assert "store cannot be made" in texts(f"{server.url}/{name}")
    (tmp_path / "store").unlink()
    eventually(lambda: "42" in texts(f"{server.url}/app"))
    assert "cannot be made" not in texts(f"{server.url}/named")
    assert server.output().count("Until then no task runs here") == 1
