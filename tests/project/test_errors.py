"""Messages name fields in braces, which every interface spells in its own way."""

from rwkv_cli.errors import UsageError, literal


def as_option(field, value):
    return f"--{field}" if value is None else f"--{field} {value}"


def test_fields_are_spelled_as_the_interface_does_it():
    error = UsageError("{device} is wrong: try {device=cpu}")
    assert error.field == "device"
    assert str(error) == 'device is wrong: try device="cpu"'
    assert error.worded(as_option) == "--device is wrong: try --device cpu"


def test_braces_of_a_text_from_elsewhere_stay():
    for text in ("{prompt}", "{prompt=x}", "{a b}", "{{prompt}}x", "{", "{}", "a {x} b {y}"):
        assert str(UsageError(literal(text))) == text
        assert UsageError(literal(text)).field is None
