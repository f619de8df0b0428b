"""More of what the library can do, as programs that are made to crash."""

from __future__ import annotations

import gzip

import numpy as np
import trio
import zstandard

import trio_ckpt
from trio_ckpt import RetryRule, RetryTable, Status, Then
from trio_ckpt.testing import World

BATCHES = 4
POINTS = 3  # snapshots in the body of a batch


async def train(world: World) -> None:
    """State of several kinds, arrays among them, with snapshots inside every batch."""
    begin = {"steps": 0, "log": [], "weights": np.zeros(2_000)}
    async with (
        trio_ckpt.open_run("run", store=world.store) as run,
        run.open_stream("train", state=begin) as stream,
    ):
        async for batch in stream.batches(range(BATCHES)):
            async with stream.snapshots(every_s=0.0) as snapshots:
                for step in range(int(batch.resumed_from or 0), POINTS):
                    state = stream.state
                    state["weights"][step * 100] += batch.index + 1
                    state["steps"] += 1
                    state["log"].append([batch.index, step])
                    await trio.sleep(0.1)
                    await snapshots.point(str(step + 1))
            batch.complete()
        state = stream.state
        world.note(state["steps"], state["log"], state["weights"].tobytes())


def check_train(world: World) -> None:
    """The state is that of a training without a crash, to the last bit."""
    weights = np.zeros(2_000)
    weights[[step * 100 for step in range(POINTS)]] = sum(range(1, BATCHES + 1))
    log = [[batch, step] for batch in range(BATCHES) for step in range(POINTS)]
    for note in world.notes:
        assert note == (BATCHES * POINTS, log, weights.tobytes())
    assert world.notes


SKIPS = RetryTable((RetryRule((ConnectionError,), attempts=2, backoff_s=1.0, then=Then.SKIP),))


async def collect(world: World) -> None:
    """A phase, a list of streams, several batches at once, retries, and a batch given up."""

    async def handle(batch: trio_ckpt.Batch[int]) -> None:
        batch.spend(requests=1)
        await trio.sleep(0.5)
        if batch.index == 1 or (batch.index == 2 and batch.attempt == 1):
            raise ConnectionError("refused")
        folder = "-".join(batch.token.stream)
        path = await batch.write_bytes(f"{folder}/{batch.index}.bin", bytes(600))
        batch.complete(outputs=[path], totals={"pages": 1})

    async def work_on(run: trio_ckpt.Run, key: tuple[str, ...]) -> None:
        async with run.open_stream(*key, retry=SKIPS) as stream:
            await trio_ckpt.run_batches(stream, range(BATCHES), handle, concurrency=2)

    async with trio_ckpt.open_run("run", store=world.store, output_dir=world.output_dir) as run:
        async with run.phase("discovery") as phase:
            if not phase.complete:
                world.note("discovered")
        await run.add_streams([("a", "x"), ("b", "x")])
        async with trio.open_nursery() as nursery:
            for key in run.streams_to_process():
                nursery.start_soon(work_on, run, key)
        assert run.exit_code == 3


def check_collect(world: World) -> None:
    """Sums are exact, and what was given up is known."""
    for name in ("a", "b"):
        progress = world.progress(name, "x")
        assert progress.status is Status.COMPLETE
        assert list(progress.skipped) == [1]
        assert progress.totals["pages"].value == BATCHES - 1
        assert progress.spent["requests"].value >= BATCHES + 1
    assert world.count("discovered") <= 1 + world.crashes


async def turn_pages(world: World) -> None:
    """An open end, found by an empty page, and a cursor."""
    pages = {1: ["a", "b"], 2: ["c"], 3: list[str]()}
    async with (
        trio_ckpt.open_run("run", store=world.store, output_dir=world.output_dir) as run,
        run.open_stream("pages", first_index=1) as stream,
    ):
        async for batch in stream.batches():
            assert stream.cursor == (batch.index - 1 or None)
            await trio.sleep(0.1)
            if not pages[batch.index]:
                batch.withdraw()
                continue
            path = await batch.write_json(f"{batch.index}.json", pages[batch.index])
            batch.complete(outputs=[path], records=len(pages[batch.index]), cursor=batch.index)


def check_turn_pages(world: World) -> None:
    """The empty page is none."""
    progress = world.progress("pages")
    assert progress.status is Status.COMPLETE
    assert list(progress.confirmed) == [1, 2]
    assert progress.records == 3


async def begin_again(world: World) -> None:
    """A run that is begun afresh: the old outputs go into the archive."""

    async def run_once(number: int, *, fresh: bool) -> None:
        async with (
            trio_ckpt.open_run(
                "run", store=world.store, output_dir=world.output_dir, fresh=fresh
            ) as run,
            run.open_stream("pages") as stream,
        ):
            async for batch in stream.batches(range(2)):
                await trio.sleep(0.1)
                path = await batch.write_json(f"{batch.index}.json", number)
                batch.append_json("lines.jsonl", number)
                batch.complete(outputs=[path])

    if not world.count("first is done"):
        await run_once(1, fresh=False)
        world.note("first is done")
    has_old = world.files.exists("0.json") and world.files.read("0.json") == b"1\n"
    await run_once(2, fresh=has_old)


def check_begin_again(world: World) -> None:
    """The new round is whole."""
    tree = world.files.tree()
    assert tree["lines.jsonl"] == b"2\n2\n"
    assert {tree["0.json"], tree["1.json"]} == {b"2\n"}


async def append_members(world: World) -> None:
    """Compressed append files, one of them in parts; several batches at once share them."""

    async def handle(batch: trio_ckpt.Batch[int]) -> None:
        await trio.sleep(0.1)
        batch.append_json("lines.jsonl.gz", batch.index, compress="gzip")
        data = b"%d\n" % batch.index
        batch.append_bytes("bytes-{part}.zst", data, compress="zstd", rotate_bytes=20)
        batch.complete()

    async with (
        trio_ckpt.open_run("run", store=world.store, output_dir=world.output_dir) as run,
        run.open_stream("pages") as stream,
    ):
        await trio_ckpt.run_batches(stream, range(BATCHES), handle, concurrency=2)


def check_append_members(world: World) -> None:
    """The files are whole, and hold each batch once."""
    tree = world.files.tree()
    lines = gzip.decompress(tree["lines.jsonl.gz"])
    parts = [tree[name] for name in sorted(tree) if name.startswith("bytes-")]
    frames = b"".join(parts)
    texts = zstandard.ZstdDecompressor().stream_reader(frames, read_across_frames=True)
    assert all(len(part) >= 20 for part in parts[:-1])
    for text in (lines, texts.read()):
        assert sorted(map(int, text.split())) == list(range(BATCHES))


MORE = (
    ("members", append_members, check_append_members),
    ("training", train, check_train),
    ("collection", collect, check_collect),
    ("pages", turn_pages, check_turn_pages),
    ("fresh", begin_again, check_begin_again),
)
