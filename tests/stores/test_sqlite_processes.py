"""The SQLite store among processes: crashes and locks."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from tests.stores.tools import A
from trio_ckpt._errors import RunLockedError
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores import MemoryStore, SqliteStore, open_store

KILLS = 10

_SAVER = """
    import os, sys, trio
    from trio_ckpt.abc import Checkpoint, Fold, RunKey
    from trio_ckpt.stores import open_store

    async def main():
        store = await open_store(sys.argv[1])
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            stored = await store.read_run("run")
            heads = {entry.stream: entry.sequence for entry in stored.streams}
            names = [f'["{number}"]' for number in range(5)]
            n = min([heads.get(name, 0) for name in names])
            assert {heads.get(name, 0) for name in names} == {n}, heads
            os.write(1, b"begun\\n")
            while True:
                n += 1
                payload = b"%d" % n
                folds = [Fold(names[0], n, payload)] if n % 50 == 0 else []
                group = [Checkpoint(name, n, payload) for name in names]
                assert await store.save(run, group, folds) == [None] * 5
                os.write(1, b"%d\\n" % n)

    trio.run(main)
"""


def _start(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), path], stdout=subprocess.PIPE, text=True
    )


async def test_nothing_acknowledged_is_lost_by_kill_9(folder: Path) -> None:
    acknowledged = 0
    for kill in range(KILLS):
        process = _start(_SAVER, folder)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3 + 17 * kill)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        acknowledged = max([acknowledged, *[int(line) for line in lines[1:]]])
        store = await SqliteStore.open(folder)
        stored = await store.read_run("run")
        assert stored is not None
        assert len(stored.streams) == 5
        for entry in stored.streams:
            assert acknowledged <= entry.sequence <= acknowledged + 2
            first = entry.fold.through + 1 if entry.fold else 1
            assert [(record.sequence, record.payload) for record in entry.tail] == [
                (n, b"%d" % n) for n in range(first, entry.sequence + 1)
            ]
        acknowledged = stored.streams[0].sequence
        await store.aclose()
    assert acknowledged > 3 * KILLS


async def test_lock_of_another_process(folder: Path) -> None:
    """It is refused with that process' id, other runs are free, and it dies with it."""
    process = _start(_SAVER, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    store = await SqliteStore.open(folder)
    with pytest.raises(RunLockedError) as caught:
        async with store.lock_run("run"):
            pass
    assert caught.value.pid == process.pid
    async with store.lock_run("another") as owner:  # while the other one is saving
        for n in range(1, 20):
            run = RunKey("another", 0, owner)
            assert await store.save(run, [Checkpoint(A, n, b"")]) == [None]
    process.kill()
    process.stdout.close()
    process.wait()
    async with store.lock_run("run") as owner:
        assert owner == 2
    await store.aclose()


_READER = """
    import sqlite3, sys
    database = sqlite3.connect(sys.argv[1])
    print(database.execute("SELECT count(*) FROM log").fetchone()[0])
    database.close()
"""


async def test_second_handle_leaves_the_locks_of_the_first(folder: Path) -> None:
    """Closing any descriptor of a file drops the process' fcntl(2) locks on it.

    So only SQLite may open the database: else the next process to close it would take
    itself for the last and delete the write-ahead log under the first handle.
    """
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for n in range(1, 4):
            assert await store.save(run, [Checkpoint(A, n, b"")]) == [None]
            await (await SqliteStore.open(folder)).aclose()
            await (await SqliteStore.open(folder, create=False)).aclose()
            reader = _start(_READER, folder / "state.db")
            assert reader.communicate()[0] == f"{n}\n"
            assert (folder / "state.db-wal").exists()
    await store.aclose()


async def test_lock_file_without_a_note(folder: Path) -> None:
    """What the file says is advice; the lock alone decides."""
    store, other = await SqliteStore.open(folder), await SqliteStore.open(folder)
    async with store.lock_run("run"):
        for path in folder.glob("lock/" + "?" * 32):
            path.write_text('{"host": "elsewhere"')
        with pytest.raises(RunLockedError, match="an unknown host"):
            async with other.lock_run("run"):
                pass
    async with other.lock_run("run"):
        pass
    await store.aclose()
    await other.aclose()


async def test_many_handles_open_at_once(folder: Path) -> None:
    """Making the store is safe against others who make it at the same time."""
    stores: list[SqliteStore] = []

    async def opener() -> None:
        stores.append(await SqliteStore.open(folder))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(opener)
    for store in stores:
        await store.aclose()
    assert isinstance(await open_store("memory:"), MemoryStore)
