"""Equal calls have equal keys, in every process; other calls have others; what has no content is refused."""

from __future__ import annotations

import importlib.resources
import math
import os
import random
import re
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import KEEP, Enum, Flag, IntEnum, IntFlag
from fractions import Fraction
from functools import cached_property, partial, singledispatch
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, Generic, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import cloudpickle
import numpy as np
import pandas as pd
import panel as pn
import polars as pl
import pyarrow as pa
import pydantic
import pydantic.v1
import pytest
from PIL import Image

from panel_schedule.errors import ArgumentUnkeyable, ScheduleError
from panel_schedule.hashing import content
from panel_schedule.hashing.content import set_hasher
from panel_schedule.hashing.fingerprint import fingerprint
from panel_schedule.hashing.keys import Keys, arguments_text, digested

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
BERLIN = ZoneInfo("Europe/Berlin")


class Color(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1


class Way(Flag):
    UP = 1
    DOWN = 2


class Right(IntFlag, boundary=KEEP):
    READ = 1
    WRITE = 2


class Query(pydantic.BaseModel):
    region: str = "north"
    years: Any = ()
    _unit: Any = pydantic.PrivateAttr("m")

    @cached_property
    def text(self) -> str:
        return self.region.upper()


class Search(Query):
    pass


class Open(pydantic.BaseModel, extra="allow"):
    pass


class Page(pydantic.BaseModel, Generic[T]):
    items: T


class Former(pydantic.v1.BaseModel):
    region: str = "north"
    years: Any = ()
    _unit: Any = pydantic.v1.PrivateAttr("m")


class Latter(Former):
    pass


@dataclass
class Point:
    x: Any
    y: Any = 0


@dataclass
class Place:
    x: Any
    y: Any = 0


@dataclass(frozen=True, slots=True)
class Slotted:
    x: Any


class Undecorated(Point):
    pass


Pair = namedtuple("Pair", "x y")
Couple = namedtuple("Couple", "x y")


class MyStr(str):
    pass


class MyInt(int):
    pass


class MyDict(dict):
    pass


class MyList(list):
    pass


class Opaque:
    pass


def of(value: Any) -> str:
    return Keys("f", lambda x: None).digest((value,), {})


def with_attributes(value: Any, **attributes: Any) -> Any:
    vars(value).update(attributes)
    return value


def changed(value: Any, at: int) -> Any:
    value = value.copy()
    value[at] += 1
    return value


# ------------------------------------------------------------ what is told apart

NUMBERS = np.arange(1_000_000, dtype="f8")
FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
TABLE = pa.table({"a": [1, 2], "b": ["x", None]})
DAYS = pd.date_range("2026-01-01", periods=3)

PLAIN = [
    *(None, "None", "", "0", 0, -1, 1, 1.0, True, False, 0.0, -0.0, math.nan, "nan", math.inf, "0.0", 1j, 10**5000),
    *(-(10**5000), 2**64, 2**64 + 1, float(2**64), "a", b"a", bytearray(b"a"), b"", bytearray(), "\ud800", "\\ud800"),
    *("ä", "a\u0308", "\0", "a" * 1000, "a" * 1001, b"a" * 1000, ..., "Ellipsis", MyStr("a"), MyInt(1), "5:abc"),
    *(with_attributes(MyStr("a"), unit="m"), Color.RED, Color.BLUE, Level.LOW, Way.UP, Way.UP | Way.DOWN, Way(0)),
    *(range(0), range(3), range(1, 3), range(0, 3, 2), slice(3), slice(0, 3), slice(None, 3, 1), int, "int", str, len),
    *(math.sin, np.sin, np.mean, of, Color, Point, pd.DataFrame, np.float64),
]
NESTED = [
    *(
        (),
        [],
        set(),
        {},
        frozenset(),
        ((),),
        ([],),
        [()],
        [[]],
        [[], []],
        [[[]]],
        ("a", "bc"),
        ("ab", "c"),
        ["a", "bc"],
    ),
    *(["ab", "c"], ["abc"], {"a", "bc"}, frozenset({"a", "bc"}), (1, "a"), ("a", 1), ("1", "a"), (1, 2), ((1, 2),)),
    *([1, 2], {1, 2}, {1.0, 2}, {1: 2}, {2: 1}, {"1": 2}, {1: "2"}, {1: {2: 3}}, {1: 2, 3: None}, [(1, 2)], [[1, 2]]),
    *([1, [2]], [1, (2,)], ([1], 2), ([1, 2],), (None,), (None, None), [None], ["a", None, "b"], ["a", "b", None]),
    *(["a", 1, "b"], [1, "a", "b"], [True, "a", "b"], Pair(1, 2), Couple(1, 2), MyList([1, 2]), MyDict({1: 2})),
    *(OrderedDict({1: 2, 3: 4}), OrderedDict({3: 4, 1: 2}), {1: 2, 3: 4}, defaultdict(int, {1: 2}), defaultdict(list)),
    *(
        defaultdict(list, {1: 2}),
        deque([1, 2]),
        deque([1, 2], 5),
        Point(1),
        Point(1, 2),
        Place(1),
        Point([1]),
        Slotted(1),
    ),
    *({"x": 1, "y": 0}, {("a",): "b"}, {"a": ("b",)}, (0.0,), (-0.0,), (math.nan,), ("nan",), ((1, int),), (1, int)),
]
TIMES = [
    *(
        date(2026, 1, 2),
        datetime(2026, 1, 2),
        "2026-01-02",
        datetime(2026, 1, 2, tzinfo=UTC),
        time(1),
        time(1, tzinfo=UTC),
    ),
    *(datetime(2026, 1, 2, tzinfo=BERLIN), datetime(2026, 1, 2, 1, tzinfo=BERLIN), datetime(2026, 1, 2, fold=1)),
    *(datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1))), datetime(2026, 1, 2, tzinfo=ZoneInfo("UTC"))),
    *(timedelta(1), timedelta(seconds=1), BERLIN, UTC, ZoneInfo("UTC"), "UTC", Decimal("1.0"), Decimal("1.00")),
    *(
        Decimal("NaN"),
        Fraction(1, 2),
        Fraction(2),
        UUID(int=1),
        UUID(int=2),
        PurePosixPath("a/b"),
        PureWindowsPath("a/b"),
    ),
    *(
        Path("a"),
        Path("b"),
        pd.Timestamp("2026-01-02"),
        pd.Timestamp("2026-01-02", tz="UTC"),
        pd.Timedelta("1D"),
        pd.NaT,
    ),
    *(
        pd.Timestamp("2026-01-02").as_unit("ns"),
        pd.NA,
        pd.Period("2026-01"),
        pd.Period("2026-01-01"),
        pd.Interval(0, 1),
    ),
    *(pd.Interval(0, 1, "left"), np.datetime64("2026-01-02"), np.datetime64("2026-01-02", "s"), np.datetime64("NaT")),
]
ARRAYS = [
    *(NUMBERS, changed(NUMBERS, 0), changed(NUMBERS, 499_999), changed(NUMBERS, 999_999), NUMBERS.reshape(1000, 1000)),
    *(NUMBERS[:-1], np.float64(1), np.float32(1), np.int64(1), np.bool_(True), np.str_("a"), np.bytes_(b"a")),
    *(np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(0, "i8"), np.array(1.0), np.array([1.0]), np.zeros(4)),
    *(
        np.zeros((2, 2)),
        np.zeros(8, "f4"),
        np.zeros(4, "i8"),
        np.array([1, 2]),
        np.array([1, 2], ">i8"),
        np.array(["a"]),
    ),
    *(np.array(["a", "b"]), np.array(["a", "b"], "U9"), np.array(["a", "b"], object), np.array([b"a", b"b"])),
    *(np.array(["a", "b"], np.dtypes.StringDType()), np.array([1, "1"], object), np.array([1, 1], object)),
    *(
        np.array([None, "1"], object),
        np.array([[1], [2, 3]], object),
        np.array([1, 2], "M8[s]"),
        np.array([1, 2], "m8[s]"),
    ),
    *(np.array([1, 2], "M8[ms]"), np.array([(1, 2.0)], "i8,f8"), np.array([(1, 3.0)], "i8,f8"), np.array([1, 2], "g")),
    *(np.array([(1, 2.0)], [("a", "i8"), ("b", "f8")]), np.array([1, np.longdouble(2) + np.finfo("g").eps * 2], "g")),
    *(np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0]), np.ma.array([1, 2])),
    *(np.array([1 + 2j]), np.array([math.nan]), np.array([math.nan, 1]), np.array([math.inf])),
]
PANDAS = [
    *(FRAME, FRAME.rename(columns={"a": "c"}), FRAME[["b", "a"]], FRAME.set_index("a"), FRAME.astype({"a": "i4"})),
    *(
        FRAME.astype({"a": "Int64"}),
        FRAME.astype({"b": object}),
        FRAME.astype({"b": "category"}),
        FRAME.replace("y", "z"),
    ),
    *(FRAME.set_axis([1, 2]), FRAME.set_axis([0, 2]), FRAME.set_axis(["0", "1"]), FRAME.rename_axis("n"), FRAME.T),
    *(FRAME.astype({"b": pd.StringDtype("python", na_value=math.nan)}), FRAME.astype({"a": "int64[pyarrow]"})),
    *(FRAME.iloc[:1], FRAME.iloc[:0], FRAME[[]], pd.DataFrame(), FRAME["a"], FRAME["a"].rename("b"), FRAME["b"]),
    *(FRAME["a"].array, FRAME.index, FRAME.columns, pd.Index([0, 1]), pd.Index([0, 1], name="i"), pd.Index([0.0, 1.0])),
    *(pd.Series([1, None], dtype="Int64"), pd.Series([None, 1], dtype="Int64"), pd.Series([0, 1], dtype="Int64")),
    *(pd.Series([True, None], dtype="boolean"), pd.Series([True, None], dtype=object), pd.Series([True, False])),
    *(pd.Series(["a", None]), pd.Series([None, "a"]), pd.Series(["a", ""]), pd.Series(["a", None], dtype=object)),
    *(
        pd.Series(["a", "bc"]),
        pd.Series(["ab", "c"]),
        pd.Series(["a", "bc"], dtype=object),
        pd.Series(["a", "bc"], dtype="string"),
    ),
    *(
        DAYS,
        DAYS.tz_localize("UTC"),
        DAYS.tz_localize(BERLIN),
        DAYS.as_unit("ns"),
        DAYS._with_freq(None),
        DAYS.to_period("D"),
    ),
    *(DAYS.to_period("M"), DAYS - DAYS[0], DAYS.to_series(), pd.Series(DAYS), pd.Series([DAYS[0], pd.NaT])),
    *(pd.Categorical(["a", "b"]), pd.Categorical(["a", "b"], ordered=True), pd.Categorical(["a", "b"], ["b", "a"])),
    *(pd.Categorical(["a", "b"], ["a", "b", "c"]), pd.Categorical(["a", None], ["a", "b"])),
    *(pd.MultiIndex.from_product([[1, 2], ["a"]]), pd.MultiIndex.from_product([[1, 2], ["a"]], names=["x", "y"])),
    *(pd.MultiIndex.from_product([[1, 3], ["a"]]), pd.interval_range(0, 2), pd.interval_range(0, 2, closed="left")),
    *(
        pd.arrays.SparseArray([0, 1]),
        pd.arrays.SparseArray([0, 1], fill_value=1),
        with_attributes(FRAME.copy(), _attrs={"a": 1}),
    ),
]
ARROW = [
    *(TABLE, TABLE.rename_columns(["a", "c"]), TABLE.slice(1), TABLE.to_batches()[0], TABLE["a"], TABLE["b"]),
    *(
        TABLE["a"].chunk(0),
        TABLE.replace_schema_metadata({"a": "b"}),
        TABLE.cast(pa.schema([("a", "i4"), ("b", "str")])),
    ),
    *(pa.array([], t) for t in ("i8", "i4", "str", "null")),
    *(pa.array(v) for v in ([1, None], [None, 1], [1, 0], [None], [None, None], ["a", "bc"], ["ab", "c"], ["a", None])),
    *(
        pa.array(v)
        for v in (
            [[1], [2, 3]],
            [[1, 2], [3]],
            [[1, 2], None, [3]],
            [{"a": 1}],
            [{"a": None}],
            [{"b": 1}],
            [None, {"a": 1}],
        )
    ),
    *(
        pa.array(v)
        for v in ([True, False], [True, None], [b"a", b"bc"], [Decimal("1.1")], [1.5, math.nan], [1.5, None])
    ),
    *(pa.array(["a", "bc"], t) for t in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))),
    *(pa.array([1], t) for t in (pa.timestamp("s"), pa.timestamp("s", "UTC"), pa.timestamp("ms"), pa.date32())),
    *(pa.array([[("k", 1)], v], pa.map_(pa.string(), pa.int64())) for v in (None, [], [("k", 2)])),
    *(
        pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
        pa.array([[1, 2]], pa.list_view(pa.int64())),
        pa.scalar("a"),
        pa.scalar(1),
    ),
    *(pa.scalar(None), pa.scalar(None, "i8"), pa.scalar([1]), pa.array([b"abcd"], pa.binary(4))),
]
POLARS = [
    *(
        pl.DataFrame({"a": v})
        for v in ([1, 2], [1, None], [None, 1], ["a", "bc"], ["ab", "c"], [[1], [2, 3]], [{"x": 1}] * 2)
    ),
    *(
        pl.DataFrame({"b": [1, 2]}),
        pl.DataFrame({"a": [1, 2]}, {"a": pl.Int32}),
        pl.DataFrame(),
        pl.Series("a", [1, 2]),
    ),
    *(
        pl.Series([1, 2]),
        pl.Series([1, 2], dtype=pl.Int128),
        pl.Series([date(2026, 1, 2)]),
        pl.Series([datetime(2026, 1, 2)]),
    ),
    *(pl.Series(["a", "b"], dtype=t) for t in (pl.Categorical, pl.Enum(["a", "b"]), pl.Enum(["b", "a"]), pl.String)),
    *(pl.Series([Point(1)]), pl.Series([Point(2)]), pl.Series([(1,)], dtype=pl.Object), pl.Series([Decimal("1.0")])),
]
PICTURE = Image.new("RGB", (2, 2))
OFFSETS = pd.offsets


