"""Write the tables of the code, and what the long sweeps found, into the documentation.

    python docs/diagrams.py

replaces what is between the markers of the pages in `PAGES`.  A test sees that they are up
to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import kept, targets  # noqa: E402  # the path comes first
from docs.peers import comparison_rows  # noqa: E402
from tests.fuzz.found import FOUND  # noqa: E402
from tests.fuzz.table import TARGETS  # noqa: E402
from tests.proof import read_rows  # noqa: E402  # the path comes first
from trio_ckpt._commit.exits import GATE, Exit  # noqa: E402  # the path comes first
from trio_ckpt._tokens.token import TRANSITIONS, TokenState  # noqa: E402

EXPLANATION = ROOT / "docs" / "explanation"


def token_diagram() -> str:
    """The token's states as a tree that begins at PENDING."""
    lines = [TokenState.PENDING.name, *_branches(TokenState.PENDING, {TokenState.PENDING})]
    return "\n".join(["```text", *lines, "```"])


def _branches(state: TokenState, seen: set[TokenState]) -> list[str]:
    """The events of a state, a line each, and below each what follows from there."""
    by_target: dict[TokenState, list[str]] = {}
    for event, target in TRANSITIONS[state].items():
        by_target.setdefault(target, []).append(event.value)
    labels = {target: ", ".join(events) for target, events in by_target.items()}
    width = max(map(len, labels.values()), default=0)
    lines: list[str] = []
    for position, (target, label) in enumerate(labels.items()):
        is_last = position == len(labels) - 1
        is_new = target not in seen
        seen.add(target)
        note = " (final)" if not TRANSITIONS[target] else "" if is_new else " (again)"
        arrow = "─" * (width - len(label) + 1) + "▶"
        lines.append(f"{'└' if is_last else '├'}─ {label} {arrow} {target.name}{note}")
        below = _branches(target, seen) if is_new else []
        indent = (" " if is_last else "│") + " " * (width + 6)
        lines += [f"{indent}{line}" for line in below]
    return lines


def gate_table() -> str:
    """The gate: a row for each attempt, a column for each way out of it."""
    rows = [
        ["attempt", *(way.value for way in Exit)],
        ["---"] * (len(Exit) + 1),
        *([state.name, *(actions[way].value for way in Exit)] for state, actions in GATE.items()),
    ]
    return _table(rows)


KINDS = ("sqlite", "json", "plain", "far")  # what many figures are of: a column each
FUZZING = ("fuzz ", "mutate ")
"""How the rows of proof.json begin that are of fuzzing: guided, and not."""

MANY = 8  # more figures than these are rows, not columns


def proof_tables() -> str:
    """What the long sweeps found when they were run last: those of one shape in one table."""
    shapes: dict[tuple[str, ...], dict[str, dict[str, int | str]]] = {}
    for name, figures in read_rows().items():
        if name.startswith(FUZZING):
            continue
        names = tuple(what for what in figures if what not in ("day", "where"))
        shapes.setdefault(names, {})[name] = figures
    tables = list[str]()
    for names, sweeps in shapes.items():
        if len(names) > MANY:
            tables += [_tall_table(name, names, figures) for name, figures in sweeps.items()]
        else:
            rows = [["sweep", *names, "on"], ["---", *["--:"] * len(names), "---"]]
            for name, figures in sweeps.items():
                rows.append([name, *(_shown(figures[what]) for what in names), _when(figures)])
            tables.append(_table(rows))
    return "\n\n".join(tables)


def fuzz_table() -> str:
    """What fuzzing found when it was run last: a row for each target, and the sum of all."""
    kept_rows = read_rows()
    rows = [["target", *(way.strip() for way in FUZZING), "findings", "peak MiB", "seconds", "on"]]
    rows.append(["---", *["--:"] * (len(FUZZING) + 3), "---"])
    names = [name for name in kept_rows if name.startswith(FUZZING)]
    for target in sorted(TARGETS):
        found = {way: kept_rows.get(f"{way}{target}", {}) for way in FUZZING}
        ran = [figures for figures in found.values() if figures]
        if not ran:
            rows.append([target, *[""] * (len(FUZZING) + 3), "not run for long"])
            continue
        rows.append(
            [
                target,
                *(_shown(figures.get("executions", "")) for figures in found.values()),
                _shown(sum(int(figures["findings"]) for figures in ran)),
                _shown(max(int(figures["peak MiB"]) for figures in ran)),
                _shown(sum(int(figures["seconds"]) for figures in ran)),
                " and ".join(sorted({_when(figures) for figures in ran})),
            ]
        )
    executions = sum(int(kept_rows[name]["executions"]) for name in names)
    return f"{_table(rows)}\n\n{executions:,} inputs in all."


