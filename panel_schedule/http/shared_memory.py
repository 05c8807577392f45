"""Memory that the processes of one server share: each has a place in it, which all of them read."""

from __future__ import annotations

import mmap
import struct
import zlib

# Bytes of one place, which has room for two texts; and how many places there are. Memory that nobody has written to
# costs nothing.
PLACE = 1 << 20
PLACES = 64

_HALF = PLACE // 2
_HEAD = struct.Struct("=II")


class SharedMemory:
    """
    A text of each process, which outlives it.

    It is made before the fork, so that nothing has a name that others could open, and nothing stays behind. A text is
    written beside the one before it, and counts from when it is complete.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PLACE * PLACES)

    def write(self, place: int, text: bytes) -> bool:
        """Replace the text of a place, of which one process is the only writer; False where it is too long."""
        packed = zlib.compress(text, 1)
        start = place * PLACE
        if not 0 <= place < PLACES or len(packed) > _HALF - _HEAD.size - 1:
            return False
        half = 1 - self._memory[start]
        self._put(start + 1 + half * (_HALF - 1), _HEAD.pack(len(packed), zlib.crc32(packed)) + packed)
        self._memory[start] = half
        return True

    def read(self, place: int) -> bytes:
        """The text of a place; ``b""`` where nobody has written one."""
        start = place * PLACE
        for _ in range(3):  # for that the writer has gone round meanwhile
            at = start + 1 + self._memory[start] * (_HALF - 1)
            size, checksum = _HEAD.unpack(self._memory[at : at + _HEAD.size])
            packed = self._memory[at + _HEAD.size : at + _HEAD.size + min(size, _HALF)]
            if size and zlib.crc32(packed) == checksum:
                return zlib.decompress(packed)
        return b""

    def _put(self, at: int, data: bytes) -> None:
        self._memory[at : at + len(data)] = data
