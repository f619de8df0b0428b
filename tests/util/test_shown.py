"""What a shell and a notebook show of an object: a line, a table, and nothing that is secret."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

from trio.testing import MockClock

import trio_ckpt
from trio_ckpt import blocking
from trio_ckpt._util.shown import Shown
from trio_ckpt.outputs import AppendFile, OutputDir
from trio_ckpt.stores import MemoryStore

SECRET = "hush-hush"


class Texts(HTMLParser):
    """The texts of a table, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class Named(Shown):
    def __init__(self, *rows: tuple[str, str]) -> None:
        self.rows = rows

    def _shown(self) -> Iterable[tuple[str, str]]:
        return self.rows


def test_a_line_has_what_there_is_to_say_and_no_more() -> None:
    assert repr(Named(("name", "a"), ("left", "3"), ("error", ""))) == "<Named a; left 3>"
    assert repr(Named(("name", ""), ("left", "3"))) == "<Named; left 3>"


def test_no_name_can_write_html_or_steer_a_terminal() -> None:
    shown = Named(("name", "<script>alert(1)</script>\x1b[2J"), ("&", "<b>"))
    table = Texts(shown._repr_html_())
    assert table.tags == {"table", "tr", "th", "td"}
    assert table.texts == ["name", "<script>alert(1)</script>\\x1b[2J", "&", "<b>"]
    assert repr(shown) == "<Named <script>alert(1)</script>\\x1b[2J; & <b>>"


class Elsewhere(OutputDir):
    def __init__(self) -> None:
        """Nothing is opened."""

    @property
    def root(self) -> str:
        return f"s3://bucket/out?token={SECRET}"


async def test_every_object_says_what_it_is_and_nothing_secret(autojump_clock: MockClock) -> None:
    store, lines, objects = MemoryStore(), list[str](), list[Shown]()

    def look(thing: Shown) -> None:
        objects.append(thing)
        lines.append(repr(thing))

    async with trio_ckpt.open_run("gh", store=store, config={"key": SECRET}) as run:
        async with run.open_stream("org/repo", "pulls") as stream:
            async for batch in stream.batches([SECRET, SECRET]):
                if batch.index == 1:
                    look(batch)
                    look(run)
                    look(stream)
                metadata = {"cookie": SECRET}
                batch.complete(records=3, cursor=SECRET, totals={"bytes": 5}, metadata=metadata)
        look(stream.progress)
        look(run.statistics())
        look(stream.statistics())
    look(run)
    (session,) = await trio_ckpt.read_sessions(store, "gh")
    look(session)
    history = [c async for c in trio_ckpt.read_history(store, "gh", ("org/repo", "pulls"))]
    look(history[-1])
    assert lines[:7] == [
        "<Batch 1; of org/repo/pulls; attempt 1; state open>",
        "<Run gh; state open; streams 1 open>",
        "<Stream org/repo/pulls; status in progress; batches 1 confirmed, 1 left; records 3>",
        "<Progress complete; batches 2 confirmed, 0 left; records 6; newest checkpoint 3>",
        "<RunStatistics; status complete; streams 1 complete; batches 2 confirmed, 0 left; "
        "records 6; produced bytes 10>",
        "<StreamStatistics org/repo/pulls; status complete; streams 1 complete; "
        "batches 2 confirmed, 0 left; records 6; produced bytes 10>",
        "<Run gh; state closed; streams 0 open>",
    ]
    assert lines[7].startswith("<SessionView 1; end ended; process ")
    assert lines[8].startswith("<CheckpointView 1, saved at ")
    assert lines[8].endswith("; kind batch; batch 0; records 3>")
    for thing in objects:
        shown = [repr(thing), thing._repr_html_()]
        assert not [text for text in shown if SECRET in text]


def test_a_synchronous_object_shows_the_one_that_it_holds() -> None:
    with blocking.open_run("gh", store=MemoryStore(), handle_signals=False) as run:
        with run.open_stream("pages") as stream:
            for batch in stream.batches([SECRET]):
                assert repr(batch) == (
                    "<BlockingBatch of <Batch 0; of pages; attempt 1; state open>>"
                )
                assert SECRET not in (batch._repr_html_() or "")
                batch.complete()
        assert repr(run) == "<BlockingRun of <Run gh; state open; streams 0 open>>"
        assert stream._repr_html_() == stream._held._repr_html_()
    assert repr(run) == "<BlockingRun of <Run gh; state closed; streams 0 open>>"


async def test_a_line_reads_none_of_the_streams(autojump_clock: MockClock) -> None:
    async with trio_ckpt.open_run("many", store=MemoryStore()) as run:
        await run.add_streams(("stream", str(number)) for number in range(10))
        table = run._stream_table
        progress, table.progress = table.progress, {}
        assert repr(run) == "<Run many; state open; streams 0 open>"
        table.progress = progress


async def test_a_partition_and_a_turn_say_what_they_are(autojump_clock: MockClock) -> None:
    limit, store = trio_ckpt.RateLimit(tokens_per_min=6_000), MemoryStore()
    async with (
        trio_ckpt.open_collection("pages", store=store, partitions=1, items=2_000) as collection,
        collection.claim() as partition,
    ):
        assert partition is not None
        assert repr(partition) == "<Partition pages.00000; of 1; items in all 2,000>"
        async with partition.run.open_stream("empty") as stream:
            async for batch in stream.batches(list[int]()):
                batch.complete()
    async with limit.request(tokens=1_500) as turn:
        assert repr(turn) == "<RequestTurn; tokens 1,500>"


async def test_snapshots_and_a_tracer_say_what_they_are(autojump_clock: MockClock) -> None:
    assert repr(trio_ckpt.trace_tasks()) == "<TaskTracer; spans trio_ckpt.task>"
    async with (
        trio_ckpt.open_run("gh", store=MemoryStore()) as run,
        run.open_stream("org/repo", "pulls", state={"key": SECRET}) as stream,
    ):
        async for batch in stream.batches([SECRET]):
            async with stream.snapshots(every_s=0) as snapshots:
                snapshots.metadata["cookie"] = SECRET
                await snapshots.point(SECRET)
                await snapshots.wait()
                stream.state["key"] = object()  # type: ignore[assignment]  # it cannot be saved
                await snapshots.point()
                stream.state["key"] = SECRET
                looked = [repr(snapshots), snapshots._repr_html_()]
                assert looked[0] == "<Snapshots; batch 0; of org/repo/pulls; saved 1; skipped 1>"
                assert not [text for text in looked if SECRET in text]
            batch.complete()


def test_outputs_say_where_they_are(tmp_path: Path) -> None:
    with closing(OutputDir.open(tmp_path)) as folder:
        assert repr(folder) == f"<OutputDir {tmp_path}>"
        with closing(folder.create("a/b")) as new:
            new.write(b"four")
            assert repr(new) == "<NewFile a/b; written 4 bytes>"
        with closing(AppendFile.open(folder, "log", 0)) as sink:
            assert repr(sink) == "<AppendFile log; confirmed 0 bytes>"
    assert repr(Elsewhere()) == "<Elsewhere s3://bucket/out?token=***>"
