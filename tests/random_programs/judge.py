"""What must be so after each session: records, files, what was told, what the library says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.fork_server import Told
from tests.random_programs.reader import (
    Entry,
    Key,
    Ledger,
    Records,
    archived,
    clean,
    file_damage,
    files_below,
    read_records,
)
from tests.random_programs.session import OUT, RUN, STORE
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt.abc import Finding, RunView
from trio_ckpt.outputs._tree import TEMP_NAME
from trio_ckpt.stores import open_store

BY_A_REPAIR = "put back by a repair: its output is damaged"
OF_DAMAGE = re.compile(
    r"(.+) (?:is .+, and later batches build on it|was shortened to [\d,]+ bytes?)"
)


class ViolationError(AssertionError):
    """Something is not as it must be."""


def demand(claim: object, what: str, *about: object) -> None:
    if not claim:
        raise ViolationError(": ".join([what, *map(str, about)]))


@attrs.define
class Judge:
    """Looks at a run after each of its sessions.

    Attributes:
        root: Where its store and its outputs are.
        kind: Of the store.
        damaged: Confirmed files that were damaged from outside, as they were recorded.
        shortened: Append files that were.
        reasons: For which batches were asked to be put back.
        durable: Attempts that the program knew to be durable, by stream.
        ledgers: What the records add up to.
    """

    root: Path
    kind: str
    damaged: set[tuple[str, str]] = attrs.field(factory=set[tuple[str, str]])
    shortened: set[str] = attrs.field(factory=set[str])
    reasons: set[str] = attrs.field(factory=set[str])
    durable: set[tuple[Key, str]] = attrs.field(factory=set[tuple[Key, str]])
    generation: int = 0
    records: Records = attrs.field(factory=dict[Key, list[Entry]])
    ledgers: dict[Key, Ledger] = attrs.field(factory=dict[Key, Ledger])

    @property
    def folder(self) -> Path:
        return self.root / OUT

    @property
    def is_sound(self) -> bool:
        """Whether no damage is left that is not noticed yet."""
        standing = [file for ledger in self.ledgers.values() for file in _files(ledger)]
        return not any(file_damage(self.folder, file) for file in standing) and all(
            self._length(path) >= size
            for ledger in self.ledgers.values()
            for path, size in ledger.sinks.items()
        )

    def look(self, ended: Told, *, begins_again: bool = False) -> None:
        """Judge what a session or a command has left."""
        demand(not ended.is_late, "it hangs")
        before = self.records
        generation, self.records = read_records(self.root / STORE, RUN)
        if generation != self.generation:
            demand(begins_again, "the run was begun again", generation)
            self.generation, before = generation, {}
            self.durable.clear()
        self.reasons |= {str(reason) for _, reason in ended.words("puts back")}
        self.durable |= {(tuple(key), str(name)) for key, name in ended.words("is durable")}
        self.ledgers = {
            key: self._added_up(key, entries)
            for key, entries in self.records.items()
            if key and not key[0].startswith("@")
        }
        self._nothing_lost()
        self._nothing_twice(before, ended)
        for ledger in self.ledgers.values():
            self._files_are_there(ledger)
            self._lines_are_there(ledger)
        if ended.code >= 0:
            self._kept_aside(before)
            if ended.words("worked"):
                self._tidy()
            for key, said in ended.words("ends with"):
                self._agrees_at_the_end(self.ledgers[tuple(key)], said)
        trio.run(self._library_agrees)

    # -- records ------------------------------------------------------------------------------

    def _added_up(self, key: Key, entries: list[Entry]) -> Ledger:
        ledger = Ledger(key)
        for entry in entries:
            if entry.kind == "redo":
                self._is_justified(ledger, entry)
            ledger.add(entry)
        return ledger

    def _is_justified(self, ledger: Ledger, entry: Entry) -> None:
        """Batches are re-queued because the program asked, or because their files were damaged."""
        reason = str(entry.metadata["reason"])
        if reason in self.reasons:
            return
        named = OF_DAMAGE.fullmatch(reason)
        path = entry.metadata.get("path") or (named and named[1])
        if path in self.shortened:
            return
        files = {
            (file.path, file.sha256)
            for index in entry.steps
            if index in ledger.standing
            for file in ledger.standing[index].files
        }
        # A damaged batch is moved as a whole, so a kill before its record leaves none of its files.
        if reason not in (BY_A_REPAIR, "missing"):
            files = {file for file in files if file[0] == path}
        is_shortened = reason == BY_A_REPAIR and self.shortened
        demand(files & self.damaged or is_shortened, "put back for no reason", ledger.key, entry)

    def _nothing_lost(self) -> None:
        """What the program knew to be durable is in a record."""
        saved = {
            (key, str(entry.metadata.get("name")))
            for key, entries in self.records.items()
            for entry in entries
            if entry.kind == "batch"
        }
        demand(self.durable <= saved, "lost", sorted(self.durable - saved))

    def _nothing_twice(self, before: Records, ended: Told) -> None:
        """What was done before the session runs again only if it was put back in it."""
        for parts, index, name in ended.words("begins"):
            key = tuple(parts)
            known = before.get(key, [])
            was = Ledger.of(key, known)
            if index in was.standing or index in was.skipped:
                back = [
                    entry
                    for entry in self.records[key][len(known) :]
                    if entry.kind in ("redo", "retry") and index in entry.steps
                ]
                demand(back, "done twice", name)

    # -- files --------------------------------------------------------------------------------

    def _files_are_there(self, ledger: Ledger) -> None:
        names = list[str]()
        for entry in ledger.in_order():
            names.append(str(entry.metadata["name"]))
            for file in entry.files:
                damage = file_damage(self.folder, file)
                if damage is not None:
                    # Where one file of a batch is damaged, all are moved before that is saved.
                    is_known = any((f.path, f.sha256) in self.damaged for f in entry.files)
                    demand(is_known, f"a confirmed file is {damage}", file.path, entry)
                    continue
                says = json.loads((self.folder / file.path).read_bytes())
                if "names" in says:
                    demand(says["names"] == names, "a state is not what was confirmed", file.path)
                else:
                    _is_of(entry, says)

    def _lines_are_there(self, ledger: Ledger) -> None:
        for path, size in ledger.sinks.items():
            if path in self.shortened and self._length(path) < size:
                continue
            expected = [
                str(entry.metadata["name"])
                for entry in ledger.in_order()
                for name, _ in entry.lines
                if name == path
            ]
            content = (self.folder / path).read_bytes()[:size]
            found = [json.loads(line)["name"] for line in content.splitlines()]
            demand(found == expected, "lines are not those of what is confirmed", path, found)

    def _length(self, path: str) -> int:
        file = self.folder / path
        return file.stat().st_size if file.exists() else 0

    def _tidy(self) -> None:
        """No half-written file is left."""
        files = list(files_below(self.folder))
        temporary = [name for name in files if TEMP_NAME.fullmatch(name.rpartition("/")[2])]
        demand(not temporary, "half-written files are left", temporary)

    def _kept_aside(self, before: Records) -> None:
        """What was taken back lies in the archive."""
        kept = archived(self.folder)
        for key, entries in self.records.items():
            ledger = Ledger(key)
            for number, entry in enumerate(entries):
                if entry.kind == "redo" and number >= len(before.get(key, [])):
                    for index in entry.steps & set(ledger.standing):
                        for file in ledger.standing[index].files:
                            is_kept = file.sha256 in kept or not file_damage(self.folder, file)
                            is_known = (file.path, file.sha256) in self.damaged
                            demand(is_kept or is_known, "taken back and gone", file.path, entry)
                if key:
                    ledger.add(entry)

    # -- what the library says ----------------------------------------------------------------

    def _agrees_at_the_end(self, ledger: Ledger, said: Mapping[str, Any]) -> None:
        expected = {
            "confirmed": sorted(ledger.standing),
            "skipped": sorted(ledger.skipped),
            "records": ledger.records,
            "status": said["status"],
        }
        demand(said == expected, "in memory it was otherwise", ledger.key, said, expected)

    async def _library_agrees(self) -> None:
        store = await open_store(f"{self.kind}:{self.root / STORE}")
        try:
            view = await store.load_run(RUN)
            if view is not None:
                for ledger in self.ledgers.values():
                    self._agrees(ledger, view)
            if self.is_sound:
                found = [finding async for finding in check_all(store) if finding.is_damage]
                left = [finding for finding in found if not self._is_tail(finding)]
                demand(not left, "a false alarm", *left)
        finally:
            await store.aclose()

    def _is_tail(self, finding: Finding) -> bool:
        return finding.path in self.shortened and finding.batch_index is None

    def _agrees(self, ledger: Ledger, view: RunView) -> None:
        progress = view.streams[ledger.key].progress
        sums = {name: amount.value for name, amount in progress.totals.items()}
        spent = {name: amount.value for name, amount in progress.spent.items()}
        sinks = {path: size for path, size in progress.sinks.items() if size}
        for what, said, expected in (
            ("confirmed", set(progress.confirmed), set(ledger.standing)),
            ("skipped", set(progress.skipped), set(ledger.skipped)),
            ("records", progress.records, ledger.records),
            ("totals", sums, _floats(ledger.totals, sums)),
            ("spent", spent, _floats(clean(ledger.spent), spent)),
            ("append files", sinks, ledger.sinks),
            ("cursor", progress.cursor, ledger.cursor),
        ):
            demand(said == expected, f"the library's {what}", ledger.key, said, expected)


def _files(ledger: Ledger) -> list[Any]:
    return [file for entry in ledger.standing.values() for file in entry.files]


def _floats(sums: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(sums.get(name, 0)) for name in {*sums, *names}}


def _is_of(entry: Entry, says: Mapping[str, Any]) -> None:
    """A file says itself which attempt made it, and how much that produced."""
    totals = {name: float(amount) for name, amount in entry.totals.items()}
    demand(
        (says["name"], says["records"]) == (entry.metadata["name"], entry.records)
        and says["totals"] == totals,
        "a file is of another attempt than its record",
        says,
        entry,
    )
