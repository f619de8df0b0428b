"""A delta makes the new tree of the old one, bit for bit, and costs what changed."""

from __future__ import annotations

import copy
import struct
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tree.delta import MAX_DELTA_DEPTH, diff_tree, patch_tree
from trio_ckpt.state._tree.format import MAX_TREE_DEPTH, Tag, Tree, decode_tree, encode_tree, pack

NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000000"))[0]
OTHER_NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000001"))[0]
CLOSE = [1, 1.0, True, 0, 0.0, -0.0, False, None, "", b"", [], {}, NAN, OTHER_NAN, "1", b"1"]


def copied(value: Tree) -> Tree:
    return copy.deepcopy(value)


SCALARS = st.one_of(
    st.sampled_from(CLOSE).map(copied), st.integers(0, 5), st.floats(), st.binary(max_size=80)
)
KEYS = st.sampled_from("abcdef")
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8),
        st.dictionaries(KEYS, inner, max_size=4),
        st.builds(lambda tag, value: {tag: value}, st.sampled_from([1, 2, 8]), inner),
    ),
    max_leaves=25,
)


def changed(tree: Tree, data: st.DataObject) -> Tree:
    """A tree near to `tree`: some of the ways in which a state changes."""
    draw = data.draw
    if isinstance(tree, list) and tree:
        at = draw(st.integers(0, len(tree) - 1))
        match draw(st.integers(0, 5)):
            case 0:
                return [*tree, draw(TREES)]
            case 1:
                return tree[:at]
            case 2:
                return [*tree[:at], draw(TREES), *tree[at:]]
            case 3:
                return [*tree[:at], *tree[at + 1 :]]
            case _:
                tail = [draw(SCALARS)] if draw(st.booleans()) else []
                return [*tree[:at], changed(tree[at], data), *tree[at + 1 :], *tail]
    if isinstance(tree, dict) and tree:
        key = draw(st.sampled_from(list(tree)))
        if isinstance(key, int):
            return {key: changed(tree[key], data)}
        match draw(st.integers(0, 4)):
            case 0:
                return {name: item for name, item in tree.items() if name != key}
            case 1:
                return {**tree, draw(KEYS): draw(TREES)}
            case 2:
                return dict(reversed(tree.items()))
            case _:
                return {**tree, key: changed(tree[key], data)}
    if isinstance(tree, bytes) and tree:
        at = draw(st.integers(0, len(tree)))
        return tree[:at] + draw(st.binary(max_size=2)) + tree[at + draw(st.integers(0, 2)) :]
    return draw(SCALARS)


def check(old: Tree, new: Tree) -> Tree:
    before, after = pack(old), pack(new)
    delta = diff_tree(old, new)
    assert (delta is None) == (before == after)
    if delta is not None:
        sent = encode_tree(delta)
        assert len(sent) <= max(len(after) + 10, 50)
        assert pack(patch_tree(old, decode_tree(sent))) == after
    assert (pack(old), pack(new)) == (before, after)
    return delta


@settings(max_examples=200, deadline=None)
@given(TREES, TREES)
def test_a_delta_makes_any_tree_of_any_other(old: Tree, new: Tree) -> None:
    check(old, new)


@settings(max_examples=400, deadline=None)
@given(TREES, st.data())
def test_a_delta_makes_the_next_tree_of_the_last(old: Tree, data: st.DataObject) -> None:
    new = old
    for _ in range(data.draw(st.integers(1, 3))):
        new = changed(new, data)
    check(copied(old), new)


def test_values_that_python_calls_equal_are_distinguished() -> None:
    for old in CLOSE:
        for new in CLOSE:
            is_same = pack(old) == pack(new)
            for wrap in (lambda x: x, lambda x: [x], lambda x: {"k": x}, lambda x: {1: x}):
                delta = check(copied(wrap(old)), copied(wrap(new)))
                assert (delta is None) == is_same, (old, new)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 2)), max_size=9), st.integers(0, 1))
