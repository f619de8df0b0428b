"""A list of items that grows while it is worked on, each item once.

Theory of operation
===================

Items are numbered in the order in which they come, and item j is batch ``first_index +
j``.  A batch may *stage* new items; they travel with its checkpoint, and when that is
durable `Frontier.fold` numbers those that are new.  The same function does this in
memory and on load, in the order of the checkpoints, so the numbers are the same: what a
checkpoint costs is what its batch added, at a thousand items and at a million.

In memory a frontier holds the keys of all items, and the items of those that are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

import msgspec

from .._errors import NotEncodableError, StoreDamagedError
from .._values import canonical_json, check_plain

T = TypeVar("T")

MAX_KEY_CHARS = 10_000  # longer than any URL that a server takes


class Frontier(Generic[T]):
    """Items to work on, each once; for ``open_stream(..., state=Frontier([start]))``.

    Args:
        items: What to begin with.  On resume those that are new are added.
        key: What makes two items the same: a str.  Default: a str is its own key, other
            JSON-like values are their canonical JSON.
    """

    def __init__(self, items: Iterable[T] = (), *, key: Callable[[T], str] | None = None) -> None:
        self.seeds: tuple[T, ...] = tuple(items)
        self._key = key
        self._seen: set[str] = set()
        self._items: dict[int, T] = {}
        self._ready: deque[int] = deque()

    def __len__(self) -> int:
        """How many items there are, done or not."""
        return len(self._seen)

    @property
    def left(self) -> int:
        """How many items are not confirmed; those that were skipped are among them."""
        return len(self._items)

    def item(self, position: int) -> T:
        """The item of that number; only of those that are left or were skipped."""
        return self._items[position]

    def key_of(self, item: T) -> str:
        """What makes an item the same as another.

        Raises:
            NotEncodableError: the item is not JSON-like, or its key no str of good length.
        """
        key: object = item
        if self._key is not None or type(item) is not str:
            check_plain(item, "item")
            key = self._key(item) if self._key is not None else canonical_json(item)
        if not isinstance(key, str) or len(key) > MAX_KEY_CHARS:
            raise NotEncodableError("item", f"its key is not a str of up to {MAX_KEY_CHARS} chars")
        return key

    def stage(self, items: Iterable[T]) -> list[T]:
        """Those of `items` that are new as far as is known now, each once."""
        news: dict[str, T] = {}
        for item in items:
            key = self.key_of(item)
            if key not in self._seen:
                news.setdefault(key, item)
        return list(news.values())

    # -- what the stream does -----------------------------------------------------------

    @staticmethod
    def encode(items: list[T]) -> bytes:
        """Staged items as they travel with a checkpoint; none are no bytes."""
        return msgspec.msgpack.encode(items) if items else b""

    def fold(self, payload: bytes) -> int:
        """Number the items that a checkpoint added, and return how many were new."""
        if not payload:
            return 0
        try:
            items = msgspec.msgpack.decode(payload, type=list[Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise StoreDamagedError(f"saved frontier items cannot be read: {error}") from error
        before = len(self._seen)
        for item in cast("list[T]", items):
            key = self.key_of(item)
            if key not in self._seen:
                position = len(self._seen)
                self._seen.add(key)
                self._items[position] = item
                self._ready.append(position)
        return len(self._seen) - before

    def finish(self, position: int) -> None:
        """Let go of an item that is confirmed."""
        self._items.pop(position, None)

    def take(self) -> int | None:
        """The number of the next item to work on, oldest first; None: none is ready."""
        return self._ready.popleft() if self._ready else None

    def settle_loaded(self, is_confirmed: Callable[[int], bool]) -> None:
        """After loading: let go of what is confirmed."""
        for position in [p for p in self._items if is_confirmed(p)]:
            del self._items[position]

    def make_ready(self, is_done: Callable[[int], bool]) -> None:
        """Begin to work: all is ready that is neither confirmed nor skipped."""
        self._ready = deque(p for p in self._items if not is_done(p))
