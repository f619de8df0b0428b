"""The order of a save: durable, then progress, then the token, then who waits.

Others are called in the middle of it (observers, hosts of tokens), and they see no step too early.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import trio
import trio.testing

from tests.hangs import HANG_S
from tests.opening import begin
from tests.watched import WatchedStore
from trio_ckpt import Batch, Stream
from trio_ckpt._commit.open_stream import OpenStream
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt._tokens.token import AnyToken
from trio_ckpt.abc import Checkpoint, Fold


class SlowStore(WatchedStore):
    """Counts the records of a stream that are durable, and lets other tasks run before they are."""

    saved = 0

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def after_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        self.saved += sum(checkpoint.stream == '["s"]' for checkpoint in group)


@attrs.define(eq=False)
class Seen:
    """What was true when a token moved for the last time, and when its waiter woke."""

    store: SlowStore
    moved: list[tuple[int, bool]] = attrs.field(factory=list)
    woken: list[tuple[int, bool]] = attrs.field(factory=list)

    def note(self, to: list[tuple[int, bool]], stream: OpenStream, index: int) -> None:
        to.append((self.store.saved, index in stream.stream_log.progress.confirmed))


async def test_no_step_of_a_save_comes_before_its_turn(monkeypatch: Any) -> None:
    store = SlowStore()
    seen = Seen(store)
    real_ended = OpenStream.ended

    def ended(self: OpenStream, token: AnyToken) -> None:
        seen.note(seen.moved, self, token.batch_index)
        real_ended(self, token)

    monkeypatch.setattr(OpenStream, "ended", ended)

    async def wait(stream: Stream[Any], batch: Batch[int]) -> None:
        await batch.token.wait()
        seen.note(seen.woken, loop_cursor_of(stream).open_stream, batch.index)

    with trio.fail_after(HANG_S):
        async with (
            trio.open_nursery() as nursery,
            begin(store) as run,
            run.open_stream("s") as stream,
        ):
            before = store.saved
            async for batch in stream.batches(range(3)):
                nursery.start_soon(wait, stream, batch)
                batch.complete()
                if batch.index == 0:
                    await batch.confirm()
    expected = [(before + count, True) for count in (1, 2, 3)]
    assert seen.moved == expected
    assert [is_in for _, is_in in seen.woken] == [True] * 3
    assert all(at >= was for (at, _), (was, _) in zip(seen.woken, expected, strict=True))
