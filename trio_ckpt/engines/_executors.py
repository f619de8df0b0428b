"""Any `concurrent.futures.Executor` as an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from typing import cast

import attrs
from outcome import Outcome, capture

from .._util.arguments import shown
from .._util.log import get_logger
from ._engine import EngineAdapter, EngineCall, OnEnd, lost
from ._item import run_item

log = get_logger(__name__)


@attrs.define(eq=False)
class ExecutorAdapter(EngineAdapter):
    """An executor of the caller, or executors that a function of the caller makes.

    An executor whose process was killed is broken for good: all that it has fails, and it takes
    nothing more.  One that was given as an object ends the job then; a function makes the next one.
    """

    _executor: Executor
    _make: Callable[[], Executor] | None = None
    _guard: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _futures: dict[EngineCall, Future[bytes]] = attrs.field(
        factory=dict[EngineCall, "Future[bytes]"], init=False
    )

    def submit(self, calls: Sequence[EngineCall], on_end: OnEnd) -> None:
        """See `EngineAdapter.submit`."""
        for call in calls:
            future = self._submit(call)
            with self._guard:
                self._futures[call] = future
            future.add_done_callback(partial(self._end, call, on_end))

    def _submit(self, call: EngineCall) -> Future[bytes]:
        try:
            try:
                return self._executor.submit(run_item, call.spec)
            except BrokenExecutor as error:
                if self._make is None:
                    raise
                log.warning("an executor is broken, and the next one is made: %s", error)
                self._executor.shutdown(wait=False, cancel_futures=True)
                self._executor = made(self._make)
                return self._executor.submit(run_item, call.spec)
        except RuntimeError as error:  # it is broken, or shut down
            raise lost(type(self._executor).__name__, error) from error

    def _end(self, call: EngineCall, on_end: OnEnd, future: Future[bytes]) -> None:
        with self._guard:
            self._futures.pop(call, None)
        result: Outcome[object] = capture(future.result)
        on_end(call, result)

    def cancel(self, calls: Sequence[EngineCall]) -> None:
        """See `EngineAdapter.cancel`."""
        for call in calls:
            with self._guard:
                future = self._futures.get(call)
            if future is not None:
                future.cancel()

    def close(self) -> None:
        """Shut down what a function of the caller has made; an executor of the caller stays.

        An item that still runs is not waited for: it ends at its next point.
        """
        if self._make is not None:
            self._executor.shutdown(wait=not self._futures, cancel_futures=True)


def made(make: Callable[[], Executor]) -> Executor:
    """Return what a function of the caller makes.

    Raises:
        TypeError: it is not an executor.
    """
    executor = cast("object", make())
    if not isinstance(executor, Executor):
        raise TypeError(f"engine must make an Executor, not {shown(executor)}")
    return executor
