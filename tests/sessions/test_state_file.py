"""State files: exact, checked, and never half written."""

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.models import assert_same_state, difference, state_difference
from helpers.saved import IDENTITY, C, H, L, N, V, some_memory, some_state
from helpers.writers import random_weights, write_pth
from hypothesis import given
from hypothesis import strategies as st

import rwkv_cli
from rwkv_cli.engine.constraint import GAP, ConstraintMemory
from rwkv_cli.engine.sampling import SamplerMemory
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import CheckpointError, ModelFileError, StateError, StorageError
from rwkv_cli.files.atomic import remove_leftovers
from rwkv_cli.files.model_file import ModelFile, is_model_file, write_model
from rwkv_cli.files.safetensors import SafetensorsWriter, map_safetensors
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.model_identity import identify, identify_file
from rwkv_cli.sessions.state_file import SavedState, fields
from rwkv_cli.text.templates import get_template


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.fixture(scope="module")
def gosling():
    return rwkv_cli.load()


@pytest.fixture(scope="module")
def reference():
    return rwkv_cli.load(device="reference")


@pytest.fixture(scope="module")
def gosling_int4(tmp_path_factory):
    """The embedded model in int4, made of its int8 weights, whose source it still names."""
    path = tmp_path_factory.mktemp("model") / "gosling-int4.safetensors"
    model = ModelFile(EMBEDDED_MODEL)
    write_model(path, model, dataclasses.replace(model.info, weight_type="int4"))
    return rwkv_cli.load(path)


CONSTRAINT = ConstraintMemory("regex", "[é✿]+", (0, 5), ">" + GAP, None, (1, 2, 3))


def assert_same(a, b):
    """Equal to the bit in everything that a file keeps."""
    assert_same_state(a.snapshot.state, b.snapshot.state)
    assert a.snapshot.state.wkv.dtype == np.float32
    assert (a.snapshot.logits is None) == (b.snapshot.logits is None)
    if b.snapshot.logits is not None:
        np.testing.assert_array_equal(a.snapshot.logits, b.snapshot.logits)
    assert a.snapshot.n_tokens == b.snapshot.n_tokens
    assert a.snapshot.memory == b.snapshot.memory
    for name in ("model", "name", "created", "template", "settings", "text", "unfinished", "conversation"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.model.location == b.model.location


# ----------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"text": ""},
        {"text": "Es war einmal 🦢\n\0\x1b[31m"},
        {"text": "a", "unfinished": b"\xf0\x9f"},
        {"name": "ä b", "template": get_template("g1"), "created": "2026-01-01T00:00:00+00:00"},
        {"memory": some_memory()},
        {"memory": SamplerMemory({}, np.random.default_rng(1).bit_generator.state)},
        {"memory": dataclasses.replace(some_memory(), constraint=CONSTRAINT)},
        {
            "memory": dataclasses.replace(
                some_memory(), constraint=dataclasses.replace(CONSTRAINT, thought=b"</th\xff")
            )
        },
        {"settings": {"seed": 2**70, "top_p": 0.3, "banned": frozenset({4, 1}), "logit_bias": {3: -1.5}}},
        {"conversation": {"turns": [["half a pair: \ud83d", 1, None, {"a": 0.1}]]}},
    ],
)
def test_what_is_saved_is_loaded(path, parts):
    saved = some_state(**parts)
    state_file.save(path, saved)
    assert_same(state_file.load(path), saved)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", saved.created)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "poem"}, {"source": 5}, {"ends": 5}, {"ends": ["a"]}, {"lead": "x*"},
        {"tokens": [1.5]}, {"tokens": [True]}, {"tokens": None},
    ],
)  # fmt: skip
def test_a_damaged_constraint_is_one_sentence(path, monkeypatch, changes):
    saved = some_state(memory=dataclasses.replace(some_memory(), constraint=CONSTRAINT))
    plain = dataclasses.asdict
    monkeypatch.setattr(fields, "asdict", lambda each: plain(each) | changes)
    state_file.save(path, saved)
    with pytest.raises(StateError, match="its constraint is damaged"):
        state_file.load(path)


