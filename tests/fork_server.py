"""A process that imports what is needed once, and forks a child for each request.

It has no thread and no loop of trio, reads one request a line, and answers with how the child
ended.  What the child tells comes over a pipe, line by line, which a kill does not lose.
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
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

ROOT = Path(__file__).parents[1]

# Fork takes no threads along, so none may be made before it.
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR", "BLOSC")
} | {"NUMEXPR_MAX_THREADS": "1", "BLOSC_NTHREADS": "1"}


@attrs.frozen
class Told:
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


class ForkServer:
    """The side that asks; a context manager.

    Args:
        module: What is run; it calls `serve`.
        environment: What is added to that of this process.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> Told:
        """Have one request carried out, to its end or to its death."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the server has died: what it said is on standard error")
        code, said, is_late = json.loads(answer)
        return Told(code, tuple(map(tuple, said)), is_late)


def serve(
    carry_out: Callable[[dict[str, Any], int], int],
    limit_s: float,
    warm_up: Callable[[], None] | None = None,
) -> None:
    """Fork a child for each line of standard input, and answer with how it ended.

    Args:
        carry_out: What a child does with a request and the end of a pipe; its exit code.
        limit_s: A child that takes longer is killed.
        warm_up: Called once, before the first request.
    """
    logging.getLogger("trio_ckpt").addHandler(logging.NullHandler())
    logging.getLogger("trio_ckpt").propagate = False
    if warm_up is not None:
        warm_up()
    gc.freeze()  # or each child copies what it only looks at
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line), carry_out, limit_s)), flush=True)


def _fork(
    request: dict[str, Any], carry_out: Callable[[dict[str, Any], int], int], limit_s: float
) -> tuple[int, list[Any], bool]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.close(reading)
            code = carry_out(request, writing)
        finally:
            os._exit(code)  # nothing of the parent's is to be flushed or closed here
    os.close(writing)
    said, is_late = _listen(reading, time.monotonic() + limit_s)
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
