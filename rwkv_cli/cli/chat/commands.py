"""The slash commands of a chat, as a table: what they are called, what they take, what they do."""

from __future__ import annotations

import difflib
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from rwkv_cli import paths
from rwkv_cli.cli import completion
from rwkv_cli.cli.chat import forms
from rwkv_cli.cli.chat.loop import Chat, speeds
from rwkv_cli.cli.terminal.progress import TerminalReporter
from rwkv_cli.errors import UsageError
from rwkv_cli.files.atomic import replacing
from rwkv_cli.reporting import format_size, pluralize
from rwkv_cli.sampling_settings import SAMPLING_FIELDS, SamplingOverrides
from rwkv_cli.sessions import resume, state_store, transcript
from rwkv_cli.sessions.autosave import Choices
from rwkv_cli.sessions.conversation import Conversation


@dataclass(frozen=True)
class Command:
    """A slash command."""

    name: str
    arguments: str
    help: str
    run: Callable[[Chat, str], None]
    completions: Callable[[Chat], Iterable[str]] = lambda _: ()


def dispatch(chat: Chat, line: str) -> None:
    """Run a line that begins with a slash. Raises UsageError for an unknown command, with the nearest one."""
    name, _, argument = line[1:].partition(" ")
    name = _ALIASES.get(name.strip(), name)
    command = COMMANDS.get(name.strip())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
        hint = f"; did you mean /{near[0]}?" if near else ""
        raise UsageError(f"unknown command /{name[:40]}{hint} (/help lists them; // sends a slash)")
    if argument.strip() and not command.arguments:
        raise UsageError(f"/{name} takes no argument")
    command.run(chat, argument.strip())


def words(chat: Chat, line: str) -> Iterable[str]:
    """What may complete a line; see `chat.input.Words`."""
    if not line.startswith("/") or "\n" in line:
        return ()
    name, space, argument = line[1:].partition(" ")
    if not space:
        return [f"/{each}" for each in COMMANDS]
    if name == "set" and " " in argument:
        return _values(chat, argument.split(" ")[0])
    return COMMANDS[name].completions(chat) if name in COMMANDS else ()


# ------------------------------------------------------------------------------------------------ what they do


def _help(chat: Chat, _: str) -> None:
    usages = {f"/{each.name} {each.arguments}".strip(): each.help for each in COMMANDS.values()}
    chat.say_table(usages)
    keys = "Alt-Enter, or \\ at the end," if chat.reader.is_editor else "\\ at the end"
    tab = " Tab completes." if chat.reader.is_editor else ""
    chat.say_text(
        f'{keys} starts another line; """ encloses several lines.{tab} Ctrl-C stops an answer, Ctrl-D leaves. '
        "Begin with // to send a message that starts with a slash."
    )


def _save(chat: Chat, target: str) -> None:
    had_name = chat.session.path is not None
    if not (target or had_name):
        raise UsageError("the conversation has no name yet: /save NAME")
    path = chat.session.save(target or None)
    also = ", and after every answer from now on" if chat.session.path == path and not had_name else ""
    chat.view.say(f"saved {_shown(path)}{also}")


def _load(chat: Chat, target: str) -> None:
    if not target:
        raise UsageError("give a name or a file: /load NAME or /load FILE; /list shows the names")
    warning = chat.session.load(target, Choices())
    if warning:
        chat.view.say(warning)
    chat.greet()


def _list(chat: Chat, _: str) -> None:
    rows = {}
    for name in state_store.names():
        path = state_store.resolve(name)
        try:
            status = path.stat()
        except OSError:  # gone since
            continue
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
        here = ", this one" if name == chat.session.name else ""
        rows[name] = f"{when}, {format_size(status.st_size)}{here}"
    if rows:
        chat.say_table(rows)
    else:
        chat.view.say("nothing saved yet: /save NAME")


def _fork(chat: Chat, name: str) -> None:
    if not name:
        raise UsageError("give the branch a name: /fork NAME")
    before = chat.session.name
    path = chat.session.fork(name)
    kept = f"; {before} is unchanged" if before else ""
    chat.view.say(f"continuing in {state_store.name_of(path)}{kept}")


def _undo(chat: Chat, argument: str) -> None:
    if not argument and chat.session.restore():
        chat.view.say("restored the previous conversation")
    else:
        number = _number("/undo", argument or "1")
        with chat.rereading() as progress:
            chat.conversation.undo(number, progress)
        left = len(chat.conversation.turns)
        chat.view.say(f"undid {pluralize(number, 'turn')}; " + (f"{left:,} left" if left else "none left"))
    chat.keep()
    chat.show_last()


def _retry(chat: Chat, _: str) -> None:
    if chat.conversation.settings.greedy:
        chat.view.say("(temperature is 0: the answer will be the same)")
    chat.answer(lambda progress: chat.conversation.retry(progress))


