"""Which batches are of older code, as records and folds have it."""

from __future__ import annotations

from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.code import MAX_OLD, UNKNOWN, CodeMark
from trio_ckpt._journal.folds import decode_progress, encode_progress
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Record, RecordKind, Taken

A, B, C = (CodeMark(name, name * 4, n) for n, name in enumerate("abc", 1))


def done(index: int, code: CodeMark | None = None) -> Record:
    return Record(at=1.0, index=index, code=code)


def progress_of(*records: Record) -> Progress:
    progress = Progress()
    for sequence, record in enumerate(records, 1):
        apply(progress, sequence, record)
    return progress


def old(progress: Progress) -> dict[str, list[int]]:
    return {one.mark.digest: list(one.indexes) for one in progress.old_code}


def test_what_was_confirmed_before_is_of_the_older_code() -> None:
    progress = progress_of(done(0, A), done(1), done(2, B), done(3), done(4, C))
    assert old(progress) == {"aaaa": [0, 1], "bbbb": [2, 3]}
    assert progress.code == C


def test_code_that_comes_back_is_not_old() -> None:
    progress = progress_of(done(0, A), done(1, B), done(2, A), done(3))
    assert old(progress) == {"bbbb": [1]}
    apply(progress, 5, done(4, B))
    assert old(progress) == {"aaaa": [0, 2, 3]}


def test_what_was_done_before_code_was_noted_is_told_apart() -> None:
    progress = progress_of(done(0), done(1, A))
    assert [one.mark for one in progress.old_code] == [UNKNOWN]
    assert old(progress) == {"": [0]}


def test_a_batch_that_is_done_again_is_of_the_newer_code() -> None:
    progress = progress_of(done(0, A), done(1), done(2, B))
    redo = Record(kind=RecordKind.REDO, at=1.0, steps=(1, 1), taken=Taken({}, {}))
    apply(progress, 4, redo)
    assert old(progress) == {"aaaa": [0]}
    apply(progress, 5, done(1))
    assert old(progress) == {"aaaa": [0]}


def test_a_copy_does_not_follow_its_original() -> None:
    progress = progress_of(done(0, A), done(1), done(2, B))
    copy = progress.copy()
    apply(progress, 4, Record(kind=RecordKind.REDO, at=1.0, steps=(1, 1), taken=Taken({}, {})))
    assert old(copy) == {"aaaa": [0, 1]}


def test_a_fold_has_them() -> None:
    progress = progress_of(done(0, A), done(1), done(2, B))
    again = decode_progress(encode_progress(progress))
    assert (again.code, old(again)) == (B, {"aaaa": [0, 1]})


def test_of_very_many_the_oldest_are_one() -> None:
    marks = [CodeMark("f", f"{n:04}", n) for n in range(MAX_OLD + 5)]
    progress = progress_of(*(done(n, mark) for n, mark in enumerate(marks)))
    assert len(progress.old_code) == MAX_OLD
    assert list(progress.old_code[0].indexes) == [0, 1, 2, 3, 4]
    assert sum(len(one.indexes) for one in progress.old_code) == MAX_OLD + 4
