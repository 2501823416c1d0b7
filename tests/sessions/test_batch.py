"""Many prompts, each answered as if it were alone: sequences leave the batch when they are done, and others join."""

from dataclasses import asdict

import numpy as np
import pytest
from helpers.actor import CONFIG, END, Actor, ByteTokenizer
from helpers.emulated_gpu import COMPILER, few_threads, tiny_backend
from helpers.talker import talking

import rwkv_cli
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.batch import Batch
from rwkv_cli.errors import DeviceError, UsageError
from rwkv_cli.files.model_file import ModelInfo
from rwkv_cli.model import Model
from rwkv_cli.sessions import batch
from rwkv_cli.sessions.batch import Prompt, answers
from rwkv_cli.text.templates import get_template, templates

PROMPTS = [Prompt(text) for text in ("a", "Once upon a time", "bcd", "the quick brown fox", "e", "fgh")]


def alone(model, prompt, seed, **options):
    """What `Model.generate` says, in the form of an answer."""
    generation = model.generate(prompt.text, system=prompt.system, seed=seed, **options)
    text = "".join(step.text for step in generation)
    usage = generation.usage
    return text, generation.finish or "length", usage.prompt_tokens, usage.generated_tokens


def together(model, prompts, **options):
    """All answers in the order of their prompts, without the index."""
    found = sorted(answers(model, prompts, **options), key=lambda answer: answer.index)
    assert [answer.index for answer in found] == list(range(len(prompts)))
    return [tuple(asdict(answer).values())[1:5] for answer in found]


@pytest.mark.parametrize("options", [{}, {"max_tokens": 0}, {"stop": ["e"], "max_tokens": 40}])
def test_on_the_cpu_each_prompt_is_answered_as_alone(tiny_model, options):
    model = rwkv_cli.load(tiny_model)
    found = together(model, PROMPTS, seed=5, **{"max_tokens": 9} | options)
    expected = [
        alone(model, prompt, 5 + i, **{"max_tokens": 9} | options) for i, prompt in enumerate(PROMPTS)
    ]
    assert found == expected


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    """The CUDA backend on an emulated GPU."""
    with few_threads():
        yield tiny_backend(tmp_path_factory.mktemp("fp16"))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here to emulate a GPU with")
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_on_a_gpu_each_prompt_is_answered_as_alone(gpu, tiny_model, batch_size):
    """Tokens are the same as long as no draw falls between two roundings; with these seeds none does."""
    model = rwkv_cli.load(tiny_model)
    model.backend = gpu
    assert gpu.batch_size > 1
    options = {"max_tokens": 6, "stop": ["\x00"], "top_k": 2, "top_p": 1}
    found = together(model, PROMPTS, batch_size=batch_size, seed=3, **options)
    assert found == [alone(model, prompt, 3 + i, **options) for i, prompt in enumerate(PROMPTS)]


class Script(Backend):
    """A backend with batches, whose sequences say the last token of their prompt, one less each time, to the end."""

    name = kernel = "script"
    config = CONFIG
    batch_size = 64

    def __init__(self):
        self.opened = None

    def batch(self, slots):
        self.opened = ScriptBatch(self.config, slots)
        return self.opened

    def forward(self, *_):
        raise AssertionError("sequences are read in batches")

    forward_all = forward


class ScriptBatch(Batch):
    """What the sequences of the script are read by."""

    capacity = 64

    def __init__(self, config, slots):
        super().__init__(config, slots)
        self.here, self.reads = set(), []

    def read(self, parts):
        self.reads.append({slot: len(tokens) for slot, tokens in parts.items()})
        assert parts.keys() == self.here
        logits = np.full((len(parts), 257), -50, np.float32)
        for row, tokens in zip(logits, parts.values(), strict=True):
            row[max(tokens[-1] - 1, END)] = 50
        return logits

    def drop(self, slot):
        super().drop(slot)
        self.here.remove(slot)

    def _store(self, slot, _state):
        self.here.add(slot)

    def _fetch(self, _slot):
        raise AssertionError("the states of answers are not needed")


