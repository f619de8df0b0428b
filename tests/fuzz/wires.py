"""What comes over a wire: frames, messages, and both sides of a connection fed by bytes."""

from __future__ import annotations

import random
import zlib

from tests.fuzz.case import Reader, Target, law
from tests.fuzz.mutate import mutate
from tests.remote.samples import SAMPLES, exchange, frames_of, hello, open_pair
from trio_ckpt.remote._wire.codec import MESSAGES, decode_message, encode_message
from trio_ckpt.remote._wire.errors import ProtocolError, RemoteProtocolError
from trio_ckpt.remote._wire.frames import HEADER, MAX_PARTIAL, decode_frame, encode_frame
from trio_ckpt.remote._wire.message import Message, MessageKind
from trio_ckpt.remote._wire.protocol import Connection
from trio_ckpt.remote._wire.tables import PHASES, ConnectionPhase, PeerRole

LENGTH_BYTES = 2  # before each frame of an input of several
FRAMES = 8  # of one input
_CHECKED = HEADER.size - 4


def mend(frame: bytes) -> bytes:
    """Put the right checksum into a frame."""
    if len(frame) < HEADER.size:
        return frame
    head, payload = frame[:_CHECKED], frame[HEADER.size :]
    return head + zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "little") + payload


def open_frame() -> Reader:
    def read(data: bytes) -> str:
        text = mend(data[1:]) if data[:1] > b"\x20" else data[1:]
        frame = decode_frame(text)
        law(holds=encode_frame(frame) == text, broken="it came back another")
        law(holds=frame.offset + len(frame.payload) <= frame.size, broken="it is too long")
        return "read"

    frames = [frame for message in SAMPLES.values() for frame in frames_of(message)]
    return Reader(read, [b"\xff" + frame for frame in frames])


def open_message() -> Reader:
    kinds = list(MESSAGES)

    def read(data: bytes) -> str:
        kind = kinds[data[0] % len(kinds) if data else 0]
        message = decode_message(kind, data[1:])
        body = encode_message(message)
        law(holds=encode_message(decode_message(kind, body)) == body, broken="it came back another")
        return "read"

    made = SAMPLES.items()
    return Reader(read, [bytes((kinds.index(k),)) + encode_message(m) for k, m in made])


def _split(data: bytes) -> list[bytes]:
    frames: list[bytes] = []
    while data and len(frames) < FRAMES:
        size = int.from_bytes(data[:LENGTH_BYTES])
        frames.append(mend(data[LENGTH_BYTES : LENGTH_BYTES + size]))
        data = data[LENGTH_BYTES + size :]
    return frames


def _joined(*messages: Message) -> bytes:
    frames = [frame for n, message in enumerate(messages) for frame in frames_of(message, 900 + n)]
    return b"".join(map(_prefixed, frames))


def _prefixed(frame: bytes) -> bytes:
    return len(frame).to_bytes(LENGTH_BYTES) + frame


def _busy_pair(role: PeerRole) -> tuple[Connection, Connection]:
    """A peer and its foreman; a worker has an item, and has asked two things."""
    peer, foreman = open_pair(role)
    if role is PeerRole.WORKER:
        foreman.send(SAMPLES[MessageKind.ASSIGN_TASK])
        exchange(foreman, peer)
        peer.send(SAMPLES[MessageKind.TASK_CHECKPOINT])
        peer.send(SAMPLES[MessageKind.STORE_CALL])
        exchange(peer, foreman)
    return peer, foreman


def _open_side(sides: tuple[PeerRole, ...], *, is_foreman: bool) -> Reader:
    """One side of a connection, new (an even first byte) or in the middle of its work."""

    def read(data: bytes) -> str:
        mark = data[0] if data else 0
        role = sides[mark // 2 % len(sides)]
        if mark % 2:
            connection = _busy_pair(role)[is_foreman]
        else:
            connection = Connection(None if is_foreman else role)
        taken = 0
        for frame in _split(data[1:]):
            received = connection.receive(frame)
            law(holds=len(connection._reassembler) <= MAX_PARTIAL, broken="too many are unfinished")
            if received is not None:
                taken += 1
                connection.consumed(received)
            while connection.next_frame() is not None:
                pass
        return "read" if taken else "nothing"

    seeds: list[bytes] = []
    said: dict[int, list[bytes]] = {}
    for place, role in enumerate(sides):
        speaker = role if is_foreman else _FOREMAN_TO[role]
        first = SAMPLES[MessageKind.HELLO if is_foreman else MessageKind.WELCOME]
        later = [SAMPLES[kind] for kind in PHASES[speaker][ConnectionPhase.OPEN]]
        if role is PeerRole.CLIENT and is_foreman:
            first = hello(PeerRole.CLIENT)
        new, busy = 2 * place, 2 * place + 1
        seeds += [bytes((new,)) + _joined(first, message) for message in later]
        seeds += [bytes((busy,)) + _joined(message) for message in later]
        seeds.append(bytes((busy,)) + _joined(*later[:FRAMES]))
        said[busy] = [frame for message in later for frame in frames_of(message)]
        said[new] = [*frames_of(first), *said[busy]]

    def fresh(rng: random.Random) -> bytes:
        mark, frames = rng.choice(list(said.items()))
        chosen = [rng.choice(frames) for _ in range(rng.randint(1, FRAMES))]
        if not mark % 2:
            chosen[0] = frames[0]
        sent = [mutate(rng, one, frames) if rng.random() < 0.3 else one for one in chosen]
        return bytes((mark,)) + b"".join(map(_prefixed, sent))

    return Reader(read, seeds, fresh)


_FOREMAN_TO = {PeerRole.WORKER: PeerRole.TO_WORKER, PeerRole.CLIENT: PeerRole.TO_CLIENT}


def open_foreman() -> Reader:
    return _open_side((PeerRole.WORKER, PeerRole.CLIENT), is_foreman=True)


def open_worker() -> Reader:
    return _open_side((PeerRole.WORKER,), is_foreman=False)


def open_client() -> Reader:
    return _open_side((PeerRole.CLIENT,), is_foreman=False)


TARGETS = {
    "wire-frame": Target(open_frame, (RemoteProtocolError,)),
    "message": Target(open_message, (ProtocolError,)),
    "foreman": Target(open_foreman, (RemoteProtocolError,), share=0.2),
    "worker": Target(open_worker, (RemoteProtocolError,), share=0.2),
    "client": Target(open_client, (RemoteProtocolError,), share=0.2),
}
