"""The token loop, with a backend that plays a script and a vocabulary of bytes: no weights."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.actor import CONFIG, END, Actor, ByteTokenizer, generated, spoken

from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.files.model_file import ModelInfo
from rwkv_cli.model import Model
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.templates import get_template


def perform(script, prompt="go", **options):
    """A greedy generation in which the model says the script."""
    return played(Actor(script), spoken(prompt), **options)


def played(backend, prompt, tokenizer=ByteTokenizer(), start=None, progress=None, **options):  # noqa: B008
    """A greedy generation of a backend."""
    session = Session(backend, Sampler(SamplingSettings(temperature=0)), start)
    generation = generated(session, prompt, tokenizer, **options)
    if progress:
        generation.report_to(progress)
    return generation


def text_of(generation):
    return "".join(step.text for step in generation)


def test_it_ends_with_the_document():
    generation = perform([*spoken("hello"), END, *spoken("more")])
    steps = list(generation)
    assert [step.token for step in steps] == [*spoken("hello"), END]
    assert "".join(step.text for step in steps) == "hello"
    assert [step.finish for step in steps] == [None] * 5 + ["end"]
    assert generation.finish == "end"
    assert list(generation) == []  # and stays so


def test_the_prompt_is_read_at_once_and_each_token_is_fed_back():
    generation = perform([*spoken("abc"), END], prompt="xyz")
    list(generation)
    assert generation.session.backend.passes == [spoken("xyz"), *([token] for token in spoken("abc"))]


def test_log_probabilities_are_the_models_own():
    assert next(perform(spoken("a"))).logprob == pytest.approx(np.log(1 / 2), abs=1e-5)


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_it_ends_after_max_tokens(limit):
    generation = perform(spoken("hello"), max_tokens=limit)
    assert text_of(generation) == "hello"[:limit]
    assert generation.finish == "length"
    assert len(generation.session.backend.passes) == limit  # none to prepare a token that nobody wants


def test_no_tokens_need_no_pass():
    generation = perform(spoken("hello"), max_tokens=0)
    assert list(generation) == []
    assert generation.session.backend.passes == []
    assert generation.usage.generated_tokens == 0


def test_the_end_at_the_limit_is_the_end():
    assert [step.finish for step in perform([END], max_tokens=1)] == ["end"]


@pytest.mark.parametrize("limit", [-2, -100])
def test_a_negative_limit_is_refused(limit):
    with pytest.raises(UsageError, match="max_tokens"):
        perform([], max_tokens=limit)


@pytest.mark.parametrize("stop", ["lo w", "\n", "hello", "o", " "])
def test_stop_strings_over_the_borders_of_tokens(stop):
    said = "hello world\nand more"
    generation = perform(spoken(said), stop=[stop])
    assert text_of(generation) == said[: said.index(stop)]
    assert generation.finish == "stop"
    assert generation.flush() == ""


def test_a_beginning_of_a_stop_string_is_shown_once_it_is_none():
    generation = perform([*spoken("a--b"), END], stop=["--->"])
    assert [step.text for step in generation] == ["a", "", "", "--b", ""]


def test_what_is_held_back_comes_with_the_last_step():
    assert text_of(perform([*spoken("wait--"), END], stop=["--->"])) == "wait--"
    assert text_of(perform(spoken("wait--"), max_tokens=6, stop=["--->"])) == "wait--"


def test_half_a_character_is_held_back():
    steps = list(perform([*spoken("é€🦢"), END]))
    assert [step.text for step in steps] == ["", "é", "", "", "€", "", "", "", "🦢", ""]


def test_bytes_that_stay_half_a_character_are_marked():
    assert text_of(perform([*spoken(b"a\xe2\x82"), END])) == "a\ufffd"
    assert text_of(perform([*spoken(b"\xffb"), END])) == "\ufffdb"


def test_a_limit_within_a_character_leaves_its_bytes():
    generation = perform(spoken("a€"), max_tokens=3)
    assert text_of(generation) == "a"
    assert (generation.finish, generation.unfinished) == ("length", "€".encode()[:2])


def test_what_a_splitter_held_back_comes_before_what_the_stream_did():
    """A space, which may come before a thought, and then the beginning of a stop string."""
    generation = model(spoken(" --x"), "g1").generate("x", template=None, stop=["---"], max_tokens=3)
    steps = list(generation)
    assert "".join(step.text for step in steps) == "".join(step.answer for step in steps) == " --"


def test_flush_when_nobody_goes_on():
    generation = perform(spoken("no--\n"), stop=["---"])
    assert "".join(next(generation).text for _ in range(4)) == "no"
    assert generation.flush() == "--"
    half = perform(spoken("€"))
    assert next(half).text == ""
    assert half.flush() == "\ufffd"
    assert perform([]).flush() == ""


def test_usage():
    generation = perform([*spoken("hello"), END], prompt="12345678")
    assert (generation.usage.prompt_tokens, generation.usage.generated_tokens) == (8, 0)
    assert generation.usage.prefill_speed == generation.usage.decode_speed == 0
    next(generation)
    assert generation.usage.prefill_seconds > 0
    assert generation.usage.decode_seconds == generation.usage.decode_speed == 0
    list(generation)
    assert generation.usage.generated_tokens == 6
    assert generation.usage.decode_speed == pytest.approx(5 / generation.usage.decode_seconds)


def test_progress_hears_of_the_prompt_alone():
    heard = []
    list(perform([*spoken("hello"), END], prompt="abc", progress=heard.append))
    assert heard == [1, 1, 1]


def test_without_a_tokenizer_there_are_tokens_and_no_text():
    generation = played(Actor(spoken("hi")), [5], None)
    assert [(step.token, step.text) for step in generation] == [(token, "") for token in [*spoken("hi"), END]]
    with pytest.raises(UsageError, match="tokenizer"):
        played(Actor([]), [5], None, stop=["x"])


def test_an_empty_prompt_is_refused():
    with pytest.raises(UsageError, match="empty"):
        perform([], prompt="")


def test_logits_that_are_no_numbers_are_an_error():
    generation = perform(spoken("abc"))
    generation.session.backend.forward = lambda *_: np.full(257, np.nan, np.float32)
    with pytest.raises(RwkvError, match="not a number"):
        next(generation)


# ---------------------------------------------------------------------------------------------------- settling


class Reader(Actor):
    """An actor whose state knows what was read: a number in which each token counts, and where it stood."""

    def forward(self, tokens, state, progress=None):
        logits = super().forward(tokens, state, progress)
        for token in tokens:
            state.shift_att[:] = (state.shift_att * 31 + token) % 65_521
        return logits


def read(text):
    """What the state of a reader is after a text."""
    value = 0
    for token in spoken(text):
        value = (value * 31 + token) % 65_521
    return value


def settled(script, taken=None, **options):
    """The text that a reader's generation shows, with what it is after `taken` steps at most, and its position."""
    generation = played(Reader(script), spoken("go"), **options)
    shown = "".join(step.text for _, step in zip(range(taken or 1000), generation, strict=False))
    return shown, generation.commit()


