"""The logic of JSON Schemas that is rewritten: what is accepted is valid, and of common forms all that is valid."""

import contextlib
import itertools
import json
import random
import time

import jsonschema
import pytest
from helpers.actor import ByteTokenizer
from helpers.conditional_schemas import REALISTIC
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cli.engine.constraint import allowed_tokens
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.constraints.guided import following
from rwkv_cli.engine.constraints.logic import rewritten
from rwkv_cli.engine.constraints.schema_sets import SchemaSets, but_these
from rwkv_cli.engine.constraints.vocabulary import vocabulary
from rwkv_cli.errors import UsageError

BYTES = ByteTokenizer()
SCALARS = [None, True, False, 0, 1, 2, 5, 7.5, -1, "", "a", "b", "ab", "abc", "x", "é"]
OBJECTS = [
    dict(zip(names, values, strict=True))
    for names in ((), ("k",), ("a",), ("b",), ("k", "a"), ("k", "b"), ("a", "b"), ("k", "a", "b"))
    for values in itertools.product(["a", "b", "x", 1, 5], repeat=len(names))
]
ARRAYS = [list(items) for n in range(4) for items in itertools.product(["a", "b", 1], repeat=n)]
INSTANCES = [*SCALARS, *OBJECTS, *ARRAYS]
KIND = {
    "type": "object",
    "properties": {"k": {"enum": ["a", "b", "x"]}, "a": {"type": "string"}, "b": {"type": "integer"}},
}


def is_valid(schema, value):
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return kind(schema).is_valid(value)


def accepts(start, value):
    """Whether a constraint accepts a value as it writes it."""
    constraint = start.copy()
    for token in BYTES.encode(json.dumps(value, ensure_ascii=False)):
        try:
            constraint.accept(token)
        except UsageError:
            return False
    return bool(constraint.is_complete or 0 in allowed_tokens(constraint.mask(), 257))


def accepts_in_some_order(start, value):
    """An object has the properties that are asked for first, in their order."""
    if not isinstance(value, dict):
        return accepts(start, value)
    return any(accepts(start, dict(order)) for order in itertools.permutations(value.items()))


def constraint_of(schema):
    return following(Grammar.json_schema(schema), vocabulary(BYTES, 257, (0,)))


# --- what is accepted is valid ----------------------------------------------------------------------------------------

scalars = st.sampled_from([
    {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "null"}, {"type": "boolean"},
    {"type": ["string", "integer"]}, {"const": "a"}, {"const": 1}, {"enum": ["a", "b"]}, {"enum": ["a", 1, None]},
    {"enum": ["", "ab", "abc"]}, {"type": "string", "minLength": 2}, {"type": "string", "maxLength": 1},
    {"type": "integer", "minimum": 2}, {"type": "number", "exclusiveMaximum": 5}, {"type": "string", "pattern": "^a"},
    {"minimum": 1}, {"maxLength": 2}, {}, True,
])  # fmt: skip
references = st.sampled_from([{"$ref": "#/$defs/d"}, {"$ref": "#/$defs/e"}])
names = st.sampled_from(["k", "a", "b"])


def extended(inner):
    objects = st.fixed_dictionaries(
        {"properties": st.dictionaries(names, inner, max_size=2)},
        optional={
            "type": st.just("object"),
            "required": st.lists(names, max_size=2, unique=True),
            "additionalProperties": st.sampled_from([False, {"type": "integer"}]),
            "dependentRequired": st.dictionaries(names, st.lists(names, max_size=1), max_size=1),
            "dependentSchemas": st.dictionaries(names, inner, max_size=1),
        },
    )
    conditions = st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner})
    parts = st.lists(inner, min_size=1, max_size=3)
    logic = st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"oneOf": parts}),
        st.fixed_dictionaries({"anyOf": parts}),
        st.fixed_dictionaries({"allOf": st.lists(conditions | inner, min_size=1, max_size=3)}),
        conditions,
    )
    both = st.builds(lambda one, other: {**one, **other}, objects, logic)
    arrays = st.fixed_dictionaries(
        {"type": st.just("array"), "items": inner},
        optional={"uniqueItems": st.just(True), "minItems": st.integers(0, 2), "maxItems": st.integers(1, 3)},
    )
    return st.one_of(objects, logic, both, arrays)


SCHEMAS = st.builds(
    lambda schema, one, other: (
        {**schema, "$defs": {"d": one, "e": other}} if isinstance(schema, dict) else schema
    ),
    st.recursive(scalars | references, extended, max_leaves=8),
    st.recursive(scalars, extended, max_leaves=4),
    scalars,
)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS)
def test_what_is_accepted_is_valid(schema):
    try:
        constraint = constraint_of(schema)
    except UsageError:
        return
    validator = jsonschema.Draft202012Validator(schema)
    for value in INSTANCES:
        if not validator.is_valid(value):
            assert not accepts(constraint, value), value