def marked(picture: Image.Image, **info: Any) -> Image.Image:
    picture = picture.copy()
    picture.info.update(info)
    return picture


def with_unit(query: Any, unit: Any) -> Any:
    query._unit = unit
    return query


OTHERS = [
    *(re.compile("a"), re.compile("a", re.IGNORECASE), re.compile("b"), re.compile(b"a")),
    *(partial(of, 1), partial(of, 2), partial(of, value=1), partial(of, value=2), partial(of), partial(changed, 1)),
    *(partial(of, 1, 2), partial(of, (1, 2)), with_attributes(partial(of, 1), unit="m"), partial(partial, of, 1)),
    *(Right.READ, Right.READ | Right.WRITE, Right(8), Right(9), Right(0)),
    *(Query(), Query(region="south"), Query(years=[1]), Query(years=(1,)), with_unit(Query(), "km"), Search()),
    *(Open(), Open(a=1), Open(a=2), Open(b=1), Page(items=1), Page[int](items=1), Page[str](items="1")),
    *(Former(), Former(region="south"), Former(years=[1]), with_unit(Former(), "km"), Latter()),
    *(PICTURE, Image.new("RGB", (4, 1)), Image.new("RGB", (2, 2), "red"), Image.new("RGBA", (2, 2))),
    *(Image.new("L", (2, 2)), Image.new("P", (2, 2)), marked(PICTURE, dpi=(1, 1)), PICTURE.quantize(2)),
    *(OFFSETS.Day(), OFFSETS.Day(2), OFFSETS.Day(-1), OFFSETS.Hour(), OFFSETS.Hour(24), OFFSETS.MonthEnd()),
    *(OFFSETS.MonthEnd(normalize=True), OFFSETS.MonthBegin(), OFFSETS.Week(), OFFSETS.Week(weekday=0), OFFSETS.BDay()),
    *(OFFSETS.CDay(), OFFSETS.CDay(holidays=["2026-01-01"]), OFFSETS.CDay(weekmask="Sun"), pd.DateOffset(days=1)),
    *(pd.DateOffset(day=1), pd.DateOffset(months=1), pd.DateOffset(), pd.DateOffset(2), OFFSETS.BusinessHour()),
    *(OFFSETS.BusinessHour(start="08:00"), OFFSETS.QuarterEnd(startingMonth=1), OFFSETS.QuarterEnd(startingMonth=2)),
]
FAMILIES = {
    "others": OTHERS,
    "plain": PLAIN,
    "nested": NESTED,
    "times": TIMES,
    "arrays": ARRAYS,
    "pandas": PANDAS,
    "arrow": ARROW,
    "polars": POLARS,
}


