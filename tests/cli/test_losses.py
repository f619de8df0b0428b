"""`doctor` and `explain` see what a start needs and would not find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from tests.cli.tools import Terminal
from tests.opening import begin
from trio_ckpt import open_run
from trio_ckpt._maintenance import losses as losses_of_runs
from trio_ckpt._maintenance.losses import MAX_FILES, find_losses
from trio_ckpt.stores import MemoryStore, open_store


async def work(store: Any, folder: Path, count: int = 4, end: int = 2) -> None:
    """A stream with a state, one with outputs, and one with an append file; work is left."""
    async with begin(store, output_dir=folder) as run:
        numbers = np.random.default_rng(5)
        async with run.open_stream("train", state={"w": np.zeros(50_000)}) as stream:
            async for batch in stream.batches(range(count), end=end):
                stream.state["w"] += numbers.random(50_000)
                batch.complete()
        async with run.open_stream("pages") as pages:
            async for batch in pages.batches(range(count), end=end):
                await batch.write_json(f"{batch.index}.json", 1)
                batch.append_json("all.jsonl", batch.index)
                batch.complete()


@pytest.fixture(params=["sqlite", "json"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = f"{request.param}:{tmp_path / 's.ckpt'}"
    trio.run(work, url, tmp_path / "out")
    return url


def lost_of(said: Any) -> list[str]:
    return [s["text"] for s in said.json["sentences"] if s["about"] == "lost"]


def worries_of(said: Any) -> list[tuple[str, str]]:
    return [
        (one["verdict"], one["finding"])
        for one in said.json["checks"]
        if one["check"] == "run r" and one["verdict"] not in ("good", "note")
    ]


def test_nothing_lost_is_told_of_a_whole_run(made: str, run: Terminal) -> None:
    assert lost_of(run("explain", made, "r", "--json")) == []
    assert worries_of(run("doctor", made, "--json")) == []


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_lost_or_shortened_blob_is_told_with_what_needs_it(
    made: str, is_cut: bool, run: Terminal, tmp_path: Path
) -> None:
    for blob in (tmp_path / "s.ckpt" / "blobs").rglob("*"):
        if blob.is_file():
            content = blob.read_bytes()
            blob.unlink()
            if is_cut:
                blob.write_bytes(content[:-1])
                blob.chmod(0o600)
    (text,) = lost_of(run("explain", made, "r", "--json"))
    assert text.startswith("Stream 'train' cannot go on, because its state after batch 2 is not ")
    assert "recover=True" in text
    assert f"trio-ckpt verify {made} r --full --repair" in text
    said = run("doctor", made, "--json")
    assert worries_of(said) == [("bad", text)]
    assert said.code == 1


def test_a_lost_output_is_told_in_the_words_of_verify(
    made: str, run: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "out" / "1.json").unlink()
    (problem,) = run("verify", made, "r", "--json").json["problems"]
    assert (problem["path"], problem["reason"]) == ("1.json", "missing")
    text = "Stream 'pages', batch 1, file 1.json: missing. A start re-queues the batch."
    assert lost_of(run("explain", made, "r", "--json")) == [text]
    said = run("doctor", made, "--json")
    assert worries_of(said) == [("doubt", text)]
    assert lost_of(run("explain", made, "r", "--stream", "train", "--json")) == []


def test_a_shortened_append_file_is_told(made: str, run: Terminal, tmp_path: Path) -> None:
    (tmp_path / "out" / "all.jsonl").write_bytes(b"0\n")
    (text,) = lost_of(run("explain", made, "r", "--json"))
    assert "append file all.jsonl: 4 of its 6 confirmed bytes are missing" in text


def test_a_folder_that_is_gone_is_told_once(made: str, run: Terminal, tmp_path: Path) -> None:
    (tmp_path / "out").rename(tmp_path / "moved")
    (text,) = lost_of(run("explain", made, "r", "--json"))
    assert f"{tmp_path}/out is not there" in text
    assert not (tmp_path / "out").exists()  # looking at it has not made it


def test_many_losses_are_counted(run: Terminal, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 's.ckpt'}"
    trio.run(work, url, tmp_path / "out", 20, 15)
    for index in range(12):
        (tmp_path / "out" / f"{index}.json").unlink()
    said = lost_of(run("explain", url, "r", "--json"))
    assert len(said) == 6
    assert said[-1].startswith("7 more files are missing: `trio-ckpt verify ")
    verdict, text = worries_of(run("doctor", url, "--json"))[-1]
    assert (verdict, text) == ("doubt", said[-1])


async def test_the_newest_outputs_are_looked_for_and_no_more(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_run("r", store=store, output_dir=tmp_path) as run, run.open_stream("s") as s:
        async for batch in s.batches(range(MAX_FILES + 5)):
            (tmp_path / f"{batch.index}").touch()
            batch.complete(outputs=[f"{batch.index}"])
    for index in (0, MAX_FILES):
        (tmp_path / f"{index}").unlink()
    view = await store.load_run("r")
    assert view is not None
    losses = await find_losses(store, view, str(tmp_path))
    assert [lost.batch_index for lost in losses.files] == [MAX_FILES]


async def test_the_newest_append_files_are_looked_for_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses_of_runs, "MAX_FILES", 3)
    store = MemoryStore()
    async with open_run("r", store=store, output_dir=tmp_path) as run, run.open_stream("s") as s:
        async for batch in s.batches(range(5)):
            batch.append_json(f"lines-{batch.index}.jsonl", batch.index)
            batch.complete()
    for index in range(5):
        (tmp_path / f"lines-{index}.jsonl").unlink()
    view = await store.load_run("r")
    assert view is not None
    losses = await find_losses(store, view, str(tmp_path))
    assert sorted(lost.path for lost in losses.files) == [f"lines-{n}.jsonl" for n in (2, 3, 4)]


async def test_what_a_run_took_back_meanwhile_is_not_lost(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 's.ckpt'}"
    await work(url, tmp_path / "out")
    store = await open_store(url)
    view = await store.load_run("r")
    assert view is not None
    async with open_run("r", store=url, output_dir=tmp_path / "out") as run:
        await run.rewind(("pages",), to=-1, reason="again")
    assert not (tmp_path / "out" / "0.json").exists()
    assert not await find_losses(store, view, str(tmp_path / "out"))
    await store.aclose()
