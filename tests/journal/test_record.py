"""Records: what is saved comes back, what was not saved does not, and it all adds up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given, strategies as st

from trio_ckpt._journal import folds, record as _records
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import MAX_ERRORS, decode_progress, encode_progress
from trio_ckpt._journal.progress import MAX_SKIPS, FailedAttempt, Progress
from trio_ckpt._journal.record import (
    DIGEST_BYTES,
    MAX_ERROR_CHARS,
    MAX_RECORD_BYTES,
    ErrorInfo,
    Opened,
    Output,
    Record,
    RecordKind,
    Seal,
    SinkLines,
    Status,
    Taken,
    decode_record,
    describe_error,
    encode_record,
    error_line,
)
from trio_ckpt._util.errors import NotEncodableError, StoreDamagedError
from trio_ckpt._util.exact_sum import MAX_AMOUNT, ExactSum, encode_sums, shown
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt._util.plain import (
    JOB_STREAM,
    MAX_KEY_CHARS,
    MAX_RUN_ID_CHARS,
    PHASE,
    RUN_STREAM,
    check_run_id,
    check_stream_key,
    decode_key,
    encode_key,
)
from trio_ckpt.stores._local.blobs import MAX_WHOLE_BYTES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**63), 2**64 - 1)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
NUMBERS = st.one_of(st.integers(-9, 9), st.floats(-MAX_AMOUNT, MAX_AMOUNT))
AMOUNTS = st.dictionaries(st.sampled_from("ab"), NUMBERS, max_size=2)
TIME = st.floats(0, 2e9)
SUMS = st.dictionaries(
    st.sampled_from("ab"), st.tuples(st.integers(-9, 9).map(lambda n: f"{n:x}"), st.integers(0, 9))
)
INDEX = st.integers(0, 6)
COUNT = st.integers(0, 99)
ERROR = st.builds(ErrorInfo, TEXT, TEXT, st.booleans(), st.none() | INDEX)
RECORDS = st.builds(
    Record,
    kind=st.sampled_from(RecordKind),
    at=TIME,
    index=INDEX,
    item=st.binary(max_size=8),
    attempts=COUNT,
    records=COUNT,
    outputs=st.lists(st.builds(Output, TEXT, COUNT, COUNT, TEXT), max_size=2).map(tuple),
    lines=st.lists(st.builds(SinkLines, TEXT, COUNT, st.binary()), max_size=2).map(tuple),
    totals=AMOUNTS,
    spent=AMOUNTS,
    reserved=st.none() | AMOUNTS,
    cursor=st.just(msgspec.UNSET) | PLAIN,
    metadata=st.dictionaries(TEXT, PLAIN, max_size=2),
    state=st.binary(max_size=8),
    last_index=st.none() | INDEX,
    steps=st.lists(INDEX, max_size=3).map(lambda found: tuple(IndexSet(found).to_steps())),
    adds=st.binary(max_size=8),
    expected=st.none() | COUNT,
    opened=st.none() | st.builds(Opened, TIME, INDEX),
    adopted=st.booleans(),
    taken=st.none() | st.builds(Taken, SUMS, SUMS, st.booleans()),
    position=st.none() | COUNT,
    error=st.none() | ERROR,
)

# ---------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", ["a", "gh-2025", "ü 1", "...", "a" * MAX_RUN_ID_CHARS])
def test_good_run_ids(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "a/b", "a\\b", "a\0", "a\n", "\ud800", "a" * (MAX_RUN_ID_CHARS + 1)]
)
def test_bad_run_ids(run_id: str) -> None:
    with pytest.raises(ValueError, match="a run id"):
        check_run_id(run_id)


@pytest.mark.parametrize("parts", [("a",), ("org/repo", "pulls"), ("x", "@y"), ("/", "..")])
def test_good_stream_keys(parts: tuple[str, ...]) -> None:
    assert check_stream_key(parts) == parts


@pytest.mark.parametrize(
    "parts",
    [(), ("",), ("a", ""), ("@phase", "x"), ("a\n",), ("\udc80",), ("a" * MAX_KEY_CHARS, "b")],
)
def test_bad_stream_keys(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="stream"):
        check_stream_key(parts)


@pytest.mark.parametrize("check", [check_run_id, lambda part: check_stream_key((part,))])
def test_names_are_text(check: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="not int"):
        check(3)


PARTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=10)
OWN = st.sampled_from([RUN_STREAM, JOB_STREAM, (PHASE, "discovery")])
KEYS = st.lists(PARTS, min_size=1).map(tuple).filter(lambda key: key[0][0] != "@") | OWN


@given(KEYS, KEYS)
def test_keys_come_back_and_are_as_different_as_their_parts(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    assert decode_key(encode_key(one)) == one
    assert (encode_key(one) == encode_key(other)) == (one == other)


def test_a_reason_that_is_a_text_has_no_class_before_it() -> None:
    assert error_line(describe_error("no more", batch_index=1)) == "no more"
    assert error_line(describe_error(OSError("disk\nfull"))) == "OSError: disk …"


def test_any_error_can_be_remembered() -> None:
    assert describe_error("gone", retryable=False) == ErrorInfo("str", "gone", retryable=False)
    info = describe_error(ValueError("é\udc80" + "x" * 9_999), batch_index=3)
    assert (info.type, info.batch_index, len(info.message)) == ("ValueError", 3, MAX_ERROR_CHARS)
    assert info.message.startswith("é\\udc80x")
    assert decode_record(encode_record(Record(at=0.0, error=info))).error == info


# ---------------------------------------------------------------------------------------
# Records and seals
# ---------------------------------------------------------------------------------------


@given(RECORDS)
def test_a_record_comes_back_equal(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


def test_what_cannot_be_encoded_is_said_so() -> None:
    for cursor in (object(), 2**64, "\ud800"):
        with pytest.raises(NotEncodableError):
            encode_record(Record(at=0.0, cursor=cursor))


@given(RECORDS, st.data())
def test_damaged_bytes_are_a_record_or_refused(record: Record, data: st.DataObject) -> None:
    payload = bytearray(encode_record(record))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, len(payload)))
    with contextlib.suppress(StoreDamagedError):
        assert isinstance(decode_record(bytes(payload[:size])), Record)


CURSOR = b"\x82\xa1t\xcb" + bytes(8) + b"\xa1c"  # a record up to the value of its cursor


@pytest.mark.parametrize(
    "value",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000],
    ids=["array", "map", "bytes", "depth"],
)
def test_a_length_that_lies_costs_nothing(value: bytes) -> None:
    assert decode_record(CURSOR + b"\x01").cursor == 1
    with pytest.raises(StoreDamagedError):
        decode_record(CURSOR + value)


@given(st.binary(max_size=200))
def test_garbage_is_no_record_and_no_fold(garbage: bytes) -> None:
    with pytest.raises(StoreDamagedError):
        decode_progress(garbage)
    try:
        record = decode_record(garbage)
    except StoreDamagedError:
        return
    assert isinstance(record, Record)


PLACES = [
    ("run", 0, ("s",), None),
    ("run2", 0, ("s",), None),
    ("run", 1, ("s",), None),
    ("run", 0, ("s", "s"), None),
    ("run", 0, ("t",), None),
    ("run", 0, ("s",), b"key"),
    ("run", 0, ("s",), b"other key"),
]


@given(st.binary(max_size=50), st.integers(-9, 9))
def test_a_sealed_payload_opens_where_it_was_sealed_and_nowhere_else(
    payload: bytes, sequence: int
) -> None:
    seals = [Seal(*place) for place in PLACES]
    for seal in seals:
        sealed = seal.close(sequence, payload)
        assert seal.open(sequence, sealed) == payload
        for other in seals:
            if other is not seal:
                with pytest.raises(StoreDamagedError):
                    other.open(sequence, sealed)
        with pytest.raises(StoreDamagedError, match=f"checkpoint {sequence + 1} of run 'run"):
            seal.open(sequence + 1, sealed)


def test_every_truncation_and_every_flipped_bit_is_noticed() -> None:
    seal = Seal("run", 0, ("s",), None)
    sealed = seal.close(1, b"payload")
    assert len(sealed) == DIGEST_BYTES + 7
    damaged = [sealed[:size] for size in range(len(sealed))] + [sealed + b"\0"]
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for wrong in damaged:
        with pytest.raises(StoreDamagedError):
            seal.open(1, wrong)


# ---------------------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------------------

BOOM = ErrorInfo("ValueError", "boom")


def progress_of(*records: Record) -> Progress:
    progress = Progress()
    for sequence, record in enumerate(records, 1):
        apply(progress, sequence, record)
    return progress


def batch(index: int, **fields: Any) -> Record:
    return Record(at=float(index), index=index, **fields)


def test_a_batch_is_confirmed_with_all_it_brought() -> None:
    output, lines = Output("f", 1, 2, "3"), SinkLines("log", 10, b"")
    progress = progress_of(
        batch(4, records=3, outputs=(output,), lines=(lines,), totals={"usd": 0.1}, cursor="next"),
        batch(5, records=2, lines=(lines,), totals={"usd": 0.2}, spent={"s": 1}, last_index=5),
    )
    assert (list(progress.confirmed), progress.sequence, progress.records) == ([4, 5], 2, 5)
    assert (progress.outputs, progress.sinks) == (1, {"log": 20})
    assert shown(progress.totals) == {"usd": 0.1 + 0.2}
    assert shown(progress.spent) == {"s": 1}
    assert (progress.cursor, progress.last_index) == ("next", 5)
    assert (progress.started_at, progress.updated_at) == (4.0, 5.0)
    assert progress.status is Status.INTERRUPTED
    assert progress.is_done(4)
    assert not progress.is_done(3)
    assert progress.covers(4, 6)


def test_a_cursor_may_be_set_to_none() -> None:
    assert progress_of(batch(0, cursor=1), batch(1)).cursor == 1
    assert progress_of(batch(0, cursor=1), batch(1, cursor=None)).cursor is None


def test_an_attempt_is_remembered_until_its_batch_is_confirmed() -> None:
    failed = batch(0, kind=RecordKind.ATTEMPT, attempts=2, error=BOOM, spent={"usd": 1})
    progress = progress_of(failed)
    assert progress.failures == {0: FailedAttempt(2, BOOM)}
    assert progress.first_left(0) == 0
    progress = progress_of(failed, batch(0, spent={"usd": 1}))
    assert progress.failures == {}
    assert shown(progress.spent) == {"usd": 2}


def test_a_skip_is_done_but_not_confirmed_and_retry_puts_it_back() -> None:
    skip = batch(1, kind=RecordKind.SKIP, attempts=3, error=BOOM)
    progress = progress_of(batch(0), skip, batch(2))
    assert (list(progress.confirmed), list(progress.skipped)) == ([0, 2], [1])
    assert (progress.failures, progress.skips) == ({}, {1: FailedAttempt(3, BOOM)})
    assert progress.first_left(0) == 3
    retry = Record(kind=RecordKind.RETRY, at=9.0, steps=(1, 1))
    progress = progress_of(batch(0), skip, batch(2), retry)
    assert (list(progress.skipped), progress.failures, progress.first_left(0)) == ([], {}, 1)
    progress = progress_of(skip, batch(1))
    assert (list(progress.skipped), progress.failures) == ([], {})


def test_a_failed_stream_says_why_until_it_goes_on() -> None:
    fail = Record(kind=RecordKind.FAIL, at=5.0, error=BOOM, index=1, attempts=4)
    progress = progress_of(batch(0), fail)
    assert (progress.status, progress.error, progress.failed_at) == (Status.FAILED, BOOM, 5.0)
    assert progress.failures == {1: FailedAttempt(4, BOOM)}
    assert progress_of(Record(kind=RecordKind.FAIL, at=5.0, error=BOOM)).failures == {}
    progress = progress_of(batch(0), fail, Record(kind=RecordKind.RETRY, at=6.0, steps=(1, 1)))
    assert (progress.status, progress.error, progress.failed_at, progress.failures) == (
        Status.INTERRUPTED,
        None,
        None,
        {},
    )


def test_a_finished_stream_is_complete_until_it_is_opened_again() -> None:
    finish = Record(kind=RecordKind.FINISH, at=7.0, metadata={"loss": 1}, last_index=0)
    fail = Record(kind=RecordKind.FAIL, at=6.0, error=BOOM)
    progress = progress_of(batch(0), fail, finish)
    assert (progress.status, progress.completed_at) == (Status.COMPLETE, 7.0)
    assert (progress.error, progress.failed_at) == (None, None)
    assert (progress.metadata, progress.last_index) == ({"loss": 1}, 0)
    progress = progress_of(batch(0), finish, Record(kind=RecordKind.SAVE, at=8.0, cursor="c"))
    assert (progress.status, progress.completed_at) == (Status.COMPLETE, 7.0)
    assert (progress.cursor, list(progress.confirmed)) == ("c", [0])
    progress = progress_of(batch(0), finish, batch(1))
    assert (progress.status, progress.completed_at) == (Status.INTERRUPTED, None)


def test_redo_opens_holes_and_takes_back_what_the_batches_had_added() -> None:
    lines = SinkLines("log", 10, b"")
    add: dict[str, Any] = {"records": 3, "totals": {"usd": 0.3}, "lines": (lines,)}
    taken = Taken(encode_sums({"usd": ExactSum().plus(0.3)}), {})
    redo = Record(
        kind=RecordKind.REDO,
        at=3.0,
        steps=(1, 1),
        spent={"s": 1},
        records=3,
        lines=(lines,),
        taken=taken,
    )
    progress = progress_of(batch(0, records=1, totals={"usd": 0.1}), batch(1, **add), redo)
    assert (list(progress.confirmed), progress.records, progress.first_left(0)) == ([0], 1, 1)
    assert (shown(progress.totals), shown(progress.spent)) == ({"usd": 0.1}, {"s": 1})
    assert progress.sinks == {"log": 0}


@pytest.mark.parametrize("kind", [RecordKind.SESSION, RecordKind.END])
def test_notes_of_the_run_are_its_newest_metadata(kind: RecordKind) -> None:
    notes = [Record(kind=kind, at=1.0, metadata={"a": 1}), Record(kind=kind, at=2.0, metadata={})]
    assert progress_of(notes[0]).metadata == {"a": 1}
    progress = progress_of(*notes)
    assert (progress.metadata, progress.status, len(progress.confirmed)) == ({}, Status.PENDING, 0)


@pytest.mark.parametrize("sequence", [0, 2, -1])
def test_a_gap_in_the_sequence_is_damage(sequence: int) -> None:
    progress = Progress()
    with pytest.raises(StoreDamagedError, match="checkpoint 1 is missing"):
        apply(progress, sequence, batch(0))
    assert progress == Progress()


@pytest.mark.parametrize("kind", [RecordKind.BATCH, RecordKind.SKIP, RecordKind.ATTEMPT])
@pytest.mark.parametrize("index", [None, -1])
def test_a_batch_without_an_index_is_damage(kind: RecordKind, index: int | None) -> None:
    with pytest.raises(StoreDamagedError, match=f"kind {kind.name} names no batch"):
        progress_of(Record(kind=kind, at=0.0, index=index))


@given(st.sets(INDEX), st.sets(INDEX), INDEX)
def test_what_is_left_is_neither_confirmed_nor_skipped(
    confirmed: set[int], skipped: set[int], start: int
) -> None:
    progress = Progress(confirmed=IndexSet(confirmed), skipped=IndexSet(skipped))
    left = [index for index in range(start, 20) if index not in confirmed | skipped]
    assert progress.first_left(start) == left[0]
    for stop in range(start, 9):
        assert progress.covers(start, stop) == (left[0] >= stop)


@pytest.mark.parametrize("kind", [RecordKind.ATTEMPT, RecordKind.FAIL])
def test_a_batch_that_was_given_up_has_no_failed_attempt(kind: RecordKind) -> None:
    """So a fold, which keeps failures and skips together, has all that the records say."""
    skip = Record(kind=RecordKind.SKIP, at=1.0, index=1, attempts=2)
    progress = progress_of(skip, Record(kind=kind, at=2.0, index=1))
    assert progress.failures == {}
    assert progress.skips.keys() == {1}
    assert decode_progress(encode_progress(progress)) == progress


@given(st.lists(RECORDS, max_size=12), st.data())
def test_a_fold_and_its_tail_are_the_whole(records: list[Record], data: st.DataObject) -> None:
    split = data.draw(st.integers(0, len(records)))
    folded = decode_progress(encode_progress(progress_of(*records[:split])))
    for sequence, record in enumerate(records[split:], split + 1):
        apply(folded, sequence, record)
    assert folded == progress_of(*records)
    assert encode_progress(folded) == encode_progress(progress_of(*records))


def test_a_fold_has_every_field_of_progress() -> None:
    stored = {*folds._Fold.__struct_fields__} - {"times"}
    elsewhere = {"skips", *folds._TIMES}  # among the failures, and in the times
    fields = {field.name for field in attrs.fields(Progress) if field.init}
    assert fields == stored | elsewhere


def test_every_kind_is_applied() -> None:
    for kind in RecordKind:
        assert progress_of(batch(0, kind=kind)).sequence == 1


@given(st.lists(RECORDS, max_size=5), st.data())
def test_a_damaged_fold_is_a_fold_that_can_be_used_or_refused(
    records: list[Record], data: st.DataObject
) -> None:
    payload = bytearray(encode_progress(progress_of(*records)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        progress = decode_progress(bytes(payload))
    except StoreDamagedError:
        return
    shown(progress.totals)
    apply(progress, progress.sequence + 1, batch(0, totals={"a": 0.1, "b": 1}))


def test_a_sum_no_floats_can_have_is_damage() -> None:
    fields = msgspec.msgpack.decode(encode_progress(progress_of(batch(0, totals={"a": 1}))))
    assert fields[5] == {"a": ["1", 0]}
    for shift in (2**62, 1_075, -1):
        fields[5] = {"a": ["1", shift]}
        with pytest.raises(StoreDamagedError, match="finite floats"):
            decode_progress(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("text", ["", "{", "1", '["a", 1]', '{"a": 1}', "[" * 5_000, '["\udc80"]'])
def test_a_damaged_stream_name_is_refused(text: str) -> None:
    with pytest.raises(StoreDamagedError):
        decode_key(text)


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1e12, 253_402_300_800.0])
def test_a_time_that_no_calendar_has_is_damage(at: float) -> None:
    with pytest.raises(NotEncodableError, match="set the system's clock"):
        encode_record(Record(at=at))
    with pytest.raises(StoreDamagedError, match="its time is"):
        decode_record(msgspec.msgpack.encode(Record(at=at)))
    progress = progress_of(batch(0))
    progress.worked_at = at
    with pytest.raises(StoreDamagedError, match="its time is"):
        decode_progress(encode_progress(progress))


def test_a_record_that_no_store_reads_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is durable: the next start could not read the stream."""
    fits = encode_record(batch(0, metadata={"x": "a" * 1_000}))
    monkeypatch.setattr(_records, "MAX_RECORD_BYTES", len(fits))
    assert encode_record(batch(0, metadata={"x": "b" * 1_000}))
    with pytest.raises(NotEncodableError, match="put large values into an output"):
        encode_record(batch(0, metadata={"x": "a" * 1_001}))


