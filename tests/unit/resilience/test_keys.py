"""Keys never collide, fingerprints see types."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.canonical import NotCanonical
from agentguard.resilience.keys import call_key, fingerprint, idempotency_call_key

parts = st.tuples(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3))


@given(parts, parts)
def test_two_calls_share_a_key_only_when_every_part_is_equal(one: Any, two: Any) -> None:
    assert (call_key(*one) == call_key(*two)) == (one == two)
    assert (idempotency_call_key(*one) == idempotency_call_key(*two)) == (one == two)


@given(parts, parts)
def test_a_call_id_never_looks_like_an_idempotency_key(one: Any, two: Any) -> None:
    assert call_key(*one) != idempotency_call_key(*two)


def test_a_fingerprint_tells_types_apart() -> None:
    assert len({fingerprint("t", {"x": v}) for v in (1, 1.0, True, "1", None, [1])}) == 6


def test_a_fingerprint_does_not_depend_on_the_order_of_arguments() -> None:
    assert fingerprint("t", {"a": 1, "b": 2}) == fingerprint("t", {"b": 2, "a": 1})


def test_a_fingerprint_names_its_tool() -> None:
    assert fingerprint("a", {}) != fingerprint("b", {})
    assert fingerprint('t{"a"', {}) != fingerprint("t", {})


def test_what_has_no_canonical_form_has_no_fingerprint() -> None:
    with pytest.raises(NotCanonical):
        fingerprint("t", {"x": float("nan")})
