"""Dask: a function called with many items, in processes of this machine.

    python dask_map.py --items 400 4000 --workers 2

The cluster is started, and has run one item on each worker, before the time is taken.
"""

import argparse
import json
import time
from importlib.metadata import version

from distributed import Client, LocalCluster


def double(item: int) -> int:
    """What each item does: nothing that takes time."""
    return 2 * item


def run(sizes: list[int], workers: int) -> dict[str, object]:
    """Map over as many items as each size says; the figures."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(double, range(-workers, 0), pure=False))
        seconds = {}
        for count in sizes:
            began_s = time.perf_counter()
            found = client.gather(client.map(double, range(count), pure=False))
            seconds[count] = time.perf_counter() - began_s
            if found != [double(item) for item in range(count)]:
                raise AssertionError("Dask returned other results")
    return {
        "peer": f"dask distributed {version('distributed')}",
        "items_per_s": {count: count / taken_s for count, taken_s in seconds.items()},
    }


def main() -> None:
    """Print the figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--items", type=int, nargs="+", default=[400, 4_000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(run(options.items, options.workers)))


if __name__ == "__main__":
    main()
