"""What can go wrong with a job in a worker process: what a person sees of it, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from servers import PanelServer, Serve, eventually, write_files
from visitors import visitors
from windows import NewPage, windows

# A job that waits does so for a file of its name, and says what it does, with the pids of all that it has started.
JOBS = """
    import ctypes, multiprocessing, os, pathlib, resource, signal, subprocess, sys, threading, time
    import numpy as np
    import panel_schedule as ps

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole, whoever else writes

    def until(name):
        try:
            while not pathlib.Path(name).exists():
                time.sleep(0.01)
        finally:
            say("leaves", name)

    @ps.background
    def fine():
        return f"fine in {os.getpid()}"

    @ps.background
    def raises():
        raise ValueError("no such table\\nand more")

    @ps.background
    def unpicklable():
        return {"a": [threading.Lock()]}

    @ps.background
    def exits():
        os._exit(7)

    @ps.background
    def segfault():
        ctypes.string_at(0)

    @ps.background
    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    @ps.background
    def memory():
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, hard))
        try:
            bytearray(8 << 30)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    @ps.background(timeout=0.5)
    def late():
        until("late")

    @ps.background
    def locked(argument=None):
        say("begins locked")

    @ps.background
    def framed(argument=None):
        say("begins framed")

    @ps.background
    def endless():
        say("begins endless", os.getpid())
        try:
            while True:
                pass
        finally:
            say("leaves endless")

    @ps.background
    def stubborn():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("begins stubborn", os.getpid())
        while True:
            time.sleep(1)

    @ps.background
    def defiant():
        say("begins defiant", os.getpid())
        while True:
            try:
                time.sleep(1)
            except BaseException:
                pass

    @ps.background
    def parent():
        sleeping = subprocess.Popen(["sleep", "1000"])
        fork, spawn = map(multiprocessing.get_context, ["fork", "spawn"])
        forked, spawned = (each.Process(target=time.sleep, args=[1000]) for each in (fork, spawn))
        forked.start(), spawned.start()
        say("begins parent", os.getpid(), sleeping.pid, forked.pid, spawned.pid)
        until("parent")

    @ps.background
    def steps():
        say("begins steps", os.getpid())
        ps.progress(40, 100, "at forty")
        yield "a part"
        until("steps")
        return "the result"

    @ps.background(durable=True)
    def lasting():
        say("begins lasting", os.getpid())
        ps.progress(40, 100, "at forty")
        until("lasting")
        return "it lasted"

    @ps.background
    def waits():
        say("begins waits", os.getpid())
        until("waits")
        return "waits no more"

    @ps.background
    def last():
        say("begins last")

    @ps.background(retrigger="replace")
    def replaced():
        say("begins replaced")
        until("replaced")
        return "replaced is done"

    @ps.background(retrigger="queue")
    def queued():
        say("begins queued")
        return "queued is done"

    @ps.background(retrigger="ignore")
    def ignored():
        say("begins ignored")
        until("ignored")
        return "ignored is done"

    @ps.background
    def quick():
        time.sleep(0.02)

    @ps.background(result_ttl="1s")
    def large():
        return np.zeros(1 << 27)

    @ps.background
    def noisy():
        print("a word for stdout")
        print("a word for stderr", file=sys.stderr)
        for _ in range(64):
            sys.stdout.write("x" * 65535 + "\\n")
        return "it was loud"

    @ps.background
    def restless():
        begun = time.perf_counter()
        for i in range(100_000):
            ps.progress(i, 100_000, f"step {i}")
        return f"took {time.perf_counter() - begun:.2f} s"
