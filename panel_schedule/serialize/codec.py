"""How a value becomes bytes that several processes can map, and comes back."""

from __future__ import annotations

import copyreg
import io
import linecache
import mmap
import os
import pickle
import struct
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import cloudpickle

from ..errors import ValueRefused, ValueUnreadable, may_be_interrupt
from ..functions import remote
from .diagnose import refusal, told

try:
    import resource
except ImportError:  # Windows
    resource: Any = None  # type: ignore[no-redef]

# Magic, format, total length, number of parts, CRC-32 of everything up to the buffers but itself. Then the table,
# which has (offset, length) of each part, then the parts: the pickle stream, and its buffers, each one aligned.
_MAGIC = b"\x93PSVALUE"
FORMAT = 1
_HEAD = struct.Struct("<8sIQII")
_CHECKED = _HEAD.size - 4
_SPAN = struct.Struct("<QQ")

# A seal stands at the end of the stream, behind what pickle reads of it, and so within the checksum above: whose the
# value is, as text, then magic, CRC-32 of all buffers, the time that its file is given, and the length of the text.
_SEAL = struct.Struct("<8sIqI")
_SEALED = b"\x93PSSEAL\n"
ALIGNMENT = 64  # what Arrow asks for, and a cache line

# What one writev takes: as many buffers, and far fewer bytes than the 2 GiB at which systems differ.
_AT_ONCE = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 1
_BYTES_AT_ONCE = 1 << 30

# An index with so many labels is remembered, if its name is of these types.
_LABELS = 256
_NAMES = (str, type(None))

# Modules that another process cannot import, although this one has them: Bokeh names those of its apps so.
_APP = "bokeh_app_"
_SCRIPTS = (b"__main__", _APP.encode())

_Reducers = dict[type, Callable[[Any], Any]]

# Where the parts of a value are: first byte, and length.
Spans = list[tuple[int, int]]


class Encoded:
    """
    A value as bytes: a few of its own, and the buffers of the value itself, which are not copied.

    So the value must not change before it is written.

    Attributes
    ----------
    size : int
        In bytes.
    """

    def __init__(self, stream: bytes, buffers: list[pickle.PickleBuffer]):
        self._stream = stream
        self._buffers = [buffer.raw() for buffer in buffers]
        self._lay_out(stream)

    def _lay_out(self, stream: bytes) -> None:
        parts = [memoryview(stream), *self._buffers]
        at = _HEAD.size + _SPAN.size * len(parts)
        table, body = bytearray(), []
        for part in parts:
            # The stream needs no alignment.
            gap = -at % ALIGNMENT if table else 0
            table += _SPAN.pack(at + gap, len(part))
            body += [memoryview(bytes(gap)), part]
            at += gap + len(part)
        head = _HEAD.pack(_MAGIC, FORMAT, at, len(parts), 0)[:_CHECKED]
        crc = zlib.crc32(stream, zlib.crc32(table, zlib.crc32(head)))
        self.size = at
        self._chunks = [memoryview(head + crc.to_bytes(4, "little") + table), *filter(None, body)]

    def seal(self, whose: str, time: int = 0) -> None:
        """
        Say in it whose it is, and what its bytes are: for where it rests. See `verify`.

        Parameters
        ----------
        time : int
            When its file is said to have changed last, in nanoseconds.
        """
        text, crc = whose.encode("utf-8", "backslashreplace"), 0
        for buffer in self._buffers:
            crc = zlib.crc32(buffer, crc)
        self._lay_out(self._stream + text + _SEAL.pack(_SEALED, crc, time, len(text)))

    def tobytes(self) -> bytes:
        return b"".join(self._chunks)

    def write(self, fd: int) -> None:
        """Write everything to a blocking file descriptor. Raises OSError, with a part of it written."""
        chunks, batch, chunk = deque(self._chunks), [], None
        try:
            while chunks:
                room = _BYTES_AT_ONCE
                for chunk in islice(chunks, _AT_ONCE):
                    batch.append(chunk[:room])
                    room -= len(batch[-1])
                    if not room:
                        break
                written = os.writev(fd, batch) if hasattr(os, "writev") else os.write(fd, batch[0])
                batch.clear()
                while chunks and written >= len(chunks[0]):
                    written -= len(chunks.popleft())
                if written:
                    chunks[0] = chunks[0][written:]
        finally:
            # An exception keeps this frame, and CPython crashes when its collector meets views of views in a cycle.
            chunk = None
            chunks.clear()
            batch.clear()

    def close(self) -> None:
        """Let go of the value's buffers, for the same reason."""
        self._chunks.clear()
        self._buffers.clear()


