"""One record of the audit trail: how it is sealed, and how it is read back.

What must stay true here: the line is RFC 8785 canonical JSON, so that anybody can rebuild it and its hash
with other tools; every field of an :class:`AuditRecord` is determined by the line or checked against it; a
body can be erased without touching the line. Nothing here reads a clock or makes a random number.

A line is an object with exactly these keys::

    at      wall-clock time, ns since the epoch, as a decimal string (it is beyond 2**53)
    body    SHA-256 (hex) over the 16 salt bytes and the body, "" when there is no body
    facts   flat object: strings, integers, booleans and null
    kind    what happened
    prev    SHA-256 (hex) of the previous line, "" for the first
    run     id of the run the chain belongs to
    seq     1 for the first record of the run, without gaps
    tenant  owner
    v       version of this format, 1
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, get_args

from pydantic_core import to_json

from agentguard import canonical
from agentguard.domain.events import AuditRecord, Event, EventKind
from agentguard.errors import AuditError

MAX_LINE: Final = 65_535
"""Longest line in bytes: what one entry of a tile log (C2SP tlog-tiles) can hold."""

SALT_CHARS: Final = 32
"""Hex digits of a salt: 16 random bytes."""

KINDS: Final[frozenset[str]] = frozenset(get_args(EventKind))
"""Every kind of event that a record may have."""

_VERSION: Final = 1
_FACT_TYPES: Final[frozenset[type]] = frozenset((str, int, bool, type(None)))
_FACT_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SALT: Final = re.compile(r"[0-9a-f]{32}")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,30}")
_KEYS: Final = ("at", "body", "facts", "kind", "prev", "run", "seq", "tenant", "v")
_sha256 = hashlib.sha256


@dataclass(slots=True)
class _Draft:
    # Same slots as AuditRecord and not frozen: filling it and changing its class costs a third of what the
    # frozen constructor costs (0.25 against 0.75 us), twice per governed call.
    tenant: str
    run_id: str
    seq: int
    line: bytes
    hash: str
    salt: str
    body: bytes | None


@lru_cache(maxsize=1024)
def _order(names: tuple[str, ...]) -> tuple[str, ...] | None:
    # Names are ASCII, so that plain sorting is the UTF-16 order that RFC 8785 asks for. None: in order.
    for name in names:
        if type(name) is not str or not _FACT_NAME.fullmatch(name):
            raise AuditError(f"a fact cannot be called {name!r:.80}; use [A-Za-z0-9_.:/-]{{1,128}}", code="AG701")
    ordered = tuple(sorted(names))
    return None if ordered == names else ordered


@lru_cache(maxsize=4096)
def _names(run_id: str, tenant: str) -> tuple[str, str]:
    if not isinstance(run_id, str) or not isinstance(tenant, str):
        raise TypeError("run and tenant must be strings")
    return to_json(run_id).decode(), to_json(tenant).decode()


def _plain(facts: Mapping[str, Any]) -> dict[str, str | int | bool | None]:
    # The slow way for mappings that are no dict and for enums and other subclasses of str and int.
    out: dict[str, str | int | bool | None] = {}
    for name, value in facts.items():
        if type(value) in _FACT_TYPES:
            out[name] = value
        elif isinstance(value, str):
            out[name] = str.__str__(value)
        elif isinstance(value, int):
            out[name] = int(value)
        else:
            raise AuditError(
                f"fact {name!r:.80} is a {type(value).__name__}; facts are strings, integers, booleans or None, "
                "everything else belongs into the body",
                code="AG701",
            )
    return out


def seal(tenant: str, run_id: str, seq: int, prev: str, at: int, event: Event, salt: str) -> AuditRecord:
    """Give an event its place in the chain of its run.

    Args:
        tenant: Owner.
        run_id: Run the chain belongs to.
        seq: 1 for the first record of the run, then one more each time.
        prev: ``hash`` of the previous record, ``""`` for the first.
        at: Wall-clock time, ns since the epoch.
        event: What happened. Facts may come in any order.
        salt: 32 hex digits, random for every record; not used when there is no body.

    Returns:
        The record; its ``salt`` is ``""`` when the event has no body.

    Raises:
        AuditError: ``AG701``: a fact, the kind, the place or the salt is not what it must be, or a string is
            no valid Unicode. ``AG702``: the line would be longer than 65,535 bytes; facts are ids, digests
            and amounts, longer matter belongs into the body. Nothing is ever cut to fit.
    """
    facts = {**event.facts, **dict(event.also)} if event.also else event.facts
    if type(facts) is not dict or not _FACT_TYPES.issuperset(map(type, facts.values())):
        facts = _plain(facts)
    ordered = _order(tuple(facts))
    if ordered is not None:
        facts = {name: facts[name] for name in ordered}
    kind = event.kind
    if (
        kind not in KINDS
        or type(seq) is not int
        or type(at) is not int
        or seq < 1
        or at < 0
        or len(prev) != (64 if seq > 1 else 0)
        or not (seq == 1 or (prev.isascii() and prev.isalnum()))  # so that it needs no escapes below
    ):
        raise AuditError(
            f"a record {kind!r:.40} cannot stand at place {seq!r:.40} after {prev!r:.80} at {at!r:.40}", code="AG701"
        )
    body = event.body
    if body:
        try:
            salted = bytes.fromhex(salt)
        except ValueError:
            salted = b""
        if len(salted) != 16:
            raise AuditError("the salt of a body is 32 hex digits", code="AG701")
        salt = salted.hex()
        digest = _sha256(salted + body).hexdigest()
    else:
        digest = salt = ""
    try:
        # Written out because it is faster than to_json of the whole: only facts, run and tenant can need escapes.
        run, owner = _names(run_id, tenant)
        line = (
            f'{{"at":"{at}","body":"{digest}","facts":{to_json(facts).decode()},"kind":"{kind}","prev":"{prev}",'
            f'"run":{run},"seq":{seq},"tenant":{owner},"v":1}}'
        ).encode()
    except Exception as error:
        raise AuditError(f"the record {kind} has no canonical form: {error}", code="AG701") from error
    if len(line) > MAX_LINE:
        raise AuditError(
            f"the record {kind} would take {len(line)} bytes and may take {MAX_LINE}; its facts are too long",
            code="AG702",
        )
    draft: Any = _Draft(tenant, run_id, seq, line, _sha256(line).hexdigest(), salt, body)
    draft.__class__ = AuditRecord
    record: AuditRecord = draft
    return record


def erase(record: AuditRecord) -> AuditRecord:
    """The record without its body, and without the salt, so that the body cannot be guessed from its digest.

    The line and the chain stay as they are. A record that never had a body is returned unchanged. Stores that
    erase in place do the same: body ``None`` and salt ``""`` together, or the verifier objects.
    """
    if not record.salt:
        return record
    return AuditRecord(record.tenant, record.run_id, record.seq, record.line, record.hash, "", None)


def body_matches(record: AuditRecord, digest: str) -> bool:
    """Whether body and salt are those of the digest in the line, or were erased together."""
    if record.body is None:
        return bool(digest) and record.salt == ""
    if not digest:
        return record.body == b"" and record.salt == ""
    if not record.body or not _SALT.fullmatch(record.salt):
        return False
    return _sha256(bytes.fromhex(record.salt) + record.body).hexdigest() == digest


def pairs(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs; a repeated key is an error (``ValueError``), not the last one wins."""
    out: dict[str, Any] = {}
    for key, value in items:
        if key in out:
            raise ValueError("a key stands twice")
        out[key] = value
    return out


