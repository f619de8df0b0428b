"""Write the stores that later versions must read: by hand, once for each version of the formats.

    python -m tests.formats.write

makes those of ``tests/formats/stores/KIND-VERSION.zip`` that are not there.  A fixture is never
written again: it is what a version left behind.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import trio

import trio_ckpt
from trio_ckpt._maintenance.archive_file import VERSION as ARCHIVE_VERSION
from trio_ckpt._maintenance.export import export_run
from trio_ckpt.outputs import OutputDir
from trio_ckpt.state import Frontier
from trio_ckpt.stores import open_store
from trio_ckpt.stores._json.files import FORMAT_VERSION as JSON_VERSION
from trio_ckpt.stores._sqlite.schema import FORMAT_VERSION as SQLITE_VERSION

STORES = Path(__file__).parent / "stores"
CURRENT = {
    "sqlite": f"sqlite-{SQLITE_VERSION}",
    "json": f"json-{JSON_VERSION}",
    "archive": f"archive-{ARCHIVE_VERSION}",
}
PAGES = 6
LEFT = 2  # pages that are left to do
BIG = "x" * 2_000_000  # over the limit of what is kept among the records


def begin_weights() -> dict[str, Any]:
    """The state that the stream ``("train",)`` begins with."""
    return {"epoch": 0, "weights": np.zeros((40, 25)), "names": ["a", "b"]}


async def work(store: Any, folder: Path, *, pages: int) -> None:
    """A run that is worked on in two parts: the first leaves the last pages."""
    async with trio_ckpt.open_run("old", store=store, output_dir=folder) as run:
        async with run.open_stream("päge", "a/b", first_index=1) as stream:
            async for batch in stream.batches(range(PAGES), end=pages):
                if batch.index == 2:
                    batch.skip("is blank")
                    continue
                await batch.write_json(f"pages/{batch.index}.json", {"page": batch.index})
                batch.complete(records=2, totals={"cost_usd": 0.1}, metadata={"n": batch.index})
        async with run.open_stream("lines") as stream:
            async for batch in stream.batches(range(3)):
                batch.append_json("lines.jsonl", {"line": batch.index})
                batch.complete(cursor={"after": batch.index}, metadata={"big": BIG})
        async with run.open_stream("train", state=begin_weights()) as stream:
            async for batch in stream.batches(range(4)):
                stream.state["epoch"] += 1
                stream.state["weights"][batch.index] = batch.index + 1
                batch.complete()
        async with run.open_stream("site", state=Frontier(["/"])) as stream:
            await trio_ckpt.run_batches(stream, None, visit, concurrency=2)


async def visit(batch: trio_ckpt.Batch[str]) -> None:
    """A site of three pages."""
    batch.add({"/": ["/a", "/b"], "/a": ["/"], "/b": []}[batch.item])
    batch.complete()


async def write() -> None:
    """Write the fixtures of the current formats that are not there yet."""
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("sqlite", "json"):
            folder = Path(temporary, kind)
            store = await open_store(f"{kind}:{folder / 'store'}")
            await work(store, folder / "out", pages=PAGES - LEFT)
            if kind == "sqlite":
                outputs = OutputDir.open(folder / "out")
                exported = Path(temporary, "run.zip")
                await export_run(store, "old", exported, outputs=outputs)
                outputs.close()
                keep(CURRENT["archive"], exported)
            await store.aclose()
            keep(CURRENT[kind], pack(folder))


def keep(name: str, path: Path) -> None:
    """Make a file the fixture of this name, unless there is one."""
    goal = STORES / f"{name}.zip"
    if not goal.exists():
        shutil.copyfile(path, goal)
        print(f"{goal.name} is new")


def pack(folder: Path) -> Path:
    """A zip of what is in a folder."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


if __name__ == "__main__":
    trio.run(write)