class Received(Encoded):
    """What another process has encoded, to be passed on as it is."""

    def __init__(self, data: memoryview | bytes):
        self._buffers = []
        self._chunks = [memoryview(data)]
        self.size = len(data)


def encode(value: Any, what: str) -> Encoded:
    """
    Pickle a value, its arrays out of band.

    Classes and functions that no other process can import travel by value: those of an app's script and of
    ``__main__``, lambdas and closures. polars travels as Arrow; a LazyFrame as its plan.

    Parameters
    ----------
    what : str
        Whose value it is, for the message: ``"Task 'sales'"``.

    Raises
    ------
    ValueRefused
        When it cannot be pickled: names `what`, the type of the culprit and its path inside the value.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5, buffer_callback=buffers.append)
    pickler.dispatch_table = _reducers(copyreg.dispatch_table)
    try:
        pickler.dump(value)
    except MemoryError:
        raise
    except RecursionError as error:
        raise ValueRefused(
            f"{what}: the value is nested too deeply to be pickled, and so cannot be shared by processes. Return "
            "plain data, and links between its items as keys or indices."
        ) from error
    except BaseException as error:
        if may_be_interrupt(error):
            raise
    else:
        # Text that happens to contain such a name costs time only.
        if not any(name in stream.getvalue() for name in _SCRIPTS):
            return Encoded(stream.getvalue(), buffers)
    buffers.clear()
    stream = io.BytesIO()
    by_value = _ByValue(stream, buffers.append)
    try:
        by_value.dump(value)
    except MemoryError:
        raise
    except BaseException as error:
        if may_be_interrupt(error):
            raise
        raise ValueRefused(refusal(value, what, by_value.last, error)) from error
    return Encoded(stream.getvalue(), buffers)


class ByValue:
    """A function, to travel by value whatever its home."""

    def __init__(self, function: FunctionType):
        self.function = function

    def __reduce__(self) -> Any:
        return _itself, (self.function,)


def _itself(function: Any) -> Any:
    return function


def _reduce_code(reduce_code: Callable[[CodeType], Any], code: CodeType) -> Any:
    """With what a traceback shows: the file, which newer versions of cloudpickle leave out, and the lines."""
    make, args = reduce_code(code)
    args = tuple(code.co_filename if part == "<dynamic-code>" else part for part in args)
    lines = _lines_without_file(code)
    return (_make_code, (make, args, lines)) if lines else (make, args)


def _make_code(make: Callable[..., CodeType], args: tuple[Any, ...], lines: list[str]) -> CodeType:
    code = make(*args)
    linecache.cache[code.co_filename] = 0, None, lines, code.co_filename
    return code


def _lines_without_file(code: CodeType) -> list[str]:
    """Those of a notebook's cell, or of what was typed at the prompt: only this process has them."""
    entry = linecache.cache.get(code.co_filename, ())
    if len(entry) == 4:
        return entry[2] if entry[1] is None else []  # None: not read from a file
    return _lines_typed(code)


# At the prompt of Python from 3.13.1 on.
_lines_typed: Callable[[CodeType], list[str]] = getattr(linecache, "_getlines_from_code", lambda code: [])


class _ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """For what plain pickle cannot, some ten times slower; remembers what it came to last, to blame it."""

    last: Any = None
    _copied: Any = None

    def __init__(self, stream: io.BytesIO, buffer_callback: Callable[[pickle.PickleBuffer], Any]):
        # The C pickler looks for it once, in its own __init__.
        self.dispatch_table = _reducers(cloudpickle.Pickler.dispatch_table)
        self.dispatch_table[CodeType] = partial(_reduce_code, self.dispatch_table[CodeType])
        super().__init__(stream, 5, buffer_callback)

    def persistent_id(self, obj: Any) -> None:
        """Called with every object, before it is pickled."""
        self.last = obj

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ByValue):
            self._copied = obj.function
        elif isinstance(obj, FunctionType) and obj is not self._copied and (reference := _referred(obj)):
            return reference
        if isinstance(obj, (type, FunctionType)) and str(obj.__module__).startswith(_APP):
            # Never taken back: the name is unique, and nobody else can ever import it.
            with suppress(ValueError):
                cloudpickle.register_pickle_by_value(sys.modules.get(obj.__module__, ModuleType("gone")))
        reduced = super().reducer_override(obj)
        if (
            isinstance(reduced, tuple)
            and isinstance(obj, type)
            and "__slots__" in vars(obj)
            and not issubclass(obj, tuple)
        ):
            _add_slots(obj, reduced)
        return reduced


