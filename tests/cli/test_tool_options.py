"""`rwkv generate --tools`."""

import json

import jsonschema
import pytest

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"],
        "additionalProperties": False}}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip


@pytest.fixture
def tools(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return path


def ended(result):
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out.splitlines()[-1])


@pytest.mark.parametrize("template", ["g1", "g1h", "world"])
def test_a_tool_that_is_chosen_is_called(rwkv, tools, template):
    one = ("generate", "Hi", "--tools", tools, "--template", template, "--json", "-n", 120, "--seed", 1)
    think = ("--think", "off") if template != "world" else ()
    record = ended(rwkv(*one, *think, "--tool-choice", "get_weather"))
    (call,) = record["tool_calls"]
    assert call["name"] == "get_weather"
    jsonschema.validate(call["arguments"], TOOLS[0]["function"]["parameters"])
    assert record["finish"] == "stop"
    others = [ended(rwkv(*one[:-1], seed, *think, "--tool-choice", "required")) for seed in range(3)]
    names = {call["name"] for other in others for call in other["tool_calls"]}
    assert names <= {"get_weather", "now"}


def test_the_model_is_free_where_nothing_is_chosen(rwkv, tools):
    one = ("generate", "Hi", "--tools", tools, "--template", "g1", "--json", "-n", 5)
    record = ended(rwkv(*one))
    assert record["tool_calls"] == []
    assert record["usage"]["prompt_tokens"] > 30  # the tools are in the prompt
    bare = ended(rwkv(*one, "--tool-choice", "none"))
    assert bare["usage"]["prompt_tokens"] < 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tool-choice", "required"], "--tool-choice needs --tools"),
        (["--tools", "/no/file"], "cannot read the file of tools /no/file"),
        (["--tools", "FILE", "--tool-choice", "other"], "must be auto, none, required or one of get_weather, now"),
        (["--tools", "FILE", "--tool-choice", "now", "--regex", "a"], "not both"),
        (["--tools", "FILE", "--batch", "x"], "give either --batch or --tools, not both"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(rwkv, tools, arguments, says):
    prompt = [] if "--batch" in arguments else ["Hi"]
    result = rwkv(
        "generate", *prompt, "-m", "/no/model.pth", *(tools if each == "FILE" else each for each in arguments)
    )
    assert result.code == 2
    assert says in result.sentence


def test_a_template_without_a_place_for_tools(rwkv, tools):
    assert "has no place for tools" in rwkv("generate", "Hi", "--tools", tools, "--template", "qa").sentence


def test_a_tool_whose_parameters_are_not_supported(rwkv, tmp_path):
    (tmp_path / "t.json").write_text('[{"name": "f", "parameters": {"not": {}}}]')
    result = rwkv(
        "generate", "Hi", "--tools", tmp_path / "t.json", "--tool-choice", "f", "-m", "/no/model.pth"
    )
    assert 'it uses "not"' in result.sentence
