"""The wheel, the sdist and an editable install hold the same program, and each of them runs.

Nothing is fetched: builds are not isolated, and new environments borrow the dependencies of this one.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import rwkv_cli
from cpu_kernels.runtime import prebuilt
from cpu_kernels.runtime.targets import TARGETS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

DATA = [
    "rwkv_cli/data/gosling.md",
    "rwkv_cli/data/gosling.safetensors",
    "rwkv_cli/data/world_vocabulary.bin",
    "rwkv_cli/models.toml",
    "rwkv_cli/py.typed",
    "rwkv_cli/server/page/index.html",
    "rwkv_cli/server/page/vendor/marked.LICENSE",
]
CUDA = sorted(path.name for pattern in ("*.cu", "*.cuh") for path in (ROOT / "cuda").glob(pattern))
SDIST_ONLY = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "docs/images/chat.svg",
    "docs/python-api.md",
    "examples/chat.py",
    "hatch_build.py",
    "models.toml",
    "pyproject.toml",
    "scripts/test",
    "tests/project/test_packaging.py",
]


def run(*command, cwd=None, **variables):
    """Run a program to its end, apart from this environment: what it wrote to stdout."""
    mine = ("PYTHON", "VIRTUAL_ENV", "RWKV_MODEL")
    apart = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=apart | {"PYTHONUTF8": "1"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(*arguments, into):
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", into, *arguments)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, the wheel that is made of the sdist, and the wheel that is made of the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, into=folder / "by-sdist")
    build("--wheel", ROOT, into=folder / "direct")
    name = f"rwkv_cli-{PROJECT['version']}"
    wheel = f"{name}-py3-none-any.whl"
    return folder / "by-sdist" / f"{name}.tar.gz", folder / "by-sdist" / wheel, folder / "direct" / wheel


class Environment:
    """A fresh virtual environment with the dependencies of this one, but not its rwkv-cli."""

    def __init__(self, folder):
        venv.create(folder, with_pip=False)
        self.folder = folder
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / Path(sys.executable).name
        (self.packages() / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def packages(self):
        return Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())

    def install(self, *what):
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
        run(sys.executable, "-m", "pip", "--python", self.python, "install", *options, *what)

    def package(self, name):
        """The folder of an imported package; from a neutral place, where a checkout cannot be found by chance."""
        return Path(
            run(self.python, "-c", f"import {name}; print({name}.__file__)", cwd=self.folder).strip()
        ).parent

    def story(self, *arguments, **variables):
        prompt = ("--prompt", "Once upon a time", "-n", 8, "--seed", 1, "--quiet")
        return run(self.scripts / "rwkv", "generate", *prompt, *arguments, cwd=self.folder, **variables)


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "venv")


def test_the_wheel_holds_the_whole_program_and_nothing_else(built):
    with zipfile.ZipFile(built[2]) as wheel:
        names = set(wheel.namelist())
        metadata = message_from_bytes(wheel.read(f"rwkv_cli-{PROJECT['version']}.dist-info/METADATA"))
    modules = [path for top in ("rwkv_cli", "cpu_kernels") for path in (ROOT / top).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in modules} <= names
    assert set(DATA) <= names
    assert {f"rwkv_cli/cuda/{name}" for name in CUDA} == {n for n in names if n.startswith("rwkv_cli/cuda/")}
    assert {name.split("/")[0] for name in names} == {
        "rwkv_cli",
        "cpu_kernels",
        f"rwkv_cli-{PROJECT['version']}.dist-info",
    }
    built_for = {name.split("/")[2] for name in names if name.startswith("cpu_kernels/prebuilt/")}
    assert prebuilt.target() in built_for or not prebuilt.target()
    assert built_for <= set(TARGETS)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(needed) == sorted(PROJECT["dependencies"])


def test_the_sdist_holds_what_tests_and_documents_need(built):
    top = f"rwkv_cli-{PROJECT['version']}/"
    with tarfile.open(built[0]) as sdist:
        names = {name.removeprefix(top) for name in sdist.getnames()}
    in_checkout = {name for name in DATA if name != "rwkv_cli/models.toml"}
    assert {f"cuda/{name}" for name in CUDA} <= names
    assert {*SDIST_ONLY, *in_checkout, "rwkv_cli/__init__.py", "cpu_kernels/__init__.py"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv", "build/", "dist/"))]


def test_the_sdist_builds_the_same_wheel(built):
    contents = []
    for path in built[1:]:
        with zipfile.ZipFile(path) as wheel:
            contents.append({entry.filename: (entry.file_size, entry.CRC) for entry in wheel.infolist()})
    others = [
        f"/prebuilt/{name}/" for name in TARGETS if name != prebuilt.target()
    ]  # that the checkout may have
    contents = [
        {name: facts for name, facts in content.items() if not any(other in name for other in others)}
        for content in contents
    ]
    contents = [
        content | {record: None for record in content if record.endswith("/RECORD")} for content in contents
    ]
    assert contents[0] == contents[1]


def test_an_installed_wheel_runs(built, environment):
    environment.install(built[2])
    for name in ("rwkv_cli", "cpu_kernels"):
        assert environment.package(name).is_relative_to(environment.folder)
    cache = environment.folder / "cache"
    assert environment.story(RWKV_CACHE_DIR=str(cache)).strip()
    assert cache.exists() == (prebuilt.target() is None)  # otherwise nothing had to be compiled
    assert run(environment.scripts / "rwkv", "--version").split() == ["rwkv", PROJECT["version"]]


def test_an_installed_sdist_runs(built, environment):
    environment.install(built[0])
    assert environment.package("rwkv_cli").is_relative_to(environment.folder)
    assert environment.story(
        "--device", "reference"
    ).strip()  # the wheel's kernels are these, and take long to compile


def test_an_editable_install_runs(environment):
    environment.install("--editable", ROOT)
    for name in ("rwkv_cli", "cpu_kernels"):
        assert environment.package(name) == ROOT / name
    assert environment.story().strip()


def test_versions_agree():
    assert rwkv_cli.__version__ == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
