"""The way back: every tensor of an exported model is the one that went in, and other programs agree."""

import json
import zipfile

import numpy as np
import pytest
from helpers.models import SHAPES, Weights, byte_tokenizer, some_tokens
from helpers.ports import write_st
from helpers.writers import TINY, random_weights, write_gguf, write_hf, write_pth
from safetensors import safe_open

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import StorageError, UnsupportedModelError, UsageError
from rwkv_cli.files import export
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.checkpoints.gguf_header import map_gguf
from rwkv_cli.text.tokenizer import TokenizerSpec, load_tokenizer

WEIGHTS = random_weights(TINY, seed=5)
TARGETS = {"pth": "out.pth", "hf": "out", "st": "out.st", "gguf": "out.gguf"}


def exported(folder, format, kind=None, weights=WEIGHTS, tokenizer=None):
    """Write a model: where it is."""
    target = folder / TARGETS[format]
    job = export.ExportJob(
        Weights(weights), "tiny", tokenizer, export.type_for(format, kind), lambda *_: None
    )
    export.write(format, target, job)
    return target


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("format", export.FORMATS)
def test_every_tensor_comes_back(tmp_path, format, name):
    weights = random_weights(SHAPES[name], seed=1)  # exact in half precision
    checkpoint = open_checkpoint(exported(tmp_path, format, weights=weights))
    assert checkpoint.format == format
    assert checkpoint.config == SHAPES[name]
    for tensor, expected in weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(tensor), expected)


@pytest.mark.parametrize(
    ("format", "kind"),
    [("pth", "fp32"), ("pth", "fp16"), ("hf", "fp32"), ("st", "fp32"), ("st", "fp16"), ("gguf", "fp32")],
)
def test_other_types(tmp_path, format, kind):
    weights = {name: tensor * np.float32(1.001) for name, tensor in WEIGHTS.items()}
    checkpoint = open_checkpoint(exported(tmp_path, format, kind, weights))
    for name, expected in weights.items():
        expected = expected.astype(np.float16 if kind == "fp16" else np.float32)
        np.testing.assert_array_equal(checkpoint.tensor(name), expected)


def test_q8_0_is_near(tmp_path):
    checkpoint = open_checkpoint(exported(tmp_path, "gguf", "q8_0"))
    for name, expected in WEIGHTS.items():
        found = checkpoint.tensor(name)
        assert np.abs(found - expected).max() <= 0.005 * np.abs(expected).max() + 1e-7, name


@pytest.mark.parametrize("format", export.FORMATS)
def test_progress_and_one_file_at_the_end(tmp_path, format):
    steps = []
    job = export.ExportJob(
        Weights(WEIGHTS), "tiny", None, export.type_for(format, None), lambda *step: steps.append(step)
    )
    export.write(format, tmp_path / TARGETS[format], job)
    assert steps[-1] == (TINY.n_params, TINY.n_params)
    assert [path.name for path in tmp_path.iterdir()] == [TARGETS[format]]


@pytest.mark.parametrize("format", ["pth", "st", "gguf"])
def test_a_failure_leaves_nothing(tmp_path, format):
    weights = WEIGHTS | {"head.weight": np.full_like(WEIGHTS["head.weight"], 1e38)}
    with pytest.raises(
        UnsupportedModelError, match=r"head.weight has values too large for fp16; use type=.fp32."
    ):
        exported(tmp_path, format, "fp16", weights)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="does not exist"):
        exported(tmp_path / "none", format)


def test_a_pth_is_laid_out_as_pytorch_does_it(tmp_path):
    path = exported(tmp_path, "pth")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[:2] == ["archive/data.pkl", "archive/byteorder"]
        data = path.read_bytes()
        for entry in archive.infolist():
            lengths = np.frombuffer(data[entry.header_offset + 26 : entry.header_offset + 30], "<u2")
            assert (entry.header_offset + 30 + lengths.sum()) % 64 == 0


