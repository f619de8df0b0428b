"""What changed from one tree to the next, and the next from that.

Theory of operation
===================

A delta is a tree itself, so it has the bytes and the limits of trees.  It is a list that begins
with what to do:

===================================== ===================================================
delta                                 the new tree is
===================================== ===================================================
[0, tree]                             `tree`
[1, removed, {key: delta}, added]     the dict without the keys in the list `removed`,
                                      those values changed, the dict `added` at its end
[2, keep, [position, delta, …], tail] the first `keep` items of the list, some of them
                                      changed, then the items of the list `tail`
[3, at, remove, items]                the list with `items` in place of `remove` items
[4, [at, remove, bytes, …]]           the bytes, with bytes in place of others; each
                                      position counts in the old bytes, from left to right
[5, delta]                            the tagged node of the same tag, its value changed
===================================== ===================================================

Trees are compared by their bytes, so by type and bit: 1 is not True, -0.0 is not 0.0, and a NaN
is the same only as itself; the order of a dict's keys counts too.  Runs of items that did not
change are passed over in chunks, at the speed of encoding them.  Wherever the new subtree is
smaller than the delta of it, it is put in its place.
"""

from __future__ import annotations

from typing import Any

from .._errors import StoreDamagedError
from ._tagged import MAX_TREE_DEPTH, Tree, kind_of, pack

REPLACE, KEYS, ITEMS, SPLICE, BYTES, INSIDE = range(6)

MAX_DELTA_DEPTH = 128  # levels of a tree that a delta goes down; each makes two of its own
_SMALL_BYTES = 48  # a delta of up to this is not compared with a replacement
_CHUNK_ITEMS = 512  # of a list: their bytes stay in the processor's cache
_CHUNK_BYTES = 4096  # of bytes: comparing one costs less than a step of the interpreter
_PIECE_BYTES = 32  # of such a chunk: what differs in one piece is one run of changed bytes
_MOST_RUNS = 100_000  # in one value; with more it is replaced


def diff_tree(old: Tree, new: Tree) -> Tree | None:
    """What makes `new` of `old`; None: nothing changed.

    The delta shares subtrees with `new`; neither tree is changed.
    """
    return _diff(old, new, 0)


def _diff(old: Tree, new: Tree, depth: int) -> Tree | None:
    kind = kind_of(new)
    if old is new:
        return None
    if kind is not kind_of(old) or depth >= MAX_DELTA_DEPTH:
        return None if pack(old) == pack(new) else [REPLACE, new]
    if kind is dict:
        delta = _diff_dict(old, new, depth)
    elif kind is list:
        delta = _diff_list(old, new, depth)
    elif kind is bytes:
        delta = _diff_bytes(old, new)
    else:
        return None if _is_same_scalar(old, new) else [REPLACE, new]
    if delta is None or delta[0] == REPLACE:
        return delta
    return _smaller(delta, new)


def _smaller(delta: Tree, new: Tree) -> Tree:
    size = len(pack(delta))
    return delta if size <= _SMALL_BYTES or size <= len(pack(new)) + 2 else [REPLACE, new]


def _is_same_scalar(old: Any, new: Any) -> bool:
    """Whether two scalars of one type are the same, bit for bit."""
    return pack(old) == pack(new) if type(new) is float else bool(old == new)


# ---------------------------------------------------------------------------------------
# Dicts and nodes
# ---------------------------------------------------------------------------------------


def _diff_dict(old: dict[Any, Tree], new: dict[Any, Tree], depth: int) -> Tree | None:
    old_tag, new_tag = _tag_of(old), _tag_of(new)
    if old_tag is not None or new_tag is not None:
        if old_tag != new_tag:
            return [REPLACE, new]
        delta = _diff(old[old_tag], new[new_tag], depth + 1)
        if delta is None:
            return None
        return [REPLACE, new] if delta[0] == REPLACE else [INSIDE, delta]
    removed = [key for key in old if key not in new]
    added = {key: item for key, item in new.items() if key not in old}
    kept = [key for key in old if key in new]
    if [*kept, *added] != list(new):
        return [REPLACE, new]  # the keys have another order
    changed: dict[str, Tree] = {}
    for key in kept:
        delta = _diff(old[key], new[key], depth + 1)
        if delta is not None:
            changed[key] = delta
    return [KEYS, removed, changed, added] if removed or changed or added else None


def _tag_of(node: dict[Any, Tree]) -> int | None:
    """The tag of a tagged node; None: it is a plain dict."""
    for key in node:
        return key if type(key) is int else None
    return None


