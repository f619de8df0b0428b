"""Opening a stream: what was saved is read, looked at, and made ready to go on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar, cast

import attrs
import trio

from ._errors import NotEncodableError, StreamFailedError, describe_batch
from ._gate import Desk
from ._records import Kind, Record, Status, decode_record
from ._stream import Stream
from ._threads import run_blocking
from ._values import RUN_STREAM, StreamKey, encode_key
from ._verify import Verifier, Verify, read_pages
from .abc import RunView, Store
from .outputs import ARCHIVE, OutputDir
from .state import Frontier, PlainCodec

MAX_SHOWN = 10  # names in one line of the log

log = logging.getLogger("trio_ckpt.resume")

S = TypeVar("S")


@attrs.frozen
class Settings:
    """How a run resumes."""

    verify: Verify
    redo_missing: bool
    retry_failed: bool


@attrs.define(eq=False)
class Resume:
    """Makes one stream ready."""

    store: Store
    desk: Desk
    settings: Settings
    _beside: _Beside | None = attrs.field(default=None, init=False)

    async def open(self, first_index: int, state: S | None, nursery: trio.Nursery) -> Stream[S]:
        """Read what was saved, verify it, restore the state.

        Raises:
            StreamFailedError: the stream failed for good.
            OutputError: confirmed outputs are damaged; see `trio_ckpt._verify`.
        """
        await self._take_up_failed()
        await self._open_sinks()
        known: dict[int, bytes] = {}
        if isinstance(state, Frontier):
            await self._load_frontier(cast("Frontier[Any]", state))
        else:
            if state is not None:
                await self._restore_plain(state)
            await self._read_newest(known, nursery)
        return Stream(
            self.desk, first_index=first_index, known=known, wait_verified=self._wait_verified
        )

    async def close(self) -> None:
        """End the verification beside the run: it has no business with a stream that is left.

        Cancellation: none; it ends after the record that is being saved.
        """
        if self._beside is not None:
            await self._beside.close()

    async def _wait_verified(self) -> bool:
        return False if self._beside is None else await self._beside.wait()

    async def _take_up_failed(self) -> None:
        progress = self.desk.lane.progress
        error = progress.error if progress.status is Status.FAILED else None
        if error is not None and not error.retryable and not self.settings.retry_failed:
            raise StreamFailedError(
                f"{describe_batch(self.desk.run_id, self.desk.lane.key, None)} failed for good "
                f"in an earlier session: {error.message}; retry_failed=True tries again",
                run_id=self.desk.run_id,
                stream=self.desk.lane.key,
            )
        if self.settings.retry_failed and (progress.skipped or progress.status is Status.FAILED):
            indexes = tuple(sorted({*progress.skipped, *progress.failures}))
            await self.desk.save_plain(Record(kind=Kind.RETRY, at=time.time(), indexes=indexes))

    async def _open_sinks(self) -> None:
        lane = self.desk.lane
        for path, size in lane.progress.sinks.items():
            self.desk.claim_sink(path)
            if path not in lane.sinks:
                await self.desk.open_sink(path, size)

    def _verifier(self) -> Verifier:
        return Verifier(self.desk, self.settings.verify, self.settings.redo_missing)

    # -- frontiers ----------------------------------------------------------------------------

    async def _load_frontier(self, frontier: Frontier[Any]) -> None:
        """Fold the items of all checkpoints; their outputs are verified on the way."""
        desk = self.desk
        verifier, adds = self._verifier(), list[bytes]()
        if desk.lane.progress.sequence > 0:
            async with aclosing(read_pages(self.store, desk)) as pages:
                async for records in pages:
                    if desk.lane.progress.outputs:
                        await verifier.check(records)
                    adds += [record.state for record in records if record.state]
        for payload in reversed(adds):
            frontier.fold(payload)
        progress, first = desk.lane.progress, desk.first_index
        frontier.settle_loaded(lambda position: first + position in progress.confirmed)
        desk.frontier = frontier
        if seeds := frontier.stage(frontier.seeds):
            payload = frontier.encode(seeds)
            await desk.save_plain(Record(kind=Kind.SAVE, at=time.time(), state=payload))
            frontier.fold(payload)

    # -- other streams ------------------------------------------------------------------------

    async def _read_newest(self, known: dict[int, bytes], nursery: trio.Nursery) -> None:
        """Check the newest records now, the others beside the run."""
        desk = self.desk
        progress = desk.lane.progress
        if progress.sequence == 0:
            return
        async with AsyncExitStack() as stack:
            pages = await stack.enter_async_context(aclosing(read_pages(self.store, desk)))
            records = await anext(pages)
            for record in records:
                if record.index is not None and record.item and progress.is_done(record.index):
                    known.setdefault(record.index, record.item)
            if progress.outputs and desk.outputs is None:
                where = describe_batch(desk.run_id, desk.lane.key, None)
                log.warning("the outputs of %s are not verified: there is no output_dir", where)
            elif progress.outputs:
                verifier = self._verifier()
                await verifier.check(records)
                self._beside = _Beside(verifier, pages)
                nursery.start_soon(self._beside.run)
                stack.pop_all()  # they are its pages now

    async def _restore_plain(self, state: Any) -> None:
        desk = self.desk
        codec = PlainCodec()
        try:
            saved = codec.encode(state)
        except NotEncodableError as error:
            raise NotEncodableError(error.path, f"{error}; a state is JSON-like") from error
        if desk.lane.progress.sequence > 0:
            async with aclosing(read_pages(self.store, desk)) as pages:
                async for records in pages:
                    newest = next((record.state for record in records if record.state), None)
                    if newest is not None:
                        saved, desk.is_state_saved = newest, True
                        break
        desk.codec, desk.state_bytes = codec, saved
        desk.state = codec.decode(saved) if desk.lane.progress.sequence > 0 else state


class _Beside:
    """The verification of the older records, beside the run."""

    def __init__(self, verifier: Verifier, pages: AsyncGenerator[list[Record]]) -> None:
        self._verifier = verifier
        self._pages = pages
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        self._failed = False

    async def run(self) -> None:
        """Check page after page; an error is the run's."""
        try:
            with self._scope:
                async with aclosing(self._pages) as pages:
                    async for records in pages:
                        await self._verifier.check(records)
        except BaseException as error:
            self._failed = True
            if error is not self._verifier.desk.saver.poison:  # that ends the run by itself
                raise
        finally:
            self._done.set()

    async def wait(self) -> bool:
        """Wait for the end; True if there was something to wait for: look again then.

        Cancellation: a cancellation point; the only way out when the verification fails,
            because its error is about to end the run.
        """
        if self._done.is_set() and not self._failed:
            return False
        await self._done.wait()
        if self._failed:
            await trio.sleep_forever()
        return True

    async def close(self) -> None:
        """Give up on it."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._done.wait()


async def archive_outputs(store: Store, view: RunView, outputs: OutputDir) -> None:
    """Move the recorded outputs of a run out of the way of a fresh one; delete nothing."""
    paths: set[str] = set()
    for key, entry in view.streams.items():
        if key != RUN_STREAM:
            paths.update(entry.progress.sinks)
            if entry.progress.outputs:
                paths |= await _recorded_paths(store, view, key)
    if paths:
        label = f"{view.run_id}-{view.generation}"
        archived = await run_blocking(outputs.archive, sorted(paths), label)
        log.info("%d outputs of the old run were archived", len(archived.moved))
    strangers = sorted(set(await run_blocking(os.listdir, outputs.root)) - {ARCHIVE})
    if strangers:
        shown = ", ".join(strangers[:MAX_SHOWN])
        log.info("%d names that no record has are left: %s", len(strangers), shown)


async def _recorded_paths(store: Store, view: RunView, key: StreamKey) -> set[str]:
    seal = store.seal(view.run_id, view.generation, key)
    paths: set[str] = set()
    cursor = None
    while True:
        page = await store.history(
            view.run_id, encode_key(key), generation=view.generation, cursor=cursor
        )
        for stored in page.records:
            record = decode_record(seal.open(stored.sequence, stored.payload))
            paths.update(output.path for output in record.outputs)
        cursor = page.cursor
        if cursor is None:
            return paths
