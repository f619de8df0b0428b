"""A helper thread for a blocking function, which ends with that function."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ..._util.threads import start_thread

T = TypeVar("T")


class Beside(Generic[T]):
    """Processes items in order, in a thread of its own.

    Args:
        name: The name of the thread.
        work: Called with all waiting items, the oldest first; an exception ends the thread.
        most: How many items may wait, those in work included; `add` blocks above that.

    Raises:
        NoThreadError: the system starts no more threads.
    """

    def __init__(
        self, name: str, work: Callable[[Sequence[T]], None], most: float = math.inf
    ) -> None:
        self._work = work
        self._most = most
        self._changed = threading.Condition()
        self._waiting: list[T] = []
        self._is_closing = False
        self._error: BaseException | None = None
        self._thread = start_thread(self._run, name)

    def add(self, item: T) -> None:
        """Queue an item.

        Raises:
            BaseException: the exception that `work` raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._waiting) < self._most)
            self._check()
            self._waiting.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all items are done.

        Raises:
            BaseException: the exception that `work` raised.
        """
        self._end()
        self._check()

    def stop(self) -> None:
        """Wait for the items in work, and discard the rest.  A second call does nothing."""
        with self._changed:
            self._waiting.clear()
        self._end()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                items = list(self._waiting)
            if not items:
                return
            try:
                self._work(items)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                del self._waiting[: len(items)]
                self._changed.notify_all()
