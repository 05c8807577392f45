"""How a server ends: within the grace period, quietly, and with all of its processes (invariant 19)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import httpx
import psutil
import pytest

from servers import PanelServer, Serve, eventually, write_files
from visitors import Visitor

APP = """
    import panel as pn
    pn.pane.Str("hello").servable()
"""

# A coroutine that cleans up until the test lets it go, a thread that ends then, and one that goes on and on.
TASKS = """
    import asyncio, atexit, os, pathlib, threading
    import panel_schedule as ps

    go, gone = pathlib.Path("go"), threading.Event()

    def say(*words):
        os.write(1, f"{' '.join(map(str, words))} in {os.getpid()}\\n".encode())  # whole, whoever else writes

    @ps.schedule(period="1h", first_run="background")
    async def waiting():
        say("waiting")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            say("cleaning")
            while not go.exists():
                await asyncio.sleep(0.01)
            say("cleaned")
            gone.set()
            raise

    @ps.schedule(period="1h", first_run="background")
    def finishing():
        say("finishing")
        while not go.exists():
            gone.wait(0.01)
        return 42

    @ps.schedule(period="100ms", first_run="skip")
    def ticking():
        say("tick")

    atexit.register(lambda: say("the value is", finishing()))
"""

# With --plugins it is imported before the fork, so that the supervisor has it as well.
PLUGIN = """
    import panel_schedule
    ROUTES = []
"""

CORES = os.cpu_count() or 1

NOISE = re.compile("Traceback|was destroyed|never retrieved|Exception ignored|restarting")


def send(server: PanelServer, how: str) -> None:
    number = getattr(signal, f"SIG{how.split()[0]}")
    if how.endswith("group"):
        os.killpg(server.process.pid, number)
    else:
        server.process.send_signal(number)


def refuses(server: PanelServer) -> bool:
    with socket.socket() as visitor:
        return visitor.connect_ex(("127.0.0.1", server.port)) != 0


def count(server: PanelServer, words: str) -> int:
    return len(re.findall(rf"^{words} in \d+$", server.output(), re.MULTILINE))


@pytest.mark.parametrize(
    ("options", "processes", "how", "code"),
    [
        ("", 1, "INT group", 0),
        ("", 1, "TERM", 0),
        # The supervisor of `--num-procs 2` does not know this package and dies of the signal; its children see that.
        ("--num-procs 2", 2, "INT group", -2),
        ("--num-procs 2", 2, "INT", -2),
        ("--num-procs 2", 2, "TERM group", -15),
        ("--num-procs 2", 2, "KILL", -9),
        ("--num-procs 2", 1, "TERM", -15),
        ("--num-procs 4", 4, "TERM", -15),
        # Where it does, it hands the signal on and ends after them.
        ("--num-procs 2 --plugins plugin", 2, "INT group", 0),
        ("--num-procs 2 --plugins plugin", 2, "INT", 0),
        ("--num-procs 0", CORES, "TERM", 0),
        ("--num-procs 0", CORES, "TERM group", 0),
        ("--num-procs 0", CORES, "KILL", -9),
        ("--num-procs 0", 1, "INT group", 0),
    ],
)
async def test_a_server_ends_when_its_runs_do(serve: Serve, options: str, processes: int, how: str, code: int) -> None:
    """In the grace period nothing begins and nobody is let in; what runs ends, and then all of it is gone, quietly."""
    files = {"app.py": APP, "tasks.py": TASKS, "plugin.py": PLUGIN, "tmp/here": ""}
    env = {"PANEL_SCHEDULE_GRACE_PERIOD": "20", "TMPDIR": "tmp", "XDG_RUNTIME_DIR": ""}
    if processes > 1:  # each has runs of its own to end; with the common store one of them has
        env["PANEL_SCHEDULE_STORE"] = "memory://"
    server = serve(f"app.py --setup tasks.py {options}", files, env=env)
    eventually(lambda: count(server, "waiting") == count(server, "finishing") == processes, 20)
    visitor = await Visitor.open(f"{server.url}/app")

    send(server, how)
    eventually(lambda: count(server, "cleaning") == processes)
    eventually(lambda: refuses(server))
    assert 0 == count(server, "cleaned")
    with socket.create_server(("127.0.0.1", server.port)):
        (server.folder / "go").touch()
        assert code == server.wait_exit(15)
        eventually(lambda: not server.descendants(), 15)
    await visitor.close()
    output = server.output()
    assert processes == count(server, "cleaned") <= count(server, "the value is 42")
    assert not [*server.folder.glob("tmp/*/*")]  # the common store's directory
    for process in set(re.findall(r"cleaning in (\d+)", output)):
        assert f"tick in {process}" not in output[output.index(f"cleaning in {process}") :]
    if code == -2:  # as plain `panel serve` says goodbye
        output = re.sub(r"Traceback(?s:.)*?\nKeyboardInterrupt\n", "", output, count=1)
    assert not NOISE.search(output)


FAILING = """
    import os, threading, time
    import panel_schedule as ps

    @ps.schedule(period="1h")
    def answer():
        raise ConnectionError("the warehouse is down")

    @ps.schedule(period="1h", first_run="background")
    def stuck():
        threading.Event().wait(60)
