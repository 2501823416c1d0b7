"""`rwkv generate --batch`: a file of prompts, answered as JSON lines."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import IO

from rwkv_cli.cli.commands.one_generation import Request
from rwkv_cli.cli.prompt import read_prompt
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.interrupts import Interrupts
from rwkv_cli.cli.terminal.progress import TerminalReporter, counting
from rwkv_cli.engine.constraints import requests
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.errors import UsageError
from rwkv_cli.model import load
from rwkv_cli.sampling_settings import combined
from rwkv_cli.sessions.batch import Answer, Prompt, answers
from rwkv_cli.sessions.prompt_cache import PromptCache


def run(request: Request, file: str, batch_size: int | None) -> int:
    """Answer the prompts of a file, in their order; gives the exit code. Raises UsageError for a file that is wrong."""
    prompts = read_prompts(file, request.system, request.think, request.constraint)
    with TerminalReporter(request.quiet) as reporter:
        model = load(request.model, request.device, threads=request.threads, reporter=reporter)
    found = answers(
        model,
        prompts,
        batch_size=batch_size,
        max_tokens=request.max_tokens,
        template=request.template,
        stop=request.stops,
        cache=PromptCache(model) if request.cache else None,
        **combined(request.settings.sampling, request.sampling),
    )
    out = sys.stdout  # a bar on stderr takes the name, and what is written to it
    with counting("answering", len(prompts), request.quiet or ui.is_terminal(out)) as progress:
        waiting: dict[int, Answer] = {}  # for those before them
        written = 0
        for answer in found:
            waiting[answer.index] = answer
            while written in waiting:
                _write(out, prompts[written], waiting.pop(written))
                written += 1
            if progress:
                progress(1)
    return 0


MOST_PROMPTS = 1_000_000
"""In one file."""


def read_prompts(
    file: str,
    system: str | None = None,
    think: str | None = None,
    constraint: Grammar | None = None,
) -> list[Prompt]:
    """The prompts of a file, "-" for standard input: one per line, or JSON lines in a .jsonl file.

    `system`, `think` and `constraint` are for those without one of their own. Raises UsageError, with
    the number of the line, and for a file that is too large or has more than MOST_PROMPTS.
    """
    is_json = file.lower().endswith(".jsonl")
    name = "standard input" if file in ("", "-") else file
    prompts = list[Prompt]()
    for number, line in enumerate(_lines(read_prompt(None, file)), 1):
        if not line.strip():
            continue
        if len(prompts) == MOST_PROMPTS:
            raise UsageError(f"{name} has more than {MOST_PROMPTS:,} prompts: split it into parts")
        where = f"{name}, line {number}"
        if is_json:
            prompt = _parsed(line, where)
            prompts.append(
                replace(
                    prompt,
                    system=system if prompt.system is None else prompt.system,
                    think=think if prompt.think is None else prompt.think,
                    constraint=prompt.constraint or constraint,
                )
            )
        else:
            prompts.append(Prompt(line.removesuffix("\r"), system, where, think, constraint=constraint))
    if not prompts:
        raise UsageError(f"there are no prompts in {name}")
    return prompts


def _lines(text: str) -> Iterator[str]:
    """The lines of a text, one at a time: there may be millions, and only a newline ends one."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _parsed(line: str, where: str) -> Prompt:
    """The prompt in a line of JSON."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f'{where}: it must be a JSON object, such as {{"prompt": "Once upon a time"}}')
    prompt, system, think = (fields.get(key) for key in ("prompt", "system", "think"))
    if not isinstance(prompt, str) or not prompt:
        raise UsageError(f'{where}: "prompt" must be a non-empty text')
    for key, value in (("system", system), ("think", think)):
        if not isinstance(value, str | None):
            raise UsageError(f'{where}: "{key}" must be a text')
    for text in (prompt, system or ""):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError(f"{where}: it contains half of a surrogate pair, which is not text")
    return Prompt(prompt, system, where, think, constraint=_constraint(fields, where))


def _constraint(fields: Mapping[str, object], where: str) -> Grammar | None:
    """What the answer of a line has to look like; lines that demand the same share it."""
    chosen = {name: fields[name] for name in requests.FIELDS if fields.get(name) is not None}
    try:
        return _grammar(json.dumps(chosen)) if chosen else None
    except UsageError as error:
        raise UsageError(f"{where}: {error.worded(_as_field)}") from None


@functools.lru_cache(maxsize=256)
def _grammar(fields: str) -> Grammar | None:
    return requests.grammar_of(json.loads(fields))


def _as_field(field: str, _: str | None) -> str:
    return f'"{field}"'


def _write(out: IO[str], prompt: Prompt, answer: Answer) -> None:
    """A whole line, even at Ctrl-C."""
    fields = {
        "index": answer.index,
        "prompt": prompt.text,
        "text": answer.text,
        **({"thought": answer.thought} if answer.thought else {}),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": answer.generated_tokens,
    }
    with Interrupts() as interrupts:
        interrupts.hold()
        out.write(ui.json_text(fields) + "\n")
        out.flush()
    if interrupts.asked:
        raise KeyboardInterrupt
