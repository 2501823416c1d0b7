"""JSON lines: a row per line, an object each. Blank lines are none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from io import BytesIO
from typing import Any

from rwkv_cli.datasets import question
from rwkv_cli.datasets.columns import Columns
from rwkv_cli.datasets.lines import Line, read_lines
from rwkv_cli.datasets.question import Question
from rwkv_cli.datasets.storage import Source, opened, read_range
from rwkv_cli.datasets.table import Extent, Format, Rows, fields_of
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.sessions.batch import Answer

PIECE = 128
"""Lines that are never in different shards, except where shards are smaller."""

_NO_ERROR = b'error": null}'


class JsonRows(Rows):
    """The lines of a shard. What they carry along is kept as it will be written."""

    def __init__(self, name: str, lines: Sequence[Line], columns: Columns) -> None:
        self._name, self._lines, self._columns = name, lines, columns
        self._carried = list[str]()  # JSON objects
        self.questions = [self._question(line) for line in lines]

    def _question(self, line: Line) -> Question:
        carried = "{}"
        try:
            if line.error:
                return Question(error=line.error)
            row = question.parse_object(line.text)
            kept = self._columns.carried(row)
            carried = _encoded({name: kept[name] for name in kept if name not in self._columns.answer})
            self._columns.check(row, "the line")
            return question.parse(self._columns.fields(row, typed=False))
        except UsageError as error:
            return Question(error=error.worded(lambda name, _: f'"{name}"'))
        finally:
            self._carried.append(carried)

    def where(self, i: int) -> str:
        """See `Rows.where`."""
        return f"{self._name}, line {self._lines[i].number}"

    def written(self, answers: Sequence[Answer], first: int) -> bytes:
        """See `Rows.written`."""
        out = BytesIO()
        for i, (carried, answer) in enumerate(zip(self._carried, answers, strict=True)):
            names = self._columns.answer
            fields = dict(zip(names, fields_of(answer, first + i).values(), strict=True))
            begin = "{" if carried == "{}" else carried[:-1] + ", "
            out.write(begin.encode() + _encoded(fields)[1:].encode() + b"\n")
        return out.getvalue()


class JsonLines(Format):
    """See `Format`."""

    name, suffixes = "jsonl", (".jsonl", ".ndjson")

    def __init__(self, columns: Columns, piece: int = PIECE) -> None:
        super().__init__(columns)
        self._piece = piece

    def scan(self, source: Source) -> Sequence[Extent]:
        """See `Format.scan`. Reads the whole file, for its digest and for where its lines are."""
        with opened(source.url) as file:
            return [*self._pieces(read_lines(file, source.url), source)]

    def _pieces(self, lines: Iterable[Line], source: Source) -> Iterator[Extent]:
        begin = 0
        lines = self._checked(lines, source.url)
        while piece := [*itertools.islice(lines, self._piece)]:
            end = piece[-1].begin + piece[-1].n_bytes
            yield Extent(len(piece), begin, end, piece[0].number, _digest(piece))
            begin = end

    def _checked(self, lines: Iterable[Line], where: str) -> Iterator[Line]:
        """Lines, of which the first one tells whether the columns can be what they are."""
        for line in lines:
            if not line.index and (row := _row(line)):
                self.columns.check(row, where, has_prompts=True)
            yield line

    def divide(self, extents: Sequence[Extent], rows: int) -> Iterator[Extent]:
        """See `Format.divide`."""
        n = max(1, rows // self._piece)
        for i in range(0, len(extents), n):
            pieces = extents[i : i + n]
            digest = _combined(piece.digest for piece in pieces)
            n_rows = sum(piece.rows for piece in pieces)
            yield Extent(n_rows, pieces[0].begin, pieces[-1].end, pieces[0].line, digest)

    def read(self, source: Source, extent: Extent) -> Rows:
        """See `Format.read`. What is read has to be what was scanned."""
        data = read_range(source.url, extent.begin, extent.end)
        lines = [*read_lines(BytesIO(data), source.url, 1 if extent.begin == 0 else 2)]
        pieces = [lines[i : i + self._piece] for i in range(0, len(lines), self._piece)]
        if _combined(map(_digest, pieces)) != extent.digest:
            raise UsageError(f"{literal(source.url)} has changed while it was read")
        before = extent.line - lines[0].number  # lines in front of the shard
        return JsonRows(
            source.url, [replace(line, number=before + line.number) for line in lines], self.columns
        )

    def tally(self, data: bytes) -> tuple[int, int]:
        """See `Format.tally`."""
        rows = data.count(b"\n")
        if data and not data.endswith(b"\n"):
            raise ValueError("a line has no end")
        return rows, rows - data.count(_NO_ERROR + b"\n")


def _row(line: Line) -> dict[str, Any] | None:
    try:
        return dict(question.parse_object(line.text))
    except UsageError:
        return None


def _encoded(fields: dict[str, Any]) -> str:
    """Fields as JSON that every reader takes. Raises UsageError for what JSON cannot have, although Python reads it."""
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: as an escape, as it came
        return json.dumps(fields, allow_nan=False)
    except (ValueError, RecursionError):
        raise UsageError(
            "a column cannot be carried along: it has NaN or infinity, or is nested too deeply"
        ) from None
    return text


def _digest(lines: Sequence[Line]) -> str:
    return blake2b(b"".join(line.digest.to_bytes(8) for line in lines), digest_size=8).hexdigest()


def _combined(digests: Iterable[str]) -> str:
    return blake2b("".join(digests).encode(), digest_size=8).hexdigest()