def test_a_folder_has_settings_and_names(tmp_path):
    folder = exported(tmp_path, "hf", tokenizer=byte_tokenizer())
    settings = json.loads((folder / "config.json").read_text())
    assert settings["model_type"] == "rwkv7"
    assert settings["torch_dtype"] == "bfloat16"
    assert settings["hidden_size"] == TINY.n_embd
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert "model.layers.1.attn.w_lora.lora.0.weight" in names
    assert "lm_head.weight" in names
    reference = write_hf(tmp_path / "written", WEIGHTS)
    with safe_open(reference / "model.safetensors", framework="np") as file:
        assert set(file.keys()) == names
        shapes = {name: file.get_slice(name).get_shape() for name in names}
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert {name: file.get_slice(name).get_shape() for name in names} == shapes
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None
    assert load_tokenizer(tokenizer, TINY.vocab_size).encode("a b") == load_tokenizer(
        byte_tokenizer(), 300
    ).encode("a b")


@pytest.mark.parametrize(
    ("kind", "dtype"), [(None, "F16"), ("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")]
)
def test_an_st_has_the_names_shapes_and_types_of_web_rwkv(tmp_path, kind, dtype):
    path = exported(tmp_path, "st", kind)
    reference = write_st(tmp_path / "written.st", WEIGHTS)
    with safe_open(path, framework="np") as file, safe_open(reference, framework="np") as expected:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(expected.keys()) == set(WEIGHTS)
        for name in WEIGHTS:
            found = file.get_slice(name)
            assert (found.get_dtype(), found.get_shape()) == (dtype, expected.get_slice(name).get_shape())
            if dtype == "F16":
                np.testing.assert_array_equal(file.get_tensor(name), expected.get_tensor(name))


def test_a_gguf_has_the_names_and_shapes_of_llama_cpp(tmp_path):
    found = map_gguf(exported(tmp_path, "gguf"))
    expected = map_gguf(write_gguf(tmp_path / "written.gguf", WEIGHTS))
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        name: tensor.shape for name, tensor in expected.tensors.items()
    }
    assert found.text("general.architecture") == "rwkv7"
    for key in expected.keys.keys() - {"general.architecture"}:
        assert found.keys[key] == expected.keys[key], key


def test_tokenizers_of_a_gguf_come_back(tmp_path):
    spec = open_checkpoint(exported(tmp_path, "gguf", tokenizer=byte_tokenizer())).tokenizer
    assert spec is not None
    text = "Hello, wörld! 12\n\n  x"
    assert load_tokenizer(spec, 300).encode(text) == load_tokenizer(byte_tokenizer(), 300).encode(text)
    strange = TokenizerSpec("tokenizer.json", b'{"model": {"type": "Unigram"}}')
    with pytest.raises(UsageError, match="cannot hold"):
        exported(tmp_path, "gguf", tokenizer=strange)


# ------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("format", export.FORMATS)
def test_from_a_checkpoint_to_a_model_file_and_back(rwkv, tmp_path, monkeypatch, format):
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "in.pth", WEIGHTS)
    assert rwkv("quantize", "in.pth", "fp32.safetensors", "--type", "fp32").code == 0
    result = rwkv("export", "fp32.safetensors", TARGETS[format], "--format", format)
    assert (result.code, result.err) == (0, "")
    back = open_checkpoint(tmp_path / TARGETS[format])
    for name, expected in WEIGHTS.items():
        np.testing.assert_array_equal(back.tensor(name), expected)
    assert rwkv("export", "fp32.safetensors", TARGETS[format]).code == 2  # it is there
    facts = json.loads(rwkv("export", "fp32.safetensors", TARGETS[format], "--force", "--json").out)
    assert facts["format"] == format
    assert facts["file_bytes"] > 100_000


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.pth", "pth"), ("x.PTH", "pth"), ("x.st", "st"), ("x.gguf", "gguf"), ("x", "hf")],
)
def test_a_name_implies_a_format(tmp_path, name, format):
    assert export.format_of(tmp_path / name) == format


