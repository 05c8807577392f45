"""The values of a file store as bytes: small ones for the database, each large one in a file that all processes map."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import StoreError, ValueRefused, ValueUnreadable
from ...serialize.codec import Encoded, Inline, Mapped, write_file
from .liveness import Liveness

# Values up to this size, in bytes, stand in the database; larger ones get a file that all processes map.
INLINE = 64 * 1024

# How many of those that it has found good a process remembers.
REMEMBERED = 10_000


class Blobs:
    """
    A directory of files, each written once, under a name that begins with its process and is never used again.

    Parameters
    ----------
    folder : Path
    liveness : Liveness
    restore : callable
        Makes the store's directory again, where somebody has deleted it.
    """

    def __init__(self, folder: Path, liveness: Liveness, restore: Callable[[], object]):
        self.folder = folder
        self._liveness = liveness
        self._restore = restore
        self._number = count(1)
        # Files of this process that no record names yet.
        self._pending: set[str] = set()
        # Files of the dead that this process has found to be whole, and processes that it has seen alive: what these
        # have written before was whole, and no power was lost since.
        self._trusted: set[str] = set()

    def place(self, encoded: Encoded, whose: str, synced: bool) -> tuple[bytes | None, str | None]:
        """
        The value as bytes, or the name of a file that is complete before anybody hears of it.

        The file is `pending` until `settle` is called.

        Parameters
        ----------
        encoded : Encoded
        whose : str
            The row's, which no other row has.
        synced : bool
            Whether the file is on the disk before this returns.
        """
        file = f"{self._liveness.me}.{next(self._number)}"
        try:
            if encoded.size <= INLINE:
                encoded.seal(whose)
                return encoded.tobytes(), None
            self._pending.add(file)
            self._write(file, encoded, synced)
        except OSError as error:
            self._pending.discard(file)
            raise StoreError(
                f"The store {self.folder.parent} cannot take a value of {encoded.size / 1e6:.1f} MB: "
                f"{error.strerror or error}. Free some space there, give the user that runs the server the right to "
                "write, or name another directory in ps.config.store."
            ) from error
        return None, file

    def _write(self, file: str, encoded: Encoded, synced: bool) -> None:
        try:
            write_file(self.folder / file, encoded, sync=synced)
        except FileNotFoundError:  # somebody has deleted the directory
            self._restore()
            self.folder.mkdir(mode=0o700, exist_ok=True)
            write_file(self.folder / file, encoded, sync=synced)
        if synced:
            _sync(self.folder)

    def source(self, inline: bytes | None, file: str | None, whose: str) -> Inline | Mapped:
        """
        What the value is loaded from: nothing but what was put there.

        A file whose process was alive within this one's life cannot have been torn by a loss of power; it is read only
        if it has been changed.

        Raises
        ------
        ValueUnreadable
        OSError
        """
        if inline is not None:
            small = Inline(inline)
            small.verify(whose)
            return small
        name = str(file)
        owner = name.rpartition(".")[0]
        large = Mapped.open(f"{self.folder}/{name}")
        try:
            known = owner in self._trusted or name in self._trusted
            alive = not known and self._liveness.alive(owner)
            large.verify(name, trusted=known or alive)
        except BaseException:
            large.close()
            raise
        if not known:
            if len(self._trusted) >= REMEMBERED:
                self._trusted.clear()
            self._trusted.add(owner if alive else name)
        return large

    def reread(self, source: Inline | Mapped, what: str) -> Any:
        """The value that was just put, as everybody gets it: what cannot be read is refused."""
        try:
            return source.load()
        except ValueUnreadable as error:
            raise ValueRefused(
                f"{what}: the value can be pickled, but {error}. Return plain data, or mend how its class pickles."
            ) from error
        except OSError as error:
            raise StoreError(f"{what}: what was just written to {self.folder} cannot be read: {error}.") from error

    def unlink(self, file: str | None) -> None:
        if file is not None:
            self._pending.discard(file)
            with suppress(OSError):  # what stays is removed some day
                (self.folder / file).unlink()

    def settle(self, file: str | None) -> None:
        """Whoever reads the database from here on sees whether the file is anybody's."""
        if file is not None:
            self._pending.discard(file)

    def doubtful(self) -> list[str]:
        """
        Files of this process, and of those that are gone, which may be nobody's by now.

        Who has replaced a file removes it, unless he dies between his commit and that.
        """
        there = [path.name for path in self.folder.iterdir()]
        pending, me = self._pending.copy(), self._liveness.me
        return [
            file
            for file in there
            if file not in pending and ((owner := file.rpartition(".")[0]) == me or not self._liveness.alive(owner))
        ]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
