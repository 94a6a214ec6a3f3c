"""The command line, ``agentguard``: for the people who write policies, decide approvals and read what happened.

Needs the extra ``cli``. What must stay true: importing this package loads neither typer nor rich, so that
``agentguard`` without the extra can say which line installs it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from agentguard.errors import MissingExtra

if TYPE_CHECKING:
    from agentguard.cli.application import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line and leave the process with its exit code.

    Exit codes: 0 fine; 1 findings, denied, a verification failed; 2 usage or configuration error; 3 internal error.
    """
    try:
        from agentguard.cli.application import app as application
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    application()


def __getattr__(name: str) -> Any:
    # The typer application is made when somebody asks for it: documentation, tests, completion.
    if name == "app":
        from agentguard.cli.application import app as application

        return application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