"""


@pytest.mark.parametrize("options", ["", "--num-procs 2", "--num-procs 0", "--num-procs 2 --plugins plugin"])
def test_a_failing_first_run_ends_all_of_the_server(serve: Serve, options: str) -> None:
    """Within 5 s and not with 0; the last lines are the user's traceback; nothing starts again."""
    files = {"app.py": APP, "tasks.py": FAILING, "plugin.py": PLUGIN}
    # In the other processes: they are asked to stop, and do not know why.
    env = {"PANEL_SCHEDULE_GRACE_PERIOD": "1"}
    server = serve(f"app.py --setup tasks.py {options}", files, env=env, wait=False)
    server.wait_for("so the server stops")
    begun = time.monotonic()
    # The supervisor that does not know this package dies of the signal.
    assert server.wait_exit(5) == (-signal.SIGTERM if options == "--num-procs 2" else 1)
    eventually(lambda: not server.descendants(), 5)
    assert time.monotonic() - begun < 5
    output = server.output()
    assert output.rstrip().endswith("ConnectionError: the warehouse is down")
    assert output.count("Traceback") <= 2
    assert not NOISE.search(output.replace("Traceback", ""))


# What does not end by itself: a coroutine that will not be cancelled, and a thread in one C++ call after the other.
HOPELESS = """
    import asyncio, atexit, os
    import duckdb
    import panel_schedule as ps

    @ps.schedule(period="1h", first_run="background")
    async def stubborn():
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.7)
                os.write(1, b"it does not listen\\n")

    @ps.schedule(period="1h", first_run="background")
    def stuck():
        with duckdb.connect() as database:
            os.write(1, b"it is stuck\\n")
            while True:
                database.sql("select count(*) from range(100000)").fetchall()

    atexit.register(os.write, 1, b"at exit\\n")
"""


@pytest.mark.parametrize("options", ["", "--num-procs 2 --plugins plugin"])
def test_what_outlives_the_grace_period_does_not_hold_the_server(serve: Serve, options: str) -> None:
    """Python would abort when a thread inside of C++ comes back during its end; the exit handlers run all the same."""
    pytest.importorskip("duckdb")
    files = {"app.py": APP, "tasks.py": HOPELESS, "plugin.py": PLUGIN}
    env = {"PANEL_SCHEDULE_GRACE_PERIOD": "0.2"}
    server = serve(f"app.py --setup tasks.py {options}", files, env=env)
    server.wait_for("it is stuck")
    send(server, "TERM")
    assert 0 == server.wait_exit(15)
    assert "at exit" in server.output()
    assert not NOISE.search(server.output())


# It ends a worker that it has forked, and then it cleans up for longer than anybody waits.
ENDLESS = """
    import asyncio, os, signal
    import panel_schedule as ps

    @ps.schedule(period="1h", first_run="background")
    async def waiting():
        reading, writing = os.pipe()
        worker = os.fork()
        if not worker:
            os.write(writing, b"!")
            signal.pause()
            os._exit(0)
        os.read(reading, 1)
        os.kill(worker, signal.SIGTERM)
        os.write(1, f"the worker ended with {os.waitpid(worker, 0)[1]}\\n".encode())
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.6)
            os.write(1, b"still cleaning\\n")
            await asyncio.sleep(60)
"""


@pytest.mark.parametrize(("options", "how"), [("--num-procs 0", "INT"), ("", "INT group")])
def test_a_second_ctrl_c_ends_the_server_at_once(serve: Serve, options: str, how: str) -> None:
    """Whatever still runs. What a task has forked takes no part in the server's signals."""
    env = {"PANEL_SCHEDULE_GRACE_PERIOD": "50", "PANEL_SCHEDULE_STORE": "memory://"}
    server = serve(f"app.py --setup tasks.py {options}", {"app.py": APP, "tasks.py": ENDLESS}, env=env)
    processes = CORES if options else 1
    eventually(lambda: server.output().count(f"the worker ended with {int(signal.SIGTERM)}\n") == processes, 20)
    send(server, how)
    eventually(lambda: server.output().count("still cleaning\n") == processes)
    send(server, how)
    assert 0 == server.wait_exit(15)
    assert not server.descendants()
    assert not NOISE.search(server.output())


