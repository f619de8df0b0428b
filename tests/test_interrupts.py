"""Whatever interrupts a program, at any line: it ends, says so, and the next start goes on."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import attrs
import pytest
import trio

import trio_ckpt
from tests.interrupts import (
    Program,
    Tracer,
    count_lines,
    ctrl_c,
    interrupt,
    interrupt_at,
    no_memory,
)
from tests.opening import begin
from trio_ckpt._commit.group_commit import GroupCommitter
from trio_ckpt._util.opening import Opening
from trio_ckpt.testing import World, make_clock

PAGES = 2
SAMPLES = 30
"""How many of some thousand places a test tries; all of them take minutes."""
HOURS_S = 10_000.0


@pytest.fixture(autouse=True)
def _warned_here() -> Generator[None]:
    """What an interrupt has left is collected in the test that left it, not in a later one."""
    yield
    gc.collect()


async def waits(token: Any) -> None:
    with suppress(trio_ckpt.CheckpointFailedError):
        await token.wait()


async def collect(world: World) -> None:
    """A loop with a state, outputs, lines and snapshots, and others who wait for it."""
    async with (
        trio.open_nursery() as outside,
        begin(world.store, "run", output_dir=world.output_dir) as run,
    ):
        await run.add_streams([("pages",), ("more",)])
        async with trio.open_nursery() as inside:
            inside.start_soon(run.wait_confirmed, ("pages",), range(PAGES))
            async with run.open_stream("pages", state={"sum": 0}) as stream:
                async for batch in stream.batches(range(PAGES)):
                    outside.start_soon(waits, batch.token)
                    async with stream.snapshots(every_s=0) as snapshots:
                        stream.state["sum"] += batch.item
                        await snapshots.point("here")
                        await trio.sleep(1)
                    path = await batch.write_json(f"pages/{batch.index}.json", batch.item)
                    batch.append_json("lines.jsonl", batch.item)
                    batch.spend(calls=1)
                    batch.complete(outputs=[path], records=1, totals={"pages": 1})


def check_collected(world: World) -> None:
    progress = world.progress("pages")
    assert list(progress.confirmed) == list(range(PAGES))
    assert progress.records == PAGES
    tree = world.files.tree()
    assert {f"pages/{page}.json" for page in range(PAGES)} <= tree.keys()
    assert tree["lines.jsonl"].split() == [b"%d" % page for page in range(PAGES)]


async def crawl(world: World) -> None:
    """Several batches at once, of a frontier that grows; one fails first, one is skipped."""
    table = trio_ckpt.RetryTable((trio_ckpt.RetryRule((OSError,), attempts=3, backoff_s=1),))
    frontier = trio_ckpt.Frontier(["a", "b"])
    async with (
        trio.open_nursery() as outside,
        begin(world.store, "run", output_dir=world.output_dir) as run,
        run.open_stream("crawl", state=frontier, retry=table) as stream,
    ):

        async def handle(batch: Any) -> None:
            outside.start_soon(waits, batch.token)
            await trio.sleep(1)
            if batch.item == "a" and batch.attempt == 1:
                raise OSError("no line")
            if batch.item == "c":
                batch.skip("not wanted")
                return
            if batch.item == "b":
                batch.add(["c", "d"])
            batch.complete(records=1)

        await trio_ckpt.run_batches(stream, None, handle, concurrency=2)


def check_crawled(world: World) -> None:
    progress = world.progress("crawl")
    assert (len(progress.confirmed), len(progress.skipped)) == (3, 1)


async def change(world: World) -> None:
    """Phases, and batches that are re-queued."""
    async with begin(world.store, "run", output_dir=world.output_dir) as run:
        async with run.phase("first"):
            await trio.sleep(1)
        for _ in range(2):
            async with run.open_stream("pages") as stream:
                async for batch in stream.batches(range(PAGES)):
                    path = await batch.write_json(f"pages/{batch.index}.json", batch.item)
                    batch.complete(outputs=[path], records=1)
                if not world.count("redone"):
                    world.note("redone")
                    await stream.redo([0], reason="again")
        async with run.open_stream("states", state={"sum": 0}) as states:
            async for batch in states.batches(range(PAGES)):
                states.state["sum"] += 1
                batch.complete()
            await states.pin("end")
        if not world.count("rewound"):
            world.note("rewound")
            await run.rewind(("states",), to=0, reason="again")
            async with run.open_stream("states", state={"sum": 0}) as states:
                async for batch in states.batches(range(PAGES)):
                    states.state["sum"] += 1
                    batch.complete()


def check_changed(world: World) -> None:
    for stream in ("pages", "states"):
        assert list(world.progress(stream).confirmed) == list(range(PAGES))


Case = tuple[Program, Callable[[World], None]]

CASES: dict[str, Case] = {
    "collect": (collect, check_collected),
    "crawl": (crawl, check_crawled),
    "change": (change, check_changed),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def some(count: int, first: int = 0) -> range:
    """Some of many places, from the first to the last."""
    return range(first, count, max(1, count // SAMPLES))


def expect_right(
    case: Case, act: Callable[[], None], *, only: CodeType | None = None, again: bool = False
) -> None:
    program, check = case
    count = count_lines(program, only=only, again=again)
    assert count > SAMPLES
    before_try = 2 if only is not None else 0  # nothing but Ctrl-C is raised by a `try:`
    for at in some(count, before_try):
        ended = interrupt_at(program, check, at, act, only=only, again=again)
        assert not ended.problem, f"{ended.where}: {ended.problem}"
        assert ended.error is not None, f"{ended.where}: it goes on as if nothing were"


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="Ctrl-C is taken"
)
@pytest.mark.parametrize("again", [False, True], ids=["first time", "any time"])
@cases
def test_ctrl_c_at_any_line_ends_the_program(case: Case, again: bool) -> None:
    """With ``handle_signals=False`` it is Python's: trio says where it is raised."""
    expect_right(case, ctrl_c, again=again)


