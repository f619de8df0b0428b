"""One work item on a worker: from its assignment to the last word on it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import attrs

from .._errors import RunStoppedError, StoreDamagedError, StoreError
from .._open import open_run
from .._words import printable
from ._line import Line
from ._messages import (
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    MAX_TRACEBACK_CHARS,
    AssignTask,
    ReleaseTask,
    TaskError,
    TaskFailed,
    TaskMessage,
    TaskProgress,
    TaskResult,
)
from ._names import TASK_STREAM
from ._store import RemoteStore
from ._submission import check_value
from ._work import Work, call, find_function, settings_of

log = logging.getLogger("trio_ckpt.remote.worker")

LastWord = Callable[[int], TaskMessage]  # of the lease


@attrs.define(eq=False)
class Item:
    """A work item that this worker has.

    Attributes:
        assigned: What the foreman said.
        line: To the foreman.
        work: What the function is given.
        last_word: What is to be said in the end; None: it is running.
        reported: What was said last of its progress.
    """

    assigned: AssignTask
    line: Line
    work: Work[Any]
    last_word: LastWord | None = attrs.field(default=None, init=False)
    reported: float | None = attrs.field(default=None, init=False)
    _has_begun: bool = attrs.field(default=False, init=False)
    _own: BaseException | None = attrs.field(default=None, init=False)  # the function's

    @property
    def task_id(self) -> str:
        """Its name."""
        return self.assigned.task_id

    async def run(self, allow: tuple[str, ...]) -> None:
        """Run its function; `last_word` then says what came of it.

        Cancellation: through `Work.scope`: what was saved is saved.
        """
        task_id = self.task_id
        value: Any = None
        try:
            with self.work.scope:
                func = await find_function(self.assigned.function, allow)
                value = await self._run(func)
                check_value(value, "the result")
            if not self.work.scope.cancelled_caught:
                self.last_word = lambda lease: TaskResult(task_id, lease, value)
                return
            reason = self.work.release_reason or "it was cancelled"
            self.last_word = lambda lease: ReleaseTask(task_id, lease, reason)
        except (Exception, BaseExceptionGroup) as error:
            self._take_error(error)

    def _take_error(self, error: BaseException) -> None:
        task_id = self.task_id
        is_ours = error is not self._own and isinstance(error, StoreError | RunStoppedError)
        if self.line.lost is not None or is_ours:
            reason = printable(str(error))[:MAX_TEXT_CHARS]
            log.warning("work item %s is given up here: %s", task_id, reason)
            self.last_word = lambda lease: ReleaseTask(task_id, lease, reason, is_trouble=True)
            return
        if not isinstance(error, Exception):
            raise error
        log.warning("work item %s failed: %s", task_id, printable(str(error) or repr(error)))
        failure = describe_failure(error)
        self.last_word = lambda lease: TaskFailed(task_id, lease, failure)

    async def _run(self, func: Callable[..., Any]) -> Any:
        make_state = settings_of(func).state
        if self.assigned.interval_s is None:
            self.work.state = make_state(self.assigned.item)
            return await self._call(func)
        store = RemoteStore(self.line)
        try:
            return await self._run_saving(func, store, make_state(self.assigned.item))
        except StoreDamagedError as error:
            if self._has_begun:
                raise
            self.tell(f"nothing that was saved is whole, so it begins again: {error}")
            return await self._run_saving(
                func, store, make_state(self.assigned.item), is_fresh=True
            )

    async def _run_saving(
        self, func: Callable[..., Any], store: RemoteStore, state: Any, *, is_fresh: bool = False
    ) -> Any:
        """The same as a run of one batch, whose states are snapshots inside it."""
        assigned, work = self.assigned, self.work
        async with (
            open_run(
                self.task_id,
                store=store,
                fresh=is_fresh,
                handle_signals=False,
                save_timeout_s=self.line.patience_s,
            ) as run,
            run.open_stream(*TASK_STREAM, state=state, recover=True, retry_failed=True) as stream,
            stream.open_batch() as batch,
        ):
            async with stream.snapshots(every_s=assigned.interval_s or 0.0) as snapshots:
                work.attach(stream, snapshots, batch.resumed_from)
                try:
                    value = await self._call(func)
                finally:
                    work.detach()
            check_value(value, "the result")
            batch.complete(metadata={"result": value}, last=True)
        return value

    async def _call(self, func: Callable[..., Any]) -> Any:
        self._has_begun = True
        try:
            return await call(func, self.assigned.item, self.work)
        except BaseException as error:
            self._own = error
            raise

    def tell(self, note: str) -> None:
        """Say something for the job's history."""
        log.warning("work item %s: %s", self.task_id, printable(note))
        if self.line.link is not None:
            message = TaskProgress(self.task_id, self.line.lease, None, note[:MAX_TEXT_CHARS])
            self.line.link.send(message)

    def report(self) -> None:
        """Say how far it is, if there is anybody to say it to and anything new."""
        percent = self.work.percent
        if percent is None or percent == self.reported or self.last_word is not None:
            return
        if self.line.link is not None:
            self.reported = percent
            self.line.link.send(TaskProgress(self.task_id, self.line.lease, percent))


def describe_failure(error: Exception) -> TaskError:
    """What the foreman is told of an exception."""
    text = "".join(traceback.format_exception(error))
    return TaskError(
        type(error).__qualname__[:MAX_NAME_CHARS],
        _printable_lines(str(error))[:MAX_TEXT_CHARS],
        _printable_lines(text)[-MAX_TRACEBACK_CHARS:],
    )


def _printable_lines(text: str) -> str:
    """Text that MessagePack and a terminal can hold."""
    return "\n".join(printable(line) for line in text.split("\n"))
