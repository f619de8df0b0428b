"""The difference from one tree to the next, in few bytes: made, and applied.

Theory of operation
===================

A delta is a tree itself, so it has the bytes and the limits of trees.  It is a list that begins
with its operation:

===================================== ===================================================
delta                                 the new tree is
===================================== ===================================================
[0, tree]                             `tree`
[1, removed, {key: delta}, added]     the dict without the keys in the list `removed`,
                                      those values changed, the dict `added` at its end
                                      (a key that moved there is removed and added)
[2, keep, [position, delta, …], tail] the first `keep` items of the list, some of them
                                      changed, then the items of the list `tail`
[3, [at, remove, items, …]]           the list, with lists of items in place of others;
                                      positions count in the old list, from left to right
[4, [at, remove, bytes, …]]           the bytes, with bytes in place of others, likewise
[5, delta]                            the tagged node of the same tag, its value changed
===================================== ===================================================

Trees are compared by their bytes, so by type and bit: 1 is not True, -0.0 is not 0.0, and a NaN
equals only itself; the order of a dict's keys counts too.  Runs of items that did not
change are skipped in chunks, at the speed of encoding them.  A subtree that is smaller than its
delta replaces the old one.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..._util.errors import StoreDamagedError
from .format import MAX_TREE_DEPTH, Tree, kind_of, pack, tag_of

REPLACE, KEYS, ITEMS, SPLICE, BYTES, INSIDE = range(6)

MAX_DELTA_DEPTH = 128  # levels of a tree that a delta descends; each makes two of its own
_SMALL_BYTES = 48  # a delta of up to this size is not compared with a replacement
_CHUNK_ITEMS = 512  # of a list or a dict: their bytes stay in the processor's cache
_PROBE_ITEMS, _PROBE_BYTES = 8, 72  # the part of a window that is searched for in the old one
_MOST_SLID = 256  # items that a window may have moved; beyond that it counts as another one
_CHUNK_BYTES = 4096  # of bytes: comparing one costs less than a step of the interpreter
_PIECE_BYTES = 32  # of such a chunk: a piece that differs is one run of changed bytes
_MOST_RUNS = 100_000  # per value; with more it is replaced


def diff_tree(old: Tree, new: Tree) -> Tree | None:
    """Return the delta from `old` to `new`; None: nothing changed.

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


def _is_same_scalar(old: Tree, new: Tree) -> bool:
    """Return whether two scalars of one type are equal, bit for bit."""
    return pack(old) == pack(new) if type(new) is float else bool(old == new)


# ---------------------------------------------------------------------------------------
# Dicts and nodes
# ---------------------------------------------------------------------------------------


def _diff_dict(old: Tree, new: Tree, depth: int) -> Tree | None:
    old_tag, new_tag = tag_of(old), tag_of(new)
    if old_tag is not None or new_tag is not None:
        if old_tag != new_tag:
            return [REPLACE, new]
        delta = _diff(old[old_tag], new[new_tag], depth + 1)
        if delta is None:
            return None
        return [REPLACE, new] if delta[0] == REPLACE else [INSIDE, delta]
    kept = _kept_keys(old, new)
    removed = [key for key in old if key not in kept]
    added = {key: item for key, item in new.items() if key not in kept}
    changed: dict[str, Tree] = {}
    keys = list(kept)
    for at in range(0, len(keys), _CHUNK_ITEMS):
        chunk = keys[at : at + _CHUNK_ITEMS]
        if pack([old[key] for key in chunk]) == pack([new[key] for key in chunk]):
            continue
        for key in chunk:
            delta = _diff(old[key], new[key], depth + 1)
            if delta is not None:
                changed[key] = delta
    return [KEYS, removed, changed, added] if removed or changed or added else None


def _kept_keys(old: Tree, new: Tree) -> dict[str, None]:
    """Return the keys that begin the new dict in the order of the old one."""
    if list(old) == list(new):  # the most frequent case, decided at the speed of C
        return dict.fromkeys(new)
    order = iter(old)
    kept: dict[str, None] = {}
    for key in new:
        if key not in old or key not in order:  # the latter goes on to the key, or to the end
            break
        kept[key] = None
    return kept


# ---------------------------------------------------------------------------------------
# Lists
# ---------------------------------------------------------------------------------------


def _diff_list(old: list[Tree], new: list[Tree], depth: int) -> Tree | None:
    shared = min(len(old), len(new))
    head = _same_items(old, new, shared)
    if head < min(shared, _PROBE_ITEMS):
        out = _slid(old, new)
        if out:
            return [SPLICE, [0, out, [], len(old), 0, new[len(old) - out :]]]
    if head == shared:
        if len(old) == len(new):
            return None
        return [ITEMS, shared, [], new[shared:]]
    if len(old) == len(new):
        return [ITEMS, shared, _edits(old, new, head, shared, depth), []]
    tail = _same_tail(old, new, shared - head)
    splice = [SPLICE, [head, len(old) - head - tail, new[head : len(new) - tail]]]
    if tail >= shared - head:
        return splice
    edits = [ITEMS, shared, _edits(old, new, head, shared, depth), new[shared:]]
    return min(edits, splice, key=lambda delta: len(pack(delta)))


