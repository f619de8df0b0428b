"""Two stages over the pages of a book: extract, then correct; killed at any moment, resumed.

    python -m examples.scan_book --out book

works on the licence that Python ships with, 12 lines to a page (name a text of your own to work on
that). Each stage leaves one JSON file per page, ``book/extract/page-0001.json`` and
``book/correct/page-0001.json``; four pages are worked on at once.

The second stage pretends to ask a language model that costs money. Sometimes the model gives a
placeholder instead of a text. Such a page is refused before it counts as done, and asked for
again; its price is *spent*, but has *produced* nothing. Both sums survive every kill, exactly.

    python -m examples.scan_book --out book --start 5 --end 9     # only these pages, this time
    python -m examples.scan_book --out book --redo 3,17           # these once more

Exit codes: 0 complete, 69 complete but for what failed for good, 75 there is work left, start it
again, 130 and 143 stopped at once by a second signal,
1 it cannot work, 2 a bad command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

import trio_ckpt
from trio_ckpt.outputs import Validate

from ._command import (
    EXPECTED,
    add_limits,
    command_of,
    explain,
    limits_of,
    open_stderr,
    output_folder,
    say,
    seconds,
    whole_number,
)

log = logging.getLogger("scan_book")

Lines = list[str]
Batch = trio_ckpt.Batch[Lines]
Stream = trio_ckpt.Stream[None]

USD_PER_CHARACTER = 0.000_002
PAGE = whole_number(1, 10**6)


# ---------------------------------------------------------------------------------------
# The book
# ---------------------------------------------------------------------------------------


def read_book(path: Path | None) -> str:
    """The text of a file; without one, a text that comes with every Python."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    library = Path(os.__file__).parent
    for folder in (library, library.parent):  # where `site` looks for it, too
        for name in ("LICENSE.txt", "LICENSE"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
    # Some systems leave the licence out; the chapters of help() are in the library itself.
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)[:10])


def split_pages(text: str, lines_per_page: int) -> list[Lines]:
    """The pages of the book, each a list of lines; the last one may be shorter."""
    lines = text.splitlines()
    return [lines[at : at + lines_per_page] for at in range(0, len(lines), lines_per_page)]


def page_name(page: int) -> str:
    """The file of a page, below the folder of its stage."""
    return f"page-{page:04d}.json"


# ---------------------------------------------------------------------------------------
# What a page must look like before it counts as done
# ---------------------------------------------------------------------------------------


@attrs.frozen
class ExtractedPage:
    """A page as "extract" writes it; `validate` reads the file into this class, or refuses it."""

    page: int = attrs.field(validator=attrs.validators.ge(1))
    lines: list[str]
    words: int = attrs.field(validator=attrs.validators.ge(0))


CORRECTED_PAGE: Mapping[str, Any] = {
    "type": "object",
    "required": ["page", "text", "corrections", "model"],
    "additionalProperties": False,
    "properties": {
        "page": {"type": "integer", "minimum": 1},
        "text": {"type": "string"},
        "corrections": {"type": "integer", "minimum": 0},
        "model": {"type": "string", "minLength": 1},
    },
}
"""What "correct" writes, as a JSON Schema."""

PLACEHOLDERS = re.compile(r"\[(illegible|todo|page text here)\]|<unk>|lorem ipsum", re.IGNORECASE)


def refuse_placeholders(page: Mapping[str, Any]) -> None:
    """Refuse a placeholder of the model, which no schema can detect.

    Raises:
        ValueError: the text is a placeholder.
    """
    if (found := PLACEHOLDERS.search(page["text"])) is not None:
        raise ValueError(f"text: {found[0]!r} stands for something that is not there")


# ---------------------------------------------------------------------------------------
# The work
# ---------------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """The answer of the model, and its price."""

    text: str
    corrections: int
    cost_usd: float


@attrs.frozen
class PretendedModel:
    """Corrects spacing and some spelling, always in the same way, for a price.

    Attributes:
        name: Goes into every page.
        latency_s: What an answer takes.
    """

    name: str
    latency_s: float = 0.0

    async def ask(self, lines: Lines, attempt: int) -> Answer:
        """Correct a page; of some pages the first answer is a placeholder."""
        await trio.sleep(self.latency_s)
        asked = "\n".join(lines)
        cost_usd = len(asked) * USD_PER_CHARACTER
        if attempt == 1 and hashlib.sha256(asked.encode()).digest()[0] % 5 == 0:
            return Answer("[illegible]", 0, cost_usd)
        text, corrections = correct(asked)
        return Answer(text, corrections, cost_usd)


