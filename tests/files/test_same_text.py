"""One small model gives the same text in every format, with the same logits to the bit where nothing is rounded."""

import numpy as np
import pytest
from helpers.golden_text import ANSWER, CONFIG, WEIGHTS, answer_of, logits_of
from helpers.models import Weights, difference
from helpers.ports import PORTS, write_port, write_st
from helpers.writers import rows, write_gguf, write_hf, write_pth, write_safetensors

from rwkv_cli.files import export


def exported(folder, format, kind):
    path = folder / f"x.{format}"
    export.write(format, path, export.ExportJob(Weights(WEIGHTS), "x", None, kind, lambda *_: None))
    return path


LOSSLESS = {
    "pth": lambda folder: write_pth(folder / "x.pth", WEIGHTS),
    "plain safetensors": lambda folder: write_safetensors(folder / "x.safetensors", rows(WEIGHTS)),
    "st": lambda folder: write_st(folder / "x.st", WEIGHTS),
    "flash-linear-attention": lambda folder: write_hf(folder / "x", WEIGHTS),
    "gguf f32": lambda folder: write_gguf(folder / "x.gguf", WEIGHTS),
    "gguf f16": lambda folder: write_gguf(folder / "x.gguf", WEIGHTS, "F16"),
    **{port: lambda folder, port=port: write_port(folder / "x", WEIGHTS, port) for port in PORTS},
    **{
        f"exported {format} {kind}": lambda folder, format=format, kind=kind: exported(folder, format, kind)
        for format in export.FORMATS
        for kind in ("bf16", "fp16", "fp32")
        if (format, kind) != ("gguf", "bf16")
    },
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return logits_of(write_pth(tmp_path_factory.mktemp("x") / "x.pth", WEIGHTS, "f32"))


def test_the_golden_text(expected):
    assert answer_of(expected) == ANSWER
    assert expected.shape[1] == CONFIG.vocab_size


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_the_same_logits(tmp_path, expected, format):
    np.testing.assert_array_equal(logits_of(LOSSLESS[format](tmp_path)), expected)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_gguf(folder / "x.gguf", WEIGHTS, "Q8_0"),
        lambda folder: exported(folder, "gguf", "q8_0"),
    ],
)
def test_q8_0_gives_the_same_text(tmp_path, expected, write):
    logits = logits_of(write(tmp_path))
    assert 0 < difference(logits, expected) <= 0.03
    assert answer_of(logits) == ANSWER
