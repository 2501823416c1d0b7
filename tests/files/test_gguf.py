import struct
import time

import gguf
import numpy as np
import pytest
from helpers.writers import TINY, random_weights, stored_in_gguf, write_gguf, write_stored_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError, RwkvError, UnsupportedModelError
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.checkpoints.gguf_tokenizer import unescape
from rwkv_cli.text.tokenizer import TokenizerSpec

WEIGHTS = random_weights(TINY)
SMALL = ModelConfig(n_layer=1, n_embd=64, n_ffn=64, vocab_size=8, rank_w=4, rank_a=4, rank_v=0, rank_g=4)


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16"])
def test_plain_types_are_exact(tmp_path, quantization):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "x.gguf", WEIGHTS, quantization))
    assert (checkpoint.format, checkpoint.dtype, checkpoint.config) == ("gguf", quantization.lower(), TINY)
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor, err_msg=name)


def types_that(function, argument):
    """The block types that the installed package can quantize, or dequantize."""
    found = []
    for kind in gguf.GGMLQuantizationType:
        try:
            function(argument(*gguf.GGML_QUANT_SIZES[kind]), kind)
        except NotImplementedError:
            continue
        if kind.name not in ("F32", "F16", "BF16"):
            found.append(kind.name)
    return found


QUANTIZED = types_that(gguf.quantize, lambda block, _: np.ones((1, block), np.float32))
DECODED = types_that(gguf.dequantize, lambda _, n_bytes: np.zeros((1, n_bytes), np.uint8))
# Rows of multiples of 256, the largest block.
WIDE = ModelConfig(2, 256, 512, 32, rank_w=32, rank_a=64, rank_v=32, rank_g=256)


def test_the_types_of_llama_quantize_are_among_them():
    assert set(QUANTIZED) >= {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    assert set(DECODED) >= {*QUANTIZED, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS"}


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_what_the_package_quantizes_is_decoded_as_it_does(tmp_path, quantization):
    weights = random_weights(WIDE)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "x.gguf", weights, quantization))
    assert (checkpoint.dtype, checkpoint.config) == (quantization.lower(), WIDE)
    kind = gguf.GGMLQuantizationType[quantization]
    for name, tensor in weights.items():
        is_big = tensor.ndim == 2 and not name.endswith((*"12", "r_k"))
        expected = gguf.dequantize(gguf.quantize(tensor, kind), kind) if is_big else tensor
        np.testing.assert_array_equal(checkpoint.tensor(name), expected, err_msg=name)
        if is_big and quantization[0] == "Q":
            assert 0 < np.abs(expected - tensor).max() < 0.6


@pytest.mark.parametrize("quantization", DECODED)
def test_every_type_that_the_package_decodes_is_read(tmp_path, quantization):
    weights = random_weights(WIDE)
    kind = gguf.GGMLQuantizationType[quantization]
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    # Bytes below 64 are valid in every type: all scales stay finite.
    shape = (WIDE.n_ffn, WIDE.n_embd // block * n_bytes)
    blocks = np.random.default_rng(0).integers(1, 64, shape, dtype=np.uint8)
    stored = stored_in_gguf(weights) | {"blk.1.channel_mix_key.weight": (blocks, kind)}
    checkpoint = open_checkpoint(write_stored_gguf(tmp_path / "x.gguf", WIDE, stored))
    found = checkpoint.tensor("blocks.1.ffn.key.weight")
    np.testing.assert_array_equal(found, gguf.dequantize(blocks, kind))
    assert found.shape == (WIDE.n_ffn, WIDE.n_embd)
    assert len(np.unique(found)) > 2


@pytest.mark.parametrize("low_rank", ["F16", "Q8_0", "Q5_1"])
def test_low_rank_matrices_may_be_quantized_too(tmp_path, low_rank):
    weights = random_weights(WIDE)
    stored = stored_in_gguf(weights, "Q8_0", low_rank=low_rank)
    checkpoint = open_checkpoint(write_stored_gguf(tmp_path / "x.gguf", WIDE, stored))
    kind = gguf.GGMLQuantizationType[low_rank]
    for name in ("blocks.0.att.a1", "blocks.0.att.a2", "blocks.1.att.v2", "blocks.1.att.g1"):
        transposed = np.ascontiguousarray(weights[name].T)
        expected = gguf.dequantize(gguf.quantize(transposed, kind), kind).T
        np.testing.assert_array_equal(checkpoint.tensor(name), expected, err_msg=name)
    np.testing.assert_array_equal(checkpoint.tensor("blocks.1.att.w1"), weights["blocks.1.att.w1"])


def test_the_gguf_package_sees_the_same_layout(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", WEIGHTS)
    official = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    np.testing.assert_array_equal(official["blk.1.time_mix_w1.weight"], WEIGHTS["blocks.1.att.w1"].T)
    assert official["blk.1.time_mix_lerp_fused.weight"].shape == (6, 1, 1, TINY.n_embd)


def test_names_without_the_weight_suffix(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "x.gguf", WEIGHTS, suffix=""))
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor, err_msg=name)


