"""The CPU backend against the reference on the same model file, and against itself in chunks and threads."""

import _thread
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers.models import (
    SHAPES,
    SMALLEST,
    assert_same_state,
    difference,
    fine_weights,
    some_tokens,
    state_difference,
    write_and_open,
    write_file,
)
from helpers.naive import Int8Reference
from helpers.writers import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_kernels.runtime import instructions
from rwkv_cli.engine.backends import cpu
from rwkv_cli.engine.backends.cpu import CpuBackend, best_chunk
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import INTEGERS, WEIGHT_TYPES
from rwkv_cli.paths import EMBEDDED_MODEL

FLOATS = 2e-5
"""Of the scale. Float kernels differ from NumPy in the order of sums and in exp: measured 1e-6 after a few layers, and
5e-6 where two logits alone make the scale."""

INT8 = 0.06
"""Of the scale. Rounding activations to 8 bits costs up to 0.4 % in each of some 20 products in a row; random weights,
whose logits are sums without a direction, show up to 4 %, the trained model up to 1.4 %."""


@pytest.fixture(scope="module", params=WEIGHT_TYPES)
def tiny(request, tmp_path_factory) -> ModelFile:
    """A small model in each type."""
    return write_and_open(tmp_path_factory.mktemp("tiny") / "x", fine_weights(TINY), request.param)


def both(model: ModelFile, tokens: list[int], reference=ReferenceBackend):
    """Logits and states of the CPU backend and of a reference."""
    results = []
    for backend in (CpuBackend(model), reference(model)):
        state = State.zeros(model.config)
        results.append((backend.forward_all(tokens, state), state))
    return results


@pytest.mark.parametrize("weight_type", ["fp32", "fp16"])
@pytest.mark.parametrize("config", [*SHAPES.values(), SMALLEST], ids=[*SHAPES, "smallest"])
def test_floats_agree_with_the_reference(tmp_path, config, weight_type):
    model = write_and_open(tmp_path / "x", fine_weights(config), weight_type)
    (logits, state), (expected, expected_state) = both(model, some_tokens(config, 100))
    assert difference(logits, expected) <= FLOATS
    assert state_difference(state, expected_state) <= FLOATS


@pytest.mark.parametrize("config", [*SHAPES.values(), SMALLEST], ids=[*SHAPES, "smallest"])
def test_int8_agrees_with_the_reference_but_for_the_rounding_of_activations(tmp_path, config):
    model = write_and_open(tmp_path / "x", fine_weights(config), "int8")
    (logits, _), (expected, _) = both(model, some_tokens(config, 100))
    assert 1e-4 < difference(logits, expected) <= INT8


@pytest.mark.parametrize("config", [*SHAPES.values(), SMALLEST], ids=[*SHAPES, "smallest"])
def test_int8_agrees_with_a_reference_that_rounds_likewise(tmp_path, config):
    model = write_and_open(tmp_path / "x", fine_weights(config), "int8")
    (logits, _), (expected, _) = both(model, some_tokens(config, 8), Int8Reference)
    # Where a value lies between two integers the last bit of a float decides, and all that follows differs a little;
    # such a fork is rare, so that the first token shows whether the arithmetic is the same.
    assert difference(logits[:1], expected[:1]) <= FLOATS
    assert difference(logits, expected) <= INT8


def test_the_embedded_model_agrees_with_the_reference():
    model = ModelFile(EMBEDDED_MODEL)
    (logits, state), (expected, expected_state) = both(model, some_tokens(model.config, 16))
    assert difference(logits, expected) <= 0.03
    assert state_difference(state, expected_state) <= 0.03


