"""What docs/architecture.md says and draws is so in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from xml.etree import ElementTree

import pytest

from test_layers import MODULES, PACKAGE, classes, graph, tree

ROOT = PACKAGE.parent
PAGE = ROOT / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LAYERS, LIVES = (ElementTree.parse(ROOT / "docs" / "images" / f"{name}.svg").getroot() for name in ("layers", "lives"))
SVG = "{http://www.w3.org/2000/svg}"

# The folders and modules of the package's root.
PARTS = sorted({module.partition(".")[0] for module in MODULES} - {"panel_schedule"})

# Modules that lie in a higher folder than they belong to, as the page says, by who imports them.
LOWER = {("serialize", "functions.remote")}

WHERE = [
    "a new store", "a new executor", "a page that lists all runs", "the life of a claim", "a state `paused` for jobs",
    "jitter", "a limit per user", "spans around runs", "another framework than Panel", "the schema", "SIGTERM",
    "priority of jobs",
]  # fmt: skip


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def is_a_file(name: str) -> bool:
    """As the page names them: without the folder of the package and the suffix, or from the root of the repository."""
    if name.endswith("*"):
        return any(PACKAGE.glob(f"{name}.py"))
    return any(path.exists() for path in (PACKAGE / name, PACKAGE / f"{name}.py", ROOT / name))


def paths(text: str) -> list[str]:
    """What is named in it with a folder: ``engine/execution``, ``views/``, ``tests/walks.py``, not ``ps.store``."""
    return re.findall(r"`([a-z_]+/[\w/.*]*)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    assert [] == [name for name in paths(page.read_text(encoding="utf-8")) if not is_a_file(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_dotted_name_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(r"`panel_schedule\.([\w.]+)`", page.read_text(encoding="utf-8")):
        module = name if name in MODULES else name.rpartition(".")[0]
        assert module in MODULES, name
        assert module == name or hasattr(import_module(f"panel_schedule.{module}"), name.rpartition(".")[2]), name


def test_each_image_and_page_that_it_links_to_exists() -> None:
    linked = re.findall(r"\]\(([\w/.-]+)\)", TEXT)
    assert linked
    assert [] == [name for name in linked if not (PAGE.parent / name).exists()]


def test_each_class_that_it_names_exists() -> None:
    named = {name.partition(".")[0] for name in re.findall(r"`([A-Z][a-z]+[\w.]*)`", TEXT)}
    assert named
    assert set() == named - classes()


@pytest.mark.parametrize("part", PARTS)
def test_each_folder_and_module_of_the_root_is_in_its_table_and_in_its_drawing(part: str) -> None:
    assert f"`{part}/`" in section("Folders") or f"`{part}`" in section("Folders")
    assert part in {box.get("data-name") for box in LAYERS.iter(f"{SVG}g")}


# ------------------------------------------------------------ the drawing of the layers


def boxes() -> dict[str, ElementTree.Element]:
    return {name: box for box in LAYERS.iter(f"{SVG}g") if (name := box.get("data-name")) is not None}


def test_all_that_is_drawn_is_there() -> None:
    assert PARTS == sorted(boxes())
    drawn = {
        f"{name}.{text.get('data-file')}": text.text
        for name, box in boxes().items()
        for text in box.iter(f"{SVG}text")
        if text.get("data-file")
    }
    assert set() == set(drawn) - set(MODULES)
    assert all(name.endswith(f".{text}") for name, text in drawn.items())


def test_no_import_goes_up_in_the_drawing() -> None:
    top = {name: float(box.find(f"{SVG}rect").get("y")) for name, box in boxes().items()}  # type: ignore[union-attr, arg-type]
    up = {
        (module.partition(".")[0], imported)
        for module, names in graph().items()
        for imported in names
        # The package itself, which the command line uses as an app does, is not drawn.
        if "panel_schedule" not in (module, imported)
        and top[imported.partition(".")[0]] < top[module.partition(".")[0]]
    }
    assert up == LOWER


def test_it_tells_six_hops_and_draws_them() -> None:
    told = re.findall(r"^(\d)\. ", section("The way of a value"), re.MULTILINE)
    drawn = [text.text for text in LAYERS.iter(f"{SVG}text") if text.get("class") == "number"]
    assert ["1", "2", "3", "4", "5", "6"] == told == drawn


# ------------------------------------------------------------ the drawing of the lives


def drawn_calls(module: str) -> set[str]:
    [life] = [each for each in LIVES.iter(f"{SVG}g") if each.get("data-module") == module]
    labels = [text.text or "" for text in life.iter(f"{SVG}text") if "call" in str(text.get("class")).split()]
    return {name.strip() for label in labels for name in label.split(",") if name.strip()}


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Call))


def sets_an_owner(call: ast.Call) -> bool:
    """``record._replace(owner=...)``, or a `Record` that is made with one."""
    made = getattr(call.func, "id", "") == "Record" and len(call.args) > 4
    return made or any(keyword.arg == "owner" for keyword in call.keywords)


def changing_the_owner(module: str) -> set[str]:
    """The functions that change who holds a record, by themselves or by what they call."""
    body = tree(f"coordination.{module}").body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    found = {name for name, node in functions.items() if any(map(sets_an_owner, calls(node)))}
    while True:
        # Also what is handed on, as `publish` is to `succeed`, is called by its name in the module.
        more = {
            name
            for name, node in functions.items()
            if any(getattr(call.func, "id", "") in found for call in calls(node))
        } - found
        if not more:
            return found
        found |= more


@pytest.mark.parametrize("module", ["tasks", "jobs", "answers"])
def test_each_arrow_of_a_life_is_a_function_that_makes_it(module: str) -> None:
    there = vars(import_module(f"panel_schedule.coordination.{module}"))
    for name in drawn_calls(module):
        assert callable(there.get(name)), f"{name} is drawn, and is not in coordination/{module}"
        assert "record" in signature(there[name]).parameters, f"{name} is drawn, and makes nothing of a record"


@pytest.mark.parametrize("module", ["tasks", "jobs", "answers"])
def test_each_function_that_changes_who_holds_a_record_is_drawn(module: str) -> None:
    changing = {name for name in changing_the_owner(module) if not name.startswith("_")}
    assert {"tasks": "take_over", "jobs": "take", "answers": "give_up"}[module] in changing
    assert set() == changing - drawn_calls(module)


# ------------------------------------------------------------ where what is changed


def rows() -> dict[str, list[str]]:
    """By its title the cells of each row of the table."""
    lines = [line for line in section("Where do I change ...").splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {title.removesuffix(" *"): rest for title, *rest in cells}


def test_the_table_of_where_has_its_twelve_rows() -> None:
    assert list(rows()) == WHERE


@pytest.mark.parametrize("what", WHERE)
def test_a_row_names_four_files_at_most_and_what_changes_in_each(what: str) -> None:
    [files] = rows()[what]
    for each in (named := files.split(" · ")):
        file, colon, change = each.partition(": ")
        assert colon
        assert change
        [name] = re.findall(r"`([^`]+)`", file)
        assert is_a_file(name), name
    assert 2 <= len(named) <= 4
    assert len(set(named)) == len(named)
