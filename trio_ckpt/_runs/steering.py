"""What other processes may ask of an open run: each act is a record before it takes effect.

Theory of operation
===================

An act is saved first, and done when its record is durable.  So a kill comes before the record, and
nothing has happened, or after it: then the next start knows of the act.  A run that was paused
starts paused.  What a session is to know of an act goes into its metadata before the act is saved:
the record of its end, which may be saved with the act, has it, too.

Acts are done one after the other.  They change only what the loops look at anyway, so that a run
that no process steers has no work from it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import msgspec
import trio

from .._commit.give_up import check_done, known_end, skip_records
from .._commit.limits import changed_limits, plain_limits
from .._commit.open_stream import OpenStream
from .._commit.redo import Redo
from .._commit.saves import save_records
from .._commit.snapshots import make_due
from .._commit.stream_log import StreamLog
from .._journal.acts import (
    Act,
    ActRefusedError,
    ActReply,
    act_note,
    act_text,
    indexes_of,
    paused_text,
    plain_act,
    target_text,
)
from .._journal.record import PAUSED
from .._util.arguments import whole_number
from .._util.errors import TrioCkptError
from .._util.exceptions import text_of
from .._util.log import at, get_logger
from .._util.plain import Plain, StreamKey
from .._util.text import batches_are, plural, stream_name
from .._util.uninterrupted import uninterrupted
from .loop_bounds import known_stop
from .open_run import OpenRun
from .session import SessionRecorder
from .stream import AnyStream, loop_cursor_of, redo_of
from .stream_table import SKIPPED

if TYPE_CHECKING:
    from .parallel import WorkQueue

log = get_logger(__name__)

MAX_STREAMS = 100  # in a status: those that are open


class _Deed(Protocol):
    async def __call__(self, act: Act) -> str: ...


@uninterrupted
@attrs.define(eq=False, repr=False)
class Steering:
    """Does acts on an open run.

    Attributes:
        run: The run.
        session: Saves what is of the run as a whole.
    """

    run: OpenRun
    session: SessionRecorder
    _one_by_one: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    async def do(self, act: Act) -> ActReply:
        """Do an act; returns what was done, or why it was not.

        Durability: when this returns an act that was done is durable.
        Cancellation: as for `save_record`: an act is done or not.
        """
        if act.do == "status":
            return ActReply(True, f"run {self.run.run_id!r} is running", self._status())
        async with self._one_by_one:
            try:
                self.run.check_open()
                text = await self._deeds[act.do](msgspec.structs.replace(act, at=time.time()))
            except (TrioCkptError, ValueError, TypeError, trio.ClosedResourceError) as error:
                return ActReply(False, text_of(error))
        return ActReply(True, text)

    @property
    def _deeds(self) -> Mapping[str, _Deed]:
        return {
            "pause": self._pause,
            "resume": self._resume,
            "stop": self._stop,
            "snapshot": self._snapshot,
            "requeue": self._requeue,
            "skip": self._skip,
            "concurrency": self._concurrency,
            "limit": self._limit,
        }

    # -- acts on the run as a whole --------------------------------------------------------------

    async def _pause(self, act: Act) -> str:
        if paused := paused_text(self.session.metadata):
            raise ActRefusedError(f"it is paused already, {paused}")
        await self._save(act, {PAUSED: plain_act(act)})
        self.run.stop.pause()
        return "paused: nothing more is handed out; what is open goes on"

    async def _resume(self, act: Act) -> str:
        if PAUSED not in self.session.metadata:
            raise ActRefusedError("it is not paused")
        await self._save(act, {PAUSED: None})
        self.run.stop.resume()
        return "resumed"

    async def _stop(self, act: Act) -> str:
        if self.run.stop.is_requested:
            raise ActRefusedError("a stop is under way already")
        await self._save(act)
        self.run.stop.request()
        return "stopping in good order: what is open is finished and saved"

    async def _save(self, act: Act, facts: Mapping[str, Plain] = MappingProxyType({})) -> None:
        """Save the record of an act, and log it.

        Args:
            act: The act.
            facts: What it changes in the metadata of the session; None: the field is removed.
        """
        metadata = self.session.metadata
        before = {name: metadata.get(name) for name in facts}
        _set_facts(metadata, facts)
        try:
            await self.session.save(act_note(act))
        except BaseException:
            _set_facts(metadata, before)
            raise
        self._say(act)

    def _say(self, act: Act) -> None:
        log.info("run %r: %s", self.run.run_id, act_text(act), extra=at(self.run.run_id))
        self.run.touch()

    # -- acts on open bodies and on batches ------------------------------------------------------

    async def _snapshot(self, act: Act) -> str:
        bodies = [
            snapshots
            for stream in self.run.streams.values()
            for snapshots in loop_cursor_of(stream).snapshots
        ]
        if not bodies:
            raise ActRefusedError("no open batch takes snapshots (Stream.snapshots)")
        await self._save(act)
        for snapshots in bodies:
            make_due(snapshots)
        return f"a snapshot of {plural(len(bodies), 'open batch')} is saved at the next point"

    async def _requeue(self, act: Act) -> str:
        run, indexes = self.run, indexes_of(act)
        with self._target(act.stream) as (stream_log, stream):
            if stream_log.progress.has_frontier:
                raise ActRefusedError("the stream has a Frontier, which has dropped its items")
            check_done(stream_log.progress, indexes)
            if stream is None:
                redo = Redo(run.store, run.committer, stream_log, run.outputs, run.path_owners)
            else:
                redo = redo_of(stream)
            beside = self.session.beside(act_note(act))
            await attrs.evolve(redo, beside=beside).redo(list(indexes), act_text(act))
        self._say(act)
        return f"{batches_are(indexes)} re-queued"

    async def _skip(self, act: Act) -> str:
        run, indexes = self.run, indexes_of(act)
        with self._target(act.stream) as (stream_log, _), run.stop.holding():
            open_stream = run.stream_table.opened.get(act.stream)
            progress, is_open = stream_log.progress, open_stream.open if open_stream else ()
            stop = known_end(progress) if open_stream is None else known_stop(open_stream)
            records = skip_records(progress, indexes, act_text(act), stop=stop, is_open=is_open)
            if open_stream is not None:
                records[0] = open_stream.introduce(records[0])
            caused = [(stream_log, record) for record in records]
            await save_records(run.committer, [*caused, self.session.beside(act_note(act))])
            if open_stream is not None:
                for index in indexes:
                    _end_given_up(open_stream, index)
        self._say(act)
        return f"{batches_are(indexes)} skipped"

    async def _concurrency(self, act: Act) -> str:
        from .parallel import MAX_CONCURRENCY, ORDERED  # many programs run no batches side by side

        count = whole_number("concurrency", act.count, least=1, most=MAX_CONCURRENCY)
        queues = self._queues()
        if not queues:
            raise ActRefusedError("no run_batches of the run is working")
        for key, queue in queues:
            if count > 1 and queue.has_order:
                raise ActRefusedError(f"stream {stream_name(key)!r}: {ORDERED}")
        await self._save(act)
        for _, queue in queues:
            if queue.workers:  # else its run_batches has ended since
                queue.set_concurrency(count)
        return f"{plural(count, 'worker')} in each of {plural(len(queues), 'stream')}"

    def _queues(self) -> list[tuple[StreamKey, WorkQueue[Any]]]:
        """The queues of `run_batches` that have workers, by stream."""
        opened = self.run.stream_table.opened.items()
        found = [(key, _queue_of(open_stream)) for key, open_stream in opened]
        return [(key, queue) for key, queue in found if queue is not None and queue.workers]

    async def _limit(self, act: Act) -> str:
        watch = self.run.limits
        if watch is None:
            raise ActRefusedError("the run was opened without limits, so it counts for none")
        if not act.amounts:
            raise ActRefusedError("no limit is named")
        if self.run.stop.is_requested:
            raise ActRefusedError("a stop is under way already; raise the limit for the next start")
        changed = changed_limits(watch.limits, act.amounts)
        await self._save(act, {"limits": plain_limits(changed)})
        watch.change_limits(changed)
        return f"the limit is{target_text(act)} until the session ends"

    @contextmanager
    def _target(self, key: StreamKey) -> Generator[tuple[StreamLog, AnyStream | None]]:
        """Open a block that changes a stream; None: it is not open, nor opened during the block.

        Raises:
            UnknownStreamError: the run has no such stream.
            StreamBusyError: it is being opened, or rewound.
        """
        run = self.run
        run.stream_table.check_known(key)
        stream = run.streams.get(key)
        if stream is not None:
            yield run.stream_table.stream_log(key), stream
            return
        run.check_free(key)
        run.rewinding.add(key)
        try:
            yield run.stream_table.stream_log(key), None
        finally:
            run.rewinding.discard(key)
            run.touch()

    # -- what is asked and changes nothing -------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        run, stopping = self.run, self.run.stop.stopping()
        return {
            "session": self.session.metadata["session"],
            "paused": self.session.metadata.get(PAUSED),
            "stopping": None if stopping is None else {"open": stopping.open},
            "limits": {} if run.limits is None else plain_limits(run.limits.limits),
            "streams": [
                {
                    "stream": list(key),
                    "confirmed": len(one.stream_log.progress.confirmed),
                    "skipped": len(one.stream_log.progress.skipped),
                    "left": one.stream_log.progress.left,
                    "open": len(one.open),
                    "concurrency": _concurrency_of(one),
                }
                for key, one in list(run.stream_table.opened.items())[:MAX_STREAMS]
            ],
        }


def _concurrency_of(open_stream: OpenStream) -> int | None:
    """How many workers `run_batches` has for a stream; None: it is not worked on by it."""
    queue = _queue_of(open_stream)
    return None if queue is None else queue.concurrency


def _queue_of(open_stream: OpenStream) -> WorkQueue[Any] | None:
    """The queue of the `run_batches` that works on a stream; None: none does."""
    from .parallel import WorkQueue

    one = open_stream.listener
    return one if isinstance(one, WorkQueue) else None  # pyright: ignore[reportUnknownVariableType]


def _end_given_up(open_stream: OpenStream, index: int) -> None:
    """Let what is in memory of a batch follow the record that gives it up."""
    token = open_stream.tokens.get(index)
    open_stream.files.release(index)
    if token is not None:  # it waited for its next attempt
        open_stream.fail_token(token, SKIPPED)
    elif open_stream.waited:
        open_stream.settled(index)
    open_stream.reconsider(index)


def _set_facts(metadata: dict[str, Plain], facts: Mapping[str, Plain]) -> None:
    for name, value in facts.items():
        metadata[name] = value
        if value is None:
            del metadata[name]
