"""``doctor`` and ``version``: is everything here that agentguard needs, and does the store keep its promises?"""

from __future__ import annotations

import os
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from agentguard._version import __version__
from agentguard.cli.opening import find_store, load_tools, opened, read_config, sqlite_path
from agentguard.cli.options import ConfigOption, Format, FormatOption, StoreOption, ToolsOption
from agentguard.cli.printing import document, iso, note, out, plain, table
from agentguard.domain.operations import Describe, Restore
from agentguard.errors import AgentGuardError, ConfigurationError
from agentguard.gateway import ToolGateway

CORE: Final = (
    "pydantic",
    "jsonschema",
    "jsonschema-rs",
    "tenacity",
    "pybreaker",
    "opentelemetry-api",
    "pyyaml",
    "typing-extensions",
)
EXTRAS: Final = {"cli": ("typer", "rich"), "openai": ("openai",), "anthropic": ("anthropic",)}

_AHEAD_S: Final = 5.0
"""How far the newest run may lie ahead of this machine's clock, in seconds."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: ``ok``, ``warn`` or ``fail``, and what was seen."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def version(form: FormatOption = Format.TEXT) -> None:
    """Print the version of agentguard, Python and the libraries it stands on."""
    versions = {"agentguard": __version__, "python": platform.python_version(), "platform": platform.platform()}
    if form is Format.JSON:
        libraries = (*CORE, *(name for names in EXTRAS.values() for name in names))
        document({**versions, "libraries": {name: _installed(name) for name in libraries}})
    else:
        out(f"agentguard {__version__} (Python {versions['python']}, {versions['platform']})")


def doctor(
    store: StoreOption = None,
    config: ConfigOption = None,
    tools: ToolsOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also race threads and reopen a scratch store beside the real one.")
    ] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Check the installation, the configuration and the store. Exit code 1 when something does not work."""
    found = list(_environment())
    found += _configuration(config, tools)
    found += _store(store, config, verify)
    failed = sum(check.status == "fail" for check in found)
    if form is Format.JSON:
        document({"ok": not failed, "checks": plain(found)})
    else:
        table(("CHECK", "STATUS", "DETAIL"), ((check.name, check.status, check.detail) for check in found))
        note(f"{failed} of {len(found)} checks failed" if failed else "everything works")
    raise typer.Exit(1 if failed else 0)


def _environment() -> Iterator[Check]:
    yield Check("agentguard", "ok", __version__)
    new_enough = sys.version_info >= (3, 11)
    yield Check("python", "ok" if new_enough else "fail", f"{platform.python_version()} on {platform.platform()}")
    for name in CORE:
        found = _installed(name)
        yield Check(name, "ok" if found else "fail", found or "not installed; reinstall agentguard")
    for extra, names in EXTRAS.items():
        versions = {name: _installed(name) for name in names}
        absent = [name for name, found in versions.items() if found is None]
        if absent:
            yield Check(f"extra {extra}", "warn", f"not installed; if you need it: pip install 'agentguard[{extra}]'")
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(f"{name} {found}" for name, found in versions.items()))


