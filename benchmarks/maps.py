"""`map_tasks`: items per second of a function that takes no time, by 2 workers, at two sizes.

Each item is a call in another process, and its result is saved before the caller sees it.  The
control is a process pool of the standard library, which keeps nothing; the peer is Dask.  Dask is
also an engine: there ``client.map`` and `map_tasks` take turns in one cluster.  All have started,
and have run one item, before the time is taken.  Besides the time the section shows the
CPU time of the process of the caller, which the load of the machine changes less.
"""

import json
import multiprocessing
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import attrs
import trio

from benchmarks import Found, Options, Section, median
from benchmarks.peers import PEERS_FOLDER, ensure_environment
from trio_ckpt.engines import map_tasks
from trio_ckpt.engines._map import open_engine
from trio_ckpt.remote import Work
from trio_ckpt.stores import open_store

SIZES = (400, 4_000)
QUICK_SIZES = (10, 100)
ROUNDS = 3
WORKERS = 2
STATE_BYTES = 1_024
NAP_S = 2.0  # for all workers to start, before the time is taken
MODULE = "benchmarks.maps"
PEER = "Dask"


def double(item: int) -> int:
    """What each item does: nothing that takes time."""
    return 2 * item


async def nap(item: int) -> int:
    """Keep one worker busy until the others have started."""
    await trio.sleep(NAP_S)
    return item


async def double_saving(item: int, work: Work[dict[str, str]]) -> int:
    """What an item does that also saves a checkpoint."""
    work.state["text"] = "x" * STATE_BYTES
    await work.point()
    return 2 * item


@attrs.frozen
class Rate:
    """What mapping over so many items came to."""

    items_per_s: float
    cpu_us: float = 0.0  # of the caller's process, for an item


async def ours(sizes: tuple[int, ...], *, is_saving: bool) -> list[Rate]:
    """The rate at each size."""
    function = f"{MODULE}:{'double_saving' if is_saving else 'double'}"
    found: list[Rate] = []
    store = await open_store("memory:")
    async with open_engine(store, WORKERS, allow=MODULE) as client:
        call = partial(client.map, checkpoint_interval_s=0.0 if is_saving else None)
        await client.map(f"{MODULE}:nap", range(WORKERS))
        await call(function, range(WORKERS))
        for count in sizes:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            values = await call(function, range(count))
            seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
            if values != [double(item) for item in range(count)]:
                raise AssertionError("map_tasks returned other results")
            found.append(Rate(count / seconds, cpu_s / count * 1e6))
    await store.aclose()
    return found


def pool(sizes: tuple[int, ...]) -> list[Rate]:
    """The rate of the standard library's pool at each size, one item for each message."""
    context = multiprocessing.get_context("spawn")
    found: list[Rate] = []
    with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
        list(executor.map(double, range(WORKERS)))
        for count in sizes:
            began_s = time.perf_counter()
            list(executor.map(double, range(count)))
            found.append(Rate(count / (time.perf_counter() - began_s)))
    return found


def dask(options: Options, sizes: tuple[int, ...]) -> tuple[str, list[Rate]]:
    """Dask's name with its version, and its rate at each size."""
    if options.peers_cache is None:
        return "", []
    python = ensure_environment(options.peers_cache)
    command = [python, PEERS_FOLDER / "dask_map.py", "--items", *map(str, sizes)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    return found["peer"], [Rate(found["items_per_s"][str(count)]) for count in sizes]


def in_dask(count: int, rounds: int) -> tuple[list[Rate], list[Rate]]:
    """The rates of ``client.map`` and of `map_tasks` in one cluster, in turns."""
    from distributed import Client, LocalCluster  # an extra, which a quick run does without

    bare: list[Rate] = []
    through: list[Rate] = []
    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(double, range(-WORKERS, 0), pure=False))
        call = partial(map_tasks, f"{MODULE}:double", engine=client)
        trio.run(call, range(-WORKERS, 0))
        for _ in range(rounds):
            for rates, run in (
                (bare, lambda: client.gather(client.map(double, range(count), pure=False))),
                (through, lambda: trio.run(call, range(count))),
            ):
                began_s = time.perf_counter()
                values = run()
                rates.append(Rate(count / (time.perf_counter() - began_s)))
                if values != [double(item) for item in range(count)]:
                    raise AssertionError("an engine returned other results")
    return bare, through


