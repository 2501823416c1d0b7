"""The APIs of Anthropic and ollama, and OpenAI's /v1/responses."""

import json

import pytest
from helpers.server import process, serving
from helpers.talker import talking

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]


@pytest.fixture(scope="module")
def client():
    with serving() as client:
        yield client


THINKER = {"<think": ">\nI wonder.\n</think>\n\nIt is so."}


@pytest.fixture
def thinker():
    with serving(talking(THINKER, template="g1")) as client:
        yield client


# --------------------------------------------------------------------------------------------------------- Anthropic


def test_a_message(client):
    fields = {
        "model": "gosling",
        "max_tokens": 12,
        "messages": HELLO,
        "system": [{"type": "text", "text": "Be nice"}],
    }
    body = client.post("/v1/messages", json=fields).json()
    assert body["type"] == "message"
    assert body["role"] == "assistant"
    assert body["stop_reason"] in ("end_turn", "max_tokens")
    (block,) = body["content"]
    assert block["type"] == "text"
    assert block["text"]
    usage = body["usage"]
    count = client.post("/v1/messages/count_tokens", json=fields).json()["input_tokens"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count


def test_the_stream_of_a_message(thinker):
    fields = {"max_tokens": 100, "messages": HELLO, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    events = thinker.events("/v1/messages", fields)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    blocks = [
        (data["index"], data["content_block"]["type"])
        for name, data in events
        if name == "content_block_start"
    ]
    assert blocks == [(0, "thinking"), (1, "text")]
    deltas = [data["delta"] for name, data in events if name == "content_block_delta"]
    assert "".join(each.get("thinking", "") for each in deltas) == "I wonder."
    assert "".join(each.get("text", "") for each in deltas) == "It is so."
    assert events[-2][1]["delta"]["stop_reason"] == "end_turn"


def test_errors_of_messages(client):
    for fields in ({"messages": HELLO}, {"max_tokens": 0, "messages": HELLO}):
        body = client.post("/v1/messages", json=fields).json()
        assert body["type"] == "error"
        assert body["error"]["type"] == "invalid_request_error"
    response = client.post("/v1/messages", json={"model": "claude", "max_tokens": 1, "messages": HELLO})
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


# ------------------------------------------------------------------------------------------------------------ ollama


def lines(response):
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_chat(client):
    fields = {"model": "gosling:latest", "messages": HELLO, "options": {"seed": 1, "num_predict": 8}}
    response = client.post("/api/chat", json=fields)
    assert response.headers["content-type"] == "application/x-ndjson"
    *pieces, last = lines(response)
    assert not any(piece["done"] for piece in pieces)
    assert last["done"]
    assert last["done_reason"] in ("stop", "length")
    assert 0 < last["eval_count"] <= 8
    (whole,) = lines(client.post("/api/chat", json={**fields, "stream": False}))
    assert whole["message"]["content"] == "".join(piece["message"]["content"] for piece in pieces)
    assert whole["prompt_eval_count"] == last["prompt_eval_count"]


def test_a_chat_with_thoughts(thinker):
    fields = {"messages": HELLO, "think": True, "stream": False, "options": {"num_predict": 100}}
    (whole,) = lines(thinker.post("/api/chat", json=fields))
    assert whole["message"]["thinking"] == "I wonder."
    assert whole["message"]["content"] == "It is so."


def test_a_context_goes_on():
    model = talking()
    with serving(model) as client:
        fields = {
            "prompt": "My name is Tom, and what is yours?",
            "stream": False,
            "options": {"num_predict": 5},
        }
        (first,) = lines(client.post("/api/generate", json=fields))
        before = model.backend.tokens_read
        fields = {"prompt": "Who am I?", "context": first["context"], "stream": False}
        (second,) = lines(client.post("/api/generate", json={**fields, "options": {"num_predict": 1}}))
        assert second["prompt_eval_count"] > first["prompt_eval_count"]
        assert model.backend.tokens_read - before < 40
        for wrong in ([97], [-1], "x", [10**9]):
            assert client.post("/api/generate", json={"prompt": "x", "context": wrong}).status_code == 400


def test_a_raw_prompt(client):
    fields = {
        "prompt": "Once upon a",
        "raw": True,
        "stream": False,
        "options": {"temperature": 0, "num_predict": 2},
    }
    (whole,) = lines(client.post("/api/generate", json=fields))
    assert whole["response"].startswith(" time")


def test_what_ollama_says_of_models(client):
    (model, *_) = client.get("/api/tags").json()["models"]
    assert model["name"] == "gosling"
    assert model["details"]["family"] == "rwkv7"
    assert (
        client.post("/api/show", json={"model": "gosling"}).json()["model_info"]["general.architecture"]
        == "rwkv7"
    )
    assert client.get("/api/version").json()["version"]
    assert client.post("/api/chat", json={"model": "gosling", "messages": []}).json()["done_reason"] == "load"
    assert [each["name"] for each in client.get("/api/ps").json()["models"]] == ["gosling"]
    fields = {"model": "gosling", "prompt": "", "keep_alive": 0}
    assert client.post("/api/generate", json=fields).json()["done_reason"] == "unload"
    assert client.get("/api/ps").json()["models"] == []
    error = client.post("/api/chat", json={"model": "nothing", "messages": HELLO})
    assert error.status_code == 404
    assert isinstance(error.json()["error"], str)


# --------------------------------------------------------------------------------------------------------- responses


def respond(client, **fields):
    response = client.post("/v1/responses", json={"max_output_tokens": 10, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_response_goes_on_from_another():
    model = talking()
    with serving(model) as client:
        first = respond(client, input="My name is Tom, and what is yours?")
        assert first["object"] == "response"
        assert first["status"] in ("completed", "incomplete")
        assert first["output"][-1]["content"][0]["type"] == "output_text"
        second = respond(
            client, input=[{"role": "user", "content": "Who am I?"}], previous_response_id=first["id"]
        )
        assert second["usage"]["input_tokens_details"]["cached_tokens"] > 30
        assert client.get(f"/v1/responses/{first['id']}").json() == first
        assert client.delete(f"/v1/responses/{first['id']}").json()["deleted"]
        gone = client.post("/v1/responses", json={"input": "x", "previous_response_id": first["id"]})
        assert gone.status_code == 404


def test_responses_are_there_after_a_restart(tmp_path):
    with process(tmp_path) as server:
        first = respond(server.client, input="My name is Tom, and what is yours?")
        server.stop()
    with process(tmp_path) as server:
        second = respond(server.client, input="Who am I?", previous_response_id=first["id"])
        assert second["usage"]["input_tokens_details"]["cached_tokens"] > 10


def test_the_events_of_a_response(thinker):
    fields = {"input": "Is it so?", "reasoning": {"effort": "medium"}, "max_output_tokens": 100}
    events = thinker.events("/v1/responses", fields)
    assert all(name == data["type"] for name, data in events)
    assert [data["sequence_number"] for _, data in events] == [*range(len(events))]
    short = [name.removeprefix("response.") for name, _ in events if not name.endswith("delta")]
    assert short == [
        "created", "in_progress", "output_item.added", "reasoning_text.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    final = events[-1][1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "message"]
    assert final["output"][1]["content"][0]["text"] == "It is so."
    deltas = [data["delta"] for name, data in events if name == "response.output_text.delta"]
    assert "".join(deltas) == "It is so."
