import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli import paths
from rwkv_cli.catalog import model_store, reference, registry
from rwkv_cli.catalog.entries import Entry, make_entries, read_tables
from rwkv_cli.catalog.names import is_name
from rwkv_cli.catalog.registry import entries, locate
from rwkv_cli.errors import CheckpointError, MissingModelError, RegistryError, RwkvError, UsageError
from rwkv_cli.text import generations
from rwkv_cli.text.templates import find_template, templates
from rwkv_cli.toml_file import line_of


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The user's own models.toml; nothing is known from before."""
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "config").mkdir()
    entries.cache_clear()
    yield tmp_path / "config" / "models.toml"
    entries.cache_clear()


def test_every_entry_is_whole():
    assert registry.DEFAULT in entries()
    for entry in entries().values():
        assert entry.description
        assert entry.license == "Apache-2.0"
        assert entry.template in templates()
        if entry.repository is None:
            assert entry.name == registry.DEFAULT
            continue
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repository)
        assert entry.file.endswith(".pth")
        assert re.fullmatch(r"[0-9a-f]{40}", entry.revision)  # a branch loses its files one day
        assert not entry.sampling  # the template has it
        assert entry.parameters is not None
        assert entry.bytes is None or 0 < entry.bytes / (2 * entry.parameters) - 1 < 1e-3
        assert entry.bytes is None or entry.bytes > 100e6
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert all(mirror.endswith(f"/{entry.file}") for mirror in entry.mirrors)
        size = entry.name.rpartition("-")[2]
        assert size in entry.file.lower()
        assert {entry.parameters} == {each.parameters for each in entries().values() if size in each.name}


def test_names_and_templates_of_generations():
    found = registry.published()
    assert len(found) == 14
    for entry, published in found:
        assert entry.name == published.name
        assert entry.template == generations.template_of(published.generation)
        assert find_template(entry.file, 65536) == entry.template
        assert len(entry.mirrors) == 2


@pytest.mark.parametrize("size", ["0.1b", "0.4b", "1.5b", "2.9b", "7.2b", "13.3b"])
def test_a_short_name_is_the_newest_model_whose_checksum_is_known(size):
    verifiable = [
        found for entry, found in registry.published() if found.size == size and entry.sha256 is not None
    ]
    newest = max(verifiable, key=lambda found: found.order).name
    assert entries()[f"g1-{size}"].name == entries()[size].name == newest


def test_short_names():
    short = {"latest": "g1k-1.5b", "7.2b": "g1j-7.2b", "13.3b": "g1k-13.3b", "1.5b": "g1k-1.5b"}
    assert {alias: entries()[alias].name for alias in short} == short


def test_names_and_aliases_are_distinct():
    models = {entry.name: entry for entry in entries().values()}
    names = [name for entry in models.values() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names)) == len(entries())
    assert all(name == name.lower() for name in names)


def test_the_format_of_the_file(tmp_path, monkeypatch):
    file = tmp_path / "models.toml"
    file.write_text(
        '[small]\ndescription = "d"\nrepository = "o/r"\nfile = "f.pth"\nbytes = 1_000\naliases = ["s"]\n'
    )
    monkeypatch.setattr(paths, "registry_file", lambda: file)
    entries.cache_clear()
    try:
        expected = Entry("small", "d", "o/r", "f.pth", bytes=1000, aliases=("s",))
        assert entries() == {"small": expected, "s": expected}
    finally:
        entries.cache_clear()


@pytest.mark.parametrize("name", [None, "gosling", "Gosling", "default"])
def test_the_model_that_comes_with_the_program(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(name) == paths.EMBEDDED_MODEL
    assert paths.EMBEDDED_MODEL.is_file()


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gosling").touch()
    assert locate("gosling") == Path("gosling")
    assert locate(tmp_path / "gosling") == tmp_path / "gosling"
    assert locate(str(tmp_path)) == tmp_path


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "x.pth").touch()
    assert locate("~/x.pth") == tmp_path / "x.pth"


@pytest.mark.parametrize("name", ["g1d-0.1b", "0.1b", "G1D-0.1B"])
def test_a_known_model_that_is_not_here_says_where_it_is(name):
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    message = str(caught.value)
    assert "the model g1d-0.1b is not on this machine" in message
    assert "`rwkv pull g1d-0.1b`" in message
    assert caught.value.reference == "g1d-0.1b"


