"""What an act is between processes and in a record."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from trio_ckpt._journal.acts import (
    MAX_LINE_BYTES,
    MAX_NAME_CHARS,
    MAX_WHY_CHARS,
    Act,
    ActRefusedError,
    ActReply,
    act_note,
    act_of,
    act_text,
    decode_act,
    decode_reply,
    encode_line,
    new_act,
    paused_text,
    plain_act,
)
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import ACT, PAUSED, Record, RecordKind, decode_record, encode_record

PAUSE = Act("pause", "ann", "box", 4711, "the quota", at=1e9)
LINE: dict[str, Any] = {"do": "pause", "user": "ann", "host": "box", "pid": 1}


def test_an_act_comes_back_as_it_was_sent() -> None:
    line = encode_line(PAUSE)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_act(line) == PAUSE
    assert decode_reply(encode_line(ActReply(True, "done", {"a": 1}))) == ActReply(
        True, "done", {"a": 1}
    )


def test_the_longest_act_fits_into_a_line() -> None:
    act = new_act("pause", "\U0001f512" * 999, why="\x00" * MAX_WHY_CHARS)
    assert len(encode_line(act)) < MAX_LINE_BYTES
    assert decode_act(encode_line(act)) == act


@pytest.mark.parametrize(
    "about",
    [
        {"count": 2**53},
        {"amounts": {"cost_usd": math.inf}},
        {"amounts": {"cost_usd": math.nan}},
        {"amounts": {"a" * (MAX_NAME_CHARS + 1): 1}},
    ],
)
def test_an_act_that_no_run_can_decode_is_not_sent(about: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no act that can be sent"):
        new_act("limit", "ann", **about)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[" * 50_000,
        b"GET / HTTP/1.1",
        json.dumps({**LINE, "do": "remove"}).encode(),
        json.dumps({**LINE, "pid": -1}).encode(),
        json.dumps({**LINE, "pid": "1"}).encode(),
        json.dumps({**LINE, "user": "a" * (MAX_NAME_CHARS + 1)}).encode(),
        json.dumps({**LINE, "why": "a" * (MAX_WHY_CHARS + 1)}).encode(),
        json.dumps({"do": "pause"}).encode(),
        json.dumps({**LINE, "steps": [1]}).encode(),
        json.dumps({**LINE, "steps": [1, 0, 0, 0]}).encode(),
    ],
)
def test_what_is_no_act_is_none(line: bytes) -> None:
    assert decode_act(line) is None
    with pytest.raises(ActRefusedError):
        decode_reply(line)


def test_a_reason_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="why has 501 letters; at most 500 are kept"):
        new_act("pause", "ann", why="a" * 501)


def test_what_an_act_says_cannot_move_a_cursor() -> None:
    act = Act("stop", "a\x1b[2J", "b\nc", 1, "d\u202e")
    assert act_text(act) == "stop by a\\x1b[2J, process 1 on b\\nc: d\\u202e"


def test_the_newest_pause_or_resume_says_whether_a_run_is_paused() -> None:
    progress = Progress(metadata={"session": 1})
    notes = [act_note(PAUSE), act_note(Act("stop", "bob", "box", 1, at=2e9))]
    for sequence, note in enumerate(notes, 1):
        apply(progress, sequence, decode_record(encode_record(note)))
    assert progress.metadata == {"session": 1, PAUSED: plain_act(PAUSE)}
    assert paused_text(progress.metadata) == (
        "since 2001-09-09 01:46:40 UTC, by ann, process 4711 on box: the quota"
    )
    apply(progress, 3, act_note(Act("resume", "bob", "box", 1, at=2e9)))
    assert progress.metadata == {"session": 1}
    assert paused_text(progress.metadata) == ""


@pytest.mark.parametrize("steps", [(1,), (1, 0)])
def test_an_act_in_a_record_can_be_put_into_words(steps: tuple[int, ...]) -> None:
    metadata: dict[str, Any] = {ACT: {**plain_act(PAUSE), "steps": steps}}
    assert act_of(metadata) is None
    assert act_of({ACT: plain_act(PAUSE)}) == PAUSE


def test_an_act_of_a_newer_version_pauses_too() -> None:
    metadata: dict[str, Any] = {ACT: {"do": "pause", "user": 7}}
    progress = Progress()
    apply(progress, 1, Record(kind=RecordKind.NOTE, at=1.0, metadata=metadata))
    assert act_of(metadata) is None
    assert paused_text(progress.metadata) == "by an act that cannot be read"
