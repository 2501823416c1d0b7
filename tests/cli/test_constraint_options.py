"""Answers in a form that was demanded: generate, batches, chats and saved states."""

import json
import re

import jsonschema
import pytest

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TEXT = json.dumps(SCHEMA)


def answer(result):
    assert (result.code, result.err) == (0, "")
    return result.out


def test_a_schema_is_given_as_text_or_in_a_file(rwkv, tmp_path):
    (tmp_path / "schema.json").write_text(TEXT)
    texts = {
        answer(rwkv("generate", "Once", "--json-schema", each, "--seed", 1, "-q", "-n", 100))
        for each in (TEXT, tmp_path / "schema.json")
    }
    assert len(texts) == 1
    jsonschema.validate(json.loads(texts.pop()), SCHEMA)


def test_the_other_options(rwkv, tmp_path):
    (tmp_path / "g.lark").write_text('start: "a" | "b"')
    one = ("generate", "Hi", "--template", "dialogue", "--seed", 3, "-q")
    assert answer(rwkv(*one, "--choice", "yes", "--choice", "no")).strip() in ("yes", "no")
    assert answer(rwkv(*one, "--regex", "[0-9]{3}")).strip().isdigit()
    assert answer(rwkv(*one, "--grammar", tmp_path / "g.lark")).strip() in ("a", "b")
    record = json.loads(rwkv(*one, "--json-object", "--json", "-n", 3).out.splitlines()[-1])
    assert (record["finish"], record["text"][:1]) == ("length", "{")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json-schema", '{"not": {}}'], 'it uses "not" in a way that is not supported'),
        (["--json-schema", '{"minimum": 2, "maximum": 1, "type": "integer"}'], "nothing satisfies it"),
        (["--json-schema", "/no/schema.json"], "cannot read the JSON Schema /no/schema.json: no such file"),
        (["--json-schema", "{"], "--json-schema is not JSON"),
        (["--regex", "("], "--regex cannot be used: unclosed group"),
        (["--grammar", "/no/grammar"], "cannot read the grammar /no/grammar"),
        (["--choice", ""], "--choice must be texts that are not empty"),
        (["--regex", "a", "--choice", "a"], "give either --regex or --choice, not both"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_model_is_loaded(rwkv, arguments, says):
    result = rwkv("generate", "Once", "-m", "/no/model.pth", *arguments)
    assert result.code == 2
    assert says in result.sentence


@pytest.mark.parametrize("limit", [1, 4, 9, 15])
def test_a_saved_state_goes_on_within_the_grammar(rwkv, limit):
    one = ("-q", "--seed", 5)
    whole = answer(rwkv("generate", "Once", "--json-schema", TEXT, *one, "-n", 100)).strip()
    jsonschema.validate(json.loads(whole), SCHEMA)
    begun = answer(
        rwkv("generate", "Once", "--json-schema", TEXT, *one, "-n", limit, "--save-state", f"s{limit}")
    )
    more = ("generate", "--state", f"s{limit}", "-q", "-n", 100)
    assert begun.removesuffix("\n") + answer(rwkv(*more)).removesuffix("\n") == whole
    again = answer(rwkv(*more, "--json-schema", TEXT)).removesuffix(
        "\n"
    )  # the same once more changes nothing
    assert begun.removesuffix("\n") + again == whole


def test_a_state_without_text_keeps_no_constraint(rwkv):
    rwkv("generate", "Once", "--json-schema", TEXT, "-q", "-n", 3, "--save-state", "s", "--no-text")
    assert "{" not in answer(rwkv("generate", "--state", "s", "-q", "-n", 5, "--temperature", 0))


def test_lines_of_a_batch_have_their_own_or_that_of_the_command(rwkv, tmp_path):
    lines = [
        {"prompt": "One", "choice": ["yes", "no"]},
        {"prompt": "Two", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"prompt": "Three"},
        {"prompt": "Four", "json_schema": SCHEMA},
    ]  # fmt: skip
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    options = ("--regex", "[a-c]{2}", "--seed", 1, "--template", "story", "-q", "-n", 90)
    answers = [json.loads(line) for line in answer(rwkv("generate", "--batch", path, *options)).splitlines()]
    assert answers[0]["text"] in ("yes", "no")
    assert set(answers[2]["text"]) <= set("abc")
    for index in (1, 3):
        jsonschema.validate(json.loads(answers[index]["text"]), SCHEMA)
    assert [each["finish"] for each in answers] == ["stop"] * 4
    alone = ("generate", "Four", "--json-schema", TEXT, "--seed", 4, "--template", "story", "-q", "-n", 90)
    assert answers[3]["text"] == answer(rwkv(*alone)).strip()


def test_a_batch_may_want_no_tokens(rwkv, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("One\n")
    (line,) = answer(rwkv("generate", "--batch", path, "--regex", "abc", "-n", 0, "-q")).splitlines()
    assert json.loads(line)["generated_tokens"] == 0


@pytest.mark.parametrize("text", ["yes", "a longer answer that is one alone"])
def test_an_answer_that_is_forced_as_a_whole(rwkv, tmp_path, text):
    path = tmp_path / "p.txt"
    path.write_text("One\nTwo\n")
    options = ("--choice", text, "-q", "--template", "story")
    for cache in ([], ["--no-cache"]):
        found = answer(rwkv("generate", "--batch", path, *options, *cache)).splitlines()
        assert [json.loads(line)["text"] for line in found] == [text, text]
    assert answer(rwkv("generate", "One", *options)) == text + "\n"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"choice": "yes"}, 'line 1: "choice" must be a list of texts'),
        ({"regex": "("}, 'line 1: "regex" cannot be used: unclosed group'),
        ({"json_schema": 5}, 'line 1: "json_schema" must be a JSON object'),
        ({"response_format": {"type": "xml"}}, 'line 1: "response_format" must have the type'),
        ({"json_object": 1}, 'line 1: "json_object" must be true or false'),
        ({"regex": "a", "choice": ["b"]}, 'line 1: give either "regex" or "choice", not both'),
    ],
)
def test_a_line_of_a_batch_that_is_wrong(rwkv, tmp_path, fields, says):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "One", **fields}))
    result = rwkv("generate", "--batch", path)
    assert result.code == 1
    (line,) = result.out.splitlines()
    assert says in json.loads(line)["error"]


