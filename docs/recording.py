"""Record a session in a terminal as a picture: a program is killed, and started again.

    python docs/recording.py

It runs the first program of the README for real, kills it with SIGKILL, starts it again, and writes
what was printed to `docs/_static/resume.svg`.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "_static" / "resume.svg"
KILLED_AT = "page 6"
FETCHED_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)  # a picture asks no other server

README = Path(__file__).parents[1] / "README.md"


def program() -> str:
    """The first program of the README."""
    return README.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]


def record(folder: Path) -> list[tuple[str, str]]:
    """Run the session in a folder; returns each command with what it printed."""
    (folder / "scan.py").write_text(program(), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "84"}
    start = [sys.executable, "scan.py"]
    process = subprocess.Popen(
        start, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(KILLED_AT):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    shown = [("python scan.py", "".join(lines) + "Killed\n")]
    for text, command in (
        ("trio-ckpt ls book.ckpt", [sys.executable, "-m", "trio_ckpt", "ls", "book.ckpt"]),
        ("python scan.py", start),
    ):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        shown.append((text, done.stdout.replace(f"{folder}/", "")))
    return shown


def picture(session: list[tuple[str, str]]) -> str:
    """The session as SVG."""
    console = Console(record=True, width=84, file=io.StringIO(), force_terminal=True)
    for command, printed in session:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text(printed.rstrip("\n")))
    console.print()  # the picture cuts the lower part of its last line
    svg = console.export_svg(title="killed, and started again", unique_id="trio-ckpt")
    return FETCHED_FONT.sub("", svg)


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        session = record(Path(folder))
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(session), encoding="utf-8")


if __name__ == "__main__":
    main()
