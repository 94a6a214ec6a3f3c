"""Tools with a decorator, a policy in a file, one gateway: what is allowed runs, everything else is refused with a reason."""

from pathlib import Path

from agentguard import Budget, PolicyDenied, Refused, Suspended, ToolGateway, tool

HERE = Path(__file__).parent


@tool(name="orders.get", permissions=["orders:read"], effect="read", risk="low", timeout="5s")
def get_order(order_id: str, limit: int = 10) -> dict[str, object]:
    """Look up an order."""
    return {"order_id": order_id, "status": "shipped", "lines": limit}


@tool(name="refunds.create", permissions=["refunds:write"], effect="irreversible", risk="high")
def create_refund(order_id: str, amount: int) -> str:
    """Pay money back."""
    return f"refunded {amount} for {order_id}"


@tool(name="orders.delete", effect="irreversible", risk="critical")
def delete_order(order_id: str) -> str:
    """Nobody ever allowed this one."""
    return f"deleted {order_id}"


def main() -> None:
    """Make a few calls and show what becomes of them."""
    gateway = ToolGateway.from_yaml(HERE / "policy.yaml", tools=[get_order, create_refund, delete_order])
    with gateway, gateway.run(agent="support-bot", tenant="acme", budget=Budget(max_tool_calls=3)) as run:
        # The decorated function is governed: it belongs to the current run.
        print("orders.get:", get_order("A-17")["status"])
        print("refunds.create:", create_refund("A-17", amount=40))

        # What no rule allows is denied, and the exception says why.
        try:
            delete_order("A-17")
        except PolicyDenied as denied:
            print("orders.delete:", denied.reason, "-", denied)

        # attempt() returns the outcome instead of raising; this is what an agent loop uses.
        outcome = run.attempt("refunds.create", {"order_id": "A-17", "amount": 900})
        assert isinstance(outcome, Refused)
        print("refunds.create 900:", outcome.reason)
        print("  the model may read:", outcome.message)

        # A typing mistake of the model is no accident waiting to happen.
        print("amuont:", run.attempt("refunds.create", {"order_id": "A-17", "amuont": 40}).reason)

        waiting = run.attempt("refunds.create", {"order_id": "A-17", "amount": 250}, call_id="call_7")
        assert isinstance(waiting, Suspended)
        print("refunds.create 250: waits for", waiting.request.terms.role_sets[0][0])

        get_order("A-18")
        print("fourth call:", run.attempt("orders.get", {"order_id": "A-19"}).reason)
        run.stop(note="nobody is there to approve the refund")

        for action in run.report.actions_taken:
            print("  ", action.tool, action.status)
        print("audit trail:", "ok" if gateway.audit.verify(run.run_id).ok else "BROKEN")


if __name__ == "__main__":
    main()