def _same_items(old: list[Tree], new: list[Tree], end: int, start: int = 0) -> int:
    """Return the index of the first different item from `start` on; `end`: there is none."""
    for at in range(start, end, _CHUNK_ITEMS):
        stop = min(at + _CHUNK_ITEMS, end)
        if pack(old[at:stop]) != pack(new[at:stop]):
            return next(i for i in range(at, stop) if not _is_same(old[i], new[i]))
    return end


def _slid(old: list[Tree], new: list[Tree]) -> int:
    """Return how many items a sliding window dropped at its front; 0: it is not one."""
    probe = pack(new[:_PROBE_ITEMS])
    for out in range(1, min(_MOST_SLID, len(old) - _PROBE_ITEMS + 1)):
        if pack(old[out : out + _PROBE_ITEMS]) == probe:
            rest = old[out:]
            if len(rest) <= len(new) and _same_items(rest, new, len(rest)) == len(rest):
                return out
    return 0


def _same_tail(old: list[Tree], new: list[Tree], most: int) -> int:
    """Return how many items at the end are equal, `most` at most."""
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
        # Differences cluster: compare one by one to the chunk's end, then skip chunks again.
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
    if old[:_PROBE_BYTES] != new[:_PROBE_BYTES]:
        out = old.find(new[:_PROBE_BYTES])
        if out > 0 and new.startswith(old[out:]):
            return [BYTES, [0, out, b"", len(old), 0, new[len(old) - out :]]]
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
    """Return how many bytes at the start are equal, `end` at most, by bisection."""
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
    """Return the runs that differ between bytes of one length; None: there are too many."""
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
# Applying a delta; nothing in it is trusted
# ---------------------------------------------------------------------------------------


def patch_tree(old: Tree, delta: Tree) -> Tree:
    """Return the tree that `delta` makes of `old`; they share the parts that did not change.

    Args:
        old: A tree that was decoded or patched; it is not changed.
        delta: A delta from `decode_tree`: nothing in it is trusted.

    Raises:
        StoreDamagedError: the delta does not fit this tree.
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
        raise TypeError("it has no operation")
    if action == REPLACE:
        (tree,) = rest
        return _checked(tree, depth)
    if action == KEYS:
        return _patch_dict(old, *rest, depth=depth)
    if action == ITEMS:
        return _patch_items(old, *rest, depth=depth)
    if action == SPLICE:
        return _patch_splices(old, *rest, depth=depth)
    if action == BYTES:
        return _patch_bytes(old, *rest)
    if action == INSIDE:
        (inner,) = rest
        tag = tag_of(old) if kind_of(old) is dict else None
        if tag is None:
            raise TypeError("it changes a node that is not tagged")
        return {tag: _patch(old[tag], inner, depth + 1)}
    raise ValueError("it has an unknown operation")


def _checked(tree: Tree, depth: int) -> Tree:
    """Check the depth of a new subtree: a chain of deltas must not nest without limit."""
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
            raise ValueError("it adds a key that exists")
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


def _patch_splices(old: Tree, edits: Tree, *, depth: int) -> Tree:
    new: list[Tree] = []
    for begin, end, items in _splices(edits, len(_check_list(old))):
        new += old[begin:end]
        if items is not None:
            new += _checked(_check_list(items), depth)
    return new


def _patch_bytes(old: Tree, edits: Tree) -> Tree:
    if type(old) is not bytes:
        raise TypeError("it changes a value that is not bytes")
    parts: list[bytes] = []
    for begin, end, data in _splices(edits, len(old)):
        if type(data) not in (bytes, type(None)):
            raise TypeError("it puts a value that is not bytes into bytes")
        parts += [old[begin:end], data or b""]
    return b"".join(parts)


def _splices(edits: Tree, length: int) -> Iterator[tuple[int, int, Tree]]:
    """Yield the bounds of each part that stays, and what follows it; None: nothing does."""
    done = 0
    flat = iter(_check_list(edits))
    for at, remove, items in zip(flat, flat, flat, strict=True):
        start = _index(at, length)
        if start < done or items is None:
            raise ValueError("its edits are out of order")
        yield done, start, items
        done = start + _index(remove, length - start)
    yield done, length, None


def _index(value: Tree, most: int) -> int:
    if kind_of(value) is not int or not 0 <= value <= most:
        raise ValueError("a position is outside of what it changes")
    return int(value)


def _check_list(value: Tree) -> list[Tree]:
    if kind_of(value) is not list:
        raise TypeError("it changes a value that is not a list")
    items: list[Tree] = value
    return items


def _check_plain(*values: Tree) -> None:
    if any(type(value) is not dict or tag_of(value) is not None for value in values):
        raise TypeError("it changes a value that is not a plain dict")
