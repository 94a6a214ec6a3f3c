"""``demo``: a support agent on the real OpenAI SDK, told as a timeline that is read from its audit trail.

The agent is the program in ``demo/``, started in processes of its own as a service would start it; approvals are
given with this very command line. What must stay true: nothing shown here is staged by this module; whatever the
timeline says stands in the store that is left behind.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer
from rich.rule import Rule as Line

from agentguard.cli.inspecting import usage_text
from agentguard.cli.opening import DEMO_STORE, load_tools, wrong
from agentguard.cli.printing import compact, console, fields, note, out, table, watched
from agentguard.cli.timeline import Entry, entries
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import NANO
from agentguard.errors import ConfigurationError, MissingExtra
from agentguard.gateway import ToolGateway
from agentguard.policy.policies import Policy

FIRST: Final = "Order A-17 arrived broken, see my ticket T-9."
SECOND: Final = "My parcel with order B-22 never came. I want my money back."
APPROVER: Final = ("--by", "ana", "--role", "finance", "--note", "checked the photos")
PATIENCE_S: Final = 300
"""How long one process of the demo may take, in seconds."""

_ENDPOINT: Final = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
_LONGEST: Final = 150


def demo(
    file: Annotated[
        Path, typer.Option("--file", metavar="FILE", help="SQLite file to leave behind; new runs are added to it.")
    ] = DEMO_STORE,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run of an earlier demo, after its approval."),
    ] = None,
    scripted: Annotated[
        bool, typer.Option("--scripted", help="Use the scripted model even if an endpoint is set in the environment.")
    ] = False,
) -> None:
    """Watch a support agent being governed: denied, steered, approved by a person, resumed, stopped by its budget.

    The real OpenAI SDK talks to a scripted model on a local port; no key and no network are needed. With
    OPENAI_API_KEY and OPENAI_BASE_URL set it talks to that endpoint instead. Leaves an SQLite file behind.
    """
    if importlib.util.find_spec("openai") is None:
        raise MissingExtra("openai", "openai")
    with as_file(files("agentguard.cli") / "demo") as folder:
        stage = _Stage(folder, file, scripted)
        stage.announce()
        if resume is not None:
            stage.go_on(resume)
        else:
            stage.play()


class _Stage:
    """Starts the processes of the demo and tells what they left in the store."""

    def __init__(self, folder: Path, file: Path, scripted: bool) -> None:
        self._folder = folder
        self._file = file
        self._url = f"sqlite:///{quote(str(file.absolute()))}"
        self._env = dict(os.environ)
        self._env["PYTHONDONTWRITEBYTECODE"] = "1"
        self.live = not scripted and all(self._env.get(name) for name in _ENDPOINT)
        if not self.live:
            for name in _ENDPOINT:
                self._env.pop(name, None)
            for name in ("NO_PROXY", "no_proxy"):  # the scripted model is on this machine
                self._env[name] = ",".join(filter(None, (self._env.get(name), "127.0.0.1")))
        rules = Policy.from_yaml(folder / "agentguard.yaml").rules
        self._places = {rule.id: f"agentguard.yaml:{rule.ref('').line}" for rule in rules}
        self._words = {rule.id: rule.message for rule in rules if rule.message}
        self._costs = {tool.spec.name: tool.spec.cost_usd for tool in load_tools(str(folder / "tools.py:TOOLS"))}
        self._seen: dict[str, int] = {}
        self._steps: Counter[str] = Counter()

    def announce(self) -> None:
        """Say who the model is and where policy and agent can be read."""
        model = f"the endpoint {self._env[_ENDPOINT[1]]}" if self.live else "a scripted model on a local port"
        out(f"A support agent on the OpenAI SDK, with {model}.")
        out(f"agent   {self._folder / 'main.py'}")
        out(f"policy  {self._folder / 'agentguard.yaml'}")
        out(f"store   {self._file}")

    # --- acts --------------------------------------------------------------------------------------

    def play(self) -> None:
        """The whole story."""
        self._head("1. A customer writes; the agent works until a person has to decide")
        run = self._converse(FIRST)
        for _ in range(3):
            waiting = self._waiting(run)
            if not waiting:
                break
            self._head("2. A person decides, in another process")
            for request in waiting:
                self._approve(request)
            self._head("3. A third process resumes the run")
            self._program("--resume", run.context.run_id)
            self._tell(run.context.run_id)
        self._report(run.context.run_id)
        self._head("4. A second customer writes; this time nobody has decided yet")
        second = self._converse(SECOND)
        self._next(run, second)

    def go_on(self, run_id: str) -> None:
        """Resume one run."""
        if not self._file.is_file():
            wrong(f"There is no {self._file}; 'agentguard demo' makes it.")
        with self._store() as gateway:
            record = gateway.runs.get(run_id)
        if record.ended_at is not None:
            wrong(f"Run {run_id} has ended ({record.status}).")
        self._seen[run_id] = record.audit_seq
        self._head(f"Another process resumes {run_id}")
        self._program("--resume", run_id)
        self._tell(run_id)
        for request in self._waiting(record):
            note(f"It waits for {request}; see: agentguard approvals show {request} --store {self._file}")
        self._report(run_id)

    def _converse(self, question: str) -> RunRecord:
        out(f'"{question}"')
        before = self._runs()
        self._program(question)
        new = [r for r in self._runs().values() if r.context.run_id not in before]
        if not new:
            raise ConfigurationError("The agent opened no run.")
        self._tell(new[0].context.run_id)
        return new[0]

    # --- processes -----------------------------------------------------------------------------------

    def _start(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        sys.stdout.flush()
        try:
            return subprocess.run(  # noqa: S603  # this interpreter, with arguments of our own
                [sys.executable, *command],
                env=self._env,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            note(error.stderr.rstrip())
            raise ConfigurationError(f"The process {' '.join(command[:2])} failed (see above).") from error
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"The process {' '.join(command[:2])} took over {PATIENCE_S} s.") from error

    def _program(self, *args: str) -> None:
        self._start([str(self._folder / "main.py"), "--store", self._url, *args])

    def _approve(self, request: str) -> None:
        out(f"$ agentguard approvals approve {request} --by ana --role finance --note 'checked the photos'")
        command = ("-m", "agentguard.cli", "approvals", "approve", request, *APPROVER, "--store", self._url)
        done = self._start(command)
        for line in (done.stderr + done.stdout).splitlines():
            out(f"  {line}")

    # --- what is in the store --------------------------------------------------------------------------

    def _store(self) -> ToolGateway:
        return ToolGateway(store=self._url)

    def _runs(self) -> dict[str, RunRecord]:
        if not self._file.exists():
            return {}
        with self._store() as gateway:
            return {record.context.run_id: record for record in gateway.runs.list(limit=1000)}

    def _waiting(self, run: RunRecord) -> list[str]:
        with self._store() as gateway:
            found = gateway.approvals.list(run_id=run.context.run_id, tenant=run.context.tenant, status="pending")
        return [request.id for request in found]

    def _tell(self, run_id: str) -> None:
        with self._store() as gateway:
            found = list(entries(gateway.runs.timeline(run_id)))
        fresh = [entry for entry in found if entry.seq > self._seen.get(run_id, 0)]
        self._seen[run_id] = found[-1].seq
        told = Telling(self._places, self._words, self._costs).rows(fresh)
        home = f"{self._folder}/"
        rows = []
        for row in told:
            self._steps[run_id] += 1
            *cells, detail = (cell.replace(home, "") for cell in row)
            rows.append((str(self._steps[run_id]), *cells, _short(detail)))
        table(("STEP", "WHAT", "DECISION", "RULE", "USD", "DETAIL"), rows)

    def _report(self, run_id: str) -> None:
        with self._store() as gateway:
            report = gateway.resume(run_id).report
        done = Counter(f"{action.tool} {action.status}" for action in report.actions_taken)
        self._head("Report")
        fields(
            [
                ("run", run_id),
                ("status", report.status),
                ("stop reason", report.stop_reason.value if report.stop_reason else ""),
                ("why", str(report.details.get("note") or report.details.get("error") or "")),
                ("result", "" if report.result is None else compact(report.result)),
                ("actions", ", ".join(f"{what} x {times}" if times > 1 else what for what, times in done.items())),
                *(("warning", warning) for warning in report.warnings),
                ("usage", usage_text(report.usage)),
                ("audit head", report.audit_head),
            ]
        )

    def _next(self, run: RunRecord, second: RunRecord) -> None:
        store = f" --store {self._file}"
        self._head("Go on from here")
        lines = [
            f"agentguard runs list{store}",
            f"agentguard runs show {run.context.run_id} --timeline{store}",
            f"agentguard approvals list{store}",
        ]
        for request in self._waiting(second)[:1]:
            file = "" if self._file == DEMO_STORE else f" --file {self._file}"
            lines.append(f"agentguard approvals approve {request} --by you --role finance{store}")
            lines.append(f"agentguard demo --resume {second.context.run_id}{file}")
        lines.append(f"agentguard audit verify{store}")
        out("\n".join(lines))

    def _head(self, text: str) -> None:
        if watched():
            console().print()
            console().print(Line(text, align="left"))
        else:
            out(f"\n== {text}")


class Telling:
    """Turns the records of a run into rows: what, decision, rule, cost, detail."""

    def __init__(self, places: Mapping[str, str], words: Mapping[str, str], costs: Mapping[str, Decimal]) -> None:
        self._places = places
        self._words = words
        self._costs = costs
        self._intents: dict[str, Entry] = {}

    def rows(self, found: Sequence[Entry]) -> Iterator[tuple[str, str, str, str, str]]:
        """One row per thing that a person wants to know."""
        for entry in found:
            row = self._row(entry)
            if row is not None:
                yield row

    def _rule(self, entry: Entry) -> str:
        rule = str(entry.facts.get("rule") or "")
        name = rule.partition(" ")[0]
        return f"{name} ({self._places[name]})" if name in self._places else rule

    def _row(self, entry: Entry) -> tuple[str, str, str, str, str] | None:
        facts = entry.facts
        call = str(facts.get("call") or "")
        match entry.kind:
            case "run.opened":
                return "run opened", "", "", "", f"for user {facts.get('user')}, agent {facts.get('agent')}"
            case "llm.charged":
                used = f"{facts.get('input_tokens', 0)} tokens in, {facts.get('output_tokens', 0)} out"
                cost = facts.get("cost_usd")
                return f"model {facts.get('model')}", "", "", "?" if cost is None else _usd(int(cost)), used
            case "call.intent":
                self._intents[call] = entry
                return None
            case "call.outcome":
                return self._outcome(entry, self._intents.pop(call, entry))
            case "call.refused":
                if facts.get("reason") != "policy_denied":
                    return entry.tool, entry.decision, "", "", entry.detail
                words = self._words.get(str(facts.get("rule")))
                detail = f'the model is told: "{words}"' if words else entry.detail
                return entry.tool, entry.decision, self._rule(entry), "", detail
            case "approval.requested":
                return entry.tool, "pending", self._rule(entry), "", entry.detail
            case "approval.voted" | "approval.decided" | "approval.expired":
                by = f"by {facts.get('by')} ({facts.get('roles')})" if facts.get("by") else ""
                said = f": {entry.body}" if isinstance(entry.body, str) else ""
                return f"approval of {entry.tool}", entry.decision, "", "", by + said
            case "run.completed" | "run.stopped" | "run.failed":
                return f"run {entry.kind[4:]}", str(facts.get("reason") or ""), "", "", entry.detail
            case "run.waiting" | "run.resumed":
                return f"run {entry.kind[4:]}", "", "", "", ""
            case "budget.warning":
                return "budget", "warning", "", "", entry.detail
            case _:
                return None

    def _outcome(self, entry: Entry, intent: Entry) -> tuple[str, str, str, str, str]:
        done = entry.facts.get("status") == "succeeded"
        decision = ("approved" if intent.facts.get("approval") else "allowed") if done else entry.decision
        cost = self._costs.get(entry.tool, Decimal(0))
        arguments = intent.body.get("arguments") if isinstance(intent.body, Mapping) else None
        result = entry.body.get("result") if isinstance(entry.body, Mapping) else None
        detail = f"{compact(arguments)} -> {compact(result)}" if done else entry.detail
        return entry.tool, decision, self._rule(intent), f"{cost:f}" if cost else "", detail


def _usd(nano: int) -> str:
    return f"{(Decimal(nano) / NANO).normalize():f}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