def test_long_lists_and_bytes_are_compared_in_chunks(
    edits: list[tuple[int, int]], kind: int
) -> None:
    old: Any = [n % 300 for n in range(2_000)] if kind else bytes(n % 251 for n in range(20_000))
    new = list(old)
    for at, action in edits:
        place = at * len(new) // 3_001
        if action == 0:
            new[place] = 251
        elif action == 1:
            del new[place]
        else:
            new.insert(place, 252)
    delta = check(old, new if kind else bytes(new))
    if len({action for _, action in edits}) == 1 and edits[0][1] == 0:
        assert len(pack(delta)) < 20 * len(edits) + 20


# ---------------------------------------------------------------------------------------
# What a change costs
# ---------------------------------------------------------------------------------------


def cost(old: Any, new: Any) -> int:
    plan: Plan[Any] = Plan.of(None)
    delta = check(plan.flatten(old).tree, plan.flatten(new).tree)
    return len(encode_tree(delta))


LOSS = [n / 7 for n in range(100_000)]
LOG = [{"step": n, "loss": n / 7} for n in range(2_000)]


@pytest.mark.parametrize(
    ("old", "new", "most_bytes"),
    [
        ({"loss": LOSS}, {"loss": [*LOSS, 0.5]}, 40),
        ({"loss": LOSS}, {"loss": LOSS[:-5]}, 30),
        ({"loss": LOSS}, {"loss": [*LOSS[:500], -0.0, *LOSS[501:]]}, 40),
        ({"loss": LOSS}, {"loss": [*LOSS[:500], *LOSS[501:]]}, 30),
        ({"log": LOG}, {"log": [*LOG, {"step": 1, "loss": 0.5}]}, 50),
        ({"log": LOG}, {"log": [*LOG[:-1], {"step": 1, "loss": 0.5}, *LOG[:2]]}, 120),
        ({"log": LOG}, {"log": LOG[1:]}, 30),
        ({"log": LOG}, {"log": [*LOG[:9], {"step": 9, "loss": 0.5}, *LOG[10:]]}, 50),
        ({"ids": list(range(5_000))}, {"ids": [*range(5_000), 1]}, 30),
        ({"seen": set(range(5_000))}, {"seen": set(range(5_001))}, 40),
        ({n: str(n) for n in range(5_000)}, {n: str(n) for n in range(5_001)}, 40),
        ({str(n): n for n in range(5_000)}, {str(n): n for n in range(5_001)}, 30),
        ({str(n): n for n in range(5_000)}, {str(n): n for n in range(1, 5_000)}, 30),
        (deque(LOSS[:900], 900), deque(LOSS[1:901], 900), 40),
        ({"loss": LOSS}, {"loss": [*LOSS[2:], 0.25, 0.5]}, 60),
        ({"b": bytes(1_000)}, {"b": bytes(500) + b"x" + bytes(499)}, 18),
        (deque("abcdefghijkabcdefghijk"), deque("bcdefghijkabcdefghijkx"), 40),
        ({f"k{n}": n for n in range(99)}, {f"k{n}": n for n in (*range(9), *range(10, 99), 9)}, 30),
        ({"a": {"b": {"c": [0] * 500, "d": 1}}}, {"a": {"b": {"c": [0] * 500, "d": 2}}}, 40),
    ],
)
def test_a_change_costs_its_own_size(old: Any, new: Any, most_bytes: int) -> None:
    assert cost(old, new) <= most_bytes


@pytest.mark.parametrize("places", [[0], [511], [512], [1999], [3, 700, 701, 1999]])
def test_large_dicts_are_compared_in_chunks(places: list[int]) -> None:
    old = {f"key{n}": [n, 0.0] for n in range(2_000)}
    new = old | {f"key{n}": [n, -0.0] for n in places}
    delta = diff_tree(old, new)
    assert delta is not None
    assert set(delta[2]) == {f"key{n}" for n in places}
    assert pack(patch_tree(old, delta)) == pack(new)


def test_what_changed_all_over_is_replaced() -> None:
    old, new = LOSS[:1_000], [x + 1 for x in LOSS[:1_000]]
    assert cost({"loss": old}, {"loss": new}) <= 9_050
    assert cost({str(n): n for n in range(99)}, {str(n): n for n in reversed(range(99))}) < 600


