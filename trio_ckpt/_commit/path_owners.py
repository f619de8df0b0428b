"""Which batch of which stream owns a name of the output folder, so that no two write one file."""

from __future__ import annotations

import hashlib
import struct

import attrs

SINK = -1  # stands for a batch index: an append file belongs to its stream

PathOwner = tuple[str, int]  # a stream as text, and a batch

_OWNER = struct.Struct("<Iq")  # the number of the stream, the batch
_DIGEST_BYTES = 12
_ENTRY_BYTES = _DIGEST_BYTES + _OWNER.size
_ENTRIES = 64  # in a bucket, on average


@attrs.define(eq=False, repr=False)
class PathOwners:
    """The owner of each output name of a run, in little memory; shared by all its streams.

    A name that is being written is kept as it is.  A confirmed one is never listed, only asked
    for, so a digest stands for it: an entry with its owner has 24 bytes, and one of a dict takes
    190.  96 bits tell names apart, so among a million names two are taken for one with a
    probability of 10**-17.

    The entries lie in buckets that are searched from their begin.  As their number grows, one
    bucket after the other is split in two (linear hashing, Litwin, 1980), so no call takes long.
    """

    _held: dict[str, PathOwner] = attrs.field(factory=dict[str, PathOwner], init=False)
    _buckets: list[bytearray] = attrs.field(factory=lambda: [bytearray()], init=False)
    _unsplit: int = attrs.field(default=1, init=False)  # buckets when the splitting began
    _count: int = attrs.field(default=0, init=False)  # of confirmed names
    _streams: list[str] = attrs.field(factory=list[str], init=False)
    _numbers: dict[str, int] = attrs.field(factory=dict[str, int], init=False)  # of streams

    def get(self, name: str) -> PathOwner | None:
        """The owner of a name; None: it has none."""
        digest = _digest(name)
        return self._held.get(name) or _find(self._bucket(digest), digest, self._streams)

    def hold(self, name: str, owner: PathOwner) -> PathOwner:
        """Give a name to an owner unless it has one; returns the owner that it has."""
        digest = _digest(name)
        confirmed = _find(self._bucket(digest), digest, self._streams)
        return confirmed or self._held.setdefault(name, owner)

    def confirm(self, name: str, owner: PathOwner) -> PathOwner:
        """Give a name to a confirmed batch unless it has one; returns the owner that it has."""
        digest = _digest(name)
        bucket = self._bucket(digest)
        has = self._held.get(name) or _find(bucket, digest, self._streams)
        if has is None or (has == owner and self._held.pop(name, None) is not None):
            if (number := self._numbers.get(owner[0])) is None:
                number = self._numbers[owner[0]] = len(self._streams)
                self._streams.append(owner[0])
            bucket += digest + _OWNER.pack(number, owner[1])
            self._count += 1
            if self._count > _ENTRIES * len(self._buckets):
                self._split()
        return has or owner

    def drop(self, name: str, owner: PathOwner) -> None:
        """Take a name from an owner, if it has it."""
        if self._held.get(name) == owner:
            del self._held[name]
            return
        digest = _digest(name)
        bucket = self._bucket(digest)
        if _find(bucket, digest, self._streams) == owner:
            begin = _position(bucket, digest)
            bucket[begin : begin + _ENTRY_BYTES] = bucket[-_ENTRY_BYTES:]
            del bucket[-_ENTRY_BYTES:]
            self._count -= 1

    def _bucket(self, digest: bytes) -> bytearray:
        number = int.from_bytes(digest) % (2 * self._unsplit)
        return self._buckets[number if number < len(self._buckets) else number - self._unsplit]

    def _split(self) -> None:
        """Split the next bucket: half of its entries belong into a new one."""
        number = len(self._buckets) - self._unsplit
        old, self._buckets[number] = self._buckets[number], bytearray()
        self._buckets.append(bytearray())
        for begin in range(0, len(old), _ENTRY_BYTES):
            entry = bytes(old[begin : begin + _ENTRY_BYTES])
            self._bucket(entry[:_DIGEST_BYTES]).extend(entry)
        if len(self._buckets) == 2 * self._unsplit:
            self._unsplit *= 2


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()


def _find(bucket: bytearray, digest: bytes, streams: list[str]) -> PathOwner | None:
    if (begin := _position(bucket, digest)) == -1:
        return None
    owner: tuple[int, int] = _OWNER.unpack_from(bucket, begin + _DIGEST_BYTES)
    return streams[owner[0]], owner[1]


def _position(bucket: bytearray, digest: bytes) -> int:
    """Where the entry of a digest begins; -1: there is none."""
    begin = bucket.find(digest)
    while begin != -1 and begin % _ENTRY_BYTES:  # within two entries, or an owner
        begin = bucket.find(digest, begin + 1)
    return begin
