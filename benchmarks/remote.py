"""A foreman with many workers: checkpoints per second, how long an acknowledgement takes, memory.

    python -m benchmarks.remote [--workers 500] [--seconds 30] [--every 5]

The foreman is this process, with its store on disk; the workers are connections of a few other
processes, each with one item that saves a small state every so often.  An acknowledgement is
compared with what it cannot be faster than in the same run: a commit of the store, and a
round trip to the foreman that needs no store.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from trio_ckpt import remote
from trio_ckpt.abc import Store
from trio_ckpt.remote import Work
from trio_ckpt.remote._foreman.foreman import core_of
from trio_ckpt.remote._wire.sockets import dial
from trio_ckpt.remote._worker.calls import RpcClient
from trio_ckpt.remote._worker.worker import Worker
from trio_ckpt.stores import open_store

SECRET = "a secret of 16 bytes or more"  # of a benchmark
PROCESSES = 2
MODULE = "benchmarks.remote"


async def save_often(item: dict[str, float], work: Work[dict[str, Any]]) -> int:
    """What an item does: a small state, saved every so often, until the time is over."""
    rng, state = random.Random(item["number"]), work.state
    until = item["until"]
    while time.time() < until:
        state["n"] = state.get("n", 0) + 1
        state[f"loss {state['n'] % 20}"] = rng.random()
        await trio.sleep(item["every_s"] * rng.uniform(0.5, 1.5))
        await work.point()
    return int(state["n"])


def quantiles(values: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(values)
    if not ordered:
        return {"p50_ms": 0.0, "p99_ms": 0.0}
    return {
        "p50_ms": round(1_000 * ordered[len(ordered) // 2], 2),
        "p99_ms": round(1_000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
    }


async def swarm(url: str, count: int, first: int) -> None:
    """Many workers in one process; prints how long their acknowledgements took."""
    taken: list[tuple[float, float]] = []
    whole = RpcClient.save

    async def save(self: RpcClient, question: Any) -> Any:
        began = time.perf_counter()
        try:
            return await whole(self, question)
        finally:
            taken.append((time.time(), time.perf_counter() - began))

    RpcClient.save = save  # type: ignore[method-assign]  # it is what is measured
    async with trio.open_nursery() as nursery:
        for number in range(count):
            worker = Worker(SECRET.encode(), (MODULE,), 1, f"w{first + number}", 600.0)
            nursery.start_soon(worker.run, partial(dial, url, None))
            await trio.sleep(0.005)
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stream:
            while await stream.receive_some(1):
                pass
        nursery.cancel_scope.cancel()
    print(json.dumps(taken))


def measured(store: Store) -> list[tuple[float, float]]:
    """How long the saves of a store take, from now on."""
    taken: list[tuple[float, float]] = []
    whole = store.save

    async def save(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return await whole(*arguments)
        finally:
            taken.append((time.time(), time.perf_counter() - began))

    store.save = save  # type: ignore[method-assign]
    return taken


async def ping(client: remote.Client, taken: list[tuple[float, float]]) -> None:
    """Ask the foreman for something that is not there, ten times a second."""
    while True:
        began = time.perf_counter()
        await client.control("force-checkpoint", "no item")
        taken.append((time.time(), time.perf_counter() - began))
        await trio.sleep(0.1)


def start_swarm(url: str, count: int, first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MODULE, "--swarm", url, str(count), str(first)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


async def measure(workers: int, seconds: float, every_s: float) -> dict[str, Any]:
    """Run it; the figures."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(Path(folder) / "s")
        commits = measured(store)
        pings: list[tuple[float, float]] = []
        async with trio.open_nursery() as nursery:
            serve = partial(remote.serve_foreman, store, secret=SECRET, port=0)
            foreman: remote.Foreman = await nursery.start(serve)
            share = -(-workers // PROCESSES)
            swarms = [
                start_swarm(foreman.url, min(share, workers - first), first)
                for first in range(0, workers, share)
            ]
            while len(core_of(foreman).pool.workers) < workers:  # noqa: ASYNC110  # no event reports it
                await trio.sleep(0.1)
            began = time.time()
            warm = began + 0.15 * workers / 10 + 5  # each item begins with commits of its own
            until = warm + seconds
            items = [{"number": n, "every_s": every_s, "until": until + 1} for n in range(workers)]
            async with remote.connect(foreman.url, secret=SECRET) as client:
                nursery.start_soon(ping, client, pings)
                await client.submit(f"{MODULE}:save_often", items, checkpoint_interval_s=0.1)
                await trio.sleep(warm - time.time())
                running = len(foreman.live)
                await trio.sleep(until - time.time())
                peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                nursery.cancel_scope.cancel()
            for process in swarms:
                if process.stdin is not None:
                    process.stdin.close()
                    process.stdin = None
        acks: list[tuple[float, float]] = []
        for process in swarms:
            output, _ = await trio.to_thread.run_sync(process.communicate)
            acks += [(at, taken) for at, taken in json.loads(output)]
        await store.aclose()

    def within(measurements: list[tuple[float, float]]) -> list[float]:
        return [taken for at, taken in measurements if warm <= at <= until]

    ack, commit, trip = (
        quantiles(within(acks)),
        quantiles(within(commits)),
        quantiles(within(pings)),
    )
    return {
        "workers": workers,
        "running": running,
        "checkpoints_per_s": round(len(within(acks)) / seconds, 1),
        "ack": ack,
        "commit": commit,
        "round_trip": trip,
        "ack_over_commit_and_trip": {
            name: round(ack[name] / max(commit[name] + trip[name], 1e-9), 2) for name in ack
        },
        "foreman_peak_mib": peak_mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between checkpoints")
    parser.add_argument("--swarm", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.swarm:
        url, count, first = options.swarm
        trio.run(swarm, url, int(count), int(first))
        return
    found = trio.run(measure, options.workers, options.seconds, options.every)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
