"""The collector against the example's API: what it does with what an API can do.

Most tests do without a network: `Direct` asks the API inside the test, so that a mock clock may
jump over every wait. The last ones go over real sockets, in real processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from examples._api.faults import Fault
from examples._api.records import BLOCKS, characters_of, decompositions_of
from examples._api.server import handler_of
from examples._loopback import serve
from examples._web import http
from tests.examples.collecting import (
    HIRAGANA,
    LIMIT_S,
    SMALL,
    Direct,
    api,
    collect,
    contents,
    lines,
    pages,
    read_progress,
)
from tests.examples.running import run_example

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------- good days


async def test_every_record_is_collected_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    assert await collect(Direct(api(blocks=tuple(BLOCKS))), tmp_path) == 0
    for repo in BLOCKS:
        assert lines(tmp_path, repo) == characters_of(repo)
        assert pages(tmp_path, repo) == decompositions_of(repo)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    files = [file for s in manifest["streams"] for file in [*s["outputs"], *s["append_files"]]]
    assert sorted(file["path"] for file in files) == list(contents(tmp_path))


async def test_the_two_ends_of_a_list(tmp_path: Path, autojump_clock: MockClock) -> None:
    """By number the end is an empty page, which is no page; by cursor it is that there is none."""
    client = Direct(api(blocks=("kana/katakana",)))
    assert await collect(client, tmp_path, "--per-page", "20") == 0
    asked = [target.replace("per_page=20&", "") for target in client.order("/blocks/kana/")]
    path = "/blocks/kana/katakana"
    assert [t for t in asked if "characters" in t] == [
        f"{path}/characters?page={page}" for page in (1, 2, 3, 4, 5, 6)
    ]
    assert [t.partition("?")[2] for t in asked if "decompositions" in t] == [
        "per_page=20",
        "cursor=30D7",
    ]
    progress = await read_progress(tmp_path, "kana/katakana", "characters")
    assert list(progress.confirmed) == [1, 2, 3, 4, 5]
    assert progress.records == len(characters_of("kana/katakana"))


async def test_a_second_start_asks_for_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    assert await collect(Direct(api()), tmp_path) == 0
    again = Direct(api())
    assert await collect(again, tmp_path) == 0
    assert again.asked == []


# --------------------------------------------------------------------------------------- faults


async def test_429_pauses_its_stream_and_no_other(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    held = f"{HIRAGANA}/characters?page=2"
    client = Direct(api(f"429:60 {held}"))
    assert await collect(client, tmp_path) == 0
    first, second = client.times(held)
    assert second - first >= 60
    others = [at for target, at in client.asked if f"{HIRAGANA}/characters" not in target]
    assert max(others) < first + 60, "another stream waited, too"
    assert client.order()[-2:] == [held, f"{HIRAGANA}/characters?page=3"]
    assert lines(tmp_path, "kana/hiragana") == characters_of("kana/hiragana")


async def test_a_limit_is_of_one_endpoint(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With one worker for each endpoint, one that waits holds up its own endpoint, and only that.

    Both endpoints are limited, each for a minute: both are done after one.
    """
    limited = f"{HIRAGANA}/characters", f"{HIRAGANA}/decompositions"
    client = Direct(api(*(f"429:60 {path}" for path in limited)))
    began = trio.current_time()
    assert await collect(client, tmp_path, "--workers", "1") == 0
    assert 60 <= trio.current_time() - began < 61
    for path in limited:
        endpoint = path.rpartition("/")[2]
        early = [t for t, at in client.asked if endpoint in t and at < began + 60]
        assert [target.partition("?")[0] for target in early] == [path]


