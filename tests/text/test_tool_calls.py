"""Tools: read in OpenAI's form, laid out for each generation, and calls read back in every form."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.constraints.schema import for_llguidance
from rwkv_cli.errors import UsageError
from rwkv_cli.text.chat_template import from_source
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.tool_calls.layout import FORMATS, call_schema, chosen, format_for
from rwkv_cli.text.tool_calls.parser import parse
from rwkv_cli.text.tool_calls.tools import Tool, ToolCall, parse_tools

WEATHER = Tool(
    "get_weather",
    "The weather\nof a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
CALL = ToolCall("get_weather", {"city": "Oslo"})
JSON = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'

FORMS = {
    "a block": f"```json\n{JSON}\n```",
    "a block that is not closed": f"```json\n{JSON}",
    "a block without a language": f"```\n{JSON}\n```",
    "the rest of a block that the prompt began": f"{JSON}\n```",
    "a heading": f"**Tool Call:**\n```json\n{JSON}\n```",
    "a heading without a block": f"**Tool Call:** {JSON}",
    "a tag": f"<tool_call>\n{JSON}\n</tool_call>",
    "a tag that is not closed": f"<tool_call>{JSON}",
    "a block in a tag": f"<tool_call>\n```json\n{JSON}\n```\n</tool_call>",
    "a list in tags": '<tool_calls>[{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]</tool_calls>',
    "nothing else": JSON,
    "a list": f"[{JSON}]",
    "OpenAI's": '{"tool_calls": [{"id": "1", "type": "function", "function": '
    '{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}]}',
    "parameters": '<tool_call>{"name": "get_weather", "parameters": {"city": "Oslo"}}</tool_call>',
    "a function's name": '<tool_call>{"function": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>',
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_call_is_read(form):
    assert parse(FORMS[form], ["get_weather"]).calls == (CALL,)
    assert parse("\n\n" + FORMS[form]).calls == (CALL,)


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form][0] not in "{["])
def test_text_before_a_call_stays(form):
    parsed = parse("Let me look.\n" + FORMS[form])
    assert (parsed.text, parsed.calls) == ("Let me look.", (CALL,))


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form].endswith(("```", ">"))])
def test_text_after_a_call_stays(form):
    parsed = parse(FORMS[form] + "\nIt will rain.")
    assert (parsed.text, parsed.calls) == ("It will rain.", (CALL,))


@pytest.mark.parametrize(
    "answer",
    [
        f"<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}</tool_call>",
        f"<tool_call>{JSON}\n{JSON}</tool_call>",
        f"<tool_calls>[{JSON}, {JSON}]</tool_calls>",
        f"```json\n{JSON}\n```\n```json\n{JSON}\n```",
        f"{JSON}\n{JSON}",
    ],
)
def test_several_calls(answer):
    assert parse(answer).calls == (CALL, CALL)
    assert parse(answer).text == ""


@pytest.mark.parametrize(
    "answer",
    [
        "It is sunny.",
        '```json\n{"city": "Oslo"}\n```',
        "```python\nprint({})\n```",
        '<tool_call>{"name": "get_weather", "argum',
        "<tool_call>get_weather</tool_call>",
        '{"name": 5, "arguments": {}}',
        '{"name": "get_weather", "arguments": [1]}',
        '{"name": "get_weather", "arguments": "{"}',
        "{}",
        "[]",
        "",
        f'The call {{"name": "x"}} and {JSON} in the middle of a text',
    ],
)
def test_all_else_is_text(answer):
    assert parse(answer).calls == ()
    assert parse(answer).text == answer.strip()


def test_a_call_of_an_unknown_tool_is_text():
    assert parse(FORMS["a tag"], ["other"]).calls == ()
    assert parse('<tool_call>{"name": "get_weather"}</tool_call>').calls == (ToolCall("get_weather", {}),)


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "```",
    "json",
    "{",
    "}",
    '"name"',
    ":",
    '"a"',
    "[",
    "]",
    "\n",
    "**Tool Call:**",
]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_parsed(answer):
    assert isinstance(parse(answer).text, str)


# ------------------------------------------------------------------------------------------------------- the tools


def test_tools_are_read_in_the_forms_that_clients_send():
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    tool = Tool("f", "d")
    for fields in ([{"type": "function", "function": function}], [function], {"tools": [function]}, function):
        assert parse_tools(json.dumps(fields)) == (tool,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "must be JSON"),
        ("[]", "must be a list of tools"),
        ("[5]", "tool 1 must be an object"),
        ('[{"name": "a b"}]', "tool 1 has no valid name"),
        ('[{"name": "f"}, {"name": "f"}]', "two tools named f"),
        ('[{"name": "f", "parameters": 5}]', "f needs a text as description"),
        (json.dumps([{"name": f"f{i}"} for i in range(129)]), "128 are allowed"),
    ],
)
def test_tools_that_are_wrong(text, says):
    with pytest.raises(UsageError, match=says):
        parse_tools(text)


def test_the_choice_of_a_tool():
    tools = (WEATHER, Tool("other"))
    assert chosen(tools, "auto") == chosen(tools, "none") == ()
    assert chosen(tools, "required") == tools
    assert chosen(tools, "other") == (Tool("other"),)
    with pytest.raises(UsageError, match="auto, none, required or one of get_weather, other"):
        chosen(tools, "third")


# ------------------------------------------------------------------------------------------------------- the forms


def test_each_generation_has_its_own_form():
    assert format_for(get_template("world")).name == "short"
    assert format_for(get_template("g1")).name == "short"
    assert format_for(get_template("g1h")).name == "tag"
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    source = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert format_for(from_source(source)).name == "headings"
    with pytest.raises(UsageError, match="no place for tools"):
        format_for(get_template("qa"))


def test_the_short_form():
    assert FORMATS["short"].system([WEATHER, Tool("now")], "Be brief.") == (
        "Be brief.\nTools:\n"
        '- get_weather(city: string, unit?: "C" | "F", days?: integer[]): The weather of a city.\n'
        "- now()\n"
        "Return only a JSON function call."
    )
    assert FORMATS["short"].answer('{"t": 5}') == 'Function output:\n{"t": 5}'


@pytest.mark.parametrize("name", FORMATS)
def test_what_each_form_asks_for_is_read_back(name):
    form = FORMATS[name]
    offer = form.system([WEATHER])
    assert "get_weather" in offer
    assert form.before.split("\n")[0] in offer or name == "short"
    assert parse(form.before + JSON + form.after, ["get_weather"]).calls == (CALL,)
    assert "5 degrees" in form.answer("5 degrees")


@pytest.mark.parametrize("name", FORMATS)
def test_the_grammar_of_a_call(name):
    grammar = Grammar.lark(FORMATS[name].grammar([WEATHER, Tool("now")], for_llguidance))
    assert grammar.kind == "grammar"


def test_definitions_in_parameters_stay_where_references_find_them():
    tool = Tool(
        "f",
        "",
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "null"}}},
    )
    schema = call_schema(tool)
    assert schema["$defs"] == {"x": {"type": "null"}}
    Grammar.json_schema(schema)
