"""The peers that the benchmarks measure us against, each a program of its own.

Their dependencies outnumber ours tenfold and must not meet ours, so they live in a virtual
environment that the benchmark makes once. The programs beside this file run under that
environment's Python, import nothing from this repository, and print one JSON object as the last
line on stdout.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PEERS_FOLDER = Path(__file__).parent
REQUIREMENTS = PEERS_FOLDER / "requirements.txt"
_COMPLETE = "complete"


def ensure_environment(folder: Path, requirements: Path = REQUIREMENTS) -> Path:
    """The Python of an environment with some peers in it, made under ``folder`` if need be.

    The environment is named by the hash of the requirements and of this Python's version, and
    marked complete after the installation: a change makes a new one, and one whose making was cut
    short is made again. Two callers must not make the same one at the same time.

    Args:
        folder: A cache folder, made if it is missing.
        requirements: What to install; those of the large peers have files of their own.

    Returns:
        The path of the environment's Python.

    Raises:
        subprocess.CalledProcessError: The installation failed; pip's own words are on stderr.
    """
    identity = requirements.read_bytes() + sys.version.encode()
    environment = folder.absolute() / f"peers-{hashlib.sha256(identity).hexdigest()[:12]}"
    python = environment / "bin" / "python"
    if not (environment / _COMPLETE).exists():
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # stdout belongs to the benchmark's figures.
        subprocess.run(
            [*pip, "install", "--requirement", str(requirements)], check=True, stdout=sys.stderr
        )
        (environment / _COMPLETE).touch()
    return python


def with_version(python: Path, package: str) -> str:
    """A package of a peers' environment with its version, as ``scrapy 2.19.0``."""
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    done = subprocess.run(
        [str(python), "-c", code, package], check=True, stdout=subprocess.PIPE, text=True
    )
    return f"{package} {done.stdout.strip()}"
