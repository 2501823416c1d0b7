"""The Python API: what `load` opens, what it keeps in the cache, and how a model reads and writes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.models import (
    SHAPES,
    Weights,
    assert_same_state,
    byte_tokenizer,
    fine_weights,
    some_tokens,
    write_file,
)
from helpers.writers import TINY, random_weights, write_gguf, write_hf, write_pth

import rwkv_cli
from rwkv_cli import Model, State, load
from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends import cpu
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import (
    CheckpointError,
    DeviceError,
    ModelFileError,
    RwkvError,
    StorageError,
    TokenizerError,
    UnsupportedModelError,
    UsageError,
)
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.reporting import Reporter
from rwkv_cli.text.templates import templates
from rwkv_cli.text.tokenizer import TokenizerSpec

WEIGHTS = random_weights(TINY)
TOKENS = some_tokens(TINY, 40)


class Listener(Reporter):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def quantizing(self, done: int, total: int) -> None:
        self.done.append((done, total))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RWKV_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Model:
    """A random model that can read and write bytes."""
    return load(
        write_file(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", WEIGHTS, tokenizer=byte_tokenizer())
    )


@pytest.fixture(scope="module")
def gosling() -> Model:
    return load()


def logits_of(path, device: str) -> np.ndarray:
    return load(path, device).forward_all(TOKENS)[0]


# --------------------------------------------------------------------------------------------- what load opens


def test_the_embedded_model_is_the_default(gosling):
    assert gosling.path == EMBEDDED_MODEL
    assert gosling.backend.name == "cpu"
    assert gosling.info.weight_type == "int8"
    assert gosling.template is templates()["story"]
    assert gosling.tokenizer.vocab_size == gosling.config.vocab_size == 8192
    assert load("gosling").path == EMBEDDED_MODEL


@pytest.mark.parametrize("device", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_file_by_its_path(tiny, device, kind):
    model = load(kind(tiny.path), device)
    assert model.backend.name == ("reference" if device == "reference" else "cpu")
    assert (model.info, model.config, model.path) == (tiny.info, TINY, tiny.path)


def test_a_device_that_nothing_has(tiny):
    with pytest.raises(UsageError, match="device is 'abacus': it must be one of auto, cuda, cpu, reference"):
        load(tiny.path, "abacus")


FORMATS = {
    "pth-bf16": lambda folder: write_pth(folder / "x.pth", WEIGHTS),
    "pth-f32-layer-0": lambda folder: write_pth(folder / "x.pth", WEIGHTS, "f32", "[C]", with_layer0_v=True),
    "hf": lambda folder: write_hf(folder / "x", WEIGHTS),
    "hf-sharded": lambda folder: write_hf(folder / "x", WEIGHTS, shards=3, fused=True, dtype="f16"),
    "gguf-f32": lambda folder: write_gguf(folder / "x.gguf", WEIGHTS),
    "gguf-f16": lambda folder: write_gguf(folder / "x.gguf", WEIGHTS, "F16"),
    "gguf-bf16": lambda folder: write_gguf(folder / "x.gguf", WEIGHTS, "BF16"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_logits_to_the_bit(tmp_path, cache, name):
    path = FORMATS[name](tmp_path)
    expected = ReferenceBackend(Weights(WEIGHTS)).forward_all(TOKENS, State.zeros(TINY))
    np.testing.assert_array_equal(logits_of(path, "reference"), expected)
    assert not cache.exists()  # the reference reads the checkpoint as it is

    quantized = write_file(tmp_path / "int8.safetensors", WEIGHTS)
    np.testing.assert_array_equal(logits_of(path, "cpu"), logits_of(quantized, "cpu"))


@pytest.mark.usefixtures("cache")
def test_sizes_that_the_kernels_do_not_have_are_refused(tmp_path):
    """Heads of 32: the state is half of what the kernels would write to."""
    config = ModelConfig(**TINY.as_dict() | {"head_size": 32})
    path = write_pth(tmp_path / "x.pth", random_weights(config))
    with pytest.raises(UnsupportedModelError, match="heads of 32"):
        load(path, "cpu")
    assert np.isfinite(load(path, "reference").forward([1, 2])[0]).all()


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blocks.1.att.key.weight", "blocks.2.att.a0", "emb.weight"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, cache, device, value, name):
    broken = WEIGHTS[name].copy()
    broken.flat[5] = value
    path = write_pth(tmp_path / "x.pth", WEIGHTS | {name: broken})
    with pytest.raises(
        CheckpointError, match=f"holds a NaN or an infinity in the tensor {name}: get the file again"
    ):
        load(path, device)
    assert not list(cache.glob("models/*"))


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_vocabulary_of_another_model_is_refused(tmp_path, cache, device):
    config = ModelConfig(**TINY.as_dict() | {"vocab_size": 256})
    message = "the tokenizer has 257 entries, the model 256: they do not belong together"
    path = write_file(tmp_path / "x.safetensors", random_weights(config), tokenizer=byte_tokenizer())
    with pytest.raises(TokenizerError, match=message):
        load(path, device)
    (tmp_path / "tokenizer.json").write_bytes(byte_tokenizer().data)
    with pytest.raises(TokenizerError, match=message):
        load(write_pth(tmp_path / "x.pth", random_weights(config)), device)
    assert not list(cache.glob("models/*"))


def test_a_damaged_model_file_is_not_taken_for_a_checkpoint(tiny, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(tiny.path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="truncated"):
        load(path)


def test_a_damaged_tokenizer_is_refused_in_one_sentence(tmp_path):
    spec = TokenizerSpec("tokenizer.json", b'{"model": 1}')
    with pytest.raises(TokenizerError, match=r"the tokenizer\.json is damaged") as caught:
        load(write_file(tmp_path / "x", WEIGHTS, tokenizer=spec))
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_file_of_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="does not contain a model"):
        load(tmp_path)
    (tmp_path / "x.txt").write_text("Once upon a time")
    with pytest.raises(CheckpointError, match="not a recognised model file"):
        load(tmp_path / "x.txt")


def test_names_are_looked_up():
    with pytest.raises(UsageError, match="did you mean gosling"):
        load("goslin")
    with pytest.raises(CheckpointError, match="is not on this machine"):
        load("world-0.1b")


# --------------------------------------------------------------------------------------------------- the cache


def test_a_checkpoint_is_quantized_once(tmp_path, cache):
    path, first, second = write_pth(tmp_path / "x.pth", WEIGHTS), Listener(), Listener()
    model = load(path, reporter=first)
    (kept,) = cache.glob("models/*")
    assert first.notes == [f"quantizing x.pth to int8, once, into {kept}"]
    assert first.done[-1] == (TINY.n_params, TINY.n_params)
    assert (model.path, model.info.weight_type, model.backend.name) == (path, "int8", "cpu")
    assert model.info.source["sha256"] == ModelFile(kept).info.source["sha256"]

    again = load(path, reporter=second)
    assert not second.notes
    assert not second.done
    np.testing.assert_array_equal(again.forward([1])[0], model.forward([1])[0])


def test_a_changed_checkpoint_is_quantized_anew(tmp_path, cache):
    path = write_pth(tmp_path / "x.pth", WEIGHTS)
    before = logits_of(path, "cpu")
    write_pth(path, random_weights(TINY, seed=1))
    os.utime(path, ns=(10**9, 10**9))  # a clock that is too coarse would hide the change
    assert not np.array_equal(logits_of(path, "cpu"), before)
    assert len(list(cache.glob("models/*"))) == 2


@pytest.mark.usefixtures("cache")
def test_a_tokenizer_that_is_put_beside_the_checkpoint_later_is_found(tmp_path):
    path = write_pth(tmp_path / "x.pth", WEIGHTS)
    with pytest.raises(UsageError, match=r"put its tokenizer\.json beside"):
        load(path).generate("hello")
    (tmp_path / "tokenizer.json").write_bytes(byte_tokenizer().data)
    assert load(path).tokenizer is not None


def test_an_interrupted_quantization_leaves_nothing_and_is_made_up_for(tmp_path, cache):
    class Interrupting(Reporter):
        def quantizing(self, done, total):
            if done > total / 2:
                raise KeyboardInterrupt

    path = write_pth(tmp_path / "x.pth", WEIGHTS)
    with pytest.raises(KeyboardInterrupt):
        load(path, reporter=Interrupting())
    assert not list(cache.glob("models/*"))
    assert load(path).config == TINY


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path, cache):
    path = write_pth(tmp_path / "x.pth", WEIGHTS)
    cache.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cache"):
        load(path)
    assert load(path, "reference").config == TINY


def test_a_cached_model_that_was_damaged_is_made_again(tmp_path, cache):
    path = write_pth(tmp_path / "x.pth", WEIGHTS)
    expected = logits_of(path, "cpu")
    (kept,) = cache.glob("models/*")
    kept.write_bytes(kept.read_bytes()[:5000])
    np.testing.assert_array_equal(logits_of(path, "cpu"), expected)


def test_a_kernel_that_nothing_has_is_a_device_error():
    """In a process of its own, since the kernels are chosen when they are imported."""
    code = "import rwkv_cli\ntry: rwkv_cli.load()\nexcept rwkv_cli.RwkvError as error: print(repr(error))"
    environment = os.environ | {"RWKV_CPU_KERNEL": "abacus"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True
    ).stdout
    assert printed.decode().startswith(
        f"{DeviceError.__name__}(\"the CPU kernels cannot run: RWKV_CPU_KERNEL is 'abacus'"
    )


# ----------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_state_goes_on_where_it_was_and_stays_as_it_is(tiny, device):
    model = load(tiny.path, device)
    whole, end = model.forward(TOKENS)
    _, middle = model.forward(TOKENS[:15])
    before = middle.copy()
    logits, state = model.forward(TOKENS[15:], middle)
    np.testing.assert_array_equal(logits, whole)
    assert_same_state(state, end)
    assert_same_state(middle, before)
    every, state = model.forward_all(TOKENS[15:], middle)
    np.testing.assert_array_equal(every[-1], whole)
    assert every.shape == (25, TINY.vocab_size)
    assert_same_state(state, end)
    assert_same_state(middle, before)


def test_a_copy_of_a_state_is_independent(tiny):
    _, state = tiny.forward(TOKENS)
    copy, original = state.copy(), state.copy()
    for part in State.PARTS:
        getattr(copy, part)[...] += 1
    assert_same_state(state, original)
    assert state.nbytes == TINY.state_bytes


@pytest.mark.parametrize(
    "tokens",
    [tuple(TOKENS), np.array(TOKENS), np.array(TOKENS, np.uint16), [np.int64(token) for token in TOKENS]],
)
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_tokens_of_any_integer_type(tiny, tokens, device):
    model = load(tiny.path, device)
    np.testing.assert_array_equal(model.forward(tokens)[0], model.forward(TOKENS)[0])
    np.testing.assert_array_equal(model.forward_all(tokens)[0], model.forward_all(TOKENS)[0])


@pytest.mark.parametrize("read", [Model.forward, Model.forward_all])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "no tokens"),
        ((), "no tokens"),
        (np.array([], int), "no tokens"),
        ([0, 300], "there is no token 300: the vocabulary has 300"),
        ([-1, 0], "there is no token -1"),
        ([2**70], "token"),
        ([1.5], "tokens"),
        (np.array([1.0]), "tokens"),
        (np.zeros((1, 2), int), "tokens"),
        ("abc", "tokens"),
        (["1"], "tokens"),
    ],
    ids=repr,
)
def test_tokens_that_cannot_be_right_are_refused(tiny, read, tokens, message):
    with pytest.raises(UsageError, match=message):
        read(tiny, tokens)


def test_the_state_of_another_model_is_refused(tiny):
    """A smaller one would let the kernels write past its end."""
    with pytest.raises(UsageError, match="the state belongs to a model of another shape"):
        tiny.forward([1], State.zeros(SHAPES["four-layers"]))


@pytest.mark.parametrize("part", State.PARTS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a[:2], "has the shape"),
        (lambda a: a.astype(np.float16), "has the type float16; it must be float32"),
        (lambda a: a.astype(np.float64), "has the type float64; it must be float32"),
    ],
)
def test_arrays_that_no_kernel_takes_are_refused_by_name(part, change, said):
    """By the setters and by the constructor, before a kernel can see them."""
    state = State.zeros(TINY)
    with pytest.raises(UsageError, match=f"^{part} {said}"):
        setattr(state, part, change(getattr(state, part)))
    arrays = {name: getattr(state, name) for name in State.PARTS}
    arrays[part] = change(arrays[part])
    with pytest.raises(UsageError, match=r"has the (shape|type)"):
        State(**arrays)


def test_a_state_in_another_memory_order_is_read_right(tiny):
    expected, _ = tiny.forward(TOKENS)
    _, state = tiny.forward(TOKENS[:7])
    state.wkv = np.asfortranarray(state.wkv)
    np.testing.assert_array_equal(tiny.forward(TOKENS[7:], state)[0], expected)


# ---------------------------------------------------------------------------------------------------- generate


def written(model: Model, prompt="Once", **options) -> str:
    return "".join(step.text for step in model.generate(prompt, **options))


def test_a_seed_gives_the_same_text(gosling):
    options = {"template": "story", "max_tokens": 20, "temperature": 1.0, "top_p": 1.0}
    first, again, other = (written(gosling, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) > 20


def test_the_embedded_model_tells_a_story(gosling):
    text = written(gosling, "Once upon a time", template="story", temperature=0, max_tokens=12)
    assert text.startswith(", there was a little")


@pytest.mark.parametrize("max_tokens", [0, 1, 7])
def test_the_number_of_tokens_is_kept(tiny, max_tokens):
    generation = tiny.generate([5, 6], max_tokens=max_tokens, seed=0, banned=frozenset({0}))
    assert len(list(generation)) == max_tokens == generation.usage.generated_tokens
    assert generation.usage.prompt_tokens == 2
    assert generation.finish == ("length" if max_tokens else None)


def test_greedy_steps_are_those_of_forward(tiny):
    steps = list(tiny.generate(TOKENS[:5], max_tokens=6, temperature=0, banned=frozenset({0})))
    logits, state = tiny.forward(TOKENS[:5])
    for step in steps:
        logits[0] = -np.inf
        assert step.token == logits.argmax()
        logits, state = tiny.forward([step.token], state)
    assert [step.finish for step in steps] == [None] * 5 + ["length"]


def test_the_end_of_the_document_ends_the_text(tmp_path):
    weights = random_weights(TINY) | {"head.weight": np.zeros_like(WEIGHTS["head.weight"])}
    model = load(write_file(tmp_path / "x", weights, tokenizer=byte_tokenizer()))
    (step,) = model.generate(
        "hello", temperature=0, max_tokens=-1
    )  # of equal logits the first, which is the end
    assert (step.token, step.text, step.finish) == (0, "", "end")
    assert step.logprob == pytest.approx(-np.log(300), abs=1e-6)


def test_a_stop_string_ends_the_text_before_it(tiny):
    options = {"max_tokens": 40, "seed": 3, "logit_bias": dict.fromkeys(range(66, 92), 20.0)}
    text = written(tiny, **options)
    assert len(text) == 40
    stop = text[20:22]
    generation = tiny.generate("Once", stop=[stop], **options)
    assert "".join(step.text for step in generation) == text[: text.index(stop)]
    assert generation.finish == "stop"


def test_generation_goes_on_from_a_state_and_leaves_it(tiny):
    options = {"max_tokens": 10, "seed": 0}
    logits, state = tiny.forward(TOKENS[:8])
    before = state.copy()
    start = Snapshot(state, logits, 8)
    found = [step.token for step in tiny.generate(TOKENS[8:12], start=start, **options)]
    assert found == [step.token for step in tiny.generate(TOKENS[:12], **options)]
    assert_same_state(state, before)


def test_the_state_of_a_generation_has_read_all_but_the_last_token(tiny):
    generation = tiny.generate(TOKENS[:4], max_tokens=5, seed=0, banned=frozenset({0}))
    tokens = [step.token for step in generation]
    assert_same_state(generation.session.state, tiny.forward(TOKENS[:4] + tokens[:-1])[1])


def test_a_template_lays_the_prompt_out(gosling):
    end = gosling.tokenizer.end_of_document
    raw = gosling.tokenizer.encode("Once")
    assert gosling.generate("Once").prompt == raw
    assert (
        gosling.generate("Once", template="story").prompt
        == gosling.generate("Once", template=None).prompt
        == [end, *raw]
    )
    asked = gosling.generate("Why?", template="world", system="Be kind.")
    assert gosling.tokenizer.decode(asked.prompt) == templates()["world"].render("Why?", "Be kind.")
    assert "\n\n" in asked.stop
    with pytest.raises(UsageError, match="no place for a system prompt"):
        gosling.generate("Once", system="Be kind.")
    with pytest.raises(UsageError, match="unknown template 'storry'"):
        gosling.generate("Once", template="storry")


def test_sampling_defaults_come_from_the_template_then_the_file_then_the_caller(tiny, gosling):
    settings = gosling.generate("Once", template=None).sampler.settings
    assert (settings.temperature, settings.top_p) == (0.8, 0.8)
    settings = gosling.generate("Once", template="g1", top_p=0.9, temperature=None).sampler.settings
    assert (settings.temperature, settings.top_p) == (1.0, 0.9)
    assert tiny.generate("Once").sampler.settings.temperature == 0.5  # its file's own, for its own template
    assert tiny.generate("Once", template="world").sampler.settings.temperature == 1.0


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ([], {}),
        (np.array([], int), {}),
        ([300], {}),
        ([-1], {}),
        ("Once", {"temperature": -1}),
        ("Once", {"top_p": 2}),
        ("Once", {"max_tokens": -2}),
        ("Once", {"start": Snapshot.empty(SHAPES["four-layers"])}),
    ],
    ids=lambda value: "other shape" if "start" in value else str(value),
)
def test_settings_that_cannot_be_right_are_refused_at_once(tiny, prompt, options):
    with pytest.raises(UsageError):
        tiny.generate(prompt, **options)


@pytest.mark.usefixtures("cache")
def test_a_model_without_a_tokenizer_reads_and_gives_tokens(tmp_path):
    model = load(write_pth(tmp_path / "x.pth", WEIGHTS))
    assert model.tokenizer is None
    steps = list(model.generate(np.array([5, 6]), max_tokens=3, seed=0, banned=frozenset({0})))
    assert [step.text for step in steps] == ["", "", ""]
    with pytest.raises(UsageError, match=r"has no tokenizer: put its tokenizer\.json"):
        model.generate("Once")
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        model.generate([5], stop=["x"])


def test_progress_hears_of_the_prompt(tiny):
    heard: list[int] = []
    list(tiny.generate([1] * 100, max_tokens=2, progress=heard.append))
    assert sum(heard) == 100


def test_a_model_file_whose_weights_are_no_numbers_says_so(tmp_path):
    weights = fine_weights(TINY) | {"ln_out.bias": np.full(128, np.nan, np.float32)}
    model = load(write_file(tmp_path / "x", weights, "fp32", tokenizer=byte_tokenizer()))
    with pytest.raises(RwkvError, match="not a number: its weights or its state are damaged"):
        list(model.generate("Once"))


# ------------------------------------------------------------------------------------------------- the package


def test_the_package_names_its_parts():
    assert rwkv_cli.load is load
    for name in rwkv_cli.__all__:
        assert getattr(rwkv_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'unload'"):
        _ = rwkv_cli.unload


def test_importing_the_package_imports_nothing_else():
    code = "import sys, rwkv_cli; print({'numpy', 'numba', 'tokenizers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code]).decode().strip() == "set()"


def test_the_kernels_stay_in_their_own_cache(cache):
    assert cpu.is_compiled()
    assert not cache.exists()


def test_the_form_with_flowers_through_the_world_vocabulary(tmp_path):
    """Letter by letter and token by token; the flower that ends an answer is one token."""
    config = dataclasses.replace(TINY, vocab_size=65_536)
    path = write_file(
        tmp_path / "x", random_weights(config), tokenizer=TokenizerSpec("world"), template="g1h"
    )
    model = rwkv_cli.load(path, "cpu")
    chosen = {"template": None, "temperature": 0, "logit_bias": {10060: 1000.0}}
    generation = model.generate("Why?", system="Be kind.", think="off", **chosen)
    assert generation.prompt[0] == 0
    text = "System✿Be kind.✿\nUser✿Why?✿\nBot✿<think></think"
    assert model.tokenizer.decode(generation.prompt) == text
    assert generation.prompt.count(10060) == 5
    steps = list(generation)
    assert [(step.token, step.text, step.finish) for step in steps] == [(10060, "", "stop")]
    assert generation.commit().n_tokens == len(generation.prompt)