def _referred(function: FunctionType) -> Any:
    """Of a decorated function, under whose name its module has what the decorator made: the way to it."""
    module, path = sys.modules.get(function.__module__), function.__qualname__
    if module is None or function.__module__.startswith(("__main__", _APP)) or not hasattr(module, "__file__"):
        return None
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    if getattr(found, "function", None) is not function:
        return None
    return remote.function_of, (function.__module__, path, remote.written(function))


def _add_slots(kind: type, reduced: tuple[Any, ...]) -> None:
    """cloudpickle makes the class anew without them, and objects with a __dict__ in their place."""
    members = [name for name, member in vars(kind).items() if isinstance(member, MemberDescriptorType)]
    made, (state, _) = reduced[1], reduced[2]
    if isinstance(made[3], dict) and not issubclass(kind, tuple):  # made[3] of an enum are its members
        made[3]["__slots__"] = (*members, *({"__dict__", "__weakref__"} & vars(kind).keys()))
        for name in members:
            state.pop(name, None)


# ------------------------------------------------------------ arrays out of band


def _reducers(base: Mapping[type, Any]) -> _Reducers:
    # A plain dict: the C pickler asks it once for every object.
    reducers = dict(base)
    # Where nobody has imported it, no value is an array: a worker process is to start without.
    numpy: Any = sys.modules.get("numpy")
    if hasattr(numpy, "ndarray"):
        reducers[numpy.ndarray] = _reduce_array
    pandas: Any = sys.modules.get("pandas")
    # Before pandas 3 one could write into the labels of an index. While another thread imports it, it has no version.
    if hasattr(pandas, "RangeIndex") and int(getattr(pandas, "__version__", "0").split(".")[0]) >= 3:
        reducers |= {pandas.Index: _reduce_index, pandas.RangeIndex: _reduce_index}
    polars: Any = sys.modules.get("polars")
    if hasattr(polars, "DataFrame"):  # else another thread imports it just now
        reducers |= {polars.DataFrame: _reduce_polars, polars.Series: _reduce_series}
    return reducers


def _reduce_array(array: Any) -> Any:
    """NumPy's own way copies times and what is not contiguous, on both ends."""
    np: Any = sys.modules["numpy"]
    if array.dtype.kind not in "biufcSUVmM" or array.dtype.hasobject or not array.nbytes:
        return array.__reduce_ex__(5)
    fortran = array.flags.fnc
    if not array.flags.forc:
        array = array.copy()
    data = pickle.PickleBuffer(array.reshape(-1, order="F" if fortran else "C").view(np.uint8).data)
    return np.ndarray, (array.shape, array.dtype, data, 0, None, "F" if fortran else "C")


def _reduce_index(index: Any) -> Any:
    """Labels stay the same from one frame to the next, and to make them takes longer than the frame itself."""
    pandas: Any = sys.modules["pandas"]
    few = type(index) is pandas.RangeIndex or (isinstance(index.dtype, pandas.StringDtype) and len(index) <= _LABELS)
    return (_index, (pickle.dumps(index, 5),)) if few and type(index.name) in _NAMES else index.__reduce__()


def _index(data: bytes) -> Any:
    return _known_index(data).view()


@lru_cache(256)
def _known_index(data: bytes) -> Any:
    return pickle.loads(data)


def _reduce_polars(frame: Any) -> Any:
    return (type(frame), (frame.get_columns(),)) if frame.width else frame.__reduce_ex__(5)


def _reduce_series(series: Any) -> Any:
    with suppress(Exception):  # without pyarrow, or with a type that it does not know
        newest = series.to_arrow(compat_level=sys.modules["polars"].CompatLevel.newest())
        # Text as views is not copied, here and there; but the few rows of a filter drag all the text behind them.
        lean = newest.nbytes <= 4 * series.estimated_size()
        # As Arrow, Python objects would be their addresses.
        if "Object" not in str(series.dtype):
            return type(series), (series.name, newest if lean else series.to_arrow(), series.dtype)
    return series.__reduce_ex__(5)


# ------------------------------------------------------------ and back


