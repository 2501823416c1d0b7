"""The sampler and the token loop under a constraint."""

import json

import numpy as np
import pytest
from helpers.actor import END, Actor, ByteTokenizer, generated, spoken
from helpers.talker import talking

from rwkv_cli.engine.constraint import allowed_tokens
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.constraints.guided import following
from rwkv_cli.engine.constraints.vocabulary import vocabulary
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingSettings

BYTES = ByteTokenizer()
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def following_bytes(grammar, begun=None):
    return following(grammar, vocabulary(BYTES, 257, (END,)), begun)


def sampler(grammar, **settings):
    return Sampler(SamplingSettings(**settings), constraint=following_bytes(grammar))


def logits(**bytes_):
    values = np.zeros(257, np.float32)
    for character, value in bytes_.items():
        values[ord(character) + 1] = value
    return values


def perform(script, grammar, begun=None, **options):
    """A greedy generation in which the model says the script, as far as it may."""
    chooser = Sampler(SamplingSettings(temperature=0), constraint=following_bytes(grammar, begun))
    return generated(Session(Actor(script), chooser), spoken("go"), BYTES, **options)


# ------------------------------------------------------------------------------------------------------ the sampler


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 2}, {"top_p": 0.1}, {"min_p": 0.5}, {}])
def test_only_allowed_tokens_are_chosen(settings):
    for seed in range(20):
        choice = sampler(Grammar.regex("[xyz]"), seed=seed, **settings).sample(logits(a=50, x=3, y=2))
        assert choice.token in spoken("xyz")
        total = np.exp(logits(a=50, x=3, y=2).astype(float)).sum()
        expected = np.log(np.exp(float(logits(a=50, x=3, y=2)[choice.token])) / total)
        assert choice.logprob == pytest.approx(expected, rel=1e-4)  # the model's own, constraint or not


def test_they_are_drawn_in_proportion():
    chooser = sampler(Grammar.regex("[xy]*"), top_p=1, temperature=1, seed=1)
    values = logits(a=9, x=np.log(3), y=0)
    values[END] = -50
    drawn = [chooser.sample(values).token for _ in range(400)]
    assert drawn.count(spoken("x")[0]) == pytest.approx(300, abs=40)


def test_no_penalty_makes_what_is_forced_impossible():
    chooser = sampler(Grammar.regex("x{50}"), presence_penalty=3e38, frequency_penalty=3e38, penalty_decay=1)
    for _ in range(50):
        assert chooser.sample(logits(a=5)).token == spoken("x")[0]
    assert chooser.is_complete


def test_a_ban_may_leave_nothing():
    banned = frozenset(spoken("xy"))
    assert sampler(Grammar.regex("[xyz]"), banned=banned).sample(logits(x=9)).token == spoken("z")[0]
    with pytest.raises(UsageError, match="all that the constraint allows here are banned"):
        sampler(Grammar.regex("[xy]"), banned=banned).sample(logits())


def test_a_device_is_given_the_mask():
    mask = sampler(Grammar.regex("x")).request(257).mask
    assert mask is not None
    assert allowed_tokens(mask, 257).tolist() == spoken("x")
    assert Sampler(SamplingSettings()).request(257).mask is None


def test_a_copy_chooses_what_the_first_one_would():
    one = sampler(Grammar.regex("[a-z]{9}"), seed=3)
    one.sample(logits())
    other = one.copy()
    drawn = [one.sample(logits()).token for _ in range(8)]
    assert [other.sample(logits()).token for _ in range(8)] == drawn
    assert one.is_complete
    assert other.is_complete


# --------------------------------------------------------------------------------------------------- the token loop


def test_forced_text_is_read_in_one_pass_and_the_model_is_not_asked():
    generation = perform(spoken('Ann"42'), Grammar.json_schema(PERSON))
    steps = list(generation)
    said = "".join(step.text for step in steps)
    assert json.loads(said)["age"] >= 10
    passes = generation.session.backend.passes
    assert passes[0] == spoken("go")
    assert passes[1] == spoken('{"name": "')
    assert [step.logprob for step in steps[:10]] == [0.0] * 10
    assert generation.usage.generated_tokens == len(steps) == len(said)


def test_it_ends_with_the_last_token_that_may_come():
    generation = perform(spoken("b"), Grammar.choices(["abc", "b"]))
    steps = list(generation)
    assert [(step.text, step.finish) for step in steps] == [("b", "stop")]
    assert len(generation.session.backend.passes) == 1
    snapshot = generation.commit()
    assert snapshot.n_tokens == 3  # the prompt and the answer: its last token is a part of it
    assert snapshot.memory.constraint is None


