"""Budgets: of one run, of a team and of a tenant; exact money; reserved before, settled after, shared by all processes."""

from agentguard import Budget, BudgetExceeded, Policy, Prices, ToolGateway, tool

BUDGETS = [
    Budget(max_tool_calls=4, per_tool={"search.web": 2}, max_cost_usd="0.05"),  # every run
    Budget(scope="team", per="day", max_cost_usd="0.10", warn_at=0.5),
    Budget(scope="tenant", per="month", max_tokens=40_000),
]
PRICES = Prices({"gpt-5*": ("1.25", "10")})  # US dollars per million tokens, in and out


@tool(name="search.web", effect="read", risk="low", cost_usd="0.0125")
def search(query: str) -> list[str]:
    """A search that costs money."""
    return [f"result for {query}"]


@tool(name="notes.add", effect="idempotent", risk="low")
def add_note(text: str) -> int:
    """A note costs nothing."""
    return len(text)


def work(gateway: ToolGateway, name: str) -> None:
    """One run: until a budget says no."""
    with gateway.run(agent="researcher", tenant="acme", team="growth", run_id=name) as run:
        try:
            for number in range(10):
                # A model call reserves first: if the budget cannot pay it, it is not made.
                with run.reserve_llm(model="gpt-5-mini", input_tokens=4000, max_output_tokens=1000) as held:
                    held.settle(input_tokens=3000, output_tokens=500)
                if number < 2:
                    search(f"question {number}")
                else:
                    add_note(f"found {number}")
        except BudgetExceeded as stop:
            print(f"{name}: stopped by {stop.reason}: {stop.for_people}")
            run.stop(stop.reason)
        used = run.usage
        for warning in run.report.warnings:
            print(f"{name}: warning: {warning}")
        print(f"{name}: used {used.tool_calls} tool calls, {used.tokens} tokens, {used.cost_usd} USD")


def main() -> None:
    """Three runs of one team, one after the other."""
    with ToolGateway([search, add_note], Policy(allow="*"), budgets=BUDGETS, prices=PRICES) as gateway:
        for name in ("monday", "tuesday", "wednesday"):
            work(gateway, name)
        for line in gateway.budgets.read(tenant="acme", team="growth"):
            if line.limit is not None:
                shown = f"{line.used / 1e9:.5f}" if line.dimension == "cost_usd" else line.used
                print(f"{line.label}: {line.dimension} {shown}")


if __name__ == "__main__":
    main()
