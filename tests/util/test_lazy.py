"""Names that a package imports when they are first asked for."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

import trio_ckpt
from trio_ckpt import state, stores
from trio_ckpt._util.lazy import lazy_names
from trio_ckpt.stores.memory import MemoryStore

HOMES = {"memory": "MemoryStore", "_json.store": "JsonStore"}


def test_a_name_is_taken_from_its_home() -> None:
    load, listed, names = lazy_names("trio_ckpt.stores", HOMES, modules=["memory"])
    assert load("MemoryStore") is MemoryStore
    assert {"JsonStore", "MemoryStore", "memory", "open_store"} <= set(listed())
    assert names == ["JsonStore", "MemoryStore"]
    with pytest.raises(AttributeError, match="has no attribute 'RedisStore'"):
        load("RedisStore")


def test_what_needs_an_extra_is_not_listed() -> None:
    """What `dir()` names can be had, as `inspect.getmembers` does."""
    homes = {"_arrays.memory": "of_arrays"}
    _, with_extra, names = lazy_names("trio_ckpt.state", homes, extras={"_arrays.memory": "arrays"})
    _, without, _ = lazy_names("trio_ckpt.state", homes)
    assert "of_arrays" not in with_extra()
    assert names == []
    assert "of_arrays" in without()


NOT_LISTED = {"array", "empty", "full", "ones", "zeros"}  # they need the extra for arrays


@pytest.mark.parametrize(("package", "not_listed"), [(trio_ckpt, set()), (state, NOT_LISTED)])
def test_type_checkers_see_what_a_package_has(package: ModuleType, not_listed: set[str]) -> None:
    tree = ast.parse(inspect.getsource(package))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for node in block.body if isinstance(node, ast.ImportFrom))
    seen = [alias.asname for node in imports for alias in node.names]
    assert sorted(seen) == sorted({*package.__all__, *not_listed})
    assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize("package", [trio_ckpt, state, stores])
def test_a_star_imports_what_is_public(package: object) -> None:
    found: dict[str, object] = {}
    exec(f"from {package.__name__} import *", found)
    assert set(found) - {"__builtins__"} == set(package.__all__)