def test_the_model_may_end_where_the_text_is_complete():
    generation = perform([*spoken("42"), END], Grammar.regex("[0-9]+"))
    assert [(step.text, step.finish) for step in generation] == [("4", None), ("2", None), ("", "end")]
    assert perform([END, *spoken("42")], Grammar.regex("[0-9]+"), max_tokens=1).__next__().finish == "length"


@pytest.mark.parametrize("limit", range(1, 18))
def test_a_limit_in_the_middle_is_a_length_and_the_text_goes_on_within_the_grammar(limit):
    model = talking()
    whole = model.generate("go", constraint=Grammar.json_schema(PERSON), seed=1, max_tokens=60)
    text = "".join(step.text for step in whole)
    assert whole.finish == "stop"
    first = model.generate("go", constraint=Grammar.json_schema(PERSON), seed=1, max_tokens=limit)
    begun = "".join(step.text for step in first)
    assert first.finish == "length"
    second = model.generate("", start=first.commit(), seed=1, max_tokens=60)
    assert begun + "".join(step.text for step in second) == text
    assert second.finish == "stop"


def test_a_new_prompt_is_not_bound_by_the_constraint_before_it():
    model = talking({"go on": "free"})
    first = model.generate("go", constraint=Grammar.regex("x{9}"), max_tokens=3)
    assert "".join(step.text for step in first) == "xxx"
    assert "".join(step.text for step in model.generate("go on", start=first.commit())) == "free"


@pytest.mark.parametrize("taken", range(12))
def test_an_interruption_between_forced_tokens_keeps_what_was_shown(taken):
    generation = perform([], Grammar.json_schema(PERSON))
    shown = "".join(next(generation).text for _ in range(taken))
    assert generation.commit().n_tokens == len("go") + len(shown)


def test_a_session_forks_in_the_middle_of_forced_tokens():
    session = talking().session(
        SamplingSettings(seed=1), constraint=following_bytes(Grammar.regex("abc[a-z]{5}"))
    )
    session.feed(spoken("go"))
    for token in session.sampler.forced():
        session.force(token)
    branch = session.fork()
    ends = [[each.sample().token for _ in range(5)] for each in (session, branch)]
    assert ends[0] == ends[1]
    assert session.n_tokens == branch.n_tokens == 2 + 3 + 4
    assert (session.state.shift_att == branch.state.shift_att).all()


def test_a_stop_string_of_the_user_stops_and_one_of_the_template_does_not():
    model = talking({"Assistant:": "one\n\ntwo"}, template="dialogue")
    grammar = Grammar.regex("one\n\ntwo")
    whole = model.generate("hi", template=None, constraint=grammar)
    assert "".join(step.text for step in whole) == "one\n\ntwo"
    cut = model.generate("hi", template=None, constraint=grammar, stop=["\n\nt"])
    assert "".join(step.text for step in cut) == "one"
    assert cut.finish == "stop"
    assert cut.commit().memory.constraint is None


@pytest.mark.parametrize("taken", range(1, 7))
def test_an_interruption_in_a_character_goes_on_within_the_grammar(taken):
    grammar = Grammar.choices(["aé✿b", "aé✿c"])
    model = talking({"go": "aé✿b"})
    first = model.generate("go", constraint=grammar)
    shown = "".join(next(first).text for _ in range(taken)) + first.rest().text
    snapshot = first.commit(whole_characters=True)
    assert snapshot.n_tokens == len("go") + len(shown.encode())
    second = model.generate("", start=snapshot, max_tokens=20)
    assert shown + "".join(step.text for step in second) in ("aé✿b", "aé✿c")
    assert second.finish == "stop"


def test_thoughts_come_first():
    model = talking({"Assistant: <think": "> hm </think>\n\nyes"}, template="g1")
    generation = model.generate("hi", template=None, think="on", constraint=Grammar.choices(["yes", "no"]))
    steps = list(generation)
    assert "".join(step.text for step in steps) == "> hm </think>\n\nyes"
    assert "".join(step.thought for step in steps) == " hm "
    assert "".join(step.answer for step in steps) == "yes"  # without the gap
    assert generation.finish == "stop"


def test_an_empty_thought_is_closed():
    model = talking({}, template="g1")
    steps = list(
        model.generate("hi", template=None, think="off", constraint=Grammar.choices(["yes", "no"]), seed=2)
    )
    assert "".join(step.answer for step in steps) in ("yes", "no")
    assert "".join(step.text for step in steps).startswith(">")


def test_without_a_tokenizer_it_is_refused():
    model = talking()
    model.tokenizer = None
    with pytest.raises(UsageError, match="needs a tokenizer"):
        model.generate([1], constraint=Grammar.regex("x"))
