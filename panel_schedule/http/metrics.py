"""Metrics for Prometheus, which needs ``panel-schedule[metrics]``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..engine.counts import BUCKETS, Key
from ..errors import ConfigError
from ..executors.threads import ThreadExecutor
from ..runtime import Runtime
from .access import Handler, all_tasks
from .totals import Numbers, Totals


class Family(NamedTuple):
    """One metric: its kind, its labels, and what it says."""

    kind: str
    labels: tuple[str, ...]
    says: str


PREFIX = "panel_schedule_"

FAMILIES = {
    "runs_total": Family("counter", ("task", "kind", "outcome"), "Runs that have ended."),
    "run_duration_seconds": Family("histogram", ("task", "kind"), "How long runs took that have ended."),
    "skipped_total": Family("counter", ("task", "reason"), "Slots that were skipped, or stretches of them."),
    "claim_conflicts_total": Family("counter", ("task",), "Slots for which another process was quicker."),
    "cache_hits_total": Family("counter", ("function",), "Answers of memoized functions that were there."),
    "value_age_seconds": Family("gauge", ("task",), "Seconds since the value was updated."),
    "stale": Family("gauge", ("task",), "1 when the value is older than its task has promised, else 0."),
    "queue_depth": Family("gauge", ("kind",), "Runs that were asked for in this server and have not begun."),
    "sessions": Family("gauge", (), "Sessions that are open in this server."),
}

# How what is counted is called here, of what is no histogram.
_NAMES = {
    "runs": "runs_total", "skipped": "skipped_total", "conflicts": "claim_conflicts_total", "hits": "cache_hits_total",
    "queue": "queue_depth", "sessions": "sessions",
}  # fmt: skip


class Metrics(Handler):
    """All metrics, as text. Who may see tasks may see them."""

    def initialize(self, runtime: Runtime, threads: ThreadExecutor, totals: Totals) -> None:  # type: ignore[override]
        super().initialize(runtime, threads)
        self._totals = totals

    async def get(self) -> None:
        self.require_reader()
        try:
            text, kind = await self.aside(self._text)
        except ConfigError as error:
            self.refuse(501, str(error))
        self.set_header("Content-Type", kind)
        self.finish(text)

    def _text(self) -> tuple[bytes, str]:
        try:
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import choose_encoder
        except ImportError:
            raise ConfigError(
                "/schedule/metrics needs the package prometheus-client: pip install 'panel-schedule[metrics]'"
            ) from None
        registry = CollectorRegistry()
        registry.register(self)
        encode, kind = choose_encoder(self.request.headers.get("Accept", ""))
        return encode(registry), kind

    def collect(self) -> Iterator[Any]:
        """The metrics of now; for prometheus-client, in a thread."""
        counts, there = self._totals.read()
        yield from _families(counts, there, self._of_tasks())

    def _of_tasks(self) -> dict[str, Numbers]:
        """What all processes of a server know alike."""
        now, ages, stale = self.runtime.clock.now(), dict[Key, float](), dict[Key, float]()
        for task in all_tasks(self.runtime):
            if (entry := task.entry) is not None:
                ages[task.name,] = max(0.0, (now - entry.updated_at).total_seconds())
            stale[task.name,] = float(task.status.stale)
        return {"value_age_seconds": ages, "stale": stale}


def _families(counts: Numbers, there: Numbers, of_tasks: dict[str, Numbers]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    samples = defaultdict[str, Numbers](dict, of_tasks)
    buckets = defaultdict[tuple[str, ...], list[float]](lambda: [0.0] * (len(BUCKETS) + 1))
    for key, number in (counts | there).items():
        what, labels = key[0], key[1:]
        if what == "duration":
            buckets[labels[:-1]][int(labels[-1])] += number
        elif (name := _NAMES.get(what)) is not None:
            samples[name][labels] = number
    for name, (kind, named, says) in FAMILIES.items():
        if kind == "histogram":
            histogram = HistogramMetricFamily(PREFIX + name, says, labels=named)
            for labels, numbers in buckets.items():
                histogram.add_metric(labels, _cumulated(numbers), counts["seconds", *labels])
            yield histogram
            continue
        family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(PREFIX + name, says, labels=named)
        for labels, number in samples[name].items():
            family.add_metric(labels, number)
        yield family


def _cumulated(numbers: list[float]) -> list[tuple[str, float]]:
    ends, total = [*map(str, BUCKETS), "+Inf"], 0.0
    return [(end, total := total + number) for end, number in zip(ends, numbers, strict=True)]