def test_a_long_text_does_not_drift(tmp_path):
    model = write_and_open(tmp_path / "x", fine_weights(TINY), "fp32")
    (logits, state), (expected, expected_state) = both(model, some_tokens(TINY, 1500))
    assert difference(logits[-1], expected[-1]) <= FLOATS
    assert state_difference(state, expected_state) <= FLOATS


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_split_chunk_and_number_of_threads_gives_the_same_to_the_bit(tiny, data):
    length = data.draw(st.integers(1, 90), "length")
    tokens = some_tokens(TINY, length)
    state = State.zeros(TINY)
    expected = CpuBackend(tiny).forward_all(tokens, state)

    chunk, threads = data.draw(st.integers(1, 100), "chunk"), data.draw(st.integers(1, 3), "threads")
    backend, other = CpuBackend(tiny, threads, chunk), State.zeros(TINY)
    cuts = sorted(data.draw(st.sets(st.integers(1, length)), "cuts") | {length})
    for start, stop in zip([0, *cuts], cuts, strict=False):
        if data.draw(st.booleans(), "all logits"):
            found = backend.forward_all(tokens[start:stop], other)
            np.testing.assert_array_equal(found, expected[start:stop])
        else:
            np.testing.assert_array_equal(backend.forward(tokens[start:stop], other), expected[stop - 1])
    assert_same_state(other, state)


@pytest.mark.parametrize("name", ["one-layer", "odd-ranks", "narrow-ffn"])
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_token_by_token_gives_the_same_to_the_bit_in_other_shapes(tmp_path, name, weight_type):
    config = SHAPES[name]
    model = write_and_open(tmp_path / "x", fine_weights(config), weight_type)
    tokens, whole, single = some_tokens(config, 70), State.zeros(config), State.zeros(config)
    expected = CpuBackend(model).forward_all(tokens, whole)
    backend = CpuBackend(model, n_threads=1)
    np.testing.assert_array_equal([backend.forward([token], single) for token in tokens], expected)
    assert_same_state(single, whole)


def test_logits_are_a_copy(tiny):
    backend, state = CpuBackend(tiny), State.zeros(TINY)
    first = backend.forward([1], state)
    before = first.copy()
    backend.forward([2], state)
    np.testing.assert_array_equal(first, before)
    assert first.dtype == np.float32


def test_progress_hears_of_every_chunk(tiny):
    heard: list[int] = []
    CpuBackend(tiny, chunk=8).forward(some_tokens(TINY, 20), State.zeros(TINY), heard.append)
    assert heard == [8, 8, 4]


@pytest.mark.parametrize(
    ("n_embd", "l2_cache", "expected"),
    [
        (768, None, 64),
        (768, 256 << 10, 64),
        (768, 512 << 10, 80),
        (768, 2 << 20, 128),
        (2048, 2 << 20, 128),
        (2560, 2 << 20, 96),
        (4096, 2 << 20, 64),
    ],
)
def test_a_chunk_is_as_long_as_the_cache_is_large(n_embd, l2_cache, expected):
    assert best_chunk(n_embd, l2_cache) == expected


