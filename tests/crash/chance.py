"""What a session would leave to chance or to the clock, so that a replay takes the same steps.

A schedule names an operation by its number, so a session must not have one more or one less by
chance: because of a name, of the length of a time, or of how long it took.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from typing import Any

from tests.crash.recorder import Recorder
from trio_ckpt._runs import lifecycle
from trio_ckpt.abc import Store

FIRST_S = 1_800_000_000  # when the first session begins; Unix time
SESSION_S = 1_000
FIRST_PID = 10_000

_tempfile: Any = tempfile  # the sequence of names is not public
_lifecycle: Any = lifecycle


def leave_nothing_to_chance(recorder: Recorder, number: int) -> None:
    """Make random bytes, names and times follow from the number of a session; for good.

    Args:
        recorder: Of this process, which watches already.
        number: Of the session.
    """
    now_s = FIRST_S + number * SESSION_S
    recorder.set_clock(now_s)
    time.time = lambda: float(now_s)
    os.getpid = lambda: FIRST_PID + number  # records have it, in as many digits
    os.urandom = random.Random(number).randbytes
    _tempfile._name_sequence = map(f"{number:02d}_{{:05d}}".format, itertools.count())
    Store.publish_every_s = SESSION_S  # else a session on a slow machine asks who reads it
    _lifecycle.serve_acts = _serve_none  # it makes and removes a file beside all else


async def _serve_none(_run: object, _session: object) -> None:
    """Serve no acts."""