"""

# ?jobs=fine,raises shows these; with &run-fine=... it follows that run; with &start=1 they start at once.
APP = """
    import os, threading
    from functools import partial
    import numpy as np
    import pandas as pd
    import panel as pn
    import panel_schedule as ps
    import jobs

    # More than a megabyte, so that it is pickled aside.
    frame = pd.DataFrame({"a": np.arange(200_000.0), "b": [threading.Lock(), *[None] * 199_999]})
    arguments = {"locked": [threading.Lock()], "framed": [frame]}

    def shown(result):
        return pn.pane.Str(f"shape {result.shape}" if isinstance(result, np.ndarray) else result)

    def told(job, running, *_):
        return f"run {job.run and job.run.id}, running: {running}"

    def crowd(job):
        for _ in range(99):
            jobs.quick.submit()
        job.start()

    location, asked = pn.state.location, pn.state.session_args
    pn.pane.Str(f"served by {os.getpid()}", css_classes=["server"]).servable()
    for name in asked["jobs"][0].decode().split(","):
        job = getattr(jobs, name).job(*arguments.get(name, []))
        news = [job.param[each] for each in ("running", "started_at", "finished_at")]
        pn.Column(
            ps.JobPanel(job, render=shown),
            pn.pane.Str(pn.bind(partial(told, job), *news)),
            pn.widgets.Button(name="Crowd", on_click=lambda event, job=job: crowd(job)),
            css_classes=[name],
        ).servable()
        if f"run-{name}" in asked:
            job.attach(asked[f"run-{name}"][0].decode())
        job.param.watch(lambda event, job=job: location.update_query(**{f"run-{job.name}": job.run.id}), "started_at")
        if "start" in asked:
            job.start()
"""

# One run for everybody.
SHARED = """
    import panel as pn
    import jobs
    runs = [run for run in jobs.waits.runs() if not run.state.final]
    job = jobs.waits.job()
    job.attach(runs[0]) if runs else job.start()
    pn.panel(job).servable()
"""

# Says how late the server's loop was at worst since the page has settled.
BEAT = """
    import gc, itertools, time
    import panel as pn
    if "tidy" in pn.state.session_args:
        gc.collect()  # what sessions leave behind is garbage, but it may take its time
    numbers, times, shown = itertools.count(), [], pn.pane.Str("beat")
    def beat():
        times.append(time.perf_counter())
        pauses = [1000 * (b - a) for a, b in itertools.pairwise(times[20:])]
        shown.object = f"beat {next(numbers)}: at most {max(pauses, default=0):.0f} ms"
    pn.state.add_periodic_callback(beat, 50)
    shown.servable()
