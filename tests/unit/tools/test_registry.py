"""The registry is a value; files tighten and never loosen; names on the wire lead back to one tool."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import documents
from agentguard.errors import PolicyError, ToolDefinitionError
from agentguard.tools.export import wire_names
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.tool import tool


@tool(name="orders.get", effect="read", risk="low", timeout="5s", permissions=["orders:read"])
def get_order(order_id: str) -> dict[str, str]:
    """Look up an order."""
    return {"order_id": order_id}


@tool(name="email.send", effect="irreversible", risk="high", cost_usd="0.001", idempotency_key="to", cosmetic_args="to")
async def send_email(to: str) -> str:
    """Send mail."""
    return to


@tool(
    effect="pure", deprecated=True, replaced_by="orders.get", concurrency=3, breaker=3, output_trust={"a": "untrusted"}
)
def old(x: int = 1) -> int:
    """Old."""
    return x


class Service:
    @tool(name="service.ping")
    def ping(self) -> str:
        return "pong"


def plain(x: int) -> int:
    return x


REGISTRY = ToolRegistry.of(send_email, get_order)


def rejected(code: str, make: Callable[[], Any]) -> str:
    with pytest.raises(ToolDefinitionError) as caught:
        make()
    assert caught.value.code == code
    return str(caught.value)


def test_tools_come_in_name_order() -> None:
    assert [item.name for item in REGISTRY] == ["email.send", "orders.get"]
    assert REGISTRY.names == ("email.send", "orders.get")
    assert len(REGISTRY) == 2
    assert "orders.get" in REGISTRY
    assert "orders" not in REGISTRY
    assert REGISTRY["orders.get"] is get_order.tool
    assert REGISTRY.get("orders") is None
    assert "orders.get" in repr(REGISTRY)
    assert "empty" in repr(ToolRegistry())


def test_a_registry_is_a_value() -> None:
    same = ToolRegistry.of(get_order.tool, send_email)
    larger = REGISTRY.with_tool(old)
    assert same == REGISTRY
    assert hash(same) == hash(REGISTRY)
    assert larger != REGISTRY
    assert len(REGISTRY) == 2
    assert larger.without("old") == REGISTRY
    assert REGISTRY != "registry"


def test_one_name_one_tool() -> None:
    other = tool(plain, name="orders.get")
    doubles: list[list[Any]] = [[get_order, get_order], [get_order, get_order.tool], [get_order, other]]
    for items in doubles:
        assert "twice" in rejected("AG226", functools.partial(ToolRegistry.of, *items))
    rejected("AG226", lambda: REGISTRY.with_tool(get_order))
    assert "with_spec" in rejected("AG226", lambda: ToolRegistry.of(Service().ping, Service().ping))
    service = Service()
    assert len(ToolRegistry.of(service.ping, Service.ping.tool.bound_to(Service()).with_spec(name="other"))) == 2


@pytest.mark.parametrize("item", [plain, 5, None, "orders.get", Service.ping, Service, len])
def test_only_tools_can_be_registered(item: Any) -> None:
    rejected("AG226", lambda: ToolRegistry.of(item))


def test_leaving_out_what_is_not_there_is_an_error() -> None:
    assert 'did you mean "orders.get"?' in rejected("AG226", lambda: REGISTRY.without("order.get"))
    rejected("AG226", lambda: REGISTRY.only(["zzz"]))
    assert REGISTRY.did_you_mean("orders_get") == 'did you mean "orders.get"?'
    assert REGISTRY.did_you_mean("zzzzzz") == ""


def test_fallbacks_exist_and_do_not_go_in_circles() -> None:
    a = tool(plain, name="a", fallback="b")
    b = tool(plain, name="b", fallback="a")
    c = tool(plain, name="b", fallback="c")
    d = tool(plain, name="c")
    assert len(ToolRegistry.of(a, c, d)) == 3
    assert "not registered" in rejected("AG227", lambda: ToolRegistry.of(a))
    assert "a -> b -> a" in rejected("AG227", lambda: ToolRegistry.of(a, b))
    rejected("AG227", lambda: ToolRegistry.of(a, c, d).without("c"))
    assert ToolRegistry.of(a, c, d).only(["a"]).names == ("a",)


def test_the_lock_names_every_definition() -> None:
    assert REGISTRY.lock() == {"email.send": send_email.spec.digest, "orders.get": get_order.spec.digest}


@pytest.mark.parametrize(
    ("name", "entry", "field", "value"),
    [
        ("orders.get", {"risk": "high"}, "risk", "high"),
        ("orders.get", {"effect": "idempotent"}, "effect", "idempotent"),
        ("orders.get", {"timeout": "2s"}, "timeout_s", 2.0),
        ("orders.get", {"timeout": None}, "timeout_s", 5.0),
        ("orders.get", {"retry": 3}, "retry.attempts", 3),
        ("orders.get", {"permissions": ["x"]}, "permissions", ("orders:read", "x")),
        ("orders.get", {"owner": "shop"}, "owner", "shop"),
        ("orders.get", {"output_labels": ["pii"]}, "output_labels", ("pii",)),
        ("orders.get", {"concurrency": 2}, "concurrency", 2),
        ("email.send", {"cost_usd": "0.002"}, "cost_usd", Decimal("0.002")),
        ("email.send", {"idempotency_key": ["to"]}, "idempotency_key", ("to",)),
        ("email.send", {"cosmetic_args": []}, "cosmetic_args", ()),
        ("old", {"output_trust": {"b": "untrusted"}}, "output_trust", {"a": "untrusted", "b": "untrusted"}),
        ("old", {"breaker": 2}, "breaker.failures", 2),
    ],
)
def test_entries_complete_and_tighten_decorators(name: str, entry: dict[str, Any], field: str, value: Any) -> None:
    found: Any = REGISTRY.with_tool(old).with_settings({name: entry})[name].spec
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        *(("email.send", {"effect": value}) for value in ("pure", "read", "idempotent")),
        *(("email.send", {"risk": value}) for value in ("low", "medium")),
        ("orders.get", {"timeout": "6s"}),
        ("orders.get", {"audit": False}),
        ("orders.get", {"inline": True, "timeout": "1s"}),
        ("email.send", {"cost_usd": "0"}),
        ("email.send", {"idempotency_key": lambda arguments: str(arguments)}),
        ("orders.get", {"cosmetic_args": ["order_id"]}),
        ("orders.get", {"credentials": ["x"]}),
        ("orders.get", {"input_schema": {}}),
        ("orders.get", {"output_schema": {}}),
        ("old", {"deprecated": False}),
        ("old", {"concurrency": 4}),
        ("old", {"breaker": 4}),
        ("old", {"output_trust": {"a": "trusted"}}),
        ("old", {"output_trust": {"new": "trusted"}}),
    ],
)
def test_entries_cannot_loosen_decorators(name: str, entry: dict[str, Any]) -> None:
    rejected("AG228", lambda: REGISTRY.with_tool(old).with_settings({name: entry}))


def test_retries_are_not_added_by_a_file() -> None:
    retried = tool(plain, name="r", effect="read", retry=2)
    rejected("AG228", lambda: ToolRegistry.of(retried).with_settings({"r": {"retry": 3}}))
    rejected("AG212", lambda: ToolRegistry.of(retried).with_settings({"r": {"effect": "irreversible"}}))


def test_a_tightened_tool_is_still_the_function_that_was_decorated() -> None:
    tightened = REGISTRY.with_settings({"orders.get": {"risk": "high"}})["orders.get"]
    assert tightened.is_same(get_order.tool)
    assert tightened.spec.digest != get_order.spec.digest
    assert tightened.validate({"order_id": "a"}).kwargs == {"order_id": "a"}


@pytest.mark.parametrize(
    ("mapping", "code"),
    [
        ({"orders.gte": {}}, "AG229"),
        ({"orders.get": None}, "AG229"),
        ({"orders.get": []}, "AG229"),
        ({"orders.get": {"rsik": "high"}}, "AG229"),
        ({"orders.get": {5: "high"}}, "AG229"),
        ({5: {}}, "AG229"),
        ([], "AG229"),
        ({"orders.get": {"sandbox": {}}}, "AG221"),
    ],
)
def test_entries_that_are_not_understood_are_errors(mapping: Any, code: str) -> None:
    rejected(code, lambda: REGISTRY.with_settings(mapping))


def test_tools_out_of_a_mapping() -> None:
    schema = {"properties": {"q": {"type": "string"}}, "required": ["q"]}
    registry = ToolRegistry.from_mapping(
        {
            "plain": {"effect": "pure"},
            "remote.search": {"input_schema": schema, "description": "Search."},
            "orders.get": {},
        },
        bodies={
            "plain": plain,
            "remote.search": lambda **found: found,
            "orders.get": get_order,
            "email.send": send_email,
        },
    )
    assert registry.names == ("email.send", "orders.get", "plain", "remote.search")
    assert registry["plain"].spec.effect == "pure"
    assert registry["remote.search"].spec.description == "Search."
    assert registry["orders.get"] == get_order.tool
    rejected("AG229", lambda: ToolRegistry.from_mapping({}, bodies={"other": get_order}))
    rejected("AG226", lambda: REGISTRY.with_settings({}, bodies={"orders.get": get_order}))


TEXT = """\
tools:
  orders.get: {risk: high, timeout: 2s}
  email.send:
    owner: comms
