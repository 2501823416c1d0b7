"""How far a dataset is, in a log without a terminal."""

import re
import time

from rwkv_cli.cli.terminal import progress
from rwkv_cli.cli.terminal.progress import Rows, counting_rows


def test_what_is_said_of_rows(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    rows = Rows(20_000)
    assert str(rows) == "0 of 20,000 rows (0%), 0.0 rows/s"
    now[0] += 10
    rows.answered(500, 4_000)
    assert str(rows) == "500 of 20,000 rows (2%), 50.0 rows/s, 400 tokens/s, 7 min left"
    rows.answered(-100, 0)  # lost with a replica
    assert str(rows) == "400 of 20,000 rows (2%), 40.0 rows/s, 400 tokens/s, 9 min left"
    rows.answered(19_600, 0)
    assert "100%" in str(rows)
    assert "left" not in str(rows)
    assert str(Rows(1)).startswith("0 of 1 row (")
    assert str(Rows(0)).startswith("0 of 0 rows (0%)")


def test_a_log_has_a_line_now_and_then(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_FIRST_LINE", 0.05)
    monkeypatch.setattr(progress, "_LINES", 0.1)
    rows = Rows(10)
    with counting_rows(rows):
        for _ in range(10):
            time.sleep(0.04)
            rows.answered(1, 5)
    lines = capfd.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5
    assert all(re.fullmatch(r"\d+ of 10 rows \(\d+%\), [\d.]+ rows/s.*", line) for line in lines)
    with counting_rows(rows, quiet=True):
        time.sleep(0.2)
    assert capfd.readouterr().err == ""