def _edit(chat: Chat, text: str) -> None:
    if text:
        chat.answer(lambda progress: chat.conversation.edit(text, progress))
    else:
        chat.edit_last()


def _reset(chat: Chat, _: str) -> None:
    chat.session.reset(chat.conversation.system)
    chat.view.say("new conversation; /undo restores the previous one")


def _model(chat: Chat, name: str) -> None:
    if not name:
        chat.view.say(f"{chat.session.model.path}; to talk with another model: /model NAME")
        return
    before = chat.conversation
    device = before.model.backend.name
    with TerminalReporter() as reporter:  # on a GPU a model that does not fit may still run on the CPU
        model = resume.load_model(name, None, "auto" if device == "cuda" else device, None, reporter)
    with chat.rereading() as progress:
        chat.session.conversation = before.moved_to(model, progress)
    chat.keep()
    about = f"{model.path.stem} ({model.info.weight_type}, {model.backend.name})"
    turns = pluralize(len(before.turns), "turn")
    chat.view.say(f"{about}, template {chat.conversation.template.name}, has read {turns}, and continues")


def _system(chat: Chat, text: str) -> None:
    if not text:
        chat.view.say(chat.conversation.system or "no system prompt: set one with /system TEXT")
        return
    chat.session.reset(chat.toolbox.system(text) if chat.toolbox else text)
    chat.view.say("new conversation with this system prompt; /undo restores the previous one")


def _set(chat: Chat, argument: str) -> None:
    if not argument:
        chat.say_table(_settings(chat))
        return
    name, _, value = argument.partition(" ")
    key, value = name.replace("-", "_"), value.strip()
    if key not in _SETTINGS:
        near = difflib.get_close_matches(key, _SETTINGS, n=1)
        hint = f" (did you mean {near[0].replace('_', '-')}?)" if near else ""
        raise UsageError(f"unknown setting {name!r}{hint}: /set lists them")
    if not value:
        raise UsageError(
            f"give it a value: /set {name} {'|'.join(_values(chat, name)) or forms.WANTED.get(key, 'NUMBER')}"
        )
    if key in _SWITCHES:
        chat.switch(key, _choice(name, value, _SWITCHES[key]))
    elif key in forms.WANTED:
        chat.conversation.constraint = forms.parsed(key, value)
    else:
        _choose(chat.conversation, key, None if value == "default" else value)
    if chat.conversation.turns:
        chat.keep()
    chat.view.say(f"{name}: {_settings(chat)[key.replace('_', '-')]}")


def _tool(chat: Chat, result: str) -> None:
    if chat.toolbox is None:
        raise UsageError("no tools are offered: start with rwkv chat --tools FILE")
    if not result:
        raise UsageError("give the result of the call: /tool RESULT")
    message = chat.toolbox.form.answer(result)
    chat.answer(lambda progress: chat.conversation.ask(message, progress))


def _show(chat: Chat, _: str) -> None:
    conversation, session = chat.conversation, chat.session
    kept = ", kept as the last chat" if session.kept else ""
    rows = {
        "model": f"{conversation.model.path} ({conversation.model.backend.description})",
        "template": f"{conversation.template.name}: {conversation.template.description}",
        "name": session.name or f"none{kept} (/save NAME gives it one)",
        "turns": f"{len(conversation.turns):,}",
        "tokens": f"{conversation.snapshot.n_tokens:,} read",
        "state": f"{format_size(conversation.snapshot.state.nbytes)}, however long the conversation",
        "undo": f"{pluralize(len(conversation.snapshots), 'snapshot')}, {format_size(conversation.snapshots.nbytes)}",
    }
    if conversation.system:
        rows["system"] = conversation.system
    chat.say_table(rows | _settings(chat))


def _stats(chat: Chat, _: str) -> None:
    totals, rows = chat.totals, {}
    if last := chat.last_usage:
        rows["last answer"] = speeds(last)
    rows["since the start"] = (
        f"{pluralize(totals.answers, 'answer')}, {totals.generated_tokens:,} tokens generated, "
        f"{totals.prompt_tokens:,} read"
    )
    rows["conversation"] = (
        f"{pluralize(len(chat.conversation.turns), 'turn')}, {chat.conversation.snapshot.n_tokens:,} tokens"
    )
    chat.say_table(rows)


