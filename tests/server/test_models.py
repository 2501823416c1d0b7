"""Models by name: loaded when one is asked for, let go within a limit of memory, begun with a tuned state."""

import shutil

import numpy as np
import pytest
from helpers.server import answer_of, process, serving
from helpers.talker import talking

from rwkv_cli import paths
from rwkv_cli.catalog import model_store
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.model import load
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.state_file import SavedState

HELLO = [{"role": "user", "content": "Hello, how are you?"}]


@pytest.fixture
def stored():
    """Two models in the store."""
    model_store.folder().mkdir(parents=True)
    for name in ("one", "two"):
        shutil.copyfile(paths.EMBEDDED_MODEL, model_store.path_of(name))


def loaded(client):
    return sorted(client.get("/health").json()["loaded"])


@pytest.mark.usefixtures("stored")
def test_models_are_loaded_when_they_are_asked_for():
    with serving() as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["gosling", "one", "two"]
        assert loaded(client) == []
        assert client.chat(HELLO, model="one")["model"] == "one"
        assert client.chat(HELLO, model="TWO:latest")["model"] == "two"
        assert loaded(client) == ["one", "two"]
        for name in (
            str(model_store.path_of("one")),
            "one.safetensors",
            "../models/one",
            "g1-0.1b",
            "hf:a/b",
        ):
            response = client.post("/v1/chat/completions", json={"model": name, "messages": HELLO})
            assert response.status_code == 404, name


@pytest.mark.usefixtures("stored")
def test_a_limit_of_memory_unloads_what_was_not_used_for_longest():
    with serving(memory_bytes=70_000_000) as client:  # two of 32 MB
        for name in ("one", "two", "one", "gosling"):
            client.chat(HELLO, model=name)
        assert loaded(client) == ["gosling", "one"]
        assert answer_of(client.chat(HELLO, model="two"))


@pytest.mark.usefixtures("stored")
def test_many_ask_for_a_model_that_is_being_loaded():
    import concurrent.futures

    with serving() as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda n: client.chat(HELLO, model=("one", "two")[n % 2])["model"], range(8))]
        assert found == ["one", "two"] * 4


def test_a_tuned_state_is_a_model():
    model = load()
    state = State.zeros(model.config)
    state.wkv[:] = np.random.default_rng(0).normal(0, 3, state.wkv.shape)
    state_store.prepare(state_store.resolve("pirate"))
    state_store.save(state_store.resolve("pirate"), SavedState(Snapshot(state), state_file.identify(model)))
    with serving() as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["gosling", "pirate"]
        plain = client.chat(HELLO, temperature=0)
        tuned = client.chat(HELLO, temperature=0, model="pirate")
        assert tuned["model"] == "pirate"
        assert answer_of(tuned) != answer_of(plain)
        assert answer_of(client.chat(HELLO, temperature=0)) == answer_of(plain)
        assert answer_of(client.chat(HELLO, temperature=0, model="pirate")) == answer_of(tuned)
        assert loaded(client) == ["gosling"]


def test_a_model_that_cannot_be_loaded_is_an_error():
    model_store.folder().mkdir(parents=True)
    model_store.path_of("broken").write_bytes(b"nothing")
    with serving(talking()) as client:
        assert client.get("/api/tags").status_code in (200, 500)
    with serving() as client:
        response = client.post("/v1/chat/completions", json={"model": "broken", "messages": HELLO})
        assert response.status_code == 500
        assert "broken" in response.json()["error"]["message"]
        assert client.chat(HELLO, max_tokens=2)
        assert client.get("/api/tags").status_code == 200


def test_the_command_refuses_what_cannot_be(rwkv, tmp_path):
    assert "other machines" in rwkv("serve", "--host", "0.0.0.0").sentence
    assert "--api-key" in rwkv("serve", "--api-key", " ").sentence
    assert "--max-body" in rwkv("serve", "--max-body", "much").sentence
    assert rwkv("serve", "--model", tmp_path / "none").code in (1, 2)


def test_a_port_in_use(rwkv, tmp_path):
    with process(tmp_path) as server:
        port = server.client.base_url.port
        result = rwkv("serve", "--port", port)
        assert result.code == 2
        assert "choose another one with --port" in result.err


def test_the_log_has_a_line_per_request_and_no_words(tmp_path):
    with process(tmp_path) as server:
        server.client.ask("My secret word is zebra")
        server.client.get("/nothing")
        assert server.stop() == 0
        log = "\n".join(server.log)
    assert "POST /v1/chat/completions 200" in log
    assert "gosling: " in log
    assert "GET /nothing 404" in log
    assert "zebra" not in log
    assert "Traceback" not in log
