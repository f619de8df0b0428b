"""The recorder: what it counts, writes down and breaks, seen from a process that it watches."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.crash.disk import replay, write_tree
from tests.crash.recorder import NO_COMPILER, Kind, Operation, build, has_compiler, read_log
from tests.hangs import PROGRAM_S
from trio_ckpt.testing._inodes import File, Write

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the recorder is for Linux"),
    pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER),
]

HEAD = """
import json, os, sys, threading
from pathlib import Path
from tests.crash.recorder import *

root, log, plan = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
recorder = Recorder()
recorder.watch(root, log)
recorder.arm(eval(plan))
os.chdir(root)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def run(
    library: Path, root: Path, program: str, plan: str = "NO_PLAN"
) -> subprocess.CompletedProcess[str]:
    """Run lines of Python below the recorder; the log is beside the folder."""
    return subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(program), str(root), f"{root}.log", plan],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )


def log_of(root: Path) -> list[Operation]:
    return list(read_log(Path(f"{root}.log")))


EVERYTHING = """
    os.mkdir("a")
    fd = os.open("a/f", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"0123456789")
    os.pwrite(fd, b"ab", 4)
    os.writev(fd, [b"x", b"", b"yz"])
    os.pwritev(fd, [b"-", b"+"], 1)
    os.fsync(fd)
    os.ftruncate(fd, 11)
    os.fdatasync(fd)
    again = os.dup(fd)
    os.close(fd)
    os.write(again, b"!")  # behind what was cut
    recorder.mark("said")
    folder = os.open("a", os.O_RDONLY)
    os.rename("f", "g", src_dir_fd=folder, dst_dir_fd=folder)
    os.rename("a/g", "h")
    os.fsync(folder)
    with open("l", "ab") as file:
        file.write(b"line")
    with open("l", "ab", buffering=0) as file:
        file.write(b"s")
    with open("gone", "wb"):
        pass
    with open("h", "r+b") as file:
        file.truncate(3)
    open("h", "wb").close()
    Path("gone").unlink()
    os.mkdir("b")
    os.rmdir("b")
    Path("/dev/null").write_bytes(b"elsewhere")
"""


def test_the_log_leads_to_what_is_there(library: Path, root: Path) -> None:
    done = run(library, root, EVERYTHING)
    assert done.returncode == 0, done.stderr
    disk = replay(log_of(root))
    real = {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }
    assert disk.contents() == real == {"a": None, "h": b"", "l": b"lines"}
    assert disk.marks == ["said"]
    kinds = {operation.kind for operation in log_of(root)}
    assert kinds == set(Kind) - {Kind.LOOK, Kind.LINK}


def test_a_process_ends_between_two_operations_of_its_threads(library: Path, root: Path) -> None:
    program = """
        import threading

        def write():
            while True:
                Path("f").write_bytes(bytes(4_000_000))

        threading.Thread(target=write, daemon=True).start()
        import time
        time.sleep(0.05)
        os._exit(0)
    """
    for _ in range(10):
        Path(f"{root}.log").unlink(missing_ok=True)
        (root / "f").unlink(missing_ok=True)
        assert run(library, root, program).returncode == 0
        left = (root / "f").read_bytes()
        assert replay(log_of(root)).contents()["f"] == left


def test_what_was_synced_is_what_a_cut_leaves_at_least(
    library: Path, root: Path, tmp_path: Path
) -> None:
    run(library, root, EVERYTHING)
    upto = next(n for n, one in enumerate(log_of(root), 1) if one.kind is Kind.DATASYNC)
    disk = replay(log_of(root)[:upto])
    disk.root.sync()
    disk.root.entries["a"].sync()
    goal = tmp_path / "left"
    for seed in range(20):
        goal.mkdir()
        write_tree(disk.cut(seed), goal)
        assert (goal / "a" / "f").read_bytes() == b"0-+3ab6789x"
        (goal / "a" / "f").unlink()
        (goal / "a").rmdir()
        goal.rmdir()


WRITES = """
    fd = os.open("f", os.O_WRONLY | os.O_CREAT)
    written, errors = [], []
    for part in (b"aaaa", b"bbbb", b"cccc"):
        try:
            written.append(os.write(fd, part))
        except OSError as error:
            errors.append(error.errno)
    print(json.dumps([written, errors]))
"""


