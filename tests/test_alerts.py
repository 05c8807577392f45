"""People are told of tasks that fail: how often, by whom, and never at the cost of a run."""

from __future__ import annotations

import json
import os
import ssl
import stat
import subprocess
import threading
from datetime import timedelta
from functools import partial

import pytest

from core import START, Core, messages, second
from mailbox import MailServer, WebServer
from panel_schedule.alerts import channels
from panel_schedule.alerts.messages import compose
from panel_schedule.config import Config
from panel_schedule.coordination import alerts
from panel_schedule.coordination.alerts import COLLECT, PAUSES, Condition, Event, Notice, Terms, Trouble
from panel_schedule.coordination.record import Refusal, of_text, text_of
from panel_schedule.decorators import Front
from panel_schedule.errors import ConfigError, RegistrationError, TriggerError
from panel_schedule.runtime import Runtime
from panel_schedule.stores.file.store import FileStore
from panel_schedule.testing import VirtualClock

ALL = frozenset({"failed", "stale", "recovered"})
HOUR = timedelta(hours=1)
TERMS = Terms(ALL, 3, HOUR)
PING = Terms(frozenset({"alive"}), 3, timedelta(minutes=5))
KNOWN = ("a", "b", "c")
COLLECTED = COLLECT.total_seconds()


# ------------------------------------------------------------ what is said when: values alone


class History:
    """An alert, and what happens to it: ``F`` a failure, ``S`` a success, ``L`` a value that is late."""

    def __init__(self, terms=TERMS):
        self.terms = terms
        self.record = None
        self.runs = 0

    def hear(self, text, at, task="a"):
        for letter in text:
            self.runs += 1
            what = {"F": "failed", "S": "succeeded", "L": "stale"}[letter]
            event = Event(what, task, second(at), f"r{self.runs}", "ValueError: no" if what == "failed" else "")
            self.apply(alerts.hear, name="n", events=[event], terms=self.terms, now=second(at))
        return self

    def apply(self, function, **arguments):
        outcome = function(self.record, 1, **arguments)
        if isinstance(outcome, Refusal):
            return outcome
        # As a store of several processes reads it.
        state, _ = of_text(alerts.SPACE, text_of(outcome))
        self.record = outcome._replace(state=state)
        return None

    def due(self):
        """Seconds after the beginning; None where there is nothing to say."""
        at = alerts.due(self.record.state, self.terms, KNOWN) if self.record is not None else None
        return at and (at - START).total_seconds()

    def take(self, at, me="me", alive=lambda owner: True, known=KNOWN):
        return self.apply(
            alerts.take, name="n", me=me, alive=alive, terms=self.terms, known=frozenset(known), now=second(at)
        )

    def notice(self, at, known=KNOWN):
        return alerts.notice_of(self.record.state, self.terms, known, second(at))

    def end(self, step, notice, at):
        return self.apply(step, me="me", notice=notice, terms=self.terms, now=second(at))

    def say(self, at, known=KNOWN):
        """Take it and say it: the tasks that are said to fail, and to be well again."""
        assert self.take(at, known=known) is None
        notice = self.notice(at, known)
        assert self.end(alerts.sent, notice, at) is None
        return sorted(notice.troubled), sorted(notice.recovered)


@pytest.mark.parametrize(
    ("terms", "heard", "due"),
    [
        (TERMS, "FF", None),
        (TERMS, "FFF", COLLECTED),
        (TERMS, "FFSF", None),
        (TERMS, "FFSFFF", COLLECTED),
        (TERMS, "FFFS", None),
        (TERMS, "L", COLLECTED),
        (TERMS, "LS", None),
        (TERMS, "SSS", None),
        (TERMS._replace(after=1), "F", COLLECTED),
        (TERMS._replace(on=frozenset({"stale"})), "FFFFF", None),
        (TERMS._replace(on=frozenset({"failed"})), "L", None),
    ],
)
def test_there_is_something_to_say_after_so_many_failures_in_a_row(terms, heard, due):
    assert due == History(terms).hear(heard, 0).due()


def test_one_failure_that_is_heard_twice_counts_once():
    """A store that did not answer is told again."""
    history = History(TERMS._replace(after=2))
    event = Event("failed", "a", second(0), "r1", "ValueError: no")
    for _ in range(2):
        history.apply(alerts.hear, name="n", events=[event], terms=history.terms, now=second(0))
    assert history.due() is None


def test_tasks_that_fail_together_are_one_message():
    history = History().hear("FFF", 0, "a").hear("FFF", 2, "b")
    assert history.due() == COLLECTED
    assert history.say(COLLECTED) == (["a", "b"], [])
    assert history.due() is None


def test_between_two_messages_about_one_task_there_is_a_pause():
    history = History().hear("FFF", 0)
    history.say(10)
    assert history.due() is None
    assert history.hear("F", 60).due() == 10 + 3600
    assert history.say(10 + 3600) == (["a"], [])


def test_a_pause_is_that_of_one_task():
    history = History().hear("FFF", 0, "a")
    history.say(10)
    history.hear("F", 20, "a").hear("FFF", 20, "b")
    assert history.due() == 20 + COLLECTED
    assert history.say(20 + COLLECTED) == (["b"], [])


