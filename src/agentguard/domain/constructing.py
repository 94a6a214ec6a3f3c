"""A faster constructor for frozen nouns on the path of every call.

The constructor that ``dataclass(frozen=True)`` writes calls ``object.__setattr__`` per field and is three to
four times slower than plain assignment (1.4 against 0.4 us for twelve fields). :func:`quick` replaces it: the
fields are assigned on a draft with the same slots, which then becomes the frozen class. :func:`maker` gives the
same as a plain function, which saves the way through the class (0.1 us). What must stay true: nothing else about
the class changes; it is as frozen as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


_MAKERS: dict[Any, Callable[..., Any]] = {}


def quick(cls: type[T]) -> type[T]:
    """Give a ``dataclass(frozen=True, slots=True)`` without ``__post_init__`` the faster constructor."""
    made: Any = cls
    names = [field.name for field in fields(made)]
    draft = type(f"_{cls.__name__}Draft", cls.__bases__, {"__slots__": tuple(made.__slots__)})
    scope: dict[str, Any] = {"_draft": draft, "_missing": MISSING, "_class": cls}
    parameters, lines = [], ["    self = _draft()"]
    for field in fields(made):
        name, value = field.name, field.name
        if field.default_factory is not MISSING:
            scope[f"_make_{name}"] = field.default_factory
            parameters.append(f"{name}=_missing")
            value = f"_make_{name}() if {name} is _missing else {name}"
        elif field.default is not MISSING:
            scope[f"_default_{name}"] = field.default
            parameters.append(f"{name}=_default_{name}")
        else:
            parameters.append(name)
        lines.append(f"    self.{name} = {value}")
    given = ", ".join(parameters)
    for head, kind in ((f"def __new__(cls, {given}):", "cls"), (f"def made({given}):", "_class")):
        source = "\n".join([head, *lines, f"    self.__class__ = {kind}", "    return self"])
        exec(source, scope)  # noqa: S102 - built from field names only, as dataclasses itself does
    made.__new__ = staticmethod(scope["__new__"])
    _MAKERS[cls] = scope["made"]
    del made.__init__
    made.__reduce__ = lambda self: (cls, tuple(getattr(self, name) for name in names))
    return cls


def maker(cls: Callable[P, T]) -> Callable[P, T]:
    """The constructor of a :func:`quick` class as a plain function, for where one is made per call."""
    return _MAKERS[cls]
