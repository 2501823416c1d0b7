"""Prompt formats as Jinja templates, as Hugging Face folders and GGUF files bring them.

Such a template formats a whole list of messages, and says nothing of stops, of modes of thinking or of how an answer
begins. `from_source` finds these out by formatting a few words that no template contains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rwkv_cli.errors import UsageError
from rwkv_cli.text import jinja
from rwkv_cli.text.template import Template, Thinking

MOST_BYTES = 1 << 16
"""Of a template."""

_SYSTEM, _USER, _ANSWER, _NEXT = "Zsystem7", "Zuser7", "Zanswer7", "Znext7"

# The variables by which templates for RWKV-7, and those for other models, are told whether to think.
_MODES: Mapping[str, Mapping[str, object]] = {
    "off": {"enable_thinking": False, "rwkv_generation_prompt": "fake_think"},
    "on": {"enable_thinking": True, "rwkv_generation_prompt": "open_think"},
}

# What a World vocabulary calls its id 0 in the files of others. It has no text there: `begin` stands for it.
_END_OF_DOCUMENT = ("<|rwkv_tokenizer_end_of_text|>", "<|endoftext|>")

Message = Mapping[str, str]


@dataclass(frozen=True)
class JinjaTemplate(Template):
    """A prompt format that a Jinja template lays out; the other fields are what was found out about it."""

    jinja: str = ""  # the source
    end_of_text: str = ""  # the text of the token that ends a document, where the vocabulary has one

    def render(self, prompt: str, system: str | None = None, think: str | None = None) -> str:
        """See `Template`. Raises UsageError also for a template that fails, or takes too long."""
        self.check(system, think)
        before = [] if system is None else [{"role": "system", "content": system}]
        return self._laid_out([*before, {"role": "user", "content": prompt}], think or self.default_thinking)

    def continuation(self, prompt: str, think: str | None = None, *, after_document: bool = False) -> str:
        """See `Template`."""
        if after_document:
            return "\n\n" + self.render(prompt, None, think)
        self.check(None, think)
        messages = [*_exchange(), {"role": "user", "content": prompt}]
        return self._laid_out(messages, think or self.default_thinking).partition(_ANSWER)[2]

    def turn(self, prompt: str, *, after_system: bool = False, think: str | None = None) -> str:  # noqa: ARG002
        """See `Template`; a system prompt makes no difference."""
        return self.render(prompt, None, think)

    @property
    def is_chat(self) -> bool:
        """See `Template`."""
        return True

    def _laid_out(
        self, messages: list[Message], mode: str | None = None, *, answers_next: bool = True
    ) -> str:
        source = self.jinja
        if not self.end_of_text:
            for text in _END_OF_DOCUMENT:
                source = source.replace(text, "")
        variables = {
            "messages": messages,
            "add_generation_prompt": answers_next,
            "bos_token": self.end_of_text,
            "eos_token": self.end_of_text,
        }
        return jinja.render(source, variables | dict(_MODES.get(mode or "", {})))


def from_source(source: str, end_of_text: str = "", like: Template | None = None) -> JinjaTemplate:
    """The format of a Jinja template.

    `end_of_text` is the text of the token that ends a document, where the vocabulary has one. `like` is a format of the
    same model, whose sampling defaults are taken. Raises UsageError for a template that cannot be used.
    """
    bare = JinjaTemplate(
        "chat_template",
        "the chat template of the model's own files",
        begin=not end_of_text,
        clean=False,
        jinja=source,
        end_of_text=end_of_text,
        sampling=like.sampling if like else {},
    )
    user: Message = {"role": "user", "content": _USER}
    prompt = bare._laid_out([user])
    if _USER not in prompt:
        raise UsageError("the chat template cannot be used: the user's message does not appear in it")
    thinking, default = _modes(bare, user, prompt, like)
    stops = _stops(bare)
    return replace(
        bare,
        system=_around_system(bare, user),
        stop=stops,
        stop_tokens=stops,
        thinking=thinking,
        default_thinking=default,
    )


def read(path: Path) -> JinjaTemplate:
    """The format of a Jinja template in a file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES >> 10} kB: it is not a template")
        return replace(from_source(data.decode("utf-8-sig")), name=path.stem)
    except OSError as error:
        raise UsageError(
            f"cannot read the template {path}: {(error.strerror or str(error)).lower()}"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the template {path} is not valid UTF-8 text (byte {error.start})") from None


def _exchange() -> list[Message]:
    return [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]


def _modes(
    template: JinjaTemplate, user: Message, prompt: str, like: Template | None
) -> tuple[dict[str, Thinking], str | None]:
    """The modes of thinking, and the one that is meant where none is chosen; none if they make no difference."""
    prompts = {mode: template._laid_out([user], mode) for mode in _MODES}
    if prompts["on"] == prompts["off"]:
        return {}, None
    modes = {
        mode: Thinking(
            answer_prefix=text.rpartition(_USER)[2],
            sampling=like.thinking[mode].sampling if like and mode in like.thinking else {},
        )
        for mode, text in prompts.items()
    }
    return modes, next((mode for mode, text in prompts.items() if text == prompt), None)


def _around_system(template: JinjaTemplate, user: Message) -> str | None:
    """A sign that a system prompt has a place; None if it has none."""
    try:
        text = template._laid_out([{"role": "system", "content": _SYSTEM}, user])
    except UsageError:
        return None
    return "{system}" if _SYSTEM in text else None


def _stops(template: JinjaTemplate) -> tuple[str, ...]:
    """What ends an answer: what always follows it or, where nothing does, what begins the next turn."""
    messages = _exchange()
    try:
        closed = template._laid_out(messages, answers_next=False)
        followed = template._laid_out([*messages, {"role": "user", "content": _NEXT}], answers_next=False)
    except UsageError:
        return ()
    end = closed.partition(_ANSWER)[2].strip()
    turn = followed.partition(_ANSWER)[2].partition(_NEXT)[0].rstrip()
    return tuple(stop for stop in (end or turn,) if stop)
