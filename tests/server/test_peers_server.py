"""The published clients of OpenAI, Anthropic and ollama, unchanged. Needs the `peers` extra."""

import pytest
from helpers.server import serving

openai = pytest.importorskip("openai", reason="needs the peers extra")
anthropic = pytest.importorskip("anthropic", reason="needs the peers extra")
ollama = pytest.importorskip("ollama", reason="needs the peers extra")

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]


@pytest.fixture(scope="module")
def address():
    with serving() as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_openai_chat(client):
    assert "gosling" in [model.id for model in client.models.list()]
    whole = client.chat.completions.create(model="gosling", messages=HELLO, max_tokens=20, seed=1)
    stream = client.chat.completions.create(
        model="gosling",
        messages=HELLO,
        max_tokens=20,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [*stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == whole.usage.total_tokens
    with pytest.raises(openai.NotFoundError, match="unknown model"):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="at least 0"):
        client.chat.completions.create(model="gosling", messages=HELLO, temperature=-1)


def test_openai_completions(client):
    found = client.completions.create(
        model="gosling", prompt=["Once", "A dog"], n=2, max_tokens=4, logprobs=1
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    chunks = client.completions.create(model="gosling", prompt="Once", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks)


def test_openai_structured_answers(client):
    from pydantic import BaseModel

    class Choice(BaseModel):
        is_good: bool

    found = client.chat.completions.parse(
        model="gosling", messages=HELLO, response_format=Choice, max_tokens=40
    )
    assert isinstance(found.choices[0].message.parsed.is_good, bool)


def test_openai_responses(client):
    first = client.responses.create(model="gosling", input="My name is Tom, and yours?", max_output_tokens=20)
    assert first.output_text
    second = client.responses.create(
        model="gosling", input="Who am I?", previous_response_id=first.id, max_output_tokens=20
    )
    assert second.usage.input_tokens_details.cached_tokens > 10
    with client.responses.stream(model="gosling", input="Hello to you", max_output_tokens=20) as stream:
        kinds = [event.type for event in stream]
        assert kinds[-1] in ("response.completed", "response.incomplete")
        assert stream.get_final_response().output_text


def test_anthropic(address):
    client = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
    whole = client.messages.create(model="gosling", max_tokens=20, messages=HELLO, system="Be nice")
    assert whole.content[0].text
    with client.messages.stream(model="gosling", max_tokens=20, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == stream.get_final_message().content[0].text
    assert client.messages.count_tokens(model="gosling", messages=HELLO).input_tokens > 5
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", max_tokens=20, messages=HELLO)


def test_ollama(address):
    client = ollama.Client(host=address)
    assert client.list().models[0].model == "gosling"
    assert client.show("gosling").modelinfo["general.architecture"] == "rwkv7"
    options = {"seed": 1, "num_predict": 10}
    whole = client.chat("gosling", messages=HELLO, options=options)
    parts = client.chat("gosling", messages=HELLO, options=options, stream=True)
    assert "".join(part.message.content for part in parts) == whole.message.content
    first = client.generate("gosling", "My name is Tom.", options=options)
    assert client.generate("gosling", "Who am I?", context=first.context, options=options).response
    assert client.ps().models[0].model == "gosling"
    with pytest.raises(ollama.ResponseError, match="unknown model"):
        client.chat("nothing", messages=HELLO)
