"""Prompt formats, letter by letter."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.stop_strings import StopFilter
from rwkv_cli.text.template import Template, clean_text
from rwkv_cli.text.template_file import as_fields, template_from
from rwkv_cli.text.templates import (
    find_template,
    for_chat,
    from_json,
    get_template,
    open_template,
    templates,
    to_json,
)
from rwkv_cli.text.tokenizer import WorldTokenizer

GREETING = (
    "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it.\n\n"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raw", " Why?\r\n\n\nWhy "),
        ("story", " Why?\r\n\n\nWhy "),
        ("dialogue", "User: Why?\nWhy\n\nAssistant:"),
        ("world", GREETING + "User: Why?\nWhy\n\nAssistant:"),
        ("g1", "User: Why?\nWhy\n\nAssistant:"),
        ("qa", "Question: Why?\nWhy\n\nAnswer:"),
        ("instruct", "Instruction: Why?\nWhy\n\nResponse:"),
    ],
)
def test_one_turn(name: str, expected: str) -> None:
    assert get_template(name).render(" Why?\r\n\n\nWhy ") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("world", "System: Be\nkind.\n\n" + GREETING + "User: Why?\n\nAssistant:"),
        ("g1", "System: Be\nkind.\n\nUser: Why?\n\nAssistant:"),
        ("instruct", "Instruction: Be\nkind.\n\nInput: Why?\n\nResponse:"),
    ],
)
def test_system_text(name: str, expected: str) -> None:
    assert get_template(name).render("Why?", system="Be\n\nkind.\n") == expected


@pytest.mark.parametrize("name", ["raw", "story", "dialogue", "qa"])
def test_system_text_where_there_is_no_place_for_it(name: str) -> None:
    with pytest.raises(UsageError, match=f"the template {name} has no place for a system prompt"):
        get_template(name).render("Why?", system="Be kind.")


def test_thinking() -> None:
    g1 = get_template("g1")
    assert g1.render("Why?") == "User: Why?\n\nAssistant:"
    assert g1.render("Why?", think="off") == "User: Why?\n\nAssistant: <think></think"
    assert g1.render("Why?", think="fast") == "User: Why?\n\nAssistant: <think>\n</think"
    assert g1.render("Why?", think="short") == "User: Why? (think a bit)\n\nAssistant: <think"
    assert g1.render("Why?", think="on") == "User: Why?\n\nAssistant: <think"
    assert g1.render("Why?", think="long") == "User: Why? (think a lot)\n\nAssistant: <think"
    with pytest.raises(UsageError, match="no thinking mode 'hard': choose one of off, fast, short, on, long"):
        g1.render("Why?", think="hard")
    with pytest.raises(UsageError, match="the template world has no thinking modes"):
        get_template("world").render("Why?", think="on")


def test_the_form_with_flowers() -> None:
    g1h = get_template("g1h")
    assert g1h.render("Why?\r\n\r\nNow?") == "User✿Why?\nNow?✿\nBot✿<think"
    assert g1h.render("Why?", "Be kind.", "off") == "System✿Be kind.✿\nUser✿Why?✿\nBot✿<think></think"
    assert g1h.continuation("So?", "off") == "✿\nUser✿So?✿\nBot✿<think></think"
    assert g1h.continuation("So?", "on", after_document=True) == "\nUser✿So?✿\nBot✿<think"
    assert (g1h.stop, g1h.stop_tokens, g1h.begin) == (("✿",), ("✿",), True)
    assert WorldTokenizer().encode("✿") == [10060]


def test_sampling_depends_on_thinking() -> None:
    """The publisher's: with a thought, penalties and a wider choice; without one, a narrow choice of 32 tokens."""
    thinking = {"temperature": 0.96, "top_p": 0.76, "top_k": 32, "presence_penalty": 1.0}
    thinking |= {"frequency_penalty": 0.1, "penalty_decay": 0.988}
    plain = {
        "temperature": 1.0,
        "top_p": 0.28,
        "top_k": 32,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    for name in ("g1", "g1h"):
        template = get_template(name)
        assert template.sampling_for("on") == thinking
        assert template.sampling_for("off") == plain
    assert get_template("g1").sampling_for() == plain
    assert get_template("g1h").sampling_for() == thinking
    world = {"temperature": 1.0, "top_p": 0.3, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    assert get_template("world").sampling_for() == world


def test_turns_make_up_a_conversation() -> None:
    g1 = get_template("g1")
    conversation = g1.render("One.", system="Short.") + " 1" + g1.continuation("Two.") + " 2"
    assert conversation == "System: Short.\n\nUser: One.\n\nAssistant: 1\n\nUser: Two.\n\nAssistant: 2"


@given(st.text(alphabet="{}prompt system0\\%"))
def test_braces_mean_nothing(text: str) -> None:
    assert get_template("raw").render(text) == text
    assert get_template("g1").render(text, system="{prompt}").startswith("System: {prompt}\n\nUser: ")
    assert clean_text(text) in get_template("qa").render(text)


@given(st.text(alphabet=" a\n\r\t\u3000") | st.text())
def test_cleaned_text_holds_no_blank_line(text: str) -> None:
    cleaned = clean_text(text)
    assert "\n\n" not in cleaned
    assert cleaned == cleaned.strip()
    assert "".join(cleaned.split()) == "".join(text.split())


def test_cleaning_keeps_indentation() -> None:
    assert clean_text("if x:\r\n\r\n  \t\n    y\n") == "if x:\n    y"


@given(st.sampled_from(sorted(templates())), st.text())
def test_every_template_is_complete(name: str, prompt: str) -> None:
    template = templates()[name]
    assert template.name == name
    assert template.description
    StopFilter(template.stop)
    fields = {field.name for field in dataclasses.fields(SamplingSettings)}
    assert set(template.sampling) <= fields
    SamplingSettings(**template.sampling)  # type: ignore[arg-type]
    assert not template.render(prompt).endswith(" ") or not template.clean


def test_published_stops_and_defaults() -> None:
    assert get_template("raw") == Template(
        "raw", templates()["raw"].description, clean=False, chat="dialogue"
    )
    assert get_template("world").stop == ("\n\n",)
    assert get_template("g1").stop == ("\n\nUser:",)
    assert get_template("story").begin
    assert get_template("story").sampling == {"temperature": 0.8, "top_p": 0.8}
    assert get_template("world").sampling["top_p"] == 0.3


def test_unknown_template() -> None:
    with pytest.raises(
        UsageError, match=r"unknown template 'wrld' \(did you mean world\?\): choose one of raw, story, "
    ):
        get_template("wrld")
    with pytest.raises(UsageError, match="unknown template 'xyzzy': choose one of raw, "):
        get_template("xyzzy")


@pytest.mark.parametrize(
    ("source", "vocab_size", "expected"),
    [
        ("RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth", 65536, "world"),
        ("fla-hub/rwkv7-191M-world", 65536, "world"),
        ("fla-hub/rwkv7-0.1B-g1/", 65536, "g1"),
        ("rwkv7-g1a-0.1b-20250728-ctx4096.pth", 65536, "g1"),
        (r"C:\models\rwkv7-g1g-1.5b-20260526-ctx8192.pth", 65536, "g1"),
        ("rwkv7-g1h-7.2b-20260710-ctx10240.pth", 65536, "g1h"),
        ("rwkv7-g1m-2.9b-20261231-ctx32768.pth", 65536, "g1h"),
        ("rwkv7-g2-2.9b-20270131-ctx32768.pth", 65536, "g1h"),
        ("rwkv7-g0b-13.3b-20251001-ctx8192.pth", 65536, "g1"),
        ("rwkv7_g1m_2.9b_20261231_ctx32768.pth", 65536, "g1h"),
        ("RWKV7-G1G-2.9B-20260526-CTX8192.PTH", 65536, "g1"),
        ("RWKV7-G1k-1.5B-20260930", 65536, "g1h"),
        ("rwkv7-2.9B-g1", 65536, "g1"),
        ("fla-hub/RWKV7-G1j-1.5B-20260831", 65536, "g1h"),
        ("rwkv7-g1k-7.2b-20260930-ctx25600-Q8_0.gguf", 65536, "g1h"),
        ("g1k-1.5b-int8.safetensors", 65536, "g1h"),
        ("rwkv7-g1k-1.5b-20260930-ctx25600.pth", 50304, "raw"),
        ("rwkv7-world-1.5b-int4-g128.gguf", 65536, "world"),
        ("rwkv7_world_1.5b.gguf", 65536, "world"),
        ("world-1.5b.gguf", 65536, "world"),
        ("underworld.pth", 65536, "raw"),
        ("/home/world/rwkv7-world/model.pth", 65536, "raw"),
        ("RWKV-x070-Pile-168M-20241120-ctx4096.pth", 50304, "raw"),
        ("my-world-model.pth", 8192, "raw"),
        ("gosling.pth", 8192, "story"),
        ("/models/gosling-q4.rwkv", 8192, "story"),
        ("", 65536, "raw"),
        ("RWKV7-1.5B-20260805", 65536, "g1h"),
        ("RWKV/RWKV7-2.9B-20250519", 65536, "g1"),
        ("RWKV-x070-Pile-421M-20241127-ctx4096.pth", 65536, "raw"),
        ("rwkv-6-3b-20260805", 65536, "raw"),
    ],
)
def test_template_by_file_name(source: str, vocab_size: int, expected: str) -> None:
    assert find_template(source, vocab_size) == expected


def test_models_of_documents_have_a_template_for_conversations() -> None:
    for name, template in templates().items():
        chat = for_chat(template)
        assert chat.answer, name
        assert chat.turn_end
        assert chat.stop
        assert for_chat(chat) == chat
    assert for_chat(templates()["story"]).name == "dialogue"
    assert for_chat(templates()["g1"]).name == "g1"


# ------------------------------------------------------------------------------------------- files of the user's own

OWN = """\
# A robot.
description = "a robot"
begin = true
opening = "Robot: Hello.\\n\\n"
system = "Order: {system}\\n\\n"
user = "Human: {prompt}\\n\\n"
answer = "Robot:"
turn_end = "\\n\\n"
stop = ["\\n\\n", "\\nHuman:"]

[sampling]
temperature = 0.5
top_k = 7

[thinking.deep]
user_suffix = " (deep)"
answer_prefix = " <think"
"""


def own(folder: Path, text: str, name: str = "robot.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_template_of_the_users_own(tmp_path: Path) -> None:
    template = open_template(own(tmp_path, OWN))
    assert template.name == "robot"
    assert template.begin
    assert template.clean
    assert template.render("Hi", "Obey.", "deep") == (
        "Order: Obey.\n\nRobot: Hello.\n\nHuman: Hi (deep)\n\nRobot: <think"
    )
    assert template.stop == ("\n\n", "\nHuman:")
    assert template.sampling == {"temperature": 0.5, "top_k": 7}


def test_a_template_may_be_made_of_another(tmp_path: Path) -> None:
    template = open_template(own(tmp_path, 'name = "short"\nbase = "g1"\n[sampling]\ntop_p = 0.1\n'))
    assert template == dataclasses.replace(
        templates()["g1"], name="short", sampling={**templates()["g1"].sampling, "top_p": 0.1}
    )


def test_a_template_is_known_by_its_path_or_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, OWN)
    monkeypatch.chdir(tmp_path)
    assert open_template("robot.toml") == open_template("./robot.toml")
    assert open_template("g1") == templates()["g1"]
    with pytest.raises(UsageError, match="unknown template 'robot'"):
        open_template("robot")


@given(st.sampled_from(sorted(templates())))
def test_templates_survive_json(name: str) -> None:
    template = templates()[name]
    assert template_from(json.loads(json.dumps(as_fields(template)))) == template
    assert to_json(template) == name
    other = dataclasses.replace(template, stop=("x",))
    assert isinstance(to_json(other), dict)
    assert from_json(json.loads(json.dumps(to_json(other)))) == other


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder for settings, as read by `templates`."""
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path))
    templates.cache_clear()
    yield tmp_path
    templates.cache_clear()


def test_a_file_of_templates_corrects_ours_and_adds_to_them(own_folder: Path) -> None:
    text = '[g1h]\nbase = "g1h"\nanswer = "Bot:"\n\n[g2]\nbase = "g1h"\nuser = "U✿{prompt}✿\\n"\n'
    own(own_folder, text, "templates.toml")
    assert get_template("g1h").render("Why?") == "User✿Why?✿\nBot:<think"
    assert get_template("g2").render("Why?") == "U✿Why?✿\nBot:<think"
    assert isinstance(
        to_json(get_template("g1h")), dict
    )  # a file takes it along: elsewhere the name means ours
    assert to_json(get_template("world")) == "world"


def test_a_wrong_file_of_templates_is_named(own_folder: Path) -> None:
    own(own_folder, "[g2]\nanswer = 5\n", "templates.toml")
    with pytest.raises(UsageError, match=r"templates\.toml, line 2: answer must be a text"):
        get_template("g1")
    own(own_folder, "g2 = 5\n", "templates.toml")
    with pytest.raises(UsageError, match=r"templates\.toml: g2 must be a table, \[g2\]"):
        get_template("g1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("answer = 5", "line 1: answer must be a text"),
        ('answer = "A"\n\nanswr = "B"', "line 3: answr is not a key of a template (did you mean answer?)"),
        ('# x\nuser = "no place"', "line 2: user must contain {prompt}, where the text goes"),
        ('system = "no place"', "line 1: system must contain {system}"),
        ("stop = 'x'", "line 1: stop must be a list of texts"),
        ("stop = ['a', 5]", "line 1: stop must be a text"),
        ("stop = ['']", "line 1: stop contains an empty text"),
        ("begin = 'yes'", "line 1: begin must be true or false"),
        ("sampling = 5", "line 1: sampling must be a table"),
        ("[sampling]\n\ntop_p = 5", "line 3: sampling.top_p is 5: it must be between 0 and 1"),
        ("[sampling]\ntop_p = 'x'", "line 2: sampling.top_p must be a number"),
        ("[sampling]\ntop_p = nan", "line 2: sampling.top_p is nan"),
        ("[sampling]\nseed = 5", "line 2: sampling.seed is not a key"),
        ("[thinking]\non = 5", "line 2: thinking.on must be a table"),
        ("[thinking.on]\nprefix = ''", "thinking.on.prefix is not a key of a template"),
        ("[thinking.on]\nanswer_prefix = 5", "line 2: thinking.on.answer_prefix must be a text"),
        ("[thinking.on]\nsampling = { top_p = 5 }", "thinking.on.sampling.top_p is 5"),
        (
            "default_thinking = 'on'",
            "line 1: default_thinking must be one of its thinking modes: there are none",
        ),
        ("jinja = 'x'", "line 1: jinja is not a key of a template"),
        ("base = 'nothing'", "line 1: base must be one of the templates raw, story"),
        ("answer = ", "is not valid TOML: invalid value (at line 1, the last)"),
        ("answer = 'a'\nanswer = 'b'", "is not valid TOML: cannot overwrite a value"),
        ("x = " + "[" * 5000, "is n"),
        ("sampling.top_k = " + "9" * 5000, "has a number of too many digits"),
        ("sampling.top_k = " + "9" * 4000, "line 1: sampling.top_k is too large"),
        ("sampling.top_k = 0x" + "f" * 5000, "line 1: sampling.top_k is too large"),
        ("sampling.temperature = 1e999", "sampling.temperature is inf"),
        ("name = 0x" + "f" * 5000, "name must be a text"),
        ("stop = [0x" + "f" * 5000 + "]", "stop must be a text"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = own(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        open_template(path)
    assert said in str(raised.value)
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_templates(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the template .*missing\.toml: no such file"):
        open_template(str(tmp_path / "missing.toml"))
    with pytest.raises(UsageError, match="is a directory"):
        open_template(str(tmp_path) + "/")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid UTF-8"):
        open_template(str(tmp_path / "binary.toml"))
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(UsageError, match="more than 1 MB"):
        open_template(str(tmp_path / "large.toml"))
