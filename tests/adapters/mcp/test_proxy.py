"""``agentguard mcp-proxy`` as processes: a real server behind it, a real client before it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.adapters.mcp.far import BO, EVERYTHING, Far, failed, reason, text

pytestmark = pytest.mark.anyio


def approve(far: Far) -> None:
    """Approve what waits, as another process."""
    found = subprocess.run(
        [*far.proxy[:3], "approvals", "list", "--format", "json", "--config", str(far.config)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for request in json.loads(found.stdout):
        subprocess.run(
            [*far.proxy[:3], "approvals", "approve", request["id"], "--by", "bo", "--yes", "--config", str(far.config)],
            capture_output=True,
            check=True,
            timeout=60,
        )


async def refuses_to_start(far: Far) -> None:
    """The first call gets an error, and nobody is there for a second one."""
    said: list[str] = []
    async with far.governed() as session:
        for _ in range(2):
            try:
                await session.call_tool("read_file", {"path": "a"})
            except Exception as error:
                said.append(f"{type(error).__name__} {error}")
    assert len(said) == 2, said


async def test_an_allowed_call_reaches_the_server_and_its_result_the_client(far: Far) -> None:
    async with far.governed() as session:
        result = await session.call_tool("read_file", {"path": "a"})
    assert (failed(result), text(result), far.ran) == (False, "contents of a", ["read a"])


async def test_a_call_that_no_rule_allows_never_reaches_the_server(far: Far) -> None:
    async with far.governed() as session:
        result = await session.call_tool("secret", {})
    assert (failed(result), reason(result), far.ran) == (True, "policy_denied", [])
    assert json.loads(text(result))["error"]["type"] == "policy_denied"


async def test_only_visible_tools_are_listed(far: Far) -> None:
    async with far.governed() as session:
        names = {tool.name for tool in (await session.list_tools()).tools}
    assert {"read_file", "delete_file"} <= names
    assert "secret" not in names


async def test_a_misspelt_tool_is_refused_before_the_server_hears_of_it(far: Far) -> None:
    async with far.governed() as session:
        result = await session.call_tool("read_fil", {"path": "a"})
    assert (failed(result), reason(result), far.ran) == (True, "unknown_tool", [])


async def test_arguments_that_the_servers_schema_does_not_permit_are_refused_here(far: Far) -> None:
    async with far.governed() as session:
        result = await session.call_tool("read_file", {"path": "a", "mode": "w"})
    assert (failed(result), reason(result), far.ran) == (True, "invalid_arguments", [])


async def test_a_call_waits_for_a_person_in_another_process_and_runs_once_when_it_is_repeated(far: Far) -> None:
    async with far.governed() as session:
        first = await session.call_tool("delete_file", {"path": "a"})
        again = await session.call_tool("delete_file", {"path": "a"})
        assert [reason(first), reason(again), far.ran] == ["approval_pending", "approval_pending", []]
        approve(far)
        other = await session.call_tool("delete_file", {"path": "b"})
        done = await session.call_tool("delete_file", {"path": "a"})
        later = await session.call_tool("delete_file", {"path": "a"})
    assert reason(other) == "approval_pending"
    assert (failed(done), text(done)) == (False, "deleted a")
    assert reason(later) == "approval_pending"
    assert far.ran == ["delete a"]
    with far.gateway() as store:
        assert len(store.approvals.list(status=None)) == 3


async def test_a_rejection_is_told_and_nothing_runs(far: Far) -> None:
    async with far.governed() as session:
        await session.call_tool("delete_file", {"path": "a"})
        with far.gateway() as store:
            (request,) = store.approvals.list()
            store.approvals.reject(request.id, by=BO, reason="no")
        result = await session.call_tool("delete_file", {"path": "a"})
    assert (reason(result), far.ran) == ("approval_rejected", [])


async def test_the_clients_own_id_makes_a_call_the_same_call(far: Far) -> None:
    meta = {"agentguard/tool_call_id": "c1"}
    async with far.governed() as session:
        first = await session.call_tool("read_file", {"path": "a"}, meta=meta)
        again = await session.call_tool("read_file", {"path": "a"}, meta=meta)
        other = await session.call_tool("read_file", {"path": "b"}, meta=meta)
    assert text(first) == text(again) == "contents of a"
    assert failed(other)
    assert far.ran == ["read a"]


async def test_a_run_goes_on_in_the_next_session_with_the_calls_that_wait(far: Far) -> None:
    async with far.governed("--run", "r1") as session:
        assert reason(await session.call_tool("delete_file", {"path": "a"})) == "approval_pending"
    approve(far)
    async with far.governed("--run", "r1") as session:
        assert text(await session.call_tool("delete_file", {"path": "a"})) == "deleted a"
    assert far.ran == ["delete a"]
    with far.gateway() as store:
        assert store.runs.get("r1").status == "running"


async def test_a_session_is_a_run_that_ends_with_it(far: Far) -> None:
    async with far.governed("--agent", "desk", "--user", "ann") as session:
        await session.call_tool("read_file", {"path": "a"})
    with far.gateway() as store:
        (run,) = store.runs.list()
        assert (run.status, run.context.agent, run.context.user) == ("completed", "desk", "ann")
        assert [(call.tool, call.status) for call in store.runs.calls(run.context.run_id)] == [
            ("read_file", "succeeded")
        ]


async def test_a_budget_stops_the_calls(far: Far) -> None:
    far.config.write_text(far.config.read_text() + "budgets: [{scope: run, max_tool_calls: 2}]\n")
    async with far.governed() as session:
        results = [await session.call_tool("read_file", {"path": str(n)}) for n in range(4)]
    assert [reason(r) for r in results] == [None, None, "budget_tool_calls", "budget_tool_calls"]
    assert far.ran == ["read 0", "read 1"]


async def test_a_tool_whose_description_changes_is_hidden_and_not_called_any_more(far: Far) -> None:
    async with far.governed() as session:
        assert "read_file" in {tool.name for tool in (await session.list_tools()).tools}
        await session.call_tool("rename", {})
        assert "read_file" not in {tool.name for tool in (await session.list_tools()).tools}
        result = await session.call_tool("read_file", {"path": "a"})
    assert (failed(result), far.ran) == (True, [])
    assert "read_file" in far.errors.read_text()


async def test_a_tool_that_appears_later_is_hidden_and_not_called(far: Far) -> None:
    far.config.write_text(EVERYTHING)
    async with far.governed() as session:
        await session.call_tool("widen", {})
        assert "new" not in {tool.name for tool in (await session.list_tools()).tools}
        assert reason(await session.call_tool("new", {})) == "unknown_tool"
    assert far.ran == []


async def test_the_servers_own_error_is_handed_on_and_recorded_as_a_failure(far: Far) -> None:
    async with far.governed() as session, far.direct() as direct:
        result = await session.call_tool("raises", {"word": "x"})
        assert result == await direct.call_tool("raises", {"word": "x"})
    assert failed(result)
    with far.gateway() as store:
        (run,) = store.runs.list()
        assert [call.status for call in store.runs.calls(run.context.run_id)] == ["failed"]


async def test_what_became_of_a_call_is_unknown_when_the_server_dies_in_it(far: Far) -> None:
    async with far.governed() as session:
        result = await session.call_tool("slow", {"seconds": 0.1})
        assert reason(result) == "ambiguous"
    assert far.ran == ["slow begins"]
    with far.gateway() as store:
        (run,) = store.runs.list()
        assert [call.status for call in store.runs.calls(run.context.run_id)] == ["ambiguous"]


async def test_redacted_output_leaves_no_copy_in_the_text(far: Far) -> None:
    far.config.write_text(
        far.config.read_text() + "  - {id: hide, constrain: report, redact: [output.structuredContent.ssn]}\n"
    )
    async with far.governed() as session:
        result = await session.call_tool("report", {"name": "n"})
    assert "078" not in result.model_dump_json()
    assert "[redacted]" in text(result)
    with far.gateway() as store:
        (run,) = store.runs.list()
        assert all(b"078" not in (record.body or b"") for record in store.audit.records(run.context.run_id))


async def test_a_policy_about_a_tool_that_the_server_does_not_have_ends_the_proxy(far: Far) -> None:
    far.config.write_text(far.config.read_text().replace("delete_file", "delete_fil"))
    await refuses_to_start(far)
    assert "did you mean" in far.errors.read_text()
    assert far.ran == []


async def test_settings_for_a_tool_that_the_server_does_not_have_end_the_proxy(far: Far) -> None:
    far.config.write_text(far.config.read_text().replace("  read_file: {", "  raed_file: {"))
    await refuses_to_start(far)
    assert "agentguard.yaml:5" in far.errors.read_text()
    assert far.ran == []


async def test_a_store_that_cannot_be_opened_means_that_nothing_runs(far: Far) -> None:
    (far.folder / "ag.db").mkdir()
    await refuses_to_start(far)
    assert far.ran == []


async def test_a_store_that_goes_away_means_that_nothing_runs(far: Far) -> None:
    async with far.governed() as session:
        await session.call_tool("read_file", {"path": "a"})
        for file in far.folder.glob("ag.db*"):
            file.write_bytes(b"this is no database any more" * 1000)
        result = await session.call_tool("read_file", {"path": "b"})
    assert failed(result)
    assert far.ran == ["read a"]


async def test_a_tool_that_is_not_as_it_was_locked_is_hidden_and_refused(far: Far) -> None:
    lock = far.folder / "agentguard.lock"
    environment = {**os.environ, "UP_LOG": str(far.log)}
    command = [*far.proxy, "--write-lock", str(lock), "--", *far.command]
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
    async with far.governed("--lock", str(lock)) as session:
        assert text(await session.call_tool("read_file", {"path": "a"})) == "contents of a"
    far.command.append("pulled")
    async with far.governed("--lock", str(lock)) as session:
        names = {tool.name for tool in (await session.list_tools()).tools}
        assert "read_file" not in names
        assert "report" in names
        assert failed(await session.call_tool("read_file", {"path": "b"}))
    assert far.ran == ["read a"]


async def test_a_server_that_does_not_answer_cannot_be_locked(far: Far) -> None:
    command = [*far.proxy, "--write-lock", str(far.folder / "l"), "--", "true"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "AG693" in ended.stderr


async def test_a_command_that_does_not_exist_is_a_plain_error(far: Far) -> None:
    ended = subprocess.run([*far.proxy, "--", "/no/such"], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    ended = subprocess.run(far.proxy, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "Which server?" in ended.stderr


async def test_hints_of_the_server_count_only_when_it_is_trusted(far: Far) -> None:
    for options, effect in ((), "irreversible"), (("--trust-annotations",), "read"):
        async with far.governed(*options) as session:
            await session.call_tool("delete_file", {"path": "a"})
        with far.gateway() as store:
            assert store.approvals.list()[-1].effect == effect


async def test_a_prefix_tells_the_tools_of_servers_apart(far: Far) -> None:
    rule = "  - {id: reads, allow: far.read_file}\n"
    far.config.write_text(f"version: 1\nname: p\nstore: sqlite:///ag.db\nrules:\n{rule}")
    async with far.governed("--prefix", "far.") as session:
        assert [tool.name for tool in (await session.list_tools()).tools] == ["read_file"]
        assert text(await session.call_tool("read_file", {"path": "a"})) == "contents of a"


async def test_resources_and_prompts_can_be_refused(far: Far) -> None:
    async with far.governed("--only-tools") as session:
        with pytest.raises(Exception, match="Only tools"):
            await session.list_resources()


async def test_calls_at_the_same_time_keep_their_answers_apart(far: Far) -> None:
    import anyio

    got: dict[int, Any] = {}
    async with far.governed() as session:

        async def call(number: int) -> None:
            got[number] = text(await session.call_tool("read_file", {"path": str(number)}))

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(call, number)
    assert got == {number: f"contents of {number}" for number in range(20)}


async def test_everything_that_is_allowed_comes_back_as_from_the_server_itself(far: Far) -> None:
    far.config.write_text(EVERYTHING)
    async with far.direct() as direct, far.governed() as governed:
        for session_call in (
            lambda s: s.list_tools(),
            lambda s: s.list_resources(),
            lambda s: s.list_prompts(),
            lambda s: s.list_resource_templates(),
            lambda s: s.get_prompt("greet", {"who": "you"}),
            lambda s: s.call_tool("read_file", {"path": "ä\u2028\U0001f600"}),
            lambda s: s.call_tool("report", {"name": "n"}),
            lambda s: s.call_tool("report", {"name": "n", "count": 7}),
            lambda s: s.call_tool("secret", {}),
            lambda s: s.call_tool("secret"),
            lambda s: s.call_tool("raises", {"word": "x"}),
            lambda s: s.send_ping(),
        ):
            assert await session_call(governed) == await session_call(direct)


async def test_clients_of_every_era_are_served(far: Far) -> None:
    import mcp

    if not hasattr(mcp, "Client"):  # 1.x knows one era, and every other test is in it
        return
    given = {**os.environ, "UP_LOG": str(far.log)}
    for mode in ("auto", "legacy"):
        command = [*far.proxy, "--", *far.command]
        async with mcp.Client(
            mcp.StdioServerParameters(command=command[0], args=command[1:], env=given), mode=mode
        ) as c:
            assert "secret" not in {tool.name for tool in (await c.list_tools()).tools}
            assert text(await c.call_tool("read_file", {"path": mode})) == f"contents of {mode}"
            assert reason(await c.call_tool("secret", {})) == "policy_denied"
            assert reason(await c.call_tool("delete_file", {"path": mode})) == "approval_pending"
            approve(far)
            assert text(await c.call_tool("delete_file", {"path": mode})) == f"deleted {mode}"
    assert far.ran == ["read auto", "delete auto", "read legacy", "delete legacy"]
