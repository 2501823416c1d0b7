"""The scheduler: sequences join and leave at any step, and each has what it would have alone."""

import threading

import numpy as np
import pytest
from helpers.emulated_gpu import COMPILER, few_threads, tiny_backend
from helpers.models import assert_same_state, fine_weights, some_tokens, write_and_open
from helpers.writers import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.generate import Ending, TokenLoop
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.scheduler import Observation, Request, Scheduler
from rwkv_cli.engine.scheduler import scheduler as module
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.errors import DeviceError, RwkvError, UsageError
from rwkv_cli.sampling_settings import SamplingSettings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small model."""
    return write_and_open(tmp_path_factory.mktemp("tiny") / "x", fine_weights(TINY), "int8")


@pytest.fixture(scope="module")
def backend(tiny):
    return CpuBackend(tiny, 2)


def sampler(seed=0, **options):
    return Sampler(SamplingSettings(seed=seed, **options))


def request(tokens, seed=0, max_tokens=8, start=None, **fields):
    # No token ends the text, so that it has the length that is asked for.
    return Request(tokens, sampler(seed), Ending(-1, (), max_tokens), start, **fields)


def alone(backend, tokens, seed=0, max_tokens=8, start=None):
    """The tokens without a scheduler, and the snapshot after them."""
    loop = TokenLoop(Session(backend, sampler(seed), start), tokens, Ending(-1, (), max_tokens))
    chosen = list(loop)
    return chosen, loop.session.freeze()


def run(scheduler):
    """Take steps until nothing is left: how many there were."""
    steps = 0
    while scheduler.running or scheduler.waiting:
        scheduler.step()
        steps += 1
        assert steps < 10_000
    return steps


@settings(max_examples=30)
@given(data=st.data())
def test_logits_of_a_prompt_are_those_of_the_text_alone(backend, data):
    """Whatever they begin with in common, and whoever is answered beside them."""
    scheduler = Scheduler(backend, data.draw(st.integers(1, 4), "slots"))
    shared, expected = some_tokens(TINY, 150), {}
    for seed in range(data.draw(st.integers(1, 6), "requests")):
        own = some_tokens(TINY, data.draw(st.integers(1, 90), "own"), seed)
        tokens = shared[: data.draw(st.integers(0, 150), "shared")] + own
        n = data.draw(st.integers(1, len(tokens)), "n")
        found = []
        taking = Observation(n, lambda logits, found=found: found.append(logits.copy()))
        handle = scheduler.submit(request(tokens, observed=taking))
        expected[handle] = found, backend.forward_all(tokens, State.zeros(backend.config))[-n:]
        if data.draw(st.booleans(), "answered"):
            answered = scheduler.submit(request(tokens, seed))
            expected[answered] = alone(backend, tokens, seed)
        for _ in range(data.draw(st.integers(0, 5), "steps")):
            scheduler.step()
    run(scheduler)
    for handle, (found, logits) in expected.items():
        if handle.request.observed:
            assert list(handle) == []
            assert handle.finish == "length"
            np.testing.assert_array_equal(np.concatenate(found), logits)
        else:
            assert list(handle) == found


@pytest.mark.parametrize("n", [0, 4])
def test_no_more_logits_than_tokens(backend, n):
    with pytest.raises(UsageError, match="at least one"):
        Scheduler(backend).submit(request([1, 2, 3], observed=Observation(n, print)))


def test_alternatives_read_what_precedes_them_once(tiny):
    """Four answers to a question: their logits need the question only once."""
    backend = Counting(tiny, 2)
    scheduler = Scheduler(backend, 4)
    question = some_tokens(TINY, 100)
    for answer in range(1, 5):
        scheduler.submit(request([*question, answer, answer], observed=Observation(3, len)))
    run(scheduler)
    assert backend.read < len(question)


class Counting(CpuBackend):
    """Counts the tokens that its batches read."""

    def batch(self, slots):
        batch = super().batch(slots)
        self.read, self.steps = 0, []
        choose = batch.choose

        def counted(parts, samplers, wanted=()):
            self.read += sum(map(len, parts.values()))
            self.steps.append({slot: len(tokens) for slot, tokens in parts.items()})
            return choose(parts, samplers, wanted)

        batch.choose = counted
        return batch


@settings(max_examples=40)
@given(data=st.data())
def test_whoever_else_is_there_each_text_is_the_same_to_the_bit(backend, data):
    """Requests come at any time, are cancelled, begin alike, and continue from elsewhere."""
    scheduler = Scheduler(backend, data.draw(st.integers(1, 4), "slots"))
    elsewhere = Session(backend, sampler())
    elsewhere.feed([9, 8, 7])
    places = [None, elsewhere.snapshot()]
    shared = some_tokens(TINY, 150)
    expected = {}
    for seed in range(data.draw(st.integers(1, 7), "requests")):
        tokens = shared[: data.draw(st.integers(0, 150), "shared")] + some_tokens(
            TINY, data.draw(st.integers(1, 30), "own"), seed
        )
        start = data.draw(st.sampled_from(places), "start")
        submitter = data.draw(st.integers(0, 2), "submitter")
        handle = scheduler.submit(request(tokens, seed, 8, start, submitter=submitter, keeps=True))
        expected[handle] = alone(backend, tokens, seed, 8, start)
        for _ in range(data.draw(st.integers(0, 5), "steps")):
            scheduler.step()
        if data.draw(st.integers(0, 5), "cancel") == 0:
            other = data.draw(st.sampled_from([*expected]), "whom")
            scheduler.cancel(other)
            scheduler.cancel(other)
            assert other.status == "done"
    run(scheduler)
    for handle, (choices, snapshot) in expected.items():
        found = list(handle)
        assert found == choices[: len(found)]
        assert handle.finish == ("length" if len(found) == len(choices) else None)
        if handle.finish:
            assert_same_state(handle.session.freeze().state, snapshot.state)
            assert handle.session.n_tokens == snapshot.n_tokens
            np.testing.assert_array_equal(handle.session.logits, snapshot.logits)


def kinds(tiny):
    yield lambda: ReferenceBackend(tiny)
    yield lambda: CpuBackend(tiny)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["reference", "cpu", "cuda"])
def test_one_class_drives_all_backends(tiny, kind, tmp_path):
    if kind == 2 and COMPILER is None:
        pytest.skip("no C++ compiler is here to emulate a GPU with")
    with few_threads():
        backend = tiny_backend(tmp_path) if kind == 2 else [*kinds(tiny)][kind]()
        scheduler = Scheduler(backend, 3)
        handles = [scheduler.submit(request(some_tokens(TINY, 3 + 9 * i, i), i, 4)) for i in range(5)]
        run(scheduler)
        for i, handle in enumerate(handles):
            expected = alone(backend, some_tokens(TINY, 3 + 9 * i, i), i, 4)[0]
            assert [choice.token for choice in handle] == [choice.token for choice in expected]


def test_a_handle_that_is_asked_takes_the_steps(backend):
    scheduler = Scheduler(backend, 2)
    first, second = (scheduler.submit(request([1, 2, 3], seed)) for seed in range(2))
    assert list(second) == alone(backend, [1, 2, 3], 1)[0]
    assert list(first) == alone(backend, [1, 2, 3], 0)[0]


def test_a_text_goes_on_from_where_it_was_kept(backend):
    scheduler = Scheduler(backend, 1)
    handle = scheduler.submit(request([1, 2, 3], max_tokens=5, keeps=True))
    first = list(handle)
    again = handle.session.freeze()
    second = scheduler.submit(request([], start=again, max_tokens=5))
    expected, _ = alone(backend, [1, 2, 3], max_tokens=10)
    whole = TokenLoop(Session(backend, sampler(), again), [], Ending(-1, (), 5))
    assert first == expected[:5]
    assert [choice.token for choice in second] == [choice.token for choice in whole]


def test_what_is_not_kept_costs_nothing_and_says_so(backend):
    scheduler = Scheduler(backend, 1)
    handle = scheduler.submit(request([1], max_tokens=1))
    with pytest.raises(UsageError, match="not done"):
        _ = handle.session
    list(handle)
    with pytest.raises(UsageError, match="nothing is kept"):
        _ = handle.session


# --- reading --------------------------------------------------------------------------------------------------------


def test_nobody_waits_for_a_long_prompt(tiny):
    """Each step gives a token to all who are being answered, and is about as long as one pass."""
    backend = Counting(tiny, 1)
    capacity = backend.batch(1).capacity
    scheduler = Scheduler(backend, 4)
    short = [scheduler.submit(request([seed + 1], seed, 400)) for seed in range(3)]
    for _ in range(3):
        scheduler.step()
    scheduler.submit(request(some_tokens(TINY, 5_000), max_tokens=1))
    steps = 0
    while scheduler.running == 4 or scheduler.waiting:
        before = [handle.usage.generated_tokens for handle in short]
        scheduler.step()
        steps += 1
        assert [handle.usage.generated_tokens for handle in short] == [n + 1 for n in before]
    assert max(sum(parts.values()) for parts in backend.steps) == capacity
    assert steps == pytest.approx(5_000 / (capacity - 3), abs=2)


def test_prompts_are_read_even_if_many_are_answered(tiny):
    backend = Counting(tiny, 1, chunk=8)
    scheduler = Scheduler(backend, 12)
    answered = [scheduler.submit(request([1, seed], seed, 100)) for seed in range(11)]
    while not all(handle.usage.generated_tokens for handle in answered):
        scheduler.step()
    scheduler.submit(request(some_tokens(TINY, 40), max_tokens=1))
    backend.steps.clear()
    for _ in range(20):
        scheduler.step()
    assert all(parts[11] == 2 for parts in backend.steps[:20])


def test_a_short_prompt_does_not_wait_for_a_long_one(tiny):
    backend = Counting(tiny, 1)
    scheduler = Scheduler(backend, 4)
    scheduler.submit(request(some_tokens(TINY, 3_000), max_tokens=1))
    scheduler.step()
    short = scheduler.submit(request(some_tokens(TINY, 40, 1), max_tokens=1))
    scheduler.step()
    scheduler.step()
    assert short.usage.generated_tokens == 1


# --- common beginnings ----------------------------------------------------------------------------------------------


def test_what_prompts_have_in_common_is_read_once(tiny):
    backend = Counting(tiny, 1)
    scheduler = Scheduler(backend, 4)
    document = some_tokens(TINY, 500)
    handles = [scheduler.submit(request([*document, *some_tokens(TINY, 20, i)], i, 3)) for i in range(50)]
    run(scheduler)
    for i, handle in enumerate(handles):
        expected, _ = alone(backend, [*document, *some_tokens(TINY, 20, i)], i, 3)
        assert list(handle) == expected
        assert handle.usage.cached_tokens == (0 if i == 0 else 500)
    assert backend.read == 500 + 50 * (20 + 2)


def test_branches_of_branches(tiny):
    """A system text, under it examples of two kinds, under these questions."""
    backend = Counting(tiny, 1)
    scheduler = Scheduler(backend, 3)
    system = some_tokens(TINY, 200)
    prompts = [
        [*system, *some_tokens(TINY, 100, kind), *some_tokens(TINY, 10, 10 + i)]
        for kind in (1, 2)
        for i in range(6)
    ]
    handles = [scheduler.submit(request(tokens, 0, 1)) for tokens in prompts]
    run(scheduler)
    assert backend.read == 200 + 2 * 100 + 12 * 10
    for handle, tokens in zip(handles, prompts, strict=True):
        assert list(handle) == alone(backend, tokens, 0, 1)[0]


def test_one_who_comes_later_begins_where_another_has_read_to(tiny):
    backend = Counting(tiny, 1)
    scheduler = Scheduler(backend, 4)
    document = some_tokens(TINY, 600)
    first = scheduler.submit(request([*document, 1, 2, 3], max_tokens=1))
    scheduler.step()
    second = scheduler.submit(request([*document, 4, 5, 6], 1, 1))
    run(scheduler)
    assert backend.read == 606
    assert list(first) == alone(backend, [*document, 1, 2, 3], 0, 1)[0]
    assert list(second) == alone(backend, [*document, 4, 5, 6], 1, 1)[0]


def test_if_the_reader_is_cancelled_another_reads(tiny):
    backend = Counting(tiny, 1)
    scheduler = Scheduler(backend, 4)
    document = some_tokens(TINY, 600)
    first, second = (scheduler.submit(request([*document, i, i], i, 1)) for i in (1, 2))
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    scheduler.cancel(first)
    assert list(second) == alone(backend, [*document, 2, 2], 2, 1)[0]


def test_the_same_prompt_many_times(tiny):
    backend = Counting(tiny, 1)
    scheduler = Scheduler(backend, 4)
    tokens = some_tokens(TINY, 300)
    handles = [scheduler.submit(request(tokens, seed, 2)) for seed in range(9)]
    run(scheduler)
    assert backend.read == 299 + 9 * 2
    for seed, handle in enumerate(handles):
        assert list(handle) == alone(backend, tokens, seed, 2)[0]


def test_states_of_beginnings_take_bounded_memory(tiny):
    backend = Counting(tiny, 1)
    state = State.zeros(TINY)
    scheduler = Scheduler(backend, 1, state_bytes=2 * state.nbytes)
    for i in range(10):
        for j in range(2):
            scheduler.submit(request([*some_tokens(TINY, 40, i), j + 1, 1], j, 1))
    run(scheduler)
    prefixes = scheduler._prefixes
    assert len(prefixes._states) == 2
    for _ in range(2):
        tree, node = prefixes._states.popitem()[1]
        node.state = None
        tree.prune(node)
        prefixes._drop_if_empty(tree)
    assert prefixes._trees == {}
    assert backend.read == 10 * (40 + 2 * 2)


class Kept:
    """Beginnings in memory, as the prompt cache has them on disk."""

    def __init__(self, places, known=None):
        self.places, self.known, self.kept = places, known, []

    def longest(self):
        return self.known

    def keep(self, snapshot):
        self.kept.append(snapshot)


def test_beginnings_are_kept_and_found_again(tiny):
    backend = Counting(tiny, 1)
    tokens = some_tokens(TINY, 200)
    first = Kept([70, 130, 200])
    scheduler = Scheduler(backend, 2)
    expected = alone(backend, tokens)[0]
    assert list(scheduler.submit(request(tokens, beginnings=first))) == expected
    assert [each.n_tokens for each in first.kept] == [70, 130, 200]
    for snapshot in first.kept:
        state = State.zeros(TINY)
        logits = CpuBackend(tiny).forward(tokens[: snapshot.n_tokens], state)
        np.testing.assert_array_equal(snapshot.logits, logits)
        assert_same_state(snapshot.state, state)
    for known in first.kept:
        backend.read = 0
        second = Kept([70, 130, 200], known)
        handle = scheduler.submit(request(tokens, beginnings=second))
        assert list(handle) == expected
        assert handle.usage.cached_tokens == known.n_tokens
        assert backend.read == 200 - known.n_tokens + 7
        assert [each.n_tokens for each in second.kept] == [n for n in (130, 200) if n > known.n_tokens]


# --- whose turn it is -----------------------------------------------------------------------------------------------


def test_submitters_are_served_in_turn(backend):
    scheduler = Scheduler(backend, 1)
    order = []
    handles = {
        scheduler.submit(request([1, 2], i, 1, submitter=name)): (name, i)
        for name, n in (("a", 5), ("b", 2), ("c", 1))
        for i in range(n)
    }
    while scheduler.running or scheduler.waiting:
        order += [handles[handle] for handle in scheduler.step()]
    assert order == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("a", 2), ("a", 3), ("a", 4)]


def test_a_long_answer_makes_room_for_another_submitter(backend):
    scheduler = Scheduler(backend, 1)
    long = scheduler.submit(request([1, 2], 0, 300, submitter="a"))
    more = scheduler.submit(request([3], 2, 2, submitter="a"))
    for _ in range(3):
        scheduler.step()
    other = scheduler.submit(request([4], 1, 3, submitter="b"))
    while other.status != "done":
        scheduler.step()
    assert long.usage.generated_tokens == module.QUANTUM
    assert list(other) == alone(backend, [4], 1, 3)[0]
    assert list(long) == alone(backend, [1, 2], 0, 300)[0]
    assert list(more) == alone(backend, [3], 2, 2)[0]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_error_in_one_ends_that_one_alone(backend):
    broken = State.zeros(TINY)
    broken.wkv[:] = np.nan
    scheduler = Scheduler(backend, 3)
    bad = scheduler.submit(request([1], start=Snapshot(broken)))
    good = scheduler.submit(request([1]))
    everything = Request([1], sampler(banned=frozenset(range(TINY.vocab_size))), Ending(-1, (), 3))
    banned = scheduler.submit(everything)
    run(scheduler)
    with pytest.raises(RwkvError, match="not a number"):
        list(bad)
    with pytest.raises(UsageError, match="all are banned"):
        list(banned)
    assert list(good) == alone(backend, [1])[0]


def test_what_cannot_be_is_refused_before_anything_is_read(backend):
    scheduler = Scheduler(backend, 2)
    other = State(
        np.zeros((1, 64), np.float32), np.zeros((1, 1, 64, 64), np.float32), np.zeros((1, 64), np.float32)
    )
    for wrong, said in (
        (lambda: request([]), "the prompt is empty"),
        (lambda: request([TINY.vocab_size]), "there is no token"),
        (lambda: request([-1]), "there is no token"),
        (lambda: Request([1], sampler(logit_bias={TINY.vocab_size: 1.0})), "there is no token"),
        (lambda: request([1], start=Snapshot(other)), "another shape"),
        (lambda: request([1], max_tokens=-2), "max_tokens"),
    ):
        with pytest.raises(UsageError, match=said):
            scheduler.submit(wrong())
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    with pytest.raises(UsageError, match="at least one"):
        Scheduler(backend, 0)


def test_a_device_that_fails_ends_all_that_run(tiny):
    backend = Counting(tiny, 1)
    scheduler = Scheduler(backend, 2)
    handles = [scheduler.submit(request([1], seed)) for seed in range(3)]
    choose = scheduler._batch.choose

    def fails(*_):
        raise DeviceError("the GPU is gone")

    scheduler._batch.choose = fails
    assert set(scheduler.step()) == set(handles[:2])
    for handle in handles[:2]:
        with pytest.raises(DeviceError, match="the GPU is gone"):
            next(handle)
    scheduler._batch.choose = choose
    assert list(handles[2]) == alone(backend, [1], 2)[0]


def test_no_tokens_are_wanted(backend):
    scheduler = Scheduler(backend, 1)
    handle = scheduler.submit(request([1, 2], max_tokens=0, keeps=True))
    assert list(handle) == []
    assert handle.finish == "length"
    handle.read_prompt()
    state = State.zeros(TINY)
    backend.forward([1, 2], state)
    assert_same_state(handle.session.freeze().state, state)


def test_other_threads_submit_and_cancel(backend):
    scheduler = Scheduler(backend, 3)
    handles, stop = [], threading.Event()

    def submit(seed):
        for i in range(20):
            handle = scheduler.submit(request([1 + i, 2], seed, 6, submitter=seed))
            handles.append((handle, i, seed))
            if i % 5 == 4:
                scheduler.cancel(handle)

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()

    def everyone():
        while any(thread.is_alive() for thread in threads) or scheduler.running or scheduler.waiting:
            scheduler.step()
        stop.set()

    everyone()
    assert stop.is_set()
    assert len(handles) == 80
    for handle, i, seed in handles:
        found = list(handle)
        expected = alone(backend, [1 + i, 2], seed, 6)[0]
        assert found == (expected if i % 5 != 4 else expected[: len(found)])


def test_a_constraint_that_is_too_complex_ends_its_own_text(backend):
    class TooComplex:
        is_complete = False

        def mask(self):
            raise UsageError("the constraint is too complex")

        def forced(self):
            return []

    scheduler = Scheduler(backend, 2)
    bad = scheduler.submit(
        Request([1, 2], Sampler(SamplingSettings(), constraint=TooComplex()), Ending(-1, (), 3))
    )
    good = scheduler.submit(request([1, 2]))
    run(scheduler)
    with pytest.raises(UsageError, match="too complex"):
        list(bad)
    assert list(good) == alone(backend, [1, 2])[0]
