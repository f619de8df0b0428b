"""Calling observers with what a run does; it costs nothing where there are none.

The code that calls them checks first whether there are any (``if observers.all:``), so a run
without observers pays for the truth value of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

from .._journal.observer import Attempt, AttemptEnd, Observer
from .._journal.store import BlobPayload
from .._util.log import Place, at, get_logger

log = get_logger(__name__)


class Observers:
    """The observers of a run.

    Attributes:
        all: The observers.

    An exception of an observer is logged, also one that ends programs, such as SystemExit: this
    ensures that a monitor cannot break a run.
    """

    __slots__ = ("all",)

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self.all = list(observers)

    @contextmanager
    def adding(self, observer: Observer) -> Generator[None]:
        """Add an observer while the block runs."""
        self.all.append(observer)
        try:
            yield
        finally:
            self.all.remove(observer)

    def began(self, attempt: Attempt) -> None:
        """See `Observer.attempt_began`."""
        self._call(lambda observer: observer.attempt_began(attempt), attempt)

    def settled(self, attempt: Attempt) -> None:
        """See `Observer.attempt_settled`."""
        self._call(lambda observer: observer.attempt_settled(attempt), attempt)

    def ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        """See `Observer.attempt_ended`."""
        self._call(lambda observer: observer.attempt_ended(attempt, end, error), attempt)

    def left(self, attempt: Attempt) -> None:
        """See `Observer.attempt_left`."""
        self._call(lambda observer: observer.attempt_left(attempt), attempt)

    def saved(self, run_id: str, size: int) -> None:
        """See `Observer.bytes_saved`."""
        self._call(lambda observer: observer.bytes_saved(run_id, size), run_id)

    def _call(self, call: Callable[[Observer], None], about: Attempt | str) -> None:
        for observer in self.all:
            try:
                call(observer)
            except BaseException:
                place = at(about) if isinstance(about, str) else at_attempt(about)
                name = type(observer).__qualname__
                log.exception("an observer failed: %s", name, extra=place)


def at_attempt(attempt: Attempt) -> Place:
    return at(attempt.run_id, attempt.stream, attempt.batch_index)


def counted(payload: BlobPayload, sizes: list[int]) -> Iterator[memoryview]:
    """The buffers of a payload; the size of each is added to `sizes` when it is read."""
    for buffer in [payload] if isinstance(payload, (bytes, bytearray, memoryview)) else payload:
        view = memoryview(buffer)
        sizes.append(view.nbytes)
        yield view