CORRECTIONS = (
    (re.compile(r"[ \t]+"), " "),  # runs of blanks
    (re.compile(r"^ | $", re.MULTILINE), ""),  # indents and trailing blanks
    (re.compile(r"(\w)-\n(\w)"), r"\1\2"),  # words cut at the end of a line
    (re.compile(r"``|''"), '"'),
    (re.compile(r"\bteh\b"), "the"),
)


def correct(text: str) -> tuple[str, int]:
    """Correct a text; returns it and how many places were changed."""
    places = 0
    for pattern, better in CORRECTIONS:
        changed, count = pattern.subn(better, text)
        places += count if changed != text else 0
        text = changed
    return text, places


def extract_page(batch: Batch) -> None:
    """Stage one, in a thread, as a library for OCR needs it: write the page, complete it."""
    lines = [line.rstrip() for line in batch.item]
    words = sum(len(line.split()) for line in lines)
    page = ExtractedPage(batch.index, lines, words)
    path = trio.from_thread.run(batch.write_json, page_name(batch.index), attrs.asdict(page))
    batch.complete(outputs=[path], records=1, totals={"words": words})


@attrs.frozen
class Stage:
    """One pass over all pages.

    Attributes:
        name: Of the stream, and of its folder.
        validate: What each page is checked with, before it is confirmed and on resume.
        work_on: Works on one page.
    """

    name: str
    validate: Validate
    work_on: Callable[[Batch], Awaitable[None]]

    async def begin(self, batch: Batch) -> None:
        """Log the page, and work on it."""
        log.info("%s page %d attempt %d", self.name, batch.index, batch.attempt)
        await self.work_on(batch)


ReadPage = Callable[[str], Awaitable[str]]


async def read_file(out: Path, name: str) -> str:
    """The text of a page, as the stage before left it."""
    return await trio.Path(out, name).read_text("utf-8")


def make_stages(model: PretendedModel, read_page: ReadPage) -> tuple[Stage, Stage]:
    """The two stages; the second reads the pages of the first."""

    async def extract(batch: Batch) -> None:
        await trio.to_thread.run_sync(extract_page, batch)

    async def correct(batch: Batch) -> None:
        source = await read_page(f"extract/{page_name(batch.index)}")
        answer = await model.ask(json.loads(source)["lines"], batch.attempt)
        batch.spend(cost_usd=answer.cost_usd)  # also if the attempt fails
        page = {
            "page": batch.index,
            "text": answer.text,
            "corrections": answer.corrections,
            "model": model.name,
        }
        path = await batch.write_json(page_name(batch.index), page)
        batch.complete(
            outputs=[path],
            records=1,
            totals={"corrections": answer.corrections, "cost_usd": answer.cost_usd},
        )

    return (
        Stage("extract", ExtractedPage, extract),
        Stage("correct", (CORRECTED_PAGE, refuse_placeholders), correct),
    )


RETRIES = trio_ckpt.RetryTable(
    (trio_ckpt.RetryRule((trio_ckpt.OutputInvalidError,), attempts=3, backoff_s=0.0),)
)


# ---------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------


async def scan(options: argparse.Namespace, read_page: ReadPage | None = None) -> int:
    """Work on what is left of both stages; returns the exit code.

    Args:
        options: As `parse_options` gives them.
        read_page: Reads a page, where `options.out` is not a folder of this machine.
    """
    text = read_book(options.text)
    pages = split_pages(text, options.lines_per_page)
    model = PretendedModel(options.model, options.latency)
    stages = make_stages(model, read_page or partial(read_file, options.out))
    async with trio_ckpt.open_run(
        "book",
        store=options.store or options.out / "book.ckpt",
        output_dir=options.out,
        config={
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "lines_per_page": options.lines_per_page,
            "model": options.model,
        },
        fresh=options.fresh,
        limits=limits_of(options),
        resume_command=resume_command(),
    ) as run:
        if options.redo:
            await put_back(run, stages, options.redo)
        for stage in stages:
            await run_stage(run, stage, pages, options)
        return run.exit_code


def open_stage(run: trio_ckpt.Run, stage: Stage) -> AbstractAsyncContextManager[Stream]:
    """The stream of a stage; page 1 is batch 1."""
    return run.open_stream(
        stage.name, first_index=1, output_dir=stage.name, validate=stage.validate, retry=RETRIES
    )


async def put_back(run: trio_ckpt.Run, stages: Sequence[Stage], pages: Sequence[int]) -> None:
    """Re-queue pages in all stages, the last stage first, because it builds on the others."""
    for stage in reversed(stages):
        async with open_stage(run, stage) as stream:
            done = [page for page in pages if stream.progress.is_done(page)]
            if done:
                await stream.redo(done, reason="asked for with --redo")
            say(f"{stage.name}: {len(done)} of {count(len(pages))} are to be done again: {done}")


