"""A process that imports the library once, and forks a child for each session or command."""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import cattrs

from tests.random_programs.session import CommandPlan, SessionPlan, carry_out

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0  # a session takes a tenth of a second; more is a hang
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR", "BLOSC")
} | {"NUMEXPR_MAX_THREADS": "1", "BLOSC_NTHREADS": "1"}


@attrs.frozen
class Ended:
    """How a child ended.

    Attributes:
        code: Its exit code; less than 0: the signal that killed it.
        said: What it told, in order.
        is_late: It did not end in time.
    """

    code: int
    said: tuple[tuple[Any, ...], ...] = ()
    is_late: bool = False

    def words(self, what: str) -> list[tuple[Any, ...]]:
        """What it told of one kind."""
        return [tuple(word[1:]) for word in self.said if word[0] == what]


class Server:
    """The side that asks; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.random_programs.server"],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, plan: SessionPlan | CommandPlan, root: Path) -> Ended:
        """Run one session or command to its end, or to its death."""
        request = {"kind": type(plan).__name__, "plan": attrs.asdict(plan), "root": str(root)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the server has died: what it said is on standard error")
        code, said, is_late = json.loads(answer)
        return Ended(code, tuple(map(tuple, said)), is_late)


def main() -> None:
    """Fork a child for each line, and answer with how it ended."""
    logging.getLogger("trio_ckpt").addHandler(logging.NullHandler())
    logging.getLogger("trio_ckpt").propagate = False
    gc.freeze()  # or each child copies what it only looks at
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


def _fork(request: dict[str, Any]) -> tuple[int, list[Any], bool]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.close(reading)
            kind = {"SessionPlan": SessionPlan, "CommandPlan": CommandPlan}[request["kind"]]
            plan = cattrs.structure(request["plan"], kind)
            code = carry_out(plan, Path(request["root"]), writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # nothing of the parent's is to be flushed or closed here
    os.close(writing)
    said, is_late = _listen(reading, time.monotonic() + LIMIT_S)
    os.close(reading)
    if is_late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    words = [json.loads(line) for line in said.split(b"\n")[:-1]]
    return os.waitstatus_to_exitcode(status), words, is_late


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


if __name__ == "__main__":
    main()
