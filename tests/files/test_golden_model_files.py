"""Model files that the previous release wrote stay readable, and compute what they computed then.

tests/golden/formats/expected.npz has the logits of the reference backend after tokens 1 to 19, by type of weights.
"""

from pathlib import Path

import numpy as np
import pytest
from helpers.models import difference

from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile, ModelInfo, is_model_file, write_model
from rwkv_cli.text.tokenizer import load_tokenizer

FORMATS = Path(__file__).parents[1] / "golden" / "formats"
TYPES = ("int8", "int4", "fp16")
TOKENS = range(1, 20)

# The reference backend multiplies with whatever BLAS NumPy has, whose order of summation depends on the machine.
REFERENCE_TOLERANCE = 1e-6
# The CPU kernels round activations to int8 where weights are integers, which the reference does not.
CPU_TOLERANCE = {"int8": 3e-2, "int4": 3e-2, "fp16": 1e-5}


@pytest.fixture(scope="module")
def expected():
    with np.load(FORMATS / "expected.npz") as arrays:
        return dict(arrays)


def golden(weight_type):
    return ModelFile(FORMATS / f"model-{weight_type}.safetensors")


@pytest.mark.parametrize("weight_type", TYPES)
def test_they_load(weight_type):
    assert is_model_file(FORMATS / f"model-{weight_type}.safetensors")
    model = golden(weight_type)
    assert model.info.weight_type == weight_type
    assert model.info.tokenizer is not None
    assert load_tokenizer(model.info.tokenizer, model.config.vocab_size).encode("a")
    assert model.is_intact()


@pytest.mark.parametrize("weight_type", TYPES)
def test_the_reference_gives_the_same_logits(expected, weight_type):
    backend = ReferenceBackend(golden(weight_type))
    logits = backend.forward(TOKENS, State.zeros(backend.config))
    assert difference(logits, expected[weight_type]) <= REFERENCE_TOLERANCE


@pytest.mark.parametrize("weight_type", TYPES)
def test_the_cpu_backend_agrees(expected, weight_type):
    backend = CpuBackend(golden(weight_type))
    logits = backend.forward(TOKENS, State.zeros(backend.config))
    assert difference(logits, expected[weight_type]) <= CPU_TOLERANCE[weight_type]


def test_this_version_writes_the_same_bytes(tmp_path):
    model = golden("fp16")
    write_model(tmp_path / "model", model, ModelInfo(**vars(model.info)))
    assert (tmp_path / "model").read_bytes() == model.path.read_bytes()
