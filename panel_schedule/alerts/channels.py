"""How a message is sent: by mail, to a web address, to a command, to a function."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import smtplib
import socket
import ssl
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import RegistrationError
from ..functions.calls import is_async
from ..serialize.errors import first_line
from ..session import leave_session
from .messages import Message

log = logging.getLogger("panel_schedule")

# Seconds that a server has for each of its answers, and a command to end.
ANSWER, RUN = 10.0, 30.0

SLACK = ("hooks.slack.com",)
TEAMS = (".webhook.office.com", ".logic.azure.com", ".api.powerplatform.com")

ACCEPTED = (
    "'mailto:ops@example.org', 'https://hooks.slack.com/...' and any other web address, with 'slack+', 'teams+' or "
    "'json+' before it where that is not seen from its host, 'exec:/path/of/a/command', or a function of one argument"
)


class Channel(ABC):
    """
    One way to reach somebody.

    Attributes
    ----------
    name : str
        As logs and errors have it, without what is secret of it.
    key : str
        What tells it from others, in all processes.
    """

    name: str
    key: str

    @abstractmethod
    def send(self, message: Message) -> None:
        """
        Send it, and return when it has been accepted. Called in a thread that may wait.

        Raises
        ------
        Exception
            When it was not accepted.
        """

    def explain(self, error: BaseException) -> str:
        """Why it was not sent, in one line without secrets."""
        return first_line(error)


# ------------------------------------------------------------ mail


class Mail(Channel):
    """
    To addresses, by an SMTP server.

    Parameters
    ----------
    addresses : list of str
    server : str
        ``ps.config.smtp``.
    """

    def __init__(self, addresses: list[str], server: str):
        parts = urlsplit(server)
        self._addresses = addresses
        self._tls = parts.scheme == "smtps"
        self._host = parts.hostname or ""
        self._port = parts.port or (465 if self._tls else 587)
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        mine = self._user if "@" in self._user else f"panel-schedule@{socket.gethostname()}"
        self._sender = parse_qs(parts.query).get("from", [mine])[0]
        self.name = f"mailto:{','.join(addresses)}"
        self.key = self.name

    def send(self, message: Message) -> None:
        mail = EmailMessage()
        mail["Subject"] = message.subject
        mail["From"], mail["To"] = self._sender, ", ".join(self._addresses)
        mail["Date"], mail["Message-ID"] = formatdate(), make_msgid(domain="panel-schedule")
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.text)
        with self._connected() as server:
            if self._user:
                server.login(self._user, self._password)
            if refused := server.send_message(mail):  # to send it again would reach the others twice
                log.error("The alert to %s does not reach %s: the server refuses that.", self.name, ", ".join(refused))

    def _connected(self) -> smtplib.SMTP:
        # Not the full name of this host: to find that out may take long.
        me = socket.gethostname()
        if self._tls:
            return smtplib.SMTP_SSL(self._host, self._port, me, timeout=ANSWER, context=ssl.create_default_context())
        server = smtplib.SMTP(self._host, self._port, me, timeout=ANSWER)
        try:
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=ssl.create_default_context())
                server.ehlo()
            elif self._user:
                raise smtplib.SMTPException(
                    f"the server {self._host}:{self._port} offers no STARTTLS, and the password is not sent without: "
                    "use 'smtps://' or leave user and password out"
                )
        except BaseException:
            server.close()
            raise
        return server

    def explain(self, error: BaseException) -> str:
        text = first_line(error)
        return text.replace(self._password, "...") if self._password else text


# ------------------------------------------------------------ the web


class _NoRedirect(HTTPRedirectHandler):
    """A message that is sent on becomes a question without a message."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Web(Channel):
    """
    To a web address.

    Parameters
    ----------
    url : str
    form : {"json", "slack", "teams"}
    """

    def __init__(self, url: str, form: str):
        self._url = url
        self._form = form
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        # Who knows the path may write there.
        self.name = f"{parts.scheme}://{host}/..." if parts.path.strip("/") else f"{parts.scheme}://{host}"
        self.key = f"{form}+{url}"

    def send(self, message: Message) -> None:
        request = Request(self._url, headers={"User-Agent": "panel-schedule"})
        if message.event != "alive":
            request.data = json.dumps(_FORMS[self._form](message)).encode()
            request.add_header("Content-Type", "application/json")
        with build_opener(_NoRedirect).open(request, timeout=ANSWER):
            pass

    def explain(self, error: BaseException) -> str:
        if isinstance(error, HTTPError):
            error.close()
            remedy = ": give the address that it leads to" if 300 <= error.code < 400 else ""
            return f"the server answered {error.code} {error.reason}{remedy}"
        text = first_line(error)
        parts = urlsplit(self._url)
        for secret in (self._url, parts.path.strip("/"), parts.query, parts.password):
            text = text.replace(secret, "...") if secret else text
        return text


def _slack(message: Message) -> dict[str, Any]:
    blocks = [f"*{_escaped(message.subject)}*"]
    for head, lines in message.paragraphs:
        blocks.append("\n".join([f"• {_escaped(head)}", *(f"> {_escaped(line)}" for line in lines)]))
    return {"text": "\n".join([*blocks, f"_{_escaped(message.footer)}_"])}


