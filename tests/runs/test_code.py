"""A run notes its code: which batches are of older code, and what a session knows of it."""

from __future__ import annotations

import functools
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
from trio_ckpt._runs.code_digest import digest_of
from trio_ckpt._runs.code_source import Sources
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


async def test_what_the_same_code_did_before_is_not_counted() -> None:
    store = MemoryStore()
    await work(store, correct, 2)
    await work(store, correct_better, 5)
    with pytest.raises(CodeChangedError, match="since session 2: 3 confirmed batches are of"):
        await work(store, correct, 7, "refuse")


async def test_nothing_is_refused_where_nothing_is_of_older_code() -> None:
    """All that it did was re-queued; what came before code was noted is of no other code."""
    store = MemoryStore()
    await work(store, correct, 2, None)
    await work(store, correct, 4, "refuse")
    async with begin(store) as run, run.open_stream("s") as stream:
        await stream.redo([2, 3], reason="a test")
    await work(store, correct_better, 4, "refuse")
    assert await old_of(store) == {"": [0, 1]}


async def test_a_stream_of_blocks_is_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()

    def digest(functions: list[object], sources: object) -> str:
        asked.append(functions)
        return digest_of(functions, Sources())

    monkeypatch.setattr("trio_ckpt._runs.code.digest_of", digest)
    async with begin(code=Code(functions=[correct])) as run, run.open_stream("s") as stream:
        for _ in range(3):
            async with stream.open_batch() as batch:
                batch.complete()
        assert stream.progress.code is not None
    assert asked == [[correct]]


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


def handle(batch: Any, model: str = "small") -> None:
    batch.complete()


class Clerk:
    def __call__(self, batch: Any) -> None:
        batch.complete()

    async def work(self, batch: Any) -> None:
        batch.complete()


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (handle, "handle"),
        (functools.partial(handle, model="large"), "handle"),
        (Clerk(), "Clerk"),
        (Clerk().__call__, "Clerk.__call__"),
    ],
)
def test_a_synchronous_handler_is_noted_by_its_name(handler: Any, name: str) -> None:
    store, codes = MemoryStore(), list[Any]()
    for count in (1, 2):
        with begin_blocking(store, code="refuse") as run, run.open_stream("s") as stream:
            run_batches_blocking(stream, range(count), handler)
            codes.append(stream.progress.code)
    assert [(one.name, one.session) for one in codes] == [(name, 1)] * 2


async def test_what_can_be_called_is_noted_by_its_name() -> None:
    for handler, name in (
        (functools.partial(correct), "correct"),
        (Clerk().work, "Clerk.work"),
        (_wrapped_in_itself(), "wrapper"),
    ):
        async with begin(code="note") as run, run.open_stream("s") as stream:
            await run_batches(stream, range(1), handler)
            code = stream.progress.code
        assert code is not None
        assert code.name == name


def _wrapped_in_itself() -> Any:
    async def wrapper(batch: Any) -> None:
        batch.complete()

    wrapper.__wrapped__ = wrapper  # type: ignore[attr-defined]
    return wrapper


async def test_what_a_rewind_took_back_is_of_no_code() -> None:
    store = MemoryStore()
    await work(store, correct, 4)
    await work(store, correct_better, 6)
    async with begin(store) as run:
        await run.rewind(("s",), to=1, reason="a test")
    assert await old_of(store) == {"correct": [0, 1]}
    await work(store, correct_better, 6, "refuse")
    assert await old_of(store) == {"correct": [0, 1]}
    with pytest.raises(CodeChangedError, match="4 confirmed batches are of older code"):
        await work(store, correct, 6, "refuse")


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


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "program"
    folder.mkdir()
    git(folder, "init")
    (folder / "a.py").write_text("1")
    git(folder, "add", "a.py")
    git(folder, "commit", "-m", "one")
    return folder


def test_a_hook_of_another_repository_does_not_count(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    (other / "b.py").write_text("2")
    git(other, "add", "b.py")
    git(other, "commit", "-m", "two")
    before = _commit(str(repository))
    assert before != _commit(str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert _commit(str(repository)) == before


def test_a_second_tree_and_a_submodule_have_their_commits(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", str(tmp_path / "tree"))
    assert _commit(str(tmp_path / "tree")) == _commit(str(repository))
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init")
    add = ["-c", "protocol.file.allow=always", "submodule", "add", str(repository), "inner"]
    git(outer, *add)
    git(outer, "commit", "-m", "outer")
    assert _commit(str(outer / "inner")) == _commit(str(repository))
    assert _commit(str(outer))["commit"] != _commit(str(repository))["commit"]
    (outer / "inner" / "a.py").write_text("2")
    assert _commit(str(outer))["is_dirty"] is True


def test_a_repository_that_git_refuses_has_no_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _commit(str(repository))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to test it
    assert _commit(str(repository)) == {}


def test_a_git_that_does_not_answer_is_left(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("trio_ckpt._runs.code.GIT_TIMEOUT_S", 0.2)
    assert _commit(str(repository)) == {}


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