@pytest.mark.parametrize("script", ["hello", "hello there"])
def test_a_settled_generation_has_read_every_token(script):
    shown, position = settled(spoken(script), max_tokens=5)
    assert shown == "hello"
    assert (position.state.shift_att == read("gohello")).all()
    assert position.n_tokens == 7
    assert position.logits is not None


def test_the_end_of_the_document_is_not_read():
    _, position = settled([*spoken("hi"), END])
    assert (position.state.shift_att == read("gohi")).all()


def test_a_settled_generation_that_took_no_step_has_read_its_prompt():
    generation = perform(spoken("hello"), max_tokens=0)
    assert list(generation) == []
    assert generation.commit().n_tokens == 2
    assert generation.commit().n_tokens == 2  # once


@pytest.mark.parametrize("stop", ["\n\n", "\n\nUser:", "b\n", "ab"])
@pytest.mark.parametrize("text", ["ab\n\nUser: x", "a\nb\nab\n\nUser: x", "é\nab\n\nUser:"])
def test_after_a_stop_the_model_has_read_what_was_shown(text, stop):
    shown, position = settled(spoken(text), stop=[stop])
    assert shown == text[: text.index(stop)]
    assert (position.state.shift_att == read("go" + shown)).all()
    assert position.n_tokens == 2 + len(shown.encode())


def test_a_token_that_ends_in_a_stop_string_is_read_up_to_it():
    """A token may hold the end of a sentence and the stop string after it."""

    class Words(ByteTokenizer):
        def token_bytes(self, token):
            return {250: b"end.\n", 251: b"\nUser"}.get(token) or super().token_bytes(token)

    generation = played(Reader([*spoken("the "), 250, 251, 5]), spoken("go"), Words(), stop=["\n\n"])
    assert text_of(generation) == "the end."
    assert (generation.commit().state.shift_att == read("gothe end.")).all()


def test_an_interrupted_character_is_taken_back():
    shown, position = settled(spoken("aé"), taken=2)
    assert shown == "a"
    assert (position.state.shift_att == read("goa")).all()


