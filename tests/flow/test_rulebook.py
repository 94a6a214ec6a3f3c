"""Plans, fingerprints and what may be recorded."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentguard import tool
from agentguard._flow.rulebook import LEASE_S, MARGIN_S, plan, quick_fingerprint
from agentguard.domain.usage import NANO
from agentguard.resilience.keys import fingerprint
from tests.flow.playing import house

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6)
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False), lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
names = st.text(alphabet="ab=:\x00", min_size=1, max_size=3)


def both(arguments: dict[str, Any]) -> tuple[str, str]:
    return quick_fingerprint("t", arguments, fingerprint), fingerprint("t", arguments)


@given(st.dictionaries(names, values, max_size=3), st.dictionaries(names, values, max_size=3))
def test_the_quick_fingerprint_tells_apart_what_the_canonical_one_does(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    quick, slow = zip(both(one), both(two), strict=True)
    assert (quick[0] == quick[1]) == (slow[0] == slow[1])


def test_equal_looking_arguments_differ() -> None:
    looks: list[Any] = [1, True, "1", "True", None, "None", 1.0, "", 0, False, [1]]
    assert len({both({"x": look})[0] for look in looks}) == len(looks)


def test_order_does_not_matter_and_the_tool_does() -> None:
    assert both({"a": 1, "b": "x"})[0] == both({"b": "x", "a": 1})[0]
    assert quick_fingerprint("t", {}, fingerprint) != quick_fingerprint("u", {}, fingerprint)


def test_no_value_can_pretend_to_be_another_argument() -> None:
    assert both({"a": "x\x001:b=1"})[0] != both({"a": "x", "b": 1})[0]


def test_a_lease_outlasts_all_attempts_and_pauses() -> None:
    @tool(name="plain")
    def plain() -> int:
        return 1

    @tool(name="tried", effect="read", timeout=5, retry={"attempts": 3, "max_wait": 7, "jitter": 1}, cost_usd="0.5")
    def tried() -> int:
        return 1

    assert plan(plain.tool).lease_ns == int(LEASE_S * NANO)
    made = plan(tried.tool)
    assert made.lease_ns == int((3 * 5 + 2 * (7 + 1) + MARGIN_S) * NANO)
    assert dict(made.reserve)["cost_usd"] == int(Decimal("1.5") * NANO)
    assert dict(made.used(1))["cost_usd"] == NANO // 2
    assert made.used(3) == made.reserve
    assert (made.rerun, made.observes) == (True, True)
    assert (plan(plain.tool).rerun, plan(plain.tool).observes) == (False, False)


def test_only_known_classes_may_be_repeated_or_forgotten() -> None:
    @tool(name="odd", effect="idempotent")
    def odd() -> int:
        return 1

    from dataclasses import replace

    odd.tool.spec = replace(odd.tool.spec, effect="unheard")  # type: ignore[arg-type]
    assert (plan(odd.tool).rerun, plan(odd.tool).observes) == (False, False)


def test_texts_are_cleaned_only_of_what_is_in_use() -> None:
    assert house(secrets=[]).clean("hunter22") == "hunter22"
    assert house(secrets=["hunter22"]).clean("a hunter22") == "a [redacted]"
