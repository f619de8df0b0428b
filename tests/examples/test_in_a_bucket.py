"""The crawler and the collector with store and outputs in a bucket, killed before any request."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("obstore") is None:
    pytest.skip("obstore is missing: pip install 'trio-ckpt[objects]'", allow_module_level=True)

from examples import collector, crawler
from examples._collector.options import parse_options as parse_collector
from examples._crawler.options import parse_options
from tests.examples.collecting import URL, Direct, api
from tests.examples.site import Site, html, links, page, redirect
from tests.examples.test_collector_since import change_some, first_source
from tests.hangs import PROGRAM_S
from tests.leash import is_stopped, leashed
from tests.stores.objects.buckets import ClockedBucket, HandClock, killed_before, nothing
from tests.stores.objects.conftest import s3_server as s3_server, s3_url as s3_url
from trio_ckpt import OutputError
from trio_ckpt._buckets.address import ObjectsAddress, parse_address
from trio_ckpt._buckets.bucket import open_bucket

ROOT = Path(__file__).parents[2]
OUT = "s3://bucket/out"
COLLECTED = ("characters/", "decompositions/", "pages/", "redirects/", "forbidden/")
STRIDE = {"memory": 1, "s3": 23}  # requests between two kills


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ClockedBucket:
    """The bucket of all URLs: in memory, or on a server on the loopback."""
    clock, real = HandClock(), None
    if request.param == "s3":
        real = open_bucket(parse_address(request.getfixturevalue("s3_url")))
    bucket = ClockedBucket(clock, real)
    clear(bucket)

    def opened(_address: ObjectsAddress) -> ClockedBucket:
        return bucket

    monkeypatch.setattr("trio_ckpt.outputs._objects.open_bucket", opened)
    monkeypatch.setattr("trio_ckpt.stores._objects.store.open_bucket", opened)
    return bucket


async def killed_everywhere(
    bucket: ClockedBucket, stride: int, work: Callable[[], Awaitable[int]], wanted: dict[str, Any]
) -> int:
    """Kill a program before its first request, before a later one …; returns how often."""
    at = 0
    while True:
        clear(bucket)
        is_killed = await killed_at(bucket, at, work)
        assert found_in(bucket) == wanted, at
        if not is_killed:
            return at // stride
        at += stride


async def killed_at(bucket: ClockedBucket, at: int, work: Callable[[], Awaitable[int]]) -> bool:
    """Kill a program before a request, and start it again on a machine that has nothing."""
    with killed_before(bucket, at) as kill:
        await work()
    assert isinstance(bucket.clock, HandClock)
    bucket.clock.now += 1_000
    assert await work() == 0
    return kill.is_done


def clear(bucket: ClockedBucket) -> None:
    bucket.before = nothing
    for found in list(bucket.list("out")):
        bucket.delete([found.key])


def found_in(bucket: ClockedBucket) -> dict[str, Any]:
    """What was collected: no checkpoint, no archive, and nothing that says when."""
    found = dict[str, Any]()
    for entry in list(bucket.list("out")):
        name = entry.key.removeprefix("out/")
        if name.startswith(
            ("characters/", "decompositions/", "pages/", "redirects/", "forbidden/")
        ):
            found[name] = json.loads(bucket.get(entry.key) or b"")
            for line in found[name]:
                line.pop("fetched_at", None)
    return found


def stride_of(request: pytest.FixtureRequest) -> int:
    return STRIDE[request.node.callspec.params["bucket"]]


async def test_the_collector_killed_at_any_request_collects_the_same(
    bucket: ClockedBucket, request: pytest.FixtureRequest
) -> None:
    async def work() -> int:
        client = Direct(api(blocks=("kana/hiragana",)))
        words = ["--out", OUT, "--workers", "1", "--per-page", "40"]
        return await collector.run_with(client, URL, parse_collector(words))

    assert await work() == 0
    wanted = found_in(bucket)
    assert len(wanted) >= 4
    assert await killed_everywhere(bucket, stride_of(request), work, wanted) >= 3


async def test_the_crawler_killed_at_any_request_crawls_the_same(
    bucket: ClockedBucket, site: Site, request: pytest.FixtureRequest
) -> None:
    site.pages |= {
        "/robots.txt": page("User-agent: *\nDisallow: /no"),
        "/": links("/a", "/old", "/no"),
        "/a": links("/b", "/"),
        "/b": html("<title>B</title>"),
        "/old": redirect("/b"),
    }

    async def work() -> int:
        words = [f"{site.url}/", "--out", OUT, "--concurrency", "1"]
        return await crawler.crawl(parse_options(words))

    assert await work() == 0
    wanted = found_in(bucket)
    assert {name.partition("/")[0] for name in wanted} == {"pages", "redirects", "forbidden"}
    assert await killed_everywhere(bucket, stride_of(request), work, wanted) >= 3


async def test_what_a_crawl_remembers_is_read_from_the_bucket(
    bucket: ClockedBucket, site: Site
) -> None:
    """What robots.txt has forbidden is taken up when it allows it."""
    rules = ["Disallow: /no"]

    async def robots(exchange: Any) -> None:
        await exchange.respond(f"User-agent: *\n{rules[0]}".encode())

    site.pages |= {"/robots.txt": robots, "/": links("/no", "/old"), "/no": html("n")}
    site.pages["/old"] = redirect("/")
    words = [f"{site.url}/", "--out", OUT]
    assert await crawler.crawl(parse_options(words)) == 0
    rules[0] = "Allow: /"
    assert await crawler.crawl(parse_options(words)) == 0
    found = found_in(bucket)
    pages = [line for name in found if name.startswith("pages/") for line in found[name]]
    # A page's name is a digest of its URL, so their order says nothing.
    assert sorted(line["url"] for line in pages) == [f"{site.url}/", f"{site.url}/no"]


async def test_partitions_have_prefixes_of_their_own(bucket: ClockedBucket) -> None:
    client = Direct(api())
    words = ["--out", OUT, "--partitions", "2", "--per-page", "40"]
    assert await collector.run_with(client, URL, parse_collector(words)) == 0
    names = {entry.key.split("/")[1] for entry in bucket.list("out")} - {"collector.ckpt"}
    assert names == {"collector.00000", "collector.00001", "collector"}


async def test_changes_are_followed_in_a_bucket(bucket: ClockedBucket) -> None:
    source = first_source()
    options = parse_collector(["--out", OUT, "--per-page", "2", "--since"])
    assert await collector.run_with(source.client(), URL, options) == 0
    expected = [f"{r['codepoint']} {r['updated_at']}" for r in source.records()]
    expected += change_some(source)
    for _ in range(2):
        assert await collector.run_with(source.client(), URL, options) == 0
        pages = [e.key for e in bucket.list("out/changes") if "/page-" in e.key]
        found = [
            "{codepoint} {updated_at}".format_map(record)
            for key in pages
            for record in json.loads(bucket.get(key) or b"[]")
        ]
        assert sorted(found) == sorted(expected)


def test_a_collector_killed_by_the_kernel_goes_on_elsewhere(s3_url: str, tmp_path: Path) -> None:
    """Each start has a folder of its own, and leaves nothing there."""
    bucket = open_bucket(parse_address(s3_url))
    prefix = parse_address(s3_url).prefix

    def collected(name: str) -> dict[str, bytes | None]:
        folder = f"{prefix}/{name}"
        named = {one.key.removeprefix(f"{folder}/"): one.key for one in bucket.list(folder)}
        return {at: bucket.get(key) for at, key in named.items() if at.startswith(COLLECTED)}

    def start(name: str, number: int, most: int | None = None) -> subprocess.Popen[bytes]:
        place = s3_url.replace(prefix, f"{prefix}/{name}")
        store = s3_url.replace(prefix, f"{prefix}/{name}.ckpt") + "&lease_s=3"
        (tmp_path / f"{name}{number}").mkdir()
        program = ["-m", "examples.collector", "--out", place, "--store", store]
        return subprocess.Popen(
            [sys.executable, *program] if most is None else leashed(most, *program),
            cwd=tmp_path / f"{name}{number}",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )

    with start("whole", 0) as process:
        assert process.wait(PROGRAM_S) == 0
    wanted = collected("whole")
    assert len(wanted) > 10
    number = 0
    for enough, most in ((1, 4), (4, 8), (8, 8)):
        is_killed = False
        while not is_killed:  # until the lease of the last one ends
            number += 1
            with start("killed", number, most) as process:
                while (
                    len(collected("killed")) < enough
                    and process.poll() is None
                    and not is_stopped(process.pid)
                ):
                    time.sleep(0.02)
                process.kill()
            assert process.returncode != 0
            is_killed = process.returncode == -signal.SIGKILL
    is_done = False
    while not is_done:  # until the lease of the last one ends
        number += 1
        with start("killed", number) as process:
            is_done = process.wait(PROGRAM_S) == 0
    assert collected("killed") == wanted
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_place_with_a_typo_is_a_bad_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (parse_collector, parse_options):
        words = [] if parse is parse_collector else ["http://x/"]
        with pytest.raises(SystemExit) as ended:
            parse([*words, "--out", "s4://bucket/out"])
        assert ended.value.code == 2
        assert "did you mean s3://?" in capsys.readouterr().err


async def test_a_bucket_that_is_missing_ends_the_program(s3_url: str) -> None:
    place = s3_url.replace("ckpt-tests", "none-of-this-name")
    options = parse_collector(["--out", place, "--store", "memory:"])
    with pytest.raises(OutputError, match=r"NoSuchBucket|no such bucket"):
        await collector.run_with(Direct(api()), URL, options)
