"""The one table of what is fuzzed."""

from __future__ import annotations

from tests.fuzz import files, records, shown, states, typed, wires
from tests.fuzz.case import Target

TARGETS: dict[str, Target] = {
    **records.TARGETS,
    **states.TARGETS,
    **wires.TARGETS,
    **files.TARGETS,
    **typed.TARGETS,
    **shown.TARGETS,
}
