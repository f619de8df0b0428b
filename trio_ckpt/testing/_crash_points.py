"""Points where a program is made to crash: their text form, and how they are reached."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Literal, cast, get_args

import attrs

from .._util.errors import TrioCkptError

PointKind = Literal["store", "files", "cancellation"]
CrashKind = Literal["kill", "power", "cancel"]

POINT_KINDS: tuple[PointKind, ...] = get_args(PointKind)
CRASH_KINDS: dict[PointKind, tuple[CrashKind, ...]] = {
    "store": ("kill", "power"),
    "files": ("kill", "power"),
    "cancellation": ("kill", "power", "cancel"),
}
"""What can happen at a point of each kind; at a point of cancellation also a kill."""

_WHERE: dict[PointKind, str] = {"store": "", "files": "before it could ", "cancellation": ""}
NO_CRASH = "none"  # the text of a plan without a crash

_TEMP = re.compile(r"\.(.*)\.ckpt-tmp-(?:[0-9a-f]{8}-[0-9]+-)?[0-9a-f]{16}")
_POINT = re.compile(r"(store|files|cancellation):(\d{1,9}),(kill|power|cancel),seed (\d{1,18})")


@attrs.frozen
class Point:
    """One crash: at the `number`-th point of its kind, counted from 1 in each session.

    Attributes:
        kind: A call of the store, an operation on files, or a step of a task.
        number: The number of the point.
        crash: Killed, without power, or cancelled.
        seed: Seed of trio's scheduler in that session, and of what a power cut leaves.
    """

    kind: PointKind
    number: int
    crash: CrashKind
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number},{self.crash},seed {self.seed}"


Plan = tuple[Point, ...]


def write_plan(plan: Plan) -> str:
    """Return the text that `read_plan` reads."""
    return "; ".join(map(str, plan)) or NO_CRASH


def read_plan(text: str) -> Plan:
    """Parse the crashes in a text, one for each session: ``store:17,power,seed 3; …``.

    Raises:
        ValueError: the text is not a plan.
    """
    if text.strip() == NO_CRASH:
        return ()
    plan: list[Point] = []
    for part in text.split(";"):
        found = _POINT.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{part.strip()!r} is not a crash; one is 'store:17,power,seed 3'")
        kind, crash = cast("PointKind", found[1]), cast("CrashKind", found[3])
        if crash not in CRASH_KINDS[kind]:
            raise ValueError(f"{part.strip()!r}: at {kind} a program is not cancelled")
        plan.append(Point(kind, int(found[2]), crash, int(found[4])))
    return tuple(plan)


class Crashed(BaseException):
    """Raised by every call of a dying program; a program must not catch it."""

    def __init__(self) -> None:
        super().__init__("the program has crashed: nothing that it calls has an effect any more")


class LawBrokenError(AssertionError):
    """A promise to every program does not hold; the message says which."""


class CrashFoundError(TrioCkptError, AssertionError):
    """A crash that the program does not survive; ``__cause__`` is the failure.

    Attributes:
        replay: The text of the crash, for ``replay=`` of `explore_crashes`.
    """

    def __init__(self, message: str, replay: str) -> None:
        super().__init__(message)
        self.replay = replay


@attrs.define(eq=False)
class CrashTrigger:
    """Counts the points of one session, and crashes the program at one of them.

    Attributes:
        point: Where to crash; None: nowhere.
        on_fire: Called at the crash: takes down what the next session finds.
        counts: The points so far, by kind.
        where: Where the program crashed, as text.
        has_fired: Whether the program is dead.
    """

    point: Point | None = None
    on_fire: Callable[[], None] = lambda: None
    counts: Counter[PointKind] = attrs.field(factory=Counter["PointKind"])
    where: str | None = None
    has_fired: bool = False

    def check_alive(self) -> None:
        """Raise if the program is dead.

        Raises:
            Crashed: the program is dead.
        """
        if self.has_fired:
            raise Crashed

    def is_next(self, kind: PointKind) -> bool:
        """Whether the next point of a kind is the planned one."""
        point = self.point
        return point is not None and point.kind == kind and point.number == self.counts[kind] + 1

    def reach(self, kind: PointKind, verb: str, name: str = "") -> None:
        """Pass a point, or crash there.

        Raises:
            Crashed: the program is dead.
        """
        self.check_alive()
        if self.is_next(kind):
            name = _TEMP.sub(r"the temporary file of \1", name)  # its digits are random
            self.fire(f"{_WHERE[kind]}{verb} {name}".rstrip())
            raise Crashed
        self.counts[kind] += 1

    def fire(self, where: str) -> None:
        """Kill the program here."""
        self.where, self.has_fired = where, True
        self.on_fire()
