"""Where batches come from: nothing, a list, or something that makes the list.

A source is always the whole list, on every start; what is confirmed is passed over.  So
a source that changed under what is confirmed can be noticed, and is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from ._errors import NotEncodableError, SourceChangedError
from ._values import StreamKey, canonical_json, check_plain, item_digest

T = TypeVar("T")

_NOTHING = "nothing: it is shorter now"


def default_key(item: Any) -> str:
    """What makes an item the same on the next start: its canonical JSON.

    Raises:
        NotEncodableError: it is not JSON-like; give ``key=`` then.
    """
    if type(item) is int:
        return str(item)
    try:
        check_plain(item, "item")
    except NotEncodableError as error:
        raise NotEncodableError(error.path, f"{error}; give key=") from error
    return canonical_json(item)


class Source(Generic[T]):
    """The items of a stream by batch index; `get` is all there is to it.

    Args:
        items: None (an open end), a sequence, or a function that returns the items.
        first_index: The batch of the first item.
        key: Names an item; see `default_key`.
        known: What the newest records say of their items.
        confirmed_stop: One more than the last batch that is done.
        where: The run and the stream, for errors.

    Raises:
        TypeError: `items` is something else, such as a generator, which a second start
            could not read again.
        SourceChangedError: a list is not the one that the records are of.
    """

    def __init__(
        self,
        items: Sequence[T] | Callable[[], Iterable[T]] | None,
        *,
        first_index: int,
        key: Callable[[T], str] | None,
        known: Mapping[int, bytes],
        confirmed_stop: int,
        where: tuple[str, StreamKey],
    ) -> None:
        if items is not None and not isinstance(items, Sequence) and not callable(items):
            raise TypeError(
                f"a source is a sequence or a function that returns the items, not a "
                f"{type(items).__qualname__}: it must be the whole list on every start"
            )
        self._list: Sequence[T] | None = None
        self._make: Callable[[], Iterable[T]] | None = None
        if isinstance(items, Sequence):
            self._list = items
        elif items is not None:
            self._make = items
        self._first = first_index
        self._key = key or default_key
        self._known = known
        self._confirmed_stop = confirmed_stop
        self._where = where
        self._made: Iterator[T] | None = None
        self._position = -1  # of `_current` among what `_made` has given
        self._current: T | None = None
        if self._list is not None:
            self._check_end(first_index + len(self._list))
            for index in known:
                if index >= first_index:
                    self._checked(index, self._list[index - first_index])

    @property
    def is_open_ended(self) -> bool:
        """Whether only the loop can know where it ends."""
        return self._list is None and self._make is None

    @property
    def stop(self) -> int | None:
        """One more than the last batch, where that is known without reading on."""
        return None if self._list is None else self._first + len(self._list)

    def get(self, index: int) -> tuple[T | None, bytes] | None:
        """The item of a batch and the digest of its key; None: there is no such batch.

        Raises:
            SourceChangedError: it is not the item that the record of the batch is of.
        """
        position = index - self._first
        if self._list is not None:
            if not 0 <= position < len(self._list):
                return None
            item = self._list[position]
            return item, self._checked(index, item)
        if self._make is not None:
            return self._read_to(position, self._make) if position >= 0 else None
        return None, b""

    def _read_to(
        self, position: int, make: Callable[[], Iterable[T]]
    ) -> tuple[T | None, bytes] | None:
        if self._made is None or position < self._position:
            self._made, self._position = iter(make()), -1
        while self._position < position:
            try:
                self._current = next(self._made)
            except StopIteration:
                self._check_end(self._first + self._position + 1)
                return None
            except BaseException:
                self._made = None  # a generator that raised would say next that it has ended
                raise
            self._position += 1
            if self._first + self._position in self._known:
                self._checked(self._first + self._position, self._current)
        current = cast("T", self._current)
        return current, item_digest(self._key(current))

    def _checked(self, index: int, item: T) -> bytes:
        key = self._key(item)
        digest = item_digest(key)
        was = self._known.get(index)
        if was and was != digest:
            raise self._changed(index, was, f"{key} ({digest.hex()})")
        return digest

    def _check_end(self, stop: int) -> None:
        if stop < self._confirmed_stop:
            last = self._confirmed_stop - 1
            raise self._changed(last, self._known.get(last, b""), _NOTHING)

    def _changed(self, index: int, was: bytes, now: str) -> SourceChangedError:
        run_id, stream = self._where
        return SourceChangedError(
            was.hex() or "of an older record", now, run_id=run_id, stream=stream, batch_index=index
        )
