"""Many sequences at once, on an emulated GPU: each as it is alone."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.actor import CONFIG as BYTES
from helpers.emulated_gpu import COMPILER, few_threads, tiny_backend
from helpers.gpu import FOUND
from helpers.models import assert_same_state, difference, some_tokens, state_difference
from helpers.writers import TINY

from rwkv_cli.engine.gpu import batch as gpu_batch
from rwkv_cli.engine.gpu import probe
from rwkv_cli.engine.gpu.batch import GpuBatch
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError
from rwkv_cli.files.model_file import ModelFile, write_model
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.sampling_settings import SamplingSettings

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here to emulate a GPU with")

HALF = 2e-3
"""Of the scale: tensor cores take their inputs in float16."""


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """The CUDA backend on an emulated GPU."""
    with few_threads():
        yield tiny_backend(tmp_path_factory.mktemp("fp16"))


def batch_of(backend, slots, capacity=8):
    return GpuBatch(backend._gpu, backend._weights, slots, capacity)


class Alone:
    """A sequence without a batch."""

    def __init__(self, backend):
        self.backend, self.state = backend, State.zeros(TINY)

    def read(self, tokens):
        return self.backend.forward(tokens, self.state)


@needs_compiler
def test_sequences_that_join_and_leave_are_as_each_alone(backend):
    batch, alone = batch_of(backend, 3), {}

    def join():
        slot = batch.join()
        alone[slot] = Alone(backend)
        return slot

    def read(**lengths):
        """Read this many tokens of the sequences in slots "s0", "s1" and so on, in this order."""
        parts = {int(name[1:]): some_tokens(TINY, length, length) for name, length in lengths.items()}
        found = batch.read(parts)
        assert found.shape == (len(parts), TINY.vocab_size)
        for row, (slot, tokens) in zip(found, parts.items(), strict=True):
            assert difference(row, alone[slot].read(tokens)) <= HALF

    def leave(slot):
        assert state_difference(batch.leave(slot), alone.pop(slot).state) <= HALF

    assert [join(), join()] == [0, 1]
    read(s1=3, s0=1)
    read(s0=1, s1=1)
    assert (join(), batch.free) == (2, 0)
    read(s2=5, s0=1, s1=1)
    read(s2=1, s1=1)  # slot 0 waits
    leave(1)
    read(s0=1, s2=1)
    assert join() == 1  # from the empty state, whatever was there
    read(s1=2, s2=1, s0=1)
    for slot in (0, 1, 2):
        leave(slot)
    assert batch.free == 3


@needs_compiler
@pytest.mark.parametrize("lengths", [(21,), (3, 19, 1), (8, 1), (1, 8), (7, 1, 8), (5, 5, 5)])
def test_more_tokens_than_the_capacity_of_a_pass(backend, lengths):
    batch = batch_of(backend, 3, capacity=8)
    parts = {batch.join(): some_tokens(TINY, length, i) for i, length in enumerate(lengths)}
    found = batch.read(parts)
    for row, (slot, tokens) in zip(found, parts.items(), strict=True):
        alone = Alone(backend)
        assert difference(row, alone.read(tokens)) <= HALF
        assert state_difference(batch.leave(slot), alone.state) <= HALF


@needs_compiler
def test_a_state_joins_and_stays_as_it_is(backend):
    batch, alone = batch_of(backend, 2), Alone(backend)
    alone.read([1, 2, 3])  # the state is on the GPU now
    batch.join()
    slot = batch.join(alone.state)
    before = alone.state.copy()
    found = batch.read({slot: [4]})[0]
    assert_same_state(alone.state, before)
    assert difference(found, alone.read([4])) <= HALF


@needs_compiler
def test_a_state_that_leaves_can_continue(backend):
    batch, alone = batch_of(backend, 1), Alone(backend)
    batch.join()
    batch.read({0: [1, 2, 3]})
    alone.read([1, 2, 3])
    state = batch.leave(0)
    assert difference(backend.forward([4], state), alone.read([4])) <= HALF


@needs_compiler
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 0.9, "presence_penalty": 1}, {"top_k": 5}])
def test_the_next_tokens_are_chosen_as_from_the_logits(backend, options):
    """For prompts and for single tokens, of many sequences and of one."""
    chosen, read = batch_of(backend, 3), batch_of(backend, 3)
    here, there = ([Sampler(SamplingSettings(seed=i, **options)) for i in range(3)] for _ in range(2))
    for _ in range(3):
        chosen.join(), read.join()
    parts = {slot: some_tokens(TINY, 4 + slot, slot) for slot in range(3)}
    for slots in ((0, 1, 2), (0, 1, 2), (2,), (1, 2), (1,), (0, 1, 2)):
        now = {slot: parts[slot] for slot in slots}
        choices = chosen.choose(now, {slot: there[slot] for slot in slots})
        assert [*choices] == [*slots]
        logits = read.read(now)
        expected = [here[slot].sample(row) for slot, row in zip(slots, logits, strict=True)]
        assert [choice.token for choice in choices.values()] == [choice.token for choice in expected]
        for slot, choice in choices.items():
            there[slot].accept(choice.token)
        parts |= {slot: [choice.token] for slot, choice in choices.items()}
    for slot in range(3):
        assert_same_state(chosen.leave(slot), read.leave(slot))


@needs_compiler
def test_settings_that_rank_and_others_in_one_batch(backend):
    batch, logits = batch_of(backend, 2), batch_of(backend, 2)
    options = {"top_k": 5}, {"temperature": 2.0}
    here, there = ([Sampler(SamplingSettings(seed=1, **each)) for each in options] for _ in range(2))
    for each in (batch, logits):
        each.join(), each.join()
    for _ in range(4):
        found = batch.choose({0: [1], 1: [2]}, dict(enumerate(there)))
        expected = [s.sample(row) for s, row in zip(here, logits.read({0: [1], 1: [2]}), strict=True)]
        assert [*found.values()] == expected
        for sampler, choice in zip(there, found.values(), strict=True):
            sampler.accept(choice.token)


@needs_compiler
def test_a_sequence_without_a_sampler_only_reads(backend):
    batch, alone = batch_of(backend, 2), batch_of(backend, 2)
    for each in (batch, alone):
        each.join(), each.join()
    found = batch.choose({0: [1, 2], 1: [3]}, {1: Sampler(SamplingSettings(seed=1))})
    logits = alone.read({0: [1, 2], 1: [3]})
    expected = Sampler(SamplingSettings(seed=1)).choose(logits[1])
    assert found == {1: (expected.token, pytest.approx(expected.logprob, abs=1e-5))}
    np.testing.assert_array_equal(batch.logits(1), logits[1])
    for slot in range(2):
        assert_same_state(batch.leave(slot), alone.leave(slot))


@needs_compiler
def test_passes_of_a_token_each_are_recorded_once(backend, monkeypatch):
    monkeypatch.setattr(gpu_batch, "GRAPHS", 2)
    recorded = []
    original = backend._gpu.graph
    monkeypatch.setattr(backend._gpu, "graph", lambda steps: recorded.append(steps) or original(steps))
    batch = batch_of(backend, 3)
    slots = [batch.join() for _ in range(3)]

    def read(n):
        batch.read({slot: [7] for slot in slots[:n]})
        return len(recorded)

    assert [read(n) for n in (1, 2, 2, 1, 3, 1, 2)] == [1, 2, 2, 2, 3, 3, 4]
    batch.read({0: [1, 2], 1: [3]})
    assert len(recorded) == 4
    for slot in (0, 1, 0, 1):  # each has its state in another place
        batch.read({slot: [1]})
    assert len(recorded) == 5


@needs_compiler
def test_misuse_is_refused(backend):
    batch = batch_of(backend, 2)
    slot = batch.join()
    other = State.zeros(BYTES)
    for call, said in (
        (lambda: batch_of(backend, 0), "at least one"),
        (lambda: batch.join(other), "another shape"),
        (lambda: batch.read({}), "no tokens"),
        (lambda: batch.read({slot: []}), "no tokens"),
        (lambda: batch.read({1: [1]}), "no sequence in slot 1"),
        (lambda: batch.read({slot: [TINY.vocab_size]}), f"no token {TINY.vocab_size}"),
        (lambda: batch.read({slot: [-1]}), "no token -1"),
        (lambda: batch.read({slot: [0.5]}), "whole numbers"),
        (lambda: batch.leave(1), "no sequence in slot 1"),
        (lambda: batch.drop(-1), "no sequence in slot -1"),
    ):
        with pytest.raises(UsageError, match=said):
            call()
    assert (batch.free, batch.join()) == (1, 1)
    with pytest.raises(UsageError, match="all 2 slots"):
        batch.join()
    batch.drop(slot)
    with pytest.raises(UsageError, match="no sequence"):
        batch.leave(slot)
    batch.read({1: [1, 2]})  # nothing of all that has changed it
    alone = Alone(backend)
    alone.read([1, 2])
    assert state_difference(batch.leave(1), alone.state) <= HALF


@pytest.mark.skipif(
    not FOUND or not probe.is_backend_installed(), reason="there is no NVIDIA GPU, or no CUDA backend"
)
@pytest.mark.parametrize("weight_type", ["fp16", "int8", "int4"])
def test_on_a_real_gpu(weight_type, tmp_path):
    """Long prompts beside single tokens, then a graph: against a prompt that is read alone, by the same products."""
    from rwkv_cli.engine.backends.cuda import open_cuda

    source = ModelFile(EMBEDDED_MODEL)
    write_model(tmp_path / "gosling", source, replace(source.info, weight_type=weight_type))
    backend = open_cuda(ModelFile(tmp_path / "gosling"))
    config, batch = backend.config, backend.batch(4)
    texts = {batch.join(): some_tokens(config, length, length) for length in (1500, 1, 700, 90)}
    batch.read(texts)
    for step in range(3):
        new = {slot: some_tokens(config, 1, slot + 10 * step) for slot in texts}
        texts = {slot: tokens + new[slot] for slot, tokens in texts.items()}
        found = batch.read(new)
        for row, tokens in zip(found, texts.values(), strict=True):
            assert difference(row, backend.forward(tokens, State.zeros(config))) <= 5e-3
    for slot, tokens in texts.items():
        state = State.zeros(config)
        backend.forward(tokens, state)
        assert state_difference(batch.leave(slot), state) <= 5e-3
