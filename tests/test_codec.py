"""How a value becomes bytes that several processes can map, and comes back (11, 12)."""

from __future__ import annotations

import errno
import gc
import io
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pytest

from panel_schedule.errors import ScheduleError, ValueRefused, ValueUnreadable
from panel_schedule.serialize import codec
from panel_schedule.serialize.codec import ALIGNMENT, Encoded, Inline, Mapped, decode, encode, write_file

ROOT = Path(__file__).parent.parent
LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks /proc")


@dataclass
class Point:
    x: float
    tags: list[str]


@dataclass(frozen=True, slots=True)
class Slotted:
    inner: Any


class Holder:
    def __init__(self, **attributes: Any):
        self.__dict__.update(attributes)


class Raises:
    """Pickles, or unpickles, with an exception of its author."""

    def __init__(self, error: BaseException, *, late: bool):
        self.error, self.late = error, late

    def __reduce__(self) -> Any:
        if self.late:
            return raise_it, (self.error,)
        raise self.error


class Strided:
    """Hands the buffer of an array over as it is."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(self.array),)


def raise_it(error: BaseException) -> None:
    raise error


def through(value: Any) -> Any:
    return decode(bytearray(encode(value, "Task 'sales'").tobytes()))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.fixture
def saved(tmp_path):
    """Encode a value into a file."""

    def save(value: Any) -> Path:
        path = tmp_path / "value"
        write_file(path, encode(value, "Task 'sales'"), sync=False)
        return path

    return save


# ------------------------------------------------------------ round trips


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**80),
        1.5,
        3j,
        "",
        "Grüße \ud800",
        "of __main__ and bokeh_app_1",
        b"",
        b"\0" * 100_000,
        bytearray(b"abc"),
        [],
        {"a": [1, (2, {3}, frozenset({4}))], None: {"b": {}}},
        deque([1, 2], maxlen=3),
        range(5),
        Decimal("1.10"),
        Fraction(1, 3),
        UUID(int=5),
        Path("/tmp"),
        date(2024, 2, 29),
        timedelta(microseconds=1),
        datetime(2024, 5, 1, 12, tzinfo=UTC),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        Point(1.5, ["a"]),
        Slotted({"x": Point(2, [])}),
        np.float64(1.5),
        np.datetime64("2024-05-01"),
        len,
        Point,
    ],
    ids=repr,
)
def test_plain_data_comes_back(value):
    """Equal, and of the same type."""
    back = through(value)

    assert (type(value), value) == (type(back), back)


def test_what_is_one_object_stays_one():
    """Two names for it, and loops."""
    array, loop = np.arange(3), []
    loop.append(loop)
    back = through({"a": array, "b": array, "loop": loop})

    assert back["a"] is back["b"]
    assert back["loop"][0] is back["loop"]


CUBE = np.arange(24, dtype="f4").reshape(2, 3, 4)
ARRAYS = {
    "C": CUBE,
    "Fortran": np.asfortranarray(CUBE),
    "transposed": CUBE.transpose(1, 0, 2),
    "every other": np.arange(10)[::2],
    "backwards": np.arange(10)[::-1],
    "broadcast": np.broadcast_to(np.float64(2), (3, 4)),
    "0-d": np.array(3.5),
    "0-d time": np.array("2024-05-01", dtype="M8[s]"),
    "empty": np.empty((0, 3)),
    "empty time": np.empty(0, "M8[ns]"),
    "bool": np.array([True, False]),
    "big-endian": np.arange(3, dtype=">i4"),
    "complex": np.array([1 + 2j]),
    "half": np.array([1.5], "f2"),
    "long double": np.array([1.5], np.longdouble),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "no bytes": np.zeros(3, "V0"),
    "void": np.array([b"abc"], "V3"),
    "times": np.array(["2024-05-01", "NaT"], dtype="M8[us]"),
    "durations": np.array([1, 2], dtype="m8[h]"),
    "structured": np.array([(1, 2.5, "2024-05-01")], [("a", "i1"), ("b", "f8", (2,)), ("t", "M8[ns]")]),
    "Fortran times": np.asfortranarray(np.arange(6).reshape(2, 3).astype("M8[s]")),
    "objects": np.array([1, "a", None, {"b": 2}], dtype=object),
    "structured objects": np.array([(1, {"a": 1})], [("a", "i4"), ("o", object)]),
    "StringDType": np.array(["a", "long " * 10], dtype=np.dtypes.StringDType()),
    "record": np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_a_numpy_array_comes_back(array):
    """Of every kind and order."""
    back = through(array)

    assert (type(array), array.dtype, array.shape) == (type(back), back.dtype, back.shape)
    np.testing.assert_array_equal(array, back)
    assert array.flags.fnc == back.flags.fnc


def test_a_read_only_array_stays_one():
    """What its author protected is protected in the copies."""
    array = np.arange(3)
    array.flags.writeable = False

    assert [False, True] == [a.flags.writeable for a in through([array, np.arange(3)])]


def test_a_foreign_buffer_that_is_not_contiguous_is_refused():
    """By pickle itself; a contiguous one comes back."""
    array = np.arange(12, dtype="u1").reshape(3, 4)

    assert array.tobytes() == through(Strided(array))
    with pytest.raises(ValueRefused, match="non-contiguous"):
        through(Strided(array[:, ::2]))


DAYS = pd.date_range("2024-03-30", periods=4, freq="D")
SERIES = {
    "int": pd.Series([1, 2, 3, 4]),
    "text": pd.Series(["a", None, "long " * 10, ""], dtype="str"),
    "objects": pd.Series([1, "a", None, [2]]),
    "category": pd.Series(["a", "b", None, "a"], dtype=pd.CategoricalDtype(["b", "a"], ordered=True)),
    "naive": pd.Series(DAYS),
    "zone": pd.Series(DAYS.tz_localize("Europe/Berlin")),
    "durations": pd.Series(DAYS - DAYS[0]),
    "periods": pd.Series(DAYS.to_period()),
    "intervals": pd.Series(pd.interval_range(0, 4)),
    "Int64": pd.Series([1, None, 3, 4], dtype="Int64"),
    "Arrow": pd.Series([[1], None, [], [2]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "sparse": pd.Series([0, 0, 1, 0], dtype="Sparse[int]"),
}
INDEXES = {
    "range": pd.RangeIndex(4),
    "text": pd.Index(list("abcd"), name="n"),
    "dates": DAYS,
    "zone": DAYS.tz_localize("America/New_York"),
    "multi": pd.MultiIndex.from_product([["a", "b"], DAYS[:2]], names=["x", None]),
    "category": pd.CategoricalIndex(list("aabb")),
}


@pytest.mark.parametrize("series", SERIES.values(), ids=SERIES)
def test_a_pandas_series_comes_back(series):
    """Its dtype, too; alone, and as a column beside others."""
    pd.testing.assert_series_equal(series, through(series))
    frame = pd.DataFrame({"a": series, "b": [1.5, 2, 3, 4], "c": series})
    pd.testing.assert_frame_equal(frame, through(frame))


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_a_pandas_index_comes_back(index):
    """With names, levels and frequency."""
    frame = pd.DataFrame({"a": range(4)}, index=index)
    pd.testing.assert_frame_equal(frame, through(frame), check_freq=True)
    pd.testing.assert_frame_equal(frame.T, through(frame.T))


def test_a_part_of_a_pandas_frame_comes_back():
    """Every other row, no row, no column; with its attrs."""
    frame = pd.DataFrame({"a": range(10), "b": np.arange(10.0), "t": pd.date_range("2024", periods=10)})
    frame.attrs["unit"] = "EUR"
    for part in (frame.iloc[::2], frame.iloc[:0], frame[[]], frame.iloc[::-1, 1:], pd.DataFrame()):
        pd.testing.assert_frame_equal(part, through(part))
        assert part.attrs == through(part).attrs


POLARS = {
    "int": pl.Series([1, None], dtype=pl.UInt8),
    "Int128": pl.Series([1, 2**100], dtype=pl.Int128),
    "float": pl.Series([1.5, None]),
    "bool": pl.Series([True, None]),
    "text": pl.Series(["a", None, "long " * 10]),
    "binary": pl.Series([b"a", None]),
    "categorical": pl.Series(["a", None, "b"], dtype=pl.Categorical),
    "enum": pl.Series(["a", None, "b"], dtype=pl.Enum(["c", "b", "a"])),
    "no enum": pl.Series([], dtype=pl.Enum(["a"])),
    "date": pl.Series([date(2024, 5, 1)]),
    "zone": pl.Series([datetime(2024, 5, 1)]).dt.replace_time_zone("Europe/Berlin"),
    "ms": pl.Series([datetime(2024, 5, 1)], dtype=pl.Datetime("ms")),
    "duration": pl.Series([timedelta(1)]),
    "time": pl.Series([datetime(2024, 5, 1, 3)]).dt.time(),
    "decimal": pl.Series([Decimal("1.230")], dtype=pl.Decimal(20, 3)),
    "list": pl.Series([[1], None, []]),
    "array": pl.Series([[[1], [2]]], dtype=pl.Array(pl.Array(pl.Int8, 1), 2)),
    "struct": pl.Series([{"a": 1, "b": "x"}, None], dtype=pl.Struct({"a": pl.Int8, "b": pl.Enum(["x"])})),
    "null": pl.Series([None, None]),
    "chunks": pl.concat([pl.Series(["a"]), pl.Series(["long " * 10])], rechunk=False),
}


@pytest.mark.parametrize("series", POLARS.values(), ids=POLARS)
def test_a_polars_series_comes_back(series):
    """Its dtype, too; alone, and as a column."""
    pl.testing.assert_series_equal(series, through(series))
    frame = pl.DataFrame({"a": series, "b": range(len(series))})
    pl.testing.assert_frame_equal(frame, through(frame))
    pl.testing.assert_frame_equal(frame[[]], through(frame[[]]))


def test_a_lazy_frame_travels_as_its_plan():
    """It is not computed."""
    frame = pl.LazyFrame({"a": [1, 2, 3]}).filter(pl.col("a") > 1)
    back = through(frame)

    assert isinstance(back, pl.LazyFrame)
    assert [2, 3] == back.collect()["a"].to_list()


def test_polars_works_without_arrow(monkeypatch):
    """By its own pickling, which copies."""
    monkeypatch.setattr(pl.Series, "to_arrow", lambda *_, **__: raise_it(ModuleNotFoundError("pyarrow")))
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", "y"]})

    pl.testing.assert_frame_equal(frame, through(frame))


def test_a_few_rows_leave_the_text_of_the_others_behind():
    """A filter of polars shares the text of all rows with its result."""
    frame = pl.DataFrame({"i": range(10_000), "s": [f"the long text of row {i}" for i in range(10_000)]})

    assert encode(frame.filter(pl.col("i") < 3), "Task 'sales'").size < 3_000


def test_an_arrow_table_comes_back():
    """With schema and metadata."""
    table = pa.table({"a": [1, None], "b": ["x", "y"], "c": [[1], []]}).replace_schema_metadata({"k": "v"})
    back = through(table)

    assert table.equals(back, check_metadata=True)
    assert table.to_batches()[0].equals(through(table.to_batches()[0]))


def test_nothing_imports_polars(monkeypatch):
    """Who does not use it does not pay for it."""
    monkeypatch.delitem(sys.modules, "polars")
    through({"a": np.arange(3)})

    assert "polars" not in sys.modules


# ------------------------------------------------------------ what no other process can import

SETUP = """
from __future__ import annotations
from dataclasses import dataclass
from enum import Enum
import statistics

