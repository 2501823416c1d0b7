"""Tasks: scores and answers as each text alone gives them, results that are kept, and lm-eval on local files."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
from helpers.tasks import write_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.generate import Ending, TokenLoop
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session
from rwkv_cli.engine.state import State
from rwkv_cli.errors import RwkvError, StorageError, UsageError
from rwkv_cli.evaluation.harness import tasks
from rwkv_cli.evaluation.harness.answers import Prompt, answer_all
from rwkv_cli.evaluation.harness.finished import Finished, key_of
from rwkv_cli.evaluation.harness.log_likelihoods import Continuation, score_all
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.model import load
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.thinking import ThoughtSplitter


@pytest.fixture(scope="module")
def backend():
    return CpuBackend(ModelFile(EMBEDDED_MODEL), 2)


@pytest.fixture(scope="module")
def model():
    return load("gosling", "cpu")


# ---------------------------------------------------------------------------------------------------- log-likelihoods


def plain_score(backend, context, tokens):
    """By all logits of the text alone."""
    text = [*context, *tokens]
    logits = backend.forward_all(text[:-1], State.zeros(backend.config))[len(context) - 1 :].astype(
        np.float64
    )
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(log_p[np.arange(len(tokens)), tokens].sum()), logits.argmax(axis=1).tolist() == list(tokens)


@settings(max_examples=25, deadline=None)
@given(
    shared=st.integers(0, 40),
    own=st.lists(
        st.tuples(st.integers(1, 5), st.lists(st.integers(0, 30), min_size=1, max_size=5)), min_size=1
    ),
    slots=st.integers(1, 3),
)
def test_scores_are_those_of_each_text_alone(backend, shared, own, slots):
    beginning = [7 * i % 100 for i in range(shared)]
    asked = [Continuation([*beginning, *range(1, n + 1)], tokens) for n, tokens in own]
    found = {}
    score_all(backend, asked, found.__setitem__, slots)
    assert sorted(found) == list(range(len(asked)))
    for i, each in enumerate(asked):
        expected, is_greedy = plain_score(backend, *each)
        assert found[i].log_likelihood == pytest.approx(expected, abs=1e-4)
        assert found[i].is_greedy == is_greedy


def test_a_greedy_continuation_is_greedy(backend):
    context, greedy = [1, 2, 3], []
    for _ in range(4):
        greedy.append(int(backend.forward([*context, *greedy], State.zeros(backend.config)).argmax()))
    found = {}
    score_all(
        backend,
        [Continuation(context, greedy), Continuation(context, [*greedy[:-1], 5])],
        found.__setitem__,
    )
    assert (found[0].is_greedy, found[1].is_greedy) == (True, greedy[-1] == 5)


def test_letters_of_a_choice_are_one_text(backend, monkeypatch):
    submitted = []
    from rwkv_cli.engine.scheduler import Scheduler

    submit = Scheduler.submit
    monkeypatch.setattr(
        Scheduler, "submit", lambda self, request: submitted.append(request) or submit(self, request)
    )
    question = list(range(1, 60))
    score_all(backend, [Continuation(question, [letter]) for letter in range(5, 9)], lambda *_: None)
    assert [len(request.tokens) for request in submitted] == [59]


# ------------------------------------------------------------------------------------------------------------ answers


def test_answers_are_those_of_each_prompt_alone(model):
    greedy, ending = SamplingSettings(temperature=0), Ending(0, (), 12)
    texts = ["Once upon a time", "The dog", "Once upon a"]
    prompts = [Prompt(model.tokenizer.encode(text), greedy, ending) for text in texts]
    found = {}
    raw = get_template("raw")
    answer_all(model.backend, model.tokenizer, prompts, lambda: ThoughtSplitter(raw), found.__setitem__, 2)
    for i, prompt in enumerate(prompts):
        loop = TokenLoop(Session(model.backend, Sampler(greedy)), prompt.tokens, ending)
        assert found[i] == model.tokenizer.decode([choice.token for choice in loop])
    cut = found[0][4:7]
    stopped = {}
    stopping = [Prompt(prompts[0].tokens, greedy, ending, [cut])]
    answer_all(model.backend, model.tokenizer, stopping, lambda: ThoughtSplitter(raw), stopped.__setitem__)
    assert stopped == {0: found[0].partition(cut)[0]}


# ----------------------------------------------------------------------------------------------------------- finished


def test_results_are_found_again(tmp_path):
    path = tmp_path / "folder" / "x.jsonl"
    with Finished(path) as finished:
        finished.keep(key_of("a", 1), [-1.5, True])
        assert finished.get(key_of("a", 1)) == [-1.5, True]
    path.write_text(path.read_text() + '{"key": "half a li')
    with Finished(path) as finished:
        assert finished.get(key_of("a", 1)) == [-1.5, True]
        assert finished.get(key_of("a", 2)) is None
        finished.keep("b", "text")
    with Finished(path) as finished:
        assert finished.get("b") == "text"
    with Finished(path, anew=True) as finished:
        assert finished.get("b") is None


def test_results_that_cannot_be_kept(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Finished(tmp_path / "file" / "x.jsonl")


# -------------------------------------------------------------------------------------------------- lm-eval itself


@pytest.fixture
def local(tmp_path, monkeypatch):
    """The folder of local tasks."""
    pytest.importorskip("lm_eval", reason="needs the eval extra")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    tasks.check_installed()
    return write_tasks(tmp_path / "tasks")


def subject_of(model, template="raw", **options):
    from rwkv_cli.evaluation.harness.language_model import Subject

    return Subject(model.backend, model.tokenizer, get_template(template), **options)


def run(model, plan, path, subject=None, counting=lambda *_: nullcontext()):
    with Finished(path) as finished:
        return tasks.run(subject or subject_of(model), plan, finished, counting)


def values(outcome):
    return {(each.task, each.metric): each.value for each in outcome.measures}


def test_local_tasks(model, local, tmp_path):
    names = ["last_word", "choice", str(local / "write.yaml")]
    outcome = run(model, tasks.Plan(names, local, limit=3), tmp_path / "x.jsonl")
    found = values(outcome)
    losses = []
    for line in (local / "examples.jsonl").read_text().splitlines()[:3]:
        context, _, word = json.loads(line)["text"].rpartition(" ")
        encode = model.tokenizer.encode
        losses.append(plain_score(model.backend, encode(context), encode(" " + word))[0])
    assert found["last_word", "perplexity"] == pytest.approx(np.exp(-np.mean(losses)), rel=1e-4)
    assert {task for task, _ in found} == {"last_word", "choice", "write"}
    assert {each.shots for each in outcome.measures if each.task == "choice"} == {2}
    assert outcome.samples["choice"] == {"original": 12, "effective": 3}


def test_an_interrupted_run_continues(model, local, tmp_path, monkeypatch):
    plan, asked = tasks.Plan(["sentence"], local, limit=4), []
    from rwkv_cli.evaluation.harness import language_model

    def interrupted(backend, continuations, done, slots):
        def then(i, score):
            done(i, score)
            asked.append(i)
            if len(asked) == 5:
                raise KeyboardInterrupt

        score_all(backend, continuations, then, slots)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "score_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(model, plan, tmp_path / "x.jsonl")
        assert len(asked) == 5
        again = run(model, plan, tmp_path / "x.jsonl")
        assert len(asked) == 12
    assert values(again) == values(run(model, plan, tmp_path / "other.jsonl"))
    # Asked in another way, nothing of that counts.
    leading = run(model, plan, tmp_path / "x.jsonl", subject_of(model, leading=True))
    assert len(leading.measures) == len(again.measures)
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) > 20


def test_unknown_tasks_and_data(model, local, tmp_path):
    with pytest.raises(UsageError, match="did you mean lambada_openai"):
        run(model, tasks.Plan(["lambada_opena"]), tmp_path / "x.jsonl")
    (local / "examples.jsonl").unlink()
    with pytest.raises(RwkvError, match="the tasks could not be run"):
        run(model, tasks.Plan(["choice"], local), tmp_path / "x.jsonl")


def test_the_makers_recipe(model, local, tmp_path):
    """Its prompt to the letter, the token that ends a document first, and one of four tokens as the answer."""
    rows = [
        {
            "question": "What is 1 + 1?",
            "subject": "abstract_algebra",
            "choices": ["1", "2", "3", "4"],
            "answer": 1,
        }
    ]
    data = local / "mmlu.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = (tasks._OURS / "mmlu_rwkv.yaml").read_text()
    recipe = recipe.replace("cais/mmlu", "json").replace("dataset_name: all\n", "")
    folder = local / "recipe"
    folder.mkdir()
    (folder / "mmlu_rwkv.yaml").write_text(recipe + f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n")
    read = []
    from rwkv_cli.evaluation.harness import language_model

    def seen(backend, continuations, done, slots):
        read.extend(continuations)
        score_all(backend, continuations, done, slots)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "score_all", seen)
        run(model, tasks.Plan(["mmlu_rwkv"], folder), tmp_path / "x.jsonl")
    tokens = model.tokenizer.encode
    prompt = (
        "User: You are a very talented expert in abstract algebra. Answer this question:\nWhat is 1 + 1?\n"
        "A. 1\nB. 2\nC. 3\nD. 4\n\nAssistant: The answer is"
    )
    assert [[*each.context, *each.tokens] for each in read] == [
        [0, *tokens(f"{prompt} {letter}")] for letter in "ABCD"
    ]


def test_a_thought_leaves_no_room_for_given_answers(model, local, tmp_path):
    subject = subject_of(model, "g1h", think="on")
    with pytest.raises(UsageError, match="leave no room for a thought"):
        run(model, tasks.Plan(["choice"], local, limit=1, chats=True), tmp_path / "x.jsonl", subject)


def test_conversations():
    pytest.importorskip("lm_eval", reason="needs the eval extra")
    from rwkv_cli.evaluation.harness.language_model import conversation_text

    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert conversation_text(get_template("g1h"), said, "off") == (
        "System✿Be brief.✿\nUser✿1 + 1?✿\nBot✿2✿\nUser✿2 + 2?✿\nBot✿<think></think"
    )
    assert conversation_text(get_template("g1"), said[1:], None) == (
        "User: 1 + 1?\n\nAssistant: 2\n\nUser: 2 + 2?\n\nAssistant:"
    )
    begun = [*said[1:2], {"role": "assistant", "content": "The answer"}]
    assert conversation_text(get_template("g1"), begun, None) == "User: 1 + 1?\n\nAssistant: The answer"