def test_a_state_that_has_read_nothing(path):
    saved = some_state()
    saved.snapshot = dataclasses.replace(saved.snapshot, logits=None, n_tokens=0)
    state_file.save(path, saved)
    assert_same(state_file.load(path), saved)


def test_the_file_is_as_documented(path):
    """Read by the official library, and by eye."""
    from safetensors import safe_open

    saved = some_state(text="abc", memory=some_memory(), conversation={"turns": []})
    state_file.save(path, saved)
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert {name: (array.dtype.str[1:], array.shape) for name, array in tensors.items()} == {
        "shift_att": ("f4", (L, C)),
        "wkv": ("f4", (L, H, N, N)),
        "shift_ffn": ("f4", (L, C)),
        "logits": ("f4", (V,)),
        "penalty.tokens": ("i8", (3,)),
        "penalty.counts": ("f8", (3,)),
        "text": ("u1", (3,)),
        "conversation": ("u1", (12,)),
    }
    np.testing.assert_array_equal(tensors["wkv"], saved.snapshot.state.wkv)
    assert set(metadata) == set(
        "rwkv_state model tokens name created template settings generator text checksum".split()
    )
    assert metadata["model"]["weights"] == "a" * 64
    assert metadata["generator"]["state"] == str(some_memory().generator["state"]["state"])
    documented = (Path(__file__).parents[2] / "docs" / "state-file.md").read_text()
    for key in (*metadata, *tensors):
        assert f"`{key}`" in documented, key


def test_the_file_says_what_it_is_in_its_first_bytes(path):
    state_file.save(path, some_state())
    assert state_file.is_state_file(path)
    assert not is_model_file(path)
    assert not state_file.is_state_file(EMBEDDED_MODEL)
    assert not state_file.is_state_file(path.with_name("missing"))
    assert not state_file.is_state_file(path.parent)


def test_a_summary_needs_no_tensors(path):
    state_file.save(path, some_state(name="x", text="abc"), compact=True)
    data = bytearray(path.read_bytes())
    data[-8:] = b"damaged!"
    path.write_bytes(data)
    summary = state_file.peek(path)
    assert (summary.name, summary.tokens, summary.compact, summary.has_text) == ("x", 17, True, True)
    assert (summary.n_layer, summary.n_head, summary.head_size, summary.has_conversation) == (L, H, N, False)


def test_a_loaded_state_lets_go_of_its_file(path):
    state_file.save(path, some_state())
    loaded = state_file.load(path)
    before = loaded.snapshot.state.wkv.copy()
    path.write_bytes(b"")
    np.testing.assert_array_equal(loaded.snapshot.state.wkv, before)
    loaded.snapshot.state.shift_att[:] = 0  # it may be changed


# --------------------------------------------------------------------------------------------- the compact form


@pytest.mark.parametrize("scale", [1e-42, 1e-12, 1.0, 7e4, 1e30, 3e37])
def test_float16_neither_overflows_nor_vanishes(path, scale):
    saved = some_state(scale=scale)
    saved.snapshot.state.wkv[0, 0] = 0
    saved.snapshot.state.wkv[0, 1] *= np.float32(1e-3)  # each head has its own scale
    state_file.save(path, saved, compact=True)
    loaded = state_file.load(path).snapshot
    assert not loaded.state.wkv[0, 0].any()
    bound = 2**-11 if scale > 1e-30 else 1e-2  # float32 itself has few bits down there
    for layer in range(L):
        for head in range(H):
            part = saved.snapshot.state.wkv[layer, head]
            if part.any():
                assert difference(loaded.state.wkv[layer, head], part) <= bound
    assert difference(loaded.logits, saved.snapshot.logits) <= bound


