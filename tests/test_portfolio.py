"""The portfolio example: its figures against other ways to the same ones, its search against the exact optimum."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import bokeh_sampledata.stocks
import numpy as np
import pytest
from playwright.sync_api import expect

from servers import Serve
from windows import NewPage

ROOT = Path(__file__).parent.parent
TICKERS = ["AAPL", "GOOG", "IBM", "MSFT"]


@pytest.fixture(scope="module")
def portfolio() -> ModuleType:
    """The module of the example's background function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        import tasks.portfolio

        return tasks.portfolio


@pytest.fixture(scope="module")
def found(portfolio: ModuleType) -> list[Any]:
    """What a search of the last three years says on its way."""
    return list(portfolio.optimise(TICKERS, 3, 0.02, 12_000))


def daily_returns(ticker: str, first: str) -> list[float]:
    """As simple as can be, from the dictionary that the sample data has as well."""
    data = getattr(bokeh_sampledata.stocks, ticker)
    prices = [price for date, price in zip(data["date"], data["adj_close"], strict=True) if date >= first]
    return [new / old - 1 for old, new in itertools.pairwise(prices)]


def exact(mean: np.ndarray, covariance: np.ndarray, rate: float | None) -> np.ndarray:
    """
    The long-only weights of the highest Sharpe ratio, or of the lowest risk: the best of the closed
    solutions for all subsets of the stocks that have no negative weight.
    """
    best: tuple[float, np.ndarray] = (-math.inf, mean)
    for size in range(1, len(mean) + 1):
        for chosen in map(list, itertools.combinations(range(len(mean)), size)):
            toward = np.ones(size) if rate is None else mean[chosen] - rate
            part = np.linalg.solve(covariance[np.ix_(chosen, chosen)], toward)
            part /= part.sum()
            weights = np.zeros(len(mean))
            weights[chosen] = part
            risk = math.sqrt(weights @ covariance @ weights)
            value = -risk if rate is None else (weights @ mean - rate) / risk
            if part.min() >= 0 and value > best[0]:
                best = value, weights
    return best[1]


def test_the_figures_of_a_mix_are_right(found: list[Any]) -> None:
    """Against a loop over the days, with nothing but the standard library."""
    best = found[-1].best
    days = list(zip(*(daily_returns(ticker, "2010-03-01") for ticker in TICKERS), strict=True))
    mixed = [sum(best.weights[ticker] * move for ticker, move in zip(TICKERS, day, strict=True)) for day in days]
    value, peak, fall = 1.0, 1.0, 0.0
    for move in mixed:
        value *= 1 + move
        peak = max(peak, value)
        fall = min(fall, value / peak - 1)
    assert found[-1].days == len(days) == 756
    assert best.gain == pytest.approx(252 * statistics.mean(mixed))
    assert best.risk == pytest.approx(math.sqrt(252) * statistics.stdev(mixed))
    assert best.sharpe == pytest.approx((best.gain - 0.02) / best.risk)
    assert best.fall == pytest.approx(fall)
    assert best.growth == pytest.approx(value)


def test_a_fall_on_the_first_day_counts(portfolio: ModuleType) -> None:
    row = portfolio.measure(np.array([[1.0]]), np.array([[-0.5], [0.25], [0.1]]))[0]
    assert row[portfolio.FALL] == pytest.approx(-0.5)
    assert row[portfolio.GROWTH] == pytest.approx(0.6875)


@pytest.mark.parametrize("tickers", [["IBM", "GOOG"], ["AAPL", "MSFT"], TICKERS, [*TICKERS, "FB"]])
def test_the_search_finds_the_exact_optimum(portfolio: ModuleType, tickers: list[str]) -> None:
    *_, last = portfolio.optimise(tickers, 5, 0.01, 12_000)
    names = sorted(tickers)
    first = "2012-05-18" if "FB" in tickers else "2008-03-03"
    returns = np.array([daily_returns(ticker, first) for ticker in names])
    mean, covariance = returns.mean(axis=1) * 252, np.atleast_2d(np.cov(returns)) * 252
    tangent, calm = exact(mean, covariance, 0.01), exact(mean, covariance, None)
    assert last.best.sharpe == pytest.approx(
        (tangent @ mean - 0.01) / math.sqrt(tangent @ covariance @ tangent), rel=1e-3
    )
    assert list(last.best.weights.values()) == pytest.approx(tangent, abs=0.03)
    assert last.safest.risk == pytest.approx(math.sqrt(calm @ covariance @ calm), rel=1e-3)
    assert last.best.sharpe <= (tangent @ mean - 0.01) / math.sqrt(tangent @ covariance @ tangent) + 1e-12


