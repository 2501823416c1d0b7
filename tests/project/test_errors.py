"""Messages name fields in braces, which every interface spells in its own way."""

from rwkv_cli.errors import MOST_CHARACTERS, UsageError, literal, shortened


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


def test_a_message_is_cut_in_its_middle():
    said = f"the name is {'A' * 50_000}: choose {{device=cpu}}"
    shown = UsageError(said).worded(as_option)
    assert len(shown) == MOST_CHARACTERS
    assert shown.startswith("the name is AAAA")
    assert shown.endswith("AAAA: choose --device cpu")
    assert shown.count(" […] ") == 1
    assert str(UsageError(said)).endswith('choose device="cpu"')


def test_a_message_that_is_no_longer_than_it_may_be_is_whole():
    assert shortened("a" * MOST_CHARACTERS) == "a" * MOST_CHARACTERS
    assert len(shortened("a" * (MOST_CHARACTERS + 1))) == MOST_CHARACTERS
