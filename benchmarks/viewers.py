"""Viewers: what 200 open pages cost the run that they watch.

The viewers are one other process, so that only the server's side is counted.  The figure is the
processor time of the program per batch, with viewers and without in turns: that is what the run
loses, however busy the machine is.
"""

import subprocess
import sys
import time

import attrs
import trio

from benchmarks import Found, Options, Section, median
from trio_ckpt import Run, monitor, open_run
from trio_ckpt.stores import MemoryStore

VIEWERS = 200
STREAMS = 8
SECONDS = 8.0
ROUNDS = 3
SECRET = "a secret for the benchmark"  # of a server that ends with it

CLIENT = """
import asyncio, sys

async def view(port, secret):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    writer.write(
        f"GET /api/events?run=r HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n"
        f"Authorization: Bearer {secret}\\r\\n\\r\\n".encode()
    )
    while await reader.read(2**16):
        pass

async def main(port, viewers, secret):
    await asyncio.gather(*(view(port, secret) for _ in range(viewers)), return_exceptions=True)

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
"""


@attrs.define
class Count:
    """How many batches were confirmed."""

    batches: int = 0


async def work(run: Run, name: str, count: Count) -> None:
    """Batches without end that cost nothing but what the library costs."""
    async with run.open_stream("org/repo", name) as stream:
        async for batch in stream.batches():
            batch.complete(records=1)
            count.batches += 1


async def cpu_per_batch(viewers: int, seconds: float) -> float:
    """Processor seconds of this process for a batch."""
    async with (
        open_run("r", store=MemoryStore(), handle_signals=False) as run,
        trio.open_nursery() as nursery,
    ):

        async def show(*, task_status: trio.TaskStatus[monitor.Serving]) -> None:
            await monitor.serve(
                run, port=0, secret=SECRET.replace(" ", "-"), task_status=task_status
            )

        serving = await nursery.start(show)
        count = Count()
        for index in range(STREAMS):
            nursery.start_soon(work, run, f"s{index}", count)
        arguments = [str(serving.port), str(viewers), serving.secret]
        command = [sys.executable, "-c", CLIENT, *arguments]
        with subprocess.Popen(command) as process:  # noqa: ASYNC220  # it is killed below
            await trio.sleep(2)  # until all are there
            began, before = time.process_time(), count.batches
            await trio.sleep(seconds)
            cost = (time.process_time() - began) / (count.batches - before)
            process.kill()
        nursery.cancel_scope.cancel()
    return cost


def measure(options: Options) -> Section:
    """With viewers and without, in turns."""
    rounds, seconds = (1, 1.0) if options.is_quick else (ROUNDS, SECONDS)
    alone, watched = list[float](), list[float]()
    for _ in range(rounds):
        alone.append(trio.run(cpu_per_batch, 0, seconds))
        watched.append(trio.run(cpu_per_batch, VIEWERS, seconds))
    without_us, with_us = median(alone) * 1e6, median(watched) * 1e6
    loss = 100 * (with_us / without_us - 1)
    return Section(
        {"viewers": VIEWERS, "without_us": without_us, "with_us": with_us, "loss_percent": loss},
        [
            f"processor time per batch: {without_us:.1f} us without viewers, "
            f"{with_us:.1f} us with {VIEWERS}"
        ],
        {"CPU that 200 viewers cost": Found(loss, f"{without_us:.1f} us/batch")},
    )
