"""What is for tests, of this library and of programs that use it."""

from __future__ import annotations

from ._faulty import (
    CommitThenError as CommitThenError,
    Delay as Delay,
    Fail as Fail,
    Fault as Fault,
    FaultyStore as FaultyStore,
    Hang as Hang,
    Reject as Reject,
)
from ._stores import check_store as check_store
