"""What is measured: each case returns ratios (or shares), and the bar it must meet."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentguard import Budget, Policy, Run, ToolGateway, tool
from agentguard.policy.compiling import compile_layers
from agentguard.tools.registry import ToolRegistry
from bench import floor, timing, workload


@dataclass(frozen=True)
class Row:
    """One line of the report. ``better`` says in which direction the bar lies."""

    table: str
    name: str
    values: dict[str, float]
    bar: float | None = None
    goal: float | None = None
    better: str = "lower"
    note: str = ""
    floor: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the bar is met, ``None`` where there is none."""
        if self.bar is None:
            return None
        value = self.values["median"]
        return value <= self.bar if self.better == "lower" else value >= self.bar


@dataclass(frozen=True)
class Size:
    """How much is measured: pairs of slices, and seconds of the rate cases."""

    pairs: int = 9
    seconds: float = 1.0
    tasks: int = 1_000
    records: int = 5_000
    big: int = 10_000


def decisions(size: Size) -> Iterator[Row]:
    """One decision, against the bare validated call."""
    base = workload.bare()
    least = timing.spread(
        timing.ratios(floor.decider(), workload.ARGUMENTS, base, workload.ARGUMENTS, pairs=size.pairs)
    )
    shapes = [("spread", 1), ("spread", 10), ("spread", 100), ("spread", size.big), ("dense", 10), ("dense", 100)]
    for shape, rules in shapes:
        layers, names = workload.policies(rules, shape)
        registry = ToolRegistry.of(*workload.tools(names))
        book = compile_layers(layers, registry)
        gateway = ToolGateway(tools=[], policy=Policy(allow=()))
        context = gateway.run(agent="analyst").context
        name, now = workload.target(rules, shape), time.time_ns()
        for case in ("allow", "deny"):
            if case == "deny" and rules < GROUP_OF_DENIES:
                continue
            given = workload.arguments(rules, shape, case)
            verdict = book.decide(name, given, context, (), now).verdict
            if verdict != case:
                raise AssertionError(f"{rules} {shape} rules decide {verdict}, not {case}")

            def decide(
                arguments: dict[str, Any], book: Any = book, name: str = name, now: int = now, context: Any = context
            ) -> Any:
                return book.decide(name, arguments, context, (), now)

            found = timing.spread(timing.ratios(decide, given, base, workload.ARGUMENTS, pairs=size.pairs))
            bar = 6.0 if (shape, rules) == ("dense", 100) else 3.0
            goal = 2.0 if (shape, rules) == ("dense", 100) else 1.5
            factor = 1.0 if case == "allow" else 1.3
            yield Row(
                "decision",
                f"{rules} rules, {shape}, {case}",
                found,
                bar * factor,
                goal * factor,
                floor=least["median"],
            )


GROUP_OF_DENIES = 10


def gateway(store: str = "memory:", function: Callable[..., Any] = workload.body) -> tuple[ToolGateway, Run]:
    """Ten rules, two budget scopes, a run; what every governed-call case uses."""
    layers, names = workload.policies(10, "spread")
    made = ToolGateway(
        tools=workload.tools(names, function),
        policy=layers,
        store=store,
        budgets=[Budget(scope="tenant", per="day", max_tool_calls=10**12, max_cost_usd="1000000")],
        max_repeats=None,
    )
    run = made.run(agent="analyst", user="u-1", session="s-1", budget=Budget(max_tool_calls=10**12, max_steps=10**12))
    return made, run.open()


