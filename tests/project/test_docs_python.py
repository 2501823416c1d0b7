"""The Python in the documents is run, and `print(...)  # value` has to print that value."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMISE = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)


def blocks(path):
    return BLOCK.findall(path.read_text(encoding="utf-8"))


DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if blocks(path)]


def test_the_documents_are_found():
    assert {"README.md", "python-api.md", "model-file.md"} <= {path.name for path in DOCUMENTS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}  # the blocks of a document are one program
    for number, block in enumerate(blocks(path), 1):
        exec(compile(block, f"{path.name}, block {number}", "exec"), names)
        printed = capsys.readouterr().out
        promised = PROMISE.findall(block)
        if promised:
            assert printed.splitlines() == promised, f"block {number}"


def test_the_docstring_of_the_package_runs(capsys):
    import doctest

    import rwkv_cli

    example = "".join(each.source for each in doctest.DocTestParser().get_examples(rwkv_cli.__doc__))
    exec(example, {})
    assert capsys.readouterr().out.strip()
