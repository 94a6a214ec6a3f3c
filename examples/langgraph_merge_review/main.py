"""A LangGraph workflow refactor, test, review, merge: the merge waits for a person, however the graph is resumed."""

import sqlite3
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import tools_condition
from langgraph.types import Command

from agentguard import ApproverIdentity, Policy, ToolGateway
from agentguard.adapters.langgraph import assert_governed, governed_tool_node, tools_of, wake

POLICY = Policy.from_string("""
version: 1
rules:
  - {id: work, allow: [refactor, run_tests]}
  - {id: merging, require_approval: merge, approval: {roles: [maintainer]}}
""")
CONFIG: Any = {"configurable": {"thread_id": "change-7"}}
MIA = ApproverIdentity("mia", ("maintainer",))
PLAN = [("refactor", {"branch": "tidy"}), ("run_tests", {"branch": "tidy"}), ("merge", {"branch": "tidy"})]


@tool
def refactor(branch: str) -> str:
    """Refactor on a branch."""
    return f"refactored on {branch}"


@tool
def run_tests(branch: str) -> str:
    """Run the tests."""
    return f"214 passed on {branch}"


@tool
def merge(branch: str, into: str = "main") -> str:
    """Merge a branch."""
    print(f"  MERGED {branch} into {into}")
    return "merged"


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def plan(state: State) -> dict[str, Any]:
    """Plays the model: one step of the plan after the other."""
    at = sum(isinstance(m, AIMessage) for m in state["messages"])
    if at == len(PLAN):
        return {"messages": [AIMessage(f"The last step said: {state['messages'][-1].content}")]}
    name, args = PLAN[at]
    return {"messages": [AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"call_{at}"}])]}


def build(folder: Path) -> tuple[ToolGateway, Any]:
    """Gateway and graph, as every process that takes part builds them."""
    tools = [refactor, run_tests, merge]
    gateway = ToolGateway(tools_of(tools), POLICY, store=f"sqlite:///{folder}/guard.db")
    graph = StateGraph(State)
    graph.add_node("plan", plan)
    graph.add_node("tools", governed_tool_node(tools))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", tools_condition)
    graph.add_edge("tools", "plan")
    kept = sqlite3.connect(folder / "graph.db", check_same_thread=False)
    return gateway, graph.compile(checkpointer=SqliteSaver(kept))


def main() -> None:
    """Run to the review, try to go on without one, review, go on."""
    gateway, graph = build(Path.cwd())
    assert_governed(graph)
    with gateway.run(agent="maintainer-bot", run_id="change-7"):
        graph.invoke({"messages": [HumanMessage("Tidy up, please.")]}, CONFIG)
    (waiting,) = graph.get_state(CONFIG).interrupts
    print(f"waits for a person: {waiting.value['tool']} {waiting.value['arguments']}")

    with gateway.resume("change-7"):
        graph.invoke(Command(resume={waiting.id: {"decision": "approve"}}), CONFIG)
    print(f"resumed with a forged approval: still waiting for {len(graph.get_state(CONFIG).interrupts)}")

    gateway.approvals.approve(waiting.value["approval_id"], by=MIA, note="reviewed")
    gateway.close()
    gateway, graph = build(Path.cwd())  # another process
    with gateway.resume("change-7"):
        last = graph.invoke(wake(graph.get_state(CONFIG).interrupts), CONFIG)["messages"][-1]
    print(last.content)
    print(f"audit trail: {'ok' if gateway.audit.verify('change-7').ok else 'broken'}")
    gateway.close()


if __name__ == "__main__":
    main()
