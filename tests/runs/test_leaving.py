"""Leaving a stream: what an exception that leaves its block reports."""

from __future__ import annotations

import pytest

from trio_ckpt import RunStoppedError, StreamFailedError
from trio_ckpt._runs.stream_operations import is_only_stopped, is_own_failure

OWN = StreamFailedError("no", stream=("s",))
OTHER = StreamFailedError("no", stream=("t",))
STOPPED = RunStoppedError("r", exit_code=75, resume_command=None)
POISON = OSError("the disk is gone")


def nested(*errors: BaseException, depth: int = 5_000) -> BaseException:
    """A group deeper than the stack, with some exceptions in its innermost group."""
    group = BaseExceptionGroup("several", errors)
    for _ in range(depth):
        group = BaseExceptionGroup("one", [group])
    return group


@pytest.mark.parametrize(
    ("error", "is_own"),
    [
        (OWN, True),
        (OTHER, False),
        (STOPPED, False),
        (nested(OWN, depth=1), True),
        (nested(OWN, OTHER, depth=1), False),
        (nested(OWN, OWN), True),
        (nested(OWN, POISON), False),
    ],
)
def test_a_streams_own_failure_is_seen_in_groups(error: BaseException, is_own: bool) -> None:
    assert is_own_failure(error, ("s",)) is is_own


@pytest.mark.parametrize(
    ("error", "poison", "is_only"),
    [
        (STOPPED, None, True),
        (POISON, None, False),
        (POISON, POISON, True),
        (nested(STOPPED, POISON, depth=1), POISON, True),
        (nested(STOPPED, POISON, depth=1), None, False),
        (nested(STOPPED, POISON), POISON, True),
        (nested(STOPPED, OWN), POISON, False),
    ],
)
def test_a_stop_is_seen_in_groups(
    error: BaseException, poison: Exception | None, is_only: bool
) -> None:
    assert is_only_stopped(error, poison) is is_only
