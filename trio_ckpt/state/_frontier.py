"""A list of items that grows during the work, each item once.

Theory of operation
===================

A `Frontier` gives the initial items, and the key that makes two items equal; any number of streams
can use one.  Each of them makes a list of its own from it, `FrontierItems`.

Items are numbered in the order in which they arrive, and item j is batch ``first_index +
j``.  A batch may *stage* new items; they are saved with its checkpoint, and when that is
durable `FrontierItems.number` numbers those that are new.  The same function does this in
memory and on load, in the order of the checkpoints, so the numbers are equal: a
checkpoint costs what its batch added, at a thousand items and at a million.  The program's
own `key` function is called when items are given and when they are loaded, at no other time.

Memory holds the keys of all items, and the items that are left.
"""

# What a stream takes of a frontier is below the class, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar, cast

import msgspec

from .._util.arguments import function, several
from .._util.errors import NotEncodableError, StoreDamagedError
from .._util.plain import as_plain, call_key, canonical_json, copy_plain

T = TypeVar("T")

MAX_KEY_CHARS = 10_000  # longer than any URL that a server accepts


class Frontier(Generic[T]):
    """Items to work on, each once; for ``open_stream(..., state=Frontier([start]))``.

    Each stream works on a list of its own: ``stream.state`` is the stream's list and has its
    length.  So one `Frontier` may be given to several streams, and again after a rewind.

    Args:
        items: The initial items: JSON-like, a tuple becomes a list.  They are copied.  On resume
            those that are new are added.
        key: Returns the str that makes two items equal.  Default: a str is its own key, other
            JSON-like values are their canonical JSON.

    Raises:
        TypeError: `items` is one item, not several.
        NotEncodableError: an item is not JSON-like; the message has its place.
    """

    def __init__(self, items: Iterable[T] = (), *, key: Callable[[T], str] | None = None) -> None:
        if key is not None:
            function("key", key)
        seeds = keyed_items(several("items", items, "items"), key)
        self._items = FrontierItems(seeds, key)
        self._items.number(seeds)

    def __len__(self) -> int:
        """Return the number of items, done or not."""
        return len(self._items)

    @property
    def left(self) -> int:
        """The number of items that are not confirmed, skipped ones included."""
        return self._items.left


def frontier_of(items: FrontierItems[T]) -> Frontier[T]:
    """Return the frontier of an open stream, as its program sees it."""
    frontier: Frontier[T] = Frontier()
    frontier._items = items
    return frontier


def items_of(frontier: Frontier[T]) -> FrontierItems[T]:
    """Return the list for a stream: the items of a frontier, none of them done."""
    return FrontierItems(frontier._items.seeds, frontier._items.key)


def keyed_items(items: Iterable[T], key: Callable[[T], str] | None) -> dict[str, T]:
    """Return copies of items by their keys, each once.

    Raises:
        NotEncodableError: an item is not JSON-like, or its key is too long.
        TypeError: the key of an item is not a str.
    """
    found: dict[str, T] = {}
    for place, item in enumerate(items):
        path = f"items[{place}]"
        plain = as_plain(item, path)
        found.setdefault(_key_of(plain, key, path), plain)
    return found


def _key_of(item: T, key: Callable[[T], str] | None, path: str = "item") -> str:
    """Return the key of an item."""
    if key is not None:
        name = call_key(key, cast("T", copy_plain(item)), path)
    else:
        name = item if isinstance(item, str) else canonical_json(item)
    if len(name) > MAX_KEY_CHARS:
        raise NotEncodableError(path, f"its key has {len(name):,} characters, over {MAX_KEY_CHARS}")
    return name


class FrontierItems(Generic[T]):
    """The items of one stream; only the stream uses it.

    Attributes:
        seeds: The initial items by key.
        key: Returns the key of an item; None: the default.
    """

    def __init__(self, seeds: dict[str, T], key: Callable[[T], str] | None) -> None:
        self.seeds = seeds
        self.key = key
        self._seen: set[str] = set()
        self._items: dict[int, T] = {}
        self._ready: deque[int] = deque()

    def __len__(self) -> int:
        """Return the number of items, done or not."""
        return len(self._seen)

    @property
    def left(self) -> int:
        """The number of items that are not confirmed."""
        return len(self._items)

    def item(self, position: int) -> T:
        """Return an item by its number; only for items that are left or were skipped."""
        return self._items[position]

    def key_of(self, item: T) -> str:
        """Return the key of an item."""
        return _key_of(item, self.key)

    def all_keys(self) -> list[str]:
        """Return the keys of all items that are left, in the order of their numbers."""
        return [_key_of(item, self.key) for item in self._items.values()]

    def news(self, keyed: Mapping[str, T]) -> list[T]:
        """Return the items of `keyed` that are new so far."""
        return [item for key, item in keyed.items() if key not in self._seen]

    # -- what the stream does -----------------------------------------------------------

    @staticmethod
    def encode(items: list[T]) -> bytes:
        """Encode staged items for a checkpoint; no items give no bytes."""
        return msgspec.msgpack.encode(items) if items else b""

    def fold(self, payload: bytes) -> None:
        """Number the items that a saved checkpoint added."""
        try:
            items = msgspec.msgpack.decode(payload, type=list[object])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise StoreDamagedError(f"saved frontier items cannot be read: {error}") from error
        for item in cast("list[T]", items):
            self.number({_key_of(item, self.key): item})

    def number(self, keyed: Mapping[str, T]) -> None:
        """Number the items that are new; the checkpoint that staged them is durable."""
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
        """Return the number of the oldest item that is ready; None: none is."""
        return self._ready.popleft() if self._ready else None

    def settle_loaded(self, is_confirmed: Callable[[int], bool]) -> None:
        """Drop the items that are confirmed, after loading."""
        for position in [p for p in self._items if is_confirmed(p)]:
            del self._items[position]

    def make_ready(self, is_done: Callable[[int], bool]) -> None:
        """Begin the work: items that are neither confirmed nor skipped become ready."""
        self._ready = deque(p for p in self._items if not is_done(p))
