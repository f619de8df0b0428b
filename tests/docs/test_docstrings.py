"""What the docstrings of public functions say."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_ckpt.abc import Observer, Store

PUBLIC = (
    *("trio_ckpt", "trio_ckpt.abc", "trio_ckpt.blocking", "trio_ckpt.from_asyncio"),
    *("trio_ckpt.engines", "trio_ckpt.monitor", "trio_ckpt.outputs"),
    *("trio_ckpt.progress", "trio_ckpt.remote", "trio_ckpt.sinks", "trio_ckpt.state"),
    *("trio_ckpt.stores", "trio_ckpt.testing"),
)


def public_objects() -> Iterator[tuple[str, Any]]:
    """Each public function and class of the package, once, by its name."""
    seen: set[int] = set()
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in dir(module):
            value = getattr(module, name)
            is_ours = str(getattr(value, "__module__", "")).startswith("trio_ckpt")
            if not name.startswith("_") and is_ours and id(value) not in seen:
                seen.add(id(value))
                yield f"{module_name}.{name}", value


PUBLIC_CLASSES = {value for _, value in public_objects() if inspect.isclass(value)}


def members_of(value: type) -> dict[str, Any]:
    """What a public class has of its own, or from bases of ours that are not public."""
    members: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        is_ours = base.__module__.startswith("trio_ckpt")
        if base is value or (is_ours and base not in PUBLIC_CLASSES):
            members |= vars(base)
    return members


def async_functions() -> Iterator[tuple[str, Any]]:
    """Each public async function and method; not what a class overrides of a contract."""
    for name, value in public_objects():
        if inspect.isfunction(value):
            members = {name: value}
        elif inspect.isclass(value):
            overridden = {*vars(Store), *vars(Observer)} if value is not Store else set[str]()
            members = {
                f"{name}.{attribute}": member
                for attribute, member in members_of(value).items()
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


def functions() -> Iterator[tuple[str, Any]]:
    """Each public function and method, those that override a contract included."""
    for name, value in public_objects():
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for attribute, member in members_of(value).items():
                function = getattr(member, "__func__", member)  # of a class method
                if not attribute.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{attribute}", function


ASYNC = dict(async_functions())
FUNCTIONS = dict(functions())

WRITING_VERBS = {
    *("add_streams", "adopt", "append", "archive", "cancel", "commit", "compact", "confirm"),
    *("create", "cut", "drop", "export", "import", "lock", "map", "pin", "prune", "publish"),
    *("put", "recover", "redo", "rename", "requeue", "rescan", "reset", "retry", "rewind"),
    *("rewrite", "save", "serve_foreman", "submit", "unpin", "write"),
}
"""A public function whose name begins with one of these says what is durable when it returns."""

WRITERS = {
    *("trio_ckpt.Batch.write_json", "trio_ckpt.Run.open_stream", "trio_ckpt.Run.phase"),
    *("trio_ckpt.Snapshots.point", "trio_ckpt.Snapshots.point_sync", "trio_ckpt.Snapshots.wait"),
    *("trio_ckpt.Stream.fail", "trio_ckpt.Stream.finish", "trio_ckpt.Stream.open_batch"),
    *("trio_ckpt.open_maintenance", "trio_ckpt.open_run", "trio_ckpt.outputs.AppendFile.begin"),
    *("trio_ckpt.outputs.AppendFile.take", "trio_ckpt.outputs.OutputDir.open"),
    *("trio_ckpt.outputs.keep_tail", "trio_ckpt.remote.run_worker", "trio_ckpt.run_batches"),
    *("trio_ckpt.stores.JsonStore.open", "trio_ckpt.stores.SqliteStore.open"),
    "trio_ckpt.stores.open_store",
}
"""Other public functions that write bytes."""

NOT_WRITERS = {
    "trio_ckpt.CheckpointCoordinator": "tokens are in memory",
    "trio_ckpt.outputs.AppendFile.confirm": "it moves the confirmed length of the object alone",
    "trio_ckpt.outputs.Outputs.archived_head": "it reads",
    "trio_ckpt.outputs.OutputDir.archived_head": "it reads",
    "trio_ckpt.outputs.System": "its methods are the calls of the operating system",
}
"""Functions, and classes with all their methods, that promise nothing, and why."""


def writers() -> set[str]:
    """The public functions that write bytes, but for those that override a contract's."""
    overrides = {f".{name}" for name in vars(Store)}
    silent = tuple(NOT_WRITERS)
    stores = tuple(
        name
        for name, value in public_objects()
        if inspect.isclass(value) and issubclass(value, Store) and value is not Store
    )
    by_verb = {
        name
        for name in FUNCTIONS
        if any(f"{name.rpartition('.')[2]}_".startswith(f"{verb}_") for verb in WRITING_VERBS)
        and not name.startswith(silent)
        and not (name.startswith(stores) and name.endswith(tuple(overrides)))
    }
    return by_verb | WRITERS


def test_there_are_public_async_functions() -> None:
    assert len(ASYNC) > 60


@pytest.mark.parametrize("name", ASYNC)
def test_a_public_async_function_states_its_cancellation(name: str) -> None:
    assert "Cancellation: " in (inspect.getdoc(ASYNC[name]) or "")


@pytest.mark.parametrize("name", sorted(writers()))
def test_a_public_function_that_writes_says_what_is_durable(name: str) -> None:
    assert "Durability: " in (inspect.getdoc(FUNCTIONS[name]) or "")


ROOT = Path(__file__).parents[2]
LEANING = re.compile(
    r"(the same( (as|but|for|in|of|on|under|with)\b|[.,])|ditto|likewise)", re.IGNORECASE
)
"""How a docstring begins that another one has to explain."""


def leaning(source: str) -> list[str]:
    """The docstrings of a file that do not stand alone."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    return [text for node in nodes if LEANING.match(text := ast.get_docstring(node) or "")]


def test_every_docstring_stands_alone() -> None:
    folders = ("trio_ckpt", "tests", "examples", "benchmarks")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 500
    found = {path: leaning(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: texts for path, texts in found.items() if texts} == {}


@pytest.mark.parametrize(
    ("text", "is_leaning"),
    [("The same for bytes.", True), ("The same.", True), ("The same bytes are equal.", False)],
)
def test_a_docstring_that_leans_on_another_is_found(text: str, *, is_leaning: bool) -> None:
    assert bool(leaning(f'def f():\n    """{text}"""')) is is_leaning
