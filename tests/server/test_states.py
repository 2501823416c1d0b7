"""States as objects, and requests that begin or end in one."""

import threading
from dataclasses import replace

import pytest
from helpers.server import answer_of, cached_of, process, serving
from helpers.talker import talking

from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.conversation import Conversation


@pytest.fixture
def client():
    with serving(talking()) as client:
        yield client


def made(client, name="doc", text="Rex is a dog of some size."):
    response = client.post("/v1/states", json={"name": name, "input": text})
    assert response.status_code == 201, response.text
    return response.json()


def test_the_life_of_a_state(client):
    assert client.get("/v1/states").json()["data"] == []
    state = made(client)
    assert state["kind"] == "document"
    assert state["tokens"] == len("Rex is a dog of some size.")
    assert client.get("/v1/states/doc").json()["text"] == "Rex is a dog of some size."
    assert client.post("/v1/states/doc/fork", json={"name": "two"}).status_code == 201
    data = client.get("/v1/states/two/file").content
    assert client.put("/v1/states/three", content=data).status_code == 201
    assert client.patch("/v1/states/three", json={"name": "four"}).json()["id"] == "four"
    assert [each["id"] for each in client.get("/v1/states").json()["data"]] == ["doc", "four", "two"]
    assert client.delete("/v1/states/two").json()["deleted"]
    assert client.get("/v1/states/two").status_code == 404
    assert state_store.names() == ["doc", "four"]


def test_what_states_refuse(client):
    made(client)
    assert client.post("/v1/states", json={"name": "doc", "input": "x"}).status_code == 409
    assert client.post("/v1/states", json={"name": "doc", "input": "x", "overwrite": True}).status_code == 201
    assert client.post("/v1/states", json={"name": "../x", "input": "x"}).status_code == 400
    assert client.post("/v1/states", json={"name": "con", "input": "x"}).status_code == 400
    assert client.post("/v1/states", json={"name": "x"}).status_code == 400
    assert client.post("/v1/states", json={"name": "x", "input": ""}).status_code == 400
    assert client.get("/v1/states/..%2f..%2fetc").status_code in (400, 404)
    assert client.put("/v1/states/x", content=b"nothing").status_code == 400
    assert client.post("/v1/states/doc/fork", json={"name": "doc"}).status_code == 409
    assert client.patch("/v1/states/none", json={"name": "x"}).status_code == 404
    assert state_store.names() == ["doc"]


def test_a_document_is_asked_about_and_stays_as_it_is(client):
    made(client)
    one = client.ask("Who is Rex?", state="doc", temperature=0)
    two = client.ask("Who is Rex?", state="doc", temperature=0)
    assert answer_of(one) == answer_of(two)
    assert client.get("/v1/states/doc").json()["tokens"] == len("Rex is a dog of some size.")
    other = client.ask("Who is Rex?", temperature=0)
    assert answer_of(other) != answer_of(one)


def test_a_history_after_a_state_is_recognised(client):
    made(client)
    messages = []
    client.said(messages, "Who is Rex, and what does he do?", state="doc", seed=1)
    found = client.said(messages, "And why?", state="doc", seed=1)
    assert cached_of(found) > 0
    assert cached_of(client.chat(messages[:3], state="doc")) > cached_of(client.chat(messages[:3]))


def test_a_session_goes_on_by_messages_alone_and_in_the_terminal(client):
    client.ask("My name is Tom, what is yours?", session="us", seed=1)
    client.ask("Who am I?", session="us", seed=2)
    record = client.get("/v1/states/us").json()
    assert [each["content"] for each in record["messages"] if each["role"] == "user"] == [
        "My name is Tom, what is yours?",
        "Who am I?",
    ]
    model = talking()
    conversation = Conversation.load(state_store.resolve("us"), model)
    assert [turn.user for turn in conversation.turns] == ["My name is Tom, what is yours?", "Who am I?"]
    replayed = Conversation(model)
    replayed.turns = conversation.turns.copy()
    assert replayed.snapshot.state.shift_att[0, 0] == conversation.snapshot.state.shift_att[0, 0]
    for _ in conversation.ask("Said in the terminal"):
        pass
    conversation.save(state_store.resolve("us"))
    client.ask("And here again", session="us")
    users = [
        each["content"] for each in client.get("/v1/states/us").json()["messages"] if each["role"] == "user"
    ]
    assert users[-2:] == ["Said in the terminal", "And here again"]