"""

FILES = {"app.py": APP, "beat.py": BEAT, "shared.py": SHARED, "jobs.py": JOBS, "tmp/here": ""}
# Time enough for a page that is loaded again.
SOON = "--check-unused-sessions 100 --unused-session-lifetime 1500"
ENV = {"TMPDIR": "tmp", "XDG_RUNTIME_DIR": "", "PANEL_SCHEDULE_GRACE_PERIOD": "1"}

END = re.compile("Done|Failed|Timed out|Crashed|Cancelled|Not run")
NOISE = re.compile("Exception ignored|was destroyed|restarting")

RECORD = """head => {
    if (!head.seen) new MutationObserver(() => head.seen.push(head.textContent)).observe(head, { childList: true });
    head.seen = [];
}"""

CLICKS = """async button => {
    for (let i = 0; i < 20; i++) {
        button.click();
        await new Promise(done => setTimeout(done, 45));
    }
}"""


class House:
    """A server that many tests visit, and what of it may be there between two of them."""

    def __init__(self, folder: Path, options: str = ""):
        write_files(folder, FILES)
        self.server = PanelServer(f"app.py beat.py --setup jobs.py {SOON} {options}", folder, env=ENV)
        self.server.wait_started()
        self.url = f"{self.server.url}/app?jobs=fine"
        self.folder = folder
        self._rest: list[tuple[int, int]] = []

    def processes(self) -> tuple[list[psutil.Process], list[psutil.Process], list[psutil.Process]]:
        """Those that serve, their workers, and what else comes from them."""
        serving, workers, others = [psutil.Process(self.server.process.pid)], [], []
        for each in self.server.descendants():
            with suppress(psutil.NoSuchProcess):
                command = " ".join(each.cmdline())
                (workers if "_worker.py" in command else serving if "panel serve" in command else others).append(each)
        return serving, workers, others

    def descriptors(self) -> list[tuple[int, int]]:
        """Of each that serves, without those that connect it with its workers."""
        serving, workers, _ = self.processes()
        parents = [each.ppid() for each in workers]
        return sorted((each.pid, each.num_fds() - 2 * parents.count(each.pid)) for each in serving)

    def left(self) -> list[str]:
        """What would not be there if nobody had come."""
        try:
            serving, workers, others = self.processes()
            busy = [each for each in serving if len([w for w in workers if w.ppid() == each.pid]) > 2]
            grown = [
                f"{now} descriptors of {pid}, {before} before: {descriptors_of(pid)}"
                for (pid, now), (_, before) in zip(self.descriptors(), self._rest, strict=True)
                if now > before
            ]
            if grown:
                httpx.get(f"{self.server.url}/beat", params={"tidy": "1"})
            return [*map(str, [*others, *busy]), *grown]
        except psutil.NoSuchProcess as gone:
            return [str(gone)]

    def settle(self, browser: Browser) -> None:
        """Use it once, and know from then on what it has when nobody is there."""
        with windows(browser) as new_page:
            for _ in range(3):
                assert_works(new_page(self.url))
        self._rest = eventually(lambda now=[()]: (now.append(self.descriptors()), now[-1] == now[-2])[1] and now[-1])

    def pids(self, what: str) -> list[int]:
        """What a job has said of its processes, the last time."""
        return [int(pid) for pid in re.findall(rf"^begins {what}((?: \d+)+)$", self.server.output(), re.M)[-1].split()]

    def count(self, words: str) -> int:
        return len(re.findall(rf"^{words}\b", self.server.output(), re.M))


def descriptors_of(pid: int) -> list[str]:
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(each))
    return found


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


class Panel:
    """A job's panel on a page."""

    def __init__(self, page: Page, name: str):
        self.here = page.locator(f".{name}")
        self.told, self._before = self.here.get_by_text("running:"), ""
        self.head, self.reason = self.here.locator(".head"), self.here.locator(".reason")
        self.run = self.here.get_by_role("button", name="Run")
        self.cancel = self.here.get_by_role("button", name="Cancel")
        expect(self.run).to_be_visible()
        self.head.evaluate(RECORD)

    def press(self) -> None:
        self.head.evaluate("head => { head.seen = []; }")
        self._before = self.told.inner_text()
        self.run.click()

    def assert_ended(self, words: str | re.Pattern[str]) -> None:
        """In one visible state, and it can be run again."""
        # One that is over in no time may look as the one before did.
        eventually(lambda: self.told.inner_text() != self._before or any(map(END.match, self.seen)))
        expect(self.told).to_contain_text("running: False")
        expect(self.head).to_contain_text(words)
        expect(self.cancel).to_be_disabled()
        expect(self.run).to_be_enabled()
        assert len([each for each in self.seen if END.match(each)]) <= 1, self.seen

    @property
    def seen(self) -> list[str]:
        found: list[str] = self.head.evaluate("head => head.seen")
        return found


def assert_works(page: Page) -> None:
    """The next job is not affected."""
    fine = Panel(page, "fine")
    fine.press()
    fine.assert_ended("Done in")
    expect(fine.here.get_by_text("fine in")).to_be_visible()


@pytest.fixture(scope="module")
def houses(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], House]]:
    """One of each kind for all tests; in the end it leaves no process, no file, and no word of trouble."""
    made: dict[str, House] = {}

    def house(options: str) -> House:
        if options not in made:
            made[options] = House(tmp_path_factory.mktemp("house"), options)
            made[options].settle(browser)
        return made[options]

    yield house
    for each in made.values():
        each.server.close()
        assert not [*each.folder.glob("tmp/*/*")]
        assert not NOISE.search(each.server.output())


@pytest.fixture
def house(houses: Callable[[str], House], request: pytest.FixtureRequest) -> Iterator[House]:
    """The server, at rest before and after the test."""
    found = houses(getattr(request, "param", ""))
    output = len(found.server.output())
    yield found
    for each in found.folder.iterdir():
        if each.suffix != ".py" and each.is_file():
            each.unlink()
    print(found.server.output()[output:][-20_000:])
    with suppress(AssertionError):
        eventually(lambda: not found.left())
    assert [] == found.left()


both = pytest.mark.parametrize("house", ["", "--num-procs 2"], indirect=True, ids=["one process", "two processes"])


@pytest.fixture
def open_page(browser: Browser, house: House) -> Iterator[NewPage]:
    """Windows, which close before one looks whether the server is at rest."""
    with windows(browser) as new_page:
        yield new_page


def open_jobs(open_page: NewPage, house: House, *names: str, allow: Sequence[str] = ()) -> list[Panel]:
    page = open_page(f"{house.server.url}/app?jobs={','.join([*names, 'fine'])}", allow=allow)
    return [Panel(page, name) for name in names]


