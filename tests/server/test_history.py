"""A client sends its whole history again, and what was read once is not read twice."""

import signal

from helpers.server import answer_of, cached_of, process, serving
from helpers.talker import talking


def test_a_history_is_recognised():
    model = talking()
    with serving(model) as client:
        messages, read = [], []
        for turn in range(20):
            before = model.backend.tokens_read
            client.said(messages, f"This is message number {turn:02}.", seed=turn)
            read.append(model.backend.tokens_read - before)
        assert max(read[1:]) <= min(read[1:]) + 6  # not more as the history grows


def test_a_history_of_300_turns_costs_no_more_than_its_last_one():
    model = talking()
    with serving(model) as client:
        messages = [
            {"role": role, "content": f"{role} says {turn:03}, and so on"}
            for turn in range(300)
            for role in ("user", "assistant")
        ]
        messages.append({"role": "user", "content": "And then what?"})
        client.chat(messages)
        before = model.backend.tokens_read
        for _ in range(3):
            client.chat(messages)
        assert model.backend.tokens_read - before < 3 * 30


def test_the_answer_is_the_one_without_the_cache():
    with serving(talking()) as one, serving(talking(), state_bytes=0) as other:
        for client in (one, other):
            messages = []
            client.said(messages, "The first message of them all", temperature=0)
            client.said(messages, "And another one after that", temperature=0)
            client.log = messages
        assert one.log == other.log


def test_an_edited_message_is_read_from_there_on():
    with serving(talking()) as client:
        messages = []
        for turn in range(4):
            client.said(messages, f"This is message number {turn}.", seed=turn)
        kept = client.chat([*messages[:4], {"role": "user", "content": "Something else"}])
        assert cached_of(kept) > 0
        edited = [*messages[:2], {"role": "user", "content": "Another thing"}]
        found = client.chat(edited)
        assert 0 < cached_of(found) < cached_of(kept)
        changed = client.chat([{"role": "user", "content": "A new beginning"}, *messages[1:], edited[-1]])
        assert cached_of(changed) < 20  # what every prompt begins with, at most


def test_another_answer_to_the_same_message_reads_nothing():
    model = talking()
    with serving(model) as client:
        text = [{"role": "user", "content": "Tell me something about all of this, please"}]
        client.chat(text, seed=1, max_tokens=1)
        before = model.backend.tokens_read
        found = client.chat(text, seed=2, max_tokens=1)
        assert cached_of(found) == found["usage"]["prompt_tokens"]
        assert model.backend.tokens_read - before <= 1  # the token that was chosen


def test_thoughts_that_a_client_leaves_out_are_remembered():
    model = talking({"<think": ">\nI wonder.\n</think>\n\nIt is so."}, template="g1")
    with serving(model) as client:
        messages = []
        fields = {"reasoning_effort": "medium", "max_tokens": 100}
        first = client.said(messages, "Is it really so, do you think?", **fields)
        second = client.said(messages, "And is it also so here?", **fields)
        read = second["usage"]["prompt_tokens"] - cached_of(second)
        assert cached_of(second) > first["usage"]["prompt_tokens"] - len(" <think")
        assert read < 60


def test_a_stopped_answer_is_remembered():
    model = talking()
    with serving(model) as client:
        text = [{"role": "user", "content": "Tell me a very long story about everything"}]
        said = ""
        fields = {"messages": text, "max_tokens": -1, "stream": True, "logit_bias": {"0": -200, "11": -200}}
        with client.stream("POST", "/v1/chat/completions", json=fields) as response:
            for line in response.iter_lines():
                said += line
                if len(said) > 20_000:
                    break
        import json

        pieces = [json.loads(each) for each in said.split("data: ") if each]
        answer = "".join(each["choices"][0]["delta"].get("content", "") for each in pieces)
        for _ in range(200):
            if 'running{model="gosling"} 0' in client.get("/metrics").text:
                break
        found = client.chat(
            [*text, {"role": "assistant", "content": answer}, {"role": "user", "content": "Go on"}]
        )
        assert cached_of(found) >= 40


def test_after_a_restart_nothing_is_read_again(tmp_path):
    messages = []
    with process(tmp_path) as server:
        for turn in range(3):
            server.client.said(messages, f"This is message number {turn}.", seed=turn)
        assert server.stop() == 0
    with process(tmp_path) as server:
        found = server.client.said(messages, "And one more of them", seed=7)
        assert found["usage"]["prompt_tokens"] - cached_of(found) < 20
        server.stop(signal.SIGKILL)
    with process(tmp_path) as server:
        found = server.client.said(messages, "And the last of them", seed=8)
        assert found["usage"]["prompt_tokens"] - cached_of(found) < 20
        edited = [*messages[:2], {"role": "user", "content": "Something else, please"}]
        assert cached_of(server.client.chat(edited)) > 0


def test_a_damaged_file_is_read_again(tmp_path):
    messages = []
    with process(tmp_path) as server:
        server.client.said(messages, "This is a message of some words.", seed=1)
        server.stop()
    (file,) = (tmp_path / "cache" / "turns").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with process(tmp_path) as server:
        found = server.client.said(messages, "And one more of them", seed=7)
        assert cached_of(found) == 0
        assert answer_of(found)
