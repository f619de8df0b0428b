"""What a target is: how to read one input, and which errors it may end with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs

from trio_ckpt._util.errors import StoreDamagedError, TrioCkptError

MAX_INPUT_BYTES = 8_192  # most headers, and several records of each kind, are within it
MAX_RSS_MIB = 1_024  # of the process; an input that takes so much is a bomb
MAX_INPUT_S = 10  # for one input; all of them take milliseconds

Read = Callable[[bytes], str]


class LawBrokenError(Exception):
    """A reader took what it should not have taken, or gave back something else."""


def law(*, holds: bool, broken: str) -> None:
    """See that a law holds."""
    if not holds:
        raise LawBrokenError(broken)


@attrs.frozen
class Reader:
    """A target that is open.

    Attributes:
        read: Reads one input; returns in a word how it ended.  It raises what `Target.allows`
            names, and anything else is a finding.
        seeds: Good inputs.
        fresh: Makes a damaged input that keeps its shape, where bytes alone seldom would.
        close: Lets go of what it holds.
    """

    read: Read
    seeds: Sequence[bytes]
    fresh: Callable[[random.Random], bytes] | None = None
    close: Callable[[], object] = attrs.field(default=lambda: None)


@attrs.frozen
class Target:
    """One reader of what others may have written.

    Attributes:
        open: Makes it ready; not before it is needed.
        allows: The errors by which it may refuse: leaves of `TrioCkptError`, unless it is pure
            and its caller turns them into one.
        ends: Words that a run of the tests must have seen: or it tests refusals alone.
        share: Of the executions that the tests do; for what is slow.
    """

    open: Callable[[], Reader]
    allows: tuple[type[Exception], ...] = (StoreDamagedError,)
    ends: frozenset[str] = frozenset({"read"})
    share: float = 1.0

    def try_one(self, reader: Reader, data: bytes) -> str:
        """Read one input; how it ended."""
        try:
            return reader.read(data)
        except self.allows as error:
            is_ours = type(error) is not TrioCkptError and not isinstance(error, UnicodeError)
            law(holds=is_ours, broken=f"{type(error).__name__} says nothing: {error}")
            return type(error).__name__
