"""Calling observers with what a run does; it costs nothing where there are none.

The code that calls them checks first whether there are any (``if observers.all:``), so a run
without observers pays for the truth value of a list.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from .._journal.store import Attempt, AttemptEnd, Observer
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
        for observer in self.all:
            try:
                observer.attempt_began(attempt)
            except BaseException:
                _say_failed(observer, at_attempt(attempt))

    def settled(self, attempt: Attempt) -> None:
        """See `Observer.attempt_settled`."""
        for observer in self.all:
            try:
                observer.attempt_settled(attempt)
            except BaseException:
                _say_failed(observer, at_attempt(attempt))

    def ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        """See `Observer.attempt_ended`."""
        for observer in self.all:
            try:
                observer.attempt_ended(attempt, end, error)
            except BaseException:
                _say_failed(observer, at_attempt(attempt))

    def left(self, attempt: Attempt) -> None:
        """See `Observer.attempt_left`."""
        for observer in self.all:
            try:
                observer.attempt_left(attempt)
            except BaseException:
                _say_failed(observer, at_attempt(attempt))

    def saved(self, run_id: str, size: int) -> None:
        """See `Observer.bytes_saved`."""
        for observer in self.all:
            try:
                observer.bytes_saved(run_id, size)
            except BaseException:
                _say_failed(observer, at(run_id))


def _say_failed(observer: Observer, place: Place) -> None:
    log.exception("an observer failed: %s", type(observer).__qualname__, extra=place)


def at_attempt(attempt: Attempt) -> Place:
    return at(attempt.run_id, attempt.stream, attempt.batch_index)
