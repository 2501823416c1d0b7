"""`rwkv eval`: a text, questions, and one model against another."""

import json
import sys
from pathlib import Path

import pytest
from helpers.models import fine_weights, write_file
from helpers.tasks import write_tasks

QUESTIONS = Path(__file__).resolve().parents[1] / "data" / "reasoning" / "questions.jsonl"
TEXT = "Once upon a time there was a goose that could count to ten, and it did so every morning. " * 5


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path, monkeypatch, byte_vocabulary):
    """The current folder, with a model in two types, a text and questions."""
    monkeypatch.chdir(tmp_path)
    for kind in ("fp32", "int4"):
        write_file(tmp_path / kind, fine_weights(), kind, tokenizer=byte_vocabulary)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "q.jsonl").write_text('{"task": "a", "prompt": "1+1=", "answer": "2"}\n')
    return tmp_path


def test_a_text(rwkv):
    result = rwkv("eval", "fp32", "text.txt")
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()
    assert first.startswith("perplexity ")
    assert first.endswith(f"], {len(TEXT) - 1} predictions")
    assert second.startswith("bits per byte ")
    facts = json.loads(rwkv("eval", "fp32", TEXT, "--json").out)
    assert first.split()[1] == f"{facts['perplexity']['value']:.3f}"
    assert facts["perplexity"]["low"] < facts["perplexity"]["value"] < facts["perplexity"]["high"]


def test_less_of_a_text(rwkv):
    facts = json.loads(rwkv("eval", "fp32", "text.txt", "--limit", "100", "--json").out)
    assert facts["tokens"] == 100


def test_against_another_model(rwkv):
    result = rwkv("eval", "fp32", "text.txt", "--against", "int4", "--questions", "q.jsonl")
    assert (result.code, result.err) == (0, "")
    for said in (
        "perplexity ",
        "bits per byte ",
        "KL divergence",
        "99th percentile",
        "same first choice",
        "greedy texts",
    ):
        assert said in result.out
    facts = json.loads(
        rwkv("eval", "fp32", "text.txt", "--against", "int4", "--questions", "q.jsonl", "--json").out
    )
    assert facts["kl_divergence"]["mean"]["value"] > 0
    assert facts["before"]["perplexity"]["value"] == facts["perplexity"]["before"]
    assert set(facts["exact_answers"]) == {"a", "all"}
    same = json.loads(rwkv("eval", "fp32", "text.txt", "--against", "fp32", "--json").out)
    assert same["kl_divergence"]["mean"]["value"] == 0
    assert same["same_first_choice"]["value"] == 1


def test_questions_alone(rwkv):
    result = rwkv("eval", "fp32", "--questions", QUESTIONS, "--json")
    assert set(json.loads(result.out)["exact_answers"]) > {"a5", "s5", "add", "all"}
    assert rwkv("eval", "fp32", "--questions", "q.jsonl").out.splitlines()[0].split() == [
        "task",
        "exact",
        "answers",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("fp32",), 2, "there is nothing to measure"),
        (("fp32", "--against", "int4", "--questions", "q.jsonl"), 2, "there is nothing to measure"),
        (("fp32", "x"), 2, "the text is too short"),
        (("fp32", "text.txt", "--questions", "missing.jsonl"), 2, "cannot read missing.jsonl"),
        (("fp32", "text.txt", "--questions", "text.txt"), 2, "line 1 of text.txt is not valid JSON"),
        (("fp32", "text.txt", "--against", "gosling"), 2, "gosling has another vocabulary"),
        (("missing.pth", "text.txt"), 1, "there is no file missing.pth"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(rwkv, arguments, code, said):
    result = rwkv("eval", *arguments)
    assert said in result.sentence
    assert result.code == code


# -------------------------------------------------------------------------------------------------------------- tasks


def test_tasks(rwkv, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the eval extra")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    asked = (
        "eval",
        "fp32",
        "--tasks",
        "sentence,write",
        "--task-folder",
        str(write_tasks(tmp_path / "t")),
        "--limit",
        "2",
    )
    result = rwkv(*asked)
    assert (result.code, result.err) == (0, "")
    title, *lines = result.out.splitlines()
    assert title.split() == ["task", "measure", "shots", "value", "standard", "error"]
    facts = json.loads(rwkv(*asked, "--json").out)
    assert [line.split()[:2] for line in lines] == [
        [each["task"], each["metric"]] for each in facts["measures"]
    ]
    assert facts["samples"]["write"] == {"original": 12, "effective": 2}
    assert (facts["weights"], facts["device"]) == ("fp32", "cpu")


def test_tasks_without_the_package(rwkv, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = rwkv("eval", "fp32", "--tasks", "mmlu")
    assert (result.code, result.out) == (2, "")
    assert "pip install '.[eval]'" in result.err


@pytest.mark.parametrize("also", [("text.txt",), ("--against", "int4"), ("--questions", "q.jsonl")])
def test_tasks_stand_alone(rwkv, also):
    result = rwkv("eval", "fp32", *also, "--tasks", "mmlu")
    assert result.code == 2
    assert "--tasks stands alone" in result.err
