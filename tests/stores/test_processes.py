"""The local stores among processes: crashes, locks, and who looks at them."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from tests.stores.tools import A, path_of_blob
from trio_ckpt._journal.record import utc_now
from trio_ckpt._util.errors import RunLockedError
from trio_ckpt.abc import Checkpoint, RunKey, Store
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


@pytest.fixture(params=["sqlite", "json"])
def url(folder: Path, request: pytest.FixtureRequest) -> str:
    return f"{request.param}:{folder}"


def _start(code: str, path: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _close(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait()


async def test_a_killed_owner_owns_nothing_in_the_list_of_runs(url: str) -> None:
    store = await open_store(url)
    async with store.lock_run("another"):
        for kill in range(3):
            process = _start(_SAVER, url)
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            assert process.stdout.readline() != ""  # something is saved
            runs = await store.list_runs()
            assert [(run.run_id, run.is_owned) for run in runs] == [
                ("another", True),
                ("run", True),
            ]
            assert runs[1].owner == kill + 1
            process.send_signal(signal.SIGKILL)
            _close(process)
            runs = await store.list_runs()
            assert [run.is_owned for run in runs] == [True, False]
    assert not any(run.is_owned for run in await store.list_runs())
    await store.aclose()


async def test_nothing_acknowledged_is_lost_by_kill_9(url: str) -> None:
    acknowledged = 0
    for kill in range(KILLS):
        process = _start(_SAVER, url)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3 + 17 * kill)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        _close(process)
        acknowledged = max([acknowledged, *[int(line) for line in lines[1:]]])
        store = await open_store(url)
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


async def test_lock_of_another_process(url: str) -> None:
    """It is refused with that process' id, other runs are free, and it dies with it."""
    began = utc_now() - timedelta(seconds=1)
    process = _start(_SAVER, url)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    store = await open_store(url)
    seen = await store.read_owner("run")
    assert seen is not None
    assert (seen.host, seen.pid) == (socket.gethostname(), process.pid)
    assert began <= seen.since <= utc_now()
    with pytest.raises(RunLockedError) as caught:
        async with store.lock_run("run"):
            pass
    assert caught.value.pid == process.pid
    async with store.lock_run("another") as owner:  # while the other one is saving
        for n in range(1, 20):
            run = RunKey("another", 0, owner)
            assert await store.save(run, [Checkpoint(A, n, b"")]) == [None]
    process.kill()
    _close(process)
    assert await store.read_owner("run") is None  # though its words are still in the file
    assert any(path.read_text() for path in Path(url.partition(":")[2]).glob("lock/*"))
    async with store.lock_run("run") as owner:
        assert owner == 2
    await store.aclose()


_LOCKER = """
    import select, sys, trio
    from trio_ckpt.stores import open_store

    async def main():
        store = await open_store(sys.argv[1])
        n = 0
        while n < 200 or not select.select([sys.stdin], [], [], 0)[0]:
            n += 1
            async with store.lock_run("run") as owner:
                assert owner == n
        await store.aclose()

    trio.run(main)
"""


async def test_reading_the_owner_from_another_process_refuses_no_lock(url: str) -> None:
    """While one process takes and gives back a run, another looks all the time."""
    store = await open_store(url)
    process = _start(_LOCKER, url)
    assert process.stdin is not None
    seen: set[int | None] = set()
    while process.poll() is None:
        owner = await store.read_owner("run")
        seen.add(owner.pid if owner is not None else None)
        if len(seen) == 2 and not process.stdin.closed:
            process.stdin.close()  # which tells it to end
    _close(process)
    assert process.returncode == 0
    assert seen == {None, process.pid}
    await store.aclose()


_PRUNER = """
    import os, sys, trio
    from trio_ckpt.abc import Checkpoint, RunKey
    from trio_ckpt.stores import open_store

    async def main():
        store = await open_store(sys.argv[1])
        async with store.lock_run("run") as owner:
            stored = await store.read_run("run")
            n = stored.generation
            os.write(1, b"begun\\n")
            while True:
                n += 1
                run = RunKey("run", n, owner)
                group = [Checkpoint("s", k, b"%d %d" % (n, k)) for k in range(1, 30)]
                assert await store.save(run, group) == [None] * 29
                os.write(1, b"%d\\n" % n)
                await store.prune(run, keep=2)

    trio.run(main)
"""


async def test_kill_9_while_pruning(url: str) -> None:
    """A generation is there whole or not at all, and those that are kept are there."""
    for kill in range(KILLS):
        process = _start(_PRUNER, url)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2 + kill)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        _close(process)
        newest = int(lines[-1])
        store = await open_store(url)
        summaries = await store.list_runs()
        there = [n for n in range(newest + 2) if await store.read_run("run", n) is not None]
        assert there[-1] - newest in (0, 1)
        assert there == list(range(there[0], there[-1] + 1))
        assert there[0] <= max(there[-1] - 1, 0)
        for n in there[max(0, 1 - there[0]) :]:  # generation 0 has nothing in it
            page = await store.history("run", "s", generation=n)
            found = [record.payload for record in reversed(page.records)]
            assert found == [b"%d %d" % (n, k) for k in range(1, 30)]
        assert summaries[0].generation == there[-1]
        await store.aclose()


