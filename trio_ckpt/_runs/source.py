"""Where the batches of a loop come from.

A source is an open end, a list, or a function that makes the list.  It is always the whole list,
on every start; confirmed batches are passed over.  This ensures that a source whose confirmed
items have changed is noticed.  A loop works on a copy of the list, made when it begins, and
refuses to go on when the length or the items of the list change after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from typing import Any, Generic, TypeVar, cast

import trio

from .._util.arguments import function, shown
from .._util.errors import NotEncodableError
from .._util.plain import (
    ITEM_DIGEST_BYTES,
    as_plain,
    call_key,
    canonical_json,
    item_digest,
    kind_of,
)
from .loop_bounds import ITEMS_PER_STEP

T = TypeVar("T")

Items = Sequence[T] | Callable[[], Iterable[T]]

_CONTAINERS = (list, tuple, dict)
_NOT_NOTED = bytes(ITEM_DIGEST_BYTES)


def default_key(item: Any) -> str:
    """The default key, by which the next start recognizes an item: its canonical JSON.

    Raises:
        NotEncodableError: it is not JSON-like and needs ``key=``.
    """
    if type(item) is int:
        return str(item)
    try:
        return canonical_json(as_plain(item, "item"))
    except NotEncodableError as error:
        raise NotEncodableError(error.path, f"{error.problem}; give key=") from error


def _is_sequence(items: object) -> bool:
    return isinstance(items, Sequence) and not isinstance(items, str | bytes | bytearray)


class Source(Generic[T]):
    """The items of a stream by batch index.

    Args:
        items: None (an open end), a sequence, or a function that returns the items.
        first_index: The index of the first item's batch.
        key: Gives the key of an item; see `default_key`.

    Attributes:
        is_open_ended: Only the loop can know where it ends.

    Raises:
        TypeError: `items` is something else, for example a generator, which cannot be read
            again, or a str, whose items would be its letters.
    """

    def __init__(
        self,
        items: Items[T] | None,
        *,
        first_index: int,
        key: Callable[[T], str] | None = None,
    ) -> None:
        if items is not None and not _is_sequence(items) and not callable(items):
            raise TypeError(
                f"items must be a list, or a function that returns one, not {shown(items)}: they "
                f"are read again on every start{_instead_of(items)}"
            )
        if key is not None:
            function("key", key)
        self.is_open_ended = items is None
        self._given = cast("list[T]", items) if kind_of(items) is list else None
        self._list: Sequence[T] | None = None
        self._make: Callable[[], Iterable[T]] | None = None
        if isinstance(items, Sequence):
            self._list = items if self._given is None else tuple(self._given)
        elif items is not None:
            self._make = items
        self._first = first_index
        self._key = key
        self._noted = bytearray()  # a digest for each item that could change, else zeros
        self._made: Iterator[T] | None = None
        self._position = -1  # of `_current` among the items that `_made` has given
        self._current: T | None = None

    async def note_items(self) -> None:
        """Check the items of a list, so that a bad one is refused before any work.

        Raises:
            NotEncodableError: an item has no key; the error names its place.

        Cancellation: a cancellation and a schedule point for every `ITEMS_PER_STEP` items.
        """
        items: Any = self._list
        if self._key is not None or kind_of(items) is not tuple:
            return
        for position, item in enumerate(items):
            if position % ITEMS_PER_STEP == ITEMS_PER_STEP - 1:
                await trio.lowlevel.checkpoint()
            kind = kind_of(item)
            if kind is int or (kind is str and item.isascii()):
                continue  # the usual case: these have a key, and cannot change
            digest = item_digest(self._key_of(self._first + position, item))
            if isinstance(item, _CONTAINERS):
                self._noted += bytes(position * ITEM_DIGEST_BYTES - len(self._noted)) + digest

    @property
    def stop(self) -> int | None:
        """One more than the last batch; None: it is not known without reading on."""
        return None if self._list is None else self._first + len(self._list)

    def get(self, index: int) -> tuple[T | None, bytes] | None:
        """The item of a batch and the digest of its key; None: there is no such batch.

        Raises:
            RuntimeError: the list was changed since the loop began.
        """
        position = index - self._first
        if self._list is not None:
            count = len(self._list)
            if self._given is not None and len(self._given) != count:
                raise _length_error(count, len(self._given))
            if not 0 <= position < count:
                return None
            item = self._list[position]
            digest = item_digest(self._key_of(index, item))
            if self._noted:
                self._check_unchanged(index, digest)
            return item, digest
        if self._make is not None:
            return self._read_to(position, self._make) if position >= 0 else None
        return None, b""

    def _check_unchanged(self, index: int, digest: bytes) -> None:
        """Raise RuntimeError if an item of a list has changed, as its digest says."""
        at = (index - self._first) * ITEM_DIGEST_BYTES
        noted = self._noted[at : at + ITEM_DIGEST_BYTES]
        if noted and bytes(noted) not in (digest, _NOT_NOTED):
            raise RuntimeError(
                f"the item of batch {index} was changed since the loop began, so the next start "
                "could not recognize it; change batch.item instead, which is a copy"
            )

    def _read_to(
        self, position: int, make: Callable[[], Iterable[T]]
    ) -> tuple[T | None, bytes] | None:
        if self._made is None or position < self._position:
            made: Any = make()
            if isinstance(made, str | bytes | bytearray) or not isinstance(made, Iterable):
                raise TypeError(f"items must return a list of items, not {shown(made)}")
            self._made, self._position = iter(cast("Iterable[T]", made)), -1
        while self._position < position:
            try:
                self._current = next(self._made)
            except StopIteration:
                return None
            except BaseException:
                self._made = None  # a generator that has raised looks exhausted afterwards
                raise
            self._position += 1
        current = cast("T", self._current)
        return current, item_digest(self._key_of(self._first + position, current))

    def _key_of(self, index: int, item: T) -> str:
        """The key by which the next start recognizes an item.

        Raises:
            NotEncodableError: the item has no default key; the error names its batch.
            TypeError: the given function does not return a str.
        """
        if self._key is not None:
            return call_key(self._key, item, f"batch {index}")
        try:
            return default_key(item)
        except NotEncodableError as error:
            place = f"the item of batch {index}{error.path.removeprefix('item')}"
            raise NotEncodableError(place, error.problem) from error

    def name_of(self, index: int) -> str:
        """The key of the item that the source gives for a batch now, or "nothing"."""
        found = self.get(index)
        return "nothing" if found is None else self._key_of(index, cast("T", found[0]))


def _instead_of(items: object) -> str:
    """What to write instead of something that is often given as the items."""
    if type(items) is int:
        return f"; write range({items})"
    if isinstance(items, AbstractSet):
        return "; a set has no order: write sorted(...)"
    return "; write list(...)" if isinstance(items, Iterator | Mapping) else ""


def _length_error(count: int, now: int) -> RuntimeError:
    return RuntimeError(
        f"the list of items had {count:,} when the loop began, and has {now:,} now: a loop works "
        "on the list that it was given; put work that is found on the way into a Frontier"
    )
