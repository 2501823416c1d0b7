"""Conversations: the state is what was said, whatever is done in between."""

import itertools
import json

import numpy as np
import pytest
from helpers.talker import read, talking

import rwkv_cli
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.conversation import MOST_CHARACTERS, Conversation
from rwkv_cli.sessions.snapshots import Snapshots
from rwkv_cli.sessions.state_file import SavedState, identify
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template, templates


@pytest.fixture(scope="module")
def gosling():
    return rwkv_cli.load()


def heard(conversation):
    """The number that the state of a talker holds."""
    return conversation.snapshot.state.shift_att[0, 0]


def is_true(conversation):
    """Whether the state has read exactly what stands in the transcript."""
    begin = [0] if conversation.template.begin and conversation.start.kind != "document" else []
    tokens = begin + conversation.model.tokenizer.encode(conversation.text)
    return heard(conversation) == read(0, tokens) and conversation.snapshot.n_tokens == len(tokens)


def say(answer):
    return "".join(part.text for part in answer)


def chat(*messages, model=None, **options):
    """A conversation in which these messages were answered."""
    conversation = Conversation(model or talking(), **{"max_tokens": 12, "seed": 1} | options)
    for message in messages:
        say(conversation.ask(message))
    return conversation


def texts(conversation):
    return [(turn.user, turn.text) for turn in conversation.turns]


# ------------------------------------------------------------------------------------------------------ talking


def test_the_state_has_read_the_transcript():
    conversation = chat("one", "two\n\n\ntwo", "three")
    assert conversation.text.startswith("User: one\n\nAssistant:")
    assert "\n\nUser: two\ntwo\n\nAssistant:" in conversation.text
    assert is_true(conversation)


@pytest.mark.parametrize("template", ["world", "g1", "qa", "instruct", "raw", "story"])
def test_in_every_template(template):
    assert is_true(chat("one", "two", template=templates()[template]))


def test_what_is_shown_is_what_is_recorded():
    conversation = Conversation(talking(), max_tokens=12, seed=1)
    shown = [say(conversation.ask(text)) for text in ("one", "two")]
    assert shown == [turn.text for turn in conversation.turns]
    assert any(shown)


def test_the_model_does_not_run_on_into_the_turn_of_the_user():
    model = talking({"Assistant:": " Fine.\n\nUser: And I am"})
    conversation = chat("How are you?", "Good.", model=model)
    assert [turn.text for turn in conversation.turns] == [" Fine.", " Fine."]
    assert conversation.turns[0].finish == "stop"
    assert is_true(conversation)


@pytest.mark.parametrize("said", [" Fine.\nUser: And", " Fine.\n\n", " Fine."])
def test_a_dialogue_ends_the_ways_that_models_have(said):
    assert chat("How?", model=talking({"Assistant:": said})).turns[0].text == " Fine."


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_limit_leaves_whole_characters(limit):
    conversation = chat("one", "two", model=talking({"\n\nAssistant:": "é🦢b"}), max_tokens=limit)
    whole = "é🦢b".encode()[:limit].decode(errors="ignore")
    assert [turn.text for turn in conversation.turns] == [whole] * 2
    assert is_true(conversation)


@pytest.mark.parametrize("after", range(1, 12))
def test_a_stop_keeps_what_was_shown(after):
    conversation = chat("one", model=talking({"one\n\nAssistant:": "a\nbé\nc\nd€\n"}), max_tokens=100)
    del conversation.turns[:], conversation.snapshots._at[1]
    answer, shown = conversation.ask("one"), ""
    for number, part in enumerate(answer, 1):
        shown += part.text
        if number == after:
            answer.stop()
    assert "\ufffd" not in shown
    assert conversation.turns[0].text == shown
    assert conversation.turns[0].finish == "stopped"
    assert is_true(conversation)
    say(conversation.ask("two"))
    assert is_true(conversation)


