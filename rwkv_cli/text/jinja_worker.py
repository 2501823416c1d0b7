"""Runs the chat templates of strangers: a process of its own, so that time and memory have hard limits.

It is started as a script, without the package. On standard input, every line is a JSON object with `source`, the text
of a template, and `variables`; the answer is a line with `text`, or with `error`, half a sentence. It ends with its
input. The names and filters are those that the templates of Hugging Face expect.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import signal
import sys
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARACTERS = 16_000_000  # of a rendered text
MOST_MEMORY = 1 << 30  # bytes, where the system can enforce it


class _Generation(Extension):
    """`{% generation %}` marks what a model says, for training; here it means nothing."""

    tags = {"generation"}  # as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(value: Any, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(format: str) -> str:
    return datetime.datetime.now().astimezone().strftime(format)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source)


def render(source: str, variables: dict[str, Any]) -> str:
    """The text. Raises what the template raises, and ValueError for a text that is too long."""
    pieces, length = [], 0
    for piece in _compiled(source).generate(**variables):
        length += len(piece)
        if length > MOST_CHARACTERS:
            raise ValueError(f"its text has more than {MOST_CHARACTERS:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _answer(line: bytes) -> dict[str, str]:
    request = json.loads(line)
    try:
        return {"text": render(request["source"], request["variables"])}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # a template may raise anything
        return {"error": " ".join(f"{error or type(error).__name__}".split())[:200]}


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


def main() -> None:
    """Answer line by line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asks
    _limit_memory()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(_answer(line)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
