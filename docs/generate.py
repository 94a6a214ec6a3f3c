"""Writes ``docs/reference/`` from the docstrings, the code catalogue and the command line itself.

``python docs/generate.py`` writes, ``--check`` only says whether something is out of date. Nothing in
``docs/reference/`` is written by hand; what must be said about an error code is in ``docs/codes.toml``, and a code
that the library uses and the catalogue does not know (or the other way round) is an error here. ``agentguard
explain`` reads a copy of the catalogue beside the command line, which is written here too.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import sys
import textwrap
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"
SOURCE = DOCS.parent / "src" / "agentguard"
COPY = SOURCE / "cli" / "codes.toml"
"""The catalogue as the command line ships it."""
NOTE = "<!-- Written by docs/generate.py; do not edit. -->\n"

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields", "Note", "Example", "Examples")
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "extension-points.md": ("Extension points", ("agentguard.protocols",)),
    "adapters.md": ("Adapters", ("agentguard.adapters.openai", "agentguard.adapters.anthropic")),
    "testing.md": ("Testing", ("agentguard.testing", "agentguard.testing.model_server")),
}
"""Pages for modules beside the front door: title and modules."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def pages() -> dict[str, str]:
    """Every page of the reference: path below ``docs/reference`` to text."""
    found = {"index.md": index(), "api.md": api(), "cli.md": command_line(), "stop-reasons.md": stop_reasons()}
    found.update({page: of_modules(*about) for page, about in MODULES.items()})
    found.update(codes())
    return found


def index() -> str:
    """The list of pages."""
    return (
        f"{NOTE}# Reference\n\n"
        "* [Python API](api.md): every public name\n"
        "* [Extension points](extension-points.md): what can be implemented anew\n"
        "* [Adapters](adapters.md): loops on the OpenAI and Anthropic SDKs\n"
        "* [Testing](testing.md): a clock, the conformance suite of stores, a scripted model\n"
        "* [Command line](cli.md): every command and option, exit codes\n"
        "* [Stop reasons](stop-reasons.md): why a call did not run, or a run ended\n"
        "* [Codes](codes/index.md): every error and finding, what it means and what to do\n"
    )


# --- Python ----------------------------------------------------------------------------------------------------------


def api() -> str:
    """Every name that ``agentguard`` exports."""
    import agentguard

    groups: dict[str, list[str]] = {"Functions and decorators": [], "Classes": [], "Errors": [], "Other names": []}
    for name in agentguard.__all__:
        value = getattr(agentguard, name)
        if inspect.isclass(value):
            groups["Errors" if issubclass(value, BaseException) else "Classes"].append(entry(name, value))
        elif callable(value) and get_origin(value) is None and not isinstance(value, types.UnionType):
            groups["Functions and decorators"].append(entry(name, value))
        else:
            groups["Other names"].append(f"### `{name}`\n\n{alias(value)}\n")
    body = "\n".join(f"## {title}\n\n" + "\n".join(entries) for title, entries in groups.items() if entries)
    return f"{NOTE}# Python API\n\nEverything is imported from `agentguard`.\n\n{body}"


def of_modules(title: str, names: tuple[str, ...]) -> str:
    """Every public name of modules that are not imported from the front door."""
    text = [f"{NOTE}# {title}\n"]
    for name in names:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if defined_in(module, n, v)]
        text.append(f"## `{name}`\n\n{prose(module)}")
        for public_name in public:
            value = getattr(module, public_name)
            callable_here = callable(value) and get_origin(value) is None and not isinstance(value, types.UnionType)
            if callable_here:
                text.append(entry(public_name, value))
    return "\n".join(text)


def defined_in(module: types.ModuleType, name: str, value: Any) -> bool:
    """Whether a module defines a public class or function itself."""
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)


def alias(value: Any) -> str:
    """What a type alias or a constant stands for."""
    parts = [getattr(part, "__name__", repr(part)) for part in get_args(value)]
    return f"One of {', '.join(f'`{part}`' for part in parts)}." if parts else "A constant."


def entry(name: str, value: Any) -> str:
    """One class or function, with its public members."""
    text = [f"### `{name}`\n", *signature(name, value), prose(value)]
    if inspect.isclass(value):
        if issubclass(value, enum.Enum):
            text.append("Members: " + ", ".join(f"`{member.value}`" for member in value) + ".\n")
        else:
            text.extend(f"#### `{name}.{member}`\n\n{''.join(shown)}" for member, shown in members(value))
    return "\n".join(text)