@pytest.mark.parametrize(
    ("name", "near"), [("goslin", "gosling"), ("wolrd-0.1b", "world-0.1b"), ("G1-0.1", "g1-0.1b")]
)
def test_a_name_with_a_typo_is_corrected(name, near):
    with pytest.raises(UsageError, match=f"unknown model {name}; did you mean {near}"):
        locate(name)


def test_at_most_three_names_are_suggested():
    with pytest.raises(UsageError, match=r"unknown model world-0\.2b; did you mean [^,]*, [^,]* or [^,]*\?$"):
        locate("world-0.2b")


def test_a_name_like_no_other_gets_the_ways_to_name_one():
    with pytest.raises(UsageError) as caught:
        locate("xyzzy")
    assert str(caught.value) == (
        "unknown model xyzzy: give a path, a name from `rwkv models list --known`, or hf:OWNER/REPO"
    )


@pytest.mark.parametrize("path", ["model.pth", "folder/model", "/no/where", "./gosling"])
def test_what_looks_like_a_path_is_a_missing_file(path):
    with pytest.raises(CheckpointError, match=f"there is no file {path}"):
        locate(path)
    if "/" not in path or path.startswith("/"):
        with pytest.raises(CheckpointError, match=f"there is no file {path}"):
            locate(Path(path))


# ------------------------------------------------------------------------------------------ the user's own file


def test_the_users_file_is_merged_field_by_field(own):
    own.write_text(
        '[mine]\nrepository = "me/mine"\nfile = "a/b.pth"\naliases = ["latest"]\n'
        '["world-0.1b"]\ndescription = "other words"\n["world-0.4b"]\nfile = "new.pth"\n'
        '["world-1.5b"]\nurl = "https://example.org/x.pth"\n["0.1b"]\nrepository = "me/small"\n'
    )
    known = entries()
    assert known["latest"] == known["mine"]
    assert known["world-0.1b"].description == "other words"
    assert known["world-0.1b"].sha256
    assert known["world-0.1b"].revision != "main"
    changed = known["world-0.4b"]
    assert (changed.file, changed.repository) == ("new.pth", "BlinkDL/rwkv-7-world")
    assert changed.sha256 is changed.bytes is None  # they were of another file
    assert changed.revision == "main"  # the commit held that file, and need not hold this one
    assert (known["world-1.5b"].url, known["world-1.5b"].repository) == ("https://example.org/x.pth", None)
    assert known["0.1b"].repository == "me/small"  # a name of its own comes before an alias of ours


