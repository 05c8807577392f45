"""Large values are compressed on their way, where a package for that is installed and where it helps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

# It is tried with so many bytes from the middle, and is worth it when they become that much smaller.
_SAMPLE, _WORTH = 64 * 1024, 0.5

_PACKAGES = {"zstd": "zstandard", "lz4": "lz4"}


class Packing(NamedTuple):
    """
    A way to compress.

    Attributes
    ----------
    name : str
        Of the format.
    pack, unpack : callable
        Of bytes.
    """

    name: str
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]


def best_for(sample: bytes) -> Packing | None:
    """The fastest that is installed, if it helps with such bytes."""
    packing = packing_of("zstd") or packing_of("lz4")
    if packing is not None and len(packing.pack(sample)) <= _WORTH * len(sample):
        return packing
    return None


def sample_of(size: int) -> tuple[int, int]:
    """Which of so many bytes are tried: where they begin, and how many."""
    return max(0, (size - _SAMPLE) // 2), min(size, _SAMPLE)


@cache
def packing_of(name: str) -> Packing | None:
    """None where what it needs is not installed."""
    try:
        return _MAKERS[name]()
    except (ImportError, KeyError):
        return None


def missing(name: str) -> str:
    """What to do where that is not there."""
    return f"it is compressed as {name!r}. Install that here, as where it was written: pip install {_PACKAGES[name]}"


def _zstd() -> Packing:
    try:
        from compression import zstd
    except ImportError:
        import zstandard

        return Packing(
            "zstd",
            lambda data: zstandard.ZstdCompressor(level=1).compress(data),
            lambda data: zstandard.ZstdDecompressor().decompress(data),
        )
    return Packing("zstd", lambda data: zstd.compress(data, 1), zstd.decompress)


def _lz4() -> Packing:
    import lz4.frame

    return Packing("lz4", lz4.frame.compress, lz4.frame.decompress)


_MAKERS = {"zstd": _zstd, "lz4": _lz4}
