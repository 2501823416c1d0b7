"""The loop of a chat: a message or a command, an answer, the file."""

from __future__ import annotations

import contextlib
import shlex
import textwrap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from rwkv_cli.cli import default_model, failures
from rwkv_cli.cli.chat import forms
from rwkv_cli.cli.chat.input import Reader, unechoed
from rwkv_cli.cli.chat.toolbox import MOST_ROUNDS, Toolbox
from rwkv_cli.cli.chat.view import View
from rwkv_cli.cli.options import as_setting
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.interrupts import Termination
from rwkv_cli.cli.terminal.progress import counting
from rwkv_cli.cli.terminal.wrap import wrapped
from rwkv_cli.engine.generate import Usage
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.reporting import Progress, pluralize
from rwkv_cli.sessions import state_store
from rwkv_cli.sessions.answer_stream import AnswerStream
from rwkv_cli.sessions.autosave import AutosavedConversation
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.text.templates import for_chat

_LEAST_COLUMN = 20  # characters beside a name, or it goes above
_FAREWELLS = ("exit", "quit")  # which people type without a slash
_REPEATED = 2000  # characters of the last exchange that are shown again

Asking = Callable[[Progress | None], AnswerStream]


@dataclass
class Totals:
    """Of all answers since the chat began."""

    answers: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0