def start(server: PanelServer, *names: str) -> None:
    """By a visitor whose websocket never comes."""
    httpx.get(f"{server.url}/app", params={"jobs": ",".join(names), "start": "1"}, timeout=20)


FAULTS = {
    "raises": ("Failed after", r"^ValueError: no such table$"),
    "unpicklable": ("Failed after", r"^ValueRefused: Job 'unpicklable': value\['a'\]\[0\] is a _thread.lock"),
    "locked": ("Failed", r"^ValueRefused: Job 'locked': argument 'argument': value is a _thread.lock"),
    "framed": ("Failed", r"^ValueRefused: Job 'framed': argument 'argument': value\['b'\]\[0\] is a _thread.lock"),
    "memory": ("Failed after", r"^MemoryError$"),
    "exits": ("Crashed after", r"^RunCrashed: Job 'exits': its worker process ended with exit code 7\."),
    "segfault": ("Crashed after", r"^RunCrashed: Job 'segfault': its worker process was killed by signal SIGSEGV\."),
    "killed": ("Crashed after", r"^RunCrashed: Job 'killed': .* signal SIGKILL\. Often .* when memory is short"),
    "late": ("Timed out after", r"^RunTimedOut: Job 'late': it did not finish within its timeout of 0\.5 s\."),
}


def test_faults(open_page: NewPage, house: House) -> None:
    """Type and first line are on the page, the traceback in the log; it can be run again, as can everything else."""
    jobs = open_jobs(open_page, house, *FAULTS, allow=["ValueRefused(\"Job 'locked'", "ValueRefused(\"Job 'framed'"])
    for job, (words, reason) in zip(jobs, FAULTS.values(), strict=True):
        # What is refused at once has no run; in Bokeh 3.10 a callback is on another thread, where all is pickled.
        for _ in range(1 if "argument" in reason else 2):
            job.press()
            job.assert_ended(words)
            expect(job.reason).to_have_text(re.compile(reason))
        assert_works(job.here.page)
    page = jobs[0].here.page
    for hidden in ("Traceback", "and more"):
        expect(page.get_by_text(hidden)).to_have_count(0)
    assert 1 == house.count("    raise ValueError")  # the second time a line is enough
    assert 0 == house.count("begins (locked|framed)")


@both
def test_a_crash_costs_nobody_else_anything(open_page: NewPage, house: House) -> None:
    """Another's run, in the worker beside it, goes on."""
    job, crashing = open_jobs(open_page, house, "steps", "segfault")
    job.press()
    expect(job.head).to_have_text("at forty")
    crashing.press()
    crashing.assert_ended("Crashed after")
    (house.folder / "steps").touch()
    job.assert_ended("Done in")
    expect(job.here.get_by_text("the result")).to_be_visible()
    assert_works(job.here.page)


@both
def test_cancel(open_page: NewPage, house: House) -> None:
    """At once for who looks on; and its processes are gone after the grace of 2 s, whatever they do."""
    left = list[int]()
    jobs = open_jobs(open_page, house, "endless", "parent", "stubborn", "defiant")
    for name, job in zip(["endless", "parent", "stubborn", "defiant"], jobs, strict=True):
        begun = house.count(f"begins {name}")
        job.press()
        eventually(lambda name=name, begun=begun: house.count(f"begins {name}") > begun)
        pids = house.pids(name)
        assert pids == alive(pids)
        left += pids
        job.cancel.click()
        job.assert_ended("Cancelled after")
    eventually(lambda: not alive(left), 3)
    for name in ("endless", "parent"):  # their cleanup code has run
        assert house.count(f"begins {name}") == house.count(f"leaves {name}")
    assert_works(jobs[0].here.page)


def test_cancel_after_the_end_changes_nothing(open_page: NewPage, house: House) -> None:
    """Nor does it for the next run."""
    [job] = open_jobs(open_page, house, "queued")
    job.press()
    job.assert_ended("Done in")
    before = job.head.inner_text()
    job.cancel.evaluate("button => button.click()")
    assert_works(job.here.page)
    assert before == job.head.inner_text()
    job.press()
    job.assert_ended("Done in")


