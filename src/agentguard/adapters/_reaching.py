"""What a function can get hold of by name, to find the agents and tools that it may use.

What must stay true: nothing is called and nothing is changed. What a function makes or fetches while it runs is not
found; callers say so.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def mentioned(function: Any) -> Iterator[Any]:
    """Objects that a function can get hold of by name: closure, globals it names, defaults, its instance."""
    while isinstance(function, partial):
        yield from (*function.args, *function.keywords.values())
        function = function.func
    if isinstance(function, MethodType):
        yield from vars(function.__self__).values() if hasattr(function.__self__, "__dict__") else ()
        function = function.__func__
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    names = _names(function.__code__)
    yield from (value for name, value in function.__globals__.items() if name in names)
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
