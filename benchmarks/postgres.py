"""The store in PostgreSQL beside raw one-row commits to the same server, in turns.

Two servers of our own are measured, on the disk of the folder where their user can reach it: one
whose commits take as long as that disk needs, and one that adds a millisecond to each
(``commit_delay``), as a database on another machine does.  Ratios are made within a round, and the
median round is shown.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count

import attrs
import psycopg
import trio

from benchmarks import Found, Options, Section, median, median_ratio
from benchmarks.controls import ROW
from benchmarks.steps import run_loop
from tests.stores.postgres.servers import Server, running_server
from trio_ckpt import open_run
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores import open_store

GROUPS = (1, 8, 64)  # records of a save
LOOPS = (1, 8, 64)
ROUNDS, QUICK_ROUNDS = 5, 1
COMMITS, QUICK_COMMITS = 600, 20
BATCHES_PER_LOOP = {1: 600, 8: 400, 64: 200}
QUICK_BATCHES_PER_LOOP = {1: 20, 8: 5, 64: 2}
DELAYED = ("commit_delay=1000", "commit_siblings=0")

_numbers = count()


@attrs.frozen
class Rate:
    """What some work came to: operations a second, CPU of the client, bytes of the server's log."""

    per_s: float
    cpu_us: float
    log_bytes: float


def measured(server: Server, operations: int, work: Callable[[], tuple[float, float]]) -> Rate:
    """What work that returns its seconds and CPU seconds comes to."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        position = b"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
        ((before,),) = connection.execute(position).fetchall()
        seconds, cpu_s = work()
        ((after,),) = connection.execute(position).fetchall()
    return Rate(operations / seconds, cpu_s / operations * 1e6, (after - before) / operations)


def raw_commits(server: Server, commits: int) -> tuple[float, float]:
    """One row per commit, prepared, the bare loop."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS raw "
            "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, row bytea NOT NULL)"
        )
        pq = connection.pgconn
        pq.prepare(b"raw", b"INSERT INTO raw (row) VALUES ($1)", [17])
        began_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(commits):
            pq.exec_prepared(b"raw", [ROW], [1], 1)
        return time.perf_counter() - began_s, time.process_time() - cpu_s


async def save_groups(server: Server, size: int, saves: int) -> tuple[float, float]:
    """Saves of several records each, of as many streams."""
    store = await open_store(server.url())
    run_id = f"groups {next(_numbers)}"
    try:
        async with store.lock_run(run_id) as owner:
            key = RunKey(run_id, 0, owner)
            streams = [f'["{number}"]' for number in range(size)]
            await store.save(key, [Checkpoint(stream, 1, ROW) for stream in streams])
            began_s, cpu_s = time.perf_counter(), time.process_time()
            for sequence in range(2, saves + 2):
                group = [Checkpoint(stream, sequence, ROW) for stream in streams]
                await store.save(key, group)
            return time.perf_counter() - began_s, time.process_time() - cpu_s
    finally:
        await store.aclose()


async def run_loops(server: Server, loops: int, batches: int) -> tuple[float, float]:
    """Seconds and CPU seconds of all loops, opening and closing the run left out."""
    run_id = f"loops {next(_numbers)}"
    async with open_run(run_id, store=server.url(), handle_signals=False) as run:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for number in range(loops):
                nursery.start_soon(run_loop, run, f"loop {number}", batches)
        return time.perf_counter() - began_s, time.process_time() - cpu_s


@attrs.define
class Rounds:
    """Every round's figures of one server, in the order of the rounds."""

    raw: list[Rate] = attrs.field(factory=list)
    groups: dict[int, list[Rate]] = attrs.field(factory=lambda: {size: [] for size in GROUPS})
    loops: dict[int, list[Rate]] = attrs.field(factory=lambda: {loops: [] for loops in LOOPS})

    def add(self, server: Server, commits: int, batches_per_loop: dict[int, int]) -> None:
        """Measure one round."""
        self.raw.append(measured(server, commits, lambda: raw_commits(server, commits)))
        for size, found in self.groups.items():
            saves = max(1, commits // 2)
            work = partial(trio.run, save_groups, server, size, saves)
            found.append(measured(server, saves * size, work))
        for loops, found in self.loops.items():
            each = batches_per_loop[loops]
            work = partial(trio.run, run_loops, server, loops, each)
            found.append(measured(server, loops * each, work))

    def ratio(self, found: list[Rate]) -> float:
        """A rate against the raw commits of the same round, the median."""
        return median_ratio([rate.per_s for rate in found], [rate.per_s for rate in self.raw])


def measure(options: Options) -> Section:
    """Saves and loops, on a server as the disk is, and on one that is a millisecond slower."""
    rounds, commits, each = ROUNDS, COMMITS, BATCHES_PER_LOOP
    if options.is_quick:
        rounds, commits, each = QUICK_ROUNDS, QUICK_COMMITS, QUICK_BATCHES_PER_LOOP
    local, far = Rounds(), Rounds()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running_server(*settings, parent=options.folder))
            for settings in ((), DELAYED)
        ]
        for _ in range(rounds):
            for found, server in zip((local, far), servers, strict=True):
                found.add(server, commits, each)
    control, far_control = (
        f"{median([rate.per_s for rate in found.raw]):,.0f}/s" for found in (local, far)
    )
    log_bytes = median([rate.log_bytes for rate in local.groups[64]])
    raw_bytes = median([rate.log_bytes for rate in local.raw])
    found = {
        "postgres: a save of 1 record": Found(local.ratio(local.groups[1]), control),
        "postgres: a save of 64 records": Found(local.ratio(local.groups[64]), control),
        "postgres: log of the server for a record of 64": Found(log_bytes, f"{raw_bytes:,.0f} B"),
    }
    for loops in LOOPS:
        name = f"postgres: {loops} loop{'s' if loops > 1 else ''}, commits of 1 ms"
        found[name] = Found(far.ratio(far.loops[loops]), far_control)
    return Section(
        {"local": attrs.asdict(local), "delayed": attrs.asdict(far)},
        [*_lines("on this disk", local), *_lines("commits of 1 ms", far)],
        found,
    )


def _lines(name: str, rounds: Rounds) -> list[str]:
    raw = median([rate.per_s for rate in rounds.raw])
    lines = [f"{name}: raw one-row commits {raw:,.0f}/s"]
    for what, table in (("records a save", rounds.groups), ("loops", rounds.loops)):
        for number, found in table.items():
            per_s, cpu_us, log = (
                median([value(rate) for rate in found])
                for value in (
                    lambda rate: rate.per_s,
                    lambda rate: rate.cpu_us,
                    lambda rate: rate.log_bytes,
                )
            )
            lines.append(
                f"  {number:3} {what}: {per_s:,.0f}/s, {rounds.ratio(found):.2f}x raw, "
                f"client CPU {cpu_us:.0f} us, log of the server {log:.0f} bytes each"
            )
    return lines