def test_compact_is_half_as_large(path, gosling):
    logits, state = gosling.forward([5, 6, 7])
    position = Snapshot(state, logits)
    sizes = []
    for compact in (False, True):
        state_file.save(path, SavedState(position, identify(gosling)), compact=compact)
        sizes.append(path.stat().st_size)
        assert state_file.peek(path).compact == compact
    assert sizes[1] < 0.51 * sizes[0]


@pytest.mark.parametrize(("device", "tokens", "bound"), [("cpu", 150, 2e-3), ("reference", 24, 1e-6)])
def test_what_compact_loses(path, gosling, reference, device, tokens, bound):
    """The figures of docs/state-file.md, on fewer stories."""
    model = gosling if device == "cpu" else reference
    generation = gosling.generate("Once upon a time", template="story", seed=1, max_tokens=tokens)
    ids = [0, *gosling.tokenizer.encode("Once upon a time"), *(step.token for step in generation)]
    half = len(ids) // 2
    logits, state = model.forward(ids[:half])
    state_file.save(path, SavedState(Snapshot(state, logits, half), identify(model)), compact=True)
    rounded = state_file.load(path).snapshot
    assert state_difference(rounded.state, state) < 2**-11
    exact, lossy = (log_softmax(model.forward_all(ids[half:], each)[0]) for each in (state, rounded.state))
    assert 0 < np.mean((np.exp(exact) * (exact - lossy)).sum(-1)) < bound


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ------------------------------------------------------------------------------------------------ what is wrong


def rewritten(path, metadata=(), tensors=()):
    """The file with other metadata and tensors; None leaves one out. Its checksum is left out too."""
    mapped = map_safetensors(path)
    entries = {name: (each.dtype, each.array.copy()) for name, each in mapped.tensors.items()}
    header = {key: value for key, value in mapped.metadata.items() if key != "checksum"}
    for values, changes in ((header, metadata), (entries, tensors)):
        for name, value in dict(changes).items():
            values.pop(name, None)
            if value is not None:
                values[name] = value
    with SafetensorsWriter(path, {n: (d, a.shape) for n, (d, a) in entries.items()}, header) as writer:
        for name, (_, array) in entries.items():
            writer.write(name, array)
    return path


def f32(*shape, fill=0.0):
    return ("F32", np.full(shape, fill, np.float32))


GENERATOR = {"kind": "PCG64", "state": "5", "increment": "7", "has_half": 0, "half": 0}

