"""What the server and its worker processes say to each other: values over a socket, large ones as descriptors."""

from __future__ import annotations

import os
import socket
import struct

from ..serialize.codec import Arrived, ByValue, Encoded, Inline, Mapped, Received, encode
from ..serialize.errors import packed, unpacked

# Executors and stores do not know each other: what both need of a value as bytes, executors find here.
__all__ = [
    "Arrived", "ByValue", "Encoded", "Gone", "Inline", "Mapped", "Received", "Value", "Wire", "decode_error", "encode",
    "encode_error",
]  # fmt: skip

# What comes in.
Value = Inline | Mapped | Arrived

# From this size on, in bytes, a value goes as a descriptor of memory that both sides map.
LARGE = 64 * 1024

# What a message is, whether a descriptor comes along, how many bytes follow.
_HEAD = struct.Struct("<cBI")

# From the server: a greeting, what to run and as what, and an answer.
HELLO, RUN, BODY, ANSWER, REFUSAL = b"h", b"r", b"b", b"a", b"e"
# From a worker: it is there; a partial, a question and a module it cannot find, which wait for their answer; progress;
# what it logs; how the body ended.
READY, PARTIAL, QUESTION, MODULE, PROGRESS, LOG = b"R", b"P", b"Q", b"M", b"G", b"L"
RETURNED, PUBLISHED, RAISED = b"V", b"S", b"E"
ASKING, ENDS = (PARTIAL, QUESTION, MODULE), (RETURNED, PUBLISHED, RAISED)


class Gone(Exception):
    """There is no other end any more."""


class Wire:
    """
    One end of a socket pair.

    Its methods raise `Gone`, and OSError when there is no room for a large value, or no descriptor.
    """

    def __init__(self, sock: socket.socket):
        self._socket = sock
        self.close = sock.close
        self.fileno = sock.fileno

    def send(self, kind: bytes, value: Encoded | None = None) -> None:
        mapped = None if value is None or value.size < LARGE else Mapped.anonymous(value)
        data = b"" if value is None or mapped else value.tobytes()
        head = _HEAD.pack(kind, mapped is not None, len(data))
        try:
            if mapped is None:
                self._socket.sendall(head + data)
            else:
                # Fewer bytes than a socket takes in parts.
                socket.send_fds(self._socket, [head], [mapped.fileno()])
        except ConnectionError as error:
            raise Gone from error

    def receive(self) -> tuple[bytes, Inline | Mapped]:
        """Wait for a message: its kind, and its value to be loaded."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _HEAD.size, 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except ConnectionError as error:
            raise Gone from error
        for fd in fds:
            os.set_inheritable(fd, False)
        kind, mapped, size = _HEAD.unpack(data + self._exactly(_HEAD.size - len(data)))
        if mapped and not fds:
            raise OSError("A large value did not arrive: this process has too many files open.")
        return kind, Mapped(fds[0]) if mapped else Inline(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._socket.recv(size - len(data))
            except ConnectionError as error:
                raise Gone from error
            if not part:
                raise Gone
            data += part
        return data

    def quiet(self) -> bool:
        """Whether the other end is there and says nothing."""
        try:
            self._socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False


def encode_error(error: BaseException, name: str) -> Encoded:
    """An error with its traceback; `decode_error` makes it again, or what can be had of it."""
    return encode(packed(error), name)


def decode_error(value: Value, name: str) -> BaseException:
    """The error with its type, notes and, as its cause, the traceback in the other process."""
    return unpacked(value.load(), name)
