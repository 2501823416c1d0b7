"""The CUDA backend on an emulated GPU: against the reference, the CPU backend and itself. No test needs a GPU."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.emulated_gpu import COMPILER, EmulatedGpu, build, few_threads
from helpers.models import assert_same_state, difference, some_tokens, state_difference, write_and_open
from helpers.writers import TINY, random_weights

import rwkv_cli
from rwkv_cli.engine import speculation
from rwkv_cli.engine.backends import cuda
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.cuda import CudaBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.bench import Plan, Results, run, summary
from rwkv_cli.engine.drafting import LookupDrafter
from rwkv_cli.engine.gpu import weights as gpu_weights
from rwkv_cli.engine.gpu.batched_pass import BatchedPass
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.kernel_sources import constants
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.sessions import state_file

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here to emulate a GPU with")

SUMS = 2e-6
"""Of the scale: float32 sums of float16 weights, in another order than the reference's."""

INTEGERS = 1e-5
"""Of the scale: sums of integers are exact, and inputs are rounded in the same way; floats between them differ."""

FORK = 0.06
"""Of the scale: where a value is halfway between two integers the last bit of a float decides, and what follows
differs. Such a fork is rare, so that the first token shows whether the arithmetic is the same."""

HALF = 2e-3
"""Of the scale: tensor cores take their inputs in float16."""

SPLIT = 5e-4
"""Of the scale: the library's sums depend on how many tokens there are, and are then rounded to float16."""

TYPES: tuple[WeightType, ...] = ("fp16", "int8", "int4")

UNEVEN = replace(TINY, n_layer=2, n_embd=576, n_ffn=640, rank_w=144, rank_a=80, rank_v=136, rank_g=520)
"""Lanes without columns, warps that are left over, an odd number of groups, ranks longer than what is read ahead."""


class Emulated:
    """A model in a type of weights, and a backend for it; to make one takes seconds, and so it is shared."""

    def __init__(self, folder: Path, weight_type: WeightType):
        self.folder, self.weight_type = folder, weight_type
        self.model: ModelFile = write_and_open(folder / "model", random_weights(TINY), weight_type)
        self._kernels = build(weight_type)
        self.backend = self.another()

    def another(self, model: ModelFile | None = None, multiprocessors: int = 3) -> CudaBackend:
        return CudaBackend(model or self.model, EmulatedGpu(self._kernels, multiprocessors))


@pytest.fixture(scope="module", autouse=True)
def quick():
    with few_threads():
        yield


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """An `Emulated` by type of weights, built once."""
    made: dict[str, Emulated] = {}

    def get(weight_type: WeightType) -> Emulated:
        if weight_type not in made:
            made[weight_type] = Emulated(tmp_path_factory.mktemp(weight_type), weight_type)
        return made[weight_type]

    return get


@pytest.fixture(params=TYPES)
def each(request, emulated) -> Emulated:
    return emulated(request.param)


@pytest.fixture
def fp16(emulated) -> Emulated:
    return emulated("fp16")


@pytest.fixture
def backend(fp16) -> CudaBackend:
    return fp16.backend


@pytest.fixture(scope="module")
def second(emulated) -> CudaBackend:
    """Another one for the same model."""
    return emulated("fp16").another()


def one_by_one(backend, tokens, state):
    """The logits [T, V] of single steps."""
    return np.stack([backend.forward([token], state) for token in tokens])


# -------------------------------------------------------------------------------------------------- against others


def test_single_tokens_in_fp16_agree_with_the_reference(fp16):
    tokens = some_tokens(TINY, 8)
    state, expected_state = State.zeros(TINY), State.zeros(TINY)
    found = one_by_one(fp16.backend, tokens, state)
    expected = ReferenceBackend(fp16.model).forward_all(tokens, expected_state)
    assert difference(found, expected) <= SUMS
    assert state_difference(state, expected_state) <= SUMS


@pytest.mark.parametrize("weight_type", ["int8", "int4"])
def test_single_tokens_in_integers_agree_with_the_cpu(emulated, weight_type):
    it = emulated(weight_type)
    tokens = some_tokens(TINY, 8)
    state, expected_state = State.zeros(TINY), State.zeros(TINY)
    found = one_by_one(it.backend, tokens, state)
    expected = CpuBackend(it.model, 1).forward_all(tokens, expected_state)
    assert difference(found[:1], expected[:1]) <= INTEGERS
    assert difference(found, expected) <= FORK
    assert state_difference(state, expected_state) <= FORK


