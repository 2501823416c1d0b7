"""lm-eval's own class for models of Hugging Face, on a folder that both can load: the same numbers.

Needs the extras `eval` and `peers`, and accelerate, which lm-eval's class imports.
"""

import json
from contextlib import nullcontext

import pytest
from helpers.models import SHAPES, SHARED, byte_tokenizer
from helpers.tasks import write_tasks
from helpers.writers import random_weights, write_pth

from rwkv_cli.convert.conversion import convert_checkpoint
from rwkv_cli.evaluation.harness import tasks
from rwkv_cli.evaluation.harness.finished import Finished
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.model import load
from rwkv_cli.text.templates import get_template

pytest.importorskip("torch", reason="needs the peers extra")
converter = pytest.importorskip("rwkv7_hf.converter", reason="needs the peers extra")
lm_eval = pytest.importorskip("lm_eval", reason="needs the eval extra")
pytest.importorskip("accelerate", reason="lm-eval's class needs it")

LIMIT = 4  # examples of a task: their class takes seconds for each
NAMES = ("last_word", "choice", "sentence", "whole", "write")


@pytest.fixture(params=["random", "gosling"])
def folder(request, tmp_path):
    """A folder of a model that both can load."""
    if request.param == "gosling":
        if not (SHARED / "gosling.pth").exists():
            pytest.skip("gosling.pth is not on this machine")
        pth, tokenizer = SHARED / "gosling.pth", (SHARED / "tokenizer.json").read_bytes()
    else:
        pth = write_pth(tmp_path / "x.pth", random_weights(SHAPES["four-layers"], seed=3))
        tokenizer = byte_tokenizer().data
    folder = tmp_path / "model"
    converter.main(["--input", str(pth), "--output", str(folder), "--precision", "fp32", "--low-memory"])
    (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )
    return folder


def ours(folder, tmp_path, names):
    from rwkv_cli.evaluation.harness.language_model import Subject

    file = tmp_path / "fp32.safetensors"
    convert_checkpoint(open_checkpoint(folder), file, "fp32")
    model = load(file, "cpu")
    subject = Subject(model.backend, model.tokenizer, get_template("raw"))
    with Finished(tmp_path / "finished.jsonl") as finished:
        return tasks.run(subject, tasks.Plan(names, limit=LIMIT), finished, lambda *_: nullcontext()).measures


def test_the_numbers_of_its_own_class(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    tasks.check_installed()
    made = write_tasks(tmp_path / "tasks")
    names = [str(made / f"{name}.yaml") for name in NAMES]
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(str(folder), trust_remote_code=True, device="cpu", dtype="float32", batch_size=1)
    expected = tasks.measures_of(
        lm_eval.simple_evaluate(theirs, tasks=names, limit=LIMIT, log_samples=False, bootstrap_iters=0)
    )
    found = ours(folder, tmp_path, names)
    assert {each.task for each in found} == {*NAMES}
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert (mine.task, mine.metric, mine.shots) == (other.task, other.metric, other.shots)
        assert mine.value == pytest.approx(other.value, rel=2e-5), mine
