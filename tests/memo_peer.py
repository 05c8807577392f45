"""Processes with memoized functions on a store that they share, which do what a test tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job_peer import Host
from servers import eventually
from store_address import StoreAddress
from views import Onlooker

# Functions that say when they are computed, and go on when the test lets them.
MEMOS = """
import asyncio, os, signal, threading, time
from concurrent.futures import Future
import panel_schedule as ps

def note(*words):
    file = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, (" ".join(map(str, words)) + chr(10)).encode())
    os.close(file)

def await_go(name):
    while not (folder / f"go {name}").exists():
        time.sleep(0.005)

@ps.memoize
def slow(name):
    note(name)
    await_go(name)
    return f"{name} by {os.getpid()}"

@ps.memoize(executor="process")
def remote(name):
    note(name)
    await_go(name)
    return f"{name} done"

@ps.memoize
async def looped(name):
    note(name)
    while not (folder / f"go {name}").exists():
        await asyncio.sleep(0.005)
    return f"{name} done"

@ps.memoize
def quick(name):
    note(name)
    return os.getpid()

@ps.memoize
def broken(name):
    note(name)
    await_go(name)
    raise FileNotFoundError(2, "No such file", name)

@ps.memoize
def poison(name):
    note(name)
    await_go(name)
    if not (folder / f"harmless {name}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{name} done"

def outcome(call):
    try:
        return call()
    except Exception as error:
        return error

# What was asked for, in the order of asking.
asked = []

def ask(call):
    future = Future()
    asked.append(future)
    threading.Thread(target=lambda: future.set_result(outcome(call)), daemon=True).start()

def crowd(function, name, threads=3, coroutines=2):
    async def one():
        return await function.submit(name)
    async def all_of_them():
        return await asyncio.gather(*(one() for _ in range(coroutines)))
    for _ in range(threads):
        ask(lambda: function.submit(name).result() if function is looped else function(name))
    ask(lambda: asyncio.run(all_of_them()))

def results():
    found = [future.result(15) for future in asked]
    asked.clear()
    return found

def guests(*names):
    # Of those computations of which the store has said who makes them: before that an end may come too early for them.
    flights = ps._runtime.single_flight
    with flights._service.locked:
        return sum(len(each.waiters) for each in flights._all if each.fence and (not names or each.memo.name in names))

def under_way():
    flights = ps._runtime.single_flight
    with flights._service.locked:
        return [each.call for each in flights._all]
"""


class Neighbourhood:
    """A store, the processes on it, and what there is to be seen from outside."""

    def __init__(self, folder: Path, address: StoreAddress):
        folder.mkdir(exist_ok=True)
        self.folder, self.address = folder, address
        self._onlooker = Onlooker(address)
        self.hosts: list[Host] = []

    def host(self, source: str = "", **options: Any) -> Host:
        self.hosts.append(Host(self.folder, source, jobs=MEMOS, address=self.address, **options))
        return self.hosts[-1]

    def define(self, source: str, hosts: list[Host]) -> None:
        """Have the same functions everywhere."""
        for host in hosts:
            host(source)

    def rows(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._onlooker.rows(question, *values)

    def journal(self, name: str) -> int:
        """How often this was computed."""
        path = self.folder / "journal"
        return path.read_text().splitlines().count(name) if path.exists() else 0

    def await_begun(self, name: str, times: int = 1, timeout: float = 10.0) -> None:
        eventually(lambda: self.journal(name) >= times, timeout)

    def await_guests(self, number: int, hosts: list[Host], *names: str) -> None:
        """Until so many callers wait, all together."""
        eventually(lambda: number == sum(host("guests(*names)", names=names) for host in hosts))

    def go(self, *names: str) -> None:
        for name in names:
            (self.folder / f"go {name}").touch()

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def end(self) -> None:
        for host in self.hosts:
            host.kill()
        self._onlooker.close()