HOSTILE = {
    "newer": ({"rwkv_state": "2"}, {}, "version 2 of the format and this program knows 1; update"),
    "no version": ({"rwkv_state": "true"}, {}, "its metadata has no valid 'rwkv_state'"),
    "deep JSON": ({"model": "[" * 100_000}, {}, "its metadata has no valid 'model'"),
    "no model": ({"model": None}, {}, "its metadata has no valid 'model'"),
    "half a model": ({"model": '{"name": "a"}'}, {}, "its metadata has no valid 'model'"),
    "model of numbers": ({"model": json.dumps(dict.fromkeys(vars(IDENTITY), 1))}, {}, "no valid 'model'"),
    "long name": ({"name": json.dumps("a" * 5000)}, {}, "its metadata has no valid 'name'"),
    "tokens": ({"tokens": "-1"}, {}, "its metadata has no valid 'tokens'"),
    "many tokens": ({"tokens": "9" * 30}, {}, "its metadata has no valid 'tokens'"),
    "endless tokens": ({"tokens": "9" * 5000}, {}, "its metadata has no valid 'tokens'"),
    "created": ({"created": "null"}, {}, "its metadata has no valid 'created'"),
    "template": ({"template": "[]"}, {}, "its metadata has no valid 'template'"),
    "unfinished": ({"unfinished": '"f"'}, {}, "its metadata has no valid 'unfinished'"),
    "finished": ({"unfinished": '"c3a9"'}, {}, "its metadata has no valid 'unfinished'"),
    "never finished": ({"unfinished": '"ff"'}, {}, "its metadata has no valid 'unfinished'"),
    "nothing unfinished": ({"unfinished": '""'}, {}, "its metadata has no valid 'unfinished'"),
    "settings": ({"settings": '{"top_p": 2}'}, {}, "its sampling settings are wrong"),
    "unknown setting": ({"settings": '{"heat": 2}'}, {}, "its sampling settings are wrong"),
    "NaN setting": ({"settings": '{"top_p": NaN}'}, {}, "its sampling settings are wrong"),
    "seed": ({"settings": '{"seed": 1.5}'}, {}, "its sampling settings are wrong"),
    "ban": ({"settings": '{"banned": ["a"]}'}, {}, "its sampling settings are wrong"),
    "bias": ({"settings": '{"logit_bias": [1]}'}, {}, "its sampling settings are wrong"),
    "generator": ({"generator": '{"kind": "MT19937"}'}, {}, "its metadata has no valid 'generator'"),
    "even increment": ({"generator": json.dumps(GENERATOR | {"increment": "6"})}, {}, "'generator'"),
    "large state": ({"generator": json.dumps(GENERATOR | {"state": "9" * 39})}, {}, "'generator'"),
    "no half": ({"generator": json.dumps(GENERATOR | {"half": True})}, {}, "'generator'"),
    "checksum": ({"checksum": '"00000000"'}, {}, "its checksum is wrong"),
    "no wkv": ({}, {"wkv": None}, "wkv is missing"),
    "flat wkv": ({}, {"wkv": f32(L, H * N, N)}, "wkv is missing or has an invalid shape"),
    "oblong wkv": ({}, {"wkv": f32(L, H, N, N + 1)}, "wkv is missing or has an invalid shape"),
    "other layers": ({}, {"wkv": f32(L + 1, H, N, N)}, "has the wrong type or shape"),
    "no shift": ({}, {"shift_ffn": None}, "shift_ffn is missing"),
    "wide shift": ({}, {"shift_att": f32(L, C + 1)}, "shift_att is missing or has the wrong"),
    "bytes": ({}, {"shift_att": ("U8", np.zeros((L, C), np.uint8))}, "shift_att is missing or has the wrong"),
    "float16 without scale": (
        {},
        {"shift_att": ("F16", np.zeros((L, C), np.float16))},
        "shift_att.scale is missing",
    ),
    "wide logits": ({}, {"logits": f32(2, V)}, "logits is missing or has the wrong"),
    "NaN": ({}, {"wkv": f32(L, H, N, N, fill=np.nan)}, "wkv contains NaN or infinity"),
    "infinite": ({}, {"logits": f32(V, fill=np.inf)}, "logits contains NaN or infinity"),
    "text": ({}, {"text": ("U8", np.full(3, 255, np.uint8))}, "its text is not UTF-8"),
    "text of numbers": ({}, {"text": f32(3)}, "its text is too long, or no text"),
    "conversation": ({}, {"conversation": ("U8", np.frombuffer(b"[1]", np.uint8))}, "not a JSON object"),
    "deep conversation": ({}, {"conversation": ("U8", np.full(10**5, 91, np.uint8))}, "not a JSON object"),
    "half the penalties": ({}, {"penalty.counts": None}, "the penalties are incomplete"),
    "token twice": ({}, {"penalty.tokens": ("I64", np.array([1, 1, 2]))}, "name a token twice"),
    "token beyond": (
        {},
        {"penalty.tokens": ("I64", np.array([1, V, 2]))},
        "name a token twice, or one outside",
    ),
    "token below": (
        {},
        {"penalty.tokens": ("I64", np.array([1, -1, 2]))},
        "name a token twice, or one outside",
    ),
    "negative count": (
        {},
        {"penalty.counts": ("F64", np.array([1.0, -1, 2]))},
        "penalty count is negative or not finite",
    ),
    "NaN count": (
        {},
        {"penalty.counts": ("F64", np.array([1.0, np.nan, 2]))},
        "penalty count is negative or not finite",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_sentence(path, kind):
    metadata, tensors, said = HOSTILE[kind]
    state_file.save(path, some_state(text="abc", memory=some_memory(), conversation={}))
    state_file.load(rewritten(path))  # without changes, it is fine
    rewritten(path, metadata, tensors)
    with pytest.raises(StateError, match=re.escape(said)) as error:
        state_file.load(path)
    assert str(error.value).startswith(f"{path} is not a state that can be used: ")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file with everything in it, and what it holds."""
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    saved = some_state(text="abc" * 100, memory=some_memory(), conversation={"turns": []})
    state_file.save(path, saved)
    return path, saved


@given(data=st.data())
def test_a_truncated_file_is_one_sentence(whole, data):
    size = whole[0].stat().st_size
    cut = data.draw(st.integers(0, size - 1))
    path = whole[0].with_name("cut.safetensors")
    path.write_bytes(whole[0].read_bytes()[:cut])
    with pytest.raises(StateError, match="is not a state that can be used"):
        state_file.load(path)


@given(data=st.data())
def test_a_changed_byte_is_found_or_harmless(whole, data):
    changed = bytearray(whole[0].read_bytes())
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    path = whole[0].with_name("changed.safetensors")
    path.write_bytes(changed)
    try:
        loaded = state_file.load(path)
    except StateError:
        return
    assert_same(loaded, whole[1])


def test_other_files_are_named_for_what_they_are(tmp_path):
    missing, other = tmp_path / "missing.safetensors", tmp_path / "other.safetensors"
    with SafetensorsWriter(other, {"a": ("U8", (1,))}) as writer:
        writer.write("a", np.zeros(1, np.uint8))
    pth = write_pth(tmp_path / "model.pth", random_weights())
    (tmp_path / "empty").touch()
    for path, said in (
        (missing, "there is no state file"),
        (other, "it is a safetensors file of another program"),
        (EMBEDDED_MODEL, "it is a model file: pass it with model"),
        (pth, "rwkv state import"),
        (tmp_path / "empty", "too short"),
        (tmp_path, "is a directory"),
    ):
        with pytest.raises(StateError, match=re.escape(said)):
            state_file.load(path)


def test_a_state_is_no_model(path):
    state_file.save(path, some_state())
    with pytest.raises(CheckpointError, match="is a saved state and not a model: use it as state"):
        rwkv_cli.load(path)
    with pytest.raises(ModelFileError):
        ModelFile(path)


# ------------------------------------------------------------------------------------------------- which model


def test_another_model_is_refused_by_name(gosling):
    saved = some_state()
    with pytest.raises(
        StateError,
        match=r"this state belongs to some\.pth, not to gosling\.pth: pass its own model with model",
    ):
        state_file.fit(saved, gosling)
    own = identify(gosling)
    saved.model = dataclasses.replace(own, weights="b" * 64)
    with pytest.raises(
        StateError, match=rf"gosling\.pth \(bbbbbbbb\), not to gosling\.pth \({own.weights[:8]}\)"
    ):
        state_file.fit(saved, gosling)


def test_another_tokenizer_or_shape_is_refused(gosling):
    saved = some_state()
    saved.model = identify(gosling)
    with pytest.raises(StateError, match="another shape"):
        state_file.fit(saved, gosling)
    saved.model = dataclasses.replace(saved.model, tokenizer="world")
    with pytest.raises(StateError, match="another tokenizer"):
        state_file.fit(saved, gosling)


def test_the_identity_of_a_model(gosling, reference, gosling_int4, tmp_path):
    own = identify(gosling)
    assert own.weights == ModelFile(EMBEDDED_MODEL).info.source["sha256"]
    assert (own.name, own.weight_type, own.location) == ("gosling.pth", "int8", "gosling")
    assert identify(reference) == own
    assert identify(gosling_int4) == dataclasses.replace(own, weight_type="int4")
    assert identify_file(EMBEDDED_MODEL)[0] == dataclasses.replace(own, weight_type="")
    # A checkpoint that is read as it is has no noted sha256: it is computed, and is that of its model file.
    path = write_pth(tmp_path / "a.pth", random_weights())
    raw = identify(rwkv_cli.load(path, device="reference"))
    with rwkv_cli.files.checkpoints.open_checkpoint(path) as checkpoint:
        assert raw.weights == checkpoint.sha256()
    assert (raw.name, raw.weight_type, raw.tokenizer, raw.location) == ("a.pth", "fp32", "none", str(path))


def test_another_quantization_goes_on_with_a_warning(path, gosling, gosling_int4):
    start = gosling.generate("Once upon a time", template="story", seed=1, max_tokens=10)
    list(start)
    state_file.save(path, SavedState(start.commit(), identify(gosling)))
    saved = state_file.load(path)
    assert state_file.fit(saved, gosling) is None
    assert "int8 weights, and continues with int4" in state_file.fit(saved, gosling_int4)
    text = "".join(
        step.text for step in gosling_int4.generate("", start=saved.snapshot, seed=1, max_tokens=8)
    )
    assert re.search("[a-z]", text)


PENALISED = {"presence_penalty": 0.4, "frequency_penalty": 0.4, "temperature": 1.2, "top_p": 0.9}


@pytest.mark.parametrize(("device", "half"), [("cpu", 100), ("reference", 5)])
def test_a_text_goes_on_as_if_nobody_had_stopped(path, gosling, reference, device, half):
    model = gosling if device == "cpu" else reference
    options = {"template": "story", "seed": 3, **PENALISED}
    whole = [step.token for step in model.generate("One day", max_tokens=2 * half, **options)]
    generation = model.generate("One day", max_tokens=half, **options)
    first = [step.token for step in generation]
    state_file.save(path, SavedState(generation.commit(), identify(model)))
    saved = state_file.load(path)
    again = model.generate("", max_tokens=half, start=saved.snapshot, **options)
    assert first + [step.token for step in again] == whole


@pytest.mark.parametrize("there", ["cpu", "reference"])
def test_a_state_moves_between_backends(path, gosling, reference, there):
    first, second = (gosling, reference) if there == "reference" else (reference, gosling)
    logits, state = first.forward([0, 5, 6, 7, 8])
    state_file.save(path, SavedState(Snapshot(state, logits, 5), identify(first)))
    saved = state_file.load(path)
    assert state_file.fit(saved, second) is None
    moved, stayed = (model.forward([9, 10], saved.snapshot.state)[0] for model in (second, first))
    assert difference(moved, stayed) < 0.05  # int8 activations against none


# --------------------------------------------------------------------------------------------- never half written


def test_what_is_no_number_is_not_saved(path):
    state_file.save(path, some_state())
    before = path.read_bytes()
    damaged = some_state()
    damaged.snapshot.state.wkv[1, 1, 3, 3] = np.nan
    with pytest.raises(StateError, match="it contains NaN or infinity"):
        state_file.save(path, damaged)
    assert path.read_bytes() == before


def test_too_much_text_is_not_saved(path, monkeypatch):
    monkeypatch.setattr("rwkv_cli.sessions.state_file.fields.MOST_TEXT", 10)
    with pytest.raises(StateError, match=r"its text is longer .*keep_text=False"):
        state_file.save(path, some_state(text="a" * 11))
    assert not path.exists()


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    state_file.save(path, some_state(1))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left on the disk"):
        state_file.save(path, some_state(2))
    assert_same_state(state_file.load(path).snapshot.state, some_state(1).snapshot.state)
    assert list(path.parent.iterdir()) == [path]


# Saves one state after another, the number of each in `tokens`, and notes on stdout those that are complete. A child
# does it, to be killed; its parent has imported everything.
SAVER = """
import os, random, signal, sys, time
from dataclasses import replace
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from helpers.saved import some_state
from rwkv_cli.sessions import state_file

path, done = Path(sys.argv[1]), 0
some_state(0)  # NumPy imports its random numbers when they are first used
for kill in range(100):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        for number in range(done + 1, 10**6):
            saved = some_state(0)
            saved.snapshot = replace(saved.snapshot, n_tokens=number)
            saved.text = "x" * 300_000
            state_file.save(path, saved)
            os.write(writer, b".")
    os.close(writer)
    written = len(os.read(reader, 65536))  # however slow the machine is, something was saved
    time.sleep(random.Random(kill).uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while data := os.read(reader, 65536):
        written += len(data)
    os.close(reader)
    found = state_file.load(path).snapshot.n_tokens
    assert found in (done + written, done + written + 1), (found, done, written)
    done = found
left = [name for name in os.listdir(path.parent) if name.endswith(".tmp")]
state_file.save(path, some_state(0))
print(done, len(left), os.listdir(path.parent))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")
def test_a_hundred_kills_lose_nothing(path):
    command = [sys.executable, "-c", SAVER, str(path), str(Path(__file__).parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    done, left, remaining = result.stdout.split(maxsplit=2)
    assert int(done) >= 100
    assert int(left) <= 1  # each save removes what those before it left
    assert remaining.strip() == f"['{path.name}']"


def test_only_leftovers_of_the_dead_go(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = SafetensorsWriter(tmp_path / "a", {})._temporary.name
    gone = alive.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    elsewhere = re.sub(r"\.[0-9a-f]{8}-", ".00000000-", gone)
    old = elsewhere.replace(".a.", ".b.")
    others = [".a.tmp", "a.12345678-1-12345678.tmp", ".a.12345678-1-12345678.tmp.bak"]
    for name in (alive, gone, elsewhere, old, *others):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (time.time() - 90_000,) * 2)
    remove_leftovers(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {alive, elsewhere, *others}
    remove_leftovers(tmp_path / "missing")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells when a process began")
def test_the_file_of_a_process_whose_number_was_given_away_goes(tmp_path):
    temporary = SafetensorsWriter(tmp_path / "a", {})._temporary
    began = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    other = temporary.with_name(temporary.name.replace(f"-{began}-", f"-{int(began) - 1}-"))
    for file in (temporary, other):
        file.touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [temporary]


@pytest.mark.parametrize("age", [3600, -3600], ids=["server behind", "server ahead"])
def test_the_clock_of_a_file_server_does_not_matter_on_one_machine(tmp_path, age):
    temporary = SafetensorsWriter(tmp_path / "a", {})._temporary
    temporary.touch()
    os.utime(temporary, (time.time() - age,) * 2)
    remove_leftovers(tmp_path)
    assert temporary.exists()


def test_a_folder_that_was_left_goes_with_its_files(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = SafetensorsWriter(tmp_path / "a", {})._temporary.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    (tmp_path / name).mkdir()
    (tmp_path / name / "original.safetensors").touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ü" * 100, "🦢" * 50, "a" * 243])
def test_the_temporary_file_of_a_long_name_has_a_shorter_one(tmp_path, name):
    path = tmp_path / name
    state_file.save(path, some_state())
    assert state_file.load(path).snapshot.n_tokens == 17


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_an_interrupt_while_saving_leaves_nothing_behind(path):
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from helpers.saved import some_state
        from rwkv_cli.sessions import state_file
        state_file.save(Path(sys.argv[1]), some_state(1))
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGINT)
        state_file.save(Path(sys.argv[1]), some_state(2))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True)
    assert done.returncode in (1, 130, -signal.SIGINT)
    assert_same_state(state_file.load(path).snapshot.state, some_state(1).snapshot.state)
    assert list(path.parent.iterdir()) == [path]
