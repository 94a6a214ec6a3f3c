"""Payments: retried where that is safe, made once per key, and honest about a call that may or may not have happened."""

import threading

from agentguard import Ambiguous, CallContext, Completed, Policy, ProbeResult, Refused, Retry, ToolGateway, tool


class Bank:
    """Stands for a payment service: it may fail before it pays, or pay and never answer."""

    def __init__(self) -> None:
        self.paid: dict[str, int] = {}
        self.requests = 0
        self.trouble = ""
        self.answers = threading.Event()

    def pay(self, key: str, amount: int) -> str:
        """Pay once per key, as good payment services do."""
        self.requests += 1
        trouble, self.trouble = self.trouble, ""
        if trouble == "down":
            raise ConnectionError("no connection")
        self.paid.setdefault(key, amount)
        if trouble == "silent":
            self.answers.wait(30)
        return f"receipt for {amount}"


BANK = Bank()


@tool(name="payments.create", effect="idempotent", retry=Retry(attempts=3, wait_s=0.01), risk="high")
def pay(to: str, amount: int, context: CallContext) -> str:
    """The bank knows the key, so trying again is safe."""
    return BANK.pay(context.idempotency_key, amount)


@tool(name="cash.send", effect="irreversible", risk="critical", timeout="200ms")
def send_cash(to: str, amount: int) -> str:
    """Nobody can find out later whether this happened."""
    return BANK.pay(f"cash for {to}", amount)


def was_wired(to: str, amount: int) -> ProbeResult:
    """Look at the account statement instead of paying again."""
    key = f"wire to {to}"
    return ProbeResult("completed", f"receipt for {amount}") if key in BANK.paid else ProbeResult("absent")


@tool(name="wire.send", effect="irreversible", risk="critical", timeout="200ms", probe=was_wired)
def wire(to: str, amount: int) -> str:
    """Like cash, but there is a statement."""
    return BANK.pay(f"wire to {to}", amount)


def main() -> None:
    """Four ways for a payment to go wrong."""
    with ToolGateway([pay, send_cash, wire], Policy(allow="*")) as gateway, gateway.run(agent="billing") as run:
        bill = {"to": "DE02", "amount": 40}

        BANK.trouble = "down"
        first = run.attempt("payments.create", bill, call_id="call_1", idempotency_key="invoice-4711")
        assert isinstance(first, Completed)
        print(f"down: {first.value} after {first.attempts} attempts")

        again = run.attempt("payments.create", bill, call_id="call_2", idempotency_key="invoice-4711")
        assert isinstance(again, Completed)
        print(f"same key: {again.value}, replayed: {again.replayed}, requests to the bank: {BANK.requests}")

        other = run.attempt("payments.create", {**bill, "amount": 90}, call_id="call_3", idempotency_key="invoice-4711")
        assert isinstance(other, Refused)
        print("same key, other amount:", other.reason)

        BANK.trouble = "silent"
        lost = run.attempt("cash.send", bill, call_id="cash_1")
        assert isinstance(lost, Ambiguous)
        repeated = run.attempt("cash.send", bill, call_id="cash_1")
        print("no answer:", type(lost).__name__, "- again:", type(repeated).__name__, "- not sent twice")
        gateway.runs.resolve(
            run.run_id, "cash_1", status="succeeded", value="receipt seen by ana", by="ana", reason="asked the payee"
        )
        print("a person looked:", run.call("cash.send", bill, call_id="cash_1"))

        BANK.trouble = "silent"
        print("no answer:", type(run.attempt("wire.send", bill, call_id="wire_1")).__name__)
        print("the probe looked:", run.call("wire.send", bill, call_id="wire_1"))
        print("paid:", len(BANK.paid), "payments with", BANK.requests, "requests")
    BANK.answers.set()


if __name__ == "__main__":
    main()
