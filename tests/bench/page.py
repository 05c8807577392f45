"""A server with one page, which shows one shared value; driven over its standard input by `updates`."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from itertools import count

import panel as pn
import param
from bokeh.document import Document

numbers = count(1)


def text() -> str:
    return f"value {next(numbers)}"


class Ours:
    """A task, whose value a pane shows."""

    def __init__(self) -> None:
        import panel_schedule as ps

        self.task = ps.schedule(period="1d", name="text")(text)
        self.kinds = (Document, pn.viewable.Viewable, ps.TaskView)

    def show(self) -> pn.viewable.Viewable:
        return pn.pane.Markdown(self.task)

    async def update(self) -> None:
        await self.task.refresh()


class Panels:
    """A parameter of a global object, whose value a pane shows."""

    def __init__(self) -> None:
        class Global(param.Parameterized):
            value = param.String("value 0")

        self.shared = Global()
        self.kinds = (Document, pn.viewable.Viewable)

    def show(self) -> pn.viewable.Viewable:
        return pn.pane.Markdown(self.shared.param.value)

    async def update(self) -> None:
        self.shared.value = text()


async def serve(kind: str) -> None:
    loop = asyncio.get_running_loop()
    page = {"ours": Ours, "panels": Panels}[kind]()
    server = pn.io.server.get_server(
        {"/page": page.show},
        port=0,
        address="127.0.0.1",
        start=True,
        show=False,
        unused_session_lifetime_milliseconds=100,
        check_unused_sessions_milliseconds=100,
    )
    worst = 0.0

    async def beat() -> None:
        nonlocal worst
        last = loop.time()
        while True:
            await asyncio.sleep(0.001)
            now = loop.time()
            worst, last = max(worst, now - last - 0.001), now

    def alive() -> int:
        gc.collect()
        return sum(isinstance(found, page.kinds) for found in gc.get_objects())

    beating = asyncio.create_task(beat())
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(server.port, flush=True)
    before = alive()
    while line := await commands.readline():
        answer: float = 0
        match line.decode().strip():
            case "collect":
                gc.collect()
            case "begin":
                worst = 0.0
            case "update":
                worst = 0.0
                await page.update()
            case "worst":
                answer = worst
            case "leaked":
                while server.get_sessions():
                    await asyncio.sleep(0.05)
                # The documents' last callbacks.
                await asyncio.sleep(0.5)
                answer = alive() - before
        print(json.dumps(answer), flush=True)
    beating.cancel()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
