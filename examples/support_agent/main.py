"""A support agent on the OpenAI SDK: denied, steered, approved by a person, resumed by another process, stopped by its budget.

    python main.py "Order A-17 arrived broken, see ticket T-9."       # stops where a person has to decide
    agentguard approvals approve ID --by ana --role finance --config agentguard.yaml
    python main.py --resume RUN                                       # another process goes on

With OPENAI_API_KEY and OPENAI_BASE_URL set it talks to that endpoint (model: OPENAI_MODEL), else to a scripted model.
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI
from tools import TOOLS

from agentguard import Prices, Run, ToolGateway
from agentguard.adapters.openai import LoopResult, resume_loop, run_loop

HERE = Path(__file__).parent
MODEL = os.environ.get("OPENAI_MODEL", "gpt-5")
PRICES = Prices({"gpt-5": ("1.25", "10"), "gpt-5-mini*": ("0.25", "2")})  # US dollars per million tokens, in and out
TASK = "You answer customers of a lamp shop. Refunds and mails are made with the tools."


@contextmanager
def model() -> Iterator[OpenAI]:
    """The client: of the endpoint in the environment, or of a scripted model on a local port."""
    if os.environ.get("OPENAI_API_KEY") and os.environ.get("OPENAI_BASE_URL"):
        yield OpenAI()
        return
    from scripted_model import script

    from agentguard.testing.model_server import ModelServer

    with ModelServer(script) as server:
        yield OpenAI(base_url=server.openai_url, api_key="none", max_retries=0)


def converse(run: Run, client: OpenAI, question: str | None) -> LoopResult:
    """Ask the model until it answers, is stopped, or has to wait; what is needed to go on is kept in the store."""
    kept = run.state.get("conversation")
    if kept is not None:
        result = resume_loop(client, run, json.dumps(kept.value))
    else:
        start = [{"role": "system", "content": TASK}, {"role": "user", "content": question}]
        result = run_loop(client, run, model=MODEL, messages=start, max_completion_tokens=1000, max_turns=30)
    if result.status == "waiting":
        run.state.put("conversation", json.loads(result.to_json()), expected=kept.version if kept else 0)
    elif result.status == "completed":
        run.complete({"answer": result.text})
    return result


def main() -> None:
    """Start or resume one conversation."""
    parser = argparse.ArgumentParser(description="A support agent behind a gateway.")
    parser.add_argument("question", nargs="?", default="Order A-17 arrived broken, see my ticket T-9.")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    parser.add_argument("--store", default=None, help="store URL instead of the one in agentguard.yaml")
    given = parser.parse_args()
    settings = {} if given.store is None else {"store": given.store}
    with (
        model() as client,
        ToolGateway.from_yaml(HERE / "agentguard.yaml", TOOLS, prices=PRICES, **settings) as gateway,
    ):
        who = {"agent": "support-bot", "tenant": "lamps", "environment": "prod", "user": "u-17", "session": "chat-9"}
        handle = gateway.resume(given.resume) if given.resume else gateway.run(**who, task=given.question)
        with handle as run:
            result = converse(run, client, given.question)
        report = run.report
        print(f"run {run.run_id}: {report.status} ({report.stop_reason})")
        for call in result.pending:
            print(f"waits for a person: {call.tool}, approval {call.id}")
        print(f"used: {report.usage.tool_calls} tool calls, {report.usage.cost_usd} USD")
        if report.result is not None:
            print(f"answer: {report.result['answer']}")


if __name__ == "__main__":
    main()
