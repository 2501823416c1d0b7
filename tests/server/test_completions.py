"""OpenAI's /v1/completions, as evaluation harnesses use it; texts as tokens and back."""

import numpy as np
import pytest
from helpers.server import serving

from rwkv_cli.model import load


@pytest.fixture(scope="module")
def client():
    with serving() as client:
        yield client


@pytest.fixture(scope="module")
def model():
    return load()


def completed(client, **fields):
    response = client.post("/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text_is_continued_as_the_model_does(client, model):
    body = completed(client, prompt="Once upon a time", max_tokens=20, temperature=0)
    assert body["object"] == "text_completion"
    expected = model.generate("Once upon a time", max_tokens=20, template=None, temperature=0).text
    assert body["choices"][0]["text"] == expected
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["logprobs"] is None
    events = client.events(
        "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}
    )
    assert events[-1][1] == "[DONE]"
    assert "".join(data["choices"][0]["text"] for _, data in events[:-1]) == expected


def test_sixteen_tokens_are_the_default(client):
    assert completed(client, prompt="Once upon a time", seed=1)["usage"]["completion_tokens"] == 16


def test_several_prompts_and_answers(client):
    body = completed(client, prompt=["Once", "A dog"], n=2, max_tokens=4, seed=3, echo=True)
    assert [each["index"] for each in body["choices"]] == [0, 1, 2, 3]
    texts = [each["text"] for each in body["choices"]]
    assert [text.split()[0] for text in texts] == ["Once", "Once", "A", "A"]
    assert body["usage"]["completion_tokens"] == 16
    alone = [completed(client, prompt="Once", max_tokens=4, seed=seed, echo=True) for seed in (3, 4)]
    assert texts[:2] == [each["choices"][0]["text"] for each in alone]


def test_the_request_of_lm_eval(client, model):
    tokens = [[0, *model.tokenizer.encode("Once upon a time there was a dog.")], [0, 300, 301]]
    body = completed(
        client, prompt=tokens, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234, model="gosling"
    )
    for choice, asked in zip(body["choices"], tokens, strict=True):
        found = choice["logprobs"]
        logits, _ = model.forward_all(asked)
        wide = logits.astype(np.float64)
        logprobs = (
            wide
            - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True))
            - wide.max(1, keepdims=True)
        )
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        assert len(found["token_logprobs"]) == len(asked) + 1
        expected = [logprobs[n, token] for n, token in enumerate(asked[1:])]
        np.testing.assert_allclose(found["token_logprobs"][1:-1], expected, atol=1e-4)
        for n, (logprob, top) in enumerate(zip(found["token_logprobs"], found["top_logprobs"], strict=True)):
            if top is None:
                continue
            is_greedy = logprob == max(top.values())
            following = asked[n] if n < len(asked) else None
            if following is not None:
                assert is_greedy == (following == int(logits[n - 1].argmax()))


def test_tokens_that_are_no_text_have_names_of_their_own(client):
    body = completed(client, prompt=[0, 100], max_tokens=0, echo=True, logprobs=20)
    for top in body["choices"][0]["logprobs"]["top_logprobs"][1:]:
        assert len(top) >= 20


def test_the_top_of_generated_tokens(client):
    body = completed(client, prompt="Once upon", max_tokens=6, logprobs=2, temperature=0)
    found = body["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == body["choices"][0]["text"]
    assert [*np.cumsum([0, *map(len, found["tokens"][:-1])])] == found["text_offset"]
    assert all(
        logprob == max(top.values())
        for logprob, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True)
    )


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([99_999_999], "no token 99999999"),
        ([-1], "no token -1"),
        ([[1], "x", 3], "a list of either"),
        ([[]], "a list of either"),
        ({}, "a list of either"),
        ([True], "a list of either"),
        (["x"] * 1000, "1,000 texts"),
    ],
)
def test_prompts_that_cannot_be(client, prompt, says):
    response = client.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_a_suffix_is_refused(client):
    assert client.post("/v1/completions", json={"prompt": "x", "suffix": "y"}).status_code == 400


def test_tokens_and_back(client, model):
    tokens = client.post("/tokenize", json={"prompt": "Hello world", "add_special_tokens": False}).json()[
        "tokens"
    ]
    assert tokens == model.tokenizer.encode("Hello world")
    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "Hello world"
    assert client.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert client.post("/detokenize", json={"tokens": "x"}).status_code == 400
    assert client.post("/tokenize", json={}).status_code == 400
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    talk = client.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]}).json()["tokens"]
    assert model.tokenizer.decode(talk) == "User: Hi\n\nAssistant:"
