"""`rwkv batch`: a dataset in, the same rows with their answers out."""

import errno
import json
import os
from pathlib import Path

import pytest
from helpers.datasets import answers_of, batch_command, parts_of
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.datasets import plan as plans
from rwkv_cli.datasets.columns import ANSWER, Columns
from rwkv_cli.datasets.jsonl import JsonLines
from rwkv_cli.datasets.plan import MANIFEST, SUCCESS
from rwkv_cli.datasets.storage import find
from rwkv_cli.errors import UsageError
from rwkv_cli.sessions.batch import Answer

ROWS = [
    {"prompt": "Once", "id": 1},
    {"prompt": "own", "seed": 3, "topic": "ä"},
    {"prompt": "short", "max_tokens": 2, "temperature": 0},
    {"prompt": "stops", "stop": ["a", "e"], "nested": {"deep": [1, None]}},
    {"prompt": "form", "choice": ["yes", "no"]},
    {"prompt": "last"},
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def batch(rwkv, tiny_model, out):
    """Run it with the tiny model: the result of the command."""
    return batch_command(rwkv, tiny_model, out)


# ------------------------------------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("shard_rows", [1, 2, 4, 100])
def test_rows_are_answered_as_lines_of_a_batch_are(rwkv, tiny_model, batch, tmp_path, out, shard_rows):
    """Options of a row, seeds and errors are those of `rwkv generate --batch`; columns are carried along."""
    rows = [ROWS[0], "\n", ROWS[1], "{broken\n", *ROWS[2:], '{"prompt": 7, "id": "x"}\n']
    file = write(tmp_path / "in.jsonl", rows)
    result = batch(file, options=("--shard-rows", str(shard_rows)), code=1)
    assert "8 of 8 rows (100%)" in result.err
    assert result.err.endswith("rwkv: 2 of 8 rows failed: the column of errors says why\n")
    plain = rwkv("generate", "-m", tiny_model, "-n", "6", "--seed", "5", "--batch", file).out.splitlines()
    found = answers_of(out)
    assert [row["index"] for row in found] == list(range(8))
    for row, line in zip(found, map(json.loads, plain), strict=True):
        assert {name: row.get(name) for name in line if name not in ("error", "id", "prompt")} == {
            name: value for name, value in line.items() if name not in ("error", "id", "prompt")
        }
        assert (row["error"] is None) == ("error" not in line)
        assert [*row][-len(ANSWER) :] == [*ANSWER]
    inputs = [ROWS[0], ROWS[1], {}, *ROWS[2:], {"prompt": 7, "id": "x"}]
    assert [{k: v for k, v in row.items() if k not in ANSWER} for row in found] == inputs
    assert found[2]["error"].startswith(f"{file}, line 4: it must be a JSON object")
    assert found[7]["error"] == f'{file}, line 9: "prompt" must be a non-empty text'
    assert len(parts_of(out)) == -(-8 // shard_rows)
    assert (out / SUCCESS).read_bytes() == b""


def test_columns_are_chosen_by_name(batch, tmp_path, out):
    rows = [{"question": "a", "text": "t", "temperature": "hot", "n": 1}, {"question": "b", "n": 2}]
    file = write(tmp_path / "in.jsonl", rows)
    options = ("--column", "prompt=question", "--column", "temperature=", "--prefix", "answer_")
    batch(file, options=(*options, "--keep-columns", "n, text"))
    first, second = answers_of(out)
    assert [*first] == ["n", "text", *("answer_" + name for name in ANSWER)]
    assert (first["n"], first["text"], second["n"]) == (1, "t", 2)
    assert first["answer_text"]
    assert "text" not in second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (),
            "has no column 'prompt': name that of the prompts with --column prompt=NAME; it has question, text",
        ),
        (
            ("--column", "prompt=question"),
            "has a column 'text', which is also one of the answer: choose other names",
        ),
        (
            ("--column", "promt=question"),
            "--column names 'promt', which is not a field; did you mean prompt?",
        ),
        (("--column", "question"), "it must be a field and a column, such as prompt=question"),
        (("--column", "prompt="), "--column has to name a column for the prompt"),
    ],
)
def test_columns_that_cannot_be(batch, tmp_path, out, options, said):
    file = write(tmp_path / "in.jsonl", [{"question": "a", "text": "t"}])
    assert said in batch(file, options=options, code=2).sentence
    assert not out.exists()


