"""Outputs that no record names: found, and adopted only when that is asked for."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.opening import begin
from trio_ckpt import Batch, Frontier, Output, OutputClaimedError, Status, run_batches
from trio_ckpt._commit.adopt import RECORDS_PER_SAVE, adopt_outputs
from trio_ckpt._runs.run import open_run_of
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt.outputs import RawCheck
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import FaultyStore


@attrs.frozen
class Page:
    """What an output must hold."""

    page: int


def path_of(index: int) -> str:
    return f"{index}.json"


async def write_pages(store: Any, folder: Path, count: int) -> list[int]:
    worked = []
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            worked.append(batch.index)
            await batch.write_json(path_of(batch.index), {"page": batch.index})
            batch.complete(records=1, totals={"words": 5})
    return worked


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_outputs_of_a_lost_store_are_found_and_adopted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, store = tmp_path / "out", MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    await write_pages(MemoryStore(), folder, 4)
    (folder / "2.json").unlink()
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        caplog.set_level(logging.INFO)
        assert await stream.rescan(path_of, total=6) == [0, 1, 3]
        assert "found outputs of 3 batches that no record names" in caplog.text
        assert not stream.progress.confirmed
        assert await stream.rescan(path_of, total=6, adopt_outputs=True) == [0, 1, 3]
        assert "adopted 3 batches by their outputs" in caplog.text
        assert await stream.rescan(path_of, total=6, adopt_outputs=True) == []
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        assert list(stream.progress.confirmed) == [0, 1, 3]
        assert list(stream.progress.adopted) == [0, 1, 3]
        assert stream.statistics().adopted == 3
        assert (stream.progress.records, stream.progress.totals) == (0, {})
        assert (stream.progress.outputs, stream.remaining(total=6)) == (3, [2, 4, 5])
        assert stream.status is Status.IN_PROGRESS
    assert await write_pages(store, folder, 6) == [2, 4, 5]
    async with begin(store, output_dir=folder) as run:
        assert run.exit_code == 0
        assert run.statistics().adopted == 3


async def test_what_was_adopted_is_verified_and_claimed_like_any_other(tmp_path: Path) -> None:
    store = MemoryStore()
    await write_pages(MemoryStore(), tmp_path, 3)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await stream.rescan(path_of, total=3, adopt_outputs=True)
        async for batch in stream.batches(range(4)):
            with pytest.raises(OutputClaimedError, match="batch 1"):
                await batch.write_text("1.json", "mine")
            batch.complete()
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s"), run.open_stream("t") as other:
            async for batch in other.batches(range(1)):
                with pytest.raises(OutputClaimedError, match="batch 2"):
                    await batch.write_text("2.json", "mine")
                batch.complete()
    (tmp_path / "1.json").write_text("other")
    assert await write_pages(store, tmp_path, 4) == [1]
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert list(stream.progress.adopted) == [0, 2]
        await stream.redo([0], reason="its totals are not known")
        assert list(stream.progress.adopted) == [2]
    assert await write_pages(store, tmp_path, 4) == [0]


async def test_only_valid_outputs_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index, text in enumerate(['{"page": 0}', "{", '{"page": "1"}', '{"page": 3}']):
        (tmp_path / path_of(index)).write_text(text)
    (tmp_path / "4.json").mkdir()
    (tmp_path / "5.json").symlink_to(tmp_path / "0.json")
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", validate=Page) as stream:
            with caplog.at_level(logging.INFO):
                assert await stream.rescan(path_of, total=7, adopt_outputs=True) == [0, 3]
            assert list(stream.progress.confirmed) == [0, 3]
            for index in (1, 2, 4, 5):
                assert f"batch {index} of run 'r', stream 's'" in caplog.text
            assert "batch 6" not in caplog.text  # it is not there, which is no news
            worked = []
            async for batch in stream.batches(range(4)):
                worked.append(batch.index)
                await batch.write_json(path_of(batch.index), {"page": batch.index})
                batch.complete()
    assert worked == [1, 2]
    assert json.loads((tmp_path / "1.json").read_text()) == {"page": 1}


async def test_without_validation_no_output_is_empty_and_json_is_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = {"0.json": "{}", "1.json": "{nope", "2.json": "", "3.txt": "", "4.txt": "{nope"}
    contents |= {"5.json": '{"a": NaN}', "6.JSON": "[1", "7.json": "\xff"}
    for name, text in contents.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    names = dict(enumerate(contents))
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert await stream.rescan(names.__getitem__, total=8, adopt_outputs=True) == [0, 4]
        assert list(stream.progress.confirmed) == [0, 4]
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"][-1:]
    assert "outputs of 6 batches exist but are refused: batch 1: 1.json: is not JSON" in said
    assert "batch 2: 2.json: is empty; batch 3: 3.txt: is empty; 3 more" in said


async def test_a_rescan_sees_what_raw_checks_see(tmp_path: Path) -> None:
    for index, content in enumerate([b"\x89PNG", b"<html>"]):
        (tmp_path / f"{index}.png").write_bytes(content)
    check = RawCheck(lambda _path, content: content.startswith(b"\x89PNG"))
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", validate=check) as stream:
            assert await stream.rescan(lambda i: f"{i}.png", total=2) == [0]


async def test_a_batch_of_several_outputs_is_adopted_with_all(tmp_path: Path) -> None:
    for name in ("0.json", "0.txt", "1.json", "2.json", "2.txt"):
        (tmp_path / name).write_text("2")
    (tmp_path / "2.txt").write_text("")
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        for adopt in (False, True):
            found = await stream.rescan(
                lambda i: [f"{i}.json", f"{i}.txt"], total=3, adopt_outputs=adopt
            )
            assert found == [0]
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert (stream.progress.outputs, list(stream.progress.confirmed)) == (2, [0])


@pytest.mark.parametrize(("paths", "error"), [([], ValueError), (5, TypeError)])
async def test_paths_that_are_none_are_refused(
    paths: Any, error: type[Exception], tmp_path: Path
) -> None:
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        with pytest.raises(error, match="path_of"):
            await stream.rescan(lambda _index: paths, total=1)


async def test_what_was_found_and_not_adopted_is_free_for_its_writer(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / path_of(index)).write_text("{}")
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert await stream.rescan(path_of, total=2) == [0, 1]
        async with run.open_stream("other") as other:
            async for batch in other.batches(range(1)):
                await batch.write_text("0.json", "mine")
                batch.complete()


async def test_what_was_not_valid_is_free_for_its_writer(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text("{")
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", validate=Page) as stream:
            assert await stream.rescan(path_of, total=1, adopt_outputs=True) == []
            async with run.open_stream("other") as other:
                async for batch in other.batches(range(1)):
                    await batch.write_text("0.json", "mine")
                    batch.complete()


async def test_one_file_is_the_output_of_one_batch(tmp_path: Path) -> None:
    (tmp_path / "same.json").write_text("{}")
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        found = await stream.rescan(lambda _index: "same.json", total=3, adopt_outputs=True)
        assert found == [0]
        assert list(stream.progress.confirmed) == [0]


async def test_files_are_named_relative_to_the_folder_of_the_stream(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.json").write_text("{}")
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s", output_dir="sub", first_index=0) as stream:
            assert await stream.rescan(path_of, total=1, adopt_outputs=True) == [0]
            assert await stream.rescan(path_of, total=1) == []
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert list(stream.progress.confirmed) == [0]


@pytest.mark.parametrize("order", ["state", "cursor", "frontier"])
async def test_a_file_alone_confirms_none_where_batches_build_on_each_other(
    order: str, tmp_path: Path
) -> None:
    states: dict[str, Any] = {"state": {"n": 0}, "frontier": Frontier(["a"]), "cursor": None}
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", state=states[order]) as stream:
            if order == "cursor":
                async for batch in stream.batches():
                    batch.complete(cursor=1)
                    break  # it is saved by the rescan, which then sees its cursor
            with pytest.raises(TypeError):
                await stream.rescan(path_of, total=2)


async def test_the_end_of_the_stream_has_to_be_known(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        with pytest.raises(ValueError, match="the end of the stream is not known"):
            await stream.rescan(path_of)
        async for batch in stream.batches(range(3)):
            batch.complete()
            break
        (tmp_path / "2.json").write_text("{}")
        assert await stream.rescan(path_of) == [2]


async def test_many_are_adopted_in_groups_of_bounded_size(tmp_path: Path) -> None:
    class Counting(FaultyStore):
        groups: list[int]

        async def save(self, run: Any, group: Any, folds: Any = (), *, summary: Any = None) -> Any:
            self.groups.append(len(group))
            return await super().save(run, group, folds, summary=summary)

    store = Counting(MemoryStore(), {})
    store.groups = []
    count = 2 * RECORDS_PER_SAVE + 5
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        found = {n: (Output(f"{n}", 0, 0, ""),) for n in range(count)}
        await adopt_outputs(loop_cursor_of(stream).open_stream, found)
        assert len(stream.progress.adopted) == count
    assert max(store.groups) <= RECORDS_PER_SAVE


@pytest.mark.parametrize(
    "path_of", [lambda _index: "../out.json", lambda _index: "/elsewhere.json"]
)
async def test_what_is_not_below_the_folder_is_not_found(
    path_of: Callable[[int], str], tmp_path: Path
) -> None:
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert await stream.rescan(path_of, total=1, adopt_outputs=True) == []


async def test_a_batch_gives_back_only_names_that_it_owns(tmp_path: Path) -> None:
    """An adopted name that another batch has confirmed after a redo stays that batch's."""
    folder, store = tmp_path / "out", MemoryStore()
    await write_pages(MemoryStore(), folder, 2)
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        await stream.rescan(path_of, total=2, adopt_outputs=True)
        await stream.redo([0, 1], reason="again")
        await run_batches(stream, range(2), swap_names, concurrency=2)
        owners = open_run_of(run).path_owners
        assert {owners.get(path_of(index)) for index in range(2)} == {('["s"]', 1), None}
        assert owners.get("other.json") == ('["s"]', 0)


async def swap_names(batch: Batch[int]) -> None:
    """Batch 1 takes the name that batch 0 had, before that is confirmed under another one."""
    await trio.sleep(0 if batch.index else 0.01)
    await batch.write_json("other.json" if batch.index == 0 else path_of(0), {"page": 0})
    batch.complete()


async def test_adopted_names_are_kept_in_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    await write_pages(MemoryStore(), folder, 3)
    async with begin(MemoryStore(), output_dir=folder) as run, run.open_stream("s") as stream:
        await stream.rescan(path_of, total=3, adopt_outputs=True)
        owners = open_run_of(run).path_owners
        assert owners._count == 3
        assert list(owners._held) == ["manifest.json"]
