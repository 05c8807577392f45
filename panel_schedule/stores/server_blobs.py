"""Large parts on a server, in pieces: one call that moves all of it would hold up everybody else's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import StoreError, ValueUnreadable
from ..serialize.codec import Encoded, Mapped
from . import packing
from .local_files import LocalFiles
from .signed import Head

# Of a piece, in bytes.
PIECE = 1024**2

# Seconds that the server keeps what no record names: who was to write that died before he could.
UNNAMED = 3600

# Under which the digests of all pieces stand beside them.
_DIGESTS = "digests"


class Blobs:
    """
    Each is on the server as pieces, by their numbers. On this machine it is a file.

    Parameters
    ----------
    begin : callable
        ``begin(stamp, pieces, seconds)``: so many come, and go together unless a record names them in time.
    put : callable
        ``put(stamp, field, data)`` stores one of them.
    get : callable
        ``get(stamp, field)``, which is None where there is none.
    files : LocalFiles
    signed : bool
        Whether every piece is what the head says, or nothing of it is used.
    """

    def __init__(
        self,
        begin: Callable[[str, int, int], object],
        put: Callable[[str, str, bytes], object],
        get: Callable[[str, str], bytes | None],
        files: LocalFiles,
        signed: bool,
    ):
        self._begin, self._put, self._get = begin, put, get
        self._files, self._signed = files, signed

    def send(self, stamp: str, encoded: Encoded) -> tuple[Head, Mapped]:
        """
        It is on the server, if somebody names it in time; its head, and what the processes of this machine map.

        Raises
        ------
        StoreError
        OSError
        """
        mapped = self._files.get(stamp, encoded.write)
        try:
            return self._sent(stamp, mapped.fileno(), encoded.size), mapped
        except BaseException:
            mapped.close()
            raise

    def _sent(self, stamp: str, fd: int, size: int) -> Head:
        at, length = packing.sample_of(size)
        packed = packing.best_for(os.pread(fd, length, at))
        digests, count = b"", -(-size // PIECE)
        self._begin(stamp, count, UNNAMED)
        for number, piece in enumerate(_pieces(fd)):
            data = packed.pack(piece) if packed is not None else piece
            self._put(stamp, str(number), data)
            if self._signed:
                digests += hashlib.sha256(data).digest()
        if self._signed:
            self._put(stamp, _DIGESTS, digests)
        digest = hashlib.sha256(digests).hexdigest() if self._signed else ""
        return Head(size, 0, stamp, count, packed.name if packed is not None else "", digest)

    def open(self, head: Head) -> Mapped | None:
        """
        None when it is gone from the server.

        Raises
        ------
        ValueUnreadable
            When it is not what the head says.
        StoreError
        OSError
        """
        try:
            return self._files.get(head.stamp, lambda fd: self._fetch(head, fd))
        except _Gone:
            return None

    def _fetch(self, head: Head, fd: int) -> None:
        unpack: Callable[[bytes], bytes] = bytes
        if head.packing:
            packed = packing.packing_of(head.packing)
            if packed is None:
                raise StoreError(f"A value cannot be read here: {packing.missing(head.packing)}")
            unpack = packed.unpack
        digests = self._piece(head, _DIGESTS) if self._signed else b""
        if self._signed and hashlib.sha256(digests).hexdigest() != head.digest:
            raise ValueUnreadable("its bytes are not those that were signed")
        for number in range(head.pieces):
            piece = self._piece(head, str(number))
            if self._signed and hashlib.sha256(piece).digest() != digests[32 * number :][:32]:
                raise ValueUnreadable("its bytes are not those that were signed")
            _write(fd, _unpacked(unpack, piece))

    def _piece(self, head: Head, field: str) -> bytes:
        piece = self._get(head.stamp, field)
        if piece is None:
            raise _Gone
        return piece

    def sweep(self, there: Callable[[list[str]], Any]) -> None:
        """Delete the files whose blobs are not on the server any more; ``there(stamps)`` are."""
        if names := self._files.names():
            self._files.remove(set(names) - set(there(names)))

    def close(self) -> None:
        self._files.close()


class _Gone(Exception):
    """Somebody has deleted it."""


def _unpacked(unpack: Callable[[bytes], bytes], piece: bytes) -> bytes:
    try:
        return unpack(piece)
    except Exception as error:  # each package has its own
        raise ValueUnreadable(f"it cannot be decompressed: {error}") from error


def _pieces(fd: int) -> Iterator[bytes]:
    at = 0
    while piece := os.pread(fd, PIECE, at):
        yield piece
        at += len(piece)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
