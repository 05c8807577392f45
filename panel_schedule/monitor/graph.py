"""What is made of what: tasks and memoized functions, drawn in layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import panel as pn
from panel.viewable import Viewer

from ..functions.memoize import Memoized
from ..functions.task import Task, named_tasks

# Pixels: of a box, between layers, between boxes of a layer, and around all of it.
WIDTH, HEIGHT = 184, 40
ACROSS, DOWN = 64, 14
MARGIN = 8

# Characters of a name that have room in a box; all of it is in its title.
LONGEST_NAME = 18

# Of each state its colour, which differs for the colour-blind, and a mark of 12 by 12 pixels that differs without it.
STATES = {
    "fresh": ("#009371", "M 6 0 A 6 6 0 1 1 5.99 0 Z"),
    "stale": ("#b07d00", "M 6 0 L 12 11 L 0 11 Z"),
    "failing": ("#d55e00", "M 2 0 L 6 4 L 10 0 L 12 2 L 8 6 L 12 10 L 10 12 L 6 8 L 2 12 L 0 10 L 4 6 L 0 2 Z"),
    "running": ("#3b8fd4", "M 1 0 L 12 6 L 1 12 Z"),
    "paused": ("#808080", "M 1 0 H 5 V 12 H 1 Z M 7 0 H 11 V 12 H 7 Z"),
    "no value yet": ("#808080", "M 6 0 L 12 6 L 6 12 L 0 6 Z M 6 3 L 3 6 L 6 9 L 9 6 Z"),
}

# How an edge is drawn: what a new value runs, what is waited for, what is only read.
KINDS = {"after": "", "needs": "7 4", "reads": "2 4"}


@dataclass(frozen=True, slots=True)
class Node:
    """
    A task or a memoized function.

    Attributes
    ----------
    id : str
        What edges call it: unique, as a function may have the name of a task.
    name : str
    state : str
        One of `STATES`.
    function : bool
        Whether it is a memoized function, which has round corners.
    """

    id: str
    name: str
    state: str
    function: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """
    That `target` is made of `source`.

    Attributes
    ----------
    source, target : str
        The ids of nodes.
    kind : {"after", "needs", "reads"}
    """

    source: str
    target: str
    kind: str


def state_of(state: str, error: str, stale: bool, has_value: bool) -> str:
    """Which of `STATES` it is in; `state`, `error` and `stale` as in a `TaskStatus`."""
    if error:
        return "failing"
    if state in ("paused", "removed"):
        return "paused"
    if stale:
        return "stale"
    if state in ("running", "queued"):
        return "running"
    return "fresh" if has_value else "no value yet"


def edges_of(tasks: Iterable[Task[Any]], functions: Iterable[Memoized[Any, Any]] = ()) -> list[Edge]:
    """
    What tasks and memoized functions are made of: as ``after=`` and ``needs=`` say, and what their code names.

    The id of a task is ``"task <name>"``, that of a function ``"memo <name>"``. Of two nodes there is one edge, of the
    first of these kinds.
    """
    found: dict[tuple[str, str], str] = {}

    def note(target: str, kind: str, upstream: Iterable[Task[Any]]) -> None:
        for task in upstream:
            if target != (source := f"task {task.name}"):
                found.setdefault((source, target), kind)

    for task in tasks:
        target = f"task {task.name}"
        note(target, "after", task.policy.upstream)
        note(target, "needs", task.policy.needs)
        note(target, "reads", named_tasks(task.function))
    for memo in functions:
        note(f"memo {memo.name}", "after", memo.policy.after)
        note(f"memo {memo.name}", "reads", named_tasks(memo.function))
    return [Edge(source, target, kind) for (source, target), kind in found.items()]


# ------------------------------------------------------------ the layout


def layers_of(ids: Iterable[str], pairs: Iterable[tuple[str, str]], weak: Set[tuple[str, str]]) -> dict[str, int]:
    """
    Of each node its layer: the one behind the last one of what it is made of.

    Parameters
    ----------
    ids : iterable of str
    pairs : iterable of (str, str)
        Source and target of each edge.
    weak : set of (str, str)
        Those of them that may go back where there is a cycle: a task may read what is made of it.
    """
    waits: dict[str, set[str]] = {each: set() for each in ids}
    targets: dict[str, list[str]] = {each: [] for each in waits}
    for source, target in pairs:
        waits[target].add(source)
        targets[source].append(target)
    layer, ready = dict.fromkeys(waits, 0), [each for each, sources in waits.items() if not sources]
    while waits:
        if not ready:  # what is left goes round
            ready = [
                min(waits, key=lambda each: (sum((one, each) not in weak for one in waits[each]), len(waits[each])))
            ]
        node = ready.pop()
        del waits[node]
        for target in targets[node]:
            if target in waits:
                layer[target] = max(layer[target], layer[node] + 1)
                waits[target].discard(node)
                if not waits[target]:
                    ready.append(target)
    return layer


def components_of(ids: Iterable[str], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The nodes that hang together, in the order of `ids`; the largest component first."""
    found: dict[str, list[str]] = {each: [each] for each in ids}
    for one, other in pairs:
        if (more := found[one]) is not (less := found[other]):
            more, less = (more, less) if len(more) >= len(less) else (less, more)
            more += less
            found |= dict.fromkeys(less, more)
    components = {id(each): each for each in found.values()}
    order = {each: at for at, each in enumerate(found)}
    return sorted((sorted(each, key=order.__getitem__) for each in components.values()), key=len, reverse=True)