"""


def test_tools_out_of_a_file(tmp_path: Path) -> None:
    bodies: dict[str, Any] = {"orders.get": get_order, "email.send": send_email}
    path = tmp_path / "tools.yaml"
    path.write_text(TEXT)
    for source in (TEXT, path, str(path)):
        registry = ToolRegistry.from_yaml(source, bodies=bodies)
        assert registry["orders.get"].spec.timeout_s == 2.0
        assert registry["email.send"].spec.owner == "comms"


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("tools:\n  orders.get: {risk: low, timeout: 9s}\n", ["2:36: AG228"]),
        ("tools:\n  orders.get:\n    efect: read\n  orders.gte: {}\n", ["3:5: AG229", "4:3: AG229"]),
        ("tools:\n  email.send: {risk: hihg}\n", ["2:22: AG211"]),
        ("tools:\n  email.send: {fallback: nope}\n", ["1:1: AG227"]),
        ("tools:\n  orders.get: 5\n", ["2:3: AG229"]),
        ("tools:\n  - orders.get\n", ["2:3: AG229"]),
        ("tool:\n  orders.get: {}\n", ["1:1: AG229"]),
        ("- tools\n- more\n", ["1:1: AG229"]),
    ],
)
def test_findings_point_into_the_file(text: str, places: list[str]) -> None:
    with pytest.raises(PolicyError) as caught:
        ToolRegistry.from_yaml(text, bodies={"orders.get": get_order, "email.send": send_email})
    assert [
        str(item).split("<string>:")[1][: len(place)] for item, place in zip(caught.value.findings, places, strict=True)
    ] == places


def test_a_section_may_stand_anywhere_in_a_document() -> None:
    document = documents.load("a:\n  b:\n    orders.get: {risk: critical}\n")
    assert REGISTRY.with_document(document, ("a", "b"))["orders.get"].spec.risk == "critical"
    with pytest.raises(PolicyError, match="no section"):
        REGISTRY.with_document(document)


SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


class Foreign:
    """An object of an SDK."""

    def model_dump(self, *, by_alias: bool, exclude_none: bool) -> dict[str, Any]:
        assert by_alias
        assert exclude_none
        return {"name": "search", "inputSchema": SCHEMA, "annotations": {"readOnlyHint": True}}


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "function", "function": {"name": "search", "description": "Find.", "parameters": SCHEMA}},
        {"type": "function", "name": "search", "description": "Find.", "parameters": SCHEMA, "strict": True},
        {"name": "search", "description": "Find.", "input_schema": SCHEMA},
        {"name": "search", "inputSchema": SCHEMA, "outputSchema": {"type": "object"}},
        {"title": "search", "description": "Find.", **SCHEMA},
        Foreign(),
    ],
)
def test_definitions_of_others_become_tools(definition: Any) -> None:
    registry = ToolRegistry.from_json_schema([definition], bodies={"search": lambda **found: found})
    spec = registry["search"].spec
    assert spec.input_schema["required"] == ["q"]
    assert spec.description in ("Find.", "")
    assert (spec.effect, spec.risk) == ("irreversible", "medium")


def test_plain_schemas_by_name_and_settings_beside_them() -> None:
    registry = ToolRegistry.from_json_schema(
        {"a.b": {**SCHEMA, "description": "Find."}},
        bodies=lambda name: lambda **found: {name: found},
        settings={"a.b": {"effect": "read", "timeout": "2s"}},
    )
    assert registry["a.b"].spec.effect == "read"
    assert registry["a.b"].spec.description == "Find."
    assert registry["a.b"].validate({"q": "x"}).kwargs == {"q": "x"}


@pytest.mark.parametrize(
    ("definitions", "options", "code"),
    [
        ([{}], {}, "AG229"),
        ([5], {}, "AG229"),
        ([{"type": "web_search"}], {}, "AG229"),
        ([{"name": "a b", "input_schema": SCHEMA}], {}, "AG210"),
        ([{"input_schema": SCHEMA}], {}, "AG210"),
        ([{"name": "other", "input_schema": SCHEMA}], {}, "AG229"),
        ([{"name": "search", "input_schema": SCHEMA}] * 2, {}, "AG226"),
        ([{"name": "search", "input_schema": SCHEMA}], {"settings": {"serach": {}}}, "AG226"),
        ([{"name": "search", "input_schema": SCHEMA}], {"settings": {"search": 5}}, "AG229"),
        ({"search": 5}, {}, "AG222"),
        ({"search": {"type": "string"}}, {}, "AG222"),
    ],
)
def test_definitions_that_are_not_understood_are_errors(definitions: Any, options: dict[str, Any], code: str) -> None:
    bodies = {"search": lambda **found: found}
    rejected(code, lambda: ToolRegistry.from_json_schema(definitions, bodies=bodies, **options))


def test_exports_for_openai() -> None:
    chat, responses = REGISTRY.to_openai(), REGISTRY.to_openai(api="responses")
    assert chat[1]["function"]["name"] == "orders_get"
    assert chat[1]["function"]["parameters"] == get_order.spec.input_schema
    assert responses[1] == {"type": "function", **chat[1]["function"]}
    wrong: Any = "completions"
    with pytest.raises(ValueError, match="responses"):
        REGISTRY.to_openai(api=wrong)


def test_exports_for_anthropic() -> None:
    assert REGISTRY.to_anthropic()[1] == {
        "name": "orders_get",
        "description": "Look up an order.",
        "input_schema": get_order.spec.input_schema,
    }


@pytest.mark.parametrize(
    ("effect", "hints"),
    [
        ("pure", (True, False, True, False)),
        ("read", (True, False, True, True)),
        ("idempotent", (False, True, True, True)),
        ("irreversible", (False, True, False, True)),
    ],
)
def test_exports_for_mcp_say_what_the_effect_is(
    effect: Literal["pure", "read", "idempotent", "irreversible"], hints: tuple[bool, ...]
) -> None:
    exported = ToolRegistry.of(tool(plain, effect=effect)).to_mcp()[0]
    assert tuple(exported["annotations"].values()) == hints
    assert "outputSchema" not in exported
    assert REGISTRY.to_mcp()[1]["outputSchema"] == get_order.spec.output_schema


def test_exports_are_copies() -> None:
    for exported in (REGISTRY.to_openai()[1]["function"]["parameters"], REGISTRY.to_anthropic()[1]["input_schema"]):
        exported["properties"].clear()
    assert "order_id" in get_order.spec.input_schema["properties"]


def test_deprecation_is_visible_to_the_model() -> None:
    assert ToolRegistry.of(old).to_anthropic()[0]["description"] == "Old. Deprecated: use orders.get instead."
    gone = tool(plain, name="gone", deprecated=True)
    assert ToolRegistry.of(gone).to_anthropic()[0]["description"] == "Deprecated."


def test_wire_names_lead_back_to_their_tool() -> None:
    names = ("a.b", "a_b", "a/b", "c.d", "e" * 128, "e" * 127 + ".")
    registry = ToolRegistry.of(*(tool(plain, name=name) for name in names))
    assert registry.wire_name("a_b") == "a_b"
    assert registry.wire_name("c.d") == "c_d"
    for name in names:
        assert registry.by_wire_name(registry.wire_name(name)) is registry[name]
    assert registry.by_wire_name("a.b") is None


def test_hiding_tools_does_not_change_what_a_wire_name_means() -> None:
    registry = ToolRegistry.of(*(tool(plain, name=name) for name in ("a.b", "a_b")))
    hidden = registry.only(["a.b"])
    assert hidden.names == ("a.b",)
    assert hidden.wire_name("a.b") == registry.wire_name("a.b") != "a_b"
    assert hidden.by_wire_name("a_b") is None
    assert hidden.to_openai()[0]["function"]["name"] == registry.wire_name("a.b")
    with pytest.raises(KeyError):
        hidden.wire_name("a_b")


@given(st.sets(st.text("ab._-/:", min_size=1, max_size=4), max_size=12), st.randoms())
def test_wire_names_are_unique_and_independent_of_order(names: set[str], random: Any) -> None:
    shuffled = sorted(names)
    random.shuffle(shuffled)
    wire = wire_names(shuffled)
    assert wire == wire_names(sorted(names))
    assert len(set(wire.values())) == len(names)
    assert all(len(value) <= 64 and not set(value) - set("abcdef0123456789_-") for value in wire.values())


def test_a_made_up_suffix_cannot_take_another_tools_name() -> None:
    suffixed = wire_names(["a.b", "a/b"])["a.b"]
    names = ["a.b", "a/b", suffixed]
    for order in itertools.permutations(names):
        wire = wire_names(order)
        assert wire[suffixed] == suffixed
        assert len(set(wire.values())) == 3
