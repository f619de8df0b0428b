"""Nothing of a run goes over a fork: a child that outlives its parent keeps nothing of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import trio_ckpt
from tests.hangs import PROGRAM_S
from trio_ckpt.stores import open_store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")


FORK = """
    import multiprocessing, os, subprocess, sys
    from concurrent.futures import ProcessPoolExecutor

    def where():
        return os.getpid()

    def fork(how):
        "A child that goes on until it is killed; its id."
        if how == "os.fork":
            end, begin = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(begin, b"!")  # what is done in a fork is done: on a busy machine it takes
                wait()
            os.read(end, 1)
            return child
        if how == "ProcessPoolExecutor":
            global pool
            pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
            return pool.submit(where).result()
        sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
        options = {"close_fds": False} if how == "close_fds=False" else {"preexec_fn": where}
        return subprocess.Popen(sleeping, **options).pid

    def wait():
        import time
        while True:
            time.sleep(600)
"""

RUN = """
    import trio, trio_ckpt

    async def main():
        store, outputs, how = sys.argv[1:]
        async with trio_ckpt.open_run("r", store=store, output_dir=outputs) as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3)):
                    batch.append_json("lines.jsonl", batch.index)
                    if batch.index == 1:
                        print(fork(how), flush=True)
                        os.kill(os.getpid(), 9)
                    batch.complete()

    trio.run(main)
"""


@contextlib.contextmanager
def killed(code: str, *arguments: object) -> Iterator[list[int]]:
    """Run a program that prints numbers and ends with kill -9; its children live for a block."""
    program = textwrap.dedent(FORK) + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    numbers = [int(word) for word in process.stdout.readline().split()]
    assert process.wait(PROGRAM_S) == -signal.SIGKILL
    process.stdout.close()
    try:
        yield numbers
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(numbers[0], signal.SIGKILL)


def run_to_its_end(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )


@pytest.fixture(params=["sqlite", "json"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return f"{request.param}:{tmp_path / 'store'}"


HOWS = ["os.fork", "ProcessPoolExecutor", "close_fds=False", "preexec_fn"]


@pytest.mark.parametrize("how", HOWS)
async def test_run_of_a_killed_parent_is_free(url: str, tmp_path: Path, how: str) -> None:
    """Its lock, its files and its append file: the next start has them while a child lives."""
    with killed(RUN, url, tmp_path / "out", how) as (child,):
        store = await open_store(url)
        assert await store.read_owner("r") is None
        async with (
            trio_ckpt.open_run("r", store=store, output_dir=tmp_path / "out") as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(3)):
                batch.append_json("lines.jsonl", batch.index)
                batch.complete()
        assert run.exit_code == 0
        os.kill(child, 0)  # it is there all the time
        await store.aclose()
    assert (tmp_path / "out" / "lines.jsonl").read_text() == "0\n1\n2\n"


LISTEN = """
    import functools, trio, trio_ckpt.monitor, trio_ckpt.remote
    from trio_ckpt.stores import open_store

    async def main():
        store = await open_store(sys.argv[1])
        async with trio.open_nursery() as nursery:
            serve = {"monitor": functools.partial(trio_ckpt.monitor.serve, store, port=0),
                     "foreman": functools.partial(
                         trio_ckpt.remote.serve_foreman, store, secret="s" * 32, port=0)}
            served = await nursery.start(serve[sys.argv[2]])
            async with await trio.open_tcp_stream("127.0.0.1", served.port):
                await trio.testing.wait_all_tasks_blocked(0.05)  # it is accepted
                print(fork("os.fork"), served.port, flush=True)
                os.kill(os.getpid(), 9)

    import trio.testing
    trio.run(main)
"""


@pytest.mark.parametrize("service", ["monitor", "foreman"])
def test_port_of_a_killed_parent_is_free(tmp_path: Path, service: str) -> None:
    with killed(LISTEN, tmp_path / "store", service) as (_, port), socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as trio does
        again.bind(("127.0.0.1", port))
        again.listen()


MAP = """
    import trio
    from trio_ckpt.engines import map_tasks

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(map_tasks, "tests.engines.jobs:count_slowly", [sys.argv[1]])
            while not (marks := os.listdir(sys.argv[1])):
                await trio.sleep(0.01)
            print(fork("os.fork"), marks[0].partition("-")[2], flush=True)
            os.kill(os.getpid(), 9)

    trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