def test_no_two_different_values_have_the_same_key() -> None:
    values = [value for family in FAMILIES.values() for value in family]
    seen: dict[str, Any] = {}
    for value in values:
        key = of(value)
        assert key not in seen, f"{seen[key]!r} and {value!r} have the same key"
        seen[key] = value


def test_what_separates_values_separates_local_keys_of_plain_ones() -> None:
    keys = Keys("f", lambda x: None)
    assert len(PLAIN) == len({keys.local((value,), {}) for value in PLAIN})


# ------------------------------------------------------------ what is the same

QUIET_NAN = np.frombuffer(b"\1\0\0\0\0\0\xf8\xff")[0]  # another one than that of numpy.nan
SQUARE = np.arange(1_000_000).reshape(1000, 1000)
PADDED = np.dtype([("a", "i1"), ("b", "f8")], align=True)


def padded(rubbish: int) -> np.ndarray:
    array = np.frombuffer(bytes([rubbish]) * 32, PADDED).copy()
    array["a"], array["b"] = 1, 2
    return array


def hidden(*under: int) -> pa.Array:
    return pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\1"), pa.py_buffer(np.array([1, *under]))])


def renewed(frame: pd.DataFrame) -> pd.DataFrame:
    """Equal, and laid out in another way."""
    return pd.concat({name: frame[name].copy() for name in frame}, axis=1)


