"""The script that checks answers under many schemas: a few answers of the built-in model, and what it finds wrong."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "validate_answers.py"


def run(file, answers):
    command = [sys.executable, str(SCRIPT), str(file), "--answers", str(answers)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_answers_are_valid_and_the_script_continues(tmp_path):
    file = tmp_path / "answers.jsonl"
    first = run(file, 20)
    assert (first.returncode, first.stderr) == (0, "")
    begun = file.read_text()
    file.write_text(begun + '{"half": ')  # it was killed
    second = run(file, 30)
    assert second.returncode == 0
    assert second.stdout.startswith("30 answers under 30 schemas: ")
    assert second.stdout.endswith(" 0 wrong\n")
    assert file.read_text().startswith(begun)
    assert file.read_text().count("\n") == 30


def test_an_answer_that_is_wrong_is_shown(tmp_path):
    file = tmp_path / "answers.jsonl"
    lines = [
        {"schema": "boolean", "text": "5", "finish": "stop"},
        {"schema": "boolean", "text": "tr", "finish": "end"},
        {"schema": "boolean", "text": "tr", "finish": "length"},
        {"schema": "boolean", "text": "true", "finish": "stop"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run(file, 4)
    assert result.returncode == 1
    assert "boolean: '5': 5 is not of type 'boolean'" in result.stdout
    assert result.stdout.endswith("3 complete, 1 cut off at the limit, 2 wrong\n")