FACTOR = 3

class Colour(Enum):
    RED = 1

@dataclass
class Result:
    rows: list[int]
    colour: Colour = Colour.RED

    def total(self):
        return FACTOR * statistics.fmean(self.rows)

def make(rows):
    return Result(rows)
"""
READ = """
import sys
import textwrap
from panel_schedule.serialize.codec import Mapped
for value in Mapped.open(sys.argv[1]).load():
    result = value["make"]([1, 2, 3])
    print(value["result"].total(), result.total(), result.colour.name, value["half"](8), value["array"].base is None)
"""


def script(name: str) -> dict[str, Any]:
    """What a script of that name defines, and arrays, which stay out of band."""
    module = ModuleType(name)
    sys.modules[name] = module  # dataclasses look there
    exec(SETUP, module.__dict__)
    divisor = 2
    return {
        "result": module.Result([4, 5]),
        "make": module.make,
        "half": lambda number: number // divisor,
        "array": np.zeros(1000),
    }


@pytest.mark.slow
@pytest.mark.unhurried
def test_classes_and_functions_of_scripts_travel_by_value(saved, monkeypatch):
    """Panel's setup script, which is in nobody's ``sys.modules``, an app's, and ``__main__``."""
    for name in ("panel_setup_module", "bokeh_app_0815", "__main__"):
        monkeypatch.setitem(sys.modules, name, None)
    values = [script("panel_setup_module"), script("bokeh_app_0815"), script("__main__")]
    del sys.modules["panel_setup_module"]
    path = saved(values)
    run = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, cwd=ROOT)

    assert "13.5 6 RED 4 False\n" * 3 == run.stdout.replace("6.0", "6"), run.stderr


