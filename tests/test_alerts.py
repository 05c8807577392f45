"""People are told of tasks that fail: how often, by whom, and never at the cost of a run."""

from __future__ import annotations

import json
import os
import queue
import ssl
import stat
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from core import START, Core, messages, second
from panel_schedule.alerts import channels
from panel_schedule.alerts.messages import compose
from panel_schedule.config import Config
from panel_schedule.coordination import alerts
from panel_schedule.coordination.alerts import COLLECT, PAUSES, Event, Notice, Terms, Trouble
from panel_schedule.coordination.record import Refusal, of_text, text_of
from panel_schedule.decorators import Front
from panel_schedule.errors import ConfigError, RegistrationError, StoreError, TriggerError
from panel_schedule.runtime import Runtime
from panel_schedule.stores import server_records
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.records import Change
from panel_schedule.testing import VirtualClock
from receivers import PATIENCE, MailServer, WebServer
from servers import eventually

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


def test_who_is_well_all_the_time_is_not_written_down():
    history = History().hear("FFF", 0)
    history.take(10)
    history.hear("S", 11, "b")
    assert ["a"] == list(history.record.state.troubles)


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
        ({"a": Trouble(failures=3)}, {}, "failed", "Task 'a' has failed 3 times in a row"),
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


# ------------------------------------------------------------ as it is sent


@pytest.fixture
def web():
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def mail():
    server = MailServer()
    yield server
    server.close()


def sent_by(to, message=None, smtp=""):
    """Send a message."""
    channels.channel_of(to, smtp, ping=False).send(message or said({"sales": SALES}))


def test_a_plain_address_gets_json(web):
    sent_by(web.url())
    request = web.next()
    assert ("POST", "/hook") == (request.method, request.path)
    assert request.body["subject"] == "Task 'sales' has failed 3 times in a row"
    assert request.body["tasks"] == [
        {
            "task": "sales", "kind": "task", "state": "failed", "failures": 3, "stale": False,
            "since": "2026-01-01T00:00:00+00:00",
            "error": "ValueError: no such table", "updated_at": "2025-12-31T23:55:00+00:00", "age": 900.0,
        }
    ]  # fmt: skip
    assert request.body.keys() == {"event", "subject", "text", "at", "host", "namespace", "tasks"}


def test_slack_gets_its_own_form_and_reads_no_markup_in_an_error(web):
    sent_by(f"slack+{web.url()}", said({"sales": SALES._replace(error="ValueError: <!channel> & more")}))
    text = web.next().body["text"]
    assert text.startswith("*Task 'sales' has failed 3 times in a row*")
    assert "&lt;!channel&gt; &amp; more" in text


