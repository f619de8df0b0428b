"""What is counted reads right: one of a thing is not said to be several."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.tools import Terminal, batches, complete, ended, failed, make_run, session
from trio_ckpt import open_run
from trio_ckpt._journal.record import Record
from trio_ckpt._util import text as _words
from trio_ckpt.stores import MemoryStore

COUNTED = (
    "batches|blobs|bytes|checkpoints|connections|files|generations|items|jobs|lines|names|"
    "outputs|pages|problems|records|runs|sessions|snapshots|states|streams|tokens|workers"
)
ONE_OF_MANY = re.compile(
    rf"\b1 ({COUNTED})\b|\b0 \w+ is\b|\b1 \w+ are\b|\b({COUNTED}) \d+ (are|were)\b"
)


def check_counts(text: str) -> None:
    assert ONE_OF_MANY.search(text) is None, text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("a\nb\r\n\n  c;\nd", "a; b; c; d"),
        ("changed:\n  model\n  rate", "changed: model; rate"),
        ("tab\there\n\x1b[2J", r"tab\there; \x1b[2J"),
        ("\n \n", ""),
    ],
)
def test_a_text_of_several_lines_is_read_on_one(text: str, line: str) -> None:
    assert _words.one_line(text) == line


async def test_a_resume_of_one_batch_reads_right(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    caplog.set_level("INFO")
    for _ in range(3):
        async with open_run("r", store=store) as it, it.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete(records=1)
    assert "resumes: 1 batch done, 0 skipped, 0 to retry, 1 record in all; 1 stream; " in (
        caplog.text
    )
    assert "resuming: 1 of 1 batch done, 0 left" in caplog.text
    check_counts(caplog.text)


COMMANDS = {
    "ls": ["ls", "{store}"],
    "show": ["show", "{store}", "r"],
    "stream": ["show", "{store}", "r", "--stream", "s"],
    "watch": ["watch", "{store}", "r"],
    "explain": ["explain", "{store}", "r"],
    "history": ["history", "{store}", "r", "--stream", "s"],
    "sessions": ["history", "{store}", "r"],
    "verify": ["verify", "{store}", "r", "--full"],
    "doctor": ["doctor", "{store}"],
    "export": ["export", "{store}", "r", "run.zip"],
}
RUNS = {
    "complete": complete(1, records=1),
    "open": batches(1, records=1),
    "failed": [*batches(1), failed("it is gone", retryable=True)],
    "for good": [failed("it is gone", retryable=False)],
}


@pytest.mark.parametrize("records", RUNS.values(), ids=RUNS)
def test_no_command_says_one_of_several(
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Terminal,
) -> None:
    monkeypatch.chdir(tmp_path)
    began = session()
    sessions = [began, ended(began, batches=1, records=1, skipped=1)]
    make_run(tmp_path / "one.ckpt", "r", {("s",): records}, sessions=sessions)
    for words in COMMANDS.values():
        said = run(*(word.format(store="one.ckpt") for word in words))
        assert said.code in (0, 1, 69, 75), (words, said.err)
        check_counts(said.out)
        check_counts(said.err)