@pytest.mark.parametrize("limit", [2, 3, 4, 5])
def test_whole_characters_may_be_wanted(limit):
    generation = played(Reader(spoken("a🦢b")), spoken("go"), max_tokens=limit)
    shown = text_of(generation)
    position = generation.commit(whole_characters=True)
    assert shown == ("a🦢" if limit == 5 else "a")
    assert (position.state.shift_att == read("go" + shown)).all()
    assert (position.n_tokens, generation.unfinished) == (2 + len(shown.encode()), b"")


@pytest.mark.parametrize("said", ["é🦢--é\n", "🦢é", "---"])
@pytest.mark.parametrize("stop", [(), ("é",), ("\n",)])
def test_both_parts_of_a_text_are_its_whole_wherever_it_is_cut(said, stop):
    whole = text_of(perform([*spoken(said), END], stop=stop))
    for limit in range(1, len(spoken(said))):
        first = played(Reader([*spoken(said), END]), spoken("go"), stop=stop, max_tokens=limit)
        text = text_of(first)
        if first.finish == "stop":
            break
        backend, left = first.session.backend, first.unfinished
        second = played(backend, [], start=first.commit(), stop=stop, unfinished=left)
        text += text_of(second)
        assert text == whole
        position = second.commit()  # what was read before cannot be taken back
        assert (position.state.shift_att == read(f"go{whole}".encode() + second.unfinished)).all()
        assert second.unfinished in (b"", left)


def test_the_rest_of_a_character_and_a_stop_string_in_one_token():
    class Words(ByteTokenizer):
        def token_bytes(self, token):
            return {250: "🦢".encode()[2:] + b"\n", 251: b"\nUser"}.get(token) or super().token_bytes(token)

        def encode(self, text):
            return spoken(text.encode("utf-8", "surrogateescape"))

    first = played(Reader([*spoken("🦢")[:2], 250, 251]), spoken("go"), Words(), max_tokens=2)
    assert text_of(first) == ""
    options = {"start": first.commit(), "unfinished": first.unfinished, "stop": ["\n\n"]}
    second = played(first.session.backend, [], Words(), **options)
    assert text_of(second) == "🦢"
    position = second.commit()
    assert (position.state.shift_att == read("go🦢")).all()
    assert (position.n_tokens, second.unfinished) == (6, b"")


def test_a_character_that_was_taken_back_twice_is_still_unfinished():
    first = played(Reader(spoken("🦢")), spoken("go"), max_tokens=1)
    assert text_of(first) == ""
    second = played(first.session.backend, [], start=first.commit(), unfinished=first.unfinished)
    assert next(second).text == ""
    assert second.rest().text == ""
    assert second.commit().n_tokens == 3
    assert second.unfinished == "🦢".encode()[:1]


def test_an_interruption_while_a_stop_string_may_be_coming_keeps_what_was_read():
    generation = played(Reader(spoken("a\nbc")), spoken("go"), stop=["\n\n"])
    shown = "".join(next(generation).text for _ in range(2)) + generation.flush()
    assert shown == "a\n"
    assert (generation.commit().state.shift_att == read("goa\n")).all()


def test_a_generation_goes_on_without_a_prompt_where_something_was_read():
    first = perform(spoken("hello"), max_tokens=2)
    text = text_of(first)
    second = played(first.session.backend, [], start=first.commit(), max_tokens=3)
    assert text + text_of(second) == "hello"
    assert [len(tokens) for tokens in first.session.backend.passes] == [2, 1, 1, 1, 1]


# ------------------------------------------------------------------------------------ through `Model.generate`


def model(script, template="raw", **sampling):
    info = ModelInfo(CONFIG, "int8", None, get_template(template), sampling)
    return Model(info, None, ByteTokenizer(), Actor(script))


def test_the_state_of_the_caller_stays_as_it_is():
    mine = Snapshot.empty(CONFIG)
    generation = model(spoken("abc")).generate("12", start=mine, temperature=0)
    list(generation)
    assert not mine.state.wkv.any()
    assert mine.logits is None
    assert (generation.session.state.wkv == 2 + 3).all()  # the prompt, and all but the end, which is last


def test_two_generations_from_one_state_do_not_meet():
    start = Snapshot.empty(CONFIG)
    first, second = (model(spoken("abc")).generate("1", start=start, temperature=0) for _ in range(2))
    assert [next(first).token, next(second).token] == spoken("aa")
    assert (first.session.state.wkv == 1).all()
    assert (second.session.state.wkv == 1).all()