def found_table() -> str:
    """What fuzzing found, which was mended; the tests read each of these inputs again."""
    return _table([["target", "what an input did"], ["---", "---"], *(row[:2] for row in FOUND)])


def performance_table(run: kept.Run | None = None) -> str:
    """What a run of the benchmarks measured: a row for each target, and on what.

    Args:
        run: Which; None: the one that was kept.
    """
    run = run or kept.read_run()
    rows = [
        ["work", "control of the same run", "best peer of the same run", "measured", "target", ""],
        ["---", "---", "---", "--:", "--:", "---"],
    ]
    for row in targets.ROWS:
        found = run.found.get(row.name)
        if found is None:
            peer = f"{row.peer}: not measured" if row.peer else ""
            rows.append([row.name, row.control, peer, "not measured", row.target, ""])
            continue
        peer = found.peer or (f"{row.peer}: not measured" if row.peer else "")
        met = "met" if row.is_met(found.value) else "**not met**"
        control, measured = f"{row.control}: {found.control}", f"{found.value:,.5g} {row.unit}"
        rows.append([row.name, control, peer, measured, row.target, met])
    return "\n\n".join([_table(rows), _of_run(run)])


def comparison_table(run: kept.Run | None = None) -> str:
    """This library beside other tools.

    Args:
        run: Which run of the benchmarks the figures are of; None: the one that was kept.
    """
    return _table(comparison_rows(run or kept.read_run()))


def _of_run(run: kept.Run) -> str:
    """When, where and with what a run of the benchmarks was."""
    where = run.machine
    built_on = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return (
        f"Run of {run.at} on {where['system']} {where['release']}, {where['architecture']}, "
        f"{where['cores']} cores ({where['cpu']}), load {where.get('load', 'unknown')} at its "
        f"start, with {built_on}. "
        f"Peers: {', '.join(run.peers) or 'none was measured'}."
    )


def _tall_table(name: str, names: tuple[str, ...], figures: dict[str, int | str]) -> str:
    """A sweep with many figures: a row for each, a column for each kind that it is of."""
    cells: dict[str, dict[str, str]] = {}
    for what in names:
        parts = what.split(", ")
        kind = next((part for part in parts if part in KINDS), "all")
        label = ", ".join(part for part in parts if part != kind)
        cells.setdefault(label, {})[kind] = _shown(figures[what])
    kinds = [kind for kind in (*KINDS, "all") if any(kind in row for row in cells.values())]
    rows = [[f"{name}, {_when(figures)}", *kinds], ["---", *["--:"] * len(kinds)]]
    rows += [[label, *(row.get(kind, "") for kind in kinds)] for label, row in cells.items()]
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _when(figures: dict[str, int | str]) -> str:
    return f"{figures['day']}, {figures['where']}"


def _shown(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"comparison": comparison_table},
    EXPLANATION / "comparison.md": {"comparison": comparison_table},
    EXPLANATION / "how-it-works.md": {"token": token_diagram, "gate": gate_table},
    EXPLANATION / "guarantees.md": {"proof": proof_tables},
    EXPLANATION / "fuzzing.md": {"fuzz": fuzz_table, "found": found_table},
    EXPLANATION / "performance.md": {"performance": performance_table},
}


def render(page: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The text of a page with these blocks as they are now.

    Raises:
        ValueError: a block has no markers.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: made by docs/diagrams.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = f"{begin}\n\n{block()}\n\n{end}"
        page, count = pattern.subn(lambda _match, text=text: text, page)
        if count != 1:
            raise ValueError(f"the markers of {name!r} are there {count} times")
    return page


if __name__ == "__main__":
    for path, its_blocks in PAGES.items():
        path.write_text(render(path.read_text(encoding="utf-8"), its_blocks), encoding="utf-8")
