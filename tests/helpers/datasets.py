"""Datasets of prompts, broken rows among them, and what has to be in the answers however often a run was killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_cli.datasets.plan import MANIFEST, SUCCESS


def rows_of(n: int, broken_every: int = 17) -> list[str]:
    """The lines of a dataset: every row has a number, most have a prompt."""
    return [
        f'{{"n": {i}, "prompt": {i}}}'
        if i % broken_every == broken_every - 1
        else f'{{"n": {i}, "prompt": "row {i}"}}'
        for i in range(n)
    ]


def write_rows(path: Path, n: int, broken_every: int = 17) -> Path:
    """Write such a dataset as JSON lines: its path."""
    path.write_text("".join(line + "\n" for line in rows_of(n, broken_every)))
    return path


def parts_of(folder: Path) -> list[Path]:
    """The files of answers that are there."""
    return sorted(each for each in folder.glob("part-*"))


def answers_of(folder: Path) -> list[dict[str, object]]:
    """All answers, in the order of the rows."""
    return [json.loads(line) for part in parts_of(folder) for line in part.read_bytes().splitlines()]


def batch_command(rwkv: Callable[..., Any], model: Path, out: Path, *common: str) -> Callable[..., Any]:
    """A function that runs `rwkv batch` from places to `out`: the result of the command, which has to be `code`."""

    def call(*places: object, options: tuple[object, ...] = (), code: int = 0) -> Any:
        result = rwkv("batch", *places, out, "-m", model, "-n", "6", "--seed", "5", *common, *options)
        assert result.code == code, result.err
        assert result.out == ""
        return result

    return call


def check_complete(folder: Path, n: int, broken_every: int = 17) -> None:
    """Every row is there once, with an answer or an error, and nothing else is."""
    found = answers_of(folder)
    assert [row["n"] for row in found] == [*range(n)]
    assert [row["index"] for row in found] == [*range(n)]
    broken = [i for i in range(n) if i % broken_every == broken_every - 1]
    assert [row["n"] for row in found if row["error"]] == broken
    assert all((row["text"] is None) == bool(row["error"]) for row in found)
    others = {each.name for each in folder.iterdir()} - {each.name for each in parts_of(folder)}
    assert others == {MANIFEST, SUCCESS}


class Versions:
    """The files of answers that were complete at some moment: none of them may be written again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = dict[Path, tuple[int, int]]()

    def look(self) -> int:
        """Note those that are there: how many. Asserts that those of before are the same files still."""
        now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in parts_of(self._folder)}
        for path, version in self._seen.items():
            assert now.get(path) == version, f"{path.name} was computed again"
        self._seen = now
        return len(now)


def processes(word: str, parent: int | None = None) -> list[int]:
    """The ids of processes with a word in their command line; only the children of one, if that is given. On Linux."""
    found = list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            of = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        if word in line and parent in (None, of):
            found.append(int(folder.name))
    return found