@pytest.mark.parametrize("method", [trio_ckpt.Batch.write_json, trio_ckpt.Snapshots.point])
def test_ctrl_c_while_a_call_is_noted_forgets_no_await(method: FunctionType) -> None:
    """Its coroutine reaches the program, which awaits it: Python has nothing to warn of."""
    count = count_lines(collect, only=method.__code__, again=True)
    assert count > 5
    for at in range(count):
        ended = interrupt_at(collect, check_collected, at, ctrl_c, only=method.__code__, again=True)
        assert not ended.problem, f"{ended.where}: {ended.problem}"
        assert ended.error is not None, ended.where


@pytest.mark.parametrize("act", [interrupt, no_memory], ids=lambda act: act.__name__)
@cases
def test_whatever_ends_the_saver_wakes_who_waits(case: Case, act: Callable[[], None]) -> None:
    """An error at any line of it, protected from Ctrl-C or not."""
    expect_right(case, act, only=GroupCommitter.run.__code__)


@attrs.define
class Folder:
    """Where a program works that is not on a machine in memory."""

    store: str
    output_dir: Path


def run_once(folder: Path, kind: str, tracer: Tracer) -> BaseException | None:
    """A program on a store in this folder; returns what it has ended with."""

    async def main() -> None:
        with trio.fail_after(HOURS_S), tracer.tracing():
            await collect(Folder(f"{kind}:{folder / 'store'}", folder / "out"))  # type: ignore[arg-type]  # all it needs

    try:
        trio.run(main, clock=make_clock())
    except BaseException as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_ctrl_c_gives_a_store_back_in_the_same_process(tmp_path: Path, kind: str) -> None:
    """As in a notebook: the cell is interrupted, and run again."""
    counting = Tracer(again=True)
    assert run_once(tmp_path / "counted", kind, counting) is None
    for at in some(counting.passed):
        tracer = Tracer(at, ctrl_c, again=True)
        run_once(tmp_path / f"{at}", kind, tracer)
        error = run_once(tmp_path / f"{at}", kind, Tracer())
        assert error is None, f"after Ctrl-C at {tracer.where}"


class Within(Tracer):
    """Counts the lines of one function alone, not those of what it calls."""

    def _is_meant(self, frame: FrameType | None) -> bool:
        return frame is not None and frame.f_code is self.only


@pytest.mark.parametrize("method", [Opening.__aenter__, Opening.__aexit__])
def test_ctrl_c_at_the_border_of_a_block_leaves_nothing_open(
    tmp_path: Path, method: FunctionType
) -> None:
    counting = Within(only=method.__code__, again=True)
    assert run_once(tmp_path / "counted", "sqlite", counting) is None
    assert counting.passed > 1  # a run and its streams
    for at in range(counting.passed):
        tracer = Within(at, ctrl_c, only=method.__code__, again=True)
        assert run_once(tmp_path / f"{at}", "sqlite", tracer) is not None
        error = run_once(tmp_path / f"{at}", "sqlite", Tracer())
        assert error is None, f"after Ctrl-C at {tracer.where}"
