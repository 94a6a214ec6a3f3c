"""``python -m bench``: measure, print the tables, and with ``--check`` fail when a bar is missed."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench.cases import CASES, Row, Size


def show(row: Row) -> str:
    """One line of a table."""
    value = row.values["median"]
    spread = f"{row.values['p10']:8.2f} - {row.values['p90']:.2f}" if "p10" in row.values else ""
    floor = f"{row.floor:.2f}" if row.floor is not None else ""
    sign = "<=" if row.better == "lower" else ">="
    bar = f"{sign} {row.bar:g}" if row.bar is not None else ""
    goal = f"{sign} {row.goal:g}" if row.goal is not None else ""
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    return f"  {row.name:58} {value:9.2f} {spread:20} {floor:>7} {bar:>9} {goal:>9}  {verdict}"


def main() -> int:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"which of {', '.join(CASES)}; all by default")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter slices")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    size = Size(pairs=5, seconds=0.4, tasks=200, records=1_000, big=2_000) if options.quick else Size()
    rows: list[Row] = []
    print(f"Python {platform.python_version()} on {platform.machine()}; figures are ratios to a bare validated call")
    for name in options.cases or CASES:
        start = time.perf_counter()
        table = ""
        for row in CASES[name](size):
            if row.table != table:
                table = row.table
                head = ("median", "10 - 90 %", "floor", "bar", "goal")
                print(f"\n{table}\n  {'':58} {head[0]:>9} {head[1]:20} {head[2]:>7} {head[3]:>9} {head[4]:>9}")
            print(show(row), flush=True)
            rows.append(row)
        print(f"  ({name}: {time.perf_counter() - start:.0f} s)", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([{**asdict(row), "met": row.met} for row in rows], indent=1))
    missed = [row for row in rows if row.met is False]
    if missed:
        print(f"\n{len(missed)} bar(s) missed: " + "; ".join(f"{row.table}: {row.name}" for row in missed))
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