def test_every_mix_is_long_only_and_whole(portfolio: ModuleType, found: list[Any]) -> None:
    for each in found:
        for rows in (each.frontier, each.drawn):
            weights = rows[:, portfolio.WEIGHTS]
            assert weights.min() >= 0
            assert weights.sum(axis=1) == pytest.approx(np.ones(len(rows)))


def test_the_frontier_rises_and_nothing_is_above_it(portfolio: ModuleType, found: list[Any]) -> None:
    frontier = found[-1].frontier
    assert (np.diff(frontier[:, portfolio.RISK]) > 0).all()
    assert (np.diff(frontier[:, portfolio.GAIN]) > 0).all()
    drawn = np.concatenate([each.drawn for each in found])
    limit = np.interp(drawn[:, portfolio.RISK], frontier[:, portfolio.RISK], frontier[:, portfolio.GAIN])
    assert (drawn[:, portfolio.GAIN] <= limit + 0.002).all()


def test_the_search_only_gets_better_and_tries_all_that_it_was_asked_for(found: list[Any]) -> None:
    best, tried = [each.best.sharpe for each in found], [each.tried for each in found]
    assert best == sorted(best)
    assert tried == sorted(set(tried))
    assert tried[-1] == 12_000


def test_each_step_reports_progress(portfolio: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = []
    monkeypatch.setattr(portfolio.ps, "progress", lambda step, steps, message: reported.append((step, steps, message)))
    steps = len(list(portfolio.optimise(["AAPL", "IBM"], 1, 0.0, 500)))
    assert reported == [(step, steps, "Searching") for step in range(1, steps + 1)]


def test_the_same_inputs_give_the_same_result_in_whatever_order(portfolio: ModuleType) -> None:
    one, other = (list(portfolio.optimise(names, 1, 0.0, 500))[-1] for names in (["IBM", "AAPL"], ["AAPL", "IBM"]))
    assert one.best == other.best
    assert portfolio.same(["IBM", "AAPL"], 1, 0.0, 500) == portfolio.same(["AAPL", "IBM"], 1, 0.0, 500)


@pytest.mark.parametrize("tickers", [[], ["IBM"]])
def test_fewer_than_two_stocks_are_no_mix(portfolio: ModuleType, tickers: list[str]) -> None:
    with pytest.raises(ValueError, match="two stocks or more"):
        next(portfolio.optimise(tickers, 1, 0.0, 500))


def test_the_page_draws_what_comes_and_a_second_visitor_joins(serve: Serve, new_page: NewPage) -> None:
    """In a worker process, with the examples' own setup script."""
    app, setup = ROOT / "examples" / "portfolio.py", ROOT / "setup_scripts" / "demo.py"
    server = serve(
        f"{shlex.quote(str(app))} --setup {shlex.quote(str(setup))}", env={"QUAKES_URL": "http://127.0.0.1:9"}
    )
    first, second = (new_page(f"{server.url}/portfolio") for _ in range(2))
    first.get_by_role("button", name="Search").click()
    expect(first.get_by_text(re.compile(r"^of [\d,]+ mixes$"))).to_be_visible(timeout=30_000)
    second.get_by_role("button", name="Search").click()
    expect(second.get_by_text("you have joined it")).to_be_visible()
    first.get_by_role("button", name="Cancel").click()
    expect(first.get_by_text("Cancelled after")).to_be_visible()
    expect(second.get_by_text("you have joined it")).to_be_visible()
    second.get_by_role("button", name="Cancel").click()
    expect(second.get_by_text("Cancelled after")).to_be_visible()
    assert "Job 'optimise'" not in server.output()
