"""``init``: the first files of a project: a configuration, and tools that it governs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final

import typer

from agentguard.cli.opening import wrong
from agentguard.cli.printing import note, out

FILES: Final = {"agentguard.yaml": "agentguard.yaml.txt", "agentguard_tools.py": "agentguard_tools.py.txt"}
"""What is written, and the package data it comes from."""


def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIRECTORY]", help="Where to write the files.")] = Path(),
) -> None:
    """Write agentguard.yaml and agentguard_tools.py, an example to start from. Existing files are never replaced."""
    if not directory.is_dir():
        wrong(f"There is no directory {directory}.")
    there = [name for name in FILES if (directory / name).exists()]
    if there:
        wrong(f"{' and '.join(str(directory / name) for name in there)} exist already; nothing was written.")
    source = files("agentguard.cli") / "templates"
    for name, template in FILES.items():
        with (directory / name).open("x", encoding="utf-8") as stream:
            stream.write((source / template).read_text(encoding="utf-8"))
        out(f"wrote {directory / name}")
    note("")
    note("Next:")
    note("  agentguard check --tools agentguard_tools:TOOLS")
    note(
        '  agentguard eval --tools agentguard_tools:TOOLS --tool refunds.create --args \'{"order_id": "A-17", "amount": 250}\''
    )
    note("  python agentguard_tools.py")
