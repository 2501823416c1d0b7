"""`rwkv run`, `rwkv list`, `rwkv help`: what hands know from other programs."""

import json

import pytest

from rwkv_cli import __version__
from rwkv_cli.cli.chat import start
from rwkv_cli.cli.commands import one_generation
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS


@pytest.fixture
def requests(monkeypatch):
    """What would have been generated, or talked about."""
    asked = []
    for module in (start, one_generation):
        monkeypatch.setattr(module, "run", lambda request: asked.append(request) or 0)
    return asked


def test_without_a_prompt_it_is_a_chat(rwkv, tiny_model, requests):
    assert rwkv("run", tiny_model, "-t", "0.5", "--system", "Be brief.", "-n", "7").code == 0
    (request,) = requests
    assert isinstance(request, start.Request)
    assert request.model == str(tiny_model)
    choices = request.choices
    assert (choices.sampling, choices.system, choices.max_tokens) == ({"temperature": 0.5}, "Be brief.", 7)


@pytest.mark.parametrize(
    ("words", "stdin", "text"),
    [
        (("Why", "is it?"), None, "Why is it?"),
        (("Why?",), b"a book\n", "a book\n\nWhy?"),
        ((), b"Why?\n", "Why?"),
    ],
)
def test_with_a_prompt_it_is_one_answer(rwkv, tiny_model, requests, words, stdin, text):
    assert rwkv("run", tiny_model, *words, "-t", "0.5", stdin=stdin).code == 0
    (request,) = requests
    assert isinstance(request, one_generation.Request)
    assert (request.text, request.model) == (text, str(tiny_model))
    assert (request.sampling, request.max_tokens) == ({"temperature": 0.5}, MAX_ANSWER_TOKENS)


def test_an_answer(rwkv, tiny_model):
    options = ("-n", "5", "--seed", "1")
    assert (
        rwkv("run", tiny_model, "a b", *options).out
        == rwkv("generate", "-m", tiny_model, "a b", *options).out
        != ""
    )


def test_it_needs_a_model(rwkv):
    result = rwkv("run")
    assert (result.code, "missing argument 'MODEL'" in result.sentence) == (2, True)
    result = rwkv("run", "gosslin")
    assert (result.code, "did you mean gosling?" in result.sentence) == (2, True)


def test_list_is_models_list(rwkv):
    for arguments in ((), ("--known",), ("--known", "--json")):
        one, other = rwkv("list", *arguments), rwkv("models", "list", *arguments)
        assert (one.code, one.out, one.err) == (other.code, other.out, other.err)
        assert one.out or one.err


def test_help_is_the_page_of_a_command(rwkv):
    for names in ((), ("generate",), ("state",), ("state", "save"), ("help",)):
        one, other = rwkv("help", *names), rwkv(*names, "--help")
        assert (one.code, one.out) == (0, other.out)
        assert one.out
    assert rwkv("help", "sate").sentence == "unknown command 'rwkv sate'; did you mean state?"
    assert rwkv("help", "state", "svae").sentence == "unknown command 'rwkv state svae'; did you mean save?"
    assert rwkv("help", "chat", "x").code == 2


def test_commands_of_a_group_are_found(rwkv):
    assert rwkv("show").sentence == (
        "no such command 'show'; did you mean `rwkv state show` or `rwkv models show`? (see rwkv --help)"
    )
    assert rwkv("frobnicate").sentence == "no such command 'frobnicate' (see rwkv --help)"


def test_the_version(rwkv):
    assert rwkv("-V").out == rwkv("--version").out == f"rwkv {__version__}\n"


def test_short_options_of_earlier_versions_still_work(rwkv, tiny_model, tmp_path):
    target = tmp_path / "x.pth"
    for options in (("-t", "fp16"), ("-f", "--type", "fp16")):
        assert rwkv("export", tiny_model, target, "-q", *options).code == 0
    assert "x.pth exists" in rwkv("export", tiny_model, target, "-q").sentence
    assert "unexpected extra argument(s) (-f)" in rwkv("export", tiny_model, target, "--", "-f").err
    for page in (rwkv("export", "--help").out, rwkv("quantize", "--help").out):
        assert "-f " not in page
        assert "-t " not in page


def test_verbose_tells_on_stderr_what_is_used(rwkv, tiny_model, monkeypatch):
    monkeypatch.setenv("RWKV_TOP_K", "5")
    command = ("generate", "-m", tiny_model, "a", "-n", "2", "--seed", "1")
    plain, told = rwkv(*command), rwkv(*command, "--verbose")
    assert (plain.out, plain.err) == (told.out, "")
    settings, model, speed = told.err.splitlines()
    assert settings.startswith("settings (")
    assert settings.endswith("config.toml): top_k = 5")
    assert model.startswith(f"{tiny_model}: ")
    assert "2 tokens" in speed
    assert rwkv("--verbose", *command).err.splitlines()[:2] == [settings, model]
    assert rwkv(*command).err == ""


def test_states_are_told_as_json(rwkv, tiny_model, tmp_path, monkeypatch):
    def done(*arguments):
        result = rwkv("state", *arguments, "--json")
        assert (result.code, result.err) == (0, "")
        return json.loads(result.out)

    saved = done("save", "a", "-p", "hi", "-m", tiny_model)
    shown = done("show", "a")
    assert saved == {key: value for key, value in shown.items() if key != "norms"}
    assert done("fork", "a", "b")["name"] == "b"
    assert done("export", "a", tmp_path / "x.safetensors")["path"] == str(tmp_path / "x.safetensors")
    assert done("import", tmp_path / "x.safetensors", "c")["tokens"] == saved["tokens"] == 2
    assert done("rm", "--yes", "b", "c") == [{"name": "b"}, {"name": "c"}]
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path))
    assert done("cache")["states"] == 0
    assert done("cache", "clear") == {"removed_bytes": 0}
