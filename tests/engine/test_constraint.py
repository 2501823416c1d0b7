"""Constraints and grammars, on a vocabulary of bytes and on the World vocabulary, without a model."""

import json
import random
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from helpers.actor import ByteTokenizer
from helpers.schemas import random_schema, schemas
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.engine.constraint import allowed_tokens, mask_of
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.constraints.guided import GrammarConstraint, following
from rwkv_cli.engine.constraints.vocabulary import vocabulary
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.text.tokenizer import WorldTokenizer

FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
WORLD = WorldTokenizer()
BYTES = ByteTokenizer()
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def of_world(grammar, begun=None, ends=(0,)):
    return following(grammar, vocabulary(WORLD, 65536, ends), begun)


def of_bytes(grammar, begun=None, ends=(0,)):
    return following(grammar, vocabulary(BYTES, 257, ends), begun)


def accept_all(constraint, text, tokenizer=BYTES):
    for token in tokenizer.encode(text):
        constraint.accept(token)


def texts(constraint, tokenizer=BYTES, size=257):
    """What may come next, as bytes; the end is empty."""
    return {tokenizer.token_bytes(int(token)) for token in allowed_tokens(constraint.mask(), size)}


def walk(constraint, tokenizer, size, chooser, most=400):
    """Random tokens that the constraint allows; all text that may be held back is forced first. None at the limit."""
    said = []
    while len(said) < most:
        tokens = constraint.forced() or [int(chooser.choice(allowed_tokens(constraint.mask(), size)))]
        for token in tokens:
            if token == 0:
                return b"".join(map(tokenizer.token_bytes, said)).decode()
            constraint.accept(token)
            said.append(token)
        if constraint.is_complete:
            return b"".join(map(tokenizer.token_bytes, said)).decode()
    return None


