"""How long tests wait, in real time, before they call something hung.

A limit finds a hang; it never decides whether something was fast enough.  So it is far above what
anything takes on a machine that does eight other things.
"""

from __future__ import annotations

HANG_S = 120.0  # for what takes less than a second on a quiet machine
PROGRAM_S = 300.0  # for a program that a test starts, which may import and compile
