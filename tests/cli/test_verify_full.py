"""`verify --full` tells every damage in words, and `--repair` what it did about it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

import trio_ckpt
from tests.cli.tools import Terminal, batches, make_damaged, make_run
from trio_ckpt.stores import open_store
from trio_ckpt.stores._local.locks import lock_run


def make(store: Path, folder: Path) -> None:
    """A run with outputs that build on nothing, and a stream whose batches build on each other."""

    async def main() -> None:
        async with trio_ckpt.open_run("r", store=store, output_dir=folder) as run:
            async with run.open_stream("pages") as pages:
                async for batch in pages.batches(range(5)):
                    await batch.write_text(f"{batch.index}.txt", f"page {batch.index}")
                    batch.complete(records=1)
            async with run.open_stream("sums", state={"n": 0}) as sums:
                async for batch in sums.batches(range(5)):
                    sums.state["n"] += batch.index
                    batch.complete()

    trio.run(main)


def alter(store: Path, stream: str, sequence: int) -> None:
    """Turn a bit of a record's payload."""
    with closing(sqlite3.connect(store / "state.db")) as connection, connection:
        where = "stream = (SELECT id FROM streams WHERE stream = ?) AND sequence = ?"
        (payload,) = connection.execute(
            f"SELECT payload FROM log WHERE {where}",
            (stream, sequence),
        ).fetchone()
        altered = payload[:-1] + bytes([payload[-1] ^ 1])
        connection.execute(
            f"UPDATE log SET payload = ? WHERE {where}",
            (altered, stream, sequence),
        )


def confirmed(store: Path, key: str) -> list[int]:
    async def main() -> list[int]:
        opened = await open_store(store)
        view = await opened.load_run("r")
        await opened.aclose()
        assert view is not None
        return list(view.streams[key,].progress.confirmed)

    return trio.run(main)


@pytest.fixture
def made(store: Path, tmp_path: Path) -> Path:
    make(store, tmp_path / "out")
    return store


def test_a_whole_store_is_whole(run: Terminal, made: Path) -> None:
    said = run("verify", made, "--full")
    assert said.code == 0
    assert said.lines == [f"{made} was checked, every byte of it: all is as it was saved"]
    assert run("verify", made, "--repair", "--yes").out == said.out


def test_a_damage_is_told_with_its_place_and_what_can_be_done(run: Terminal, made: Path) -> None:
    alter(made, '["pages"]', 3)
    (made / "notes.txt").write_text("mine")
    said = run("verify", made, "--full")
    assert said.code == 1
    assert "1 damage found" in said.lines[0]
    (line,) = [line for line in said.lines if line.startswith("run 'r', stream")]
    assert "checkpoint 3" in line
    assert "is not what was saved" in line
    assert "--repair mends the stream" in line
    assert "no damage, but worth knowing:" in said.lines
    assert any(line.startswith("notes.txt  it does not belong to the store") for line in said.lines)
    document = run("verify", made, "--full", "--json").json
    (damage,) = [finding for finding in document["findings"] if finding["is_damage"]]
    assert (damage["run_id"], damage["stream"], damage["sequence"]) == ("r", '["pages"]', 3)
    assert document["repaired"] is None


def test_a_repair_asks_first(run: Terminal, made: Path) -> None:
    alter(made, '["pages"]', 3)
    before = (made / "state.db").read_bytes()
    said = run("verify", made, "--repair")
    assert said.code == 2
    assert "this would repair what can be repaired of 1 damage" in said.err
    assert "give --yes" in said.err
    assert (made / "state.db").read_bytes() == before


def test_a_lost_record_of_independent_batches_costs_one_batch(run: Terminal, made: Path) -> None:
    alter(made, '["pages"]', 3)
    before = (made / "state.db").read_bytes()
    said = run("verify", made, "--repair", "--yes")
    assert said.code == 0
    assert "1 checkpoint lost (3): they run again" in said.out
    assert said.lines[-1] == "the store is sound now; start the program to go on"
    assert confirmed(made, "pages") == [0, 1, 3, 4]
    (kept,) = made.glob("damaged/*/state.db")
    assert kept.read_bytes() == before
    assert run("verify", made, "--full").code == 0


def test_what_is_built_on_a_lost_record_is_given_up_only_if_asked_for(
    run: Terminal, made: Path
) -> None:
    alter(made, '["sums"]', 3)
    said = run("verify", made, "--repair", "--yes")
    assert said.code == 1
    assert "not repaired:" in said.lines
    assert "--accept-loss goes on without them, and their batches run again" in said.out
    assert "1 damage left:" in said.lines
    said = run("verify", made, "--repair", "--yes", "--accept-loss")
    assert said.code == 0
    assert "lost: it goes on after 2 (a loss)" in said.out
    assert confirmed(made, "sums") == [0, 1]
    assert confirmed(made, "pages") == [0, 1, 2, 3, 4]


def test_a_store_that_cannot_be_opened_is_a_finding(run: Terminal, made: Path) -> None:
    content = (made / "state.db").read_bytes()
    (made / "state.db").write_bytes(bytes(100) + content[100:])
    said = run("verify", made, "--full")
    assert said.code == 1
    assert "1 damage found" in said.lines[0]
    assert run("verify", made, "--repair", "--yes").code == 6
    assert (made / "state.db").read_bytes() == bytes(100) + content[100:]


def test_a_repair_is_refused_while_a_process_owns_a_run(run: Terminal, made: Path) -> None:
    alter(made, '["pages"]', 3)
    lock = lock_run(made, "r")
    try:
        said = run("verify", made, "--repair", "--yes")
    finally:
        lock.release()
    assert said.code == 6
    assert "a process owns a run of this store: stop it first" in said.err


def test_all_runs_are_looked_at_or_the_one_that_is_named(run: Terminal, store: Path) -> None:
    make_run(store, "good", {("a",): batches(2)})
    make_damaged(str(store), "bad")
    assert run("verify", store, "--full").code == 1
    assert run("verify", store, "bad", "--full").code == 1
    assert run("verify", store, "good", "--full").code == 0
    assert run("verify", store, "none", "--full").code == 4


def test_options_that_do_not_go_together(run: Terminal, made: Path) -> None:
    assert run("verify", made, "--full", "--stream", "pages").code == 2
    assert run("verify", made, "--accept-loss").code == 2
    assert run("verify", made, "--yes").code == 2


def test_outputs_and_manifest_are_looked_at_and_put_right(
    run: Terminal, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "3.txt").write_text("page X")
    assert "output 3.txt" in run("verify", made, "--full").out
    said = run("verify", made, "--repair", "--yes")
    assert said.code == 0
    assert "outputs were damaged: batch 3 is re-queued" in said.out
    assert confirmed(made, "pages") == [0, 1, 2, 4]
    make(made, out)
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace("0.txt", "9.txt"))
    assert "manifest.json  it is not what was written" in run("verify", made, "--full").out
    said = run("verify", made, "--repair", "--yes")
    assert (said.code, "manifest.json  it was written from the records" in said.out) == (0, True)
    assert (out / "manifest.json").read_text() == manifest
    (out / "manifest.json").unlink()
    assert "manifest.json  it was written, and is missing" in run("verify", made, "--full").out
    assert run("verify", made, "--full").code == 1
    assert run("verify", made, "--repair", "--yes").code == 0
    assert (out / "manifest.json").read_text() == manifest