def test_the_largest_record_is_read_back_with_its_seal() -> None:
    assert MAX_RECORD_BYTES + DIGEST_BYTES == MAX_WHOLE_BYTES


@pytest.mark.parametrize("name", ["totals", "spent"])
@pytest.mark.parametrize(
    "amount", [float("nan"), float("inf"), ("f" * 4_300, 0), ("1", 2**40), ("x", 0)]
)
def test_an_amount_that_cannot_be_added_is_damage(name: str, amount: Any) -> None:
    hostile = {"t": 1.0, "i": 0, {"totals": "p", "spent": "s"}[name]: {"usd": amount}}
    with pytest.raises(StoreDamagedError, match="cannot be read"):
        decode_record(msgspec.msgpack.encode(hostile))


@pytest.mark.parametrize(
    "key",
    [("@phase",), ("@phase", "a", "b"), ("@phase", ""), ("@x",), ("",), ("a", ""), ("a\x1b[2J",)],
    ids=repr,
)
def test_a_key_that_no_stream_has_is_damage(key: tuple[str, ...]) -> None:
    with pytest.raises(StoreDamagedError, match="the name of a stream"):
        decode_key(encode_key(key))


@pytest.mark.parametrize("index", [2**63 - 1, 2**64 - 1, -1])
def test_an_index_that_no_batch_can_have_is_damage(index: int) -> None:
    record = Record(at=1.0, index=index)
    with pytest.raises(StoreDamagedError):
        progress_of(record)
    fields = msgspec.msgpack.decode(encode_progress(progress_of(batch(0))))
    payload = msgspec.msgpack.encode([*fields[:2], [index, 1], *fields[3:]])
    with pytest.raises(StoreDamagedError, match=r"beyond the greatest index|must ascend"):
        decode_progress(payload)


