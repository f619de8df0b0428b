"""Mutated frames go through decoding, planning and filling: nothing but our own errors.

python -m tests.state.fuzz_frame EXECUTIONS [SEED]
"""

from __future__ import annotations

import random
import resource
import sys

import numpy as np

from trio_ckpt._errors import StoreDamagedError, StoreError
from trio_ckpt.state import decode_frame, encode_frame, frame_digest, new_lineage, tree_of
from trio_ckpt.state._arrays import ArrayEngine
from trio_ckpt.state._assemble import Assembly
from trio_ckpt.state._frame import Frame
from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tagged import encode_tree
from trio_ckpt.state._tree_delta import diff_tree

MUTATIONS = 4  # of one input at most


def make_chain(engine: ArrayEngine) -> list[bytes]:
    """The payloads of a chain of three frames, the newest first."""
    state = {"n": 0, "a": np.arange(3_000, dtype=np.float32), "b": np.zeros((4, 5)), "l": [1.5]}
    plan, tables, tree, parent = Plan.of(state), {}, None, b""
    lineage, payloads = new_lineage(), list[bytes]()
    for number in range(3):
        state["n"] = number
        state["a"][number * 100] = number  # type: ignore[index]
        flat = plan.flatten(state)
        held = engine.hold(flat.arrays, tables)
        data = b"".join(held.pieces())
        stored = held.stored()
        held.release()
        delta = None if tree is None else diff_tree(tree, flat.tree)
        frame = Frame(
            lineage=lineage,
            number=number,
            parent=parent,
            tree=encode_tree(flat.tree if number == 0 else delta),
            layout=stored.layout if number == 0 else None,
            patches=stored.patches,
            data=data,
            data_bytes=len(data),
        )
        payloads.insert(0, encode_frame(frame))
        tables, tree, parent = stored.tables, flat.tree, frame_digest(payloads[0])
    return payloads


def mutate(rng: random.Random, payload: bytes) -> bytes:
    """Some bytes changed, taken out, doubled or put in."""
    data = bytearray(payload)
    for _ in range(rng.randint(1, MUTATIONS)):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(300, len(data)))
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
    return bytes(data)


def fuzz(executions: int, seed: int) -> int:
    """Run so many; how many came through whole."""
    rng = random.Random(seed)  # a seed is an order
    engine = ArrayEngine()
    chain, whole = make_chain(engine), 0
    for _ in range(executions):
        payloads = list(chain)
        place = rng.randrange(len(payloads))
        payloads[place] = mutate(rng, payloads[place])
        try:
            frames = [decode_frame(payload) for payload in payloads]
            tree_of(frames)
            assembly = Assembly(frames)
            for read in assembly.reads:
                data = frames[read.frame].data[read.offset : read.offset + read.size]
                assembly.fill(read, data, engine.compressor)
            assembly.arrays()
            whole += 1
        except (StoreDamagedError, StoreError):
            pass
    engine.close()
    return whole


if __name__ == "__main__":
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    found = fuzz(count, seed)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{count:,} executions, {found:,} whole, peak {peak_mib} MiB")
