"""Take the picture of the monitor: a browser looks at a run that is under way.

    python docs/monitor_picture.py

It runs the collection below for real, with `monitor.serve` in its nursery, and writes what a
browser shows of it to `docs/_static/`, in light and in dark. It needs chromium, or the browser
that CHROMIUM names.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

import trio
from playwright.sync_api import FloatRect, Page, sync_playwright

import trio_ckpt
from trio_ckpt import monitor

FOLDER = Path(__file__).parent / "_static"
SCHEMES = ("light", "dark")
SIZE = {"width": 1100, "height": 906}
PAGES = {
    ("trio", "pulls"): 140,
    ("trio", "issues"): 180,
    ("anyio", "pulls"): 60,
    ("anyio", "issues"): 110,
    ("attrs", "pulls"): 90,
    ("attrs", "issues"): 150,
}
REQUEST_S = 0.15
CURVE_S = 12  # how much of its curve of throughput is in the picture
BUSY = {("anyio", "pulls"): 46, ("attrs", "issues"): 61}
RETRIES = trio_ckpt.RetryTable(
    [trio_ckpt.RetryRule([ConnectionError], attempts=3, backoff_s=0.5, then=trio_ckpt.Then.SKIP)]
)


async def collect(run: trio_ckpt.Run, *key: str) -> None:
    """Collect the pages of a stream; one that stays busy is skipped after three attempts."""
    async with run.open_stream(*key, first_index=1, retry=RETRIES) as stream:
        async for batch in stream.batches(range(PAGES[key])):
            await trio.sleep(REQUEST_S * random.uniform(0.5, 2))
            if BUSY.get(key) == batch.index:
                batch.fail(ConnectionError("503 Service Unavailable"))
                continue
            batch.append_json("/".join((*key, "records.jsonl")), {"page": batch.index})
            batch.spend(cost_usd=0.002)
            batch.complete(records=100)


def take(url: str, folder: Path, curve_s: float) -> None:
    """Let a browser show the page, and write a picture for each scheme of colours."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.get_by_text("attrs/issues").first.wait_for()
        if curve_s:
            page.get_by_text("The curve begins").wait_for(state="hidden")
            page.wait_for_timeout(curve_s * 1_000)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=folder / f"monitor-{scheme}.png", clip=_upper_part(page))
        browser.close()


def _upper_part(page: Page) -> FloatRect:
    """What is above the table of streams."""
    box = page.locator("#streams-panel").bounding_box()
    assert box is not None
    return {"x": 0, "y": 0, "width": SIZE["width"], "height": min(box["y"], SIZE["height"])}


async def record(folder: Path, curve_s: float) -> None:
    """Run the collection, and take the pictures while it is under way."""
    async with (
        trio_ckpt.open_run("github", store="github.ckpt", output_dir="data") as run,
        trio.open_nursery() as nursery,
    ):

        async def show(*, task_status: trio.TaskStatus[monitor.Serving]) -> None:
            await monitor.serve(run, port=0, task_status=task_status)

        serving = await nursery.start(show)
        for key in PAGES:
            nursery.start_soon(collect, run, *key)
        await trio.to_thread.run_sync(take, serving.page_url, folder, curve_s)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        trio.run(record, FOLDER, CURVE_S)


if __name__ == "__main__":
    main()
