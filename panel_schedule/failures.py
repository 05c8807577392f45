"""What a function has raised, for other processes: also those that do not know its class."""

from __future__ import annotations

from contextlib import suppress

from .codec import decode, encode
from .errors import RunFailed
from .tracebacks import RemoteTraceback, another, first_line, traceback_text

# Characters that are kept of the beginning and of the end each: of a traceback, and of a text in an error that is kept
# for others. Bytes of such an error.
LONGEST_HALF, LONGEST_TEXT, LARGEST = 8_000, 1_000, 16_000


def packed(error: BaseException, text: str = "") -> tuple[str, str, bytes]:
    """First line, traceback (`text`, where it is known already) and, if it can be pickled, the error itself."""
    data = b""
    with suppress(Exception):  # whatever its class does
        data = encode(error, "").tobytes()
    return first_line(error), _cut(text or traceback_text(error), LONGEST_HALF), data


def shortened(error: BaseException) -> BaseException:
    """The same error, bare, with its long texts cut: to be kept for others, who may make many of them."""
    fresh = another(error)
    fresh.args = tuple(_cut(each, LONGEST_TEXT) if isinstance(each, str) else each for each in fresh.args)
    return fresh


def packed_short(error: BaseException) -> tuple[str, str, bytes]:
    """The same as `packed` of a shortened one; of one that is still large the texts alone."""
    line, text, data = packed(shortened(error))
    return line, text, data if len(data) <= LARGEST else b""


def _cut(text: str, half: int) -> str:
    return text if len(text) <= 2 * half else f"{text[:half]} [...] {text[-half:]}"


def unpacked(packed: tuple[str, str, bytes], what: str) -> BaseException:
    """The error again, with its type and notes, caused by its `RemoteTraceback`; or what can be had of it."""
    line, text, data = packed
    error: BaseException = RunFailed(f"{what} failed in another process: {line}. (The error itself cannot be read.)")
    with suppress(Exception):  # whatever its class does
        found = decode(bytearray(data))
        error = found if isinstance(found, BaseException) else error
    if text:
        error.__cause__ = RemoteTraceback(text)
    return error
