"""Who may use the server, and how much of it."""

import asyncio
import concurrent.futures
import socket
import time
from unittest.mock import patch

import pytest
from helpers.server import serving
from helpers.talker import talking

from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import Reporter
from rwkv_cli.server.http import ApiError
from rwkv_cli.server.loaded import Models
from rwkv_cli.server.settings import ServerSettings

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def client():
    with serving(talking()) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("192.168.1.2", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.nip.io", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_known(client, host, status):
    assert client.get("/health", headers={"Host": host}).status_code == status


def test_a_name_can_be_allowed():
    with serving(talking(), allowed_hosts=["rwkv.example"]) as client:
        assert client.get("/health", headers={"Host": "rwkv.example:80"}).status_code == 200
        assert client.get("/health", headers={"Host": "other.example"}).status_code == 403


def test_pages_from_elsewhere_may_not_use_it(client):
    for origin in ("http://evil.example", "null", "https://localhost"):
        response = client.post("/v1/chat/completions", json=HELLO, headers={"Origin": origin})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    own = str(client.base_url).rstrip("/")
    assert client.post("/v1/chat/completions", json=HELLO, headers={"Origin": own}).status_code == 200


def test_a_page_can_be_allowed():
    with serving(talking(), allowed_origins=["https://chat.example"]) as client:
        headers = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
        asked = client.options("/v1/chat/completions", headers=headers)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "https://chat.example"
        del headers["Access-Control-Request-Method"]
        response = client.post("/v1/chat/completions", json=HELLO, headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        assert client.get("/health", headers={"Origin": "https://other.example"}).status_code == 403


def test_a_key_is_needed_where_there_is_one():
    with serving(talking(), api_keys=["secret", "other"]) as client:
        assert client.get("/health").status_code == 200
        response = client.get("/v1/models")
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/metrics").status_code == 401
        for headers in ({"Authorization": "Bearer secret"}, {"x-api-key": "other"}):
            assert client.get("/v1/models", headers=headers).status_code == 200
        for headers in (
            {"Authorization": "Basic secret"},
            {"x-api-key": "secre"},
            {"x-api-key": "sécret".encode()},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.com", ""])
def test_other_machines_need_a_key(host):
    with pytest.raises(UsageError, match="other machines"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_keys=["x"]).host == host
    assert ServerSettings(host=host, insecure=True).host == host


def test_a_body_that_is_too_large():
    with serving(talking(), max_body=1000) as client:
        assert client.post("/v1/chat/completions", content=b"x" * 1001).status_code == 413

        def parts():
            for _ in range(100):
                yield b" " * 100

        assert client.post("/v1/chat/completions", content=parts()).status_code == 413
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200


def test_a_prompt_that_is_too_long():
    with serving(talking(), max_prompt=100) as client:
        fields = {"messages": [{"role": "user", "content": "x" * 200}]}
        response = client.post("/v1/chat/completions", json=fields)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert client.post("/v1/completions", json={"prompt": "x" * 200}).status_code == 400
        assert client.post("/v1/states", json={"name": "x", "input": "x" * 200}).status_code == 400


def test_a_queue_that_is_full():
    with serving(talking(), max_queue=1, parallel=1) as client:
        long = {"prompt": "x", "max_tokens": 3000, "logit_bias": {"0": -100}}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = [*pool.map(lambda _: client.post("/v1/completions", json=long), range(8))]
        refused = [each for each in found if each.status_code == 429]
        assert refused
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        assert any(each.status_code == 200 for each in found)


def test_of_requests_that_come_at_once_those_get_in_for_which_there_is_room():
    async def ask() -> list[str]:
        models = Models(ServerSettings(max_queue=3, parallel=2), Reporter(), print)

        async def come() -> str:
            try:
                await models.acquire(None, queues=True)
            except ApiError as error:
                return f"{error.status} {error.code}"
            return "in"

        try:
            return await asyncio.gather(*(come() for _ in range(9)))
        finally:
            for loaded in models.loaded:
                await models.unload(loaded)

    with patch("rwkv_cli.model.load", lambda *_, **__: talking()):
        assert asyncio.run(ask()) == ["in"] * 5 + ["429 queue_full"] * 4


def test_an_answer_that_takes_too_long():
    with serving(talking(), timeout=0.5) as client:
        fields = {"prompt": "x", "max_tokens": -1, "logit_bias": {"0": -100}}
        response = client.post("/v1/completions", json=fields)
        assert response.status_code == 504
        events = client.events("/v1/completions", fields)
        assert "longer than" in events[-2][1]["error"]["message"]


def test_headers_for_browsers(client):
    for path in ("/health", "/nothing"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_garbage_on_the_wire(client):
    host, port = client.base_url.host, client.base_url.port
    for garbage in (
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"x" * 99_999,
    ):
        with socket.create_connection((host, port), 10) as connection:
            try:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)
            except OSError:
                pass
    assert client.get("/health").status_code == 200


def test_a_client_that_reads_nothing_stops_nobody(client):
    host, port = client.base_url.host, client.base_url.port
    body = b'{"prompt": "x", "max_tokens": 20000, "stream": true, "logit_bias": {"0": -100}}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, port), 10) as connection:
        connection.sendall(head + body)
        time.sleep(0.2)
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=HELLO).status_code == 200
