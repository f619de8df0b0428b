"""The state of an open stream: who may change it, and what a loop sets for its batches."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import trio_ckpt
from trio_ckpt import (
    Batch,
    RetryRule,
    RetryTable,
    open_run,
    run_batches,
)
from trio_ckpt._commit.extent import Extent
from trio_ckpt._commit.open_stream import OpenStream
from trio_ckpt._commit.retry import LoopPolicy
from trio_ckpt._runs.stream import loop_cursor_of

PACKAGE = Path(trio_ckpt.__file__).parent
OWNERS = {"_commit/open_stream.py", "_commit/gate.py", "_commit/extent.py"}
FIELDS = {f.name for kind in (OpenStream, Extent) for f in attrs.fields(kind)}
NAMES = {"open_stream", "extent"}  # and the same with an underscore


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def assigned(tree: ast.AST) -> Iterator[ast.expr]:
    """Each thing that a statement of the tree assigns to."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []
        for target in targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]


def writes_of(source: str) -> list[str]:
    """The assignments to a field of an open stream, or of its extent, in a source."""
    return [
        ast.unparse(target)
        for target in assigned(ast.parse(source))
        if isinstance(target, ast.Attribute)
        and target.attr in FIELDS
        and name_of(target.value).lstrip("_") in NAMES
    ]


def test_a_write_from_outside_is_found() -> None:
    assert writes_of("self.open_stream.code = None") == ["self.open_stream.code"]
    assert writes_of("a, open_stream.extent.end = 1, 2") == ["open_stream.extent.end"]
    assert writes_of("self._open_stream.first_index += 1") == ["self._open_stream.first_index"]


def test_only_its_owners_assign_to_the_fields_of_an_open_stream() -> None:
    found = {
        str(path.relative_to(PACKAGE)): writes
        for path in PACKAGE.rglob("*.py")
        if (writes := writes_of(path.read_text()))
    }
    assert set(found) <= OWNERS


class BodyError(Exception):
    """What a body raises."""


async def refuse(batch: Batch[int]) -> None:
    if batch.index == 1:
        raise BodyError
    await batch.write_json(f"{batch.index}.json", {})
    batch.complete()


async def test_the_policy_of_a_loop_ends_with_the_loop(tmp_path: Path) -> None:
    def check(value: Any) -> None:
        checked.append(value)

    checked: list[Any] = []
    table = RetryTable((RetryRule((BodyError,), attempts=3, backoff_s=0.0),))
    async with (
        open_run("r", store="memory:", output_dir=tmp_path, handle_signals=False) as run,
        run.open_stream("s", retry=table) as stream,
    ):
        own = loop_cursor_of(stream).open_stream.policy
        assert own == LoopPolicy(table)
        with pytest.raises(BodyError):
            await run_batches(
                stream, range(2), refuse, retry=RetryTable(), validate=check, concurrency=1
            )
        assert checked == [{}]
        assert stream.progress.failures[1].attempts == 1
        assert loop_cursor_of(stream).open_stream.policy is own
        assert loop_cursor_of(stream).open_stream.listener is None
        with pytest.raises(BodyError):
            await run_batches(stream, range(2), refuse)
        assert stream.progress.failures[1].attempts == 3
        assert loop_cursor_of(stream).open_stream.policy is own


async def test_a_changed_retry_table_holds_from_the_next_failure_on() -> None:
    async with (
        open_run("r", store="memory:", handle_signals=False) as run,
        run.open_stream("s", on_fail="record") as stream,
    ):

        async def fail(batch: Batch[int]) -> None:
            if batch.attempt == 1:
                rule = RetryRule((BodyError,), attempts=3, backoff_s=0.0)
                loop_cursor_of(stream).open_stream.change_policy(retry=RetryTable((rule,)))
            raise BodyError

        with pytest.raises(BodyError):
            await run_batches(stream, range(1), fail)
        assert stream.progress.failures[0].attempts == 3
        assert loop_cursor_of(stream).open_stream.policy.retry == RetryTable()