def test_files_folders_and_globs(batch, tmp_path, out):
    """In the order of their names, each once; names that begin with _ or . are no data."""
    data = tmp_path / "data"
    for name in ("b/2.jsonl", "a.jsonl", "b/1.ndjson", "_x/3.jsonl", "b/.4.jsonl", "c.txt", "b/empty.jsonl"):
        write(data / name, [] if "empty" in name else [{"prompt": name}])
    batch(data, data / "b" / "*.jsonl", options=("--shard-rows", "7"))
    assert [row["prompt"] for row in answers_of(out)] == ["a.jsonl", "b/1.ndjson", "b/2.jsonl"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "cannot read {data}: no such file or directory"),
        (lambda data: data.mkdir(), "there is no file of prompts at {data}"),
        (lambda data: write(data / "a.jsonl", ["\n \n"]), "there are no prompts in {data}/a.jsonl"),
        (lambda data: write(data, [{"prompt": "a"}]), "{data} is not a file of prompts: use .jsonl, .ndjson"),
    ],
)
def test_an_input_without_prompts(batch, tmp_path, out, make, said):
    data = tmp_path / "data"
    make(data)
    assert batch(data, code=2).sentence.startswith(said.format(data=data))
    assert not out.exists()


def test_json_that_is_no_json_to_others(batch, tmp_path, out):
    """Python reads NaN and half of a surrogate pair; what is written is read by everybody."""
    rows = [
        '{"prompt": "a", "x": NaN}\n',
        '{"prompt": "b", "x": "\\ud800"}\n',
        '{"prompt": "c", "x": ' + "[" * 900,
    ]
    rows[2] += "]" * 900 + "}\n"
    batch(write(tmp_path / "in.jsonl", rows), code=1)
    found = answers_of(out)
    assert "NaN" in found[0]["error"]
    assert found[1]["x"] == "\ud800"
    assert found[1]["error"] is None
    for part in parts_of(out):
        assert "NaN}" not in part.read_text()


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12)
LINES = st.one_of(
    st.builds(lambda text, n: json.dumps({"prompt": text, "n": n}), TEXTS, st.integers()),
    TEXTS,
    st.sampled_from(["", "  ", "{}", "[1]", '{"prompt": 1}', "\ufeff", '{"prompt": "x", "error": null}']),
)


@given(st.lists(LINES, max_size=40), st.integers(1, 50), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_shards_of_lines_are_all_lines(tmp_path_factory, lines, rows, end, has_end):
    """Every line that is not blank is a row of exactly one shard, whatever the lines and the size of shards."""
    file = tmp_path_factory.mktemp("lines") / "x.jsonl"
    data = end.join(lines).encode() + (end.encode() if has_end else b"")
    file.write_bytes(data)
    columns = Columns(prefix="answer_")
    (source,) = find([str(file)], [".jsonl"])
    kind = JsonLines(columns, plans.piece_of(rows))
    try:
        shards = [*kind.divide(kind.scan(source), rows)]
    except UsageError:  # the first object has no prompt
        assert '"prompt"' not in next(line for line in lines if line.lstrip("\ufeff").startswith("{"))
        return
    read = [kind.read(source, shard) for shard in shards]
    assert [len(each.questions) for each in read] == [shard.rows for shard in shards]
    assert all(0 < shard.rows <= rows for shard in shards)
    texts = data.decode().removeprefix("\ufeff").split("\n")
    expected = [(i + 1, text) for i, text in enumerate(texts) if text.removesuffix("\r").strip()]
    numbers = [int(each.where(i).rsplit(" ", 1)[1]) for each in read for i in range(len(each.questions))]
    assert numbers == [number for number, _ in expected]
    for rows_read, shard in zip(read, shards, strict=True):
        said = [Answer(0, "", "end", 0, 0, error=question.error) for question in rows_read.questions]
        written = rows_read.written(said, 0)
        assert kind.tally(written) == (shard.rows, sum(bool(each.error) for each in said))
        for line, answer in zip(written.splitlines(), said, strict=True):
            assert (json.loads(line)["answer_error"] or "") == answer.error


# ------------------------------------------------------------------------------------------ after an interruption


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "in.jsonl", [*ROWS, "{broken\n"])


TWO = ("--shard-rows", "2")


def test_only_shards_that_are_not_there_are_computed(batch, file, out):
    batch(file, options=TWO, code=1)
    whole = {part: part.read_bytes() for part in parts_of(out)}
    times = {part: part.stat().st_mtime_ns for part in parts_of(out)}
    (out / "part-000001.jsonl").unlink()
    (out / "part-000003.jsonl").unlink()
    (out / SUCCESS).unlink()
    result = batch(file, code=1)
    assert result.err.startswith("4 rows of an earlier run: continuing with the other rows\n")
    assert "3 of 3 rows" in result.err
    assert "1 of 7 rows failed" in result.err
    assert {part: part.read_bytes() for part in parts_of(out)} == whole
    for name in ("part-000000.jsonl", "part-000002.jsonl"):
        assert (out / name).stat().st_mtime_ns == times[out / name]
    assert (out / SUCCESS).exists()