def test_an_answer_that_is_left_was_not_given():
    conversation = chat("one")
    before = (texts(conversation), heard(conversation))
    answer = conversation.ask("two")
    next(answer), next(answer)
    with pytest.raises(KeyboardInterrupt):
        answer._parts.throw(KeyboardInterrupt)
    assert (texts(conversation), heard(conversation)) == before
    say(conversation.ask("three"))
    assert is_true(conversation)


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_a_blank_message_is_refused(text):
    with pytest.raises(UsageError, match="blank"):
        chat().ask(text)


def test_an_endless_message_is_refused():
    with pytest.raises(UsageError, match="4,000,000 are allowed"):
        chat().ask("x" * (MOST_CHARACTERS + 1))


def test_progress_hears_of_a_long_message():
    conversation, steps = chat(), []
    answer = conversation.ask("x" * 5000, steps.append)
    next(answer)
    assert sum(steps) == answer.usage.prompt_tokens > 5000


# ------------------------------------------------------------------------------------------------------ thinking

THINKING = {
    None: ("", " Yes.", "", "Yes."),
    "off": (" <think></think", "> Yes.", "", "Yes."),
    "fast": (" <think>\n</think", ">\nYes.", "", "Yes."),
    "on": (" <think", ">\nWell, </th is\n\nno tag.\n</think>\nYes.", "Well, </th is\n\nno tag.", "Yes."),
    "long": (" <think", ">Hm.</think>Yes.", "Hm.", "Yes."),
}


@pytest.mark.parametrize("mode", THINKING)
def test_thoughts_are_told_from_answers(mode):
    prefix, said, thought, answer = THINKING[mode]
    suffix = " (think a lot)" if mode == "long" else ""
    model = talking({f"Is it?{suffix}\n\nAssistant:{prefix}": said}, "g1")
    conversation = Conversation(model, think=mode, seed=1)
    parts = list(conversation.ask("Is it?"))
    assert "".join(part.text for part in parts if part.thought).strip() == thought
    assert "".join(part.text for part in parts if not part.thought).strip() == answer
    assert conversation.parts_of(conversation.turns[0]) == (thought, answer)
    assert is_true(conversation)


def test_a_model_may_think_without_being_asked_to():
    model = talking({"Assistant:": " <think>\nHm.</think>\nIt says <think>."}, "g1")
    conversation = chat("Is it?", model=model, max_tokens=100)
    assert conversation.parts_of(conversation.turns[0]) == ("Hm.", "It says <think>.")


def test_tokens_of_the_thought_are_counted():
    answer = Conversation(talking({"<think": ">Hm.</think>Yes."}, "g1"), think="on", seed=1).ask("Is it?")
    list(answer)
    assert answer.thought_tokens == len(">Hm.</think")


def test_modes_of_thinking_that_there_are_not():
    with pytest.raises(UsageError, match="no thinking modes"):
        chat(think="on")
    conversation = chat(model=talking(template="g1"))
    with pytest.raises(UsageError, match="no thinking mode 'hard'"):
        conversation.set_think("hard")
    conversation.set_think("on")
    assert conversation.think == "on"


# ------------------------------------------------------------------------------------------------------ going back


def test_undo_goes_back_without_reading():
    conversation = chat("one", "two", "three", "four")
    before = conversation.model.backend.tokens_read
    conversation.undo()
    assert [turn.user for turn in conversation.turns] == ["one", "two", "three"]
    conversation.undo(2)
    assert [turn.user for turn in conversation.turns] == ["one"]
    assert conversation.model.backend.tokens_read == before
    assert is_true(conversation)
    conversation.undo()
    assert conversation.turns == []
    say(conversation.ask("other"))
    assert is_true(conversation)


@pytest.mark.parametrize("turns", [0, -1, 3, 10**9])
def test_undo_of_turns_that_there_are_not(turns):
    conversation = chat("one", "two")
    with pytest.raises(UsageError, match="the conversation has 2 turns"):
        conversation.undo(turns)
    with pytest.raises(UsageError, match="nothing was said"):
        chat().undo()


def test_retry_is_another_choice():
    conversation = chat("one", "two")
    answers = {conversation.turns[1].text} | {say(conversation.retry()) for _ in range(3)}
    assert len(answers) == 4
    assert [turn.user for turn in conversation.turns] == ["one", "two"]
    assert is_true(conversation)


