"""Where batches come from: nothing, a list, or something that makes the list.

A source is always the whole list, on every start; what is confirmed is passed over.  So
a source that changed under what is confirmed can be noticed, and is: see `trio_ckpt._compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

from ._arguments import function, shown
from ._errors import NotEncodableError
from ._values import as_plain, canonical_json, item_digest

T = TypeVar("T")


def default_key(item: Any, path: str = "item") -> str:
    """What makes an item the same on the next start: its canonical JSON.

    Args:
        item: The item.
        path: What it is called in an error.

    Raises:
        NotEncodableError: it is not JSON-like; give ``key=`` then.
    """
    if type(item) is int:
        return str(item)
    try:
        return canonical_json(as_plain(item, path))
    except NotEncodableError as error:
        raise NotEncodableError(error.path, f"{error.problem}; give key=") from error


class Source(Generic[T]):
    """The items of a stream by batch index; `get` is all there is to it.

    Args:
        items: None (an open end), a sequence, or a function that returns the items.
        first_index: The batch of the first item.
        key: Names an item; see `default_key`.

    Raises:
        TypeError: `items` is something else, such as a generator, which a second start
            could not read again.
    """

    def __init__(
        self,
        items: Sequence[T] | Callable[[], Iterable[T]] | None,
        *,
        first_index: int,
        key: Callable[[T], str] | None = None,
    ) -> None:
        is_list = isinstance(items, Sequence) and not isinstance(items, str | bytes | bytearray)
        if items is not None and not is_list and not callable(items):
            raise TypeError(
                f"items must be a list, or a function that returns one, not {shown(items)}: they "
                "are read again on every start"
            )
        if key is not None:
            function("key", key)
        self._list: Sequence[T] | None = None
        self._make: Callable[[], Iterable[T]] | None = None
        if isinstance(items, Sequence):
            self._list = items
        elif items is not None:
            self._make = items
        self._first = first_index
        self._key = key
        self._made: Iterator[T] | None = None
        self._position = -1  # of `_current` among what `_made` has given
        self._current: T | None = None

    @property
    def is_open_ended(self) -> bool:
        """Whether only the loop can know where it ends."""
        return self._list is None and self._make is None

    @property
    def stop(self) -> int | None:
        """One more than the last batch, where that is known without reading on."""
        return None if self._list is None else self._first + len(self._list)

    def get(self, index: int) -> tuple[T | None, bytes] | None:
        """The item of a batch and the digest of its key; None: there is no such batch."""
        position = index - self._first
        if self._list is not None:
            if not 0 <= position < len(self._list):
                return None
            item = self._list[position]
            return item, item_digest(self._key_of(index, item))
        if self._make is not None:
            return self._read_to(position, self._make) if position >= 0 else None
        return None, b""

    def _read_to(
        self, position: int, make: Callable[[], Iterable[T]]
    ) -> tuple[T | None, bytes] | None:
        if self._made is None or position < self._position:
            made: object = make()
            if isinstance(made, str | bytes | bytearray) or not isinstance(made, Iterable):
                raise TypeError(f"items must return a list of items, not {shown(made)}")
            self._made, self._position = iter(cast("Iterable[T]", made)), -1
        while self._position < position:
            try:
                self._current = next(self._made)
            except StopIteration:
                return None
            except BaseException:
                self._made = None  # a generator that raised would say next that it has ended
                raise
            self._position += 1
        current = cast("T", self._current)
        return current, item_digest(self._key_of(self._first + position, current))

    def _key_of(self, index: int, item: T) -> str:
        """What makes an item the same on the next start.

        Raises:
            NotEncodableError: the default key cannot be made of the item; with its batch.
            TypeError: the function that was given returns something else than a str.
        """
        if self._key is None:
            return default_key(item, f"the item of batch {index}")
        key: object = self._key(item)
        if not isinstance(key, str):
            raise TypeError(f"key must return a str, not {shown(key)}, for batch {index}")
        return key

    def name_of(self, index: int) -> str:
        """What the source gives for a batch now, in words."""
        found = self.get(index)
        return "nothing" if found is None else self._key_of(index, cast("T", found[0]))