def middle(rounds: list[list[Rate]]) -> list[Rate]:
    """The median round of each size."""
    return [
        Rate(median([one.items_per_s for one in each]), median([one.cpu_us for one in each]))
        for each in zip(*rounds, strict=True)
    ]


def measure(options: Options) -> Section:
    """Run the section."""
    sizes = QUICK_SIZES if options.is_quick else SIZES
    rounds: dict[str, list[list[Rate]]] = {}
    peer = ""
    for _ in range(1 if options.is_quick else ROUNDS):
        rounds.setdefault("process pool", []).append(pool(sizes))
        peer, found = dask(options, sizes)
        if peer:
            rounds.setdefault(PEER, []).append(found)
        rounds.setdefault("map_tasks", []).append(trio.run(partial(ours, sizes, is_saving=False)))
        rounds.setdefault("map_tasks, saving", []).append(
            trio.run(partial(ours, sizes, is_saving=True))
        )
    turns = in_dask(sizes[-1], ROUNDS) if options.peers_cache is not None else None
    rates = {name: middle(each) for name, each in rounds.items()}
    lines = [
        f"  {name:<20} {count:>6,} items  {rate.items_per_s:>9,.0f} items/s"
        + (f"  {rate.cpu_us:>7,.0f} us of CPU each" if rate.cpu_us else "")
        for name, each in rates.items()
        for count, rate in zip(sizes, each, strict=True)
    ]
    lines.append(f"  dask: {peer or 'left out, give --peers-cache'}")
    found_in_dask: dict[str, Found] = {}
    if turns is not None:
        bare, through = (median([rate.items_per_s for rate in each]) for each in turns)
        lines.append(f"  in a Dask cluster: {through:,.0f} items/s, client.map {bare:,.0f}")
        found_in_dask["map_tasks: trivial items in a Dask cluster"] = Found(
            through / bare, f"{bare:,.0f} items/s", f"{PEER} {bare:,.0f} items/s"
        )
    figures: dict[str, object] = {
        name: [
            {"items": count, **attrs.asdict(rate)} for count, rate in zip(sizes, each, strict=True)
        ]
        for name, each in rates.items()
    }
    return Section(figures, lines, judge(rates) | found_in_dask, (peer,) if peer else ())


def judge(rates: dict[str, list[Rate]]) -> dict[str, Found]:
    """What belongs to the rows of the table."""
    few, many = rates["map_tasks"]
    saving, pool_many = rates["map_tasks, saving"][-1], rates["process pool"][-1]
    found = {
        "map_tasks: time of an item, 4,000 items against 400": Found(
            few.items_per_s / many.items_per_s, f"{1e6 / few.items_per_s:,.0f} us"
        ),
        "map_tasks: CPU of an item, 4,000 items against 400": Found(
            many.cpu_us / few.cpu_us, f"{few.cpu_us:,.0f} us"
        ),
        "map_tasks: rate with a checkpoint of 1 KiB each": Found(
            saving.items_per_s / many.items_per_s, f"{many.items_per_s:,.0f} items/s"
        ),
    }
    if PEER in rates:
        dask_per_s = rates[PEER][-1].items_per_s
        found["map_tasks: trivial items against Dask"] = Found(
            many.items_per_s / dask_per_s,
            f"{pool_many.items_per_s:,.0f} items/s",
            f"{PEER} {dask_per_s:,.0f} items/s",
        )
    return found
