"""Everything that is checked or shown, one session each: `nox -l` lists them."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = False  # `tests_all` runs those that are there

PYPROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
VERSION_CLASSIFIER = "Programming Language :: Python :: "
ALL_SUPPORTED = [
    classifier.removeprefix(VERSION_CLASSIFIER)
    for classifier in PYPROJECT["project"]["classifiers"]
    if classifier.startswith(VERSION_CLASSIFIER)
]
FEATURES = "cli,validate,train,crawler,monitor,otel,remote,parallel,blocking,postgres,objects"
"""The extras that bring what the package imports."""


def run_tests(session: nox.Session) -> None:
    session.install("-e", f".[tests,docs,{FEATURES},dask,ray]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and every documented example on the current Python."""
    run_tests(session)


@nox.session(python=ALL_SUPPORTED)
def tests_all(session: nox.Session) -> None:
    """Run the tests on every supported Python that is installed."""
    run_tests(session)


@nox.session
def crash(session: nox.Session) -> None:
    """Crash real processes at each of their operations on files: `-- --full` takes all of them."""
    session.install("-e", ".[tests,cli,arrays,remote]")
    session.run("python", "-m", "tests.crash", *session.posargs)


@nox.session
def frameworks(session: nox.Session) -> None:
    """Run the tests that need torch, jax, TensorFlow, datasets and pyarrow, which are large."""
    session.install(
        "-e",
        ".[tests,arrays]",
        "torch",
        "torchdata",
        "jax",
        "tensorflow-cpu",
        "datasets",
        "pyarrow",
    )
    session.run("python", "-m", "pytest", "tests/frameworks", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz whatever reads what others may have written: `nox -s fuzz -- tree --executions 1000`."""
    session.install("-e", ".[tests,cli,validate,arrays,monitor,remote,fuzz]")
    session.run("python", "-m", "tests.fuzz", *(session.posargs or ["all"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*PYPROJECT["project"]["optional-dependencies"]["lint"])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, the examples and what users see, with two checkers."""
    session.install("-e", f".[typing,tests,{FEATURES}]")
    session.run("mypy", "--strict")
    # Its notice of a newer release would ask the network.
    session.run("pyright", env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})
    # The projects that `trio-ckpt new` writes, as their users see them.
    projects = Path(session.create_tmp(), "projects").absolute()
    shutil.rmtree(projects, ignore_errors=True)
    projects.mkdir()
    for kind in sorted(path.name for path in Path("trio_ckpt/cli/_projects").iterdir()):
        with session.chdir(projects):
            session.run("python", "-m", "trio_ckpt", "new", kind, f"my_{kind}")
        with session.chdir(projects / f"my_{kind}"):
            session.run("mypy", "--strict", ".")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning or a broken reference is an error."""
    session.install("-e", ".[docs,cli,validate,arrays,monitor,remote,blocking]")
    shutil.rmtree("docs/_build", ignore_errors=True)
    session.run(
        *("python", "-m", "sphinx", "-W", "-n", "--keep-going"),
        *("-d", "docs/_build/doctrees", "docs", "docs/_build/html"),
        *session.posargs,
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks: `-- --keep` shows the run in docs/explanation/performance.md."""
    session.install("-e", ".[crawler,validate,cli,arrays,remote,monitor,blocking,postgres,dask]")
    peers = str(session.cache_dir / "peers")  # DBOS and the like have an environment of their own
    session.run("python", "-m", "benchmarks", "--peers-cache", peers, *session.posargs)


@nox.session
def crawl(session: nox.Session) -> None:
    """Crawl a local site, kill the crawler half way, resume it, and prove that nothing was lost."""
    session.install("-e", ".[crawler]")
    session.run("python", "-m", "examples.crawl_demo", *session.posargs)
