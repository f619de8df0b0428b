"""Sessions and commands of random programs, each in a child of a process that forks."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import attrs
import cattrs

from tests.fork_server import ForkServer, Told, serve
from tests.random_programs.session import CommandPlan, SessionPlan, carry_out

LIMIT_S = 60.0  # a session takes a tenth of a second; more is a hang
BROKEN = 99  # the exit code of a child that could not carry out its plan


class Server(ForkServer):
    """The side that asks."""

    def __init__(self) -> None:
        super().__init__("tests.random_programs.server")

    def __enter__(self) -> Server:
        return self

    def run(self, plan: SessionPlan | CommandPlan, root: Path) -> Told:
        """Run one session or command to its end, or to its death."""
        return self.ask(
            {"kind": type(plan).__name__, "plan": attrs.asdict(plan), "root": str(root)}
        )


def _carry_out(request: dict[str, Any], pipe: int) -> int:
    try:
        kind = {"SessionPlan": SessionPlan, "CommandPlan": CommandPlan}[request["kind"]]
        plan = cattrs.structure(request["plan"], kind)
        return carry_out(plan, Path(request["root"]), pipe)
    except BaseException:
        traceback.print_exc()
        return BROKEN


if __name__ == "__main__":
    serve(_carry_out, LIMIT_S)
