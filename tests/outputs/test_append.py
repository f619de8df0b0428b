"""Files that grow at their end."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.outputs.faulty import ERRORS, FaultySystem, files_in
from trio_ckpt._util.errors import CannotRedoError, OutputError, SinkClosedError
from trio_ckpt.outputs import AppendFile, OutputDir, SinkTooShortError, System


@pytest.fixture
def system() -> FaultySystem:
    return FaultySystem(write_at_most=3)


@pytest.fixture
def sink(root: Path, system: FaultySystem) -> Iterator[AppendFile]:
    outdir = OutputDir.open(root, system=system)
    sink = AppendFile.open(outdir, "a/log", 0)
    yield sink
    sink.close()
    outdir.close()


def test_a_new_append_file_has_a_durable_name_before_the_first_append(root: Path) -> None:
    for existed in (False, True):  # a killed process may have made it and synced nothing
        system = FaultySystem()
        outdir = OutputDir.open(root, system=system)
        AppendFile.open(outdir, "a/log", 0).close()
        assert system.changes[-1] == "fsync a"
        assert ("fsync root" in system.changes[-3:]) or existed
        outdir.close()


def test_what_is_appended_counts_only_once_it_is_confirmed(
    sink: AppendFile, root: Path, system: FaultySystem
) -> None:
    system.changes.clear()
    sink.append([b"one\n", b"", b"two\n"])
    assert [c for c in system.changes if "pwrite" not in c] == ["fdatasync a/log"]
    assert sink.confirmed == 0
    sink.append([b"three\n"])
    assert (root / "a/log").read_bytes() == b"three\n"  # the first was never confirmed
    sink.confirm(6)
    sink.append([b"4\n", b"5\n"])
    sink.confirm(8)  # the checkpoint of the second batch failed
    sink.append([b"6\n"])
    assert (root / "a/log").read_bytes() == b"three\n4\n6\n"
    assert sink.read_back(6, 4) == b"4\n6\n"
    with pytest.raises(OutputError, match="ends 1 byte before"):
        sink.read_back(6, 5)


def test_only_what_was_appended_can_be_confirmed(sink: AppendFile) -> None:
    sink.append([b"12345"])
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match="can be confirmed"):
            sink.confirm(wrong)
    sink.confirm(3)
    with pytest.raises(ValueError, match="can be confirmed"):
        sink.confirm(2)
    assert sink.confirmed == 3


def test_opening_cuts_the_tail_and_says_so(outdir: OutputDir, root: Path) -> None:
    (root / "log").write_bytes(b"good\ntorn")
    sink = AppendFile.open(outdir, "log", 5)
    assert (sink.cut_bytes, sink.confirmed, (root / "log").read_bytes()) == (4, 5, b"good\n")
    sink.append([b"x\n"])
    sink.close()
    sink.close()
    assert (root / "log").read_bytes() == b"good\nx\n"
    with pytest.raises(SinkClosedError, match="is closed"):
        sink.append([b"y"])


def test_a_cut_is_durable_before_anything_is_appended(root: Path) -> None:
    root.mkdir()
    (root / "log").write_bytes(b"good\ntorn")
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    system.changes.clear()
    AppendFile.open(outdir, "log", 5).close()
    assert system.changes == ["truncate log", "fsync log", "fsync root"]
    outdir.close()


def test_missing_confirmed_bytes_are_refused_and_counted(outdir: OutputDir, root: Path) -> None:
    (root / "log").write_bytes(b"123")
    for name, missing in (("log", 7), ("gone", 10), ("no/where", 10)):
        with pytest.raises(SinkTooShortError, match=f"{missing} of its 10") as caught:
            AppendFile.open(outdir, name, 10)
        assert caught.value.missing_bytes == missing
        assert isinstance(caught.value, CannotRedoError)
    assert files_in(root) == {"log": b"123"}
    assert not (root / "no").exists()
    AppendFile.open(outdir, "log", 2).close()  # after a rewind


def test_a_file_is_cut_only_by_who_has_it_alone(outdir: OutputDir, root: Path) -> None:
    """Else an owner that has slept through a takeover cuts off what the next one confirmed."""
    first = AppendFile.open(outdir, "log", 0)
    first.append([b"confirmed\n"])
    for confirmed in (0, 4):
        with pytest.raises(OutputError, match="another process has it open"):
            AppendFile.open(outdir, "log", confirmed)
    child = os.dup(first._fd)  # as a child that was forked has it
    first.close()
    second = AppendFile.take(outdir, "log", 4)
    os.close(child)
    assert (root / "log").read_bytes() == b"confirmed\n", "taking it has cut it"
    second.begin()
    assert (second.cut_bytes, (root / "log").read_bytes()) == (6, b"conf")
    second.close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks_take_append_files(
    outdir: OutputDir, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_system: System, _fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(System, "lock", refuse)
    monkeypatch.setattr(System, "unlock", refuse)
    sink = AppendFile.open(outdir, "log", 0)
    sink.append([b"line\n"])
    sink.close()
    assert (root / "log").read_bytes() == b"line\n"


@pytest.mark.parametrize("harm", ["shortened", "removed", "replaced"])
def test_harm_done_from_outside_is_noticed_by_the_next_append(
    sink: AppendFile, root: Path, harm: str
) -> None:
    sink.append([b"12345"])
    sink.confirm(5)
    path = root / "a/log"
    if harm == "shortened":
        os.truncate(path, 2)
    elif harm == "removed":
        path.unlink()
    else:
        path.with_name("other").write_bytes(b"12345")
        path.with_name("other").rename(path)
    with pytest.raises(OutputError):
        sink.append([b"6"])
    with pytest.raises(SinkClosedError):
        sink.append([b"6"])


@pytest.mark.parametrize("code", ERRORS)
def test_a_sink_is_closed_for_good_by_its_first_failure(root: Path, code: int) -> None:
    names = []
    for k in range(1, 50):
        system = FaultySystem(write_at_most=2)
        outdir = OutputDir.open(root / str(k), system=system)
        sink = AppendFile.open(outdir, "log", 0)
        sink.append([b"good\n"])
        sink.confirm(5)
        sink.append([b"never confirmed\n"])
        system.count, system.fail_at, system.error = 0, k, OSError(code, os.strerror(code))
        system.changes.clear()
        raised: SinkClosedError | None = None
        try:
            sink.append([b"next\n"])
        except SinkClosedError as caught:
            raised = caught
        assert bool(system.failed) == (raised is not None)
        assert raised is None or (
            raised.__cause__ is system.error and os.strerror(code) in str(raised)
        )
        system.fail_at = 0
        names.append(system.failed)
        if system.failed:
            syncs = sum("sync" in change for change in system.changes)
            calls: list[Callable[[], object]] = [
                lambda sink=sink: sink.append([b"x"]),
                lambda sink=sink: sink.confirm(5),
                lambda sink=sink: sink.read_back(0, 5),
            ]
            for call in calls:
                with pytest.raises(SinkClosedError, match="append failed"):
                    call()
            with pytest.raises(OutputError, match="earlier fsync"):
                AppendFile.open(outdir, "log", 5)
            assert sum("sync" in change for change in system.changes) == syncs
            assert (root / str(k) / "log").read_bytes().startswith(b"good\n")
        sink.close()
        outdir.close()
        again = OutputDir.open(root / str(k))  # the next session
        sink = AppendFile.open(again, "log", 5)
        assert files_in(root / str(k)) == {"log": b"good\n"}
        sink.close()
        again.close()
        if not system.failed:
            break
    assert names == ["fstat", "truncate", "pwrite", "pwrite", "pwrite", "fdatasync", ""]
