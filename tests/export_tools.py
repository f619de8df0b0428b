"""Runs to export, and archives that lie."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio_ckpt
from trio_ckpt._archive import SEAL_BYTES, SEAL_WORDS
from trio_ckpt._progress import encode_progress
from trio_ckpt._records import Kind, Record, encode_record
from trio_ckpt._values import StreamKey, encode_key
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.outputs import OutputDir

BIG = "x" * 5_000  # over the inline limit of the stores that these tests make


async def write_run(store: Store, folder: Path, run_id: str = "r") -> None:
    """A run with outputs, an append file, a blob, a skip, and a batch that was redone."""
    await _work(store, folder, run_id, 3)
    (folder / "pages/1.json").unlink()
    await _work(store, folder, run_id, 5)


async def _work(store: Store, folder: Path, run_id: str, count: int) -> None:
    async with trio_ckpt.open_run(run_id, store=store, output_dir=folder) as run:
        async with run.open_stream("päge", "a/b") as stream:
            async for batch in stream.batches(range(count)):
                if batch.index == 4:
                    batch.skip("is blank")
                    continue
                await batch.write_json(f"pages/{batch.index}.json", {"page": batch.index})
                batch.complete(records=2, totals={"cost": 0.1}, metadata={"big": BIG})
        async with run.open_stream("lines") as stream:
            async for batch in stream.batches(range(count)):
                batch.append_json("lines.jsonl", {"line": batch.index})
                batch.complete(records=1)


async def save_many(
    store: Store, run_id: str, counts: dict[StreamKey, int], payload: bytes = b""
) -> None:
    """A run with so many records in these streams, and no folds."""
    async with store.lock_run(run_id) as owner:
        for key, count in counts.items():
            seal = store.seal(run_id, 0, key)
            group: list[Checkpoint] = []
            for sequence in range(1, count + 1):
                record = Record(kind=Kind.BATCH, at=1.0, index=sequence - 1, state=payload)
                sealed = seal.close(sequence, encode_record(record))
                group.append(Checkpoint(encode_key(key), sequence, sealed))
            assert set(await store.save(RunKey(run_id, 0, owner), group)) <= {None}


async def everything(store: Store, run_id: str) -> dict[StreamKey, Any]:
    """Per stream: what it adds up to, and every record as it was before it was sealed."""
    view = await store.load_run(run_id)
    assert view is not None
    found: dict[StreamKey, Any] = {}
    for key, stream in view.streams.items():
        seal = store.seal(run_id, view.generation, key)
        records: list[tuple[int, bytes]] = []
        cursor = None
        while True:
            page = await store.history(run_id, encode_key(key), cursor=cursor)
            records += [(s.sequence, seal.open(s.sequence, s.payload)) for s in page.records]
            cursor = page.cursor
            if cursor is None:
                break
        found[key] = (encode_progress(stream.progress), records)
    return found


def open_outputs(folder: Path) -> OutputDir:
    return OutputDir.open(folder)


# ---------------------------------------------------------------------------------------
# Archives that lie: whole as a file, and wrong inside
# ---------------------------------------------------------------------------------------


def reseal(data: bytes) -> bytes:
    """The same bytes under a seal that fits them."""
    body = data[:-SEAL_BYTES]
    return body + SEAL_WORDS + hashlib.sha256(body).hexdigest().encode()


def unpack(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(
    source: Path,
    target: Path,
    edit: Callable[[dict[str, bytes], dict[str, Any]], object],
    *,
    update_members: bool = False,
    **options: Any,
) -> Path:
    """An archive with other members or another manifest, sealed as it should be.

    With `update_members` the manifest tells sizes and hashes of the edited members.
    """
    files = unpack(source)
    manifest = json.loads(files.pop("manifest.json"))
    edit(files, manifest)
    if update_members:
        manifest["members"] = [
            {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
    with zipfile.ZipFile(target, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.comment = bytes(SEAL_BYTES)
    target.write_bytes(reseal(target.read_bytes()))
    return target
