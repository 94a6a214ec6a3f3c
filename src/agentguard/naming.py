"""Which names are names: the grammar of every id that becomes part of a key, a record or a message.

What must stay true: an id is rejected, never repaired, so that two spellings can never mean one thing, and no id
holds a space, a control character or anything outside ASCII.
"""

from __future__ import annotations

import re

from agentguard.errors import ConfigurationError

_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_PERSON = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}")
_PERSONAL = frozenset({"user", "session"})


def check_id(kind: str, value: object) -> str:
    """Return ``value`` if it is a usable id.

    Args:
        kind: What the id names, for the message: ``tenant``, ``run_id``, ``tool``. A ``user`` and a ``session``
            may hold ``@`` and ``+`` too, so that an e-mail address can be one.
        value: The id.

    Raises:
        ConfigurationError: ``AG134``; the id is not 1 to 128 characters of ``A-Z a-z 0-9 _ . : / -``.
    """
    personal = kind in _PERSONAL
    if isinstance(value, str) and (_PERSON if personal else _ID).fullmatch(value):
        return value
    shown = ascii(value[:60]) if isinstance(value, str) else f"a {type(value).__name__}"
    extra = " @ +" if personal else ""
    raise ConfigurationError(
        f"{kind} {shown} is not usable as an id: use 1 to 128 characters of A-Z a-z 0-9 _ . : / -{extra} "
        "(ids are rejected rather than changed)",
        code="AG134",
    )