@pytest.mark.parametrize("config", [TINY, UNEVEN], ids=["tiny", "uneven"])
def test_one_block_does_what_many_do(each, config):
    """It has many rows, and takes them in turns."""
    model = each.model
    if config is UNEVEN:
        model = write_and_open(each.folder / "uneven", random_weights(UNEVEN), each.weight_type)
    expected_from = ReferenceBackend(model) if each.weight_type == "fp16" else CpuBackend(model, 1)
    tokens, state, expected_state = some_tokens(config, 2), State.zeros(config), State.zeros(config)
    found = one_by_one(each.another(model, 1), tokens, state)
    expected = expected_from.forward_all(tokens, expected_state)
    assert difference(found[0], expected[0]) <= (SUMS if each.weight_type == "fp16" else INTEGERS)
    assert difference(found, expected) <= (SUMS if each.weight_type == "fp16" else FORK)
    assert state_difference(state, expected_state) <= (SUMS if each.weight_type == "fp16" else FORK)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tokens", [[5], [5, 6, 7]])
def test_what_is_no_number_does_not_get_lost(each, value, tokens):
    """Not where inputs are rounded to whole numbers either."""
    state = State.zeros(TINY)
    state.wkv[0, 0, 3, 5] = value
    assert not np.isfinite(each.backend.forward(tokens, state)).any()


@pytest.mark.parametrize("shared", [64 << 10, 100 << 10, 228 << 10])
@pytest.mark.parametrize("multiprocessors", [14, 24, 28, 40, 46, 82, 132])
@pytest.mark.parametrize("C", [768, 1024, 2048, 2560, 4096])
@pytest.mark.parametrize("weight_type", TYPES)
def test_blocks_fit_into_every_gpu(weight_type, C, multiprocessors, shared):
    """Small ones have little shared memory, and few blocks, which have much to keep there."""
    config = replace(TINY, n_layer=1, n_embd=C, n_ffn=4 * C, vocab_size=65536)
    ranks = {"w": 128, "a": 128, "v": 96, "g": 480}
    low_rank = gpu_weights.LowRank(
        gpu_weights.Matrix(0, 0, sum(ranks.values()), C),
        {name: gpu_weights.Matrix(0, 0, C, rank) for name, rank in ranks.items()},
    )
    square = gpu_weights.Matrix(0, 0, C, C)
    layer = gpu_weights.Layer(
        vectors=0,
        main=gpu_weights.Matrix(0, 0, 3 * C, C),
        low_rank=low_rank,
        low_rank_half=low_rank,
        output=square,
        key=gpu_weights.Matrix(0, 0, 4 * C, C),
        value=gpu_weights.Matrix(0, 0, C, 4 * C),
    )
    weights = SimpleNamespace(
        config=config,
        type=weight_type,
        ranks=ranks,
        norm=lambda _name: 0,
        embedding=0,
        embedding_scales=0,
        layers=[layer],
    )
    weights.head = gpu_weights.Matrix(0, 0, 65536, C)
    gpu = EmulatedGpu({}, multiprocessors)
    gpu.shared_memory = shared
    in_value = constants("value.cu", weight_type)
    for step in Decoder(gpu, weights, StateSlots(gpu, config, 1)).steps():
        value = 4 * in_value["WARPS"] * in_value["CHANNELS"] + 4 * 34
        declared = {"value": value, "heads": 5120}.get(step.kernel, 512)  # by the sources, at most
        assert step.shared + declared <= shared - 1024  # which the system takes
        assert all(extent > 0 for extent in step.grid)


def test_many_tokens_agree_with_the_reference(each):
    tokens = some_tokens(TINY, 21)
    state, expected_state = State.zeros(TINY), State.zeros(TINY)
    found = each.backend.forward_all(tokens, state)
    expected = ReferenceBackend(each.model).forward_all(tokens, expected_state)
    assert found.shape == (21, TINY.vocab_size)
    assert difference(found, expected) <= HALF
    assert state_difference(state, expected_state) <= HALF


