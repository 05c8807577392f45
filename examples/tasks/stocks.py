"""Daily prices in a DuckDB database, a summary of them, an opening bell, and a service that often fails."""

import itertools
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import pandas as pd
from bokeh_sampledata import stocks

import panel_schedule as ps

NEW_YORK = ZoneInfo("America/New_York")
FOLDER = tempfile.TemporaryDirectory(prefix="panel-schedule-stocks-")
START = "2012-01-01"


@dataclass(frozen=True)
class Loaded:
    database: str
    rows: int
    day: datetime


@ps.schedule(period="2s", retry=2)
def prices() -> Loaded:
    """Load one more trading day, as a nightly job would: here a night takes two seconds."""
    archive = stocks.data  # DuckDB finds the DataFrame by this name
    last = prices()
    database = last.database if last and Path(last.database).exists() else f"{FOLDER.name}/prices.duckdb"
    with duckdb.connect(database) as db:
        db.execute("CREATE TABLE IF NOT EXISTS prices AS FROM archive WHERE date < $start", {"start": START})
        if last and last.day == archive["date"].max():  # played to the end: begin again
            db.execute("DELETE FROM prices WHERE date >= $start", {"start": START})
        db.execute("""
            INSERT INTO prices FROM archive WHERE date = (
                SELECT min(date) FROM archive WHERE date > (SELECT max(date) FROM prices))
        """)
        rows, day = db.execute("SELECT count(*), max(date) FROM prices").fetchone()
    return Loaded(database, rows, day)


def query(sql: str) -> pd.DataFrame:
    with duckdb.connect(prices().database, read_only=True) as db:  # two processes may read at once
        return db.sql(f"""
            WITH year AS (
                SELECT *, adj_close / lag(adj_close) OVER stock - 1 AS change,
                       100 * adj_close / first_value(adj_close) OVER stock AS growth
                FROM prices WHERE date > (SELECT max(date) FROM prices) - INTERVAL 1 YEAR
                WINDOW stock AS (PARTITION BY ticker ORDER BY date))
            {sql}
        """).df()


@ps.schedule(after=prices, retry=2)
def growth() -> pd.DataFrame:
    """A year of each stock, 100 at its beginning: a column per ticker."""
    return query("PIVOT year ON ticker USING first(growth) GROUP BY date ORDER BY date")


@ps.schedule(after=prices, retry=2)
def summary() -> pd.DataFrame:
    """One row per stock."""
    return query("""
        SELECT ticker, arg_max(close, date) AS close, arg_max(change, date) AS change,
               arg_max(growth, date) / 100 - 1 AS year,
               100 * (arg_max(close, date) - min(low)) / (max(high) - min(low)) AS range,
               arg_max(volume, date) AS volume
        FROM year GROUP BY ticker ORDER BY ticker
    """)


calls = itertools.count(1)


@ps.schedule(period="8s")
def mover() -> tuple[str, float]:
    """The biggest move of the day, from a service that leaves every third call without an answer."""
    if next(calls) % 3 == 0:
        raise TimeoutError("no answer (on purpose)")
    change = summary().set_index("ticker")["change"]
    ticker = change.abs().idxmax()
    return ticker, float(change[ticker])


@ps.schedule(cron="30 9 * * mon-fri", timezone="America/New_York", first_run="skip")
def bell() -> datetime:
    """When the New York Stock Exchange last opened: at 09:30 there, in summer and in winter."""
    return datetime.now(NEW_YORK)
