"""The faults of `test_faults` and `test_takeover` many times: ``python -m … [--full]``.

It prints a row for each kind of fault: how many were made, how many batches were acknowledged, and
how many of them were lost or doubled.  It exits with 1 if any was.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable

import psycopg
import trio

from tests.stores.postgres import test_takeover
from tests.stores.postgres.faults import Faults, save_through
from tests.stores.postgres.servers import LosingProxy, Server, running_pair, running_server
from tests.stores.postgres.test_faults import TERMINATE

FULL = {"terminated": 500, "stopped": 100, "swallowed": 500, "failovers": 3, "paused": 100}
QUICK = {"terminated": 50, "stopped": 3, "swallowed": 50, "failovers": 1, "paused": 2}


def terminate(count: int) -> Counter[str]:
    with running_server() as server:

        def inject() -> int:
            with psycopg.connect(server.url(), autocommit=True) as connection:
                ((made,),) = connection.execute(TERMINATE.encode()).fetchall()
            return int(made)

        return trio.run(save_through, server.url("?lease_s=60"), "run", Faults(count, inject))


def stop(count: int) -> Counter[str]:
    with running_server() as server:

        def inject() -> int:
            server.stop(signal.SIGQUIT)
            server.start()
            return 1

        return trio.run(save_through, server.url("?lease_s=60"), "run", Faults(count, inject))


def swallow(count: int) -> Counter[str]:
    with running_server() as server:
        proxy = LosingProxy(server.port)
        with proxy.serve() as port:
            faults = Faults(count, lambda: proxy.lose(faults.made))
            url = server.url("?lease_s=60&sslmode=disable", port=port)
            found = trio.run(save_through, url, "run", faults)
        found["questions cut"] = proxy.questions
        return found


def fail_over(count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(count):
        with running_pair() as (primary, standby):
            found += trio.run(_fail_over, primary, standby)
    return found


async def _fail_over(primary: Server, standby: Server) -> Counter[str]:
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&lease_s=60"

    def inject() -> int:
        primary.stop(signal.SIGQUIT)
        standby.promote()
        return 1

    return await save_through(url, "run", Faults(1, inject))


def pause(count: int) -> Counter[str]:
    with running_server() as server:
        for number in range(count):
            url = server.url(f"?schema=paused_{number}&lease_s={test_takeover.LEASE_S}")
            trio.run(test_takeover.test_an_owner_that_was_stopped_saves_nothing_when_it_wakes, url)
    return Counter({"fenced": count})


KINDS: dict[str, Callable[[int], Counter[str]]] = {
    "terminated": terminate,
    "stopped": stop,
    "swallowed": swallow,
    "failovers": fail_over,
    "paused": pause,
}


def main(counts: dict[str, int]) -> int:
    is_bad = False
    for name, make in KINDS.items():
        found = make(counts[name])
        is_bad |= bool(found["lost"] or found["doubled"])
        said = ", ".join(f"{what} {count:,}" for what, count in found.items())
        print(f"{name} {counts[name]}: {said}", flush=True)
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main(FULL if "--full" in sys.argv else QUICK))
