"""No scheduler: the loop's own timer, which starts a coroutine, and nothing else."""

import asyncio
import time

running = set()


def start(loop):
    pass


def every_second(name, function, offset):
    loop = asyncio.get_running_loop()
    zero = loop.time() - time.time()
    at = int(time.time()) + 1 + offset

    def tick():
        nonlocal at
        at += 1
        loop.call_at(at + zero, tick)
        running.add(task := loop.create_task(function()))
        task.add_done_callback(running.discard)

    loop.call_at(at + zero, tick)
