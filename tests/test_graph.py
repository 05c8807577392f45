"""The drawing of what is made of what."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.monitor.graph import (
    KINDS,
    STATES,
    Edge,
    Graph,
    Node,
    components_of,
    drawing,
    edges_of,
    layers_of,
    places_of,
    state_of,
)
from panel_schedule.runtime import Runtime


def pairs_of(text: str) -> list[tuple[str, str]]:
    """``"ab bc"``: from a to b, from b to c."""
    return [(each[0], each[1]) for each in text.split()]


def elements(drawn: str) -> ElementTree.Element:
    """All that is drawn; it is no XML where a name is taken for markup."""
    return ElementTree.fromstring(f"<div>{drawn}</div>")


@pytest.mark.parametrize(
    ("edges", "weak", "layers"),
    [
        ("", "", "a0 b0 c0"),
        ("ab bc", "", "a0 b1 c2"),
        ("ab bc ac", "", "a0 b1 c2"),
        ("cb ba", "", "a2 b1 c0"),
        ("ab bc ca", "ca", "a0 b1 c2"),
        ("ab bc ca", "ab", "a2 b0 c1"),
        ("ab ba", "ab ba", "a0 b1 c0"),
    ],
)
def test_a_node_is_in_the_layer_behind_all_that_it_is_made_of(edges: str, weak: str, layers: str) -> None:
    """Where it goes round an edge goes back that only reads."""
    found = layers_of("abc", pairs_of(edges), set(pairs_of(weak)))
    assert {each[0]: int(each[1]) for each in layers.split()} == found


def test_a_chain_is_as_long_as_it_likes() -> None:
    ids = [str(number) for number in range(5000)]
    found = layers_of(ids, list(pairwise(ids)), set())
    assert list(range(5000)) == [found[each] for each in ids]


@pytest.mark.parametrize(
    ("edges", "components"), [("ab cd", ["ab", "cd"]), ("de ab bc", ["abc", "de"]), ("ac bd cb", ["abcd"])]
)
def test_what_hangs_together_is_drawn_together_the_largest_first(edges: str, components: list[str]) -> None:
    ids = sorted(set(edges.replace(" ", "")))
    assert components == ["".join(each) for each in components_of(ids, pairs_of(edges))]


def test_edges_cross_as_little_as_the_order_in_a_layer_allows() -> None:
    """By name a, b, c would cross f, e, d three times."""
    places = places_of("abcdef", pairs_of("af be cd"))
    assert [places[each][1] for each in "abc"] == [places[each][1] for each in "fed"]


def test_an_edge_over_layers_has_a_place_between_the_boxes_that_it_passes() -> None:
    places = places_of("abc", pairs_of("ab bc ac"))
    assert 1 == places["a", "c", 1][0]
    assert abs(places["a", "c", 1][1] - places["b"][1]) >= 1


def test_no_two_boxes_are_at_one_place() -> None:
    ids = [str(number) for number in range(60)]
    pairs = [(ids[at], ids[at + step]) for at in range(40) for step in (1, 7, 19) if (at * step) % 3]
    places = list(places_of(ids, pairs).values())
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("given", "state"),
    [
        (("idle", "", False, True), "fresh"),
        (("idle", "", False, False), "no value yet"),
        (("running", "", False, True), "running"),
        (("queued", "", False, False), "running"),
        (("running", "", True, True), "stale"),
        (("paused", "", True, True), "paused"),
        (("removed", "", False, True), "paused"),
        (("running", "ValueError", True, True), "failing"),
    ],
)
def test_the_worst_that_there_is_to_say_of_a_task_is_its_state(given: tuple, state: str) -> None:
    assert state == state_of(*given)


def test_each_state_has_a_colour_and_a_mark_of_its_own_and_says_its_name() -> None:
    nodes = [Node(state, state, state) for state in STATES]
    drawn = elements(drawing(nodes, [Edge("fresh", state, "after") for state in STATES]))
    boxes = [box for box in drawn.iter("g") if box.get("data-state")]
    marks = {(box.get("data-state"), path.get("d")) for box in boxes for path in box.iter("path")}
    assert {(state, mark) for state, (_, mark) in STATES.items()} == marks
    assert len(STATES) == len({mark for _, mark in marks})
    assert set(STATES) == {text.text for box in boxes for text in box.iter("text") if text.get("class") == "state"}


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "&lt;b&gt;", "\"'><img src=x onerror=alert(1)>"])
def test_a_name_is_nothing_but_text(name: str) -> None:
    drawn = elements(drawing([Node("a", name, "fresh"), Node("b", "b", "fresh")], [Edge("a", "b", "after")]))
    assert f"{name}: fresh" in [title.text for title in drawn.iter("title")]
    assert {"div", "svg", "g", "title", "rect", "path", "text", "span"} >= {each.tag for each in drawn.iter()}


def test_each_kind_of_an_edge_is_drawn_otherwise_and_told() -> None:
    nodes = [Node(each, each, "fresh") for each in "abcd"]
    drawn = elements(drawing(nodes, [Edge("a", to, kind) for to, kind in zip("bcd", KINDS, strict=True)]))
    [large] = [svg for svg in drawn.iter("svg") if svg.get("role") == "img"]
    dashes = {path.get("stroke-dasharray", "") for path in large.iter("path") if path.get("class") == "edge"}
    assert set(KINDS.values()) == dashes
    assert {*KINDS, "4 fresh"} == {(span[0].tail or "") for span in drawn.iter("span")}


@pytest.mark.parametrize(
    ("names", "edges", "said"),
    [
        ("abc", "ab", "1 task or function is connected with no other one, and not drawn."),
        ("abcd", "ab ax xa", "2 tasks and functions are connected with no other one, and not drawn."),
        ("ab", "aa", "2 tasks and functions are connected with no other one."),
        ("", "", "There are no tasks."),
        ("ab", "ab", None),
    ],
)
def test_what_is_not_drawn_is_counted(names: str, edges: str, said: str | None) -> None:
    drawn = drawing([Node(each, each, "fresh") for each in names], [Edge(*pair, "after") for pair in pairs_of(edges)])
    assert ([] if said is None else [said]) == re.findall("<p>(.*?)</p>", drawn)
    assert ("<rect" in drawn) == ("ab" in edges)


def test_the_edges_are_what_the_author_says_and_what_the_code_names() -> None:
    front = Front(Runtime(Config({})))
    raw = front.schedule(period="1h", name="raw")(lambda: 1)
    rates = front.schedule(period="1h", name="rates")(lambda: 2)
    sums = front.schedule(after=raw, needs=rates, name="sums")(lambda: raw() + rates())
    report = front.schedule(period="1h", name="report")(lambda: sums())
    chart = front.memoize(name="chart", after=sums)(lambda: sums() + raw())
    found = edges_of([raw, rates, sums, report], [chart])
    assert {
        ("task raw", "task sums", "after"),
        ("task rates", "task sums", "needs"),
        ("task sums", "task report", "reads"),
        ("task sums", "memo chart", "after"),
        ("task raw", "memo chart", "reads"),
    } == {(edge.source, edge.target, edge.kind) for edge in found}
    assert 5 == len(found)


def test_a_graph_shows_what_it_was_told_last() -> None:
    graph = Graph()
    for name in ("one", "other"):
        graph.update(drawing([Node("a", name, "fresh"), Node("b", "b", "stale")], [Edge("a", "b", "reads")]))
        assert f"<title>{name}: fresh</title>" in graph.__panel__().object
