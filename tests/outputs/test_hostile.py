"""Another user who may write to the output folder swaps names while the library works in it.

Every step goes from an open folder to a name in it, and follows no link; so a folder that is
swapped for a link after it was opened is still the folder that was opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.outputs.faulty import CALLS, files_in
from trio_ckpt._journal.record import Output
from trio_ckpt._util.errors import OutputError
from trio_ckpt.outputs import AppendFile, OutputDir, System

SECRET = b"a secret of another user"


class SwappingSystem(System):
    """Before its k-th call, another user swaps a name below the folder for a link."""

    def __init__(self) -> None:
        self.count, self.swap_at = 0, 0
        self.swap: Callable[[], object] = lambda: None

    def __getattribute__(self, name: str) -> Any:
        if name in CALLS:
            self.count += 1
            if self.count == self.swap_at:
                self.swap()
        return super().__getattribute__(name)


def _append(outdir: OutputDir) -> None:
    file = AppendFile.open(outdir, "d/f", 0)
    try:
        file.append([b"line\n"])
    finally:
        file.close()


WORK: dict[str, Callable[[OutputDir], object]] = {
    "write": lambda outdir: outdir.write("d/f", b"new"),
    "write new": lambda outdir: outdir.write("d/new", b"new"),
    "append": _append,
    "adopt": lambda outdir: outdir.adopt("d/f"),
    "check": lambda outdir: outdir.check(Output("d/f", 3, 0, "0" * 64), "sha256"),
    "read": lambda outdir: outdir.read("d/f", 100),
    "archive": lambda outdir: outdir.archive(["d/f"], "old"),
    "remove orphans": lambda outdir: outdir.remove_orphans(),
}


@pytest.mark.parametrize("victim", ["d", "d/f", ".archive"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_name_that_becomes_a_link_meanwhile_leads_nowhere(
    work: Callable[[OutputDir], object], victim: str, tmp_path: Path
) -> None:
    """At any call; nothing outside is read, written, moved or removed."""
    for k in range(1, 100):
        root, outside = tmp_path / f"out{k}", tmp_path / f"outside{k}"
        outside.mkdir()
        (outside / "f").write_bytes(SECRET)
        (outside / ".f.ckpt-tmp-0123456789abcdef").write_bytes(SECRET)
        (root / "d").mkdir(parents=True)
        (root / "d" / "f").write_bytes(b"old")
        system = SwappingSystem()

        def swap(place: Path = root / victim, goal: Path = outside) -> None:
            with suppress(FileNotFoundError):
                place.rename(place.with_name("was"))
            place.symlink_to(goal / "f" if victim == "d/f" else goal)

        system.swap = swap
        with OutputDirs(root, system) as outdir:
            system.count, system.swap_at = 0, k
            found: object = None
            with suppress(OutputError):
                found = work(outdir)
            is_over = system.count < k
            system.swap_at = 0
        assert SECRET not in (found, getattr(found, "content", None))
        assert files_in(outside) == {"f": SECRET, ".f.ckpt-tmp-0123456789abcdef": SECRET}
        if is_over:
            assert k > 2
            return
    raise AssertionError("the work does not end")


class OutputDirs:
    """An output folder for a block."""

    def __init__(self, root: Path, system: System) -> None:
        self.outdir = OutputDir.open(root, system=system)

    def __enter__(self) -> OutputDir:
        return self.outdir

    def __exit__(self, *_: object) -> None:
        self.outdir.close()


def test_an_append_file_with_a_second_name_is_refused(outdir: OutputDir, root: Path) -> None:
    """It is written in its place: a change would be one of the other file, a backup say."""
    outdir.write("log", b"lines")
    os.link(root / "log", root.parent / "backup")
    with pytest.raises(OutputError, match="has 2 names"):
        AppendFile.open(outdir, "log", 3)
    assert (root.parent / "backup").read_bytes() == b"lines"
    outdir.write("log", b"other")  # replaced, not written in its place
    assert (root.parent / "backup").read_bytes() == b"lines"


@pytest.mark.parametrize("umask", [0, 0o027, 0o077])
def test_outputs_and_their_folders_obey_the_umask(umask: int, tmp_path: Path) -> None:
    """They are the user's, for whom the user likes; only the store is private by itself."""
    before = os.umask(umask)
    try:
        with OutputDirs(tmp_path / "out", System()) as outdir:
            outdir.write("d/f", b"x")
            AppendFile.open(outdir, "d/log", 0).close()
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path
