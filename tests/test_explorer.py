"""The explorer example: its table and its sums against pandas, its page against several visitors."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import duckdb
import pandas as pd
import pytest
from bokeh_sampledata.population import data as sample
from playwright.sync_api import Locator, Page, expect

from panel_schedule.views.memo import SETTLING
from servers import PanelServer, Serve
from windows import NewPage

ROOT = Path(__file__).parent.parent
APP = shlex.quote(str(ROOT / "examples" / "explorer.py"))
SETUP = shlex.quote(str(ROOT / "setup_scripts" / "demo.py"))
UN = {"Africa": 903, "Asia": 935, "Europe": 908, "Latin America": 904, "Northern America": 905, "Oceania": 909}
COUNTED = """
    import panel as pn
    import panel_schedule as ps

    pn.pane.Str(f"{ps.store.entry('explorer executions').version} times").servable()
"""

Explore = Callable[..., PanelServer]


@pytest.fixture(scope="module")
def explorer() -> ModuleType:
    """The module of the example's memoized function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        import tasks.explorer

        return tasks.explorer


@pytest.fixture(scope="module")
def database(explorer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "population.duckdb"
    explorer.build(path)
    return path


@pytest.fixture
def explore(serve: Serve) -> Explore:
    """Start a server with the page, and beside it one that only says how often the function was computed."""

    def start(options: str = "") -> PanelServer:
        return serve(f"{APP} counted.py {options}", {"counted.py": COUNTED}, env={"QUAKES_URL": "http://127.0.0.1:9"})

    return start


def counted(server: PanelServer, new_page: NewPage) -> int:
    """What a process of the server knows now, and not what is still on its way to the pages that are open."""
    said = new_page(f"{server.url}/counted").get_by_text(re.compile(r"^\d+ times$")).text_content()
    assert said is not None
    return int(said.split()[0])


def executions(page: Page) -> Locator:
    return page.locator(".label:text-is('Executions') + .value")


def people(country: str, year: int, sexes: list[str], ages: range) -> float:
    """Of the sample, in one of its own years."""
    chosen = sample[
        (sample["Location"] == country)
        & (sample["Year"] == year)
        & sample["Sex"].isin(sexes)
        & sample["AgeGrpStart"].isin(ages)
    ]
    return float(chosen["Value"].sum())


def test_the_table_has_a_row_for_each_country_year_sex_and_age_and_nothing_is_beside_it(database: Path) -> None:
    with duckdb.connect(database, read_only=True) as db:
        counts = "count(*), count(DISTINCT country), count(DISTINCT year), count(DISTINCT (sex, age)), count(people)"
        rows, *distinct, known = db.execute(f"SELECT {counts} FROM people").fetchone()
    assert distinct == [237, 151, 42]
    assert rows == known == 237 * 151 * 42 > 1_000_000
    assert list(database.parent.iterdir()) == [database]


def test_the_regions_are_those_of_the_united_nations(explorer: ModuleType, database: Path) -> None:
    """The sample has their sums as rows of their own, which were rounded apart from those of the countries."""
    found = explorer.summed_up(database, list(UN), (65, 100), (1950, 2100), "Female")
    ours = found.regions.pivot(index="year", columns="region", values=["people", "everyone"])
    theirs = sample[sample["Sex"].eq("Female") & sample["LocID"].isin(UN.values())]
    for column, rows in (("people", theirs[theirs["AgeGrpStart"] >= 65]), ("everyone", theirs)):
        known = rows.pivot_table(index="Year", columns="LocID", values="Value", aggfunc="sum")
        for region, code in UN.items():
            assert ours[column, region][known.index].tolist() == pytest.approx(known[code].tolist(), abs=200)
    assert found.rows == 237 * 151 * 21


def test_a_country_is_summed_up_right(explorer: ModuleType, database: Path) -> None:
    found = explorer.summed_up(database, ["Asia", "Europe"], (15, 65), (1980, 2053), "All")
    both, working, all_ages = ["Female", "Male"], range(15, 65), range(0, 105)
    for country in ("France", "Japan"):
        row = found.countries.set_index("country").loc[country]
        last, everyone = (
            0.4 * people(country, 2050, both, ages) + 0.6 * people(country, 2055, both, ages)
            for ages in (working, all_ages)
        )
        assert row["people"] == pytest.approx(last)
        assert row["share"] == pytest.approx(last / everyone)
        assert row["growth"] == pytest.approx(last / people(country, 1980, both, working))
    assert "Nigeria" not in set(found.countries["country"])


def test_all_parts_of_an_answer_agree(explorer: ModuleType, database: Path) -> None:
    found = explorer.summed_up(database, list(UN), (0, 15), (1950, 2024), "Male")
    last = found.regions[found.regions["year"] == 2024]
    groups: pd.DataFrame = found.groups
    assert found.countries["people"].sum() == pytest.approx(last["people"].sum())
    assert groups.loc[groups["wanted"], "after"].sum() == pytest.approx(last["people"].sum())
    assert groups["after"].sum() == pytest.approx(last["everyone"].sum())
    assert groups.loc[groups["wanted"], "age"].tolist() == [0, 5, 10]


@pytest.mark.parametrize(
    ("ages", "text"),
    [((0, 100), "All ages"), ((65, 100), "65 and over"), ((100, 100), "100 and over"), ((15, 65), "15 to 64")],
)
def test_ages_are_told_as_they_are_meant(explorer: ModuleType, ages: tuple[int, int], text: str) -> None:
    assert explorer.told(ages) == text


def test_there_is_always_something_to_sum_up_and_to_compare(explorer: ModuleType, database: Path) -> None:
    found = explorer.summed_up(database, ["Oceania"], (30, 30), (2100, 2100), "All")
    assert (found.ages, found.years) == ("30 to 34", (2099, 2100))
    with pytest.raises(ValueError, match="Choose a region"):
        explorer.summed_up(database, [], (0, 100), (1950, 2100), "All")


def test_the_order_in_which_regions_were_chosen_makes_no_difference(explorer: ModuleType) -> None:
    one, other = (
        explorer.same(regions, (0, 5), (1950, 2100), "All") for regions in (["Asia", "Africa"], ["Africa", "Asia"])
    )
    assert one == other


def test_visitors_with_the_same_filters_count_one_execution(explore: Explore, new_page: NewPage) -> None:
    """In two processes, with the examples' own setup script."""
    server = explore(f"--setup {SETUP} --num-procs 2")
    mine, yours = (new_page(f"{server.url}/explorer") for _ in range(2))
    for page in (mine, yours):
        expect(page.get_by_text("1,503,054 rows summed up")).to_be_visible()
    assert counted(server, new_page) == 1
    mine.get_by_role("button", name="Women").click()
    expect(mine.get_by_text("751,527 rows summed up")).to_be_visible()
    expect(executions(yours)).to_have_text("2")
    yours.get_by_role("button", name="Women").click()
    expect(yours.get_by_text("751,527 rows summed up")).to_be_visible()
    assert counted(server, new_page) == 2
    mine.get_by_role("button", name="Compute anew").click()
    expect(executions(yours)).to_have_text("3")


def test_another_drawing_computes_nothing_and_an_error_leaves_the_last_answer(
    explore: Explore, new_page: NewPage
) -> None:
    server = explore()
    page = new_page(f"{server.url}/explorer")
    first = page.locator('.tabulator-cell[tabulator-field="country"]').first
    expect(first).to_have_text("India")
    page.get_by_role("button", name="Share").click()
    expect(first).to_have_text("China, Hong Kong SAR")
    assert counted(server, new_page) == 1
    for region in UN:
        page.get_by_role("checkbox", name=region, exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a region, or several.")
    expect(page.get_by_text("rows summed up")).to_be_visible()
    page.get_by_role("checkbox", name="Asia").click()
    expect(page.get_by_text("323,442 rows summed up")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_dragged_slider_computes_its_first_and_its_last_value(explore: Explore, new_page: NewPage) -> None:
    server = explore()
    page = new_page(f"{server.url}/explorer")
    expect(page.get_by_text("126.32 million in 1950")).to_be_visible()
    thumb = page.locator(".MuiSlider-thumb").nth(2)
    box = thumb.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    begun = time.monotonic()
    page.mouse.move(x + 120, y, steps=30)
    page.mouse.up()
    dragged = time.monotonic() - begun
    label = page.get_by_text(re.compile(r"^Years: (20|19[6-9])"))
    expect(label).to_be_visible()
    year = label.inner_text().split()[1]
    expect(page.get_by_text(re.compile(rf"llion in {year}$"))).to_be_visible()
    # A browser that gets no processor amid the drag lets the value settle on the way.
    on_the_way = 0 if dragged < 1 else dragged // SETTLING
    assert 2 <= counted(server, new_page) <= 3 + on_the_way