SAME = {
    "nan": (math.nan, float("-nan")),
    "nan in a tuple": ((1, math.nan), (1, float(QUIET_NAN))),
    "nan in arrays": (np.array([1, math.nan]), np.array([1, QUIET_NAN])),
    "nan in complex arrays": (np.array([1, complex(0, math.nan)]), np.array([1, complex(0, QUIET_NAN)])),
    "nan in frames": (pd.DataFrame({"a": [math.nan]}), pd.DataFrame({"a": [QUIET_NAN]})),
    "nan in arrow": (pa.array([1.0, math.nan]), pa.array([1.0, QUIET_NAN])),
    "order of a dict": ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
    "order of a set": ({"a", "b", 1, (2,)}, {(2,), 1, "b", "a"}),
    "order of nested dicts": ([{1: {2: 3, 4: 5}}], [{1: {4: 5, 2: 3}}]),
    "equal, not identical": ([("a" * 500,)], [("".join(["a"] * 500),)]),
    "shared or not": ([(x := [1]), x], [[1], [1]]),
    "ranges": (range(0, 3, 2), range(0, 4, 2)),
    "memory order": (SQUARE, np.asfortranarray(SQUARE)),
    "strides": (SQUARE[::2, ::3], SQUARE[::2, ::3].copy()),
    "read only": (SQUARE[0], np.frombuffer(SQUARE[0].tobytes(), SQUARE.dtype)),
    "gaps of structs": (padded(1), padded(2)),
    "objects": (np.array(["a", None], object), np.array(["a", None, 1], object)[:2]),
    "blocks of a frame": (FRAME, renewed(FRAME)),
    "column-wise frame": (pd.DataFrame(SQUARE.copy()), pd.DataFrame(np.asfortranarray(SQUARE))),
    "levels of an index": (
        pd.MultiIndex.from_product([[1, 2, 3], ["a"]])[:2],
        pd.MultiIndex.from_product([[1, 2], ["a"]]),
    ),
    "slices of text": (pd.Series(["x", "a", "b"]).iloc[1:].reset_index(drop=True), pd.Series(["a", "b"])),
    "under a mask": (
        pd.arrays.IntegerArray(np.array([1, 7]), np.array([False, True])),
        pd.array([1, None], dtype="Int64"),
    ),
    "under a null": (hidden(7), hidden(8)),
    "slices of arrow": (TABLE.slice(1), pa.table({"a": [2], "b": pa.array([None], "str")})),
    "slices of structs": (pa.array([{"a": 1}, {"a": 2}])[1:], pa.array([{"a": 2}])),
    "slices of lists": (pa.array([["a"], None, ["b", "c"]])[1:], pa.array([None, ["b", "c"]])),
    "slices of booleans": (pa.array([True, True, False])[1:], pa.array([True, False])),
    "chunks": (pa.chunked_array([["a"], ["b", None]]), pa.chunked_array([["a", "b", None]])),
    "chunks of polars": (pl.concat([pl.Series(["a"]), pl.Series(["b"])], rechunk=False), pl.Series(["a", "b"])),
    "slices of polars": (pl.DataFrame({"a": ["x", "y" * 20]})[1:], pl.DataFrame({"a": ["y" * 20]})),
    "categories of polars": (
        pl.Series(["never", "b"], dtype=pl.Categorical)[1:],
        pl.Series(["b"], dtype=pl.Categorical),
    ),
    "dataclasses": (Point([1], {2}), Point(x=[1], y={2})),
    "patterns": (re.compile("(?i)a"), re.compile("(?i)a", re.IGNORECASE)),
    "partials": (partial(partial(of, a=1), b=2), partial(of, b=2, a=1)),
    "combined flags": (Way.UP | Way.DOWN, Way(3)),
    "models": (Query(years={2, 1}), Query(region="north", years={1, 2})),
    "models with what they cache": (Query(), (query := Query(), query.text)[0]),
    "models of version 1": (Former(), Former(region="north")),
    "what a model has beyond its fields": (Open(a=1, b=2), Open(b=2, a=1)),
    "calendars": (
        OFFSETS.CDay(holidays=["2026-01-01"]),
        OFFSETS.CDay(calendar=np.busdaycalendar(holidays=["2026-01-01"])),
    ),
    "pictures": (PICTURE, Image.frombytes("RGB", (2, 2), bytes(12))),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_the_same_content_has_the_same_key(one: Any, other: Any) -> None:
    assert of(one) == of(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_through_pickle_has_the_same_key(family: str) -> None:
    for value in FAMILIES[family]:
        if str(getattr(value, "dtype", "")) == "Object":
            continue  # which polars does not pickle
        assert of(value) == of(cloudpickle.loads(cloudpickle.dumps(value))), repr(value)


@pytest.mark.parametrize("storage", ["python", "pyarrow"])
def test_text_columns_count_in_full(storage: str) -> None:
    kind = pd.StringDtype(storage, na_value=math.nan)
    texts = [f"text {i}" for i in range(100_000)]
    one, same = (pd.DataFrame({"a": pd.array(texts, kind)}) for _ in range(2))
    other = pd.DataFrame({"a": pd.array([*texts[:-1], None], kind)})
    assert of(one) == of(same) != of(other)


# ------------------------------------------------------------ random values


def random_value(dice: random.Random, depth: int = 3) -> Any:
    atoms: list[Callable[[], Any]] = [
        lambda: None,
        lambda: dice.random() < 0.5,
        lambda: dice.randint(-2, 2),
        lambda: float(dice.randint(-2, 2)),
        lambda: "".join(dice.choices("ab0:", k=dice.randint(0, 3))),
        lambda: "".join(dice.choices("ab0:", k=dice.randint(0, 3))).encode(),
        lambda: np.array(dice.choices([0, 1], k=dice.randint(0, 3)), dice.choice(["i8", "f8", "?"])),
    ]
    if not depth or dice.random() < 0.3:
        return dice.choice(atoms)()
    items = [random_value(dice, depth - 1) for _ in range(dice.randint(0, 3))]
    hashable = [item for item in items if is_hashable(item)]
    makers = [list, tuple, lambda items: dict(zip("abc", items, strict=False)), lambda _: set(hashable)]
    return dice.choice(makers)(items)


def is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def spelled(value: Any) -> Any:
    """The same value in words, of which only equal ones are equal."""
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(spelled, value))
    if isinstance(value, set):
        return "set", *sorted(map(repr, map(spelled, value)))
    if isinstance(value, dict):
        return "dict", *sorted((repr(spelled(key)), repr(spelled(item))) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.tolist()
    return type(value).__name__, repr(value)


def rebuilt(value: Any) -> Any:
    """An equal value in which dicts have another order, and arrays another layout."""
    if isinstance(value, set):
        return set(value)
    if isinstance(value, (list, tuple)):
        return type(value)([rebuilt(item) for item in value])
    if isinstance(value, dict):
        return {key: rebuilt(item) for key, item in reversed(value.items())}
    return np.repeat(value, 2)[::2] if isinstance(value, np.ndarray) else value


def test_random_values_have_equal_keys_exactly_when_they_are_equal() -> None:
    dice, seen, keys = random.Random(2026), {}, Keys("f", lambda x: None)
    for _ in range(15_000):
        value = random_value(dice)
        words, local = repr(spelled(value)), keys.local((value,), {})
        assert local == keys.local((rebuilt(value),), {}), words
        assert words == seen.setdefault(digested(local), words)
        assert words == seen.setdefault(local, words)
    assert len(set(seen.values())) > 5_000


# ------------------------------------------------------------ calls


def plain(a: Any, b: Any = 2) -> None: ...
def only(a: Any, b: Any = 2, /, *, c: Any = 3) -> None: ...
def rest(a: Any, *rest: Any, c: Any = 3, **more: Any) -> None: ...


SAME_CALLS = [
    (plain, [((1,), {}), ((1, 2), {}), ((1,), {"b": 2}), ((), {"b": 2, "a": 1})]),
    (only, [((1,), {}), ((1, 2), {"c": 3})]),
    (rest, [((1,), {}), ((), {"a": 1, "c": 3})]),
    (rest, [((1, 2), {"x": 1, "y": 2}), ((1, 2), {"y": 2, "x": 1, "c": 3})]),
    (rest, [((1,), {"x": [1], "y": 2}), ((1,), {"y": 2, "x": [1]})]),
    (partial(plain, 1), [((), {}), ((2,), {}), ((), {"b": 2})]),
    (partial(plain, b=5), [((1,), {}), ((1,), {"b": 5})]),
]
OTHER_CALLS = [
    (plain, [((1,), {}), ((2,), {}), ((1, 1), {}), ((2, 1), {}), ((1.0,), {}), ((True,), {}), (((1, 2),), {})]),
    (
        rest,
        [
            *(((1,), {}), ((1, 2), {}), ((1, (2,)), {}), ((1,), {"c": 2}), ((1,), {"x": 2}), ((1,), {"y": 2})),
            *(((1, ("x", 2)), {}), ((1, "x", 2), {}), ((1, [2]), {}), ((1,), {"x": [2]}), ((1,), {"x": 1, "y": 2})),
        ],
    ),
]


@pytest.mark.parametrize(("function", "calls"), SAME_CALLS)
def test_calls_that_mean_the_same_have_the_same_key(function: Any, calls: Any) -> None:
    keys = Keys("f", function)
    assert 1 == len({keys.local(*call) for call in calls}) == len({keys.digest(*call) for call in calls})


@pytest.mark.parametrize(("function", "calls"), OTHER_CALLS)
def test_other_calls_have_other_keys(function: Any, calls: Any) -> None:
    keys = Keys("f", function)
    assert len(calls) == len({keys.local(*call) for call in calls}) == len({keys.digest(*call) for call in calls})


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"a": 2}), ((1,), {"z": 2})])
def test_a_wrong_call_raises_what_the_function_would(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError) as expected:
        plain(*args, **kwargs)
    for call in (Keys("plain", plain).bind, Keys("plain", plain).local, Keys("plain", plain, plain).digest):
        with pytest.raises(TypeError) as actual:
            call(args, kwargs)
        assert str(expected.value) == str(actual.value)
        assert not isinstance(actual.value, ScheduleError)


