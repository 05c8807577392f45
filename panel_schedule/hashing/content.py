"""The content of a value as a digest: the same in every process, of whatever layout, and different for all else."""

from __future__ import annotations

import os
import struct
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial, reduce, singledispatch
from hashlib import sha256  # which processors have in hardware; without, blake2b were quicker
from pathlib import PurePath
from re import Pattern
from types import EllipsisType, FunctionType, ModuleType, NoneType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from ..errors import is_interrupt
from ..serialize.diagnose import kind_name
from ..session import without_session

# What is large enough for threads: a quarter of a millisecond.
_LEAF = 2**19
_THREADS = 4

_Parts = Iterator[tuple[str, Any]]  # what leads to each of them, as messages have it, and the part


class Refusal(Exception):
    """Why there is no key, and where in the arguments."""

    path = ""


class Content:
    """
    A digest of values, each written with its type and size, so that no two sequences of values are written alike.

    What is composite is written part by part; what is inside itself would have no end, and is refused. Of large
    buffers only the sizes are written at once; their digests, which several threads make, come at the end.
    """

    def __init__(self, around: frozenset[int] = frozenset()):
        self._sha = sha256(b"\0")  # what no digest of plain values begins with
        self._around = set(around)
        self._threads: ThreadPoolExecutor | None = None
        self._leaves: list[Future[bytes]] = []

    def digest(self) -> bytes:
        for leaf in self._leaves:
            self._sha.update(leaf.result())
        if self._threads:
            self._threads.shutdown(wait=False)
        return self._sha.digest()

    def part(self, path: str, at: Any, value: Any) -> None:
        """Add what is found in something larger; `path` is a format of `at`."""
        try:
            self.add(value)
        except Refusal as refusal:
            refusal.path = path.format(at) + refusal.path
            raise

    def add(self, value: Any) -> None:
        kind = type(value)
        if atom := _ATOMS.get(kind):
            self._write(kind.__name__, atom(value))
            return
        if id(value) in self._around:
            raise Refusal(f"is a {kind_name(kind)} that contains itself")
        self._around.add(id(value))
        if kind is list or kind is tuple:
            self._sequence(kind.__name__, value)
        elif kind is set or kind is frozenset:
            self._unordered(kind.__name__, ((item,) for item in value))
        elif kind is dict:
            self._unordered(kind.__name__, value.items())
        elif (hasher := _hashers.dispatch(kind)) is not _no_hasher:
            self._composite(*hasher(value))
        elif kind is np.ndarray:
            self._array(value)
        else:
            self._composite(*_taken_apart(value, kind))
        self._around.discard(id(value))

    def _write(self, what: str, payload: Any) -> None:
        head = b"%s %d:" % (what.encode(), len(payload))
        if len(payload) < _LEAF:
            self._sha.update(head + payload)
            return
        self._sha.update(head)
        self._threads = self._threads or ThreadPoolExecutor(_THREADS)
        view = memoryview(payload).cast("B")
        leaves = (view[at : at + _LEAF] for at in range(0, len(view), _LEAF))
        self._leaves += (self._threads.submit(_hashed, leaf) for leaf in leaves)

    def _sequence(self, what: str, items: Sequence[Any]) -> None:
        texts = [item for item in items if type(item) is str]
        self._write(what, b"%d %d" % (len(items), len(texts)))
        if texts:  # at once: there are columns of them
            self._write("lengths", np.fromiter(map(len, texts), "<i8", len(texts)).view(np.uint8).data)
            self._write("texts", _encoded("".join(texts)))
        if len(texts) < len(items):
            self._write("which", bytes(type(item) is str for item in items) if texts else b"")
            for index, item in enumerate(items):
                if type(item) is not str:
                    self.part("[{}]", index, item)

    def _unordered(self, what: str, entries: Iterable[tuple[Any, ...]]) -> None:
        digests = []
        for entry in entries:
            content = Content(frozenset(self._around))
            for value in entry:
                content.part("[{0!r}]", entry[0], value)
            digests.append(content.digest())
        self._write(what, b"".join(sorted(digests)))

    def _composite(self, what: str, parts: Iterable[tuple[str, Any]]) -> None:
        self._write("parts", what.encode())
        for path, value in parts:
            self.part("{}", path, value)
        self._write("end", b"")

    def _array(self, array: np.ndarray) -> None:
        kind = array.dtype
        self._write("array", f"{kind!r} {array.shape}".encode())
        if kind.names is not None:  # there may be gaps between the fields
            self._composite("fields", ((f"[{name!r}]", array[name]) for name in kind.names))
        elif kind.kind in "OT":
            self._sequence("objects", array.astype(object, copy=False).ravel().tolist())
        elif kind.char in "gG":  # has gaps, too
            self._sequence("objects", list(map(repr, array.ravel())))
        elif array.nbytes:
            flat = array.reshape(-1)
            if kind.kind in "fc":
                flat = _one_nan(flat)
            self._write("data", np.ascontiguousarray(flat).view(np.uint8).data)