def test_teams_gets_a_card(web):
    sent_by(f"teams+{web.url()}")
    [attachment] = web.next().body["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert attachment["content"]["body"][0]["text"] == "Task 'sales' has failed 3 times in a row"


@pytest.mark.parametrize("code", [302, 404, 500])
def test_an_answer_that_is_no_yes_is_an_error_without_the_address(web, code):
    web.answers = [code]
    channel = channels.channel_of(web.url("/secret"), "", ping=False)
    with pytest.raises(OSError) as error:  # noqa: PT011
        channel.send(said({"sales": SALES}))
    assert f"the server answered {code}" in channel.explain(error.value)
    assert "secret" not in channel.explain(error.value) + channel.name
    assert len(web.all()) == 1


def test_a_server_that_answers_nothing_is_not_waited_for_long(web, monkeypatch):
    monkeypatch.setattr(channels, "ANSWER", 0.05)
    web.hang()
    with pytest.raises(OSError, match="timed out"):
        sent_by(web.url())


def test_a_mail_has_a_subject_and_plain_text(mail):
    sent_by("mailto:ops@example.org,boss@example.org", smtp=f"smtp://127.0.0.1:{mail.port}?from=dash@example.org")
    received = mail.next()
    assert ("dash@example.org", ["ops@example.org", "boss@example.org"]) == (received.sender, received.to)
    assert received.message["Subject"] == "Task 'sales' has failed 3 times in a row"
    assert "Last error: ValueError: no such table" in received.message.get_content()
    assert received.message.get_content_type() == "text/plain"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """One that nobody else knows, for this host."""
    folder = tmp_path_factory.mktemp("certificate")
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("needs openssl")
    return folder


@pytest.fixture
def secure(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = MailServer(context)
    yield server
    server.close()


def test_a_mail_goes_by_starttls_where_the_server_has_it(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    sent_by("mailto:ops@example.org", smtp=f"smtp://dash%40example.org:p%40ss@127.0.0.1:{secure.port}")
    received = secure.next()
    assert (True, "dash@example.org") == (received.tls, received.sender)
    assert received.login


def test_no_mail_goes_to_a_server_whose_certificate_nobody_knows(secure):
    with pytest.raises(ssl.SSLCertVerificationError):
        sent_by("mailto:ops@example.org", smtp=f"smtp://dash:pass@127.0.0.1:{secure.port}")


def test_a_password_is_not_sent_in_the_clear(mail):
    channel = channels.channel_of("mailto:ops@example.org", f"smtp://dash:hush@127.0.0.1:{mail.port}", ping=False)
    with pytest.raises(OSError, match="STARTTLS") as error:
        channel.send(said({"sales": SALES}))
    assert not [line for line in mail.heard if line.startswith("AUTH")]
    assert "hush" not in channel.explain(error.value) + channel.name


def script(tmp_path, text):
    path = tmp_path / "notify"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_command_reads_the_message_and_sees_nothing_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PANEL_SCHEDULE_SECRET", "hush")
    path = script(tmp_path, 'cat > "$1"; env > "$1.env"')
    sent_by(f"exec:{path} {tmp_path}/told")
    assert json.loads((tmp_path / "told").read_text())["event"] == "failed"
    assert "hush" not in (tmp_path / "told.env").read_text()


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        sent_by(f"exec:{script(tmp_path, 'cat > /dev/null; exit 3')}")


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(channels, "RUN", 0.2)
    os.mkfifo(tmp_path / "pipe")
    # Its end can be read from the pipe: nobody has it open any more.
    path = script(tmp_path, f"exec 3> {tmp_path}/pipe; sleep 60 & sleep 60")
    reader = threading.Thread(target=lambda: (tmp_path / "pipe").read_bytes(), daemon=True)
    reader.start()
    with pytest.raises(subprocess.TimeoutExpired):
        sent_by(f"exec:{path}")
    reader.join(20)
    assert not reader.is_alive()


# ------------------------------------------------------------ from a task to its message


def failing(core, name="sales", outcomes=None):
    """A task that runs each minute and fails, unless `outcomes` says otherwise."""

    def body():
        outcome = outcomes.pop(0) if outcomes else ValueError("no such table")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return core.schedule(period="1m", name=name, first_run="skip")(body)


def subjects(web):
    return [request.body["subject"] for request in web.all()]


def test_a_task_that_fails_three_times_is_told_of_and_so_is_its_recovery(core, web):
    core.ps.alert(web.url())
    outcomes = [1, *[ValueError("no such table")] * 4, 2]
    failing(core, outcomes=outcomes)
    core.begin()
    core.run_for(60 * 4)  # one value, three failures
    assert [] == web.all()
    core.run_for(10)
    [request] = web.all()
    assert request.body["subject"] == "Task 'sales' has failed 3 times in a row"
    assert request.body["tasks"][0]["updated_at"] == second(60).isoformat()
    core.run_for(60)
    assert [] == web.all()
    core.run_for(60)
    assert ["Task 'sales' has recovered"] == subjects(web)


def test_what_goes_on_failing_is_told_of_again_after_the_pause(core, web):
    core.ps.alert(web.url(), after=1, every="30m")
    failing(core)
    core.begin()
    core.run_for(60 + 10)
    assert ["Task 'sales' has failed"] == subjects(web)
    core.run_for(60 * 28)
    assert [] == subjects(web)
    core.run_for(60 * 3)
    assert ["Task 'sales' has failed 31 times in a row"] == subjects(web)


def test_tasks_that_fail_at_one_time_are_one_message(core, web):
    core.ps.alert(web.url(), after=1)
    for name in ("a", "b", "c", "d"):
        failing(core, name)
    core.begin()
    core.run_for(70)
    assert ["4 tasks fail: a, b, c and 1 more"] == subjects(web)


def test_an_alert_of_some_tasks_says_nothing_of_others(core, web):
    core.ps.alert(web.url(), after=1, tasks=[failing(core, "a"), "b"])
    for name in ("b", "c"):
        failing(core, name)
    core.begin()
    core.run_for(70)
    assert ["2 tasks fail: a, b"] == subjects(web)


def on_request(core, *outcomes):
    """A background and a memoized function of one name, which do the same."""

    def body(left):
        if isinstance(outcome := left.pop(0), Exception):
            raise outcome
        return outcome

    job = core.ps.background(executor="thread", name="sales")(partial(body, [*outcomes]))
    memo = core.ps.memoize(name="sales", executor="thread")(partial(body, [*outcomes]))
    return job.submit, memo.refresh


def test_functions_that_are_called_on_request_are_told_of_by_their_kind(core, web):
    """Of all that have the name; a task of that name, which is well, is none of them."""
    core.ps.alert(web.url(), after=2, tasks="sales")
    no = ValueError("no such row")
    submit, refresh = on_request(core, no, no, 1)
    core.schedule(period="1m", name="sales")(lambda: 1)
    core.begin()
    for _ in range(2):
        submit(), refresh()
        core.go()
        core.advance(10)
    core.run_for(0)
    [request] = web.all()
    assert request.body["subject"] == "2 functions fail: sales, sales"
    assert [("sales", "job", 2), ("sales", "memo", 2)] == sorted(
        (each["task"], each["kind"], each["failures"]) for each in request.body["tasks"]
    )
    assert """Background function 'sales' has failed 2 times in a row, since 2026-01-01 00:00:00 UTC, for 20 s.
  Last error: ValueError: no such row

Memoized""" in request.body["text"]
    submit(), refresh()
    core.go()
    core.run_for(10)
    assert ["2 functions have recovered: sales, sales"] == subjects(web)


def test_a_run_that_is_cancelled_is_neither_a_failure_nor_a_recovery(core, web):
    core.ps.alert(web.url(), after=2)
    submit, _ = on_request(core, ValueError("no"), ValueError("no"))
    core.begin()
    submit()
    core.go()
    submit().cancel()
    core.go()
    submit()
    core.go()
    core.run_for(10)
    assert ["Background function 'sales' has failed 2 times in a row"] == subjects(web)


def test_an_alert_that_was_taken_away_says_nothing(core, web):
    no_more = core.ps.alert(web.url(), after=1)
    failing(core)
    core.begin()
    core.run_for(61)
    no_more()
    core.run_for(600)
    assert [] == web.all()


def test_the_same_alert_again_takes_the_place_of_the_former_one(core):
    """A setup script is executed again under --dev."""

    def make(told):
        def tell(message):
            told.append(message["subject"])

        return tell

    former, new = list[str](), list[str]()
    core.begin()
    core.ps.alert(make(former), after=1)
    failing(core)
    core.ps.alert(make(new), after=2)
    core.run_for(60 * 3)
    assert ([], ["Task 'sales' has failed 2 times in a row"]) == (former, new)


def test_an_alert_that_comes_after_the_start_works_too(core, web):
    failing(core)
    core.begin()
    core.ps.alert(web.url(), after=1)
    core.run_for(70)
    assert ["Task 'sales' has failed"] == subjects(web)


def test_a_task_whose_run_hangs_is_stale(core, web):
    """Two slots came without a value, and no run has failed."""
    core.ps.alert(web.url())
    held = core.held("sales")
    core.schedule(period="1m", first_run="background")(held)
    core.begin()
    held.finish(1)
    core.run_for(60 * 4)
    assert ["Task 'sales' is stale"] == subjects(web)
    held.finish(2)
    core.run_for(10)
    assert ["Task 'sales' has recovered"] == subjects(web)


def test_a_task_that_fails_once_and_then_hangs_is_stale(core, web):
    core.ps.alert(web.url())
    held = core.held("sales")
    core.schedule(period="1m", first_run="background")(held)
    core.begin()
    held.finish(1)
    core.run_for(60)
    held.finish(ValueError("no such table"))
    core.run_for(60 * 4)
    [request] = web.all()
    assert request.body["subject"] == "Task 'sales' is stale"
    assert "has failed and is stale" in request.body["text"]
    assert "Last error: ValueError: no such table" in request.body["text"]


def test_one_failure_of_three_is_no_staleness_to_tell_of(core, web):
    """By `ps.on` a value is stale from the first failure on, and with it all that is made of it."""
    core.ps.alert(web.url())
    outcomes = [1, ValueError("no such table"), 2, 3, 4]
    source = failing(core, outcomes=outcomes)
    core.schedule(after=source, name="product")(lambda: source())
    core.begin()
    core.run_for(60 * 4 + 30)
    assert [] == web.all()


def test_a_success_is_a_recovery_while_what_the_value_is_made_of_is_stale(core, web):
    """There is no `recovered` of `ps.on` then."""
    source = failing(core, "source", outcomes=[1])
    core.ps.alert(web.url(), after=1, tasks="product")
    outcomes = [1, ValueError("no such table"), 2, 3, 4]

    @core.schedule(period="1m", name="product", first_run="skip", needs=source)
    def product():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    core.run_for(60 * 4 + 10)
    assert ["Task 'product' has failed", "Task 'product' has recovered"] == subjects(web)
    assert product.status.stale


def test_a_value_that_is_older_than_its_author_allows_is_stale(core, web):
    core.ps.alert(web.url(), on="stale")
    core.schedule(period="1h", name="sales", first_run="background", stale_after="10m")(lambda: 1)
    core.begin()
    core.run_for(60 * 11 + 10)
    assert ["Task 'sales' is stale"] == subjects(web)


def test_a_task_that_is_paused_is_not_late(core, web):
    core.ps.alert(web.url(), on="stale")
    task = core.schedule(period="1m", name="sales", first_run="background", stale_after="10m")(lambda: 1)
    core.begin()
    task.pause()
    core.run_for(60 * 15)
    assert [] == web.all()


def test_a_message_that_is_refused_is_sent_again(core, web, caplog):
    web.answers = [500, 500]
    core.ps.alert(web.url("/secret"), after=1)
    failing(core)
    core.begin()
    core.run_for(60 + COLLECTED + 1)
    assert len(web.all()) == 1
    core.run_for(PAUSES[0].total_seconds())
    assert len(web.all()) == 1
    core.run_for(PAUSES[1].total_seconds())
    assert len(web.all()) == 1
    core.run_for(300)
    assert [] == web.all()
    told = [message for message in messages(caplog) if message.startswith("The alert to")]
    assert len(told) == 2
    assert told[0].endswith("was not sent, it is tried again: the server answered 500 Internal Server Error")
    assert "secret" not in caplog.text


def test_a_function_is_called_with_the_message(core):
    told = []
    core.ps.alert(told.append, after=1)
    failing(core)
    core.begin()
    core.run_for(70)
    assert ["Task 'sales' has failed"] == [message["subject"] for message in told]


def test_what_a_function_raises_is_logged_and_costs_no_run(core, caplog):
    def tell(message):
        raise SystemExit("no")

    core.ps.alert(tell, after=1)
    task = failing(core)
    core.begin()
    core.run_for(180)
    assert [message for message in messages(caplog) if "was not sent, it is tried again: SystemExit: no" in message]
    assert len(task.history) == 3


def test_a_ping_is_sent_as_long_as_nothing_is_stale(core, web):
    core.ps.alert(web.url("/ping"), on="alive", every="5m")
    outcomes = [1] * 12 + [ValueError("no such table")] * 12 + [2] * 30
    failing(core, outcomes=outcomes)
    core.begin()
    assert ("GET", "/ping", None) == web.next()
    core.run_for(60 * 12)
    assert len(web.all()) == 2
    core.run_for(60 * 12)
    assert len(web.all()) == 0
    core.run_for(61)  # it is well again
    assert len(web.all()) == 1


def test_a_ping_says_nothing_of_tasks_that_it_does_not_watch(core, web):
    failing(core, "b")
    core.ps.alert(web.url(), on="alive", every="5m", tasks=failing(core, "a", outcomes=[1] * 100))
    core.begin()
    core.run_for(60 * 12)
    assert len(web.all()) == 3


# ------------------------------------------------------------ several processes, and a restart


class Processes:
    """Processes that share a directory; all live in this one."""

    def __init__(self, folder, to):
        self.folder = folder
        self.to = to
        self.clock = VirtualClock(START)
        self.cores = []

    def join(self, server="server", **options):
        store = FileStore(self.folder, self.clock, server=server, persistent=True)
        core = Core(self.clock, store)
        core.service.outbox.drain = lambda timeout: core.go()
        core.ps.alert(self.to, **{"after": 2, **options})
        self.cores.append(core)
        return core

    def begin(self):
        for core in self.cores:
            core.begin()
        self.settle()

    def settle(self):
        while sum(core.go() + core.hear() for core in self.cores):
            pass

    def run_for(self, seconds):
        for _ in range(int(seconds)):
            self.clock.advance(1)
            for core in self.cores:
                core.service.tick()
            self.settle()

    def stop(self, core):
        core.service.stop(0)
        self.cores.remove(core)


@pytest.fixture
def processes(tmp_path, web):
    processes = Processes(tmp_path / "store", web.url())
    yield processes
    for core in list(processes.cores):
        core.__exit__()


def test_failures_in_a_row_are_counted_in_all_processes_and_one_of_them_tells(processes, web):
    """Each process has one of the two failing runs."""
    cores = [processes.join() for _ in range(4)]
    tasks = [failing(core) for core in cores]
    processes.begin()
    for at in (0, 1):
        tasks[at].refresh()
        processes.settle()
    processes.run_for(COLLECTED + 2)
    assert ["Task 'sales' has failed 2 times in a row"] == subjects(web)


def test_one_of_all_processes_sends_the_ping(processes, web):
    for _ in range(3):
        failing(processes.join(on="alive", every="30s"), outcomes=[1] * 9)
    processes.begin()
    processes.run_for(31)
    assert len(web.all()) == 2


def test_failures_of_a_background_function_are_counted_in_all_processes_and_one_of_them_tells(processes, web):
    cores = [processes.join() for _ in range(3)]
    submits = [on_request(core, ValueError("no"))[0] for core in cores]
    processes.begin()
    for at in (0, 1):
        submits[at]()
        processes.settle()
    processes.run_for(COLLECTED + 2)
    assert ["Background function 'sales' has failed 2 times in a row"] == subjects(web)


def test_a_restart_forgets_nothing(processes, web):
    first = processes.join()
    task = failing(first)
    processes.begin()
    task.refresh()
    processes.settle()
    processes.stop(first)
    task = failing(processes.join(server="another"), outcomes=[ValueError("no such table"), 2])
    processes.begin()
    task.refresh()
    processes.settle()
    processes.run_for(COLLECTED + 2)
    assert ["Task 'sales' has failed 2 times in a row"] == subjects(web)


def test_what_was_told_before_a_restart_is_not_told_again_but_its_recovery_is(processes, web):
    first = processes.join()
    task = failing(first)
    processes.begin()
    for _ in range(2):
        task.refresh()
        processes.settle()
    processes.run_for(COLLECTED + 2)
    assert len(web.all()) == 1
    processes.stop(first)
    failing(processes.join(server="another"), outcomes=[ValueError("no such table"), 2])
    processes.begin()
    processes.run_for(180)
    assert ["Task 'sales' has recovered"] == subjects(web)


def test_a_message_of_a_process_that_died_is_sent_by_another_one(processes, web):
    dying, other = processes.join(), processes.join()
    for core in (dying, other):
        task = failing(core)
    processes.begin()
    for _ in range(2):
        task.refresh()
        processes.settle()
    # It takes the message upon itself, and is gone before it has sent it.
    processes.cores.remove(dying)
    processes.clock.advance(10)
    records, [[name, policy]] = dying.store.records, dying.runtime.alerts.items()
    take = partial(
        alerts.take, name=name, me=records.me, alive=records.alive, terms=policy.terms, known=frozenset({"sales"}),
        now=processes.clock.now(),
    )  # fmt: skip
    [result] = records.write([Change(alerts.SPACE, name, take)])
    assert result.refusal is None
    processes.run_for(20)
    assert [] == web.all()
    records.close()
    processes.run_for(20)
    assert ["Task 'sales' has failed 2 times in a row"] == subjects(web)
    dying.__exit__()


def test_a_message_that_was_due_as_a_server_went_is_sent_by_the_next_one(processes, web):
    """It has nothing more to hear for that."""
    first = processes.join()
    task = failing(first)
    processes.begin()
    for _ in range(2):
        task.refresh()
        processes.settle()
    processes.stop(first)
    processes.clock.advance(3600 * 2)
    core = processes.join(server="another")
    core.schedule(period="30d", name="sales", first_run="skip")(lambda: 1)
    processes.begin()
    assert ["Task 'sales' has failed 2 times in a row"] == subjects(web)


def test_what_was_heard_last_is_written_down_as_a_process_stops(processes, web):
    first = processes.join(after=1)
    task = failing(first)
    processes.begin()
    executor = first.service.executors["alert"]
    executor.go = lambda: False  # its threads do not come to it any more
    task.refresh()
    processes.settle()
    processes.stop(first)
    failing(processes.join(server="another", after=1))
    processes.begin()
    processes.run_for(COLLECTED + 1)
    assert ["Task 'sales' has failed"] == subjects(web)


def test_what_happens_while_the_store_is_away_is_told_when_it_is_back(processes, web, caplog, monkeypatch):
    core = processes.join(after=1)
    task = failing(core)
    processes.begin()
    records, write = core.store.records, core.store.records.write

    def refuse(changes, **options):
        if changes[0].space == alerts.SPACE:
            raise StoreError("The disk is full.")
        return write(changes, **options)

    monkeypatch.setattr(records, "write", refuse)
    task.refresh()
    processes.run_for(30)
    assert [] == web.all()
    waiting = [message for message in messages(caplog) if "waits for the store: The disk is full." in message]
    assert len(waiting) == 1
    monkeypatch.undo()
    processes.run_for(20)
    assert ["Task 'sales' has failed"] == subjects(web)


# ------------------------------------------------------------ with threads, and real servers


@pytest.fixture
def runtime(monkeypatch):
    """Of a script: its threads are real, and so is its clock."""
    monkeypatch.setattr(alerts, "COLLECT", timedelta(0))
    config = Config({})
    config.grace_period = 0.1
    runtime = Runtime(config)
    yield runtime
    runtime.close()


def fail(task):
    with pytest.raises(ValueError, match="no such table"):
        task.refresh().result(PATIENCE)


def test_an_endpoint_that_hangs_hurts_no_run(runtime, web):
    """Nor another alert, nor a stop."""
    web.hang()
    front, told = Front(runtime), threading.Event()
    front.alert(web.url(), after=1)
    front.alert(lambda message: told.set(), after=1)

    @front.schedule(period="30d", first_run="skip")
    def sales():
        raise ValueError("no such table")

    @front.schedule(period="30d", first_run="skip")
    def prices():
        return 1

    fail(sales)
    web.next()
    assert told.wait(PATIENCE)
    fail(sales)
    assert prices.refresh().result(PATIENCE) == 1
    began = time.monotonic()
    runtime.close()
    assert time.monotonic() - began < channels.ANSWER / 2


def test_a_script_leaves_it_to_a_server_that_shares_its_store(processes, web, monkeypatch):
    monkeypatch.setattr(alerts, "COLLECT", timedelta(0))
    config = Config({})
    config.store = f"file://{processes.folder}"
    script = Runtime(config)
    front = Front(script)
    front.alert(web.url(), after=2)

    @front.schedule(period="30d", first_run="skip")
    def sales():
        raise ValueError("no such table")

    for _ in range(2):
        fail(sales)
    eventually(lambda: [record for record in script.service.store.records.scan(alerts.SPACE) if noted(record) == 2])
    script.close()
    assert [] == web.all()
    failing(processes.join())
    processes.clock.step(datetime.now(UTC).timestamp() - START.timestamp())
    processes.begin()
    assert ["Task 'sales' has failed 2 times in a row"] == subjects(web)


def noted(record):
    return alerts.troubles_of(record.state)["sales"].failures


TASKS = """
import sys
from datetime import timedelta
import panel_schedule as ps
from panel_schedule.coordination import alerts

alerts.COLLECT = timedelta(seconds=1.5)
ps.alert("{url}", after=2, on=("failed", "recovered"))

@ps.schedule(period="500ms", first_run="background")
def sales():
    raise ValueError("no such table")

@ps.schedule(period="500ms", first_run="background")
def prices():
    raise ValueError("no such column")
"""


@pytest.mark.slow
def test_a_server_of_two_processes_sends_one_message(serve, web):
    """Of two tasks, whose runs both processes make."""
    app = "import panel as pn\npn.Row('ok').servable()\n"
    serve("app.py --setup tasks.py --num-procs 2", {"app.py": app, "tasks.py": TASKS.format(url=web.url())})
    request = web.next()
    assert {"ValueError: no such table", "ValueError: no such column"} == {
        task["error"] for task in request.body["tasks"]
    }
    with pytest.raises(queue.Empty):
        web.requests.get(timeout=0.5)


@pytest.mark.slow
def test_a_store_that_has_lost_all_gets_the_alert_back(another_redis, monkeypatch):
    monkeypatch.setattr(server_records, "LOOK", 0.05)
    monkeypatch.setattr(server_records, "AGAIN", 0.05)
    redis = another_redis()
    config = Config({})
    config.store = redis.url
    runtime = Runtime(config)
    front = Front(runtime)
    front.alert(print, after=5)

    @front.schedule(period="30d", first_run="skip")
    def sales():
        raise ValueError("no such table")

    def kept():
        return [noted(record) for record in runtime.service.store.records.scan(alerts.SPACE)]

    try:
        for _ in range(2):
            fail(sales)
        eventually(lambda: kept() == [2])
        redis.client.flushall()
        eventually(lambda: kept() == [2])
        fail(sales)
        eventually(lambda: kept() == [3])
    finally:
        runtime.close()