def _tried(name: str, work: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", work())
    except (AgentGuardError, OSError) as error:
        return Check(name, "fail", " ".join(str(error).split("\n")))


def _configuration(config: Path | None, tools: str | None) -> Iterator[Check]:
    path = config or Path("agentguard.yaml")
    if config is None and not path.exists():
        yield Check("configuration", "warn", f"there is no {path} here; 'agentguard init' writes one")
        return

    def load() -> str:
        settings = read_config(path)
        rules = len(settings.policy.rules)
        if tools is None:
            return f"{path}: {rules} rules (not checked against tools; pass --tools)"
        registry = load_tools(tools)
        if settings.has_tools:
            registry = registry.with_document(settings.document)
        ToolGateway(registry, settings.policy).close()
        return f"{path}: {rules} rules fit {len(registry)} tools"

    yield _tried("configuration", load)


def _store(store: str | None, config: Path | None, verify: bool) -> Iterator[Check]:
    try:
        url, _ = find_store(store, config)
    except ConfigurationError as error:
        named = store is not None or config is not None
        yield Check("store", "fail" if named else "warn", " ".join(str(error).split("\n")))
        return
    folder = Path(tempfile.gettempdir())
    file = sqlite_path(url)
    if file is not None:
        folder = file.absolute().parent
        if not file.exists():
            yield Check("store", "warn", f"{file} does not exist yet; the first gateway creates it")
    if file is None or file.exists():
        yield from _opened_store(store, config, file)
    if verify:
        yield _tried("store, raced", lambda: _race(folder))


def _opened_store(store: str | None, config: Path | None, file: Path | None) -> Iterator[Check]:
    try:
        with opened(store, config) as gateway:
            facts = gateway.store.perform(Describe())
            yield Check("store", "ok", ", ".join(f"{name} {value}" for name, value in facts.items()))
            yield _tried("store, writable", lambda: _write(gateway))
            if facts.get("kind") == "sqlite":
                safe = facts.get("journal") == "wal" and facts.get("synchronous") == "full"
                detail = f"journal {facts.get('journal')}, synchronous {facts.get('synchronous')}"
                yield Check("store, durable", "ok" if safe else "fail", detail)
            yield _clock(gateway)
            yield _chains(gateway)
    except (AgentGuardError, OSError) as error:
        yield Check("store", "fail", " ".join(str(error).split("\n")))
        return
    if file is not None:
        yield _permissions(file)
        yield _file_system(file)


def _write(gateway: ToolGateway) -> str:
    # Takes the writer lock and a write transaction; the switch it looks for cannot exist, so nothing changes.
    begun = time.monotonic()
    gateway.store.perform(Restore("doctor", "", "", "doctor"))
    return f"a write transaction took {1000 * (time.monotonic() - begun):.1f} ms"


def _clock(gateway: ToolGateway) -> Check:
    now = time.time_ns()
    newest = gateway.runs.list(limit=1)
    ahead = (newest[0].started_at - now) / 1e9 if newest else 0.0
    if ahead > _AHEAD_S:
        return Check("clock", "fail", f"{iso(now)}: the newest run began {ahead:.0f} s in the future; check NTP")
    return Check("clock", "ok", str(iso(now)))


def _chains(gateway: ToolGateway) -> Check:
    runs = gateway.runs.list(limit=20)
    broken = [r.context.run_id for r in runs if not gateway.audit.verify(r.context.run_id, tenant=r.context.tenant).ok]
    if broken:
        return Check("audit", "fail", f"run {broken[0]} does not verify; see 'agentguard audit verify'")
    return Check("audit", "ok", f"the chains of the {len(runs)} newest runs verify")


def _permissions(file: Path) -> Check:
    mode = stat.S_IMODE(file.stat().st_mode)
    text = f"{file}: {mode:04o}"
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Check("store, permissions", "fail", f"{text}: others may write it; chmod 600")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return Check("store, permissions", "warn", f"{text}: others may read arguments and results; chmod 600")
    return Check("store, permissions", "ok", text)


def _file_system(file: Path) -> Check:
    from agentguard.stores._sqlite_schema import file_system

    # Network file systems are refused when the store is opened.
    kind = file_system(os.path.realpath(file.absolute().parent))
    return Check("store, file system", "ok" if kind else "warn", kind or "unknown; it must be a local disk")


def _race(folder: Path) -> str:
    """Several threads spend one budget of a scratch store beside the real one; exactly the limit is granted."""
    import threading

    from agentguard.budget.budget import Budget
    from agentguard.policy.policies import Policy

    limit, threads, tries = 40, 4, 15
    granted: list[int] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".agentguard-doctor-") as scratch:
        url = f"sqlite:///{scratch}/scratch.db"
        with ToolGateway((), Policy(), store=url) as gateway:
            run = gateway.run(agent="doctor", budget=Budget(counters={"race": limit})).open()

            def spend() -> None:
                from agentguard.errors import BudgetExceeded

                for _ in range(tries):
                    try:
                        run.count("race")
                        granted.append(1)
                    except BudgetExceeded:
                        return

            workers = [threading.Thread(target=spend) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            run.complete()
        with ToolGateway((), Policy(), store=url) as again:
            report: Any = again.audit.verify(run.run_id)
            used = again.resume(run.run_id).usage.counters.get("race", 0)
    if len(granted) != limit or used != limit or not report.ok:
        raise ConfigurationError(f"granted {len(granted)} and kept {used} of a limit of {limit}; chain ok: {report.ok}")
    return f"{threads} threads got exactly {limit} of {threads * tries}, kept over reopening, chain ok"
