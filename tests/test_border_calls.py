"""What is wrong is refused at the public border: paths, labels, parts of names, what is called.

The rows of records, runs, streams and loops are in test_border.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.hangs import HANG_S
from tests.opening import begin
from trio_ckpt import Batch, Frontier, Run, monitor, open_run, run_batches
from trio_ckpt.engines import map_tasks
from trio_ckpt.stores import MemoryStore, open_store

NO_PATH = (5, None, b"a.json", ["a.json"])


OUTPUTS: dict[str, Callable[[Batch[Any], Any], Any]] = {
    "write_bytes": lambda batch, path: batch.write_bytes(path, b"a"),
    "write_text": lambda batch, path: batch.write_text(path, "a"),
    "write_json": lambda batch, path: batch.write_json(path, 1),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("path", NO_PATH, ids=repr)
async def test_what_is_not_a_path_is_not_written(name: str, path: Any, tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(TypeError, match=r"^path must be a path, a str or a pathlib.Path, "):
                await OUTPUTS[name](batch, path)
            with pytest.raises(TypeError, match=r"^path must be a path, a str or a pathlib.Path, "):
                batch.append_json(path, 1)
            batch.complete()
        assert run.exit_code == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith("a")]


@pytest.mark.parametrize("data", ["a", 5, None, ["a"]], ids=repr)
async def test_what_is_not_bytes_is_not_written_as_bytes(data: Any, tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(TypeError, match=r"^data must be bytes or a buffer of them, not "):
                await batch.write_bytes("a", data)
            batch.complete()


@pytest.mark.parametrize("store", [5, None, b"a.ckpt", MemoryStore], ids=repr)
async def test_what_is_not_a_store_is_not_opened(store: Any) -> None:
    with pytest.raises(TypeError, match=r"^url must be a path, a str or a pathlib.Path, not "):
        await open_store(store)
    with pytest.raises(TypeError, match=r"^store must be a path, a str or a pathlib.Path, not "):
        async with open_run("r", store=store):
            raise AssertionError("it was opened")
    with pytest.raises(TypeError, match=r"^store must be a path, a str or a pathlib.Path, not "):
        await map_tasks("tests.remote.functions:square", [1], store=store)


@pytest.mark.parametrize("create", ["no", 0, None])
async def test_only_a_bool_says_whether_a_store_is_made(create: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^create must be True or False, not "):
        await open_store(tmp_path / "s", create=create)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("parts", [(("a",),), (5,), ("a", None)], ids=repr)
async def test_parts_of_a_group_are_text(parts: Any, tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run:
        with pytest.raises(TypeError, match=r"^a part of parts must be a str, not "):
            run.group(*parts)


@pytest.mark.parametrize("indexes", [5, "0", ["x"], [1.5], [-1], [True]], ids=repr)
async def test_what_are_no_indexes_is_not_waited_for(indexes: Any, tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s"):
        with (
            trio.fail_after(HANG_S),
            pytest.raises((TypeError, ValueError), match="indexes must be"),
        ):
            await run.wait_confirmed(("s",), indexes)


async def point_of(run: Run, label: Any) -> None:
    async with run.open_stream("s", state={"n": 0}) as stream:
        async for batch in stream.batches(range(1)):
            async with stream.snapshots(every_s=0) as snapshot:
                with pytest.raises((TypeError, ValueError), match=r"^label "):
                    await snapshot.point(label)
                assert snapshot.skipped == 0
            batch.complete()


@pytest.mark.parametrize("label", [5, None, b"a", "x" * 201, "\ud800"], ids=repr)
async def test_a_label_that_cannot_be_kept_is_refused(label: Any, tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run:
        await point_of(run, label)
        assert run.exit_code == 0


@pytest.mark.parametrize("path_of", [5, "a.json", None])
async def test_paths_come_of_a_function(path_of: Any, tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        with pytest.raises(TypeError, match=r"^path_of must be a function, not "):
            await stream.rescan(path_of, total=3)


@pytest.mark.parametrize("key", [5, "key", [len]], ids=repr)
def test_keys_of_a_frontier_come_of_a_function(key: Any) -> None:
    with pytest.raises(TypeError, match=r"^key must be a function, not "):
        Frontier([1], key=key)


async def test_a_handler_that_is_not_async_is_named(tmp_path: Path) -> None:
    def handle(batch: Batch[int]) -> None:
        batch.complete()

    async with begin(output_dir=tmp_path) as run, run.open_stream("s", on_fail="record") as stream:
        with pytest.raises(TypeError, match=r"^handler must be an async function: it returned N"):
            await run_batches(stream, range(1), handle)  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", [5, b"a secret of 16 bytes"], ids=repr)
async def test_a_secret_of_a_monitor_is_text(secret: Any) -> None:
    with trio.fail_after(HANG_S), pytest.raises(TypeError, match=r"^secret must be a str, not "):
        await monitor.serve(MemoryStore(), port=0, secret=secret)
