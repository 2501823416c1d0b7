"""What lies beside the weights: vocabularies, and names."""

from pathlib import Path

import pytest
from helpers.models import SHARED, needs_shared
from helpers.ports import write_port, write_st
from helpers.writers import random_weights, write_gguf, write_hf, write_pth, write_safetensors

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.checkpoints.beside import sensible_name, tokenizer_beside, without_suffix
from rwkv_cli.text.tokenizer import TokenizerSpec, WorldTokenizer, load_tokenizer


def sized(vocab_size):
    return ModelConfig(1, 64, 64, vocab_size, rank_w=4, rank_a=4, rank_v=0, rank_g=4)


SMALL = random_weights(sized(8))
WORLD = TokenizerSpec("world")
TRIE = b'{"version": "1.0", "model": {"type": "RwkvTrie", "vocab": {}}}'
JSON = b'{"model": {"type": "BPE", "vocab": {"\\"RwkvTrie\\"": 0}}}'
FILE = "rwkv_vocab_v20230424.txt"
BYTES = b"".join(b"%d %r 1\n" % (byte + 1, bytes([byte])) for byte in range(256))


# ------------------------------------------------------------------------------------------- the vocabulary


@pytest.mark.parametrize("vocab_size", [65_529, 65_530, 65_535, 65_536, 65_537, 65_664])
def test_rows_of_the_worlds_size_need_no_file(tmp_path, vocab_size):
    expected = WORLD if vocab_size == 65_536 else None
    assert tokenizer_beside(tmp_path, vocab_size) == expected


def test_a_folder_without_a_vocabulary_file_is_a_world_model(tmp_path):
    weights = random_weights(sized(65_536))
    for folder in (
        write_hf(tmp_path / "fla", weights),
        write_port(tmp_path / "rwkv", weights, "RwkvForCausalLM"),
    ):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.tokenizer == WORLD
        text = "Hello, wörld! ✿ 你好"
        tokenizer = load_tokenizer(checkpoint.tokenizer, 65_536)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("vocab_size", "expected"), [(65_536, WORLD), (65_530, WORLD), (65_529, None), (8, None)]
)
def test_the_trie_of_a_fork_stands_for_the_world_vocabulary(tmp_path, vocab_size, expected):
    (tmp_path / "tokenizer.json").write_bytes(TRIE)
    assert tokenizer_beside(tmp_path, vocab_size) == expected