def places_of(
    ids: Sequence[str], pairs: Sequence[tuple[str, str]], weak: Set[tuple[str, str]] = frozenset()
) -> dict[Any, tuple[int, float]]:
    """
    Of each node its layer, from 0, and how many boxes from above it is there.

    An edge that passes layers has a place in each of them: ``(source, target, layer)``.
    """
    layer = layers_of(ids, pairs, weak)
    columns: list[list[Any]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    before: dict[Any, list[Any]] = {each: [] for each in ids}
    behind: dict[Any, list[Any]] = {each: [] for each in ids}
    for each in ids:
        columns[layer[each]].append(each)
    for source, target in pairs:
        if layer[source] >= layer[target]:
            continue  # it goes back, and beside the others
        way: list[Any] = [source, *((source, target, at) for at in range(layer[source] + 1, layer[target])), target]
        for at, each in enumerate(way[1:-1], layer[source] + 1):
            columns[at].append(each)
        for one, other in pairwise(way):
            behind.setdefault(one, []).append(other)
            before.setdefault(other, []).append(one)
    tallest = max(map(len, columns), default=0)

    def heights(column: list[Any]) -> dict[Any, float]:
        return {each: at + (tallest - len(column)) / 2 for at, each in enumerate(column)}

    # Each layer in the order of the middle of its neighbours, forwards and back.
    height = dict[Any, float]()
    for column in columns:
        height |= heights(column)
    for near, passing in [(before, columns), (behind, columns[::-1])] * 4:
        for column in passing:
            column.sort(key=lambda each: _mean([height[other] for other in near[each]], height[each]))
            height |= heights(column)
    return {each: (at, height[each]) for at, column in enumerate(columns) for each in column}


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


# ------------------------------------------------------------ the drawing


def drawing(nodes: Iterable[Node], edges: Iterable[Edge]) -> str:
    """
    Draw nodes and edges, from what is read on the left to what reads it on the right. Of many call it on a thread.

    Parameters
    ----------
    nodes : iterable of Node
    edges : iterable of Edge
        One with an end that is no node, or with one end, is left out.

    Returns
    -------
    str
        HTML: the legend, an SVG as large as it needs to be, and how many nodes have no edge, which are not drawn.
    """
    known = {node.id: node for node in sorted(nodes, key=lambda node: node.name)}
    drawn = {(each.source, each.target): each for each in edges if {each.source, each.target} <= known.keys()}
    pairs = [pair for pair in drawn if pair[0] != pair[1]]
    linked = {each for pair in pairs for each in pair}
    parts, top, widest = list[str](), MARGIN, 0
    weak = {pair for pair in pairs if drawn[pair].kind == "reads"}
    for component in components_of([each for each in known if each in linked], pairs):
        members = set(component)
        inside = [pair for pair in pairs if pair[0] in members]
        places = {
            each: (MARGIN + layer * (WIDTH + ACROSS), top + round(height * (HEIGHT + DOWN)))
            for each, (layer, height) in places_of(component, inside, weak).items()
        }
        parts += [_edge(drawn[pair], places) for pair in inside]
        parts += [_node(known[each], *places[each]) for each in component]
        widest = max(widest, *(x + WIDTH + MARGIN for x, _ in places.values()))
        top = max(y for _, y in places.values()) + HEIGHT + 2 * DOWN
    said = []
    if parts:
        size = f'width="{widest}" height="{top}" viewBox="0 0 {widest} {top}"'
        label = f"{len(linked)} tasks and functions, and what they are made of"
        svg = f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'
        said = [
            _legend([known[each] for each in linked], [drawn[pair] for pair in pairs]),
            f'<div class="view">{svg}</div>',
        ]
    if alone := len(known) - len(linked):
        what = "1 task or function is" if alone == 1 else f"{alone:,} tasks and functions are"
        said.append(f"<p>{what} connected with no other one{', and not drawn' if parts else ''}.</p>")
    return "".join(said) or "<p>There are no tasks.</p>"


def _node(node: Node, x: int, y: int) -> str:
    color, mark = STATES[node.state]
    name, round_ = escape(node.name), HEIGHT // 2 if node.function else 4
    short = escape(node.name if len(node.name) <= LONGEST_NAME else f"{node.name[: LONGEST_NAME - 1]}…")
    place = f'transform="translate({x} {y})" color="{color}" data-state="{node.state}"'
    box = f'<rect class="box" width="{WIDTH}" height="{HEIGHT}" rx="{round_}"/>'
    shape = f'<path class="mark" transform="translate(12 14)" d="{mark}"/>'
    words = f'<text class="name" x="32" y="17">{short}</text><text class="state" x="32" y="32">{node.state}</text>'
    return f"<g {place}><title>{name}: {node.state}</title>{box}{shape}{words}</g>"


def _edge(edge: Edge, places: dict[Any, tuple[int, int]]) -> str:
    """From its source to the right, past the boxes between, to its target; one that goes back is below them."""
    (x, y), (end, last) = places[edge.source], places[edge.target]
    half, bend = HEIGHT // 2, ACROSS // 2
    if end <= x:
        x, end, low = x + WIDTH // 2, end + WIDTH // 2, max(y, last) + HEIGHT + 2 * DOWN
        path = f"M {x} {y + HEIGHT} C {x} {low} {end} {low} {end} {last + HEIGHT + 6}"
        arrow = f"M {end} {last + HEIGHT} l -4 8 h 8 z"
    else:
        layers = range((x - MARGIN) // (WIDTH + ACROSS) + 1, (end - MARGIN) // (WIDTH + ACROSS))
        passed = [places[edge.source, edge.target, layer] for layer in layers]
        path, x = f"M {x + WIDTH} {y + half}", x + WIDTH
        for left, at in passed:
            path += f" C {x + bend} {y + half} {left - bend} {at + half} {left} {at + half} h {WIDTH}"
            x, y = left + WIDTH, at
        path += f" C {x + bend} {y + half} {end - bend} {last + half} {end - 6} {last + half}"
        arrow = f"M {end} {last + half} l -8 -4 v 8 z"
    dashes = f' stroke-dasharray="{KINDS[edge.kind]}"' if KINDS[edge.kind] else ""
    return f'<path class="edge" d="{path}"{dashes}/><path class="arrow" d="{arrow}"/>'


def _legend(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """What is there of it, with how many of each state."""
    said = []
    for state, (color, mark) in STATES.items():
        if count := sum(node.state == state for node in nodes):
            shape = f'<svg width="12" height="12" color="{color}"><path class="mark" d="{mark}"/></svg>'
            said.append(f"<span>{shape}{count} {state}</span>")
    if any(node.function for node in nodes):
        box = '<rect class="plain" x="1" y="1" width="26" height="10" rx="5"/>'
        said.append(f'<span><svg width="28" height="12">{box}</svg>memoized function</span>')
    for kind, dashes in KINDS.items():
        if any(edge.kind == kind for edge in edges):
            line = f'<path class="edge" d="M 0 6 H 28" stroke-dasharray="{dashes or "none"}"/>'
            said.append(f'<span><svg width="28" height="12">{line}</svg>{kind}</span>')
    return f'<div class="legend">{"".join(said)}</div>'


_STYLE = """
:host { color: var(--panel-on-background-color, inherit); }
.view { overflow-x: auto; margin: 0.6em 0; }
.view > svg { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2em 1.2em; }
.legend svg { margin-right: 0.4em; vertical-align: -1px; }
.box { fill: currentColor; fill-opacity: 0.1; stroke: currentColor; stroke-width: 1.5; }
.plain { fill: none; stroke: currentColor; }
.mark { fill: currentColor; }
.name, .state { fill: var(--panel-on-background-color, #333); font-family: inherit; }
.name { font-size: 12px; font-weight: 600; }
.state { font-size: 11px; opacity: 0.85; }
.edge { fill: none; stroke: var(--panel-on-background-color, #333); stroke-opacity: 0.55; stroke-width: 1.5; }
.arrow { fill: var(--panel-on-background-color, #333); fill-opacity: 0.7; }
p { margin: 0.4em 0; }
"""


class Graph(Viewer):
    """
    Tasks and memoized functions, what they are made of, and how fresh each is.

    Examples
    --------
    >>> nodes = [Node("task raw", "raw", "fresh"), Node("task sums", "sums", "stale")]
    >>> graph = Graph()
    >>> graph.update(drawing(nodes, [Edge("task raw", "task sums", "after")]))
    """

    def __init__(self, **params: Any):
        super().__init__(**params)
        self._drawn = pn.pane.HTML(stylesheets=[_STYLE], sizing_mode="stretch_width", margin=(0, 10))

    def update(self, drawn: str) -> None:
        """Show this `drawing` from now on; under the lock of the session's document."""
        self._drawn.object = drawn

    def __panel__(self) -> Any:
        return self._drawn