def test_cancel_before_the_start(open_page: NewPage, house: House) -> None:
    """All workers are busy: it has its place in line, and never begins."""
    one, other = (open_jobs(open_page, house, "waits")[0] for _ in range(2))
    last, steps = open_jobs(open_page, house, "last", "steps")
    for number, busy in enumerate((one, other), start=house.count("begins waits") + 1):
        busy.press()
        eventually(lambda number=number: house.count("begins waits") == number)
    last.press()
    expect(last.head).to_have_text("Queued, 1st in line")
    steps.press()
    expect(steps.head).to_have_text("Queued, 2nd in line")
    last.cancel.click()
    last.assert_ended("Cancelled")
    expect(steps.head).to_have_text("Queued, 1st in line")
    (house.folder / "waits").touch()
    (house.folder / "steps").touch()
    for each in (one, other, steps):
        each.assert_ended("Done in")
    assert_works(last.here.page)
    assert 0 == house.count("begins last")
    assert "Cancelled" == last.head.inner_text()


@both
def test_a_closed_tab(open_page: NewPage, house: House) -> None:
    """The session ends, and with it what it has started."""
    names = ("endless", "defiant")
    jobs = open_jobs(open_page, house, *names)
    before = [house.count(f"begins {name}") for name in names]
    for job in jobs:
        job.press()
    eventually(lambda: all(house.count(f"begins {name}") > count for name, count in zip(names, before, strict=True)))
    pids = [pid for name in names for pid in house.pids(name)]
    assert pids == alive(pids)
    jobs[0].here.page.close()
    eventually(lambda: not alive(pids), 5)
    [job] = open_jobs(open_page, house, "raises")
    assert_works(job.here.page)


def test_a_reloaded_page(open_page: NewPage, house: House) -> None:
    """It follows the run in its address, though the session that has started it ends."""
    [job] = open_jobs(open_page, house, "steps")
    job.press()
    page = job.here.page
    expect(job.head).to_have_text("at forty")
    page.wait_for_url(re.compile("run-steps="))
    begun = house.count("begins steps")
    page.reload()
    again = Panel(page, "steps")
    expect(again.head).to_have_text("at forty")
    expect(again.here.get_by_text("a part")).to_be_visible()
    (house.folder / "steps").touch()
    again.assert_ended("Done in")
    expect(again.here.get_by_text("the result")).to_be_visible()
    assert begun == house.count("begins steps")


two = pytest.mark.parametrize("house", ["--num-procs 2"], indirect=True, ids=["two processes"])


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Meanwhile its sibling has to serve."""
    psutil.Process(pid).suspend()
    try:
        yield
    finally:
        psutil.Process(pid).resume()


def served_by(page: Page) -> int:
    said = page.get_by_text("served by")
    expect(said).to_have_text(re.compile(r"served by \d+"), use_inner_text=True)  # its text may come before it is shown
    return int(said.inner_text().split()[-1])


def begin_steps(open_page: NewPage, house: House) -> tuple[Panel, int, int]:
    """A run on a page, the process that has it, and the other one."""
    [job] = open_jobs(open_page, house, "steps")
    job.press()
    expect(job.head).to_have_text("at forty")
    job.here.page.wait_for_url(re.compile("run-steps="))
    here = served_by(job.here.page)
    serving, _, _ = house.processes()
    [there] = {each.pid for each in serving} - {here, house.server.process.pid}
    return job, here, there


@two
def test_another_process_attaches(open_page: NewPage, house: House) -> None:
    """It shows progress, partial and result of a run that its sibling has, and can cancel it."""
    for how in ("Done in", "Cancelled"):
        job, here, there = begin_steps(open_page, house)
        with suspended(here):
            again = Panel(open_page(job.here.page.url), "steps")
        assert there == served_by(again.here.page)
        expect(again.head).to_have_text("at forty")
        expect(again.here.get_by_text("a part")).to_be_visible()
        if how == "Cancelled":
            again.cancel.click()
        else:
            (house.folder / "steps").touch()
        for each in (again, job):
            each.assert_ended(how)
        if how == "Done in":
            expect(again.here.get_by_text("the result")).to_be_visible()
        (house.folder / "steps").unlink(missing_ok=True)


@two
def test_the_page_that_started_it_closes_and_another_process_follows(open_page: NewPage, house: House) -> None:
    """As after a reload that the other process serves."""
    job, here, there = begin_steps(open_page, house)
    with suspended(here):
        again = Panel(open_page(job.here.page.url), "steps")
    job.here.page.close()
    left = house.count("leaves endless")
    with suspended(there):
        start(house.server, "endless")
    eventually(lambda: house.count("leaves endless") > left)
    expect(again.head).to_have_text("at forty")
    (house.folder / "steps").touch()
    again.assert_ended("Done in")


@two
def test_a_session_of_another_process_ends(open_page: NewPage, house: House) -> None:
    """As that of a page's first request does each time when another process gets the websocket."""
    job, here, _ = begin_steps(open_page, house)
    left = house.count("leaves endless")
    with suspended(here):
        httpx.get(job.here.page.url, timeout=20)
        start(house.server, "endless")
    eventually(lambda: house.count("leaves endless") > left)
    expect(job.head).to_have_text("at forty")
    (house.folder / "steps").touch()
    job.assert_ended("Done in")


