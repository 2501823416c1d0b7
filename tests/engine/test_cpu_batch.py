"""Many sequences on the CPU: each has the same results, to the bit, as alone."""

import numpy as np
import pytest
from helpers.models import SHAPES, assert_same_state, fine_weights, some_tokens, write_and_open
from helpers.writers import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.batch import passes
from rwkv_cli.engine.sampling import NOT_A_NUMBER, Sampler
from rwkv_cli.engine.session import Session
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError
from rwkv_cli.files.weight_layouts import WEIGHT_TYPES
from rwkv_cli.sampling_settings import SamplingSettings


@pytest.fixture(scope="module", params=WEIGHT_TYPES)
def tiny(request, tmp_path_factory):
    """A small model in each type."""
    return write_and_open(tmp_path_factory.mktemp("tiny") / "x", fine_weights(TINY), request.param)


@settings(max_examples=40)
@given(data=st.data())
def test_any_company_order_and_number_of_threads_gives_the_same_to_the_bit(tiny, data):
    """Prompts and single tokens mixed, of sequences that join and leave."""
    backend = CpuBackend(
        tiny, data.draw(st.integers(1, 3), "threads"), data.draw(st.integers(1, 70), "chunk")
    )
    alone = CpuBackend(tiny)
    batch = backend.batch(5)
    states = dict[int, State]()
    for _ in range(data.draw(st.integers(1, 5), "steps")):
        if batch.free and data.draw(st.booleans(), "another joins"):
            start = State.zeros(TINY)
            alone.forward([7], start)
            begin = data.draw(st.sampled_from([None, start]), "from")
            slot = batch.join(begin)
            states[slot] = start if begin else State.zeros(TINY)
        if not states:
            continue
        order = data.draw(st.permutations(sorted(states)), "order")
        of_these = order[: data.draw(st.integers(1, len(order)), "how many")]
        parts = {
            slot: some_tokens(TINY, data.draw(st.integers(1, 3) | st.integers(1, 90), "length"), slot)
            for slot in of_these
        }
        for row, (slot, tokens) in zip(batch.read(parts), parts.items(), strict=True):
            np.testing.assert_array_equal(row, alone.forward(tokens, states[slot]))
            assert_same_state(batch.state(slot), states[slot])
        if data.draw(st.booleans(), "one leaves"):
            slot = of_these[0]
            assert_same_state(batch.leave(slot), states.pop(slot))


@pytest.mark.parametrize("name", ["one-layer", "odd-ranks", "narrow-ffn"])
def test_other_shapes(tmp_path, name):
    config = SHAPES[name]
    model = write_and_open(tmp_path / "x", fine_weights(config))
    batch, alone = CpuBackend(model).batch(3), CpuBackend(model)
    parts = {batch.join(): some_tokens(config, length, length) for length in (9, 1, 4)}
    for row, tokens in zip(batch.read(parts), parts.values(), strict=True):
        np.testing.assert_array_equal(row, alone.forward(tokens, State.zeros(config)))


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 5, "presence_penalty": 1, "top_p": 1}])
def test_tokens_are_chosen_as_alone(tiny, options):
    batch, sessions, samplers, parts = CpuBackend(tiny, 2).batch(4), {}, {}, {}
    for seed in range(4):
        slot = batch.join()
        chosen = SamplingSettings(seed=seed, **options)
        sessions[slot], samplers[slot] = Session(CpuBackend(tiny), Sampler(chosen)), Sampler(chosen)
        parts[slot] = some_tokens(TINY, 5 + 70 * seed, seed)
        sessions[slot].feed(parts[slot])
    for _ in range(12):
        for slot, choice in batch.choose(parts, samplers).items():
            assert choice == sessions[slot].sample()
            samplers[slot].accept(choice.token)
            parts[slot] = [choice.token]


def test_a_sequence_without_a_sampler_only_reads(tiny):
    batch, alone = CpuBackend(tiny).batch(2), CpuBackend(tiny)
    first, second = batch.join(), batch.join()
    found = batch.choose({first: [1, 2], second: [3]}, {second: Sampler(SamplingSettings(seed=1))})
    assert [*found] == [second]
    state = State.zeros(TINY)
    alone.forward([1, 2], state)
    assert_same_state(batch.state(first), state)


def test_one_that_fails_stops_no_other(tiny):
    batch = CpuBackend(tiny).batch(2)
    broken = State.zeros(TINY)
    broken.wkv[:] = np.nan
    bad, good = batch.join(broken), batch.join()
    chosen = SamplingSettings(temperature=0)
    found = batch.choose({bad: [1], good: [1]}, {slot: Sampler(chosen) for slot in (bad, good)})
    assert found[bad].token == NOT_A_NUMBER
    alone = CpuBackend(tiny)
    assert found[good].token == int(np.argmax(alone.forward([1], State.zeros(TINY))))


def test_a_state_is_copied_both_ways(tiny):
    backend = CpuBackend(tiny)
    start = State.zeros(TINY)
    batch = backend.batch(1)
    slot = batch.join(start)
    batch.read({slot: [1]})
    assert start.is_empty
    copy = batch.state(slot)
    batch.read({slot: [2]})
    again = State.zeros(TINY)
    backend.forward([1], again)
    assert_same_state(copy, again)


def test_bad_input(tiny):
    batch = CpuBackend(tiny).batch(1)
    with pytest.raises(UsageError, match="there is no sequence in slot 0"):
        batch.state(0)
    slot = batch.join()
    with pytest.raises(UsageError, match="all 1 slots of the batch are taken"):
        batch.join()
    with pytest.raises(UsageError, match="token"):
        batch.choose({slot: [TINY.vocab_size]}, {slot: Sampler(SamplingSettings())})
    with pytest.raises(UsageError, match="at least one"):
        CpuBackend(tiny).batch(0)


@pytest.mark.parametrize("lengths", [(21,), (3, 19, 1), (8, 1), (8, 8), (1,) * 8, (1,) * 9])
def test_passes(lengths):
    parts = [(slot, np.arange(length) + 100 * slot) for slot, length in enumerate(lengths)]
    found = list(passes(parts, 8))
    sizes = [sum(len(tokens) for _, tokens in pieces) for pieces in found]
    assert sizes[:-1] == [8] * (len(found) - 1)
    assert 0 < sizes[-1] <= 8
    order = [slot for pieces in found for slot, _ in pieces]
    assert order == sorted(order)
    for slot, tokens in parts:
        read = [piece for pieces in found for other, piece in pieces if other == slot]
        np.testing.assert_array_equal(np.concatenate(read), tokens)
