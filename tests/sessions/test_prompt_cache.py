"""The prompt cache: the same numbers as without, in fewer steps, within its size, whoever else writes to it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.models import assert_same_state, some_tokens, write_file
from helpers.writers import random_weights

import rwkv_cli
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.generate import read_directly
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.sessions import prompt_cache, state_file
from rwkv_cli.sessions.prompt_cache import LEAST, STRIDE, PromptCache, reader_for


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of its own. The folder above it is not changed: it holds the compiled kernels."""
    monkeypatch.delenv("RWKV_CACHE_SIZE")
    monkeypatch.setattr(prompt_cache, "folder", lambda: tmp_path / "prompts")
    return tmp_path / "prompts"


class Counting(Backend):
    """A backend that counts the tokens it reads."""

    is_split_invariant = True

    def __init__(self, inner):
        self.inner, self.read = inner, 0
        self.name, self.config = inner.name, inner.config

    @property
    def kernel(self):
        return self.inner.kernel

    def forward(self, tokens, state, progress=None):
        self.read += len(tokens)
        return self.inner.forward(tokens, state, progress)

    def forward_all(self, tokens, state):
        return self.inner.forward_all(tokens, state)


@pytest.fixture
def model(tiny_model):
    model = rwkv_cli.load(tiny_model, threads=1)
    model.backend = Counting(model.backend)
    return model


def session_of(model, start=None):
    return Session(model.backend, Sampler(SamplingSettings()), start)


def read(model, tokens, progress=None):
    """Through the cache: how many tokens came from it, and the session, whose logits and state are looked at."""
    session = session_of(model)
    model.backend.read = 0
    reused = PromptCache(model).read(session, tokens, progress)
    assert session.n_tokens == len(tokens)
    return reused, session


def assert_as_without(model, tokens, session):
    expected = State.zeros(model.config)
    np.testing.assert_array_equal(session.logits, model.backend.forward(tokens, expected))
    assert_same_state(session.state, expected)


# ----------------------------------------------------------------------------------------------- what it saves


@pytest.mark.parametrize("length", [LEAST, LEAST + 1, 700, 1024, 3 * STRIDE + 63])
def test_the_same_prompt_is_read_once(model, length):
    tokens = some_tokens(model.config, length)
    for reused in (0, length):
        found, session = read(model, tokens)
        assert (found, model.backend.read) == (reused, length - reused)
        assert_as_without(model, tokens, session)
    session.feed([5])
    np.testing.assert_array_equal(session.logits, model.backend.forward([5], state_after(model, tokens)))


def state_after(model, tokens):
    state = State.zeros(model.config)
    model.backend.forward(tokens, state)
    return state


@pytest.mark.parametrize("ending", [1, 10, 100, 300, 600])
def test_a_prompt_that_ends_otherwise_reads_little_more_than_its_ending(model, ending):
    document = some_tokens(model.config, 2000)
    first, second = (document + some_tokens(model.config, ending, seed) for seed in (1, 2))
    read(model, first)
    reused, session = read(model, second)
    assert reused + model.backend.read == len(second)
    assert model.backend.read <= 2 * (ending + STRIDE)
    assert_as_without(model, second, session)


def test_a_longer_prompt_goes_on_from_a_shorter_one(model):
    tokens = some_tokens(model.config, 1500)
    read(model, tokens[:1024])
    reused, session = read(model, tokens)
    assert reused == 1024
    assert_as_without(model, tokens, session)


@pytest.mark.parametrize("weight_type", ["int8", "int4", "fp16", "fp32"])
def test_every_type_of_weights(tmp_path, byte_vocabulary, weight_type):
    """What the cache stands on: the CPU backend gives the same bits, in whatever parts it reads."""
    path = write_file(tmp_path / "m.safetensors", random_weights(), weight_type, byte_vocabulary)
    model = rwkv_cli.load(path, threads=2)
    model.backend = Counting(model.backend)
    tokens = some_tokens(model.config, 1000)
    read(model, tokens[:700])
    reused, session = read(model, tokens)
    assert reused == 512  # where the shorter prompt ended, only itself is looked for
    assert_as_without(model, tokens, session)


def test_a_few_states_serve_a_long_prompt():
    assert prompt_cache._places(511) == [256, 511]
    assert prompt_cache._places(512) == [256, 512]
    assert prompt_cache._places(4200) == [2048, 3072, 3584, 3840, 4096, 4200]
    assert len(prompt_cache._places(1_000_000)) < 15


def test_progress_hears_of_every_token(model):
    tokens = some_tokens(model.config, 700)
    for _ in range(2):
        heard = []
        read(model, tokens, heard.append)
        assert sum(heard) == 700
    assert heard == [700]


def test_a_generation_through_the_cache(model):
    """Nothing changes but the time."""
    prompt = some_tokens(model.config, LEAST)
    plain = list(model.generate(prompt, seed=1, max_tokens=20))
    for _ in range(2):
        generation = model.generate(prompt, seed=1, max_tokens=20, reader=PromptCache(model).read)
        assert list(generation) == plain
    assert generation.usage.cached_tokens == LEAST


# ------------------------------------------------------------------------------------------- what it leaves alone


def test_short_prompts_leave_nothing(model, folder):
    read(model, some_tokens(model.config, LEAST - 1))
    assert not folder.exists()


def test_only_beginnings_are_kept(model, folder):
    tokens = some_tokens(model.config, LEAST)
    PromptCache(model).read(session_of(model, Snapshot(state_after(model, [1, 2, 3]))), tokens)
    assert not folder.exists()


def test_the_reference_computes_everything(tiny_model):
    model = rwkv_cli.load(tiny_model, device="reference")
    assert reader_for(model) is read_directly