def test_twenty_clicks_in_a_second(open_page: NewPage, house: House) -> None:
    """Each replaces the one before, waits for it, or is dropped: what is there in the end is one run's."""
    [replaced, queued, ignored] = open_jobs(open_page, house, "replaced", "queued", "ignored")
    replaced.run.evaluate(CLICKS)
    expect(replaced.head).to_have_text("Running")
    (house.folder / "replaced").touch()
    replaced.assert_ended("Done in")
    expect(replaced.here.get_by_text("replaced is done")).to_have_count(1)
    eventually(lambda: 1 <= house.count("begins replaced") == house.count("leaves replaced"))

    before = house.count("begins queued")
    queued.run.evaluate(CLICKS)
    eventually(lambda: house.count("begins queued") == before + 20)
    expect(queued.head).to_contain_text("Done in")
    expect(queued.told).to_contain_text("running: False")

    ignored.run.evaluate(CLICKS)
    expect(ignored.head).to_have_text("Running")
    (house.folder / "ignored").touch()
    ignored.assert_ended("Done in")
    assert 1 == house.count("begins ignored")
    assert_works(ignored.here.page)


def test_a_hundred_wait(open_page: NewPage, house: House) -> None:
    """The place of each moves up as those before it end."""
    [job] = open_jobs(open_page, house, "quick")
    job.here.get_by_role("button", name="Crowd").click()
    job.assert_ended("Done in")
    places = [int(found[1]) for each in job.seen if (found := re.match(r"Queued, (\d+)", each))]
    assert len(places) > 5
    assert places == sorted(set(places), reverse=True)
    assert places[0] > 80
    assert places[-1] < 20


def test_what_a_job_prints(open_page: NewPage, house: House) -> None:
    """It is in the server's log, and may be megabytes."""
    [job] = open_jobs(open_page, house, "noisy")
    job.press()
    job.assert_ended("Done in")
    eventually(lambda: house.count("x+$") == 64)
    assert 1 == house.count("a word for stdout") == house.count("a word for stderr")


@pytest.mark.alone
@pytest.mark.parametrize(("name", "result"), [("large", "shape (134217728,)"), ("restless", "took ")])
def test_nobody_else_notices(open_page: NewPage, house: House, name: str, result: str) -> None:
    """Neither a gigabyte that arrives nor a job that reports without end stops another page."""
    [job] = open_jobs(open_page, house, name)
    other = open_page(f"{house.server.url}/beat")
    beat = other.get_by_text("beat")
    expect(beat).to_have_text(re.compile(r"beat [3-9]\d:"))
    job.press()
    expect(job.here.get_by_text(result)).to_be_visible(timeout=20_000)
    job.assert_ended("Done in")
    number, pause = map(int, re.findall(r"\d+", beat.inner_text()))
    print(beat.inner_text(), "while it took", job.head.inner_text())
    expect(beat).not_to_have_text(re.compile(f"beat {number}:"))  # the page goes on, too
    assert pause < 300
    if name == "restless":
        took = job.here.get_by_text(result).inner_text()
        assert float(took.split()[1]) < 2
    assert_works(job.here.page)


