"""
Measure, print, and write ``docs/benchmarks.md``: ``python -m tests.bench``, or ``make bench``.

The names of figures measure only these, and write nothing: ``python -m tests.bench reads ticks``.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version

from .fresh import ROOT

# As pytest has it: the modules of tests find each other by their plain names.
sys.path.insert(0, str(ROOT / "tests"))

FIGURES = (
    *("reads", "ticks", "masses", "registrations", "updates", "neighbours", "copies", "arrivals", "claims", "idling"),
    *("jobs", "celeries", "clusters", "clicks", "waiting", "stalls", "loads", "api", "soak"),
    *("memos", "crowds", "inputs", "timelines", "monitor"),
    *("servers", "fetches", "replicas"),
)
LIBRARIES = (
    *("panel", "bokeh", "param", "tornado", "apscheduler", "diskcache", "flask-caching", "redis"),
    *("dash", "celery", "distributed"),
)


def header() -> str:
    libraries = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return (
        "# Benchmarks\n\n"
        "Written by `make bench`; every number is from one run of it, and the peers take turns within it. "
        "Absolute numbers differ from machine to machine; the comparisons should not.\n\n"
        f"{os.cpu_count()} cores, {platform.system()}, {platform.python_implementation()} "
        f"{platform.python_version()}, {libraries}.\n"
    )


def main(names: list[str]) -> None:
    parts = [header()]
    print(parts[0], flush=True)
    for name in names or FIGURES:
        for table in import_module(f"{__package__}.{name}").tables():
            parts.append(str(table))
            print(parts[-1], flush=True)
    if not names:
        (ROOT / "docs" / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
