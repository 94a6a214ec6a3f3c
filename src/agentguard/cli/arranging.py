"""``fmt``: the canonical layout of policy files.

What must stay true: a file is replaced as a whole or not at all, and only when it says the same afterwards.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from agentguard.cli.options import Format, FormatOption
from agentguard.cli.printing import document, note, out
from agentguard.documents import load_file
from agentguard.policy.formatting import NotFormatted, format_text
from agentguard.policy.policies import Policy


def fmt(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Policy or configuration files.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 when a file would change.")
    ] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Bring policy files into the canonical layout: white space, quotes, the order of a rule's settings.

    Comments stay. What a file says never changes: values, policy digest and comments are compared before it is
    written, and a file that would not be the same is left alone, with a message.
    """
    results: list[dict[str, Any]] = []
    for path in paths:
        read = load_file(path)
        Policy.from_document(read)
        raw = path.read_bytes()
        try:
            made = format_text(read.text, str(path)).encode()
        except NotFormatted as error:
            note(f"{path}: left alone: {error}")
            results.append({"file": str(path), "changed": False, "left_alone": str(error)})
            continue
        changed = made != raw
        if changed and not check:
            _replace(path, made)
        if changed and form is Format.TEXT:
            out(f"{'would format' if check else 'formatted'} {path}")
        results.append({"file": str(path), "changed": changed, "left_alone": None})
    if form is Format.JSON:
        document(results)
    raise typer.Exit(1 if check and any(one["changed"] for one in results) else 0)


def _replace(path: Path, content: bytes) -> None:
    target = path.resolve()  # a symbolic link stays one
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        shutil.copymode(target, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