@pytest.mark.parametrize(
    ("action", "at", "left"),
    [
        ("KILL_BEFORE", 1, None),
        ("KILL_AFTER", 1, b""),
        ("KILL_BEFORE", 3, b"aaaa"),
        ("KILL_HALF", 3, b"aaaabb"),
        ("KILL_AFTER", 3, b"aaaabbbb"),
    ],
)
def test_a_kill_at_the_kth_operation_lets_none_more_through(
    library: Path, root: Path, action: str, at: int, left: bytes | None
) -> None:
    done = run(library, root, WRITES, f"Plan(Action.{action}, {at})")
    assert done.returncode == -signal.SIGKILL
    path = root / "f"
    assert (path.read_bytes() if path.exists() else None) == left


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("NO_PLAN", [[4, 4, 4], []]),
        ("Plan(Action.FAIL, 2, Kind.WRITE, 5)", [[4, 4], [errno.EIO]]),
        ("Plan(Action.FAIL, 2, Kind.WRITE, 28, True)", [[4], [errno.ENOSPC, errno.ENOSPC]]),
        ("Plan(Action.SHORT, 2, Kind.WRITE)", [[4, 2, 4], []]),
        ("Plan(Action.FILL, 2, Kind.WRITE, 28, True)", [[4, 2], [errno.ENOSPC]]),
    ],
)
def test_what_fails_is_what_the_plan_says(
    library: Path, root: Path, plan: str, said: list[Any]
) -> None:
    done = run(library, root, WRITES, plan)
    assert json.loads(done.stdout) == said, done.stderr
    assert replay(log_of(root)).contents() == {"f": (root / "f").read_bytes()}


def test_operations_of_many_threads_are_in_the_order_they_happened(
    library: Path, root: Path
) -> None:
    program = """
        fd = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        work = lambda n: [os.write(fd, bytes([65 + n]) * 3) for _ in range(200)]
        threads = [threading.Thread(target=work, args=[n]) for n in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(recorder.count(Kind.WRITE))
    """
    done = run(library, root, program)
    assert done.stdout == "800\n", done.stderr
    assert replay(log_of(root)).contents() == {"f": (root / "f").read_bytes()}


@pytest.mark.parametrize(
    "call",
    [
        "os.link('f', 'g')",
        "os.symlink('f', 'g')",
        "os.truncate('f', 1)",
        "os.posix_fallocate(fd, 0, 1)",
        "os.copy_file_range(os.open('/etc/passwd', 0), fd, 1)",
        "os.sendfile(fd, os.open('/etc/passwd', 0), 0, 1)",
        "__import__('mmap').mmap(fd, 1)",
    ],
)
def test_a_call_that_it_does_not_know_ends_the_process(
    library: Path, root: Path, call: str
) -> None:
    """The day the library makes one, it must not escape."""
    program = f"""
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"xx")
        {call}
    """
    done = run(library, root, program)
    assert (done.returncode, "recorder.c does not know" in done.stderr) == (97, True)


def test_what_a_failed_sync_was_for_is_never_written() -> None:
    file = File(1)
    file.change(Write(0, b"lost"), 1)
    file.lose()
    file.change(Write(4, b"kept"), 2)
    file.sync()
    assert (file.data, file.synced) == (b"lostkept", b"\0\0\0\0kept")


def test_what_a_failed_sync_was_for_is_gone_after_a_cut() -> None:
    operations = [
        Operation(Kind.MAKE, 0, "f", "", 7, 0, 0, 1, b""),
        Operation(Kind.SYNC, 0, "", "", 1, 0, 0, 0, b""),
        Operation(Kind.WRITE, 0, "f", "", 7, 0, 0, 2, b"data"),
        Operation(Kind.SYNC, errno.EIO, "f", "", 7, 0, 0, 2, b""),
        Operation(Kind.SYNC, 0, "f", "", 7, 0, 0, 2, b""),
    ]
    disk = replay(operations)
    assert disk.contents() == {"f": b"data"}
    left = {bytes(disk.cut(seed).entries["f"].data) for seed in range(50)}  # type: ignore[union-attr]  # a file
    assert b"data" not in left
    assert random.Random(0).choice(sorted(left)).strip(b"\0") == b""


def test_a_file_is_never_older_than_its_making_after_a_cut() -> None:
    operations = [
        Operation(Kind.MAKE, 0, "f", "", 7, 0, 0, 5, b""),
        Operation(Kind.SYNC, 0, "", "", 1, 0, 0, 0, b""),
        Operation(Kind.WRITE, 0, "f", "", 7, 0, 0, 9, b"data"),
        Operation(Kind.DATASYNC, 0, "f", "", 7, 0, 0, 9, b""),
    ]
    times = {replay(operations).cut(seed).entries["f"].mtime_ns for seed in range(50)}
    assert times == {5, 9}