def decode(data: Any, spans: Spans | None = None) -> Any:
    """
    The value that `encode` was given; its arrays are views of `data`, writable where that is.

    What protects against torn files is checked, the contents of the arrays are not.

    Parameters
    ----------
    data : buffer
        As long as the value; not to change as long as the value lives.
    spans : list of (int, int), optional
        What `verify` has found.

    Raises
    ------
    ValueUnreadable
        With the reason; never returns a part of a value.
    """
    whole = memoryview(data).cast("B")
    parts: list[memoryview] = []
    try:
        parts += (whole[at : at + length] for at, length in spans or _spans(whole))
        try:
            return pickle.loads(parts[0], buffers=parts[1:])
        except BaseException as error:
            if may_be_interrupt(error):
                raise
            raise ValueUnreadable(f"it no longer unpickles: {told(error)}") from error
    finally:
        # As above: no view may stay in the frame of an exception.
        parts.clear()
        del whole


def verify(data: Any, whose: str, time: int | None = None) -> Spans:
    """
    Check the seal of a value, if it has one: a version before there were seals has written none.

    Parameters
    ----------
    time : int or None
        When the file that it stands in changed last. Where the seal says the same, its buffers are not checked.

    Returns
    -------
    list of (int, int)
        Where its parts begin, and their lengths.

    Raises
    ------
    ValueUnreadable
        When it is another one's value, or not what was sealed.
    """
    whole = memoryview(data).cast("B")
    parts: list[memoryview] = []
    try:
        spans = _spans(whole)
        parts += (whole[at : at + length] for at, length in spans)
        reason = _broken(parts, whose.encode("utf-8", "backslashreplace"), time)
    finally:
        # As above.
        parts.clear()
        del whole
    if reason:
        raise ValueUnreadable(reason)
    return spans


def _broken(parts: list[memoryview], whose: bytes, time: int | None) -> str:
    end = len(parts[0]) - _SEAL.size
    if parts[0][end : end + len(_SEALED)] != _SEALED:
        return ""
    _, sealed, changed, length = _SEAL.unpack_from(parts[0], end)
    if (text := bytes(parts[0][end - length : end])) != whose:
        return f"it is not its own, but that of {text.decode()}"
    if time == changed:
        return ""
    crc = 0
    for part in parts[1:]:
        crc = zlib.crc32(part, crc)
    return "" if crc == sealed else "its bytes have changed since they were written"


def _spans(whole: memoryview) -> Spans:
    """Where the stream and the buffers are. Raises ValueUnreadable."""
    if whole[: len(_MAGIC)] != _MAGIC[: len(whole)]:
        raise ValueUnreadable("it was not written by panel-schedule")
    if len(whole) >= _HEAD.size:
        _, version, total, count, crc = _HEAD.unpack_from(whole)
        if version > FORMAT:
            raise ValueUnreadable("it was written by a newer version of panel-schedule")
        table = bytes(whole[_HEAD.size : _HEAD.size + _SPAN.size * count])
        if total == len(whole) and count and len(table) == _SPAN.size * count:
            spans = list(_SPAN.iter_unpack(table))
            at, length = spans[0]
            if crc == zlib.crc32(whole[at : at + length], zlib.crc32(table, zlib.crc32(whole[:_CHECKED]))):
                return spans
    raise ValueUnreadable("it is torn or truncated")


# ------------------------------------------------------------ where it rests


def write_file(path: str | os.PathLike[str], encoded: Encoded, *, sync: bool) -> None:
    """
    Write a new file, once and for all, that only this user can read.

    With `sync` it is on the disk when this returns; the directory is the caller's. It is sealed as this file's own.

    Raises
    ------
    OSError
        And leaves no file behind; FileExistsError when there is one.
    """
    # Python's own descriptors are close-on-exec.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        try:
            # Who changes it later changes this, too.
            time = os.fstat(fd).st_mtime_ns
            encoded.seal(os.path.basename(path), time)
            encoded.write(fd)
            os.utime(fd if os.utime in os.supports_fd else path, ns=(time, time))
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)  # some file systems know only now that they are full
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


@dataclass(frozen=True, slots=True)
class Inline:
    """A small value as bytes. `load` makes a private copy."""

    data: bytes

    def verify(self, whose: str) -> None:
        """Raises ValueUnreadable; see `verify`."""
        verify(self.data, whose)

    def load(self) -> Any:
        return decode(bytearray(self.data))

    @property
    def buffer(self) -> memoryview:
        """As they are."""
        return memoryview(self.data)

    def close(self) -> None:
        """Nothing: as `Mapped` has it."""


