"""The mistakes: each is one way in which a call could have slipped through.

A mistake gets a scene and either returns the outcome of the call, or raises what stopped it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentguard import ApproverIdentity, Budget, Policy, Sandbox, ToolGateway, Verdict, tool
from agentguard.domain.operations import Begin, OpenRun
from agentguard.errors import StoreUnavailable
from tests.battery.scene import RULES, Approves, Broken, Scene, of

ANN = ApproverIdentity("ann", ("finance",))


@dataclass(frozen=True)
class Mistake:
    """What is wrong, what must stop it, and how to make it."""

    name: str
    stopped_by: str
    make: Callable[[Scene], Any]


MISTAKES: list[Mistake] = []


def _add(name: str, stopped_by: str, make: Callable[[Scene], Any]) -> None:
    MISTAKES.append(Mistake(name, stopped_by, make))


def _file(name: str, code: str, text: str | bytes) -> None:
    """A file that must not load: ``code`` is that of the finding."""
    _add(name, f"file {code}", lambda scene: scene.attempt(scene.load(text)))


def _setting(name: str, **settings: Any) -> None:
    """A gateway that must not be built."""
    _add(name, "ConfigurationError", lambda scene: scene.attempt(scene.gateway(**settings)))


def _refused(name: str, reason: str) -> Callable[[Callable[[Scene], Any]], Callable[[Scene], Any]]:
    def added(make: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        _add(name, reason, make)
        return make

    return added


# --- words that are misspelt --------------------------------------------------------------------

_file("misspelt tool in an allow rule", "AG201", of({"allow": "pya"}))
_file("misspelt tool in a deny rule", "AG201", of({"allow": "pay"}) + "  - deny: pya\n")
_file("misspelt tool in an approval rule", "AG201", of({"allow": "pay"}) + "  - require_approval: pya\n")
_file("glob that matches no tool in a deny rule", "AG202", of({"allow": "pay"}) + '  - deny: "email.*"\n')
_file(
    "misspelt tool in the short form", "AG201", "version: 1\napprovals: {required_for: [pya]}\nrules: [{allow: pay}]\n"
)
_file("misspelt verb", "AG110", of({"alow": "pay"}))
_file("misspelt key of a rule", "AG110", of({"allow": "pay", "wen": "{environment: prod}"}))
_file("misspelt condition", "AG110", of({"allow": "pay", "when": "{enviroment: prod}"}))
_file("misspelt argument", "AG203", of({"allow": "pay", "when": "{args: {amuont: {maximum: 100}}}"}))
_file(
    "misspelt argument in a deny rule", "AG203", of({"allow": "pay"}) + "  - deny: pay\n    when: {args: {amuont: 5}}\n"
)
_file("misspelt operator", "AG110", of({"allow": "pay", "when": "{args: {amount: {maximun: 100}}}"}))
_file("misspelt risk tier", "AG115", of({"deny": "{risk: hihg}"}))
_file("misspelt selector", "AG110", of({"deny": "{risc: high}"}))
_file("misspelt effect", "AG115", of({"deny": "{effect: irreversable}"}))
_file("permission that nobody requires", "AG206", of({"allow": "pay"}) + '  - deny: {permission: "mony:send"}\n')
_file("misspelt top-level key", "AG110", "version: 1\nruels: [{allow: pay}]\n")
_file("misspelt default", "AG115", "version: 1\ndefault: dney\nrules: [{allow: pay}]\n")
_file("default allow", "AG115", "version: 1\ndefault: allow\nrules: [{allow: pay}]\n")
_file("misspelt mode", "AG115", "version: 1\nmode: observ\nrules: [{allow: pay}]\n")
_file("mode: on", "AG115", "version: 1\nmode: on\nrules: [{allow: pay}]\n")
_file("enabled: no", "AG110", "version: 1\nenabled: no\nrules: [{allow: pay}]\n")
_file("misspelt weekday", "AG115", of({"allow": "pay", "when": "{time: {days: [mo]}}"}))

# --- values of the wrong kind ----------------------------------------------------------------------

_file(
    "operator that does not fit the type", "AG204", of({"allow": "pay", "when": '{args: {amount: {pattern: "^5$"}}}'})
)
_file("text where a number is compared", "AG117", of({"allow": "pay", "when": '{args: {amount: {maximum: "100"}}}'}))
_file("conditions in a list", "AG111", of({"allow": "pay", "when": "[{environment: prod}]"}))
_file("nothing to allow", "AG120", of({"allow": '""'}))
_file("rules in a mapping", "AG111", "version: 1\nrules: {allow: pay}\n")
_file(
    "a pattern that takes exponential time",
    "AG116",
    of({"allow": "pay", "when": '{args: {to: {pattern: "(a)\\\\1"}}}'}),
)
_file("quorum of nobody", "AG111", of({"require_approval": "pay", "approval": "{quorum: 0}"}))
_file("separate: no", "AG111", of({"require_approval": "pay", "approval": "{separate: no}"}))
_file("duration like a clock", "AG113", of({"require_approval": "pay", "approval": "{expires: 10:00}"}))
_file("two verbs", "AG112", of({"allow": "pay", "deny": "pay"}))
_file("no verb", "AG112", of({"when": "{environment: prod}"}))
_file("two rules of one id", "AG118", of({"allow": "pay"}) + "  - id: one\n    deny: pay\n")

# --- files that are none ------------------------------------------------------------------------------

_file("empty file", "AG", "")
_file("file of comments", "AG", "# rules\n")
_file("list at the top", "AG", "- allow: pay\n")
_file("not YAML", "AG", "rules: [allow: pay\n")
_file("not UTF-8", "AG", b"version: 1\nrules: [{allow: p\xffay}]\n")
_file("duplicate key", "AG", "version: 1\nrules: [{allow: pay}]\nrules: [{deny: pay}]\n")
_file("alias", "AG", "version: 1\nrules: [&one {allow: pay}, *one]\n")
_file("invisible character", "AG", 'version: 1\nrules: [{deny: "p\u200bay"}]\n')
_file("version of tomorrow", "AG", "version: 2\nrules: [{allow: pay}]\n")


@_refused("file that is missing", "file AG")
def _missing(scene: Scene) -> Any:
    return scene.attempt(ToolGateway.from_yaml(scene.folder / "none.yaml", [scene.pay]))


@_refused("file that is a directory", "file AG")
def _directory(scene: Scene) -> Any:
    return scene.attempt(ToolGateway.from_yaml(scene.folder, [scene.pay]))


@_refused("file behind a dangling link", "file AG")
def _dangling(scene: Scene) -> Any:
    link = scene.folder / "link.yaml"
    link.symlink_to(scene.folder / "nowhere.yaml")
    return scene.attempt(ToolGateway.from_yaml(link, [scene.pay]))


@_refused("file below a file", "file AG")
def _below(scene: Scene) -> Any:
    return scene.attempt(ToolGateway.from_yaml(scene.file(RULES) / "rules.yaml", [scene.pay]))


# --- budgets and other sections of a file ----------------------------------------------------------


def _section(name: str, code: str, text: str) -> None:
    _file(name, code, RULES + text)


_section("budget without a limit", "AG401", "budgets: {}\n")
_section("budget that only warns", "AG401", "budgets: [{scope: tenant, warn_at: 0.5}]\n")
_section("limit without a value", "AG402", "budgets: {max_steps: 5, max_tool_calls: }\n")
_section("limit of 0", "AG402", "budgets: {max_tool_calls: 0}\n")
_section("negative limit", "AG402", "budgets: {max_tool_calls: -1}\n")
_section("limit that is true", "AG402", "budgets: {max_tool_calls: true}\n")
_section("limit that is no whole number", "AG402", "budgets: {max_tool_calls: 1.5}\n")
_section("limit in quotes", "AG402", 'budgets: {max_tool_calls: "5"}\n')
_section("limit that is not a number", "AG", "budgets: {max_tool_calls: .nan}\n")
_section("endless limit", "AG", "budgets: {max_tokens: .inf}\n")
_section("money as a float", "AG402", "budgets: {max_cost_usd: 0.5}\n")
_section("money that is no number", "AG402", 'budgets: {max_cost_usd: "NaN"}\n')
_section("misspelt limit", "AG110", "budgets: {max_tool_cals: 5}\n")
_section("misspelt scope", "AG402", "budgets: [{scope: tenent, max_tool_calls: 5}]\n")
_section("misspelt window", "AG402", "budgets: [{scope: tenant, per: fortnight, max_tool_calls: 5}]\n")
_section("misspelt tool in a budget", "AG201", "budgets: {per_tool: {pya: 5}}\n")
_section("glob in a budget of tools", "AG", 'budgets: {per_tool: {"p*": 5}}\n')
_section("window of a run", "AG404", "budgets: [{scope: run, per: day, max_tool_calls: 5}]\n")
_section("match that can match nothing", "AG403", 'budgets: [{scope: run, match: "x-*", max_tool_calls: 5}]\n')
_section("budgets in a text", "AG111", "budgets: none\n")
_section("budgets left empty", "AG111", "budgets:\n")
_section("misspelt store", "AG12", "store: sqlit:///x.db\n")
_section("store of nowhere", "AG111", "store:\n")
_section("endless loops", "AG402", "loops: {max_repeats: yes}\n")
_section("sink that is none", "AG111", "sinks: [{json: audit.jsonl}]\n")
_section("sink in a folder that is not there", "AG111", "sinks: [{jsonl: none/audit.jsonl, required: true}]\n")
_section("sink that is required: yes", "AG111", "sinks: [{jsonl: audit.jsonl, required: yes}]\n")
_section("sinks left empty", "AG111", "sinks:\n")
_section("credentials from nowhere", "AG111", "credentials: {env: }\n")
_section("misspelt logging", "AG110", "logging: {tool_cals: true}\n")
_section("architecture of another", "AG115", "architecture: {tool_gateway: rented}\n")
_section("settings of a tool that is not there", "AG", "tools: {pya: {risk: low}}\n")
_section("misspelt setting of a tool", "AG", "tools: {pay: {rsik: low}}\n")
_section("tool made harmless by a typo", "AG", "tools: {pay: {effect: reed}}\n")

# --- gateways that must not be built ------------------------------------------------------------------

_setting("policy given as a path", policy="agentguard.yaml")
_setting("policy that is a number", policy=5)
_setting("policy that is a mapping", policy={"allow": ["pay"]})
_setting("approver that is none", approver=object())
_setting("approver that is a class", approver=Approves)
_setting("sink that is an object", sinks=[object()])
_setting("sinks in a text", sinks="audit.jsonl")
_setting("listener that is none", listeners=[print])
_setting("redactor that is a function", redactor=str)
_setting("price list that is a dict", prices={"gpt-5": 1})
_setting("credentials that are a text", credentials="TOKEN")
_setting("budget that is a dict", budgets={"max_tool_calls": 5})
_setting("budgets in a number", budgets=5)
_setting("loop limit of true", max_repeats=True)
_setting("loop limit in quotes", max_repeats="5")
_setting("no workers", max_workers=0)
_setting("store that is an object", store=object())
_setting("misspelt store address", store="sqlit:///x.db")
_setting("tools in a text", tools="pay")
_setting("tool that is a plain function", tools=[len])


@_refused("tool registered twice", "ConfigurationError")
def _twice(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(tools=[scene.pay, scene.tool("pay")]))


@_refused("budget in Python that limits nothing", "ConfigurationError")
def _nothing(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(), run=scene.run(scene.gateway(), budget=Budget()))


@_refused("budget in Python with a float of money", "ConfigurationError")
def _float(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, budget=Budget(max_cost_usd=0.5)))  # type: ignore[arg-type]


@_refused("budget of a run for a misspelt tool", "ConfigurationError")
def _run_budget(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, budget=Budget(per_tool={"pya": 5})))


@_refused("budget of a run that is a dict", "ConfigurationError")
def _run_dict(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, budget={"max_tool_calls": 5}))


@_refused("scope of a run in one text", "ConfigurationError")
def _scope_text(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, scope="pay"))


@_refused("tenant with a space", "ConfigurationError")
def _tenant(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, tenant="a b"))


@_refused("output of a tool that cannot be unlabelled", "ConfigurationError")
def _labels_text(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, labels="secret"))


# --- arguments -----------------------------------------------------------------------------------------


def _arguments(name: str, arguments: Any, reason: str = "invalid_arguments") -> None:
    _add(name, reason, lambda scene: scene.attempt(scene.gateway(), arguments))


_arguments("misspelt argument in a call", {"amuont": 5})
_arguments("argument that is missing", {})
_arguments("an argument too many", {"amount": 5, "urgent": True})
_arguments("number in quotes", {"amount": "5"})
_arguments("number that is true", {"amount": True})
_arguments("number with a point", {"amount": 5.5})
_arguments("number that is nothing", {"amount": None})
_arguments("number in a list", {"amount": [5]})
_arguments("number in a mapping", {"amount": {"value": 5}})
_arguments("number that is none", {"amount": float("nan")})
_arguments("endless number", {"amount": float("inf")})
_arguments("list that is a text", {"amount": 5, "tags": "urgent"})
_arguments("list of numbers", {"amount": 5, "tags": [1]})
_arguments("lone surrogate", {"amount": 5, "to": "\ud800"})
_arguments("arguments in a list", [5])
_arguments("arguments in a text", '{"amount": 5}')
_arguments("argument names that are no text", {1: 5})
_arguments("more than the rule permits", {"amount": 101}, "policy_denied")
_arguments("far more than the rule permits", {"amount": 10**30}, "policy_denied")


@_refused("positional argument over the limit", "policy_denied")
def _positional(scene: Scene) -> Any:
    gateway = scene.gateway()
    with gateway.run(agent="bot", environment="prod"):
        return scene.pay(999_999)


@_refused("positional arguments, one too many", "invalid_arguments")
def _positionals(scene: Scene) -> Any:
    gateway = scene.gateway()
    with gateway.run(agent="bot", environment="prod"):
        return scene.pay(5, "shop", [], "more")


@_refused("forbidden value in a list", "policy_denied")
def _in_list(scene: Scene) -> Any:
    policy = Policy.from_string(of({"allow": "pay", "when": "{args: {tags: {items: {enum: [a, b]}}}}"}))
    return scene.attempt(scene.gateway(policy), {"amount": 5, "tags": ["a", "c"]})


@_refused("deny rule that cannot be evaluated: the argument is absent", "policy_denied")
def _absent(scene: Scene) -> Any:
    text = of({"allow": "pay"}) + '  - id: tagged\n    deny: pay\n    when: {args: {"tags.0": {const: bad}}}\n'
    return scene.attempt(scene.gateway(Policy.from_string(text)), {"amount": 5})


@_refused("deny rule that cannot be evaluated: the value is of another type", "policy_denied")
def _other_type(scene: Scene) -> Any:
    @tool(name="move", effect="irreversible")
    def move(amount: int | str) -> str:
        scene.ran.append(amount)
        return "moved"

    text = "version: 1\nrules:\n  - allow: move\n  - id: much\n    deny: move\n    when: {args: {amount: {exclusiveMinimum: 100}}}\n"
    gateway = scene.gateway(Policy.from_string(text), tools=[move])
    return scene.attempt(gateway, {"amount": "1000000"}, "move")


# --- who, where, when --------------------------------------------------------------------------------


@_refused("no such tool", "unknown_tool")
def _unknown(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(), name="pya")


@_refused("name of a tool in another case", "unknown_tool")
def _case(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(), name="PAY")


@_refused("name of a tool that is no text", "unknown_tool internal_error")
def _no_name(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(), name=None)  # type: ignore[arg-type]


@_refused("no policy", "policy_denied")
def _no_policy(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(Policy()))


@_refused("no layers", "policy_denied")
def _no_layers(scene: Scene) -> Any:
    return scene.attempt(scene.gateway([]))


@_refused("a layer that abstains, alone", "policy_denied")
def _abstains(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(Policy(default="abstain")))


@_refused("lower layer that widens", "policy_denied")
def _widens(scene: Scene) -> Any:
    return scene.attempt(scene.gateway([Policy(deny={"pay"}), Policy(allow={"pay"})]))


@_refused("lower layer that allows what the upper one does not", "policy_denied")
def _allows(scene: Scene) -> Any:
    return scene.attempt(scene.gateway([Policy(), Policy(allow={"pay"})]))


@_refused("lower layer that only observes", "policy_denied")
def _observes(scene: Scene) -> Any:
    return scene.attempt(scene.gateway([Policy(deny={"pay"}), Policy(allow={"pay"}, mode="observe")]))


@_refused("another environment", "policy_denied")
def _environment(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, environment="staging"))


@_refused("run without the user that a rule asks for", "policy_denied")
def _user(scene: Scene) -> Any:
    gateway = scene.gateway(Policy.from_string(of({"allow": "pay", "when": "{user: alice}"})))
    return scene.attempt(gateway, run=scene.run(gateway, user=None))


@_refused("hour outside the time that a rule permits", "policy_denied")
def _hour(scene: Scene) -> Any:
    text = of({"allow": "pay", "when": "{time: {between: [13:00, 18:00], zone: UTC}}"})
    return scene.attempt(scene.gateway(Policy.from_string(text)))


@_refused("grant that has ended", "policy_denied")
def _ended_grant(scene: Scene) -> Any:
    text = of({"allow": "pay", "valid": "{until: 2026-11-20T11:59:59Z}"})
    return scene.attempt(scene.gateway(Policy.from_string(text)))


@_refused("run narrowed to another tool", "policy_denied")
def _scope(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, scope=["orders.*"]))


@_refused("run narrowed to nothing", "policy_denied")
def _no_scope(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=scene.run(gateway, scope=[]))


@_refused("child run that widens its scope", "policy_denied")
def _child_scope(scene: Scene) -> Any:
    gateway = scene.gateway()
    parent = scene.run(gateway, scope=["orders.*"])
    return scene.attempt(gateway, run=scene.hand.do(parent.spawn(agent="sub", scope=["*"]), "open"))


@_refused("child run with a larger budget", "budget_tool_calls")
def _child_budget(scene: Scene) -> Any:
    gateway = scene.gateway()
    parent = scene.run(gateway, budget=Budget(max_tool_calls=1))
    child = scene.hand.do(parent.spawn(agent="sub", budget=Budget(max_tool_calls=100)), "open")
    assert scene.attempt(gateway, run=child).value == "paid"  # type: ignore[union-attr]
    scene.ran.clear()
    return scene.attempt(gateway, run=child)


@_refused("child run that forgets a label", "policy_denied")
def _child_label(scene: Scene) -> Any:
    text = of({"allow": "pay"}) + "  - id: secret\n    deny: pay\n    when: {run: {labels: {any: [secret]}}}\n"
    gateway = scene.gateway(Policy.from_string(text))
    parent = scene.run(gateway, labels=["secret"])
    return scene.attempt(gateway, run=scene.hand.do(parent.spawn(agent="sub"), "open"))


@_refused("labels that another handle of the run has gained meanwhile", "policy_denied")
def _gained(scene: Scene) -> Any:
    reading = scene.tool("read", output_labels=["secret"], effect="read")
    text = (
        of({"allow": '["pay", "read"]'}) + "  - id: secret\n    deny: pay\n    when: {run: {labels: {any: [secret]}}}\n"
    )
    gateway = scene.gateway(Policy.from_string(text), tools=[scene.pay, reading])
    run = scene.run(gateway)
    other = scene.hand.do(gateway, "resume", run.run_id)
    scene.attempt(gateway, name="read", run=other)
    scene.ran.clear()
    return scene.attempt(gateway, run=run)


@_refused("nobody's run", "no_active_run")
def _outside(scene: Scene) -> Any:
    scene.gateway()
    return scene.pay(5)


@_refused("run that was never opened", "no_active_run")
def _unopened(scene: Scene) -> Any:
    gateway = scene.gateway()
    return scene.attempt(gateway, run=gateway.run(agent="bot", environment="prod"))


@_refused("thread that has no run", "no_active_run")
def _thread(scene: Scene) -> Any:
    gateway = scene.gateway()
    found: list[BaseException] = []

    def work() -> None:
        try:
            scene.pay(5)
        except BaseException as error:
            found.append(error)

    with gateway.run(agent="bot", environment="prod"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    raise found[0]


@_refused("generator that was broken off inside a run", "no_active_run run_ended")
def _generator(scene: Scene) -> Any:
    gateway = scene.gateway()

    def working() -> Any:
        with gateway.run(agent="bot", environment="prod"):
            yield 1
            yield 2

    for _ in (steps := working()):
        break
    steps.close()
    return scene.pay(5)


@_refused("async generator that was broken off inside a run", "no_active_run run_ended")
def _async_generator(scene: Scene) -> Any:
    gateway = scene.gateway()

    async def working() -> Any:
        async with gateway.run(agent="bot", environment="prod"):
            yield 1
            yield 2

    async def main() -> Any:
        steps = working()
        async for _ in steps:
            break
        await __import__("asyncio").create_task(steps.aclose())  # as the loop does: in another task
        return scene.pay(5)

    return scene.hand.runner.run(main())


@_refused("run that has ended", "run_ended")
def _ended(scene: Scene) -> Any:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.hand.do(run, "complete")
    return scene.attempt(gateway, run=run)


@_refused("child of a run that was stopped", "run_ended")
def _orphan(scene: Scene) -> Any:
    gateway = scene.gateway()
    parent = scene.run(gateway)
    child = scene.hand.do(parent.spawn(agent="sub"), "open")
    scene.hand.do(parent, "stop")
    return scene.attempt(gateway, run=child)


@_refused("gateway that is closed", "gateway_closed")
def _closed(scene: Scene) -> Any:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.hand.do(gateway, "close")
    return scene.attempt(gateway, run=run)


@_refused("run of another gateway", "no_active_run")
def _other_gateway(scene: Scene) -> Any:
    gateway, other = scene.gateway(Policy()), scene.gateway()
    return scene.hand.do(gateway, "call", "pay", {"amount": 5}, run=scene.run(other))


@_refused("function that is not registered in the gateway of the run", "unknown_tool")
def _unregistered(scene: Scene) -> Any:
    gateway = scene.gateway()
    other = scene.tool("other")
    with gateway.run(agent="bot", environment="prod"):
        return other(5)


@_refused("another function of the same name", "unknown_tool")
def _shadow(scene: Scene) -> Any:
    gateway = scene.gateway()
    other = scene.tool("pay")
    with gateway.run(agent="bot", environment="prod"):
        return other(5)


@_refused("async tool from sync code", "async_tool")
def _async_tool(scene: Scene) -> Any:
    @tool(name="send", effect="irreversible")
    async def send() -> str:
        scene.ran.append("sent")
        return "sent"

    gateway = scene.gateway(Policy(allow={"send"}), tools=[send])
    return scene.run(gateway).attempt("send")


@_refused("sandbox that cannot be enforced", "ConfigurationError unenforceable")
def _sandbox(scene: Scene) -> Any:
    caged = scene.tool("pay", sandbox=Sandbox(network="none"))
    return scene.attempt(scene.gateway(tools=[caged]))


@_refused("limits of a policy that cannot be enforced", "file AG unenforceable")
def _limits(scene: Scene) -> Any:
    text = RULES + "  - id: caged\n    constrain: pay\n    limits: {network: none}\n"
    return scene.attempt(scene.load(text))


# --- limits that are reached ---------------------------------------------------------------------------


def _spent(name: str, reason: str, budget: Budget, use: Callable[[Scene, Any], Any]) -> None:
    def make(scene: Scene) -> Any:
        gateway = scene.gateway()
        run = scene.run(gateway, budget=budget)
        use(scene, run)
        scene.ran.clear()
        return scene.attempt(gateway, run=run)

    _add(name, reason, make)


def _pay(scene: Scene, run: Any) -> None:
    scene.attempt(run._gateway, run=run)


def _think(scene: Scene, run: Any) -> None:
    scene.hand.do(run, "charge_llm", model="m", input_tokens=60, output_tokens=60, cost_usd="0.5")


_spent("no more calls", "budget_tool_calls", Budget(max_tool_calls=1), _pay)
_spent("no more steps", "budget_steps", Budget(max_steps=1), _pay)
_spent("no more calls of the tool", "budget_tool_calls", Budget(per_tool={"pay": 1}), _pay)
_spent("tokens overrun", "budget_tokens", Budget(max_tokens=100), _think)
_spent("input tokens overrun", "budget_tokens", Budget(max_input_tokens=50), _think)
_spent("output tokens overrun", "budget_tokens", Budget(max_output_tokens=50), _think)
_spent("money overrun", "budget_cost", Budget(max_cost_usd="0.4"), _think)
_spent("time of the run is over", "budget_time", Budget(max_seconds=60), lambda s, _: s.clock.advance(60))
_spent("working time is over", "budget_time", Budget(max_working_seconds=60), lambda s, _: s.clock.advance(60))


@_refused("the same call again and again", "loop_detected")
def _loop(scene: Scene) -> Any:
    gateway = scene.gateway(max_repeats=2)
    run = scene.run(gateway)
    for number in range(2):
        scene.attempt(gateway, run=run, call_id=f"c{number}")
    scene.ran.clear()
    return scene.attempt(gateway, run=run, call_id="c9")


@_refused("loop limit of a run that another handle resumed", "loop_detected")
def _resumed_loop(scene: Scene) -> Any:
    gateway = scene.gateway()
    run = scene.run(gateway, budget=Budget(max_repeats=1))
    scene.attempt(gateway, run=run, call_id="c1")
    scene.ran.clear()
    return scene.attempt(gateway, run=scene.hand.do(gateway, "resume", run.run_id), call_id="c2")


@_refused("call id of another call", "idempotency_conflict")
def _conflict(scene: Scene) -> Any:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.attempt(gateway, run=run, call_id="c1")
    scene.ran.clear()
    return scene.attempt(gateway, {"amount": 6}, run=run, call_id="c1")


@_refused("idempotency key of another call", "idempotency_conflict")
def _key_conflict(scene: Scene) -> Any:
    gateway = scene.gateway()
    scene.attempt(gateway, idempotency_key="k1")
    scene.ran.clear()
    return scene.attempt(gateway, {"amount": 6}, idempotency_key="k1")


def _killed(name: str, **what: Any) -> None:
    def make(scene: Scene) -> Any:
        gateway = scene.gateway()
        run = scene.run(gateway, tenant="acme", run_id="r1")
        scene.hand.do(gateway.switches, "kill", **what, reason="test", by="ops")
        return scene.attempt(gateway, run=run)

    _add(f"kill switch: {name}", "killed", make)


_killed("everything", everything=True)
_killed("tenant", tenant="acme")
_killed("agent", agent="bot")
_killed("agent of the tenant", agent="bot", tenant="acme")
_killed("user", user="u-1")
_killed("tool", tool="pay")
_killed("run", run="r1")
_killed("run with its tenant", run="r1", tenant="acme")


@_refused("kill switch of the parent run", "killed")
def _parent_killed(scene: Scene) -> Any:
    gateway = scene.gateway()
    parent = scene.run(gateway)
    child = scene.hand.do(parent.spawn(agent="sub"), "open")
    scene.hand.do(gateway.switches, "kill", run=parent.run_id, reason="test", by="ops")
    return scene.attempt(gateway, run=child)


@_refused("kill switch of nobody's run", "RunError")
def _nobody_killed(scene: Scene) -> Any:
    scene.hand.do(scene.gateway().switches, "kill", run="none", reason="test", by="ops")


# --- parts that break -----------------------------------------------------------------------------------


@_refused("store that is down when a run is opened", "StoreUnavailable")
def _store_open(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(store=Broken(scene.store(), OpenRun)))


@_refused("store that is down when a call begins", "store_unavailable")
def _store_begin(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(store=Broken(scene.store(), Begin)))


class _Loud:
    required = True

    def write(self, records: Any) -> None:
        if any(b"call.intent" in record.line for record in records):
            raise OSError("the disk is full")

    def close(self) -> None:
        pass


@_refused("required sink that fails", "audit_unavailable")
def _sink(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(sinks=[_Loud()]))


class _Blind:
    def redact(self, value: Any) -> Any:
        raise ValueError("cannot see")


@_refused("redactor that fails", "internal_error")
def _redactor(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(redactor=_Blind()))


def _no_secret(name: str, provider: Callable[[Any], Any]) -> None:
    def make(scene: Scene) -> Any:
        paying = scene.tool("pay", credentials=["bank"])
        return scene.attempt(scene.gateway(tools=[paying], credentials=provider))

    _add(name, "credentials_unavailable ConfigurationError", make)


def _raises(_: Any) -> Any:
    raise RuntimeError("vault is sealed")


_no_secret("credential provider that fails", _raises)
_no_secret("credential provider that knows nothing", lambda _: None)
_no_secret("credential that is no text", lambda _: 5)


@_refused("tool that needs credentials which nobody provides", "credentials_unavailable ConfigurationError")
def _no_provider(scene: Scene) -> Any:
    return scene.attempt(scene.gateway(tools=[scene.tool("pay", credentials=["bank"])]))


def _bad_key(name: str, key: Callable[[Any], Any]) -> None:
    def make(scene: Scene) -> Any:
        return scene.attempt(scene.gateway(tools=[scene.tool("pay", idempotency_key=key)]))

    _add(name, "internal_error", make)


_bad_key("idempotency key that cannot be made", _raises)
_bad_key("idempotency key that is a number", lambda arguments: arguments["amount"])
_bad_key("idempotency key that is empty", lambda _: "")


# --- approvals -----------------------------------------------------------------------------------------


def _asking(scene: Scene, terms: str = "{}", **settings: Any) -> tuple[ToolGateway, Any]:
    gateway = scene.load(of({"require_approval": "pay", "approval": terms}), clock=scene.clock, **settings)
    return gateway, scene.run(gateway)


def _approval(name: str, reason: str, use: Callable[[Scene, ToolGateway, Any, str], Any], terms: str = "{}") -> None:
    """The call is made, ``use`` does something wrong with the request, and the call is made again."""

    def make(scene: Scene) -> Any:
        gateway, run = _asking(scene, terms)
        request = scene.attempt(gateway, run=run, call_id="c1").request  # type: ignore[union-attr]
        outcome = use(scene, gateway, run, request.id)
        return outcome if outcome is not None else scene.attempt(gateway, run=run, call_id="c1")

    _add(name, reason, make)


def _approver(name: str, reason: str, answer: Callable[[Any], Any]) -> None:
    def make(scene: Scene) -> Any:
        gateway, run = _asking(scene, approver=Approves(answer))
        return scene.attempt(gateway, run=run)

    _add(name, reason, make)


def _vote(scene: Scene, gateway: ToolGateway, name: str, approval: str, **settings: Any) -> None:
    scene.hand.do(gateway.approvals, name, approval, **{"by": ANN, **settings})


_approver("approver that fails", "approval_pending", _raises)
_approver("approver that has no answer", "suspended", lambda _: None)
_approver("approver that says True", "approval_pending internal_error", lambda _: True)
_approver("approver that says yes", "approval_pending internal_error", lambda _: "approve")
_approver("approver that is the requester", "approval_pending", lambda _: Verdict("approve", ApproverIdentity("u-1")))
_approver("approver that is the agent", "approval_pending", lambda _: Verdict("approve", ApproverIdentity("bot")))
_approver("approver that is nobody", "approval_pending", lambda _: Verdict("approve", ApproverIdentity("")))
_approver("approver that rejects", "approval_rejected", lambda _: Verdict("reject", ANN, reason="no"))
_approver("approver that terminates", "approval_rejected run_ended", lambda _: Verdict("terminate", ANN))
_approver(
    "approver that edits into what is invalid",
    "invalid_arguments approval_pending",
    lambda _: Verdict("approve", ANN, arguments={"amount": "all"}),
)

_approval("nobody has decided", "suspended", lambda *_: None)
_approval("approval that was made up", "ApprovalError", lambda s, g, _r, _i: _vote(s, g, "approve", "ap_" + "0" * 32))
_approval("approval of another tenant", "ApprovalError", lambda s, g, _r, i: _vote(s, g, "approve", i, tenant="other"))
_approval("approver that is a text", "ApprovalError", lambda s, g, _r, i: _vote(s, g, "approve", i, by="ann"))
_approval("approver without the role", "ApprovalError", lambda s, g, _r, i: _vote(s, g, "approve", i), "{roles: [cfo]}")
_approval("one vote of two", "suspended", lambda s, g, _r, i: _vote(s, g, "approve", i), "{quorum: 2}")
_approval("scope that is none", "ApprovalError", lambda s, g, _r, i: _vote(s, g, "approve", i, scope="forever"))
_approval("rejected", "approval_rejected", lambda s, g, _r, i: _vote(s, g, "reject", i, reason="no"))
_approval(
    "edit that is invalid", "ApprovalError", lambda s, g, _r, i: _vote(s, g, "approve", i, arguments={"amount": "all"})
)
_approval(
    "edit that is not permitted",
    "ApprovalError",
    lambda s, g, _r, i: _vote(s, g, "approve", i, arguments={"amount": 6}),
    "{edit: false}",
)


def _both(scene: Scene, gateway: ToolGateway, _run: Any, approval: str) -> None:
    _vote(scene, gateway, "reject", approval)
    _vote(scene, gateway, "approve", approval)


_approval("approved after it was rejected", "ApprovalError", _both)


def _same_twice(scene: Scene, gateway: ToolGateway, _run: Any, approval: str) -> None:
    _vote(scene, gateway, "approve", approval)
    _vote(scene, gateway, "approve", approval)


_approval("one approver counted twice", "ApprovalError", _same_twice, "{quorum: 2}")


def _late(scene: Scene, gateway: ToolGateway, _run: Any, approval: str) -> None:
    scene.clock.advance(3601)
    _vote(scene, gateway, "approve", approval)


_approval("approved too late", "ApprovalError", _late)


def _unused(scene: Scene, gateway: ToolGateway, _run: Any, approval: str) -> None:
    _vote(scene, gateway, "approve", approval)
    scene.clock.advance(3601)


_approval("approval that was not used in time", "approval_expired", _unused)
_approval("nobody decided in time", "approval_expired", lambda s, *_: s.clock.advance(3601))


def _changed(scene: Scene, gateway: ToolGateway, run: Any, approval: str) -> Any:
    _vote(scene, gateway, "approve", approval)
    return scene.attempt(gateway, {"amount": 500}, run=run, call_id="c1")


_approval("other arguments than were approved", "idempotency_conflict", _changed)


def _elsewhere(scene: Scene, gateway: ToolGateway, run: Any, approval: str) -> Any:
    _vote(scene, gateway, "approve", approval)
    return scene.attempt(gateway, run=run, call_id="c2")


_approval("an approval for another call of the same kind", "suspended", _elsewhere)


def _other_run(scene: Scene, gateway: ToolGateway, _run: Any, approval: str) -> Any:
    _vote(scene, gateway, "approve", approval, scope="run")
    return scene.attempt(gateway, run=scene.run(gateway), call_id="c1")


_approval("an approval for another run", "suspended", _other_run)


def _other_policy(scene: Scene, gateway: ToolGateway, run: Any, approval: str) -> Any:
    _vote(scene, gateway, "approve", approval)
    changed = scene.gateway(Policy.from_string(of({"deny": "pay"})), store=gateway.store)
    return scene.attempt(changed, run=scene.hand.do(changed, "resume", run.run_id), call_id="c1")


_approval("approved, and denied by policy since", "policy_denied", _other_policy)


def _ended_since(scene: Scene, gateway: ToolGateway, run: Any, approval: str) -> None:
    _vote(scene, gateway, "approve", approval)
    scene.hand.do(run, "stop")


_approval("approved for a run that has ended since", "run_ended", _ended_since)


def _vote_after_end(scene: Scene, gateway: ToolGateway, run: Any, approval: str) -> None:
    scene.hand.do(run, "stop")
    _vote(scene, gateway, "approve", approval)


_approval("approval of a run that has ended", "ApprovalError", _vote_after_end)

# --- observing does not excuse everything -------------------------------------------------------------


def _observing(name: str, reason: str, use: Callable[[Scene, ToolGateway], Any]) -> None:
    _add(f"observe mode: {name}", reason, lambda s: use(s, s.gateway(Policy(deny={"pay"}, mode="observe"))))


def _after_kill(scene: Scene, gateway: ToolGateway) -> Any:
    run = scene.run(gateway)
    scene.hand.do(gateway.switches, "kill", everything=True, reason="test", by="ops")
    return scene.attempt(gateway, run=run)


def _over_budget(scene: Scene, gateway: ToolGateway) -> Any:
    run = scene.run(gateway, budget=Budget(max_tool_calls=1))
    scene.attempt(gateway, run=run)
    scene.ran.clear()
    return scene.attempt(gateway, run=run)


_observing("unknown tool", "unknown_tool", lambda s, g: s.attempt(g, name="pya"))
_observing("invalid arguments", "invalid_arguments", lambda s, g: s.attempt(g, {"amount": "5"}))
_observing("kill switch", "killed", _after_kill)
_observing("budget", "budget_tool_calls", _over_budget)

__all__ = ["MISTAKES", "Mistake", "StoreUnavailable"]