# ---------------------------------------------------------------------------------------
# Lists
# ---------------------------------------------------------------------------------------


def _diff_list(old: list[Tree], new: list[Tree], depth: int) -> Tree | None:
    shared = min(len(old), len(new))
    head = _same_items(old, new, shared)
    if head == shared:
        if len(old) == len(new):
            return None
        return [ITEMS, shared, [], new[shared:]]
    if len(old) == len(new):
        return [ITEMS, shared, _edits(old, new, head, shared, depth), []]
    tail = _same_tail(old, new, shared - head)
    splice = [SPLICE, head, len(old) - head - tail, new[head : len(new) - tail]]
    if tail >= shared - head:
        return splice
    edits = [ITEMS, shared, _edits(old, new, head, shared, depth), new[shared:]]
    return min(edits, splice, key=lambda delta: len(pack(delta)))


def _same_items(old: list[Tree], new: list[Tree], end: int, start: int = 0) -> int:
    """Where the first item from `start` on is that differs; `end`: none before it does."""
    for at in range(start, end, _CHUNK_ITEMS):
        stop = min(at + _CHUNK_ITEMS, end)
        if pack(old[at:stop]) != pack(new[at:stop]):
            return next(i for i in range(at, stop) if not _is_same(old[i], new[i]))
    return end


def _same_tail(old: list[Tree], new: list[Tree], most: int) -> int:
    """How many items at the end are the same, `most` at most."""
    count = 0
    while count < most:
        step = min(_CHUNK_ITEMS, most - count)
        one = old[len(old) - count - step : len(old) - count]
        other = new[len(new) - count - step : len(new) - count]
        if pack(one) != pack(other):
            pairs = zip(reversed(one), reversed(other), strict=True)
            return count + next(i for i, pair in enumerate(pairs) if not _is_same(*pair))
        count += step
    return count


def _edits(old: list[Tree], new: list[Tree], start: int, end: int, depth: int) -> list[Tree]:
    edits: list[Tree] = []
    at = _same_items(old, new, end, start)
    while at < end:
        # What differs seldom stands alone: one by one to the chunk's end, then leaps again.
        stop = min(at + _CHUNK_ITEMS, end)
        for position in range(at, stop):
            delta = _diff(old[position], new[position], depth + 1)
            if delta is not None:
                edits += [position, delta]
        at = _same_items(old, new, end, stop)
    return edits


def _is_same(old: Tree, new: Tree) -> bool:
    return old is new or (type(old) is type(new) and pack(old) == pack(new))


# ---------------------------------------------------------------------------------------
# Bytes: packed floats, and users' own
# ---------------------------------------------------------------------------------------


def _diff_bytes(old: bytes, new: bytes) -> Tree | None:
    if old == new:
        return None
    if len(old) == len(new):
        edits = _byte_edits(old, new)
        return [REPLACE, new] if edits is None else [BYTES, edits]
    shared = min(len(old), len(new))
    head = _same_bytes(old, new, shared)
    tail = _same_bytes(
        old[: head - len(old) - 1 : -1], new[: head - len(new) - 1 : -1], shared - head
    )
    return [BYTES, [head, len(old) - head - tail, new[head : len(new) - tail]]]


def _same_bytes(old: bytes, new: bytes, end: int) -> int:
    """How many bytes at the start are the same, `end` at most: by halves, each compared at once."""
    low, high = 0, end
    if old[:end] == new[:end]:
        return end
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _byte_edits(old: bytes, new: bytes) -> list[Tree] | None:
    """The runs that differ between bytes of one length; None: there are too many."""
    runs: list[list[int]] = []
    for chunk in range(0, len(new), _CHUNK_BYTES):
        one, other = old[chunk : chunk + _CHUNK_BYTES], new[chunk : chunk + _CHUNK_BYTES]
        if one == other:
            continue
        for at in range(0, len(other), _PIECE_BYTES):
            if one[at : at + _PIECE_BYTES] == other[at : at + _PIECE_BYTES]:
                continue
            start, stop = chunk + at, chunk + min(at + _PIECE_BYTES, len(other))
            if runs and start == runs[-1][1]:
                runs[-1][1] = stop
            else:
                runs.append([start, stop])
        if len(runs) > _MOST_RUNS:
            return None
    edits: list[Tree] = []
    for start, stop in runs:
        while old[start] == new[start]:
            start += 1
        while old[stop - 1] == new[stop - 1]:
            stop -= 1
        edits += [start, stop - start, new[start:stop]]
    return edits


