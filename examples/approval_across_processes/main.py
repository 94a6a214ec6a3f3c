"""Three processes, one SQLite file: the first asks and ends, the second is a person who edits and approves, the third goes on."""

import subprocess
import sys
import tempfile
from pathlib import Path

from agentguard import ApprovalPending, ApproverIdentity, Policy, ToolGateway, tool

POLICY = Policy.from_string("""
version: 1
rules:
  - id: payments
    require_approval: payments.create
    approval: {roles: [finance], expires: 1h}
""")


@tool(name="payments.create", effect="irreversible", risk="critical")
def pay(to: str, amount: int, currency: str = "EUR") -> str:
    """Pay somebody."""
    return f"paid {amount} {currency} to {to}"


def gateway(store: str) -> ToolGateway:
    """What every process of the service opens: the same tools, policy and store."""
    return ToolGateway([pay], POLICY, store=store)


def ask(store: str) -> None:
    """The agent's process: the call waits, so the process may as well end."""
    with gateway(store) as door, door.run(agent="billing", tenant="acme", user="u-17", run_id="invoice-4711") as run:
        try:
            run.call("payments.create", {"to": "DE02", "amount": 900}, call_id="call_1")
        except ApprovalPending as waiting:
            print("asked:", waiting.request.tool, dict(waiting.request.arguments))


def decide(store: str) -> None:
    """The process of a person, for example behind your own web page. It pays less than was asked for."""
    with gateway(store) as door:
        (request,) = door.approvals.list(status="pending", tenant="acme")
        ana = ApproverIdentity("ana", roles=("finance",))  # as your login says
        arguments = {**request.arguments, "amount": 850}
        decided = door.approvals.approve(request.id, by=ana, arguments=arguments, note="discount of 50")
        print("decided:", decided.status, "by", *decided.decided_by)


def go_on(store: str) -> None:
    """Any later process: what was approved runs, once, with the arguments that were approved."""
    with gateway(store) as door, door.resume("invoice-4711", tenant="acme") as run:
        for call_id, outcome in run.resume_calls().items():
            print("resumed:", call_id, outcome.value)
        again = run.attempt("payments.create", {"to": "DE02", "amount": 900}, call_id="call_1")
        print("again:", "replayed" if again.replayed else "PAID TWICE")
        run.complete({"paid": True})
        print("audit trail:", "ok" if door.audit.verify(run.run_id, tenant="acme").ok else "BROKEN")


STEPS = {"ask": ask, "decide": decide, "go-on": go_on}


def main() -> None:
    """Run one step in this process, or all of them in processes of their own."""
    if len(sys.argv) == 3:
        STEPS[sys.argv[1]](sys.argv[2])
        return
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            subprocess.run([sys.executable, __file__, step, f"sqlite:///{Path(folder)}/approvals.db"], check=True)


if __name__ == "__main__":
    main()
