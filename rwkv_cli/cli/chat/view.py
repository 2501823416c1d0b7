"""How an answer is shown while it comes. What was written is never changed: no cursor is moved."""

from __future__ import annotations

import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable

from rwkv_cli.cli.chat.input import CONTINUATION, INDENT, PROMPT
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.interrupts import Interrupts
from rwkv_cli.cli.terminal.markdown import MarkdownStream, PlainStream, Stream
from rwkv_cli.cli.terminal.progress import reading
from rwkv_cli.cli.terminal.visible import Printer
from rwkv_cli.cli.terminal.wrap import wrapped
from rwkv_cli.sessions.answer_stream import AnswerStream
from rwkv_cli.text.thinking import Part


class View(ABC):
    """Where answers go."""

    show_thinking = False
    markdown = False

    @abstractmethod
    def show(self, answer: AnswerStream) -> None:
        """Show an answer to its end. Ctrl-C stops it; KeyboardInterrupt means that it was discarded."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Show the output of a command."""

    @abstractmethod
    def show_again(self, message: str, answer: str) -> None:
        """Show an exchange of earlier, where a person reads."""

    @abstractmethod
    def separate(self) -> None:
        """Set an answer apart from what follows, where a person reads."""


class PlainView(View):
    """Answers alone, as they are, on stdout: for pipes and files. All else goes to stderr."""

    def show(self, answer: AnswerStream) -> None:
        """See `View`."""
        text, printer = "", Printer() if ui.is_terminal(sys.stdout) else str
        for part in _watched(answer):
            if not part.thought:
                written = part.text if text else part.text.lstrip()
                _write(printer(written))
                text += written
        _write("" if text.endswith("\n") else "\n")

    def say(self, text: str) -> None:
        """See `View`."""
        print(ui.printable(text), file=sys.stderr)

    def show_again(self, message: str, answer: str) -> None:
        """See `View`: nothing."""

    def separate(self) -> None:
        """See `View`: nothing."""


class TerminalView(View):
    """Answers for a person: Markdown, thoughts dimmed or folded to a line, control characters as pictures."""

    def __init__(self, show_thinking: bool = True, markdown: bool = True) -> None:
        self.show_thinking = show_thinking
        self.markdown = markdown

    def show(self, answer: AnswerStream) -> None:
        """See `View`."""
        _set_apart()
        self.show_parts(_watched(answer), answer)
        if answer.finish == "length":
            ui.note(
                f"(stopped after {answer.usage.generated_tokens} tokens; /set max-tokens changes the limit)"
            )
        elif answer.finish == "stopped":
            ui.note("(stopped)")

    def show_again(self, message: str, answer: str) -> None:
        """See `View`."""
        print(ui.styled(_as_typed(ui.printable(message)), ui.BOLD, sys.stdout))
        _set_apart()
        self.show_parts([Part(answer)])
        self.separate()

    def separate(self) -> None:
        """See `View`."""
        print(flush=True)

    def show_parts(self, parts: Iterable[Part], answer: AnswerStream | None = None) -> None:
        """Show a thought and an answer; `answer` knows how long the thought is."""
        thought, said = _Block(self._thought()), _Block(self._answer())
        folded = False
        for part in parts:
            if part.thought and self.show_thinking:
                thought.write(part.text)
            elif part.thought:
                if not folded:
                    _write(ui.styled("(thinking…", ui.DIM, sys.stdout))
                folded = True
            elif part.text.strip() or said.has_begun:
                if thought.has_begun:
                    thought.end()
                    _write("\n")
                    thought = _Block(self._thought())
                if folded:
                    folded = self._unfold(answer)
                said.write(part.text)
        if folded:
            self._unfold(answer)
        for block in (thought, said):
            if block.has_begun:
                block.end()
        if not (thought.has_begun or said.has_begun):
            ui.note("(no answer)")

    def _unfold(self, answer: AnswerStream | None) -> bool:
        count = f" {answer.thought_tokens} tokens" if answer else ""
        _write(ui.styled(f"{count})", ui.DIM, sys.stdout) + "\n")
        return False

    def say(self, text: str) -> None:
        """See `View`."""
        print(ui.printable(text), flush=True)

    def _thought(self) -> Stream:
        return PlainStream(_width, ui.is_styled(sys.stdout), ui.DIM)

    def _answer(self) -> Stream:
        if self.markdown and ui.is_styled(sys.stdout):
            return MarkdownStream(_width)
        return PlainStream(_width, styling=False)


class _Block:
    """A text that is shown without white space around it, and with one newline at its end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._space = ""  # may be the end of the text
        self._printer = Printer()
        self.has_begun = False

    def write(self, text: str) -> None:
        text = self._space + self._printer(text)
        if not self.has_begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self.has_begun = self.has_begun or bool(kept)
        _write(self._stream.feed(kept))

    def end(self) -> None:
        _write(self._stream.end() + "\n")


def _set_apart() -> None:
    """Leave a line empty between a message and its answer, where the message is not shown in bold type."""
    if ui.is_terminal(sys.stdout) and not ui.is_styled(sys.stdout):
        print(flush=True)


def _as_typed(message: str) -> str:
    """A message as the editor of lines shows it."""
    width = max(_width() - 1 - len(INDENT), 1)
    lines = [f"\n{INDENT}".join(wrapped(line, width)) for line in message.split("\n")]
    return PROMPT + f"\n{CONTINUATION}".join(lines)


def _watched(answer: AnswerStream) -> Iterable[Part]:
    """The parts of an answer; Ctrl-C ends it after the present token, or at once while the message is read."""
    with Interrupts() as interrupts:
        with reading(answer.generation, quiet=False):
            first = next(answer, None)
        interrupts.hold()
        for part in itertools.chain([first] if first else [], answer):
            if interrupts.asked:
                answer.stop()
            yield part


def _width() -> int:
    return ui.columns_of_terminal()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
