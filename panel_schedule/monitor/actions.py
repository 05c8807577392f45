"""What may be known of one function, and what may be done with it. May wait for the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..coordination.history import JOB, MEMO
from ..coordination.tasks import TASK
from ..errors import RegistrationError
from ..functions.background import Background
from ..functions.calls import is_async
from ..functions.memoize import Memoized
from ..functions.run import Run, RunRecord
from ..functions.task import Task
from ..runtime import Runtime
from .rows import Row, coming, listed, live_row, run_page, run_row, token_of


def find(runtime: Runtime, id: str) -> Task[Any] | Background[Any, Any] | Memoized[Any, Any]:
    """
    The function that a browser names.

    Raises
    ------
    RegistrationError
        When there is none.
    """
    for kind, functions in ((TASK, runtime.tasks), (JOB, runtime.jobs), (MEMO, runtime.memos)):
        found: Any = functions.get(id.removeprefix(f"{kind} ")) if id.startswith(f"{kind} ") else None
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise RegistrationError(f"There is no function {id!r}.")


# ------------------------------------------------------------ from near


def detail(runtime: Runtime, id: str, admin: bool) -> Row:
    """All that there is to say about one function."""
    function, kind = find(runtime, id), id.partition(" ")[0]
    shown: Row = {
        "id": id, "facts": [], "next": [],
        "live": [live_row(run, kind, admin) for run in _live(runtime, function)],
        "runs": [run_row(run, kind, admin) for run in listed(function.history)],
    }  # fmt: skip
    if isinstance(function, Task):
        return shown | _task(runtime, function)
    if isinstance(function, Background):
        return shown | _job(function)
    return shown | _memo(function)


def one_run(runtime: Runtime, id: str, token: str, admin: bool) -> Row:
    """
    All that there is to say about one run of a function.

    Raises
    ------
    RegistrationError
        When there is none.
    """
    function, kind = find(runtime, id), id.partition(" ")[0]
    runs: list[Run | RunRecord] = [*_live(runtime, function), *function.history]
    if isinstance(function, Background):
        runs += function.runs()  # one that has just ended
    for run in runs:
        if token_of(run.id) == token:
            return {"id": id} | run_page(run, kind, admin)
    raise RegistrationError(f"{function.name}: this run is in the history no more.")


def _live(runtime: Runtime, function: Task[Any] | Background[Any, Any] | Memoized[Any, Any]) -> list[Run]:
    if isinstance(function, Task):
        return runtime.scheduler.under_way(function)
    return [run for run in function.runs() if not run.state.final] if isinstance(function, Background) else []


def _task(runtime: Runtime, task: Task[Any]) -> Row:
    scheduler, store = runtime.scheduler, runtime.service.store
    seen = next((each for each in scheduler.survey() if each.task is task), None)
    if seen is None:
        raise RegistrationError(f"Task {task.name!r} was cancelled a moment ago.")
    record = store.records.read(TASK, task.name)
    owner = record.state.claimer if record is not None else ""
    gone = " (gone)" if owner and not store.records.alive(owner) else ""
    facts = {
        "Function": _place(task.function),
        "Runs in": task.policy.executor or ("loop" if is_async(task.function) else "thread"),
        "Ran last in": f"{owner}{gone}",
        "Made of": ", ".join(seen.sources),
        "Hangs": ", ".join(seen.status.hanging),
    }
    return {"facts": _facts(facts), "next": coming(seen, runtime.clock.now(), scheduler.zone)}


def _job(job: Background[Any, Any]) -> Row:
    return {"facts": _facts({"Function": _place(job.function), "Runs in": job.policy.executor})}


def _memo(memo: Memoized[Any, Any]) -> Row:
    size = sum(answer.size for answer in list(memo.lru.answers.values()))
    facts = {
        "Function": _place(memo.function),
        "Runs in": memo.executor,
        "Answers at hand in this process": str(len(memo.lru.answers)),
        "Their bytes, where known": f"{size:,}" if size else "",
        "Hits in this process": f"{memo.stats.hits:,}",
    }
    return {"facts": _facts(facts)}


def _facts(facts: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in facts.items() if text]


def _place(function: Any) -> str:
    """Where its source is, as far as that is known."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}".strip(".")
    code = getattr(function, "__code__", None)
    return name if code is None else f"{name}, line {code.co_firstlineno}"


# ------------------------------------------------------------ what is done


def _refresh(runtime: Runtime, task: Task[Any]) -> str:
    task.refresh()
    return f"{task.name}: it runs."


def _pause(runtime: Runtime, task: Task[Any]) -> str:
    task.pause()
    return f"{task.name}: paused."


def _resume(runtime: Runtime, task: Task[Any]) -> str:
    task.resume()
    return f"{task.name}: goes on with the next slot."


def _cancel(runtime: Runtime, task: Task[Any]) -> str:
    run = runtime.scheduler.cancel(task)
    return f"{task.name}: no run is under way." if run is None else f"{task.name}: cancelled."


def _reschedule(runtime: Runtime, task: Task[Any], when: str) -> str:
    """A cron expression has at least five fields, or a sign before its name."""
    is_cron = when.startswith("@") or len(when.split()) >= 5
    task.reschedule(**{"cron" if is_cron else "period": when})
    return f"{task.name}: runs {task.status.schedule} from now on."


def _cancel_runs(runtime: Runtime, job: Background[Any, Any]) -> str:
    """In all processes; `Background.runs` would leave out those of others while the store is away."""
    live = [run.id for run in runtime.dispatcher.under_way() if run.task == job.name]
    for id in live:
        runtime.dispatcher.cancel(id)
    return f"{job.name}: {len(live)} cancelled."


def _invalidate(runtime: Runtime, memo: Memoized[Any, Any]) -> str:
    memo.clear()
    return f"{memo.name}: all answers are forgotten."


_ACTIONS: dict[tuple[type, str], Callable[..., str]] = {
    (Task, "refresh"): _refresh,
    (Task, "pause"): _pause,
    (Task, "resume"): _resume,
    (Task, "cancel"): _cancel,
    (Task, "reschedule"): _reschedule,
    (Background, "cancel"): _cancel_runs,
    (Memoized, "invalidate"): _invalidate,
}


def act(runtime: Runtime, id: str, action: str, given: tuple[str, ...] = ()) -> str:
    """
    Do it; what is said of it.

    Raises
    ------
    ScheduleError
        When it cannot be done.
    """
    function = find(runtime, id)
    if (do := _ACTIONS.get((type(function), action))) is None or len(given) != (action == "reschedule"):
        raise RegistrationError(f"There is no {action!r} of {id!r}.")
    return do(runtime, function, *given)
