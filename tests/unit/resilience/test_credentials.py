"""Secrets go where they may, for one call, and show nowhere."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from agentguard.errors import ConfigurationError
from agentguard.protocols import AsyncCredentialProvider, CredentialProvider, CredentialRequest
from agentguard.resilience.credentials import (
    AsyncCallableCredentials,
    CallableCredentials,
    Credentials,
    EnvCredentials,
    NoCredentials,
    StaticCredentials,
    as_provider,
)

SECRET = "sk-very-secret"


def wanted(name: str = "stripe", **changes: str) -> CredentialRequest:
    facts: dict[str, Any] = {
        "tool": "refunds.create",
        "tenant": "acme",
        "environment": "prod",
        "agent": "bot",
        "user": None,
        "run_id": "r",
        **changes,
    }
    return CredentialRequest(name=name, **facts)


def refused(action: Callable[[], object], code: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        action()
    assert caught.value.code == code
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None or SECRET not in repr(caught.value.__context__)
    return str(caught.value)


# --- what a tool sees ----------------------------------------------------------------------------


def test_a_tool_reads_a_secret_by_name() -> None:
    credentials = Credentials({"stripe": SECRET})
    assert credentials["stripe"] == SECRET
    assert credentials.get("stripe") == SECRET
    assert credentials.get("other") is None
    assert credentials.get("other", "x") == "x"
    assert ("stripe" in credentials, "other" in credentials) == (True, False)
    assert (list(credentials), len(credentials)) == (["stripe"], 1)


def test_a_tool_does_not_get_what_it_did_not_declare() -> None:
    message = refused(lambda: Credentials({"stripe": SECRET})["github"], "AG640")
    assert "github" in message
    assert "stripe" not in message


@pytest.mark.parametrize(
    "write",
    [
        repr,
        str,
        lambda c: f"{c}",
        lambda c: f"{c!r:>40}",
        lambda c: "%s %r" % (c, c),  # noqa: UP031
        lambda c: "{}".format(c),  # noqa: UP032
        lambda c: repr([c]),
        lambda c: repr({"c": c}),
        lambda c: json.dumps({"c": c}, default=repr),
        lambda c: " ".join(sorted(c)),
        lambda c: repr(inspect.getmembers(type(c))),
    ],
)
def test_no_rendering_shows_a_value(write: Callable[[Any], str]) -> None:
    assert SECRET not in write(Credentials({"stripe": SECRET}))


@pytest.mark.parametrize("store", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, vars])
@pytest.mark.parametrize(
    "holder",
    [
        Credentials({"stripe": SECRET}),
        StaticCredentials({"stripe": SECRET}),
        EnvCredentials(environ={"AGENTGUARD_SECRET_STRIPE": SECRET}),
    ],
)
def test_nothing_stores_or_copies_them(store: Callable[[Any], Any], holder: object) -> None:
    with pytest.raises(TypeError):
        store(holder)


@pytest.mark.parametrize(
    "use",
    [lambda c: c["stripe"], lambda c: c.get("stripe"), lambda c: "stripe" in c, list, len],
)
def test_after_the_call_they_are_gone(use: Callable[[Any], object]) -> None:
    credentials = Credentials({"stripe": SECRET})
    credentials.close()
    credentials.close()
    refused(lambda: use(credentials), "AG641")
    assert repr(credentials) == "Credentials(closed)"
    assert credentials._values == {}


def test_the_injected_type_is_marked() -> None:
    assert Credentials.__agentguard_inject__ == "credentials"


def test_changing_the_source_does_not_change_the_lease() -> None:
    source = {"stripe": SECRET}
    credentials = Credentials(source)
    source.clear()
    assert credentials["stripe"] == SECRET


# --- environment variables -----------------------------------------------------------------------


def test_a_secret_is_a_variable_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTGUARD_SECRET_STRIPE_LIVE_KEY", SECRET)
    provider = EnvCredentials()
    assert provider.lease(wanted("stripe.live-key")) == SECRET
    provider.release(wanted(), SECRET)


@pytest.mark.parametrize("environ", [{}, {"P_STRIPE": ""}, {"STRIPE": SECRET}])
def test_a_variable_that_is_missing_or_empty_is_refused_by_name(environ: dict[str, str]) -> None:
    assert "set P_STRIPE" in refused(lambda: EnvCredentials("P_", environ=environ).lease(wanted()), "AG640")


@pytest.mark.parametrize(
    "limits", [{"environment": "staging"}, {"tenant": ["a", "b"]}, {"tool": "email.*"}, {"environment": []}]
)
def test_variables_can_be_kept_from_other_places(limits: dict[str, Any]) -> None:
    provider = EnvCredentials("P_", environ={"P_STRIPE": SECRET}, **limits)
    assert "other tenants" in refused(lambda: provider.lease(wanted()), "AG640")


def test_without_a_prefix_the_whole_environment_would_leak() -> None:
    refused(lambda: EnvCredentials(""), "AG642")


def test_the_provider_shows_its_prefix_only() -> None:
    assert repr(EnvCredentials("P_", environ={"P_X": SECRET})) == "EnvCredentials(P_*)"


# --- given in code -------------------------------------------------------------------------------


def test_a_plain_string_goes_everywhere() -> None:
    provider = StaticCredentials({"stripe": SECRET})
    assert provider.lease(wanted(environment="anything", tenant="any", tool="any")) == SECRET
    provider.release(wanted(), SECRET)


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({"environment": "prod"}, True),
        ({"environment": "staging"}, False),
        ({"environment": ["staging", "prod"]}, True),
        ({"environment": "pro"}, False),
        ({"environment": "pro*"}, True),
        ({"environment": ()}, False),
        ({"tenant": "acme", "tool": "refunds.*"}, True),
        ({"tenant": "acme", "tool": "email.*"}, False),
        ({"tenant": "ACME"}, False),
        ({"tenant": {"acme"}}, True),
    ],
)
def test_a_restricted_secret_goes_where_all_restrictions_fit(limits: dict[str, Any], fits: bool) -> None:
    provider = StaticCredentials({"stripe": {"value": SECRET, **limits}})
    if fits:
        assert provider.lease(wanted()) == SECRET
    else:
        assert "restricted" in refused(lambda: provider.lease(wanted()), "AG640")


def test_the_first_entry_that_fits_is_used() -> None:
    provider = StaticCredentials(
        {"stripe": [{"value": "test", "environment": "staging"}, {"value": "live", "environment": "prod"}]}
    )
    assert provider.lease(wanted()) == "live"
    assert provider.lease(wanted(environment="staging")) == "test"
    refused(lambda: provider.lease(wanted(environment="dev")), "AG640")


def test_an_unknown_name_is_refused_without_naming_others() -> None:
    message = refused(lambda: StaticCredentials({"stripe": SECRET}).lease(wanted("github")), "AG640")
    assert "github" in message
    assert "stripe" not in message


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        7,
        b"x",
        {},
        {"value": ""},
        {"value": None},
        {"value": SECRET, "enviroment": "prod"},
        {"value": SECRET, "environment": None},
        {"value": SECRET, "environment": 7},
        {"value": SECRET, "environment": [""]},
        {"value": SECRET, "tool": ["a", 1]},
        [SECRET, 7],
    ],
)
def test_a_misspelt_or_empty_entry_does_not_load(given: Any) -> None:
    refused(lambda: StaticCredentials({"stripe": given}), "AG643")


def test_the_provider_shows_names_only() -> None:
    provider = StaticCredentials({"stripe": SECRET, "github": {"value": SECRET}})
    assert repr(provider) == "StaticCredentials(github, stripe)"
    assert SECRET not in repr(provider._entries)


# --- functions -----------------------------------------------------------------------------------


def test_a_function_hands_out_and_takes_back() -> None:
    back: list[tuple[str, str]] = []
    provider = CallableCredentials(lambda r: f"{r.name}-{r.tenant}", lambda r, s: back.append((r.name, s)))
    secret = provider.lease(wanted())
    provider.release(wanted(), secret)
    assert (secret, back) == ("stripe-acme", [("stripe", "stripe-acme")])


def test_taking_back_is_optional() -> None:
    CallableCredentials(lambda r: "x").release(wanted(), "x")


@pytest.mark.parametrize("answer", [None, "", 7, b"x", True])
def test_an_answer_that_is_no_secret_is_refused(answer: Any) -> None:
    refused(lambda: CallableCredentials(lambda r: answer).lease(wanted()), "AG643")


async def fetch(request: CredentialRequest) -> str:
    return f"{request.name}-async"


def test_an_async_function_behind_a_sync_one_is_refused_and_closed() -> None:
    provider = CallableCredentials(lambda r: fetch(r))  # type: ignore[arg-type, return-value]
    assert "coroutine" in refused(lambda: provider.lease(wanted()), "AG643")


def test_an_async_function_needs_the_async_provider() -> None:
    function: Any = fetch
    refused(lambda: CallableCredentials(function), "AG642")
    refused(lambda: CallableCredentials(lambda r: "x", function), "AG642")


@pytest.mark.anyio
async def test_an_async_function_hands_out_and_takes_back() -> None:
    back: list[str] = []

    async def take(request: CredentialRequest, secret: str) -> None:
        back.append(secret)

    provider = AsyncCallableCredentials(fetch, take)
    await provider.release(wanted(), await provider.lease(wanted()))
    await AsyncCallableCredentials(fetch, lambda r, s: back.append("sync")).release(wanted(), "x")
    await AsyncCallableCredentials(fetch).release(wanted(), "x")
    assert back == ["stripe-async", "sync"]


@pytest.mark.anyio
async def test_an_async_answer_that_is_no_secret_is_refused() -> None:
    async def nothing(request: CredentialRequest) -> Any:
        return None

    with pytest.raises(ConfigurationError):
        await AsyncCallableCredentials(nothing).lease(wanted())


# --- what users pass -----------------------------------------------------------------------------


class Vault:
    async def __call__(self, request: CredentialRequest) -> str:
        return SECRET


def test_every_form_becomes_a_provider() -> None:
    own = EnvCredentials()
    assert as_provider(own) is own
    assert isinstance(as_provider(None), NoCredentials)
    assert isinstance(as_provider({"a": "b"}), StaticCredentials)
    assert isinstance(as_provider(lambda r: "x"), CallableCredentials)
    for function in (fetch, Vault(), functools.partial(fetch)):
        provider = as_provider(function)
        assert isinstance(provider, AsyncCallableCredentials)
        assert isinstance(provider, AsyncCredentialProvider)


@pytest.mark.parametrize("provider", [NoCredentials(), EnvCredentials(), StaticCredentials({})])
def test_the_providers_satisfy_the_protocol(provider: object) -> None:
    assert isinstance(provider, CredentialProvider)


@pytest.mark.parametrize("source", [7, "sk-x", object(), EnvCredentials, []])
def test_anything_else_is_refused(source: object) -> None:
    refused(lambda: as_provider(source), "AG642")


def test_a_gateway_without_credentials_hands_out_none() -> None:
    assert "credentials=" in refused(lambda: NoCredentials().lease(wanted()), "AG640")
    NoCredentials().release(wanted(), "x")
