"""Secrets do not get into records; everything else does."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from agentguard.audit.redaction import MAX_DEPTH, REDACTED, KnownSecrets, PatternRedactor, redact_patterns
from agentguard.protocols import Redactor

SECRET = 'p/ä+"s\\s w\nrd?=&'


def known(*secrets: str) -> KnownSecrets:
    out = KnownSecrets()
    for secret in secrets:
        assert out.add(secret)
    return out


FORMS = {
    "raw": SECRET,
    "json": json.dumps(SECRET)[1:-1],
    "json utf-8": json.dumps(SECRET, ensure_ascii=False)[1:-1],
    "json in json": json.dumps(json.dumps(SECRET))[3:-3],
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 urlsafe": base64.urlsafe_b64encode(SECRET.encode()).decode(),
    "url": quote(SECRET, safe=""),
    "url path": quote(SECRET),
    "url form": quote_plus(SECRET),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_known_secret_is_removed_in_every_form(form: str) -> None:
    secrets = known(SECRET)
    assert FORMS[form] not in secrets.redact(f"before {FORMS[form]} after")
    assert secrets.redact(f"before {FORMS[form]} after").startswith(f"before {REDACTED}")
    assert secrets.redact(f"before {FORMS[form]} after").endswith(" after")


def test_percent_escapes_in_lower_case_are_removed_too() -> None:
    assert known("a/b+c/d").redact("x=a%2fb%2bc%2fd") == f"x={REDACTED}"


def test_secrets_are_removed_from_keys_numbers_bytes_and_any_depth() -> None:
    value = {"s3cr3t": [1, {"x": ("a s3cr3t b", None, True)}, b"\xffs3cr3t", MappingProxyType({"y": "s3cr3t"})]}
    assert known("s3cr3t").redact(value) == {
        REDACTED: [1, {"x": (f"a {REDACTED} b", None, True)}, b"\xff[redacted]", {"y": REDACTED}]
    }
    assert known("1234").redact([912345, 1.1234, 7]) == [REDACTED, REDACTED, 7]


def test_two_secret_keys_do_not_swallow_each_other() -> None:
    cleaned = known("aaaa", "bbbb").redact({"aaaa": 1, "bbbb": 2})
    assert sorted(cleaned.values()) == [1, 2]


def test_a_value_without_secrets_is_the_same_object() -> None:
    value = {"a": [1, "x", {"b": (None, b"y", 2.5)}], "o": object()}
    assert known("s3cr3t").redact(value) is value
    assert KnownSecrets().redact(value) is value


def test_the_longer_secret_goes_first() -> None:
    assert known("abcd", "abcdefgh").redact("abcdefgh") == REDACTED


def test_short_values_are_not_searched_for() -> None:
    secrets = KnownSecrets()
    assert not secrets.add("abc")
    assert len(secrets) == 0
    secrets.remove("abc")
    assert secrets.redact("abc") == "abc"


def test_a_secret_stays_known_until_everybody_gave_it_back() -> None:
    secrets = known("s3cr3t", "s3cr3t")
    secrets.remove("s3cr3t")
    assert secrets.redact("s3cr3t") == REDACTED
    secrets.remove("s3cr3t")
    assert secrets.redact("s3cr3t") == "s3cr3t"
    secrets.remove("s3cr3t")
    assert len(secrets) == 0


def test_counts_survive_many_threads() -> None:
    secrets = KnownSecrets()

    def work(n: int) -> None:
        for _ in range(200):
            secrets.add(f"secret-{n % 3}")
            assert secrets.redact(f"secret-{n % 3}") == REDACTED
            secrets.remove(f"secret-{n % 3}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(secrets) == 0
    assert secrets.redact("secret-1") == "secret-1"


def test_the_repr_tells_a_number_and_no_secret() -> None:
    assert repr(known("s3cr3t")) == "<KnownSecrets: 1 values>"


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: Any = "x"
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(ValueError, match="nested deeper"):
        known("s3cr3t").redact(value)


def test_json_bytes_without_secrets_are_the_same_object() -> None:
    data = b'{"a":1}'
    assert known("s3cr3t").redact_bytes(data) is data
    assert KnownSecrets().redact_bytes(data) is data


@given(
    secret=st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=12).filter(
        lambda s: s not in '"[redacted]"'
    ),
    before=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
def test_redacted_json_is_json_without_the_secret(secret: str, before: str) -> None:
    secrets = known(secret)
    value = {"k": [before + secret, {secret: 1}]}
    for written in (to_json(value), json.dumps(value).encode()):
        data = secrets.redact_bytes(written)
        assert secret not in json.dumps(json.loads(data), ensure_ascii=False).replace(REDACTED, "")
        assert REDACTED in data.decode()


@pytest.mark.parametrize(("secret", "data"), [("true", b'{"a":true}'), ('":"x', b'{"a":"xyz"}'), ("null", b"[null]")])
def test_json_that_only_looks_like_the_secret_stays_as_it_is(secret: str, data: bytes) -> None:
    assert known(secret).redact_bytes(data) is data


def test_a_number_that_is_a_secret_is_replaced_and_the_json_stays_valid() -> None:
    assert known("123456").redact_bytes(b'{"pin":123456}') == b'{"pin":"[redacted]"}'


def test_bytes_that_hold_a_secret_and_are_no_json_are_withheld() -> None:
    assert known("s3cr3t").redact_bytes(b"{s3cr3t") == b'"[redacted]"'


KEYS = {
    "aws id": "AKIA" + "IOSFODNN7EXAMPLE",
    "github": "ghp_" + "a1B2" * 9,
    "github fine": "github_pat_" + "11ABCDEFG0" * 4,
    "openai": "sk-proj-" + "Ab1_" * 10,
    "anthropic": "sk-ant-api03-" + "Ab1-" * 10,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "pem": "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----",
    "pem pkcs8": "-----BEGIN PRIVATE KEY-----\\nMIIabc\\n-----END PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", KEYS)
def test_what_looks_like_a_common_key_is_removed(kind: str) -> None:
    value = {"text": f"see '{KEYS[kind]}' there", "list": [KEYS[kind]]}
    assert PatternRedactor().redact(value) == {"text": f"see '{REDACTED}' there", "list": [REDACTED]}


def test_the_words_around_a_key_stay() -> None:
    assert redact_patterns("Authorization: Bearer abc.DEF-123456789012") == f"Authorization: Bearer {REDACTED}"
    key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    assert redact_patterns(f'aws_secret_access_key = "{key}"') == f'aws_secret_access_key = "{REDACTED}"'


def test_a_private_key_that_was_cut_off_is_removed_to_the_end() -> None:
    assert redact_patterns("a -----BEGIN EC PRIVATE KEY-----\nMIIabc") == f"a {REDACTED}"


def test_several_private_keys_are_removed_one_by_one() -> None:
    assert redact_patterns(f"{KEYS['pem']} and {KEYS['pem']}") == f"{REDACTED} and {REDACTED}"


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn-contrib-polylearn-and-more-words",
        "the bearer of this letter-is-entitled-to-enter",
        "a public key: -----BEGIN PUBLIC KEY-----",
        "AKIA is a prefix",
        "eyJhbGci is not a token",
        "ghp_short",
        "task-1234567890123456789012345678",
        "plain text",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact_patterns(text) is text or redact_patterns(text) == text


def test_the_pattern_redactor_is_a_redactor() -> None:
    assert isinstance(PatternRedactor(), Redactor)
    value = {"a": 1}
    assert PatternRedactor().redact(value) is value


EVIL = [
    "eyJaaaaaaaa",
    "-eyJaaaaaaaa",
    ".eyJaaaaaaaa",
    "eyJaaaaaaaa.",
    "sk-a",
    "-sk-",
    "bearer ",
    "bearer a",
    "bearer a.",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN ",
    "ghp_",
    "github_pat_a",
    "AKIA",
    "aws_secret_access_key=",
    "aws_secret_access_key =\t ",
    "PRIVATE KEY",
]


@pytest.mark.parametrize("unit", EVIL)
def test_patterns_are_linear_on_hostile_text(unit: str) -> None:
    def cost(size: int) -> float:  # CPU time, so that what else the machine does is not measured
        text = (unit * (size // len(unit) + 1))[:size]
        best = float("inf")
        for _ in range(3):
            start = time.thread_time()
            redact_patterns(text)
            best = min(best, time.thread_time() - start)
        return best

    # Sixteen times the text: linear is 16 times the time, quadratic 256 times.
    assert cost(320_000) < 100 * max(cost(20_000), 1e-5)
