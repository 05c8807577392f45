"""What is kept, shown and given on of an error: no frames, which keep all that was in them alive."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from types import BuiltinMethodType, CodeType, FunctionType, MemberDescriptorType, TracebackType
from typing import Any

from ..errors import RunFailed, ScheduleError, is_interrupt

# Characters of an error's first line: it reaches every page.
from .codec import decode, encode

# Characters that are kept of the beginning and of the end each: of a traceback, and of a text in an error that is kept
# for others. Bytes of such an error.

LONGEST_LINE = 300

# What is kept of an error: so many frames, and so many errors that led to it, one to the other.
LONGEST_TRACEBACK = 100

# Characters of its traceback in a history.
LONGEST_KEPT = 8_000
LONGEST_CHAIN = 20


def first_line(error: BaseException | None) -> str:
    """``"ValueError: no such table"``, and ``""`` of None."""
    if error is None:
        return ""
    try:
        lines = str(error).strip().splitlines()
    except BaseException:  # an error that cannot even say what it is
        lines = []
    return f"{type(error).__name__}: {lines[0]}"[:LONGEST_LINE] if lines else type(error).__name__


def type_of(line: str) -> str:
    """Of such a line what kind of error it was, and nothing of what it says: ``"ValueError"``, and ``""`` of ``""``."""
    name = line.partition(":")[0]
    return name if name.isidentifier() or not line else "Error"


def another(error: BaseException, chain: int = LONGEST_CHAIN) -> BaseException:
    """
    The same error once more, bare: its traceback names the places and holds no frames, which keep a page alive.

    Each `raise` adds frames of who raises it, so that whoever waits for a run gets one of his own. Nothing of its class
    is called, which may do anything. (Nor does it keep the object that has no such attribute.)
    """
    fresh = _same(error, chain)
    for name in ("__cause__", "__context__"):
        linked = getattr(error, name)
        setattr(fresh, name, another(linked, chain - 1) if linked is not None and chain else None)
    fresh.__suppress_context__ = error.__suppress_context__
    return fresh.with_traceback(_bare(own_traceback(error)[2]))


def is_bare(error: BaseException) -> bool:
    """Whether nobody has raised it: one of ours, made to say how a run has ended."""
    touched = (error.__traceback__, error.__cause__, error.__context__)
    return isinstance(error, ScheduleError) and touched == (None, None, None)


def for_waiter(task: str, error: BaseException) -> BaseException:
    """
    What is raised in who waits for a run of `task`: an error of his own, see `another`.

    What is no Exception would end his thread, or the event loop: he gets a RunFailed that it has caused.
    """
    own = another(error)
    if isinstance(own, Exception):
        return own
    failed = RunFailed(f"The run of {task!r} failed: its function, or a value of it, raised {first_line(own)}.")
    failed.__cause__ = own
    return failed


def bare(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """What a log gets as ``exc_info``, who may keep it: the traceback from the user's function on, without frames."""
    return own_traceback(another(error))


def _same(error: BaseException, chain: int) -> BaseException:
    kind, args = type(error), error.args
    if isinstance(error, BaseExceptionGroup):
        args = (
            error.message,
            [another(each, chain - 1) for each in error.exceptions] if chain else [RuntimeError("...")],
        )
    for base in kind.__mro__:
        new = vars(base).get("__new__")
        if not isinstance(new, BuiltinMethodType):
            continue
        try:
            fresh: BaseException = new(kind, *args)
        except TypeError:  # that base is not the one that lays it out
            continue
        for each in kind.__mro__:
            for name, member in vars(each).items():
                if isinstance(member, MemberDescriptorType) and name != "obj":
                    with suppress(AttributeError, TypeError):  # not set, or not to be set
                        if (value := member.__get__(error)) is not None:
                            member.__set__(fresh, value)
        vars(fresh).update({name: list(each) if name == "__notes__" else each for name, each in vars(error).items()})
        fresh.args = error.args if not isinstance(error, BaseExceptionGroup) else fresh.args
        return fresh
    return error


def _bare(frames: TracebackType | None) -> TracebackType | None:
    """The same traceback for whoever prints it, of frames without variables and callers."""
    found = list[TracebackType]()
    while frames is not None:
        found.append(frames)
        frames = frames.tb_next
    if len(found) > LONGEST_TRACEBACK:
        found[LONGEST_TRACEBACK // 2 : -LONGEST_TRACEBACK // 2] = []
    bare = None
    for each in reversed(found):
        code, scope = each.tb_frame.f_code, each.tb_frame.f_globals
        position = next(islice(code.co_positions(), max(each.tb_lasti, 0) // 2, None), (None,) * 4)
        place = _place(code.co_filename, code.co_name, code.co_qualname, each.tb_lineno, position)
        known: dict[str, Any] = {name: scope[name] for name in ("__name__", "__loader__") if name in scope}
        # Of a generator, as such a frame has no caller.
        bare = TracebackType(bare, FunctionType(place, known)().gi_frame, 0, each.tb_lineno)
    return bare


@lru_cache(1024)
def _place(file: str, name: str, qualname: str, line: int, position: tuple[int | None, ...]) -> CodeType:
    """Code all of which is at one position, see CPython's ``InternalDocs/code_objects.md``."""
    first, last, column, end = position
    if first == line and last is not None and column is not None and end is not None:
        kind, where = 14, b"\0" + _varint(last - line) + _varint(column + 1) + _varint(end + 1)
    else:
        kind, where = 13, b"\0"
    code = _anywhere.__code__
    units = len(code.co_code) // 2
    table = b"".join(bytes([0x80 | kind << 3 | min(8, units - at) - 1]) + where for at in range(0, units, 8))
    return code.replace(
        co_filename=file, co_name=name, co_qualname=qualname, co_firstlineno=line, co_linetable=table
    )  # fmt: skip


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 64 else bytes([0x40 | number & 63]) + _varint(number >> 6)


def _anywhere() -> Iterator[None]:
    yield


def own_traceback(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """As ``exc_info`` has it: with the traceback from the user's function on, without who called it."""
    # Of an error from another process the frames are all ours; its cause has the others.
    frames = None if isinstance(error.__cause__, RemoteTraceback) else error.__traceback__
    while frames is not None and frames.tb_next is not None and _is_ours(frames):
        frames = frames.tb_next
    return type(error), error, frames


class RemoteTraceback(Exception):
    """The cause of an error that was raised in another process: the traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def traceback_text(error: BaseException | None) -> str:
    """The traceback from the user's function on, as Python prints it."""
    if error is not None and isinstance(error.__cause__, RemoteTraceback):
        return str(error.__cause__.args[0])
    return "" if error is None else "".join(traceback.format_exception(*own_traceback(error))).rstrip()


def kept_traceback(error: BaseException | None) -> str:
    """What a history keeps of it: its end; ``""`` of one that nobody has raised."""
    if error is None or is_bare(error):
        return ""
    try:
        text = traceback_text(another(error))
    except BaseException as failure:  # whatever its class does
        if is_interrupt(failure):
            raise
        return ""
    return text if len(text) <= LONGEST_KEPT else f"[...] {text[6 - LONGEST_KEPT :]}"


def _is_ours(frames: TracebackType) -> bool:
    return str(frames.tb_frame.f_globals.get("__name__", "")).startswith("panel_schedule")


# ------------------------------------------------------------ for other processes, which may not know its class

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
