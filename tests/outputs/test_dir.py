"""Durable files: what is on the disk, and in which order it got there."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest

from tests.outputs.faulty import FaultySystem, Killed, files_in, sha256
from trio_ckpt._util.errors import OutputError, OutputExistsError
from trio_ckpt.outputs import AppendFile, Output, OutputDir, System, SystemPath
from trio_ckpt.outputs._tree import HASH_CHUNK_BYTES, TEMP_NAME, TempOwner, temp_name

# ---------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------


def test_write_returns_what_is_there(outdir: OutputDir, root: Path) -> None:
    output = outdir.write("a/b/c.json", b"data")
    path = root / "a/b/c.json"
    assert path.read_bytes() == b"data"
    assert output == Output("a/b/c.json", 4, path.stat().st_mtime_ns, sha256(b"data"))
    assert outdir.write(path, b"").size == 0  # absolute, and over what was there
    assert files_in(root) == {"a/b/c.json": b""}


def test_write_obeys_the_umask(outdir: OutputDir, root: Path) -> None:
    before = os.umask(0o027)
    try:
        outdir.write("f/a", b"")
    finally:
        os.umask(before)
    assert (root / "f/a").stat().st_mode & 0o777 == 0o640
    assert (root / "f").stat().st_mode & 0o777 == 0o750


def test_names_as_long_as_they_may_be_can_be_written(outdir: OutputDir, root: Path) -> None:
    outdir.write("é" * 127, b"x")
    assert files_in(root) == {"é" * 127: b"x"}
    with pytest.raises(OutputError, match="too long"):
        outdir.write("a" * 256, b"x")


def test_the_root_may_be_spelt_as_it_resolves(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    outdir = OutputDir.open(tmp_path / "link/out")
    assert outdir.write(tmp_path / "real/out/a", b"x").path == "a"
    assert outdir.adopt(tmp_path / "link/out/a").path == "a"
    outdir.close()


def test_every_step_of_a_write_is_durable_in_order(root: Path) -> None:
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    system.changes.clear()
    outdir.write("a/b/c", b"x")
    content = ["pwrite temp", "fsync temp", "rename a/b/c", "fsync a/b"]
    assert system.changes == ["mkdir a", "fsync root", "mkdir a/b", "fsync a", *content]
    system.changes.clear()
    outdir.write("a/b/c", b"y")
    assert system.changes == content
    outdir.close()


def test_folders_left_by_a_killed_process_are_made_durable_too(root: Path) -> None:
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    (root / "a/b").mkdir(parents=True)
    system.changes.clear()
    outdir.write("a/b/c", b"x")
    assert system.changes[:2] == ["fsync root", "fsync a"]
    outdir.close()


def test_opening_makes_the_root_and_all_above_it_durable(tmp_path: Path) -> None:
    system = FaultySystem()
    OutputDir.open(tmp_path / "x/y", system=system).close()
    made = [change.split()[0] for change in system.changes]
    assert made == ["fsync", "mkdir", "fsync", "mkdir", "fsync"]
    assert (tmp_path / "x/y").is_dir()


@pytest.mark.parametrize(
    "kind", ["folder", "link", "dangling link", "fifo", "link above", "file above"]
)
def test_a_name_of_no_file_is_neither_followed_nor_waited_for(
    outdir: OutputDir, root: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "victim").write_bytes(b"secret")
    name = "x"
    if kind == "folder":
        (root / "x").mkdir()
    elif kind == "fifo":
        os.mkfifo(root / "x")
    elif kind == "file above":
        (root / "f").write_bytes(b"")
        name = "f/x"
    elif kind == "link above":
        (root / "d").symlink_to(tmp_path)
        name = "d/victim"
    else:
        (root / "x").symlink_to(tmp_path / ("victim" if kind == "link" else "nothing"))
    calls: list[Callable[[], object]] = [
        lambda: outdir.write(name, b"new"),
        lambda: outdir.adopt(name),
        lambda: AppendFile.open(outdir, name, 0),
        lambda: AppendFile.open(outdir, name, 6),
    ]
    for call in calls:
        with pytest.raises(OutputError) as caught:
            call()
        assert caught.value.path == name
    assert outdir.check(Output(name, 6, 0, sha256(b"secret")), "size")
    assert outdir.archive([name], "old").moved == (
        {name: f".archive/old/{name}"} if name == "x" and kind != "folder" else {}
    )
    assert files_in(tmp_path)["victim"] == b"secret"
    assert not (tmp_path / "nothing").exists()


def test_a_closed_folder_is_refused_and_closing_twice_is_harmless(root: Path) -> None:
    outdir = OutputDir.open(root)
    outdir.close()
    outdir.close()
    with pytest.raises(OutputError):
        outdir.write("a", b"x")


def test_a_root_whose_path_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(OutputError, match="its path is not UTF-8: give a folder whose path is"):
        OutputDir.open(odd)
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_file_is_refused(root: Path) -> None:
    root.write_bytes(b"")
    with pytest.raises(OutputError):
        OutputDir.open(root)


# ---------------------------------------------------------------------------------------
# Adopting, checking
# ---------------------------------------------------------------------------------------


def test_a_file_of_the_user_is_hashed_and_made_durable_up_to_the_root(root: Path) -> None:
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    (root / "a/b").mkdir(parents=True)
    data = os.urandom(2_500_000)
    (root / "a/b/c").write_bytes(data)
    system.changes.clear()
    output = outdir.adopt("a/b/c")
    assert (output.size, output.sha256) == (2_500_000, sha256(data))
    assert output.mtime_ns == (root / "a/b/c").stat().st_mtime_ns
    assert system.changes == ["fsync root", "fsync a", "fsync a/b/c", "fsync a/b"]
    assert outdir.check(output, "sha256") is None
    with pytest.raises(OutputError, match="No such file"):
        outdir.adopt("a/b/d")
    outdir.close()


def test_a_file_that_still_grows_is_not_adopted(root: Path) -> None:
    class Growing(FaultySystem):
        def fsync(self, fd: int) -> None:
            if self.names[fd] == "f":
                with (root / "f").open("ab") as file:
                    file.write(b"more")

    outdir = OutputDir.open(root, system=Growing())
    (root / "f").write_bytes(b"x")
    with pytest.raises(OutputError, match="was written to"):
        outdir.adopt("f")
    outdir.close()


def test_check_finds_what_is_wrong_and_says_it(outdir: OutputDir, root: Path) -> None:
    output = outdir.write("a/f", b"0123456789")
    path = root / "a/f"
    assert outdir.check(output) is outdir.check(output, "sha256") is None
    os.utime(path)
    assert outdir.check(output) is None  # another mtime, but the same content
    path.write_bytes(b"012345678X")
    assert (outdir.check(output) or "").startswith("altered: sha256 ")
    os.utime(path, ns=(output.mtime_ns, output.mtime_ns))
    assert outdir.check(output) is None  # size and mtime are all that "size" looks at
    assert (outdir.check(output, "sha256") or "").startswith("altered: sha256 ")
    path.write_bytes(b"012")
    assert outdir.check(output) == outdir.check(output, "sha256") == "truncated: 3 of 10 bytes"
    path.write_bytes(b"0" * 12)
    assert outdir.check(output) == "altered: 12 bytes instead of 10"
    path.unlink()
    assert outdir.check(output) == "missing"
    path.mkdir()
    assert outdir.check(output) == "is not a regular file"
    path.rmdir()
    path.parent.rmdir()
    assert outdir.check(output) == "missing"
    assert "'..'" in (outdir.check(Output("../x", 1, 2, "")) or "")


@pytest.mark.parametrize(
    ("code", "is_known"), [(errno.EIO, True), (errno.EACCES, False), (errno.EMFILE, False)]
)
def test_an_unknown_state_of_an_output_is_an_error(root: Path, code: int, is_known: bool) -> None:
    outdir = OutputDir.open(root)
    output = outdir.write("f", b"x")
    outdir.close()
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    system.only, system.count, system.fail_at, system.error = "open", 0, 1, OSError(code, "trouble")
    if is_known:
        assert outdir.check(output) == "trouble"
    else:
        with pytest.raises(OutputError, match="cannot be checked: trouble"):
            outdir.check(output)
    outdir.close()


# ---------------------------------------------------------------------------------------
# Leftovers, the archive
# ---------------------------------------------------------------------------------------


def test_leftovers_are_removed_by_name_only(outdir: OutputDir, root: Path, tmp_path: Path) -> None:
    outdir.write("a/f", b"x")
    outside, link = tmp_path / temp_name("f"), root / "link"
    outside.write_bytes(b"")
    link.symlink_to(tmp_path)
    keep = ["a/.f.tmp", "a/x.ckpt-tmp-0123456789abcdef", "a/.f.ckpt-tmp-0123"]
    ours = [temp_name("f"), "a/" + temp_name("f"), "a/b/" + temp_name("g")]
    archived = ".archive/old/" + temp_name("f")
    for name in [*keep, *ours, archived]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    assert outdir.remove_orphans(["a", "gone"]) == [ours[1]]
    assert sorted(outdir.remove_orphans()) == sorted([ours[0], ours[2]])
    assert set(files_in(root)) == {"a/f", *keep, archived}
    assert outside.exists()


def test_leftovers_of_other_runs_and_later_owners_stay(outdir: OutputDir, root: Path) -> None:
    """Where locks do not cross hosts nothing else tells that their writers live."""
    later = [("run", 7), ("run", 8), ("other", 1)]
    keep = [temp_name("f", TempOwner.of(*owner)) for owner in later]
    ours = [temp_name("f", TempOwner.of("run", 6)), temp_name("f")]
    for name in [*keep, *ours]:
        (root / name).write_bytes(b"")
    assert outdir.remove_orphans() == [ours[1]], "without a run only what belongs to none"
    outdir.belong_to("run", 7, is_shared=False)
    assert outdir.remove_orphans() == [ours[0]]
    assert set(files_in(root)) == set(keep)


def test_the_temporary_file_of_a_live_writer_is_kept(outdir: OutputDir, root: Path) -> None:
    removed = []

    class Watched(System):
        def rename(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            assert any(map(TEMP_NAME.fullmatch, files_in(root)))
            removed.append(outdir.remove_orphans())
            super().rename(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    writer = OutputDir.open(root, system=Watched())
    writer.write("f", b"x")
    writer.close()
    assert removed == [[]]
    assert files_in(root) == {"f": b"x"}


def test_leftovers_that_cannot_be_removed_are_logged(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system = FaultySystem(1, PermissionError(errno.EACCES, "no"), only="unlink")
    outdir = OutputDir.open(root, system=system)
    for name in "ab":
        (root / temp_name(name)).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert len(outdir.remove_orphans()) == 1
    assert "was not removed" in caplog.text
    outdir.close()


def test_the_archive_keeps_paths_names_the_missing_overwrites_nothing(
    outdir: OutputDir, root: Path
) -> None:
    for name in ("f", "a/g"):
        outdir.write(name, name.encode())
    (root / "folder").mkdir()
    archived = outdir.archive(["f", "a/g", "gone", "no/where", "folder"], "gen-1")
    assert archived.moved == {"f": ".archive/gen-1/f", "a/g": ".archive/gen-1/a/g"}
    assert archived.missing == ("gone", "no/where", "folder")
    assert outdir.archive(["f"], "gen-1").moved == {"f": ".archive/gen-1/f"}  # made again
    outdir.write("f", b"second")
    assert outdir.archive(["f"], "gen-1").moved == {"f": ".archive/gen-1/f~2"}
    assert files_in(root) == {
        ".archive/gen-1/f": b"f",
        ".archive/gen-1/a/g": b"a/g",
        ".archive/gen-1/f~2": b"second",
    }
    for label in ("a/b", "..", "", ".archive", "./x"):
        with pytest.raises(ValueError, match="output"):
            outdir.archive([], label)


def test_only_a_file_has_a_length(outdir: OutputDir, root: Path) -> None:
    (root / "blank").touch()
    (root / "full").write_text("x")
    (root / "folder").mkdir()
    (root / "link").symlink_to("blank")
    names = ["blank", "full", "folder", "link", "missing", "no/where"]
    assert [outdir.length(name) for name in names] == [0, 1, None, None, None, None]


def test_the_archive_is_durable_goals_first(root: Path) -> None:
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    outdir.write("a/f", b"x")
    system.changes.clear()
    outdir.archive(["a/f"], "old")
    assert system.changes[-3:] == ["rename .archive/old/a/f", "fsync .archive/old/a", "fsync a"]
    assert system.changes[:2] == ["mkdir .archive", "fsync root"]
    outdir.close()


def test_threads_may_write_into_the_same_new_folders(outdir: OutputDir, root: Path) -> None:
    def work(n: int) -> None:
        for turn in range(20):
            outdir.write(f"d{turn}/sub/{n}", b"x")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files_in(root)) == 120


# ---------------------------------------------------------------------------------------
# Reading, and writing piece by piece
# ---------------------------------------------------------------------------------------


def test_read_has_a_limit_that_is_seen_before_anything_is_read(root: Path) -> None:
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    outdir.write("a/f", b"12345")
    assert outdir.read("a/f", 5) == b"12345"
    system.fail_at, system.error, system.only, system.count = 1, Killed(), "pread", 0
    with pytest.raises(OutputError, match="has 5 bytes, over 4"):
        outdir.read("a/f", 4)
    assert not system.failed
    outdir.close()


def test_a_file_that_grows_while_it_is_read_is_refused(root: Path) -> None:
    class Growing(System):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            with (root / "f").open("ab") as file:
                file.write(b"more")
            return super().pread(fd, size, offset)

    outdir = OutputDir.open(root, system=Growing())
    outdir.write("f", b"123")
    with pytest.raises(OutputError, match="has grown over 5 bytes"):
        outdir.read("f", 5)
    outdir.close()


def test_only_regular_files_below_the_root_are_read(
    outdir: OutputDir, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "up").symlink_to(tmp_path)
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    for name in ("link", "up/outside", "folder", "pipe", "gone", "../outside"):
        with pytest.raises(OutputError):
            outdir.read(name, 100)
        with pytest.raises(OutputError):
            list(outdir.read_pieces(name, 100))


def test_pieces_end_at_the_limit_or_with_the_file(outdir: OutputDir) -> None:
    outdir.write("f", b"x" * (2 * HASH_CHUNK_BYTES + 1))
    for limit in (0, 5, HASH_CHUNK_BYTES, 2 * HASH_CHUNK_BYTES, 10 * HASH_CHUNK_BYTES):
        pieces = list(outdir.read_pieces("f", limit))
        assert sum(map(len, pieces)) == min(limit, 2 * HASH_CHUNK_BYTES + 1)
        assert max(map(len, pieces), default=0) <= HASH_CHUNK_BYTES


def test_a_new_file_has_its_name_when_it_is_committed_and_not_before(
    outdir: OutputDir, root: Path
) -> None:
    outdir.write("a/f", b"old")
    file = outdir.create("a/f")
    file.write(b"new ")
    assert (root / "a/f").read_bytes() == b"old"
    file.write(b"content")
    output = file.commit()
    assert output == Output("a/f", 11, output.mtime_ns, sha256(b"new content"))
    assert outdir.check(output, "sha256") is None
    file.close()
    file.close()
    assert files_in(root) == {"a/f": b"new content"}


def test_a_new_file_that_is_not_committed_leaves_nothing(outdir: OutputDir, root: Path) -> None:
    outdir.write("a/f", b"old")
    file = outdir.create("a/f")
    file.write(b"new")
    assert outdir.remove_orphans() == []  # its writer is alive
    file.close()
    file.close()
    assert files_in(root) == {"a/f": b"old"}


def test_the_names_in_the_folder_itself_are_listed(outdir: OutputDir) -> None:
    outdir.write("b/f", b"1")
    outdir.write("a", b"2")
    assert outdir.names() == ["a", "b"]


def test_a_path_may_bring_its_system_along(root: Path) -> None:
    class Counting(System):
        opened = 0

        def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
            self.opened += 1
            return super().open(path, flags, dir_fd=dir_fd)

    system = Counting()
    place = SystemPath(str(root), system) / "inner"
    assert os.fspath(place) == str(place) == f"{root}/inner"
    outdir = OutputDir.open(place)
    outdir.write("f", b"1")
    outdir.close()
    assert system.opened > 2
    assert (root / "inner" / "f").read_bytes() == b"1"


def test_the_quick_check_is_as_strict_as_the_full_one(
    outdir: OutputDir, root: Path, tmp_path: Path
) -> None:
    """It says that a file is unchanged only where `check` finds it good, whatever came before."""
    good = [outdir.write(path, b"content") for path in ("a/1", "a/2", "b/c/1", "top", "a/3")]
    os.utime(root / "a/3", ns=(good[4].mtime_ns, good[4].mtime_ns))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1").write_bytes(b"content")
    bad = {
        name: outdir.write(path, b"content")
        for name, path in {
            "missing": "a/4",
            "shorter": "a/5",
            "link": "a/6",
            "folder": "a/7",
            "folder is a link": "linked/1",
            "folder is missing": "gone/1",
        }.items()
    }
    for path in ("a/4", "a/6", "a/7", "linked/1", "gone/1"):
        (root / path).unlink()
    (root / "a/5").write_bytes(b"conten")
    (root / "a/6").symlink_to("content")  # the size of a link is that of its text
    (root / "a/7").mkdir()
    (root / "linked").rmdir()
    (root / "linked").symlink_to(outside)
    (root / "gone").rmdir()
    for output in bad.values():
        with suppress(FileNotFoundError):
            times = (output.mtime_ns, output.mtime_ns)
            os.utime(root / output.path, ns=times, follow_symlinks=False)
    for path in ("../outside/1", "a/..", ""):
        bad[path] = msgspec.structs.replace(good[0], path=path)
    with outdir.unchanged() as is_unchanged:
        for output in (*good, *reversed(good)):
            assert is_unchanged(output), output
            for name, other in bad.items():
                assert not is_unchanged(other), name
        os.utime(root / "a/1", ns=(1, 1))
        assert not is_unchanged(good[0])
    assert outdir.check(good[0]) is None


def test_a_new_file_replaces_none(outdir: OutputDir, root: Path) -> None:
    outdir.write("a/f", b"one", is_new=True)
    with pytest.raises(OutputExistsError, match="exists already; it was not overwritten"):
        outdir.write("a/f", b"two", is_new=True)
    assert files_in(root) == {"a/f": b"one"}
    outdir.write("a/f", b"two")
    assert files_in(root) == {"a/f": b"two"}


def test_a_committed_file_takes_no_more(outdir: OutputDir, root: Path) -> None:
    """Its digest is recorded, so what came later would be damage."""
    with closing(outdir.create("a/f")) as file:
        file.write(b"one")
        output = file.commit()
        for call in (lambda: file.write(b"two"), file.commit):
            with pytest.raises(OutputError):
                call()
    with pytest.raises(OutputError):
        file.write(b"two")
    assert files_in(root) == {"a/f": b"one"}
    assert outdir.check(output, "sha256") is None
