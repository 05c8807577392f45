"""A schedule in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from panel_schedule.triggers import After, Computed, Cron, Dates, Every
from panel_schedule.triggers.words import in_words


class Named:
    name = "raw"


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("0 6 * * *", "06:00 every day"),
        ("@daily", "00:00 every day"),
        ("0 6 * * mon-fri", "06:00 Mon-Fri"),
        ("0 6 * * 1-5", "06:00 Mon-Fri"),
        ("2 4 * * mon,fri", "04:02 Mon, Fri"),
        ("0 6 * * 0", "06:00 Sun"),
        ("0 6 * * 7", "06:00 Sun"),
        ("0 6 * * 6,0", "06:00 Sat, Sun"),
        ("0 6 * * fri-sun", "06:00 Fri-Sun"),
        ("0 6 * * 0-7", "06:00 every day"),
        ("0 6,18 * * *", "06:00 and 18:00 every day"),
        ("0,30 6,18 * * *", "06:00, 06:30, 18:00 and 18:30 every day"),
        ("0 6 1 * *", "06:00 on day 1"),
        ("0 6 1,15 * *", "06:00 on days 1 and 15"),
        ("0 0 1 jan *", "00:00 on day 1 in Jan"),
        ("0 6 * jan-mar,dec mon", "06:00 Mon in Jan-Mar, Dec"),
        ("0 6 * jan,feb *", "06:00 in Jan, Feb"),
        ("30 15 6 * * *", "06:15:30 every day"),
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 min"),
        ("0 */15 * * * *", "every 15 min"),
        ("0,15,30,45 * * * *", "every 15 min"),
        ("*/15 * * * mon-fri", "every 15 min Mon-Fri"),
        ("*/15 9-17 * * mon-fri", "every 15 min from 09:00 to 17:59 Mon-Fri"),
        ("* 9-17 * * *", "every minute from 09:00 to 17:59"),
        ("@hourly", "every hour"),
        ("5 * * * *", "every hour at :05"),
        ("0 */6 * * *", "00:00, 06:00, 12:00 and 18:00 every day"),
        ("0 */2 * * *", "every 2 h"),
        ("10 */2 * * *", "every 2 h at :10"),
        ("0 9-17 * * mon-fri", "every hour from 09:00 to 17:59 Mon-Fri"),
        ("*/10 * * * * *", "every 10 s"),
        ("* * * * * *", "every second"),
    ],
)
def test_a_cron_expression_that_few_words_say_is_said_so(expr: str, words: str) -> None:
    """The zone comes last."""
    assert f"{words}, Berlin" == in_words(Cron(expr, "Europe/Berlin"))


@pytest.mark.parametrize(
    "expr",
    [
        "*/7 * * * *",  # 56 is followed by 0
        "0 */5 * * *",
        "7-59/15 * * * *",
        "3,9,40 * * * *",
        "0 6,8,9,11,13 * * *",
        "*/15 9,17 * * *",
        "*/10 30 * * * *",
        "5,7 0 6 * * *",
        "0 6 1 * mon",  # the first, or a Monday
        "0 6 l * *",
        "0 6 15w * *",
        "0 6 * * sun#1",
        "0 6 * * l5",
    ],
)
def test_any_other_cron_expression_stays_as_it_is(expr: str) -> None:
    """No word is said of it that is not right."""
    assert f"cron {expr!r}, UTC" == in_words(Cron(expr, "UTC"))


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("America/New_York", "New York"),
        ("America/Argentina/Buenos_Aires", "Buenos Aires"),
        ("Etc/GMT+5", "Etc/GMT+5"),
        ("US/Eastern", "US/Eastern"),
        ("UTC", "UTC"),
    ],
)
def test_a_zone_is_told_by_its_town(zone: str, said: str) -> None:
    """Where its name has one."""
    assert f"06:00 Mon-Fri, {said}" == in_words(Cron("0 6 * * mon-fri", zone))


def test_a_cron_expression_of_panels_is_read_as_panel_reads_it() -> None:
    """Its seconds come last."""
    assert "06:00:30 every day, UTC" == in_words(Cron("0 6 * * * 30", "UTC", dialect="panel"))


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (Every("15m"), "every 15 min"),
        (Every("1h30m"), "every 1 h 30 min"),
        (Dates(datetime(2026, 1, 1, 12, tzinfo=UTC)), "at 2026-01-01 12:00:00 UTC"),
        (After(Named()), "after raw"),
        (Computed(lambda now: None, "holidays"), "computed by holidays"),
    ],
)
def test_any_other_schedule_says_itself(trigger, words: str) -> None:
    assert words == in_words(trigger)
