"""The collector with `--since`: each version of each record once, wherever it is killed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import attrs
import pytest
from trio.testing import MockClock

import trio_ckpt
from examples._api.records import changes_of, characters_of
from examples._api.server import Api
from examples._collector.changes import FIRST, LAG, MAX_RECENT, Place, earlier, time_text
from examples._collector.options import parse_options
from examples.collector import Collector, collect_run
from tests.examples.collecting import SMALL, URL, Direct, api, collect, lines
from tests.examples.running import run_example
from tests.examples.test_collector import PowerCutError, cut_at
from trio_ckpt.testing import World, explore_crashes

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
REPO = "kana/hiragana"
SINCE = ("--since",)


def at(minutes: float) -> str:
    return time_text(NOON + timedelta(minutes=minutes))


@attrs.define(eq=False)
class Source:
    """Records that change; each has one version at a time."""

    times: dict[str, str] = attrs.Factory(dict)

    def change(self, minutes: float, *keys: str) -> None:
        self.times |= dict.fromkeys(keys, at(minutes))

    def records(self, _block: str = "") -> list[dict[str, Any]]:
        found = [{"codepoint": key, "updated_at": time} for key, time in self.times.items()]
        return sorted(found, key=lambda record: (record["updated_at"], record["codepoint"]))

    def client(self, before: Callable[[int], None] = lambda _: None, *faults: str) -> Direct:
        served = attrs.evolve(api(*faults, blocks=(REPO,)), changes=self.records)
        return Direct(served, before=before)


def versions(out: Path) -> list[str]:
    """What was written, in its order: the key and the time of each."""
    lines = (out / "changes" / f"{REPO}.jsonl").read_text().splitlines()
    return ["{codepoint} {updated_at}".format_map(json.loads(line)) for line in lines]


def queries(client: Direct) -> list[tuple[str, str]]:
    """Where each page of changes began."""
    asked = [dict(parse_qsl(urlsplit(t).query)) for t, _ in client.asked if "/changes" in t]
    return [(query["since"], query["page"]) for query in asked]


def first_source() -> Source:
    """Seven records on pages of two, of which four changed in one second."""
    source = Source()
    source.change(0, "a")
    source.change(10, "b", "c", "d", "e")
    source.change(20, "f")
    source.change(21, "g")
    return source


def change_some(source: Source) -> list[str]:
    """What changes next; returns the lines that are new."""
    source.change(19, "late")  # shows up after what changed later
    source.change(22, "a")
    source.change(30, "g", "new", "newer")
    lines = [f"late {at(19)}", f"a {at(22)}"]
    return [*lines, *(f"{key} {at(30)}" for key in ("g", "new", "newer"))]


async def follow(client: Direct, out: Path, *words: str) -> int:
    return await collect(client, out, "--per-page", "2", "--workers", "1", *SINCE, *words)


async def test_what_the_lag_sends_again_is_not_written(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    source = first_source()
    assert await follow(source.client(), tmp_path) == 0
    assert "records 7, of these 7 this time" in capsys.readouterr().err
    old = [f"{r['codepoint']} {r['updated_at']}" for r in source.records()]
    assert versions(tmp_path) == old
    new = change_some(source)
    client = source.client()
    assert await follow(client, tmp_path) == 0
    assert "pages 9, records 12, of these 5 this time" in capsys.readouterr().err
    assert versions(tmp_path) == old + new
    assert queries(client)[0] == (time_text(NOON + timedelta(minutes=21) - LAG), "1")
    for _ in range(3):  # nothing has changed: neither a line, nor a page, nor another beginning
        client = source.client()
        assert await follow(client, tmp_path) == 0
        since = time_text(NOON + timedelta(minutes=30) - LAG)
        assert queries(client) == [(since, "1"), (at(30), "1"), (at(30), "2")]
        assert "pages 9, records 12, of these 0 this time" in capsys.readouterr().err
    assert versions(tmp_path) == old + new


async def test_cut_at_any_request_each_version_is_there_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    whole = first_source()
    counts = []
    for _ in range(2):
        client = whole.client()
        assert await follow(client, tmp_path / "whole") == 0
        counts.append(len(client.asked))
        change_some(whole)
    for generation, count in enumerate(counts):
        for number in range(count):
            out, source = tmp_path / f"{generation}-{number}", first_source()
            for now in range(2):
                if now == generation:
                    with pytest.raises((PowerCutError, BaseExceptionGroup)):
                        await follow(source.client(cut_at(number)), out)
                assert await follow(source.client(), out) == 0
                change_some(source)
            assert versions(out) == versions(tmp_path / "whole")


async def follow_in(world: World, source: Source, *, again: bool) -> None:
    words = ["--out", "unused", "--workers", "1", *SINCE]
    async with trio_ckpt.open_run(
        "changes", store=world.store, output_dir=world.output_dir, again=again
    ) as run:
        collector = Collector(source.client(), URL, 2, since=FIRST)
        await collect_run(run, collector, parse_options(words), lambda _: True)


def test_changes_that_are_followed_survive_every_crash() -> None:
    async def follow_twice(world: World) -> None:
        source = first_source()
        if not world.count("first"):
            await follow_in(world, source, again=False)
            world.note("first")
        change_some(source)
        await follow_in(world, source, again=True)

    def check(world: World) -> None:
        source = first_source()
        old = [r["codepoint"] for r in source.records()]
        expected = old + [text.split()[0] for text in change_some(source)]
        lines = world.files.read(f"{REPO}.jsonl").splitlines()
        assert [json.loads(line)["codepoint"] for line in lines] == expected

    found = explore_crashes(follow_twice, check, schedules=10, crashes=200, time_limit_s=math.inf)
    assert found.crash_points >= 200


async def test_the_first_start_begins_at_its_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    client = first_source().client()
    assert await follow(client, tmp_path, "--since", "2026-11-30T12:15") == 0
    assert versions(tmp_path) == [f"f {at(20)}", f"g {at(21)}"]
    assert queries(client)[0] == (at(15), "1")


async def test_a_record_that_moves_while_its_pages_are_read_hides_none(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = Source()
    for minute in range(8):
        source.change(minute, f"r{minute}")

    def move(asked: int) -> None:
        if asked == 3:  # the first page of changes is read
            source.change(50, "r0")

    assert await follow(source.client(move), tmp_path) == 0
    assert versions(tmp_path) == [*(f"r{n} {at(n)}" for n in range(8)), f"r0 {at(50)}"]


async def test_a_repository_that_is_gone_has_no_changes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = first_source()
    assert await follow(source.client(), tmp_path) == 0
    before = versions(tmp_path)
    for status in (404, 410):
        path = f"{status} /blocks/{REPO}/changes"
        assert await follow(source.client(lambda _: None, path), tmp_path) == 0
    change_some(source)
    assert await follow(source.client(), tmp_path) == 0
    assert len(versions(tmp_path)) == len(before) + 5


async def test_a_page_that_is_asked_for_again_is_no_repeated_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = first_source()
    assert await follow(source.client(), tmp_path) == 0
    source.change(21, *"hijklm")  # what the lag sends again ends on the second page of a time
    assert await follow(source.client(), tmp_path) == 0
    source.change(22, "n")
    fault = f"503 /blocks/{REPO}/changes?page=3&since={at(21)}"
    assert await follow(source.client(lambda _: None, fault), tmp_path) == 0
    assert versions(tmp_path)[-1] == f"n {at(22)}"


async def test_what_has_failed_is_tried_before_a_new_generation(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = first_source()
    fault = f"500*9 /blocks/{REPO}/changes?page=2"
    assert await follow(source.client(lambda _: None, fault), tmp_path) == 75
    assert await follow(source.client(), tmp_path) == 0
    assert len(versions(tmp_path)) == 7


@pytest.mark.parametrize(
    "records",
    [
        [{"codepoint": "a", "updated_at": at(1)}, {"codepoint": "b", "updated_at": at(0)}],
        [{"codepoint": "a"}],
        [{"codepoint": "a", "updated_at": "yesterday"}],
        [{"codepoint": "a", "updated_at": "1969-01-01T00:00:00Z"}],
        [{"updated_at": at(0)}],
        ["a"],
    ],
)
async def test_strange_changes_fail_their_stream(
    records: list[Any], tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Strange(Api):
        def _find(self, path: str, query: Any) -> Any:
            return ({"records": records}, {}) if "changes" in path else super()._find(path, query)

    assert await follow(Direct(Strange(blocks=(REPO,))), tmp_path) == 75


async def test_an_api_that_ignores_the_page_has_an_end(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stuck(Api):
        def _find(self, path: str, query: Any) -> Any:
            if "changes" not in path:
                return super()._find(path, query)
            records = [{"codepoint": key, "updated_at": at(0)} for key in "ab"]
            return {"records": records}, {"Link": '</>; rel="next"'}

    assert await follow(Direct(Stuck(blocks=(REPO,))), tmp_path) == 69
    assert "is the one before it once more" in capsys.readouterr().err


def test_a_cursor_keeps_no_more_than_it_may() -> None:
    source = Source()
    source.change(0, "old")
    source.change(6, *(f"k{n:05}" for n in range(MAX_RECENT + 5)))
    found, place = Place(FIRST).take(source.records())
    assert len(found) == MAX_RECENT + 6
    assert len(place.recent) == MAX_RECENT
    assert Place.read(place.cursor()) == place
    again = Place.read(earlier(place.cursor()))
    assert again.since == NOON + timedelta(minutes=6) - LAG
    assert again.take([])[1] == attrs.evolve(again, page=2)


def test_an_older_version_that_comes_late_is_not_written() -> None:
    _, place = Place(FIRST).take([{"codepoint": "a", "updated_at": at(1)}])
    place = Place.read(earlier(place.cursor()))
    found, place = place.take([{"codepoint": "a", "updated_at": at(0)}])
    assert (found, place.recent) == ([], {"a": NOON + timedelta(minutes=1)})


def test_the_changes_of_the_api_are_in_order_and_begin_where_asked() -> None:
    now = datetime.now(UTC)
    records = changes_of(SMALL[0], now)
    times = [record["updated_at"] for record in records]
    assert times == sorted(times)
    assert time_text(now - timedelta(days=1)) < times[0] <= times[-1] <= time_text(now)
    target = f"/blocks/{SMALL[0]}/changes?since={times[7]}&per_page=80"
    served = attrs.evolve(api(), changes=lambda _: records)
    first = served.answer(target)
    link = first.headers["Link"]
    second = served.answer(link.partition(">")[0].removeprefix("<"))
    assert "Link" not in second.headers
    found = [*json.loads(first.body)["records"], *json.loads(second.body)["records"]]
    assert found == records[7:]
    assert served.answer(f"/blocks/{SMALL[0]}/changes?since=today").status == 400


def test_both_kinds_of_a_collection_share_a_folder(tmp_path: Path) -> None:
    """The command, over the network: what `--since` collects has a run and a folder of its own."""
    for words, name in (((), "collector"), (SINCE, "changes"), (SINCE, "changes"), ((), "")):
        done = run_example("collector", "--out", str(tmp_path), *words)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "changes" if words else tmp_path
        if name:
            assert json.loads((folder / "manifest.json").read_text())["run"] == name
    assert "of these 0 this time" in done.stderr
    assert lines(tmp_path, REPO) == characters_of(REPO)


@pytest.mark.parametrize(
    "words",
    [
        ["--since", "today"],
        ["--since", ""],
        ["--since", "1969-12-31"],
        ["--since", "--database", "rows.db"],
        ["--since", "--partitions", "2"],
    ],
)
def test_a_time_that_is_none_and_what_cannot_follow_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--out", "data", *words])
    assert caught.value.code == 2
    assert "--since" in capsys.readouterr().err
