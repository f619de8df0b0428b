"""The comparison with other tools: what was looked up, and what the kept benchmarks measured."""

from __future__ import annotations

import re

from benchmarks import kept

NOT_MEASURED = "not measured"

LOOPS = ("1 loop", "64 loops")

KILLS = "crawl with two kills: pages never fetched, lost, repeated, torn"


def comparison_rows(run: kept.Run) -> list[list[str]]:
    """A row for each tool: what survives a kill, how fast it is, and what it is better at.

    Args:
        run: The run of the benchmarks that the figures are of.
    """
    return [
        [
            "",
            "what survives `kill -9`",
            "how fast this library is beside it",
            "what the other is better at",
        ],
        ["---", "---", "---", "---"],
        [
            "**trio_ckpt**",
            "all that is confirmed; at most the batches in flight run again; "
            f"{_wrong(run, 'ours')}",
            "",
            "",
        ],
        [
            "Scrapy + JOBDIR",
            "the queue of the last clean stop; what was queued since is lost, with exit code 0; "
            f"{_wrong(run, 'Scrapy')}",
            _crawl(run, "Scrapy"),
            "the web: middlewares, extraction, an ecosystem of fifteen years",
        ],
        [
            "Crawlee",
            f"its queue; records may be there twice; {_wrong(run, 'Crawlee')}",
            _crawl(run, "Crawlee"),
            "browsers, proxies, sessions that look human",
        ],
        [
            "DBOS",
            "each step whose end was saved",
            _steps(run),
            "workflows of many functions, queues, schedules",
        ],
        [
            "LangGraph",
            'a graph, after each step with `durability="sync"`; its functional API repeats steps',
            _steps(run),
            "agents: branches, memory, people in the loop, a studio",
        ],
        [
            "Temporal",
            "the workflow, on any machine",
            NOT_MEASURED,
            "many languages, many teams, years of operation at a very large scale",
        ],
        [
            "a `checkpoint.json`",
            "what you have tested",
            _commits(run),
            "nothing to install; the right thing for an hour of work",
        ],
    ]


def _wrong(run: kept.Run, crawler: str) -> str:
    """Pages that two kills of a crawl left wrong."""
    found = run.found.get(KILLS)
    if found is None:
        return NOT_MEASURED
    peers = dict(re.findall(r"(\w+) ([\d,]+) pages", found.peer))
    wrong = f"{found.value:,.0f}" if crawler == "ours" else peers.get(crawler)
    of = re.search(r"([\d,]+) pages", found.control)
    return f"{wrong} of {of[1]} pages wrong after two kills" if wrong and of else NOT_MEASURED


def _crawl(run: kept.Run, crawler: str) -> str:
    """How many times as many pages a second the crawler of the examples takes."""
    found = run.found.get(f"crawl: pages/s against {crawler}")
    return f"{_times(found.value)} its pages/s" if found else NOT_MEASURED


def _steps(run: kept.Run) -> str:
    """How many times as many durable steps a second are made as by the faster of two peers."""
    ratios = {
        name: run.found[name].value * _figure(run.found[name].control) / _figure(peer)
        for name in LOOPS
        if name in run.found and (peer := run.found[name].peer)
    }
    return _in_loops("steps", ratios, "the faster of DBOS and LangGraph")


def _commits(run: kept.Run) -> str:
    """How many times as many durable batches a second are made as bare commits."""
    ratios = {name: run.found[name].value for name in LOOPS if name in run.found}
    return _in_loops("batches", ratios, "a bare commit to SQLite")


def _in_loops(what: str, ratios: dict[str, float], control: str) -> str:
    """Ratios of rates by the number of loops, the first of them beside its control."""
    if not ratios:
        return NOT_MEASURED
    (first, ratio), *others = ratios.items()
    parts = [f"{_times(ratio)} {control} in {first}"]
    parts += [f"{_times(ratio)} in {name}" for name, ratio in others]
    return f"durable {what}/s: {', '.join(parts)}"


def _figure(text: str) -> float:
    """The figure in what a control or a peer measured, such as ``DBOS 522.3/s``."""
    found = re.search(r"[\d,]*\.?\d+", text)
    if found is None:
        raise ValueError(f"{text!r} has no figure")
    return float(found[0].replace(",", ""))


def _times(ratio: float) -> str:
    return f"{ratio:.2g} ×"
