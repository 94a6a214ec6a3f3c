"""The typer application: its commands, and what becomes of errors.

What must stay true: every error ends in one line that says what is wrong, on stderr, and in an exit code from the
documented four; a traceback only with ``--debug``.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated, Any, Final

from agentguard._version import __version__
from agentguard.errors import (
    AgentGuardError,
    ApprovalError,
    AuditError,
    CallFailed,
    CallRefused,
    MissingExtra,
    PolicyError,
)

try:
    import rich  # noqa: F401  # pyright: ignore[reportUnusedImport]
    import typer
    from typer.core import TyperGroup
except ImportError as missing:
    raise MissingExtra("cli", "typer") from missing

from agentguard.cli import (
    approving,
    arranging,
    auditing,
    checking,
    demonstrating,
    describing,
    diagnosing,
    inspecting,
    pinning,
    proxying,
    rehearsing,
    starting,
    switching,
    toolbox,
)
from agentguard.cli.printing import note, out

FINE: Final = 0
FOUND: Final = 1
USAGE: Final = 2
INTERNAL: Final = 3
INTERRUPTED: Final = 130
"""What a shell expects of a program that Ctrl-C has ended."""

# typer brings click's classes along, under a name that depends on its version.
_PARSING: Final[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_REFUSALS: Final = (ApprovalError, AuditError, CallFailed, CallRefused)


class _Application(TyperGroup):
    def main(self, *args: Any, **settings: Any) -> Any:
        """Run a command and turn whatever it raises into a message and an exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        settings["standalone_mode"] = False
        sys.exit(self._carry_out(args, settings))

    def _carry_out(self, args: tuple[Any, ...], settings: dict[str, Any]) -> int:
        _debugging.clear()
        try:
            code = super().main(*args, **settings)
            sys.stdout.flush()
            return code if isinstance(code, int) else FINE
        except _PARSING as error:
            context = getattr(error, "ctx", None)
            if context is not None:
                note(context.get_usage())
            note(f"error: {error.format_message()}")
            return USAGE
        except (typer.Abort, KeyboardInterrupt) as error:
            note("stopped")
            interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
            return INTERRUPTED if interrupted else FOUND
        except (BrokenPipeError, SystemExit):
            # Whoever read our output has seen enough (typer leaves with SystemExit then, and for nothing else).
            # Nothing may be written when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FINE
        except PolicyError as error:
            _traceback()
            note("\n".join(map(str, error.findings)))
            return USAGE
        except AgentGuardError as error:
            _traceback()
            text = str(error)
            code_of = f"{error.code} " if error.code and not text.startswith(error.code) else ""
            note(f"error: {code_of}{text}")
            return FOUND if isinstance(error, _REFUSALS) else USAGE
        except OSError as error:
            _traceback()
            where = f"{error.filename}: " if error.filename else ""
            note(f"error: {where}{error.strerror or error}")
            return USAGE
        except Exception as error:
            _traceback()
            note(f"internal error: {type(error).__name__}: {error}")
            note("This is a fault of agentguard; please report it with the output of the same command after --debug.")
            return INTERNAL


_debugging: list[bool] = []


def _traceback() -> None:
    if _debugging:
        note(traceback.format_exc().rstrip())


app = typer.Typer(
    name="agentguard",
    cls=_Application,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        out(f"agentguard {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Governance for AI-agent tool calls: check policies, decide approvals, see what happened.

    Exit codes: 0 fine; 1 findings, denied, a verification failed; 2 usage or configuration error; 3 internal error.
    Data goes to stdout, messages to stderr.
    """
    if debug or os.environ.get("AGENTGUARD_DEBUG"):
        _debugging.append(True)


app.command("init")(starting.init)
app.command("check")(checking.check)
app.command("eval")(checking.evaluate)
app.command("test")(rehearsing.try_cases)
app.command("fmt")(arranging.fmt)
app.command("explain")(describing.explain)
app.command("schema")(describing.schema)
toolbox.app.command("lock")(pinning.lock)
toolbox.app.command("verify")(pinning.verify)
toolbox.app.command("diff")(pinning.diff)
app.add_typer(toolbox.app, name="tools")
app.add_typer(inspecting.app, name="runs")
app.add_typer(approving.app, name="approvals")
app.add_typer(auditing.app, name="audit")
app.command("budgets")(inspecting.budgets)
app.command("kill")(switching.kill)
app.command("restore")(switching.restore)
app.command("switches")(switching.switches)
app.command("mcp-proxy")(proxying.mcp_proxy)
app.command("doctor")(diagnosing.doctor)
app.command("demo")(demonstrating.demo)
app.command("version")(diagnosing.version)
