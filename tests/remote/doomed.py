"""A process that kills itself, with SIGKILL, at one transition of the protocol's tables.

python -m tests.remote.doomed ROLE KIND WAS SIDE NTH MODULE [ARGUMENT …]

ROLE, KIND and WAS name a cell, SIDE is "sent" or "come"; MODULE is run as `python -m` would.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

from trio_ckpt.remote._wire.message import Message, TaskMessage
from trio_ckpt.remote._wire.protocol import Connection
from trio_ckpt.remote._wire.tables import TaskPhase


def doom(role_name: str, kind: str, was_name: str, side: str, nth: int) -> None:
    """Die when the cell has been passed for the nth time."""
    whole, left = Connection._step, nth

    def step(
        connection: Connection, role: Any, message: Message, error: Any, body: Any = None
    ) -> None:
        nonlocal left
        was = connection.phase.name
        if isinstance(message, TaskMessage):
            was = connection.tasks.get(message.task_id, TaskPhase.NONE).name
        whole(connection, role, message, error, body)
        is_it = (role.name, message.KIND.name, was) == (role_name, kind, was_name)
        if is_it and (body is not None) is (side == "sent"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    Connection._step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    doom(*sys.argv[1:5], int(sys.argv[5]))
    sys.argv[:] = sys.argv[6:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