@pytest.mark.parametrize("name", ["__main__", "bokeh_app_4711"])
def test_an_importable_looking_script_is_not_trusted(monkeypatch, name):
    """Plain pickle takes its classes by name: this process has the module, and no other has."""
    monkeypatch.setitem(sys.modules, name, None)
    result = script(name)["result"]
    data = encode(result, "Task 'sales'").tobytes()
    monkeypatch.setitem(sys.modules, name, ModuleType(name))

    assert result.total() == decode(data).total()


# ------------------------------------------------------------ not copied


def addresses(value: Any) -> list[int]:
    """Where the data of a value lies."""
    if isinstance(value, np.ndarray):
        return [value.__array_interface__["data"][0]]
    if isinstance(value, pa.Array):
        return [buffer.address for buffer in value.buffers() if buffer is not None]
    if isinstance(value, pa.Table):
        return [at for column in value.columns for chunk in column.chunks for at in addresses(chunk)]
    if isinstance(value, pl.DataFrame):
        newest = pl.CompatLevel.newest()
        return [at for column in value.get_columns() for at in addresses(column.to_arrow(compat_level=newest))]
    if isinstance(value, pd.DataFrame):
        return [at for name in value for at in addresses(value[name].array)]
    if hasattr(value, "_pa_array"):
        return addresses(pa.table({"a": value._pa_array}))
    return addresses(value._ndarray if hasattr(value, "_ndarray") else value._codes)


