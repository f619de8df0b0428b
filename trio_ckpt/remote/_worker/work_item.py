"""One work item on a worker: from its assignment to its end."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import attrs
import trio

from ..._commit.snapshots import put_off
from ..._journal.store import FarStore
from ..._runs.lifecycle import open_run
from ..._util.errors import BatchFailedError, RunStoppedError, StoreDamagedError, StoreError
from ..._util.exceptions import class_name, leaves_of, text_of
from ..._util.log import at, get_logger
from ..._util.plain import Plain
from ..._util.text import message_of, one_line, printable
from .._wire.errors import TaskFailedError
from .._wire.job_messages import TaskError
from .._wire.message import MAX_NAME_CHARS, MAX_TEXT_CHARS, MAX_TRACEBACK_CHARS, TaskMessage
from .._wire.names import TASK_STREAM
from .._wire.submission import as_sent
from .._wire.task_messages import (
    AssignTask,
    ReleaseTask,
    TaskFailed,
    TaskProgress,
    TaskResult,
)
from .work import TaskControl, Work, call, find_function, settings_of

log = get_logger(__name__)

MAX_NOTED = 10  # different reasons, per item, why its state could not be saved


class ItemHost(Protocol):
    """The side that gave a process its work item: a foreman, or the engine that runs it.

    Attributes:
        lease: The number under which this process has the item.
        patience_s: How long a save of the item may take, in seconds.
        lost: Why this process does not have the item any more; None: it has it.
    """

    lease: int
    patience_s: float
    lost: Exception | None

    def send(self, message: TaskMessage) -> bool:
        """Send a message about the item; False: it cannot be sent now."""
        ...


H = TypeVar("H", bound=ItemHost)


@attrs.define(eq=False)
class Item(Generic[H]):
    """A work item that this process has.

    Attributes:
        assigned: The item, and how it is run.
        host: The side that gave it.
        make_store: Makes the store of the item.
        control: The worker's side of the object that the function receives.
        may_be_interrupted: Whether KeyboardInterrupt comes from Ctrl-C, and ends the worker.
        final_message: Ends the item, under the lease of that time; None: the item is running.
        is_reported: Whether the foreman was told that the item runs.
        reported: The progress that was reported last.
    """

    assigned: AssignTask
    host: H
    make_store: Callable[[], FarStore]
    may_be_interrupted: bool = False
    control: TaskControl = attrs.field(factory=TaskControl, init=False)
    final_message: TaskMessage | None = attrs.field(default=None, init=False)
    is_reported: bool = attrs.field(default=False, init=False)
    reported: float | None = attrs.field(default=None, init=False)
    _has_begun: bool = attrs.field(default=False, init=False)
    _noted: set[str] = attrs.field(factory=set[str], init=False)
    _returned: list[Plain] = attrs.field(factory=list[Plain], init=False)  # the result, if any

    @property
    def task_id(self) -> str:
        """The item's id."""
        return self.assigned.task_id

    async def run(self, allow: tuple[str, ...]) -> None:
        """Run the item's function and set `final_message`.

        Cancellation: through `TaskControl.scope`; states that were saved stay saved.
        """
        head, value = (self.task_id, self.host.lease), None
        try:
            with self.control.scope:
                with self._foreign():
                    func = await find_function(self.assigned.function, allow)
                value = await self._run(func)
            if not self.control.scope.cancelled_caught:
                self.final_message = TaskResult(*head, value)
                return
            reason = self.control.release_reason or "it was cancelled"
            self.final_message = ReleaseTask(*head, reason)
        except (Exception, BaseExceptionGroup) as error:
            self._take_error(error)

    @contextmanager
    def _foreign(self) -> Generator[None]:
        """Run foreign code: any exception of it fails the item, with the exception's own text.

        No exception leaves this method: SystemExit does not end the worker, its other items or the
        store, and no text is asked of an exception that has none.

        Raises:
            TaskFailedError: the function raised an exception.
        """
        try:
            yield
        except BaseException as error:
            if _is_cancellation(error) or (self.may_be_interrupted and _is_interrupt(error)):
                raise
            failure = describe_failure(error)
        else:
            return
        raise failure.to_exception(self.assigned.index, self.task_id)

    def _take_error(self, error: BaseException) -> None:
        task_id = self.task_id
        is_ours = isinstance(error, StoreError | RunStoppedError)
        if self.host.lost is not None or is_ours:
            reason = one_line(text_of(error))[:MAX_TEXT_CHARS]
            log.warning("work item %s is dropped here: %s", task_id, reason, extra=at(task_id))
            self.final_message = ReleaseTask(task_id, self.host.lease, reason, is_trouble=True)
            return
        if not isinstance(error, Exception):
            raise error
        if isinstance(error, TaskFailedError):
            failure = TaskError(error.error_type, error.error_message, error.remote_traceback)
        else:
            failure = describe_failure(error)
        text = message_of(failure.message)
        log.warning("work item %s failed: %s: %s", task_id, failure.type, text, extra=at(task_id))
        self.final_message = TaskFailed(task_id, self.host.lease, failure)

    async def _run(self, func: Callable[..., object]) -> Plain:
        if self.assigned.interval_s is None:
            self.control.state = self._new_state(func)
            return await self._call(func)
        store = self.make_store()
        try:
            return await self._run_saving(func, store)
        except StoreDamagedError as error:
            if self._has_begun:
                raise
            self.note(f"no saved state is whole, so it starts from the beginning: {error}")
            return await self._run_saving(func, store, is_fresh=True)
        except BatchFailedError as error:
            if not self._returned:
                raise
            problem = text_of(error.__cause__ or error)
            self.note(f"its last state cannot be saved; its result is kept without it: {problem}")
            await self._keep_result(store, self._returned[0])
            return self._returned[0]

    def _new_state(self, func: Callable[..., object]) -> object:
        with self._foreign():
            return settings_of(func).state(self.assigned.item)

    async def _run_saving(
        self, func: Callable[..., object], store: FarStore, *, is_fresh: bool = False
    ) -> Plain:
        """Run the function inside a run of one batch, whose states are snapshots inside it."""
        assigned, control = self.assigned, self.control
        state = self._new_state(func)
        async with (
            open_run(
                self.task_id,
                store=store,
                fresh=is_fresh,
                handle_signals=False,
                save_timeout_s=self.host.patience_s,
            ) as run,
            run.open_stream(*TASK_STREAM, state=state, recover=True, retry_failed=True) as stream,
            stream.open_batch() as batch,
        ):
            async with stream.snapshots(every_s=assigned.interval_s or 0.0) as snapshots:
                put_off(snapshots)  # most items that are shorter than that need no state
                control.attach(stream, snapshots, self._note_left_out)
                control.resumed_from = batch.resumed_from
                try:
                    value = await self._call(func)
                finally:
                    control.detach()
            batch.complete(metadata={"result": value}, last=True)
        return value

    async def _keep_result(self, store: FarStore, value: Plain) -> None:
        """Save a result without a state, replacing all earlier states of the item."""
        async with (
            open_run(self.task_id, store=store, fresh=True, handle_signals=False) as run,
            run.open_stream(*TASK_STREAM) as stream,
            stream.open_batch() as batch,
        ):
            batch.complete(metadata={"result": value}, last=True)

    async def _call(self, func: Callable[..., object]) -> Plain:
        self._has_begun = True
        one = self.assigned
        work = Work[object](one.task_id, one.index, one.attempt, one.trace, self.control)
        with self._foreign():
            returned = (await call(func, one.item, work)).unwrap()
            value, _ = as_sent(returned, "the result", allow_nan=True)
        self._returned.append(value)
        return value

    def _note_left_out(self, problem: str) -> None:
        """Report once for each reason that a state could not be saved: the function continues."""
        if problem not in self._noted and len(self._noted) < MAX_NOTED:
            self._noted.add(problem)
            self.note(f"a snapshot is left out: {problem}")

    def note(self, text: str) -> None:
        """Log a note and send it for the job's history."""
        log.warning("work item %s: %s", self.task_id, printable(text), extra=at(self.task_id))
        self.host.send(TaskProgress(self.task_id, self.host.lease, None, text[:MAX_TEXT_CHARS]))

    def report(self) -> None:
        """Send the item's progress if it has changed; the first report says that the item runs.

        An item that ends before the first report is due costs no message for it.
        """
        percent = self.control.percent
        if self.is_reported and percent == self.reported:
            return
        if self._has_begun and self.final_message is None:
            progress = TaskProgress(self.task_id, self.host.lease, percent)
            if self.host.send(progress):
                self.is_reported, self.reported = True, percent


def _is_cancellation(error: BaseException) -> bool:
    """Whether an exception is trio's own, raised because the code was cancelled."""
    is_cancelled = trio.current_effective_deadline() == -math.inf
    return is_cancelled and any(isinstance(leaf, trio.Cancelled) for leaf in leaves_of(error))


def _is_interrupt(error: BaseException) -> bool:
    return any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves_of(error))


def describe_failure(error: BaseException) -> TaskError:
    """Describe an exception for the foreman."""
    message = text_of(error)
    return TaskError(
        class_name(error)[:MAX_NAME_CHARS] or "Exception",
        "" if message == class_name(error) else _printable_lines(message, MAX_TEXT_CHARS),
        _printable_lines(_traceback_of(error)[-MAX_TRACEBACK_CHARS:], MAX_TRACEBACK_CHARS),
    )


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as problem:  # raised by the exception's class, or its text is too large
        return f"{class_name(error)}: its traceback cannot be formatted: {class_name(problem)}"


def _printable_lines(text: str, limit: int) -> str:
    """Return text that MessagePack and a terminal can hold."""
    return "\n".join(printable(line) for line in text[:limit].split("\n"))[:limit]
