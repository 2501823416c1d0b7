"""What an answer has to look like: a JSON Schema, a regular expression, a grammar, or one of some texts.

`Grammar` is that as data, checked without a model. The library llguidance is imported only when one is made.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

from rwkv_cli.engine.constraint import Kind
from rwkv_cli.engine.constraints import schema
from rwkv_cli.engine.constraints.logic import OVERLAPPING
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.text.tool_calls.layout import ToolFormat, call_schema
from rwkv_cli.text.tool_calls.tools import Tool

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_CHARACTERS = 4_000_000
"""Of a source."""

_FIELDS: Mapping[Kind, str] = {
    "json_schema": "{json_schema}",
    "regex": "{regex}",
    "grammar": "{grammar}",
    "choice": "{choice}",
}


@dataclass(frozen=True)
class Grammar:
    """A description of the texts that an answer may be. Make one with `json_schema`, `regex`, `lark` or `choices`.

    Each of them raises UsageError, in one sentence, for what is malformed, not supported, or allows no text at all.
    """

    kind: Kind
    source: str  # the schema as JSON, the expression, the rules, or a JSON list of texts

    @classmethod
    def json_schema(cls, source: str | bool | Mapping[str, Any]) -> Grammar:
        """JSON that is valid under a JSON Schema, given as an object or as its text."""
        return cls("json_schema", schema.normalized(source))._checked()

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, source: str) -> Grammar:
        """A text that a regular expression matches from its beginning to its end."""
        return cls("regex", source)._checked()

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """A text of a context-free grammar: rules in the syntax of Lark, as llguidance has it, or GBNF of llama.cpp."""
        return cls("grammar", source)._checked()

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts."""
        if not texts or not all(texts):
            raise UsageError("{choice} must be texts that are not empty")
        return cls("choice", json.dumps(list(dict.fromkeys(texts)), ensure_ascii=False))._checked()

    @classmethod
    def tool_call(cls, form: ToolFormat, tools: Sequence[Tool]) -> Grammar:
        """A call of one of some tools, in a form that models write."""
        for tool in tools:
            cls.json_schema(call_schema(tool))  # whose errors tell what is wrong with it
        return cls.lark(form.grammar(tools, schema.for_llguidance))

    @classmethod
    def restored(cls, kind: object, source: object) -> Grammar:
        """One that was kept as its two fields. Raises ValueError for what is none.

        Whether it can be followed is seen when it is used: another version of llguidance may have written it.
        """
        if kind not in get_args(Kind) or not isinstance(source, str):
            raise ValueError("its constraint is of no known kind")
        if kind in ("json_schema", "choice"):
            value = json.loads(source)
            texts = value if kind == "choice" else []
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("its constraint is not a list of texts")
        return cls(cast("Kind", kind), source)

    def compiled(self, lead: str = "") -> str:
        """The input of llguidance; `lead` is a regular expression of what may stand before the text."""
        body = {"name": "body", **self._body()}
        if not lead:
            return json.dumps({"grammars": [body]})
        rules = f"start: LEAD @body\nLEAD: /{lead}/\n"
        return json.dumps({"grammars": [{"name": "main", "lark_grammar": rules}, body]})

    def _body(self) -> dict[str, object]:
        if self.kind == "json_schema":
            return {"json_schema": _followed(self.source)}
        if self.kind == "choice":
            texts = " | ".join(json.dumps(text) for text in json.loads(self.source))
            return {"lark_grammar": f"start: {texts}\n"}
        if self.kind == "regex":
            from llguidance import regex_to_lark

            return {"lark_grammar": f"start: /{regex_to_lark(_unanchored(self.source), 'dws')}/\n"}
        if "::=" in self.source:
            from llguidance.gbnf_to_lark import gbnf_to_lark

            return {"lark_grammar": gbnf_to_lark(self.source)}
        return {"lark_grammar": self.source}

    def _checked(self) -> Grammar:
        if len(self.source) > MOST_CHARACTERS:
            raise UsageError(f"{_FIELDS[self.kind]} has more than {MOST_CHARACTERS:,} characters")
        if any("\ud800" <= character <= "\udfff" for character in self.source):
            raise UsageError(f"{_FIELDS[self.kind]} is not valid Unicode")
        with self._reported():
            from llguidance import LLMatcher

            failed, messages = LLMatcher.validate_grammar_with_warnings(self.compiled())
        if failed:
            raise self.error(messages[0])
        return self

    def error(self, message: str) -> UsageError:
        """A message of llguidance as one sentence."""
        return UsageError(f"{_FIELDS[self.kind]} cannot be used: {literal(_reason(message))}")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Around calls of llguidance, whose panics are not even Exceptions."""
        try:
            yield
        except (UsageError, MemoryError):
            raise
        except BaseException as error:
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise self.error(str(error)) from error
            raise

    def matcher(self, tokenizer: LLTokenizer, lead: str = "") -> LLMatcher:
        """What follows the text token by token. Raises UsageError if no text is possible."""
        with self._reported():
            from llguidance import LLMatcher

            matcher = LLMatcher(tokenizer, self.compiled(lead), log_level=0)
        if matcher.is_error():
            raise self.error(matcher.get_error())
        return matcher


def _unanchored(expression: str) -> str:
    """An expression without ^ and $ around it, which change nothing where all of the text has to match."""
    expression = expression.removeprefix("^")
    backslashes = len(expression) - 1 - len(expression[:-1].rstrip("\\")) if expression.endswith("$") else 1
    return expression if backslashes % 2 else expression[:-1]


@functools.lru_cache(maxsize=8)
def _followed(source: str) -> dict[str, Any]:
    """A schema as llguidance gets it. Not to be changed."""
    return schema.for_llguidance(json.loads(source))


_MISSING = re.compile(r"Resource '([^']{0,200})' is not present")
_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")


@functools.cache
def _reason(message: str) -> str:
    """What a message of llguidance says, in half a sentence."""
    if found := _KEYS.search(message):
        return f"it uses {found[1]}, which is not supported"
    if found := _MISSING.search(message):
        return f"it refers to {found[1]}, which is not in it; put it under $defs"
    if "oneOf constraints are not supported" in message:
        return OVERLAPPING
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if wrong := [line for line in lines if line.startswith("error: ")]:
        return wrong[0].removeprefix("error: ")
    first = lines[0] if lines else "the reason is unknown"
    first = first.removeprefix("Unsatisfiable schema: ")
    impossible = "nothing satisfies it: " if lines and first != lines[0] else ""
    return impossible + first.rstrip(".:")
