"""Good states to begin with, and ways to damage them that keep their shape."""

from __future__ import annotations

import datetime
import random
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import numpy as np

from trio_ckpt.state import encode_frame, frame_digest, new_lineage
from trio_ckpt.state._arrays.compress import open_compressor
from trio_ckpt.state._arrays.engine import ArrayEngine
from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tree.delta import diff_tree
from trio_ckpt.state._tree.format import MUTABLE, Tree, encode_tree
from trio_ckpt.state._tree.frame import StateFrame

BLOCK_BYTES = 6_000  # in each block of `make_blocks`

# -- trees --------------------------------------------------------------------------------


class Side(NamedTuple):
    left: Any
    right: Any = 0


@attrs.frozen
class Spot:
    x: Any
    y: Any = attrs.field(factory=list)


def example(step: int) -> dict[str, Any]:
    """A state with one of each kind, which changes from step to step."""
    shared = [1, 2, step]
    zone = ZoneInfo("Europe/Paris")
    at = datetime.datetime(2024, 2, 29, 12, step, tzinfo=zone)
    objects = np.empty((2, 1), dtype=object)
    objects[:, 0] = ["a", {"b": step}]
    bits = np.random.Philox(step)
    return {
        "loss": [0.5, -0.0, float("nan")] + [step / 7] * step,
        "plain": {"a": None, "b": [True, False, 2**63, -(2**63)], "é": "ü" * 40, "c": b"\0\1"},
        "shared": (shared, {"again": shared}),
        "sets": [{1, (2, 3)}, frozenset("ab"), {Spot(1, 2): {(1, Side(2)): step}}],
        "numbers": [
            2**70 + step,
            1j,
            Decimal("1.5"),
            Fraction(1, 3),
            np.float32(step),
            range(step),
        ],
        "times": [at, at.date(), at.time(), at - at, zone, datetime.UTC, at.replace(tzinfo=None)],
        "rest": [UUID(int=step), Path("a/b"), bytearray(b"x" * step), Spot(step), Side(1)],
        "more": [deque([step], 3), OrderedDict(a=1), Counter("aab"), defaultdict(list, a=[step])],
        "random": [random.Random(step), np.random.Generator(bits), bits, np.random.RandomState(1)],
        "arrays": [objects, np.arange(3), [{"step": n, "at": [n, step]} for n in range(5)]],
    }


PLAN: Plan[Any] = Plan.of(example(0))


def trees() -> tuple[list[bytes], list[Any]]:
    """Encoded trees, and the arrays that they speak of."""
    flats = [PLAN.flatten(example(step)) for step in (1, 2, 9)]
    small = [PLAN.flatten([value]).tree for value in example(2).values()]
    encoded = [encode_tree(tree) for tree in (*(flat.tree for flat in flats), *small)]
    return encoded, [leaf.value for leaf in flats[0].arrays]


def deltas() -> list[tuple[Tree, bytes]]:
    """Trees, and encoded deltas that fit them."""
    whole = [PLAN.flatten(example(step)).tree for step in (1, 2, 9)]
    pairs = [(old, new) for old in whole for new in whole if old is not new]
    small = [[PLAN.flatten([v]).tree for v in example(step).values()] for step in (2, 3)]
    pairs += zip(*small, strict=True)
    return [(old, encode_tree(diff_tree(old, new))) for old, new in pairs]


def replace_inside(rng: random.Random, tree: Tree, parts: list[Tree]) -> Tree:
    """`tree` with a part of some tree in the place of one of its own: the shape stays a tree's."""
    if not isinstance(tree, (list, dict)) or not tree or rng.random() < 0.15:
        return rng.choice(parts)
    if isinstance(tree, list):
        at = rng.randrange(len(tree))
        return [*tree[:at], replace_inside(rng, tree[at], parts), *tree[at + 1 :]]
    key = rng.choice(list(tree))
    other = rng.choice(sorted(MUTABLE)) if isinstance(key, int) and rng.random() < 0.1 else key
    inner = replace_inside(rng, tree[key], parts)
    return {
        other if old == key else old: inner if old == key else item for old, item in tree.items()
    }


def parts_of(tree: Tree) -> list[Tree]:
    """Every part of a tree, and some that no tree has at their places."""
    found: list[Tree] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, (list, dict)):
            waiting.extend(node.values() if isinstance(node, dict) else node)
    return [*found, -1, 2**63, 10**6, "", [], {}, b"", None, True, float("inf"), "PCG64", [[]]]


# -- frames and blocks --------------------------------------------------------------------


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
        frame = StateFrame(
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


def make_blocks() -> list[bytes]:
    """Blocks of each codec, as `Compressor.pack` makes them."""
    rng = np.random.default_rng(1)
    slow = open_compressor("slow")
    raws = [
        np.zeros(BLOCK_BYTES, np.uint8),
        np.arange(BLOCK_BYTES // 4, dtype="<f4").view(np.uint8),
        rng.integers(0, 9, BLOCK_BYTES // 8).astype("<i8").view(np.uint8),
        np.frombuffer(b"the quick brown fox " * (BLOCK_BYTES // 20), np.uint8),
        rng.integers(0, 256, BLOCK_BYTES, np.uint8),
    ]
    blocks = [
        open_compressor().pack(raw, size) for raw, size in zip(raws, (4, 4, 8, 1, 1), strict=True)
    ]
    return blocks + [slow.pack(raw, size) for raw, size in zip(raws, (1, 1, 8, 1, 1), strict=True)]


# -- views of arrays ----------------------------------------------------------------------

ARRAYS = [
    np.arange(64, dtype="<f4").reshape(8, 8)[::-2, ::-1],
    np.zeros((), "<M8[ns]"),
    np.zeros((0, 3), ">i2"),
    np.zeros(4, np.dtype([("a", "<i4"), ("b", "|S3", (2,))], align=True)),
    np.zeros((3, 5), "<U7", order="F"),
    np.broadcast_to(np.float64(3), (4, 4)),
]
WORDS = [
    None,
    0,
    1,
    -1,
    2**31,
    2**62,
    2**63,
    2**64 - 1,
    -(2**63),
    "",
    "<f4",
    "|O8",
    "|S9",
    True,
    0.5,
    [],
]


def shake(rng: random.Random, plain: object) -> object:
    """A plain value with some of its leaves or branches replaced."""
    if rng.random() < 0.08:
        return rng.choice(WORDS)
    if isinstance(plain, list):
        rows = [shake(rng, item) for item in plain]
        if rows and rng.random() < 0.05:
            rows.insert(rng.randrange(len(rows)), rng.choice(rows))
        if rows and rng.random() < 0.03:
            rows.pop()
        return rows
    if type(plain) is int and rng.random() < 0.2:
        return plain + rng.choice((-8, -1, 1, 4, 8, 1000))
    return plain