def test_a_prompt_in_chunks_agrees_with_the_reference(fp16, backend, monkeypatch):
    """The chunks are of 8, 8 and 3 tokens; single ones continue from there."""
    monkeypatch.setattr(backend, "chunk", 8)
    tokens, state, expected_state = some_tokens(TINY, 21), State.zeros(TINY), State.zeros(TINY)
    heard: list[int] = []
    found = [backend.forward(tokens[:19], state, heard.append)]
    found += [backend.forward([token], state, heard.append) for token in tokens[19:]]
    expected = ReferenceBackend(fp16.model).forward_all(tokens, expected_state)
    assert difference(np.stack(found), expected[18:]) <= HALF
    assert state_difference(state, expected_state) <= HALF
    assert heard == [8, 8, 3, 1, 1]


def test_logits_of_more_tokens_than_are_held_at_once(backend, monkeypatch):
    monkeypatch.setattr(cuda, "LOGITS_AT_ONCE", 4)
    tokens, state, other = some_tokens(TINY, 6), State.zeros(TINY), State.zeros(TINY)
    found = backend.forward_all(tokens, state)
    expected = np.concatenate([backend.forward_all(part, other) for part in (tokens[:4], tokens[4:])])
    np.testing.assert_array_equal(found, expected)
    assert_same_state(state, other)


def test_sequences_of_one_pass_are_as_each_alone(backend):
    gpu, weights = backend._gpu, backend._weights
    states = StateSlots(gpu, TINY, 3)
    batched = BatchedPass(gpu, weights, states, 16)
    V = TINY.vocab_size

    def read(parts: dict[int, list[int]]) -> dict[int, np.ndarray]:
        """The last logits of every slot, whose tokens these are."""
        lengths = [len(tokens) for tokens in parts.values()]
        T = sum(lengths)
        gpu.upload(batched.tokens, np.concatenate([*parts.values()]).astype(np.int32))
        gpu.upload(batched.slots, np.repeat([*parts], lengths).astype(np.int32))
        gpu.upload(batched.begins, np.cumsum([0, *lengths]).astype(np.int32))
        out = gpu.allocate(4 * weights.head.R * len(parts))
        gpu.run([*batched.steps(T, len(parts)), *batched.logits(T, out.address, last_of=len(parts))])
        logits = np.empty((len(parts), weights.head.R), np.float32)
        gpu.download(out.address, logits)
        return dict(zip(parts, logits[:, :V], strict=True))

    tokens = {2: some_tokens(TINY, 9, 1), 0: some_tokens(TINY, 1, 2), 1: some_tokens(TINY, 4, 3)}
    together = read(tokens)
    ends = [State.zeros(TINY) for _ in range(3)]
    for slot, state in enumerate(ends):
        states.fetch(slot, state)
        states.store(slot, State.zeros(TINY))
    for slot, each in tokens.items():
        assert difference(read({slot: each})[slot], together[slot]) <= SPLIT
        alone = State.zeros(TINY)
        states.fetch(slot, alone)
        assert state_difference(alone, ends[slot]) <= SPLIT


def test_the_same_input_gives_the_same_to_the_bit(each):
    results = []
    for _ in range(2):
        state = State.zeros(TINY)
        results.append((one_by_one(each.backend, [1, 2, 3], state), state))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert_same_state(results[0][1], results[1][1])


def test_the_same_prompt_gives_the_same_to_the_bit(backend):
    states = State.zeros(TINY), State.zeros(TINY)
    first, again = (backend.forward(some_tokens(TINY, 10), state) for state in states)
    np.testing.assert_array_equal(first, again)
    assert_same_state(*states)


# ------------------------------------------------------------------------------------------ where the states are


class Transfers:
    """Counts the copies of states to and from a backend's GPU."""

    def __init__(self, backend: CudaBackend, monkeypatch):
        self.done: list[str] = []
        for name in ("store", "fetch"):
            monkeypatch.setattr(backend._states, name, self._counted(name, getattr(backend._states, name)))

    def _counted(self, name, function):
        def call(*arguments):
            self.done.append(name)
            return function(*arguments)

        return call


def test_a_state_moves_once(backend, monkeypatch):
    transfers, state = Transfers(backend, monkeypatch), State.zeros(TINY)
    for token in (1, 2, 3):
        backend.forward([token], state)
    backend.forward([4, 5], state)
    assert transfers.done == ["store"]
    assert state.wkv.any()
    assert state.shift_att.any()
    assert transfers.done == ["store", "fetch"]
    backend.forward([6], state)
    assert transfers.done == ["store", "fetch", "store"]


def test_a_state_that_was_changed_on_the_host_is_uploaded_again(backend):
    state, expected = State.zeros(TINY), State.zeros(TINY)
    backend.forward([1, 2, 3], state)
    for part in State.PARTS:
        getattr(state, part)[...] = 0
    np.testing.assert_array_equal(backend.forward([4], state), backend.forward([4], expected))
    assert_same_state(state, expected)


