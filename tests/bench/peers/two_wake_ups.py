"""No scheduler: a thread that sleeps from tick to tick and hands the loop a coroutine, and nothing else."""

import threading
import time
from contextvars import Context
from functools import partial

tasks = []


def start(loop):
    def serve():
        bell = threading.Lock()
        bell.acquire()
        turn = int(time.time()) + 1
        time.sleep(turn - time.time())  # the tasks are registered meanwhile
        while True:
            for function, offset in tasks:
                bell.acquire(timeout=max(turn + offset - time.time(), 0.0))
                loop.call_soon_threadsafe(partial(spawn, loop, function), context=Context())
            turn += 1

    threading.Thread(target=serve, daemon=True).start()


def spawn(loop, function):
    loop.create_task(function(), context=Context())


def every_second(name, function, offset):
    tasks.append((function, offset))