class Chat:
    """A conversation, where messages come from and where answers go."""

    def __init__(
        self,
        session: AutosavedConversation,
        reader: Reader,
        view: View,
        dispatch: Callable[[Chat, str], None],
        quiet: bool = False,
        toolbox: Toolbox | None = None,
    ) -> None:
        """`dispatch` runs a line that begins with a slash; `toolbox` has the tools that the model may call."""
        self.toolbox = toolbox
        self._rounds = 0  # of calls since the user's message
        self.session = session
        self.reader = reader
        self.view = view
        self._dispatch = dispatch
        self.quiet = quiet  # no greeting, no hints
        self.totals = Totals()
        self.last_usage: Usage | None = None
        self._default = ""  # what the next line begins with
        self._edits = False  # the next message replaces the last one
        self._failed = False

    @property
    def conversation(self) -> Conversation:
        """The current one."""
        return self.session.conversation

    @property
    def is_interactive(self) -> bool:
        """Whether a person types."""
        return self.reader.is_interactive

    def run(self) -> int:
        """Read and answer; gives the exit code."""
        with unechoed() if self.reader.is_editor else nullcontext():
            if self.is_interactive and not self.quiet:
                self.greet()
            try:
                while True:
                    self._next()
            except EOFError:
                pass
            except SystemExit:  # a signal: perhaps somebody still sees the terminal
                if self.is_interactive and not self.quiet:
                    with contextlib.suppress(OSError):
                        self.say_goodbye()
                raise
        if not self.session.is_kept:
            self.keep()
        if self.is_interactive and not self.quiet:
            self.say_goodbye()
        return 1 if self._failed and not self.is_interactive else 0

    def _next(self) -> None:
        """Take one line, and do what it says."""
        default, self._default = self._default, ""
        try:
            self.handle(self.reader.read(default))
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            ui.note("(Ctrl-D or /quit to leave)")
        except RwkvError as error:  # a line that is not a message
            self._fail(error)

    def handle(self, line: str) -> None:
        """A message or a command. Raises EOFError for one that ends the chat."""
        edits, self._edits = self._edits, False
        if not line.strip():
            return
        if self.is_interactive and line.strip().lower() in _FAREWELLS:
            raise EOFError
        is_command = line.startswith("/") and not line.startswith("//")
        try:
            if is_command:
                self._dispatch(self, line)
                return
            text = line[1:] if line.startswith("//") else line
            ask = self.conversation.edit if edits else self.conversation.ask
            self._rounds = 0
            self.answer(lambda progress: ask(text, progress), text)
        except RwkvError as error:
            self._fail(error)
        except EOFError:  # /quit
            raise
        except OSError as error:  # a message only fails so where the answer cannot be written
            if not is_command or isinstance(error, BrokenPipeError):
                raise
            self._tell(failures.sentence(error))
        except Exception as error:  # whatever it is, what was said must not be lost with it
            self._tell(failures.sentence(error))

    def answer(self, ask: Asking, message: str = "") -> None:
        """Have something answered, show it and save it. `message` can be edited if it is interrupted.

        A signal that ends the program, or a terminal that is gone, stops the answer as Ctrl-C does.
        """
        answer: AnswerStream | None = None

        def stop() -> bool:
            if answer and _has_begun(answer):  # otherwise the message is still read
                answer.stop()
            return _has_begun(answer)

        with Termination(stop):
            try:
                with self.rereading() as progress:
                    answer = ask(progress)
                self.view.show(answer)
            except KeyboardInterrupt:
                if not self.is_interactive:
                    raise
                print()
                ui.note("(interrupted: this answer is discarded)" if _has_begun(answer) else "(interrupted)")
                self._default = message
                return
            except OSError:  # it cannot be shown
                if answer and _has_begun(answer):
                    answer.stop()
                    for _ in answer:
                        pass
                    self.session.keep()
                raise
            finally:
                self._count(answer)
            self.keep()
        ui.detail(f"({speeds(answer.usage)})")
        if not (answer.text.strip() or answer.stopped or self.quiet):
            ui.note("(the answer is empty: the model ended it at once)")
        self.view.separate()
        if answer.stopped and not self.is_interactive:
            raise KeyboardInterrupt
        if self.toolbox and not answer.stopped:
            self._make_calls(self.toolbox)

    def _make_calls(self, toolbox: Toolbox) -> None:
        """Make the calls in the last answer, and have the model answer to their results."""
        _, said = self.conversation.parts_of(self.conversation.turns[-1])
        if not (calls := toolbox.calls_in(said)):
            return
        if self._rounds == MOST_ROUNDS:
            ui.note(f"({MOST_ROUNDS} calls in a row: say something for the model to go on)")
            return
        self._rounds += 1
        if results := toolbox.results(calls, self._is_wanted):
            self.answer(lambda progress: self.conversation.ask(results, progress))

    def _is_wanted(self, name: str) -> bool:
        """Ask whether a tool is to be called."""
        if not self.is_interactive:
            ui.note("(no terminal to ask on: pass --yes to call tools without asking)")
            return False
        ui.note(f"call {name}? y/n")
        try:
            return self.reader.read().strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False

    def keep(self) -> None:
        """Save a named conversation; a failure is shown, and the chat continues."""
        try:
            self.session.keep()
        except RwkvError as error:
            self._fail(error)

    def rereading(self) -> AbstractContextManager[Progress | None]:
        """Around something that may have to read a part of the conversation again."""
        return counting("reading again", self.conversation.snapshot.n_tokens)

    def edit_last(self) -> None:
        """Have the last message edited, and answered in place of it."""
        if not self.reader.is_editor:
            raise UsageError("give the new message: /edit TEXT")
        if not self.conversation.turns:
            raise UsageError("nothing was said yet")
        self._default, self._edits = self.conversation.turns[-1].user, True

    # ------------------------------------------------------------------------------------------- shown

    def greet(self) -> None:
        """Say who talks, and where the conversation stands."""
        model, session = self.session.model, self.session
        about = f"{model.path.stem} ({model.info.weight_type}, {model.backend.name})"
        used, own = self.conversation.template.name, for_chat(model.template).name
        other = f" (that of the model is {own})" if used != own and self.conversation.turns else ""
        self._note(f"{about}, template {used}{other}. /help lists commands, Ctrl-D to leave.")
        turns, tokens = len(self.conversation.turns), self.conversation.snapshot.n_tokens
        stands = f"{pluralize(turns, 'turn')}, {tokens:,} tokens" if tokens else "new conversation"
        if session.name:
            self._note(f"{session.name}: {stands}, saved after every answer.")
        elif session.kept and session.kept.path:
            self._note(f"The last chat: {stands}. /save NAME keeps it under a name.")
        elif tokens:
            self._note(f"Resuming from a saved state: {stands}.")
        if constraint := self.conversation.constraint:
            form = forms.name_of(constraint).replace("_", "-")
            self._note(f"Answers follow its {form}: /set {form} default ends that.")
        if advice := default_model.advice_on(model.path):
            self._note(advice)
        self.show_last()

    def say_goodbye(self) -> None:
        """Say how to come back, if anything was said."""
        session = self.session
        if session.path and session.is_saved:
            name = session.name if session.path.parent == state_store.folder() else str(session.path)
            ui.note(f"(to come back: rwkv chat --name {shlex.quote(name or '')})")
        elif session.is_saved:
            ui.note("(to come back: rwkv chat --continue)")
        elif self.conversation.turns:
            ui.note("(not saved; to keep a conversation use /save NAME or start with --name NAME)")

    def show_last(self) -> None:
        """Show the last exchange again."""
        if self.conversation.turns:
            turn = self.conversation.turns[-1]
            _, answer = self.conversation.parts_of(turn)
            self.view.show_again(_clipped(turn.user), _clipped(answer))

    def say_table(self, rows: Mapping[str, str]) -> None:
        """Show names and texts, one below the other where the terminal is narrow."""
        columns = ui.columns_of_terminal()
        indent = max(map(len, rows)) + 2
        if columns - indent < _LEAST_COLUMN:
            lines = [f"{name}\n" + textwrap.fill(text, columns, initial_indent="  ", subsequent_indent="  ")
                     for name, text in rows.items()]  # fmt: skip
        else:
            around = {"width": columns, "break_on_hyphens": False, "subsequent_indent": " " * indent}
            lines = [textwrap.fill(f"{name:{indent}}{text}", **around) for name, text in rows.items()]  # type: ignore[arg-type]
        self.view.say("\n".join(lines))

    def say_text(self, text: str) -> None:
        """Show sentences, wrapped."""
        self.view.say(textwrap.fill(text, max(ui.columns_of_terminal(), 20)))

    def switched(self, name: str) -> str:
        """The value of a setting of the screen."""
        if name == "editing":
            return "vi" if self.reader.vi else "emacs"
        return "on" if getattr(self.view, name) else "off"

    def switch(self, name: str, value: str) -> None:
        """Change a setting of the screen."""
        if name == "editing":
            self.reader.vi = value == "vi"
        else:
            setattr(self.view, name, value == "on")

    def _note(self, text: str) -> None:
        for line in wrapped(text, max(ui.columns_of_terminal(), 20)):
            ui.note(line)

    def _count(self, answer: AnswerStream | None) -> None:
        if answer:
            self.last_usage = answer.usage
            self.totals.answers += 1
            self.totals.generated_tokens += answer.usage.generated_tokens
            self.totals.prompt_tokens += answer.usage.prompt_tokens

    def _fail(self, error: RwkvError) -> None:
        self._tell(error.worded(as_setting))

    def _tell(self, sentence: str) -> None:
        ui.error(sentence)
        self._failed = True


def _has_begun(answer: AnswerStream | None) -> bool:
    return answer is not None and answer.usage.generated_tokens > 0


def speeds(usage: Usage) -> str:
    """How many tokens an answer and its message took, and how fast."""
    return (
        f"{usage.generated_tokens} tokens, {usage.decode_speed:.0f}/s; message {usage.prompt_tokens} tokens, "
        f"{usage.prefill_speed:.0f}/s"
    )


def _clipped(text: str) -> str:
    return text if len(text) <= _REPEATED else "…" + text[-_REPEATED:]
