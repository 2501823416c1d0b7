"""Prompt formats and stop rules, as data.

A template formats a conversation: an optional system prompt, an opening exchange, then turns of `user` and
`answer` joined by `turn_end`. Placeholders are replaced literally, so braces in a user's text mean nothing.
The formats are those of the model cards of RWKV-7 World and RWKV-7 G1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rwkv_cli.errors import UsageError
from rwkv_cli.text import generations

# Fewer rows than this cannot hold the World vocabulary, which the chat formats are made for.
_WORLD_VOCAB_SIZE = 65530


@dataclass(frozen=True)
class Thinking:
    """How to ask for more or less thought before the answer."""

    user_suffix: str  # put after the user's text
    answer_prefix: str  # begins the answer; the model continues it


@dataclass(frozen=True)
class Template:
    """One prompt format."""

    name: str
    description: str
    begin: bool = False  # the sequence starts with the end-of-document token
    opening: str = ""  # an exchange before the first turn, after the system prompt
    system: str | None = None  # around {system}; None if the format does not support one
    user: str = "{prompt}"  # around {prompt}, the user's text
    user_after_system: str | None = None  # the same after a system prompt, if it differs there
    answer: str = ""  # what the model's answer follows
    turn_end: str = ""  # between an answer and the next turn
    thinking: Mapping[str, Thinking] = field(default_factory=dict)  # by mode
    clean: bool = True  # tidy system and user texts, see `clean_text`
    stop: tuple[str, ...] = ()  # the answer ends before any of these, besides the end of the document
    sampling: Mapping[str, float] = field(default_factory=dict)  # defaults, by the names in SamplingSettings
    chat: str | None = None  # the format that a conversation uses instead; None for this one

    def render(self, prompt: str, system: str | None = None, think: str | None = None) -> str:
        """The text before the first answer.

        think is a mode of `thinking`; None adds nothing and starts no thought. Raises UsageError for a
        system prompt or a mode that the format does not support.
        """
        text = "" if system is None else self._system_text(system)
        return text + self.opening + self.turn(prompt, after_system=system is not None, think=think)

    def turn(self, prompt: str, *, after_system: bool = False, think: str | None = None) -> str:
        """The text of one turn up to the answer; after an answer, `turn_end` goes before the next turn."""
        thinking = Thinking("", "") if think is None else self._thinking(think)
        around = self.user
        if after_system and self.user_after_system is not None:
            around = self.user_after_system
        prompt = self._cleaned(prompt) + thinking.user_suffix
        return around.replace("{prompt}", prompt) + self.answer + thinking.answer_prefix

    def check(self, system: str | None, think: str | None) -> None:
        """Raise UsageError for a system prompt or a thinking mode that the format does not support."""
        if system is not None and self.system is None:
            raise UsageError(f"the template {self.name} has no place for a system prompt")
        if think is not None:
            self._thinking(think)

    def _system_text(self, system: str) -> str:
        self.check(system, None)
        assert self.system is not None
        return self.system.replace("{system}", self._cleaned(system))

    def _thinking(self, mode: str) -> Thinking:
        if mode in self.thinking:
            return self.thinking[mode]
        if self.thinking:
            raise UsageError(
                f"the template {self.name} has no thinking mode {mode!r}: choose one of {', '.join(self.thinking)}"
            )
        raise UsageError(f"the template {self.name} has no thinking modes")

    def _cleaned(self, text: str) -> str:
        return clean_text(text) if self.clean else text


def clean_text(text: str) -> str:
    """text as the models were trained on it: LF line ends, no blank lines, nothing blank at either end.

    A blank line separates the turns of a conversation, so a text must not contain one.
    """
    text = text.replace("\r\n", "\n")
    return re.sub(r"\n(?:[^\S\n]*\n)+", "\n", text).strip()


_CHAT_SAMPLING = {"temperature": 1.0, "top_p": 0.3, "presence_penalty": 0.5, "frequency_penalty": 0.5}

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template(
            name="raw",
            description="the prompt unchanged",
            clean=False,
            chat="dialogue",
        ),
        Template(
            name="story",
            description="the beginning of a document, to be continued; for gosling",
            begin=True,
            clean=False,
            sampling={"temperature": 0.8, "top_p": 0.8},
            chat="dialogue",
        ),
        Template(
            name="dialogue",
            description="a plain dialogue, for models of documents; with gosling: small talk and bookings",
            begin=True,
            user="User: {prompt}\n\n",
            answer="Assistant:",
            turn_end="\n\n",
            stop=("\n\n", "\nUser:"),
            sampling={
                "temperature": 0.7,
                "top_p": 0.6,
                "presence_penalty": 0.2,
                "frequency_penalty": 0.2,
            },
        ),
        Template(
            name="world",
            description="chat with RWKV-7 World models",
            opening=(
                "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in "
                "full details. Please feel free to ask any question and I will always answer it.\n\n"
            ),
            system="System: {system}\n\n",
            user="User: {prompt}\n\n",
            answer="Assistant:",
            turn_end="\n\n",
            stop=("\n\n",),
            sampling=_CHAT_SAMPLING,
        ),
        Template(
            name="g1",
            description="chat with RWKV-7 G1 models, which can think before they answer",
            begin=True,
            system="System: {system}\n\n",
            user="User: {prompt}\n\n",
            answer="Assistant:",
            turn_end="\n\n",
            thinking={
                "off": Thinking("", ""),
                "fast": Thinking("", " <think>\n</think"),
                "on": Thinking("", " <think"),
                "long": Thinking(" (think a lot)", " <think"),
            },
            # Answers contain blank lines: only the next turn ends one.
            stop=("\n\nUser:",),
            sampling={"temperature": 1.0, "top_p": 0.5, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        ),
        Template(
            name="g1h",
            description="chat with RWKV-7 models of G1h and later, which can think before they answer",
            begin=True,
            system="System✿{system}✿\n",
            user="User✿{prompt}✿\n",
            answer="Bot✿",
            turn_end="✿\n",
            thinking={"off": Thinking("", "<think></think"), "on": Thinking("", "<think")},
            stop=("✿",),
        ),
        Template(
            name="qa",
            description="one question, one answer",
            user="Question: {prompt}\n\n",
            answer="Answer:",
            turn_end="\n\n",
            stop=("\n\n",),
            sampling=_CHAT_SAMPLING,
        ),
        Template(
            name="instruct",
            description="an instruction; with a system prompt, that is the instruction, the prompt its input",
            system="Instruction: {system}\n\n",
            user="Instruction: {prompt}\n\n",
            user_after_system="Input: {prompt}\n\n",
            answer="Response:",
            turn_end="\n\n",
            stop=("\n\n",),
            sampling=_CHAT_SAMPLING,
        ),
    )
}


def chat_template(template: Template) -> Template:
    """The format of a conversation with a model whose own format this is."""
    return TEMPLATES[template.chat] if template.chat else template


def get_template(name: str) -> Template:
    """The template of that name. Raises UsageError with the nearest name and all of them."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    near = difflib.get_close_matches(name.lower(), TEMPLATES, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UsageError(f"unknown template {name!r}{hint}: choose one of {', '.join(TEMPLATES)}")


def find_template(source_name: str, vocab_size: int) -> str:
    """The template for a model, guessed from the name of its file or repository; "raw" if none fits."""
    name = re.split(r"[/\\]", source_name.rstrip("/\\"))[-1].lower()
    if name.startswith("gosling"):
        return "story"
    if vocab_size < _WORLD_VOCAB_SIZE:  # the chat formats are made for the World vocabulary
        return "raw"
    if generation := generations.generation_in(name):
        return generations.template_of(generation)
    return "world" if re.search(r"(?<![a-z0-9])world", name) else "raw"
