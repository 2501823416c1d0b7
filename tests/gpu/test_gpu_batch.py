"""Many sequences at once, on an emulated GPU: each as it is alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.actor import CONFIG as BYTES
from helpers.emulated_gpu import COMPILER, few_threads, tiny_backend
from helpers.gpu import FOUND
from helpers.models import assert_same_state, difference, some_tokens, state_difference
from helpers.writers import TINY

from rwkv_cli.engine.constraint import mask_of
from rwkv_cli.engine.gpu import batch as gpu_batch
from rwkv_cli.engine.gpu import probe
from rwkv_cli.engine.gpu.batch import GpuBatch
from rwkv_cli.engine.gpu.few_pass import FewPass
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
        made = tiny_backend(tmp_path_factory.mktemp("fp16"))
        made._gpu.shared_memory = 227 << 10  # enough for the kernels of few tokens
        yield made


def batch_of(backend, slots, capacity=8):
    return GpuBatch(backend._gpu, backend._weights, slots, capacity)


class Alone:
    """A sequence without a batch."""

    def __init__(self, backend):
        self.backend, self.state = backend, State.zeros(TINY)

    def read(self, tokens):
        return self.backend.forward(tokens, self.state)


@needs_compiler
def test_logits_after_each_token(backend, monkeypatch):
    monkeypatch.setattr(gpu_batch, "LOGITS_AT_ONCE", 6)
    batch = batch_of(backend, 3)
    parts = {batch.join(): some_tokens(TINY, n, n) for n in (4, 1, 9)}
    found = batch.read_all(parts)
    for slot, tokens in parts.items():
        state = State.zeros(TINY)
        assert difference(found[slot], backend.forward_all(tokens, state)) <= HALF
        assert state_difference(batch.leave(slot), state) <= HALF


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
@pytest.mark.parametrize("n", [2, 3, 8, 9, 16, 17])
def test_one_token_each_of_few_and_of_many(backend, n):
    """By the kernels of few tokens, and beyond them by those of many."""
    batch = batch_of(backend, n, capacity=20)
    slots = [batch.join() for _ in range(n)][::-1]
    texts = {slot: some_tokens(TINY, 3 + slot % 2, slot) for slot in slots}
    batch.read({slot: tokens[:-2] for slot, tokens in texts.items()})
    for i in (-2, -1):
        found = batch.read({slot: [tokens[i]] for slot, tokens in texts.items()})
    assert (("few", n) in batch._graphs) == (n <= 16)
    for row, (slot, tokens) in zip(found, texts.items(), strict=True):
        alone = Alone(backend)
        assert difference(row, alone.read(tokens)) <= HALF
        assert state_difference(batch.leave(slot), alone.state) <= HALF


@needs_compiler
@pytest.mark.parametrize("weight_type", ["int8", "int4"])
def test_few_tokens_with_integer_weights(weight_type, tmp_path):
    """Which are converted to float16 in registers: as where whole matrices are converted, up to their rounding."""
    with few_threads():
        backend = tiny_backend(tmp_path, weight_type)
        backend._gpu.shared_memory = 227 << 10
        few, many = batch_of(backend, 11), batch_of(backend, 11)
        many._most_few = 0
        for batch in (few, many):
            for _ in range(11):
                batch.join()
        for i in range(3):
            parts = {slot: some_tokens(TINY, 1, slot + 11 * i) for slot in range(11)}
            assert difference(few.read(parts), many.read(parts)) <= 5 * HALF
    for slot in range(11):
        assert state_difference(few.leave(slot), many.leave(slot)) <= 5 * HALF


@needs_compiler
def test_few_tokens_need_shared_memory(backend):
    gpu, weights = backend._gpu, backend._weights
    assert FewPass.most_tokens(gpu, weights) == 16
    small = SimpleNamespace(shared_memory=48 << 10, multiprocessors=3)
    assert FewPass.most_tokens(small, weights) == 0
    odd = SimpleNamespace(type="int8", config=replace(weights.config, n_embd=192))
    assert FewPass.most_tokens(gpu, odd) == 0
    wide = SimpleNamespace(type="fp16", config=replace(weights.config, n_embd=4096))
    assert FewPass.most_tokens(gpu, wide) == 0


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


def assert_same_choices(found, expected):
    assert [choice.token for choice in found] == [choice.token for choice in expected]
    np.testing.assert_allclose([c.logprob for c in found], [c.logprob for c in expected], atol=1e-5)


@needs_compiler
def test_samplers_in_another_order_than_the_sequences(backend):
    batch, logits = batch_of(backend, 3), batch_of(backend, 3)
    for each in (batch, logits):
        each.join(), each.join(), each.join()
    parts = {2: [1], 0: [2, 7], 1: [3]}
    found = batch.choose(parts, {slot: Sampler(SamplingSettings(seed=slot)) for slot in (1, 2)})
    rows = dict(zip(parts, logits.read(parts), strict=True))
    expected = {slot: Sampler(SamplingSettings(seed=slot)).choose(rows[slot]) for slot in (1, 2)}
    assert [*found] == [*expected]
    assert_same_choices([*found.values()], [*expected.values()])


@needs_compiler
def test_a_token_that_the_model_lacks_is_refused_before_anything_is_read(backend):
    batch = batch_of(backend, 1)
    before = batch_of(backend, 1)
    slot = batch.join()
    before.join()
    with pytest.raises(UsageError, match=f"no token {TINY.vocab_size}"):
        batch.choose({slot: [1]}, {slot: Sampler(SamplingSettings(banned=frozenset({TINY.vocab_size})))})
    assert_same_state(batch.leave(slot), before.leave(slot))


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
        assert_same_choices([*found.values()], expected)
        for sampler, choice in zip(there, found.values(), strict=True):
            sampler.accept(choice.token)


@needs_compiler
def test_a_sequence_without_a_sampler_only_reads(backend):
    batch, alone = batch_of(backend, 2), batch_of(backend, 2)
    for each in (batch, alone):
        each.join(), each.join()
    found = batch.choose({0: [1, 2], 1: [3]}, {1: Sampler(SamplingSettings(seed=1))})
    logits = alone.read({0: [1, 2], 1: [3]})
    assert [*found] == [1]
    assert_same_choices([found[1]], [Sampler(SamplingSettings(seed=1)).choose(logits[1])])
    np.testing.assert_array_equal(batch.logits(1), logits[1])
    assert not batch.choose({0: [4], 1: [5]}, {})
    alone.read({0: [4], 1: [5]})
    for slot in range(2):
        assert_same_state(batch.leave(slot), alone.leave(slot))


class Odd:
    """A constraint that allows the tokens with odd ids."""

    is_complete = False

    def mask(self):
        return mask_of(np.arange(1, TINY.vocab_size, 2), TINY.vocab_size)

    def accept(self, token):
        assert token % 2


@needs_compiler
def test_a_sequence_with_a_constraint_and_one_without_in_one_batch(backend):
    batch, logits = batch_of(backend, 2), batch_of(backend, 2)
    here, there = (
        {slot: Sampler(SamplingSettings(seed=1), constraint=each) for slot, each in enumerate((Odd(), None))}
        for _ in range(2)
    )
    for each in (batch, logits):
        each.join(), each.join()
    for _ in range(4):
        found = batch.choose({0: [1], 1: [2]}, there)
        rows = logits.read({0: [1], 1: [2]})
        assert_same_choices([found[slot] for slot in here], [here[slot].choose(rows[slot]) for slot in here])
        for slot in here:
            here[slot].accept(found[slot].token)
            there[slot].accept(found[slot].token)


@needs_compiler
def test_one_sequence_with_a_constraint(backend):
    sampler, state = Sampler(SamplingSettings(seed=1), constraint=Odd()), State.zeros(TINY)
    for token in range(4):
        sampler.accept(backend.choose(token, state, sampler).choice.token)


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
