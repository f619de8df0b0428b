"""The faults of `test_faults` and `test_takeover` many times: ``… [KIND …] [--full] [--keep]``.

It prints a row for each kind of fault, and with ``--keep`` keeps it for the documentation.  It
exits with 1 if a batch was lost or doubled, if fewer faults were made than are wanted, or if a
takeover took longer than it may.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from statistics import median

import psycopg
import trio

from tests.proof import Figures, keep_row
from tests.stores.postgres import test_takeover
from tests.stores.postgres.faults import Faults, save_through
from tests.stores.postgres.servers import LosingProxy, Server, running_pair, running_server
from tests.stores.postgres.test_faults import TERMINATE
from trio_ckpt._runs.run_lock import take_lock
from trio_ckpt.stores import open_store

LIMIT_S = 900.0  # for the faults of one kind: it ends then, and says how many it made
GAP_S = 0.3  # between two stops: the owner connects again, and saves
AT_ONCE = 4  # owners that are paused or killed at a time
SLACK_S = 1.0  # after the end of a lease, for the process that waits to ask again
MARK_S = 3.0  # for a takeover by the mark, at a lease of `test_takeover.LEASE_S` to 4 seconds


def terminate(count: int) -> Counter[str]:
    """Terminate the sessions of the store."""
    with running_server() as server:

        def inject() -> int:
            with psycopg.connect(server.url(), autocommit=True) as connection:
                ((made,),) = connection.execute(TERMINATE.encode()).fetchall()
            return int(made)

        return _save_through(server.url("?lease_s=60"), Faults(count, inject, LIMIT_S))


def stop(count: int) -> Counter[str]:
    """Stop the server at once, and start it again, which recovers from its log."""
    with running_server() as server:

        def inject() -> int:
            server.stop(signal.SIGQUIT)
            server.start()
            time.sleep(GAP_S)
            return 1

        return _save_through(server.url("?lease_s=60"), Faults(count, inject, LIMIT_S))


def swallow(count: int) -> Counter[str]:
    """Lose answers that the server has given, and halves of questions between them."""
    with running_server() as server:
        proxy = LosingProxy(server.port)
        with proxy.serve() as port:
            faults = Faults(count, lambda: proxy.lose(faults.made), LIMIT_S)
            return _save_through(server.url("?lease_s=60&sslmode=disable", port=port), faults)


def fail_over(count: int) -> Counter[str]:
    """Stop a primary at once, and promote the standby that its commits wait for."""
    found: Counter[str] = Counter()
    for _ in range(count):
        with running_pair() as (primary, standby):
            found.update(_fail_over(primary, standby))  # += would drop what is 0
    return found


def _fail_over(primary: Server, standby: Server) -> Counter[str]:
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&lease_s=60"

    def inject() -> int:
        primary.stop(signal.SIGQUIT)
        standby.promote()
        return 1

    return _save_through(url, Faults(1, inject, LIMIT_S))


def _save_through(url: str, faults: Faults) -> Counter[str]:
    found = trio.run(save_through, url, "run", faults)
    return Counter({"faults": faults.made, **found})


def pause(count: int) -> Counter[str]:
    """Stop owners, take their runs over, and wake them; one that saves raises an error."""
    with running_server() as server:
        lease = f"lease_s={test_takeover.LEASE_S}"

        def wake(number: int) -> tuple[str, int]:
            url = server.url(f"?schema=paused_{number}&{lease}")
            return trio.run(test_takeover.wake_after_takeover, url)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            woken = list(pool.map(wake, range(count)))
    fenced = sum(last == "fenced" for last, _ in woken)
    confirmed = sum(saved for _, saved in woken)
    return Counter({"paused": count, "fenced": fenced, "confirmed when woken": confirmed})


def take_over(count: int, *, how: signal.Signals, lease_s: float, limit_s: float) -> Counter[str]:
    """Kill or stop owners; how long others waited for their runs, in milliseconds."""
    with running_server() as server, ThreadPoolExecutor(AT_ONCE) as pool:
        wait = partial(_take_over, server, how, lease_s)
        waited_ms = [int(1000 * waited_s) for waited_s in pool.map(wait, range(count))]
    return Counter(
        {
            "lease, ms": int(1000 * lease_s),
            "takeovers": len(waited_ms),
            "median, ms": int(median(waited_ms)),
            "longest, ms": max(waited_ms),
            "limit, ms": int(1000 * limit_s),
        }
    )


def _take_over(server: Server, how: signal.Signals, lease_s: float, number: int) -> float:
    url = server.url(f"?schema=taken_{number}&lease_s={lease_s}")
    with test_takeover.owning_process(url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved 1\n"
        process.send_signal(how)
        return trio.run(_wait_for_lock, url, 2 * lease_s + SLACK_S)


async def _wait_for_lock(url: str, limit_s: float) -> float:
    began_s = time.monotonic()
    store = await open_store(url)
    async with AsyncExitStack() as stack:
        await take_lock(stack, store, "run", limit_s)
        waited_s = time.monotonic() - began_s
    await store.aclose()
    return waited_s


def _by_lease(count: int) -> Counter[str]:
    return take_over(count, how=signal.SIGSTOP, lease_s=4.0, limit_s=4.0 + SLACK_S)


def _by_mark(count: int) -> Counter[str]:
    return take_over(count, how=signal.SIGKILL, lease_s=4.0, limit_s=MARK_S)


def _by_mark_30(count: int) -> Counter[str]:
    return take_over(count, how=signal.SIGKILL, lease_s=30.0, limit_s=30.0 + SLACK_S)


# What is done, its row in the documentation, and how often: in full, and otherwise.
KINDS: dict[str, tuple[Callable[[int], Counter[str]], str, int, int]] = {
    "terminated": (terminate, "postgres: sessions terminated", 500, 50),
    "stopped": (stop, "postgres: immediate stops of the server", 100, 3),
    "swallowed": (swallow, "postgres: answers swallowed", 500, 50),
    "failovers": (fail_over, "postgres: standbys that take over", 10, 1),
    "paused": (pause, "postgres: owners paused, and woken after a takeover", 100, 2),
    "by-lease": (_by_lease, "postgres: takeover from an owner that is stopped", 40, 2),
    "by-mark": (_by_mark, "postgres: takeover from an owner that is killed", 40, 2),
    "by-mark-30": (
        _by_mark_30,
        "postgres: takeover from an owner that is killed, at the default lease",
        8,
        1,
    ),
}


def is_good(found: Counter[str], wanted: int) -> bool:
    """Whether what was found is what is promised."""
    if "limit, ms" in found:
        return found["longest, ms"] <= found["limit, ms"]
    if "paused" in found:
        return found["fenced"] == wanted and not found["confirmed when woken"]
    is_whole = found["faults"] >= wanted and found["acknowledged"] > 0
    return is_whole and not (found["lost"] or found["doubled"] or found["failed"])


def main() -> int:
    """Run the sweeps that the command names; all if it names none."""
    parser = argparse.ArgumentParser(prog="python -m tests.stores.postgres.sweep")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--full", action="store_true", help="as often as the documentation says")
    parser.add_argument("--keep", action="store_true", help="keep the figures in the docs")
    given = parser.parse_args()
    unknown = set(given.kinds) - KINDS.keys()
    if unknown:
        parser.error(f"there is no kind {', '.join(sorted(unknown))}")
    is_bad = False
    for name in given.kinds or KINDS:
        sweep, row, full, quick = KINDS[name]
        wanted, began_s = full if given.full else quick, time.monotonic()
        found = sweep(wanted)
        figures: Figures = {**found, "seconds": int(time.monotonic() - began_s)}
        is_bad |= not is_good(found, wanted)
        said = ", ".join(f"{what} {count:,}" for what, count in figures.items())
        print(f"{row}: {said}{'' if is_good(found, wanted) else ' (BAD)'}", flush=True)
        if given.keep:
            keep_row(row, figures)
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
