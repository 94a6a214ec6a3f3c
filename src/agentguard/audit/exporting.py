"""The audit trail as a file that can be checked without the store: JSON Lines, UTF-8.

Every line is one object in canonical JSON (RFC 8785) with a ``type``:

* ``record``: ``hash``, ``line`` (the sealed line as text), ``run``, ``salt``, ``seq``, ``tenant`` and the body:
  ``body`` as text, or ``body_base64`` when it is not UTF-8; ``body`` is ``null`` when it was erased.
* ``head``: after the records of each run, ``count``, ``hash``, ``run`` and ``tenant`` as the store has them.
* ``anchor``: the last line, ``hash`` (see :func:`agentguard.audit.anchoring.anchor`), ``records``, ``runs`` and ``v``.

What must stay true: reading a line gives back exactly what was written, and no line is read generously.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from agentguard import canonical
from agentguard.audit.anchoring import Head, anchor
from agentguard.audit.records import strict_json
from agentguard.domain.events import AuditRecord
from agentguard.errors import AuditError

_VERSION: Final = 1
_RECORD: Final = {"hash": str, "line": str, "run": str, "salt": str, "seq": int, "tenant": str, "type": str}
_HEAD: Final = {"count": int, "hash": str, "run": str, "tenant": str, "type": str}
_ANCHOR: Final = {"hash": str, "records": int, "runs": int, "type": str, "v": int}


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last line of an export.

    Attributes:
        hash: Digest over all heads (hex).
        records: Number of records in the file.
        runs: Number of chains in the file.
    """

    hash: str
    records: int
    runs: int


def export_record(record: AuditRecord) -> bytes:
    """One record as a line, without the line feed.

    Raises:
        AuditError: ``AG705``: the record's line is not UTF-8 or a name has no canonical form.
    """
    value: dict[str, Any] = {
        "hash": record.hash,
        "run": record.run_id,
        "salt": record.salt,
        "seq": record.seq,
        "tenant": record.tenant,
        "type": "record",
        "body": None,
    }
    if record.body is not None:
        try:
            value["body"] = record.body.decode("utf-8")
        except UnicodeDecodeError:
            del value["body"]
            value["body_base64"] = base64.b64encode(record.body).decode("ascii")
    try:
        value["line"] = record.line.decode("utf-8")
        return canonical.dumps(value)
    except ValueError as error:
        raise AuditError(
            f"record {record.seq} of run {record.run_id!r:.140} cannot be exported: {error}", code="AG705"
        ) from error


def export_lines(chains: Iterable[tuple[Head, Iterable[AuditRecord]]]) -> Iterator[bytes]:
    """Write whole chains, each with its head, and the anchor over all of them.

    Args:
        chains: Pairs of the head *as the store keeps it* (run record: ``audit_seq``, ``audit_head``) and the
            records in order. The head is not computed from the records, so that records which the store
            lost show when the file is verified.

    Yields:
        Lines with their line feed.

    Raises:
        AuditError: ``AG704`` or ``AG705``: a head stands twice, or something has no canonical form.
    """
    heads: list[Head] = []
    count = 0
    for head, records in chains:
        for record in records:
            count += 1
            yield export_record(record) + b"\n"
        heads.append(head)
        yield (
            canonical.dumps(
                {"count": head.records, "hash": head.hash, "run": head.run_id, "tenant": head.tenant, "type": "head"}
            )
            + b"\n"
        )
    yield (
        canonical.dumps({"hash": anchor(heads), "records": count, "runs": len(heads), "type": "anchor", "v": _VERSION})
        + b"\n"
    )


def _fields(value: dict[str, Any], kinds: dict[str, type]) -> None:
    if value.keys() != kinds.keys():
        raise AuditError(f"a line of type {value['type']} has the keys {', '.join(sorted(kinds))}", code="AG720")
    for key, kind in kinds.items():
        if type(value[key]) is not kind:
            raise AuditError(f"{key} is not what it must be", code="AG720")


def _record(value: dict[str, Any]) -> AuditRecord:
    body: bytes | None = None
    if "body_base64" in value:
        _fields(value, _RECORD | {"body_base64": str})
        try:
            body = base64.b64decode(value["body_base64"].encode("ascii"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise AuditError("body_base64 is not Base64", code="AG720") from error
    elif value.get("body", "") is None:
        _fields(value, _RECORD | {"body": type(None)})
    else:
        _fields(value, _RECORD | {"body": str})
        body = value["body"].encode("utf-8")
    line = value["line"].encode("utf-8")
    return AuditRecord(value["tenant"], value["run"], value["seq"], line, value["hash"], value["salt"], body)


def read_line(raw: bytes | str) -> AuditRecord | Head | Anchor:
    """Read one line of an export, strictly.

    Args:
        raw: The line, with or without its line feed.

    Raises:
        AuditError: ``AG720``: it is not a line that :func:`export_lines` can have written.
    """
    try:
        data = raw.encode("utf-8") if isinstance(raw, str) else bytes(raw)
        data = data.removesuffix(b"\n")
        value = strict_json(data)
        again = canonical.dumps(value)
    except ValueError as error:
        raise AuditError(f"not canonical JSON: {error}", code="AG720") from error
    if type(value) is not dict:
        raise AuditError("not an object", code="AG720")
    kind = value.get("type")
    found: AuditRecord | Head | Anchor
    if kind == "record":
        found = _record(value)
    elif kind == "head":
        _fields(value, _HEAD)
        found = Head(value["tenant"], value["run"], value["count"], value["hash"])
    elif kind == "anchor":
        _fields(value, _ANCHOR)
        if value["v"] != _VERSION:
            raise AuditError(f"version {value['v']} of the export format is unknown", code="AG720")
        found = Anchor(value["hash"], value["records"], value["runs"])
    else:
        raise AuditError("type must be record, head or anchor", code="AG720")
    if again != data:
        raise AuditError("not in canonical form (RFC 8785)", code="AG720")
    return found
