"""Tools that cannot be governed as declared are refused where they are declared, with a way out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentguard.domain.context import CallContext
from agentguard.domain.plans import Breaker, Retry, Sandbox
from agentguard.errors import ToolDefinitionError
from agentguard.tools.tool import define, tool
from tests.naming import shown as shown_id


class Credentials:
    """Stands for the class of the same marker."""

    __agentguard_inject__ = "credentials"


def plain(x: int = 1, note: str = "") -> int:
    return x + len(note)


def rejected(code: str, function: Any = plain, /, name: str | None = None, **settings: Any) -> str:
    with pytest.raises(ToolDefinitionError) as caught:
        define(function, settings, name=name)
    assert caught.value.code == code
    return str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "a b", "ä", "a" * 129, "a\n", "<lambda>", "a;b", "a*"])
def test_bad_names(name: str) -> None:
    assert "letters" in rejected("AG210", name=name)


def test_a_lambda_needs_a_name() -> None:
    rejected("AG210", lambda x: x)


@pytest.mark.parametrize("name", ["a", "orders.get", "mcp:server/tool-1", "A_b", "a" * 128])
def test_good_names(name: str) -> None:
    assert define(plain, {}, name=name).spec.name == name


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        *(("AG211", {"effect": value}) for value in ("reed", "READ", 1, ["read"], "")),
        *(("AG211", {"risk": value}) for value in ("hihg", 3, True)),
        *(("AG211", {"permissions": value}) for value in (1, [1], [""], ["a", "a"], ["a\n"], {"a": 1}, [" "])),
        *(("AG211", {"owner": value}) for value in ("", 1, "a\x00")),
        *(("AG211", {"version": value}) for value in ("", True, 1.0)),
        *(("AG211", {"deprecated": value}) for value in ("yes", 1)),
        *(("AG211", {"description": value}) for value in (1, b"x")),
        *(("AG211", {"output_trust": value}) for value in ("untrusted", {"a": "no"}, {1: "trusted"}, {"a": True})),
        *(("AG211", {"audit": value}) for value in ("no", 0)),
        *(("AG211", {"inline": value}) for value in ("no", 1)),
        ("AG211", {"effect": "read", "retry": {"on": [BaseException]}}),
        ("AG211", {"effect": "read", "retry": {"on": []}}),
        ("AG211", {"effect": "read", "retry": {"attemps": 3}}),
        ("AG211", {"breaker": {"failure": 3}}),
        ("AG210", {"fallback": "a b"}),
        ("AG210", {"deprecated": True, "replaced_by": ""}),
        *(("AG215", {"timeout": value}) for value in (0, -1, "5", True, float("nan"), float("inf"), "soon")),
        *(("AG215", {"cost_usd": value}) for value in (0.1, True, "-1", "1e3", Decimal("nan"), "0.0000000001")),
        ("AG215", {"effect": "read", "retry": {"wait": "5"}}),
        ("AG215", {"effect": "read", "retry": Retry(wait_s=-1)}),
        ("AG215", {"breaker": {"reset": 0}}),
        *(("AG216", {"concurrency": value}) for value in (0, -1, True, 1.0, "2", 10**9)),
        *(("AG216", {"effect": "read", "retry": value}) for value in (0, True, 2.5, "3", Retry(attempts=0), 10**6)),
        *(("AG216", {"breaker": value}) for value in (0, True, Breaker(failures=0), {"failures": 0})),
        ("AG219", {"cosmetic_args": ["nope"]}),
        ("AG219", {"idempotency_key": ["nope"]}),
        ("AG219", {"idempotency_key": []}),
        ("AG220", {"credentials": ["smtp"]}),
        *(("AG221", {"sandbox": value}) for value in ({"memory": "1GB"}, Sandbox(), {}, True)),
        *(("AG224", {"probe": value}) for value in (1, "probe", lambda y: y, lambda *a: a, lambda a, /: a)),
        ("AG225", {"replaced_by": "z"}),
        ("AG225", {"deprecated": True, "replaced_by": "plain"}),
        ("AG227", {"fallback": "plain"}),
        ("AG229", {"timout": "5s"}),
        ("AG229", {"efect": "read"}),
    ],
    ids=lambda value: shown_id(value, 50),
)
def test_settings_that_cannot_be_honoured(code: str, settings: dict[str, Any]) -> None:
    assert rejected(code, **settings).startswith("tool plain: ")


@pytest.mark.parametrize("retry", [2, {"attempts": 5}, {}, Retry()])
def test_an_irreversible_tool_is_not_retried(retry: Any) -> None:
    message = rejected("AG212", retry=retry)
    assert "idempotent" in message
    assert "remove retry" in message


@pytest.mark.parametrize("effect", [None, "idempotent", "irreversible"])
def test_audit_stays_on_where_something_changes(effect: str | None) -> None:
    rejected("AG213", audit=False, effect=effect)
    assert define(plain, {"audit": False, "effect": "pure"}).spec.audit is False


def test_inline_and_timeout_exclude_each_other_for_blocking_tools() -> None:
    async def act() -> None: ...

    rejected("AG214", inline=True, timeout=1)
    assert define(act, {"inline": True, "timeout": 1}).spec.inline


def test_one_attempt_is_no_retry() -> None:
    assert define(plain, {"retry": 1}).spec.retry == Retry(attempts=1)


def test_settings_are_read_into_the_entry() -> None:
    spec = define(
        plain,
        {
            "effect": "read",
            "timeout": timedelta(seconds=2),
            "retry": {"attempts": 3, "wait": "50ms", "max_wait": "2s", "jitter": 0, "on": OSError},
            "breaker": {"failures": 2, "reset": "1m"},
            "cost_usd": "0.001",
            "permissions": ["b", "a"],
            "output_labels": "secret",
            "output_trust": {"*": "untrusted"},
            "version": 3,
            "idempotency_key": "x",
            "concurrency": 4,
            "owner": None,
        },
    ).spec
    assert spec.timeout_s == 2.0
    assert spec.retry == Retry(3, 0.05, 2.0, 0.0, (OSError,))
    assert spec.breaker == Breaker(2, 60.0)
    assert spec.cost_usd == Decimal("0.001")
    assert spec.permissions == ("a", "b")
    assert spec.output_labels == ("secret",)
    assert spec.version == "3"
    assert spec.idempotency_key == ("x",)
    assert define(plain, {"breaker": 7, "effect": "read", "retry": 2}).spec.breaker == Breaker(failures=7)


def generator() -> Iterator[int]:
    yield 1


async def agenerator() -> AsyncIterator[int]:
    yield 1


class Generating:
    def __call__(self) -> Iterator[int]:
        yield 1


class Static:
    static = staticmethod(plain)
    as_class: Any = classmethod(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "function",
    [
        *(generator, agenerator, Generating(), int, Credentials, property(plain), 5, "plain", None, print, iter),
        *(Static.__dict__["static"], Static.__dict__["as_class"], tool(plain, name="already")),
    ],
    ids=shown_id,
)
def test_what_is_no_plain_function_cannot_be_a_tool(function: Any) -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        define(function, {}, name="x")
    assert caught.value.code in ("AG217", "AG218")


@pytest.mark.parametrize("function", [lambda *args: args, lambda **kwargs: kwargs, lambda a, *args: a])
def test_open_parameter_lists_have_no_place_in_a_schema(function: Callable[..., Any]) -> None:
    assert "schema" in rejected("AG218", function, name="x")


def stray(x: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    del x


def test_hints_that_do_not_resolve() -> None:
    def act(x: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
        del x

    assert "TYPE_CHECKING" in rejected("AG218", act)
    act.__annotations__["x"] = "1 +"
    rejected("AG218", act)


def test_hints_are_not_looked_up_in_functions_that_have_nothing_to_do_with_the_tool() -> None:
    Missing = int  # noqa: F841 - a local of a caller must not be taken for the type

    def define_it() -> str:
        return rejected("AG218", stray)

    assert "Missing" in define_it()


def test_a_return_type_without_a_json_form() -> None:
    class Alien:
        pass

    def act() -> Alien:
        return Alien()

    assert "output_schema" in rejected("AG223", act)


def test_credentials_and_their_parameter_go_together() -> None:
    def act(secrets: Credentials) -> None:
        del secrets

    def twice(a: Credentials, b: Credentials) -> None:
        del a, b

    def by_position(a: CallContext, /) -> None:
        del a

    rejected("AG220", act)
    rejected("AG220", act, credentials=[])
    rejected("AG220", twice, credentials=["a"])
    rejected("AG220", by_position)
    assert define(act, {"credentials": ["a"]}).spec.credentials == ("a",)


def test_probes_take_arguments_by_name_and_the_context() -> None:
    def act(x: int, call: CallContext) -> None:
        del x, call

    async def probe(x: int, call: Any, context: CallContext, other: int = 1) -> None:
        del x, call, context, other

    made = define(act, {"probe": probe})
    assert made.probe is probe
    assert made.probe_is_async
    assert not define(act, {"probe": lambda **_: None}).probe_is_async
    rejected("AG224", act, probe=type)


def test_changed_entries_are_checked_too() -> None:
    made = define(plain, {"effect": "read", "retry": 2})
    for changes in ({"effect": "irreversible"}, {"name": "a b"}, {"sandbox": Sandbox()}, {"cosmetic_args": ("zz",)}):
        with pytest.raises(ToolDefinitionError):
            made.with_spec(**changes)
    assert made.with_spec(name="other").spec == replace(
        made.spec, name="other", digest=made.with_spec(name="other").spec.digest
    )


def test_a_definition_that_is_not_json_has_no_digest() -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        define(plain, {}).with_spec(description="\ud800")
    assert caught.value.code == "AG222"