@pytest.mark.parametrize("data", [JSON, b"{}", b'["RwkvTrie"]', b'{"model": "RwkvTrie"}', b'"RwkvTrie" {'])
def test_other_tokenizers_are_read_as_they_are(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    assert tokenizer_beside(tmp_path, 65_530) == TokenizerSpec("tokenizer.json", data)


def world_text():
    """The packaged vocabulary as text, in other words than the published file."""
    world = WorldTokenizer()
    lines = ((token, world.token_bytes(token)) for token in range(1, world.vocab_size))
    return "".join(f"{token} {string!r} {len(string)}\n" for token, string in lines).encode()


@pytest.mark.parametrize("vocab_size", [65_530, 65_536, 70_000])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_the_world_vocabulary_in_a_folder_is_the_packaged_one(tmp_path, vocab_size, ending):
    (tmp_path / FILE).write_bytes(world_text().replace(b"\n", ending))
    (tmp_path / "tokenizer.json").write_bytes(JSON)
    assert tokenizer_beside(tmp_path, vocab_size) == WORLD


@needs_shared
def test_the_published_vocabulary_is_recognised(tmp_path):
    data = (SHARED / FILE).read_bytes()
    for content in (data, data.replace(b"\n", b"\r\n")):
        (tmp_path / FILE).write_bytes(content)
        assert [tokenizer_beside(tmp_path, size) for size in (65_536, 65_530, 8192)] == [WORLD, WORLD, None]


@pytest.mark.parametrize("vocab_size", [257, 300, 65_536])
def test_another_world_vocabulary_is_used(tmp_path, vocab_size):
    (tmp_path / FILE).write_bytes(BYTES)
    (tmp_path / "tokenizer.json").write_bytes(JSON)
    spec = tokenizer_beside(tmp_path, vocab_size)
    assert spec == TokenizerSpec("world", BYTES)
    assert load_tokenizer(spec, vocab_size).encode("ab") == [98, 99]


def test_a_vocabulary_that_does_not_fit_is_left_alone(tmp_path):
    (tmp_path / FILE).write_bytes(BYTES)
    assert tokenizer_beside(tmp_path, 256) is None
    (tmp_path / "tokenizer.json").write_bytes(JSON)
    assert tokenizer_beside(tmp_path, 256) == TokenizerSpec("tokenizer.json", JSON)


def test_a_damaged_world_vocabulary_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(BYTES[:-3])
    with pytest.raises(
        CheckpointError, match=rf"{FILE} cannot be read: .* line 256: .*; get it again or remove it"
    ):
        tokenizer_beside(tmp_path, 65_536)


@pytest.mark.parametrize(("name", "size"), [(FILE, (16 << 20) + 1), ("tokenizer.json", (64 << 20) + 1)])
def test_a_huge_vocabulary_is_not_read(tmp_path, name, size):
    with (tmp_path / name).open("wb") as file:
        file.truncate(size)
    with pytest.raises(CheckpointError, match=rf"{name} has {size:,} bytes, more than any .*vocabulary"):
        tokenizer_beside(tmp_path, 300)


# --------------------------------------------------------------------------------------------------- names


def named(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.name


@pytest.mark.parametrize("place", ["My Model-0.1B.v2", "models--OWNER--My-Model.v2/snapshots/0123abcd"])
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_folder_is_called_by_its_own_name_however_it_is_written(tmp_path, monkeypatch, place, file):
    folder = write_hf(tmp_path / place, SMALL)
    (folder / "inside").mkdir()
    ways = {
        tmp_path: [str(folder), f"{place}/", f"./{place}/.", f"{place}/inside/.."],
        folder: [".", "", f"../{folder.name}", "inside/.."],
        folder / "inside": ["..", "../", f"../../{folder.name}"],
    }
    for here, paths in ways.items():
        monkeypatch.chdir(here)
        for way in paths:
            assert named(Path(way) / file) == ("My-Model.v2" if "--" in place else place), way


def test_a_subfolder_of_a_snapshot_keeps_its_name(tmp_path):
    folder = tmp_path / "models--rwkv-rs--rwkv7-g1-st" / "snapshots" / "abc" / "rwkv7-g1k-1.5b"
    assert named(write_port(folder, SMALL, "RwkvForCausalLM")) == "rwkv7-g1k-1.5b"


def test_shards_are_called_by_their_folder(tmp_path):
    assert named(write_hf(tmp_path / "sharded.0.4b", SMALL, shards=2)) == "sharded.0.4b"


def test_a_folder_with_a_config_is_called_by_its_own_name_whatever_its_file_is_called(tmp_path):
    folder = write_hf(tmp_path / "name", SMALL)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert named(folder) == named(folder / "other.safetensors") == "name"


@pytest.mark.parametrize("file", ["rwkv7-g1-0.1b-20250307-ctx4096", "x.y.z"])
def test_a_file_is_called_by_its_name_without_its_ending(tmp_path, file):
    for suffix, write in ((".pth", write_pth), (".st", write_st), (".safetensors", write_safetensors)):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        path = write(folder / (file + suffix), SMALL)
        assert named(path) == named(folder) == file
    assert named(write_gguf(tmp_path / f"{file}.gguf", SMALL)) == file
    path = write_pth(tmp_path / file, SMALL)  # no ending at all
    assert named(path) == file


@pytest.mark.parametrize("file", ["model.pth", "pytorch_model.bin", "Model.st", "model.gguf"])
def test_a_file_without_a_name_of_its_own_takes_its_folders(tmp_path, file):
    folder = tmp_path / "My Model"
    folder.mkdir()
    write = {"pth": write_pth, "bin": write_pth, "st": write_st, "gguf": write_gguf}[file.rpartition(".")[2]]
    assert named(write(folder / file, SMALL)) == "My Model"


def test_a_link_is_called_as_it_is_named(tmp_path):
    blob = write_pth(tmp_path / "0123456789abcdef", SMALL)
    snapshot = tmp_path / "models--BlinkDL--rwkv7-g1" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "rwkv7-g1d-0.1b.pth").symlink_to(blob)
    assert named(snapshot / "rwkv7-g1d-0.1b.pth") == "rwkv7-g1d-0.1b"


def test_a_blob_of_the_cache_is_called_like_its_repository(tmp_path):
    blobs = tmp_path / "models--BlinkDL--rwkv7-g1" / "blobs"
    blobs.mkdir(parents=True)
    assert named(write_pth(blobs / ("0a" * 32), SMALL)) == "rwkv7-g1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rwkv7 Goose 0.1B", "Rwkv7 Goose 0.1B"),
        ("  padded.gguf ", "padded"),
        ("rwkv7-g1-0.1b", "rwkv7-g1-0.1b"),
        ("你好", "你好"),
        ("gosling.pth", "gosling"),
        ("", "file"),
        (" \n", "file"),
        ("...", "file"),
        ("a\x1b[31mb", "file"),
        ("/home/someone/model", "file"),
        ("C:\\models\\x", "file"),
        ("model", "file"),
        ("B672701CCCF4BDDCC66F65C8C9A468B776C9836A", "file"),
        ("x" * 101, "file"),
        (b"\xff\xfe", "file"),
    ],
)
def test_the_name_inside_a_gguf_is_used_if_it_is_one(tmp_path, text, expected):
    assert named(write_gguf(tmp_path / "file.gguf", SMALL, values={"general.name": text})) == expected


def test_a_gguf_whose_name_is_no_text_is_called_by_its_file(tmp_path):
    assert named(write_gguf(tmp_path / "file.gguf", SMALL, values={"general.name": 7})) == "file"


def test_endings():
    assert without_suffix("a.PTH") == "a"
    assert without_suffix(".pth") == ".pth"
    assert without_suffix("rwkv7-0.1b") == "rwkv7-0.1b"
    assert sensible_name(None) is None