@settings(max_examples=200, deadline=None)
@given(SCHEMAS)
def test_negation_and_disjointness_are_certain(schema):
    sets = SchemaSets(schema)
    validator = jsonschema.Draft202012Validator(schema)
    valid = [value for value in INSTANCES if validator.is_valid(value)]
    for part in sets.negated(schema):
        other = jsonschema.Draft202012Validator(
            {**part, "$defs": schema["$defs"]} if isinstance(schema, dict) else part
        )
        assert not any(map(other.is_valid, valid)), part
    for part in (
        {"type": "string"},
        {"required": ["a"]},
        {"properties": {"k": {"const": "a"}}, "required": ["k"]},
    ):
        if sets.are_disjoint(schema, part):
            assert not any(is_valid(part, value) for value in valid), part


KEYWORDS = (
    "not if then else oneOf allOf anyOf type enum properties required dependentRequired dependencies uniqueItems items "
    "minItems pattern $ref"
).split()
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYWORDS), inner, min_size=1, max_size=4)
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_schemas_that_are_none_are_errors(schema):
    """Whatever is written where a schema belongs ends in one sentence, or in a constraint."""
    with contextlib.suppress(UsageError):
        Grammar.json_schema(schema)


@given(st.lists(st.text(st.sampled_from('ab"\\é\n😀-]^'), max_size=4), min_size=1, max_size=5), st.randoms())
def test_all_texts_but_some(avoided, chooser):
    constraint = constraint_of({"type": "string", "pattern": but_these(avoided)})
    others = ["".join(chooser.choices('ab"\\é\n😀-]^', k=chooser.randint(0, 5))) for _ in range(5)]
    for text in (*avoided, *others):
        if "\n" not in text:  # whose escape is the library's
            assert accepts(constraint, text) == (text not in avoided), text


# --- what is valid is accepted ----------------------------------------------------------------------------------------