def members(kind: type) -> Iterator[tuple[str, list[str]]]:
    """Public methods and properties that the class defines itself."""
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for name, raw in vars(kind).items():
        value = getattr(kind, name)
        if name.startswith("_") or name in fields or not (callable(value) or isinstance(raw, property)):
            continue
        if isinstance(raw, property):
            yield name, [prose(raw), "\n"]
        else:
            yield name, [*(f"{line}\n" for line in signature(name, value)), prose(value), "\n"]


def signature(name: str, value: Callable[..., Any]) -> list[str]:
    """The call, as a block; nothing where there is none to show."""
    if inspect.isclass(value) and (issubclass(value, enum.Enum) or value.__init__ is object.__init__):
        return []
    try:
        shown = inspect.signature(value)
    except (TypeError, ValueError):
        return []
    given = [
        p.replace(annotation=Plain.of(p.annotation), default=short(p.default))
        for p in shown.parameters.values()
        if p.name != "self"
    ]
    shown = shown.replace(parameters=given, return_annotation=Plain.of(shown.return_annotation))
    result = "" if inspect.isclass(value) else f" -> {shown.return_annotation!r}"
    inside = list(parameters(shown))
    line = f"{name}({', '.join(inside)}){result}"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(inside) + f",\n){result}"
    return [f"```text\n{line}\n```\n"]


def parameters(shown: inspect.Signature) -> Iterator[str]:
    """The parameters one by one, with the star where keyword-only ones begin."""
    starred = False
    for parameter in shown.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        yield str(parameter)


class Plain:
    """Something that prints as a given text, without quotes, on every version of Python."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, annotation: Any) -> Any:
        """An annotation as it was written."""
        if annotation is inspect.Parameter.empty:
            return annotation
        return cls(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation)))


def short(default: Any) -> Any:
    """A default value as far as it is worth reading."""
    if default is inspect.Parameter.empty:
        return default
    text = str(default.value) if isinstance(default, enum.Enum) else ADDRESS.sub("", repr(default))
    return Plain(text if len(text) <= 40 and not text.startswith("<") else "...")


def prose(value: Any) -> str:
    """A docstring as Markdown: Google-style sections become lists."""
    text = inspect.getdoc(value) or ""
    out: list[str] = []
    section = ""
    for line in text.splitlines():
        heading = line.removesuffix(":")
        if line.endswith(":") and heading in SECTIONS:
            section = heading
            out += ["", f"**{heading}**", ""]
        elif section and re.match(r" {4}[\w*`., ]+(\([^)]*\))?:( |$)", line):
            head, _, rest = line.strip().partition(":")
            out.append(f"* `{head}`:{rest}")
        elif section and line.startswith("    "):
            out.append(f"  {line.strip()}")
        else:
            section = section if not line else ""
            out.append(line)
    shown = "\n".join(out)
    shown = re.sub(r"``([^`]+)``", r"`\1`", shown)
    shown = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", shown)
    shown = re.sub(r"^(.*)::\n\n((?:    .*\n?|\n)+)", block, shown, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", shown).strip() + "\n"


def block(found: re.Match[str]) -> str:
    """A literal block of a docstring as a fenced one."""
    lead = f"{found[1]}:" if found[1] else ""
    return f"{lead}\n\n```text\n{textwrap.dedent(found[2]).strip()}\n```\n\n"


# --- codes -----------------------------------------------------------------------------------------------------------


def catalogue() -> dict[str, Any]:
    """``docs/codes.toml``."""
    return tomllib.loads((DOCS / "codes.toml").read_text(encoding="utf-8"))


def codes_in_source() -> set[str]:
    """Every code that the library mentions in its own text."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    return set(re.findall(r"\bAG\d{3}\b", text))


