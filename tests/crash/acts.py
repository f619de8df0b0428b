"""A run that is steered through its socket or its inbox, and killed at each change an act makes.

``python -m tests.crash.acts`` forks its sessions: a session opens a run, has one act done as
``trio-ckpt ctl`` does it, tells that it was answered, and goes on.  `AimedKills` is the side that
asks.  With the recorder in LD_PRELOAD a session is killed at a change of a file, without it at a
call that changes its store, which may be in a database or in a bucket.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from tests.crash.recorder import Action, Plan, Recorder
from tests.fork_server import ForkServer, Told, serve
from tests.hangs import HANG_S
from tests.opening import begin
from trio_ckpt import Batch, Limits, Run, run_batches
from trio_ckpt._journal.acts import new_act
from trio_ckpt._maintenance import ask_inbox
from trio_ckpt._maintenance.steer import steer
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import open_store

RUN, KEY, BATCHES, DONE = "r", ("s",), 6, 2
STATEFUL = ("a state",)
MOST_POINTS = 40  # an act makes fewer changes
REQUEUED, SKIPPED = 0, 4
SESSION_LIMIT_S = HANG_S
ACTS: dict[str, dict[str, Any]] = {
    "pause": {},
    "resume": {},
    "stop": {},
    "snapshot": {},
    "requeue": {"stream": KEY, "indexes": IndexSet([REQUEUED])},
    "skip": {"stream": KEY, "indexes": IndexSet([SKIPPED])},
    "concurrency": {"count": 3},
    "limit": {"amounts": {"usd": 80}},
}
"""The acts, and what they are about."""


class AimedKills(ForkServer):
    """Has acts done, and kills what does them.

    Args:
        library: The recorder; None: it kills at calls of the store.
    """

    def __init__(self, library: Path | None) -> None:
        super().__init__("tests.crash.acts", {"LD_PRELOAD": str(library)} if library else {})

    def __enter__(self) -> AimedKills:
        return self

    def kill(self, url: str, root: Path, do: str, action: Action, at: int) -> Told:
        """Have an act done on a run that is killed at its change of a file with this number."""
        return self.ask({"url": url, "root": str(root), "do": do, "action": action, "at": at})

    def kill_at_call(self, url: str, do: str, point: int) -> Told:
        """Have an act done on a run that is killed before a change of its store, or after it."""
        return self.ask({"url": url, "do": do, "action": point % 2, "at": point // 2})


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


async def finish(url: str, do: str) -> int:
    """Do what is left; returns the exit code."""
    async with begin(url, RUN) as run:
        async with run.open_stream(*KEY) as stream:
            async for batch in stream.batches(list(range(BATCHES))):
                batch.complete()
        if do == "snapshot":
            await _take_snapshots(run, trio.Event(), None)
    return run.exit_code


async def _take_snapshots(run: Run, begun: trio.Event, answered: trio.Event | None) -> None:
    """A batch that takes a snapshot when it begins, and one when an act was answered."""
    async with run.open_stream(*STATEFUL, state={"n": 0}) as stream:
        async for batch in stream.batches(range(1)):
            async with stream.snapshots(every_s=3_600) as snapshots:
                await snapshots.point()
                await snapshots.wait()
                begun.set()
                if answered is not None:
                    await answered.wait()
                    assert await snapshots.point()  # as the act asks
            batch.complete()


async def _steered(request: dict[str, Any], arm: Callable[[], None], pipe: int) -> None:
    """A run whose bodies wait until the act was answered."""
    store, answered = await open_store(request["url"]), trio.Event()
    begun, is_stateful = [trio.Event(), trio.Event()], request["do"] == "snapshot"

    async def handle(batch: Batch[int]) -> None:
        begun[0].set()
        await answered.wait()
        batch.complete()

    async with (
        begin(request["url"], RUN, limits=Limits(spent={"usd": 9})) as run,
        trio.open_nursery() as nursery,
        run.open_stream(*KEY) as stream,
    ):

        async def act() -> None:
            if request["do"] != "resume":
                for event in begun[: 1 + is_stateful]:
                    await event.wait()
            await steer(store, RUN, new_act("status", "ann"))  # it listens
            arm()
            await do_act(store, request["do"])
            os.write(pipe, json.dumps(["answered"]).encode() + b"\n")
            answered.set()
            if request["do"] == "pause":
                nursery.cancel_scope.cancel()

        nursery.start_soon(act)
        if is_stateful:
            nursery.start_soon(_take_snapshots, run, begun[1], answered)
        await run_batches(stream, list(range(BATCHES)), handle)


# -- where a session is killed ---------------------------------------------------------------------


def _armed_recorder(request: dict[str, Any]) -> Callable[[], None]:
    """What has a session killed at a change of a file."""
    recorder = Recorder()
    recorder.watch(Path(request["root"]), None)
    return lambda: recorder.arm(Plan(Action(request["action"]), request["at"]))


def _armed_store(request: dict[str, Any]) -> Callable[[], None]:
    """What has a session killed at a change of its store, and lets it look often for acts."""
    from trio_ckpt.stores._objects.store import ObjectsStore
    from trio_ckpt.stores._postgres.store import PostgresStore

    kind: Any = ObjectsStore if request["url"].startswith("file:") else PostgresStore
    kind.inbox_every_s = ask_inbox.LOOK_EVERY_S = 0.01
    left: list[int] = []

    def counted(verb: Callable[..., Any]) -> Callable[..., Any]:
        async def call(self: Any, *args: Any, **options: Any) -> Any:
            is_one = bool(left and args[1])  # a save of nothing only renews a lease
            if is_one:
                left[0] -= 1
                _die_if(left[0] == 0 and request["action"] == 0)
            answer = await verb(self, *args, **options)
            _die_if(is_one and left[0] == 0 and request["action"] == 1)
            return answer

        return call

    kind.save, kind.write_inbox = counted(kind.save), counted(kind.write_inbox)
    return lambda: left.append(request["at"])


def _die_if(is_due: bool) -> None:
    if is_due:
        os.kill(os.getpid(), signal.SIGKILL)


def _run(request: dict[str, Any], pipe: int) -> int:
    arm = _armed_recorder(request) if "root" in request else _armed_store(request)
    trio.run(_steered, request, arm, pipe)
    return 0


if __name__ == "__main__":
    serve(_run, SESSION_LIMIT_S)