def test_mirrors_are_of_one_file(own):
    """Where the user changes the place or the content, ours no longer apply; otherwise the user's replace them."""
    own.write_text(
        '["g1k-1.5b"]\nmirrors = ["https://example.org/x.pth", "hf:me/copy@v1/a/x.pth"]\n'
        '["g1j-1.5b"]\nfile = "mine.pth"\n["g1g-1.5b"]\nrevision = "main"\n["g1k-13.3b"]\nlicense = "none"\n'
    )
    known = entries()
    assert known["latest"].mirrors == ("https://example.org/x.pth", "hf:me/copy@v1/a/x.pth")
    assert known["latest"].sha256
    assert known["g1j-1.5b"].mirrors == known["g1g-1.5b"].mirrors == ()
    assert len(known["13.3b"].mirrors) == 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[a]\nrepository = "o/r"\nbytes = "5"', 3, "bytes of [a] is '5'; it must be a whole number above 0"),
        ("[a]\n\nbytes = -1", 3, "a whole number above 0"),
        ("[a]\nbytes = true", 2, "a whole number above 0"),
        ("[a]\nsha256 = 'x'", 2, "64 hexadecimal digits"),
        ("[a]\n# c\n  'repository' = 1", 3, "owner/name"),
        ("[a]\nrepository = '../..'", 2, "owner/name"),
        ("[a]\nrepository = 'o/r/x'", 2, "owner/name"),
        ("[a]\nrepository = 'o/r'\nfile = '../x.pth'", 3, "the name of a file in the repository"),
        ("[a]\nfile = '/etc/passwd'", 2, "the name of a file in the repository"),
        ("[a]\nfile = 'a\\b'", 2, "the name of a file in the repository"),
        ("[a]\nrevision = 'a b'", 2, "a branch"),
        ("[a]\nurl = 'file:///etc/passwd'", 2, "a URL"),
        ("[a]\ntemplate = 'none'", 2, "one of raw"),
        ("[a]\nsampling = { temperature = 'hot' }", 2, "a table of sampling settings"),
        ("[a]\nsampling = { temperature = -1 }", 2, "a table of sampling settings"),
        ("[a]\nsampling = { banana = 1 }", 2, "a table of sampling settings"),
        ("[a.sampling]\ntemperature = 'hot'", 1, "a table of sampling settings"),
        ("[a]\naliases = 'b'", 2, "a list of names"),
        ("[a]\naliases = ['../b']", 2, "a list of names"),
        ("[a]\nmirrors = 'https://x.y/z'", 2, "a list of files, each hf:OWNER/REPO/FILE or a URL"),
        ("[a]\nurl = 'https://x.y/z'\nmirrors = ['hf:o/r']", 3, "a list of files"),
        ("[a]\nurl = 'https://x.y/z'\nmirrors = ['hf:o/../x']", 3, "a list of files"),
        ("[a]\nurl = 'https://x.y/z'\nmirrors = ['hf:o/r@a b/x']", 3, "a list of files"),
        (
            "[a]\nurl = 'https://x.y/z'\nmirrors = ['https://x.y/z', 'file:///etc/passwd']",
            3,
            "a list of files",
        ),
        ("[a]\nsize = 1", 2, "unknown field 'size'"),
        ("[b]\n['../a']", 2, "cannot be the name of a model"),
        ("[b]\n[con]", 2, "cannot be the name of a model"),
        ("a = 1", 1, "must be a table"),
        ("[b]\naliases = ['a']\n\n[a]\n", 2, "given twice"),
    ],
)
def test_what_is_wrong_in_it_is_told_with_the_line(own, text, line, message):
    own.write_text(text)
    with pytest.raises(RegistryError) as caught:
        entries()
    assert str(caught.value).startswith(f"{own}, line {line}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a\n", "is not valid TOML: .*line 1"),
        ("[a]\nx = 1\nx = 2", "is not valid TOML: .*line 3"),
        ("[a]", r"\[a\] has neither a repository nor a url"),
        ("[a]\nurl = 'https://x.y/z'\nrepository = 'o/r'", r"\[a\] has both a url and a repository"),
        ("[a]\nfile = 'x'", r"\[a\] has a file but no repository"),
        ("[a]\nrepository = 'o/r'\nmirrors = ['hf:o/s/x']", r"\[a\] has mirrors but no file or url"),
        ("x = " + "[" * 5000, "is (nested too deeply|not valid TOML)"),
        ("#" * 2_000_000, "is too large"),
        ("[a]\nbytes = " + "9" * 5000, "models.toml has a number of too many digits"),
        ("[a]\nbytes = " + "9" * 4000, "line 2: bytes of .a. is '9{60}'; it must be a whole number"),
        ("[a]\nbytes = 0x" + "f" * 5000, "line 2: bytes of .a. is too large; it must be a whole number"),
        ("[a]\naliases = [0x" + "f" * 5000 + "]", "line 2: aliases of .a. is too large; it must be a list"),
        ("[a]\nsampling = {top_k = 0x" + "f" * 5000 + "}", "line 2: sampling of .a. is too large"),
    ],
)
def test_what_else_may_be_wrong(own, text, message):
    own.write_text(text)
    with pytest.raises(RegistryError, match=message):
        entries()
    own.write_bytes(b"\xff")
    with pytest.raises(RegistryError, match="is not valid UTF-8 text"):
        entries()


