"""What is for tests, of this library and of programs that use it.

Crashes that are planned, a faulty store, and the contract of every store as a function: `_stores`
has `check_store`, and `_store_*` its clauses.  No other room may know this one.
"""

from __future__ import annotations

from ._crash_points import (
    Crashed as Crashed,
    CrashFoundError as CrashFoundError,
    LawBrokenError as LawBrokenError,
)
from ._explore import Exploration as Exploration, explore_crashes as explore_crashes
from ._faulty import (
    CommitThenError as CommitThenError,
    Delay as Delay,
    Fail as Fail,
    Fault as Fault,
    FaultyStore as FaultyStore,
    Hang as Hang,
    Reject as Reject,
)
from ._session import make_clock as make_clock, seeded_scheduler as seeded_scheduler
from ._stores import check_store as check_store
from ._world import World as World, WorldFiles as WorldFiles