HELD = """
    import panel as pn
    import time

    print("held", flush=True)
    for _ in range(600):
        time.sleep(0.1)
"""


def test_a_page_that_holds_the_loop_does_not_hold_the_server(serve: Serve) -> None:
    """It gets the grace period as well, and there is no run whose end it could wait for."""
    tasks = "import panel_schedule as ps\nps.schedule(period='1h')(print)"
    server = serve(
        "app.py --setup tasks.py", {"app.py": HELD, "tasks.py": tasks}, env={"PANEL_SCHEDULE_GRACE_PERIOD": "0.2"}
    )
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{server.url}/app", timeout=1.0)
    server.wait_for("held")
    send(server, "TERM")
    assert 0 == server.wait_exit(15)
    assert not NOISE.search(server.output())


def test_one_process_of_several_ends_alone(serve: Serve) -> None:
    """With 0, so that the supervisor does not replace it: as without this package. The others serve on."""
    files, env = {"app.py": APP, "tasks.py": TASKS}, {"PANEL_SCHEDULE_STORE": "memory://"}
    server = serve("app.py --setup tasks.py --num-procs 2", files, env=env)
    eventually(lambda: count(server, "waiting") == count(server, "finishing") == 2, 20)
    (server.folder / "go").touch()
    one, other = server.descendants()
    one.terminate()
    server.wait_for(f"cleaned in {one.pid}")
    eventually(lambda: not one.is_running() or one.status() == psutil.STATUS_ZOMBIE)
    assert 200 == httpx.get(f"{server.url}/app", timeout=10).status_code
    assert [other] == server.descendants()
    assert f"the value is 42 in {one.pid}" in server.output()
    assert not NOISE.search(server.output())


def test_a_script_that_runs_for_ever_ends_the_same_way(tmp_path: Path) -> None:
    """``ps.run_forever()`` at SIGTERM: what runs gets the grace period, and the script goes on to its end."""
    command = [sys.executable, "-c", f"{dedent(TASKS)}\nps.run_forever(), say('over')\n"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            output = ""
            for line in process.stdout:
                output += line
                if "waiting" in output and "finishing" in output and not (tmp_path / "go").exists():
                    (tmp_path / "go").touch()
                    process.terminate()
            assert 0 == process.wait(10)
        finally:
            process.kill()
    assert re.search(r"cleaning(?s:.)*cleaned(?s:.)*over(?s:.)*the value is 42", output)
    assert not NOISE.search(output)


def test_a_process_whose_supervisor_ended_before_it_knew_of_it_ends(serve: Serve) -> None:
    """It died while the setup script still ran, so that there was no signal and no change to see."""
    slow = """
        import os, pathlib, time
        os.write(1, b"starting\\n")
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
    """
    server = serve("app.py --setup tasks.py --num-procs 2", {"app.py": APP, "tasks.py": dedent(slow) + dedent(TASKS)})
    eventually(lambda: server.output().count("starting\n") == 2)
    send(server, "KILL")
    server.process.wait()
    (server.folder / "go").touch()
    eventually(lambda: not server.descendants())
    assert not NOISE.search(server.output())


@pytest.mark.parametrize("options", ["", "--num-procs 2"])
def test_a_server_whose_output_nobody_reads_stops(tmp_path: Path, options: str) -> None:
    """What it says at the end goes into a closed pipe: a terminal that was closed, a log shipper that died."""
    tasks = """
        import panel_schedule as ps

        @ps.schedule(period="1h")
        def answer():
            print("it has run", flush=True)
            return 42
    """
    app = "import panel as pn\nfrom tasks import answer\npn.pane.Str(answer).servable()"
    write_files(tmp_path, {"app.py": app, "tasks.py": tasks})
    command = [sys.executable, "-m", "panel", "serve", "app.py", "--setup", "tasks.py", *options.split()]
    server = subprocess.Popen(
        [*command, "--address", "127.0.0.1", "--port", "0"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        ready = 0
        while ready < (3 if options else 2):  # each process, and the one first run
            line = server.stdout.readline()
            assert line, "it ended by itself"
            ready += b"it has run" in line or b"server with process id" in line
        children = psutil.Process(server.pid).children(recursive=True)
        server.stdout.close()
        server.terminate()
        server.wait(20)
        _, alive = psutil.wait_procs(children, 20)
        assert [] == alive
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
