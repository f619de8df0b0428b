"""Questions for a language model, by the batch API of a provider, under a budget; killed, resumed.

    python -m examples.llm_batches --out answers

asks 200 questions, 20 in each batch of the provider, four of those at once. The provider is the
example's own (``--url`` names another one, ``--provider`` its API: of OpenAI or of Anthropic). The
answers are lines of ``answers/answers.jsonl``.

A batch costs money from the moment at which it is submitted, and takes longer than a process may
live. So before it is submitted its *intent* is noted, with the most that it can cost; after it, its
id. A start that finds an intent without an id asks the provider for it, and submits only what the
provider does not know. Requests that have failed or expired are sent again, and no others.

    python -m examples.llm_batches --out answers --max-cost 0.05    # stops in time; raise it later

A batch that is pending for long is put off, and others go on. When nothing else is left the program
ends with 75, and says when to start it again: no process has to wait for a provider.

What was paid never exceeds the budget, and what the run has on record is never less than was paid.

Exit codes: 0 complete, 69 complete but for what failed for good, 75 there is work left, start it
again, 130 and 143 stopped at once by a second signal, 1 it cannot work, 2 a bad command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import trio

import trio_ckpt

from ._command import (
    EXPECTED,
    add_limits,
    command_of,
    explain,
    limits_of,
    open_stderr,
    output_folder,
    resume_command,
    say,
    seconds,
    whole_number,
)
from ._llm.apis import Anthropic, BatchApi, Http, OpenAi, ProviderError, Result
from ._llm.http import HttpClient
from ._llm.provider import MAX_TOKENS, USD_PER_TOKEN, Provider
from ._llm.server import handler_of
from ._loopback import open_server

Questions = dict[int, str]  # by their numbers
Batch = trio_ckpt.Batch[list[int]]

NAME = "answers"
MAX_ROUNDS = 5  # how often a request is sent at most
USD_PER_REQUEST = MAX_TOKENS * USD_PER_TOKEN  # at most
APIS: dict[str, Callable[[Http, float], BatchApi]] = {"openai": OpenAi, "anthropic": Anthropic}
RETRIES = trio_ckpt.RetryTable([trio_ckpt.RetryRule((ProviderError,), attempts=5, backoff_s=0.5)])


def question(number: int) -> str:
    """A question."""
    return f"What is {number} times {number + 1}?"


@attrs.frozen
class Pipeline:
    """Asks a provider.

    Attributes:
        api: Its API.
        poll_s: How often it is asked for results, in seconds.
        patience_s: For how long a batch of it is waited for, in seconds.
        put_off_s: For how long one that is still pending then is put off, in seconds.
    """

    api: BatchApi
    poll_s: float
    patience_s: float
    put_off_s: float

    async def answer(self, batch: Batch) -> None:
        """Ask the questions of one batch, in as many rounds as it takes; or put it off."""
        answers: dict[int, str] = {}
        left = {number: question(number) for number in batch.item}
        for number in range(MAX_ROUNDS):
            results = await self.ask(batch, number, left)
            if results is None:
                batch.defer(until=self.put_off_s)
                return
            answers |= {n: one.text for n, one in results.items() if one.outcome == "succeeded"}
            left = {n: prompt for n, prompt in left.items() if n not in answers}
            if not left:
                break
        batch.append_json(
            "answers.jsonl", *({"question": n, "answer": answers[n]} for n in sorted(answers))
        )
        batch.append_json("unanswered.jsonl", *({"question": n} for n in sorted(left)))
        batch.complete(records=len(answers))

    async def ask(
        self, batch: Batch, number: int, questions: Questions
    ) -> dict[int, Result] | None:
        """One round: submit questions unless that is done, and wait; None: it is pending."""
        name, intent = f"round-{number}", f"{NAME}-{batch.index}-{number}"
        job: str | None = None
        if name in batch.notes:  # an attempt before was about to submit, or has done it
            job = batch.notes[name]
            if job is None:
                async with batch.waiting():
                    job = await self.api.find(intent, questions)
        else:
            await batch.note(name, None, cost_usd=len(questions) * USD_PER_REQUEST)
        if job is None:
            job = await self.api.submit(intent, questions)
        await batch.note(name, job)
        results = await self.results(batch, job)
        if results is not None:
            await batch.note(name, job, cost_usd=total_usd(results))
        return results

    async def results(self, batch: Batch, job: str) -> dict[int, Result] | None:
        """Wait for the results of a job; a stop does not wait with it.  None: it is pending."""
        until = trio.current_time() + self.patience_s
        async with batch.waiting():
            while (results := await self.api.results(job)) is None:
                if trio.current_time() >= until:
                    break
                await trio.sleep(self.poll_s)
        return results


def total_usd(results: Mapping[int, Result]) -> float:
    """What the results have cost."""
    return sum(result.cost_usd for result in results.values())


async def run_with(http: Http, options: argparse.Namespace) -> int:
    """Ask a provider that is there; returns the exit code."""
    api = APIS[options.provider](http, options.poll)
    pipeline = Pipeline(api, options.poll, options.patience, options.put_off)
    numbers = list(range(options.questions))
    parts = [
        numbers[at : at + options.per_batch] for at in range(0, len(numbers), options.per_batch)
    ]
    config = {name: getattr(options, name) for name in ("provider", "questions", "per_batch")}
    async with trio_ckpt.open_run(
        NAME,
        store=options.store or options.out / "answers.ckpt",
        output_dir=options.out,
        config=config,
        limits=limits_of(options),
        resume_command=resume_command(),
    ) as run:
        async with run.open_stream("questions", retry=RETRIES) as stream:
            await trio_ckpt.run_batches(
                stream, parts, pipeline.answer, concurrency=options.concurrency
            )
        now = run.statistics()
        say(f"answers {now.records}, spent {now.spent.get('cost_usd', 0):.5f} USD")
        return run.exit_code


@asynccontextmanager
async def open_provider(options: argparse.Namespace) -> AsyncIterator[Http]:
    """A client of the provider; the example's own provider is there as long as the block."""
    if options.url is not None:
        yield HttpClient(options.url)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    provider = Provider.of_file(options.out / "provider.jsonl", options.takes)
    async with open_server(handler_of(provider)) as url:
        yield HttpClient(url)