EXACT = {
    "not an enum": {"type": "string", "not": {"enum": ["a", "abc"]}},
    "not a const among others": {"enum": ["a", "b", 1, 5], "not": {"const": "b"}},
    "not a number": {"type": "integer", "not": {"enum": [1, 5]}},
    "not a type": {"type": ["string", "null", "integer"], "not": {"type": "null"}},
    "not with a property": {**KIND, "not": {"required": ["a"]}},
    "not with both": {**KIND, "not": {"required": ["a", "b"]}},
    "neither": {**KIND, "not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}},
    "not not": {"type": "string", "not": {"not": {"enum": ["a", "b"]}}},
    "one of two": {**KIND, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "one of overlapping types": {"oneOf": [{"type": ["string", "null"]}, {"type": ["string", "boolean"]}]},
    "one of overlapping enums": {"oneOf": [{"enum": ["a", "b", 1]}, {"enum": ["b", "x"]}]},
    "one of ranges": {"type": "integer", "oneOf": [{"minimum": 2}, {"maximum": 5}]},
    "one of a string and an enum": {"oneOf": [{"type": "string", "minLength": 2}, {"enum": ["a", "b"]}]},
    "told apart": {"oneOf": [
        {"type": "object", "properties": {"k": {"const": "a"}, "a": {"type": "string"}}, "required": ["k", "a"]},
        {"type": "object", "properties": {"k": {"enum": ["b", "x"]}, "b": {"type": "integer"}}, "required": ["k"]},
    ]},
    "if": {**KIND, "if": {"properties": {"k": {"const": "a"}}, "required": ["k"]}, "then": {"required": ["a"]}},
    "if without": {**KIND, "if": {"properties": {"k": {"const": "a"}}}, "then": {"required": ["a"]}},
    "if, else": {**KIND, "required": ["k"], "if": {"properties": {"k": {"enum": ["a", "b"]}}},
                 "then": {"required": ["a"]}, "else": {"properties": {"a": False}}},
    "several": {**KIND, "required": ["k"], "allOf": [
        {"if": {"properties": {"k": {"const": "a"}}}, "then": {"required": ["a"]}},
        {"if": {"properties": {"k": {"const": "b"}}}, "then": {"required": ["b"]},
         "else": {"properties": {"b": False}}},
    ]},
    "if there is": {**KIND, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "else if": {**KIND, "if": {"properties": {"k": {"const": "a"}}, "required": ["k"]}, "then": {"required": ["a"]},
                "else": {"if": {"properties": {"k": {"const": "b"}}, "required": ["k"]}, "then": {"required": ["b"]}}},
    "depends": {**KIND, "dependentRequired": {"a": ["b"]}},
    "depends on more": {**KIND, "dependentSchemas": {"a": {"properties": {"k": {"const": "x"}}, "required": ["k"]}}},
    "dependencies": {**KIND, "$schema": "http://json-schema.org/draft-07/schema#",
                     "dependencies": {"a": ["b"], "b": {"required": ["k"]}}},
    "distinct": {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True},
    "distinct, some": {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True, "minItems": 1,
                       "maxItems": 2},
}  # fmt: skip


@pytest.mark.parametrize("schema", EXACT.values(), ids=EXACT)
def test_of_common_forms_all_that_is_valid_is_accepted(schema):
    constraint = constraint_of(schema)
    found = {json.dumps(value): accepts_in_some_order(constraint, value) for value in INSTANCES}
    wanted = {json.dumps(value): is_valid(schema, value) for value in INSTANCES}
    assert not {text for text in found if found[text] != wanted[text]}
    assert True in found.values()
    assert False in found.values()


def test_many_conditions_on_one_property_stay_small():
    kinds = [f"kind{n}" for n in range(40)]
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": kinds}},
        "required": ["kind"],
        "allOf": [
            {"if": {"properties": {"kind": {"const": kind}}}, "then": {"required": [f"of {kind}"]}}
            for kind in kinds
        ],
    }
    constraint = constraint_of(schema)
    assert accepts(constraint, {"kind": "kind7", "of kind7": 1})
    assert not accepts(constraint, {"kind": "kind7", "of kind8": 1})


def test_many_distinct_items_come_in_the_order_of_the_schema():
    schema = {"type": "array", "items": {"enum": list("abcdef")}, "uniqueItems": True, "minItems": 1}
    constraint = constraint_of(schema)
    assert accepts(constraint, ["a", "c", "f"])
    assert not accepts(constraint, ["c", "c"])
    assert not accepts(constraint, [])


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "not": {"pattern": "a"}}, 'uses "not" in a way'),
        ({"if": {"pattern": "a"}, "then": {"minLength": 2}}, 'uses "if" in a way'),
        ({"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]}, "use anyOf"),
        ({"anyOf": [{"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, {"not": {"const": 5}}]}, "use anyOf"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, 'uses "uniqueItems"'),
        ({"type": "array", "items": {"enum": list(range(30))}, "uniqueItems": True}, 'uses "uniqueItems"'),
    ],
)
def test_what_has_no_opposite_is_one_sentence(schema, says):
    with pytest.raises(UsageError, match=says):
        Grammar.json_schema(schema)


def test_schemas_that_contain_themselves_many_times_take_no_time():
    node = {"$ref": "#/$defs/node"}
    parts = [{**node, "title": str(n)} for n in range(8)]
    schema = {
        "anyOf": [{"oneOf": [node, {"type": "null"}]}, {"not": node}],
        "$defs": {"node": {"anyOf": [*parts, {"type": "object", "properties": {"a": {"anyOf": parts}}}]}},
    }
    since = time.thread_time()
    with contextlib.suppress(UsageError):
        rewritten(schema)
    assert time.thread_time() - since < 5


def test_references_into_what_is_rewritten_are_left_alone():
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/not/properties/b"}},
        "not": {"properties": {"b": {}}},
    }
    assert rewritten(schema) is schema


# --- schemas as programs have them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REALISTIC)
def test_schemas_as_programs_have_them(name):
    schema, valid, invalid = REALISTIC[name]
    constraint = constraint_of(schema)
    for value in valid:
        assert is_valid(schema, value)
        assert accepts(constraint, value), value
    for value in invalid:
        assert not is_valid(schema, value)
        assert not accepts(constraint, value), value
    for seed in range(3):
        assert is_valid(schema, walked(constraint.copy(), random.Random(seed)))


def walked(constraint, chooser):
    """A random value that the constraint allows, which ends texts and lists soon."""
    said = b""
    while not constraint.is_complete:
        tokens = constraint.forced()
        if not tokens:
            allowed = [int(token) for token in allowed_tokens(constraint.mask(), 257)]
            if 0 in allowed:
                break
            ending = [token for token in allowed if BYTES.token_bytes(token) in b'"]}']
            tokens = [chooser.choice(ending if ending and chooser.random() < 0.5 else allowed)]
        for token in tokens:
            constraint.accept(token)
            said += BYTES.token_bytes(token)
        assert len(said) < 20_000
    return json.loads(said)