def _export(chat: Chat, target: str) -> None:
    formats = {".md": transcript.as_markdown, ".json": transcript.as_json}
    path = paths.user_path(_unquoted(target))
    make = formats.get(path.suffix.lower())
    if make is None:
        raise UsageError("give a file name that ends in .md or .json: /export talk.md")
    record = chat.conversation.record()
    text = make(record, chat.conversation.model.path.stem)
    with replacing(path, private=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    chat.view.say(f"wrote {path}: {pluralize(len(record.turns), 'turn')}")


def _quit(_: Chat, __: str) -> None:
    raise EOFError


# ---------------------------------------------------------------------------------------------------- settings

_SWITCHES: dict[str, tuple[str, ...]] = {
    "show_thinking": ("on", "off"),
    "markdown": ("on", "off"),
    "editing": ("emacs", "vi"),
}
_WHOLE = ("top_k", "seed", "max_tokens")
_SETTINGS: dict[str, type] = {
    **{
        name: int if name in _WHOLE else float
        for name in SAMPLING_FIELDS
        if name not in ("logit_bias", "banned")
    },
    "max_tokens": int,
    "think": str,
    **dict.fromkeys((*forms.WANTED, *_SWITCHES), str),
}


def _settings(chat: Chat) -> dict[str, str]:
    """All settings for people; those that were chosen are marked."""
    conversation = chat.conversation
    sampling = asdict(conversation.settings)
    rows = {}
    for name in _SETTINGS:
        if name in SAMPLING_FIELDS:
            value = sampling[name]
            text = "random" if value is None else f"{value:g}" if name != "seed" else str(value)
            text += " (set)" if name in conversation.chosen else ""
        elif name in _SWITCHES:
            text = chat.switched(name)
        elif name in forms.WANTED:
            text = forms.shown(conversation.constraint, name)
        elif name == "think":
            own = conversation.template.default_thinking or "default"
            text = conversation.think or (own if conversation.template.thinking else "not in this template")
        else:
            text = str(conversation.max_tokens)
        rows[name.replace("_", "-")] = text
    return rows


def _values(chat: Chat, name: str) -> Sequence[str]:
    if name == "json-object":
        return ("on", "off")
    if name == "think":
        return (*chat.conversation.template.thinking, "default")
    return _SWITCHES.get(name.replace("-", "_"), ())


def _choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}: it must be one of {', '.join(choices)}")
    return value


def _choose(conversation: Conversation, key: str, value: str | None) -> None:
    """Change a setting of the conversation to what a user wrote; None is its default."""
    if key == "think":
        conversation.set_think(value)
        return
    number = None if value is None else _parsed(key.replace("_", "-"), value, _SETTINGS[key])
    if key == "max_tokens":
        conversation.set_max_tokens(None if number is None else int(number))
    else:
        conversation.choose(**cast("SamplingOverrides", {key: number}))


def _parsed(name: str, value: str, kind: type) -> float:
    try:
        return int(value) if kind is int else float(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} is {value!r}: it must be {wanted}, or default") from None


def _number(command: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{command} takes a number, not {text[:40]!r}") from None


def _unquoted(text: str) -> str:
    try:
        parts = shlex.split(text)
    except ValueError:
        return text
    return parts[0] if len(parts) == 1 else text


def _shown(path: Path) -> str:
    return state_store.name_of(path) if path.parent == state_store.folder() else str(path)


def _models(_: Chat) -> Iterable[str]:
    return completion.models("")


def _names(_: Chat) -> Iterable[str]:
    return state_store.names()


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("help", "", "list the commands", _help),
        Command(
            "save",
            "[NAME|FILE]",
            "save the conversation; with a name, after every answer",
            _save,
            _names,
        ),
        Command("load", "NAME|FILE", "continue another conversation, or a saved state", _load, _names),
        Command("list", "", "list saved conversations and states", _list),
        Command("fork", "NAME", "continue in a copy; the saved one is unchanged", _fork, _names),
        Command("undo", "[N]", "undo the last turn, or the last N", _undo),
        Command("retry", "", "generate another answer to the last message", _retry),
        Command("edit", "[TEXT]", "replace the last message and answer it", _edit),
        Command("reset", "", "start over (also /clear)", _reset),
        Command("model", "[NAME]", "continue with another model, or show this one", _model, _models),
        Command("system", "[TEXT]", "start over with a system prompt, or show it", _system),
        Command(
            "set",
            "[KEY VALUE]",
            "change a setting, or list all",
            _set,
            lambda _: [name.replace("_", "-") for name in _SETTINGS],
        ),
        Command("tool", "RESULT", "give the model the result of its call", _tool),
        Command("show", "", "show the model, the conversation and the settings", _show),
        Command("stats", "", "show tokens and speeds", _stats),
        Command("export", "FILE.md|FILE.json", "export the conversation as Markdown or JSON", _export),
        Command("quit", "", "leave (also /bye, /exit, exit alone, or Ctrl-D)", _quit),
    )
}
"""By name, in the order of the help."""

_ALIASES = {"?": "help", "clear": "reset", "bye": "quit", "exit": "quit"}  # as other programs call them
