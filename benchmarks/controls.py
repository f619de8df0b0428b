"""What this disk and this machine can do: the physical controls beside every figure of ours.

    python -m benchmarks.controls [--commits 2000] [--rounds 3] [--folder .]

Standard library and trio only, nothing of ours. Each control makes ROW_BYTES durable per operation
and waits for it before the next one:

- raw_sqlite: SQLite, WAL, synchronous=FULL, one row per commit, called in line;
- thread_hop_sqlite: the same commit on one long-lived thread, each awaited by a trio task. It
  costs what no design with a thread can avoid: a queue, two wake-ups, one pass of trio's loop;
- append_fsync: an append to a log and its fsync;
- rename_fsync: a new file in place of the old one: temporary file, fsync, rename, fsync of the
  folder.

Disks are noisy from second to second, so the controls take turns, and each shows its median round.
A round should be long enough for WAL's first checkpoint, about 1,000 pages: until then the log
grows, and a commit also pays for the file's new length.
"""

import argparse
import os
import queue
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import attrs
import outcome
import trio

# With its key and header a row of this payload takes about 60 bytes, as one of our batches does.
ROW_BYTES = 54
ROW = b"x" * ROW_BYTES
INSERT = "INSERT INTO progress (row) VALUES (?)"


@attrs.frozen(kw_only=True)
class Figures:
    """What one control measured.

    ``cpu_s`` is that of the whole process, all threads, user and system.
    """

    name: str
    count: int
    seconds: float
    p50_us: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Operations per second."""
        return self.count / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per operation."""
        return self.cpu_s / self.count * 1e6


@attrs.define(eq=False)
class _Stopwatch:
    """Times a run of operations and each of them."""

    name: str
    _started_ns: int = attrs.field(init=False, factory=time.perf_counter_ns)
    _started_cpu_s: float = attrs.field(init=False, factory=time.process_time)
    _marks_ns: list[int] = attrs.field(init=False, factory=list)

    def mark(self) -> None:
        """Say that an operation has ended."""
        self._marks_ns.append(time.perf_counter_ns())

    def figures(self) -> Figures:
        """The figures up to the last mark."""
        cpu_s = time.process_time() - self._started_cpu_s
        marks_ns = [self._started_ns, *self._marks_ns]
        taken_ns = [after - before for before, after in pairwise(marks_ns)]
        return Figures(
            name=self.name,
            count=len(taken_ns),
            seconds=sum(taken_ns) / 1e9,
            p50_us=statistics.median(taken_ns) / 1e3,
            cpu_s=cpu_s,
        )


def raw_sqlite(folder: Path, commits: int) -> Figures:
    """One row per commit, the bare loop.

    Args:
        folder: Where the database goes; it must not hold one yet.
        commits: How many, at least one.
    """
    with closing(open_database(folder / "raw.sqlite")) as connection:
        stopwatch = _Stopwatch("raw_sqlite")
        for _ in range(commits):
            connection.execute(INSERT, (ROW,))
            stopwatch.mark()
        return stopwatch.figures()


def thread_hop_sqlite(folder: Path, commits: int) -> Figures:
    """One row per commit on one long-lived thread, each awaited by a trio task.

    Args:
        folder: Where the database goes; it must not hold one yet.
        commits: How many, at least one.
    """
    with closing(open_database(folder / "thread_hop.sqlite")) as connection:
        return trio.run(_commit_by_thread, connection, commits)


async def _commit_by_thread(connection: sqlite3.Connection, commits: int) -> Figures:
    """The loop of thread_hop_sqlite.

    Cancellation: none; a commit that is under way is waited for.
    """
    requests: queue.SimpleQueue[trio.lowlevel.Task | None] = queue.SimpleQueue()
    token = trio.lowlevel.current_trio_token()

    def serve_commits() -> None:
        while (waiter := requests.get()) is not None:
            result = outcome.capture(connection.execute, INSERT, (ROW,))
            token.run_sync_soon(trio.lowlevel.reschedule, waiter, result)

    thread = threading.Thread(target=serve_commits, name="commits", daemon=True)
    thread.start()
    task = trio.lowlevel.current_task()
    try:
        stopwatch = _Stopwatch("thread_hop_sqlite")
        for _ in range(commits):
            requests.put(task)
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
            stopwatch.mark()
        return stopwatch.figures()
    finally:
        requests.put(None)
        thread.join()


def append_fsync(folder: Path, count: int) -> Figures:
    """Append ROW_BYTES to a log, fsync it.

    Args:
        folder: Where the log goes.
        count: How many appends, at least one.
    """
    log = os.open(folder / "append.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        stopwatch = _Stopwatch("append_fsync")
        for _ in range(count):
            os.write(log, ROW)
            os.fsync(log)
            stopwatch.mark()
        return stopwatch.figures()
    finally:
        os.close(log)


def rename_fsync(folder: Path, count: int) -> Figures:
    """Replace a file of ROW_BYTES: temporary file, fsync, rename, fsync of the folder.

    Args:
        folder: Where the file goes.
        count: How many replacements, at least one.
    """
    temporary, final = folder / "renamed.tmp", folder / "renamed"
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        stopwatch = _Stopwatch("rename_fsync")
        for _ in range(count):
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(file, ROW)
            os.fsync(file)
            os.close(file)
            os.replace(temporary, final)
            os.fsync(directory)
            stopwatch.mark()
        return stopwatch.figures()
    finally:
        os.close(directory)


def open_database(path: Path) -> sqlite3.Connection:
    """An empty table whose every INSERT is a durable commit; SQLite's answers are checked.

    The connection may be used by any thread, one at a time.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    connection.execute("PRAGMA synchronous=FULL")
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    if (mode, synchronous) != ("wal", 2):
        connection.close()
        raise RuntimeError(f"SQLite refused WAL and FULL: {mode=}, {synchronous=} for {path}")
    connection.execute("CREATE TABLE progress (id INTEGER PRIMARY KEY, row BLOB NOT NULL)")
    return connection


CONTROLS: tuple[Callable[[Path, int], Figures], ...] = (
    raw_sqlite,
    thread_hop_sqlite,
    append_fsync,
    rename_fsync,
)


def measure(folder: Path, commits: int, rounds: int) -> list[Figures]:
    """Every control ``rounds`` times in turn; of each the round with the median rate.

    Args:
        folder: On the disk to measure; each round has a temporary folder in it.
        commits: Operations per control and round, at least one.
        rounds: How many rounds, at least one.
    """
    measured: dict[str, list[Figures]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder, prefix="controls-") as round_folder:
            for control in CONTROLS:
                figures = control(Path(round_folder), commits)
                measured.setdefault(figures.name, []).append(figures)
    return [sorted(each, key=lambda row: row.per_s)[len(each) // 2] for each in measured.values()]


def table(rows: list[Figures]) -> str:
    """The figures as text; the last column is the rate relative to the first row's."""
    lines = [f"{'control':<18} {'per s':>8} {'p50 us':>8} {'CPU us':>8} {'x first':>8}"]
    for row in rows:
        ratio = row.per_s / rows[0].per_s
        lines.append(
            f"{row.name:<18} {row.per_s:>8,.0f} {row.p50_us:>8,.0f} {row.cpu_us:>8,.0f}"
            f" {ratio:>8.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run every control and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controls", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--commits", type=int, default=2000, help="operations per round")
    parser.add_argument("--rounds", type=int, default=3, help="the median one is shown")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="on the disk to measure; here by default"
    )
    options = parser.parse_args()
    print(table(measure(options.folder, options.commits, options.rounds)))


if __name__ == "__main__":
    main()
