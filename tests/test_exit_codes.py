"""What a command exits with: one answer, inside the run and from outside; 75 comes to an end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.opening import begin
from trio_ckpt import Run, RunStoppedError, StreamFailedError
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt.stores import MemoryStore

Program = Callable[[Run], Awaitable[None]]


class BodyError(Exception):
    """What a body raises."""


async def nothing(_run: Run) -> None:
    """No stream is opened."""


async def a_look(run: Run) -> None:
    async with run.open_stream("s") as stream:
        assert stream.remaining(total=3) == [0, 1, 2]


async def no_items(run: Run) -> None:
    async with run.open_stream("s") as stream:
        async for _ in stream.batches([]):
            raise AssertionError


async def complete(run: Run, key: str = "s") -> None:
    async with run.open_stream(key) as stream:
        async for batch in stream.batches(range(3)):
            batch.complete()


async def skip(run: Run) -> None:
    async with run.open_stream("skips") as stream:
        async for batch in stream.batches(range(3)):
            batch.skip("not today")


async def fail_for_good(run: Run) -> None:
    for key in run.streams_to_process() or [("gone",)]:
        async with run.open_stream(*key, on_fail="record") as stream:
            await stream.fail("403", retryable=False)


async def fail_for_now(run: Run) -> None:
    async with run.open_stream("busy", on_fail="record") as stream:
        await stream.fail("429")


async def leave(run: Run) -> None:
    async with run.open_stream("left") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete()
            break


async def leave_before_anything(run: Run) -> None:
    with trio.CancelScope() as scope:
        async with run.open_stream("left") as stream:
            async for _ in stream.batches(range(3)):
                scope.cancel()
                await trio.sleep_forever()


async def list_only(run: Run) -> None:
    await run.add_streams([("listed",)])


async def fail_phase(run: Run) -> None:
    async with run.phase("p"):
        raise BodyError


async def stop(run: Run) -> None:
    run.request_stop()


CASES: list[tuple[list[Program], int]] = [
    ([nothing], 0),
    ([a_look], 0),
    ([no_items], 0),
    ([complete], 0),
    ([complete, skip], 3),
    ([fail_for_good], 69),
    ([complete, skip, fail_for_good], 69),
    ([fail_for_good, fail_for_now], 75),
    ([fail_for_good, leave], 75),
    ([fail_for_good, list_only], 75),
    ([complete, leave_before_anything], 75),
    ([leave_before_anything], 75),
    ([list_only], 75),
    ([stop], 75),
    ([complete, stop], 0),  # what could be done is done: the run was not stopped short of it
    ([fail_for_good, stop], 69),
    ([leave, stop], 75),
    ([fail_phase], 75),
    ([complete, fail_phase], 75),
]


def name_of(value: Any) -> str | None:
    return "+".join(part.__name__ for part in value) if isinstance(value, list) else None


async def play(store: MemoryStore, programs: list[Program]) -> int:
    """What a command would exit with."""
    run: Any = None
    try:
        async with begin(store) as run:
            for program in programs:
                await program(run)
    except RunStoppedError as stopped:
        return stopped.exit_code
    except BodyError:
        return 75  # a traceback; the run itself is not done
    code: int = run.exit_code
    return code


async def from_outside(store: MemoryStore) -> int:
    look = await read_run_status(store, "r")
    assert look is not None
    return look.exit_code()


@pytest.mark.parametrize(("programs", "code"), CASES, ids=name_of)
async def test_the_run_and_its_readers_outside_say_one_code(
    programs: list[Program], code: int
) -> None:
    store = MemoryStore()
    assert await play(store, programs) == code
    assert await from_outside(store) == code


async def test_a_run_that_was_killed_before_its_first_batch_is_not_done() -> None:
    store = MemoryStore()
    async with begin(store):
        assert await from_outside(store) == 75
        crashed = store.after_crash()
    assert await from_outside(crashed) == 75
    assert await from_outside(store) == 0


async def test_a_service_that_restarts_on_75_comes_to_an_end() -> None:
    """Some streams fail for good, others for now: the last start ends with 69."""
    store, starts = MemoryStore(), 0

    async def collect(run: Run) -> None:
        await run.add_streams([(f"s{number}",) for number in range(4)])
        for key in run.streams_to_process():
            async with run.open_stream(*key, on_fail="record") as stream:
                async for batch in stream.batches(range(3)):
                    if key == ("s1",):
                        await stream.fail("403", retryable=False)
                        break
                    if key == ("s2",) and batch.index == starts < 3:
                        await stream.fail("429")
                        break
                    batch.complete()

    code = 75
    while code == 75 and starts < 10:
        code = await play(store, [collect])
        starts += 1
    assert (starts, code) == (4, 69)
    async with begin(store, retry_failed=True) as run:
        assert run.exit_code == 69
        await complete(run, "s1")
        assert run.exit_code == 0


async def test_a_stream_that_failed_for_good_is_refused_and_the_code_is_69() -> None:
    store = MemoryStore()
    assert await play(store, [fail_for_good]) == 69
    async with begin(store) as run:
        with pytest.raises(StreamFailedError, match="retry_failed"):
            await complete(run, "gone")
    assert run.exit_code == await from_outside(store) == 69
