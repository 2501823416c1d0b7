"""Tools, and answers that have to look like something."""

import json

import pytest
from helpers.server import answer_of, cached_of, serving
from helpers.talker import talking
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.server.chat.tools import CallFilter
from rwkv_cli.text.tool_calls.parser import parse
from rwkv_cli.text.tool_calls.tools import Tool

TOWN = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
WEATHER = {"name": "weather", "description": "of a town", "parameters": TOWN}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = '```json\n{"name": "weather", "arguments": {"town": "Rome"}}\n```'
ASKED = [{"role": "user", "content": "How is the weather in Rome?"}]
FIELDS = {"tools": TOOLS, "max_tokens": 200}


@pytest.fixture
def client():
    with serving(
        talking({"Rome?\n\nAssistant:": f" I look.\n{CALL}", "sunny\n\nAssistant:": " It is sunny."}, "g1")
    ) as client:
        yield client


def test_a_call_and_its_result(client):
    body = client.chat(ASKED, **FIELDS)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "I look."
    (call,) = message["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"town": "Rome"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    found = client.chat([*ASKED, message, result], **FIELDS)
    assert answer_of(found) == "It is sunny."
    assert cached_of(found) > body["usage"]["prompt_tokens"]


def test_a_call_in_a_stream(client):
    events = client.events("/v1/chat/completions", {"messages": ASKED, **FIELDS})
    chunks = [data["choices"][0] for _, data in events[:-1]]
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == "I look."
    calls = [each for chunk in chunks for each in chunk["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "weather"
    assert calls[0]["id"].startswith("call_")
    assert json.loads("".join(each["function"]["arguments"] for each in calls)) == {"town": "Rome"}
    assert all(each["index"] == 0 for each in calls)
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_tools_that_are_not_to_be_called_are_text(client):
    body = client.chat(ASKED, **FIELDS, tool_choice="none")
    assert "tool_calls" not in body["choices"][0]["message"]
    assert "weather" in answer_of(body)


def test_a_call_in_anthropics_form(client):
    tools = [{"name": "weather", "description": "of a town", "input_schema": WEATHER["parameters"]}]
    fields = {"messages": ASKED, "tools": tools, "max_tokens": 200}
    body = client.post("/v1/messages", json=fields).json()
    assert body["stop_reason"] == "tool_use"
    text, use = body["content"]
    assert text == {"type": "text", "text": "I look."}
    assert (use["name"], use["input"]) == ("weather", {"town": "Rome"})
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": "sunny"}]}
    talk = [*ASKED, {"role": "assistant", "content": body["content"]}, {"role": "user", "content": [result]}]
    found = client.post("/v1/messages", json={**fields, "messages": talk}).json()
    assert found["content"][0]["text"] == "It is sunny."
    assert found["usage"]["cache_read_input_tokens"] > 50


def test_a_call_in_the_streams_of_others():
    def client():
        return serving(talking({"Rome?\n\nAssistant:": f" {CALL}"}, "g1"))

    tools = [{"name": "weather", "input_schema": WEATHER["parameters"]}]
    with client() as each:
        events = each.events("/v1/messages", {"messages": ASKED, "tools": tools, "max_tokens": 200})
        starts = [data["content_block"] for name, data in events if name == "content_block_start"]
        assert [block["type"] for block in starts] == ["tool_use"]
        (delta,) = [data["delta"] for name, data in events if name == "content_block_delta"]
        assert json.loads(delta["partial_json"]) == {"town": "Rome"}
    with client() as each:
        fields = {
            "input": ASKED[0]["content"],
            "tools": [{"type": "function", **WEATHER}],
            "max_output_tokens": 200,
        }
        events = each.events("/v1/responses", fields)
        (done,) = [data for name, data in events if name == "response.function_call_arguments.done"]
        assert json.loads(done["arguments"]) == {"town": "Rome"}
        first = events[-1][1]["response"]
        (item,) = first["output"]
        assert item["type"] == "function_call"
        result = {"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"}
        fields = {
            "input": [result],
            "previous_response_id": first["id"],
            "tools": fields["tools"],
            "max_output_tokens": 3,
        }
        second = each.post("/v1/responses", json=fields).json()
        assert second["usage"]["input_tokens_details"]["cached_tokens"] > 30
    with client() as each:
        lines = each.post(
            "/api/chat", json={"messages": ASKED, "tools": TOOLS, "options": {"num_predict": 200}}
        ).text
        calls = [
            call
            for line in lines.splitlines()
            for call in json.loads(line).get("message", {}).get("tool_calls", [])
        ]
        assert calls == [{"function": {"name": "weather", "arguments": {"town": "Rome"}}}]


def test_a_call_that_is_demanded():
    with serving(talking({}, "g1")) as client:  # which would say anything else
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            body = client.chat(ASKED, tools=TOOLS, max_tokens=2000, tool_choice=choice, temperature=0)
            (choice,) = body["choices"]
            if choice["finish_reason"] == "length":
                continue
            (call,) = choice["message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
        wrong = client.post(
            "/v1/chat/completions", json={"messages": ASKED, "tools": TOOLS, "tool_choice": "nothing"}
        )
        assert wrong.status_code == 400


def test_an_answer_follows_a_schema():
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    with serving() as client:
        response_format = {
            "type": "json_schema",
            "json_schema": {"name": "x", "strict": True, "schema": schema},
        }
        body = client.chat(ASKED, response_format=response_format, max_tokens=60)
        assert json.loads(answer_of(body))["n"] in (1, 2)
        assert body["choices"][0]["finish_reason"] == "stop"
        body = client.post(
            "/v1/completions", json={"prompt": "x", "json_schema": schema, "max_tokens": 60}
        ).json()
        assert json.loads(body["choices"][0]["text"])["n"] in (1, 2)
        fields = {"messages": ASKED, "format": schema, "stream": False, "options": {"num_predict": 60}}
        assert json.loads(client.post("/api/chat", json=fields).json()["message"]["content"])["n"] in (1, 2)
        text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
        body = client.post("/v1/responses", json={"input": "x", "text": text, "max_output_tokens": 60}).json()
        assert json.loads(body["output"][0]["content"][0]["text"])["n"] in (1, 2)
        assert answer_of(client.chat(ASKED, choice=["red", "green"], max_tokens=20)) in ("red", "green")


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "no"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
        {"regex": "("},
        {"tools": "x"},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": TOOLS},  # the template of gosling has no place for them
    ],
)
def test_what_cannot_be_followed_is_refused(fields):
    with serving() as client:
        response = client.post("/v1/chat/completions", json={"messages": ASKED, **fields})
        assert response.status_code == 400, response.text


CALL_ALONE = '{"name": "weather", "arguments": {}}'
PARTS = [
    "```",
    "json",
    "\n",
    "python\n",
    CALL_ALONE,
    "<tool_call>",
    "</tool_call>",
    "a ",
    "``",
    "<",
    "*",
    "[1]",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12)


@given(TEXTS)
def test_a_filter_loses_nothing(parts):
    text = "".join(parts)
    filters = CallFilter([Tool("weather")]), CallFilter([Tool("weather")])
    shown = "".join(map(filters[0].feed, parts))
    rest, calls = filters[0].flush()
    whole = filters[1].feed(text)
    assert (whole, *filters[1].flush()) == (shown, rest, calls) or calls == filters[1].flush()[1]
    if not calls:
        assert shown + rest == text
        return
    assert text.startswith(shown)
    assert parse(text[len(shown) :], ["weather"]).calls == calls
