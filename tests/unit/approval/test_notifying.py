"""The webhook, against a real HTTP server on this machine."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentguard.approval.notifying import AsyncWebhookApprover, WebhookApprover, is_authentic, sign
from agentguard.errors import ApprovalError, ConfigurationError
from tests.unit.approval.asking import NOW, opened

SECRET = "a secret of enough bytes"
CLOCK = 1_800_000_000


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses it is given, in turn, and keeps what it received."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.hold = threading.Event()
        self.hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?token=t0k3n"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), body))
        self.server.hold.wait(30)
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        self.send_response(status)
        if status in (301, 302, 303, 307, 308):
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.received.append(("GET " + self.path, dict(self.headers), b""))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


def approver(url: str, **settings: Any) -> WebhookApprover:
    pauses = settings.pop("pauses", [])
    return WebhookApprover(url, SECRET, **{"clock": lambda: CLOCK + 0.9, "sleep": pauses.append, **settings})


def failed(hook: WebhookApprover) -> str:
    with pytest.raises(ApprovalError) as caught:
        hook.decide(opened())
    assert caught.value.code == "AG645"
    assert "t0k3n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_a_request_is_posted_and_decided_elsewhere(receiver: Receiver) -> None:
    assert approver(receiver.url).decide(opened()) is None
    ((path, headers, body),) = receiver.received
    assert path == "/hook?token=t0k3n"
    assert headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    event = json.loads(body)
    assert {k: v for k, v in event.items() if k != "data"} == {
        "specversion": "1.0",
        "id": "ap_" + "0" * 32,
        "source": "agentguard",
        "type": "dev.agentguard.approval.requested",
        "subject": "refunds.create",
        "time": "2027-01-15T08:00:00Z",
        "datacontenttype": "application/json",
    }
    assert event["data"]["arguments"]["amount"] == 250
    assert event["data"]["proposed"]["amount"] == 999
    assert event["data"]["roles"] == [["finance"]]
    assert event["data"]["expires_at"] == "2027-01-15T08:30:00Z"
    assert event["data"]["digest"] == opened().digest


def test_the_arguments_can_stay_at_home(receiver: Receiver) -> None:
    approver(receiver.url, include_arguments=False).decide(opened())
    data = json.loads(receiver.received[0][2])["data"]
    assert not {"arguments", "proposed", "text"} & data.keys()
    assert b"250" not in receiver.received[0][2]


def test_what_arrives_is_authentic(receiver: Receiver) -> None:
    approver(receiver.url).decide(opened())
    _, headers, body = receiver.received[0]
    assert is_authentic(SECRET, headers, body, now_s=CLOCK + 10)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    # The example of the specification's reference libraries.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_a_text_secret_is_used_as_it_is() -> None:
    expected = hmac.new(SECRET.encode(), b"id.7.body", hashlib.sha256).digest()
    assert sign(SECRET, "id", 7, b"body") == "v1," + base64.b64encode(expected).decode()


def headers(**changes: str) -> dict[str, str]:
    given = {
        "Webhook-Id": "id",
        "Webhook-Timestamp": str(CLOCK),
        "Webhook-Signature": sign(SECRET, "id", CLOCK, b"body"),
    }
    return {**given, **{k.replace("_", "-"): v for k, v in changes.items()}}


def test_an_untouched_message_is_authentic() -> None:
    assert is_authentic(SECRET, headers(), b"body", now_s=CLOCK)


def test_one_of_several_signatures_is_enough() -> None:
    several = "v1,AAAA v1a,BBBB " + headers()["Webhook-Signature"]
    assert is_authentic(SECRET, headers(Webhook_Signature=several), b"body", now_s=CLOCK)


@pytest.mark.parametrize(
    "change",
    [
        {"Webhook_Id": "other"},
        {"Webhook_Timestamp": str(CLOCK + 1)},
        {"Webhook_Timestamp": ""},
        {"Webhook_Timestamp": "-1"},
        {"Webhook_Timestamp": "1.5"},
        {"Webhook_Timestamp": "٣"},
        {"Webhook_Timestamp": "9" * 5000},
        {"Webhook_Signature": ""},
        {"Webhook_Signature": "v1,"},
        {"Webhook_Signature": "v1,\u00e4\ud800"},
    ],
)
def test_a_message_with_another_head_is_not(change: dict[str, str]) -> None:
    assert not is_authentic(SECRET, headers(**change), b"body", now_s=CLOCK)


def test_a_message_with_another_body_secret_or_time_is_not() -> None:
    assert not is_authentic(SECRET, headers(), b"Body", now_s=CLOCK)
    assert not is_authentic(SECRET + "x", headers(), b"body", now_s=CLOCK)
    assert not is_authentic(SECRET, headers(), b"body", now_s=CLOCK + 301)
    assert not is_authentic(SECRET, headers(), b"body", now_s=CLOCK - 301)
    assert not is_authentic(SECRET, {}, b"body", now_s=CLOCK)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_trouble_at_the_receiver_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status, status]
    pauses: list[float] = []
    assert approver(receiver.url, pauses=pauses).decide(opened()) is None
    assert (len(receiver.received), pauses) == (3, [0.2, 0.4])


def test_attempts_are_bounded(receiver: Receiver) -> None:
    receiver.statuses = [500] * 10
    assert "status 500" in failed(approver(receiver.url))
    assert len(receiver.received) == 3


def test_at_least_one_attempt_is_made(receiver: Receiver) -> None:
    assert approver(receiver.url, attempts=0).decide(opened()) is None
    assert len(receiver.received) == 1


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_of_the_receiver_is_not_tried_again(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    assert f"status {status}" in failed(approver(receiver.url))
    assert len(receiver.received) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    assert f"status {status}" in failed(approver(receiver.url))
    assert len(receiver.received) == 1


def test_a_receiver_that_is_not_there_raises() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        assert "ConnectionRefusedError" in failed(approver(f"http://127.0.0.1:{taken.getsockname()[1]}/"))


def test_a_receiver_that_is_silent_raises(receiver: Receiver) -> None:
    receiver.hold.clear()
    assert "TimeoutError" in failed(approver(receiver.url, timeout_s=0.05, attempts=1))


def test_a_receiver_that_speaks_something_else_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert "BadStatusLine" in failed(approver(f"http://127.0.0.1:{listener.getsockname()[1]}/", attempts=1))
        thread.join(10)


def test_after_the_deadline_no_attempt_begins(receiver: Receiver) -> None:
    receiver.statuses = [500] * 10
    hook = approver(receiver.url, attempts=10, deadline_s=0.2, sleep=lambda s: threading.Event().wait(0.25))
    assert "gave up after 0.2 s" in failed(hook)
    assert len(receiver.received) == 1


def test_a_proxy_in_the_environment_gets_nothing_meant_for_this_machine(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert approver(receiver.url).decide(opened()) is None


@pytest.mark.anyio
async def test_the_async_twin_posts_too(receiver: Receiver) -> None:
    hook = AsyncWebhookApprover(receiver.url, SECRET, sleep=lambda s: None)
    assert await hook.decide(opened()) is None
    assert len(receiver.received) == 1
    assert repr(hook).startswith("AsyncWebhookApprover(http://127.0.0.1:")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org/hook",
        "https://",
        "https:///hook",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://user:password@example.org/",
        "https://user@example.org/",
        "https://example.org:port/",
        "https://example.org:99999/",
        "https://example.org:0/",
        "https://exa mple.org/",
        "https://example.org/\r\nX: y",
        "https://ex\u00e4mple.org/",
        "https://[::1/",
        "http://example.org/",
        "http://127.0.0.1.example.org/",
        "http://10.0.0.1/",
    ],
)
def test_a_url_that_is_unclear_or_in_the_clear_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        WebhookApprover(url, SECRET)
    assert caught.value.code == "AG647"
    assert "password" not in str(caught.value).replace("a user or a password", "")


@pytest.mark.parametrize(
    "url", ["https://example.org/hook", "http://localhost:8080/", "http://127.0.0.9/", "http://[::1]:8080/"]
)
def test_https_and_this_machine_are_fine(url: str) -> None:
    assert isinstance(WebhookApprover(url, SECRET), WebhookApprover)


def test_http_elsewhere_has_to_be_asked_for() -> None:
    assert repr(WebhookApprover("http://hooks.internal/x?y", SECRET, allow_http=True)) == (
        "WebhookApprover(http://hooks.internal)"
    )


@pytest.mark.parametrize("secret", ["", "short", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64 at all!"])
def test_a_weak_or_unreadable_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        WebhookApprover("https://example.org/", secret)
    assert caught.value.code == "AG647"


def test_a_proxy_is_left_to_the_environment_for_other_machines(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", receiver.url.split("/hook")[0])
    monkeypatch.delenv("no_proxy", raising=False)
    assert approver("http://hooks.invalid/x", allow_http=True).decide(opened()) is None
    assert receiver.received[0][0] == "http://hooks.invalid/x"


def test_the_time_of_the_event_is_that_of_the_request() -> None:
    event = WebhookApprover("https://example.org/", SECRET).event(opened(created_at=NOW + 60 * 10**9))
    assert event["time"] == "2027-01-15T08:01:00Z"
