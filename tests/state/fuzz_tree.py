"""Damage for the decoders of state: nothing but our own errors, whatever the bytes.

In the tests a bounded number; by hand millions: ``python -m tests.state.fuzz_tree 2000000``.
"""

from __future__ import annotations

import datetime
import random
import resource
import sys
import time
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import numpy as np

from trio_ckpt._errors import StoreDamagedError
from trio_ckpt.state._leaves import StateChangedError
from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tagged import MUTABLE, TAGS, Tree, decode_tree, encode_tree
from trio_ckpt.state._tree_delta import diff_tree
from trio_ckpt.state._tree_patch import patch_tree


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


def seeds() -> tuple[list[bytes], list[tuple[Tree, bytes]], list[Any]]:
    """Encoded trees, encoded deltas with the trees they are for, and the arrays."""
    flats = [PLAN.flatten(example(step)) for step in (1, 2, 9)]
    trees = [flat.tree for flat in flats]
    small = [PLAN.flatten([value]).tree for value in example(2).values()]
    pairs = [(old, new) for old in trees for new in trees if old is not new]
    later = [PLAN.flatten([value]).tree for value in example(3).values()]
    pairs += zip(small, later, strict=True)
    deltas = [(old, encode_tree(diff_tree(old, new))) for old, new in pairs]
    return (
        [encode_tree(tree) for tree in (*trees, *small)],
        deltas,
        [leaf.value for leaf in flats[0].arrays],
    )


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """`data` with one to four things done to it."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(result) + 1)
        match rng.randrange(8):
            case 0:
                result[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                result[at:at] = rng.randbytes(rng.randint(1, 5))
            case 2:
                del result[at : at + rng.randint(1, 9)]
            case 3:
                other = rng.choice(others)
                start = rng.randrange(len(other))
                result[at : at + rng.randint(0, 9)] = other[start : start + rng.randint(1, 40)]
            case 4:
                result[at : at + 1] = rng.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\xdf\0\xff\xff\xff", b"\x91")
                )
            case 5:
                result[at : at + 1] = bytes(
                    (rng.choice((*range(40), 0x80, 0x81, 0x90, 0xC0, 0xCB)),)
                )
            case 6 if at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            case _:
                result[at : at + 2] = bytes((0x81, rng.choice(list(TAGS))))
    return bytes(result)


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


def fuzz(executions: int, seed: int = 0) -> Counter[str]:
    """Run so many, and count how they ended; anything but our own errors leaves."""
    rng = random.Random(seed)
    trees, deltas, arrays = seeds()
    codes = [*trees, *(delta for _, delta in deltas)]
    decoded = [decode_tree(data) for data in trees]
    parts = [part for tree in decoded for part in parts_of(tree)]
    parts += [part for _, data in deltas for part in parts_of(decode_tree(data))]
    ends: Counter[str] = Counter()
    for number in range(executions):
        try:
            match number % 4:
                case 0:
                    ends[_build(decode_tree(mutate(rng, rng.choice(trees), codes)), arrays)] += 1
                case 1:
                    ends[_build(replace_inside(rng, rng.choice(decoded), parts), arrays)] += 1
                case 2:
                    old, data = rng.choice(deltas)
                    ends[
                        _build(patch_tree(old, decode_tree(mutate(rng, data, codes))), arrays)
                    ] += 1
                case _:
                    old, data = rng.choice(deltas)
                    delta = replace_inside(rng, decode_tree(data), parts)
                    ends[_build(patch_tree(old, delta), arrays)] += 1
        except (StoreDamagedError, StateChangedError) as error:
            ends[type(error).__name__] += 1
    return ends


def _build(tree: Tree, arrays: list[Any]) -> str:
    try:
        PLAN.build(tree, arrays)
    except (StoreDamagedError, StateChangedError) as error:
        return f"read, then {type(error).__name__}"
    return "built"


def main() -> None:
    """So many executions as the command line says, and a line of what came of them."""
    executions, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    began = time.perf_counter()
    ends = fuzz(executions, seed)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{executions} executions, seed {seed}, {took:.0f} s, peak {peak:.0f} MiB: {dict(ends)}")


if __name__ == "__main__":
    main()
