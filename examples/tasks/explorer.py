"""The people of all countries by age, sex and year: 1.5 million rows in DuckDB, summed up once for everybody."""

import os
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import duckdb
import pandas as pd

import panel_schedule as ps

DATABASE = Path(__file__).parent.parent / "data" / f"population-{version('bokeh_sampledata')}.duckdb"
EXECUTIONS = "explorer executions"  # a name in ps.store
FIRST, LAST, STEP = 1950, 2100, 5  # the years of the sample
OLDEST = 100  # the age group without an end

# The sample has countries and regions, and not which is where: these are the United Nations' codes (M49).
REGIONS = {
    "Africa": [
        12, 24, 72, 108, 120, 132, 140, 148, 174, 175, 178, 180, 204, 226, 231, 232, 262, 266, 270, 288, 324, 384, 404,
        426, 430, 434, 450, 454, 466, 478, 480, 504, 508, 516, 562, 566, 624, 638, 646, 654, 678, 686, 690, 694, 706,
        710, 716, 728, 729, 732, 748, 768, 788, 800, 818, 834, 854, 894,
    ],
    "Asia": [
        4, 31, 48, 50, 51, 64, 96, 104, 116, 144, 156, 158, 196, 268, 275, 344, 356, 360, 364, 368, 376, 392, 398, 400,
        408, 410, 414, 417, 418, 422, 446, 458, 462, 496, 512, 524, 586, 608, 626, 634, 682, 702, 704, 760, 762, 764,
        784, 792, 795, 860, 887,
    ],
    "Europe": [
        8, 20, 40, 56, 70, 100, 112, 191, 203, 208, 233, 234, 246, 250, 276, 292, 300, 336, 348, 352, 372, 380, 412,
        428, 438, 440, 442, 470, 492, 498, 499, 528, 578, 616, 620, 642, 643, 674, 688, 703, 705, 724, 752, 756, 804,
        807, 826, 831, 832, 833,
    ],
    "Latin America": [
        28, 32, 44, 52, 68, 76, 84, 92, 136, 152, 170, 188, 192, 212, 214, 218, 222, 238, 254, 308, 312, 320, 328, 332,
        340, 388, 474, 484, 500, 531, 533, 534, 535, 558, 591, 600, 604, 630, 652, 659, 660, 662, 663, 670, 740, 780,
        796, 850, 858, 862,
    ],
    "Northern America": [60, 124, 304, 666, 840],
    "Oceania": [
        16, 36, 90, 184, 242, 258, 296, 316, 520, 540, 548, 554, 570, 580, 583, 584, 585, 598, 772, 776, 798, 876, 882,
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What the filters leave. Shared by all who look at it: to be read."""

    ages: str
    years: tuple[int, int]
    regions: pd.DataFrame  # year, region, people of these ages, everyone
    groups: pd.DataFrame  # age, sex, wanted, people in the first year (before) and in the last one (after)
    countries: pd.DataFrame  # country, people of these ages in the last year, share, growth
    rows: int  # that were summed up
    seconds: float  # that it took


def same(regions: list[str], ages: tuple[int, int], years: tuple[int, int], sex: str) -> tuple:
    """Which calls share an answer: in whatever order the regions were chosen."""
    return sorted(regions), ages, years, sex


@ps.memoize(ttl="10m", max_stale="1h", max_entries=64, key=same)
def population(regions: list[str], ages: tuple[int, int], years: tuple[int, int], sex: str) -> Summary:
    """
    Sum up the people that the filters leave.

    Parameters
    ----------
    regions : list of str
        One or more of `REGIONS`.
    ages : tuple of int
        From the first one to below the second one, in steps of 5; to `OLDEST` is without an end.
    years : tuple of int
        The first one and the last one; at least two, so that there is something to compare.
    sex : {"All", "Female", "Male"}
    """
    # The store counts its writes, those of all processes: none is lost, as with a number that is read and written back.
    ps.store[EXECUTIONS] = told(ages)
    return summed_up(database(), regions, ages, years, sex)


def executions() -> int:
    """How often `population` was computed, in all processes of this server."""
    entry = ps.store.entry(EXECUTIONS)
    return entry.version if entry else 0


@ps.memoize(ttl="1m")
def database() -> Path:
    """The database, made by one of all processes when it is not there."""
    if not DATABASE.exists():
        build(DATABASE)
    return DATABASE


def build(path: Path) -> None:
    """Make the table, complete or not at all: the sample's years, and on straight lines those between them."""
    from bokeh_sampledata.population import data as sample  # noqa: F401  (large, and only needed once)

    codes = [(code, region) for region, codes in REGIONS.items() for code in codes]
    regions = pd.DataFrame(codes, columns=["LocID", "region"])  # noqa: F841  (DuckDB finds DataFrames by their names)
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        made = Path(beside) / path.name
        with duckdb.connect(made) as db:
            db.execute(f"""
                CREATE TABLE people AS
                WITH known AS (
                    SELECT *, lead(Value) OVER (PARTITION BY LocID, Sex, AgeGrpStart ORDER BY Year) AS next
                    FROM sample JOIN regions USING (LocID))
                SELECT Location AS country, region, Sex AS sex, AgeGrpStart::UTINYINT AS age,
                       (Year + step)::USMALLINT AS year, Value + coalesce(next - Value, 0) * step / {STEP} AS people
                FROM known, range({STEP}) AS steps(step) WHERE step = 0 OR next IS NOT NULL
                ORDER BY country, sex, age, year
            """)
        os.replace(made, path)


def summed_up(path: Path, regions: list[str], ages: tuple[int, int], years: tuple[int, int], sex: str) -> Summary:
    """What `population` gives, of the table in this file."""
    if not regions:
        raise ValueError("Choose a region, or several.")
    youngest, end = bounds(ages)
    first = min(years[0], LAST - 1)
    last = max(years[1], first + 1)
    filters = {
        "regions": regions,
        "sexes": ["Female", "Male"] if sex == "All" else [sex],
        "youngest": youngest,
        "end": end,
        "first": first,
        "last": last,
    }
    began = time.perf_counter()
    with duckdb.connect(path, read_only=True) as db:  # all processes may read at once

        def ask(sql: str) -> pd.DataFrame:
            return db.execute(
                f"""
                WITH chosen AS (
                    SELECT *, age >= $youngest AND age < $end AS wanted, year = $first AS first, year = $last AS last
                    FROM people
                    WHERE year BETWEEN $first AND $last AND region IN $regions AND sex IN $sexes)
                {sql}
                """,
                filters,
            ).df()

        by_region = ask("""
            SELECT year, region, sum(people) FILTER (wanted) AS people, sum(people) AS everyone, count(*) AS rows
            FROM chosen GROUP BY ALL ORDER BY ALL
        """)
        groups = ask("""
            SELECT age, sex, wanted, sum(people) FILTER (first) AS before, sum(people) FILTER (last) AS after
            FROM chosen GROUP BY ALL ORDER BY ALL
        """)
        countries = ask("""
            SELECT country, sum(people) FILTER (wanted AND last) AS people,
                   sum(people) FILTER (wanted AND last) / nullif(sum(people) FILTER (last), 0) AS share,
                   sum(people) FILTER (wanted AND last) / nullif(sum(people) FILTER (wanted AND first), 0) AS growth
            FROM chosen GROUP BY ALL ORDER BY country
        """)
    return Summary(
        ages=told(ages),
        years=(first, last),
        regions=by_region.drop(columns="rows"),
        groups=groups,
        countries=countries,
        rows=int(by_region["rows"].sum()),
        seconds=time.perf_counter() - began,
    )


def bounds(ages: tuple[int, int]) -> tuple[int, int]:
    """The first age, and the first one that is too old; at least one age group."""
    youngest, end = ages
    return youngest, OLDEST + STEP if end == OLDEST else max(end, youngest + STEP)


def told(ages: tuple[int, int]) -> str:
    youngest, end = bounds(ages)
    if end > OLDEST:
        return f"{youngest} and over" if youngest else "All ages"
    return f"{youngest} to {end - 1}"
