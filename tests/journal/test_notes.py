"""Notes of open batches: what the records of a stream add up to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import decode_progress, encode_progress
from trio_ckpt._journal.notes import Notes, StoredNote, encode_note
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import ErrorInfo, Record, RecordKind, Taken
from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt._util.exact_sum import shown
from trio_ckpt._util.index_set import IndexSet


def note(index: int, **notes: Any) -> Record:
    return Record(kind=RecordKind.INTENT, at=1.0, index=index, metadata=notes)


def progress_of(*records: Record) -> Progress:
    progress = Progress()
    for sequence, record in enumerate(records, 1):
        apply(progress, sequence, record)
    return progress


def notes_of(progress: Progress, index: int) -> dict[str, Any]:
    return {} if progress.notes is None else progress.notes.of(index)


def test_a_note_of_the_same_name_replaces_the_earlier() -> None:
    progress = progress_of(note(3, a=1), note(3, b=[2]), note(4, a=5), note(3, a={"x": None}))
    assert notes_of(progress, 3) == {"b": [2], "a": {"x": None}}
    assert notes_of(progress, 4) == {"a": 5}
    assert notes_of(progress, 5) == {}


def test_notes_are_gone_when_their_batch_is_confirmed() -> None:
    progress = progress_of(note(3, a=1), note(4, a=2), Record(at=2.0, index=3))
    assert notes_of(progress, 3) == {}
    assert notes_of(progress, 4) == {"a": 2}
    apply(progress, 4, Record(at=2.0, index=4))
    assert progress.notes is None
    apply(progress, 5, note(4, late=1))  # of a call that outlived its batch
    assert progress.notes is None


@pytest.mark.parametrize("kind", [RecordKind.ATTEMPT, RecordKind.SKIP])
def test_notes_stay_through_failures_and_requeues(kind: RecordKind) -> None:
    failed = Record(kind=kind, at=1.0, index=3, error=ErrorInfo("OSError", "down"))
    steps = tuple(IndexSet([3]).to_steps())
    retry = Record(kind=RecordKind.RETRY, at=1.0, steps=steps)
    redo = Record(kind=RecordKind.REDO, at=1.0, steps=steps, taken=Taken({}, {}))
    done = Record(at=1.0, index=0)
    progress = progress_of(done, note(3, a=1), failed, retry, failed, redo)
    assert notes_of(progress, 3) == {"a": 1}


def test_a_stream_that_is_rewound_keeps_the_notes_of_open_batches() -> None:
    done, steps = Record(at=1.0, index=0), tuple(IndexSet([0]).to_steps())
    redo = Record(kind=RecordKind.REDO, at=1.0, index=-1, steps=steps, taken=Taken({}, {}))
    assert progress_of(done, note(3, a=1), redo).notes == progress_of(note(3, a=1)).notes


def test_a_stream_with_a_note_is_interrupted_work() -> None:
    progress = progress_of(note(0, a=1))
    assert progress.status.value == "interrupted"
    assert (progress.started_at, progress.worked_at) == (1.0, 1.0)


def test_what_is_reserved_adds_up_exactly_and_leaves_no_zeros() -> None:
    more = Record(kind=RecordKind.INTENT, at=1.0, index=0, reserved={"usd": 0.1})
    less = Record(at=1.0, index=0, spent={"usd": 0.25}, reserved={"usd": -0.1})
    progress = progress_of(more, more)
    assert progress.reserved["usd"].value == 0.2
    apply(progress, 3, less)
    assert progress.reserved["usd"].value == 0.1
    apply(progress, 4, less)
    assert progress.reserved == {}
    assert progress.spent["usd"].value == 0.5


def test_a_note_has_a_cost_that_changes_with_it() -> None:
    first = Record(kind=RecordKind.INTENT, at=1.0, index=3, metadata={"a": 1}, reserved={"usd": 2})
    less = Record(
        kind=RecordKind.INTENT, at=1.0, index=3, metadata={"a": 2}, reserved={"usd": -0.5}
    )
    other = Record(kind=RecordKind.INTENT, at=1.0, index=4, metadata={"a": 1}, reserved={"usd": 1})
    attempt = Record(kind=RecordKind.INTENT, at=1.0, index=3, reserved={"usd": 8})
    progress = progress_of(first, less, note(3, a=3), other, attempt)
    assert progress.notes is not None
    assert shown(progress.notes.cost_of(3, "a")) == {"usd": 1.5}
    assert shown(progress.notes.total) == {"usd": 2.5}
    assert shown(progress.reserved) == {"usd": 10.5}
    assert shown(progress.assumed) == {"usd": 8}
    assert decode_progress(encode_progress(progress)) == progress


def test_a_fold_has_the_notes_and_what_is_reserved() -> None:
    reserve = Record(kind=RecordKind.INTENT, at=1.0, index=0, reserved={"usd": 0.1})
    progress = progress_of(note(3, a=[1.5, "é"], b=None), note(9, a=1), reserve)
    again = decode_progress(encode_progress(progress))
    assert again == progress
    assert notes_of(again, 3) == {"a": [1.5, "é"], "b": None}


def noted(item: bytes, reserved: dict[str, float], **notes: Any) -> Record:
    return msgspec.structs.replace(note(3, **notes), item=item, reserved=reserved)


def test_notes_are_of_the_item_that_they_are_about() -> None:
    progress = progress_of(
        noted(b"b", {"usd": 2}, intent=1), noted(b"b", {"usd": 0.5}, job=2), note(4, job=3)
    )
    assert progress.notes is not None
    assert progress.notes.of(3, b"b") == progress.notes.of(3) == {"intent": 1, "job": 2}
    assert progress.notes.of(3, b"c") == {}
    assert shown(progress.notes.change_of(3, "job", {"usd": 1}, b"b")) == {"usd": 0.5}
    assert shown(progress.notes.change_of(3, "job", {"usd": 1}, b"c")) == {"usd": 1}
    assert decode_progress(encode_progress(progress)) == progress
    apply(progress, 4, noted(b"c", {"usd": 1}, job=9))  # another item in its place
    assert progress.notes.of(3, b"c") == {"job": 9}
    assert progress.notes.of(3, b"b") == {}
    assert shown(progress.notes.costs(3)) == {"usd": 1}
    assert shown(progress.assumed) == {"usd": 2.5}  # what was set in motion for the other
    assert notes_of(progress, 4) == {"job": 3}


def test_a_note_of_before_items_were_kept_is_seen() -> None:
    stored = msgspec.msgpack.encode({3: {"a": [1, {}]}})
    notes = Notes.decode(msgspec.msgpack.decode(stored, type=dict[int, dict[str, StoredNote]]))
    assert notes is not None
    assert notes.of(3, b"b") == {"a": 1}


def test_a_copy_shares_no_note() -> None:
    progress = progress_of(note(3, a=[1]))
    twin = progress.copy()
    apply(progress, 2, note(3, a=2))
    assert notes_of(twin, 3) == {"a": [1]}
    value = notes_of(twin, 3)["a"]
    value.append(2)
    assert notes_of(twin, 3) == {"a": [1]}


def test_the_size_of_notes_is_that_of_names_and_values() -> None:
    notes = Notes()
    notes.put(0, "é", encode_note("abc"), {})
    notes.put(0, "b", encode_note(1), {})
    notes.put(0, "é", encode_note(""), {})
    assert notes.nbytes == len("é".encode()) + 1 + 1 + 1
    notes.put(7, "c", encode_note(1), {})
    left = notes.without(0)
    assert left is notes
    assert notes.nbytes == 2
    assert notes.without(7) is None
    assert notes.nbytes == 0


def test_the_total_is_what_the_notes_cost() -> None:
    notes = Notes()
    notes.put(0, "a", b"\x01", {"usd": 0.5})
    notes.put(0, "b", b"\x01", {"usd": 0.25, "tokens": 7})
    notes.put(1, "a", b"\x01", {"usd": 1})
    notes.put(0, "a", b"\x02", {"usd": -0.125})
    twin = notes.copy()
    assert shown(notes.total) == {"usd": 1.625, "tokens": 7}
    notes.put(0, "c", b"\x03", {}, b"item")
    notes.without(0)
    assert shown(notes.total) == {"usd": 1}
    notes.without(1)
    assert notes == Notes()
    assert shown(twin.total) == {"usd": 1.625, "tokens": 7}


def test_a_note_that_is_no_value_is_damage() -> None:
    notes = Notes()
    notes.put(0, "a", b"\xc1", {})
    with pytest.raises(StoreDamagedError, match="a note of batch 0 cannot be read"):
        notes.of(0)
