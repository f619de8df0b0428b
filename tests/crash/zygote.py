"""A server that forks: it imports the library once, and a session costs what a session does.

``python -m tests.crash.zygote`` is started with the recorder in LD_PRELOAD.  It has no thread and
no loop of trio, reads one request a line, and forks a child for it.  What the child tells comes
over a pipe, which a kill does not lose.  `Zygote` is the side that asks.  With a folder and a
kind of store behind it, it runs one session by itself.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import blosc2 as _blosc2  # noqa: F401  # half of what a session would take to import
import trio

from tests.crash.chance import leave_nothing_to_chance
from tests.crash.programs import PROGRAMS, STORES, Session
from tests.crash.recorder import NO_PLAN, Action, Kind, Plan, Recorder
from trio_ckpt import RunStoppedError, TrioCkptError, _keeper
from trio_ckpt.stores import _json_writer
from trio_ckpt.testing._scheduler import seeded_scheduler

ROOT = Path(__file__).parents[2]
SESSION_LIMIT_S = 30.0  # one takes less than a tenth of a second; more is a hang
NOTHING_ELSE = 1  # the exit code of Python after an exception

# What only large runs do, small ones do as well here: arrays in blobs of their own, and a run
# that is written anew.
ARRAY_BLOB_BYTES = 2**14
REWRITE_BYTES = 2_000


# Fork takes no threads along, so none may be made before it.
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR", "BLOSC")
} | {"NUMEXPR_MAX_THREADS": "1", "BLOSC_NTHREADS": "1"}
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


class Zygote:
    """Starts sessions; a context manager."""

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, **SAME_HASHES, "LD_PRELOAD": str(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None and self._process.stdout is not None:
            self._process.stdin.close()
            self._process.stdout.close()
        self._process.wait()

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
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the zygote has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the zygote has died: what it said is on standard error")
        fields = json.loads(answer)
        return Ended(**{**fields, "begun": tuple(fields["begun"]), "acked": tuple(fields["acked"])})


# ---------------------------------------------------------------------------------------
# In the process that forks
# ---------------------------------------------------------------------------------------


def main() -> None:
    """Fork a child for each line, and answer with how it ended."""
    if sys.argv[1:]:
        folder, store = sys.argv[1:]
        alone = {"root": folder, "store": store, "program": "good", "plan": attrs.asdict(NO_PLAN)}
        sys.exit(_run({**alone, "log": None, "number": 0}, sys.stdout.fileno()))
    logging.getLogger("trio_ckpt").addHandler(logging.NullHandler())
    logging.getLogger("trio_ckpt").propagate = False
    _keeper.INLINE_BYTES = ARRAY_BLOB_BYTES
    _json_writer.MIN_REWRITE_BYTES = REWRITE_BYTES
    _warm_up()
    gc.freeze()  # or each child copies what it only looks at
    for line in sys.stdin:
        print(json.dumps(attrs.asdict(_fork(json.loads(line)))), flush=True)


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


def _fork(request: dict[str, Any]) -> Ended:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = NOTHING_ELSE
        try:
            os.close(reading)
            code = _run(request, writing)
        finally:
            os._exit(code)  # nothing of the parent's is to be flushed or closed here
    os.close(writing)
    said, is_late = _listen(reading, time.monotonic() + SESSION_LIMIT_S)
    os.close(reading)
    if is_late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return _read(os.waitstatus_to_exitcode(status), said, is_late=is_late)


def _listen(reading: int, deadline: float) -> tuple[bytes, bool]:
    """What a child says until it is gone; whether it is not gone in time."""
    said = b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return said, True
        part = os.read(reading, 65536)
        if not part:
            return said, False
        said += part


def _read(code: int, said: bytes, *, is_late: bool) -> Ended:
    words = [json.loads(line) for line in said.splitlines()]
    found: dict[str, Any] = {}
    for word in words:
        if word[0] == "end":
            found = word[1]
    return Ended(
        code,
        tuple(index for what, index in words if what == "begun"),
        tuple(index for what, index in words if what == "acked"),
        is_late=is_late,
        **found,
    )


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
