"""A program keeps its runs in PostgreSQL as in a folder, and the command reads them there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

import trio_ckpt
from trio_ckpt.cli import main
from trio_ckpt.stores import open_store

BATCHES = 6


class StopHereError(Exception):
    """Ends a session in the middle."""


async def work(url: str, output_dir: Path, *, stop_at: int | None = None) -> list[int]:
    """Write a file for each batch, add up its numbers in a state; returns what was worked on."""
    worked: list[int] = []
    first: dict[str, Any] = {"sum": 0, "bytes": bytes(2**21)}  # so that a state is a blob
    async with trio_ckpt.open_run(
        "run", store=url, output_dir=output_dir, handle_signals=False
    ) as run:
        stream: trio_ckpt.Stream[dict[str, Any]]
        async with run.open_stream("a", "b", state=first) as stream:
            async for batch in stream.batches(range(BATCHES)):
                if batch.index == stop_at:
                    raise StopHereError
                await batch.write_json(f"{batch.index}.json", {"n": batch.index})
                stream.state["sum"] = stream.state["sum"] + batch.index
                batch.complete(records=1)
                worked.append(batch.index)
    return worked


async def test_a_program_goes_on_where_it_was_left(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StopHereError):
        await work(url, tmp_path / "out", stop_at=4)
    assert await work(url, tmp_path / "out") == [4, 5]
    assert await work(url, tmp_path / "out") == []
    names = sorted(path.name for path in (tmp_path / "out").glob("?.json"))
    assert names == [f"{n}.json" for n in range(BATCHES)]
    store = await open_store(url, create=False)
    (line,) = await store.list_runs()
    assert (line.run_id, line.is_owned, line.is_complete) == ("run", False, True)
    assert [finding async for finding in store.check()] == []
    await store.aclose()

    def commands() -> None:
        assert main(["ls", url]) == 0
        assert "complete" in capsys.readouterr().out
        for command in (["show", url], ["explain", url], ["history", url], ["verify", url]):
            assert main(command) == 0
        assert main(["verify", url, "--full"]) == 0
        assert main(["export", url, "run", str(tmp_path / "run.zip")]) == 0
        assert main(["import", url, str(tmp_path / "run.zip"), "--as", "copy"]) == 0
        assert main(["reset", url, "copy", "--yes"]) == 0
        assert main(["prune", url, "copy", "--keep", "1", "--yes"]) == 0
        capsys.readouterr()

    await trio.to_thread.run_sync(commands)


async def test_a_live_view_is_shown_while_a_process_looks(url: str) -> None:
    store, other = await open_store(url), await open_store(url)
    async with store.lock_run("run"):
        assert not await store.is_watched("run")
        assert await other.read_live("run") == b""
        assert await store.is_watched("run")
        await store.publish("run", b"view")
        assert await other.read_live("run") == b"view"
    assert await other.read_live("run") == b""  # its owner has ended
    async with other.lock_run("run"):
        assert not await other.is_watched("run")
        assert await store.read_live("run") == b""
        assert await other.is_watched("run")
        await other.publish("run", b"next")
        assert await store.read_live("run") == b"next"
    await store.aclose()
    await other.aclose()


async def test_the_first_look_at_an_owner_counts(url: str) -> None:
    store, other = await open_store(url), await open_store(url)
    assert await other.read_live("run") == b""
    async with store.lock_run("run"):
        assert not await store.is_watched("run")  # it was not owned then
    async with store.lock_run("run"):
        assert await other.read_live("run") == b""
        assert await store.is_watched("run")
    await store.aclose()
    await other.aclose()
