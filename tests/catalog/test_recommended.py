"""The list of models that can be pulled, which of them suits a machine, and the one that is used without --model."""

import json

import pytest
from helpers.writers import TINY, random_weights, write_pth

from rwkv_cli import machine, paths, settings
from rwkv_cli.catalog import recommended, registry
from rwkv_cli.cli import default_model
from rwkv_cli.cli.reports import models as reports
from rwkv_cli.cli.terminal import ui

GIB = 1 << 30
MINE = """
[tiny]
repository = "owner/repo"
file = "rwkv7-g1-tiny.pth"
parameters = 700_000
license = "CC0-1.0"
[other]
repository = "owner/repo"
file = "other.pth"
"""


@pytest.fixture
def hub(local_hub, tmp_path):
    data = write_pth(tmp_path / "x.pth", random_weights(TINY, seed=3)).read_bytes()
    local_hub.files["owner/repo"] = {"rwkv7-g1-tiny.pth": data, "other.pth": data}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(MINE)
    registry.entries.cache_clear()
    return local_hub


@pytest.fixture
def memory(monkeypatch):
    """Gives this machine another memory."""
    return lambda total: monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total, None))


# ------------------------------------------------------------------------------------------------------ the list


def test_older_generations_are_left_out():
    names = [registry.short_name(entry) for entry in recommended.current()]
    sizes = ("0.1b", "0.4b", "1.5b", "2.9b", "7.2b", "13.3b")
    assert [name for name in names if name.startswith("g1")] == [f"g1-{size}" for size in sizes]
    assert len(names) == len(set(names)) == 11
    assert len(reports.known(every=True)) == 19


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (GIB // 2, "g1-0.1b"),
        (4 * GIB, "g1-0.4b"),
        (8 * GIB, "g1-1.5b"),
        (16 * GIB, "g1-2.9b"),
        (32 * GIB, "g1-7.2b"),
        (512 * GIB, "g1-13.3b"),
        (None, "g1-1.5b"),
    ],
)
def test_the_largest_that_leaves_room(size, name, memory):
    memory(size)
    found = recommended.recommended()
    assert registry.short_name(found) == name
    if size and name != "g1-0.1b":
        assert 4 * recommended.memory_bytes(found) <= size


def test_only_models_whose_checksum_is_known_are_recommended():
    for size in (4 * GIB, 8 * GIB, 16 * GIB, 32 * GIB, 64 * GIB):
        assert recommended.recommended(size).sha256