def test_a_task_that_comes_and_goes_is_told_of_once_in_a_pause():
    history = History().hear("FFF", 0)
    history.say(10)
    history.hear("S", 60)
    assert history.say(60 + COLLECTED) == ([], ["a"])
    history.hear("FFF", 120)
    assert history.due() == 10 + 3600
    history.hear("S", 180)
    assert history.due() is None


def test_recovery_is_told_when_all_that_was_told_is_well_again():
    history = History().hear("FFF", 0, "a").hear("FFF", 0, "b").hear("F", 0, "c")
    history.say(10)
    history.hear("S", 20, "a")
    assert history.due() is None
    history.hear("S", 30, "b")
    assert history.due() == 30 + COLLECTED
    assert history.say(30 + COLLECTED) == ([], ["a", "b"])
    assert history.due() is None


def test_what_was_not_told_does_not_recover():
    history = History().hear("FFS", 0)
    assert history.due() is None
    assert {} == history.record.state.troubles if history.record else True


def test_without_recovered_nothing_is_said_of_it():
    history = History(TERMS._replace(on=frozenset({"failed"}))).hear("FFF", 0)
    history.say(10)
    assert history.hear("S", 20).due() is None


def test_a_task_that_is_gone_holds_up_no_recovery():
    history = History().hear("FFF", 0, "a").hear("FFF", 0, "b")
    history.say(10)
    history.hear("S", 20, "a")
    assert alerts.due(history.record.state, TERMS, ("a",)) == second(20 + COLLECTED)


def test_what_recovers_while_it_is_being_said_is_said_to_have_recovered():
    history = History().hear("FFF", 0)
    history.take(10)
    notice = history.notice(10)
    history.hear("S", 11)
    history.end(alerts.sent, notice, 12)
    assert history.say(20) == ([], ["a"])


def test_what_fails_on_while_it_is_being_said_is_said_after_the_pause():
    history = History().hear("FFF", 0)
    history.take(10)
    notice = history.notice(10)
    history.hear("F", 11)
    history.end(alerts.sent, notice, 12)
    assert history.due() == 12 + 3600


def test_of_two_processes_one_sends():
    history = History().hear("FFF", 0)
    assert history.take(10) is None
    assert history.take(10, me="other") is Refusal.HELD
    history.end(alerts.sent, history.notice(10), 11)
    assert history.take(12, me="other") is Refusal.HANDLED


def test_a_process_that_dies_as_it_sends_is_followed_by_another_one():
    history = History().hear("FFF", 0)
    history.take(10, me="dead")
    assert history.take(11, me="me", alive=lambda owner: owner != "dead") is None
    assert history.record.owner == "me"


def test_who_has_lost_the_right_to_send_says_nothing_of_what_came_of_it():
    history = History().hear("FFF", 0)
    history.take(10, me="other")
    assert history.end(alerts.sent, history.notice(10), 11) is Refusal.FENCED
    assert history.end(alerts.failed, history.notice(10), 11) is Refusal.FENCED


def test_a_message_that_is_refused_is_tried_again_a_few_times():
    history, at, tried = History().hear("FFF", 0), 10.0, []
    for pause in PAUSES:
        assert history.take(at) is None
        history.end(alerts.failed, history.notice(at), at)
        at += pause.total_seconds()
        tried.append(history.due() == at)
    assert tried == [True] * len(PAUSES)
    history.take(at)
    history.end(alerts.failed, history.notice(at), at)
    assert history.due() == at + 3600  # given up, until the pause is over


def test_a_message_that_need_not_be_sent_any_more_costs_the_next_one_no_tries():
    history = History().hear("FFF", 0)
    history.take(10)
    history.end(alerts.failed, history.notice(10), 10)
    history.hear("S", 11).hear("FFF", 12)
    assert (0, None) == (history.record.state.attempts, history.record.state.again_at)


def test_a_ping_is_due_at_once_and_then_after_each_pause():
    history = History(PING)
    assert history.take(0) is None
    history.end(alerts.sent, history.notice(0), 1)
    assert history.due() == 301
    assert history.take(300) is Refusal.HANDLED
    assert history.take(301) is None


def test_a_store_that_has_lost_an_alert_gets_it_back():
    held = History().hear("FFF", 0).record
    assert alerts.restore(None, 1, held=held).state == held.state
    assert alerts.restore(held, 2, held=held) is Refusal.HANDLED


# ------------------------------------------------------------ its words


def said(troubled=None, recovered=None, terms=TERMS, namespace="default"):
    return compose(Notice(troubled or {}, recovered or {}), terms, second(600), "web1", namespace)


SALES = Trouble(failures=3, since=1767225600_000000, error="ValueError: no such table", updated_at=1767225300_000000)


def test_a_message_says_what_fails_since_when_how_often_and_why_and_what_is_served():
    expected = """\
Task 'sales' has failed 3 times in a row, since 2026-01-01 00:00:00 UTC, for 10 min.
  Last error: ValueError: no such table
  The value of 2025-12-31 23:55:00 UTC is still served; it is 15 min old.

Host web1, namespace default, 2026-01-01 00:10:00 UTC."""
    message = said({"sales": SALES})
    assert message.subject == "Task 'sales' has failed 3 times in a row"
    assert message.text == expected


