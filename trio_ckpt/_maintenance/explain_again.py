"""Explains how the generation of a run began, and whether the next one could begin from it."""

from __future__ import annotations

from .._journal.changes import BeganFrom, counts_text
from .reasons import Clause, Reason


def generation_clauses(
    number: int, began_from: BeganFrom | None, may_begin_next: bool
) -> list[Clause]:
    """What is to be said of a generation.

    Args:
        number: Its number.
        began_from: The generation that it began from by ``again=True``; None: from none.
        may_begin_next: Whether the next one could begin from it now.
    """
    clauses: list[Clause] = []
    if began_from is None:
        if number:
            clauses.append((Reason.BEGUN_AFRESH, {"times": number}))
    else:
        fields: dict[str, object] = {"generation": number, "base": began_from.base}
        if began_from.checkpoints is None:
            clauses.append((Reason.AGAIN_GOES_ON, fields))
        else:
            fields["counts"] = counts_text(began_from.counts)
            clauses.append((Reason.AGAIN_COMPLETE, fields))
    if may_begin_next:
        clauses.append((Reason.AGAIN_NEXT, {"next": number + 1}))
    return clauses
