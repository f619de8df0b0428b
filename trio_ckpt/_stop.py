"""Stopping a run in good order.

A stop parks every loop where the gate would hand out the next batch.  When no batch is
open any more, or the grace is over, the scopes of the open streams are cancelled.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import trio

from ._errors import EXIT_DRAINED, EXIT_SIGTERM
from ._forks import in_children
from ._portal import Portal
from ._uninterrupted import uninterrupted

log = logging.getLogger("trio_ckpt.stop")


@uninterrupted
class Stop:
    """Whether a run is being stopped, and how far it has come.

    Attributes:
        busy: Batches that are open now, but for those whose bodies wait (`aside`).
        exit_code: What the command should exit with; 0 until the streams are cancelled.
        scopes: Those of the open streams.
        body: The run's own, for what goes on outside of streams: a second request ends it.
        changed: Called when the streams are cancelled.
    """

    def __init__(self) -> None:
        self.busy = 0
        self.exit_code = 0
        self.scopes: set[trio.CancelScope] = set()
        self._portal = Portal.here()
        self._is_requested = False
        self._forced_code = EXIT_SIGTERM
        self._requested = trio.Event()
        self._idle = trio.Event()
        self.body = trio.CancelScope()
        self.changed: Callable[[], None] = _nothing

    @property
    def is_requested(self) -> bool:
        """Whether somebody asked for a stop; streams are cancelled for other reasons, too."""
        return self._is_requested

    def ask(self) -> None:
        """Ask for a stop, once: from any task, any thread and any signal handler.

        From now on no loop is handed another batch; trio's own thread does the rest.
        """
        if not self._is_requested:
            self._is_requested = True
            with suppress(trio.RunFinishedError):  # there is nothing left to stop
                self._portal.trio_token.run_sync_soon(self._begin)

    def request(self, forced_code: int = EXIT_SIGTERM) -> None:
        """Ask for a stop; asking again cancels at once.

        Args:
            forced_code: What the command should exit with if batches were still open.
        """
        if self._is_requested:
            self.cancel_streams(EXIT_DRAINED if self.busy == 0 else forced_code)
            self.body.cancel()
        self._is_requested = True
        self._forced_code = forced_code
        self._begin()

    def _begin(self) -> None:
        self._requested.set()
        if self.busy == 0:
            self._idle.set()

    def leave_batch(self) -> None:
        """Count one open batch less."""
        self.busy -= 1
        if self.busy == 0 and self._requested.is_set():
            self._idle.set()

    @asynccontextmanager
    async def aside(self) -> AsyncGenerator[None]:
        """Count one open batch less for a block that a stop does not have to see through.

        During a stop the body does not come back from the block: it is parked there, as a
        loop is at the gate, until its stream is cancelled.

        Cancellation: before and after the block, during a stop only.
        """
        self.leave_batch()
        try:
            await self.park()
            try:
                yield
            except Exception:
                await self.park()
                raise
            await self.park()
        finally:
            self.busy += 1

    @property
    def is_parking(self) -> bool:
        """Whether loops are to wait instead of beginning another batch."""
        return self._is_requested or self.exit_code != 0

    async def park(self) -> None:
        """Return at once, or never while a stop is under way.

        Cancellation: the only way out of a stop.
        """
        if self.is_parking:
            await trio.sleep_forever()

    async def see_through(self, grace_s: float) -> None:
        """Wait for a request, then for the open batches, then cancel the streams."""
        await self._requested.wait()
        with trio.move_on_after(grace_s) as grace:
            await self._idle.wait()
        if self.exit_code == 0:
            self.cancel_streams(self._forced_code if grace.cancelled_caught else EXIT_DRAINED)

    def cancel_streams(self, exit_code: int) -> None:
        """Cancel every open stream; those that open later end at once."""
        self.exit_code = self.exit_code or exit_code
        for scope in self.scopes:
            scope.cancel()
        self.changed()


def _nothing() -> None:
    """Nobody waits for it."""


_signals_taken: trio.lowlevel.RunVar[int] = trio.lowlevel.RunVar("trio_ckpt signals", 0)


def take_signals(wanted: bool | None) -> bool:
    """Whether to listen for SIGINT and SIGTERM; by default the first run of the main thread."""
    if wanted is None:
        is_main = threading.current_thread() is threading.main_thread()
        wanted = is_main and _signals_taken.get() == 0
        if not wanted:
            log.info("signals are left alone: another run or thread has them")
    if wanted:
        _signals_taken.set(_signals_taken.get() + 1)
    return wanted


def release_signals() -> None:
    """Let the next run have the signals."""
    _signals_taken.set(_signals_taken.get() - 1)


@contextmanager
def stop_signals() -> Generator[AsyncIterator[int]]:
    """Receive SIGINT and SIGTERM while the block runs.

    A forked child gets SIGTERM back, or ``multiprocessing.Pool`` could not end its workers.  It
    goes on ignoring SIGINT, which a terminal sends to it, too, while this process drains.
    """
    give_back = partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    with in_children(give_back), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as got:
        yield got


@uninterrupted
async def receive_signals(
    stop: Stop, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Turn SIGINT and SIGTERM into a request to stop.

    Cancellation: ends it, and gives the signals back.
    """
    with stop_signals() as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: stopping in good order", signal.Signals(number).name)
            stop.request(128 + number)
