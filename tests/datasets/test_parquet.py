"""Parquet files: rows keep their types, and are answered once."""

import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
from helpers.datasets import batch_command
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from rwkv_cli.datasets.columns import ANSWER, Columns
from rwkv_cli.datasets.parquet import Parquet
from rwkv_cli.datasets.storage import find
from rwkv_cli.errors import UsageError
from rwkv_cli.sessions.batch import Answer


def write(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **options)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def batch(rwkv, tiny_model, out):
    return batch_command(rwkv, tiny_model, out, "--ban", "0")


def answers(folder):
    return pa.concat_tables(parquet.read_table(each) for each in sorted(folder.glob("part-*")))


TABLE = pa.table(
    {
        "prompt": ["a", "b", None, "d", "e"],
        "n": pa.array([1, 2, None, 4, 5], pa.int8()),
        "at": pa.array([0, 1, 2, 3, None], pa.timestamp("us", "UTC")),
        "tags": [["x"], [], None, ["y", "z"], ["w"]],
        "max_tokens": [1.0, None, 2.0, float("nan"), 3.0],  # as pandas has whole numbers beside nulls
        "choice": [None, '["yes", "no"]', None, None, "[broken"],
    }
)


@pytest.mark.parametrize("shard_rows", [1, 2, 5, 100])
@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_columns_keep_their_types_beside_the_answers(batch, tmp_path, out, shard_rows, row_group_size):
    file = write(tmp_path / "in.parquet", TABLE, row_group_size=row_group_size)
    batch(file, options=("--shard-rows", str(shard_rows)), code=1)
    found = answers(out)
    assert found.column_names == [*TABLE.column_names, *ANSWER]
    assert [field.type for field in found.schema][: TABLE.num_columns] == [
        field.type for field in TABLE.schema
    ]
    assert repr(found.select(TABLE.column_names).to_pylist()) == repr(TABLE.to_pylist())  # NaN is not NaN
    rows = found.to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["generated_tokens"] for row in rows][:1] == [1]
    assert rows[1]["text"] in ("yes", "no")
    assert rows[3]["generated_tokens"] == 6
    assert [row["error"] for row in rows if row["error"]] == [
        f'{file}, row 2: "prompt" must be a non-empty text',
        f'{file}, row 4: "choice" begins like JSON, and is not valid',
    ]
    assert [found.schema.field(name).type for name in ("index", "text", "error")] == [
        pa.int64(),
        pa.string(),
        pa.string(),
    ]


def test_only_shards_that_are_not_there_are_computed(batch, tmp_path, out):
    file = write(tmp_path / "in.parquet", TABLE)
    batch(file, options=("--shard-rows", "2"), code=1)
    whole = answers(out)
    times = {part: part.stat().st_mtime_ns for part in out.glob("part-*")}
    (out / "part-000001.parquet").unlink()
    result = batch(file, code=1)
    assert result.err.startswith("3 rows of an earlier run")
    assert "2 of 5 rows failed" in result.err
    assert repr(answers(out).to_pylist()) == repr(whole.to_pylist())
    assert sum(part.stat().st_mtime_ns != time for part, time in times.items()) == 1
    (out / "part-000001.parquet").write_bytes(b"PAR1")
    assert "does not have the 2 rows of its shard" in batch(file, code=2).sentence


def test_another_input_is_refused(batch, tmp_path, out):
    file = write(tmp_path / "in.parquet", TABLE)
    batch(file, options=("--shard-rows", "2"), code=1)
    (out / "part-000001.parquet").unlink()
    write(file, TABLE.slice(1))
    assert "the input has changed since" in batch(file, code=2).sentence


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"PAR1 and no more"), "cannot read {path}: "),
        (lambda path: write(path, pa.table({"question": ["a"]})), "{path} has no column 'prompt'"),
        (
            lambda path: write(path, pa.table({"prompt": ["a"], "error": ["b"]})),
            "{path} has a column 'error'",
        ),
        (
            lambda path: write(path, pa.table({"prompt": pa.array([], pa.string())})),
            "there are no prompts in {path}",
        ),
    ],
)
def test_files_that_cannot_be_answered(batch, tmp_path, make, said):
    path = tmp_path / "in.parquet"
    make(path)
    assert batch(path, code=2).sentence.startswith(said.format(path=path))


def test_both_formats_at_once_are_refused(batch, tmp_path):
    write(tmp_path / "data" / "in.parquet", TABLE)
    (tmp_path / "data" / "in.jsonl").write_text('{"prompt": "a"}\n')
    assert "JSON lines and Parquet files among the prompts" in batch(tmp_path / "data", code=2).sentence


@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 12))
def test_shards_are_all_rows(tmp_path_factory, n, rows, row_group_size):
    """Every row is in exactly one shard, whatever the row groups."""
    table = pa.table({"prompt": pa.array([f"row {i}" for i in range(n)], pa.string()), "n": [*range(n)]})
    file = write(tmp_path_factory.mktemp("rows") / "x.parquet", table, row_group_size=row_group_size)
    kind = Parquet(Columns())
    (source,) = find([str(file)], kind.suffixes)
    shards = [*kind.divide(kind.scan(source), rows)]
    found, first = [], 0
    for shard in shards:
        read = kind.read(source, shard)
        assert [each.prompt for each in read.questions] == [f"row {first + i}" for i in range(shard.rows)]
        data = read.written([Answer(0, "t", "end", 1, 1) for _ in read.questions], first)
        assert kind.tally(data) == (shard.rows, 0)
        found.append(parquet.read_table(pa.BufferReader(data)))
        first += shard.rows
    if n:
        assert pa.concat_tables(found).select(["prompt", "n"]).equals(table)
        write(file, table.slice(0, n - 1))
        with pytest.raises(UsageError, match="has changed"):
            kind.read(source, shards[0])
