"""Messages as turns, and turns as tokens."""

import pytest
from helpers.talker import talking
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.errors import UsageError
from rwkv_cli.server.chat.answer import _Trimmed
from rwkv_cli.server.chat.messages import Dialogue, Exchange, Message, Writer, dialogue
from rwkv_cli.text.chat_template import from_source
from rwkv_cli.text.templates import get_template

MODEL = talking()
JINJA = from_source(
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = [get_template(name) for name in ("dialogue", "g1", "g1h", "world", "instruct", "qa")] + [JINJA]


def talk(*texts, system=None):
    roles = ("user", "assistant")
    said = [Message(roles[n % 2], text) for n, text in enumerate(texts)]
    return [Message("system", system), *said] if system else said


def test_messages_become_turns():
    found = dialogue(talk("a", "b", "c", system="s"))
    assert found == Dialogue("s", [Exchange("a", "b"), Exchange("c")])
    assert found.begun is None
    assert dialogue(talk("a", "b")).begun == "b"


def test_texts_of_the_same_side_are_one():
    messages = [
        Message("user", "a"),
        Message("user", "b"),
        Message("assistant", "c"),
        Message("assistant", "d"),
    ]
    assert dialogue(messages) == Dialogue(None, [Exchange("a\nb", "c\nd")])


def test_a_system_prompt_without_a_place_goes_before_the_next_message():
    messages = [
        Message("system", "s"),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("system", "t"),
        Message("user", "c"),
    ]
    assert dialogue(messages, has_system=False) == Dialogue(None, [Exchange("s\na", "b"), Exchange("t\nc")])
    assert dialogue(messages) == Dialogue("s", [Exchange("a", "b"), Exchange("t\nc")])


def test_a_greeting_comes_first():
    messages = [Message("assistant", "hello"), Message("user", "a")]
    assert dialogue(messages) == Dialogue(None, [Exchange("", "hello"), Exchange("a")])


def test_there_must_be_messages():
    with pytest.raises(UsageError, match="at least one"):
        dialogue([])


def decoded(tokens):
    return MODEL.tokenizer.decode(tokens)


def test_the_text_is_that_of_the_template():
    writer = Writer(MODEL, get_template("g1"), "on")
    found = dialogue(talk("Hi", "Hello.", "Why?", system="Be nice"))
    assert decoded(writer.past(found)) == "System: Be nice\n\nUser: Hi\n\nAssistant: Hello."
    assert decoded(writer.prompt(found)) == "\n\nUser: Why?\n\nAssistant: <think"
    assert writer.past(found)[0] == MODEL.tokenizer.end_of_document
    begun = dialogue(talk("Hi", "Hel "))
    assert decoded(writer.prompt(begun)) == "User: Hi\n\nAssistant: Hel"
    assert writer.said(begun) == " Hel"
    after = Writer(MODEL, get_template("g1"), None, "document")
    assert decoded(after.prompt(dialogue(talk("Hi")))) == "\n\nUser: Hi\n\nAssistant:"


TEXT = st.text("ab \n", max_size=6)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
@given(texts=st.lists(TEXT, min_size=1, max_size=7), answer=TEXT)
def test_a_history_begins_with_its_earlier_ones(template, texts, answer):
    for mode in (None, *template.thinking):
        writer = Writer(MODEL, template, mode)
        texts = texts if len(texts) % 2 else texts[:-1]
        now = dialogue(talk(*texts))
        later = dialogue(talk(*texts, answer, "x"))
        assert writer.past(now) + writer.turn(now, answer) == writer.past(later)


@given(st.lists(st.text("ab \n\t", max_size=4)), st.booleans())
def test_white_space_around_an_answer_is_left_out(parts, trims_start):
    trimmed, whole = _Trimmed(trims_start), "".join(parts)
    found = "".join(map(trimmed.feed, parts))
    assert found == (whole.strip() if trims_start else whole.rstrip())
