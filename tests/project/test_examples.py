"""The examples run as they are, with the built-in model, and print what they say that they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rwkv_cli

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model():
    return rwkv_cli.load(device="cpu")


def run(name, folder, typed=""):
    """What an example prints; it runs in `folder`."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, "gosling"],
        cwd=folder,
        input=typed,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_in_the_list():
    listed = re.findall(r"\]\((\w+\.(?:py|ipynb))\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(
        path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")
    )


def test_a_chat(tmp_path):
    prompts = run("chat.py", tmp_path, "Hello!\n\nHow are you?\n").split("\n> ")
    assert len(prompts) == 4  # two answers, a blank line, the end
    first, blank, second, end = prompts
    assert first.startswith("> ")
    assert len(first) > len("> ")
    assert second.strip()
    assert blank == end == ""


def test_a_form_is_filled_in(tmp_path):
    printed = run("structured.py", tmp_path)
    assert re.fullmatch(r".{0,20} is a (fox|goose|mouse) with [0-9] friends\n", printed)


def test_a_saved_state_is_continued(tmp_path, model):
    lines = run("resume_state.py", tmp_path).splitlines()
    whole = model.generate("Once upon a time", template=None, seed=1, max_tokens=80)
    text = "Once upon a time" + "".join(step.text for step in whole)
    (border,) = [line for line in lines if line.startswith("--- ")]
    size = (tmp_path / "story.safetensors").stat().st_size
    assert border == f"--- story.safetensors: {size:,} bytes ---"
    before, after = "\n".join(lines).split(f"\n{border}\n")
    assert before + after == text


def test_a_batch_answers_every_prompt(tmp_path, model):
    printed = run("batch.py", tmp_path)
    for number, prompt in enumerate(("The cat", "One rainy day", "Tom found a key"), 1):
        alone = model.generate(prompt, template=None, seed=number, max_tokens=30)
        assert f"{number}. {prompt}" + "".join(step.text for step in alone) + "\n" in printed


def test_the_probabilities_of_the_next_token(tmp_path, model):
    rows = [line.split("%  ") for line in run("logits.py", tmp_path).splitlines()]
    shares = [float(share) for share, _ in rows]
    assert len(rows) == 5
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.1
    greedy = next(model.generate("The little girl was very", template=None, temperature=0))
    assert rows[0][1] == "The little girl was very" + greedy.text