def test_a_retry_that_is_interrupted_keeps_the_first_answer():
    conversation = chat("one", "two")
    before = (texts(conversation), heard(conversation))
    next(conversation.retry())
    assert (texts(conversation), heard(conversation)) == before


def test_edit():
    conversation = chat("one", "two")
    say(conversation.edit("zwei"))
    assert [turn.user for turn in conversation.turns] == ["one", "zwei"]
    assert is_true(conversation)
    with pytest.raises(UsageError, match="nothing was said"):
        chat().edit("x")


def test_a_fork_goes_its_own_way():
    first = chat("one", "two", frequency_penalty=0.5)
    second = first.fork()
    assert say(first.ask("three")) == say(second.ask("three"))
    second.undo(2)
    second.choose(temperature=0.1)
    assert len(first.turns) == 3
    assert first.settings.temperature != 0.1
    assert is_true(first)
    assert is_true(second)


def test_reset():
    conversation = chat("one", model=talking(template="g1"))
    conversation.reset("Be brief.")
    assert conversation.turns == []
    say(conversation.ask("two"))
    assert conversation.text.startswith("System: Be brief.\n\nUser: two")
    assert is_true(conversation)
    conversation.reset()
    say(conversation.ask("two"))
    assert conversation.text.startswith("User: two")
    with pytest.raises(UsageError, match="no place for a system prompt"):
        chat("one").reset("Be brief.")


def small(budget):
    """So many snapshots of a talker, and a little more."""
    nbytes = State.zeros(talking().config).nbytes + 257 * 4
    return int(budget * nbytes * 1.2)


@pytest.mark.parametrize("back", [1, 2, 5, 17, 39])
def test_snapshots_are_thinned_and_what_is_missing_is_read_again(back):
    conversation = chat(*(f"number {n}" for n in range(40)), budget=small(6))
    assert len(conversation.snapshots) <= 8
    said = texts(conversation)
    conversation.undo(back)
    assert texts(conversation) == said[:-back]
    assert is_true(conversation)


def test_penalties_go_back_with_the_turns():
    options = {"frequency_penalty": 1.0, "presence_penalty": 1.0, "temperature": 0}
    dense, sparse = (chat(*"abcdefgh", budget=budget, **options) for budget in (small(100), small(1)))
    for conversation in (dense, sparse):
        conversation.undo(4)
    assert say(dense.ask("x")) == say(sparse.ask("x"))


def test_snapshots_hold_a_budget_dense_at_the_end():
    snapshots = Snapshots(budget=100 * 1000)
    for turns in range(1, 1001):
        state = State(*(np.zeros(shape, np.float32) for shape in ((1, 13), (1, 1, 13, 13), (1, 13))))
        snapshots.put(turns, Snapshot(state, None, 50 * turns))
        assert snapshots.nbytes <= snapshots.budget
    kept = sorted(snapshots._at)
    assert kept[0] == 1
    assert set(range(991, 1001)) <= set(kept)
    for far in (50, 200, 500, 900):
        found, _ = snapshots.last(1000 - far)
        assert 1000 - far - found <= far / 4
    assert len(kept) > 100


def test_at_least_one_step_back_is_always_at_hand():
    conversation = chat("one", "two", "three", budget=0)
    before = conversation.model.backend.tokens_read
    conversation.undo()
    assert conversation.model.backend.tokens_read == before


# ------------------------------------------------------------------------------------------------------ settings


def test_settings():
    conversation = chat()
    conversation.choose(temperature=0.25)
    conversation.set_max_tokens(3)
    assert (conversation.settings.temperature, conversation.max_tokens) == (0.25, 3)
    assert conversation.settings.top_p == templates()["dialogue"].sampling["top_p"]
    conversation.choose(temperature=None)
    assert conversation.settings.temperature == templates()["dialogue"].sampling["temperature"]
    with pytest.raises(UsageError, match="top_p"):
        conversation.choose(top_p=2.0)
    with pytest.raises(UsageError, match="max_tokens"):
        conversation.set_max_tokens(-2)
    with pytest.raises(TypeError, match="temprature"):
        conversation.choose(temprature=1.0)
    assert conversation.settings.top_p == templates()["dialogue"].sampling["top_p"]