def calls(size: Size) -> Iterator[Row]:
    """A whole governed call in memory, sync and async."""
    base = workload.bare()
    least = timing.spread(timing.ratios(floor.call(), workload.ARGUMENTS, base, workload.ARGUMENTS, pairs=size.pairs))
    made, run = gateway()

    def call(arguments: dict[str, Any]) -> Any:
        return run.call("tool_0", arguments)

    found = timing.spread(timing.ratios(call, workload.ARGUMENTS, base, workload.ARGUMENTS, pairs=size.pairs * 3))
    yield Row("governed call, memory", "sync", found, 20, 9, floor=least["median"])
    made.close()

    async def measure() -> tuple[dict[str, float], dict[str, float], dict[str, float], float]:
        base = workload.abare()
        least = await timing.aratios(floor.acall(), workload.ARGUMENTS, base, workload.ARGUMENTS, pairs=size.pairs)
        made, run = gateway(function=workload.abody)

        async def call(arguments: dict[str, Any]) -> Any:
            return await run.acall("tool_0", arguments)

        found = await timing.aratios(call, workload.ARGUMENTS, base, workload.ARGUMENTS, pairs=size.pairs * 3)
        each = 10
        shares = []
        for _ in range(3):
            plain = await timing.task_rate(base, workload.ARGUMENTS, size.tasks, each)
            ours = await timing.task_rate(call, workload.ARGUMENTS, size.tasks, each)
            shares.append(ours / plain)
        plain = await timing.task_rate(base, workload.ARGUMENTS, size.tasks, each)
        lowest = await timing.task_rate(floor.acall(), workload.ARGUMENTS, size.tasks, each)
        await made.aclose()
        return timing.spread(found), timing.spread(least), timing.spread(shares), lowest / plain

    found, least, shares, lowest = asyncio.run(measure())
    yield Row("governed call, memory", "async", found, 20, 8, floor=least["median"])
    name = f"{size.tasks} tasks, share of the baseline's rate"
    yield Row("governed call, memory", name, shares, 0.06, 0.2, "higher", floor=lowest)


def threads(size: Size) -> Iterator[Row]:
    """How the rate of governed calls changes with threads."""
    made, run = gateway()

    def call(arguments: dict[str, Any]) -> Any:
        return run.call("tool_0", arguments)

    for count, bar, goal in ((8, 0.8, 0.9), (64, None, 0.7)):
        shares = []
        for _ in range(3):
            gc.collect()
            one = timing.thread_rate(call, workload.ARGUMENTS, 1, size.seconds)
            many = timing.thread_rate(call, workload.ARGUMENTS, count, size.seconds)
            shares.append(many / one)
        yield Row("threads", f"{count} threads against one", timing.spread(shares), bar, goal, "higher")
    made.close()


def durable(size: Size) -> Iterator[Row]:
    """Governed calls on SQLite: one caller, and 64 that share their syncs."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DISK")) as folder:
        base = workload.bare()
        made, run = gateway(f"sqlite:///{folder}/one.db")

        def call(arguments: dict[str, Any]) -> Any:
            return run.call("tool_0", arguments)

        found = timing.ratios(call, workload.ARGUMENTS, base, workload.ARGUMENTS, pairs=max(size.pairs // 2, 3))
        yield Row("governed call, SQLite", "sync, one caller", timing.spread(found), note="two synced transactions")
        made.close()

        async def alone() -> list[float]:
            base = workload.abare()
            made, run = gateway(f"sqlite:///{folder}/async.db", workload.abody)

            async def call(arguments: dict[str, Any]) -> Any:
                return await run.acall("tool_0", arguments)

            found = await timing.aratios(
                call, workload.ARGUMENTS, base, workload.ARGUMENTS, pairs=max(size.pairs // 2, 3)
            )
            await made.aclose()
            return found

        yield Row("governed call, SQLite", "async, one caller", timing.spread(asyncio.run(alone())))
        made, run = gateway(f"sqlite:///{folder}/many.db")
        shares = []
        for turn in range(3):
            grouped = _grouped_rate(Path(folder) / f"plain{turn}.db", 64, size.seconds)
            many = timing.thread_rate(call_of(run), workload.ARGUMENTS, 64, size.seconds)
            shares.append(many / grouped)
        yield Row(
            "governed call, SQLite",
            "64 callers, share of bare grouped transactions",
            timing.spread(shares),
            0.4,
            None,
            "higher",
            extra={"governed_per_s": many, "grouped_per_s": grouped},
        )
        made.close()


def call_of(run: Run) -> Callable[[dict[str, Any]], Any]:
    """A governed call as a function of its arguments."""

    def call(arguments: dict[str, Any]) -> Any:
        return run.call("tool_0", arguments)

    return call


def _grouped_rate(path: Path, callers: int, seconds: float) -> float:
    """Pairs of bare transactions per second: what a governed call writes, in plain SQL, synced in groups.

    ``callers`` wait for the two transactions of a call; one writer commits whatever waits, with one sync.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE account(key TEXT PRIMARY KEY, body TEXT)")
    connection.execute("CREATE TABLE call(key TEXT PRIMARY KEY, status TEXT, body TEXT)")
    connection.execute("CREATE TABLE audit(run TEXT, seq INTEGER, line BLOB, body BLOB, PRIMARY KEY(run, seq))")
    connection.executemany("INSERT INTO account VALUES(?, ?)", [("run", "{}"), ("tenant", "{}")])
    line = b"x" * 700
    waiting: list[tuple[int, int, threading.Event]] = []
    lock, stop = threading.Condition(), threading.Event()
    seq = 0

    def write() -> None:
        nonlocal seq
        while not stop.is_set():
            with lock:
                while not waiting and not stop.is_set():
                    lock.wait(0.1)
                batch = waiting[:]
                waiting.clear()
            connection.execute("BEGIN IMMEDIATE")
            for caller, number, _ in batch:
                seq += 1
                connection.execute("UPDATE account SET body=? WHERE key='run'", (str(seq),))
                connection.execute("UPDATE account SET body=? WHERE key='tenant'", (str(seq),))
                connection.execute(
                    "INSERT INTO call VALUES(?, ?, ?) ON CONFLICT(key) DO UPDATE SET status=excluded.status",
                    (f"{caller}-{number // 2}", "running", "{}"),
                )
                connection.execute("INSERT INTO audit VALUES('run', ?, ?, ?)", (seq, line, line[:200]))
            connection.execute("COMMIT")
            for _, _, event in batch:
                event.set()

    counts = [0] * callers
    gate = threading.Barrier(callers + 1)

    def ask(index: int) -> None:
        gate.wait()
        number = 0
        while not stop.is_set():
            event = threading.Event()
            with lock:
                waiting.append((index, number, event))
                lock.notify()
            event.wait(2.0)
            number += 1
            counts[index] = number

    pool = [threading.Thread(target=ask, args=(index,), daemon=True) for index in range(callers)]
    writer = threading.Thread(target=write, daemon=True)
    for thread in (*pool, writer):
        thread.start()
    gate.wait()
    start = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    took = time.perf_counter() - start
    for thread in (*pool, writer):
        thread.join()
    connection.close()
    return sum(counts) / 2 / took


