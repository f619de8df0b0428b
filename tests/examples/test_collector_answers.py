"""Whatever an API answers, at worst its own stream fails; the other repositories go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from examples import collector
from examples._api.records import characters_of, decompositions_of
from examples._api.server import Answer, Api
from tests.examples.collecting import (
    HIRAGANA,
    SMALL,
    Direct,
    collect,
    lines,
    pages,
    read_progress,
)


@attrs.define(eq=False)
class Odd(Api):
    """An API that answers some targets in its own way.

    Attributes:
        odd: What it answers, by path: a body, an answer, or what gives one for a query.
    """

    odd: Mapping[str, Any] = attrs.Factory(dict)

    def answer(self, target: str) -> Answer:
        path, _, words = target.partition("?")
        odd = self.odd.get(path)
        if odd is None:
            return super().answer(target)
        self.requests.append(target)
        found = odd(dict(parse_qsl(words))) if callable(odd) else odd
        return found if isinstance(found, Answer) else Answer(200, found)


def odd_api(**odd: Any) -> Direct:
    """What is odd is an endpoint of hiragana, or the list of repositories."""
    paths = {name: f"{HIRAGANA}/{name}" for name in collector.ENDPOINTS} | {"blocks": "/blocks"}
    return Direct(Odd(SMALL, odd={paths[name]: answer for name, answer in odd.items()}))


def check_others(out: Path) -> None:
    """The repositories whose answers were not odd are whole."""
    for repo in SMALL[1:]:
        assert lines(out, repo) == characters_of(repo)
        assert pages(out, repo) == decompositions_of(repo)


async def status_of(out: Path, *key: str) -> tuple[trio_ckpt.Status, str]:
    progress = await read_progress(out, *key)
    return progress.status, progress.error.message if progress.error is not None else ""


def document(*records: object, following: object = None) -> bytes:
    return json.dumps({"records": records, "next": following}).encode()


def first_page(*records: object) -> Callable[[Mapping[str, str]], bytes]:
    """These on page 1, and nothing behind it."""
    return lambda query: document(*(records if query["page"] == "1" else ()))


STRANGE = {
    "HTML": (b"<html>Down for maintenance</html>", "not JSON"),
    "empty": (b"", "not JSON"),
    "bytes that are no text": (b"\xff\xfe\xff", "not JSON"),
    "not an object": (b"[1, 2]", "not an object"),
    "null": (b"null", "not an object"),
    "an error object": (b'{"message": "Server Error"}', "without a list of records"),
    "records that are none": (b'{"records": "abc"}', "without a list of records"),
    "NaN": (b'{"records": [NaN]}', "NaN is not JSON"),
    "infinity": (b'{"records": [-Infinity]}', "-Infinity is not JSON"),
    "1e999": (b'{"records": [1e999]}', "inf is not a finite number"),
    "80 bits": (b'{"records": [1208925819614629174706176]}', "more than 64 bits"),
    "5,000 digits": (b'{"records": [' + b"9" * 5_000 + b"]}", "not JSON"),
    "half a character": (b'{"records": ["\\ud83d"]}', "lone surrogate"),
    "deep": (b'{"records": [' + b"[" * 2_000 + b"]" * 2_000 + b"]}", ""),
    "very deep": (b'{"records": ' + b"[" * 200_000, "not JSON"),
}


@pytest.mark.parametrize(("body", "said"), STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("endpoint", collector.ENDPOINTS)
async def test_a_strange_answer_fails_its_stream_and_no_other(
    tmp_path: Path, autojump_clock: MockClock, endpoint: str, body: bytes, said: str
) -> None:
    client = odd_api(**{endpoint: body})
    assert await collect(client, tmp_path) == 75
    check_others(tmp_path)
    status, message = await status_of(tmp_path, "kana/hiragana", endpoint)
    assert status is trio_ckpt.Status.FAILED
    assert said in message
    assert message.isprintable()
    assert (
        len([target for target in client.order() if endpoint in target]) > 5
    )  # it was asked again
    client.api.odd = {}
    assert await collect(client, tmp_path) == 0
    assert lines(tmp_path, "kana/hiragana") == characters_of("kana/hiragana")


@pytest.mark.parametrize("status", [204, 301, 304, 400, 409, 418, 422])
async def test_an_unforeseen_answer_fails_its_stream_for_good(
    tmp_path: Path, autojump_clock: MockClock, status: int
) -> None:
    client = odd_api(characters=Answer(status, b""))
    assert await collect(client, tmp_path) == 69
    check_others(tmp_path)
    assert len(client.order(f"{HIRAGANA}/characters")) == 1


async def test_a_repository_that_was_renamed_is_followed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    moved = Answer(301, b"", {"Location": "/elsewhere"})
    client = odd_api(characters=lambda query: moved if query["page"] == "1" else document())
    client.api.odd |= {"/elsewhere": document({"n": 1})}
    assert await collect(client, tmp_path) == 0
    assert lines(tmp_path, "kana/hiragana") == [{"n": 1}]


async def test_redirects_in_a_circle_fail_their_stream(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    target = f"{HIRAGANA}/characters"
    client = odd_api(characters=Answer(302, b"", {"Location": target}))
    assert await collect(client, tmp_path) == 69
    check_others(tmp_path)
    assert len(client.order(target)) == 1 + collector.MAX_REDIRECTS


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        (403, {"Retry-After": "60"}),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "59"}),
        (429, {"Retry-After": "60"}),
    ],
)
async def test_a_rate_limit_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock, code: int, headers: dict[str, str]
) -> None:
    answers = [Answer(code, b"", headers), Answer(200, document({"n": 1}))]
    client = odd_api(characters=lambda _query: answers.pop(0) if answers else document())
    assert await collect(client, tmp_path) == 0
    asked = client.times(f"{HIRAGANA}/characters?page=1")
    assert asked[1] - asked[0] >= 60


FOLLOWING = {
    "the same cursor for ever": (lambda _cursor: "A", 2),
    "two that alternate": (lambda cursor: "B" if cursor == "A" else "A", 3),
    "three in a circle": (lambda cursor: {"A": "B", "B": "C"}.get(cursor, "A"), 4),
}


@pytest.mark.parametrize(("following", "count"), FOLLOWING.values(), ids=FOLLOWING)
async def test_a_cursor_that_comes_back_ends_its_stream_for_good(
    tmp_path: Path,
    autojump_clock: MockClock,
    following: Callable[[str | None], str],
    count: int,
) -> None:
    def answer(query: dict[str, str]) -> bytes:
        return document(query.get("cursor"), following=following(query.get("cursor")))

    assert await collect(odd_api(decompositions=answer), tmp_path) == 69
    check_others(tmp_path)
    status, message = await status_of(tmp_path, "kana/hiragana", "decompositions")
    assert status is trio_ckpt.Status.FAILED
    assert "comes back: this has no end" in message
    assert len(pages(tmp_path, "kana/hiragana")) == count


@pytest.mark.parametrize("length", [1, 2, 3, 7])
async def test_a_circle_is_found_over_sessions_of_one_page(
    tmp_path: Path, autojump_clock: MockClock, length: int
) -> None:
    """None of them sees a cursor twice; what each has kept with its page does."""
    left = 0

    def answer(query: dict[str, str]) -> Answer:
        nonlocal left
        left -= 1
        place = int(query.get("cursor", "-1"))
        page = document(place, following=str((place + 1) % length))
        return Answer(200, page) if left >= 0 else Answer(500, b"")

    codes: list[int] = []
    while 69 not in codes:
        left = 1
        codes.append(await collect(odd_api(decompositions=answer), tmp_path))
        assert len(codes) <= 4 * length + 4
    assert set(codes[:-1]) == {75}
    status, message = await status_of(tmp_path, "kana/hiragana", "decompositions")
    assert status is trio_ckpt.Status.FAILED
    assert "comes back: this has no end" in message


async def test_a_cursor_is_not_taken_for_its_own_retry(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    answers = [Answer(200, document(1, following="A")), Answer(500, b""), Answer(200, document(2))]
    client = odd_api(decompositions=lambda _query: answers.pop(0))
    assert await collect(client, tmp_path) == 0
    assert pages(tmp_path, "kana/hiragana") == [1, 2]


async def test_an_empty_cursor_is_the_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    client = odd_api(decompositions=document(1, following=""))
    assert await collect(client, tmp_path) == 0
    assert pages(tmp_path, "kana/hiragana") == [1]


@pytest.mark.parametrize("following", [5, ["A"], "A" * 5_000, {"cursor": "A"}])
async def test_a_cursor_that_is_none_is_a_strange_answer(
    tmp_path: Path, autojump_clock: MockClock, following: object
) -> None:
    client = odd_api(decompositions=document(1, following=following))
    assert await collect(client, tmp_path) == 75
    _, message = await status_of(tmp_path, "kana/hiragana", "decompositions")
    assert "with a cursor that is none" in message


async def test_pages_that_do_not_follow_their_number_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """An API that does not know ``page`` sends its first page for ever."""
    client = odd_api(characters=document(1, 2))
    assert await collect(client, tmp_path) == 69
    check_others(tmp_path)
    assert lines(tmp_path, "kana/hiragana") == [1, 2]
    _, message = await status_of(tmp_path, "kana/hiragana", "characters")
    assert "page 2 is the one before it once more" in message


async def test_a_list_of_repositories_without_pages_is_one_page(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    names = [{"full_name": name} for name in SMALL]
    client = odd_api(blocks=document(*names))
    assert await collect(client, tmp_path) == 0
    check_others(tmp_path)
    assert len(client.order("/blocks?")) == 2


HOSTILE = [
    "",
    "no-slash",
    "../../etc/passwd",
    "a/b/c",
    "/etc/passwd",
    "a/..",
    "./a",
    "a/",
    "a\x00/b",
    "a/b\n",
    "\ud83d/x",
    "\u202e/x",
    "a" * 200 + "/b",
    "a\\b/c",
    5,
    None,
    ["a/b"],
    {"a/b": 1},
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
async def test_a_name_that_cannot_be_used_fails_and_the_others_go_on(
    tmp_path: Path,
    autojump_clock: MockClock,
    capsys: pytest.CaptureFixture[str],
    name: object,
) -> None:
    records = [{"full_name": name}, *({"full_name": known} for known in SMALL)]
    client = odd_api(
        blocks=lambda query: document(*records) if query["page"] == "1" else document()
    )
    out = tmp_path / "out"
    for _ in range(2):  # a start does nothing more
        assert await collect(client, out) == 69
    check_others(out)
    assert os.listdir(tmp_path) == ["out"]
    said = capsys.readouterr().err
    assert "which cannot name a file: it is left out" in said
    assert "unusable names 1\n" in said
    assert all(line.isprintable() for line in said.splitlines())


async def test_names_that_are_all_unusable_are_told(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    client = odd_api(blocks=first_page("x", {"name": "y"}, 7))
    assert await collect(client, tmp_path) == 69


@pytest.mark.parametrize(("answer", "code"), [(b"<html>", 75), (Answer(404, b""), 1)])
async def test_without_a_list_there_is_one_line_and_its_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: bytes | Answer,
    code: int,
) -> None:
    async def run_it(_options: object) -> int:
        return await collect(odd_api(blocks=answer), tmp_path)

    monkeypatch.setattr(collector, "run_collector", run_it)
    monkeypatch.setattr("sys.argv", ["collector", "--out", str(tmp_path)])
    clock = MockClock(autojump_threshold=0)
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=clock))
    found = await trio.to_thread.run_sync(collector.main)
    assert found == code
    assert "the list of repositories cannot be had" in capsys.readouterr().err


async def test_a_list_that_was_refused_is_asked_for_by_the_next_start(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with pytest.raises(trio_ckpt.StreamFailedError, match="404"):
        await collect(odd_api(blocks=Answer(404, b"")), tmp_path)
    assert await collect(odd_api(), tmp_path) == 0
    check_others(tmp_path)
