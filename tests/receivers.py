"""What receives the messages of alerts in tests: an SMTP server and a web server, on sockets of their own."""

from __future__ import annotations

import json
import queue
import socket
import socketserver
import ssl
import threading
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

# What a test waits at most for what is on its way.
PATIENCE = 20.0


class Request(NamedTuple):
    """What a web server was asked."""

    method: str
    path: str
    body: Any


class WebServer:
    """
    A server that keeps what it is asked, in `requests`, and gives the next answer of `answers`, or 200.

    A server that `hangs` answers nothing before `release`.
    """

    def __init__(self) -> None:
        self.requests: queue.Queue[Request] = queue.Queue()
        self.answers: list[int] = []
        self._free = threading.Event()
        self._free.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner.requests.put(Request(self.command, self.path, json.loads(body) if body else None))
                owner._free.wait(PATIENCE)
                code = owner.answers.pop(0) if owner.answers else 200
                self.send_response(code)
                if 300 <= code < 400:
                    self.send_header("Location", f"http://127.0.0.1:{owner.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def hang(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def next(self) -> Request:
        """The oldest one that was not looked at; waits for it."""
        return self.requests.get(timeout=PATIENCE)

    def all(self) -> list[Request]:
        """Those that have come and were not looked at."""
        return [self.requests.get() for _ in range(self.requests.qsize())]

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()


class Mail(NamedTuple):
    """What an SMTP server was given."""

    sender: str
    to: list[str]
    message: EmailMessage
    login: str
    tls: bool


class MailServer:
    """
    An SMTP server.

    Parameters
    ----------
    context : ssl.SSLContext, optional
        With it there is STARTTLS.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.mails: queue.Queue[Mail] = queue.Queue()
        self.refuse = ""
        # All that clients have said.
        self.heard: list[str] = []
        owner = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                owner._serve(self.request, context)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def next(self) -> Mail:
        return self.mails.get(timeout=PATIENCE)

    def _serve(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        sender, to, login, tls = "", list[str](), "", False
        file = connection.makefile("rwb")

        def say(*lines: str) -> None:
            file.write("".join(f"{line}\r\n" for line in lines).encode())
            file.flush()

        say("220 test")
        while line := file.readline():
            text = line.decode().strip()
            self.heard.append(text)
            match text.split()[0].upper():
                case "EHLO":
                    offers = ["AUTH PLAIN"] if tls or context is None else ["STARTTLS"]
                    say("250-test", f"250 {offers[0]}")
                case "STARTTLS":
                    assert context is not None
                    say("220 go on")
                    try:
                        connection = context.wrap_socket(connection, server_side=True)
                    except ssl.SSLError:  # the client goes
                        return
                    file, tls = connection.makefile("rwb"), True
                case "AUTH":
                    login = text.split()[2]
                    say("235 welcome")
                case "MAIL" if self.refuse:
                    say(f"550 {self.refuse}")
                case "MAIL":
                    sender = text.partition("<")[2].partition(">")[0]
                    say("250 ok")
                case "RCPT":
                    to.append(text.partition("<")[2].partition(">")[0])
                    say("250 ok")
                case "DATA":
                    say("354 go on")
                    data = b""
                    while (line := file.readline()) != b".\r\n":
                        data += line
                    message = message_from_bytes(data, policy=policy.default)
                    assert isinstance(message, EmailMessage)
                    self.mails.put(Mail(sender, to, message, login, tls))
                    say("250 ok")
                case "QUIT":
                    say("221 bye")
                    return
                case _:
                    say("250 ok")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
