"""A batch that is planned: its shards, and the manifest that keeps the plan beside the answers.

The manifest says what the answers depend on, so that a run is continued with the same input and the same options only.
A shard is a file of answers; that it is there means that it is done.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from rwkv_cli.datasets.columns import Columns
from rwkv_cli.datasets.jsonl import PIECE, JsonLines
from rwkv_cli.datasets.parquet import Parquet
from rwkv_cli.datasets.parquet import check_installed as check_parquet
from rwkv_cli.datasets.storage import OutputFolder, Source, find
from rwkv_cli.datasets.table import Extent, Format
from rwkv_cli.errors import UsageError, literal

MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"
"""Files of the output that are not data: names that begin with _ are left out by what reads datasets."""

_VERSION = 1
_SHARDS, _SHARDS_EACH = 2_000, 80
"""Shards that a dataset is divided into, at least so many for each replica, unless they would be too small or large."""

_MOST_ROWS = 78 * PIECE


@dataclass(frozen=True)
class Shard:
    """Some rows of a file, which are answered in one file."""

    number: int
    source: int  # which file
    first: int  # the index of the first row in the whole dataset
    extent: Extent


@dataclass(frozen=True)
class Plan:
    """What is to be done, as data that can be pickled."""

    run: str  # a digest of all that the answers depend on, beside the rows and the seed
    seed: int  # of the first row; each row has one more than the one before
    format: str
    columns: Columns
    shard_rows: int
    sources: Sequence[Source]
    shards: Sequence[Shard]
    output: str  # the folder

    @property
    def rows(self) -> int:
        """Of the whole dataset."""
        return sum(shard.extent.rows for shard in self.shards)

    @property
    def folder(self) -> OutputFolder:
        """Where the answers go."""
        return OutputFolder(self.output)

    def file_of(self, shard: Shard) -> str:
        """The name of the file of a shard's answers."""
        return f"part-{shard.number:06d}.{self.format}"

    def make_format(self) -> Format:
        """The format of input and output."""
        return make_format(self.format, self.columns, self.shard_rows)

    def to_json(self) -> str:
        """The manifest."""
        fields = {name: value for name, value in vars(self).items() if name not in ("shards", "output")}
        about = {"kind": "rwkv batch", "version": _VERSION, **fields, "columns": asdict(self.columns)}
        about["sources"] = [astuple(each) for each in self.sources]
        about["shards"] = [(each.source, each.first, *astuple(each.extent)) for each in self.shards]
        return json.dumps(about, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, data: bytes, output: str) -> Plan:
        """The plan of a manifest. Raises UsageError for anything else."""
        try:
            about: dict[str, Any] = json.loads(data)
            if (about.pop("kind"), version := about.pop("version")) != ("rwkv batch", _VERSION):
                raise UsageError(f"{literal(output)} is of another version of rwkv ({literal(str(version))})")
            columns = about["columns"]
            columns["kept"] = None if columns["kept"] is None else tuple(columns["kept"])
            about["columns"] = Columns(**columns)
            about["sources"] = [Source(*each) for each in about["sources"]]
            about["shards"] = [
                Shard(i, source, first, Extent(*extent))
                for i, (source, first, *extent) in enumerate(about["shards"])
            ]
            return cls(**about, output=output)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UsageError(f"{literal(output)}/{MANIFEST} is not a manifest of rwkv batch") from None


def make_format(name: str, columns: Columns, shard_rows: int | None) -> Format:
    """A format by name. Raises UsageError where its package is missing."""
    if name == Parquet.name:
        check_parquet()
        return Parquet(columns)
    return JsonLines(columns, piece_of(shard_rows))


def piece_of(shard_rows: int | None) -> int:
    """The lines that are never in different shards, for shards of this many rows."""
    return PIECE if shard_rows is None or shard_rows % PIECE == 0 else shard_rows


@dataclass(frozen=True)
class Input:
    """Files of prompts, divided into shards."""

    format: str
    shard_rows: int
    sources: Sequence[Source]
    shards: Sequence[Shard]


def find_sources(places: Sequence[str], output: str) -> tuple[str, list[Source]]:
    """The format of files of prompts, and the files. Raises UsageError unless they are all of one."""
    suffixes = {suffix: each.name for each in (JsonLines, Parquet) for suffix in each.suffixes}
    sources = find(places, suffixes)
    formats = set[str]()
    for source in sources:
        name = next((name for suffix, name in suffixes.items() if source.url.lower().endswith(suffix)), None)
        if name is None:
            raise UsageError(f"{literal(source.url)} is not a file of prompts: use {', '.join(suffixes)}")
        formats.add(name)
        if source.url.startswith(output + "/"):
            raise UsageError(
                f"{literal(source.url)} is in the folder of the answers: use another one for them"
            )
    if len(formats) > 1:
        raise UsageError(
            "there are JSON lines and Parquet files among the prompts: answer them one after another"
        )
    return formats.pop(), sources


def divide(
    name: str, sources: Sequence[Source], columns: Columns, shard_rows: int | None, replicas: int = 1
) -> Input:
    """Shards of files, whose size suits so many replicas unless it is given.

    Raises UsageError for files that cannot be read, or have no rows.
    """
    kind = make_format(name, columns, shard_rows)
    found = [kind.scan(source) for source in sources]
    rows = sum(extent.rows for extents in found for extent in extents)
    if not rows:
        raise UsageError(
            f"there are no prompts in {literal(sources[0].url)}" + (" and others" if sources[1:] else "")
        )
    if shard_rows is None:
        n_shards = max(_SHARDS, _SHARDS_EACH * replicas)
        shard_rows = min(max(rows // n_shards // PIECE * PIECE, PIECE), _MOST_ROWS)
    shards, first = list[Shard](), 0
    for i, extents in enumerate(found):
        for extent in kind.divide(extents, shard_rows):
            shards.append(Shard(len(shards), i, first, extent))
            first += extent.rows
    return Input(name, shard_rows, sources, shards)