def test_save_as_does_not_replace_unless_it_is_told_to(client):
    client.ask("This is the first one", save_as="end")
    fields = {
        "messages": [{"role": "user", "content": "This is the second one"}],
        "save_as": "end",
        "max_tokens": 4,
    }
    assert client.post("/v1/chat/completions", json=fields).status_code == 409
    assert client.post("/v1/chat/completions", json={**fields, "overwrite": True}).status_code == 200
    assert client.post("/v1/chat/completions", json={**fields, "session": "x"}).status_code == 400
    assert client.get("/v1/states/end").json()["messages"][0]["content"] == "This is the second one"


def test_a_state_of_another_template_is_refused(client):
    client.ask("This is the first one", save_as="end")
    fields = {"messages": [{"role": "user", "content": "And?"}], "state": "end", "template": "world"}
    response = client.post("/v1/chat/completions", json=fields)
    assert response.status_code == 400
    assert "dialogue" in response.json()["error"]["message"]


def test_a_state_of_another_model_is_refused(client):
    made(client)
    stranger = talking()
    stranger.info = replace(stranger.info, source={"name": "stranger", "sha256": "1" * 64})
    with serving(stranger) as other:
        fields = {"messages": [{"role": "user", "content": "And?"}], "state": "doc"}
        response = other.post("/v1/chat/completions", json=fields)
    assert response.status_code == 409
    assert "belongs to talker" in response.json()["error"]["message"]


def test_a_state_that_is_open_elsewhere_is_an_error_in_a_stream(client):
    client.ask("This is the first one", session="us")
    with state_store.lock(state_store.resolve("us")):
        events = client.events(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "And?"}], "session": "us", "max_tokens": 3},
        )
        assert "open in another rwkv" in events[-2][1]["error"]["message"]
        assert events[-1][1] == "[DONE]"


def test_a_chat_of_open_webui_is_kept_and_its_title_does_not_touch_it(client):
    headers = {"X-OpenWebUI-Chat-Id": "a/b"}
    talk = [{"role": "user", "content": "Hello there, how are you?"}]
    title = [{"role": "user", "content": "### Task: make a title for this chat"}]
    for messages in (talk, title):
        client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 5}, headers=headers)
    (state,) = client.get("/v1/states").json()["data"]
    record = client.get(f"/v1/states/{state['id']}").json()
    assert record["messages"][0]["content"] == "Hello there, how are you?"
    assert len(record["messages"]) == 2


def test_a_text_is_continued_from_a_state(client):
    fields = {"prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}
    client.post("/v1/completions", json={**fields, "save_as": "story"})
    saved = state_file.load(state_store.find("story"))
    assert saved.text.startswith("Once upon a time")
    rest = client.post(
        "/v1/completions", json={"prompt": "", "state": "story", "max_tokens": 5, "temperature": 0}
    )
    whole = client.post("/v1/completions", json={**fields, "max_tokens": 10}).json()["choices"][0]["text"]
    said = saved.text.removeprefix("Once upon a time")
    assert whole == said + rest.json()["choices"][0]["text"]


def test_an_answer_that_is_cut_off_by_the_end_of_the_server_is_saved(tmp_path):
    with process(tmp_path, "--grace", "1") as server:
        fields = {
            "messages": [{"role": "user", "content": "Tell me a story of many words"}],
            "session": "cut",
            "max_tokens": -1,
            "stream": True,
            "logit_bias": {"0": -100},
            "stop": [],
            "template": "raw",
        }
        fields.pop("template")
        got = threading.Event()

        def read():
            try:
                with server.client.stream("POST", "/v1/chat/completions", json=fields) as response:
                    for _ in response.iter_lines():
                        got.set()
            except Exception:
                got.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert got.wait(60)
        assert server.stop() == 0
        thread.join()
    assert (tmp_path / "data" / "states" / "cut.safetensors").exists()
