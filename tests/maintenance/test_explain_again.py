"""How a generation began, and whether the next one could begin from it, in words."""

from __future__ import annotations

from trio_ckpt._journal.changes import BeganFrom
from trio_ckpt._maintenance.explain_again import generation_clauses
from trio_ckpt._maintenance.reasons import render

COUNTS = {"new": 1, "changed": 0, "unchanged": 3, "gone": 1, "skipped": 0}


def said(number: int, began_from: BeganFrom | None, may_begin_next: bool) -> str:
    return render(*generation_clauses(number, began_from, may_begin_next))


def test_what_is_not_complete_goes_on() -> None:
    assert said(2, BeganFrom(1), False) == (
        "Generation 2 began from generation 1 (again=True) and is not complete: every start goes "
        "on with it. What is known of an item is read from generation 1."
    )


def test_what_is_complete_says_what_has_changed_and_what_is_next() -> None:
    assert said(2, BeganFrom(1, 9, COUNTS), True) == (
        "Generation 2 began from generation 1 (again=True), with 1 new, 0 changed, 3 unchanged, "
        "1 gone: `trio-ckpt changes` lists them. With again=True a start begins generation 3 from "
        "this one."
    )


def test_a_first_generation_says_only_what_is_next() -> None:
    assert said(0, None, True) == "With again=True a start begins generation 1 from this one."
    assert generation_clauses(0, None, False) == []
