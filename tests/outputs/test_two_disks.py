"""A folder of outputs that is a disk of its own, or a mount: the archive is on another."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.opening import begin
from tests.outputs.faulty import files_in
from trio_ckpt import Run, open_maintenance
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt.outputs import OutputDir
from trio_ckpt.outputs._system import System, SystemPath
from trio_ckpt.stores import MemoryStore


class TwoDisks(System):
    """What is in a folder named ``images`` is on another disk than all else."""

    def __init__(self) -> None:
        self.fails_after = -1

    def rename(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        disks = {_is_images(src_dir_fd), _is_images(dst_dir_fd)}
        if len(disks) == 2:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        super().rename(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        if self.fails_after == 0:
            raise OSError(errno.EIO, "Input/output error")
        self.fails_after -= 1
        super().unlink(name, dir_fd=dir_fd)


def _is_images(fd: int) -> bool:
    parts = Path(os.readlink(f"/proc/self/fd/{fd}")).parts
    return "images" in parts and ".archive" not in parts


async def collect(run: Run, text: str) -> list[int]:
    done: list[int] = []
    async with run.open_stream("s") as stream:
        async for batch in stream.batches(range(4)):
            done.append(batch.index)
            await batch.write_text(f"pages/{batch.index}", text)
            await batch.write_text(f"images/{batch.index}", text * 2)
            batch.complete()
    return done


async def redo(run: Run) -> None:
    async with run.open_stream("s") as stream:
        await stream.redo([2, 3], reason="x")


async def rewind(run: Run) -> None:
    await run.rewind(("s",), to=1, reason="x")


async def nothing(_run: Run) -> None:
    """The beginning does it."""


@pytest.mark.parametrize(
    ("change", "is_fresh", "again"),
    [(redo, False, [2, 3]), (rewind, False, [2, 3]), (nothing, True, [0, 1, 2, 3])],
)
async def test_old_outputs_on_another_disk_are_copied_into_the_archive(
    change: Callable[[Run], Awaitable[None]], is_fresh: bool, again: list[int], tmp_path: Path
) -> None:
    store, system = MemoryStore(), TwoDisks()
    place = SystemPath(str(tmp_path), system)
    async with begin(store, output_dir=place) as run:
        await collect(run, "old")
    async with begin(store, output_dir=place, fresh=is_fresh) as run:
        await change(run)
        assert await collect(run, "new") == again
    async with begin(store, output_dir=place) as run:
        assert await collect(run, "never") == []
    for index in again:
        assert (tmp_path / f"images/{index}").read_text() == "newnew"
        (kept,) = (tmp_path / ".archive").glob(f"*/images/{index}")
        assert kept.read_text() == "oldold"
    assert [finding async for finding in check_all(store) if finding.is_damage] == []


async def test_damage_on_another_disk_is_kept_aside(tmp_path: Path) -> None:
    store, system = MemoryStore(), TwoDisks()
    place = SystemPath(str(tmp_path), system)
    async with begin(store, output_dir=place) as run:
        await collect(run, "old")
    (tmp_path / "images/1").write_text("damaged")
    async with begin(store, output_dir=place) as run:
        assert await collect(run, "new") == [1]
    (kept,) = (tmp_path / ".archive").glob("*/images/1")
    assert kept.read_text() == "damaged"


async def test_a_fresh_start_that_failed_leaves_a_run_that_starts(tmp_path: Path) -> None:
    store, system = MemoryStore(), TwoDisks()
    place = SystemPath(str(tmp_path), system)
    async with begin(store, output_dir=place) as run:
        await collect(run, "old")
    system.fails_after = 2
    with pytest.raises(Exception, match="Input/output error"):
        async with begin(store, output_dir=place, fresh=True) as run:
            await collect(run, "never")
    system.fails_after = -1
    async with begin(store, output_dir=place) as run:
        assert await collect(run, "new") == [0, 1, 2, 3]
    kept = {path.read_text() for path in (tmp_path / ".archive").glob("*/images/*")}
    assert kept == {"oldold"}


async def test_a_command_begins_again_over_two_disks(tmp_path: Path) -> None:
    store, system = MemoryStore(), TwoDisks()
    place = SystemPath(str(tmp_path), system)
    async with begin(store, output_dir=place) as run:
        await collect(run, "old")
    async with open_maintenance(store, "r", output_dir=place) as maintenance:
        await maintenance.reset("x")
    assert not list((tmp_path / "images").iterdir())


def test_a_copy_that_is_cut_short_leaves_the_file_in_its_place(tmp_path: Path) -> None:
    system = TwoDisks()
    outdir = OutputDir.open(tmp_path, system=system)
    outdir.write("images/x", b"x" * 3_000_000)
    system.fails_after = 0
    with pytest.raises(Exception, match="Input/output error"):
        outdir.archive(["images/x"], "old")
    system.fails_after = -1
    outdir.archive(["images/x"], "old")
    outdir.close()
    contents = [data for name, data in files_in(tmp_path).items() if name.startswith(".archive")]
    assert set(contents) == {b"x" * 3_000_000}
    assert not (tmp_path / "images/x").exists()
