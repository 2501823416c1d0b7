"""Where the results of a batch go: standard output, or a file that is continued after an interruption.

A result is a JSON object on a line. In a file that can be continued it also has a digest, of its line and of the
options of the run: so it is not taken for the result of something else. And it has the seed of its line, unless that
is the line's own, which tells the seed of the run. The file is appended to, in place: a kill leaves at most one torn
line at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Any

from rwkv_cli import paths
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.interrupts import until_done
from rwkv_cli.datasets.lines import Line
from rwkv_cli.datasets.question import Question
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.files.lock import HeldError, lock_file, locked
from rwkv_cli.text import prompt_bytes

Fields = Mapping[str, Any]

_BEGINNING = b'{"index": '  # of every result
_DIGEST = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})")
_LEAST_INDEX_LIMIT = 1 << 20

# What is noted of a result: a hash, whose lowest bits say what it is.
_IS_THERE, _IS_ERROR, _HAS_DIGEST = 1, 2, 4
_FLAGS = _IS_THERE | _IS_ERROR | _HAS_DIGEST


class Output:
    """Results on standard output."""

    n_before = 0  # results that were there before
    n_failed = 0  # those among them that have an error, as far as their lines were looked at

    def begin(self, run: str, seed: int | None) -> int:  # noqa: ARG002
        """The seed of the run with the options of the digest `run`; `seed` is the one that was given."""
        return secrets.randbits(32) if seed is None else seed

    def has(self, line: Line, question: Question) -> bool:  # noqa: ARG002
        """Whether a line has a result already. Raises UsageError for a line that was another one then."""
        return False

    def write(self, fields: Fields, line: Line, seed: int | None) -> None:  # noqa: ARG002
        """Write the result of a line, as a whole line even if a signal comes; `seed` is None for one of its own."""
        with until_done():
            sys.stdout.write(ui.json_text(fields) + "\n")
            sys.stdout.flush()


@contextmanager
def continued(file: str) -> Iterator[ResultFile]:
    """Open a file of results, perhaps a new one, to add those that it lacks. It is locked until the end of the block.

    Raises UsageError for a file of something else, and for one that another program continues; StorageError for one
    that cannot be written.
    """
    path = paths.user_path(file)
    if path.exists() and not path.is_file():
        raise UsageError(f"{literal(file)} is not a regular file: results can be added to no other")
    lock = lock_file(path)
    with contextlib.ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(lock))
        except HeldError:
            raise UsageError(f"another rwkv is writing {literal(file)}: wait for it, or end it") from None
        except OSError as error:
            raise storage_error(lock, error) from None
        try:
            file_io = held.enter_context(opened(path))
        except OSError as error:
            raise storage_error(path, error) from None
        yield ResultFile(path, file_io)


def opened(path: Path) -> FileIO:
    """A file that is appended to, without a buffer. Raises OSError."""
    return path.open("a+b", buffering=0)


class ResultFile(Output):
    """A file of results that is continued: see `continued`."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file
        self.n_before = self.n_failed = 0
        self._run = ""  # the digest of the options
        self._run_before: str | None = None
        self._seed: int | None = None
        self._size = 0
        self._notes = array("Q")  # by index
        self._scan()

    def begin(self, run: str, seed: int | None) -> int:
        """See `Output.begin`. Raises UsageError if the results that are there come from another run."""
        where = literal(str(self.path))
        if self._run_before not in (None, run):
            raise UsageError(
                f"{where} has results of another model, or with other options: use the same again, or another file"
            )
        if self._seed is not None and seed not in (None, self._seed):
            raise UsageError(
                f"{where} was begun with {{seed={self._seed}}}, not with {seed}: leave it out, or use another file"
            )
        if self.n_before and self._seed is None and self._run_before is None and seed is None:
            ui.note(f"{self.path} does not tell its seed: lines that are answered now have others")
        self._run = run
        return super().begin(run, seed if self._seed is None else self._seed)

    def has(self, line: Line, question: Question) -> bool:
        """See `Output.has`. A line that failed, and was corrected since, has none."""
        note = self._notes[line.index] if line.index < len(self._notes) else 0
        if not note & _IS_THERE:
            return False
        own = line.digest if note & _HAS_DIGEST else _digest(question.prompt)
        if own | _FLAGS == note | _FLAGS or (note & _IS_ERROR and not note & _HAS_DIGEST):
            self.n_failed += bool(note & _IS_ERROR)
            return True
        if note & _IS_ERROR:
            return False
        raise UsageError(
            f"line {line.number} has changed since {literal(str(self.path))} has its result: change it back, or use "
            "another file"
        )

    def write(self, fields: Fields, line: Line, seed: int | None) -> None:
        """See `Output.write`. Raises StorageError; the file then ends with the result before."""
        own = {} if seed is None else {"seed": seed}
        data = (ui.json_text({**fields, **own, "digest": f"{line.digest:016x}-{self._run}"}) + "\n").encode()
        with until_done():
            self._append(data)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self._cut(self._size)
            raise storage_error(self.path, error) from None
        self._size += len(data)

    def _cut(self, size: int) -> None:
        with contextlib.suppress(OSError):
            self._file.truncate(size)

    def _scan(self) -> None:
        """Note which results are there, and cut off a torn one at the end. Raises UsageError for other files."""
        most = 8 * prompt_bytes.MOST_BYTES  # JSON has escapes
        limit = os.fstat(self._file.fileno()).st_size + _LEAST_INDEX_LIMIT
        with self.path.open("rb") as file:
            while data := file.readline(most):
                fields = _parsed(data)
                if fields and fields["index"] < limit:
                    self._note(fields)
                    self._size += len(data)
                elif _is_torn(data) and not file.read(1):
                    self._cut(self._size)
                    return
                else:
                    where = f"{literal(str(self.path))}, line {self.n_before + 1}"
                    raise UsageError(f"{where} is not a result of {{batch}}: use another file")
                if not data.endswith(b"\n"):
                    self._append(b"\n")
                    return

    def _note(self, fields: Fields) -> None:
        index, is_error = fields["index"], "error" in fields
        hashed, flags = 0, _IS_THERE | (_IS_ERROR if is_error else 0)
        if found := _DIGEST.fullmatch(str(fields.get("digest"))):
            hashed, flags = int(found[1], 16), flags | _HAS_DIGEST
            if self._run_before not in (None, found[2]):
                raise UsageError(f"{literal(str(self.path))} has results of different runs: use another file")
            self._run_before = found[2]
        elif not is_error:
            hashed = _digest(fields["prompt"])
        if index >= len(self._notes):
            self._notes.extend([0] * (index + 1 - len(self._notes)))
        self._notes[index] = hashed & ~_FLAGS | flags
        seed = fields.get("seed")
        if self._seed is None and isinstance(seed, int) and seed >= index:
            self._seed = seed - index
        self.n_before += 1


def _parsed(data: bytes) -> Fields | None:
    """The result on a line; None if it is none."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    index = fields.get("index")
    is_answer = isinstance(fields.get("prompt"), str) and isinstance(fields.get("text"), str)
    if type(index) is not int or index < 0 or not (is_answer or isinstance(fields.get("error"), str)):
        return None
    return fields


def _is_torn(data: bytes) -> bool:
    """Whether a line may be the beginning of a result, whose rest was not written any more."""
    return not data.endswith(b"\n") and (data.startswith(_BEGINNING) or _BEGINNING.startswith(data))


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