@pytest.mark.parametrize(
    ("troubled", "recovered", "event", "subject"),
    [
        ({"a": Trouble(failures=1)}, {}, "failed", "Task 'a' has failed"),
        ({"a": Trouble(late=True)}, {}, "stale", "Task 'a' is stale"),
        ({"a": SALES, "b": SALES}, {}, "failed", "2 tasks fail: a, b"),
        ({"a": SALES, "b": Trouble(late=True)}, {}, "failed", "2 tasks fail or are stale: a, b"),
        (dict.fromkeys("abcde", SALES), {}, "failed", "5 tasks fail: a, b, c and 2 more"),
        ({}, {"a": Trouble()}, "recovered", "Task 'a' has recovered"),
        ({}, {"a": Trouble(), "b": Trouble()}, "recovered", "2 tasks have recovered: a, b"),
        ({"a\nBcc: x": SALES}, {}, "failed", "Task 'a Bcc: x' has failed 3 times in a row"),
    ],
)
def test_a_subject_is_one_line_that_names_the_tasks(troubled, recovered, event, subject):
    message = said(troubled, recovered)
    assert (event, subject) == (message.event, message.subject)


def test_a_subject_names_a_namespace_that_is_not_the_usual_one():
    assert said({"a": SALES}, namespace="blue").subject == "Task 'a' has failed 3 times in a row (blue)"


def test_a_long_list_is_cut_in_the_text_and_complete_in_json():
    message = said({f"t{number}": SALES for number in range(50)})
    assert "And 30 more." in message.text
    assert len(message.data["tasks"]) == 50


# ------------------------------------------------------------ bad input


@pytest.fixture
def core():
    with Core() as core:
        yield core


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("ops@example.org", "mailto:ops@example.org"),
        ("mailto:ops", "which is no address"),
        ("mailto:ops@example.org", "ps.config.smtp = "),
        ("ftp://example.org/x", "'ftp' is none of these"),
        ("xml+https://example.org/x", "none of these"),
        ("https:///x", "no host"),
        ("https://example.org:port/x", "wrong port"),
        ("https://example.org/a b", "a space"),
        ("exec:notify", "absolute path"),
        ("exec:/no/such/command", "can be executed"),
        (7, "and not to 7"),
    ],
)
def test_what_cannot_be_sent_to_is_refused_at_once(core, to, words):
    with pytest.raises(RegistrationError) as error:
        core.ps.alert(to)
    assert words in str(error.value)


def test_a_refusal_shows_no_address_that_is_a_secret(core):
    with pytest.raises(RegistrationError) as error:
        core.ps.alert("https://example.org:x/secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"on": "broken"}, RegistrationError, "there is no 'broken'"),
        ({"on": ()}, RegistrationError, "never has anything to say"),
        ({"on": "recovered"}, RegistrationError, "never has anything to say"),
        ({"on": ("alive", "failed")}, RegistrationError, "'alive' alone"),
        ({"after": 0}, RegistrationError, "at least 1"),
        ({"after": True}, RegistrationError, "at least 1"),
        ({"every": "soon"}, TriggerError, "every='soon'"),
        ({"tasks": []}, RegistrationError, "a task or its name"),
        ({"tasks": [3]}, RegistrationError, "a task or its name"),
    ],
)
def test_an_option_that_means_nothing_is_refused_at_once(core, options, error, words):
    with pytest.raises(error) as caught:
        core.ps.alert(print, **options)
    assert words in str(caught.value)


def test_an_async_function_is_refused(core):
    async def tell(message):
        pass

    with pytest.raises(RegistrationError, match="is async"):
        core.ps.alert(tell)


@pytest.mark.parametrize("to", ["mailto:ops@example.org", "slack+https://example.org/x"])
def test_a_ping_is_not_for_people(core, to):
    with pytest.raises(RegistrationError, match="service that misses it"):
        core.ps.alert(to, on="alive")


@pytest.mark.parametrize("url", ["smtp.example.org:587", "http://host", "smtp://", "smtp://host:port", "smtp://host/x"])
def test_a_mail_server_that_means_nothing_is_refused(url):
    with pytest.raises(ConfigError, match=r"ps.config.smtp is no mail server"):
        Config({}).smtp = url


@pytest.mark.parametrize(
    ("to", "form"),
    [
        ("https://hooks.slack.com/services/T/B/x", "slack"),
        ("https://example.webhook.office.com/webhookb2/x", "teams"),
        ("https://prod-1.westeurope.logic.azure.com/workflows/x", "teams"),
        ("https://example.org/x", "json"),
        ("slack+https://mattermost.example.org/hooks/x", "slack"),
        ("json+https://hooks.slack.com/x", "json"),
    ],
)
def test_the_host_says_who_reads_it_unless_the_author_does(to, form):
    assert form == channels.channel_of(to, "", ping=False)._form