def scripted():
    return Model(
        ModelInfo(CONFIG, "int8", None, get_template("raw"), {}, {}), None, ByteTokenizer(), Script()
    )


def test_a_prompt_joins_where_another_has_left():
    model = scripted()
    texts = "\x02", "\x05\x05", "\x01", "\x03"
    found = [
        (answer.index, answer.text, answer.finish, answer.generated_tokens)
        for answer in answers(model, [Prompt(text) for text in texts], batch_size=2, temperature=0)
    ]
    assert found == [
        (0, "\x01\x00", "end", 3),
        (2, "\x00", "end", 2),
        (1, "\x04\x03\x02\x01\x00", "end", 6),
        (3, "\x02\x01\x00", "end", 4),
    ]
    # Three passes with 0, two with 2 and the last of 1; 3 goes on alone.
    assert model.backend.opened.reads[0] == {0: 1, 1: 2}
    assert [len(parts) for parts in model.backend.opened.reads] == [2] * 6 + [1] * 3
    assert not model.backend.opened.here


def test_stop_strings_and_lengths_in_a_batch():
    options = {"batch_size": 3, "temperature": 0}
    prompts = [Prompt("z"), Prompt("é"), Prompt("f")]
    found = together(scripted(), prompts, stop=["de", "ed"], max_tokens=4, **options)
    assert found[0] == ("yxwv", "length", 1, 4)
    assert found[1][1:] == ("length", 2, 4)
    assert found[2] == ("", "stop", 1, 2)


def test_what_a_character_lacks_at_the_end_is_shown():
    (found,) = together(scripted(), [Prompt("ê")], max_tokens=1, temperature=0)
    assert found == ("\ufffd", "length", 2, 1)


def test_a_limit_leaves_whole_characters():
    """The embedded model says a space, and then the bytes of a face."""
    options = {"template": get_template("dialogue"), "seed": 1}
    texts = []
    for limit in range(1, 6):
        (answer,) = answers(rwkv_cli.load(), [Prompt("你好👨‍👩‍👧")], max_tokens=limit, **options)
        texts.append(answer.text)
    assert texts == [" ", " ", " ", " ", " 😊"]


def test_no_prompts_and_no_tokens():
    assert together(scripted(), []) == []
    assert together(scripted(), [Prompt("a")], max_tokens=0) == [("", "length", 1, 0)]


def test_nothing_is_read_where_something_is_wrong():
    model = Model(
        ModelInfo(CONFIG, "int8", None, get_template("raw"), {}, {}), None, ByteTokenizer(), Actor([])
    )
    for prompts, options, said in (
        ([Prompt("a"), Prompt("", where="line 7")], {}, "^line 7: the prompt is empty"),
        ([Prompt("a", "b", "line 1")], {}, "^line 1: the template raw has no place"),
        ([Prompt("a", "b")], {"template": templates()["qa"]}, "^the template qa has no place"),
        ([Prompt("a")], {"max_tokens": -2}, "max_tokens"),
        ([Prompt("a")], {"stop": [""]}, "stop string"),
        ([Prompt("a")], {"top_p": 2}, "top_p"),
    ):
        with pytest.raises(UsageError, match=said):
            answers(model, prompts, **options)
    assert not model.backend.passes


def test_a_template_lays_out_and_stops():
    model = scripted()
    template = templates()["world"]
    (found,) = together(model, [Prompt("a", "b")], template=template, temperature=0, presence_penalty=0.0)
    assert found[2] == len(template.render("a", "b").encode())


def test_thoughts_are_apart():
    model = talking({"<think": ">Hm.</think>Yes."}, "g1")
    prompts = [Prompt("Is it?", think="on"), Prompt("Is it?"), Prompt("Why?", think="on")]
    found = list(answers(model, prompts, temperature=0, max_tokens=20))
    by_index = {answer.index: (answer.text, answer.thought) for answer in found}
    assert by_index[0] == by_index[2] == ("Yes.", "Hm.")
    assert by_index[1][1] == ""