class Arrived:
    """A value as bytes that nobody else has, so that `load` needs no copy; once."""

    def __init__(self, data: Any):
        self._data = data

    def load(self) -> Any:
        return decode(bytearray(self._data) if memoryview(self._data).readonly else self._data)

    @property
    def buffer(self) -> memoryview:
        """As they are."""
        return memoryview(self._data)


class _Descriptor:
    """Closed with the last reference to it, so never under a `load` in another thread."""

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)


class Mapped:
    """
    A value in a file, from which private copies are made at a cost that does not grow with its arrays.

    The arrays of all copies, in all processes, are the same memory until somebody writes into one. They stay when
    the file is unlinked or this is closed, and their memory goes with the last of them. The file must never shrink.
    """

    def __init__(self, fd: int):
        """Takes over the descriptor."""
        self._descriptor: _Descriptor | None = _Descriptor(fd)
        # What was verified, for the first `load`: each map costs its pages' faults.
        self._verified: deque[tuple[mmap.mmap, Spans]] = deque()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Mapped:
        """Raises OSError."""
        return cls(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))

    @classmethod
    def anonymous(cls, encoded: Encoded) -> Mapped:
        """In memory where the system can, else in a temporary file without a name. Raises OSError."""
        return cls.made(encoded.write)

    @classmethod
    def made(cls, write: Callable[[int], object]) -> Mapped:
        """The same of what ``write(descriptor)`` writes."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("panel-schedule")
            mapped = cls(fd)  # which closes it, should the next line fail
            write(fd)
            return mapped
        with tempfile.TemporaryFile(buffering=0) as file:
            write(file.fileno())
            return cls(os.dup(file.fileno()))

    def fileno(self) -> int:
        """To hand it to another process. Raises ValueError once it is closed."""
        if self._descriptor is None:
            raise ValueError("The value was closed before it was handed over.")
        return self._descriptor.fd

    def verify(self, whose: str, trusted: bool = False) -> None:
        """
        See the function; where the writer is trusted, what nobody has changed since is not read.

        Raises
        ------
        ValueUnreadable
        OSError
        """
        mapping = self._map()
        spans = verify(mapping, whose, os.fstat(self.fileno()).st_mtime_ns if trusted else None)
        self._verified.append((mapping, spans))

    def load(self) -> Any:
        """
        A private copy: its arrays are writable, nobody else sees what is written, nor does the file.

        Raises
        ------
        ValueUnreadable
            When the file is no complete value, or it no longer unpickles.
        OSError
            When it cannot be mapped; before Python 3.13 each copy that lives holds a file descriptor. Where these
            have taken half of what the process may have, it is read instead, and not shared with other processes.
        """
        try:
            mapping, spans = self._verified.pop()
        except IndexError:
            return decode(self._map())
        return decode(mapping, spans)

    @property
    def buffer(self) -> memoryview:
        """As they are; they stay when this is closed. Raises OSError."""
        return memoryview(self._map())

    def _map(self) -> mmap.mmap:
        descriptor = self._descriptor
        if descriptor is None:
            raise ValueError("The value was closed before it was loaded. Load it first, or open its file again.")
        try:
            if sys.version_info >= (3, 13) and sys.platform != "win32":
                return mmap.mmap(descriptor.fd, 0, access=mmap.ACCESS_COPY, trackfd=False)
            if _scarce(descriptor.fd):
                return _read(descriptor.fd)
            return mmap.mmap(descriptor.fd, 0, access=mmap.ACCESS_COPY)
        except ValueError as error:  # an empty file
            raise ValueUnreadable("it is torn or truncated") from error

    def close(self) -> None:
        """Make no more copies. Harmless when it was closed before."""
        self._descriptor = None
        self._verified.clear()


def _scarce(fd: int) -> bool:
    """Whether half of the descriptors are taken: the system gives the lowest first."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
    os.close(lowest := os.dup(fd))
    return 0 <= limit <= 2 * lowest


def _read(fd: int) -> mmap.mmap:
    """A file in memory. Raises ValueError where there is nothing."""
    memory = mmap.mmap(-1, size) if (size := os.fstat(fd).st_size) else mmap.mmap(fd, 0)
    at, view = 0, memoryview(memory)
    while at < size and (count := os.preadv(fd, [view[at:]], at)):
        at += count
    return memory