@given(st.sets(st.integers(0, 299)), st.sampled_from([300, 320, 333]))
def test_masks_are_sets_of_tokens(tokens, size):
    mask = mask_of(np.array(sorted(tokens), np.int64), size)
    assert mask.shape == (-(-size // 32),)
    assert mask.dtype == np.uint32
    assert allowed_tokens(mask, size).tolist() == sorted(tokens)


def test_only_what_follows_is_allowed():
    constraint = of_bytes(Grammar.choices(["yes", "yellow", "no"]))
    assert texts(constraint) == {b"y", b"n"}
    constraint.accept(BYTES.encode("y")[0])
    assert constraint.forced() == BYTES.encode("e")
    constraint.accept(BYTES.encode("e")[0])
    assert texts(constraint) == {b"s", b"l"}
    with pytest.raises(UsageError, match="does not follow"):
        constraint.accept(BYTES.encode("n")[0])
    assert texts(constraint) == {b"s", b"l"}  # a refusal changes nothing
    constraint.accept(BYTES.encode("s")[0])
    assert constraint.is_complete
    assert constraint.forced() == []
    assert texts(constraint) == {b""}


def test_the_end_may_come_where_a_longer_text_is_possible():
    constraint = of_bytes(Grammar.choices(["a", "ab"]))
    accept_all(constraint, "a")
    assert not constraint.is_complete
    assert constraint.forced() == []
    assert texts(constraint) == {b"b", b""}


def test_every_token_that_ends_a_text_may_end_this_one_and_stands_for_nothing_else():
    flower = WORLD.encode("✿")[0]
    constraint = of_world(Grammar.regex("[a✿]+"), ends=(0, flower))
    assert flower not in allowed_tokens(constraint.mask(), 65536)
    accept_all(constraint, "a", WORLD)
    assert {0, flower} <= set(allowed_tokens(constraint.mask(), 65536))


def test_forced_text_has_the_tokens_that_the_tokenizer_would_give_it():
    constraint = of_world(Grammar.json_schema(PERSON))
    forced = constraint.forced()
    assert WORLD.decode(forced).startswith('{"name')
    whole = WORLD.encode('{"name": "Ann", "age": 7}')
    assert whole[: len(forced)] == forced
    accept_all(constraint, '{"name": "Ann', WORLD)
    for token in WORLD.encode('", "'):
        constraint.accept(token)
    assert WORLD.decode(constraint.forced()).startswith("age")


@pytest.mark.parametrize("n", range(12))
def test_rollback_forgets_what_came_last(n):
    constraint = of_world(Grammar.json_schema(PERSON), begun="<think")
    tokens = WORLD.encode('> so </think>\n{"name": "Ann", "age": 7}')
    for token in tokens:
        constraint.accept(token)
    constraint.rollback(n)
    fresh = of_world(Grammar.json_schema(PERSON), begun="<think")
    for token in tokens[: len(tokens) - n]:
        fresh.accept(token)
    assert (constraint.mask() == fresh.mask()).all()
    assert constraint.save() == fresh.save()
    for token in tokens[len(tokens) - n :]:
        constraint.accept(token)
    assert constraint.is_complete


def test_a_copy_goes_its_own_way():
    one = of_bytes(Grammar.choices(["ab", "cd"]))
    other = one.copy()
    accept_all(one, "a")
    accept_all(other, "c")
    assert (texts(one), texts(other)) == ({b"b"}, {b"d"})
    assert one.save() != other.save()


def test_a_constraint_is_built_again_from_what_is_kept():
    constraint = of_world(Grammar.json_schema(PERSON), begun="Assistant: <think></think")
    accept_all(constraint, '>\n\n{"name": "A', WORLD)
    again = GrammarConstraint.restored(constraint.save(), vocabulary(WORLD, 65536, (0,)))
    assert (again.mask() == constraint.mask()).all()
    assert again.save() == constraint.save()
    for tokens in [(0,), (5,) * 3, (70_000,), (-1,)]:
        with pytest.raises(StateError, match="damaged"):
            GrammarConstraint.restored(
                replace(constraint.save(), tokens=tokens), vocabulary(WORLD, 65536, (0,))
            )


# ------------------------------------------------------------------------------------------------ before the text


def test_a_gap_may_come_before_the_text_in_a_conversation():
    assert texts(of_bytes(Grammar.choices(["yes"]))) == {b"y"}
    assert texts(of_bytes(Grammar.choices(["yes"]), begun="")) == {b"y", b" ", b"\n"}
    assert texts(of_bytes(Grammar.choices([" yes"]), begun="")) == {b" "}  # which is the text's own


def test_an_empty_thought_is_closed_first():
    constraint = of_bytes(Grammar.choices(["yes"]), begun=" <think>\n</think")
    assert texts(constraint) == {b">"}
    accept_all(constraint, ">\n\nyes")
    assert constraint.is_complete


def test_a_thought_may_be_anything_but_the_end():
    constraint = of_bytes(Grammar.choices(["yes"]), begun="<think")
    accept_all(constraint, "> </thin </think no")
    assert constraint.forced() == []
    assert not constraint.is_complete
    assert len(texts(constraint)) == 256
    assert b"" not in texts(constraint)
    accept_all(constraint, "</think>")
    assert texts(constraint) == {b"y", b" ", b"\n"}


def test_a_thought_does_not_end_within_a_token_that_begins_the_answer():
    begins = [token for token in range(65536) if WORLD.token_bytes(token).startswith(b">")]
    crossing = [token for token in begins if WORLD.token_bytes(token)[1:].strip(b" \n")]
    assert crossing
    constraint = of_world(Grammar.choices(["yes"]), begun="<think")
    accept_all(constraint, "> so", WORLD)
    assert set(crossing) <= set(allowed_tokens(constraint.mask(), 65536))
    accept_all(constraint, "</think", WORLD)
    left = set(allowed_tokens(constraint.mask(), 65536))
    assert not left & set(crossing)
    assert WORLD.encode(">")[0] in left
    with pytest.raises(UsageError, match="does not follow"):
        constraint.accept(crossing[0])


# ------------------------------------------------------------------------------------------------------ grammars

SCHEMAS = schemas()


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_it_allows_is_valid(name):
    schema = SCHEMAS[name]
    for seed in range(3):
        said = walk(of_world(Grammar.json_schema(schema)), WORLD, 65536, random.Random(seed), most=200)
        if said is not None:  # a random text may not end
            jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(said))
            assert said == said.strip()


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1, max_size=5),
    st.randoms(),
)
def test_choices_are_all_that_is_said(choices, chooser):
    said = walk(of_bytes(Grammar.choices(choices)), BYTES, 257, chooser)
    assert said in choices


