"""Imports point down, one way, and only the clock knows the time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "panel_schedule"

# From below: folders, and modules of folders that lie elsewhere.
LAYERS = [
    {"errors", "clock"},
    {"config", "notebook"},
    {"session", "triggers"},
    {"serialize", "functions.calls", "functions.remote"},
    {"hashing"},
    {"functions", "coordination"},
    {"stores", "executors", "_worker"},
    {"engine"},
    {"scheduling", "jobs", "cache", "alerts"},
    {"views", "shared_values"},
    {"runtime", "decorators", "server"},
    {"monitor"},
    {"http"},
    {"testing.clock", "testing.contracts"},
    {"panel_schedule"},
    {"testing"},
    {"cli", "__main__"},
]
OPTIONAL = {
    "stores.packing": {"compression", "lz4", "zstandard"},
    "stores.postgres_server": {"psycopg"},
    "stores.redis": {"redis"},
    "executors.celery": {"celery"},
    "executors.dask_connection": {"distributed"},
    "executors.dask_worker": {"distributed"},
    "functions.spans": {"opentelemetry"},
    "http.metrics": {"prometheus_client"},
    "testing.plugin": {"pytest"},
    "views.table": {"pandas"},  # whose import takes long, and which is there where a table is
}
WALL_CLOCK = {
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "Timestamp": {"now", "utcnow", "today"},
    "time": {f"{name}{unit}" for name in ("time", "monotonic", "perf_counter") for unit in ("", "_ns")},
}


def module_name(path: Path) -> str:
    """``executors.loop``; the package itself is ``panel_schedule``, a subpackage by its bare name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "panel_schedule"


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def classes() -> frozenset[str]:
    """The names of all classes."""
    nodes = (node for module in MODULES for node in ast.walk(tree(module)))
    return frozenset(node.name for node in nodes if isinstance(node, ast.ClassDef))


def layer(module: str) -> int:
    """A module's own, if it has one, and else its folder's."""
    for name in (module, module.partition(".")[0]):
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
    pytest.fail(f"{module} is in no layer: put it into the table LAYERS of {Path(__file__).name}")


def imported(module: str) -> Iterator[str]:
    """The modules of the package that `module` imports, be it only for its annotations."""
    inside = [] if module == "panel_schedule" else module.split(".")
    if MODULES[module].name != "__init__.py":
        inside = inside[:-1]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "panel_schedule"]
            yield from (name.partition(".")[2] or "panel_schedule" for name in names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module.split(".") if node.module else []
            if node.level:
                origin = inside[: len(inside) - node.level + 1] + origin
            elif origin[0] == "panel_schedule":
                origin = origin[1:]
            else:
                continue
            for alias in node.names:
                submodule = ".".join([*origin, alias.name])
                yield submodule if submodule in MODULES else ".".join(origin) or "panel_schedule"


@cache
def graph() -> dict[str, set[str]]:
    return {module: set(imported(module)) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_from_a_higher_layer(module: str) -> None:
    own = layer(module)
    higher = {name for name in graph()[module] if layer(name) > own}
    assert not higher, f"{module} (layer {own}) imports {higher} from above it"


def test_no_modules_import_each_other() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("executors", "stores"),
        ("stores", "executors"),
        ("jobs", "cache"),
        ("cache", "jobs"),
        ("scheduling", "jobs"),
        ("scheduling", "cache"),
        ("jobs", "scheduling"),
        ("cache", "scheduling"),
    ],
)
def test_siblings_do_not_know_each_other(one: str, other: str) -> None:
    crossing = {
        (module, name)
        for module, names in graph().items()
        for name in names
        if module.partition(".")[0] == one and name.partition(".")[0] == other
    }
    assert not crossing


# What an author holds is of the runtime that has made it, as a task of Celery is of its app.
HANDLES = {"Task", "Background", "Memoized", "Job", "MemoView"}


@pytest.mark.parametrize("module", MODULES)
def test_nobody_is_handed_the_object_that_makes_him(module: str) -> None:
    """
    A part gets what it needs, and returns what came of it, or calls what it was given for that.

    With its maker in hand it may call anything of it, and the imports, which point one way, say nothing any more.
    """
    for call in (node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)):
        made = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        handed = any(isinstance(value, ast.Name) and value.id == "self" for value in given)
        if handed and made in classes():
            assert module == "runtime", f"{module}, line {call.lineno}: {ast.unparse(call)}"
            assert made in HANDLES, f"{module}, line {call.lineno}: {ast.unparse(call)}"


@pytest.mark.parametrize("module", MODULES)
def test_a_function_imports_nothing_but_the_optional_dependency_of_its_backend(module: str) -> None:
    allowed = OPTIONAL.get(module, set())
    for function in ast.walk(tree(module)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [node.module or "."] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                    late = {name.partition(".")[0] for name in names} - allowed
                    assert not late, f"{module}, line {node.lineno}: {function.name} imports {late}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"clock"}))
def test_only_the_clock_asks_for_the_time(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            asks = node.attr in WALL_CLOCK.get(owner, ())
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            asks = any(alias.name in WALL_CLOCK["time"] for alias in node.names)
        else:
            continue
        assert not asks, f"{module}, line {node.lineno}: {ast.unparse(node)}; take a Clock instead"
