"""A thread that takes part in the work of a blocking function, and ends with it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ..._util.threads import start_thread

T = TypeVar("T")


class Beside(Generic[T]):
    """Does something with what it is given, in order, in a thread of its own.

    Args:
        name: Of the thread.
        work: Called with all that waits, the oldest first; what it raises ends the thread.
        most: How much may wait, the one that is in work counted; `add` waits above that.

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
        """Give it something to do.

        Raises:
            BaseException: what `work` raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._waiting) < self._most)
            self._check()
            self._waiting.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all is done.

        Raises:
            BaseException: what `work` raised.
        """
        self._end()
        self._check()

    def stop(self) -> None:
        """Wait for what is being done, and leave the rest.  Again: nothing happens."""
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
