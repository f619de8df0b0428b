"""Frames: what is cut comes together again, and nothing else does."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, strategies as st

from tests.remote.samples import SAMPLES, frames_of
from trio_ckpt.remote._wire.codec import MESSAGES, decode_message, encode_message
from trio_ckpt.remote._wire.errors import ProtocolError, RemoteProtocolError
from trio_ckpt.remote._wire.frames import (
    FRAME_BYTES,
    HEADER,
    MAX_PARTIAL,
    Fragmenter,
    Reassembler,
    WireFrame,
    decode_frame,
    encode_frame,
    next_number,
)
from trio_ckpt.remote._wire.job_messages import JobItems
from trio_ckpt.remote._wire.message import MAX_MESSAGE_BYTES, MessageKind


@pytest.mark.parametrize("kind", MessageKind, ids=lambda kind: kind.name)
def test_every_kind_comes_back_as_it_was_sent(kind: MessageKind) -> None:
    message = SAMPLES[kind]
    reassembler = Reassembler()
    bodies = [reassembler.add(decode_frame(frame)) for frame in frames_of(message)]
    assert bodies[:-1] == [None] * (len(bodies) - 1)
    assert bodies[-1] is not None
    assert decode_message(kind, bodies[-1]) == message
    assert MESSAGES[kind] is type(message)


@given(st.binary(min_size=0, max_size=3 * FRAME_BYTES + 1))
def test_a_body_is_the_same_after_cutting_and_gathering(body: bytes) -> None:
    fragmenter, reassembler = Fragmenter(MessageKind.JOB_ITEMS, 5, body), Reassembler()
    found = None
    while not fragmenter.is_over:
        assert found is None
        data = fragmenter.next()
        assert len(data) <= HEADER.size + FRAME_BYTES
        found = reassembler.add(decode_frame(data))
    assert found == body
    assert len(reassembler) == 0


@given(st.data())
def test_messages_may_come_mixed(data: st.DataObject) -> None:
    bodies = {n: bytes([n]) * (FRAME_BYTES * n + n) for n in range(1, 4)}
    fragmenters = {n: Fragmenter(MessageKind.JOB_ITEMS, n, body) for n, body in bodies.items()}
    reassembler, found = Reassembler(), dict[int, bytes]()
    while fragmenters:
        number = data.draw(st.sampled_from(sorted(fragmenters)))
        body = reassembler.add(decode_frame(fragmenters[number].next()))
        if body is not None:
            found[number] = body
            del fragmenters[number]
    assert found == bodies


@given(st.integers(0, HEADER.size + 9), st.integers(0, 7))
def test_one_wrong_bit_anywhere_is_noticed(place: int, bit: int) -> None:
    data = bytearray(encode_frame(WireFrame(MessageKind.JOB_ITEMS, 3, 10, 0, b"0123456789")))
    data[place] ^= 1 << bit
    with pytest.raises(RemoteProtocolError):
        decode_frame(bytes(data))


def forged(*head: int, payload: bytes = b"x") -> bytes:
    """A frame with a right checksum."""
    start = HEADER.pack(*head, 0)[:-4]
    return start + zlib.crc32(payload, zlib.crc32(start)).to_bytes(4, "little") + payload


K = int(MessageKind.JOB_ITEMS)
BAD = {
    "nothing": b"",
    "half a header": b"\1" * (HEADER.size - 1),
    "another version": forged(2, K, 0, 1, 1, 0),
    "an unknown kind": forged(1, 200, 0, 1, 1, 0),
    "a flag that is not known": forged(1, K, 1, 1, 1, 0),
    "over the limit of its kind": forged(1, K, 0, 1, MAX_MESSAGE_BYTES + 1, 0),
    "over the limit of a small kind": forged(1, int(MessageKind.HELLO), 0, 1, 2**16 + 1, 0),
    "behind its end": forged(1, K, 0, 1, 1, 1),
    "over its end": forged(1, K, 0, 1, 1, 0, payload=b"xy"),
    "empty, of a message that is not": forged(1, K, 0, 1, 1, 0, payload=b""),
    "too long": forged(1, K, 0, 1, 2**20, 0, payload=b"x" * (FRAME_BYTES + 1)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_frame(data)


def test_a_good_forgery_is_taken() -> None:
    """Or the cases above would prove nothing."""
    assert decode_frame(forged(1, K, 0, 1, 1, 0)).payload == b"x"


FRAMES = {
    "in its middle": [WireFrame(MessageKind.JOB_ITEMS, 1, 10, 5, b"56789")],
    "twice": [WireFrame(MessageKind.JOB_ITEMS, 1, 10, 0, b"01234")] * 2,
    "with a hole": [
        WireFrame(MessageKind.JOB_ITEMS, 1, 10, 0, b"01"),
        WireFrame(MessageKind.JOB_ITEMS, 1, 10, 5, b"56"),
    ],
    "of another size": [
        WireFrame(MessageKind.JOB_ITEMS, 1, 10, 0, b"01"),
        WireFrame(MessageKind.JOB_ITEMS, 1, 11, 2, b"56"),
    ],
    "of another kind": [
        WireFrame(MessageKind.JOB_ITEMS, 1, 10, 0, b"01"),
        WireFrame(MessageKind.TASK_RESULT, 1, 10, 2, b"56"),
    ],
    "whole, of a number that is unfinished": [
        WireFrame(MessageKind.JOB_ITEMS, 1, 10, 0, b"01"),
        WireFrame(MessageKind.JOB_ITEMS, 1, 1, 0, b"0"),
    ],
    "too many unfinished": [
        WireFrame(MessageKind.JOB_ITEMS, number, 10, 0, b"0") for number in range(MAX_PARTIAL + 1)
    ],
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
def test_frames_that_do_not_follow_are_refused(frames: list[WireFrame]) -> None:
    reassembler = Reassembler()
    for frame in frames[:-1]:
        assert reassembler.add(frame) is None
    with pytest.raises(RemoteProtocolError):
        reassembler.add(frames[-1])


def test_a_refused_frame_changes_nothing() -> None:
    reassembler = Reassembler()
    reassembler.add(WireFrame(MessageKind.JOB_ITEMS, 1, 4, 0, b"01"))
    with pytest.raises(RemoteProtocolError):
        reassembler.add(WireFrame(MessageKind.JOB_ITEMS, 1, 4, 0, b"01"))
    assert reassembler.add(WireFrame(MessageKind.JOB_ITEMS, 1, 4, 2, b"23")) == b"0123"


def test_numbers_begin_again() -> None:
    assert next_number(2**32 - 1) == 0


def test_what_cannot_be_sent_is_refused_here() -> None:
    with pytest.raises(ProtocolError, match="over its limit of 8,388,608"):
        encode_message(JobItems("job-1", 0, [b"x" * MAX_MESSAGE_BYTES]))
    with pytest.raises(ProtocolError, match="cannot be sent"):
        encode_message(JobItems("job-1", 0, [2**64]))


WRONG_BODIES = [
    b"",
    b"\xc1",
    b"\x90",
    b"\x93\xa5job-1\x00\x91" + b"\x91" * 100_000,
    b"\x93\xa0\x00\x90",
    b"\x93\xa5job-1\xff\x90",
]


@pytest.mark.parametrize("body", WRONG_BODIES, ids=range(len(WRONG_BODIES)))
def test_what_is_no_body_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        decode_message(MessageKind.JOB_ITEMS, body)
