"""What is run before a change goes in, and by whom: people, and the build.

``nox`` alone runs the sessions that decide whether a change may go in. Dependencies come from the groups and
extras of ``pyproject.toml``; the groups are read here rather than by pip, because the pip of a fresh machine may
be older than ``pip install --group``.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "typing", "tests", "adapters_oldest"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHON_FILES = ("src", "tests", "bench", "examples", "docs", "noxfile.py")

SERVERS = {"AGENTGUARD_REQUIRE_SERVERS": os.environ.get("AGENTGUARD_REQUIRE_SERVERS", "1")}
"""A server that a test needs and does not find fails the test here, where it would be skipped elsewhere."""


def group(*names: str) -> tuple[str, ...]:
    """The requirements of dependency groups."""
    return nox.project.dependency_groups(PROJECT, *names)


def floors(*names: str) -> list[str]:
    """The oldest versions that ``pyproject.toml`` permits of these distributions, as pins."""
    wanted: list[str] = []
    project = PROJECT["project"]
    for line in [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]:
        name, _, version = line.partition(">=")
        if version and (not names or name in names):
            wanted.append(f"{name}=={version}")
    return wanted


def install(session: nox.Session, *requirements: str) -> None:
    """Install quietly; pip says enough when something is wrong."""
    session.install("-q", *requirements, env={"PIP_DISABLE_PIP_VERSION_CHECK": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Style, names, docstrings, layers."""
    install(session, *group("lint"))
    files = [name for name in PYTHON_FILES if Path(name).exists()]
    session.run("ruff", "check", *files)
    session.run("ruff", "format", "--check", *files)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "src"})


@nox.session
def typing(session: nox.Session) -> None:
    """Types, as two checkers see them: of the library, and of programs that use it."""
    install(session, "-e", ".[all]", *group("typing"), "opentelemetry-sdk>=1.28", "pytest>=8.3")
    session.run("mypy", "--strict", "src", "tests/typing")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test, with branch coverage of all processes; docs and examples are tests too."""
    install(session, "-e", ".[all]", *group("test"))
    if session.posargs:
        session.run("pytest", *session.posargs, env=SERVERS)
        return
    session.run("coverage", "erase")
    session.run(
        "pytest",
        *("-n", os.environ.get("AGENTGUARD_TEST_WORKERS", "2"), "--dist", "worksteal"),
        *("--cov", "--cov-report=term", "--cov-report=json:coverage.json", "--durations=15"),
        env=SERVERS,
    )


@nox.session
def adapters_oldest(session: nox.Session) -> None:
    """The adapters against the oldest client libraries we say we support (``tests`` has the newest)."""
    install(session, "-e", ".[all]", *group("test"), *floors("openai", "anthropic"))
    session.run("pytest", "tests/adapters", "-q", "-n", "2", "--dist", "worksteal", *session.posargs)


@nox.session(default=False)
@nox.parametrize("openai,anthropic", [("2.*", "1.*"), ("3.*", "2.*")], ids=["openai2-anthropic1", "openai3-anthropic2"])
def adapters(session: nox.Session, openai: str, anthropic: str) -> None:
    """The adapters against the newest client library of each supported major version."""
    install(session, "-e", ".[all]", *group("test"), f"openai=={openai}", f"anthropic=={anthropic}")
    session.run("pytest", "tests/adapters", "-q", *session.posargs)


FRAMEWORKS = {
    "pydantic_ai": {"newest": ("pydantic-ai-slim[mcp]",), "oldest": ("pydantic-ai-slim==2.16.0",)},
    "langgraph": {
        "newest": ("langchain", "langgraph", "langgraph-checkpoint-sqlite"),
        "oldest": ("langchain==1.0.0", "langgraph==1.0.2", "langgraph-prebuilt==1.0.2", "langgraph-checkpoint-sqlite"),
    },
    "mcp": {
        "newest": ("mcp>=2", "mcp-server-time", "typer", "rich"),
        "second": ("mcp==1.*", "mcp-server-time", "typer", "rich"),
        "oldest": ("mcp==1.24.0", "mcp-server-time", "typer", "rich"),
    },
}
"""Agent frameworks whose adapters have a session of their own, and what it installs."""


def framework(session: nox.Session, name: str, age: str) -> None:
    """The tests of one adapter against its framework, measured by themselves."""
    config = Path(session.create_tmp()) / "coverage.toml"
    config.write_text(
        f"""
