"""The control of the power cuts: pwrite and fdatasync, and nothing of ours.

The machine lives on when a file system is shut down, so an fdatasync that meets the shutdown may
come back without an error, and what it was for is gone.  How often it does is counted here, with
the same disk: it is no loss that a store could prevent, and in a real power cut no process sees it.

As a program it appends blocks to a file, and says of each when it began and ended.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.crash.ext4 import Disk

BLOCK_BYTES = 4096
LATEST_S = 0.05  # after the first block
NUMBER = struct.Struct("<Q")
TOLD = struct.Struct("<QQQ")  # which block, when it was begun, when it was durable


@attrs.define
class PlainCounts:
    """What was counted; a block is acknowledged when its fdatasync has returned."""

    cuts: int = 0
    before: int = 0
    lost_before: int = 0
    meanwhile: int = 0
    lost_meanwhile: int = 0
    after: int = 0


def cut_plain_writes(disk: Disk, cuts: int, seed: int) -> PlainCounts:
    """Cut the power of a disk while a program writes, so many times."""
    chance, counts = random.Random(f"plain writes {seed}"), PlainCounts()
    path = disk.root / "blocks"
    for _ in range(cuts):
        disk.mount("data=ordered")
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", __name__, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told = process.stdout.read(TOLD.size)
            time.sleep(chance.random() * LATEST_S)
            began_at = time.monotonic_ns()
            disk.cut()
            ended_at = time.monotonic_ns()
            told += process.stdout.read()  # until it meets the error
        disk.unmount()
        disk.mount("data=ordered")
        content = path.read_bytes() if path.exists() else b""
        disk.unmount()
        counts.cuts += 1
        for number, begun, durable in TOLD.iter_unpack(told):
            is_lost = not content[number * BLOCK_BYTES :].startswith(NUMBER.pack(number))
            if durable < began_at:
                counts.before += 1
                counts.lost_before += is_lost
            elif begun < ended_at:
                counts.meanwhile += 1
                counts.lost_meanwhile += is_lost
            else:
                counts.after += 1
    return counts


def _write_blocks(path: Path) -> Iterator[tuple[int, int, int]]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    number = 0
    while True:
        begun = time.monotonic_ns()
        os.pwrite(fd, NUMBER.pack(number).ljust(BLOCK_BYTES, b"x"), number * BLOCK_BYTES)
        os.fdatasync(fd)
        yield number, begun, time.monotonic_ns()
        number += 1


def main(path: Path) -> None:
    """Write until the disk is gone."""
    try:
        for told in _write_blocks(path):
            os.write(1, TOLD.pack(*told))
    except OSError:
        return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
