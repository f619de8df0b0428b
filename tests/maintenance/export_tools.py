"""Runs to export, and archives that lie."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import trio_ckpt
from tests.outputs.faulty import files_in
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import encode_progress
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Record, RecordKind, decode_record, encode_record
from trio_ckpt._maintenance.archive_file import SEAL_BYTES, SEAL_WORDS
from trio_ckpt._maintenance.export import ExportSummary, export_run
from trio_ckpt._util.plain import RUN_STREAM, StreamKey, encode_key
from trio_ckpt.abc import Checkpoint, Fold, RunKey, Store
from trio_ckpt.outputs import OutputDir
from trio_ckpt.stores import open_store

BIG = "x" * 5_000  # over the inline limit of the stores that these tests make


KINDS = ["memory:", "sqlite:", "json:"]


async def make_store(kind: str, folder: Path, mac_key: bytes | None = None) -> Store:
    """A store of a kind, in a folder if it needs one."""
    store = await open_store(kind if kind == "memory:" else f"{kind}{folder}", mac_key=mac_key)
    store.inline_limit_bytes = 2_000
    return store


def outputs_in(folder: Path) -> dict[str, bytes]:
    """The files in a folder that batches have made: not the list of them, nor older lists."""
    found = files_in(folder).items()
    return {name: data for name, data in found if not name.endswith("manifest.json")}


async def export_all(store: Store, folder: Path, path: Path, run_id: str = "r") -> ExportSummary:
    """Export a run with the outputs that are in a folder."""
    with closing(OutputDir.open(folder)) as outputs:
        return await export_run(store, run_id, path, outputs=outputs)


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
    for key, count in counts.items():
        records = [
            Record(kind=RecordKind.BATCH, at=1.0, index=index, state=payload)
            for index in range(count)
        ]
        await save_records(store, run_id, key, records)


async def save_records(
    store: Store, run_id: str, key: StreamKey, records: Sequence[Record]
) -> None:
    """A stream with these records, and no fold."""
    seal = store.seal(run_id, 0, key)
    group = [
        Checkpoint(encode_key(key), sequence, seal.close(sequence, encode_record(record)))
        for sequence, record in enumerate(records, 1)
    ]
    async with store.lock_run(run_id) as owner:
        assert set(await store.save(RunKey(run_id, 0, owner), group)) == {None}


async def save_folds(store: Store, run_id: str) -> None:
    """Fold every stream, as a run does when it is closed."""
    view = await store.load_run(run_id)
    assert view is not None
    async with store.lock_run(run_id) as owner:
        for key, stream in view.streams.items():
            through = stream.progress.sequence
            payload = store.seal(run_id, 0, key).close(-through, encode_progress(stream.progress))
            await store.save(
                RunKey(run_id, 0, owner), [], [Fold(encode_key(key), through, payload)]
            )


async def everything(
    store: Store, run_id: str, *, as_exported: bool = False
) -> dict[StreamKey, Any]:
    """Per stream: what it adds up to, and every record as it was before it was sealed.

    `as_exported`: without the record by which an import says where the outputs are now.
    """
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
        progress = stream.progress
        if as_exported and key == RUN_STREAM:
            newest = decode_record(records.pop(0)[1])
            assert newest.kind is RecordKind.END
            progress = Progress()
            for sequence, payload in reversed(records):
                apply(progress, sequence, decode_record(payload))
        found[key] = (encode_progress(progress), records)
    return found


# ---------------------------------------------------------------------------------------
# Archives that lie: whole as a file, and wrong inside
# ---------------------------------------------------------------------------------------


def reseal(data: bytes) -> bytes:
    """Replace the seal of an archive by one that fits its bytes."""
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
    deflated: str = "",
    **options: Any,
) -> Path:
    """An archive with other members or another manifest, sealed as it should be.

    With `update_members` the manifest tells sizes and hashes of the edited members.  Those whose
    names begin with `deflated` are so, if it is given.
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
        for name, data in [*files.items(), ("manifest.json", json.dumps(manifest).encode())]:
            kind = zipfile.ZIP_DEFLATED if deflated and name.startswith(deflated) else None
            archive.writestr(name, data, kind)
        archive.comment = bytes(SEAL_BYTES)
    target.write_bytes(reseal(target.read_bytes()))
    return target