def test_counts_that_no_fold_can_hold_are_damage() -> None:
    many = [batch(index, records=2**62) for index in range(2)]
    with pytest.raises(StoreDamagedError, match="cannot be counted"):
        progress_of(*many)
    lines = (SinkLines("a", 2**62, b""),)
    many = [Record(at=1.0, index=index, lines=lines) for index in range(2)]
    with pytest.raises(StoreDamagedError, match="cannot be counted"):
        progress_of(*many)


# ---------------------------------------------------------------------------------------
# What does not grow
# ---------------------------------------------------------------------------------------


def skip_of(index: int) -> Record:
    error = ErrorInfo("NotFoundError", f"https://example.org/{index}: 404 Not Found: " + "x" * 200)
    return Record(kind=RecordKind.SKIP, at=1.0, index=index, attempts=3, error=error)


def test_a_fold_does_not_grow_with_what_was_skipped() -> None:
    sizes = []
    progress = Progress()
    for index in range(10 * MAX_SKIPS):
        apply(progress, index + 1, skip_of(index))
        if index + 1 in (2 * MAX_SKIPS, 10 * MAX_SKIPS):
            sizes.append(len(encode_progress(progress)))
    assert abs(sizes[1] - sizes[0]) < 200  # digits of numbers; the errors are in the records
    newest = list(range(9 * MAX_SKIPS, 10 * MAX_SKIPS))
    assert list(progress.skips) == newest
    assert (len(progress.skipped), progress.failures) == (10 * MAX_SKIPS, {})
    folded = decode_progress(encode_progress(progress))
    assert folded == progress
    apply(folded, folded.sequence + 1, skip_of(5))  # an old one again: it is the newest now
    assert list(folded.skips)[-1] == 5
    assert len(folded.skips) == MAX_SKIPS


