"""Parquet files. The columns that are carried along keep their types."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from io import BytesIO
from typing import TYPE_CHECKING, Any

from rwkv_cli.datasets import question
from rwkv_cli.datasets.columns import ANSWER, NUMBERS, Columns
from rwkv_cli.datasets.storage import Source, opened
from rwkv_cli.datasets.table import Extent, Format, Rows, fields_of
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.sessions.batch import Answer

if TYPE_CHECKING:
    import pyarrow as pa


_MOST_GROUPS = 2
"""Row groups that are kept in memory, beside those of the shards that are being answered."""


def with_answers(table: pa.Table, answers: Sequence[Answer], columns: Columns, first: int | None) -> pa.Table:
    """A table with the columns of its rows' answers; their index begins with `first`, None leaves it out."""
    import pyarrow as pa

    rows = [fields_of(answer, (first or 0) + i) for i, answer in enumerate(answers)]
    for name, column in zip(ANSWER, columns.answer, strict=True):
        if name != "index" or first is not None:
            kind = pa.int64() if name in NUMBERS else pa.string()
            table = table.append_column(column, pa.array([row[name] for row in rows], kind))
    return table


def check_installed() -> None:
    """Raise UsageError unless pyarrow is there."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(
            "Parquet needs a package: in the folder of rwkv's sources, pip install '.[parquet]'"
        ) from None


class ParquetRows(Rows):
    """The rows of a shard, and where they begin in their file."""

    def __init__(self, name: str, begin: int, table: pa.Table, columns: Columns) -> None:
        self._name, self._begin, self._columns = name, begin, columns
        used = [columns.column(each) for each in question.NAMES]
        rows = table.select([name for name in table.column_names if name in used]).to_pylist()
        self.questions = [columns.question(row) for row in rows]
        kept = columns.kept
        self._table = (
            table if kept is None else table.select([each for each in kept if each in table.column_names])
        )

    def where(self, i: int) -> str:
        """See `Rows.where`."""
        return f"{self._name}, row {self._begin + i}"

    def written(self, answers: Sequence[Answer], first: int) -> bytes:
        """See `Rows.written`."""
        from pyarrow import parquet

        out = BytesIO()
        table = with_answers(self._table, answers, self._columns, first)
        parquet.write_table(table, out, compression="zstd")
        return out.getvalue()


class Parquet(Format):
    """See `Format`."""

    name, suffixes = "parquet", (".parquet", ".pq")

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns)
        self._groups = OrderedDict[tuple[str, int], "pa.Table"]()  # that were read last
        self._lock = threading.Lock()

    def scan(self, source: Source) -> Sequence[Extent]:
        """See `Format.scan`. Reads only the footer; a change that leaves it as it is shows in `Source.version`."""
        from pyarrow import parquet

        with opened(source.url) as file:
            metadata = parquet.ParquetFile(file).metadata
        names = metadata.schema.to_arrow_schema().names
        self.columns.check(names, source.url, has_prompts=True)
        digest = blake2b(repr(metadata.to_dict()).encode(), digest_size=8).hexdigest()
        return [Extent(metadata.num_rows, 0, metadata.num_rows, 0, digest)] if metadata.num_rows else []

    def divide(self, extents: Sequence[Extent], rows: int) -> Iterator[Extent]:
        """See `Format.divide`."""
        for extent in extents:
            for begin in range(extent.begin, extent.end, rows):
                end = min(begin + rows, extent.end)
                yield Extent(end - begin, begin, end, 0, extent.digest)

    def read(self, source: Source, extent: Extent) -> Rows:
        """See `Format.read`."""
        import pyarrow as pa
        from pyarrow import parquet

        with opened(source.url) as file:
            reader = parquet.ParquetFile(file)
            metadata = reader.metadata
            if blake2b(repr(metadata.to_dict()).encode(), digest_size=8).hexdigest() != extent.digest:
                raise UsageError(f"{literal(source.url)} has changed since it was divided into shards")
            parts, begin = list[pa.Table](), 0
            for i in range(metadata.num_row_groups):
                end = begin + metadata.row_group(i).num_rows
                if begin < extent.end and extent.begin < end:
                    low, high = max(extent.begin - begin, 0), min(extent.end, end) - begin
                    parts.append(self._group(source.url, reader, i).slice(low, high - low))
                begin = end
        return ParquetRows(source.url, extent.begin, pa.concat_tables(parts), self.columns)

    def _group(self, url: str, reader: Any, i: int) -> pa.Table:
        """A row group, perhaps one that was read before: shards that follow each other may be in the same."""
        with self._lock:
            if (url, i) not in self._groups:
                self._groups[url, i] = reader.read_row_group(i)
                while len(self._groups) > _MOST_GROUPS:
                    self._groups.popitem(last=False)
            return self._groups[url, i]

    def tally(self, data: bytes) -> tuple[int, int]:
        """See `Format.tally`."""
        from pyarrow import lib, parquet

        try:
            column = parquet.read_table(BytesIO(data), columns=[self.columns.answer[-1]])
        except (lib.ArrowException, OSError) as error:
            raise ValueError(str(error)) from None
        return column.num_rows, column.num_rows - column.column(0).null_count
