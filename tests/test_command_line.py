"""``panel-schedule``: on files, in processes of its own, and on stores that are in use."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result

import documents
import panel_schedule as ps
from panel_schedule.cli import live
from panel_schedule.cli.commands import main
from panel_schedule.cli.table import lasting, table
from panel_schedule.cli.upcoming import upcoming
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.answers import UNLIMITED
from panel_schedule.coordination.tasks import TASK
from panel_schedule.functions.run import RunRecord, RunState
from panel_schedule.stores.tasks import Plan
from panel_schedule.testing.contracts.tools import claim, ended, put
from panel_schedule.triggers import After, Cron, Every
from servers import eventually, write_files

# Imports what takes long once, and forks a process for each command.
NURSERY = """
import gc, json, os, sys
import pandas
from panel_schedule.cli.commands import main

gc.freeze()
for line in sys.stdin:
    what, arguments, folder, output = json.loads(line)
    if what == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(arguments, 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
        main(arguments, prog_name="panel-schedule")
"""


@dataclass(frozen=True)
class Command:
    """A process that was started as ``panel-schedule ...``."""

    ask: Callable[..., int]
    pid: int
    path: Path

    @property
    def out(self) -> str:
        return Path(f"{self.path}.out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return Path(f"{self.path}.err").read_text(encoding="utf-8")

    def wait(self) -> int:
        return self.ask("wait", self.pid)

    def handles(self, number: int) -> bool:
        """Whether it takes a signal by now, which else would end it."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return bool(int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16) >> (number - 1) & 1)

    def signal(self, number: int) -> int:
        os.kill(self.pid, number)
        return self.wait()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Callable[..., int]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PANEL_SCHEDULE_")}
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers, requests = process.stdout, process.stdin

        def ask(*request: Any) -> int:
            requests.write(json.dumps([*request, None, None][:4]) + "\n")
            requests.flush()
            return int(answers.readline())

        yield ask


@pytest.fixture
def start(nursery: Callable[..., int], tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """``start("run", "tasks.py")``, in the folder of the test; what still runs at its end is killed."""
    commands, ended = list[Command](), set[int]()

    def ask(what: str, *arguments: Any) -> int:
        if what == "wait":
            ended.add(arguments[0])
        return nursery(what, *arguments)

    def start_one(*arguments: str) -> Command:
        path = tmp_path / f"output{len(commands)}"
        for name in ("out", "err"):
            Path(f"{path}.{name}").touch()
        commands.append(Command(ask, nursery("start", arguments, str(tmp_path), str(path)), path))
        return commands[-1]

    yield start_one
    for command in commands:
        if command.pid not in ended:
            command.signal(signal.SIGKILL)
        print(command.out, command.err)


@pytest.fixture
def command(start: Callable[..., Command]) -> Callable[..., tuple[int, str, str]]:
    """What became of one, and what it said."""

    def run(*arguments: str) -> tuple[int, str, str]:
        started = start(*arguments)
        return started.wait(), started.out, started.err

    return run


TASKS = """
    import atexit, threading
    import psutil
    import panel_schedule as ps
    from helper import VALUE

    ps.config.store = "file:///{store}"

    @ps.schedule(cron="30 2 * * *", timezone="America/New_York")
    def nightly():
        return VALUE

    @ps.schedule(after=nightly)
    async def summary():
        return VALUE

    @ps.schedule(period="15m", executor="process")
    def quick():
        return VALUE

    @ps.background
    def job(x):
        return x

    @ps.memoize
    def answer(x):
        return x

    @atexit.register
    def tell():
        print("threads", [each.name for each in threading.enumerate()])
        print("ports", [each.laddr for each in psutil.Process().net_connections()])
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    tasks = TASKS.replace("/{store}", str(tmp_path / "store"))
    write_files(tmp_path / "app", {"tasks.py": tasks, "helper.py": "VALUE = 1"})
    return tmp_path


# ------------------------------------------------------------ a file


@pytest.mark.parametrize("name", ["check", "next"])
def test_a_file_is_looked_at_and_nothing_is_started(name, command, files):
    """It may import what lies beside it. No store is opened, no thread started, no port listened on."""
    code, out, err = command(name, "app/tasks.py")

    assert (0, "") == (code, err)
    assert out.endswith("threads ['MainThread']\nports []\n")
    assert not (files / "store").exists()


def test_check_lists_what_the_file_declares(command, files):
    """Each with its kind, its schedule in words, and where it runs."""
    _, out, _ = command("check", "app/tasks.py")
    rows = [line.split("  ") for line in out.splitlines()[1:6]]
    told = [tuple(cell.strip() for cell in row if cell.strip()) for row in rows]

    assert [
        ("nightly", "task", "02:30 every day, New York", "thread"),
        ("summary", "task", "after nightly", "-", "loop"),
        ("quick", "task", "every 15 min", "process"),
        ("job", "job", "on request", "-", "process"),
        ("answer", "memo", "on request", "-", "thread"),
    ] == [row[:3] + row[4:] if row[0] in ("nightly", "quick") else row for row in told]


def test_check_tells_programs_what_it_tells_people(command, files):
    _, out, _ = command("check", "app/tasks.py", "--json")
    first, *_ = json.loads(out.partition("threads")[0])

    assert {"name", "kind", "schedule", "next_run", "executor"} == set(first)
    assert datetime.fromisoformat(first["next_run"]) > datetime.now(UTC)


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ("import broken", ['tasks.py", line 1', 'broken.py", line 2', "ZeroDivisionError: division by zero"]),
        ("def f(:", ['tasks.py", line 1', "SyntaxError"]),
        ("import json\njson.loads('{')", ['tasks.py", line 2', "JSONDecodeError"]),
        ("import sys\nsys.exit('no')", ['tasks.py", line 2', "SystemExit: no"]),
        (
            "import panel_schedule as ps\n@ps.schedule(period='1 fortnight')\ndef f(): pass",
            ['tasks.py", line 2', "TriggerError: @ps.schedule in", "cannot be read"],
        ),
        (
            "import panel_schedule as ps\n@ps.schedule(period='1d', executor='celery')\ndef f(): pass",
            ["Task 'f'", "ps.config.celery"],
        ),
        (
            "import panel_schedule as ps\n@ps.schedule(at=lambda now: 1 / 0)\ndef f(): pass",
            ['tasks.py", line 2', "ZeroDivisionError"],
        ),
        ("import panel_schedule", ["schedules nothing"]),
    ],
)
def test_check_says_what_is_wrong_with_a_file(source, reasons, command, tmp_path):
    """With the lines of the user's own files alone, and exit code 1."""
    write_files(tmp_path, {"tasks.py": source, "broken.py": "\n1 / 0"})
    code, out, err = command("check", "tasks.py")

    assert (1, "") == (code, out)
    assert [] == [reason for reason in reasons if reason not in err]
    assert [] == [line for line in err.splitlines() if line.startswith("  File") and str(tmp_path) not in line]


def test_a_file_that_has_the_name_of_a_module_is_refused(command, tmp_path):
    """What is imported would be the module."""
    write_files(tmp_path, {"json.py": "import panel_schedule"})
    code, _, err = command("check", "json.py")

    assert (1, True) == (code, "Give the file another name" in " ".join(err.split()))


def test_a_file_of_a_package_is_imported_as_its_member(command, tmp_path):
    """So that its relative imports work."""
    tasks = """
        import panel_schedule as ps
        from .helper import PERIOD

        @ps.schedule(period=PERIOD)
        def member():
            return __name__
    """
    write_files(tmp_path, {"app/__init__.py": "", "app/helper.py": "PERIOD = '5m'", "app/tasks.py": tasks})
    code, out, _ = command("check", "app/tasks.py")

    assert (0, True) == (code, "every 5 min" in out)


def test_next_marks_where_clocks_are_moved(command, files):
    """And says of a task without a clock what it waits for."""
    _, out, _ = command("next", "app/tasks.py", "-n", "3", "--from", "2026-03-07")

    assert """\
nightly: 02:30 every day, New York
  Sat 2026-03-07 02:30:00 EST
  Sun 2026-03-08 03:00:00 EDT  clocks forward by 1 h before it
  Mon 2026-03-09 02:30:00 EDT

summary: after nightly
  whenever nightly has a new final value; no clock says when

quick: every 15 min
  Sat 2026-03-07 00:15:00 UTC
  Sat 2026-03-07 00:30:00 UTC
  Sat 2026-03-07 00:45:00 UTC
""" == out.partition("threads")[0]


def test_next_tells_programs_what_it_tells_people(command, files):
    """Of one task, in the zone that is asked for."""
    options = ["-n", "1", "--task", "nightly", "--tz", "Europe/Berlin", "--from", "2026-03-08", "--json"]
    _, out, _ = command("next", "app/tasks.py", *options)

    assert [
        {
            "name": "nightly",
            "schedule": "02:30 every day, New York",
            "after": [],
            "runs": [{"at": "2026-03-08T08:00:00+01:00", "utc": "2026-03-08T07:00:00+00:00", "clocks_moved": 3600.0}],
        }
    ] == json.loads(out.partition("threads")[0])


def test_next_tells_a_trigger_of_ones_own_in_its_words(command, tmp_path):
    """As the page of schedules shows it."""
    page = PAGE.with_name("schedules.md")
    [shown] = [block.text for block in documents.blocks(page) if block.language == "text"]
    [line] = documents.commands(page, "panel-schedule")
    write_files(tmp_path, documents.files(page))

    assert (0, shown, "") == command(*shlex.split(line))


def test_next_says_how_late_slots_may_be(command, tmp_path):
    """Those that are late on purpose, and those that are not to begin any more."""
    tasks = (
        "import panel_schedule as ps\n@ps.schedule(period='1h', jitter='30s', misfire_grace='2m')\ndef feed(): pass\n"
    )
    write_files(tmp_path, {"tasks.py": tasks})
    _, out, _ = command("next", "tasks.py", "-n", "1")

    assert "feed: every 1 h; each up to 30 s later; none that is more than 2 min late" == out.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--task", "other"], "There is no task 'other'; there are: nightly, quick, summary."),
        (["--tz", "Mars"], "'Mars' is no IANA time zone"),
        (["--from", "soon"], "'soon' is no date"),
        (["-n", "0"], "0 is not in the range"),
    ],
)
def test_next_refuses_what_means_nothing(options, reason, command, files):
    """With exit code 2."""
    code, _, err = command("next", "app/tasks.py", *options)

    assert (2, True) == (code, reason in err)


