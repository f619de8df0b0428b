"""What goes wrong in a row of sessions, as a text that says it again: ``--replay`` takes it."""

from __future__ import annotations

import errno

import attrs

from tests.crash.recorder import NO_PLAN, Action, Kind, Plan


@attrs.frozen
class Schedule:
    """What happens to a program until it is left alone.

    Attributes:
        sweep: Whose it is.
        store: The kind of store.
        plans: What goes wrong in one session after the other.
        cut: After how many lines of the log, all sessions together, power was cut; None: the
            files are as the processes left them.
        seed: Of the power cut.
        program: What is crashed.
    """

    sweep: str
    store: str
    plans: tuple[Plan, ...]
    cut: int | None = None
    seed: int = 0
    program: str = "good"

    def __str__(self) -> str:
        plans = "+".join(map(write_plan, self.plans))
        cut = "-" if self.cut is None else f"{self.cut}.{self.seed}"
        return "/".join([self.sweep, self.store, self.program, plans, cut])


def read_schedule(text: str) -> Schedule:
    """A schedule from its text.

    Raises:
        ValueError: it is none.
    """
    sweep, store, program, plans, cut = text.split("/")
    at, _, seed = cut.partition(".")
    return Schedule(
        sweep,
        store,
        tuple(map(read_plan, plans.split("+"))),
        None if cut == "-" else int(at),
        int(seed or 0),
        program,
    )


def write_plan(plan: Plan) -> str:
    """A plan as a text: ``kill_after@17``, ``fail@3:EIO:persistent:1024``."""
    if plan.action is Action.NONE:
        return "clean"
    parts = [f"{plan.action.name.lower()}@{plan.at}"]
    if plan.error:
        parts.append(errno.errorcode[plan.error])
    if plan.persistent:
        parts.append("persistent")
    return ":".join([*parts, str(int(plan.kinds))])


def read_plan(text: str) -> Plan:
    """A plan from its text.

    Raises:
        ValueError: it is none.
    """
    if text == "clean":
        return NO_PLAN
    first, *words, kinds = text.split(":")
    action, _, at = first.partition("@")
    errors = [getattr(errno, word) for word in words if word != "persistent"]
    return Plan(
        Action[action.upper()],
        int(at),
        Kind(int(kinds)),
        errors[0] if errors else 0,
        persistent="persistent" in words,
    )