def _hashed(leaf: memoryview) -> bytes:
    return sha256(leaf).digest()


def _one_nan(flat: np.ndarray) -> np.ndarray:
    """There are many, of other bits: 0/0 is not the one of `numpy.nan`."""
    real = np.ascontiguousarray(flat).view(flat.real.dtype)
    with np.errstate(invalid="ignore"):
        found = np.isnan(real.min())
    if found:
        real = real.copy()
        real[np.isnan(real)] = np.nan
    return real


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_ATOMS: Mapping[type, Callable[[Any], Any]] = {
    NoneType: lambda _: b"",
    EllipsisType: lambda _: b"",
    bool: lambda value: b"%d" % value,
    int: lambda value: b"%x" % value,
    float: lambda value: struct.pack("<d", value) if value == value else b"nan",
    str: _encoded,
    bytes: lambda value: value,
    bytearray: lambda value: value,
    timedelta: lambda value: repr(value).encode(),
    date: lambda value: value.isoformat().encode(),
    timezone: lambda value: _encoded(repr(value)),
    Decimal: lambda value: str(value).encode(),
    UUID: lambda value: value.bytes,
}

_PARTS: Mapping[type, Callable[[Any], Sequence[Any]]] = {
    complex: lambda value: (value.real, value.imag),
    Fraction: lambda value: (value.numerator, value.denominator),
    range: lambda value: (value[0], value[-1], value.step if value[0] != value[-1] else 0) if value else (),
    slice: lambda value: (value.start, value.stop, value.step),
    deque: lambda value: (value.maxlen, list(value)),
    time: lambda value: (value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo),
    datetime: lambda value: (value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo),
    ZoneInfo: lambda value: (_zone(value),),
    Pattern: lambda value: (value.pattern, value.flags),
    partial: lambda value: (value.func, value.args, value.keywords, vars(value)),
}

_BASES = {*_ATOMS, *_PARTS, list, tuple, set, frozenset, dict} - {NoneType, EllipsisType, bool, timezone}


def _no_hasher(value: Any) -> tuple[str, _Parts]:
    raise NotImplementedError


# What `set_hasher` was told, by type. The types of a process are the same for all that is in it, and so are these.
_hashers = singledispatch(_no_hasher)


def has_content(kind: type) -> bool:
    """Whether its instances are plain data, of which a key is made that no hasher is asked for."""
    return kind is object or kind in (*_ATOMS, list, tuple, set, frozenset, dict)


def set_hasher(kind: type, function: Callable[[Any], Any], fingerprint: str) -> None:
    """
    From now on what the function returns counts of an instance, in place of its content; that of a subclass as well.

    Parameters
    ----------
    fingerprint : str
        Of the function: what another one returned is no content of this one.
    """

    def taken_apart(value: Any) -> tuple[str, _Parts]:
        own = type(value)
        try:
            content = without_session(f"The hasher of {kind_name(kind)}", function, value)
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise Refusal(f"is a {kind_name(own)}, whose ps.hasher raised {type(error).__name__}: {error}") from error
        return "hashed", iter([("", _class_name(own)), ("", fingerprint), ("", content)])

    _hashers.register(kind, taken_apart)


def _class_name(kind: type) -> tuple[str, str]:
    """As that of a class that counts by its name, and of any other one as well."""
    try:
        return _named(kind)
    except Refusal:
        return kind.__module__, kind.__qualname__


def _zone(zone: ZoneInfo) -> str:
    if zone.key is None:
        raise _refused(zone, "which has no name")
    return zone.key


def _refused(value: Any, why: str = "of whose content no key can be made") -> Refusal:
    return Refusal(f"is a {kind_name(type(value))}, {why}")


