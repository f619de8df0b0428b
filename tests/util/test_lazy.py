"""Names that a package imports when they are first asked for."""

from __future__ import annotations

import pytest

from trio_ckpt import state, stores
from trio_ckpt._util.lazy import lazy_names
from trio_ckpt.stores.memory import MemoryStore

HOMES = {"memory": "MemoryStore", "_json.store": "JsonStore"}


def test_a_name_is_taken_from_its_home() -> None:
    load, listed = lazy_names("trio_ckpt.stores", HOMES, modules=["memory"])
    assert load("MemoryStore") is MemoryStore
    assert {"JsonStore", "MemoryStore", "memory", "open_store"} <= set(listed())
    with pytest.raises(AttributeError, match="has no attribute 'RedisStore'"):
        load("RedisStore")


def test_what_needs_an_extra_is_not_listed() -> None:
    """What `dir()` names can be had, as `inspect.getmembers` does."""
    homes = {"_arrays.memory": "of_arrays"}
    _, with_extra = lazy_names("trio_ckpt.state", homes, extras={"_arrays.memory": "arrays"})
    _, without = lazy_names("trio_ckpt.state", homes)
    assert "of_arrays" not in with_extra()
    assert "of_arrays" in without()


@pytest.mark.parametrize("package", [state, stores])
def test_a_star_imports_what_is_public(package: object) -> None:
    found: dict[str, object] = {}
    exec(f"from {package.__name__} import *", found)
    assert set(found) - {"__builtins__"} == set(package.__all__)