def without(path, *beginnings):
    """A file that lacks the tensors whose names begin like this."""
    stored = {
        name: tensor for name, tensor in stored_in_gguf(WEIGHTS).items() if not name.startswith(beginnings)
    }
    return write_stored_gguf(path, TINY, stored)


def test_layer_0s_stand_in_for_the_value_residual_is_not_needed(tmp_path):
    checkpoint = open_checkpoint(without(tmp_path / "x.gguf", *(f"blk.0.time_mix_v{i}" for i in range(3))))
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor, err_msg=name)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["blk.1.time_mix_lerp_fused"], "blocks.1.att.x_r"),
        (["blk.1.time_mix_g1", "blk.1.time_mix_g2"], "blocks.1.att.g1"),
        ([f"blk.{layer}.time_mix_g" for layer in range(3)], "blocks.0.att.g1"),
        (["token_embd_norm"], "blocks.0.ln0.weight"),
    ],
)
def test_missing_tensors_are_named_officially(tmp_path, names, missing):
    with pytest.raises(
        CheckpointError, match=f"the tensor {missing} is missing: the checkpoint is incomplete"
    ):
        open_checkpoint(without(tmp_path / "x.gguf", *names))


def test_a_model_without_a_gate_is_refused(tmp_path):
    """Its five token shifts are fused all the same."""
    five = np.zeros((5, 1, 1, TINY.n_embd), np.float32), gguf.GGMLQuantizationType.F32
    stored = stored_in_gguf(WEIGHTS) | {"blk.0.time_mix_lerp_fused.weight": five}
    path = write_stored_gguf(tmp_path / "x.gguf", TINY, stored)
    with pytest.raises(
        CheckpointError, match=r"\[5, 1, 1, 128\] for the six token shifts 'blocks.0.att.x_x'"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("rwkv6", r"is an RWKV-6 model \(Finch\)"),
        ("arwkv7", "is a hybrid of RWKV-7 and a transformer"),
        ("rwkv6qwen2", "is a hybrid of RWKV-6 and Qwen2"),
        ("mamba", "is a model of the type mamba"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, architecture, message):
    path = write_gguf(tmp_path / "x.gguf", random_weights(SMALL), architecture=architecture)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(path)


def test_a_transformer_is_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"is a transformer \(llama\)"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"block_count": 5}, CheckpointError, "announces 5 layers but has 1"),
        ({"wkv__head_size": 0}, CheckpointError, "an invalid rwkv7.wkv.head_size"),
        ({"wkv__head_size": 60}, CheckpointError, "an invalid rwkv7.wkv.head_size"),
        ({"attention__layer_norm_epsilon": 1e-6}, UnsupportedModelError, "sets layer_norm_epsilon"),
    ],
)
def test_keys_of_another_model_are_refused(tmp_path, keys, error, message):
    with pytest.raises(error, match=message):
        open_checkpoint(write_gguf(tmp_path / "x.gguf", random_weights(SMALL), **keys))


def header(n_tensors: int = 0, n_keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "truncated"),
        (header(version=1), "version"),
        (header(version=3 << 24), "version"),  # big-endian
        (header(n_keys=2**63), "more tensors or keys"),
        (header(n_tensors=2**63), "more tensors or keys"),
        (header(n_keys=1) + struct.pack("<Q", 2**63), "a name of"),
        (header(n_keys=1) + struct.pack("<Q", 1) + b"\xff" + bytes(8), "not text"),
        (header(n_keys=1) + text("a") + struct.pack("<I", 99), "unknown type 99"),
        (header(n_keys=1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "unknown type 9"),
        (header(n_keys=1) + text("a") + struct.pack("<IIQ", 9, 0, 2**60), "truncated"),
        (header(n_keys=1) + text("a") + struct.pack("<IIQ", 9, 8, 2**60), "truncated"),
        (header(n_keys=2) + (text("a") + struct.pack("<IB", 0, 1)) * 2, "twice"),
        (header(1) + text("a") + struct.pack("<I", 2**31), "dimensions"),
        (header(1) + text("a") + struct.pack("<IQIQ", 1, 4, 0, 0), "truncated"),
        (header(1) + text("a") + struct.pack("<IQIQ", 1, 2**63, 0, 0), "truncated"),
        (header(1) + text("a") + struct.pack("<IQIQ", 1, 4, 0, 2**63), "truncated"),
        (header(1) + text("a") + struct.pack("<IQIQ", 1, 0, 0, 0), "invalid shape"),
        (header(1) + text("a") + struct.pack("<IQIQ", 1, 33, 8, 0), "invalid shape"),
        (header(1) + text("a") + struct.pack("<IQIQ", 1, 4, 999, 0), "unknown type 999"),
        (header(1) + text("a") + struct.pack("<IQIQ", 1, 4, 24, 0) + bytes(99), "I8 tensors"),
        (header(2) + (text("a") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2 + bytes(99), "twice"),
        (header(0, 1) + text("general.alignment") + struct.pack("<II", 4, 0), "invalid alignment"),
        (header(0, 1) + text("split.count") + struct.pack("<IH", 2, 3), "one part of a split model"),
        (header(), "is not a recognised model file"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, content, message):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.5, 0.9999])
