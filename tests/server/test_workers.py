"""Several devices, a replica each: requests go to the one that has the fewest."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
from helpers.server import answer_of, cached_of, serving

from rwkv_cli.server.workers import Workers

HELLO = [{"role": "user", "content": "Hello, how are you?"}]


@pytest.fixture
def submitted(monkeypatch):
    """To which of the workers requests go, by number."""
    found, submit = [], Workers.submit

    async def noted(self, options, generate):
        job = await submit(self, options, generate)
        found.append(self._all.index(job._worker))
        return job

    monkeypatch.setattr(Workers, "submit", noted)
    return found


def test_two_replicas_answer_as_one_does(submitted):
    questions = [f"Tell me about {i} foxes." for i in range(6)]
    with serving(device="cpu") as client:
        expected = [answer_of(client.ask(text, seed=1)) for text in questions]
    assert {*submitted} == {0}
    submitted.clear()
    with serving(device="cpu,cpu", threads=1, parallel=2) as client, ThreadPoolExecutor(6) as pool:
        found = [*pool.map(lambda text: answer_of(client.ask(text, seed=1)), questions)]
        assert client.get("/health").json()["loaded"] == ["gosling"]
    assert found == expected
    assert {*submitted} == {0, 1}


def test_a_conversation_goes_on_with_another_replica(submitted):
    """The state after its first answer is that of all of them: the second one is as with one replica."""

    def talk(client, between):
        messages = [*HELLO]
        client.said(messages, "And how are you?", seed=1)
        with between(client):
            return client.said(messages, "And tomorrow?", seed=1)

    @contextmanager
    def busy(client):
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(client.ask, "Tell me a long story.", max_tokens=400)
            while len(submitted) < 2:
                time.sleep(0.01)
            yield
            other.result()

    with serving(device="cpu") as client:
        expected = talk(client, nullcontext)
    submitted.clear()
    with serving(device="cpu,cpu", threads=1, parallel=1) as client:
        found = talk(client, busy)
    assert submitted[0] != submitted[2]
    assert answer_of(found) == answer_of(expected)
    assert cached_of(found) == cached_of(expected) > 0


def test_devices_that_cannot_be(rwkv):
    assert rwkv("serve", "--device", "cpu,abacus", "--port", "0").sentence.startswith("--device is 'abacus'")
    assert "names a GPU twice" in rwkv("serve", "--device", "cuda:0,cuda:0", "--port", "0").sentence