def test_bind_gives_each_parameter_its_value() -> None:
    assert (1, (2,), 3, {"x": 4}) == Keys("rest", rest).bind((1, 2), {"x": 4})


def test_a_function_without_a_signature_takes_anything() -> None:
    keys = Keys("dict", dict)
    assert keys.digest(([(1, 2)],), {}) != keys.digest((), {"a": 1})


# ------------------------------------------------------------ key=


def test_key_says_what_counts() -> None:
    keys = Keys("f", plain, key=lambda a, b=2: a.lower())
    assert keys.digest(("A", 1), {}) == keys.digest((), {"a": "a", "b": Opaque()}) != keys.digest(("B",), {})
    assert keys.local(("A", 1), {}) == keys.local(("a", 2), {})


def test_what_key_returns_may_be_any_data() -> None:
    keys = Keys("f", plain, key=lambda a, b=2: {"a": [a]})
    assert keys.local((1, 2), {}) == keys.local((1, 3), {}) != keys.local((2, 3), {})


def test_a_key_that_raises_names_the_function_and_its_error() -> None:
    keys = Keys("filtered", plain, key=lambda a, b=2: a["x"])
    with pytest.raises(ArgumentUnkeyable, match=r"filtered\(\): its key= raised KeyError: 'x'\. Give it") as caught:
        keys.local(({},), {})
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_key_that_returns_no_data_is_told() -> None:
    with pytest.raises(ArgumentUnkeyable, match=r"filtered\(\): key\(\.\.\.\)\[0\] is a .*Opaque, of whose content"):
        Keys("filtered", plain, key=lambda a, b=2: [Opaque()]).local((1,), {})


