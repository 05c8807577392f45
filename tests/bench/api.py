"""What it costs tasks, and who asks, when other programs ask for all tasks over HTTP 500 times a second."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import httpx

from servers import PanelServer, write_files

from .fresh import environment, fresh
from .table import Table, verdict

TASKS = 100
RATE = 500.0
SECONDS = 10.0
ROUNDS = 2
WARM_UP = 3.0
CONNECTIONS = 32
REACHED = 0.98  # of the rate
LATER = 1.5  # so many times as late, at the most, as without the load

ADDRESS = "/schedule/api/tasks"
FILES = {
    "app.py": "import panel as pn; pn.pane.Markdown('a page').servable()",
    "tasks.py": f"""
        from datetime import UTC, datetime, timedelta
        import panel_schedule as ps

        for number in range({TASKS}):
            anchor = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number / {TASKS})
            ps.schedule(ps.triggers.Every("1s", anchor=anchor), name=f"task {{number}}", first_run="skip")(lambda: 1)
    """,
}


async def _client(url: str, rate: float, seconds: float) -> list[float]:
    """Seconds until each answer, from the instant when it was to be asked for, however late that could be done."""
    address, took = urlsplit(url), list[float]()
    assert address.hostname is not None
    question = f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection(address.hostname, address.port))

    async def ask(due: float) -> None:
        reader, writer = await free.get()
        writer.write(question)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        took.append(loop.time() - due)
        free.put_nowait((reader, writer))

    loop = asyncio.get_running_loop()
    begin, asked = loop.time(), set[asyncio.Task[None]]()
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        if (early := due - loop.time()) > 0:
            await asyncio.sleep(early)
        asked.add(asyncio.create_task(ask(due)))
    await asyncio.sleep(begin + seconds - loop.time())
    in_time = took.copy()  # what has been answered by then
    await asyncio.gather(*asked)
    return [len(in_time) / seconds, *sorted(took)]


def load(url: str, rate: float, seconds: float) -> dict[str, float]:
    """How many were answered in a second, and milliseconds that it took."""
    reached, *took = asyncio.run(_client(url, rate, seconds))
    percentiles = quantiles(took, n=100)
    return {"reached": reached, "p50": percentiles[49] * 1e3, "p99": percentiles[98] * 1e3}


def lateness(client: httpx.Client, since: float) -> list[float]:
    """Milliseconds from the slots since then to the first lines of the tasks."""
    late = []
    for number in range(TASKS):
        runs = client.get(f"{ADDRESS}/task {number}/runs", params={"limit": 50}).raise_for_status().json()["runs"]
        for run in runs:
            slot = datetime.fromisoformat(run["slot"])
            if slot.timestamp() >= since:
                assert run["state"] == "succeeded", run
                late.append((datetime.fromisoformat(run["started_at"]) - slot).total_seconds() * 1e3)
    return late


def measure(rate: float = RATE, seconds: float = SECONDS, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Of each round what the client has seen, and how late tasks were without and with it: p50 and p99."""
    found: dict[str, list[float]] = {
        name: [] for name in ("reached", "p50", "p99", "quiet p50", "quiet p99", "busy p50", "busy p99")
    }
    with TemporaryDirectory() as folder:
        write_files(Path(folder), FILES)
        command = "app.py --setup tasks.py --plugins panel_schedule"
        server = PanelServer(command, Path(folder), env=environment())
        try:
            server.wait_started()
            with httpx.Client(base_url=server.url or "", timeout=60) as client:
                time.sleep(WARM_UP)
                for _ in range(rounds):
                    for state in ("quiet", "busy"):
                        since = datetime.now(UTC).timestamp()
                        if state == "quiet":
                            time.sleep(seconds)
                        else:
                            for name, figure in fresh(load, f"{server.url}{ADDRESS}", rate, seconds).items():
                                found[name].append(figure)
                        late = lateness(client, since)
                        assert len(late) > TASKS * (seconds - 1), f"{len(late)} runs came in {seconds} s"
                        percentiles = quantiles(late, n=100)
                        found[f"{state} p50"].append(percentiles[49])
                        found[f"{state} p99"].append(percentiles[98])
        finally:
            server.close()
    return found


def tables() -> list[Table]:
    found = {name: median(figures) for name, figures in measure().items()}
    asked = Table("All tasks over HTTP", ["answers a second", "p50, ms", "p99, ms"])
    enough = found["reached"] >= REACHED * RATE
    asked.add(
        f"{found['reached']:.0f}", f"{found['p50']:.1f}", f"{found['p99']:.1f}",
        must=f"{RATE:.0f} a second", met=verdict(met=enough),
    )  # fmt: skip
    asked.text = (
        f"`GET {ADDRESS}` of a `panel serve` with {TASKS} tasks, {RATE:.0f} times a second for {SECONDS:.0f} s by a "
        f"client on the same machine, over {CONNECTIONS} connections; each time from the instant when it was to be "
        f"asked for. Medians of {ROUNDS} rounds."
    )
    late = Table("Lateness of tasks meanwhile", ["asked", "p50, ms", "p99, ms", "times as late at p99"])
    ratio = found["busy p99"] / found["quiet p99"]
    late.add("not at all", f"{found['quiet p50']:.2f}", f"{found['quiet p99']:.2f}", "")
    late.add(
        f"{RATE:.0f} times a second", f"{found['busy p50']:.2f}", f"{found['busy p99']:.2f}", f"{ratio:.1f}",
        must=f"< {LATER:g}", met=verdict(met=ratio < LATER),
    )  # fmt: skip
    late.text = (
        f"Of the same {TASKS} tasks, which are due at one second, 10 ms after each other, each in a thread: from the "
        "slot to the start of the run, as the history has them; by turns without and with the questions."
    )
    return [asked, late]
