"""A write-ahead log of which SQLite would silently pass over a part is found."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from trio_ckpt.stores._sqlite.wal import NAME, check_wal

FRAME_BYTES = 4_096 + 24


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """A log of five saves; a copy, so that no connection checkpoints it."""
    source = tmp_path / "source"
    source.mkdir()
    with closing(sqlite3.connect(source / "state.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for number in range(4):
            connection.execute("INSERT INTO t VALUES (?)", (bytes([number]) * 100,))
        (tmp_path / NAME).write_bytes((source / NAME).read_bytes())
    return tmp_path / NAME


def said(wal: Path) -> list[tuple[bool, str]]:
    return [(finding.is_damage, finding.what) for finding in check_wal(wal.parent)]


def test_a_whole_log_is_whole(wal: Path) -> None:
    assert said(wal) == []


def test_a_missing_log_is_not_damage(tmp_path: Path) -> None:
    assert check_wal(tmp_path) == []


@pytest.mark.parametrize("at", [0, 9, 17, 30])
def test_a_damaged_beginning_takes_everything(wal: Path, at: int) -> None:
    content = bytearray(wal.read_bytes())
    content[at] ^= 4
    wal.write_bytes(content)
    ((is_damage, what),) = said(wal)
    assert is_damage
    assert "none of the saves in it count" in what


@pytest.mark.parametrize("inside", [0, 5, 9, 17, 24, 4_000])
def test_a_damaged_frame_takes_the_saves_behind_it(wal: Path, inside: int) -> None:
    content = bytearray(wal.read_bytes())
    content[32 + FRAME_BYTES + inside] ^= 4
    wal.write_bytes(content)
    ((is_damage, what),) = said(wal)
    assert is_damage
    assert "is damaged" in what
    assert "saves from there on are lost" in what


def test_the_last_save_cut_off_is_what_a_crash_leaves(wal: Path) -> None:
    content = wal.read_bytes()
    wal.write_bytes(content[:-100])
    ((is_damage, what),) = said(wal)
    assert not is_damage
    assert "a crash cut it off, or it is damaged" in what


def test_frames_of_an_older_log_behind_its_end_are_of_no_account(wal: Path) -> None:
    """SQLite restarts a log at its beginning, and leaves the old frames behind it."""
    content = wal.read_bytes()
    frame = bytearray(content[-FRAME_BYTES:])
    frame[8:16] = b"oldsalts"
    wal.write_bytes(content + frame + frame)
    assert said(wal) == []
