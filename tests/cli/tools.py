"""What the tests of the command share: stores with known content, and a way to type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import encode_progress
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import ErrorInfo, Opened, Output, Record, RecordKind, encode_record
from trio_ckpt._runs.config import config_digest
from trio_ckpt._util.plain import RUN_STREAM, StreamKey, encode_key
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.cli import main
from trio_ckpt.stores import open_store

T0 = datetime(2025, 11, 20, 12, 0, tzinfo=UTC).timestamp()
"""When the first session of every made run began."""

AGO = re.compile(r"\d+ d \d+ h ago")


def batch(index: int, **fields: Any) -> Record:
    """A confirmed batch, a second after the one before it."""
    return Record(**{"at": T0 + 10 + index, "index": index, "records": 10, **fields})


def opened(record: Record) -> Record:
    """The first record of a stream in the first session."""
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return Record(**{**fields, "opened": Opened(T0 + 5, 0)})


def batches(count: int, **fields: Any) -> list[Record]:
    """Confirmed batches from 0 on."""
    return [opened(batch(0, **fields)), *(batch(index, **fields) for index in range(1, count))]


def complete(count: int, **fields: Any) -> list[Record]:
    """Batches, and the word that they are all."""
    last = Record(kind=RecordKind.FINISH, at=T0 + 10 + count, last_index=count - 1)
    return [*batches(count, **fields), last]


def failed(message: str, *, retryable: bool, kind: str = "ForbiddenError") -> Record:
    """The word that a stream failed."""
    return Record(kind=RecordKind.FAIL, at=T0 + 50, error=ErrorInfo(kind, message, retryable, 3))


def session(number: int = 1, **fields: Any) -> Record:
    """The word that a session began."""
    config = fields.pop("config", {"model": "small"})
    facts = {
        "session": number,
        "runtime_s": 60.0 * (number - 1),
        "changes": [],
        "config": config,
        "config_digest": config_digest(config),
        "output_dir": None,
        "host": "box",
        "pid": 4711,
        "began": T0 + 3_600 * (number - 1),
        **fields,
    }
    return Record(kind=RecordKind.SESSION, at=facts["began"], metadata=facts)


def ended(began: Record, how: str = "ended", **counts: Any) -> Record:
    """The word that it ended, a minute later."""
    facts = began.metadata
    at = facts["began"] + 60
    told = {"batches": 0, "skipped": 0, "retries": 0, "records": 0, "totals": {}, "spent": {}}
    return Record(
        kind=RecordKind.END,
        at=at,
        metadata={**facts, "ended": how, "at": at, "counts": {**told, **counts}},
    )


def make_run(
    folder: Path | str,
    run_id: str,
    streams: Mapping[StreamKey, Iterable[Record]],
    sessions: Iterable[Record] = (),
    *,
    generation: int = 0,
) -> None:
    """Save records as a program would, at times that are known."""

    async def save() -> None:
        store = await open_store(str(folder))
        async with store.lock_run(run_id) as owner:
            run = RunKey(run_id, generation, owner)
            for key, records in {RUN_STREAM: sessions, **streams}.items():
                seal, text, progress = store.seal(run_id, generation, key), encode_key(key), None
                group: list[Checkpoint] = []
                progress = Progress()
                for sequence, record in enumerate(records, 1):
                    apply(progress, sequence, record)
                    payload = seal.close(sequence, encode_record(record))
                    group.append(Checkpoint(text, sequence, payload))
                if group:
                    fold = seal.close(-len(group), encode_progress(progress))
                    folds = [Fold(text, len(group), fold)]
                    assert await store.save(run, group, folds) == [None] * len(group)
        await store.aclose()

    trio.run(save)


def make_damaged(url: str, run_id: str) -> None:
    """A run with a record that another key sealed: its progress cannot be read."""

    async def save() -> None:
        store = await open_store(url)
        async with store.lock_run(run_id) as owner:
            key = encode_key(("a",))
            payload = store.seal("another", 0, ("a",)).close(1, encode_record(batch(0)))
            group = [Checkpoint(key, 1, payload)]
            assert await store.save(RunKey(run_id, 0, owner), group, []) == [None]
        await store.aclose()

    trio.run(save)


def make_gh(folder: Path, *, sessions: Iterable[Record] | None = None) -> None:
    """A collection with a stream of each kind."""
    first = session()
    counts = {"batches": 25, "records": 250, "spent": {"cost_usd": 0.5}}
    spent = {"cost_usd": 0.25}
    gone = failed("403: not yours", retryable=False)
    slow = failed("slow down", retryable=True, kind="RateLimitError")
    skip = Record(kind=RecordKind.SKIP, at=T0 + 30, index=4, attempts=3, error=ErrorInfo("E", "no"))
    make_run(
        folder,
        "gh-2025",
        {
            ("org/repo1", "pulls"): complete(4, spent=spent),
            ("org/repo1", "issues"): [*batches(3, expected=10), batch(5)],
            ("org/repo2", "pulls"): [*batches(3, spent=spent), gone],
            ("org/repo2", "issues"): [*batches(2), slow],
            ("org/repo3", "pulls"): [
                *batches(4),
                skip,
                Record(kind=RecordKind.FINISH, at=T0 + 31, last_index=4),
            ],
            ("org/repo4", "pulls"): [Record(kind=RecordKind.ADD, at=T0, position=0)],
        },
        [first, ended(first, **counts)] if sessions is None else sessions,
    )


def output(path: str, content: bytes, sha256: str, mtime_ns: int) -> Output:
    return Output(path, len(content), mtime_ns, sha256)


@attrs.frozen
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        """Its one document; anything else on the output is an error."""
        return json.loads(self.out)


@attrs.frozen
class Terminal:
    """Types commands."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Said:
        self.capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = self.capsys.readouterr()
        return Said(code, said.out, said.err)