def _taken_apart(value: Any, kind: type) -> tuple[str, Iterable[tuple[str, Any]]]:
    """What kind of thing it is, and its parts, each with the path that leads there."""
    if parts := _PARTS.get(kind):
        return kind.__name__, [("", part) for part in parts(value)]
    library = kind.__module__.partition(".")[0]
    if take_apart := _LIBRARIES.get(library):
        try:
            if found := list(take_apart(value)):
                return f"{library}.{kind.__qualname__}", found
        except (ImportError, NotImplementedError, OSError, TypeError, ValueError) as error:
            raise _refused(value, f"of whose content no key can be made ({error})") from error
    base = next((base for base in kind.__mro__ if base in _BASES), None)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return "named", [("", _named(value))]
    if isinstance(value, PurePath):
        return "path", [("", kind.__name__), ("", str(value))]
    if isinstance(value, Enum):
        return "enum", [("", kind), ("", value.value if value.name is None else value.name)]
    if "__dataclass_fields__" in vars(kind):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        named = [(f".{name}", part) for name, part in own.items()]
        return "dataclass", [("", kind), ("", list(own)), *named, *_beyond(value, base)]
    if hasattr(kind, "__pydantic_fields_set__") or hasattr(kind, "__fields_set__"):
        return "pydantic", _pydantic(value, kind)
    if base:
        return "subclass", [("", kind), *_beyond(value, base)]
    raise _refused(value)


def _beyond(value: Any, base: Any) -> _Parts:
    """The content of an instance of a subclass of a built-in type, and what it has beyond that."""
    if base is None:
        return
    if atom := _ATOMS.get(base):
        yield "", bytes(atom(value))
    elif parts := _PARTS.get(base):
        yield "", list(parts(value))
    elif issubclass(base, dict):
        yield "", dict(dict.items(value))
        yield "", list(value) if isinstance(value, OrderedDict) else None
        yield ".default_factory", getattr(value, "default_factory", None)
    else:
        yield "", base(base.__iter__(value))
    yield ".__dict__", object.__getstate__(value)


def _pydantic(value: Any, kind: Any) -> _Parts:
    """A model of its second or first version; which of its fields were given is no content, nor is what is cached."""
    generic = getattr(kind, "__pydantic_generic_metadata__", {})
    yield "", (generic["origin"], *generic["args"]) if generic.get("origin") else kind
    own, fields = vars(value), getattr(kind, "__pydantic_fields__", None)
    private = [name for name in kind.__private_attributes__ if hasattr(value, name)]
    names = sorted([*(name for name in own if fields is None or name in fields), *private])
    yield "", names
    yield from ((f".{name}", getattr(value, name)) for name in names)
    yield ".model_extra", getattr(value, "__pydantic_extra__", None)


def _named(value: Any) -> tuple[str, str]:
    """The file, of which there may be two modules, and the name of a class or of a function of a module."""
    name, module = value.__qualname__, _module(getattr(value, "__module__", None))
    found = reduce(lambda holder, part: getattr(holder, part, None), name.split("."), module)
    if found is not value:
        # Of a module that is not to be found, or that was executed again.
        again = isinstance(value, type) or (
            isinstance(value, FunctionType)
            and not value.__closure__
            and getattr(found, "__code__", value.__code__) == value.__code__
        )
        if not again or "<" in name:
            raise _refused(value, f"and {name} is not the name under which a module has it")
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if file else str(value.__module__), name


def _module(name: Any) -> ModuleType | None:
    if name == "panel_setup_module" and (panel := sys.modules.get("panel.io.state")):
        return getattr(panel.state, "_setup_module", None)  # which Panel keeps out of sys.modules
    return sys.modules.get(name)


# ------------------------------------------------------------ libraries, none of which is imported here


def _numpy(value: Any) -> _Parts:
    if isinstance(value, np.ma.MaskedArray):
        yield from [(".mask", np.ma.getmaskarray(value)), (".fill_value", value.fill_value), ("", value.filled())]
    elif isinstance(value, (np.ndarray, np.generic)):
        yield "", np.asarray(value)


def _pandas(value: Any) -> _Parts:
    pd = sys.modules["pandas"]
    if isinstance(value, pd.DataFrame):
        yield from [(".attrs", value.attrs), (".columns", value.columns), (".index", value.index)]
        yield from ((f"[{name!r}]", column.array) for name, column in value.items())
    elif isinstance(value, pd.Series):
        yield from [(".attrs", value.attrs), (".name", value.name), (".index", value.index), ("", value.array)]
    elif isinstance(value, pd.MultiIndex):
        yield ".names", list(value.names)
        yield from (("", value.get_level_values(level)) for level in range(value.nlevels))
    elif isinstance(value, pd.RangeIndex):
        yield from [(".name", value.name), ("", range(value.start, value.stop, value.step))]
    elif isinstance(value, pd.Index):
        yield from [(".name", value.name), ("", getattr(value, "freqstr", None)), ("", value.array)]
    elif isinstance(value, pd.api.extensions.ExtensionArray):
        yield "", str(value.dtype)
        yield from (("", part) for part in _pandas_array(pd, value))
    elif isinstance(value, pd.Interval):
        yield from [(".left", value.left), (".right", value.right), ("", value.closed)]
    elif isinstance(value, pd.Period):
        yield from [("", value.ordinal), ("", value.freqstr)]
    elif isinstance(value, pd.offsets.BaseOffset):
        options = value.kwds
        if (calendar := options.pop("calendar", None)) is not None:  # which has both, however it was made
            options |= {"weekmask": calendar.weekmask, "holidays": calendar.holidays}
        yield from [("", value.n), ("", value.normalize), ("", options)]
    elif value is pd.NaT or value is pd.NA:
        yield "", None
    elif isinstance(value, (pd.Timestamp, pd.Timedelta)):
        yield "", value.asm8
        yield from [(".tz", value.tz), ("", value.fold)] if isinstance(value, pd.Timestamp) else []


