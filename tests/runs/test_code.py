"""A run notes its code: which batches are of older code, and what a session knows of it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin, begin_blocking
from trio_ckpt import Batch, Code, CodeChangedError, read_history, read_sessions, run_batches
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt._runs.code import _commit, checked_code, read_code_facts
from trio_ckpt.blocking import run_batches as run_batches_blocking
from trio_ckpt.stores import MemoryStore

Handler = Callable[[Batch[Any]], Any]


async def correct(batch: Batch[Any]) -> None:
    batch.complete()


async def correct_better(batch: Batch[Any]) -> None:
    batch.complete(records=1)


async def work(
    store: MemoryStore, handler: Handler, count: int, code: Any = "note", **options: Any
) -> None:
    async with begin(store, code=code) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(count), handler, **options)


async def old_of(store: MemoryStore) -> dict[str, list[int]]:
    status = await read_run_status(store, "r")
    assert status is not None
    return {one.mark.name: list(one.indexes) for one in status.parts["s",].old_code}


async def test_a_changed_handler_leaves_batches_of_older_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    await work(store, correct, 3)
    await work(store, correct, 4)
    assert "the code of" not in caplog.text
    await work(store, correct_better, 6)
    [line] = [one for one in caplog.records if "the code of" in one.getMessage()]
    assert line.levelno == logging.WARNING
    assert "correct_better changed since session 1: 4 confirmed batches are of" in line.getMessage()
    assert await old_of(store) == {"correct": [0, 1, 2, 3]}


async def test_refusing_hands_out_nothing() -> None:
    store, begun = MemoryStore(), list[int]()

    async def other(batch: Batch[Any]) -> None:
        begun.append(batch.index)
        batch.complete()

    await work(store, correct, 2, "refuse")
    with pytest.raises(CodeChangedError, match="2 confirmed batches are of older code") as refused:
        await work(store, other, 4, "refuse")
    assert (refused.value.stream, begun) == (("s",), [])
    await work(store, correct, 4, "refuse")
    await work(store, other, 5)  # it may be noted instead
    assert begun == [4]


async def test_without_the_setting_nothing_is_noted() -> None:
    store = MemoryStore()
    await work(store, correct, 2, None)
    status = await read_run_status(store, "r")
    assert status is not None
    assert status.parts["s",].code is None
    [session] = await read_sessions(store, "r")
    assert session.code == {}


async def test_noting_costs_no_record() -> None:
    counts = list[int]()
    for code in (None, "note"):
        store = MemoryStore()
        await work(store, correct, 3, code)
        counts.append(len([one async for one in read_history(store, "r", ("s",))]))
    assert counts[0] == counts[1]


async def test_the_functions_of_a_loop_can_be_named() -> None:
    store = MemoryStore()
    for function, count in ((correct, 2), (correct, 3), (correct_better, 4)):
        code = Code(functions=[function])
        async with begin(store, code=code) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(count)):
                batch.complete()
    assert await old_of(store) == {"correct": [0, 1, 2]}


def test_a_synchronous_handler_is_noted_by_its_name() -> None:
    store = MemoryStore()

    def handle(batch: Any) -> None:
        batch.complete()

    with begin_blocking(store, code="note") as run, run.open_stream("s") as stream:
        run_batches_blocking(stream, range(2), handle)
        code = stream.progress.code
    assert code is not None
    assert (code.name, code.session) == ("handle", 1)


@pytest.mark.parametrize("code", ["warn", True, 1, Code])
async def test_other_settings_are_refused(code: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="code must be"):
        checked_code(code)


# -- what a session records ----------------------------------------------------------------------


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    try:
        subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no git")


def test_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "a.py").write_text("1")
    inner = tmp_path / "inner"
    inner.mkdir()
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "one")
    (tmp_path / "untracked").write_text("1")
    clean = _commit(str(inner))
    assert len(clean["commit"]) == 40
    assert clean["is_dirty"] is False
    (tmp_path / "a.py").write_text("2")
    assert _commit(str(inner)) == {**clean, "is_dirty": True}


def test_no_git_and_no_repository_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _commit(None) == {}
    assert _commit(str(tmp_path)) == {}
    (tmp_path / ".git").mkdir()  # it looks like one
    assert _commit(str(tmp_path)) == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert _commit(str(tmp_path)) == {}


async def test_a_session_records_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = await read_code_facts(Code(packages=["trio", "no-such-package"]))
    assert set(facts["packages"]) == {"trio", "no-such-package"}
    assert facts["packages"]["no-such-package"] is None
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
    store = MemoryStore()
    await work(store, correct, 1, Code(packages=["trio"]))
    [session] = await read_sessions(store, "r")
    assert session.code == {"packages": {"trio": facts["packages"]["trio"]}}
