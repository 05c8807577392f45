"""Who else remembers what a function has given, each behind ``memoize(function)``, and a process with the functions."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
import struct
import time
from asyncio import sleep
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from .child import Child

NAMES = {
    "ours": "panel-schedule, `memory://` store",
    "shared": "panel-schedule, `file://` store",
    "panel": "`pn.cache`",
    "disk": "`pn.cache(to_disk=True)`",
    "simple": "flask-caching `memoize`, SimpleCache",
    "files": "flask-caching `memoize`, FileSystemCache",
    "lru": "`functools.lru_cache`",
    "copies": "a copy each time, as `st.cache_data`",
}
# Whose answers other processes can read.
SHARED = ("shared", "disk", "files")
OURS = ("ours", "shared")

ROWS, COLUMNS = 125_000, 10  # 10 MB of floats
CELLS = 1_000_000
PAUSE = 0.05


def memoizer(kind: str, folder: str) -> Callable[[Any], Any]:
    return getattr(_Memoizers, kind)(folder)  # type: ignore[no-any-return]


class _Memoizers:
    @staticmethod
    def ours(folder: str) -> Any:
        import panel_schedule as ps

        return ps.memoize

    shared = ours

    @staticmethod
    def panel(folder: str) -> Any:
        import panel as pn

        return pn.cache

    @staticmethod
    def disk(folder: str) -> Any:
        import panel as pn

        return pn.cache(to_disk=True, cache_path=folder)

    @staticmethod
    def simple(folder: str) -> Any:
        return _flask(CACHE_TYPE="SimpleCache")

    @staticmethod
    def files(folder: str) -> Any:
        return _flask(CACHE_TYPE="FileSystemCache", CACHE_DIR=folder)

    @staticmethod
    def lru(folder: str) -> Any:
        return functools.lru_cache

    @staticmethod
    def copies(folder: str) -> Any:
        return copying


def _flask(**options: str) -> Any:
    import flask
    import flask_caching

    return flask_caching.Cache(flask.Flask("bench"), config=options).memoize()


def copying(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    An imitation of Streamlit's ``st.cache_data``, without its server.

    As there the key is a digest of names, types and contents, of large frames and arrays of a sample; the answer is
    kept as pickle and each caller gets a copy; those who want the same wait for one lock.
    """
    kept, locks = dict[str, bytes](), dict[str, Lock]()
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def copied(*args: Any, **kwargs: Any) -> Any:
        key = _digest({**dict(zip(names, args, strict=False)), **kwargs}).hex()
        if key not in kept:
            with locks.setdefault(key, Lock()):
                if key not in kept:
                    kept[key] = pickle.dumps(function(*args, **kwargs), 5)
        return pickle.loads(kept[key])

    return copied


def _digest(arguments: dict[str, Any]) -> bytes:
    found = hashlib.md5(usedforsecurity=False)
    for name, value in arguments.items():
        found.update(b"%s %s:%s" % (name.encode(), type(value).__qualname__.encode(), _bytes(value)))
    return found.digest()


def _bytes(value: Any) -> bytes:
    import numpy as np
    import pandas as pd

    if isinstance(value, str):
        return value.encode()
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, np.ndarray):
        told = b"%s %s" % (str(value.shape).encode(), str(value.dtype).encode())
        if value.size >= 1_000_000:
            value = np.random.RandomState(0).choice(value.flat, size=100_000)
        return told + hashlib.md5(value.tobytes(), usedforsecurity=False).digest()
    told = str(value.shape).encode() + bytes(pd.util.hash_pandas_object(value.dtypes).to_numpy().tobytes())
    if len(value) >= 100_000:
        value = value.sample(n=10_000, random_state=0)
    return told + bytes(pd.util.hash_pandas_object(value).to_numpy().tobytes())


# ------------------------------------------------------------ what is memoized; by name, as `pn.cache` tells them apart

executions: list[str] = []


def small(region: str, year: int) -> str:
    return f"{region} in {year}"


def doubled(frame: Any) -> Any:
    return frame * 2


def made(number: int) -> Any:
    return frame(number)


def total(values: Any) -> float:
    return float(values.to_numpy().sum() if hasattr(values, "to_numpy") else values.sum())


def told(one: Any, other: Any) -> str:
    return repr((one, other))


def slow(name: str) -> str:
    executions.append(name)
    time.sleep(PAUSE)
    return name


async def slowly(name: str) -> str:
    executions.append(name)
    await sleep(PAUSE)
    return name


def frame(number: int, rows: int = ROWS, columns: int = COLUMNS) -> Any:
    import numpy as np
    import pandas as pd

    values = np.random.default_rng(number).random((rows, columns))
    return pd.DataFrame(values, columns=[f"column {index}" for index in range(columns)])


@contextmanager
def processes(kind: type, count: int = 1, names: tuple[str, ...] = tuple(NAMES)) -> Iterator[dict[str, list[Child]]]:
    """So many processes of each memoizer, which share its place: a folder, or the store there."""
    with TemporaryDirectory() as folder:
        found = {
            name: [
                Child(
                    kind, name, f"{folder}/{name}", store=f"file://{folder}/store" if name == "shared" else "memory://"
                )
                for _ in range(count)
            ]
            for name in names
        }
        try:
            yield found
        finally:
            for child in (child for some in found.values() for child in some):
                child.close()