NEW_YORK, BERLIN = ZoneInfo("America/New_York"), ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("trigger", "start", "zone", "told"),
    [
        (Cron("0 6 * * *", "Europe/Berlin"), "2026-03-28T12", None, ["29 06:00 +1", "30 06:00"]),
        (Cron("0 6 * * *", "Europe/Berlin"), "2026-10-24T12", None, ["25 06:00 -1", "26 06:00"]),
        (Cron("0 6 * * *", "Europe/Berlin"), "2026-03-28T12", UTC, ["29 04:00 +1", "30 04:00"]),
        (Cron("30 * * * *", "Europe/Berlin"), "2026-03-29T00:45", None, ["29 03:30 +1", "29 04:30"]),
        (Every("12h"), "2026-03-28T12", BERLIN, ["29 01:00", "29 14:00"]),
        (After(type("Raw", (), {"name": "raw"})()), "2026-03-28T12", None, []),
    ],
)
def test_clocks_are_those_of_the_schedule(trigger, start, zone, told):
    """Whatever the zone in which its times are told: a period in UTC is not moved."""
    runs = upcoming(trigger, datetime.fromisoformat(start).replace(tzinfo=UTC), 2, zone)
    hour = timedelta(hours=1)

    assert told == [f"{run.at:%d %H:%M}" + (f" {run.moved // hour:+}" if run.moved else "") for run in runs]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"),
        (0.6, "1 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3601, "1 h"),
        (90_061, "1 d 1 h"),
        (-90, "1 min 30 s"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, told):
    assert told == lasting(timedelta(seconds=seconds))


def test_a_table_is_as_wide_as_it_needs_to_be():
    """A cell has one line, and is cut; an empty one is a dash."""
    assert "A   B\nxx  -\n-   y z" == table(("A", "B"), [("xx", ""), ("", "y\nz")])
    assert 60 == max(map(len, table(("A",), [("x" * 100,)]).splitlines()))


def test_a_row_that_is_wider_than_the_terminal_is_several_lines():
    """Whole, and without what is empty; as wide as the terminal it is one."""
    headers, rows = ("A", "LONG"), [("x\ny", "z" * 100), ("", "b"), ("c", "")]
    assert f"A     x y\nLONG  {'z' * 100}\n\nLONG  b\n\nA     c" == table(headers, rows, 64)
    assert table(headers, rows) == table(headers, rows, 65)


# ------------------------------------------------------------ without a web server


RUNNING = """
    import asyncio, os, pathlib
    import panel_schedule as ps

    @ps.schedule(period="1d", first_run="background")
    def daily():
        if pathlib.Path("bad").exists():
            raise OSError("no route")
        return os.getpid()

    @ps.schedule(period="1d", first_run="skip")
    async def slow():
        pathlib.Path("began").touch()
        try:
            await asyncio.sleep(600)
        finally:
            print("cleaned", flush=True)

    @ps.memoize
    def answer(x):
        return x
"""


@pytest.fixture
def running(start: Callable[..., Command], tmp_path: Path) -> tuple[str, list[Command]]:
    """The store of two processes that run the same file, and these."""
    write_files(tmp_path, {"tasks.py": RUNNING})
    url = f"file://{tmp_path / 'store'}"
    commands = [start("run", "tasks.py", "--store", url) for _ in range(2)]
    eventually((tmp_path / "store" / "store.db").exists, 30)
    eventually(lambda: "succeeded" in ask(url, "history").output, 30)
    eventually(lambda: all(each.handles(signal.SIGTERM) for each in commands), 30)
    return url, commands


def ask(url: str, *arguments: str) -> Result:
    """In this process, as a program that knows none of the tasks."""
    return CliRunner().invoke(main, [*arguments, "--store", url])


def test_processes_without_a_web_server_share_their_slots(running):
    """As those of `panel serve` do; each ends at its signal, with exit code 0."""
    url, (one, other) = running
    runs = json.loads(ask(url, "history", "daily", "--json").output)

    assert ["succeeded"] == [run["state"] for run in runs]
    assert [0, 0] == [one.signal(signal.SIGTERM), other.signal(signal.SIGINT)]
    assert "Traceback" not in one.err + other.err


def test_a_task_can_be_run_paused_and_cancelled_from_outside(running, tmp_path):
    """By who has the store and not the code; what fails ends with exit code 1."""
    url, commands = running
    refreshed = [ask(url, "refresh", "daily", "--wait", "20s")]
    (tmp_path / "bad").touch()
    refreshed.append(ask(url, "refresh", "daily", "--wait", "20s"))
    assert ["Task 'daily' succeeded.\n", "Task 'daily' failed.\n"] == [each.output for each in refreshed]
    assert [0, 1] == [each.exit_code for each in refreshed]
    failed = ask(url, "status", "daily", "--json")
    [status] = json.loads(failed.output)
    assert (1, "failed", True, 1) == (failed.exit_code, status["state"], status["stale"], status["failures"])
    assert "OSError: no route" == status["error"]

    assert "Task 'slow' was asked to run.\n" == ask(url, "refresh", "slow").output
    eventually((tmp_path / "began").exists)
    assert "Task 'slow' runs already.\n" == ask(url, "refresh", "slow").output
    [status] = json.loads(ask(url, "status", "slow", "--json").output)
    assert "running" == status["state"]
    [listed] = json.loads(ask(url, "cancel", "--json").output)
    assert {"run": status["run"], "name": "slow", "kind": "task"} == listed
    assert 0 == ask(url, "cancel", status["run"]).exit_code
    eventually(lambda: "cleaned" in "".join(each.out for each in commands))
    eventually(lambda: "No run is under way.\n" == ask(url, "cancel").output)

    assert 0 == ask(url, "pause", "daily").exit_code
    assert ["paused"] == [each["state"] for each in json.loads(ask(url, "status", "daily", "--json").output)]


def test_a_process_without_a_web_server_gives_its_runs_the_grace_period(running, tmp_path):
    """And then cancels them, so that they clean up."""
    url, commands = running
    ask(url, "refresh", "slow")
    eventually((tmp_path / "began").exists)
    codes = [each.signal(signal.SIGTERM) for each in commands]

    assert [0, 0] == codes
    assert "cleaned" in "".join(each.out for each in commands)


def test_run_refuses_a_file_that_is_wrong(command, tmp_path):
    """As `check` does."""
    write_files(tmp_path, {"tasks.py": "1 / 0"})
    code, _, err = command("run", "tasks.py")

    assert (1, True) == (code, "ZeroDivisionError" in err)


def test_run_refuses_a_store_beside_the_file_s_own(command, files):
    """Which of them holds must not be a matter of luck."""
    code, _, err = command("run", "app/tasks.py", "--store", f"file://{files}/other")

    assert (2, True) == (code, "leave --store out" in " ".join(err.split()))


# ------------------------------------------------------------ a store that is in use


@pytest.fixture
def store(opened):
    """A file store, as a server has it."""
    return opened()


@pytest.fixture
def url(home):
    return f"file://{home}"


def schedule(store, name="sales", trigger=None, at=0.0, **more):
    """A task that a process has scheduled so many seconds ago."""
    now = datetime.now(UTC) - timedelta(seconds=at)
    store.tasks.enroll([Plan(name, trigger or Every("1h"), now, **more)])
    return now


def succeed(store, value, name="sales", at=0.0, run_id="run1"):
    """A run of it that succeeds then."""
    now = datetime.now(UTC) - timedelta(seconds=at)
    held = claim(store, name, run_id)
    publish = store.tasks.publish(value, now=now, claim=held)
    store.do(store.tasks.succeed(publish, held, RunRecord(run_id, now, RunState.SUCCEEDED, finished_at=now)))


def fail(store, name="sales", at=0.0, run_id="run2", state=RunState.FAILED):
    now = datetime.now(UTC) - timedelta(seconds=at)
    held = claim(store, name, run_id)
    record = RunRecord(run_id, now, state, 1, now, now, now, "ValueError: no such table")
    store.do(store.tasks.record(name, record, claim=held, release=True))


def compute(store):
    """An answer of the memoized function ``answer``; when it was computed."""
    now = datetime.now(UTC)
    _, row = store.cache.claim("answer", "key", call="answer()", known=0, basis=(), now=now)
    store.cache.put("answer", "key", row.fence, 42, now=now, duration=0.1, expires_at=None, limits=UNLIMITED)
    return now


def statuses(url, *names):
    return {each["name"]: each for each in json.loads(ask(url, "status", *names, "--json").output)}


def test_status_says_how_a_task_is(store, url):
    """In the columns of a table, and as JSON of the same; of names that nobody has scheduled nothing."""
    schedule(store)
    succeed(store, 1)
    put(store, "mine", 1)
    told, [status] = ask(url, "status"), statuses(url).values()

    assert 0 == told.exit_code
    headers = "NAME STATE SCHEDULE LAST SUCCESS AGE NEXT RUN FAILURES ERROR OWNER"
    assert headers == " ".join(told.output.splitlines()[0].split())
    assert ("idle", "every 1 h", False, 1, 0, "", "", -1) == tuple(
        status[key] for key in ("state", "schedule", "stale", "version", "failures", "error", "run", "percent")
    )
    assert store.records.me == status["owner"]
    assert timedelta() < datetime.fromisoformat(status["next_run"]) - datetime.now(UTC) <= timedelta(hours=1)


class Harm:
    """What runs code when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "a")


def test_status_reads_no_value(store, url, tmp_path):
    """Whose class it need not have, and which may run code."""
    schedule(store)
    held = claim(store, "sales")
    read = tmp_path / "read"
    store.do(store.tasks.publish([Harm(str(read))], now=datetime.now(UTC), claim=held))
    store.do(store.tasks.release(held))
    read.unlink(missing_ok=True)
    status = statuses(url)["sales"]

    assert (1, False) == (status["version"], read.exists())


def test_status_ends_with_1_when_something_is_stale(store, url):
    """Be it only one of several."""
    schedule(store)
    succeed(store, 1)
    schedule(store, "rates")
    succeed(store, 1, "rates")
    fine = ask(url, "status")
    fail(store, "rates")

    assert [0, 1, 0] == [each.exit_code for each in (fine, ask(url, "status"), ask(url, "status", "sales"))]


def test_status_ends_with_1_when_there_is_no_task(store, url):
    """A check that watches nothing is not to be green."""
    told = ask(url, "status")

    assert (1, "Nobody has scheduled a task there.\n") == (told.exit_code, told.output)


@pytest.mark.parametrize(
    ("what", "stale"),
    [
        ("a value", False),
        ("an old value", True),
        ("an old value of a paused task", False),
        ("an old value for which that is long enough", False),
        ("a value that is kept for a moment", True),
        ("a failure", True),
        ("a failure where the value is new enough", False),
        ("no value yet", False),
        ("no value for long", True),
        ("a value of a removed task", False),
    ],
)
def test_what_is_stale_is_found_where_no_process_is_left(what, stale, store, url):
    """Two slots without a value, the last failure, or what `stale_after` says."""
    more = {"stale_after": timedelta(days=1)} if "enough" in what else {}
    more |= {"stale_after": timedelta(seconds=1)} if "moment" in what else {}
    schedule(store, at=20_000 if "long" in what or "old" in what else 0, **more)
    if "no value" not in what:
        succeed(store, 1, at=20_000 if "old" in what else 100 if "moment" in what else 0)
    if "failure" in what:
        fail(store)
    store.tasks.amend("sales", paused="paused" in what, removed="removed" in what)

    assert stale is statuses(url)["sales"]["stale"]


def test_failures_are_counted_from_the_last_success(store, url):
    """What was cancelled or skipped is none."""
    schedule(store)
    fail(store, run_id="run0", at=50)
    succeed(store, 1, at=40)
    success = statuses(url)["sales"]["last_success"]
    fail(store, run_id="run2", at=30)
    fail(store, run_id="run3", at=20, state=RunState.CANCELLED)
    fail(store, run_id="run4", at=10, state=RunState.TIMED_OUT)
    status = statuses(url)["sales"]

    assert (2, success, "failed") == (status["failures"], status["last_success"], status["state"])


def test_a_reschedule_is_told_in_words(store, url):
    """In place of the schedule in the code."""
    now = schedule(store)
    store.tasks.amend("sales", reschedule=Cron("0 6 * * mon-fri", "Europe/Berlin"), now=now)
    status = statuses(url)["sales"]

    assert "06:00 Mon-Fri, Berlin" == status["schedule"]
    assert "06:00" == f"{datetime.fromisoformat(status['next_run']):%H:%M}"


def test_a_run_whose_process_is_gone_is_an_orphan(store, opened, url):
    """Until another one takes it over; its owner is said to be gone."""
    schedule(store)
    claim(store, "sales", "run1")
    running = statuses(url)["sales"]
    store.records._liveness._living.close()
    orphaned = statuses(url)["sales"]

    assert ("running", "run1", store.records.me) == tuple(running[key] for key in ("state", "run", "owner"))
    assert ("orphaned", f"{store.records.me} (gone)") == (orphaned["state"], orphaned["owner"])


def test_what_was_asked_for_shows(store, url):
    """Where nobody takes it up a wait for it ends with 1."""
    schedule(store)
    succeed(store, 1)
    assert "Task 'sales' was asked to run.\n" == ask(url, "refresh", "sales").output
    waited = ask(url, "refresh", "sales", "--wait", "10ms")

    assert (1, True) == (waited.exit_code, "has not ended within" in waited.output)
    assert "requested" == statuses(url)["sales"]["state"]


def test_history_lists_what_has_ended(store, url):
    """Of all kinds, newest first; with its limits and what it is asked for."""
    schedule(store)
    succeed(store, 1, at=200_000)
    fail(store)
    done = RunRecord("run3", "request", RunState.SUCCEEDED, 1, finished_at=datetime.now(UTC) - timedelta(hours=1))
    store.do(store.note("job", "simulate", done))

    def listed(*options):
        told = ask(url, "history", *options, "--json")
        return told.exit_code, [(each["name"], each["kind"], each["id"]) for each in json.loads(told.output)]

    failed, done, first = ("sales", "task", "run2"), ("simulate", "job", "run3"), ("sales", "task", "run1")
    assert (0, [failed, done, first]) == listed()
    assert (0, [failed, first]) == listed("sales")
    assert (0, [failed, done]) == listed("--since", "1d")
    assert (1, [failed]) == listed("--failed")
    assert (0, []) == listed("simulate", "--failed")
    assert "ValueError: no such table" in ask(url, "history").output


def test_history_can_be_of_one_kind_and_short(store, url):
    """A task and a job may have the same name; and it is deleted so, too."""
    schedule(store)
    succeed(store, 1, at=5)
    for number in range(3):
        store.do(store.note("job", "sales", ended(number)))

    def kinds(*options):
        return [each["kind"] for each in json.loads(ask(url, "history", "sales", "--json", *options).output)]

    assert ["task", "job", "job", "job"] == kinds()
    assert ["job"] * 3 == kinds("--kind", "job")
    assert ["task", "job"] == kinds("-n", "2")
    told = ask(url, "history", "sales", "--kind", "memo")
    assert (2, True) == (told.exit_code, "There is no memo 'sales'; there are: none." in told.output)
    assert [{"name": "sales", "kind": "job"}] == json.loads(ask(url, "purge", "--kind", "job", "--json").output)
    assert ["task"] == kinds()


def test_history_tells_all_of_a_run(store, url):
    """As JSON, and with --long as text."""
    ended = datetime.now(UTC)
    texts = ("here", "ada", "'north', password=...", "Traceback:\n  in f", "WARNING app: slow\nERROR app: no")
    run = RunRecord("run1", "request", RunState.FAILED, 1, ended, ended, ended, "ValueError: no", "", None, *texts)
    store.do(store.note("job", "simulate", run))
    [told] = json.loads(ask(url, "history", "--json").output)
    long = ask(url, "history", "--long").output

    assert texts == tuple(told[name] for name in ("owner", "user", "arguments", "traceback", "logs"))
    assert "simulate, run run1: failed " in long
    assert (
        "  called with: 'north', password=...\n  for: ada\n  in: here\n  traceback:\n    Traceback:\n      in f\n"
        "  log:\n    WARNING app: slow\n    ERROR app: no\n"
    ) in long
    assert "north" not in ask(url, "history").output


def test_purge_deletes_histories(store, url):
    """Of one function, or of all; values stay."""
    for name in ("sales", "rates"):
        schedule(store, name)
        succeed(store, 1, name)
    store.do(store.note("job", "simulate", ended(1)))
    before = store.records.read(TASK, "sales").state
    counts = []
    for names in (["sales"], ["simulate"], []):
        assert 0 == ask(url, "purge", *names).exit_code
        counts.append([len(store.history("sales")), len(store.history("rates")), len(store.history("simulate", "job"))])

    assert [[0, 1, 1], [0, 1, 0], [0, 0, 0]] == counts
    assert before == store.records.read(TASK, "sales").state


def test_a_task_that_is_gone_from_the_code_can_be_forgotten(store, url):
    """Not while a process has it."""
    schedule(store)
    succeed(store, 1)
    refused = ask(url, "purge", "sales", "--forget")
    store.records._liveness._living.close()
    forgotten = ask(url, "purge", "sales", "--forget")

    assert (1, True) == (refused.exit_code, f"in use by the process {store.records.me}" in refused.output)
    assert (0, {}) == (forgotten.exit_code, statuses(url))


def test_invalidate_forgets_the_answers_of_a_function(store, url):
    """And lists the functions that have some."""
    now = compute(store)
    before = store.cache.look("answer", "key")
    told = ask(url, "invalidate", "answer")
    unknown = ask(url, "invalidate", "other")

    assert now == before.updated_at
    assert (0, 0) == (told.exit_code, store.cache.look("answer", "key").version)
    assert (2, True) == (unknown.exit_code, "there are: answer" in unknown.output)


def test_pause_and_resume_are_for_all_processes(store, url):
    schedule(store)
    row = []
    for command in ("pause", "resume"):
        assert 0 == ask(url, command, "sales").exit_code
        row.append(store.tasks.row("sales").paused)

    assert [True, False] == row


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("history",), ("refresh",), ("pause",), ("resume",), ("purge",)],
    ids=lambda each: each[0],
)
def test_an_unknown_name_is_told_with_those_that_there_are(arguments, store, url):
    """With exit code 2."""
    schedule(store)
    schedule(store, "rates")
    told = ask(url, *arguments, "other")

    assert (2, True) == (told.exit_code, "'other'; there are: rates, sales." in told.output)


def test_of_many_names_those_are_told_that_are_like_it(store, url):
    """Of which there are some; else the first ones."""
    for number in range(30):
        schedule(store, f"task {number:02d}")
    schedule(store, "sales")

    assert "'seles'; there are: sales, and 30 more." in ask(url, "status", "seles").output
    assert "'x'; there are: sales, task 00, task 01" in (told := ask(url, "status", "x").output)
    assert "task 18, and 11 more." in told


def test_where_no_process_is_left_it_is_told(opened, url):
    """Beside what was asked for, and not to programs."""
    store = opened()
    schedule(store)
    nobody = "No process is at this store: nothing runs before one starts.\n"
    asked = [("status",), ("refresh", "sales")]

    assert ["", ""] == [ask(url, *each).stderr for each in asked]
    store.close()
    assert [nobody, nobody] == [ask(url, *each).stderr for each in asked]
    assert ["", ""] == [ask(url, *each, "--json").stderr for each in asked]


def test_a_run_that_is_not_under_way_cannot_be_cancelled(store, url):
    """Those that are under way are listed."""
    schedule(store)
    claim(store, "sales", "run7")
    told = ask(url, "cancel", "run8")

    assert (2, True) == (told.exit_code, "'run8'; there are: run7." in told.output)


def test_a_job_can_be_cancelled_by_its_id(store, url):
    """Its process is asked to."""
    store.queue.enqueue("run9", "simulate", now=datetime.now(UTC), payload=None, synced=False)
    [listed] = json.loads(ask(url, "cancel", "--json").output)
    told = ask(url, "cancel", "run9")

    assert {"run": "run9", "name": "simulate", "kind": "job"} == listed
    assert (0, True) == (told.exit_code, store.queue.job("run9").cancelled)


def test_a_wait_ends_when_the_task_is_forgotten(store, url, monkeypatch):
    """There will be no run to wait for."""
    schedule(store)
    monkeypatch.setattr("panel_schedule.cli.commands.time.sleep", lambda seconds: store.tasks.forget("sales"))
    told = ask(url, "refresh", "sales", "--wait", "1h")

    assert (1, True) == (told.exit_code, "was forgotten meanwhile" in told.output)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://", "private to the processes of one server"),
        ("auto", "private to the processes of one server"),
        ("file:///nowhere/at/all", "There is no store at file:///nowhere/at/all"),
        ("mysql://host", "accepted are"),
    ],
)
def test_a_store_that_cannot_be_looked_into_is_refused(url, reason):
    """With what to do about it, and exit code 2."""
    told = ask(url, "status")

    assert (2, True) == (told.exit_code, reason in " ".join(told.output.split()))


def test_a_server_that_is_not_there_ends_with_1():
    """As it may be there later."""
    told = ask("redis://127.0.0.1:1/0", "status")

    assert (1, True) == (told.exit_code, "127.0.0.1:1" in told.output)


def test_the_store_is_that_of_the_environment(store, url):
    """Unless it is named; with neither it is a matter of usage."""
    schedule(store)
    succeed(store, 1)
    told = [CliRunner().invoke(main, ["status"], env={"PANEL_SCHEDULE_STORE": value}) for value in (url, None)]

    assert [0, 2] == [each.exit_code for each in told]


def test_a_store_on_redis_is_looked_into_the_same_way(open_redis, redis_server, monkeypatch):
    """By the namespace of the environment."""
    monkeypatch.setenv("PANEL_SCHEDULE_NAMESPACE", "command-line")
    store = live.Store(open_redis(namespace="command-line"), SystemClock(), "server")
    schedule(store)
    succeed(store, 1)
    assert 0 == ask(redis_server.url, "pause", "sales").exit_code
    assert "paused" == statuses(redis_server.url)["sales"]["state"]
    assert "requested" == json.loads(ask(redis_server.url, "refresh", "sales", "--json").output)["outcome"]
    assert store.tasks.row("sales").requested


# ------------------------------------------------------------ the page of the documentation


PAGE = Path(ps.__file__).parent.parent / "docs" / "command_line.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", main.commands)
def test_a_command_is_in_the_documentation(name):
    """With its options, and the names of its JSON."""
    options = [option for each in main.commands[name].params for option in each.opts if option.startswith("-")]

    assert f"panel-schedule {name}" in TEXT
    assert [] == [option for option in options if not re.search(rf"[ `]{option}\b", TEXT)]


def test_the_commands_of_the_documentation_do_what_it_says(start, tmp_path):
    """On a store where all is well each ends with 0."""
    write_files(tmp_path, documents.files(PAGE))
    url, said = f"file://{tmp_path / 'store'}", ""
    lines = [line.replace("file:///var/lib/myapp", url) for line in documents.commands(PAGE, "panel-schedule")]
    [run] = [line for line in lines if line.startswith("run ")]
    running = start(*shlex.split(run))
    eventually((tmp_path / "store" / "store.db").exists, 30)
    eventually(lambda: ask(url, "history", "summary").output.count("succeeded"), 30)
    for line in lines:
        if line != run:
            words = shlex.split(line)
            started = start(*words, *([] if words[0] in ("check", "next") else ["--store", url]))
            assert 0 == started.wait(), (line, started.out, started.err)
            said += started.out
    assert 0 == running.signal(signal.SIGTERM)

    assert [] == [block.text for block in documents.blocks(PAGE) if block.language == "text" and block.text not in said]


def test_the_json_of_a_command_has_the_names_that_are_documented(store, url, command, files):
    """They are there for programs, and stay."""
    schedule(store)
    succeed(store, 1)
    named = {
        name: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)|: `requested.*", "", names)))
        for name, names in re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE)
    }
    told = {name: json.loads(ask(url, name, "--json").output)[0] for name in ("status", "history")}
    told["refresh"] = json.loads(ask(url, "refresh", "sales", "--json").output)
    told |= {
        name: json.loads(command(name, "app/tasks.py", "--json")[1].partition("threads")[0])[0]
        for name in ("check", "next")
    }
    claim(store, "sales", "run7")
    told["cancel"] = json.loads(ask(url, "cancel", "--json").output)[0]
    told["next"] |= told["next"]["runs"][0]
    told |= {name: json.loads(ask(url, name, "sales", "--json").output) for name in ("pause", "resume")}
    told["purge"] = json.loads(ask(url, "purge", "sales", "--json").output)[0]
    compute(store)
    told["invalidate"] = json.loads(ask(url, "invalidate", "answer", "--json").output)

    assert named == {name: set(each) for name, each in told.items()}


# ------------------------------------------------------------ the program


@pytest.mark.slow
@pytest.mark.unhurried
def test_it_is_a_program_and_a_module():
    """One and the same."""
    told = subprocess.run([sys.executable, "-m", "panel_schedule", "--version"], capture_output=True, text=True)
    pyproject = (Path(ps.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")

    assert f"panel-schedule, version {ps.__version__}\n" == told.stdout
    assert 'panel-schedule = "panel_schedule.cli.commands:main"' in pyproject


@pytest.mark.slow
@pytest.mark.unhurried
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [(("stat",), ["status"]), (("history", "--fa"), ["--failed"]), (("purge", "--kind", ""), ["task", "job", "memo"])],
)
def test_bash_completes_commands_and_options(words, completed):
    """With the line of the documentation, as it is typed."""
    [line] = documents.commands(PAGE, "eval")
    typed = f"COMP_WORDS=(panel-schedule {' '.join(word or repr('') for word in words)}); COMP_CWORD={len(words)}"
    command = f'eval {line}; {typed}; _panel_schedule_completion panel-schedule; printf "%s\\n" "${{COMPREPLY[@]}}"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    told = subprocess.run(["bash", "-c", command], env={**os.environ, "PATH": path}, capture_output=True, text=True)

    assert (completed, "") == (told.stdout.split(), told.stderr)


@pytest.mark.slow
@pytest.mark.unhurried
def test_who_reads_no_further_ends_it_without_a_word(store, url):
    """As ``head`` does."""
    for number in range(100):
        store.do(store.note("job", "job", replace(ended(number), arguments="x" * 2000)))
    command = [sys.executable, "-m", "panel_schedule", "history", "--json", "--store", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "[\n" == process.stdout.readline()
        process.stdout.close()
        assert "" == process.stderr.read()