def test_answers_in_order_wait_for_those_before_them():
    prompts = [Prompt(text) for text in ("\x05", "\x02", "\x01", "\x03")]
    options = {"batch_size": 2, "temperature": 0}
    assert [answer.index for answer in answers(scripted(), prompts, **options)] == [1, 2, 0, 3]
    assert [answer.index for answer in answers(scripted(), prompts, in_order=True, **options)] == [0, 1, 2, 3]


def test_no_more_answers_wait_than_memory_is_for_them(monkeypatch):
    """A long answer at the beginning: others are begun only while there is room for their texts."""
    monkeypatch.setattr(batch, "MOST_WAITING_BYTES", 10_000)
    monkeypatch.setattr(batch, "AHEAD", 4)
    asked = []

    def prompts():
        for i in range(100):
            asked.append(i)
            yield Prompt("x", max_tokens=110) if i == 0 else Prompt("\x02")

    found = answers(scripted(), prompts(), lenient=True, in_order=True, batch_size=2, temperature=0)
    first = next(found)
    assert (first.index, first.generated_tokens) == (0, 110)
    assert (
        len(asked) < 20
    )  # ten answers of 1,000 bytes, one that is being generated, and those that look ahead
    assert [answer.index for answer in found] == list(range(1, 100))


def test_long_prompts_are_not_looked_at_far_ahead(monkeypatch):
    monkeypatch.setattr(batch, "MOST_AHEAD_BYTES", 100_000)
    asked = []

    def prompts():
        for i in range(100):
            asked.append(i)
            yield Prompt(chr(0x21 + i) + "a" * 1000 + "\x03")

    found = answers(scripted(), prompts(), lenient=True, batch_size=1, temperature=0)
    assert next(found).index == 0
    assert len(asked) < 6
    assert [answer.index for answer in found] == list(range(1, 100))


def test_a_prompt_that_is_wrong_is_an_answer_where_that_is_wanted():
    prompts = [
        Prompt("", where="line 1"),
        Prompt("\x02"),
        Prompt("a", where="line 3", error="it is {broken}"),
        Prompt("a", "b"),
        Prompt("a", sampling={"banned": frozenset([999])}),
        Prompt("a", stop=[""]),
        Prompt("a", think="on", template=templates()["g1"], max_tokens=-2),
        "\x03",
    ]
    found = list(answers(scripted(), iter(prompts), lenient=True, in_order=True, temperature=0))
    assert [answer.index for answer in found] == list(range(8))
    assert [answer.text for answer in found if not answer.error] == ["\x01\x00", "\x02\x01\x00"]
    assert [answer.finish == "error" for answer in found] == [bool(answer.error) for answer in found]
    assert [answer.error.split(":")[0] for answer in found] == [
        "line 1",
        "",
        "line 3",
        "the template raw has no place for a system prompt",
        "there is no token 999",
        "a stop string is empty",
        "max_tokens is -2",
        "",
    ]
    assert found[2].error == "line 3: it is {broken}"


def test_a_prompt_may_have_a_template_of_its_own():
    model = scripted()
    own = Prompt("a", template=templates()["qa"])
    found = list(answers(model, [own, Prompt("a")], in_order=True, max_tokens=1, temperature=0))
    expected = len(templates()["qa"].render("a").encode())
    assert [answer.prompt_tokens for answer in found] == [expected, 1]


def test_a_device_that_fails_ends_all(monkeypatch):
    def read(_self, _parts):
        raise DeviceError("the GPU is gone")

    monkeypatch.setattr(ScriptBatch, "read", read)
    with pytest.raises(DeviceError, match="the GPU is gone"):
        list(answers(scripted(), ["a", "b"], lenient=True))


def test_prompts_may_come_later():
    """None says that there is none yet: those that run go on, and another one joins them."""
    steps = []

    def prompts():
        yield "a"
        for _ in range(3):
            steps.append("pause")
            yield None
        yield "b"
        yield None

    found = answers(scripted(), prompts(), lenient=True, temperature=0)
    assert sorted(answer.index for answer in found) == [0, 1]
    assert len(steps) == 3
