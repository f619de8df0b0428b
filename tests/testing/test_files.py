"""The file tree in memory answers as the operating system does, and forgets as a disk may."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from trio_ckpt.outputs import AppendFile, OutputDir, System, SystemPath
from trio_ckpt.outputs._system import APPEND, FOLDER, NEW, READ, ROOT
from trio_ckpt.testing._files import MemoryFiles
from trio_ckpt.testing._inodes import SECTOR_BYTES, File, Folder

SEQUENCES = 180
CALLS = 60
NO_FD = 999_999

LONG = "n" * 256
NAMES = ["a", "b", "c", "a/x", "a/b", "a/b/c", ".", ""]
NAMES += [LONG, f"a/{LONG}", f"{LONG}/a", f"b/{LONG}/a"]
RENAMES = ["a", "b", "c", "a/x", "a/b", "a/b/c"]
FLAGS = [READ, APPEND, NEW, FOLDER, ROOT, APPEND | os.O_CREAT, NEW & ~os.O_EXCL]
FLAGS += [os.O_RDWR | os.O_CREAT | os.O_TRUNC, os.O_WRONLY]
FLAGS += [os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC | os.O_CREAT, FOLDER | os.O_TRUNC]


@attrs.define(eq=False)
class Side:
    """One system, and what it has opened; descriptors are told apart by when they were opened."""

    system: System
    fds: list[int]

    def play(self, verb: str, *args: Any) -> Any:
        """Make a call; what it gives, or what it says."""
        try:
            return getattr(self, verb)(*args)
        except OSError as error:
            return error.errno

    def open(self, name: str, flags: int, at: int) -> str:
        self.fds.append(self.system.open(name, flags, dir_fd=self.fds[at]))
        return "opened"

    def close(self, at: int) -> None:
        if at:
            fd, self.fds[at] = self.fds[at], NO_FD  # the system gives the same number again
            self.system.close(fd)

    def mkdir(self, name: str, at: int) -> None:
        self.system.mkdir(name, dir_fd=self.fds[at])

    def look(self, at: int) -> tuple[Any, ...]:
        return tidy(self.system.fstat(self.fds[at]))

    def lstat(self, name: str, at: int) -> tuple[Any, ...]:
        return tidy(self.system.lstat(name, dir_fd=self.fds[at]))

    def scan(self, at: int) -> list[tuple[str, bool]]:
        return sorted(self.system.scan(self.fds[at]))

    def pread(self, at: int, size: int, offset: int) -> bytes:
        return self.system.pread(self.fds[at], size, offset)

    def pwrite(self, at: int, data: bytes, offset: int) -> int:
        return self.system.pwrite(self.fds[at], memoryview(data), offset)

    def truncate(self, at: int, size: int) -> None:
        self.system.truncate(self.fds[at], size)

    def lock(self, at: int) -> None:
        self.system.lock(self.fds[at])

    def unlock(self, at: int) -> None:
        self.system.unlock(self.fds[at])

    def fsync(self, at: int) -> None:
        self.system.fsync(self.fds[at])

    def fdatasync(self, at: int) -> None:
        self.system.fdatasync(self.fds[at])

    def rename(self, name: str, goal: str, at: int, to: int) -> None:
        self.system.rename(name, goal, src_dir_fd=self.fds[at], dst_dir_fd=self.fds[to])

    def link(self, name: str, goal: str, at: int, to: int) -> None:
        self.system.link(name, goal, src_dir_fd=self.fds[at], dst_dir_fd=self.fds[to])

    def unlink(self, name: str, at: int) -> None:
        self.system.unlink(name, dir_fd=self.fds[at])


def tidy(found: os.stat_result) -> tuple[Any, ...]:
    """What both must agree on."""
    kind = stat.S_IFMT(found.st_mode)
    return (kind, found.st_size, found.st_nlink) if kind == stat.S_IFREG else (kind,)


CALLS_WITH: dict[str, Callable[[random.Random, int], tuple[Any, ...]]] = {
    "open": lambda r, n: (r.choice(NAMES), r.choice(FLAGS), r.randrange(n)),
    "close": lambda r, n: (r.randrange(n),),
    "mkdir": lambda r, n: (r.choice(NAMES), r.randrange(n)),
    "look": lambda r, n: (r.randrange(n),),
    "lstat": lambda r, n: (r.choice(NAMES), r.randrange(n)),
    "scan": lambda r, n: (r.randrange(n),),
    "pread": lambda r, n: (r.randrange(n), r.randrange(9), r.randrange(-1, 9)),
    "pwrite": lambda r, n: (r.randrange(n), r.randbytes(r.randrange(9)), r.randrange(-1, 9)),
    "truncate": lambda r, n: (r.randrange(n), r.randrange(-1, 9)),
    "lock": lambda r, n: (r.randrange(n),),
    "unlock": lambda r, n: (r.randrange(n),),
    "fsync": lambda r, n: (r.randrange(n),),
    "fdatasync": lambda r, n: (r.randrange(n),),
    "rename": lambda r, n: (*r.choices(RENAMES, k=2), r.randrange(n), r.randrange(n)),
    "link": lambda r, n: (*r.choices(NAMES[:5], k=2), r.randrange(n), r.randrange(n)),
    "unlink": lambda r, n: (r.choice(NAMES[:5]), r.randrange(n)),
}
OFTEN = ["open", "open", "mkdir", "rename", "pwrite", *CALLS_WITH]


@pytest.mark.parametrize("first", range(0, SEQUENCES, 45))
def test_it_answers_as_the_operating_system_does(first: int, tmp_path: Path) -> None:
    """Equal calls have equal results and equal error numbers."""
    seen: set[tuple[str, bool]] = set()
    for seed in range(first, first + 45):
        chance = random.Random(seed)
        (tmp_path / str(seed)).mkdir()
        real, memory = System(), MemoryFiles()
        sides = [
            Side(real, [real.open(str(tmp_path / str(seed)), ROOT)]),
            Side(memory, [memory.open("/", ROOT)]),
        ]
        history: list[Any] = []
        try:
            for _ in range(CALLS):
                verb = chance.choice(OFTEN)
                args = CALLS_WITH[verb](chance, len(sides[0].fds))
                answers = [side.play(verb, *args) for side in sides]
                history.append((verb, args, answers))
                assert answers[0] == answers[1], (seed, history[-3:])
                seen.add((verb, isinstance(answers[0], int) and verb != "pwrite"))
        finally:
            for fd in sides[0].fds:
                if fd != NO_FD:
                    os.close(fd)
    assert seen >= {(verb, failed) for verb in ("open", "rename", "unlink") for failed in (0, 1)}


@pytest.mark.parametrize("kind", ["real", "memory"])
def test_a_link_is_a_second_name_that_replaces_nothing(kind: str, tmp_path: Path) -> None:
    files = System() if kind == "real" else MemoryFiles()
    root = files.open(str(tmp_path) if kind == "real" else "/", ROOT)
    fd = files.open("temp", NEW, dir_fd=root)
    files.pwrite(fd, memoryview(b"content"), 0)
    files.link("temp", "goal", src_dir_fd=root, dst_dir_fd=root)
    assert files.fstat(fd).st_nlink == 2
    with pytest.raises(FileExistsError):
        files.link("temp", "goal", src_dir_fd=root, dst_dir_fd=root)
    files.unlink("temp", dir_fd=root)
    assert sorted(files.scan(root)) == [("goal", False)]
    assert files.lstat("goal", dir_fd=root).st_nlink == 1
    for opened in (fd, root):
        files.close(opened)


def test_the_same_outputs_come_out_of_it_as_on_a_disk(tmp_path: Path) -> None:
    """Everything that outputs do goes through it: nothing reaches past the system."""
    made = []
    for place in (tmp_path / "output", SystemPath("/output", MemoryFiles())):
        outdir = OutputDir.open(place)
        first = outdir.write("a/b/f", b"one")
        again = outdir.write("a/b/f", b"other")
        sink = AppendFile.open(outdir, "lines", 0)
        sink.append([b"1\n", b"2\n"])
        sink.confirm(2)
        sink.append([b"3\n"])
        sink.close()
        adopted = outdir.adopt("lines")
        checks = [outdir.check(output) for output in (first, again, adopted)]
        archived = outdir.archive(["a/b/f"], "old")
        made.append((first.sha256, again.size, adopted.sha256, checks, archived, outdir.names()))
        assert outdir.read("lines", 100) == b"1\n3\n"
        outdir.close()
    assert made[0] == made[1]
    assert not Path("/output").exists()


# ------------------------------------------------------------------------------- power


def disk(*, folder: bool = False) -> tuple[MemoryFiles, int]:
    """A tree, and its root opened."""
    files = MemoryFiles()
    root = files.open("/", ROOT)
    if folder:
        files.mkdir("a", dir_fd=root)
        files.fsync(root)
    return files, root


def make(files: MemoryFiles, folder: int, name: str, data: bytes, *, synced: bool = False) -> int:
    fd = files.open(name, NEW, dir_fd=folder)
    files.pwrite(fd, memoryview(data), 0)
    if synced:
        files.fsync(fd)
    return fd


def left(files: MemoryFiles, path: str) -> set[bytes | None]:
    """What a power cut may leave of a file; None: nothing."""
    return left_by(files, path, 300)


def left_by(files: MemoryFiles, path: str, cuts: int) -> set[bytes | None]:
    """What so many power cuts may leave of a file; None: nothing."""
    found: set[bytes | None] = set()
    for seed in range(cuts):
        node = files.after_crash("power", random.Random(seed)).find(path)
        found.add(node.data if isinstance(node, File) else None)
    return found


def test_a_kill_keeps_what_was_done_and_lets_go_of_locks() -> None:
    files, root = disk()
    fd = make(files, root, "f", b"data")
    files.lock(fd)
    after = files.after_crash("kill", random.Random(0))
    root = after.open("/", ROOT)
    fd = after.open("f", APPEND, dir_fd=root)
    after.lock(fd)
    assert after.pread(fd, 9, 0) == b"data"
    assert left(after, "/f") > {b"data", None}, "a kill writes nothing to the disk"


def test_what_was_synced_is_left_whole_under_its_name() -> None:
    files, root = disk()
    make(files, root, "f", b"data", synced=True)
    files.fsync(root)
    assert left(files, "/f") == {b"data"}


def test_a_name_that_was_not_synced_may_be_lost() -> None:
    files, root = disk()
    make(files, root, "f", b"data", synced=True)
    assert left(files, "/f") == {b"data", None}


def test_content_that_was_not_synced_is_lost_or_zeros_or_there() -> None:
    files, root = disk()
    make(files, root, "f", b"data")
    files.fsync(root)
    assert left(files, "/f") == {b"", b"\0\0\0\0", b"data"}, "one sector, one moment"


def test_a_rename_may_come_before_the_data_that_it_renames() -> None:
    files, root = disk()
    make(files, root, "f", b"old", synced=True)
    files.fsync(root)
    make(files, root, "temp", b"new")
    files.rename("temp", "f", src_dir_fd=root, dst_dir_fd=root)
    found = left(files, "/f")
    assert found >= {b"old", b"new", b"", b"\0\0\0"}
    assert None not in found, "the name leads to the old file or to the new one"


def test_all_names_may_be_there_without_any_of_the_data() -> None:
    """As with delayed allocation: no mere chance for each file alone."""
    files, root = disk()
    names = [f"f{number}" for number in range(20)]
    for name in names:
        make(files, root, name, b"data")
    trees = [files.after_crash("power", random.Random(seed)).root.entries for seed in range(50)]
    assert any(
        set(tree) == set(names) and all(set(file.data) <= {0} for file in tree.values())
        for tree in trees
    )
    assert any(not tree for tree in trees), "and all may be gone"


def test_writes_are_torn_at_sectors() -> None:
    files, root = disk()
    fd = make(files, root, "f", b"-" * 2 * SECTOR_BYTES, synced=True)
    files.fsync(root)
    files.pwrite(fd, memoryview(b"+" * 2 * SECTOR_BYTES), 0)
    found = left(files, "/f")
    parts = {data[at : at + SECTOR_BYTES] for data in found if data for at in (0, SECTOR_BYTES)}
    assert parts == {b"-" * SECTOR_BYTES, b"+" * SECTOR_BYTES}
    assert len(found) == 4


def test_no_sector_of_a_new_file_is_torn() -> None:
    """Wherever the middle of a write lies, and wherever it begins."""
    for start in (0, 100):
        files, root = disk()
        fd = make(files, root, "f", b"-" * start, synced=True)
        files.fsync(root)
        files.pwrite(fd, memoryview(b"+" * (3 * SECTOR_BYTES - start)), start)
        whole = b"-" * start + b"+" * (3 * SECTOR_BYTES - start)
        found = left(files, "/f")
        assert whole in found
        assert len(found) > 4
        for data in found:
            assert data is not None
            for at in range(0, len(data), SECTOR_BYTES):
                sector, end = data[at : at + SECTOR_BYTES], at + SECTOR_BYTES
                old = whole[at : min(start, end)]
                assert sector in (whole[at:end], old.ljust(len(sector), b"\0"), bytes(512)), at


def test_a_later_write_to_a_sector_never_comes_without_an_earlier_one() -> None:
    files, root = disk()
    fd = make(files, root, "f", b"")
    files.fsync(root)
    for number, line in enumerate((b"one\n", b"two\n")):
        files.pwrite(fd, memoryview(line), 4 * number)
    zeros = {bytes(4), bytes(8)}
    assert left(files, "/f") == {b"", b"one\n", b"one\ntwo\n", b"one\n" + bytes(4), *zeros}


def test_a_power_cut_in_the_middle_of_a_write_tears_no_sector() -> None:
    """A kill there leaves half of it."""
    files, root = disk()
    fd = make(files, root, "f", b"", synced=True)
    files.fsync(root)

    def crash(verb: str, _name: str) -> None:
        if verb == "write the second half of":
            raise KeyError(verb)

    files.reach = crash
    with pytest.raises(KeyError):
        files.pwrite(fd, memoryview(b"x" * 1000), 0)
    killed = files.after_crash("kill", random.Random(0)).find("/f")
    assert isinstance(killed, File)
    assert killed.data == b"x" * 500
    assert left(files, "/f") <= {b"", bytes(500)}


def test_a_file_that_moves_between_folders_is_never_in_neither() -> None:
    for syncs in ((), ("old",), ("new",)):
        files, root = disk(folder=True)
        fds = {"old": root, "new": files.open("a", FOLDER, dir_fd=root)}
        make(files, root, "f", b"data", synced=True)
        files.fsync(root)
        files.rename("f", "f", src_dir_fd=fds["old"], dst_dir_fd=fds["new"])
        for name in syncs:
            files.fsync(fds[name])
        for seed in range(100):
            after = files.after_crash("power", random.Random(seed))
            assert after.find("/f") or after.find("/a/f"), syncs


@pytest.mark.parametrize("synced", [(), ("/",), ("/b",), ("/a", "/a/b"), ("/a/b", "/b", "/")])
def test_no_rename_loses_a_file_whatever_was_synced(synced: tuple[str, ...]) -> None:
    """Into new folders, out of them, with them, and with its old name taken by another."""

    def move(name: str, goal: str) -> None:
        files.rename(name, goal, src_dir_fd=root, dst_dir_fd=root)

    files, root = disk()
    make(files, root, "f", b"data", synced=True)
    files.fsync(root)
    for step in (
        lambda: files.mkdir("a", dir_fd=root),
        lambda: files.mkdir("a/b", dir_fd=root),
        lambda: move("f", "a/b/f"),
        lambda: make(files, root, "f", b"other"),
        lambda: move("a/b", "b"),
        lambda: move("a", "b/a"),
        lambda: files.mkdir("d", dir_fd=root),
        lambda: move("b/f", "g"),
        lambda: move("d", "b/a"),
        lambda: move("g", "h"),
        lambda: make(files, root, "g", b"other"),
    ):
        step()
        for path in synced:
            if files.find(path):
                files.fsync(files.open(path, ROOT))
        for seed in range(100):
            after = files.after_crash("power", random.Random(seed))
            assert b"data" in contents(after.root), seed


def contents(folder: Folder) -> set[bytes]:
    found: set[bytes] = set()
    for node in folder.entries.values():
        found |= {node.data} if isinstance(node, File) else contents(node)
    return found


def test_syncing_the_folder_a_file_has_left_brings_the_path_to_it() -> None:
    files, root = disk()
    make(files, root, "f", b"data", synced=True)
    files.mkdir("old", dir_fd=root)
    old = files.open("old", FOLDER, dir_fd=root)
    files.rename("f", "old/f", src_dir_fd=root, dst_dir_fd=root)
    files.fsync(root)
    files.mkdir("new", dir_fd=root)
    files.rename("old/f", "new/f", src_dir_fd=root, dst_dir_fd=root)
    files.fsync(old)
    assert left(files, "/new/f") == {b"data"}


def test_a_long_row_of_changes_that_are_not_synced_is_cut_anywhere() -> None:
    files, root = disk()
    for number in range(1_000):
        make(files, root, "temp", b"%d" % number, synced=True)
        files.rename("temp", "f", src_dir_fd=root, dst_dir_fd=root)
    assert {None, b"999"} < left_by(files, "/f", 20)


def test_a_folder_that_was_not_synced_takes_what_is_in_it_along() -> None:
    files, root = disk()
    files.mkdir("a", dir_fd=root)
    inner = files.open("a", FOLDER, dir_fd=root)
    make(files, inner, "f", b"data", synced=True)
    files.fsync(inner)
    assert left(files, "/a/f") == {b"data", None}


def test_fdatasync_keeps_content_and_may_lose_the_time() -> None:
    files, root = disk()
    fd = make(files, root, "f", b"data")
    files.fdatasync(fd)
    files.fsync(root)
    assert left(files, "/f") == {b"data"}
    times = {files.after_crash("power", random.Random(s)).find("/f").mtime_ns for s in range(20)}
    assert len(times) == 2


def test_the_same_chance_leaves_the_same() -> None:
    files, root = disk()
    for name in "abcdef":
        make(files, root, name, name.encode() * 2000)
    trees = [files.after_crash("power", random.Random(7)) for _ in range(2)]
    found = [[(n, f.data) for n, f in sorted(tree.root.entries.items())] for tree in trees]
    assert found[0] == found[1]
