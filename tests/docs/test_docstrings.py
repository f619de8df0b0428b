"""What the docstrings of public functions say."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from trio_ckpt.abc import Observer, Store

PUBLIC = (
    *("trio_ckpt", "trio_ckpt.abc", "trio_ckpt.engines", "trio_ckpt.monitor", "trio_ckpt.outputs"),
    *("trio_ckpt.progress", "trio_ckpt.remote", "trio_ckpt.state", "trio_ckpt.stores"),
    "trio_ckpt.testing",
)


def public_objects() -> Iterator[tuple[str, Any]]:
    """Each public function and class of the package, once, by its name."""
    seen: set[int] = set()
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name, value in vars(module).items():
            is_ours = str(getattr(value, "__module__", "")).startswith("trio_ckpt")
            if not name.startswith("_") and is_ours and id(value) not in seen:
                seen.add(id(value))
                yield f"{module_name}.{name}", value


def async_functions() -> Iterator[tuple[str, Any]]:
    """Each public async function and method; not what a class overrides of a contract."""
    for name, value in public_objects():
        if inspect.isfunction(value):
            members = {name: value}
        elif inspect.isclass(value):
            overridden = {*vars(Store), *vars(Observer)} if value is not Store else set[str]()
            members = {
                f"{name}.{attribute}": member
                for attribute, member in vars(value).items()
                if not attribute.startswith("_")
                and inspect.isfunction(member)
                and not (issubclass(value, Store | Observer) and attribute in overridden)
            }
        else:
            continue
        for function_name, function in members.items():
            bare = inspect.unwrap(function)
            if inspect.iscoroutinefunction(bare) or inspect.isasyncgenfunction(bare):
                yield function_name, function


ASYNC = dict(async_functions())


def test_there_are_public_async_functions() -> None:
    assert len(ASYNC) > 60


@pytest.mark.parametrize("name", ASYNC)
def test_a_public_async_function_states_its_cancellation(name: str) -> None:
    assert "Cancellation: " in (inspect.getdoc(ASYNC[name]) or "")