def test_a_seed_begins_the_random_choices_anew():
    conversation = chat("one")
    answers = []
    for _ in range(2):
        conversation.choose(seed=7)
        answers.append(say(conversation.ask("two")))
        conversation.undo()
    assert answers[0] == answers[1]


def test_a_conversation_uses_a_template_for_conversations():
    assert chat(model=talking(template="story")).template.name == "dialogue"
    assert chat(model=talking(template="world")).template.name == "world"


# ------------------------------------------------------------------------------------------------------ keeping


def through_a_file(conversation, tmp_path, **options):
    """The conversation, saved and loaded with another model object, as another process would."""
    state_file.save(tmp_path / "a.safetensors", conversation.to_saved("a", **options))
    saved = state_file.load(tmp_path / "a.safetensors")
    model = talking(template=conversation.model.template.name)
    assert state_file.fit(saved, model) is None
    return Conversation.from_saved(model, saved)


OPTIONS = {"frequency_penalty": 0.5, "temperature": 2.0, "banned": frozenset([98]), "logit_bias": {99: 1.0}}


def test_a_saved_conversation_goes_on_as_if_nobody_had_left(tmp_path):
    stayed = chat("one", "two", system="S", think="on", model=talking(template="g1"), seed=None, **OPTIONS)
    came_back = through_a_file(stayed, tmp_path)
    assert texts(came_back) == texts(stayed)
    assert (came_back.system, came_back.think, came_back.max_tokens) == ("S", "on", 12)
    for message in ("three", "four"):
        assert say(came_back.ask(message)) == say(stayed.ask(message))
    came_back.undo(3)
    assert is_true(came_back)


def test_a_conversation_that_has_not_begun_is_saved_too(tmp_path):
    came_back = through_a_file(chat(temperature=0), tmp_path)
    say(came_back.ask("one"))
    assert is_true(came_back)


def test_a_template_of_the_users_own_is_saved_with_it(tmp_path):
    own = Template(
        "own", "mine", begin=True, user="Q {prompt}\n", answer="A", turn_end="\n\n", stop=("\n\n",)
    )
    stayed = chat("one", template=own)
    came_back = through_a_file(stayed, tmp_path)
    assert came_back.template == own
    assert say(came_back.ask("two")) == say(stayed.ask("two"))


def document(text, model, **options):
    """A state in which a model has read a text."""
    logits, state = model.forward([0, *model.tokenizer.encode(text)])
    position = Snapshot(state, logits, 1 + len(text))
    return SavedState(position, identify(model), text=text, **options)


@pytest.mark.parametrize("template", ["story", None])
def test_a_conversation_may_begin_after_a_document(tmp_path, template):
    model = talking(template="story")
    conversation = Conversation.from_saved(
        model, document("A book.", model, template=template and get_template(template)), budget=0
    )
    assert conversation.template.name == "dialogue"
    for text in ("one", "two", "three"):
        say(conversation.ask(text))
    assert conversation.text.startswith("A book.\n\nUser: one\n\nAssistant:")
    assert heard(conversation) == read(0, [0, *model.tokenizer.encode(conversation.text)])
    came_back = through_a_file(conversation, tmp_path)
    came_back.undo(3)
    say(came_back.ask("one"))
    assert heard(came_back) == read(0, [0, *model.tokenizer.encode(came_back.text)])
    with pytest.raises(UsageError, match="a system prompt comes first"):
        Conversation.from_saved(model, document("A book.", model), templates()["g1"]).reset("System")


