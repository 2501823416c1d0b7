"""Where messages come from: an editor of lines on a terminal, the terminal's own lines, or the lines of a pipe."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import emacs_mode, has_focus
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.screen import Char
from prompt_toolkit.output import DummyOutput, Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from rwkv_cli import paths
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.visible import hidden_characters
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.sessions.conversation import MOST_CHARACTERS

PROMPT, CONTINUATION, INDENT = "> ", "… ", "  "  # of a message, its next lines, and a line that was wrapped
BLOCK = '"""'

_MOST_SKIPPED = 64_000_000  # bytes of a line

Words = Callable[[str], Iterable[str]]
"""The words that may complete a line."""


class Reader(ABC):
    """Where messages come from."""

    is_interactive = True  # a person types
    is_editor = False  # it edits lines and shows the keys itself

    vi = False
    """Whether keys are those of vi, where there is an editor."""

    @abstractmethod
    def read(self, default: str = "") -> str:
        """The next message; `default` is there to be edited. Raises EOFError at the end, KeyboardInterrupt."""


class PipeReader(Reader):
    """One message per line."""

    is_interactive = False

    def __init__(self) -> None:
        self._line = 0
        self._is_endless = False

    def read(self, default: str = "") -> str:  # noqa: ARG002
        """See `Reader`. Raises UsageError for a line that is too long or not UTF-8."""
        if self._is_endless:
            raise EOFError
        self._line += 1
        try:
            line = _line(f"line {self._line}")
        except _EndlessLineError:
            self._is_endless = True
            raise
        try:
            return line.decode().lstrip("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"line {self._line} is not valid UTF-8 text (byte {error.start})") from None


class _EndlessLineError(UsageError):
    """A line is so long that its end is not looked for."""


def _line(name: str) -> bytes:
    """The next line of standard input. Raises EOFError at the end, UsageError for one that is too long."""
    line = sys.stdin.buffer.readline(MOST_CHARACTERS + 1) if sys.stdin else b""
    if not line:
        raise EOFError
    if len(line) > MOST_CHARACTERS:
        skipped = 0
        while line and not line.endswith(b"\n"):  # the rest of it is not a message either
            skipped += len(line)
            if skipped > _MOST_SKIPPED:
                raise _EndlessLineError(f"{name} has no end: nothing more is read")
            line = sys.stdin.buffer.readline(MOST_CHARACTERS)
        raise UsageError(f"{name} has more than {MOST_CHARACTERS:,} bytes, the limit of a message")
    return line


class LineReader(Reader):
    """Lines as the terminal itself lets them be edited: for one that understands no escape sequences."""

    def read(self, default: str = "") -> str:  # noqa: ARG002  # there is no way to have it edited
        """See `Reader`. Raises UsageError for a line that is too long."""
        text = self._line(PROMPT)
        while text.endswith("\\") or is_unfinished(text):
            text = text.removesuffix("\\") + "\n" + self._line(CONTINUATION)
        return unblocked(text)

    def _line(self, prompt: str) -> str:
        seen = sys.stdout if ui.is_terminal(sys.stdout) else sys.stderr
        seen.write(prompt)
        seen.flush()
        try:
            line = _line("the line")
        except (EOFError, KeyboardInterrupt):  # the terminal stays in the line of the prompt
            print(file=seen, flush=True)
            raise
        return line.decode("utf-8", "replace").rstrip("\r\n")


class TerminalReader(Reader):
    """Lines with everything that a shell has: history, search, completion, several lines, Emacs and vi keys."""

    is_editor = True

    def __init__(self, words: Words, vi: bool = False, history: bool = True, **session: Any) -> None:
        """`history` keeps what is typed on the disk; `session` is for `PromptSession`: another input or output."""
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=lambda _width, _number, wraps: INDENT if wraps else CONTINUATION,
            style=Style([("", "bold")]) if ui.is_styled(sys.stdout) else None,
            history=_history() if history else None,
            completer=_WordCompleter(words),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            key_bindings=_bindings(),
            enable_open_in_editor=True,
            enable_suspend=True,
            tempfile_suffix=".txt",
            **{"output": _output()} | session,
        )
        self.vi = vi
        Char.display_mappings.update(
            hidden_characters()
        )  # in what is typed or pasted, as control characters are

    @property
    def vi(self) -> bool:
        """See `Reader`."""
        return self._session.editing_mode == EditingMode.VI

    @vi.setter
    def vi(self, vi: bool) -> None:
        self._session.editing_mode = EditingMode.VI if vi else EditingMode.EMACS

    def read(self, default: str = "") -> str:
        """See `Reader`. KeyboardInterrupt means Ctrl-C with nothing typed."""
        while True:
            try:
                text = self._session.prompt(default=default)
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise
                default = ""
                continue
            # Keys that were not UTF-8 are surrogates.
            return unblocked(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def is_unfinished(text: str) -> bool:
    """Whether Enter goes to the next line: in a block that begins with three quotes."""
    text = text.strip()
    return text.startswith(BLOCK) and (len(text) < 2 * len(BLOCK) or not text.endswith(BLOCK))


def unblocked(text: str) -> str:
    """A message without the three quotes around it."""
    if text.strip().startswith(BLOCK) and not is_unfinished(text):
        return text.strip().removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")
    return text


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    editing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=editing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif is_unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=editing & emacs_mode)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


class _WordCompleter(Completer):
    """Completes the last word of a line."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def get_completions(
        self,
        document: Document,
        complete_event: CompleteEvent,  # noqa: ARG002
    ) -> Iterable[Completion]:
        line = document.text_before_cursor
        begun = line.rpartition(" ")[2]
        for word in self._words(line):
            if word.startswith(begun):
                yield Completion(word, start_position=-len(begun))


class _History(FileHistory):
    """A history on disk, as far as the disk lets it."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except (OSError, ValueError):
            return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            path = Path(os.fsdecode(self.filename))
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))  # readable by this user only
            super().store_string(string)


def _history() -> FileHistory | None:
    try:
        return _History(str(paths.data_folder() / "history"))
    except RwkvError:  # no home
        return None


def _output() -> Output:
    """The terminal, also where stdout is a file."""
    if sys.stdout is None:
        return DummyOutput()
    output = create_output(always_prefer_tty=True)
    if isinstance(output, Vt100_Output):
        # Where the cursor is need not be known, and over a slow line the terminal's reply would come too late.
        output.enable_cpr = False
    return output


@contextmanager
def unechoed() -> Iterator[None]:
    """Between prompts, typed keys wait for the next one instead of showing up in the midst of an answer."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (termios.error, OSError, ValueError):  # no terminal
        yield
        return
    silent = before.copy()
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)  # by characters, or Ctrl-D would be lost

    def silence(*_: object) -> None:
        with contextlib.suppress(termios.error):  # closed: the system then continues its programs, too
            termios.tcsetattr(descriptor, termios.TCSANOW, silent)

    silence()
    continued = signal.signal(signal.SIGCONT, silence)  # a shell has set it otherwise in the meantime
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, continued)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