def test_states_in_turns(backend, second):
    states, expected = [State.zeros(TINY) for _ in range(2)], []
    for tokens in ([1, 2, 3], [4, 5, 6]):
        alone = State.zeros(TINY)
        one_by_one(second, tokens, alone)
        expected.append(alone)
    for pair in ([1, 4], [2, 5], [3, 6]):
        for token, state in zip(pair, states, strict=True):
            backend.forward([token], state)
    for state, alone in zip(states, expected, strict=True):
        assert_same_state(state, alone)


def test_a_state_that_is_no_longer_used_is_not_copied_back(backend, monkeypatch):
    transfers, state = Transfers(backend, monkeypatch), State.zeros(TINY)
    backend.forward([1], state)
    del state
    gc.collect()
    backend.forward([1], State.zeros(TINY))
    assert transfers.done == ["store", "store"]


def test_a_copy_is_taken_without_an_eviction(backend, monkeypatch):
    transfers, state = Transfers(backend, monkeypatch), State.zeros(TINY)
    backend.forward([1, 2], state)
    before = state.copy()
    backend.forward([3], state)
    assert transfers.done == ["store", "fetch"]
    after = state.copy()
    backend.forward([3], before)
    assert_same_state(before, after)
    assert_same_state(state, after)


def test_a_state_goes_from_one_backend_to_another_and_back(fp16, second):
    tokens = some_tokens(TINY, 12)
    backends = [fp16.backend, CpuBackend(fp16.model, 1), second, ReferenceBackend(fp16.model)]
    state, expected = State.zeros(TINY), State.zeros(TINY)
    for i, token in enumerate(tokens):
        logits = backends[i % len(backends)].forward([token], state)
    wanted = ReferenceBackend(fp16.model).forward(tokens, expected)
    assert difference(logits, wanted) <= 2e-5
    assert state_difference(state, expected) <= 2e-5


def test_a_state_in_another_memory_order(backend):
    state, expected = State.zeros(TINY), State.zeros(TINY)
    for each in (state, expected):
        backend.forward([1, 2, 3], each)
    state.wkv = np.asfortranarray(state.wkv)
    np.testing.assert_array_equal(backend.forward([4], state), backend.forward([4], expected))
    assert_same_state(state, expected)


def test_threads_that_share_a_backend(backend):
    """One thread advances its state while others read and copy theirs, which the first one evicts."""
    expected = State.zeros(TINY)
    one_by_one(backend, range(6), expected)
    start = threading.Barrier(3)

    def converse(reads: bool) -> State:
        state = State.zeros(TINY)
        start.wait()
        for token in range(6):
            backend.forward([token], state)
            if reads:
                assert_same_state(state.copy(), state)
        return state

    with ThreadPoolExecutor(3) as threads:
        for state in threads.map(converse, [False, True, True]):
            assert_same_state(state, expected)


def test_two_backends_that_have_each_others_states(backend, second):
    """Neither waits for the other one's lock while it holds its own."""
    states = [State.zeros(TINY), State.zeros(TINY)]
    expected = State.zeros(TINY)
    one_by_one(backend, range(8), expected)

    def converse(i: int) -> None:
        for token in range(8):
            (backend, second)[(token + i) % 2].forward([token], states[i])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(converse, range(2)))
    for state in states:
        assert_same_state(state, expected)


# --------------------------------------------------------------------------------------------- the whole program


@pytest.fixture
def model(backend, tiny_model) -> rwkv_cli.Model:
    """A model that reads and writes bytes, on the emulated GPU."""
    made = rwkv_cli.load(tiny_model)
    made.backend = backend
    return made


def test_a_session_can_be_taken_back(backend):
    """Snapshots are copies: what was read since does not reach them."""
    session = Session(backend, Sampler(SamplingSettings()))
    session.feed([1, 2, 3])
    snapshot = session.snapshot()
    session.feed([4])
    again = snapshot.state.copy()
    expected = backend.forward([4], snapshot.state)
    np.testing.assert_array_equal(backend.forward([4], again), expected)
    np.testing.assert_array_equal(session.logits, expected)
    assert_same_state(session.state, again)
    assert_same_state(session.state, snapshot.state)


