"""An engine as a job uses it: items go in by groups, and come back one by one.

Theory of operation.  What an engine offers may block, so it is called in a thread.  Groups of items
are submitted one after the other: while one is being submitted, the next one gathers; so a group is
as large as the engine is slow.  Items that have ended are appended to a queue, in whatever thread
the engine says so, and trio is woken once for all that are in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs
import trio
from outcome import Outcome, Value

from .._util.arguments import checked_by, optional, ratio, whole_number
from .._util.log import get_logger
from .._util.patience import give_up_after
from .._util.threads import run_blocking
from ._errors import EngineLostError
from ._item import SpecBytes

log = get_logger(__name__)

MAX_GROUP = 500  # items in one call of the engine: bounds how long the first of them waits
LEAVE_S = 10.0  # for an engine to take back what has not begun, and to close


@attrs.frozen
class Resources:
    """What one work item needs while it runs; None: what the engine takes by default.

    Attributes:
        cpus: Processors.
        gpus: GPUs, or parts of one.
        memory_bytes: Memory, in bytes.
    """

    cpus: float | None = attrs.field(default=None, validator=optional(ratio))
    gpus: float | None = attrs.field(default=None, validator=optional(ratio))
    memory_bytes: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(checked_by(whole_number))
    )

    def __bool__(self) -> bool:
        return self != Resources()


@attrs.define(eq=False)
class EngineCall:
    """One work item on its way through an engine.

    Attributes:
        key: Its name in the engine: the item's id, and which attempt it is.
        spec: What `run_item` is called with.
        task: The task that waits for it.
        is_over: Whether no task waits for it any more.
    """

    key: str
    spec: SpecBytes
    task: trio.lowlevel.Task
    is_over: bool = False


OnEnd = Callable[[EngineCall, Outcome[object]], None]
"""Called once for a call that has ended, from any thread; an error is the engine's."""


class EngineAdapter(ABC):
    """What a job uses of an engine; the methods may block, and are called from several threads.

    `submit` is called once at a time.
    """

    @abstractmethod
    def submit(self, calls: Sequence[EngineCall], on_end: OnEnd) -> None:
        """Let the engine call `run_item` for each of the calls.

        Raises:
            EngineLostError: the engine takes no more calls.
        """

    @abstractmethod
    def cancel(self, calls: Sequence[EngineCall]) -> None:
        """Ask the engine not to begin these calls, and to end those that run if it can."""

    def why_waiting(self) -> str:
        """Why no call can begin, as text; empty: they can, or it is not known."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """End what the adapter has started; what the caller has given stays as it is."""


@attrs.define(eq=False)
class EngineCalls:
    """The calls of one job that its engine has.

    Attributes:
        adapter: The engine.
        ended_count: How many calls have ended.
    """

    adapter: EngineAdapter
    ended_count: int = attrs.field(default=0, init=False)
    _token: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )
    _queue: list[EngineCall] = attrs.field(factory=list[EngineCall], init=False)
    _idle: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _running: set[EngineCall] = attrs.field(factory=set[EngineCall], init=False)
    _ended: deque[tuple[EngineCall, Outcome[object]]] = attrs.field(
        factory=deque[tuple[EngineCall, Outcome[object]]], init=False
    )

    async def call(self, key: str, spec: SpecBytes) -> Outcome[object]:
        """Run one item in the engine; an error in the outcome is the engine's.

        Cancellation: the engine is asked to drop the call when the job is left.
        """
        call = EngineCall(key, spec, trio.lowlevel.current_task())
        self._queue.append(call)
        self._idle.unpark()

        def give_up(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            call.is_over = True
            return trio.lowlevel.Abort.SUCCEEDED

        outcome: Outcome[object] = await trio.lowlevel.wait_task_rescheduled(give_up)
        return outcome

    async def run(self) -> None:
        """Submit calls until cancelled; then take back what has not ended.

        Raises:
            EngineLostError: the engine takes no more calls.

        Cancellation: ends it, within `LEAVE_S` if the engine answers.
        """
        try:
            while True:
                while not self._queue:
                    await self._idle.park()
                group = [call for call in self._queue[:MAX_GROUP] if not call.is_over]
                del self._queue[:MAX_GROUP]
                self._running.update(group)
                await run_blocking(self.adapter.submit, group, self._end)
        finally:
            with give_up_after(LEAVE_S):
                await self._take_back()

    async def _take_back(self) -> None:
        """Cancel the calls that have not ended, best effort."""
        try:
            if self._running:
                await trio.to_thread.run_sync(
                    self.adapter.cancel, list(self._running), abandon_on_cancel=True
                )
        except Exception as error:
            log.warning("the engine was not told of the end of a job: %r", error)

    def _end(self, call: EngineCall, outcome: Outcome[object]) -> None:
        """Keep the outcome of a call, and wake trio; from any thread."""
        self._ended.append((call, outcome))
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        while self._ended:
            call, outcome = self._ended.popleft()
            self._running.discard(call)
            self.ended_count += 1
            if not call.is_over:
                call.is_over = True
                trio.lowlevel.reschedule(call.task, Value(outcome))


def lost(what: str, error: BaseException) -> EngineLostError:
    """Return the error of an engine that takes no more calls."""
    return EngineLostError(
        f"{what} runs no more work items: {type(error).__name__}: {error}; the same call with the "
        "same job_id continues the job"
    )