# ------------------------------------------------------------ ignore=


def connected(connection: Any, region: Any, _log: Any = None, *rest: Any, **more: Any) -> None: ...


def test_what_is_ignored_does_not_count_nor_need_any_content() -> None:
    keys = Keys("f", connected, ignore=["connection"])
    calls = [((Opaque(), 1), {}), ((2,), {"region": 1}), ((), {"region": 1, "connection": 3, "_log": Opaque()})]
    assert 1 == len({keys.local(*call) for call in calls})
    others = [((1, 2), {}), ((1, 1, None, 2), {}), ((1, 1), {"x": 1}), ((1, [1]), {}), ((1, 1), {"_x": 1})]
    assert len(others) == len({keys.local(*call) for call in others} - {keys.local(*calls[0])})


def test_what_the_rest_takes_may_be_ignored() -> None:
    keys = Keys("f", connected, ignore=["rest", "more"])
    assert keys.local((1, 2), {}) == keys.local((1, 2, None, 3), {"x": [4]}) != keys.local((1, 3), {})


def test_a_wrong_call_is_one_though_its_arguments_are_ignored() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'connection'"):
        Keys("f", connected, ignore=["connection"]).local((), {"region": 1})


def test_what_is_ignored_is_passed_as_it_is_and_what_counts_as_it_is_now() -> None:
    connection, region, log = {"open": True}, ["north"], []
    args, kwargs = Keys("f", connected, ignore=["connection"]).now((connection,), {"region": region, "_log": log})
    assert (connection,) == args
    assert args[0] is connection
    assert kwargs["_log"] is log
    assert kwargs["region"] == region
    assert kwargs["region"] is not region