def test_the_cpu_has_the_cache(model):
    assert isinstance(reader_for(model).__self__, PromptCache)


def test_another_model_finds_nothing(model, tmp_path, byte_vocabulary):
    tokens = some_tokens(model.config, LEAST)
    read(model, tokens)
    path = write_file(tmp_path / "other.safetensors", random_weights(seed=1), tokenizer=byte_vocabulary)
    other = rwkv_cli.load(path, threads=1)
    other.backend = Counting(other.backend)
    reused, session = read(other, tokens)
    assert reused == 0
    assert_as_without(other, tokens, session)
    assert read(model, tokens)[0] == LEAST  # both have their own


def test_another_version_finds_nothing(model, monkeypatch):
    """Its arithmetic may be another."""
    tokens = some_tokens(model.config, LEAST)
    read(model, tokens)
    monkeypatch.setattr(prompt_cache, "__version__", "99")
    assert read(model, tokens)[0] == 0


# ------------------------------------------------------------------------------------------------- what is wrong


def damage_header(data):
    return data[:20]


def damage_values(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("damage", [damage_header, damage_values, lambda _: b""])
def test_a_damaged_file_is_ignored_and_goes(model, folder, damage):
    tokens = some_tokens(model.config, LEAST)
    read(model, tokens)
    for file in folder.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    reused, session = read(model, tokens)
    assert reused == 0
    assert_as_without(model, tokens, session)
    assert read(model, tokens)[0] == LEAST


def test_a_file_of_another_prompt_is_ignored(model, folder):
    read(model, some_tokens(model.config, 1024))
    longest = max(folder.iterdir(), key=lambda file: state_file.peek(file).tokens)
    tokens = some_tokens(model.config, LEAST, seed=1)
    read(model, tokens)
    for file in folder.iterdir():
        if file != longest:
            file.write_bytes(longest.read_bytes())
    reused, session = read(model, tokens)
    assert reused == 0
    assert_as_without(model, tokens, session)


def test_a_folder_that_cannot_be_written_is_no_failure(model, folder):
    folder.write_text("a file")
    tokens = some_tokens(model.config, LEAST)
    _, session = read(model, tokens)
    assert_as_without(model, tokens, session)
    assert prompt_cache.usage() == (0, 0)
    assert prompt_cache.clear() == 0


# ------------------------------------------------------------------------------------------------------ its size


def test_the_oldest_goes(model, folder, monkeypatch):
    first, second, third = (some_tokens(model.config, LEAST, seed) for seed in range(3))
    read(model, first)
    size = prompt_cache.usage()[1]
    monkeypatch.setenv("RWKV_CACHE_SIZE", str(int(2.2 * size)))
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    read(model, second)
    end = prompt_cache._Entries(model, second, size)._path(LEAST)
    for file in folder.iterdir():
        if file.stat().st_mtime > 1:
            os.utime(file, (2, 2) if file == end else (3, 3))  # of the second, its end is the oldest
    assert read(model, first)[0] == LEAST  # now the state at its end is the latest to be used
    read(model, third)
    assert prompt_cache.usage()[1] <= 2.2 * size
    assert [read(model, each)[0] for each in (third, first)] == [LEAST, LEAST]
    assert read(model, second)[0] < LEAST


@pytest.mark.parametrize("limit", ["0", "1kB"])
def test_no_room(model, monkeypatch, limit):
    monkeypatch.setenv("RWKV_CACHE_SIZE", limit)
    read(model, some_tokens(model.config, LEAST))
    assert prompt_cache.usage() == (0, 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 512_000_000),
        ("0", 0),
        ("1000", 1000),
        ("2GB", 2e9),
        ("1.5 g", 1.5e9),
        ("300MiB", 3e8),
        ("9kb", 9e3),
    ],
)
def test_sizes(monkeypatch, text, size):
    monkeypatch.setenv("RWKV_CACHE_SIZE", text)
    assert prompt_cache.size_limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "1e9", "1,5GB", "nan", "9" * 30])
def test_no_sizes(monkeypatch, text):
    monkeypatch.setenv("RWKV_CACHE_SIZE", text)
    with pytest.raises(UsageError, match=r"RWKV_CACHE_SIZE is .* such as 500MB"):
        prompt_cache.size_limit()


def test_clear(model, folder):
    read(model, some_tokens(model.config, LEAST))
    count, size = prompt_cache.usage()
    assert count == 2
    assert size == sum(file.stat().st_size for file in folder.iterdir())
    assert prompt_cache.clear() == size
    assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------------------------------- several at once

READER = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from helpers.models import some_tokens
import rwkv_cli
from rwkv_cli import SamplingSettings, State
from rwkv_cli.sessions import prompt_cache

prompt_cache.folder = lambda: Path(sys.argv[2])
model = rwkv_cli.load(sys.argv[1], threads=1)
for turn in range(30):
    tokens = some_tokens(model.config, 600, turn % 3)
    found, expected = model.session(SamplingSettings()), State.zeros(model.config)
    prompt_cache.PromptCache(model).read(found, tokens)
    assert (found.logits == model.backend.forward(tokens, expected)).all()
    assert (found.state.wkv == expected.wkv).all()
print(prompt_cache.usage()[0])
"""


def test_processes_that_write_and_remove_at_once(tiny_model, folder, monkeypatch, model):
    read(model, some_tokens(model.config, 600))
    monkeypatch.setenv("RWKV_CACHE_SIZE", str(2 * prompt_cache.usage()[1]))  # so that all of them evict
    prompt_cache.clear()
    command = [sys.executable, "-c", READER, str(tiny_model), str(folder), str(Path(__file__).parents[1])]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, b"")
        assert int(out) > 0
    assert not [file for file in folder.iterdir() if file.suffix == ".tmp"]