def test_seeds_go_on_where_they_were_random(rwkv, tiny_model, file, out):
    common = (file, out, "-m", tiny_model, "-n", "6", *TWO)
    assert rwkv("batch", *common).code == 1
    whole = answers_of(out)
    (out / "part-000001.jsonl").unlink()
    assert rwkv("batch", *common).code == 1
    assert answers_of(out) == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("-t", "0.5"),
            "has answers of another model, or with other options: use the same again, or another folder",
        ),
        (("--template", "qa"), "has answers of another model, or with other options"),
        (("-m", "gosling"), "has answers of another model, or with other options"),
        (("--keep-columns", "id"), "has answers of another model, or with other options"),
        (("--seed", "6"), "was begun with --seed 5, not with 6: leave it out, or use another folder"),
        (
            ("--shard-rows", "3"),
            "was begun with --shard-rows 2, not with 3: leave it out, or use another folder",
        ),
    ],
)
def test_other_options_are_refused(batch, file, out, options, said):
    batch(file, options=TWO, code=1)
    (out / "part-000001.jsonl").unlink()
    assert (
        said
        in batch(
            file, options=(*TWO, *options) if "--shard-rows" not in options else options, code=2
        ).sentence
    )
    assert not (out / "part-000001.jsonl").exists()


@pytest.mark.parametrize("keeps_time", [False, True])
@pytest.mark.parametrize("change", ["other", "more", "less"])
def test_another_input_is_refused(batch, file, out, change, keeps_time):
    batch(file, options=TWO, code=1)
    (out / "part-000001.jsonl").unlink()
    at, text = file.stat(), file.read_text()
    file.write_text(
        {"other": text.replace("short", "shore"), "more": text + "{}\n", "less": text[:-8]}[change]
    )
    if keeps_time:
        os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))
    said = batch(file, code=2).err
    assert "has changed" in said
    assert not (out / "part-000001.jsonl").exists()


def test_the_same_input_elsewhere_is_the_same(batch, file, out, tmp_path):
    batch(file, options=TWO, code=1)
    whole = answers_of(out)
    (out / "part-000001.jsonl").unlink()
    moved = file.rename(tmp_path / "moved.jsonl")
    os.utime(moved, (1, 1))
    batch(moved, code=1)
    found = answers_of(out)
    assert [row["text"] for row in found] == [row["text"] for row in whole]


def test_a_part_that_someone_has_cut(batch, file, out):
    batch(file, options=TWO, code=1)
    part = out / "part-000001.jsonl"
    for data in (part.read_bytes()[:-3], b"", part.read_bytes().splitlines(keepends=True)[0]):
        part.write_bytes(data)
        assert "does not have the 2 rows of its shard: remove it" in batch(file, code=2).sentence


def test_folders_that_are_not_for_answers(batch, file, out):
    out.mkdir()
    (out / "mine.txt").write_text("x")
    assert "has other files, such as mine.txt: use an empty folder" in batch(file, code=2).sentence
    (out / "mine.txt").unlink()
    (out / MANIFEST).write_text('{"kind": "rwkv batch"}')
    assert "is not a manifest of rwkv batch" in batch(file, code=2).sentence
    (out / MANIFEST).write_text('{"kind": "rwkv batch", "version": 99}')
    assert "is of another version of rwkv (99)" in batch(file, code=2).sentence
    inside = write(out / "x.jsonl", [{"prompt": "a"}])
    assert "is in the folder of the answers" in batch(inside, code=2).sentence


def test_a_full_disk(batch, file, out, monkeypatch):
    """What was complete stays; the rest follows once there is space."""
    write_bytes, left = Path.write_bytes, [3]

    def full(self, data):
        if "part-" in self.name and not left[0]:
            write_bytes(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= "part-" in self.name
        return write_bytes(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        said = batch(file, options=TWO, code=1).err
    assert "no space left on the disk" in said
    assert "Traceback" not in said
    assert len(parts_of(out)) == 3
    assert not (out / SUCCESS).exists()
    assert not [each for each in out.iterdir() if each.suffix == ".tmp"]
    batch(file, code=1)
    assert [row["index"] for row in answers_of(out)] == list(range(7))
