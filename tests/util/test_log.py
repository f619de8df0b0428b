"""No line of a log can be forged: what comes from outside is written out on the line it is in."""

from __future__ import annotations

import ast
import importlib
import logging
from contextlib import suppress
from pathlib import Path

import pytest

import trio_ckpt
from tests.cli.tools import Terminal, batches, failed, make_run
from tests.loggers import LOGGERS, made_in
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt.stores import MemoryStore

PACKAGE = Path(trio_ckpt.__file__).parent
EVIL = "a\n2026-01-01 CRITICAL forged\r\x1b[2J\x9b31m\u202e[red]b[/red]"


def called(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == name
    ]


def sources() -> list[tuple[Path, ast.AST]]:
    return [(path, ast.parse(path.read_text("utf-8"))) for path in PACKAGE.rglob("*.py")]


def test_every_logger_of_the_library_is_guarded() -> None:
    """Each module gets its own by `get_logger`; three calls look at loggers of all modules."""
    others = {
        "trio_ckpt/_util/log.py": ["getLogger(name)"],
        "trio_ckpt/cli/_remote.py": ['getLogger("trio_ckpt.remote")'],
        "trio_ckpt/testing/_explore.py": ['getLogger("trio_ckpt")'],
    }
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE.parent))
        assert made_in(path) == others.get(name, ["get_logger(__name__)"] * bool(made_in(path)))
    assert len(LOGGERS) > 40
    for logger in LOGGERS:
        importlib.import_module(logger)
        assert logging.getLogger(logger).filters, logger


@pytest.mark.parametrize("name", LOGGERS)
def test_a_record_is_one_line_and_its_traceback_begins_no_other(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However it comes in: as an argument, as an exception, in a traceback."""
    importlib.import_module(name)
    log = logging.getLogger(name)
    with caplog.at_level(logging.DEBUG, name):
        log.info("%s was there: %s", EVIL, ValueError(EVIL))
        log.info("%r was there", EVIL)
        log.info("a plain line, %d", 3)
        try:
            raise ValueError(EVIL)
        except ValueError:
            log.exception("it failed")
    for line in caplog.text.splitlines():
        assert line.isprintable(), line
        assert not line.startswith("2026-01-01 CRITICAL")
    assert caplog.records[2].args == (3,)  # what is harmless is left as it was


async def test_nothing_that_a_program_hands_over_forges_a_line(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Names of files, errors, reasons, configurations; ids and keys with such are refused."""
    caplog.set_level(logging.DEBUG)
    store = MemoryStore()
    for _ in range(2):
        async with trio_ckpt.open_run(
            "r",
            store=store,
            config={"model": EVIL + str(_)},
            tunable=["model"],
            output_dir=tmp_path / "out",
            handle_signals=False,
        ) as run:
            with pytest.raises(ValueError, match="control character"):
                await run.open_stream(EVIL).__aenter__()
            (tmp_path / "out" / EVIL.replace("/", "|")).write_text("a stranger")
            async with run.open_stream("\u202egnp", retry=trio_ckpt.RetryTable()) as stream:
                async for batch in stream.batches(range(2)):
                    batch.skip(EVIL)
            with suppress(trio_ckpt.BatchFailedError):
                async with run.open_stream("b") as stream:
                    async for batch in stream.batches(range(1)):
                        batch.fail(EVIL)
    assert caplog.records
    for record in caplog.records:
        assert record.getMessage().isprintable(), record


def test_no_terminal_is_steered_by_what_a_store_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command that tells of a run whose every text is hostile."""
    run = Terminal(capsys)
    evil = EVIL.replace("\n", "\r")
    streams = {
        ("\u202egnp [red]", "x"): [
            *batches(2, metadata={evil: EVIL}, totals={EVIL: 1}),
            failed(EVIL, retryable=False, kind=EVIL),
        ],
        ("b",): [
            *batches(2),
            Record(kind=RecordKind.SKIP, at=1.0, index=5),
            Record(kind=RecordKind.NOTE, at=2.0, metadata={"reason": EVIL}),
        ],
    }
    store = tmp_path / "s"
    make_run(store, "[bold]run\u202e", streams)
    commands: list[list[object]] = [
        *(["ls", store], ["show", store], ["show", store, "--all"], ["explain", store, "--all"]),
        *(["watch", store], ["history", store], ["history", store, "--stream", "b"]),
        *(["doctor", store], ["show", store, EVIL], ["show", store, "--stream", EVIL]),
        *(["ls", EVIL], ["retry", store, EVIL, "--yes"], ["import", store, tmp_path / EVIL[:9]]),
        *(["compact", store, EVIL, "--yes"], ["show", store, "--nothing" + EVIL], [EVIL]),
        *(["export", store, EVIL, tmp_path / "x"], ["monitor", EVIL], ["reset", EVIL, EVIL]),
        ["prune", store, EVIL, "--keep", "1", "--yes"],
        ["rewind", store, EVIL, "--to", "1", "--yes"],
    ]
    for command in commands:
        said = run(*command)
        for line in (said.out + said.err).split("\n"):
            assert line.isprintable(), (command, line)
            assert not line.startswith("2026-01-01 CRITICAL"), command
    assert "[red]" in run("show", store, "--all").out  # shown as it is, not as a colour


# -- queries ------------------------------------------------------------------------------


def test_no_query_is_built_from_a_name() -> None:
    """What SQL the library runs is written down in it; values go in as parameters.

    What is put together is of the library's own constants, and only where a module is loaded:
    no call of ``execute`` gets a text that is made there and then, but for settings whose values
    are numbers or words of ours, and for statements that repeat ``?`` for a number of rows.
    """
    ours = {
        "f'PRAGMA cache_size = -{CACHE_KIB}'",
        "f'PRAGMA synchronous = {wanted}'",
        "f'PRAGMA application_id = {APPLICATION_ID}'",
        "f'PRAGMA user_version = {FORMAT_VERSION}'",
        "f'PRAGMA integrity_check({MAX_PROBLEMS})'",
        "append_rows(len(part))",
        "move_heads(len(part))",
        "in_schema(statement, schema)",  # the name of a schema, which was checked
        "self.driver.spell(statement)",  # a constant, with its values as a driver spells them
        "self.driver.spell(TAKE)",
        "driver.spell(READ)",
    }
    made: set[str] = set()
    count = 0
    for path, tree in sources():
        for name in ("execute", "_execute", "executemany", "executescript", "query"):
            for call in called(tree, name):
                count += 1
                text = call.args[0]
                if isinstance(text, ast.JoinedStr | ast.BinOp | ast.Call):
                    made.add(ast.unparse(text))
                elif isinstance(text, ast.Name):  # a constant, or one out of a table of them
                    assert text.id.isupper() or text.id == "statement", f"{path}: {text.id}"
    assert count > 20
    assert made <= ours