def test_without_its_text_a_conversation_becomes_a_document(tmp_path):
    stayed = chat("one", "two")
    came_back = through_a_file(stayed, tmp_path, with_text=False)
    assert b"two" not in (tmp_path / "a.safetensors").read_bytes()
    assert (came_back.turns, came_back.text) == ([], None)
    assert say(came_back.ask("three")) == say(stayed.ask("three"))
    came_back.undo()
    assert came_back.turns == []
    again = through_a_file(came_back, tmp_path)
    say(again.ask("four"))
    again = through_a_file(again, tmp_path)
    with pytest.raises(UsageError, match="cannot go back"):
        again.undo()
    assert len(again.turns) == 1


def test_a_state_that_was_trained_is_where_a_conversation_begins():
    model = talking()
    state = State.zeros(model.config)
    state.shift_att += 5
    saved = SavedState(Snapshot(state), identify(model))
    conversation = Conversation.from_saved(model, saved)
    say(conversation.ask("one"))
    tokens = [0, *model.tokenizer.encode(conversation.text)]
    assert heard(conversation) == read(5, tokens)
    conversation.undo()
    say(conversation.ask("two"))
    assert heard(conversation) == read(5, [0, *model.tokenizer.encode(conversation.text)])


DAMAGES = [
    {"version": 2},
    {"turns": [{"user": "a"}]},
    {"turns": 5},
    {"turns": [{"user": 1, "text": "", "think": None, "finish": ""}]},
    {"template": "nonsense"},
    {"template": {"user": "no place"}},
    {"template": {"name": "x", "stop": [""]}},
    {"start": {"kind": "x", "characters": None, "begin": True}},
    {"start": {"kind": "document", "characters": 10**9, "begin": True}},
    {"start": []},
    {"max_tokens": "5"},
    {"system": 5},
    {"constraint": 5},
    {"constraint": {"kind": "xml", "source": ""}},
    {"constraint": {"kind": "choice", "source": "yes"}},
    {"constraint": {"kind": "choice", "source": "[1]"}},
    {"constraint": {"kind": "json_schema", "source": "{"}},
    {"constraint": {"kind": "regex"}},
]


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_conversation_is_one_sentence(damage):
    model = talking()
    saved = chat("one", model=model).to_saved()
    saved.conversation = json.loads(json.dumps(saved.conversation)) | damage
    with pytest.raises(StateError, match="conversation"):
        Conversation.from_saved(model, saved)


def test_a_file_from_before_forms_were_kept():
    model = talking()
    saved = chat("one", model=model).to_saved()
    fields = json.loads(json.dumps(saved.conversation))
    del fields["constraint"]
    saved.conversation = fields
    assert Conversation.from_saved(model, saved).constraint is None


# ------------------------------------------------------------------------------------------------------ gosling


def test_gosling_talks(gosling, tmp_path):
    """With real weights: resume, undo and what the state has read."""
    stayed = Conversation(gosling, seed=3, max_tokens=60, budget=3_000_000)
    for message in ("Hello!", "I want to book a table for two.", "At 7 pm.", "Yes."):
        answer = say(stayed.ask(message))
        assert answer.strip()
        assert "\n\n" not in answer
        assert "User:" not in answer
    state_file.save(tmp_path / "a.safetensors", stayed.to_saved())
    came_back = Conversation.from_saved(gosling, state_file.load(tmp_path / "a.safetensors"))
    assert say(came_back.ask("Thanks.")) == say(stayed.ask("Thanks."))
    tokens = [0, *gosling.tokenizer.encode(stayed.text)]
    logits, _ = gosling.forward(tokens)
    np.testing.assert_allclose(stayed.snapshot.logits, logits, atol=0.5)
    for turns in (1, 2):
        stayed.undo(turns), came_back.undo(turns)
        np.testing.assert_allclose(stayed.snapshot.logits, came_back.snapshot.logits, atol=0.5)


def test_memory_does_not_grow_with_the_turns(gosling):
    conversation = Conversation(gosling, seed=1, max_tokens=2, budget=8_000_000)
    sizes = []
    for message in itertools.islice(itertools.cycle(["a", "b"]), 30):
        say(conversation.ask(message))
        sizes.append(conversation.snapshots.nbytes)
    assert max(sizes) <= 8_000_000
    assert sizes[-1] <= sizes[8] + 100_000
