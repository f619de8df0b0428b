"""Applies a delta to a tree; nothing in the delta is trusted."""

from __future__ import annotations

from ..._util.errors import StoreDamagedError
from .delta import BYTES, INSIDE, ITEMS, KEYS, REPLACE, SPLICE
from .format import MAX_TREE_DEPTH, Tree, kind_of, tag_of


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
    done = 0
    flat = iter(_check_list(edits))
    for at, remove, items in zip(flat, flat, flat, strict=True):
        start = _index(at, len(_check_list(old)))
        if start < done:
            raise ValueError("its edits of a list are out of order")
        new += old[done:start]
        new += _checked(_check_list(items), depth)
        done = start + _index(remove, len(old) - start)
    new += _check_list(old)[done:]
    return new


def _patch_bytes(old: Tree, edits: Tree) -> Tree:
    if type(old) is not bytes:
        raise TypeError("it changes a value that is not bytes")
    parts: list[bytes] = []
    done = 0
    flat = iter(_check_list(edits))
    for at, remove, data in zip(flat, flat, flat, strict=True):
        start = _index(at, len(old))
        if start < done or type(data) is not bytes:
            raise ValueError("its edits of bytes are out of order")
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
        raise TypeError("it changes a value that is not a list")
    items: list[Tree] = value
    return items


def _check_plain(*values: Tree) -> None:
    if any(type(value) is not dict or tag_of(value) is not None for value in values):
        raise TypeError("it changes a value that is not a plain dict")
