"""Explains what a start of a run needs, and would not find."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from .._journal.store import Finding
from .._util.plain import StreamKey
from .reasons import Clause, Reason, lost

MAX_TROUBLES = 5  # losses and notes that get a sentence each


@attrs.frozen
class Losses:
    """What a start of a run needs, and would not find.

    Attributes:
        states: Streams that cannot go on.
        files: Outputs that are gone, as `find_drift` names them.
        folder: The output folder, if it is gone; empty: it exists, or is not needed.
    """

    states: tuple[Finding, ...] = ()
    files: tuple[Finding, ...] = ()
    folder: str = ""

    def __bool__(self) -> bool:
        return bool(self.states or self.files or self.folder)


def explain_losses(
    losses: Losses, name: Callable[[StreamKey], str], verify_command: str
) -> Iterator[Clause]:
    """Say what a start would not find, and what it does then.

    Args:
        losses: What is lost.
        name: The name of a stream, as a sentence has it.
        verify_command: The command that compares everything with what was saved.
    """
    for state in losses.states[:MAX_TROUBLES]:
        yield lost(name(state.key), state, verify_command)
    if (more := len(losses.states) - MAX_TROUBLES) > 0:
        yield Reason.MORE_STATES_LOST, {"more": more}
    if losses.folder:
        yield Reason.FOLDER_LOST, {"folder": losses.folder}
    for file in losses.files[:MAX_TROUBLES]:
        yield lost(name(file.key), file, verify_command)
    if (more := len(losses.files) - MAX_TROUBLES) > 0:
        yield Reason.MORE_FILES_LOST, {"more": more, "verify": verify_command}