# ---------------------------------------------------------------------------------------
# Patching
# ---------------------------------------------------------------------------------------


def patch_tree(old: Tree, delta: Tree) -> Tree:
    """The tree that `delta` makes of `old`, which stays as it is; they share what did not change.

    Args:
        old: A tree that was decoded or patched.
        delta: One that was decoded, by `decode_tree`: nothing in it is trusted.

    Raises:
        StoreDamagedError: it is no delta of this tree.
    """
    try:
        return _patch(old, delta, 0)
    except (ValueError, TypeError, LookupError) as error:
        raise StoreDamagedError(f"a delta does not fit its state: {error}") from error
    except RecursionError as error:
        raise StoreDamagedError("a delta is nested too deeply") from error


def _patch(old: Tree, delta: Tree, depth: int) -> Tree:
    action, *rest = _check_list(delta)
    if kind_of(action) is not int:
        raise TypeError("it does not say what to do")
    if action == REPLACE:
        (tree,) = rest
        return _checked(tree, depth)
    if action == KEYS:
        return _patch_dict(old, *rest, depth=depth)
    if action == ITEMS:
        return _patch_items(old, *rest, depth=depth)
    if action == SPLICE:
        return _splice(old, *rest, depth=depth)
    if action == BYTES:
        return _patch_bytes(old, *rest)
    if action == INSIDE:
        (inner,) = rest
        tag = _tag_of(old) if kind_of(old) is dict else None
        if tag is None:
            raise TypeError("there is no tagged node")
        return {tag: _patch(old[tag], inner, depth + 1)}
    raise ValueError("it says to do something unknown")


def _checked(tree: Tree, depth: int) -> Tree:
    """A tree that comes in at that depth: a chain of deltas must not grow it without end."""
    waiting = [(tree, depth)]
    while waiting:
        node, at = waiting.pop()
        if at > MAX_TREE_DEPTH:
            raise ValueError("the state would be nested too deeply")
        inner = node.values() if kind_of(node) is dict else node
        if kind_of(node) in (dict, list):
            waiting.extend((item, at + 1) for item in inner if type(item) in (dict, list))
    return tree


def _patch_dict(old: Tree, removed: Tree, changed: Tree, added: Tree, *, depth: int) -> Tree:
    _check_plain(old, changed, added)
    new = dict(old)
    for key in _check_list(removed):
        del new[key]
    for key, delta in changed.items():
        new[key] = _patch(new[key], delta, depth + 1)
    for key, tree in added.items():
        if key in new:
            raise ValueError("a key is added that is there")
        new[key] = _checked(tree, depth + 1)
    return new


def _patch_items(old: Tree, keep: Tree, edits: Tree, tail: Tree, *, depth: int) -> Tree:
    new = _check_list(old)[: _index(keep, len(old))]
    flat = iter(_check_list(edits))
    for position, delta in zip(flat, flat, strict=True):
        at = _index(position, len(new) - 1)
        new[at] = _patch(new[at], delta, depth + 1)
    new += _checked(_check_list(tail), depth)
    return new


def _splice(old: Tree, at: Tree, remove: Tree, items: Tree, *, depth: int) -> Tree:
    start = _index(at, len(_check_list(old)))
    stop = start + _index(remove, len(old) - start)
    return [*old[:start], *_checked(_check_list(items), depth), *old[stop:]]


def _patch_bytes(old: Tree, edits: Tree) -> Tree:
    if type(old) is not bytes:
        raise TypeError("there are no bytes")
    parts: list[bytes] = []
    done = 0
    flat = iter(_check_list(edits))
    for at, remove, data in zip(flat, flat, flat, strict=True):
        start = _index(at, len(old))
        if start < done or type(data) is not bytes:
            raise ValueError("its edits of bytes are in disorder")
        parts += [old[done:start], data]
        done = start + _index(remove, len(old) - start)
    parts.append(old[done:])
    return b"".join(parts)


def _index(value: Tree, most: int) -> int:
    if kind_of(value) is not int or not 0 <= value <= most:
        raise ValueError("a position is outside of what it changes")
    return int(value)


def _check_list(value: Tree) -> list[Tree]:
    if kind_of(value) is not list:
        raise TypeError("there is no list")
    items: list[Tree] = value
    return items


def _check_plain(*values: Tree) -> None:
    if any(type(value) is not dict or _tag_of(value) is not None for value in values):
        raise TypeError("there is no plain dict")
