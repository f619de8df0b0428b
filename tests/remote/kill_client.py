"""The client of a schedule of kills: URL MARKS ITEMS STEPS INTERVAL."""

from __future__ import annotations

import os
import sys

import trio

from trio_ckpt import remote


async def main() -> None:
    url, marks, count, steps, interval = sys.argv[1:6]
    items = [[marks, n, int(steps)] for n in range(int(count))]
    interval_s = None if interval == "none" else float(interval)
    while True:
        try:
            async with remote.connect(url, secret=os.environ["TRIO_CKPT_SECRET"]) as client:
                options = {"job_id": "job-k", "losses": 1000, "checkpoint_interval_s": interval_s}
                print(await client.map("tests.engines.jobs:steps", items, **options))
                return
        except remote.ConnectionLostError:
            await trio.sleep(0.2)  # the foreman is not started again yet


if __name__ == "__main__":
    trio.run(main)
    sys.stdout.flush()
    os._exit(0)