def test_a_fold_of_an_earlier_version_keeps_the_newest_skips() -> None:
    progress = Progress(skipped=IndexSet(range(300)), sequence=300)
    progress.skips = {index: FailedAttempt(1, BOOM) for index in range(300)}
    progress.failures = {400: FailedAttempt(2, BOOM)}
    folded = decode_progress(encode_progress(progress))
    assert list(folded.skips) == list(range(200, 300))
    assert folded.failures == {400: FailedAttempt(2, BOOM)}


def test_an_outage_keeps_all_attempts_and_the_newest_errors() -> None:
    progress = Progress()
    for index in range(MAX_ERRORS + 5):
        record = Record(kind=RecordKind.ATTEMPT, at=1.0, index=index, attempts=2, error=BOOM)
        apply(progress, index + 1, record)
    folded = decode_progress(encode_progress(progress))
    assert {failed.attempts for failed in folded.failures.values()} == {2}
    without = [index for index, failed in folded.failures.items() if failed.error is None]
    assert without == list(range(5))
    assert all(failed.error == BOOM for failed in progress.failures.values())  # in memory


def test_what_goes_back_to_work_takes_its_error_with_it() -> None:
    progress = progress_of(skip_of(0), skip_of(1), skip_of(2))
    apply(progress, 4, Record(kind=RecordKind.REDO, at=1.0, steps=(1, 1), taken=Taken({}, {})))
    assert list(progress.skips) == [0, 2]
    apply(progress, 5, batch(1))
    apply(progress, 6, Record(kind=RecordKind.RETRY, at=1.0, steps=(0, 3)))
    assert progress.skips == {}