async def test_workers_end_with_a_killed_parent_that_forked(tmp_path: Path) -> None:
    with killed(MAP, tmp_path) as (_, worker), trio.fail_after(PROGRAM_S):
        while _is_running(worker):  # noqa: ASYNC110  # another process tells nothing
            await trio.sleep(0.01)


def _is_running(pid: int) -> bool:
    """Whether a process does something yet; where no init reaps, its entry stays."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


GO_ON = """
    import os, sys, trio, trio_ckpt

    async def refused(call):
        try:
            await call
        except trio_ckpt.TrioCkptError as error:
            print(repr(error.__cause__ or error), file=sys.stderr)

    async def main():
        async with trio_ckpt.open_run("r", store=sys.argv[1], output_dir=sys.argv[2]) as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3)):
                    batch.append_json("lines.jsonl", batch.index)
                    if batch.index == 1:
                        if child := os.fork():
                            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
                            os._exit(0)  # the child has been in trio's loop, which is shared
                        await refused(batch.write_json("1.json", 1))
                        batch.complete()
                        await refused(batch.confirm())
                        os._exit(7)
                    batch.complete()

    trio.run(main)
"""


async def test_child_that_goes_on_in_the_run_changes_nothing(url: str, tmp_path: Path) -> None:
    """What it asks for ends with an error, and does not hang."""
    done = run_to_its_end(GO_ON, url, tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
    assert done.stderr.count("ForkedProcessError('this process was forked") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lines.jsonl"]
    assert (tmp_path / "out" / "lines.jsonl").read_text() == "0\n"
    async with (
        trio_ckpt.open_run("r", store=url, output_dir=tmp_path / "out") as run,
        run.open_stream("s") as stream,
    ):
        assert list(stream.progress.confirmed) == [0]
        assert not stream.progress.failures


USE_ELSEWHERE = """
    import os, sys, trio, trio_ckpt
    from trio_ckpt.abc import Checkpoint, RunKey
    from trio_ckpt.stores import MemoryStore, open_store

    async def make():
        store = MemoryStore() if sys.argv[1] == "memory:" else await open_store(sys.argv[1])
        async with store.lock_run("r") as owner:
            await store.save(RunKey("r", 0, owner), [Checkpoint("s", 1, b"1")])
        return store

    async def lock(store):
        async with store.lock_run("r"):
            pass

    async def use(store):
        for func, *arguments in (
            (lock, store), (store.read_run, "r"), (store.list_runs,),
            (store.put_blob, RunKey("r", 0, 1), b"blob"),
            (store.save, RunKey("r", 0, 1), [Checkpoint("s", 2, b"2")]),
        ):
            try:
                await func(*arguments)
            except trio_ckpt.ForkedProcessError:
                print("refused")

    store = trio.run(make)
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    trio.run(use, store)
"""


@pytest.mark.parametrize("kind", ["sqlite", "json", "memory"])
def test_child_cannot_use_a_store_of_its_parent(tmp_path: Path, kind: str) -> None:
    where = "" if kind == "memory" else tmp_path / "store"
    done = run_to_its_end(USE_ELSEWHERE, f"{kind}:{where}")
    assert (done.returncode, done.stdout) == (0, 5 * "refused\n"), done.stderr


OPEN_OWN = """
    import os, sys, trio, trio_ckpt

    async def work(name, forks):
        async with trio_ckpt.open_run(name, store=sys.argv[1]) as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3)):
                    if forks and batch.index == 1:
                        code = await trio.to_thread.run_sync(fork_and_wait)
                        assert code == 0, code
                    batch.complete()
        return run.exit_code

    def fork_and_wait():
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(trio.run(work, "child", False))

    sys.exit(trio.run(work, "parent", True))