def test_what_is_ignored_is_not_told() -> None:
    keys = Keys("f", connected, ignore=["connection"])
    told = arguments_text(keys.parameters, ("sql://me", "north"), {"_log": "mine", "x": 1}, keys.ignored)
    assert "..., 'north', _log=..., x=1" == told


# ------------------------------------------------------------ hashers


class Engine:
    def __init__(self, url: Any):
        self.url = url


class Remote(Engine):
    pass


@pytest.fixture
def hasher() -> Iterator[Callable[..., None]]:
    """Says what counts of a type, until the end of the test."""
    known = dict(content._hashers.registry)

    def tell(kind: type, function: Callable[[Any], Any]) -> None:
        set_hasher(kind, function, fingerprint(function))

    yield tell
    content._hashers = singledispatch(content._no_hasher)
    for kind, function in known.items():
        content._hashers.register(kind, function)


def test_a_hasher_says_what_counts_of_a_type(hasher: Callable[..., None]) -> None:
    with pytest.raises(ArgumentUnkeyable, match=r"of all of a type, with ps\.hasher"):
        of(Engine("a"))
    hasher(Engine, lambda engine: {"url": engine.url})
    assert of(Engine("a")) == of([Engine("a")][0]) != of(Engine("b"))
    assert of([Engine("a")]) != of([{"url": "a"}])
    assert of(Engine("a")) != of({"url": "a"})


def test_a_hasher_is_that_of_subclasses_which_stay_others(hasher: Callable[..., None]) -> None:
    hasher(Engine, lambda engine: engine.url)
    assert of(Remote("a")) == of(Remote("a")) != of(Engine("a"))
    hasher(Remote, lambda engine: 1)
    assert of(Remote("a")) == of(Remote("b"))
    assert of(Engine("a")) != of(Engine("b"))


def test_another_hasher_makes_other_keys(hasher: Callable[..., None]) -> None:
    """Of a store that outlives the process: what the former one returned is no content of the new one."""
    hasher(Engine, lambda engine: len(engine.url))
    former = of(Engine("ab"))
    hasher(Engine, lambda engine: engine.url.count("a") + 1)
    assert former != of(Engine("ab"))


def test_a_hasher_goes_before_what_is_known_of_a_type(hasher: Callable[..., None]) -> None:
    hasher(pd.DataFrame, lambda frame: frame.attrs["version"])
    hasher(np.ndarray, lambda array: array.shape)
    one, other = (pd.DataFrame({"a": [each]}) for each in (1, 2))
    one.attrs["version"] = other.attrs["version"] = 7
    assert of(one) == of(other)
    assert of(np.zeros(3)) == of(np.ones(3)) != of(np.zeros(4))


def test_a_hasher_of_a_class_that_no_module_has(hasher: Callable[..., None]) -> None:
    class Local(Engine):
        pass

    hasher(Local, lambda engine: engine.url)
    assert of(Local("a")) == of(Local("a")) != of(Local("b"))


def test_a_hasher_that_raises_is_named_with_the_way_there(hasher: Callable[..., None]) -> None:
    hasher(Engine, lambda engine: engine.host)
    with pytest.raises(
        ArgumentUnkeyable, match=r"x\[1\] is a .*Engine, whose ps.hasher raised AttributeError"
    ) as caught:
        of([1, Engine("a")])
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_hasher_that_returns_no_data_is_told(hasher: Callable[..., None]) -> None:
    hasher(Engine, lambda engine: [Opaque()])
    with pytest.raises(ArgumentUnkeyable, match=r"x\[0\] is a .*Opaque, of whose content"):
        of(Engine("a"))
    hasher(Engine, lambda engine: engine)
    with pytest.raises(ArgumentUnkeyable, match=r"x is a .*Engine that contains itself"):
        of(Engine("a"))


# ------------------------------------------------------------ what is refused


def closure() -> Any:
    inside = 1

    def function() -> int:
        return inside

    return function


def local_class() -> Any:
    @dataclass
    class Local:
        x: int

    return Local(1)


def cyclic() -> list[Any]:
    items: list[Any] = [1]
    items.append({"again": items})
    return items


def deep() -> list[Any]:
    items: list[Any] = []
    for _ in range(100_000):
        items = [items]
    return items


def unnamed_zone() -> ZoneInfo:
    with importlib.resources.files("tzdata.zoneinfo.Europe").joinpath("Berlin").open("rb") as file:
        return ZoneInfo.from_file(file)


def film() -> Image.Image:
    file = BytesIO()
    PICTURE.save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (2, 2), "red")])
    return Image.open(file)


class MyFrame(pd.DataFrame):
    @property
    def _constructor(self) -> Any:
        return MyFrame