def codes() -> Mapping[str, str]:
    """One page per code and an index.

    Raises:
        SystemExit: The catalogue and the library do not know the same codes.
    """
    known = catalogue()["codes"]
    used = codes_in_source()
    if unknown := sorted(used - set(known)):
        raise SystemExit(f"docs/codes.toml does not explain {', '.join(unknown)}")
    if unused := sorted(set(known) - used):
        raise SystemExit(f"docs/codes.toml explains {', '.join(unused)}, which the library does not use")
    families = catalogue()["families"]
    rows: list[str] = []
    for family, title in families.items():
        members = [code for code in sorted(known) if code.startswith(family)]
        if members:
            rows.append(f"\n## {family}xx: {title}\n")
            rows += [f"* [{code}]({code}.md): {known[code]['title']}" for code in members]
    found = {"codes/index.md": f"{NOTE}# Codes\n" + "\n".join(rows) + "\n"}
    for code, about in known.items():
        parts = [f"{NOTE}# {code}: {about['title']}\n", about["meaning"].strip() + "\n"]
        parts.append(f"**What to do.** {about['remedy'].strip()}\n")
        if "example" in about:
            parts.append(f"```text\n{about['example'].strip()}\n```\n")
        found[f"codes/{code}.md"] = "\n".join(parts)
    return found


def stop_reasons() -> str:
    """The closed list of reasons, each with its meaning.

    Raises:
        SystemExit: The catalogue and the library do not know the same reasons.
    """
    from agentguard import StopReason

    known = catalogue()["stop_reasons"]
    if differ := sorted({reason.value for reason in StopReason} ^ set(known)):
        raise SystemExit(f"docs/codes.toml and StopReason differ in: {', '.join(differ)}")
    rows = "\n".join(f"| `{reason.value}` | {known[reason.value]} |" for reason in StopReason)
    return (
        f"{NOTE}# Stop reasons\n\nStable words; safe to store and to show.\n\n| reason | meaning |\n|---|---|\n{rows}\n"
    )


# --- command line ----------------------------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments and options."""
    import typer

    from agentguard.cli import app

    root = typer.main.get_command(app)
    rows = [
        f"{NOTE}# Command line\n",
        "`pip install 'agentguard[cli]'` brings the `agentguard` command. Data goes to stdout, messages to stderr.\n",
        "| exit code | meaning |\n|---|---|",
        *(f"| {code} | {text} |" for code, text in catalogue()["exit_codes"].items()),
        "",
    ]
    rows += list(commands(root, "agentguard"))
    return "\n".join(rows).rstrip() + "\n"


def commands(command: Any, path: str) -> Iterator[str]:
    """One command and its sub-commands; the command tree is read, not its printed help, which depends on versions."""
    subcommands = getattr(command, "commands", None)
    if not subcommands:
        about = inspect.cleandoc(command.help or "")
        if not about:
            raise SystemExit(f"{path} has no help text")
        yield f"## `{path}`\n\n{about}\n"
        rows = [row for parameter in command.params if (row := parameter_row(parameter))]
        if rows:
            yield "| argument or option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
    for name in sorted(subcommands or ()):
        yield from commands(subcommands[name], f"{path} {name}")


def parameter_row(parameter: Any) -> str | None:
    """One line of the table; hidden parameters and ``--help`` are left out."""
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return None
    about = (getattr(parameter, "help", None) or "").replace("|", "\\|").replace("\n", " ")
    if parameter.param_type_name == "argument":
        return f"| `{parameter.name.upper()}` | {about} |"
    spelled = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    return f"| {spelled} | {about} |"


def main() -> int:
    """Write the pages, or with ``--check`` name those that are out of date."""
    wanted = pages()
    stale = [name for name, text in wanted.items() if not (p := REFERENCE / name).exists() or p.read_text() != text]
    left = [path for path in REFERENCE.rglob("*.md") if path.relative_to(REFERENCE).as_posix() not in wanted]
    catalogued = (DOCS / "codes.toml").read_bytes()
    copied = COPY.exists() and COPY.read_bytes() == catalogued
    if "--check" in sys.argv:
        for name in (*stale, *left, *(() if copied else (COPY,))):
            print(f"out of date: {name}")
        return 1 if stale or left or not copied else 0
    COPY.write_bytes(catalogued)
    for name in stale:
        (REFERENCE / name).parent.mkdir(parents=True, exist_ok=True)
        (REFERENCE / name).write_text(wanted[name], encoding="utf-8")
    for path in left:
        path.unlink()
    print(f"{len(stale)} written, {len(left)} removed, {len(wanted)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
