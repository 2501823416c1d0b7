"""Chat templates in Jinja, as files bring them: what is found out about them, and what they cannot do to us."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rwkv_cli.errors import UsageError
from rwkv_cli.text import jinja
from rwkv_cli.text.chat_template import JinjaTemplate, from_source
from rwkv_cli.text.template_file import as_fields, template_from
from rwkv_cli.text.templates import get_template, open_template
from rwkv_cli.text.thinking import split

# In the manner of the templates that come with RWKV-7 in three packagings, written anew.
WORLD = """\
{{- '<|rwkv_tokenizer_end_of_text|>' -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ 'System: ' + message['content'] + '\n\n' }}
{%- elif message['role'] == 'user' -%}{{ 'User: ' + message['content'] + '\n\n' }}
{%- else -%}{{ 'Assistant: ' + message['content'] + '\n\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""
FLOWERS = """\
{%- set names = {'system': 'System', 'user': 'User', 'assistant': 'Bot'} -%}
{%- for message in messages -%}
{{- '' if loop.first else '\n' }}{{ names[message.role] }}✿{{ message.content | trim }}✿
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '\nBot✿' }}{{ '<think></think' if rwkv_generation_prompt == 'fake_think' else '<think' }}
{%- endif -%}
"""
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}
"""


def test_the_world_form() -> None:
    template = from_source(WORLD)
    assert (
        template.begin
    )  # the token that stands for the end of a document has no text in the World vocabulary
    assert template.render("Why?") == "User: Why?\n\nAssistant:"
    assert template.render("Why?", "Be kind.") == "System: Be kind.\n\nUser: Why?\n\nAssistant:"
    assert template.continuation("So?") == "\n\nUser: So?\n\nAssistant:"
    assert template.stop == ("\n\nUser:",)
    assert dict(template.thinking) == {}
    with pytest.raises(UsageError, match="the template chat_template has no thinking modes"):
        template.render("Why?", think="on")


def test_the_form_with_flowers() -> None:
    template, ours = from_source(FLOWERS, like=get_template("g1h")), get_template("g1h")
    for mode in (None, "on", "off"):
        assert template.render("Why?", "Be kind.", mode) == ours.render("Why?", "Be kind.", mode)
        assert template.continuation("So?", mode) == ours.continuation("So?", mode)
        assert template.sampling_for(mode) == ours.sampling_for(mode)
    assert (template.stop, template.stop_tokens) == (("✿",), ("✿",))
    assert template.default_thinking == "on"
    assert split(">Hm.</think>\nYes.", template) == ("Hm.", "Yes.")
    assert split(">\nYes.", template, "off") == ("", "Yes.")


def test_a_form_of_other_models() -> None:
    template = from_source(CHATML, end_of_text="<|im_end|>")
    assert not template.begin
    assert template.stop == ("<|im_end|>",)
    assert template.default_thinking == "on"
    assert template.render("Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render("Hi", think="off").endswith("<think>\n\n</think>\n\n")
    assert (
        template.continuation("Hi") == "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_text_of_a_user_means_nothing_to_the_template() -> None:
    text = "{{ 7 * 7 }} {% for %} Zanswer7 Zuser7 \\ \" '"
    assert from_source(WORLD).render(text) == f"User: {text}\n\nAssistant:"
    assert from_source(WORLD).continuation(text) == f"\n\nUser: {text}\n\nAssistant:"


def test_a_template_without_a_place_for_a_system_prompt() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + WORLD
    ignores = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
    for source in (refuses, ignores):
        with pytest.raises(UsageError, match="has no place for a system prompt"):
            from_source(source).render("Why?", "Be kind.")


def test_it_survives_json() -> None:
    template = from_source(FLOWERS, like=get_template("g1h"))
    again = template_from(json.loads(json.dumps(as_fields(template))))
    assert isinstance(again, JinjaTemplate)
    assert again == template


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "flowers.jinja"
    path.write_text(FLOWERS, encoding="utf-8")
    assert open_template(str(path)) == dataclasses.replace(from_source(FLOWERS), name="flowers")
    path.write_text("x" * 70_000)
    with pytest.raises(UsageError, match="larger than 64 kB"):
        open_template(str(path))
    with pytest.raises(UsageError, match=r"cannot read the template .*none\.jinja: no such file"):
        open_template(str(tmp_path / "none.jinja"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ missing.field }}", "'missing' is undefined"),
        ("{{ raise_exception('only\n\ntools') }}", "cannot be used: only tools"),
        ("nothing of the message", "the user's message does not appear in it"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.format.__globals__ }}", "does not appear in it"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ 'x' * 20000000 }}", "more than 16,000,000 characters"),
        ("{{ range(10000000) | list }}", "Range too big"),
    ],
)
def test_what_a_template_cannot_do(source: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        from_source(source)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert from_source(WORLD).render("Why?") == "User: Why?\n\nAssistant:"  # the next one is served


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_time_and_memory_are_limited(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "SECONDS", 1.5)
    with pytest.raises(UsageError, match=r"takes (more than 2 s, or )?too much memory"):
        from_source(source)
    monkeypatch.setattr(jinja, "SECONDS", 200.0)  # on a busy machine
    assert from_source(WORLD).render("Why?") == "User: Why?\n\nAssistant:"
