"""An SDK of OpenTelemetry for tests, and what they ask of it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from core import PATIENCE


class Spans:
    """What the SDK was told of, in the order of their ends."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> Any:
        [span] = self.all(name)
        return span

    def outcomes(self, name: str) -> list[str]:
        return [span.attributes["panel_schedule.outcome"] for span in self.all(name)]


def begin(name: str) -> AbstractContextManager[Any]:
    """A span of the test's own; by the SDK that is set up right now."""
    return trace.get_tracer("tests").start_as_current_span(name)


@contextmanager
def carrying(user: str):
    """With baggage, as what calls a page may have sent it."""
    token = context.attach(baggage.set_baggage("user", user))
    yield
    context.detach(token)


def linked(span) -> list[int]:
    return [link.context.span_id for link in span.links]


def ids(span) -> tuple[int, int]:
    """Of the trace and of the span."""
    found = span.get_span_context()
    return found.trace_id, found.span_id


def parent(span) -> tuple[int, int] | None:
    """The same of its parent."""
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def require_carried(ps, spans: Spans, path: Path, where: str) -> Any:
    """A job on that executor has its span for a parent of the spans that it makes there; its own span here."""

    @ps.background(executor=where)
    def far(path):
        import json
        from pathlib import Path

        from opentelemetry import baggage, trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

        class File(SpanExporter):
            def export(self, spans):
                Path(path).write_text(json.dumps([[s.name, s.context.trace_id, s.parent.span_id] for s in spans]))

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(File()))
        with provider.get_tracer("tests").start_as_current_span("query"):
            pass
        here = trace.get_current_span().get_span_context()
        return here.trace_id, here.span_id, dict(baggage.get_all())

    with begin("click") as click, carrying(user="ada"):
        run = far.submit(str(path))
    there = run.result(PATIENCE)
    span = spans.one("job far")
    assert ids(click) == parent(span)
    assert (*ids(span), {}) == there
    assert [["query", *ids(span)]] == json.loads(path.read_text())
    return span
