"""What a collection of 10^9 batches and 10^4 owners comes to, from what is measured here.

    python -m benchmarks.scale [--quick]

Prints tables; asserts nothing. On a PostgreSQL server of its own it measures what a save of 1, 8
and 64 records writes to the server's log and to the disk, how long it takes, and what the renewal
of a lease writes. All else is multiplied: nothing of that size is run. Requests to a bucket are
those that `trio-ckpt doctor` counts, at the list prices of AWS S3 Standard.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import psycopg
import trio

from benchmarks.postgres import GROUPS, Rate, measured, save_groups
from tests.stores.postgres.servers import Server, running_server
from trio_ckpt.abc import RunKey
from trio_ckpt.stores import open_store
from trio_ckpt.stores._objects.check import DOLLARS_FOR_1000_PUTS, puts_of

BATCHES, OWNERS = 10**9, 10**4
SAVES, QUICK_SAVES = 2_000, 20
RENEWALS = 200
RENEWED_AFTER = 1 / 3  # of the lease: an owner that saves nothing renews it then
LEASES_S = {"PostgreSQL": (30.0, 120.0), "a bucket": (60.0, 120.0)}
FREEZE_XIDS = 2 * 10**8  # transactions after which autovacuum freezes a table
DAY_S = 86_400


@attrs.frozen
class Measured:
    """What a save of so many records comes to.

    Attributes:
        records: How many.
        rate: Of its records: a second, and bytes of the server's log.
        disk_bytes: Of a record, with its share of the indexes.
    """

    records: int
    rate: Rate
    disk_bytes: float


def measure_saves(server: Server, records: int, saves: int) -> Measured:
    """Measure saves of so many records each, to a run of their own."""
    before = _disk_bytes(server)
    rate = measured(server, saves * records, lambda: trio.run(save_groups, server, records, saves))
    return Measured(records, rate, (_disk_bytes(server) - before) / (saves * records))


def _disk_bytes(server: Server) -> int:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        found = connection.execute(
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class "
            "WHERE relname = 'log' AND relkind = 'r'"
        )
        ((size,),) = found.fetchall()
    return int(size)


def measure_renewals(server: Server, count: int) -> Rate:
    """Measure saves of nothing."""

    async def renew() -> tuple[float, float]:
        store = await open_store(server.url())
        async with store.lock_run("idle") as owner:
            began = trio.current_time()
            for _ in range(count):
                await store.save(RunKey("idle", 0, owner), [])
            took_s = trio.current_time() - began
        await store.aclose()
        return took_s, 0.0

    return measured(server, count, lambda: trio.run(renew))


def lines_of_database(found: Sequence[Measured]) -> list[str]:
    """What all batches come to in PostgreSQL, by the records of a save."""
    lines = [
        "PostgreSQL: records a save, transactions (rounds of freezing), log, disk, one process"
    ]
    for one in found:
        saves, log_bytes = BATCHES / one.records, BATCHES * one.rate.log_bytes
        lines.append(
            f"  {one.records:3}  {saves:.1e} ({saves / FREEZE_XIDS:.1f})  "
            f"{log_bytes / 1e9:,.0f} GB  {BATCHES * one.disk_bytes / 1e9:,.0f} GB  "
            f"{BATCHES / one.rate.per_s / 3600:,.1f} h"
        )
    return lines


def lines_of_bucket() -> list[str]:
    """What all batches come to in a bucket, by the loops that share a group."""
    lines = ["a bucket: records a group, PUTs, list price"]
    for loops in GROUPS:
        puts = puts_of(BATCHES, loops)
        lines.append(f"  {loops:3}  {puts:.2e}  ${puts * DOLLARS_FOR_1000_PUTS / 1000:,.0f}")
    return lines


def lines_of_leases(renewal: Rate) -> list[str]:
    """What it costs to own all partitions and to save nothing; saving renews without a cost."""
    lines = ["leases of owners that are all idle"]
    for where, leases_s in LEASES_S.items():
        for lease_s in leases_s:
            per_s = OWNERS / (lease_s * RENEWED_AFTER)
            puts = per_s * DAY_S
            cost = f"{per_s * renewal.log_bytes / 1e6:.2f} MB/s of log"
            if where != "PostgreSQL":
                cost = f"${puts * DOLLARS_FOR_1000_PUTS / 1000:,.0f} a day"
            lines.append(f"  {where}, {lease_s:.0f} s: {per_s:,.0f} renewals/s, {cost}")
    lines.append(f"  each owner killed once a day: {OWNERS / 24:,.0f} takeovers an hour")
    return lines


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    saves = QUICK_SAVES if parser.parse_args(words).quick else SAVES
    with tempfile.TemporaryDirectory() as folder, running_server(parent=Path(folder)) as server:
        measure_saves(server, 1, 1)  # which makes the tables
        found = [measure_saves(server, records, saves) for records in GROUPS]
        renewal = measure_renewals(server, min(saves, RENEWALS))
    print(f"{BATCHES:.0e} batches, {OWNERS:.0e} owners")
    print("\n".join([*lines_of_database(found), *lines_of_bucket(), *lines_of_leases(renewal)]))


if __name__ == "__main__":
    main()
