"""The pipeline of language models as a program that is made to crash: its provider is in memory."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from typing import Any

import trio

from examples import llm_batches
from examples._llm.apis import ProviderError
from examples._llm.provider import Provider, Submitted, outcome_of, tokens_of
from trio_ckpt import RunStoppedError
from trio_ckpt.testing import World

QUESTIONS, PER_BATCH = 9, 3
STREAM = ("questions",)
ENOUGH_USD = 1.0
BUDGET_USD = 2 * PER_BATCH * llm_batches.USD_PER_REQUEST  # for two batches at a time


class MemoryHttp:
    """Carries requests to a provider that outlives the program, and loses some of its answers."""

    def __init__(self, world: World) -> None:
        self.provider = Provider(now=lambda: 0.0)
        self.provider.remember(submitted(world))
        self.provider.save = lambda batch: world.note("submitted", json.dumps(batch))
        self.world = world

    async def request(
        self, method: str, target: str, body: bytes = b"", content_type: str = "application/json"
    ) -> bytes:
        await trio.sleep(0.01)
        status, answer = self.provider.answer(method, target, body, content_type)
        await trio.sleep(0.01)  # it is accepted, and the client does not know of it yet
        if status != 200:
            raise ProviderError(f"{method} {target}: {status}: {answer!r}")
        return answer


def submitted(world: World) -> list[dict[str, Any]]:
    """What the provider has accepted in all sessions."""
    return [json.loads(what[1]) for what in world.notes if what[0] == "submitted"]


def paid_usd(batches: list[dict[str, Any]]) -> Fraction:
    """What the provider charges, exactly."""
    costs = (tokens_of(one) * llm_batches.USD_PER_TOKEN for b in batches for one in b["requests"])
    return sum(map(Fraction, costs), Fraction())


async def ask(
    world: World, provider: str, budget_usd: float | None = None, more: tuple[str, ...] = ()
) -> None:
    """The pipeline, until it is done or its budget is used up; a higher one goes on."""
    words = list(more)
    words += ["--out", "nowhere", "--provider", provider, "--poll", "0.1", "--concurrency", "3"]
    words += ["--questions", str(QUESTIONS), "--per-batch", str(PER_BATCH)]
    for usd in filter(None, (budget_usd, ENOUGH_USD)):
        options = llm_batches.parse_options([*words, "--max-cost", str(usd)])
        options.out, options.store = world.output_dir, world.store
        world.note("budget", usd)
        try:
            await llm_batches.run_with(MemoryHttp(world), options)
        except RunStoppedError as stopped:
            if (stopped.exit_code, usd) != (75, budget_usd):
                raise


def always(world: World) -> None:
    """No batch is submitted twice, and what is on record covers what was paid."""
    batches = submitted(world)
    requests = Counter(one for batch in batches for one in batch["requests"])
    assert set(requests.values()) <= {1}, "a request was submitted twice"
    progress = world.progress(*STREAM)
    recorded = Fraction()
    for sums in (progress.spent, progress.reserved):
        for total in sums.values():
            recorded += Fraction(total.numerator, 1 << total.shift)
    assert recorded >= paid_usd(batches), "more was paid than is on record"
    budget = max((what[1] for what in world.notes if what[0] == "budget"), default=0)
    assert paid_usd(batches) <= Fraction(budget), "more was paid than the budget has"


def check(world: World) -> None:
    """Every question is answered once, by a request that had not succeeded before."""
    lines = world.files.tree()["answers.jsonl"].splitlines()
    answered = [json.loads(line)["question"] for line in lines]
    assert sorted(answered) == list(range(QUESTIONS))
    batches = [Submitted(**batch) for batch in submitted(world)]
    good = Counter(
        one.rpartition("_")[2]
        for batch in batches
        for one in batch.requests
        if outcome_of(one) == "succeeded"
    )
    assert set(good.values()) == {1}, "a request that had succeeded was sent again"
    progress = world.progress(*STREAM)
    spent = progress.spent["cost_usd"]
    assert Fraction(spent.numerator, 1 << spent.shift) == paid_usd(submitted(world)), "not exact"
    assert progress.reserved == {}
    assert progress.notes is None