def _pandas_array(pd: Any, array: Any) -> Sequence[Any]:
    kinds = pd.arrays
    if isinstance(array, kinds.ArrowExtensionArray):
        return [array.__arrow_array__()]
    if isinstance(array, (kinds.IntegerArray, kinds.FloatingArray, kinds.BooleanArray)):
        return [array.isna(), array.to_numpy(array.dtype.numpy_dtype, na_value=0)]
    if isinstance(array, pd.Categorical):
        return [array.ordered, array.categories, array.codes]
    if isinstance(array, (kinds.DatetimeArray, kinds.TimedeltaArray, kinds.PeriodArray)):
        return [array.view("i8")]
    if isinstance(array, kinds.IntervalArray):
        return [array.left, array.right]
    return [np.asarray(array)]


def _polars(value: Any) -> _Parts:
    pl = sys.modules["polars"]
    if isinstance(value, pl.DataFrame):
        yield "", value.shape
        yield from ((f"[{column.name!r}]", column) for column in value.get_columns())
    elif isinstance(value, pl.Series):
        kind = str(value.dtype)
        # As Arrow, Python objects would be their addresses; and it has no integers of 128 bits.
        parts = value.to_list() if "Object" in kind or "Int128" in kind else value.to_arrow()
        yield from [(".name", value.name), ("", kind), ("", parts)]


def _arrow(value: Any) -> _Parts:
    pa = sys.modules["pyarrow"]
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        schema = value.schema
        yield from [("", value.shape), (".schema", schema.metadata)]
        yield ".schema", [(field.name, str(field.type), field.nullable, field.metadata) for field in schema]
        yield from ((f"[{name!r}]", column) for name, column in zip(schema.names, value.columns, strict=True))
    elif isinstance(value, pa.ChunkedArray):
        yield "", value.combine_chunks()
    elif isinstance(value, pa.Scalar):
        yield "", pa.repeat(value, 1)
    elif isinstance(value, pa.ExtensionArray):
        yield from [("", str(value.type)), ("", value.storage)]
    elif isinstance(value, pa.Array):
        yield from [("", str(value.type)), ("", len(value))]
        if value.null_count:
            yield "", value.is_valid().to_numpy(zero_copy_only=False)
            value = value.drop_null()
        if len(value):
            yield from (("", part) for part in _arrow_values(pa, value))


def _arrow_values(pa: Any, array: Any) -> Iterable[Any]:
    """Of an array without nulls: only what can be seen of it, and nothing that a slice has left out."""
    kind, types, count = array.type, pa.types, len(array)
    if types.is_dictionary(kind):
        return array.indices, array.dictionary
    if types.is_struct(kind):
        return list(array.flatten())
    if types.is_map(kind):
        return [array.cast(pa.list_(pa.struct([("key", kind.key_type), ("item", kind.item_type)])))]
    if types.is_fixed_size_list(kind):
        return [array.flatten()]
    if hasattr(array, "value_lengths"):
        return array.value_lengths(), array.flatten()
    if types.is_boolean(kind):
        return [array.to_numpy(zero_copy_only=False)]
    if str(kind).endswith(("string", "binary", "view")):
        texts = array.cast(pa.large_binary())
        _, buffer, data = texts.buffers()
        offsets = np.frombuffer(buffer, np.int64)[texts.offset :][: count + 1]
        return offsets - offsets[0], np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    width = kind.bit_width // 8
    values = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width :][: count * width]
    return [values.view(f"f{width}") if types.is_floating(kind) else values]


def _pil(value: Any) -> _Parts:
    if isinstance(value, sys.modules["PIL.Image"].Image):
        if getattr(value, "n_frames", 1) > 1:
            raise ValueError("it has several frames; pass one of them, as its copy() is")
        yield from [("", value.mode), ("", value.size), (".info", value.info)]
        yield from [("", value.getpalette("RGBA")), ("", value.tobytes())]


_LIBRARIES: Mapping[str, Callable[[Any], _Parts]] = {
    "numpy": _numpy,
    "pandas": _pandas,
    "polars": _polars,
    "pyarrow": _arrow,
    "PIL": _pil,
}
