#!/usr/bin/env python3
"""Draw docs/images/chat.svg: what the real program shows on a terminal, recorded.

    python scripts/record_terminal.py

Commands run on a pseudo-terminal with the built-in model, and lines are typed into them. A seed makes the answers the
same every time on one machine. Linux and macOS only.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "chat.svg"
TITLE = "rwkv"

COLUMNS, ROWS = 80, 100  # enough rows that nothing scrolls
QUIET = 1.5  # seconds without output, after which the next line is typed
PATIENCE = 120.0  # timeout in seconds of a command that shows nothing

SHELL = "\x1b[1;32m$\x1b[0m "


@dataclass(frozen=True)
class Scene:
    """A command, and the lines that are typed into it."""

    command: str
    lines: Sequence[str] = ()


SCENES = (
    Scene(
        "rwkv chat --name dinner --seed 8",
        ("Hello!", "Can you book a table for two?", "/fork plan-b", "At seven, please.", "/quit"),
    ),
    Scene("rwkv chat --name dinner", ("At eight, please.", "/quit")),
    Scene("rwkv state list"),
)

# ------------------------------------------------------------------------------------------------------------
# A terminal
# ------------------------------------------------------------------------------------------------------------

CONTROL = re.compile(
    r"\x1b\[(?P<private>[?>]?)(?P<numbers>[\d;]*)(?P<final>[@-~])"  # CSI
    r"|\x1b\].*?(?:\x07|\x1b\\)"  # OSC: titles and links, which are not drawn
    r"|\x1b[^\[\]]"
    r"|(?P<text>.)",
    re.DOTALL,
)
CURSOR_POSITION = "6"


@dataclass
class Terminal:
    """A grid of characters with their SGR styles: as much of a VT100 as a line editor needs."""

    x: int = 0
    y: int = 0
    style: str = ""  # the numbers of the SGR sequences in effect
    cells: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)  # (y, x) -> character, style
    questions: int = 0  # unanswered requests for the cursor position

    def write(self, output: str) -> None:
        """Show what a program wrote."""
        for match in CONTROL.finditer(output):
            if match["text"]:
                self._put(match["text"])
            elif match["final"] and not match["private"]:
                self._control(match["final"], match["numbers"])

    def _put(self, character: str) -> None:
        if character == "\r":
            self.x = 0
        elif character == "\n":
            self.y += 1
        elif character == "\b":
            self.x = max(self.x - 1, 0)
        elif character.isprintable():
            if self.x == COLUMNS:
                self.x, self.y = 0, self.y + 1
            self.cells[self.y, self.x] = character, self.style
            self.x += 1

    def _control(self, final: str, numbers: str) -> None:
        count = int(numbers or 1) if numbers.isdigit() or not numbers else 1
        if final == "m":
            self._select(numbers.split(";"))
        elif final == "n" and numbers == CURSOR_POSITION:
            self.questions += 1
        elif final in "ABCD":
            dx, dy = {"A": (0, -1), "B": (0, 1), "C": (1, 0), "D": (-1, 0)}[final]
            self.x, self.y = max(self.x + dx * count, 0), max(self.y + dy * count, 0)
        elif final == "G":
            self.x = count - 1
        elif final == "K":
            self._erase(lambda y, x: y == self.y and x >= self.x)
        elif final == "J":
            self._erase(lambda y, x: (y, x) >= (self.y, self.x))

    def _select(self, numbers: Sequence[str]) -> None:
        for number in numbers:
            self.style = "" if number in ("", "0") else f"{self.style};{number}"

    def _erase(self, is_gone: Callable[[int, int], bool]) -> None:
        self.cells = {place: cell for place, cell in self.cells.items() if not is_gone(*place)}

    def line(self, y: int) -> str:
        """One line, with SGR sequences for its styles."""
        length = max((x + 1 for row, x in self.cells if row == y), default=0)
        styled, now = "", ""
        for x in range(length):
            character, style = self.cells.get((y, x), (" ", ""))
            if style != now:
                styled, now = f"{styled}\x1b[0{style}m", style
            styled += character
        return styled + ("\x1b[0m" if now else "")

    def __str__(self) -> str:
        last = max((y for y, _ in self.cells), default=-1)
        return "\n".join(self.line(y) for y in range(last + 1))


# ------------------------------------------------------------------------------------------------------------
# Programs on it
# ------------------------------------------------------------------------------------------------------------


def play(scene: Scene, terminal: Terminal, environment: Mapping[str, str]) -> None:
    """Run a command on the terminal, with its lines typed into it one after another. Raises RuntimeError."""
    terminal.write(f"{SHELL}{scene.command}\r\n")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "rwkv_cli", *shlex.split(scene.command)[1:]]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    try:
        for line in scene.lines:
            _show_output(master, terminal, QUIET)
            os.write(master, line.encode() + b"\r")
        _show_output(master, terminal, PATIENCE)
        if code := process.wait(PATIENCE):
            raise RuntimeError(f"{scene.command}: exit code {code}\n{terminal}")
    finally:
        process.kill()
        os.close(master)
    if terminal.x:
        terminal.write("\r\n")


def _show_output(master: int, terminal: Terminal, quiet: float) -> None:
    """Show what a program writes until it pauses for `quiet` seconds, or ends."""
    deadline, has_shown = time.monotonic() + PATIENCE, False
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], quiet)
        if not ready and has_shown:
            return
        if ready:
            try:
                output = os.read(master, 65536)
            except OSError:  # Linux, once the program has ended
                return
            if not output:
                return
            has_shown = True
            terminal.write(output.decode())
        for _ in range(terminal.questions):
            os.write(master, f"\x1b[{terminal.y + 1};{terminal.x + 1}R".encode())
        terminal.questions = 0


# ------------------------------------------------------------------------------------------------------------
# The picture
# ------------------------------------------------------------------------------------------------------------


def draw(terminal: Terminal) -> str:
    """The terminal as SVG, in the viewer's own fonts: nothing is fetched."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.from_ansi(str(terminal)))
    svg = console.export_svg(title=TITLE, unique_id="rwkv")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def main() -> None:
    """Play all scenes on one terminal, and draw it."""
    terminal = Terminal()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "RWKV_MODEL")
        }
        environment |= {"TERM": "xterm-256color", "RWKV_DATA_DIR": folder, "CUDA_VISIBLE_DEVICES": ""}
        for scene in SCENES:
            play(scene, terminal, environment)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(terminal), encoding="utf-8")
    print(terminal)
    print(PICTURE)


if __name__ == "__main__":
    main()