def _no_float(text: str) -> Any:
    raise ValueError(f"{text:.20} is not an integer")


def strict_json(data: bytes) -> Any:
    """Read JSON as the audit trail writes it: UTF-8, no floats, no NaN, no key twice.

    Raises:
        ValueError: It is not such JSON.
    """
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=pairs, parse_float=_no_float, parse_constant=_no_float
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _is(value: object, kind: type) -> bool:
    return type(value) is kind


def parse(line: bytes) -> dict[str, Any]:
    """Read a line back, strictly.

    Returns:
        The object of the line with the nine keys that the module's docstring lists.

    Raises:
        AuditError: ``AG703``: it is not a line that :func:`seal` can have written.
    """
    if len(line) > MAX_LINE:
        raise AuditError(f"the line has {len(line)} bytes and may have {MAX_LINE}", code="AG703")
    try:
        value = strict_json(line)
        again = canonical.dumps(value)
    except ValueError as error:
        raise AuditError(f"the line is not canonical JSON: {error}", code="AG703") from error
    if type(value) is not dict or tuple(value) != _KEYS:
        raise AuditError(f"the line must be an object with the keys {', '.join(_KEYS)} in this order", code="AG703")
    if again != line:
        raise AuditError("the line is not in canonical form (RFC 8785)", code="AG703")
    facts = value["facts"]
    checks = {
        "at": _is(value["at"], str) and bool(_DECIMAL.fullmatch(value["at"])),
        "body": _is(value["body"], str) and (value["body"] == "" or bool(_DIGEST.fullmatch(value["body"]))),
        "facts": type(facts) is dict
        and _FACT_TYPES.issuperset(map(type, facts.values()))
        and all(_FACT_NAME.fullmatch(name) for name in facts),
        "kind": _is(value["kind"], str) and value["kind"] in KINDS,
        "seq": _is(value["seq"], int) and value["seq"] >= 1,
        "run": _is(value["run"], str),
        "tenant": _is(value["tenant"], str),
        "v": _is(value["v"], int) and value["v"] == _VERSION,
    }
    checks["prev"] = (
        checks["seq"]
        and _is(value["prev"], str)
        and (bool(_DIGEST.fullmatch(value["prev"])) if value["seq"] > 1 else value["prev"] == "")
    )
    for key, good in checks.items():
        if not good:
            raise AuditError(f"{key} of the line is not what it must be", code="AG703")
    return value