async def ask_all(options: argparse.Namespace) -> int:
    """Ask all questions, or go on; returns the exit code."""
    async with open_provider(options) as http:
        return await run_with(http, options)


# ---------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog=command_of("llm_batches"),
        description="Ask a language model by a batch API, resumably and under a budget.",
    )
    count = whole_number(1, 100_000)
    parser.add_argument("--out", type=output_folder, required=True, help="folder of the answers")
    parser.add_argument("--store", help="folder or URL of the checkpoints (OUT/answers.ckpt)")
    parser.add_argument("--url", help="of the provider (the example's own, started here)")
    parser.add_argument("--provider", choices=APIS, default="openai", help="its API (openai)")
    parser.add_argument("--questions", type=count, default=200, metavar="N", help="(200)")
    parser.add_argument(
        "--per-batch", type=whole_number(1, 10_000), default=20, metavar="N", help="(20)"
    )
    parser.add_argument(
        "--concurrency", type=whole_number(1, 1_000), default=4, metavar="N", help="at once (4)"
    )
    parser.add_argument(
        "--poll", type=seconds(), default=0.5, metavar="S", help="ask for results so often (0.5)"
    )
    parser.add_argument(
        "--patience",
        type=seconds(),
        default=60.0,
        metavar="S",
        help="wait for a batch so long (60)",
    )
    parser.add_argument(
        "--put-off", type=seconds(), default=300.0, metavar="S", help="ask for it again later (300)"
    )
    parser.add_argument(
        "--takes",
        type=seconds(),
        default=1.0,
        metavar="S",
        help="how long the example's own provider takes for a batch (1)",
    )
    add_limits(parser, has_cost=True)
    return parser.parse_args(words)


def main() -> int:
    """Run the command; an error is one line, not a traceback."""
    options = parse_options()
    open_stderr()
    try:
        return trio.run(ask_all, options)
    except EXPECTED as error:
        return explain(error)


if __name__ == "__main__":
    sys.exit(main())
