"""Outputs of the last generation that a batch confirms once more, without writing them."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from .._journal.record import Output
from .._util.errors import OutputError
from .._util.threads import run_blocking
from ..outputs import Outputs
from .stream_outputs import StreamFiles


async def carry_outputs(
    files: StreamFiles, outputs: Sequence[Output], index: int
) -> dict[str, Output]:
    """Take outputs of the last generation as those of a batch; nothing is written.

    Raises:
        OutputError: one is not what was confirmed.
        OutputClaimedError: another batch owns a name.
    """
    for output in outputs:
        files.claim(index, output.path)
    with trio.CancelScope(shield=True):
        await run_blocking(_check_all, files.dir, outputs)
    return {output.path: output for output in outputs}


def _check_all(place: Outputs, outputs: Sequence[Output]) -> None:
    with place.unchanged() as is_unchanged:
        changed = [output for output in outputs if not is_unchanged(output)]
    for output in changed:
        if (problem := place.check(output)) is not None:
            raise OutputError(
                output.path,
                f"{problem}; unchanged() carries over what the last generation has written, and "
                "this is not it: do the work of its batch again",
            )