[tool.coverage.run]
branch = true
patch = ["subprocess"]
data_file = "{config.parent}/.coverage"
include = ["*/agentguard/adapters/*{name}*.py", "*/adapters/_continuing.py", "*/adapters/_reaching.py"]
"""
    )
    install(session, "-e", ".", *group("test"), *FRAMEWORKS[name][age])
    folder = f"tests/adapters/{name}"
    # What old versions of a framework say about the others of today is not about us.
    calm = ("-W", "default::DeprecationWarning", "-W", "default::PendingDeprecationWarning") if age == "oldest" else ()
    cover = ("--cov", f"--cov-config={config}", "--cov-fail-under=95", "--cov-report=term-missing")
    session.run("pytest", folder, f"--confcutdir={folder}", "-q", *calm, *cover, *session.posargs)


@nox.session(default=False)
@nox.parametrize("age", ["newest", "oldest"])
def pydantic_ai(session: nox.Session, age: str) -> None:
    """The adapter of PydanticAI against the newest and the oldest version that it supports."""
    framework(session, "pydantic_ai", age)


@nox.session(default=False)
@nox.parametrize("age", ["newest", "oldest"])
def langgraph(session: nox.Session, age: str) -> None:
    """The adapter of LangChain and LangGraph, likewise."""
    framework(session, "langgraph", age)


@nox.session(default=False)
@nox.parametrize("age", ["newest", "second", "oldest"])
def mcp(session: nox.Session, age: str) -> None:
    """The adapter of the Model Context Protocol: both major versions of its package, and the oldest one.

    With ``AGENTGUARD_NPM`` naming a folder where ``@modelcontextprotocol/server-everything`` and ``server-filesystem``
    are installed, the proxy is compared with those servers, too.
    """
    framework(session, "mcp", age)


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """The unit suite on the oldest core dependencies (the client libraries pull in newer ones of their own)."""
    core = [requirement.partition(">=")[0] for requirement in PROJECT["project"]["dependencies"]]
    install(session, "-e", ".[postgres]", *group("test"), *floors(*core), "pytest==8.3.*")
    # The conventions package has one release per API release; the names we use are those of the newest.
    newest = ("test_attribute_names_are_those", "test_operations_and_providers_are_those")
    skipped = [f"--deselect=tests/unit/test_tracing.py::{name}_of_the_semantic_conventions" for name in newest]
    session.run("pytest", "tests/unit", "-n", "2", "-q", *skipped, *session.posargs, env=SERVERS)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Write the generated reference anew, then run every code block of the documentation."""
    install(session, "-e", ".[all]", *group("test"))
    session.run("python", "docs/generate.py")
    session.run("pytest", "tests/test_docs.py", "-q", *session.posargs)


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Every example, offline."""
    install(session, "-e", ".[all]", *group("test"))
    session.run("pytest", "tests/test_examples.py", "-q", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Ratios to a bare validated call; ``nox -s bench -- --check`` fails when a bar is missed."""
    install(session, "-e", ".[all]", *group("test"))
    session.run("python", "-m", "bench", *session.posargs)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """The fault experiments in their large form: more crashes, more seeds, more mutants."""
    install(session, "-e", ".[all]", *group("test"))
    session.run(
        "pytest",
        *("tests/faults", "-q", "--durations=10"),
        *session.posargs,
        env={**SERVERS, "AGENTGUARD_FAULT_SCALE": os.environ.get("AGENTGUARD_FAULT_SCALE", "10")},
    )
