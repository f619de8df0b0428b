"""`doctor`: what it finds, what it doubts, and that it leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.tools import Terminal, make_damaged, make_gh, make_run
from tests.opening import begin
from tests.remote.site import F, open_site
from trio_ckpt._maintenance import doctor
from trio_ckpt._maintenance.doctor import examine, file_system_of, judge_fsync
from trio_ckpt.abc import Severity
from trio_ckpt.cli._doctor import _store_findings
from trio_ckpt.stores import open_store
from trio_ckpt.stores._local.files import hashed_name
from trio_ckpt.stores._local.locks import lock_run


def checks(document: Any) -> dict[str, str]:
    return {one["check"]: one["verdict"] for one in document["checks"]}


def test_a_machine_is_looked_at_and_nothing_is_left_behind(
    run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run("doctor", "--json")
    found = checks(said.json)
    assert {"versions", "locks", "open files", "file system", "space", "fsync", "WAL"} <= set(found)
    assert os.listdir(tmp_path) == []
    assert said.code == (1 if "bad" in found.values() else 0)
    plain = run("doctor")
    assert "fsync" in plain.out
    assert plain.lines[-1] == "all is well" or "bad" in plain.lines[-1]


def test_a_sound_store_is_sound(run: Terminal, tmp_path: Path) -> None:
    make_gh(tmp_path / "gh.ckpt")
    said = run("doctor", tmp_path / "gh.ckpt", "--json")
    found = checks(said.json)
    assert found["store"] == found["runs"] == found["run gh-2025"] == found["orphans"] == "good"
    text = next(c["finding"] for c in said.json["checks"] if c["check"] == "run gh-2025")
    assert text == "6 streams, 17 batches confirmed; no process has it"


def test_a_store_that_is_not_there_is_bad_and_is_not_made(run: Terminal, tmp_path: Path) -> None:
    said = run("doctor", tmp_path / "none", "--json")
    assert said.code == 1
    assert checks(said.json)["store"] == "bad"
    assert not (tmp_path / "none").exists()


def test_a_damaged_run_is_named_and_the_others_are_looked_at(run: Terminal, tmp_path: Path) -> None:
    make_damaged(str(tmp_path / "s"), "bad")
    make_run(tmp_path / "s", "good", {})
    said = run("doctor", tmp_path / "s", "--json")
    found = checks(said.json)
    assert said.code == 1
    assert (found["run bad"], found["run good"]) == ("bad", "good")


def test_a_silent_owner_is_doubted(run: Terminal, tmp_path: Path) -> None:
    make_gh(tmp_path / "s")
    lock = lock_run(tmp_path / "s", "gh-2025")
    try:
        said = run("doctor", tmp_path / "s", "--json")
    finally:
        lock.release()
    assert checks(said.json)["run gh-2025"] == "doubt"
    assert f"process {os.getpid()} on " in said.out


@pytest.mark.parametrize("scheme", ["sqlite", "json"])
def test_blobs_that_no_record_names_are_counted(run: Terminal, tmp_path: Path, scheme: str) -> None:
    async def leave() -> None:
        store = await open_store(f"{scheme}:{tmp_path / 's'}")
        async with store.lock_run("r"):
            pass
        await store.aclose()
        orphan = tmp_path / "s/blobs" / hashed_name("r") / hashlib.sha256(b"lost").hexdigest()
        orphan.parent.mkdir()
        orphan.write_bytes(b"lost")  # a kill left it

    trio.run(leave)
    said = run("doctor", tmp_path / "s", "--json")
    assert said.code == 0
    orphans = next(c for c in said.json["checks"] if c["check"] == "orphans")
    assert orphans["verdict"] == "note"
    assert orphans["finding"] == "1 blob (4 bytes) that no record names"


def test_a_disk_faster_than_any_is_doubted_and_said_to_be_no_proof() -> None:
    assert judge_fsync(5e-6, 1e-5).severity is Severity.DOUBT
    assert "only pulling the plug tells" in judge_fsync(5e-6, 1e-5).advice
    assert judge_fsync(2e-4, 1e-3).severity is Severity.GOOD
    assert judge_fsync(0.2, 0.5).severity is Severity.NOTE


@pytest.mark.parametrize(
    ("kind", "verdict"), [("tmpfs", "bad"), ("nfs4", "bad"), ("ext4", "good"), (None, "good")]
)
def test_a_file_system_that_forgets_or_is_far_away_is_bad(
    kind: str | None, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "file_system_of", lambda _place: kind)
    (found,) = [one for one in examine(tmp_path) if one.where == "file system"]
    assert found.severity.value == verdict


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/")) not in (None, "proc")


def test_little_room_and_few_files_are_doubted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOW_BYTES", 2**80)
    monkeypatch.setattr(doctor, "FEW_DESCRIPTORS", 2**40)
    found = {one.where: one.severity for one in examine(tmp_path)}
    assert found["space"] is Severity.DOUBT
    assert found["open files"] in (Severity.DOUBT, Severity.GOOD)  # good where there is no limit


def test_a_folder_that_is_not_there_stands_for_its_parent(tmp_path: Path) -> None:
    found = {one.where: one.what for one in examine(tmp_path / "a" / "b")}
    assert found["file system"].startswith(f"{tmp_path} is ")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = {one.where: one.severity for one in examine(tmp_path)}
    assert found["writing"] is Severity.BAD
    assert "fsync" not in found


def test_a_long_chain_of_states_is_told_with_what_merges_it(run: Terminal, tmp_path: Path) -> None:
    async def save(count: int) -> None:
        state = {"table": dict.fromkeys(map(str, range(20_000)), 0)}  # large: a chain
        async with (
            begin(tmp_path / "s") as opened,
            opened.open_stream("s", state=state) as stream,
        ):
            for number in range(count):
                stream.state["table"]["7"] = number
                await stream.save()

    trio.run(save, 20)
    assert "saved ones" not in run("doctor", tmp_path / "s").out
    trio.run(save, 20)
    said = run("doctor", tmp_path / "s")
    assert "the state of s is read from" in said.out
    assert "trio-ckpt compact sqlite:" in said.out
    assert run("compact", tmp_path / "s", "r", "--yes").code == 0
    assert "saved ones" not in run("doctor", tmp_path / "s").out


async def test_a_job_that_saves_nothing_is_told_while_it_runs(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    async with open_site(store) as site, site.client() as client:
        await client.submit(F + "wait", ["x"], job_id="job-bare")
        await client.submit(F + "wait", ["y"], job_id="job-saving", checkpoint_interval_s=1.0)
        told = [one async for one in _store_findings(str(tmp_path / "s"))]
    notes = [one.where for one in told if "checkpoint_interval_s" in one.advice]
    assert notes == ["run job-bare"]
    await store.aclose()


def test_the_password_of_an_archive_is_not_shown(run: Terminal, tmp_path: Path) -> None:
    async def save() -> None:
        async with (
            begin(tmp_path / "s") as opened,
            opened.open_stream("s", state={"number": 1}) as stream,
        ):
            await stream.save()

    trio.run(save)
    said = run("compact", tmp_path / "s", "r", "--archive", "postgresql://me:sesame@host/db")
    assert "move to postgresql://me:***@host/db" in said.err
    assert "sesame" not in said.out + said.err