def test_conversations_in_threads_do_not_disturb_each_other(tiny):
    """One model in two threads, and another one that shares its team of threads."""
    backends = [CpuBackend(tiny, n_threads=2)] * 2 + [CpuBackend(tiny, n_threads=2)]
    tokens = [some_tokens(TINY, 60, seed) for seed in range(3)]
    expected = [CpuBackend(tiny).forward(t, State.zeros(TINY)) for t in tokens]
    found = [np.empty(0)] * 3

    def converse(i: int) -> None:
        state = State.zeros(TINY)
        for token in tokens[i]:
            found[i] = backends[i].forward([token], state)

    threads = [threading.Thread(target=converse, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


def test_an_interrupt_leaves_no_trace(tmp_path):
    """Ctrl-C comes while all threads compute: what is computed afterwards must not suffer."""
    model = write_and_open(tmp_path / "x", fine_weights(TINY), "fp32")
    tokens = some_tokens(TINY, 300)
    backend, checking = CpuBackend(model, n_threads=2, chunk=300), CpuBackend(model, n_threads=2, chunk=1)
    expected = checking.forward(tokens, State.zeros(TINY))
    for _ in range(10):
        timer = threading.Timer(0.02, _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            timer.start()
            while True:
                backend.forward(tokens, State.zeros(TINY))
        np.testing.assert_array_equal(checking.forward(tokens, State.zeros(TINY)), expected)


RUN_IN_A_FORK = """
import os, signal, sys
from pathlib import Path
from rwkv_cli import load
model = load(sys.argv[1])
expected, _ = model.forward([1])
with model.backend._pass.lock:  # as a thread has it that is computing
    model.backend._pass._buffers.clear()  # or about to allocate others
    child = os.fork()
if not child:
    signal.alarm(10)
    logits, _ = model.forward([1])
    os._exit((logits != expected).any())
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_computes(tmp_path):
    """A fork has none of its parent's threads, not even those that hold a lock: multiprocessing on Linux makes such."""
    path = write_file(tmp_path / "x", fine_weights(TINY))
    command = [sys.executable, "-W", "ignore", "-c", RUN_IN_A_FORK, str(path)]
    assert subprocess.run(command, check=False).returncode == 0


def test_weights_at_odd_addresses(tiny, tmp_path):
    """Another program may have written the header: a space more, and no weight is aligned."""
    content = tiny.path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    shifted = tmp_path / "x"
    shifted.write_bytes((end - 7).to_bytes(8, "little") + content[8:end] + b" " + content[end:])
    expected = CpuBackend(tiny).forward_all(range(9), State.zeros(TINY))
    found = CpuBackend(ModelFile(shifted)).forward_all(range(9), State.zeros(TINY))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_saturated_gates_stay_finite(tmp_path, weight_type):
    """Decays, rates and gates at both ends of their range: exp of a large number must not become a NaN."""
    weights = fine_weights(TINY)
    for name in weights:
        if name.endswith((".w0", ".a0", ".v0")):
            weights[name] = weights[name] * 1e4
        elif name.endswith((".w2", ".a1", ".g1")):
            weights[name] = weights[name] * 300
    (logits, _), (expected, _) = both(
        write_and_open(tmp_path / "x", weights, weight_type), some_tokens(TINY, 30)
    )
    assert difference(logits, expected) <= (
        0.2 if weight_type in INTEGERS else FLOATS
    )  # such gates double a rounding


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
@pytest.mark.parametrize("factor", [0, 1e-41, 1e-30])
def test_activations_of_next_to_nothing(tmp_path, weight_type, factor):
    """Groups without a scale, or with one whose reciprocal is infinite: the result is zero, not a NaN."""
    weights = fine_weights(TINY)
    for name in ("ln_out.weight", "ln_out.bias", "blocks.1.ln2.weight", "blocks.1.ln2.bias"):
        weights[name] = (weights[name] * factor).astype(np.float32)
    model = write_and_open(tmp_path / "x", weights, weight_type)
    logits = CpuBackend(model).forward_all([1, 2, 3, 4, 5], State.zeros(TINY))
    expected = ReferenceBackend(model).forward_all([1, 2, 3, 4, 5], State.zeros(TINY))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=max(1e-38, INT8 * np.abs(expected).max()))


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_a_model_of_zeros(tmp_path, weight_type):
    weights = {name: np.zeros_like(weight) for name, weight in fine_weights(TINY).items()}
    logits = CpuBackend(write_and_open(tmp_path / "x", weights, weight_type)).forward(
        [0, 1], State.zeros(TINY)
    )
    assert not logits.any()


def test_the_description_names_what_computes(tiny):
    text = CpuBackend(tiny, n_threads=2).description
    assert tiny.info.weight_type in text
    assert instructions.CHOSEN in text
    assert "2 threads" in text
    CpuBackend(tiny).forward([0], State.zeros(TINY))
    assert cpu.is_compiled()


PRINT_LOGITS = """
import sys
from pathlib import Path
from rwkv_cli.engine.backends.cpu import CpuBackend, best_chunk
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.engine.state import State
model = ModelFile(Path(sys.argv[1]))
logits = CpuBackend(model).forward_all(range(20), State.zeros(model.config))
sys.stdout.buffer.write(logits.tobytes())
"""


@pytest.mark.skipif(instructions.CHOSEN == "plain", reason="this machine has no other kernel than plain")
def test_the_plain_kernel_gives_the_same_to_the_bit(tmp_path):
    model = write_and_open(tmp_path / "x", fine_weights(TINY), "int8")
    expected = CpuBackend(model).forward_all(range(20), State.zeros(TINY))
    environment = os.environ | {"RWKV_CPU_KERNEL": "plain"}
    command = [sys.executable, "-c", PRINT_LOGITS, str(model.path)]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    np.testing.assert_array_equal(np.frombuffer(printed, np.float32).reshape(20, -1), expected)