async def run_stage(
    run: trio_ckpt.Run, stage: Stage, pages: Sequence[Lines], options: argparse.Namespace
) -> None:
    """Work on the pages of the range that are left; finish the stage if no page is."""
    async with open_stage(run, stage) as stream:
        show_resume(stage, stream, len(pages), options)
        await trio_ckpt.run_batches(
            stream,
            pages,
            stage.begin,
            concurrency=options.workers,
            start=options.start,
            end=options.end,
        )
        now = stream.statistics()
        is_news = now.session_confirmed or not stream.metadata
        if is_news and not stream.remaining(total=len(pages)):
            metadata = {"model": options.model, "pages_this_session": now.session_confirmed}
            await stream.finish(metadata=metadata)
        show_end(stage, stream)


def show_resume(stage: Stage, stream: Stream, total: int, options: argparse.Namespace) -> None:
    """Print what is skipped, what that saves, and what is left."""
    left = len(stream.remaining(total=total, start=options.start, end=options.end))
    done = stream.statistics()
    if done.confirmed:
        saves = f", which saves {dollars(done.saved)}" if done.saved else ""
        say(f"{stage.name}: {done.confirmed} of {count(total)} done{saves}; {left} to do")
    else:
        say(f"{stage.name}: {count(left)} to do")


def show_end(stage: Stage, stream: Stream) -> None:
    """Print what was done and what it cost: this time, and in all."""
    now = stream.statistics()
    line = f"{stage.name}: {count(now.session_confirmed)} this time, {now.confirmed} in all"
    if now.spent:
        line += f"; {dollars(now.session_spent)} this time, {dollars(now.spent)} in all"
    say(line)


def count(pages: int) -> str:
    """``1 page``, ``20 pages``."""
    return f"{pages} page" if pages == 1 else f"{pages} pages"


def dollars(sums: Mapping[str, float]) -> str:
    """A cost, as text."""
    return f"${sums.get('cost_usd', 0.0):.4f}"


# ---------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------


def resume_command() -> str:
    """The command that resumes: this one, without options that must act only once."""
    words = iter(sys.orig_argv)
    kept = list[str]()
    for word in words:
        if word == "--redo":
            next(words, None)
        elif word != "--fresh" and not word.startswith("--redo="):
            kept.append(word)
    return shlex.join(kept)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog=command_of("scan_book"),
        description="Extract and correct the pages of a book, resumably: stop or kill it, and "
        "the same command goes on.",
        epilog="exit codes: 0 complete, 69 complete but for what failed for good, "
        "75 there is work left, 130 and 143 stopped at once, "
        "1 it cannot work, 2 a bad command line",
    )
    parser.add_argument("text", type=Path, nargs="?", help="a text file (the licence of Python)")
    parser.add_argument("--out", type=output_folder, required=True, help="folder of the pages")
    parser.add_argument("--store", help="folder or URL of the checkpoints (OUT/book.ckpt)")
    parser.add_argument("--start", type=PAGE, metavar="N", help="first page of those to work on")
    parser.add_argument("--end", type=PAGE, metavar="N", help="last page of those to work on")
    parser.add_argument(
        "--redo", type=_pages, default=[], metavar="PAGES", help="do these again: 17,203"
    )
    parser.add_argument(
        "--workers", type=whole_number(1, 1_000), metavar="N", default=4, help="pages at once (4)"
    )
    parser.add_argument(
        "--lines-per-page", type=PAGE, default=12, metavar="N", help="lines of a page (12)"
    )
    parser.add_argument(
        "--model", default="pretend-1", metavar="NAME", help="name of the model (pretend-1)"
    )
    parser.add_argument(
        "--latency", type=seconds(), default=0.0, metavar="S", help="s that an answer takes (0)"
    )
    parser.add_argument("--fresh", action="store_true", help="archive what is there, begin again")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="file for a line for each page that is begun"
    )
    add_limits(parser, has_cost=True)
    options = parser.parse_args(words)
    if options.start and options.end and options.start > options.end:
        parser.error("--start is behind --end")
    return options


def _pages(text: str) -> list[int]:
    return [PAGE(part.strip()) for part in text.split(",")]


def main() -> int:
    """Run the command; an error is one line, not a traceback."""
    options = parse_options()
    open_stderr()
    try:
        if options.log is not None:
            log.addHandler(logging.FileHandler(options.log, encoding="utf-8"))
            log.setLevel(logging.INFO)
            log.propagate = False
        return trio.run(scan, options)
    except EXPECTED as error:
        return explain(error)


if __name__ == "__main__":
    sys.exit(main())