def test_a_saved_state_has_what_was_read(backend, model, tmp_path):
    state, expected = State.zeros(TINY), State.zeros(TINY)
    for each in (state, expected):
        logits = backend.forward([1, 2, 3], each)
    saved = state_file.SavedState(Snapshot(state, logits, 3), state_file.identify(model))
    state_file.save(tmp_path / "x", saved)
    assert_same_state(state_file.load(tmp_path / "x").snapshot.state, expected)


def test_generate_and_continue(model):
    options = {"temperature": 0, "max_tokens": 3, "template": "raw"}
    first = model.generate([1, 2, 3], **options)
    tokens = [step.token for step in first]
    again = model.generate([1, 2, 3], **(options | {"max_tokens": 6}))
    expected = [step.token for step in again]
    rest = model.generate([], start=first.commit(), **options)
    assert tokens + [step.token for step in rest] == expected


def test_it_can_be_measured(backend, monkeypatch):
    monkeypatch.setattr(cuda, "PROBE_BYTES", 1 << 16)
    plan, results = Plan([3], 2, 1), Results()
    run(backend, plan, results)
    found = summary(backend, plan, results)["memory"]
    assert found["bytes_per_token"] == backend.bytes_per_token
    assert backend.memory_reader()() == 2 << 16
    assert found["share_of_dense_limit"] > 0


def test_bytes_per_token_are_those_of_the_cpu(each):
    file = each.model
    embedding = sum(file.stored(name).nbytes for name in file.names if name.startswith("emb.weight"))
    read = file.weight_bytes - embedding + embedding // TINY.vocab_size
    assert each.backend.bytes_per_token == read + 2 * TINY.state_bytes
    assert each.backend.bytes_per_token == CpuBackend(file, 1).bytes_per_token


def test_the_description_names_weights_and_gpu(backend):
    assert backend.description == "CUDA, fp16 weights, emulated"
    assert backend.kernel == "CUDA, emulated"


def test_logits_are_a_copy(backend):
    state = State.zeros(TINY)
    first = backend.forward([1], state)
    before = first.copy()
    backend.forward([2], state)
    np.testing.assert_array_equal(first, before)
    assert type(first) is np.ndarray


# ------------------------------------------------------------------------------------------ tokens read on trial


@pytest.mark.parametrize("right", [0, 1, 3, 5])
def test_tokens_on_trial(backend, right):
    tokens, more = some_tokens(TINY, 5), some_tokens(TINY, 5, 1)
    state, plain = State.zeros(TINY), State.zeros(TINY)
    backend.forward([7, 8, 9], state)
    backend.forward([7, 8, 9], plain)
    ahead = backend.look_ahead(tokens, state)
    expected = [backend.forward([token], plain) for token in tokens[:right]]
    for row, logits in zip(ahead.logits, expected, strict=False):
        assert difference(row, logits) <= HALF
    state = ahead.state(right)
    assert state_difference(state, plain) <= HALF
    assert difference(backend.forward(more, state), backend.forward(more, plain)) <= HALF


def test_two_texts_on_trial_at_the_same_time(backend):
    """The values that one began with go to the host when the other needs their place."""
    tokens = some_tokens(TINY, 4)
    states, plain = [State.zeros(TINY) for _ in range(2)], [State.zeros(TINY) for _ in range(2)]
    for each, start in ((states, (1, 2)), (plain, (1, 2))):
        for state, token in zip(each, start, strict=True):
            backend.forward([token, 3], state)
    ahead = [backend.look_ahead(tokens, state) for state in states]
    for i, n in ((0, 2), (1, 0)):
        found = ahead[i].state(n)
        for token in tokens[:n]:
            backend.forward([token], plain[i])
        assert state_difference(found, plain[i]) <= HALF


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 0.9, "temperature": 1.5}])
def test_a_draft_changes_nothing(each, options, monkeypatch):
    """But what rounding changes: a prompt's products are rounded to float16."""
    monkeypatch.setattr(speculation._Pace, "length", lambda _: 3)
    sessions = [
        Session(each.backend, Sampler(SamplingSettings(seed=2, **options)), drafter=drafter)
        for drafter in (None, LookupDrafter())
    ]
    texts = []
    for session in sessions:
        session.feed([1, 2, 3, 1, 2, 3, 1, 2])
        texts.append([session.sample().token for _ in range(12)])
        assert session.snapshot().n_tokens == 8 + 11
    assert texts[0] == texts[1]
    assert state_difference(sessions[1].freeze().state, sessions[0].freeze().state) <= FORK
