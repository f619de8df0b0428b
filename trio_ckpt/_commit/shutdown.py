"""Graceful shutdown of a run.

A stop parks every loop where it would get the next batch.  When no batch is open any more,
or the grace period is over, the scopes of the open streams are cancelled.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from heapq import nsmallest

import trio

from .._journal.statistics import Stopping
from .._tokens.token import AnyToken
from .._util.errors import EXIT_DRAINED, EXIT_SIGTERM
from .._util.forks import in_children
from .._util.log import at, get_logger
from .._util.patience import give_up_after
from .._util.text import duration, stopping_text
from .._util.threads import Portal
from .._util.uninterrupted import uninterrupted

log = get_logger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

MAX_NAMED = 3  # open batches that a message names
SAID_AFTER_S = 0.5  # when the log names them: most stops are over before


@uninterrupted
class Stop:
    """Whether a run is being stopped, and how far the stop is.

    Attributes:
        exit_code: What the command should exit with; 0 until the streams are cancelled.
        forced_code: What it should exit with if batches are still open then; the request with
            which the stop began decides it.
        reason: Why it began, as text; empty: a signal or the program requested it.
        is_parking: Loops must wait instead of beginning another batch, and never go on.
        is_holding: The same, or the run is held for some time: they may go on later.
        is_paused: The run is paused: nothing is handed out, and what is open goes on.
        scopes: The cancel scopes of the open streams.
        workers: Tasks of the library that work for the task of whose nursery they are.
        body: The cancel scope of the run's block, which a second signal cancels.
        changed: Called when a stop begins, and when the streams are cancelled.
    """

    def __init__(self, grace_s: float) -> None:
        """Make one that is not requested.

        Args:
            grace_s: How long a stop waits for open batches, in seconds.
        """
        self._grace_s = grace_s
        # Open batches, except those in `aside`, with the tasks that run their bodies.
        self._open: dict[AnyToken, trio.lowlevel.Task] = {}
        self._of_tasks: dict[trio.lowlevel.Task, list[AnyToken]] = {}
        self._ends_at = math.inf  # when the grace period is over, on trio's clock
        self.exit_code = 0
        self.reason = ""
        self.forced_code = EXIT_SIGTERM
        self.is_parking = self.is_holding = False
        self.is_paused = False
        self._holds = 0  # blocks of `holding`
        self._free = trio.Event()  # set unless loops are held, by a pause or by such a block
        self._free.set()
        self.scopes: set[trio.CancelScope] = set()
        self.workers: set[trio.lowlevel.Task] = set()
        self._portal = Portal.here()
        self._is_requested = False
        self._is_signalled = False
        self._requested = trio.Event()
        self._idle = trio.Event()
        self.body = trio.CancelScope()
        self.changed: Callable[[], None] = lambda: None

    @property
    def busy(self) -> int:
        """How many batches are open now, except those whose bodies wait in `aside`."""
        return len(self._open)

    @property
    def is_requested(self) -> bool:
        """Whether a stop was requested; streams are cancelled for other reasons, too."""
        return self._is_requested

    def request(self, forced_code: int = EXIT_SIGTERM, *, reason: str = "") -> None:
        """Request a stop: from any task, any thread and any signal handler, any number of times.

        No loop gets another batch after this; trio's own thread does the rest.

        Args:
            forced_code: What the command should exit with if the stop begins with this, and
                batches are still open when the streams are cancelled.
            reason: Why, if the run stops by itself.
        """
        if not self._is_requested:
            self.forced_code, self.reason = forced_code, reason
            self._is_requested = self.is_parking = self.is_holding = True
            with suppress(trio.RunFinishedError):  # there is nothing left to stop
                self._portal.trio_token.run_sync_soon(self._begin)

    def request_by_signal(self, forced_code: int) -> None:
        """Request a stop because of a signal; the second signal cancels at once.

        Args:
            forced_code: As that of `request`.
        """
        if self._is_signalled:
            self.cancel_streams(EXIT_DRAINED if self.busy == 0 else self.forced_code)
            self.body.cancel()
        self._is_signalled = True
        self.request(forced_code)
        self._begin()

    def _begin(self) -> None:
        if not self._requested.is_set():
            self._ends_at = trio.current_time() + self._grace_s
        self._requested.set()
        if not self._open:
            self._idle.set()
        self.changed()

    def enter_batch(self, token: AnyToken, task: trio.lowlevel.Task) -> None:
        """Add a batch, whose body the given task runs, to those that a stop waits for."""
        self._open[token] = task
        if task in self._of_tasks:
            self._of_tasks[task].append(token)
        else:
            self._of_tasks[task] = [token]

    def leave_batch(self, token: AnyToken) -> None:
        """Remove a batch from those that a stop waits for."""
        task = self._open.pop(token, None)
        if task is not None:
            tokens = self._of_tasks[task]
            if len(tokens) == 1:
                del self._of_tasks[task]
            else:
                tokens.remove(token)
        if self.is_parking and not self._open and self._requested.is_set():
            self._idle.set()

    @asynccontextmanager
    async def aside(self, token: AnyToken) -> AsyncGenerator[None]:
        """Open a block during which a stop does not wait for a batch.

        During a stop the body does not return from the block: it is parked there, as a
        loop is at the gate, until its stream is cancelled.

        Cancellation: before and after the block, during a stop only.
        """
        self.leave_batch(token)
        try:
            await self.park()
            try:
                yield
            except Exception:
                await self.park()
                raise
            await self.park()
        finally:
            if token.is_pending:
                self.enter_batch(token, trio.lowlevel.current_task())

    async def park(self) -> None:
        """Return at once, or never while a stop is under way.

        Cancellation: the only way out of a stop.
        """
        if self.is_parking:
            with self.at_gate():
                await trio.sleep_forever()

    def pause(self) -> None:
        """Hand out nothing until `resume`; has no effect on a run that is paused."""
        self.is_paused = True
        self._update_hold()

    def resume(self) -> None:
        """Let the loops go on, unless a stop is under way."""
        self.is_paused = False
        self._update_hold()

    @contextmanager
    def holding(self) -> Generator[None]:
        """Hand out nothing while the block runs, so that what is left can be changed in it."""
        self._holds += 1
        self._update_hold()
        try:
            yield
        finally:
            self._holds -= 1
            self._update_hold()

    def _update_hold(self) -> None:
        is_held = self.is_paused or self._holds > 0
        if not is_held:
            self._free.set()
        elif self._free.is_set():
            self._free = trio.Event()
        self.is_holding = is_held or self.is_parking

    async def hold(self) -> None:
        """Wait before another batch begins: until it is not held, and for ever during a stop.

        Cancellation: the only way out of a stop.
        """
        while not (self._free.is_set() or self.is_parking):
            with self.at_gate():
                await self._free.wait()
        await self.park()

    @contextmanager
    def at_gate(self) -> Generator[None]:
        """Open a block in which a stop does not wait for batches whose bodies run this loop.

        The calling task is that of a loop.  A batch whose body runs this loop cannot end before
        the loop does, and no stop lets the loop go on.  So a stop that waited for it would wait
        for all of its grace period.  The same holds for the body that called `run_batches`, which
        waits for its workers.
        """
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        taken: list[tuple[AnyToken, trio.lowlevel.Task]] = []
        while task is not None:
            taken += [(token, task) for token in self._of_tasks.get(task, ())]
            nursery = task.parent_nursery if task in self.workers else None
            task = None if nursery is None else nursery.parent_task
        for token, _ in taken:
            self.leave_batch(token)
        try:
            yield
        finally:
            for token, body in taken:
                if token.is_pending:
                    self.enter_batch(token, body)

    async def carry_out(self) -> None:
        """Wait for a request, then for the open batches, then cancel the streams.

        Cancellation: a cancellation point; no stop is carried out after that.
        """
        await self._requested.wait()
        with trio.move_on_after(min(SAID_AFTER_S, self._grace_s)):
            await self._idle.wait()
        self._say("a second signal cancels what is open")
        left_s = max(0.0, self._ends_at - trio.current_time())
        with give_up_after(left_s, is_shielded=False) as grace:
            await self._idle.wait()
        if self.exit_code == 0:
            if grace.cancelled_caught:
                self._say(
                    f"its {duration(self._grace_s)} are over; the next start runs these again"
                )
            self.cancel_streams(self.forced_code if grace.cancelled_caught else EXIT_DRAINED)

    def _say(self, more: str) -> None:
        """Log what the stop waits for, if it waits."""
        stopping = self.stopping()
        if self._open and stopping is not None:
            text = stopping_text(stopping.open, stopping.batches, stopping.for_s)
            run_id = next(iter(self._open)).run_id
            log.warning("run %r: the stop %s; %s", run_id, text, more, extra=at(run_id))

    def stopping(self) -> Stopping | None:
        """What a stop waits for; None: no stop is under way."""
        if not self._is_requested:
            return None
        left_s = 0.0 if self.exit_code else max(0.0, self._ends_at - trio.current_time())
        batches = ((token.stream, token.batch_index) for token in self._open)
        return Stopping(self.busy, tuple(nsmallest(MAX_NAMED, batches)), left_s)

    def cancel_streams(self, exit_code: int) -> None:
        """Cancel every open stream; those that open later end at once."""
        self.exit_code = self.exit_code or exit_code
        self.is_parking = self._is_requested or self.exit_code != 0
        self._update_hold()
        for scope in self.scopes:
            scope.cancel()
        self.changed()


_signals_taken: trio.lowlevel.RunVar[int] = trio.lowlevel.RunVar("trio_ckpt signals", 0)


def take_signals(wanted: bool | None) -> bool:
    """Whether to listen for signals; by default the first run of the main thread does."""
    if wanted is None:
        is_main = threading.current_thread() is threading.main_thread()
        wanted = is_main and _signals_taken.get() == 0
        if not wanted:
            log.info("this run does not handle signals: another run or thread does")
    if wanted:
        _signals_taken.set(_signals_taken.get() + 1)
    return wanted


def release_signals() -> None:
    """Allow the next run to handle signals."""
    _signals_taken.set(_signals_taken.get() - 1)


@contextmanager
def received(numbers: Collection[signal.Signals] = STOP_SIGNALS) -> Generator[AsyncIterator[int]]:
    """Receive signals while the block runs.

    In a forked child they have their former handlers, so that ``multiprocessing.Pool`` can end its
    workers by SIGTERM.  The child ignores SIGINT, which a terminal sends to it, too, while this
    process drains.
    """
    with ExitStack() as stack:
        for number in numbers:
            if number != signal.SIGINT:
                former = signal.getsignal(number) or signal.SIG_DFL  # None: not one of Python's
                stack.enter_context(in_children(partial(signal.signal, number, former)))
        yield stack.enter_context(trio.open_signal_receiver(*numbers))


@uninterrupted
async def receive_signals(
    stop: Stop,
    numbers: Collection[signal.Signals],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Turn signals into a request to stop.

    Cancellation: ends it, and restores the signal handlers.
    """
    with received(numbers) as signals:
        task_status.started()
        async for number in signals:
            obey_signal(stop, number)


def obey_signal(stop: Stop, number: int) -> None:
    """Stop in good order at the first signal, and at once at the second."""
    log.info("%s: stopping in good order", signal.Signals(number).name)
    stop.request_by_signal(128 + number)