@pytest.mark.parametrize(
    ("source", "text"), [(r"^\d{2}$", "42"), (r"a/b\$", "a/b$"), (r"[é✿]", "✿"), ("x|y", "y"), (r"\\$", "\\")]
)
def test_expressions_match_all_of_a_text(source, text):
    constraint = of_bytes(Grammar.regex(source))
    accept_all(constraint, text)
    assert texts(constraint) == {b""}


@pytest.mark.parametrize(
    "source",
    ['start: "a" | b\nb: /[0-9]/', 'root ::= "a" | b\nb ::= [0-9]', 'start: %json {"enum": [5]} | "a"'],
)
def test_grammars_in_both_notations(source):
    assert b"a" in texts(of_bytes(Grammar.lark(source)))
    assert b"5" in texts(of_bytes(Grammar.lark(source)))
    assert b"b" not in texts(of_bytes(Grammar.lark(source)))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "json_schema is not JSON: Expecting property name"),
        ("[" * 100_000, "json_schema is not JSON: it is nested too deeply"),
        ([1], "must be a JSON object"),
        ("null", "must be a JSON object"),
        ({"const": float("nan")}, "is not JSON"),
        ({"const": "\ud800"}, "is not valid Unicode"),
        (False, "nothing satisfies it"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "nothing satisfies it: minimum"),
        ({"enum": []}, "nothing satisfies it"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "nothing satisfies it"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "nothing satisfies it"),
        ({"type": "number", "multipleOf": 0.1}, "programs differ on what is a multiple of 0.1"),
        ({"type": "object", "minProperties": 2}, "minProperties is only supported up to one more"),
        ({"enum": ["a\x01"]}, "it demands control characters"),
        ({"not": {}}, 'it uses "not" in a way that is not supported'),
        ({"type": "array", "uniqueItems": True}, 'it uses "uniqueItems", which is not supported'),
        ({"$ref": "https://example.org/x"}, "refers to https://example.org/x"),
        ({"$ref": "#/$defs/missing"}, "cannot be used"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "use anyOf"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "thing"}, "Invalid type: thing"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "requires itself"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "requires itself"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "requires itself"),
    ],
)  # fmt: skip
def test_schemas_that_cannot_be_used_are_one_sentence(schema, reason):
    with pytest.raises(UsageError) as caught:
        Grammar.json_schema(schema)
    assert reason in str(caught.value)
    assert caught.value.field == "json_schema"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "source", "field"),
    [
        (Grammar.regex, "(", "regex"),
        (Grammar.regex, "a(?=b)", "regex"),
        (Grammar.lark, "start: nothing", "grammar"),
        (Grammar.lark, "", "grammar"),
        (Grammar.lark, "start: /[/", "grammar"),
        (Grammar.lark, 'root ::= "a" nothing', "grammar"),
        (Grammar.choices, [], "choice"),
        (Grammar.choices, ["a", ""], "choice"),
        (Grammar.choices, ["\ud800"], "choice"),
        (Grammar.regex, "a" * 4_000_001, "regex"),
    ],
)
def test_other_sources_that_cannot_be_used(make, source, field):
    with pytest.raises(UsageError) as caught:
        make(source)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_recursion_that_can_end_is_allowed():
    may_be_empty = {"type": "array", "items": {"$ref": "#"}}
    may_lack_it = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    for schema in (SCHEMAS["linked list"], may_be_empty, may_lack_it):
        assert texts(of_bytes(Grammar.json_schema(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "password"},
        {"$schema": "https://example.org/mine", "type": "null"},
        {"uniqueItems": False},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"type": "string", "uniqueItems": True},
        {"dependencies": {}},
        {
            "properties": {
                "a": {"anyOf": [{"type": "string", "format": "int32"}, {"items": [{"uniqueItems": False}]}]}
            }
        },
        {"$defs": {"a": {"$anchor": "q", "type": "null"}}, "properties": {"b": {"$ref": "#/$defs/a"}}},
    ],
)
def test_remarks_that_mean_nothing_are_no_hindrance(schema):
    kept = json.dumps(schema)
    Grammar.json_schema(schema)
    assert json.dumps(schema) == kept


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_what_it_allows_is_valid_under_any_schema(first):
    valid = 0
    for seed in range(first, first + 100):
        chooser = random.Random(seed)
        schema = random_schema(chooser)
        try:
            constraint = of_bytes(Grammar.json_schema(schema))
        except UsageError:  # it is not supported, or allows nothing
            continue
        said = walk(constraint, BYTES, 257, chooser, most=150)
        if said is not None:
            jsonschema.Draft202012Validator(schema).validate(json.loads(said))
            valid += 1
    assert valid > 40