def memory(size: Size) -> Iterator[Row]:
    """Bytes per retained audit record, and per run that waits for a person."""
    made, run = gateway()
    for _ in range(200):
        run.call("tool_0", workload.ARGUMENTS)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(size.records // 2):
        run.call("tool_0", workload.ARGUMENTS)
    gc.collect()
    used = (tracemalloc.get_traced_memory()[0] - before) / (size.records // 2 * 2)
    tracemalloc.stop()
    made.close()
    yield Row("memory", "bytes per audit record, its share of the call included", {"median": used}, 1_024, None)

    @tool(name="pay", effect="irreversible")
    def pay(path: str, recipient: str, amount: int, mode: str, dry_run: bool) -> int:
        return amount

    asking = ToolGateway(tools=[pay], policy=Policy(require_approval={"pay"}))
    runs = [asking.run(agent="analyst").open() for _ in range(20)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(500):
        run = asking.run(agent="analyst").open()
        run.attempt("pay", workload.ARGUMENTS, call_id="c1")
        runs.append(run)
    gc.collect()
    used = (tracemalloc.get_traced_memory()[0] - before) / 500
    tracemalloc.stop()
    asking.close()
    yield Row("memory", "bytes per waiting run", {"median": used}, 10_240, None)


def imports(size: Size) -> Iterator[Row]:
    """Time of ``import agentguard`` against what its core cannot do without."""

    def took(statement: str) -> float:
        code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    took("import agentguard")
    found = []
    for _ in range(max(size.pairs, 5)):
        theirs = took("import pydantic, opentelemetry.trace")
        found.append(took("import agentguard") / theirs)
    yield Row("import", "import agentguard / import pydantic, opentelemetry.trace", timing.spread(found), 1.5)


CASES: dict[str, Callable[[Size], Iterator[Row]]] = {
    "decisions": decisions,
    "calls": calls,
    "threads": threads,
    "durable": durable,
    "memory": memory,
    "imports": imports,
}
"""Everything that can be measured, by name."""


def median(values: list[float]) -> float:
    """Median, for reports."""
    return statistics.median(values)