@pytest.mark.parametrize("fault", ["500", "503", "reset", "slow:31"])
async def test_trouble_backs_off_and_goes_on(
    fault: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """5xx, resets and timeouts: again, each time later, and no other work waits."""
    held = f"{HIRAGANA}/characters?page=2"
    client = Direct(api(f"{fault}*3 {held}"))
    assert await collect(client, tmp_path) == 0
    times = client.times(held)
    assert len(times) == 4
    taken = LIMIT_S if fault.startswith("slow") else 0.0
    waits = [later - before - taken for before, later in pairwise(times)]
    for wait, backoff_s in zip(waits, (0.5, 1.0, 2.0), strict=True):
        assert backoff_s <= wait <= backoff_s * 1.1 + 0.001
    others = [at for target, at in client.asked if f"{HIRAGANA}/characters" not in target]
    assert max(others) < times[1], "another stream waited, too"
    assert lines(tmp_path, "kana/hiragana") == characters_of("kana/hiragana")


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refusal_is_recorded_and_the_next_repo_goes_on(
    status: int, tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    held = f"{HIRAGANA}/characters"
    client = Direct(api(f"{status}*2 {held}"))
    code = await collect(client, tmp_path, "--workers", "1")
    assert code != 0, "there is work left"
    assert client.order(held) == [f"{held}?page=1"], "asking again changes nothing"
    for repo in SMALL[1:]:
        assert lines(tmp_path, repo) == characters_of(repo)
    said = capsys.readouterr().err
    assert f"kana/hiragana characters: failed, for good: {status}" in said
    assert "repositories 3: 1 failed, 2 complete" in said

    again = Direct(client.api)
    assert await collect(again, tmp_path) == code
    assert again.asked == [], "a plain resume leaves alone what failed for good"

    retried = Direct(client.api)
    assert await collect(retried, tmp_path, "--retry-failed") == code
    assert retried.order() == [f"{held}?page=1"]

    assert await collect(Direct(client.api), tmp_path, "--retry-failed") == 0
    assert lines(tmp_path, "kana/hiragana") == characters_of("kana/hiragana")


async def test_what_troubles_last_is_taken_up_by_a_plain_resume_at_its_page(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    held = f"{HIRAGANA}/characters?page=2"
    client = Direct(api(f"500*5 {held}"))
    assert await collect(client, tmp_path) == 75
    assert len(client.times(held)) == 5
    assert "kana/hiragana characters: failed: 500" in capsys.readouterr().err
    again = Direct(client.api)
    assert await collect(again, tmp_path) == 0
    assert again.order() == [held, f"{HIRAGANA}/characters?page=3"]
    assert lines(tmp_path, "kana/hiragana") == characters_of("kana/hiragana")


async def test_discovery_backs_off_too_and_goes_on_at_its_page(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    client = Direct(api("500*5 /blocks?page=2", blocks=tuple(BLOCKS)))
    with pytest.raises(trio_ckpt.StreamFailedError):
        await collect(client, tmp_path, "--per-page", "5")
    again = Direct(client.api)
    assert await collect(again, tmp_path, "--per-page", "5") == 0
    found = [target for target, _ in again.asked if target.startswith("/blocks?")]
    assert found == [f"/blocks?per_page=5&page={page}" for page in (2, 3, 4)]
    assert set(contents(tmp_path)) >= {f"characters/{repo}.jsonl" for repo in BLOCKS}


# --------------------------------------------------------------------------- stopping, resuming


class PowerCutError(BaseException):
    """No program sees this coming."""


def cut_at(number: int) -> Callable[[int], None]:
    def before(asked: int) -> None:
        if asked == number:
            raise PowerCutError

    return before


async def test_interrupted_at_any_request_the_files_are_the_same(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    whole = Direct(api())
    assert await collect(whole, tmp_path / "whole") == 0
    wanted = contents(tmp_path / "whole")
    for number in range(len(whole.asked)):
        out = tmp_path / str(number)
        first, second = Direct(api(), before=cut_at(number)), Direct(api())
        with pytest.raises(BaseExceptionGroup if number > 1 else PowerCutError):
            await collect(first, out)
        assert await collect(second, out) == 0
        assert contents(out) == wanted
        asked = Counter(target for target, _ in [*first.asked, *second.asked])
        assert set(asked) == {target for target, _ in whole.asked}
        twice = sum(times - 1 for times in asked.values())
        assert twice <= 4, "more than what the four workers had in flight was asked for again"


async def test_a_signal_stops_in_good_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Pages in flight are saved, nothing is begun; nothing is asked for twice."""

    def interrupt(asked: int) -> None:
        if asked == 5:
            signal.raise_signal(signal.SIGINT)

    first, second = Direct(api(), before=interrupt), Direct(api())
    with pytest.raises(trio_ckpt.RunStoppedError) as caught:
        await collect(first, tmp_path)
    assert caught.value.exit_code == 75
    assert await collect(second, tmp_path) == 0
    asked = Counter(target for target, _ in [*first.asked, *second.asked])
    assert set(asked.values()) == {1}
    for repo in SMALL:
        assert lines(tmp_path, repo) == characters_of(repo)


async def test_a_stop_does_not_wait_for_a_limit(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A page whose time has not come is no page in hand."""
    client = Direct(api(f"429:3600 {HIRAGANA}/characters?page=2"))
    began = trio.current_time()

    async def interrupt() -> None:
        await trio.sleep(60)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(trio_ckpt.RunStoppedError):
        await collect_beside(interrupt, client, tmp_path)
    assert trio.current_time() - began < 61
    assert await collect(Direct(client.api), tmp_path) == 0
    assert lines(tmp_path, "kana/hiragana") == characters_of("kana/hiragana")


async def collect_beside(other: Callable[[], Awaitable[None]], client: Direct, out: Path) -> None:
    """Collect, and do something else meanwhile; one failure leaves as it is."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        try:
            await collect(client, out)
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure


async def test_from_leaves_out_what_comes_before(tmp_path: Path, autojump_clock: MockClock) -> None:
    client = Direct(api())
    assert await collect(client, tmp_path, "--from", SMALL[1]) == 75
    assert client.order("/blocks/kana") == []
    assert await collect(Direct(api()), tmp_path) == 0
    with pytest.raises(trio_ckpt.UnknownStreamError):
        await collect(Direct(api()), tmp_path, "--from", "no/such")


async def test_another_page_size_is_another_collection(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    assert await collect(Direct(api()), tmp_path) == 0
    with pytest.raises(trio_ckpt.ConfigChangedError, match="per_page"):
        await collect(Direct(api()), tmp_path, "--per-page", "20")
    fresh = Direct(api())
    assert await collect(fresh, tmp_path, "--per-page", "20", "--fresh") == 0
    assert lines(tmp_path, SMALL[0]) == characters_of(SMALL[0])


# ------------------------------------------------------------------------- the API and the command


def test_a_fault_is_read_as_it_is_spelled() -> None:
    assert Fault.parse("429:2 /blocks?page=1") == Fault("/blocks?page=1", 429, retry_after_s=2)
    assert Fault.parse("500*3 /blocks") == Fault("/blocks", 500, times=3)
    assert Fault.parse("reset /blocks") == Fault("/blocks", is_reset=True)
    assert Fault.parse("slow:7*2 /blocks") == Fault("/blocks", delay_s=7, times=2)
    for text in ("429", "/blocks", "late /blocks", "500*0 /blocks", "500 blocks"):
        with pytest.raises(ValueError, match=r"WHAT\[:SECONDS\]"):
            Fault.parse(text)


def test_a_fault_meets_the_requests_it_is_for_and_so_often() -> None:
    one = api("500*2 /blocks?page=1")
    targets = ["/blocks?page=2", "/blocks?page=1", "/blocks?per_page=1&page=1", "/blocks?page=1"]
    assert [one.answer(target).status for target in targets] == [200, 500, 500, 200]
    assert one.requests == targets


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 404),
        ("/blocks/no/such/characters", 404),
        (f"{HIRAGANA}/no-such", 404),
        ("/blocks?page=0", 400),
        ("/blocks?page=-1", 400),
        ("/blocks?per_page=101", 400),
        (f"/blocks?page={'9' * 5000}", 400),
        (f"{HIRAGANA}/decompositions?cursor=0041", 400),
        ("//[?", 404),
    ],
)
def test_the_api_refuses_what_makes_no_sense(target: str, status: int) -> None:
    assert api().answer(target).status == status


async def test_the_api_over_the_network(nursery: trio.Nursery) -> None:
    """Keep-alive, faults, resets: as a client meets them."""
    service = api(f"429:3 {HIRAGANA}/characters", "reset*2 /blocks?page=1")
    url = await nursery.start(serve, handler_of(service))
    async with http.open_client(user_agent="test", connections=1) as client:
        limited = await client.get(f"{url}{HIRAGANA}/characters")
        assert (limited.status, limited.headers["Retry-After"]) == (429, "3")
        records = json.loads((await client.get(f"{url}{HIRAGANA}/characters?page=2")).body)
        assert records["records"] == characters_of("kana/hiragana")[50:]
        # Twice: what a kept connection does before the first byte is taken for its age.
        with pytest.raises(http.ConnectionReset):
            await client.get(f"{url}/blocks?page=1")
        assert (await client.get(f"{url}/blocks?page=1")).status == 200


async def test_the_api_over_a_bare_connection(nursery: trio.Nursery) -> None:
    """Another method than GET, no HTTP at all, and a reset that is one."""
    url = await nursery.start(serve, handler_of(api("reset /blocks")))
    port = int(url.rpartition(":")[2])
    for request, answer in (
        (b"DELETE /blocks HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 405 "),
        (b"what is this?\r\n\r\n", b""),
    ):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            assert (await stream.receive_some(len(answer) or 1)) == answer
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /blocks HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


def test_the_api_by_itself() -> None:
    command = [sys.executable, "-m", "examples._api.server", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    with server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline().startswith("http://127.0.0.1:")
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


def test_the_command_collects_over_the_network_and_says_so(tmp_path: Path) -> None:
    faults = [
        "--fault",
        f"429:1 {HIRAGANA}/characters?page=2",
        "--fault",
        f"reset*2 {HIRAGANA}/decompositions",
    ]
    done = run_example("collector", "--out", str(tmp_path), *faults)
    assert done.returncode == 0, done.stderr
    records = sum(len(characters_of(r)) + len(decompositions_of(r)) for r in BLOCKS)
    assert f"repositories {len(BLOCKS)}: {len(BLOCKS)} complete" in done.stderr
    assert f"records {records}, of these {records} this time" in done.stderr
    assert "attempts repeated 2" in done.stderr
    assert lines(tmp_path, "kana/hiragana") == characters_of("kana/hiragana")


def test_the_command_stopped_by_sigterm_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["--fault", f"slow:5 {HIRAGANA}/characters?page=2", "--workers", "1"]
    command = [sys.executable, "-m", "examples.collector", "--out", str(tmp_path), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    with process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("latin/basic-latin characters"):
                    break
            os.kill(process.pid, signal.SIGTERM)
            said = process.stderr.read()
            assert process.wait(30) == 75
        finally:
            process.kill()
    assert said.count("go on with:") == 1
    assert "examples.collector" in said
    assert run_example("collector", "--out", str(tmp_path)).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--url", "ftp://127.0.0.1"], 2, "an absolute http or https URL"),
        (["--url", "http://127.0.0.1/?q"], 2, "an absolute http or https URL"),
        (["--from", "no/such"], 1, "UnknownStreamError"),
        (["--url", "http://127.0.0.1", "--fault", "500 /blocks"], 2, "the API of the example"),
        (["--fault", "often /blocks"], 2, "--fault"),
        (["--workers", "0"], 2, "a whole number from 1 to 100"),
    ],
)
def test_what_cannot_work_is_said_without_a_traceback(
    words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = run_example("collector", "--out", str(tmp_path), *words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