@given(st.text(alphabet="[]ab.='\"\n0{}#", max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("toml") / "models.toml"
    file.write_text(text, encoding="utf-8")
    with contextlib.suppress(RegistryError):
        make_entries(file, read_tables(file))
    assert line_of(text, "a", "b") >= 1


# ------------------------------------------------------------------------------------------ references


@pytest.mark.parametrize(
    ("text", "name", "shown"),
    [
        ("hf:Owner/Repo", "owner--repo", "hf:Owner/Repo"),
        ("hf:o/r/x.pth", "o--r--x", "hf:o/r/x.pth"),
        ("hf:o/r@v1/x.pth", "o--r--x--v1", "hf:o/r@v1/x.pth"),
        ("hf:o/r/g1k-1.5b-20260930", "o--r--g1k-1.5b-20260930", "hf:o/r/g1k-1.5b-20260930"),
        ("hf:o/r/rwkv7-2.9b", "o--r--rwkv7-2.9b", "hf:o/r/rwkv7-2.9b"),
        ("https://huggingface.co/o/r/resolve/main/x.pth?download=true", "o--r--x", "hf:o/r/x.pth"),
        ("https://huggingface.co/o/r/blob/v1/x.pth", "o--r--x--v1", "hf:o/r@v1/x.pth"),
        ("hf://o/r", "o--r", "hf:o/r"),
        ("HF://o/r@v1/x.pth", "o--r--x--v1", "hf:o/r@v1/x.pth"),
        ("hf:o/r.git", "o--r", "hf:o/r"),
        ("hf:o/r.git@v1", "o--r--v1", "hf:o/r@v1"),
        ("hf://o/r.git/x.pth", "o--r--x", "hf:o/r/x.pth"),
        ("hf:o/r/x.git", "o--r--x", "hf:o/r/x.git"),
        ("https://huggingface.co/o/r.git", "o--r", "hf:o/r"),
        ("https://hf.co/o/r.git/", "o--r", "hf:o/r"),
    ],
)
def test_references(text, name, shown):
    found = registry.resolve(text)
    assert (found.name, found.text) == (name, shown)
    assert registry.resolve(found.text) == found


def test_a_reference_to_a_known_model_has_its_name():
    known = registry.resolve("World-0.4b")
    assert known.name == "world-0.4b"
    assert registry.resolve(known.text) == known
    file = "BlinkDL/rwkv-7-world{}/RWKV-x070-World-0.4B-v2.9-20250107-ctx4096.pth"
    assert registry.resolve("hf:" + file.format("")) == known  # without a revision: the one in models.toml
    assert registry.resolve("https://huggingface.co/" + file.format("/resolve/main")) == known
    assert registry.resolve("hf:" + file.format("@" + "c" * 40)).entry is None


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:o",
        "hf:../..",
        "hf:o/..",
        "hf:o/r/../x",
        "hf:o/r//x",
        "hf:o/r@../x",
        "hf:o/r/a\\b",
        "hf:o/r@a b",
        "https://",
        "hf:o/r/\x1b",
        "https://exa mple.org/x",
        "hf:o/r/..",
        "hf:/etc/passwd",
        "hf:a--b/c",
        "hf:///etc/passwd",
        "hf://",
        "hf://datasets/a/b",
        "hf:spaces/a",
        "hf:o/.git",
    ],
)
def test_references_that_cannot_be(text):
    with pytest.raises(UsageError):
        registry.resolve(text)


@given(st.text(max_size=80))
def test_a_name_of_a_reference_stays_in_its_folder(text):
    for shown in (f"hf:{text}", f"hf:o/r/{text}", f"https://x.y/{text}"):
        try:
            name = registry.resolve(shown).name
        except UsageError:
            continue
        assert is_name(f"{name}-int8")
        assert model_store.path_of(f"{name}-int8").parent == model_store.folder()


# ------------------------------------------------------------------------------------------ the store


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "A B", "a\\b", "x" * 90, ".x", "nul", "a..b"])
def test_names_that_would_leave_the_store(name):
    with pytest.raises(UsageError, match="is not a valid model name"):
        model_store.path_of(name)
    assert model_store.find(name) is None


def test_a_model_of_the_store_has_names():
    model_store.folder().mkdir(parents=True)
    int4 = model_store.path_of("world-0.1b-int4")
    int4.touch()
    assert locate("World-0.1b") == locate("world-0.1b") == locate("world-0.1b-int4") == int4
    int8 = model_store.path_of("world-0.1b-int8")
    int8.touch()
    assert locate("world-0.1b") == int8
    assert locate("hf:BlinkDL/rwkv-7-world/RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth") == int8
    with pytest.raises(UsageError, match=r"did you mean world-0.1b-int8"):
        locate("world-0.1b-int9")