def test_the_list(rwkv, memory):
    memory(8 * GIB)
    shown = rwkv("models", "list", "--known")
    lines = shown.out.splitlines()
    assert lines[0].split() == ["name", "download", "memory", "here", "good", "for"]
    assert lines[1] == "gosling     built in  0.2 GB   yes   children's stories in English; no facts"
    assert [line for line in lines if " * " in line] == [
        "g1-1.5b *   3.1 GB    1.8 GB         everyday questions, short texts"
    ]
    assert shown.err == "* for this machine, which has 8.6 GB of memory: rwkv pull g1-1.5b\n"
    assert max(map(len, lines)) <= 80
    every = rwkv("models", "list", "--known", "--all").out.splitlines()
    assert (len(lines), len(every)) == (12, 20)
    assert max(map(len, every)) <= 80
    assert "--all lists all known models: use it with --known" in rwkv("models", "list", "--all").sentence
    rows = json.loads(rwkv("models", "list", "--known", "--json").out)
    assert [row["short_name"] for row in rows if row["recommended"]] == ["g1-1.5b"]
    assert all(row["good_for"] and row["memory_bytes"] for row in rows)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_list_fits_a_terminal(width, monkeypatch, rwkv):
    monkeypatch.setattr(ui, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    whole = rwkv("models", "list", "--known").out
    assert max(map(len, whole.splitlines())) <= width
    text = " ".join(whole.split())
    for entry in recommended.current():
        assert set(entry.good_for.split()) <= set(text.split())


# ------------------------------------------------------------------------------------------- without --model


@pytest.mark.usefixtures("hub")
def test_the_first_model_that_was_pulled_is_the_default(rwkv):
    assert default_model.facts() == {
        "name": "gosling",
        "path": str(paths.EMBEDDED_MODEL),
        "set_in": None,
    }
    first = rwkv("pull", "tiny")
    assert first.err.splitlines()[-2:] == [
        "it is the default model now; for gosling again: rwkv models default gosling",
        "to talk with it: rwkv chat",
    ]
    assert settings.load().model == "tiny"
    second = rwkv("pull", "other")
    assert second.err.splitlines()[-2:] == [
        "to talk with it: rwkv chat -m other",
        "to use it without -m: rwkv models default other",
    ]
    assert settings.load().model == "tiny"
    assert json.loads(rwkv("pull", "tiny", "--json").out)["default"] is True
    assert json.loads(rwkv("pull", "other", "--json").out)["default"] is False
    rows = json.loads(rwkv("models", "list", "--json").out)
    assert {row["name"]: row["default"] for row in rows} == {"other-int8": False, "tiny-int8": True}
    marked = [
        line.split()[0] for line in rwkv("models", "list").out.splitlines() if line.endswith(" default")
    ]
    assert marked == ["tiny-int8"]


@pytest.mark.usefixtures("hub")
def test_another_default(rwkv, tmp_path, monkeypatch):
    rwkv("pull", "tiny"), rwkv("pull", "tiny", "--type", "int4")
    assert rwkv("models", "default", "TINY").out == f"tiny: set in {paths.settings_file()}\n"
    rwkv("models", "default", "tiny-int4")
    assert settings.load().model == "tiny-int4"
    monkeypatch.chdir(tmp_path)
    rwkv("models", "default", "./x.pth")
    assert settings.load().model == str(tmp_path / "x.pth")
    assert rwkv("models", "default", "gosling").code == 0
    assert settings.load().model == "gosling"
    assert "without -m, gosling is used" in rwkv("models", "list").err
    monkeypatch.setenv("RWKV_MODEL", "tiny")
    assert rwkv("models", "default").out == "tiny: set in RWKV_MODEL\n"


@pytest.mark.usefixtures("hub")
def test_a_default_has_to_be_here(rwkv):
    assert "rwkv pull other" in rwkv("models", "default", "other").sentence
    assert "unknown model nonsense" in rwkv("models", "default", "nonsense").sentence
    assert settings.load().model is None


@pytest.mark.usefixtures("hub")
def test_gosling_takes_the_place_of_a_default_that_is_removed(rwkv):
    rwkv("pull", "tiny"), rwkv("pull", "tiny", "--type", "int4")
    assert "default" not in rwkv("models", "rm", "tiny-int8").out  # the other type is used
    assert settings.load().model == "tiny"
    assert rwkv("models", "rm", "tiny-int4").out.endswith(", which was the default model: now gosling is\n")
    assert settings.load().model is None


@pytest.mark.usefixtures("hub")
def test_a_pull_stands_where_the_default_cannot_be_kept(rwkv, tmp_path):
    (tmp_path / "config" / "config.toml").write_text("model = 3\n")
    result = rwkv("pull", "tiny")
    assert result.code == 0
    assert "the default model stays as it is: " in result.err


@pytest.mark.usefixtures("hub")
def test_what_somebody_is_told_who_talks_with_gosling(memory, rwkv, tmp_path):
    memory(8 * GIB)
    told = default_model.advice_on(paths.EMBEDDED_MODEL)
    assert "knows no facts" in told
    assert told.endswith(
        "on this machine, which has 8.6 GB of memory: rwkv pull g1-1.5b, a download of 3.1 GB"
    )
    assert default_model.advice_on(tmp_path / "x.pth") is None
    rwkv("pull", "tiny")
    assert default_model.advice_on(paths.EMBEDDED_MODEL).endswith(
        "rwkv chat -m tiny, or for always: rwkv models default tiny"
    )
