"""The best mix of some stocks, searched for among millions of mixes, each of which is played back day by day."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import bokeh_sampledata.stocks as archive
import numpy as np
import pandas as pd

import panel_schedule as ps

DAYS = 252  # trading days in a year
STEPS = 120  # how often the search says how far it is
DRAWN = 30  # mixes of each step that are shown
KNOTS = 100  # of the frontier
AT_ONCE = 250  # mixes that are played back together: few enough to stay in the processor's cache
RISK, GAIN, FALL, GROWTH, WEIGHTS = 0, 1, 2, 3, slice(4, None)  # the columns of what is measured


class Mix(NamedTuple):
    """A portfolio, and how it would have done. All figures are fractions: 0.05 is 5 %."""

    weights: dict[str, float]
    risk: float  # standard deviation of the daily returns, * sqrt(252)
    gain: float  # mean of the daily returns, * 252
    fall: float  # from a peak to the lowest day after it, at worst: negative
    growth: float  # what 1 has become
    sharpe: float


@dataclass(frozen=True)
class Found:
    """What the search has found so far; and, of the mixes that it has tried in its last step, a few to be drawn."""

    tickers: tuple[str, ...]
    first: datetime
    last: datetime
    days: int
    rate: float
    tried: int
    best: Mix  # the highest Sharpe ratio
    safest: Mix  # the lowest risk
    frontier: np.ndarray  # a row for each mix that none of as little risk beats: RISK, GAIN, FALL, GROWTH, WEIGHTS
    drawn: np.ndarray  # rows of the same columns


def same(tickers: list[str], years: int, rate: float, mixes: int) -> tuple:
    """Which calls share a result: in whatever order their stocks were chosen."""
    return sorted(tickers), years, rate, mixes


@ps.background(executor="process", timeout="15m", ttl="1h", key=same)
def optimise(tickers: list[str], years: int, rate: float, mixes: int) -> Iterator[Found]:
    """
    Search for the mix with the highest Sharpe ratio; of the same stocks it tries the same mixes each time.

    Parameters
    ----------
    tickers : list of str
        Two or more.
    years : int
        Up to 1 March 2013; fewer when one of the stocks was not traded yet.
    rate : float
        Risk-free rate per year, 0.02 for 2 %.
    mixes : int
        How many to try.
    """
    tickers = sorted(tickers)
    prices = history(tickers, years)
    returns = prices.pct_change().iloc[1:].to_numpy()
    random = np.random.default_rng(0)
    frontier = measure(np.eye(len(tickers)), returns)
    best = safest = frontier[:0]
    steps = min(STEPS, mixes)
    tried = 0
    for step in range(1, steps + 1):
        count = mixes * step // steps - tried
        anywhere = scattered(random, len(tickers), count - count // 2)
        nearby = varied(random, frontier[:, WEIGHTS], count // 2, spread=0.2 * (1 - step / steps) + 0.002)
        rows = measure(np.concatenate([anywhere, nearby]), returns)
        tried += count
        drawn = rows[: min(DRAWN, len(anywhere))]
        frontier = efficient(np.concatenate([frontier, rows, best, safest]))
        best = frontier[[np.argmax(sharpe(frontier, rate))]]
        safest = frontier[[np.argmin(frontier[:, RISK])]]
        frontier = thinned(frontier)
        ps.progress(step, steps, "Searching")
        yield Found(
            tickers=tuple(tickers),
            first=prices.index[0].to_pydatetime(),
            last=prices.index[-1].to_pydatetime(),
            days=len(returns),
            rate=rate,
            tried=tried,
            best=mix(best[0], tickers, rate),
            safest=mix(safest[0], tickers, rate),
            frontier=frontier,
            drawn=drawn,
        )


def apart(tickers: list[str], years: int, rate: float) -> list[Mix]:
    """Each of the stocks by itself."""
    returns = history(tickers, years).pct_change().iloc[1:].to_numpy()
    return [mix(row, tickers, rate) for row in measure(np.eye(len(tickers)), returns)]


def history(tickers: list[str], years: int) -> pd.DataFrame:
    """Closing prices, adjusted for splits and dividends, of the days on which all of the stocks have one."""
    if len(tickers) < 2:
        raise ValueError("A mix takes two stocks or more.")
    prices = archive.data.pivot(index="date", columns="ticker", values="adj_close")[tickers].dropna()
    return prices[prices.index >= prices.index[-1] - pd.DateOffset(years=years)]


def measure(weights: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """
    Play mixes back, each brought back to its weights every day.

    Parameters
    ----------
    weights : array (mixes, stocks)
    returns : array (days, stocks)
        Simple ones: only these add up over the stocks of a mix.
    """
    rows = np.empty((len(weights), WEIGHTS.start + weights.shape[1]))
    rows[:, WEIGHTS] = weights
    rows[:, GAIN] = weights @ returns.mean(axis=0) * DAYS
    covariance = np.atleast_2d(np.cov(returns, rowvar=False)) * DAYS
    rows[:, RISK] = np.sqrt(np.einsum("ij,jk,ik->i", weights, covariance, weights))
    by_stock = np.ascontiguousarray(returns.T)
    for start in range(0, len(weights), AT_ONCE):
        few = slice(start, start + AT_ONCE)
        value = np.einsum("ij,jk->ik", weights[few], by_stock)  # @ would have threads of BLAS spin on the other cores
        value += 1
        np.cumprod(value, axis=1, out=value)
        rows[few, GROWTH] = value[:, -1]
        peak = np.maximum.accumulate(value, axis=1)
        np.maximum(peak, 1, out=peak)  # the day before the first return counts, too
        value /= peak
        rows[few, FALL] = value.min(axis=1) - 1
    return rows


def scattered(random: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Weights from everywhere: even ones, and such as leave some of the stocks almost out."""
    even = count // 2
    return random.permutation(
        np.concatenate([random.dirichlet(np.ones(size), even), random.dirichlet(np.full(size, 0.4), count - even)])
    )


def varied(random: np.random.Generator, parents: np.ndarray, count: int, spread: float) -> np.ndarray:
    """Weights near those of `parents`: never negative, 1 in all."""
    weights = parents[random.integers(len(parents), size=count)]
    weights = np.maximum(weights + random.normal(scale=spread, size=weights.shape), 0)
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / weights.shape[1])


def efficient(rows: np.ndarray) -> np.ndarray:
    """The rows that no other one of as little risk beats, by risk."""
    rows = rows[np.lexsort((-rows[:, GAIN], rows[:, RISK]))]
    highest = np.maximum.accumulate(rows[:, GAIN])
    return rows[np.r_[True, rows[1:, GAIN] > highest[:-1]]]


def thinned(frontier: np.ndarray) -> np.ndarray:
    """At most `KNOTS` of them, at even distances in gain."""
    if len(frontier) <= KNOTS:
        return frontier
    gains = np.linspace(frontier[0, GAIN], frontier[-1, GAIN], KNOTS)
    return frontier[np.unique(np.searchsorted(frontier[:, GAIN], gains).clip(max=len(frontier) - 1))]


def sharpe(rows: np.ndarray, rate: float) -> np.ndarray:
    return (rows[:, GAIN] - rate) / rows[:, RISK]


def mix(row: np.ndarray, tickers: list[str], rate: float) -> Mix:
    weights = dict(zip(tickers, row[WEIGHTS].tolist(), strict=True))
    risk, gain, fall, growth = row[: WEIGHTS.start].tolist()
    return Mix(weights, risk, gain, fall, growth, (gain - rate) / risk)
