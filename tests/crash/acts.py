"""A run that is steered through its socket, and killed at each change of a file that an act makes.

``python -m tests.crash.acts``, started with the recorder in LD_PRELOAD, forks its sessions: a
session opens a run, has one act done as ``trio-ckpt ctl`` does it, tells that it was answered, and
goes on.  `AimedKills` is the side that asks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import trio

from tests.crash.recorder import Action, Plan, Recorder
from tests.fork_server import ForkServer, Told, serve
from tests.opening import begin
from trio_ckpt import Batch, Limits, run_batches
from trio_ckpt._journal.acts import new_act
from trio_ckpt._maintenance.steer import steer
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import open_store

RUN, KEY, BATCHES, DONE = "r", ("s",), 6, 2
REQUEUED, SKIPPED = 0, 4
SESSION_LIMIT_S = 30.0
ACTS: dict[str, dict[str, Any]] = {
    "pause": {},
    "resume": {},
    "stop": {},
    "requeue": {"stream": KEY, "indexes": IndexSet([REQUEUED])},
    "skip": {"stream": KEY, "indexes": IndexSet([SKIPPED])},
    "concurrency": {"count": 3},
    "limit": {"amounts": {"usd": 80}},
}
"""The acts, and what they are about."""


class AimedKills(ForkServer):
    """Has acts done, and kills what does them.

    Args:
        library: The recorder.
    """

    def __init__(self, library: Path) -> None:
        super().__init__("tests.crash.acts", {"LD_PRELOAD": str(library)})

    def __enter__(self) -> AimedKills:
        return self

    def kill(self, url: str, root: Path, do: str, action: Action, at: int) -> Told:
        """Have an act done on a run that is killed at its change of a file with this number."""
        return self.ask({"url": url, "root": str(root), "do": do, "action": action, "at": at})


async def do_act(store: Any, do: Any) -> None:
    """Have an act done on the run of a store, running or not."""
    await steer(store, RUN, new_act(do, "ann", why="a test", **ACTS[do]))


async def prepare(url: str, do: str) -> None:
    """Do the first batches; a run to be resumed is paused."""
    async with begin(url, RUN) as run, run.open_stream(*KEY) as stream:
        async for batch in stream.batches(list(range(BATCHES)), end=DONE - 1):
            batch.complete()
    if do == "resume":
        store = await open_store(url)
        await do_act(store, "pause")
        await store.aclose()


async def finish(url: str) -> int:
    """Do what is left; returns the exit code."""
    async with begin(url, RUN) as run, run.open_stream(*KEY) as stream:
        async for batch in stream.batches(list(range(BATCHES))):
            batch.complete()
    return run.exit_code


async def _steered(request: dict[str, Any], recorder: Recorder, pipe: int) -> None:
    """A run whose bodies wait until the act was answered."""
    store, answered, begun = await open_store(request["url"]), trio.Event(), trio.Event()

    async def handle(batch: Batch[int]) -> None:
        begun.set()
        await answered.wait()
        batch.complete()

    async with (
        begin(request["url"], RUN, limits=Limits(spent={"usd": 9})) as run,
        trio.open_nursery() as nursery,
        run.open_stream(*KEY) as stream,
    ):

        async def act() -> None:
            if request["do"] != "resume":
                await begun.wait()
            await steer(store, RUN, new_act("status", "ann"))  # it listens
            recorder.arm(Plan(Action(request["action"]), request["at"]))
            await do_act(store, request["do"])
            os.write(pipe, json.dumps(["answered"]).encode() + b"\n")
            answered.set()
            if request["do"] == "pause":
                nursery.cancel_scope.cancel()

        nursery.start_soon(act)
        await run_batches(stream, list(range(BATCHES)), handle)


def _run(request: dict[str, Any], pipe: int) -> int:
    recorder = Recorder()
    recorder.watch(Path(request["root"]), None)
    trio.run(_steered, request, recorder, pipe)
    return 0


if __name__ == "__main__":
    serve(_run, SESSION_LIMIT_S)
