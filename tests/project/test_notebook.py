"""The notebook runs from its first cell to its last, and its file has no outputs."""

import ast
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def execute(source, names):
    """Run a cell as a notebook does: the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


def test_the_file_is_a_notebook_without_outputs():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert set(cell) >= {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, shown = {}, []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            value = execute("".join(cell["source"]), names)
            printed = capsys.readouterr().out
            assert value is not None or printed.strip(), cell["source"]
            shown.append(value)
    model, story, state, again = (value for value in shown if value is not None)
    assert "\n" not in repr(model)
    assert story.strip()
    assert state._repr_html_().startswith("<div")
    assert len(again.turns) == 1
