"""What is left after a call failed, or the process died in it."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.outputs.faulty import ERRORS, FaultySystem, Killed, files_in, sweep
from trio_ckpt._util.errors import OutputError
from trio_ckpt.outputs import OutputDir
from trio_ckpt.outputs._tree import TEMP_NAME


@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("name", ["a/f", "new/g"])
def test_a_failed_write_leaves_a_whole_file_and_no_litter(root: Path, code: int, name: str) -> None:
    failed = set()

    def write(outdir: OutputDir) -> None:
        outdir.write(name, b"longer")

    for folder, system in sweep(root, partial(OSError, code, "x"), write):
        failed.add(system.failed)
        is_renamed = f"rename {name}" in system.changes
        want = {"a/f": b"old"} | ({name: b"longer"} if is_renamed else {})
        assert files_in(folder) == want, system.failed
    assert failed >= {"open", "pwrite", "fsync", "fstat", "rename", "close"}


def test_a_killed_write_leaves_a_whole_file_and_its_litter_is_found(root: Path) -> None:
    litter = 0
    for folder, _ in sweep(root, Killed, lambda outdir: outdir.write("a/f", b"longer")):
        outdir = OutputDir.open(folder)
        removed = outdir.remove_orphans()
        outdir.close()
        assert all(TEMP_NAME.fullmatch(Path(path).name) for path in removed)
        assert files_in(folder) in ({"a/f": b"old"}, {"a/f": b"longer"})
        litter += len(removed)
    assert litter > 3


def test_the_folder_whose_fsync_failed_takes_nothing_more(root: Path) -> None:
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    outdir.write("a/f", b"1")
    system.only, system.count, system.fail_at, system.error = "fsync", 0, 2, OSError(errno.EIO, "x")
    with pytest.raises(OutputError):
        outdir.write("a/f", b"2")
    assert system.failed == "fsync"
    system.changes.clear()
    for call in (lambda: outdir.write("a/f", b"3"), lambda: outdir.adopt("a/f")):
        with pytest.raises(OutputError, match="earlier fsync"):
            call()
    assert files_in(root) == {"a/f": b"2"}
    assert "fsync a" not in system.changes
    outdir.write("b/f", b"4")
    outdir.close()


def test_a_file_whose_fsync_failed_is_not_adopted_until_replaced(root: Path) -> None:
    system = FaultySystem()
    outdir = OutputDir.open(root, system=system)
    (root / "f").write_bytes(b"x")
    system.only, system.fail_at, system.count, system.error = "fsync", 1, 0, OSError(errno.EIO, "x")
    with pytest.raises(OutputError) as caught:
        outdir.adopt("f")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(OutputError, match="earlier fsync"):
        outdir.adopt("f")
    outdir.write("f", b"y")
    assert outdir.adopt("f").size == 1
    outdir.close()


WRITER = """
import sys
from trio_ckpt.outputs import OutputDir
outdir = OutputDir.open(sys.argv[1])
print("ready", flush=True)
for n in range(1_000_000):
    outdir.write("a/f", b"%d" % (n % 10) * 300_000)
"""


def test_a_process_killed_while_it_writes_leaves_a_whole_file(root: Path) -> None:
    for attempt in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            ready = process.stdout.readline()
            time.sleep(0.03 + 0.0037 * attempt)  # somewhere in the middle of a write
            process.kill()
        assert ready == b"ready\n"
        assert process.returncode == -signal.SIGKILL
        outdir = OutputDir.open(root)
        outdir.remove_orphans()
        outdir.close()
        found = files_in(root)
        assert list(found) in ([], ["a/f"])
        assert all(len(data) == 300_000 and len(set(data)) == 1 for data in found.values())


@pytest.mark.parametrize("make_error", [partial(OSError, errno.EIO, "x"), Killed])
def test_a_failed_archive_loses_nothing_and_can_be_made_again(
    root: Path, make_error: Callable[[], BaseException]
) -> None:
    for folder, _ in sweep(root, make_error, lambda outdir: outdir.archive(["a/f"], "old")):
        assert list(files_in(folder).values()) == [b"old"]
        again = OutputDir.open(folder)
        assert again.archive(["a/f"], "old").moved == {"a/f": ".archive/old/a/f"}
        again.close()
        assert files_in(folder) == {".archive/old/a/f": b"old"}


def test_a_write_that_takes_nothing_is_an_error_not_a_loop(root: Path) -> None:
    outdir = OutputDir.open(root, system=FaultySystem(write_at_most=0))
    with pytest.raises(OutputError, match="took none of 1 bytes"):
        outdir.write("f", b"x")
    assert files_in(root) == {}
    outdir.close()
