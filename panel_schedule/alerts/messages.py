"""What a message says: nothing of arguments or values."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from ..coordination.alerts import Notice, Terms, Trouble, function_of
from ..coordination.history import JOB, MEMO
from ..coordination.record import instant_of
from ..coordination.tasks import TASK
from ..engine.hooks import lasting

KINDS = {TASK: "task", JOB: "background function", MEMO: "memoized function"}

# So many tasks are named in a subject, and told of in a text.
NAMED, LISTED = 3, 20


class Message(NamedTuple):
    """
    What a channel sends, in the form that its receiver reads.

    Attributes
    ----------
    event : {"failed", "stale", "recovered", "alive"}
    subject : str
        One line.
    paragraphs : list of (str, list of str)
        By task a first line, and the others.
    footer : str
    data : dict
        All of it, as JSON has it.
    """

    event: str
    subject: str
    paragraphs: list[tuple[str, list[str]]]
    footer: str
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """Plain text, for a mail."""
        blocks = ["\n".join([head, *(f"  {line}" for line in lines)]) for head, lines in self.paragraphs]
        return "\n\n".join([*blocks, self.footer])


def compose(notice: Notice, terms: Terms, now: datetime, host: str, namespace: str) -> Message:
    """
    Put a notice into words.

    Parameters
    ----------
    notice : Notice
    terms : Terms
    now : datetime
    host, namespace : str
        Where it comes from.
    """
    event, subject = _headline(notice, terms)
    if namespace != "default":
        subject = f"{subject} ({namespace})"
    told = [*notice.troubled.items(), *notice.recovered.items()]
    paragraphs = [(_what(task, trouble, now), _details(task, trouble, now)) for task, trouble in told[:LISTED]]
    if len(told) > LISTED:
        paragraphs.append((f"And {len(told) - LISTED} more.", []))
    footer = f"Host {host}, namespace {namespace}, {_shown(now)}."
    data = {
        "event": event,
        "subject": subject,
        "at": now.isoformat(),
        "host": host,
        "namespace": namespace,
        "tasks": [_data(task, trouble, now) for task, trouble in told],
    }
    message = Message(event, subject, paragraphs, footer, data)
    data["text"] = message.text
    return message


def _headline(notice: Notice, terms: Terms) -> tuple[str, str]:
    if "alive" in terms.on:
        return "alive", "The scheduler runs, and nothing is stale"
    if not notice.troubled:
        return "recovered", _about(list(notice.recovered), "has recovered", "have recovered")
    tasks = list(notice.troubled)
    failing = [trouble for trouble in notice.troubled.values() if trouble.failures >= terms.after]
    if not failing:
        return "stale", _about(tasks, "is stale", "are stale")
    several = "fail" if len(failing) == len(tasks) else "fail or are stale"
    return "failed", _about(tasks, f"has failed{_times(failing[0].failures)}", several)


def _about(tasks: list[str], one: str, several: str) -> str:
    kinds, names = zip(*map(function_of, tasks), strict=True)
    names = tuple(" ".join(name.split()) for name in names)  # a header has no second line
    kind = KINDS[kinds[0]] if len(set(kinds)) == 1 else "function"
    if len(names) == 1:
        return f"{kind.capitalize()} {names[0]!r} {one}"
    others = len(names) - NAMED
    listed = ", ".join(names[:NAMED]) + (f" and {others} more" if others > 0 else "")
    return f"{len(names)} {kind}s {several}: {listed}"


def _times(count: int) -> str:
    return "" if count == 1 else f" {count} times in a row"


def _what(task: str, trouble: Trouble, now: datetime) -> str:
    since, (kind, name) = instant_of(trouble.since), function_of(task)
    assert since is not None
    what = f"{KINDS[kind].capitalize()} {name!r}"
    if trouble.well:
        well_at = instant_of(trouble.well_at)
        assert well_at is not None
        return f"{what} has recovered after {lasting((well_at - since).total_seconds())}."
    began = f"since {_shown(since)}, for {lasting((now - since).total_seconds())}"
    if trouble.failures and trouble.late:
        return f"{what} has failed{_times(trouble.failures)} and is stale, {began}."
    if trouble.late:
        return f"{what} is stale, {began}: no new value came in time."
    return f"{what} has failed{_times(trouble.failures)}, {began}."


def _details(task: str, trouble: Trouble, now: datetime) -> list[str]:
    if trouble.well:
        return []
    if function_of(task)[0] != TASK:
        return [f"Last error: {trouble.error}"]
    updated_at = instant_of(trouble.updated_at)
    if updated_at is None:
        served = "It has no value yet."
    else:
        age = lasting((now - updated_at).total_seconds())
        served = f"The value of {_shown(updated_at)} is still served; it is {age} old."
    return [f"Last error: {trouble.error}", served] if trouble.error else [served]


def _data(task: str, trouble: Trouble, now: datetime) -> dict[str, Any]:
    since, updated_at = instant_of(trouble.since), instant_of(trouble.updated_at)
    kind, name = function_of(task)
    return {
        "task": name,
        "kind": kind,
        "state": "recovered" if trouble.well else "failed" if trouble.failures else "stale",
        "failures": trouble.failures,
        "stale": trouble.late,
        "since": since and since.isoformat(),
        "error": trouble.error,
        "updated_at": updated_at and updated_at.isoformat(),
        "age": updated_at and (now - updated_at).total_seconds(),
    }


def _shown(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"
