"""What every file format of a dataset has: how it is divided into shards, and how these are read and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwkv_cli.datasets.columns import Columns
from rwkv_cli.datasets.question import Question
from rwkv_cli.datasets.storage import Source
from rwkv_cli.sessions.batch import Answer


@dataclass(frozen=True)
class Extent:
    """Rows of a file that follow each other."""

    rows: int
    begin: int  # where they begin: a byte of a file of lines, or a row
    end: int  # behind the last one
    line: int = 0  # the number of the first line, from 1; 0 in files without lines
    digest: str = ""  # of these rows; "" where the file has to be trusted


class Rows(ABC):
    """The rows of a shard, in memory."""

    questions: Sequence[Question]

    @abstractmethod
    def where(self, i: int) -> str:
        """Where a row comes from, for its error."""

    @abstractmethod
    def written(self, answers: Sequence[Answer], first: int) -> bytes:
        """The file of these rows with their answers; `first` is the index of the first row in the whole dataset."""


class Format(ABC):
    """A file format of datasets."""

    name: str
    suffixes: Sequence[str]

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    @abstractmethod
    def scan(self, source: Source) -> Sequence[Extent]:
        """All rows of a file, in pieces as small as they may have to be. Raises UsageError if it cannot be read."""

    @abstractmethod
    def divide(self, extents: Sequence[Extent], rows: int) -> Iterable[Extent]:
        """Shards of this many rows, the last one of a file fewer; lines in multiples of `jsonl.PIECE`."""

    @abstractmethod
    def read(self, source: Source, extent: Extent) -> Rows:
        """The rows of a shard. Raises UsageError where the file has changed, or cannot be read."""

    @abstractmethod
    def tally(self, data: bytes) -> tuple[int, int]:
        """How many rows a file of answers has, and how many of them failed. Raises ValueError for another file."""


def fields_of(answer: Answer, index: int) -> Mapping[str, Any]:
    """The columns of an answer, by the names of `columns.ANSWER`; null where there is nothing."""
    failed = bool(answer.error)
    return {
        "index": index,
        "text": None if failed else answer.text,
        "thought": answer.thought or None,
        "finish": answer.finish,
        "prompt_tokens": None if failed else answer.prompt_tokens,
        "generated_tokens": None if failed else answer.generated_tokens,
        "error": answer.error or None,
    }
