"""Functions that engines run in other processes, and the witness of what they have done."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_ckpt import remote
from trio_ckpt.engines import _store_host

SHORT = 10  # steps of an item that `hold` does not hold


def double(item: int) -> int:
    return 2 * item


async def double_later(item: int, work: remote.Work[Any]) -> int:
    await work.point()
    return 2 * item


def wait_for_file(item: str) -> str:
    while not Path(item).exists():
        time.sleep(0.01)
    return item


async def wait_with_points(item: str, work: remote.Work[Any]) -> str:
    while not await trio.Path(item).exists():
        await work.point()
        await trio.sleep(0.01)
    return item


def where(item: int) -> list[int]:
    return [item, os.getpid()]


def environment(item: str) -> str | None:
    return os.environ.get(item)


def exit_on_odd(item: int) -> int:
    if item % 2:
        raise SystemExit(f"{item} is odd")
    return item


def stores_open(item: int, work: remote.Work[Any]) -> list[int]:
    """The process, and how many stores are open in it."""
    work.point_sync()
    return [os.getpid(), sum(len(host._stores) for host in _store_host._hosts.values())]


def fail_until(item: list[Any]) -> int:
    """Fail until the file of the item has so many lines."""
    path, count = item
    with Path(path).open("a") as file:
        file.write("tried\n")
    if len(Path(path).read_text().splitlines()) < count:
        raise ValueError("not yet")
    return int(count)


@attrs.define
class Saves:
    """What a function knows of its saves: one begins only when the one before it is durable.

    Attributes:
        durable: How many of its steps are durable, at least.
        begun: How many are when the save that was begun last is.
    """

    durable: int
    begun: int

    def point(self, work: remote.Work[Any]) -> None:
        """Save the state if that is due."""
        if work.point_sync():
            self.durable, self.begun = self.begun, work.state["done"]


@remote.task(state=lambda item: {"done": 0, "sum": 0})
def count_up(item: list[Any], work: remote.Work[dict[str, int]]) -> int:
    """Add up 1 to n, with a pause before each step; each step leaves a line in the side file."""
    n, pause_s, side = item
    state = work.state
    saves = Saves(state["done"], state["done"])
    _note(side, "begun")
    fd = os.open(side, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        while state["done"] < n:
            time.sleep(pause_s)
            if state["done"] and n > SHORT:
                _wait_while_held(Path(side), work, saves)
            state["done"] += 1
            state["sum"] += state["done"]
            me = f"{os.getpid()} {begun_at(os.getpid())}"
            line = f"{work.index} {state['done']} {saves.durable} {me} {time.time():.3f}\n"
            os.write(fd, line.encode())
            work.report(progress_percent=100 * state["done"] / n)
            saves.point(work)
    finally:
        os.close(fd)
        _note(side, "ended")
    return state["sum"]


@attrs.frozen
class Step:
    """One step that was executed."""

    item: int
    number: int
    durable: int  # steps of its item that were durable before it
    pid: int
    begun: int  # when its process began: another one may have its id later
    at: float

    def kill(self) -> bool:
        """Kill the process that made it; False: it has ended."""
        if begun_at(self.pid) != self.begun:
            return False
        os.kill(self.pid, signal.SIGKILL)
        return True


def begun_at(pid: int) -> int:
    """When a process began, in ticks of the kernel; -1: it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def hold(side: Path, count: int | None) -> None:
    """Let functions make so many steps, all together; then they wait.

    A job that is to be disturbed cannot be over before that, however fast the machine is.  None
    waits before the first step of an item, or in an item of `SHORT` steps.

    Args:
        side: The file with their steps.
        count: How many, or a step more of each function.  None: as many as they want.
    """
    path = _hold_of(side)
    if count is None:
        path.unlink(missing_ok=True)
        return
    new = path.with_suffix(".new")
    new.write_text(str(count))
    new.replace(path)


def _hold_of(side: Path) -> Path:
    return side.with_name(f"{side.name}.hold")


def _wait_while_held(side: Path, work: remote.Work[Any], saves: Saves) -> None:
    while _is_held(side):
        saves.point(work)  # it may be told to end
        time.sleep(0.01)


def _is_held(side: Path) -> bool:
    try:
        count = int(_hold_of(side).read_text())
    except FileNotFoundError:
        return False
    return side.read_bytes().count(b"\n") >= count


def steps_in(side: Path) -> list[Step]:
    """The steps that were executed, in the order of their lines."""
    if not side.exists():
        return []
    found: list[Step] = []
    whole, _, _ = side.read_text().rpartition("\n")  # a line may be on its way
    for line in whole.splitlines():
        *numbers, at = line.split()
        item, number, durable, pid, begun = map(int, numbers)
        found.append(Step(item, number, durable, pid, begun, float(at)))
    return found


def durable_again(side: Path) -> list[Step]:
    """The steps that were durable, and were made again all the same; at best there is none.

    How many steps are lost with a process depends on how long a save takes, and which, does not.
    """
    durable: Counter[int] = Counter()
    found: list[Step] = []
    for step in steps_in(side):
        if step.number <= durable[step.item]:
            found.append(step)
        durable[step.item] = max(durable[step.item], step.durable)
    return found


def _note(side: str, what: str) -> None:
    with Path(f"{side}.{what}").open("a") as file:
        file.write("function\n")


def running(side: Path) -> int:
    """How many functions with this side file have begun and not ended."""
    begun, ended = (Path(f"{side}.{what}") for what in ("begun", "ended"))
    have_ended = ended.read_text().count("\n") if ended.exists() else 0
    return (begun.read_text().count("\n") if begun.exists() else 0) - have_ended
