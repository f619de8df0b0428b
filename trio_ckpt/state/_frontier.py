"""A list of items that grows while it is worked on, each item once.

Theory of operation
===================

A `Frontier` says what to begin with, and what makes two items the same; it can be given to any
number of streams.  Each of them makes a list of its own of it, `FrontierItems`.

Items are numbered in the order in which they come, and item j is batch ``first_index +
j``.  A batch may *stage* new items; they travel with its checkpoint, and when that is
durable `FrontierItems.number` numbers those that are new.  The same function does this in
memory and on load, in the order of the checkpoints, so the numbers are the same: what a
checkpoint costs is what its batch added, at a thousand items and at a million.  The program's
own `key` function is called where items are given and where they are loaded, never in between.

In memory are the keys of all items, and the items of those that are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

import msgspec

from .._util.arguments import function, several
from .._util.errors import NotEncodableError, StoreDamagedError
from .._util.plain import as_plain, call_key, canonical_json, copy_plain

T = TypeVar("T")

MAX_KEY_CHARS = 10_000  # longer than any URL that a server takes


class Frontier(Generic[T]):
    """Items to work on, each once; for ``open_stream(..., state=Frontier([start]))``.

    The stream works on a list of its own: ``stream.state`` is that of the stream, and tells how
    long it is.  So one `Frontier` may be given to several streams, and again after a rewind.

    Args:
        items: What to begin with: JSON-like, a tuple becomes a list.  They are copied.  On resume
            those that are new are added.
        key: What makes two items the same: a str.  Default: a str is its own key, other
            JSON-like values are their canonical JSON.

    Raises:
        TypeError: `items` is one item, not several.
        NotEncodableError: an item is not JSON-like; with its place.
    """

    def __init__(self, items: Iterable[T] = (), *, key: Callable[[T], str] | None = None) -> None:
        if key is not None:
            function("key", key)
        seeds = keyed_items(several("items", items, "items"), key)
        self._live = FrontierItems(seeds, key)
        self._live.number(seeds)

    def __len__(self) -> int:
        """How many items there are, done or not."""
        return len(self._live)

    @property
    def left(self) -> int:
        """How many items are not confirmed; those that were skipped are among them."""
        return self._live.left

    @classmethod
    def of(cls, live: FrontierItems[T]) -> Frontier[T]:
        """The frontier of a stream that is open, as its program sees it."""
        frontier: Frontier[T] = cls()
        frontier._live = live
        return frontier

    def begin(self) -> FrontierItems[T]:
        """What a stream works on: the same items, before anything was done."""
        return FrontierItems(self._live.seeds, self._live.key)


def keyed_items(items: Iterable[T], key: Callable[[T], str] | None) -> dict[str, T]:
    """Copies of items by their keys, each once.

    Raises:
        NotEncodableError: an item is not JSON-like, or its key is too long.
        TypeError: its key is not a str.
    """
    found: dict[str, T] = {}
    for place, item in enumerate(items):
        path = f"items[{place}]"
        plain = as_plain(item, path)
        found.setdefault(_key_of(plain, key, path), plain)
    return found


def _key_of(item: T, key: Callable[[T], str] | None, path: str = "item") -> str:
    """What makes an item the same as another."""
    if key is not None:
        name = call_key(key, cast("T", copy_plain(item)), path)
    else:
        name = item if isinstance(item, str) else canonical_json(item)
    if len(name) > MAX_KEY_CHARS:
        raise NotEncodableError(path, f"its key has {len(name):,} characters, over {MAX_KEY_CHARS}")
    return name


class FrontierItems(Generic[T]):
    """The items of one stream; for the stream alone.

    Attributes:
        seeds: What it begins with, by key.
        key: What makes two items the same.
    """

    def __init__(self, seeds: dict[str, T], key: Callable[[T], str] | None) -> None:
        self.seeds = seeds
        self.key = key
        self._seen: set[str] = set()
        self._items: dict[int, T] = {}
        self._ready: deque[int] = deque()

    def __len__(self) -> int:
        """How many items there are, done or not."""
        return len(self._seen)

    @property
    def left(self) -> int:
        """How many items are not confirmed."""
        return len(self._items)

    def item(self, position: int) -> T:
        """The item of that number; only of those that are left or were skipped."""
        return self._items[position]

    def news(self, keyed: Mapping[str, T]) -> list[T]:
        """Those of `keyed` that are new as far as is known now."""
        return [item for key, item in keyed.items() if key not in self._seen]

    # -- what the stream does -----------------------------------------------------------

    @staticmethod
    def encode(items: list[T]) -> bytes:
        """Staged items as they travel with a checkpoint; none are no bytes."""
        return msgspec.msgpack.encode(items) if items else b""

    def fold(self, payload: bytes) -> None:
        """Number the items that a checkpoint added, as it was saved."""
        try:
            items = msgspec.msgpack.decode(payload, type=list[Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise StoreDamagedError(f"saved frontier items cannot be read: {error}") from error
        for item in cast("list[T]", items):
            self.number({_key_of(item, self.key): item})

    def number(self, keyed: Mapping[str, T]) -> None:
        """Number the items that are new; what staged them is durable."""
        for key, item in keyed.items():
            if key not in self._seen:
                position = len(self._seen)
                self._seen.add(key)
                self._items[position] = item
                self._ready.append(position)

    def finish(self, position: int) -> None:
        """Drop an item that is confirmed."""
        self._items.pop(position, None)

    @property
    def is_ready(self) -> bool:
        """Whether there is an item to work on."""
        return bool(self._ready)

    def take(self) -> int | None:
        """The number of the next item to work on, oldest first; None: none is ready."""
        return self._ready.popleft() if self._ready else None

    def settle_loaded(self, is_confirmed: Callable[[int], bool]) -> None:
        """After loading: drop what is confirmed."""
        for position in [p for p in self._items if is_confirmed(p)]:
            del self._items[position]

    def make_ready(self, is_done: Callable[[int], bool]) -> None:
        """Begin to work: all is ready that is neither confirmed nor skipped."""
        self._ready = deque(p for p in self._items if not is_done(p))
