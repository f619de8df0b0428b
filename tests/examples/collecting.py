"""What the tests of the collector share: a client without a network, and what was collected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

import trio_ckpt
from examples import collector
from examples._api.faults import Fault, Plan
from examples._api.server import Api
from examples._web import http
from trio_ckpt.stores import open_store

URL = "http://api"
LIMIT_S = 30.0  # the client's own
HIRAGANA = "/blocks/kana/hiragana"
SMALL = ("kana/hiragana", "symbols/arrows", "symbols/currency-symbols")


@attrs.define(eq=False)
class Direct:
    """A client without a network, on the test's clock."""

    api: Api
    asked: list[tuple[str, float]] = attrs.Factory(list)
    before: Callable[[int], None] = lambda _number: None

    async def get(self, url: str) -> http.Response:
        self.before(len(self.asked))
        target = url.removeprefix(URL)
        self.asked.append((target, trio.current_time()))
        answer = self.api.answer(target)
        await trio.sleep(min(answer.delay_s, LIMIT_S))
        if answer.delay_s > LIMIT_S:
            raise http.FetchTimeout(url, f"not complete in {LIMIT_S} s")
        if answer.is_reset:
            raise http.ConnectionReset(url, "connection reset")
        headers = http.Headers({name.lower(): value for name, value in answer.headers.items()})
        return http.Response(url=url, status=answer.status, headers=headers, body=answer.body)

    def order(self, *paths: str) -> list[str]:
        """The targets asked for below some paths, without the size of a page."""
        targets = (target.replace("per_page=50&", "") for target, _ in self.asked)
        return [target for target in targets if target.startswith(paths or "/")]

    def times(self, path: str) -> list[float]:
        """When a target was asked for."""
        return [at for target, at in self.asked if target.replace("per_page=50&", "") == path]


def api(*faults: str, blocks: tuple[str, ...] = SMALL) -> Api:
    return Api(blocks=blocks, plan=Plan([Fault.parse(fault) for fault in faults]))


async def collect(client: Direct, out: Path, *words: str) -> int:
    options = collector.parse_options(["--out", str(out), *words])
    return await collector.run_with(client, URL, options)


def contents(out: Path) -> dict[str, bytes]:
    """Every file that was collected, and no checkpoint; the manifest says when, so it differs."""
    files = (path for path in out.rglob("*") if path.is_file())
    named = {path.relative_to(out).as_posix(): path for path in files}
    kept = [name for name in named if name.startswith(("characters/", "decompositions/"))]
    return {name: named[name].read_bytes() for name in sorted(kept)}


async def read_progress(out: Path, *key: str) -> trio_ckpt.Progress:
    store = await open_store(out / "collector.ckpt")
    view = await store.load_run("collector")
    await store.aclose()
    assert view is not None
    return view.streams[key].progress


def lines(out: Path, repo: str) -> list[object]:
    text = (out / "characters" / f"{repo}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def pages(out: Path, repo: str) -> list[object]:
    folder = out / "decompositions" / repo
    count = len(list(folder.iterdir()))
    found = [json.loads((folder / f"page-{n}.json").read_text()) for n in range(1, count + 1)]
    return [record for page in found for record in page]