"""


async def test_child_opens_a_run_of_its_own(url: str) -> None:
    """In the same store, at the same time: it is a process like any other."""
    done = run_to_its_end(OPEN_OWN, url)
    assert done.returncode == 0, done.stderr
    store = await open_store(url)
    assert {(run.run_id, run.streams) for run in await store.list_runs()} == {
        ("child", 2),
        ("parent", 2),
    }
    await store.aclose()


SETTLE = """
    import os, sys, trio, trio_ckpt

    async def main():
        async with trio_ckpt.open_run("r", store="memory:") as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(2)):
                    if batch.index == 0:
                        settle = lambda: fork_and_settle(batch)
                        assert await trio.to_thread.run_sync(settle) == 5
                    batch.complete()
        return run.exit_code

    def fork_and_settle(batch):
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            batch.complete()  # trio's thread, which would carry it out, is not here
        except trio_ckpt.ForkedProcessError:
            os._exit(5)

    sys.exit(trio.run(main))
"""


def test_child_of_a_thread_cannot_settle_a_batch() -> None:
    done = run_to_its_end(SETTLE)
    assert done.returncode == 0, done.stderr


INSIDE = """
    import gc, os, sys
    from pathlib import Path
    from trio_ckpt.abc import Checkpoint, RunKey
    from trio_ckpt.stores._sqlite.writer import SqliteWriter

    writer = SqliteWriter(Path(sys.argv[1]), durability="full", create=True)
    run = RunKey("r", 0, writer.raise_owner("r"))

    def chain(first, last):
        return [Checkpoint("s", n, b"%d" % n * 1000) for n in range(first, last)]

    writer.save(run, chain(1, 2), [], None)
    writer._begin()
    known = writer._fence(run)
    writer._cursor.execute("PRAGMA cache_size = 1")  # so that some is in the log already
    writer._append(known, chain(2, 400))
    child = os.fork()
    if child == 0:
        del writer
        gc.collect()
        sys.exit()
    os.waitpid(child, 0)
    writer._commit(lambda: False)
    writer.save(run, chain(400, 420), [], None)
    writer.close()
"""


def test_fork_inside_a_transaction_damages_no_database(tmp_path: Path) -> None:
    """A child that closed its parent's connection would roll back what it shares with it."""
    done = run_to_its_end(INSIDE, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / "state.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM log").fetchall() == [(419,)]


POOL = """
    import multiprocessing, os, signal, sys, trio, trio_ckpt

    async def main():
        names = ["SIGTERM", "SIGINT", "SIGUSR1"]
        async with trio_ckpt.open_run(
            "r", store=sys.argv[1], handle_signals=True, stop_signals=names
        ):
            with multiprocessing.get_context("fork").Pool(1) as pool:
                for number in (signal.SIGTERM, signal.SIGUSR1):
                    print(pool.apply(signal.getsignal, (number,)) == signal.SIG_DFL)

    trio.run(main)
"""


def test_pool_of_processes_ends_inside_a_run(url: str) -> None:
    """Its workers are ended by signals which the run has taken for itself."""
    done = run_to_its_end(POOL, url)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr


def test_descriptor_that_is_being_opened_goes_over_no_fork(tmp_path: Path) -> None:
    """A fork between opening and noting it waits: else the child would keep what locks it."""
    program = """
        import os, sys, threading
        from trio_ckpt._util.forks import open_unshared

        codes = []

        def fork():
            child = os.fork()
            if not child:
                found = [fd for fd in range(3, 64) if is_it(fd)]
                os._exit(1 if found else 0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        def is_it(fd):
            try:
                return os.path.samestat(os.fstat(fd), os.stat(sys.argv[1]))
            except OSError:
                return False

        def open_slowly():
            fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
            thread.start()
            thread.join(0.5)
            return fd

        thread = threading.Thread(target=fork)
        fd = open_unshared(open_slowly)
        thread.join()
        assert codes == [0] and is_it(fd), codes
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "locked")]
    assert subprocess.run(command, timeout=PROGRAM_S).returncode == 0
