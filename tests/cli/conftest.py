"""A place with a policy and tools, a store with something in it, and a way to run commands in this process."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentguard import Budget, PolicyDenied, Suspended, ToolGateway, tool

POLICY = """\
version: 1
name: shop
store: sqlite:///shop.db
budgets:
  - {scope: run, max_tool_calls: 10, max_cost_usd: "0.50"}
  - {scope: tenant, per: month, max_tool_calls: 1000}
rules:
  - id: read
    allow: orders.get
  - id: small
    allow: refunds.create
    when: {args: {amount: {minimum: 1, maximum: 100}}}
  - id: large
    require_approval: refunds.create
    when: {args: {amount: {exclusiveMinimum: 100, maximum: 500}}}
    approval: {roles: [finance], expires: 1h}
"""

TOOLS = '''\
"""Tools of a shop."""
from typing import Any
from agentguard import tool, ToolRegistry

print("noise while importing")

@tool(name="orders.get", permissions=["orders:read"], effect="read", risk="low", timeout="5s")
def get_order(order_id: str) -> dict[str, Any]:
    """Look up an order."""
    return {"order_id": order_id}

@tool(name="refunds.create", effect="irreversible", risk="high", cost_usd="0.01", owner="finance")
def create_refund(order_id: str, amount: int, details: dict[str, Any] | None = None) -> str:
    """Pay money back."""
    return f"refunded {amount} for {order_id}"

@tool(name="old.thing", effect="read", deprecated=True, replaced_by="orders.get")
def old() -> str:
    """Old."""
    return "old"

TOOLS = [get_order, create_refund]
REGISTRY = ToolRegistry.of(*TOOLS)
NUMBER = 7
def make() -> list[Any]:
    return TOOLS
'''


@tool(name="orders.get", permissions=["orders:read"], effect="read", risk="low", timeout="5s")
def get_order(order_id: str) -> dict[str, Any]:
    """Look up an order."""
    return {"order_id": order_id}


@tool(name="refunds.create", effect="irreversible", risk="high", cost_usd="0.01", owner="finance")
def create_refund(order_id: str, amount: int, details: dict[str, Any] | None = None) -> str:
    """Pay money back."""
    return f"refunded {amount} for {order_id}"


SERVICE = [get_order, create_refund]


class Stream(io.TextIOWrapper):
    """A stream that keeps what is written and may claim to be a terminal."""

    def __init__(self, text: str = "", *, tty: bool = False) -> None:
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8", write_through=True)
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    @property
    def text(self) -> str:
        kept: Any = self.buffer
        return str(kept.getvalue().decode())


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """Runs ``agentguard`` with arguments, in a directory of its own, without the environment of the tester."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "AGENTGUARD_STORE",
        "AGENTGUARD_DEBUG",
        "NO_COLOR",
        "FORCE_COLOR",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    path, modules = list(sys.path), set(sys.modules)

    def run(*args: str | Path, stdin: str = "", tty: bool = False) -> Done:
        from agentguard.cli import app

        out, err, given = Stream(tty=tty), Stream(tty=tty), Stream(stdin, tty=tty)
        with monkeypatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "stdin", given)
            with pytest.raises(SystemExit) as left:
                app(args=[str(arg) for arg in args], prog_name="agentguard")
        code = left.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, out.text, err.text)

    yield run
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            continue
        del sys.modules[name]


@dataclass(frozen=True)
class Place:
    """What is in the directory: two runs and a pending request."""

    folder: Path
    url: str
    run: str
    request: str
    other: str


@pytest.fixture
def shop(cli: Cli, tmp_path: Path) -> Path:
    """A directory with ``agentguard.yaml`` and ``shop_tools.py``."""
    (tmp_path / "agentguard.yaml").write_text(POLICY)
    (tmp_path / "shop_tools.py").write_text(TOOLS)
    return tmp_path


@pytest.fixture
def place(shop: Path) -> Place:
    """The same with a store: a run that waits for a person, and one of another tenant that has ended."""
    with ToolGateway.from_yaml(shop / "agentguard.yaml", SERVICE) as gateway:
        who: dict[str, Any] = {"agent": "bot", "tenant": "acme", "user": "u-17", "task": "Where is my order?"}
        with gateway.run(**who, roles=["customer"], run_id="run_a", budget=Budget(max_tool_calls=5)) as run:
            get_order("A-17")
            with pytest.raises(PolicyDenied):
                create_refund("A-17", 900)
            run.charge_llm(model="gpt-5", input_tokens=10, output_tokens=2, cost_usd="0.0012")
            waiting = run.attempt("refunds.create", {"order_id": "A-17", "amount": 250}, call_id="call_1")
            assert isinstance(waiting, Suspended)
        with gateway.run(agent="other-bot", tenant="globex", run_id="run_b") as second:
            get_order("B-1")
            second.complete({"answer": "done\x1b[31m"}, evidence=["B-1"], warnings=["careful"])
    return Place(shop, "sqlite:///shop.db", "run_a", waiting.request.id, "run_b")