REFUSED = {
    "file": (lambda: sys.__stdout__, "x is a _io.TextIOWrapper"),
    "lock": (threading.Lock, "x is a _thread.lock"),
    "lambda": (lambda: lambda: 1, "x is a function, and .*<lambda> is not the name"),
    "closure": (closure, "x is a function, and closure.<locals>.function is not the name"),
    "bound method": (lambda: Opaque().__str__, "x is a method-wrapper"),
    "partial": (lambda: partial(lambda: 1, 1), "x is a function, and .*<lambda> is not the name"),
    "in a model": (lambda: Query(years=[Opaque()]), r"x\.years\[0\] is a .*Opaque"),
    "private in a model": (lambda: with_unit(Query(), threading.Lock()), r"x\._unit is a _thread\.lock"),
    "frames of a film": (film, "x is a PIL.*GifImageFile, of whose content .* several frames; pass one"),
    "generator": (lambda: (i for i in ()), "x is a generator, of whose content"),
    "iterator": (lambda: iter([1]), "x is a list_iterator"),
    "module": (lambda: math, "x is a module"),
    "object": (Opaque, "x is a .*Opaque, of whose content no key can be made. Pass plain data, or say"),
    "of a local class": (local_class, "x is a type, and local_class.<locals>.Local is not"),
    "of a subclass of a dataclass": (lambda: Undecorated(1), "x is a .*Undecorated"),
    "in a list": (lambda: [1, ["a", Opaque()]], r"x\[1\]\[1\] is a .*Opaque"),
    "in a dict": (lambda: {"a": {2: Opaque()}}, r"x\['a'\]\[2\] is a .*Opaque"),
    "in a dataclass": (lambda: Point(1, [Opaque()]), r"x\.y\[0\] is a .*Opaque"),
    "in a subclass": (lambda: with_attributes(MyStr("a"), b=Opaque()), r"x\.__dict__\['b'\] is a .*Opaque"),
    "in an array": (lambda: np.array([1, Opaque()], object), r"x\[1\] is a .*Opaque"),
    "in a frame": (lambda: pd.DataFrame({"a": [1], "b": [Opaque()]}), r"x\['b'\]\[0\] is a .*Opaque"),
    "in polars": (lambda: pl.DataFrame({"b": [Opaque()]}), r"x\['b'\]\[0\] is a .*Opaque"),
    "subclass of a frame": (lambda: MyFrame({"a": [1]}), "x is a .*MyFrame"),
    "default factory": (lambda: defaultdict(lambda: 1), r"x\.default_factory is a function"),
    "lazy frame": (lambda: pl.LazyFrame({"a": [1]}), "x is a polars.*LazyFrame"),
    "union": (lambda: pa.UnionArray.from_sparse(pa.array([0], "i1"), [pa.array([1])]), "x is a pyarrow.*UnionArray"),
    "zone": (unnamed_zone, "x is a zoneinfo.ZoneInfo, which has no name"),
    "cycle": (cyclic, r"x\[1\]\['again'\] is a list that contains itself"),
    "deep": (deep, "nested too deeply"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_content_is_refused_by_name_and_path(make: Callable[[], Any], message: str) -> None:
    keys = Keys("filtered", lambda a, x: None)
    with pytest.raises(ArgumentUnkeyable, match=rf"^filtered\(\): (argument )?.*{message}.*key=: a function"):
        keys.local((1, make()), {})


def test_polars_without_pyarrow_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Series, "to_arrow", lambda _: __import__("no_such_module"))
    with pytest.raises(ArgumentUnkeyable, match=r"polars.*Series.*No module named 'no_such_module'"):
        of(pl.Series([1]))


# ------------------------------------------------------------ other processes

SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
import test_keys
for family in test_keys.FAMILIES.values():
    for value in family:
        print(test_keys.of(value))
"""


@pytest.mark.slow
@pytest.mark.unhurried
def test_keys_are_the_same_in_every_process() -> None:
    expected = [of(value) for family in FAMILIES.values() for value in family]
    code = SCRIPT.format(tests=str(ROOT / "tests"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    for process in processes:
        assert expected == process.communicate(timeout=60)[0].split()


@pytest.mark.slow
@pytest.mark.unhurried
def test_no_library_is_imported() -> None:
    code = "import sys, panel_schedule.errors\nsys.modules.update(dict.fromkeys(('pandas', 'polars', 'pyarrow')))\n"
    code += "from panel_schedule.hashing.keys import Keys; print(Keys('f', lambda x: 0).digest(([1],), {}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert of([1]) == shown.stdout.strip()


DEFINITIONS = """
from dataclasses import dataclass
from enum import Enum

class Color(Enum):
    RED = 1

@dataclass
class Point:
    x: int

def function():
    return 1
"""


def test_a_class_of_the_setup_script_is_that_of_the_imported_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panel's setup script is a module that is not in sys.modules; the app imports the same file again."""
    keys = []
    for name, file in [("panel_setup_module", "tasks.py"), ("tasks", "tasks.py"), ("others", "others.py")]:
        module = ModuleType(name)
        module.__file__ = str(tmp_path / file)
        if name == "panel_setup_module":
            monkeypatch.setattr(pn.state, "_setup_module", module, raising=False)
        else:
            monkeypatch.setitem(sys.modules, name, module)
        exec(compile(DEFINITIONS, module.__file__, "exec", dont_inherit=True), vars(module))
        things = [module.Color.RED, module.Point(1), module.Color, module.function]
        keys.append([of(thing) for thing in things])
    setup, imported, other = keys
    assert setup == imported
    assert not set(setup) & set(other)


def test_threads_may_share_keys() -> None:
    keys, found = Keys("f", lambda x: None), set[str]()
    threads = [threading.Thread(target=lambda: found.add(keys.digest((NUMBERS,), {}))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {of(NUMBERS)} == found
