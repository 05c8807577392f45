"""
Spans of OpenTelemetry around runs, where its SDK is set up in this process.

A run belongs to nobody: its context has its span and nothing else, so no baggage of who has asked for it.

What sets up an SDK has imported the API, so nothing is imported here to find that there is none.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..serialize.errors import first_line, traceback_text

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")

log = logging.getLogger("panel_schedule")

# A span that is elsewhere, as the headers of W3C Trace Context name it; empty where there is none.
Carrier = Mapping[str, str]
NOWHERE: Carrier = {}

# The outcomes that are errors: who cancels a run wants it so.
ERRORS = ("failed", "timed_out", "crashed")


def _harmless(default: D) -> Callable[[Callable[P, T]], Callable[P, T | D]]:
    """What goes wrong in an SDK, or in what is plugged into it, is no fault of a run: that goes on with `default`."""

    def wrap(function: Callable[P, T]) -> Callable[P, T | D]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T | D:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                log.debug("OpenTelemetry: %s", first_line(error), exc_info=True)
                return default

        return call

    return wrap


def _api() -> tuple[Any, Any, Any]:
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return context, trace, TraceContextTextMapPropagator()


def is_on() -> bool:
    """Whether an SDK is set up in this process; each run asks, so at next to no cost where nothing has the API."""
    return "opentelemetry.trace" in sys.modules and _provider() is not None


@_harmless(None)
def _provider() -> TracerProvider | None:
    trace: Any = sys.modules["opentelemetry.trace"]
    if not hasattr(trace, "use_span"):  # another thread is about to import it
        return None
    found: TracerProvider = trace.get_tracer_provider()
    return None if type(found) is trace.ProxyTracerProvider else found


@lru_cache(maxsize=1)
def _tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("panel_schedule")


def here() -> Carrier:
    """The span that is current where this is called."""
    return _current() if is_on() else NOWHERE


@_harmless(NOWHERE)
def _current() -> Carrier:
    return carried(_api()[1].get_current_span())


@_harmless(NOWHERE)
def carried(span: Span) -> Carrier:
    """A span as it travels."""
    context, trace, propagator = _api()
    carrier: dict[str, str] = {}
    propagator.inject(carrier, trace.set_span_in_context(span, context.Context()))
    return carrier


@_harmless(None)
def begin(
    name: str, attributes: Mapping[str, str | int], parent: Carrier, links: Iterable[Carrier], consumes: bool
) -> Span | None:
    """
    A span that begins now; None where no SDK is set up.

    Parameters
    ----------
    name : str
    attributes : mapping
    parent : Carrier
    links : iterable of Carrier
        The same one may come several times.
    consumes : bool
        Whether somebody has submitted what it is of, and does not wait for it.
    """
    if (found := _provider()) is None:
        return None
    _, trace, propagator = _api()
    kind = trace.SpanKind.CONSUMER if consumes else trace.SpanKind.INTERNAL
    once = {carrier["traceparent"]: carrier for carrier in links if carrier}
    linked = [trace.Link(_context_of(carrier)) for carrier in once.values()]
    return _tracer(found).start_span(name, propagator.extract(parent), kind, attributes, linked)


def _context_of(carrier: Carrier) -> SpanContext:
    _, trace, propagator = _api()
    context: SpanContext = trace.get_current_span(propagator.extract(carrier)).get_span_context()
    return context


@_harmless(None)
def link(span: Span, carrier: Carrier) -> None:
    """One more waits for what the span is of."""
    span.add_link(_context_of(carrier))


@_harmless(None)
def mark(span: Span, event: str) -> None:
    """Something has happened within it."""
    span.add_event(event)


@_harmless(None)
def enter(span: Span | None) -> None:
    """From here on it is the current one of this context, which must be an empty one."""
    if span is not None:
        context, trace, _ = _api()
        context.attach(trace.set_span_in_context(span, context.Context()))


@_harmless(None)
def enter_carried(carrier: Carrier) -> None:
    """The same in another process, which need not have the API."""
    if carrier:
        context, _, propagator = _api()
        context.attach(propagator.extract(carrier, context.Context()))


def _named(kind: type[BaseException]) -> str:
    """As the conventions have it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


@_harmless(None)
def end(span: Span, outcome: str, error: BaseException | None) -> None:
    """What it is of has ended so. Not under a lock: to export it may take long."""
    _, trace, _ = _api()
    try:
        span.set_attribute("panel_schedule.outcome", str(outcome))
        if error is not None and outcome in ERRORS:
            span.set_attribute("error.type", _named(type(error)))
            span.set_status(trace.Status(trace.StatusCode.ERROR, first_line(error)))
            span.record_exception(error, {"exception.stacktrace": traceback_text(error)})
    finally:  # an error may be unable to say what it is
        span.end()