def install(*names):
    model_store.folder().mkdir(parents=True, exist_ok=True)
    for name in names:
        model_store.path_of(name).touch()


def test_a_short_name_that_has_moved_to_another_generation():
    install("g1g-1.5b-int8", "g1d-0.1b-int8", "world-1.5b-int8")
    with pytest.raises(MissingModelError) as caught:
        locate("G1-1.5b")
    assert str(caught.value) == (
        "g1-1.5b now means g1k-1.5b, which is not on this machine: download it with `rwkv pull g1k-1.5b`, "
        "or choose g1g-1.5b, which is here"
    )
    assert caught.value.reference == "g1k-1.5b"
    assert caught.value.problem == "g1-1.5b now means g1k-1.5b, which is not on this machine"
    with pytest.raises(MissingModelError, match=r"^the model g1k-1\.5b is not on this machine: "):
        locate("g1k-1.5b")
    with pytest.raises(MissingModelError, match=r"^the model g1j-7\.2b is not on this machine: "):
        locate("7.2b")
    install("g1l-1.5b-int4", "g1a2-1.5b-int8")
    assert locate("latest") == model_store.path_of("g1l-1.5b-int4")  # a newer one than models.toml knows


def test_a_model_of_a_generation_that_is_not_known_by_name():
    install("g1l-1.5b-int4", "g1a-0.1b-int8")
    assert locate("g1l-1.5b") == locate("G1L-1.5B") == locate("g1l-1.5b-int4")
    assert locate("g1a-0.1b") == model_store.path_of("g1a-0.1b-int8")
    with pytest.raises(
        UsageError, match=r"^unknown model g1m-1\.5b: .* is g1k-1\.5b; `rwkv pull g1k-1\.5b --newest`"
    ):
        locate("g1m-1.5b")
    with pytest.raises(UsageError, match=r"unknown model g1b-1\.5b; did you mean"):
        locate("g1b-1.5b")


def test_a_reference_that_was_not_pulled():
    with pytest.raises(MissingModelError, match=r"`rwkv pull hf:o/r/x.pth`"):
        locate("hf:o/r/x.pth")


def test_use_is_noted_for_models_of_the_store_alone(tmp_path):
    model_store.folder().mkdir(parents=True)
    model_store.path_of("a-int8").touch()
    stored = model_store.get("a-int8")
    assert stored.last_used is None
    model_store.note_use(stored.path)
    assert stored.last_used
    model_store.note_use(tmp_path / "b")
    model_store.remove(stored)
    assert model_store.listed() == []
    assert list((model_store.folder() / ".used").iterdir()) == []


def test_a_short_name_means_a_newer_model_that_is_here():
    model_store.folder().mkdir(parents=True)
    older, newer = (model_store.path_of(f"{name}-int8") for name in ("g1g-1.5b", "g1z-1.5b"))
    older.touch()
    with pytest.raises(MissingModelError, match=r"choose g1g-1\.5b, which is here"):
        locate("g1-1.5b")
    newer.touch()
    assert locate("g1-1.5b") == locate("1.5b") == newer
    with pytest.raises(MissingModelError, match=r"the model g1k-1\.5b is not on this machine"):
        locate("g1k-1.5b")


