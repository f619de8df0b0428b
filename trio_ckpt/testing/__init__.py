"""What is for tests, of this library and of programs that use it.

No other room may know this one.

    explore, crash_points   a program is crashed everywhere; where, and how that is written
    world, session          what survives a crash; from a start to a crash or the end
    invariants              what has been promised to every program, and whether it holds
    crash_store, files      a store and files that crash; inodes: what a power cut leaves of them
    faulty                  a store that fails as planned
    stores, store_*         the contract of every store as a function, `check_store`; its clauses
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
