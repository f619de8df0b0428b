"""The lines of a group reach their files before it is saved; a file that fails fails its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from trio_ckpt import NoThreadError, Progress, SinkClosedError
from trio_ckpt._commit.line_appender import LineAppender
from trio_ckpt._commit.stream_log import Lines, PendingCommit, StreamLog
from trio_ckpt._journal.record import Record, RecordKind, Seal
from trio_ckpt._journal.store import Checkpoint
from trio_ckpt.outputs import AppendFile, OutputDir


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[AppendFile, AppendFile]]:
    outputs = OutputDir.open(tmp_path)
    pair = AppendFile.open(outputs, "a", 0), AppendFile.open(outputs, "b", 0)
    yield pair
    for sink in pair:
        sink.close()
    outputs.close()


def commit(name: str, lines: Lines) -> PendingCommit:
    stream_log = StreamLog((name,), name, lambda key: Seal("r", 0, key, None), Progress(), 0)
    record = Record(kind=RecordKind.NOTE, at=1.0)
    return PendingCommit(
        stream_log, record, Checkpoint(name, 1, b""), lines, 0, lambda _error: None
    )


@contextmanager
def appending(timeout_s: float = 60.0) -> Iterator[LineAppender]:
    appender = LineAppender(timeout_s)
    try:
        yield appender
    finally:
        appender.stop()


async def test_the_lines_of_a_group_are_in_their_files_in_order(
    files: tuple[AppendFile, AppendFile], tmp_path: Path
) -> None:
    a, b = files
    group = [commit("s", ((a, b"1\n"), (b, b"x\n"))), commit("t", ()), commit("u", ((a, b"2\n"),))]
    with appending() as appender:
        assert await appender.append(group) == {}
        assert not appender.is_busy
    assert (tmp_path / "a").read_bytes() == b"1\n2\n"
    assert (tmp_path / "b").read_bytes() == b"x\n"


async def test_each_file_is_appended_to_once(
    files: tuple[AppendFile, AppendFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fsync for each, however many records of the group have lines for it."""
    calls: list[str] = []
    original = AppendFile.append

    def count(self: AppendFile, lines: Sequence[bytes]) -> None:
        calls.append(self.path)
        original(self, lines)

    monkeypatch.setattr(AppendFile, "append", count)
    with appending() as appender:
        await appender.append([commit(name, ((files[0], b"1\n"),)) for name in "stu"])
    assert calls == ["a"]


async def test_a_file_that_fails_fails_its_own_streams_only(
    files: tuple[AppendFile, AppendFile], tmp_path: Path
) -> None:
    a, b = files
    a.close()
    group = [commit("s", ((a, b"1\n"),)), commit("t", ((b, b"x\n"),))]
    with appending() as appender:
        failed = await appender.append(group)
    assert failed is not None
    assert list(failed) == [group[0].stream_log]
    assert isinstance(failed[group[0].stream_log], SinkClosedError)
    assert (tmp_path / "b").read_bytes() == b"x\n"


async def test_without_a_thread_no_line_is_appended(
    files: tuple[AppendFile, AppendFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    group = [commit("s", ((files[0], b"1\n"),)), commit("t", ())]
    appender = LineAppender(60.0)
    failed = await appender.append(group)
    assert failed is not None
    assert isinstance(failed[group[0].stream_log], NoThreadError)
    assert (tmp_path / "a").read_bytes() == b""


async def test_an_append_that_takes_too_long_stays_busy(
    files: tuple[AppendFile, AppendFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may still write to the files, so they must not be closed."""
    go_on, ended = threading.Event(), threading.Event()

    def hang(_self: AppendFile, _lines: Iterable[bytes]) -> None:
        go_on.wait()
        ended.set()

    monkeypatch.setattr(AppendFile, "append", hang)
    with appending(timeout_s=0.01) as appender:
        assert await appender.append([commit("s", ((files[0], b"1\n"),))]) is None
        assert appender.is_busy
        go_on.set()
        await trio.to_thread.run_sync(ended.wait)