@pytest.mark.parametrize(
    ("page", "means"),
    [
        ("", "hf:Owner/repo-1.5b"),
        ("/", "hf:Owner/repo-1.5b"),
        ("?library=x#files", "hf:Owner/repo-1.5b"),
        ("/tree/main", "hf:Owner/repo-1.5b"),
        ("/tree/main/", "hf:Owner/repo-1.5b"),
        ("/tree/v1", "hf:Owner/repo-1.5b@v1"),
        ("/tree/main/a/b%20c", "hf:Owner/repo-1.5b/a/b c"),
        ("/tree/v1/folder?x=1", "hf:Owner/repo-1.5b@v1/folder"),
        ("/commits/main", "hf:Owner/repo-1.5b"),
        ("/commit/0123abc", "hf:Owner/repo-1.5b@0123abc"),
        ("/tree/refs%2Fpr%2F1", "hf:Owner/repo-1.5b@refs/pr/1"),
        ("/discussions", "hf:Owner/repo-1.5b"),
        ("/discussions/3", "hf:Owner/repo-1.5b"),
        ("/blob/main/a.pth?download=true", "hf:Owner/repo-1.5b/a.pth"),
        ("/resolve/v1/folder/a.pth", "hf:Owner/repo-1.5b@v1/folder/a.pth"),
        ("/raw/main/a.pth", "hf:Owner/repo-1.5b/a.pth"),
    ],
)
@pytest.mark.parametrize(
    "site",
    [
        "https://huggingface.co",
        "http://www.huggingface.co:80",
        "https://hf.co",
        "https://HuggingFace.co",
        "mirror",
    ],
)
def test_the_address_of_a_page_of_the_hub(site, page, means, monkeypatch):
    if site == "mirror":
        monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/hub/")
        site = "http://mirror.example:8080/hub"
    found = reference.parse(f"{site}/Owner/repo-1.5b{page}")
    assert found.text == means
    assert found.url is None
    if "@refs" not in means:
        assert found == reference.parse(means)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/BlinkDL",
        "/datasets/a/b",
        "/spaces/a/b",
        "/docs/hub",
        "/a/b/blob/main",
        "/a/b/tree",
        "/a/b/x/y",
    ],
)
def test_a_page_of_the_hub_without_a_model(path):
    with pytest.raises(UsageError, match="is not the page of a model: write hf:owner/name"):
        reference.parse(f"https://huggingface.co{path}")


@pytest.mark.parametrize(
    "address", ["http://mirror.example:81/a/b", "http://mirror.example:8080/a/b.pth", "https://x.y/a/b"]
)
def test_other_servers_have_files(address, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080")
    assert reference.parse(address).url == address


@pytest.mark.parametrize("find", [registry.resolve, registry.locate])
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("BlinkDL/rwkv7-g1", "; for a repository of the hub write hf:BlinkDL/rwkv7-g1"),
        ("huggingface.co/a/b", "; for an address of the hub write https://huggingface.co/a/b"),
        ("BlinkDL/rwkv7-g1/x.pth", "; for a file of the hub write hf:BlinkDL/rwkv7-g1/x.pth"),
        ("BlinkDL/rwkv7-g1@v1/a/x.gguf", "; for a file of the hub write hf:BlinkDL/rwkv7-g1@v1/a/x.gguf"),
        ("git@hf.co:BlinkDL/rwkv7-g1.git", "; for a repository of the hub write hf:BlinkDL/rwkv7-g1"),
        ("git@huggingface.co:BlinkDL/rwkv7-g1", "; for a repository of the hub write hf:BlinkDL/rwkv7-g1"),
    ],
)
def test_what_is_on_the_hub_is_suggested(find, text, hint):
    with pytest.raises(RwkvError) as raised:
        find(text)
    assert str(raised.value).endswith(hint)


@pytest.mark.parametrize("text", ["folder/model.pth", "a/b/c", "./a", "/a/b"])
def test_a_path_is_no_repository(text):
    with pytest.raises(RwkvError) as raised:
        registry.locate(text)
    assert str(raised.value) == f"there is no file {text}"


def test_a_file_in_a_folder_that_is_here_is_not_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for text in ("mine/x/y.pth", "models/x/y.pth"):
        with pytest.raises(RwkvError, match=r"^there is no file [a-z/]*y\.pth$"):
            registry.locate(text)


@pytest.mark.parametrize(
    "line",
    [
        'url = "ftp://me:S3CRET@host/x?sig=S3CRET"',
        'mirrors = ["ftp://me:S3CRET@host/x?sig=S3CRET", "http://me:S3CRET@host/y"]',
        'sampling = { temperature = "http://me:S3CRET@host/x" }',
    ],
)
def test_an_error_shows_no_secrets_of_addresses(own, line):
    own.write_text(f"[a]\n{line}\n")
    with pytest.raises(RegistryError, match="line 2: ") as raised:
        entries()
    assert "S3CRET" not in str(raised.value)
    assert "://host/x" in str(raised.value)