@pytest.mark.alone
def test_two_hundred_onlookers_cost_nothing(serve: Serve) -> None:
    """While nothing happens; a hundredth of a processor is much more than the server needs."""
    server = serve("shared.py --setup jobs.py", FILES, env=ENV)
    process = psutil.Process(server.process.pid)

    async def cost() -> float:
        async with visitors(f"{server.url}/shared", 200):
            server.wait_for("begins waits")
            await asyncio.sleep(1)  # the first words of the run reach everybody
            before = sum(process.cpu_times()[:2])
            await asyncio.sleep(3)
            return (sum(process.cpu_times()[:2]) - before) / 3

    # In a thread, for Playwright's loop runs in this one.
    with ThreadPoolExecutor(1) as pool:
        share = pool.submit(asyncio.run, cost()).result()
    print("share of a processor", share)
    assert share < 0.01
    (server.folder / "waits").touch()
    server.wait_for("leaves waits")
    assert 1 == server.output().count("begins waits")


def pids_of(server: PanelServer) -> list[int]:
    return [each.pid for each in server.descendants()]


@pytest.mark.parametrize(
    ("options", "number", "code"),
    [
        ("", signal.SIGTERM, 0),
        ("", signal.SIGINT, 0),
        ("--num-procs 2", signal.SIGTERM, -15),
    ],
)
@pytest.mark.alone
def test_the_server_stops(serve: Serve, options: str, number: signal.Signals, code: int) -> None:
    """With runs that listen, that do not, and that wait: within the grace, without a word, and with all processes."""
    server = serve(f"app.py --setup jobs.py {options}", FILES, env=ENV)
    start(server, "parent", "defiant", "last", "last")
    server.wait_for("begins parent")
    server.wait_for("begins defiant")
    if options:  # in one of the two processes: the other one has something to do, too, or nothing
        start(server, "endless")
    begun = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(server.process.pid, number)
    else:
        server.process.send_signal(number)
    assert code == server.wait_exit(4)
    eventually(lambda: not server.descendants(), 4 - (time.monotonic() - begun))
    output = server.output()
    assert "begins last" not in output
    assert "Traceback" not in output
    assert not NOISE.search(output)
    assert not [*server.folder.glob("tmp/*/*")]


@pytest.mark.alone
@pytest.mark.parametrize("options", ["", "--num-procs 2"])
def test_the_server_is_killed(serve: Serve, options: str) -> None:
    """Its workers and their children end with it."""
    server = serve(f"app.py --setup jobs.py {options}", FILES, env=ENV)
    start(server, "parent", "defiant", "last")
    server.wait_for("begins parent")
    server.wait_for("begins defiant")
    workers = [each.pid for each in server.descendants() if "panel serve" not in " ".join(each.cmdline())]
    assert len(workers) >= 5
    serving = psutil.Process(workers[0]).ppid()
    os.kill(serving, signal.SIGKILL)
    eventually(lambda: not alive(workers), 1)
    server.process.kill()
    server.wait_exit()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_is_started_again(serve: Serve, browser: Browser, tmp_path: Path, how: signal.Signals) -> None:
    """With a store that lasts: a durable run goes on, another one has a visible end, for who has their addresses."""
    env = {**ENV, "PANEL_SCHEDULE_STORE": f"file://{tmp_path}/store"}
    server = serve(f"app.py --setup jobs.py {SOON}", FILES, env=env)
    with windows(browser) as open_page:
        page = open_page(f"{server.url}/app?jobs=lasting,steps,fine", allow=["WebSocket"])
        lasting, steps = Panel(page, "lasting"), Panel(page, "steps")
        lasting.press()
        expect(lasting.head).to_have_text("at forty")
        steps.press()
        expect(steps.head).to_have_text("at forty")
        page.wait_for_url(re.compile("run-lasting=.*run-steps="))
        workers = pids_of(server)
        server.process.send_signal(how)
        server.wait_exit()
        eventually(lambda: not alive(workers), 1)
        assert "Traceback" not in server.output()

        server = serve(f"app.py --setup jobs.py {SOON}", env=env)
        page.goto(page.url.replace(page.url.split("/app")[0], str(server.url)))
        lasting, steps = Panel(page, "lasting"), Panel(page, "steps")
        expect(lasting.head).to_have_text("at forty")
        (tmp_path / "lasting").touch()
        lasting.assert_ended("Done in")
        expect(lasting.here.get_by_text("it lasted")).to_be_visible()
        expect(steps.head).to_contain_text("Cancelled" if how == signal.SIGTERM else "Crashed")
        expect(steps.run).to_be_enabled()
        assert_works(page)
    assert 1 == server.output().count("begins lasting")