def test_in_a_chat_it_is_a_setting(rwkv):
    lines = [
        "/set choice yes|no", "hello", "/set choice", "/set json-schema " + TEXT, "and you?",
        "/set json-object maybe", "/set regex (", "/set json-object on", "/set", "/set json-object default", "/set",
    ]  # fmt: skip
    result = rwkv("chat", "--seed", 1, stdin="\n".join(lines).encode())
    first, second = result.out.splitlines()
    assert first in ("yes", "no")
    jsonschema.validate(json.loads(second), SCHEMA)
    said = result.err
    assert "choice: yes|no" in said
    assert "give it a value: /set choice A|B" in said
    assert "json-object is 'maybe': it must be one of on, off" in said
    assert "regex cannot be used: unclosed group" in said
    assert said.count("json-object        on") == 1


@pytest.mark.parametrize("way", ["--name", "/save", "/load", "/fork"])
def test_a_chat_that_is_saved_keeps_its_form(rwkv, way):
    named = ("--name", "trip") if way == "--name" else ()
    more = {"/save": ["/save trip"], "/load": ["/save trip"], "/fork": ["/save other", "/fork trip"]}.get(
        way, []
    )
    lines = ["/set choice yes|no", "hello", *more]
    said = rwkv("chat", *named, "--seed", 1, "--model", "gosling", stdin="\n".join(lines).encode())
    assert said.out.splitlines()[0] in ("yes", "no")
    back, first = (("chat",), ["/load trip"]) if way == "/load" else (("chat", "--name", "trip"), [])
    lines = [*first, "and you?", "/set", "/set choice default", "more"]
    again = rwkv(*back, stdin="\n".join(lines).encode())
    assert again.out.splitlines()[0] in ("yes", "no")
    assert re.search("^choice +yes.no$", again.err, re.M)
    free = rwkv("chat", "--name", "trip", stdin=b"/set")
    assert re.search("^choice +none$", free.err, re.M), "it was given up for good"


def test_a_chat_without_text_forgets_its_form(rwkv):
    rwkv("chat", "--name", "trip", "--no-text", stdin=b"/set json-object on\nhello")
    assert re.search("^json-object +off$", rwkv("chat", "--name", "trip", stdin=b"/set").err, re.M)
