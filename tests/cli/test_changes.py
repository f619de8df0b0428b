"""`changes` and `restore`: what has changed, and the outputs of each generation as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin
from tests.outputs.faulty import files_in
from trio_ckpt.cli import main

GENERATIONS = (
    {"a": "1", "b": "1", "c": "1"},
    {"a": "1", "b": "2", "d": "1"},
    {"a": "1", "b": "1", "c": "1"},  # c has come back, b is as it was
    {"b": "3"},
)


async def do(
    store: str, folder: Path, items: dict[str, str], *, is_killed: bool = False, **options: Any
) -> None:
    async with begin(store, output_dir=folder, **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(sorted(items)):
            was, value = batch.previous, items[batch.item]
            if was is not None and was.metadata["v"] == value:
                batch.unchanged()
            else:
                await batch.write_text(f"{batch.item}.txt", value)
                batch.append_json("log.jsonl", batch.item + value)
                batch.complete(metadata={"v": value})
            if is_killed:
                await batch.confirm()
                raise RuntimeError("killed")


def standing(folder: Path) -> dict[str, bytes]:
    found = files_in(folder)
    return {
        name: data
        for name, data in found.items()
        if not name.startswith(".archive/") and name != "manifest.json"
    }


@pytest.fixture
def done(tmp_path: Path) -> str:
    """A store with a run of four generations, of whose folders copies were made."""
    store = str(tmp_path / "s")
    for number, items in enumerate(GENERATIONS):
        trio.run(lambda items=items, number=number: do(
            store, tmp_path / "out", items, again=number > 0
        ))  # fmt: skip
        shutil.copytree(tmp_path / "out", tmp_path / f"was{number}")
    return store


def answer(capsys: pytest.CaptureFixture[str], *typed: str) -> dict[str, Any]:
    assert main([*typed, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_has_changed_is_counted_and_listed(
    done: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys, "changes", done)
    assert {name: found[name] for name in ("run", "generation", "base", "complete", "more")} == {
        "run": "r", "generation": 3, "base": 2, "complete": True, "more": 0,
    }  # fmt: skip
    assert found["counts"] == {"new": 0, "changed": 1, "unchanged": 0, "gone": 2, "skipped": 0}
    items = {(item["change"], *item["outputs"]) for item in found["items"]}
    assert items == {("changed", "b.txt"), ("gone", "a.txt"), ("gone", "c.txt")}
    assert main(["changes", done]) == 0
    text = capsys.readouterr().out
    assert (
        "generation 3 of run 'r', from generation 2: 0 new, 1 changed, 0 unchanged, 2 gone" in text
    )
    assert "gone" in text


def test_what_is_not_complete_is_said(
    done: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        trio.run(
            lambda: do(done, tmp_path / "out", {"a": "1", "e": "1"}, is_killed=True, again=True)
        )
    found = answer(capsys, "changes", done)
    assert not found["complete"]
    assert found["counts"] == {"new": 1, "changed": 0, "unchanged": 0, "gone": 0, "skipped": 0}
    assert main(["changes", done]) == 0
    assert "it is not complete, so what is gone is not known yet" in capsys.readouterr().out


def test_a_run_that_was_not_done_again_has_no_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trio.run(lambda: do(str(tmp_path / "s"), tmp_path / "out", {"a": "1"}))
    assert main(["changes", str(tmp_path / "s")]) == 4
    assert "run 'r' was not done again: its generation 0 began from no other one" in (
        capsys.readouterr().err
    )


def test_a_base_that_was_pruned_is_missed(done: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", done, "r", "--keep", "1", "--yes"]) == 0
    assert main(["changes", done]) == 4
    assert "generation 2, which generation 3 of run 'r' began from, was pruned" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("number", range(4))
def test_the_outputs_of_each_generation_are_restored(
    done: str, tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["restore", done, "r", "--generation", str(number), "--to", str(tmp_path / "to")]
    found = answer(capsys, *typed)
    assert standing(tmp_path / "to") == standing(tmp_path / f"was{number}")
    assert found["files"] == len(standing(tmp_path / "to"))
    assert answer(capsys, *typed)["problems"] == []  # what is there stays


def test_what_cannot_be_restored_is_said(
    done: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "out/.archive/r-0")
    typed = ["restore", done, "r", "--generation", "0", "--to"]
    assert main([*typed, str(tmp_path / "to")]) == 0  # generation 2 has made b and c again
    (tmp_path / "out/.archive/r-2/a.txt").write_text("9")
    assert main([*typed, str(tmp_path / "other")]) == 1
    assert "a.txt: neither the file nor a copy in the archive is what was confirmed" in (
        capsys.readouterr().out
    )
    (tmp_path / "to/a.txt").write_text("another")
    assert main([*typed, str(tmp_path / "to")]) == 1
    assert "a.txt: the target has another file" in capsys.readouterr().out
    assert main([*typed, str(tmp_path / "out")]) == 2
    assert main(["restore", done, "r", "--generation", "9", "--to", str(tmp_path / "to")]) == 4