def test_a_truncated_file_says_so(tmp_path, share):
    content = write_gguf(tmp_path / "whole.gguf", WEIGHTS).read_bytes()
    (tmp_path / "part.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="is truncated: the download stopped early; get it again"):
        open_checkpoint(tmp_path / "part.gguf")


def tokenizer_of(tmp_path, **tokenizer):
    return open_checkpoint(
        write_gguf(tmp_path / "x.gguf", random_weights(SMALL), tokenizer=tokenizer)
    ).tokenizer


def test_a_small_world_vocabulary_becomes_lines(tmp_path):
    tokens = [b"<s>", b"\\x00", b"\\n", b"it\\'s", b"\\xe4\\xbd\\xa0", b"\\\\", b'"', b"[PAD7]"]
    spec = tokenizer_of(tmp_path, model="rwkv", tokens=tokens, types=[3, 1, 1, 1, 1, 1, 1, 5])
    assert spec is not None
    assert spec.kind == "world"
    assert spec.data is not None
    lines = spec.data.decode().splitlines()
    expected = [b"\0", b"\n", b"it's", "你".encode(), b"\\", b'"']
    assert lines == [f"{index} {token!r} {len(token)}" for index, token in enumerate(expected, 1)]


def test_the_full_world_vocabulary_is_the_packaged_one(tmp_path):
    tokens = [b"<s>"] + [b"%d" % index for index in range(1, 65_536)]
    assert tokenizer_of(tmp_path, model="rwkv", tokens=tokens) == TokenizerSpec("world")


@given(st.binary(max_size=20))
def test_every_byte_string_survives_its_escapes(token):
    assert unescape(repr(token)[2:-1].encode()) == token


def byte_level_tokens() -> tuple[list[str], list[str]]:
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    return ["<|end|>", *alphabet, "he", "ll", "hell", "hello", "Ġh"], ["h e", "l l", "he ll", "hell o", "Ġ h"]


@pytest.mark.parametrize("pre", ["gpt-2", "default", None])
def test_a_byte_level_bpe_becomes_a_tokenizer_json(tmp_path, pre):
    tokens, merges = byte_level_tokens()
    types = [3] + [1] * (len(tokens) - 1)
    options = {} if pre is None else {"pre": pre}
    spec = tokenizer_of(tmp_path, model="gpt2", tokens=tokens, merges=merges, types=types, **options)
    assert spec is not None
    assert spec.data is not None
    tokenizer = Tokenizer.from_str(spec.data.decode())
    for sample in ("hello", " hello it's 你\n\n  x"):
        assert tokenizer.decode(tokenizer.encode(sample).ids) == sample
    assert tokenizer.encode("hello<|end|>").ids == [tokens.index("hello"), 0]


def test_other_tokenizers_are_left_to_a_file_beside(tmp_path):
    assert tokenizer_of(tmp_path, model="llama", tokens=["a"]) is None
    assert tokenizer_of(tmp_path, model="gpt2", pre="qwen2", tokens=["a"], merges=["a a"]) is None
    assert tokenizer_of(tmp_path) is None
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert tokenizer_of(tmp_path) == TokenizerSpec("tokenizer.json", b"{}")


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": "rwkv", "tokens": ["a", "b"], "types": [1]},
        {"model": "gpt2", "tokens": ["a", "a"]},
        {"model": "gpt2", "tokens": [b"\xff", b"a"]},
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path, tokenizer):
    with pytest.raises(CheckpointError, match="has a damaged tokenizer"):
        tokenizer_of(tmp_path, **tokenizer)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    tokenizer = {"model": "rwkv", "tokens": [b"<s>", b"a", b"b"]}
    path = tmp_path / "x.gguf"
    path.unlink(missing_ok=True)
    content = bytearray(write_gguf(path, random_weights(SMALL), "Q4_0", tokenizer).read_bytes())
    places = st.one_of(st.integers(0, 400), st.integers(0, 4000), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(places, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(4, len(content))))])
    try:
        with open_checkpoint(path) as checkpoint:
            for name, shape in checkpoint.config.tensor_shapes().items():
                assert checkpoint.tensor(name).shape == shape
    except RwkvError:
        pass


@pytest.mark.parametrize("counts", [(20_001, 0), (0, 20_001), (2**63, 2**63)])
def test_more_entries_than_any_model_are_refused(tmp_path, counts):
    path = tmp_path / "x.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, *counts) + bytes(100))
    with pytest.raises(CheckpointError, match="more tensors or keys than any model"):
        open_checkpoint(path)


def test_more_strings_than_any_vocabulary_are_refused_before_they_are_read(tmp_path):
    path, count = tmp_path / "x.gguf", 1 << 24
    path.write_bytes(header(n_keys=1) + text("k") + struct.pack("<IIQ", 9, 8, count))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 8 * count)  # all of them empty, and the file whole
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(path)
    assert time.perf_counter() - start < 1