@pytest.mark.parametrize(
    ("schema", "text", "is_allowed"),
    [
        ({"exclusiveMinimum": 3, "maximum": 3.5}, "3", False),
        ({"exclusiveMinimum": 3, "maximum": 3.5}, "3.25", True),
        ({"minimum": -1.5, "exclusiveMaximum": -1.0}, "-1", False),
        ({"minimum": 3, "exclusiveMinimum": True}, "3", False),
        ({"minimum": 3, "exclusiveMinimum": False}, "3", True),
        ({"minimum": 5, "exclusiveMinimum": 3}, "4", False),
        ({"multipleOf": 0.25}, "1.75", True),
        ({"multipleOf": 0.25}, "1.8", False),
    ],
)
def test_bounds_and_steps_of_numbers(schema, text, is_allowed):
    constraint = of_bytes(Grammar.json_schema({"type": "number", **schema}))
    try:
        accept_all(constraint, text)
    except UsageError:
        assert not is_allowed
    else:
        assert (b"" in texts(constraint)) is is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("2024-02-29", True), ("2023-02-29", False), ("1900-02-29", False), ("2000-02-29", True),
        ("0000-01-01", False), ("0001-12-31", True), ("2023-04-31", False), ("9999-11-30", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["date", "date-time"])
def test_dates_are_days_of_the_calendar(kind, text, is_allowed):
    constraint = of_bytes(Grammar.json_schema({"type": "string", "format": kind}))
    text = f'"{text}"' if kind == "date" else f'"{text}T23:59:59Z"'
    said = ""
    for character in text:
        if character.encode() not in texts(constraint):
            break
        accept_all(constraint, character)
        said += character
    assert (said == text and constraint.is_complete) is is_allowed


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "$ref", "properties", "required", "items", "anyOf", "allOf", "minItems", "enum", "a"]),
        inner, max_size=4),
))  # fmt: skip
def test_any_json_is_a_schema_or_one_sentence(value):
    try:
        grammar = Grammar.json_schema(json.dumps(value))
    except UsageError:
        return
    assert not grammar.matcher(vocabulary(BYTES, 257, (0,)).library).is_error()


def test_the_name_of_a_property_is_written_in_one_way():
    schema = {
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
        "type": "object",
    }
    constraint = of_bytes(Grammar.json_schema(schema))
    with pytest.raises(UsageError):
        accept_all(constraint, r'{"\u0061": "x"')
    constraint = of_bytes(Grammar.json_schema(schema))
    accept_all(constraint, r'{"\b\n\"": "\t\\"}')
    assert constraint.is_complete


@pytest.mark.parametrize("pattern", [r'^[^"]*$', r"^[^\\]*$", r'^[^-"]*$', r"^[^\]\\]*$", r"^[^/\\\s]+$"])
def test_classes_without_quotation_marks_or_backslashes_exclude_them(pattern):
    start = of_bytes(Grammar.json_schema({"type": "string", "pattern": pattern}))
    for text in ['a"', "a\\", "a", "-", "]", "a[", "/"]:
        constraint = start.copy()
        try:
            accept_all(constraint, json.dumps(text))
            is_accepted = constraint.is_complete
        except UsageError:
            is_accepted = False
        assert is_accepted == (re.search(pattern, text) is not None), text