@pytest.mark.parametrize("name", ["x.hf", "x.safetensors", "rwkv7-0.1b"])
def test_a_name_that_implies_none(tmp_path, name):
    with pytest.raises(UsageError, match=r"does not imply a format: set format to one of pth, hf, st, gguf"):
        export.format_of(tmp_path / name)


def test_what_was_rounded_is_said(rwkv, tmp_path):
    result = rwkv("export", "gosling", tmp_path / "gosling.gguf", "--type", "q8_0")
    assert result.code == 0
    assert "is int8: exporting does not undo the rounding" in result.err
    assert open_checkpoint(tmp_path / "gosling.gguf").tokenizer


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in.pth", "out.bin"), "does not imply a format"),
        (("in.pth", "out.pth", "--type", "q8_0"), "choose one of bf16, fp16, fp32"),
        (("in.pth", "out.gguf", "--type", "bf16"), "choose one of fp16, q8_0, fp32"),
        (("in.pth", "out.st", "--type", "q8_0"), "choose one of fp16, bf16, fp32"),
        (("in.pth", "in.pth", "--force"), "is or contains the model itself"),
        (("in.pth", ".", "--format", "hf", "--force"), "is or contains the model itself"),
        (("in.pth", "none/out.pth"), "the folder none does not exist"),
        (
            ("in.pth", "folder", "--format", "pth", "--force"),
            "is not a regular file, so it cannot be replaced",
        ),
        (("in.pth", "file.txt", "--format", "hf", "--force"), "is not a folder, so it cannot be replaced"),
    ],
)
def test_what_cannot_be(rwkv, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "in.pth", WEIGHTS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    assert said in rwkv("export", *arguments).sentence


# ------------------------------------------------------------------------------------------ other programs


def merging_tokenizer():
    """The tokenizer of bytes with a pair of letters: llama.cpp wants one at least."""
    content = json.loads(byte_tokenizer().data)
    content["model"] |= {"vocab": content["model"]["vocab"] | {"th": 257}, "merges": [["t", "h"]]}
    return TokenizerSpec("tokenizer.json", json.dumps(content).encode())


def reference_logits(path, tokens):
    from rwkv_cli.engine.backends.reference import ReferenceBackend
    from rwkv_cli.engine.state import State

    backend = ReferenceBackend(open_checkpoint(path))
    return backend.forward_all(tokens, State.zeros(backend.config))


def test_pytorch_and_the_package_rwkv_agree(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the peers extra")
    pytest.importorskip("rwkv", reason="needs the peers extra")
    from make_golden import Peer

    path = exported(tmp_path, "pth")
    for mapped in (False, True):
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        for name, expected in WEIGHTS.items():
            assert loaded[name].dtype == torch.bfloat16
            np.testing.assert_array_equal(loaded[name].float().numpy().reshape(expected.shape), expected)
    tokens = some_tokens(TINY, 32)
    expected, _ = Peer(path).forward(tokens)
    found = reference_logits(path, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-5), ("fp16", 3e-3), ("q8_0", 3e-2)])
def test_llama_cpp_agrees(tmp_path, kind, tolerance):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    weights = random_weights(SHAPES["four-layers"], seed=2)
    path = exported(tmp_path, "gguf", kind, weights, merging_tokenizer())
    tokens = some_tokens(SHAPES["four-layers"], 16)
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=2)
    model.eval(tokens)
    found = np.array(model.scores[: len(tokens)])
    expected = reference_logits(write_pth(tmp_path / "x.pth", weights), tokens)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_llama_cpp_has_the_world_vocabulary(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    config = ModelConfig(2, 64, 128, 65_536, rank_w=32, rank_a=32, rank_v=32, rank_g=32)
    world = TokenizerSpec("world")
    path = exported(tmp_path, "gguf", weights=random_weights(config), tokenizer=world)
    model = llama_cpp.Llama(str(path), n_ctx=64, verbose=False, n_threads=2)
    text = "Hello, wörld! 12\n\n 你好"
    assert model.tokenize(text.encode(), add_bos=False) == load_tokenizer(world, 65_536).encode(text)
