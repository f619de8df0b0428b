"""A server that forks: it imports the library once, and a session costs what a session does.

``python -m tests.crash.zygote`` is started with the recorder in LD_PRELOAD.  It has no thread and
no loop of trio, reads one request a line, and forks a child for it.  What the child tells comes
over a pipe, which a kill does not lose.  `Zygote` is the side that asks.  With a folder and a
kind of store behind it, it runs one session by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import attrs
import blosc2 as _blosc2  # noqa: F401  # half of what a session would take to import
import trio

from tests.crash.chance import leave_nothing_to_chance
from tests.crash.programs import PROGRAMS, STORES, Session
from tests.crash.recorder import NO_PLAN, Action, Kind, Plan, Recorder
from tests.fork_server import ForkServer, Told, serve
from tests.hangs import HANG_S
from trio_ckpt import RunStoppedError, TrioCkptError
from trio_ckpt._commit import state_capture
from trio_ckpt.stores._json import writer
from trio_ckpt.testing._session import seeded_scheduler

SESSION_LIMIT_S = HANG_S  # one takes less than a tenth of a second; more is a hang
NOTHING_ELSE = 1  # the exit code of Python after an exception

# What only large runs do, small ones do as well here: arrays in blobs of their own, and a run
# that is rewritten.
ARRAY_BLOB_BYTES = 2**14
REWRITE_BYTES = 2_000


SAME_HASHES = {"PYTHONHASHSEED": "0"}  # the order of a set of strings


@attrs.frozen
class Ended:
    """How a session ended.

    Attributes:
        code: Its exit code; less than 0: the signal that killed it.
        begun: The batches that it began.
        acked: Those of which it was told that they are durable.
        error: What it ended with; empty: nothing was raised.
        is_ours: Whether that is an error of the library, not of the system.
        is_late: It did not end in time.
        counts: Its operations, by kind; none if it was killed.
        hits: How many operations the plan has met.
    """

    code: int
    begun: tuple[int, ...] = ()
    acked: tuple[int, ...] = ()
    error: str = ""
    is_ours: bool = True
    is_late: bool = False
    counts: dict[str, int] = attrs.field(factory=dict[str, int])
    hits: int = 0

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL and not self.is_late

    def count(self, kinds: Kind) -> int:
        """How many operations of these kinds there were."""
        return sum(number for name, number in self.counts.items() if Kind[name] & kinds)


class Zygote(ForkServer):
    """Starts sessions; a context manager."""

    def __init__(self, library: Path) -> None:
        super().__init__("tests.crash.zygote", {**SAME_HASHES, "LD_PRELOAD": str(library)})

    def __enter__(self) -> Zygote:
        return self

    def run(
        self,
        root: Path,
        store: str,
        *,
        program: str = "good",
        plan: Plan = NO_PLAN,
        log: Path | None = None,
        number: int = 0,
    ) -> Ended:
        """Run one session to its end, or to its death.

        Args:
            root: The watched folder, where everything is.
            store: The kind of its store.
            program: Its name.
            plan: What goes wrong in it.
            log: Where its operations are written down, behind what is there.
            number: Of the session in its folder: what is chance or time elsewhere follows from it.
        """
        request = {
            "root": str(root),
            "store": store,
            "program": program,
            "plan": attrs.asdict(plan),
            "log": str(log) if log else None,
            "number": number,
        }
        return _read(self.ask(request))


def _read(told: Told) -> Ended:
    """How a session ended, from what its child told."""
    found: dict[str, Any] = {}
    for (end,) in told.words("end"):
        found = end
    return Ended(
        told.code,
        tuple(index for (index,) in told.words("begun")),
        tuple(index for (index,) in told.words("acked")),
        is_late=told.is_late,
        **found,
    )


# ---------------------------------------------------------------------------------------
# In the process that forks
# ---------------------------------------------------------------------------------------


def main() -> None:
    """Fork a child for each line, and answer with how it ended."""
    if sys.argv[1:]:
        folder, store = sys.argv[1:]
        alone = {"root": folder, "store": store, "program": "good", "plan": attrs.asdict(NO_PLAN)}
        sys.exit(_run({**alone, "log": None, "number": 0}, sys.stdout.fileno()))
    state_capture.INLINE_BYTES = ARRAY_BLOB_BYTES
    writer.MIN_REWRITE_BYTES = REWRITE_BYTES
    serve(_run, SESSION_LIMIT_S, _warm_up)


def _warm_up() -> None:
    """Run each kind of program once: what is imported and compiled then, no child has to.

    Its threads are gone afterwards: fork takes none along.
    """
    cache = sys.modules["trio._core._thread_cache"]
    idle_s, cache.IDLE_TIMEOUT = cache.IDLE_TIMEOUT, 0.01
    for store in STORES:
        with tempfile.TemporaryDirectory() as folder:
            trio.run(PROGRAMS["good"], Session(Path(folder), store, lambda _what, _index: None))
    cache.IDLE_TIMEOUT = idle_s
    deadline = time.monotonic() + SESSION_LIMIT_S
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError("a thread of the warm-up does not end")
        time.sleep(0.005)


# ---------------------------------------------------------------------------------------
# In the child
# ---------------------------------------------------------------------------------------


def _run(request: dict[str, Any], pipe: int) -> int:
    recorder = Recorder()
    plan = request["plan"]
    plan = Plan(**{**plan, "action": Action(plan["action"]), "kinds": Kind(plan["kinds"])})

    def tell(what: str, index: int) -> None:
        if what == "acked":
            recorder.mark(f"{what} {index}")
        os.write(pipe, json.dumps([what, index]).encode() + b"\n")

    log = Path(request["log"]) if request["log"] else None
    recorder.watch(Path(request["root"]), log, waits=False)
    leave_nothing_to_chance(recorder, request["number"])
    recorder.arm(plan)
    session = Session(Path(request["root"]), request["store"], tell)
    end: dict[str, Any] = {}
    try:
        with seeded_scheduler(request["number"]):
            code = trio.run(PROGRAMS[request["program"]], session)
    except RunStoppedError as error:
        code, end["error"] = error.exit_code, str(error)
    except BaseException as error:
        code = NOTHING_ELSE
        end["is_ours"] = isinstance(error, TrioCkptError)
        end["error"] = f"{type(error).__name__}: {error}"
        if not end["is_ours"]:
            end["error"] += "\n" + "".join(traceback.format_exception(error))
    end["counts"] = {str(kind.name): recorder.count(kind) for kind in Kind}
    end["hits"] = recorder.hits()
    os.write(pipe, json.dumps(["end", end]).encode() + b"\n")
    return code


if __name__ == "__main__":
    main()