def test_templates_lay_out_the_prompt_and_add_their_stops():
    actor = model(spoken("Yes.\n\nUser: and")).generate("Is  it?\n\n\nSo?", template="world", temperature=0)
    assert text_of(actor) == "Yes."
    assert actor.finish == "stop"
    read = bytes(token - 1 for token in actor.session.backend.passes[0]).decode()
    assert read.endswith("\n\nUser: Is  it?\nSo?\n\nAssistant:")


def test_the_models_own_template_is_the_one_of_none():
    chosen = model([], template="story").generate("Once", template=None)
    assert chosen.prompt == [END, *spoken("Once")]
    assert model([], template="story").generate("Once").prompt == spoken("Once")


def test_sampling_defaults():
    own = model([], template="story", top_k=3)
    assert own.generate("x", template=None).sampler.settings == SamplingSettings(
        temperature=0.8, top_p=0.8, top_k=3
    )
    assert own.generate("x", template=None, top_p=None, top_k=5).sampler.settings.top_k == 5
    assert own.generate("x").sampler.settings == SamplingSettings()  # of another template than the model's


@pytest.mark.parametrize("tokens", [[-1], [257], [1, 10**12]])
def test_tokens_outside_the_vocabulary_are_refused(tokens):
    with pytest.raises(UsageError, match="there is no token"):
        model([]).generate(tokens)


def test_the_same_seed_gives_the_same_tokens():
    def tokens(seed):
        generation = model([]).generate("x", seed=seed, temperature=3.0, top_p=1.0, max_tokens=30)
        return [step.token for step in generation]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)


def test_a_stop_token_ends_the_text_and_is_never_read():
    end = replace(get_template("raw"), stop_tokens=("#", "two"))  # "two" is more than one token here
    actor = replace(model(spoken("Yes#two")), info=replace(model([]).info, template=end))
    generation = actor.generate("x", template=None, temperature=0)
    steps = list(generation)
    assert [step.token for step in steps] == spoken("Yes#")
    assert "".join(step.text for step in steps) == "Yes"
    assert (steps[-1].finish, generation.finish) == ("stop", "stop")
    assert generation.commit().n_tokens == len("xYes")
    assert generation.session.backend.passes == [[token] for token in spoken("xYes")]


def test_a_stop_token_lets_go_of_what_was_held_back():
    template = replace(get_template("raw"), stop=("--!",), stop_tokens=("#",))
    actor = replace(model(spoken("a--#")), info=replace(model([]).info, template=template))
    generation = actor.generate("x", template=None, temperature=0)
    assert text_of(generation) == "a--"
    assert generation.commit().n_tokens == len("xa--")


@pytest.mark.parametrize(
    ("said", "think", "thought", "answer"),
    [
        (">Hm.</think>\nYes.", "on", "Hm.", "\nYes."),
        (">\nYes.", "off", "", "\nYes."),
        (" <think>Hm.</think>Yes.", None, "Hm.", "Yes."),  # it was not asked for
        (" Yes, <think> is a tag.", None, "", " Yes, <think> is a tag."),
        (">Hm.", "on", "Hm.", ""),
        (">Hm.</thi", "on", "Hm.</thi", ""),  # the end of the text decides
    ],
)
def test_thoughts_are_told_from_the_answer(said, think, thought, answer):
    generation = model(spoken(said), "g1").generate("Is it?", template=None, think=think, temperature=0)
    steps = list(generation)
    assert "".join(step.thought for step in steps) == thought
    assert "".join(step.answer for step in steps) == answer
    assert "".join(step.text for step in steps) == said


@pytest.mark.parametrize(
    ("read", "thought", "answer"), [("Assistant: <think>H", "m.", "Yes."), (None, "", "m.</think>Yes.")]
)
def test_a_thought_is_continued_as_one(read, thought, answer):
    actor = model(spoken("Hm.</think>Yes."), "g1")
    first = actor.generate("x", max_tokens=1, temperature=0)
    list(first)
    rest = actor.generate("", template=None, start=first.commit(), said=read, temperature=0)
    steps = list(rest)
    assert ("".join(step.thought for step in steps), "".join(step.answer for step in steps)) == (
        thought,
        answer,
    )


def test_sampling_follows_the_mode_of_thinking():
    own = model([], template="g1", top_p=0.5)
    on, off = (own.generate("x", template=None, think=mode).sampler.settings for mode in ("on", "off"))
    assert (on.temperature, on.presence_penalty, on.penalty_decay, on.top_k) == (0.96, 1.0, 0.988, 32)
    assert (off.temperature, off.presence_penalty, off.top_k) == (1.0, 0.0, 32)
    assert on.top_p == off.top_p == 0.5  # what the model's file says of itself is over all modes
