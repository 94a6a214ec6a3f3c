"""Governed functions keep their face and hand every call over; nothing runs by itself."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

import pytest

from agentguard.domain.context import CallContext
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused, InvalidArguments, NoActiveRun, ToolDefinitionError
from agentguard.tools.current import CURRENT
from agentguard.tools.registry import ToolRegistry, tool_of
from agentguard.tools.tool import Tool, define, tool

RAN: list[Any] = []


class Credentials:
    """Stands for the class of the same marker."""

    __agentguard_inject__ = "credentials"


class Recorder:
    """A caller that validates and remembers, and never runs a body."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tool, dict[str, Any]]] = []

    def call_tool(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        self.calls.append((tool, arguments))
        return "governed"

    async def acall_tool(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        self.calls.append((tool, arguments))
        return "agoverned"


@pytest.fixture
def run() -> Iterator[Recorder]:
    """A current run."""
    recorder = Recorder()
    token = CURRENT.set(recorder)
    yield recorder
    CURRENT.reset(token)
    assert RAN == []


@tool
def refund(order_id: str, amount: int = 1, *, note: str | None = None) -> str:
    """Pay money back.

    More for people.
    """
    RAN.append(order_id)
    return "paid"


@tool(name="mail.send", effect="irreversible", risk="high")
async def send(to: str) -> bool:
    """Send mail."""
    RAN.append(to)
    return True


class Shop:
    """A service with tools."""

    def __init__(self, name: str) -> None:
        self.name = name

    @tool(name="shop.price", effect="pure")
    def price(self, sku: str, /, currency: str = "EUR") -> str:
        """Price of something."""
        return f"{self.name} {sku} {currency}"

    @tool(name="shop.restock", effect="idempotent")
    async def restock(self, sku: str) -> str:
        return f"{self.name} {sku}"

    @staticmethod
    @tool(name="shop.rate")
    def rate(amount: int) -> int:
        return amount

    @classmethod
    @tool(name="shop.open")
    def open(cls, name: str) -> str:
        return f"{cls.__name__} {name}"

    @tool(name="shop.broken")
    def broken(amount: int) -> int:
        return amount


class Branch(Shop):
    """A subclass."""


def test_the_governed_function_looks_like_the_raw_one() -> None:
    assert refund.__name__ == "refund"
    assert refund.__doc__ == refund.ungoverned.__doc__
    assert str(inspect.signature(refund)) == str(inspect.signature(refund.ungoverned))
    assert get_type_hints(refund) == get_type_hints(refund.ungoverned)
    assert refund.__module__ == __name__


def test_colour_is_kept() -> None:
    assert inspect.iscoroutinefunction(send)
    assert not inspect.iscoroutinefunction(refund)
    assert send.tool.is_async
    assert not refund.tool.is_async


def test_the_raw_function_is_there_for_unit_tests() -> None:
    assert refund.ungoverned("A-1") == "paid"
    assert asyncio.run(send.ungoverned("x")) is True
    RAN.clear()


def test_the_description_is_the_first_paragraph_of_the_docstring() -> None:
    assert refund.spec.description == "Pay money back."
    assert tool(lambda: 1, name="f", description="Other.").spec.description == "Other."


def test_undeclared_means_irreversible_and_medium_risk() -> None:
    assert (refund.spec.effect, refund.spec.risk) == ("irreversible", "medium")


def test_outside_a_run_nothing_runs() -> None:
    for call in (lambda: refund("A-1"), lambda: asyncio.run(send("x"))):
        with pytest.raises(NoActiveRun) as caught:
            call()
        assert caught.value.reason is StopReason.NO_ACTIVE_RUN
        assert "gateway.run" in caught.value.for_people
    assert RAN == []


def test_a_new_thread_is_outside_the_run(run: Recorder) -> None:
    seen: list[Exception] = []

    def work() -> None:
        try:
            refund("A-1")
        except CallRefused as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert isinstance(seen[0], NoActiveRun)
    assert run.calls == []


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        (("A",), {}, {"order_id": "A"}),
        (("A", 2), {}, {"order_id": "A", "amount": 2}),
        (("A",), {"amount": 2, "note": "n"}, {"order_id": "A", "amount": 2, "note": "n"}),
        ((), {"order_id": "A"}, {"order_id": "A"}),
        ((), {}, {}),
    ],
)
def test_positional_and_keyword_arguments_are_handed_over_by_name(
    run: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert refund(*args, **kwargs) == "governed"
    assert run.calls == [(refund.tool, expected)]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(("A", 1, "note"), {}), (("A",), {"order_id": "B"}), ((), {"oder_id": "A"}), (("A",), {"amuont": 3})],
)
def test_a_call_that_python_would_not_accept_is_a_refusal(
    run: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        refund(*args, **kwargs)
    assert caught.value.reason is StopReason.INVALID_ARGUMENTS
    assert run.calls == []


def test_async_functions_are_handed_over_when_awaited(run: Recorder) -> None:
    async def main() -> Any:
        with pytest.raises(InvalidArguments):
            await send("x", "y")  # type: ignore[call-arg]
        return await send("x")

    assert asyncio.run(main()) == "agoverned"
    assert run.calls == [(send.tool, {"to": "x"})]


def test_methods_are_governed_for_their_instance(run: Recorder) -> None:
    shop = Shop("north")
    assert shop.price("S", currency="USD") == "governed"
    bound, arguments = run.calls[0]
    assert arguments == {"sku": "S", "currency": "USD"}
    assert bound.body(**bound.validate(arguments).kwargs) == "north S USD"
    assert "self" not in bound.spec.input_schema["properties"]
    assert str(inspect.signature(shop.price)).startswith("(sku")


def test_async_methods_are_governed_for_their_instance(run: Recorder) -> None:
    assert asyncio.run(Shop("north").restock("S")) == "agoverned"
    assert asyncio.run(run.calls[0][0].body(sku="S")) == "north S"


def test_a_registered_method_is_the_one_that_is_called(run: Recorder) -> None:
    north, south = Shop("north"), Shop("south")
    registered = ToolRegistry.of(north.price)["shop.price"]
    north.price("S")
    south.price("S")
    assert registered.is_same(run.calls[0][0])
    assert not registered.is_same(run.calls[1][0])
    assert not registered.is_same(Shop.price.tool)
    assert registered.is_same(registered.with_spec(risk="high"))


def test_inherited_methods_act_on_the_instance_of_the_subclass(run: Recorder) -> None:
    branch = Branch("west")
    branch.price("S")
    assert run.calls[0][0].is_same(tool_of(branch.price))
    assert tool_of(branch.price).body(sku="S") == "west S EUR"


def test_static_and_class_methods_work_below_their_own_decorator(run: Recorder) -> None:
    shop: Any = Shop("x")
    Shop.rate(3)
    shop.rate(4)
    shop.open("a")
    assert [arguments for _, arguments in run.calls] == [{"amount": 3}, {"amount": 4}, {"name": "a"}]
    assert tool_of(Shop.open).body(name="a") == "Shop a"
    assert tool_of(Shop.rate).is_same(run.calls[0][0])
    assert tool_of(Shop.open).is_same(run.calls[2][0])


def test_a_method_without_self_is_refused_where_it_is_used(run: Recorder) -> None:
    with pytest.raises(InvalidArguments):
        Shop("x").broken(1)  # type: ignore[call-arg]
    with pytest.raises(ToolDefinitionError, match="no self"):
        tool_of(Shop("x").broken)
    with pytest.raises(InvalidArguments, match="instance"):
        Shop.price()  # type: ignore[call-arg]
    assert run.calls == []


def test_positional_only_parameters_reach_the_body_and_no_keyword_reaches_them() -> None:
    @tool
    def area(width: int, height: int, /, unit: str = "m") -> str:
        return f"{width}x{height}{unit}"

    assert area.tool.bind((2, 3), {}) == {"width": 2, "height": 3}
    assert area.tool.body(**area.tool.validate({"width": 2, "height": 3}).kwargs) == "2x3m"
    with pytest.raises(Exception, match="by position"):
        area.tool.bind((2,), {"height": 3})

    @tool
    async def aarea(width: int, /) -> int:
        return width

    assert aarea.tool.is_async
    assert asyncio.run(aarea.tool.body(width=2)) == 2


def test_injected_parameters_are_invisible_and_cannot_be_passed(run: Recorder) -> None:
    @tool(credentials=["smtp"])
    def mail(to: str, secrets: Credentials, call: CallContext | None = None, subject: str = "") -> None:
        del to, secrets, call, subject

    assert mail.tool.injected == {"secrets": "credentials", "call": "context"}
    assert list(mail.spec.input_schema["properties"]) == ["to", "subject"]
    assert str(inspect.signature(mail)).startswith("(to: 'str', subject: 'str' = '')")
    assert "secrets" in mail.__annotations__
    assert mail.spec.takes_key
    call: Any = mail
    call("a@b", "hello")
    assert run.calls[0][1] == {"to": "a@b", "subject": "hello"}
    for name in ("secrets", "call"):
        with pytest.raises(InvalidArguments, match="injected"):
            call("a@b", **{name: None})
    with pytest.raises(Exception, match="unknown argument"):
        mail.tool.validate({"to": "a", "secrets": "x"})


def test_an_existing_function_can_be_made_a_tool() -> None:
    def plain(x: int) -> int:
        return x

    governed = tool(plain, name="plain.one", effect="pure")
    assert governed.spec.name == "plain.one"
    assert governed.ungoverned is plain
    assert tool(name="b")(plain).spec.name == "b"
    assert tool()(plain).spec.name == "plain"
    assert tool(None, name="c")(plain).spec.name == "c"


def test_bound_methods_partials_and_callable_objects_can_be_tools() -> None:
    class Adder:
        async def __call__(self, x: int) -> int:
            return x + 1

        def plus(self, x: int) -> int:
            return x + 2

    adder = Adder()
    assert tool(adder.plus, name="plus").tool.body(x=1) == 3
    called = tool(adder, name="adder")
    assert called.tool.is_async
    assert called.spec.input_schema["properties"] == {"x": {"type": "integer"}}
    assert asyncio.run(called.tool.body(x=1)) == 2

    def add(x: int, y: int) -> int:
        return x + y

    partial = tool(functools.partial(add, 1), name="partial")
    assert partial.spec.input_schema["properties"] == {"y": {"type": "integer"}}
    assert partial.tool.body(y=2) == 3


def test_a_tool_is_a_value() -> None:
    same, other = refund.tool.with_spec(), refund.tool.with_spec(risk="critical")
    assert same == refund.tool
    assert hash(same) == hash(refund.tool)
    assert other != refund.tool
    assert other.spec.digest != refund.spec.digest
    assert refund.spec.risk == "medium"
    assert refund.tool != "refund"
    assert "refund" in repr(refund.tool)
    assert refund.tool.name == "refund"


def test_the_digest_covers_every_fact() -> None:
    def body(x: int = 1, y: int = 2) -> dict[str, int]:
        return {"x": x, "y": y}

    def probe(x: int) -> None:
        del x

    def key(arguments: Mapping[str, Any]) -> str:
        return str(arguments)

    base = define(body, {"effect": "read"}).spec.digest
    changes: list[dict[str, Any]] = [
        {"description": "d"},
        {"permissions": ["p"]},
        {"owner": "o"},
        {"version": "2"},
        {"deprecated": True},
        {"deprecated": True, "replaced_by": "z"},
        {"cost_usd": "0.1"},
        {"effect": "pure"},
        {"risk": "low"},
        {"output_labels": ["l"]},
        {"output_trust": {"x": "untrusted"}},
        {"cosmetic_args": ["x"]},
        {"timeout": 1},
        {"retry": 2},
        {"breaker": 2},
        {"concurrency": 2},
        {"fallback": "z"},
        {"idempotency_key": "x"},
        {"idempotency_key": key},
        {"inline": True},
        {"audit": False},
        {"probe": probe},
        {"output_schema": {"type": "object"}},
        {"input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    ]
    digests = {define(body, {"effect": "read", **change}).spec.digest for change in changes}
    assert len(digests) == len(changes)
    assert base not in digests
    assert define(body, {"effect": "read"}).spec.digest == base
    assert define(body, {"effect": "read", "cost_usd": "0.0"}).spec.digest == base
