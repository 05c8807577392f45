"""What a function has raised, for other processes: also those that do not know its class."""

from __future__ import annotations

from contextlib import suppress

from .codec import decode, encode
from .errors import RunFailed, ValueRefused
from .run import RemoteTraceback, first_line, traceback_text


def packed(error: BaseException, text: str = "") -> tuple[str, str, bytes]:
    """First line, traceback (`text`, where it is known already) and, if it can be pickled, the error itself."""
    data = b""
    with suppress(ValueRefused):
        data = encode(error, "").tobytes()
    return first_line(error), text or traceback_text(error), data


def unpacked(kept: tuple[str, str, bytes], what: str) -> BaseException:
    """The error again, with its type and notes, caused by its `RemoteTraceback`; or what can be had of it."""
    line, text, data = kept
    error: BaseException = RunFailed(f"{what} failed in another process: {line}. (The error itself cannot be read.)")
    with suppress(Exception):  # whatever its class does
        found = decode(bytearray(data))
        error = found if isinstance(found, BaseException) else error
    if text:
        error.__cause__ = RemoteTraceback(text)
    return error
