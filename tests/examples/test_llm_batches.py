"""The pipeline of language models: it submits nothing twice, and keeps its budget."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from examples import llm_batches
from examples._llm.apis import Anthropic, BatchApi, OpenAi, ProviderError, Result
from examples._llm.http import HttpClient
from examples._llm.provider import MAX_TOKENS, USD_PER_TOKEN, Provider, outcome_of, tokens_of
from examples._llm.server import handler_of
from examples._loopback import serve
from tests.testing.llm import BUDGET_USD, always, ask, check
from trio_ckpt import RunStoppedError, open_maintenance
from trio_ckpt.stores import open_store
from trio_ckpt.testing import explore_crashes

PROMPTS = {number: f"question {number}" for number in range(30)}


@pytest.fixture
async def provider() -> AsyncIterator[tuple[Provider, HttpClient]]:
    made = Provider()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, handler_of(made))
        yield made, HttpClient(url)
        nursery.cancel_scope.cancel()


def api_of(name: str, http: HttpClient) -> BatchApi:
    return {"openai": OpenAi, "anthropic": Anthropic}[name](http, 0.01)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_what_is_submitted_is_found_and_has_results(
    name: str, provider: tuple[Provider, HttpClient]
) -> None:
    made, http = provider
    api = api_of(name, http)
    assert await api.find("a-1", PROMPTS) is None
    others = [await api.submit(f"b-{number}", PROMPTS) for number in range(3)]
    job = await api.submit("a-1", PROMPTS)
    others.append(await api.submit("a-11", PROMPTS))  # whose name begins as that
    assert await api.find("a-1", PROMPTS) == job
    assert job not in others
    results = await api.results(job)
    assert results is not None
    assert results.keys() == PROMPTS.keys()
    for number, result in results.items():
        one = f"a-1_{number}"
        text = f"the answer to {number}" if outcome_of(one) == "succeeded" else ""
        assert result == Result(outcome_of(one), text, tokens_of(one) * USD_PER_TOKEN)
    assert {one.outcome for one in results.values()} == {"succeeded", "errored", "expired"}
    assert max(one.cost_usd for one in results.values()) <= MAX_TOKENS * USD_PER_TOKEN
    made.takes_s = 1e9
    assert await api.results(job) is None


async def test_a_long_list_of_batches_is_read_page_by_page(
    provider: tuple[Provider, HttpClient],
) -> None:
    made, http = provider
    api = api_of("openai", http)
    for number in range(120):  # a page has a hundred
        await api.submit(f"a-{number}", {0: "x"})
    assert await api.find("a-0", {0: "x"}) == made.batches[0].id


async def test_a_refusal_and_a_server_that_is_away_are_errors(
    provider: tuple[Provider, HttpClient],
) -> None:
    _, http = provider
    with pytest.raises(ProviderError, match="400"):
        await api_of("openai", http).submit("no such letters: é", {0: "x"})
    with pytest.raises(ProviderError, match=r"404: .*no batch x"):
        await api_of("anthropic", http).results("x")
    with pytest.raises(ProviderError, match="GET /v1/batches"):
        await HttpClient("http://127.0.0.1:1").request("GET", "/v1/batches")


def test_the_command_answers_all_questions(tmp_path: Path) -> None:
    options = llm_batches.parse_options(
        ["--out", str(tmp_path), "--takes", "0", "--poll", "0.01", "--questions", "40"]
    )
    assert trio.run(llm_batches.ask_all, options) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_no_crash_submits_twice_or_loses_an_answer(name: str) -> None:
    """Killed at every step, also between a submission and the note of its id."""
    done = explore_crashes(partial(ask, provider=name), check, always=always, crashes=150)
    assert done.crash_points >= 140


def test_no_crash_submits_a_batch_twice_that_was_put_off() -> None:
    """Each batch is asked for once, and then put off."""
    program = partial(ask, provider="openai", more=("--patience", "0", "--put-off", "0.05"))
    done = explore_crashes(program, check, always=always, crashes=100)
    assert done.crash_points >= 90


def test_a_provider_that_takes_hours_keeps_no_process(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--questions", "40", "--patience", "0"]
    hours = llm_batches.parse_options([*words, "--takes", "7200", "--put-off", "3600"])
    with pytest.raises(RunStoppedError, match="deferred work: 2 batches, the first due") as stopped:
        trio.run(llm_batches.ask_all, hours)
    assert stopped.value.exit_code == 75
    assert len(requests_of(tmp_path)) == 40
    retry(tmp_path / "answers.ckpt")  # as time goes by
    done = llm_batches.parse_options([*words, "--takes", "0", "--poll", "0.01"])
    assert trio.run(llm_batches.ask_all, done) == 0
    assert len(requests_of(tmp_path)) == len(set(requests_of(tmp_path)))
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 40


def requests_of(folder: Path) -> list[str]:
    """The requests that the provider has accepted."""
    lines = (folder / "provider.jsonl").read_text().splitlines()
    return [one for line in lines for one in json.loads(line)["requests"]]


def retry(store: Path) -> None:
    """Re-queue what is deferred."""

    async def main() -> None:
        opened = await open_store(store)
        async with open_maintenance(opened, llm_batches.NAME) as maintenance:
            await maintenance.retry()
        await opened.aclose()

    trio.run(main)


def test_no_crash_exceeds_the_budget() -> None:
    program = partial(ask, provider="openai", budget_usd=BUDGET_USD)
    done = explore_crashes(program, check, always=always, crashes=100)
    assert done.crash_points >= 90