NUMBER = 20_000
TEXTS = [f"the text of row {i}" for i in range(NUMBER)]
LARGE = {
    "numpy": np.arange(NUMBER),
    "numpy Fortran": np.asfortranarray(np.ones((100, NUMBER // 100))),
    "numpy not contiguous": np.arange(2 * NUMBER)[::2],
    "numpy times": np.arange(NUMBER).astype("M8[s]"),
    "pandas numbers": pd.DataFrame({"a": np.arange(NUMBER), "b": np.ones(NUMBER), "c": np.arange(NUMBER)}),
    "pandas part": pd.DataFrame({"a": np.arange(2 * NUMBER), "b": np.ones(2 * NUMBER)}).iloc[::2],
    "pandas text": pd.DataFrame({"a": TEXTS}),
    "pandas category": pd.DataFrame({"a": ["x", "y"] * (NUMBER // 2)}, dtype="category"),
    "pandas times": pd.DataFrame({"a": pd.date_range("2024", periods=NUMBER, freq="s", tz="UTC"), "b": 1}),
    "arrow": pa.table({"a": np.arange(NUMBER), "b": TEXTS}),
    "polars": pl.DataFrame({"a": np.arange(NUMBER), "b": TEXTS, "t": np.arange(NUMBER).astype("M8[us]")}),
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_large_arrays_are_views_of_what_was_mapped(value):
    """At addresses inside it."""
    data = bytearray(encode(value, "Task 'sales'").tobytes())
    start = np.frombuffer(data, "u1").__array_interface__["data"][0]
    found = addresses(decode(data))

    assert found
    assert [] == [at for at in found if not start <= at < start + len(data)]


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_buffers_are_aligned(value):
    """In the file, and so in memory, where a mapping begins with a page."""
    data = encode(value, "Task 'sales'").tobytes()
    *_, count, _ = codec._HEAD.unpack_from(data)
    spans = list(codec._SPAN.iter_unpack(data[codec._HEAD.size :][: count * codec._SPAN.size]))

    assert count > 1
    assert {0} == {at % ALIGNMENT for at, _ in spans[1:]}
    assert len(data) == sum(spans[-1])


@pytest.mark.parametrize("array", [np.arange(NUMBER), np.arange(NUMBER).astype("M8[s]")], ids=["i8", "M8"])
def test_encoding_copies_no_array(array):
    """It is written from where it lies."""
    chunks = encode({"a": array}, "Task 'sales'")._chunks

    assert any(np.shares_memory(np.frombuffer(chunk, "u1"), array) for chunk in chunks)


# ------------------------------------------------------------ private copies


def test_what_one_writes_nobody_else_sees(saved):
    """Neither other copies, made before and after, nor the file."""
    path = saved({"array": np.arange(10_000), "frame": pd.DataFrame({"a": np.arange(10_000), "s": "x"})})
    before, source = path.read_bytes(), Mapped.open(path)
    one, other = source.load(), source.load()
    one["array"][:] = -1
    one["frame"].loc[0, "a"] = 99
    one["frame"].loc[0, "s"] = "changed"

    assert (-1, 99, "changed") == (one["array"][7], one["frame"].loc[0, "a"], one["frame"].loc[0, "s"])
    for value in (other, source.load(), Mapped.open(path).load()):
        assert (7, 0, "x") == (value["array"][7], value["frame"].loc[0, "a"], value["frame"].loc[0, "s"])
    assert before == path.read_bytes()


def test_a_small_value_is_private_as_well():
    """Of one that stands in a database row."""
    source = Inline(encode({"a": np.arange(3)}, "Task 'sales'").tobytes())
    one = source.load()
    one["a"][0] = 9
    source.close()

    assert [0, 1, 2] == source.load()["a"].tolist()


def test_read_only_bytes_give_read_only_arrays():
    """`decode` neither copies nor writes."""
    array = decode(encode(np.arange(3), "Task 'sales'").tobytes())

    assert not array.flags.writeable


@pytest.mark.parametrize("memory", [True, False])
def test_an_anonymous_value_has_no_name(monkeypatch, memory):
    """In memory, or, where the system cannot, in a file that nobody finds."""
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    array = np.arange(10_000)
    source = Mapped.anonymous(encode(array, "Task 'sales'"))
    one, other = source.load(), source.load()
    one[0] = 5

    assert (5, 0) == (one[0], other[0])


@LINUX
def test_the_memory_goes_with_the_last_array(saved):
    """Not with the value, and not before: the file is long gone."""
    path = saved({"a": np.arange(10_000), "b": pd.DataFrame({"c": np.arange(10_000)})})
    source = Mapped.open(path)
    value = source.load()
    source.close()
    path.unlink()
    part, _ = value["a"][5_000:], value.clear()
    del value
    gc.collect()

    assert mapped(path)
    assert 9_999 == part[-1]
    del part
    gc.collect()
    assert not mapped(path)


@LINUX
def test_closing_gives_the_descriptor_back(saved):
    """At once, again harmlessly; and without a close, with the object. Copies stay."""
    path = saved(np.arange(10_000))

    def descriptors() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

    source = Mapped.open(path)
    assert not os.get_inheritable(source._descriptor.fd)
    assert 1 == descriptors()
    source.close()
    source.close()
    assert 0 == descriptors()
    with pytest.raises(ValueError, match="closed"):
        source.load()
    array = Mapped.open(path).load()
    assert 9_999 == array[-1]
    del array
    gc.collect()
    assert 0 == descriptors()


@LINUX
def test_copies_share_their_pages(saved):
    """All of them, until one is written to."""
    source = Mapped.open(path := saved(np.ones(1_000_000)))
    copies = [source.load() for _ in range(3)]
    assert 3_000_000 == sum(copy.sum() for copy in copies)
    private = 0
    mine = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            mine = line.endswith(str(path))
        elif mine and line.startswith("Private_Dirty:"):
            private += int(line.split()[1])

    assert 0 == private


@pytest.mark.alone
def test_a_copy_costs_the_same_whatever_its_size():
    """200 MB against 1 MB."""

    def cost(megabytes: int) -> float:
        source = Mapped.anonymous(encode({"a": np.ones(megabytes * 125_000)}, "Task 'sales'"))
        costs = []
        for _ in range(50):
            start = time.perf_counter()
            value = source.load()
            costs.append(time.perf_counter() - start)
            del value
        return min(costs)

    assert cost(200) < 3 * cost(1)


# ------------------------------------------------------------ unreadable


def value_with_everything() -> dict[str, Any]:
    return {"n": list(range(50)), "a": np.arange(100), "b": np.arange(9.0), "df": pd.DataFrame({"a": [1], "b": ["x"]})}


def boundaries(data: bytes) -> set[int]:
    *_, count, _ = codec._HEAD.unpack_from(data)
    at = codec._HEAD.size
    edges = {0, 1, 7, 8, 12, at - 4, at, at + 16 * count, len(data)}
    for offset, length in codec._SPAN.iter_unpack(data[at : at + 16 * count]):
        edges |= {offset, offset + length}
    return {edge + near for edge in edges for near in (-1, 0, 1) if 0 <= edge + near < len(data)}


def test_a_truncated_file_gives_no_value(tmp_path):
    """Wherever it ends; and the process survives looking."""
    data = encode(value_with_everything(), "Task 'sales'").tobytes()
    path = tmp_path / "value"
    for length in sorted(boundaries(data) | set(range(0, len(data), 97))):
        path.write_bytes(data[:length])
        for source in (Mapped.open(path), Inline(data[:length])):
            with pytest.raises(ValueUnreadable, match="it is torn or truncated"):
                source.load()
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueUnreadable, match="it is torn or truncated"):
        Mapped.open(path).load()


def test_a_flipped_byte_gives_no_value():
    """In the header, the table or the pickle: everything that could send a reader astray."""
    data = encode(value_with_everything(), "Task 'sales'").tobytes()
    offset, length = codec._SPAN.unpack_from(data, codec._HEAD.size)
    chance = random.Random(1)
    for at in [*range(codec._HEAD.size + 200), *(chance.randrange(offset + length) for _ in range(1_000))]:
        torn = bytearray(data)
        torn[at] ^= chance.randrange(1, 256)
        with pytest.raises(ValueUnreadable):
            decode(torn)


def test_pages_that_never_reached_the_disk_give_no_value():
    """Of the right length, and zero, after a loss of power."""
    data = bytearray(encode([list(range(9_000)), np.arange(9)], "Task 'sales'").tobytes())
    data[4096:8192] = bytes(4096)

    with pytest.raises(ValueUnreadable, match="it is torn or truncated"):
        decode(data)


@pytest.mark.parametrize("data", [b"SQLite format 3\0" * 10, b"x", bytes(100_000), pickle.dumps([1])], ids=len)
def test_a_foreign_file_gives_no_value(tmp_path, data):
    """Nor is it unpickled."""
    path = tmp_path / "value"
    path.write_bytes(data)

    with pytest.raises(ValueUnreadable, match="it was not written by panel-schedule"):
        Mapped.open(path).load()


def test_a_newer_format_is_named(monkeypatch):
    """After a downgrade."""
    monkeypatch.setattr(codec, "FORMAT", codec.FORMAT + 1)
    data = encode([1], "Task 'sales'").tobytes()
    monkeypatch.undo()

    with pytest.raises(ValueUnreadable, match="it was written by a newer version of panel-schedule"):
        decode(data)


def test_what_no_longer_unpickles_says_why(monkeypatch):
    """A class was renamed since."""
    data = encode(Point(1, []), "Task 'sales'").tobytes()
    monkeypatch.delattr(sys.modules[__name__], "Point")

    with pytest.raises(ValueUnreadable, match=r"it no longer unpickles: AttributeError: .*Point") as caught:
        decode(data)
    assert isinstance(caught.value.__cause__, AttributeError)
    assert isinstance(caught.value, (ScheduleError, ValueError))


@pytest.mark.parametrize("error", [OSError("boom"), MemoryError("boom"), RecursionError("boom"), StopIteration("boom")])
def test_a_class_that_raises_gives_no_value(error):
    """Whatever it raises."""
    with pytest.raises(ValueUnreadable, match=f"no longer unpickles: {type(error).__name__}: boom") as caught:
        through([1, Raises(error, late=True)])
    assert isinstance(caught.value.__cause__, type(error))


def test_an_interruption_is_none_of_a_value():
    """Ctrl-C while it is read."""
    with pytest.raises(KeyboardInterrupt):
        through(Raises(KeyboardInterrupt(), late=True))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    """As anywhere."""
    with pytest.raises(FileNotFoundError):
        Mapped.open(tmp_path / "value")


# ------------------------------------------------------------ refused

LOCK = threading.Lock()
PATHS = {
    "value": LOCK,
    "value['rows'][3]": {"rows": [1, 2, "x", LOCK]},
    "value[1]['a']": (1, {"a": LOCK}),
    "value[0]": {LOCK},
    "value.x": Point(LOCK, []),
    "value.inner['k']": Slotted({"k": LOCK}),
    "value['a'].deep.er[0]": {"a": Holder(deep=Holder(er=[LOCK]))},
    "value['o'][1]": pd.DataFrame({"a": [1, 2], "o": [1, LOCK]}),
    "value['o']['x']['deep']": pd.DataFrame({"o": [{}, {"deep": LOCK}]}, index=["w", "x"]),
    "value[(1, 0)]": np.array([[1], [LOCK]], dtype=object),
    "value[5000]": [*range(5000), LOCK],
}


@pytest.mark.parametrize(("path", "value"), PATHS.items(), ids=PATHS)
def test_what_cannot_be_pickled_is_named(path, value):
    """Whose it is, where it is, what it is, why not, and what to do instead (11)."""
    with pytest.raises(ValueRefused) as caught:
        encode(value, "Task 'sales'")

    told = str(caught.value)
    assert told.startswith(f"Task 'sales': {path} is a _thread.lock, which cannot be shared by processes (TypeError: ")
    assert "Return plain data" in told
    assert isinstance(caught.value.__cause__, TypeError)


def test_it_is_named_while_another_thread_imports_pandas(monkeypatch):
    """Which is among the modules then, and has nothing yet."""
    monkeypatch.setitem(sys.modules, "pandas", ModuleType("pandas"))
    with pytest.raises(ValueRefused, match=r"value\['a'\] is a _thread.lock"):
        encode({"a": LOCK}, "Task 'sales'")


@pytest.mark.parametrize(
    ("value", "kind"),
    [((i for i in "ab"), "generator"), (open(os.devnull, "rb"), "_io.BufferedReader"), (io, "")],  # noqa: SIM115
    ids=["generator", "file", "module"],
)
def test_usual_suspects(value, kind):
    """A generator, an open file. A module is importable, and so travels."""
    if not kind:
        assert value is through(value)
        return
    with pytest.raises(ValueRefused, match=f"value is a {kind}, "):
        encode(value, "Task 'sales'")


def test_a_culprit_behind_a_class_of_a_script_is_named():
    """It comes along by value, with the globals that its methods use."""
    module = ModuleType("panel_setup_module")
    exec("from threading import Lock\nlock = Lock()\nclass Result:\n    def get(self): return lock", module.__dict__)

    with pytest.raises(ValueRefused, match=r"value \(a panel_setup_module.Result\) holds a _thread.lock, which"):
        encode(module.Result(), "Task 'sales'")


def test_an_exception_of_the_authors_reduce_is_a_refusal():
    """With its text, and as the cause."""
    error = ZeroDivisionError("boom")
    with pytest.raises(ValueRefused, match=r"value\['a'\] is a test_codec.Raises, .*\(ZeroDivisionError: boom\)") as it:
        encode({"a": Raises(error, late=False)}, "Task 'sales'")
    assert error is it.value.__cause__


@pytest.mark.parametrize("more", [None, lambda: 1], ids=["plain", "by value"])
def test_a_value_that_is_too_deep_is_a_refusal(more):
    """Such as a chain of objects, each with a link to the next."""
    with pytest.raises(ValueRefused, match=r"Task 'sales': .* deep") as caught:
        encode([more, nested(100_000)], "Task 'sales'")
    assert caught.value.__cause__ is not None


def test_a_lack_of_memory_is_not_the_values_fault():
    """It passes."""
    with pytest.raises(MemoryError):
        encode(Raises(MemoryError(), late=False), "Task 'sales'")


def test_python_objects_in_polars_are_refused():
    """Arrow would take them for numbers: their addresses."""
    with pytest.raises(ValueRefused, match=r"Object"):
        encode(pl.DataFrame({"a": [object()]}), "Task 'sales'")


def test_the_diagnosis_hurts_nobody():
    """An object that cannot even be looked at."""

    class Nasty:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __repr__(self) -> str:
            raise RuntimeError("repr")

    with pytest.raises(ValueRefused, match="Task 'sales': "):
        encode({Nasty(): LOCK}, "Task 'sales'")


# ------------------------------------------------------------ written


def test_thousands_of_buffers_are_written():
    """More than one writev takes."""
    value = [np.full(5, number) for number in range(3_000)]
    encoded = encode(value, "Task 'sales'")
    back = Mapped.anonymous(encoded).load()

    assert len(encoded._chunks) > 3_000
    assert encoded.size == len(encoded.tobytes())
    np.testing.assert_array_equal(value, back)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_write_goes_on_where_the_system_stopped(monkeypatch, tmp_path, at_once):
    """Partial writes, and the limits of one call."""
    writev = os.writev
    chance = random.Random(1)
    sizes: list[int] = []

    def partial(fd: int, buffers: list[memoryview]) -> int:
        sizes.append(sum(map(len, buffers)))
        return writev(fd, [b"".join(buffers)[: chance.randrange(1, 90)]])

    monkeypatch.setattr(os, "writev", partial)
    monkeypatch.setattr(codec, "_AT_ONCE", at_once)
    monkeypatch.setattr(codec, "_BYTES_AT_ONCE", 100)
    encoded = encode([np.arange(100), np.zeros(0), np.arange(7.0)], "Task 'sales'")
    write_file(tmp_path / "value", encoded, sync=False)

    assert encoded.tobytes() == (tmp_path / "value").read_bytes()
    assert max(sizes) <= 100


def test_it_is_written_where_there_is_no_writev(monkeypatch, tmp_path):
    """As on Windows."""
    monkeypatch.delattr(os, "writev", raising=False)
    write_file(tmp_path / "value", encode(np.arange(1_000), "Task 'sales'"), sync=True)

    assert 999 == Mapped.open(tmp_path / "value").load()[-1]


def test_a_file_is_private_and_written_once(saved):
    """Nobody else may read it, and none is replaced."""
    path = saved("first")

    assert 0o600 == path.stat().st_mode & 0o777
    with pytest.raises(FileExistsError):
        saved("second")
    assert "first" == Mapped.open(path).load()


@pytest.mark.parametrize("function", ["writev", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_failed_write_leaves_nothing_behind(monkeypatch, tmp_path, function, error):
    """Neither a file nor a descriptor, though a part was written."""
    real = getattr(os, function)

    def fail(fd: int, *arguments: Any) -> None:
        real(fd, *(part[:1] for part in arguments))
        raise error

    encoded = encode(np.arange(1_000), "Task 'sales'")
    monkeypatch.setattr(os, function, fail)
    open_before = len(os.listdir("/dev/fd"))
    with pytest.raises(type(error)) as caught:
        write_file(tmp_path / "value", encoded, sync=True)

    assert error is caught.value
    assert ([], open_before) == (os.listdir(tmp_path), len(os.listdir("/dev/fd")))


def test_sync_is_asked_for(monkeypatch, tmp_path):
    """Only where it is needed: it costs milliseconds."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    encoded: Encoded = encode([1], "Task 'sales'")
    write_file(tmp_path / "a", encoded, sync=False)
    assert [] == synced
    write_file(tmp_path / "b", encoded, sync=True)
    assert 1 == len(synced)


@pytest.mark.slow
@pytest.mark.unhurried
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_leaves_no_views_to_the_garbage_collector():
    """CPython crashes when it collects views of views that an exception keeps in a cycle."""
    code = """
        import gc, os
        import numpy as np
        from panel_schedule.serialize.codec import encode

        def fail():
            encoded = encode({"a": np.zeros(100_000), "b": np.ones(50_000)}, "it")
            try:
                encoded.write(os.open("/dev/full", os.O_WRONLY))
            except OSError as error:
                kept = error
            finally:
                encoded.close()
            return 1

        for _ in range(20):
            fail()
            gc.collect()
        print("alive")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)

    assert (0, "alive", "") == (done.returncode, done.stdout.strip(), done.stderr)


class Leaves:
    def __setstate__(self, state):
        raise SystemExit(3)

    def __getstate__(self):
        return {"a": 1}


def test_a_value_that_wants_to_leave_is_unreadable():
    """``SystemExit`` would end the thread that reads, and nobody would hear of it."""
    with pytest.raises(ValueUnreadable, match="SystemExit"):
        decode(bytearray(encode(Leaves(), "it").tobytes()))


SLOTS = """
import dataclasses, enum, typing, weakref
T = typing.TypeVar("T")
@dataclasses.dataclass(slots=True)
class Row:
    n: int = 1
@dataclasses.dataclass(slots=True)
class Child(Row):
    m: int = 2
@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Frozen:
    n: int = 1
class Private:
    __slots__ = ("__n", "__weakref__")
    def __init__(self): self.__n = 1
    def __eq__(self, other): return self.__n == other.__n
    __hash__ = None
class One:
    __slots__ = "n"
    def __init__(self): self.n = 1
    def __eq__(self, other): return self.n == other.n
    __hash__ = None
class Open(One):
    def __init__(self): self.n, self.extra = 1, 2
class WithDict:
    __slots__ = ("n", "__dict__")
    def __init__(self): self.n, self.extra = 1, 2
    def __eq__(self, other): return (self.n, self.extra) == (other.n, other.extra)
    __hash__ = None
class Named(typing.NamedTuple):
    n: int = 1
class Generic(typing.Generic[T]):
    __slots__ = ("n",)
    def __init__(self): self.n = 1
    def __eq__(self, other): return self.n == other.n
    __hash__ = None
class Color(enum.Enum):
    RED = 1
values = [Row(), Child(), Frozen(), Private(), One(), Open(), WithDict(), Named(), Generic(), Color.RED]
"""


@pytest.mark.slow
@pytest.mark.unhurried
def test_classes_with_slots_travel_by_value_there_and_back(tmp_path, monkeypatch):
    """Another process gets objects with slots, and what it sends back are objects of the classes here."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(SLOTS, vars(module))
    path = tmp_path / "value"
    path.write_bytes(encode(module.values, "Task 'sales'").tobytes())
    echo = (
        "import sys, pathlib; from panel_schedule.serialize.codec import decode, encode;"
        "path = pathlib.Path(sys.argv[1]);"
        "values = decode(bytearray(path.read_bytes())); print([hasattr(value, '__dict__') for value in values]);"
        "path.write_bytes(encode(values, '').tobytes())"
    )
    run = subprocess.run([sys.executable, "-c", echo, str(path)], capture_output=True, text=True, cwd=ROOT)
    back = decode(bytearray(path.read_bytes()))

    assert str([hasattr(value, "__dict__") for value in module.values]) == run.stdout.strip(), run.stderr
    assert module.values == back
    assert [type(value) for value in module.values] == [type(value) for value in back]


@pytest.mark.parametrize(
    "labels",
    [
        pd.Index(["a", "b"]),
        pd.Index(["a", None], name="letters"),
        pd.Index([f"row {number}" for number in range(1000)]),
        pd.Index([("a", 1), "b"], dtype=object),
        pd.Index(["a"], name=("a", 1)),
        pd.Index([], dtype="str"),
        pd.RangeIndex(3, 1_000_000, 2, name="rows"),
        pd.Index([1.5, 2.5]),
        pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]),
        pd.CategoricalIndex(["a", "b", "a"]),
    ],
    ids=repr,
)
def test_labels_are_each_values_own(labels):
    """Though they are made once: with their type and name, and nothing that is done to one is done to another."""
    frame = pd.DataFrame({"value": range(len(labels))}, index=labels)
    one, other = (decode(bytearray(encode(frame, "Task 'sales'").tobytes())) for _ in range(2))
    pd.testing.assert_frame_equal(frame, one)
    assert (type(labels), labels.dtype, labels.name) == (type(one.index), one.index.dtype, one.index.name)

    one.index.name = "mine"
    with suppress(ValueError, TypeError, IndexError):
        one.index.values[0] = one.index.values[-1]
    with suppress(ValueError, TypeError, IndexError):
        one.index.array[0] = one.index.array[-1]

    pd.testing.assert_frame_equal(frame, other)
    assert other.index.name == labels.name


@pytest.mark.parametrize("name", ["pandas", "polars", "numpy"])
def test_a_library_that_another_thread_imports_is_in_nobodys_way(monkeypatch, name):
    """It has some of its names already, and no version."""
    half = ModuleType(name)
    half.RangeIndex = object
    monkeypatch.setitem(sys.modules, name, half)
    assert [1, "a"] == decode(bytearray(encode([1, "a"], "Task 'sales'").tobytes()))
