"""Mutated frames go into a foreman's and a worker's side: nothing but our own errors.

python -m tests.remote.fuzz_protocol EXECUTIONS [SEED]
"""

from __future__ import annotations

import random
import resource
import sys
import zlib

from tests.remote.samples import SAMPLES, exchange, frames_of, open_pair
from trio_ckpt.remote._errors import RemoteProtocolError
from trio_ckpt.remote._frames import HEADER
from trio_ckpt.remote._messages import Kind
from trio_ckpt.remote._protocol import Connection, Role

MUTATIONS = 4  # of one frame at most
FRAMES = 6  # of one execution at most


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """Some bytes changed, taken out, doubled or put in; mostly with a right checksum."""
    data = bytearray(frame)
    for _ in range(rng.randint(0, MUTATIONS)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case _:
                data[at:at] = data[at : at + rng.randint(1, 8)]
        if not data:
            data = bytearray(b"\0")
    if len(data) >= HEADER.size and rng.random() < 0.9:
        head, payload = data[: HEADER.size - 4], data[HEADER.size :]
        data[HEADER.size - 4 : HEADER.size] = zlib.crc32(payload, zlib.crc32(head)).to_bytes(
            4, "little"
        )
    return bytes(data)


def side(rng: random.Random) -> Connection:
    """One side of a connection, somewhere in its life."""
    if rng.random() < 0.2:
        return Connection(rng.choice([None, Role.WORKER, Role.CLIENT]))
    role = rng.choice([Role.WORKER, Role.CLIENT])
    peer, foreman = open_pair(role)
    if role is Role.WORKER and rng.random() < 0.8:
        foreman.send(SAMPLES[Kind.ASSIGN_TASK])
        exchange(foreman, peer)
        for kind in (Kind.TASK_CHECKPOINT, Kind.STORE_CALL):
            peer.send(SAMPLES[kind])
        exchange(peer, foreman)
    return rng.choice([peer, foreman])


def fuzz(executions: int, seed: int) -> int:
    """Run so many; how many messages came through."""
    rng = random.Random(seed)  # a seed is an order
    frames = [frame for message in SAMPLES.values() for frame in frames_of(message)]
    taken = 0
    for _ in range(executions):
        connection = side(rng)
        try:
            for _ in range(rng.randint(1, FRAMES)):
                received = connection.receive(mutate(rng, rng.choice(frames)))
                if received is not None:
                    taken += 1
                    connection.consumed(received)
        except RemoteProtocolError:
            pass
    return taken


if __name__ == "__main__":
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    found = fuzz(count, seed)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{count:,} executions, {found:,} messages taken, peak {peak_mib} MiB")