def _escaped(text: str) -> str:
    """As Slack wants it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(message: Message) -> dict[str, Any]:
    """An adaptive card, which webhooks of channels and of workflows both take."""
    body: list[dict[str, Any]] = [_block(message.subject, weight="Bolder", size="Medium")]
    for head, lines in message.paragraphs:
        body += [_block(head), *(_block(line, isSubtle=True, spacing="None") for line in lines)]
    body.append(_block(message.footer, isSubtle=True, size="Small"))
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": body,
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _block(text: str, **how: Any) -> dict[str, Any]:
    return {"type": "TextBlock", "text": text, "wrap": True, **how}


_FORMS: dict[str, Callable[[Message], dict[str, Any]]] = {
    "json": lambda message: message.data,
    "slack": _slack,
    "teams": _teams,
}


# ------------------------------------------------------------ what runs on this machine


class Command(Channel):
    """
    To a command, which gets the message as JSON on its standard input, and of the environment only what is harmless.

    Parameters
    ----------
    arguments : list of str
        The command's absolute path first.
    """

    def __init__(self, arguments: list[str]):
        self._arguments = arguments
        self.name = f"exec:{arguments[0]}"
        self.key = f"exec:{shlex.join(arguments)}"

    def send(self, message: Message) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
        process = subprocess.Popen(
            self._arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/", env=kept, start_new_session=True
        )
        try:
            process.communicate(json.dumps(message.data).encode(), timeout=RUN)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with its children
            process.wait()
            raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, self._arguments[0])


class Function(Channel):
    """To a function, which gets the message as a dict."""

    def __init__(self, function: Callable[[dict[str, Any]], object]):
        self._function = function
        self.name = getattr(function, "__qualname__", None) or repr(function)
        self.key = f"function:{getattr(function, '__module__', '')}.{self.name}"

    def send(self, message: Message) -> None:
        leave_session(f"The function {self.name} of ps.alert")
        self._function(message.data)


# ------------------------------------------------------------ which one is meant


def channel_of(to: Any, smtp: str, ping: bool) -> Channel:
    """
    The channel that an author means.

    Parameters
    ----------
    to : str or callable
    smtp : str
        ``ps.config.smtp``.
    ping : bool
        Whether it is for a dead man's ping.

    Raises
    ------
    RegistrationError
        When it means nothing, or is for people and not for pings.
    """
    if callable(to):
        return _function(to)
    if not isinstance(to, str):
        raise RegistrationError(f"ps.alert sends to {ACCEPTED}, and not to {to!r}.")
    scheme, _, rest = to.partition(":")
    form, plus, inner = scheme.rpartition("+")
    if scheme == "exec":
        return _command(rest)
    if scheme == "mailto" and not ping:
        return _mail(to, rest, smtp)
    if inner in ("http", "https") and (form in _FORMS or not plus):
        return _web(f"{inner}:{rest}", form, ping)
    if scheme == "mailto":
        raise RegistrationError(
            "ps.alert(on='alive') sends a ping every few minutes, which nobody wants as mail: give it the address of a "
            "service that misses it, as 'https://hc-ping.com/...'."
        )
    raise RegistrationError(f"ps.alert sends to {ACCEPTED}, and {scheme!r} is none of these.")


def _function(to: Any) -> Channel:
    if is_async(to):
        raise RegistrationError(f"ps.alert sends to a plain function, which runs in a thread, and {to!r} is async.")
    return Function(to)


def _mail(to: str, rest: str, smtp: str) -> Channel:
    addresses = [unquote(address).strip() for address in rest.split(",")]
    if not all("@" in address.strip("@") and not set(address) & set(" \t\r\n<>?;") for address in addresses):
        raise RegistrationError(f"ps.alert sends mail to {to!r}, which is no address such as 'mailto:ops@example.org'.")
    if not smtp:
        raise RegistrationError(
            f"ps.alert sends mail to {to!r}, and no server is known for it. Set ps.config.smtp = "
            "'smtp://user:password@host:587' above."
        )
    return Mail(addresses, smtp)


def _web(url: str, form: str, ping: bool) -> Channel:
    try:
        host = urlsplit(url).hostname or ""
        urlsplit(url).port  # noqa: B018
    except ValueError:
        host = ""
    if not host or not url.isascii() or any(each.isspace() or not each.isprintable() for each in url):
        raise RegistrationError("ps.alert sends to a web address that has no host, a wrong port, or a space in it.")
    if not form:
        form = "slack" if host in SLACK else "teams" if host.endswith(TEAMS) else "json"
    if ping and form != "json":
        raise RegistrationError(
            f"ps.alert(on='alive') sends a ping every few minutes, which nobody wants in {form.capitalize()}: give it "
            "the address of a service that misses it, as 'https://hc-ping.com/...'."
        )
    return Web(url, form)


def _command(text: str) -> Channel:
    try:
        arguments = shlex.split(text)
    except ValueError:
        arguments = []
    if not arguments or not os.path.isabs(arguments[0]):
        raise RegistrationError(
            f"ps.alert sends to the command {text!r}; a command is named by its absolute path: 'exec:/usr/bin/notify'."
        )
    if not (os.path.isfile(arguments[0]) and os.access(arguments[0], os.X_OK)):
        raise RegistrationError(
            f"ps.alert sends to the command {arguments[0]!r}, which is no file that can be executed."
        )
    return Command(arguments)
