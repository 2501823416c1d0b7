"""OpenAI's /v1/chat/completions: its form, its streams, its errors."""

import json
import math

import httpx2
import pytest
from helpers.server import answer_of, serving
from helpers.talker import talking


@pytest.fixture(scope="module")
def client():
    with serving() as client:
        yield client


HELLO = [{"role": "user", "content": "Hello, how are you today?"}]


def test_an_answer_has_the_form_of_openai(client):
    body = client.chat(HELLO, seed=1)
    assert body["object"] == "chat.completion"
    assert body["model"] == "gosling"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 12


def test_a_stream_says_the_same(client):
    body = client.chat(HELLO, seed=1)
    fields = {"messages": HELLO, "seed": 1, "max_tokens": 12, "stream_options": {"include_usage": True}}
    events = client.events("/v1/chat/completions", fields)
    assert all(name is None for name, _ in events)
    *chunks, usage, done = [data for _, data in events]
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == body["usage"]["completion_tokens"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == answer_of(body)
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finishes == [None] * (len(chunks) - 1) + [body["choices"][0]["finish_reason"]]


def test_a_stream_without_usage_has_none(client):
    events = client.events("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3})
    assert all("usage" not in data for _, data in events[:-1])


def test_several_answers_are_as_their_seeds_say(client):
    many = client.chat(HELLO, seed=5, n=3, temperature=1.5, top_p=1)
    alone = [answer_of(client.chat(HELLO, seed=5 + n, temperature=1.5, top_p=1)) for n in range(3)]
    assert [each["message"]["content"] for each in many["choices"]] == alone
    events = client.events(
        "/v1/chat/completions",
        {"messages": HELLO, "seed": 5, "n": 3, "temperature": 1.5, "top_p": 1, "max_tokens": 12},
    )
    texts = ["", "", ""]
    for _, data in events[:-1]:
        (choice,) = data["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == alone


def test_probabilities_of_tokens(client):
    body = client.chat(HELLO, temperature=0, logprobs=True, top_logprobs=3, max_tokens=5)
    entries = body["choices"][0]["logprobs"]["content"]
    assert len(entries) == body["usage"]["completion_tokens"]
    for entry in entries:
        top = [each["logprob"] for each in entry["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert entry["logprob"] == top[0]  # the same float: greedy takes the most likely one
        assert bytes(entry["bytes"]).decode() == entry["token"]
    plain = client.chat(HELLO, temperature=0, logprobs=True, max_tokens=5)["choices"][0]["logprobs"][
        "content"
    ]
    assert [each["token"] for each in plain] == [each["token"] for each in entries]
    assert all(each["top_logprobs"] == [] for each in plain)
    assert math.isclose(plain[0]["logprob"], entries[0]["logprob"], abs_tol=1e-5)


def test_a_stop_string_ends_an_answer():
    with serving(talking({"Assistant:": " one two three"})) as client:
        body = client.ask("Count", stop=["two"])
        assert answer_of(body) == "one"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert answer_of(client.ask("Count again", stop="", max_tokens=40)) == "one two three"


def test_thoughts_are_apart_from_the_answer():
    model = talking({"<think": ">\nI wonder.\n</think>\n\nIt is so.\n\n"}, template="g1")
    with serving(model) as client:
        fields = {"reasoning_effort": "medium", "max_tokens": 100, "stop": ["\n\n\n"]}
        message = client.ask("Is it?", **fields)["choices"][0]["message"]
        assert message["reasoning_content"] == "I wonder."
        assert message["content"] == "It is so."
        events = client.events(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "Is it so?"}], **fields}
        )
        deltas = [data["choices"][0]["delta"] for _, data in events[:-1]]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I wonder."
        assert "".join(delta.get("content", "") for delta in deltas) == "It is so."


def test_an_answer_that_the_client_begins_is_continued():
    with serving(talking({"Assistant: one t": "wo three"})) as client:
        messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one t"}]
        assert answer_of(client.chat(messages, max_tokens=40)) == "wo three"


@pytest.mark.parametrize(
    ("body", "says", "param"),
    [
        ("{", "not valid JSON", None),
        ("[1]", "must be a JSON object", None),
        ("[" * 100_000, "not valid JSON", None),
        ("{}", "at least one message", "messages"),
        ('{"messages": "x"}', "a list of objects", "messages"),
        ('{"messages": [{"role": "wizard", "content": "x"}]}', "wizard", "messages"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "text only", "messages"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid Unicode", None),
        ('{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "finite", "temperature"),
        ('{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', "number", "temperature"),
        ('{"messages": [{"role": "user", "content": "x"}], "temperature": -1}', "at least 0", "temperature"),
        ('{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}', "finite", "max_tokens"),
        ('{"messages": [{"role": "user", "content": "x"}], "n": 0}', "between 1 and 32", "n"),
        ('{"messages": [{"role": "user", "content": "x"}], "n": 1000}', "between 1 and 32", "n"),
        (
            '{"messages": [{"role": "user", "content": "x"}], "stop": ' + json.dumps(["x"] * 1000) + "}",
            "1,000",
            "stop",
        ),
        ('{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"9999999": 1}}', "9999999", None),
        (
            '{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"a": 1}}',
            "by token id",
            "logit_bias",
        ),
        ('{"messages": [{"role": "user", "content": "x"}], "think": "deeply"}', "thinking", None),
        (
            '{"messages": [{"role": "user", "content": "x"}], "state": "../../etc/passwd"}',
            "not the name",
            None,
        ),
        ('{"messages": [{"role": "user", "content": "x"}], "template": "no"}', "unknown template", None),
    ],
)
def test_what_is_wrong_with_a_request(client, body, says, param):
    response = client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert client.get("/health").json()["status"] == "ok"


def test_an_unknown_model_has_near_names(client):
    response = client.post("/v1/chat/completions", json={"model": "goslin", "messages": HELLO})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "model_not_found"
    assert "did you mean gosling?" in error["message"]
    assert (
        client.post("/v1/chat/completions", json={"model": "/etc/passwd", "messages": HELLO}).status_code
        == 404
    )


def test_unknown_fields_are_ignored(client):
    assert client.chat(HELLO, max_tokens=1, user="me", service_tier="auto", unheard_of={"a": [1]})["choices"]


def test_models(client):
    (first, *_) = client.get("/v1/models").json()["data"]
    assert first["id"] == "gosling"
    assert first["object"] == "model"
    assert client.get("/v1/models/gosling").json() == first
    assert client.get("/v1/models/nothing").status_code == 404


def test_embeddings_are_refused_with_a_sentence(client):
    response = client.post("/v1/embeddings", json={"model": "gosling", "input": [[1, 2]]})
    assert response.status_code == 501
    assert "no embeddings" in response.json()["error"]["message"]


def test_what_is_not_there(client):
    assert client.get("/nothing").status_code == 404
    assert client.get("/v1/chat/completions").status_code == 405
    assert client.get("/nothing").json()["error"]["message"] == "there is nothing at /nothing"


def test_many_at_once_say_what_each_says_alone(client):
    import concurrent.futures

    asked = [f"What is number {n}?" for n in range(12)]
    alone = [answer_of(client.ask(each, temperature=0)) for each in asked]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = pool.map(lambda each: answer_of(client.ask(each, temperature=0)), asked)
        assert [*together] == alone


def test_a_client_that_goes_away_is_cancelled(client):
    with pytest.raises(httpx2.ReadTimeout):
        client.post(
            "/v1/completions",
            json={"prompt": "Once", "max_tokens": -1, "logit_bias": {"0": -100}},
            timeout=0.5,
        )
    for _ in range(600):
        if 'rwkv_running{model="gosling"} 0' in client.get("/metrics").text:
            return
    raise AssertionError("it still runs")
