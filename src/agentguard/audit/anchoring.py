"""The heads of all chains of a store, and one digest over them that a person can keep.

A chain proves itself only up to its last record: who may write the store can cut the end off and nobody
sees it. A kept anchor closes that gap, because it fixes the length and the last hash of every chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from agentguard import canonical
from agentguard.errors import AuditError

_DOMAIN: Final = b"agentguard audit anchor v1\n"


class Head(NamedTuple):
    """The end of one chain.

    Attributes:
        tenant: Owner.
        run_id: Run the chain belongs to.
        records: Number of records.
        hash: Hash (hex) of the last record, ``""`` when there is none.
    """

    tenant: str
    run_id: str
    records: int
    hash: str


def anchor(heads: Iterable[tuple[str, str, int, str]]) -> str:
    """One digest over the heads of a store, in any order.

    SHA-256 over the text ``agentguard audit anchor v1`` and, sorted by tenant and run, one line of canonical
    JSON ``[tenant, run, count, hash]`` per chain; every line, the first included, ends in a line feed.

    Returns:
        64 hex digits.

    Raises:
        AuditError: ``AG704``: a chain is named twice, or a name has no canonical form.
    """
    digest = hashlib.sha256(_DOMAIN)
    before: tuple[str, str] | None = None
    for head in sorted(heads):
        tenant, run_id, count, last = head
        if (tenant, run_id) == before:
            raise AuditError(f"run {run_id!r:.140} of tenant {tenant!r:.140} has two heads", code="AG704")
        before = (tenant, run_id)
        try:
            digest.update(canonical.dumps([tenant, run_id, count, last]) + b"\n")
        except canonical.NotCanonical as error:
            raise AuditError(f"a head has no canonical form: {error}", code="AG704") from error
    return digest.hexdigest()
