"""Sampling settings as data: what fields can have, checked without building anything."""

import math

import pytest

from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import (
    NUMERIC_FIELDS,
    SamplingSettings,
    check_number,
    parse_defaults,
)


def test_the_defaults_of_every_field_are_valid():
    settings = SamplingSettings()
    for name in NUMERIC_FIELDS:
        check_number(name, getattr(settings, name))
    assert parse_defaults({name: getattr(settings, name) for name in NUMERIC_FIELDS})


@pytest.mark.parametrize("name", NUMERIC_FIELDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_values_that_no_field_can_have(name, value):
    for build in (lambda: check_number(name, value), lambda: SamplingSettings(**{name: value})):
        with pytest.raises(UsageError, match=name) as raised:
            build()
        assert raised.value.field == name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"warmth": 1}, "'warmth' is not a sampling setting"),
        ({"banned": [1]}, "'banned' is not a sampling setting"),
        ({"top_p": "x"}, "top_p must be a number"),
        ({"top_p": True}, "top_p must be a number"),
        ({"top_p": None}, "top_p must be a number"),
        ({"top_p": 5}, "top_p is 5: it must be between 0 and 1"),
        ({"top_k": 1.5}, "top_k is 1.5: it must be a whole number"),
        ({"temperature": -1}, "temperature is -1: it must be at least 0"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
    ],
)
def test_defaults_that_cannot_be_right(values, said):
    with pytest.raises(UsageError, match=said):
        parse_defaults(values)
