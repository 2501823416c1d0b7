"""The model that has to reason: what it can do, that every type of weights keeps it, and how it was trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import reasoning_tasks as tasks
from helpers.models import difference

from rwkv_cli.convert.conversion import convert, open_source
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.state import State
from rwkv_cli.evaluation.questions import TOGETHER, answer_all, parse_questions
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import Reporter
from rwkv_cli.text.tokenizer import load_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "data" / "reasoning"
TABLE = json.loads((FOLDER / "table.json").read_text())
QUESTIONS = parse_questions((FOLDER / "questions.jsonl").read_text(), "questions.jsonl")
LONG = 3000
"""Tokens of a long run: 23 times the 128 that the model was trained on at a time; the table has 10,000."""


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def made(request, tmp_path_factory):
    """A type of weights, and the backend of a file of it."""
    path = tmp_path_factory.mktemp("reasoning") / "model.safetensors"
    convert(open_source(FOLDER / "reasoning.pth"), path, request.param, Reporter())
    return (
        request.param,
        CpuBackend(ModelFile(path)),
        load_tokenizer(ModelFile(path).info.tokenizer, tasks.VOCAB_SIZE),
    )


def right_of(backend, task, length, seed):
    """Whether each prediction of a long run is right."""
    example = tasks.first(tasks.ENDLESS[task](np.random.default_rng(seed)), length)
    targets = np.array(example.targets)
    logits = backend.forward_all(example.tokens, State.zeros(backend.config))
    return (logits.argmax(axis=1) == targets)[targets >= 0]


def test_questions_are_answered_as_the_table_says(made):
    weight_type, backend, tokenizer = made
    found = answer_all(backend, tokenizer, QUESTIONS)
    expected = TABLE[weight_type]["exact_answers"]
    # Sums in another order, on another machine, can turn a choice that is nearly even.
    assert {task: share.value for task, share in found.items()} == pytest.approx(expected, abs=0.02)
    assert found[TOGETHER].value >= 0.9 * TABLE["fp32"]["exact_answers"][TOGETHER]


@pytest.mark.parametrize(("task", "least"), [("registers", 0.995), ("walk", 0.99)])
def test_a_state_is_kept_far_beyond_the_lengths_of_training(made, task, least):
    _, backend, _ = made
    right = right_of(backend, task, LONG, seed=11)
    assert len(right) > 400
    assert right.mean() >= least
    assert right[len(right) // 2 :].mean() >= least  # not forgotten on the way


def test_the_questions_have_right_answers():
    elements = dict(zip(tasks.A5.names, tasks.A5.permutations.tolist(), strict=True))
    for question in QUESTIONS:
        body = question.prompt.partition(":")[2]
        if question.task == "a5":
            product = list(range(5))
            for name in body.replace(">", "> ").split():
                product = [elements[name][i] for i in product]
            assert elements[question.answer] == product
        elif question.task == "add":
            a, b = body.removesuffix("=").split("+")
            assert question.answer.endswith(f":{int(a) + int(b)}")
        elif question.task == "multiply":
            a, b = body.removesuffix("=").split("*")
            assert question.answer.endswith(f":{int(a) * int(b)}")
        elif question.task == "reverse":
            assert question.answer == body.removesuffix("=")[::-1]
        elif question.task == "mod":
            assert int(question.answer) == sum(map(int, body)) % int(question.prompt[1])
    assert {question.task for question in QUESTIONS} == set(tasks.TASKS)


def test_the_vocabulary_has_the_tokens_of_the_tasks():
    source = open_source(FOLDER / "reasoning.pth")
    tokenizer = load_tokenizer(source.info("int8").tokenizer, tasks.VOCAB_SIZE)
    rng = np.random.default_rng(0)
    for task in tasks.TASKS:
        example = tasks.example(task, 40, rng)
        text = tasks.decode(example.tokens[1:])
        assert tokenizer.encode(text) == example.tokens[1:]


def test_training_computes_what_the_reference_does(tmp_path):
    torch = pytest.importorskip("torch")
    training = pytest.importorskip("train_reasoning")
    torch.manual_seed(0)
    model = training.Rwkv7(2, 64, tasks.VOCAB_SIZE, {"w": 16, "a": 16, "v": 16, "g": 32})
    with torch.no_grad():
        for parameter in model.parameters():  # exact in float16, so that nothing is lost in the file
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half())
        tokens = torch.randint(0, tasks.VOCAB_SIZE, (2, 64))
        whole, _ = model(tokens, model.empty(2))
        first, states = model(tokens[:, :16], model.empty(2))
        second, _ = model(tokens[:, 16:], training.kept(states, torch.tensor([1.0, 0.0])))
        fresh, _ = model(tokens[:, 16:], model.empty(2))
    assert torch.allclose(first, whole[:, :16], atol=1e-4)
    assert torch.allclose(second[0], whole[0, 16:], atol=1e-4)  # goes on
    assert torch.allclose(second[1], fresh[1], atol=1e-4)  # begins anew
    training.save(model, tmp_path)
    reference = ReferenceBackend(open_source(tmp_path / "reasoning.pth").weights)
    logits = reference.forward_all(tokens[0].tolist(), State.zeros(reference.config))
    assert difference(logits, whole[0].numpy()) < 1e-4


def test_training_runs_and_learns(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    training = pytest.importorskip("train_reasoning")
    arguments = "--layers 1 --width 64 --batch 20 --length 32 --steps 12 --report 1 --workers 0 --output"
    monkeypatch.setattr("sys.argv", ["train_reasoning", *arguments.split(), str(tmp_path)])
    training.main()
    shown = [line.split()[3] for line in capsys.readouterr().out.splitlines() if " loss " in line]
    assert len(shown) == 12
    assert float(shown[-1]) < float(shown[0])
    assert (tmp_path / "reasoning.pth").is_file()