# ---------------------------------------------------------------------------------------
# Deltas that fit no tree
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "delta"),
    [
        *((1, None), (1, []), (1, 5), (1, ["x"]), (1, [9, 1]), (1, [True, [], {}, {}]), (1, [0])),
        *(
            (1, [0, 1, 2]),
            (1, [1, [], {}, {}]),
            ({}, [1, ["a"], {}, {}]),
            ({}, [1, [], {"a": [0, 1]}, {}]),
        ),
        *(({"a": 1}, [1, [], {}, {"a": 2}]), ({"a": 1}, [1, [[]], {}, {}]), ({}, [1, [], [], {}])),
        *(
            ({}, [1, [], {}, {Tag.SET: []}]),
            ({Tag.SET: []}, [1, [], {}, {"a": 1}]),
            ({}, [5, [0, 1]]),
        ),
        *(({"a": 1}, [5, [0, 1]]), (1, [5, [0, 1]]), ([1], [2, 2, [], []]), ([1], [2, -1, [], []])),
        *(
            ([1], [2, 1, [1, [0, 1]], []]),
            ([1], [2, 1, [0], []]),
            ([1], [2, 1, [], {}]),
            ({}, [2, 0, [], []]),
        ),
        *(
            ([1], [2, True, [], []]),
            ([1], [3, [2, 0, []]]),
            ([1], [3, [0, 2, []]]),
            ([1], [3, [0, -1, []]]),
        ),
        *(
            ([1], [3, [0, 0, 1]]),
            ([1, 2], [3, [1, 1, [], 0, 1, []]]),
            ("ab", [3, [0, 1, []]]),
            (b"ab", [4, [3, 0, b""]]),
            (b"ab", [4, [0, 3, b""]]),
        ),
        *((b"ab", [4, [1, 1, b"", 0, 1, b""]]), (b"ab", [4, [0, 1, []]]), (b"ab", [4, [0, 1]])),
        *(("ab", [4, [0, 1, b""]]), ([1], [2, 1, [-1, [0, 1]], []])),
    ],
)
def test_a_delta_that_does_not_fit_is_damage(old: Tree, delta: Tree) -> None:
    before = pack(old)
    with pytest.raises(StoreDamagedError):
        patch_tree(old, delta)
    assert pack(old) == before


def test_a_chain_of_deltas_cannot_nest_a_state_without_end() -> None:
    nested: Tree = 1
    for _ in range(100):
        nested = [nested]
    tree: Tree = 1
    delta: Tree = [0, nested]
    for _ in range(MAX_TREE_DEPTH // 100):
        tree = patch_tree(tree, delta)
        for _ in range(100):
            delta = [2, 1, [0, delta], []]
    with pytest.raises(StoreDamagedError, match="nested too deeply"):
        patch_tree(tree, delta)
    deep: Tree = 1
    for _ in range(20_000):
        deep = [2, 1, [0, deep], []]
    with pytest.raises(StoreDamagedError):
        patch_tree(nested, deep)


def test_a_delta_of_a_deep_tree_is_within_the_limits() -> None:
    def nest(depth: int, leaf: Tree) -> Tree:
        for _ in range(depth):
            leaf = {1: [leaf]}
        return leaf

    for depth in (1, MAX_DELTA_DEPTH // 2 - 1, MAX_DELTA_DEPTH // 2, 99, 150):
        check(nest(depth, [1, 2]), nest(depth, [1, 3]))


def test_patching_shares_what_did_not_change_and_leaves_the_old_tree() -> None:
    old = {"big": [[1], [2]], "small": 1}
    new = patch_tree(old, diff_tree(old, {"big": [[1], [2], [3]], "small": 1}))
    assert new["big"][0] is old["big"][0]
    assert old == {"big": [[1], [2]], "small": 1}


# ---------------------------------------------------------------------------------------
# Damage at random
# ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_tree_or_damage(data: bytes) -> None:
    try:
        tree = decode_tree(b"\1" + data)
    except StoreDamagedError:
        return
    assert encode_tree(tree) == b"\1" + data