_KEEPER = """
    import hashlib, os, sys, trio
    from trio_ckpt.abc import Checkpoint, RunKey
    from trio_ckpt.stores import open_store

    def blob(k):
        return b"%d" % (k % 7) * 300_000

    async def main():
        store = await open_store(sys.argv[1])
        async with store.lock_run("run") as owner:
            stored = await store.read_run("run")
            n = stored.streams[0].sequence if stored.streams else 0
            run = RunKey("run", 0, owner)
            os.write(1, b"begun\\n")
            while True:
                n += 1
                names = []
                for k in (n, n + 1):
                    names.append(hashlib.sha256(blob(k)).hexdigest())
                    await store.put_blob(run, [blob(k)[:1000], blob(k)[1000:]])
                one = Checkpoint("s", n, b"%d" % n, blobs=tuple(names))
                assert await store.save(run, [one]) == [None]
                os.write(1, b"%d 0\\n" % n)
                await store.drop_blobs(run, "s", [n - 1])
                os.write(1, b"%d 1\\n" % n)

    trio.run(main)
"""


async def test_kill_9_while_putting_saving_and_dropping(url: str, folder: Path) -> None:
    """What is acknowledged as saved or dropped is so; each blob that is named is whole."""
    newest, is_dropped = 0, 1
    for kill in range(KILLS):
        process = _start(_KEEPER, url)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2 + kill)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        _close(process)
        newest, is_dropped = max(
            (newest, is_dropped), *[tuple(map(int, line.split())) for line in lines[1:]]
        )
        store = await open_store(url)
        page = await store.history("run", "s")
        assert page.records[0].sequence - newest in (0, 1)
        assert [record.payload for record in page.records] == [
            b"%d" % n for n in range(page.records[0].sequence, 0, -1)
        ]
        # One may not have been dropped for each time that it was killed before it could be.
        named = {record.sequence: record.blobs for record in page.records if record.blobs}
        assert len(named) <= 2 + kill
        assert newest in named or page.records[0].sequence > newest
        assert not (is_dropped and newest - 1 in named)
        for digest in {digest for blobs in named.values() for digest in blobs}:
            assert hashlib.sha256(await store.read_blob("run", digest)).hexdigest() == digest
        async with store.lock_run("run"):
            there = {path.name for path in folder.glob("blobs/*/*")}
            assert there == {digest for blobs in named.values() for digest in blobs}
        await store.aclose()
        newest, is_dropped = page.records[0].sequence, 0
    assert newest > KILLS


_HOLDER = """
    import os, sys, trio
    from trio_ckpt.abc import RunKey
    from trio_ckpt.stores import open_store

    async def main():
        store = await open_store(sys.argv[1])
        async with store.lock_run("run") as owner:
            await store.put_blob(RunKey("run", 0, owner), b"blob")
            os.write(1, b"put\\n")
            os.read(0, 1)

    trio.run(main)
"""


async def test_blob_of_a_process_that_was_killed_before_it_named_it(url: str, folder: Path) -> None:
    """The next owner of the run removes it, and no other one."""
    path = path_of_blob(folder, hashlib.sha256(b"blob").hexdigest())
    process = _start(_HOLDER, url)
    assert process.stdout is not None
    assert process.stdout.readline() == "put\n"
    store = await open_store(url)
    for is_killed in (False, True):
        async with store.lock_run("other"):
            assert path.exists()
        if not is_killed:
            process.kill()
            process.wait()
    async with store.lock_run("run"):
        assert not path.exists()
    _close(process)
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


async def test_lock_file_without_a_note(url: str, folder: Path) -> None:
    """What the file says is advice; the lock alone decides."""
    store, other = await open_store(url), await open_store(url)
    async with store.lock_run("run"):
        for path in folder.glob("lock/" + "?" * 32):
            path.write_text('{"host": "elsewhere"')
        with pytest.raises(RunLockedError, match="an unknown host"):
            async with other.lock_run("run"):
                pass
        owner = await other.read_owner("run")
        assert owner is not None
        assert (owner.host, owner.pid) == ("an unknown host", 0)
        assert abs(owner.since - utc_now()) < timedelta(minutes=1)
    for path in folder.glob("lock/" + "?" * 32):
        path.write_text('{"host": "h", "pid": 1, "since": "2020-01-01T00:00:00+00:00"}')
    assert await other.read_owner("run") is None
    async with other.lock_run("run"):
        pass
    await store.aclose()
    await other.aclose()


async def test_looking_writes_nothing(url: str, folder: Path) -> None:
    store = await open_store(url)
    assert await store.read_owner("run") is None
    assert not list(folder.glob("lock/" + "?" * 32))
    async with store.lock_run("run"):
        (path,) = folder.glob("lock/" + "?" * 32)
        before = (path.stat(), path.read_bytes())
        assert await store.read_owner("run") is not None
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (before[0].st_mtime_ns, before[1])
    await store.aclose()


async def test_many_handles_open_at_once(url: str) -> None:
    """Making the store is safe against others who make it at the same time."""
    stores: list[Store] = []

    async def opener() -> None:
        stores.append(await open_store(url))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(opener)
    for store in stores:
        await store.aclose()
    assert isinstance(await open_store("memory:"), MemoryStore)
