"""Signatures: that a part was stored by who has the secret, under this key, and is not older than the record says."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import NamedTuple

# Of so many parts it is remembered how new they were.
_REMEMBERED = 10_000

Key = tuple[str, str]


class Head(NamedTuple):
    """
    What is said of the bytes of a part.

    Attributes
    ----------
    size : int
        In memory.
    base : int
        The number of the last change that its writer knew: of two parts that followed each other in the same place the
        later one has a greater one.
    stamp : str
        Names the bytes where they stand by themselves, and nothing else ever; ``""`` of those that stand here.
    pieces : int
        How many pieces they are in there.
    packing : str
        How they were compressed.
    digest : str
        Of the bytes, or of the digests of the pieces; ``""`` where nothing is signed.
    """

    size: int
    base: int = 0
    stamp: str = ""
    pieces: int = 0
    packing: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return " ".join(str(each) or "-" for each in self)

    @classmethod
    def of(cls, text: str) -> Head:
        """The other way round; a ValueError where it is none."""
        size, base, stamp, pieces, packing, digest = ("" if each == "-" else each for each in text.split(" "))
        return cls(int(size), int(base), stamp, int(pieces), packing, digest)


class Signer:
    """
    Signs heads, and knows which were signed so; without a secret everything goes.

    Parameters
    ----------
    namespace, secret : str
    """

    def __init__(self, namespace: str, secret: str):
        self._namespace, self._secret = namespace, secret.encode()
        # By part: the greatest base that it must have, as this process has seen.
        self._newest: dict[tuple[Key, str], int] = {}

    @property
    def signs(self) -> bool:
        return self._secret != b""

    def digest(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest() if self.signs else ""

    def sign(self, key: Key, kind: str, number: int, head: Head) -> str:
        if not self.signs:
            return "-"
        signed = json.dumps((self._namespace, *key, kind, number, *head)).encode()
        return hmac.new(self._secret, signed, hashlib.sha256).hexdigest()

    def has_signed(self, signature: str, key: Key, kind: str, number: int, head: Head) -> bool:
        return not self.signs or hmac.compare_digest(self.sign(key, kind, number, head).encode(), signature.encode())

    def is_current(self, key: Key, kind: str, head: Head, since: int) -> bool:
        """
        Whether it is as new as the record says, and as it was when this process has looked before.

        Parameters
        ----------
        since : int
            What the record says: parts of this kind have no smaller base.
        """
        if not self.signs:
            return True
        newest = max(since, self._newest.get((key, kind), 0))
        self.remember(key, {kind: newest})
        return head.base >= newest

    def remember(self, key: Key, since: Mapping[str, int]) -> None:
        """From now on parts of these kinds are no older than that."""
        if not self.signs:
            return
        if len(self._newest) >= _REMEMBERED:
            self._newest.clear()
        self._newest |= {(key, kind): base for kind, base in since.items()}

    def name(self, text: str) -> str:
        """A short name for that, which others have who have the same secret."""
        return hmac.new(self._secret or b"-", text.encode(), hashlib.sha256).hexdigest()[:16]
