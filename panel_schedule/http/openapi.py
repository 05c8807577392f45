"""The OpenAPI document of what is served under ``/schedule``; the tests hold the server to it."""

from __future__ import annotations

from typing import Any

# So many runs are given at once.
MOST_RUNS = 1000

Json = dict[str, Any]


def document(prefix: str) -> Json:
    """
    The document, for a server with this prefix.

    Parameters
    ----------
    prefix : str
        ``""``, or with a slash before it.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "panel-schedule",
            "version": "1",
            "description": "Scheduled tasks of a Panel server: their state, their history, and what may be done with "
            "them. Values are not part of it.",
        },
        "servers": [{"url": prefix or "/"}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Task": _TASK,
                "Run": _RUN,
                "LiveRun": _LIVE,
                "Process": _PROCESS,
                "Error": _object(error=_TEXT),
            },
        },
        # Where Panel has a login, all but the health of the server takes it, or the token.
        "security": [{"token": []}, {}],
        "paths": {
            "/schedule/healthz": _get("Whether the server lives", _object(alive=_FLAG), 503, open_to_all=True),
            "/schedule/readyz": _get("Whether the tasks have values that pages need", _READY, 503, open_to_all=True),
            "/schedule/api/openapi.json": _get("This document", {"type": "object"}),
            "/schedule/api/tasks": _get("All tasks", _object(tasks=_list("Task"))),
            "/schedule/api/tasks/{name}": _get("One task", _ref("Task"), parameters=[_NAME]),
            "/schedule/api/tasks/{name}/runs": _get(
                "Its last runs, newest first", _object(runs=_list("Run")), parameters=[_NAME, _LIMIT, _BEFORE]
            ),
            "/schedule/api/workers": _get(
                "The processes that share the store, and workers of Celery", _object(processes=_list("Process"))
            ),
            "/schedule/api/tasks/{name}/refresh": _post("Run it now, or join the run under way", 202),
            "/schedule/api/tasks/{name}/pause": _post("Skip every slot until it is resumed, in all processes", 200),
            "/schedule/api/tasks/{name}/resume": _post("Go on with the next slot", 200),
            "/schedule/api/tasks/{name}/cancel": _post("Cancel the run under way, in whichever process", 202),
            "/schedule/api/runs": _for_admins(
                "get", "The runs of background functions under way", _object(runs=_list("LiveRun")), 200
            ),
            "/schedule/api/runs/{id}/cancel": _for_admins(
                "post", "Cancel it, in whichever process, for all who share it", _object(run=_ref("LiveRun")), 202, _ID
            ),
        },
    }


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> Json:
    return {"type": "array", "items": _ref(name)}


def _or_null(schema: Json) -> Json:
    return {**schema, "type": [schema["type"], "null"]}


def _answer(what: str, schema: Json) -> Json:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _errors(*codes: int) -> Json:
    return {str(code): _answer(_MEANS[code], _ref("Error")) for code in codes}


def _get(what: str, schema: Json, *also: int, open_to_all: bool = False, parameters: list[Json] | None = None) -> Json:
    found: Json = {"summary": what, "responses": {"200": _answer(what, schema)}}
    if open_to_all:
        found |= {"security": []}
        found["responses"] |= {str(code): _answer("No", schema) for code in also}
        return {"get": found}
    found["responses"] |= _NOT_MODIFIED | _errors(401, 503)
    if parameters:
        found["parameters"] = parameters
        found["responses"] |= _errors(400, 404)
    return {"get": found}


def _post(what: str, code: int) -> Json:
    changed = _object(task=_ref("Task"), run={"anyOf": [_object(id=_TEXT, state=_TEXT), {"type": "null"}]})
    return _for_admins("post", what, changed, code, _NAME)


def _for_admins(method: str, what: str, schema: Json, code: int, *parameters: Json) -> Json:
    done = {"get": "So it is", "post": "It is done, or asked for"}[method]
    answers = {str(code): _answer(done, schema)}
    if method == "get":
        answers |= _NOT_MODIFIED | _errors(401, 403, 503)
    else:
        answers |= _errors(400, 401, 403, 404, 409, 503)
    shown = {"summary": what, "parameters": [*parameters], "responses": answers, "security": [{"token": []}]}
    return {method: shown}


_NOT_MODIFIED: Json = {"304": {"description": "It is as who has sent its ETag knows it"}}

_MEANS = {
    400: "A parameter means nothing",
    401: "Who asks is not known",
    403: "Who asks may not do this",
    404: "There is no task of this name, or no such run",
    409: "The task, or run, is not in a state for this",
    503: "The store cannot be reached",
}

_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_TIME: Json = {"type": "string", "format": "date-time"}
_SECONDS: Json = {"type": "number"}

_NAME: Json = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_ID: Json = {**_NAME, "name": "id"}
_LIMIT: Json = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": MOST_RUNS, "default": 50},
}
_BEFORE: Json = {
    "name": "before",
    "in": "query",
    "description": "The id of a run: those before it. 404 where it is in the history no more",
    "schema": _TEXT,
}

_READY = {
    "type": "object",
    "properties": {
        "ready": _FLAG,
        "waiting": {**_COUNT, "description": "How many tasks have no value yet that pages wait for"},
        "waiting_for": {"type": "array", "items": _TEXT, "description": "Their names, for who may see tasks"},
    },
    "required": ["ready", "waiting"],
    "additionalProperties": False,
}

_TASK = _object(
    name=_TEXT,
    state={"enum": ["idle", "queued", "running", "failed", "paused", "removed"]},
    running={**_FLAG, "description": "From queued on"},
    schedule={**_TEXT, "description": "In words, as the monitor and the command line have it"},
    trigger={**_TEXT, "description": "The same as the exact rule: a cron expression with its zone"},
    version={**_COUNT, "description": "Of its value; 0 while there is none"},
    updated_at=_or_null(_TIME),
    duration={**_or_null(_SECONDS), "description": "Seconds that its value took"},
    stale=_FLAG,
    error={**_TEXT, "description": "First line of what went wrong in the last run; empty when nothing did"},
    next_run=_or_null(_TIME),
    percent={"type": "integer", "minimum": -1, "maximum": 100, "description": "-1 while unknown"},
    message=_TEXT,
)

_LIVE = _object(
    id={**_TEXT, "description": "Who knows it may follow the run"},
    name={**_TEXT, "description": "Of the background function"},
    state={"enum": ["queued", "running", "succeeded", "failed", "cancelled", "timed_out", "crashed", "skipped"]},
    attempt={"type": "integer", "minimum": 1},
    user={**_or_null(_TEXT), "description": "Whose session has started it"},
    percent={"type": "integer", "minimum": -1, "maximum": 100, "description": "-1 while unknown"},
    message=_TEXT,
    queued_at=_or_null(_TIME),
    started_at=_or_null(_TIME),
)

_PROCESS = _object(
    name={**_TEXT, "description": "As the owner of a run has it"},
    worker={**_TEXT, "description": "Of a worker of Celery its name; empty of a server's process"},
    host=_TEXT,
    pid=_COUNT,
    alive={**_FLAG, "description": "Whether it lives; one that has died is told of for an hour"},
    here={**_FLAG, "description": "Whether it is the one that answers"},
    since={**_or_null(_TIME), "description": "When its clocks began to turn, or the worker to take messages"},
    heard={**_TIME, "description": "When it has said this"},
    queues={"type": "array", "items": _TEXT, "description": "Of Celery's, those that the worker takes messages from"},
    executors={
        "type": "object",
        "description": "By name, what runs and waits there; places are -1 for any number",
        "additionalProperties": _object(running=_COUNT, waiting=_COUNT, places={"type": "integer", "minimum": -1}),
    },
    workers={
        "type": "array",
        "description": "Those that it knows, and what each runs, empty where it is idle",
        "items": _object(executor=_TEXT, name=_TEXT, runs=_TEXT),
    },
    hanging={"type": "array", "items": _TEXT, "description": "What still runs though nobody waits for it"},
)

_RUN: Json = _object(
    id=_TEXT,
    slot={**_or_null(_TEXT), "description": "The instant, the version of its upstream, or the request it ran for"},
    state={"enum": ["succeeded", "failed", "cancelled", "timed_out", "crashed", "skipped"]},
    attempt={"type": "integer", "minimum": 0},
    queued_at=_or_null(_TIME),
    started_at=_or_null(_TIME),
    finished_at=_or_null(_TIME),
    duration=_or_null(_SECONDS),
    error=_TEXT,
    reason={**_TEXT, "description": "Why slots were skipped"},
    until={**_or_null(_TIME), "description": "Last slot of a stretch that was skipped"},
    owner={**_TEXT, "description": "The process that has run it; empty where none has"},
)
# For admins.
_RUN["properties"] |= {
    "user": {**_TEXT, "description": "Who had asked for it; empty without a login"},
    "arguments": _TEXT,
    "traceback": {**_TEXT, "description": "Of a failure"},
    "logs": {**_TEXT, "description": "Of a failure: the last lines that its function has logged"},
}
