"""Outputs on a disk that several hosts share: no look before a rename, no lock on one host only."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import pytest

from tests.outputs.faulty import FaultySystem, files_in
from trio_ckpt import OutputError, OutputExistsError
from trio_ckpt.outputs import AppendFile, OutputDir, System
from trio_ckpt.outputs._mounts import find_options, options_of

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 22 0:52 /export /mnt/nfs\\0401 rw,noatime - nfs4 10.0.0.1:/export rw,vers=4.2,local_lock=none
41 22 0:53 / /mnt/old rw - nfs 10.0.0.1:/old rw,vers=3,nolock,local_lock=all
42 22 0:54 / /scratch rw master:5 - lustre 10.0.0.2@tcp:/s rw,localflock,lazystatfs
43 22 0:54 /a /bound ro - lustre 10.0.0.2@tcp:/s rw,localflock,lazystatfs
a line of another kind
"""


class SharedSystem(System):
    """The calls of a host that shares the disk."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def mount_options(self, fd: int) -> frozenset[str]:
        return frozenset(self.options)


def shared(root: Path, system: System, *, is_shared: bool = True) -> OutputDir:
    outdir = OutputDir.open(root, system=system)
    outdir.belong_to("run", 2, is_shared=is_shared)
    return outdir


class LateSystem(SharedSystem):
    """Another host gives a file the name just before this one does."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def _come_before(self, goal: str) -> None:
        (self.root / goal).write_bytes(b"of the other host")

    def link(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._come_before(goal)
        super().link(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def rename(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._come_before(goal)
        super().rename(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


def test_a_first_writing_replaces_nothing_at_any_instant(root: Path) -> None:
    with closing(shared(root, LateSystem(root))) as outdir:
        with pytest.raises(OutputExistsError, match="it was not overwritten"):
            outdir.write("a", b"late", is_new=True)
        assert files_in(root) == {"a": b"of the other host"}
        outdir.write("a", b"replaced on purpose")
        assert files_in(root) == {"a": b"replaced on purpose"}


class LostAnswers(SharedSystem):
    """A link is made, and its answer lost: asked again, the server says that it is there."""

    def link(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        super().link(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        raise FileExistsError(errno.EEXIST, "File exists")


class WithoutLinks(SharedSystem):
    """A file system without hard links."""

    def link(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("system", [LostAnswers(), WithoutLinks(), SharedSystem()])
def test_a_new_file_is_there_whatever_links_do(root: Path, system: System) -> None:
    with closing(shared(root, system)) as outdir:
        written = outdir.write("a/b", b"content", is_new=True)
        assert files_in(root) == {"a/b": b"content"}, "no temporary file is left"
        assert outdir.check(written, "sha256") is None
        assert (root / "a" / "b").stat().st_nlink == 1


def test_any_call_that_fails_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    seen = set[str]()
    for k in range(1, 100):
        root = tmp_path / str(k)
        system = FaultySystem()
        with closing(shared(root, system)) as outdir:
            system.count, system.fail_at, system.error = 0, k, OSError(errno.EIO, "broken")
            error: OutputError | None = None
            try:
                outdir.write("a", b"content", is_new=True)
            except OutputError as raised:
                error = raised
            seen.add(system.failed)
            system.fail_at = 0
            outdir.belong_to("run", 3, is_shared=True)
            outdir.remove_orphans()
            assert files_in(root) in ({"a": b"content"}, {}), (k, system.failed)
            assert error is not None or files_in(root), (k, system.failed)
        if not system.failed:
            break
    assert seen >= {"link", "unlink", "fsync", "pwrite", "open"}


# -- locks -------------------------------------------------------------------------------------


class NoLocks(SharedSystem):
    """A file system that knows no locks."""

    def lock(self, fd: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("system", "why"),
    [
        (NoLocks(), "has no locks"),
        (SharedSystem("rw", "nolock"), r"stay on this host \(nolock\)"),
        (SharedSystem("rw", "localflock"), r"stay on this host \(localflock\)"),
        (SharedSystem("vers=3", "local_lock=all"), "stay on this host"),
    ],
)
def test_an_append_needs_a_lock_that_crosses_hosts(root: Path, system: System, why: str) -> None:
    with closing(shared(root, system)) as outdir, pytest.raises(OutputError, match=why):
        AppendFile.open(outdir, "lines", 0)
    with (
        closing(shared(root, system, is_shared=False)) as outdir,  # the run stays on its host
        closing(AppendFile.open(outdir, "lines", 0)) as file,
    ):
        file.append([b"x"])


@pytest.mark.parametrize("options", [(), ("rw", "local_lock=none"), ("rw", "flock")])
def test_an_append_is_taken_where_locks_cross_hosts(root: Path, options: tuple[str, ...]) -> None:
    with closing(shared(root, SharedSystem(*options))) as outdir:
        AppendFile.open(outdir, "lines", 0).close()


@pytest.mark.parametrize(
    ("minor", "some"),
    [
        (52, {"vers=4.2", "local_lock=none", "noatime"}),
        (53, {"nolock", "local_lock=all"}),
        (54, {"localflock", "ro", "rw"}),
    ],
)
def test_the_options_of_a_mount_are_found_by_its_device(minor: int, some: set[str]) -> None:
    assert find_options(MOUNTS, 0, minor) >= some
    assert find_options(MOUNTS, 0, 99) == frozenset()


def test_a_system_without_a_list_of_mounts_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_ckpt.outputs._mounts.MOUNTS", "/no/such/file")
    assert options_of(Path("/").stat().st_dev) == frozenset()
