"""Session metadata has one shape, whichever process wrote it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.tools import ended, session
from trio_ckpt._journal.session_record import check_session_metadata
from trio_ckpt._util.errors import StoreDamagedError

FIRST = session(1).metadata
LAST = ended(session(1), batches=3, totals={"cost": 0.5}).metadata


def test_what_sessions_say_is_taken_as_it_is() -> None:
    assert check_session_metadata(FIRST) is FIRST
    assert check_session_metadata(LAST, is_end=True) is LAST
    assert check_session_metadata({**LAST, "counts": {}}, is_end=True)["counts"] == {}  # an import


@pytest.mark.parametrize("name", FIRST)
def test_a_session_that_lacks_something_is_damage(name: str) -> None:
    lacking = {key: value for key, value in FIRST.items() if key != name}
    with pytest.raises(StoreDamagedError, match="a session cannot be read"):
        check_session_metadata(lacking)


@pytest.mark.parametrize("name", ["ended", "at", "counts"])
def test_an_end_that_says_not_when_or_how_is_damage(name: str) -> None:
    lacking = {key: value for key, value in LAST.items() if key != name}
    with pytest.raises(StoreDamagedError, match="the end of a session cannot be read"):
        check_session_metadata(lacking, is_end=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session", "1"),
        ("runtime_s", float("nan")),
        ("runtime_s", -1.0),
        ("changes", [["field", 1, 2]]),
        ("config", []),
        ("pid", 1.5),
        ("began", 1e300),
        ("at", float("inf")),
        ("counts", {"totals": {"cost": "a lot"}}),
        ("counts", 3),
    ],
)
def test_a_value_of_another_kind_is_damage(name: str, value: Any) -> None:
    with pytest.raises(StoreDamagedError):
        check_session_metadata({**LAST, name: value}, is_end=True)
