"""An existing PydanticAI agent behind the gateway: its tools as they are, a refusal, a person, an edited amount."""

import asyncio

from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentguard import ApproverIdentity, Budget, Policy, ToolGateway
from agentguard.adapters.pydantic_ai import AgentGuard, assert_governed, tools_of, wake

POLICY = Policy.from_string("""
version: 1
rules:
  - {id: look, allow: orders_get}
  - {id: small, allow: refund, when: {args: {amount: {maximum: 50}}}}
  - {id: large, require_approval: refund, when: {args: {amount: {minimum: 51, maximum: 500}}}}
""")

SCRIPT = [
    [("orders_get", {"order_id": "A-17"})],
    [("refund", {"order_id": "A-17", "amount": 900}), ("refund", {"order_id": "A-17", "amount": 120})],
    "Refunded what I was allowed to.",
]


def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Plays the model; give the agent a real one instead."""
    at = sum(isinstance(m, ModelResponse) for m in messages)
    turn = SCRIPT[at]
    if isinstance(turn, str):
        return ModelResponse(parts=[TextPart(turn)])
    return ModelResponse(parts=[ToolCallPart(n, a, tool_call_id=f"call_{at}_{i}") for i, (n, a) in enumerate(turn)])


agent = Agent(FunctionModel(scripted), output_type=[str, DeferredToolRequests], capabilities=[AgentGuard()])


@agent.tool_plain(metadata={"agentguard": {"effect": "read", "risk": "low"}})
def orders_get(order_id: str) -> dict[str, str]:
    """Look an order up."""
    return {"order": order_id, "status": "lost"}


@agent.tool_plain
def refund(order_id: str, amount: int) -> str:
    """Pay money back."""
    print(f"  paid {amount} for {order_id}")
    return f"refunded {amount}"


async def main() -> None:
    """Run until a person is needed, decide, go on."""
    assert_governed(agent)
    gateway = ToolGateway(tools_of(agent), POLICY)
    async with gateway.run(agent="refunds", budget=Budget(max_tool_calls=10), run_id="case-1"):
        first = await agent.run("Order A-17 never arrived.")
    assert isinstance(first.output, DeferredToolRequests)
    for call in first.output.approvals:
        print(f"waits for a person: {call.tool_name} {call.args}")

    # Any process that has the messages and the store can go on; what the framework is told approves nothing.
    async with await gateway.aresume("case-1"):
        again = await agent.run(message_history=first.all_messages(), deferred_tool_results=wake(first.output))
        print(f"undecided: {type(again.output).__name__}")

    (request,) = gateway.approvals.list()
    smaller = {"order_id": "A-17", "amount": 100}
    gateway.approvals.approve(request.id, by=ApproverIdentity("ana", ("finance",)), arguments=smaller)
    async with await gateway.aresume("case-1") as run:
        last = await agent.run(message_history=first.all_messages(), deferred_tool_results=wake(first.output))
        usage = await run.ausage()
    print(f"answer: {last.output}")
    for call in gateway.runs.calls("case-1"):
        print(f"{call.call_id} {call.tool}: {call.status}")
    print(f"{usage.tool_calls} tool calls, audit trail: {'ok' if gateway.audit.verify('case-1').ok else 'broken'}")


if __name__ == "__main__":
    asyncio.run(main())
