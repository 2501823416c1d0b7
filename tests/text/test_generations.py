"""Names of published models, and their order."""

import random

import pytest

from rwkv_cli.text import generations
from rwkv_cli.text.generations import Published

FILE = "rwkv7-g1k-1.5b-20260930-ctx25600.pth"


def test_the_parts_of_a_name() -> None:
    published = generations.parse(FILE)
    assert published == Published(FILE, "rwkv7", "g1k", "1.5b", "20260930", 25600)
    assert published.name == "g1k-1.5b"
    assert published.day == "2026-09-30"


@pytest.mark.parametrize(
    "file",
    [
        "RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth",
        "rwkv7-g1-tiny.pth",
        "rwkv7-g1k-1.5b-20260930-ctx25600.gguf",
        "old/rwkv7-g1k-1.5b-20260930-ctx25600.pth",
        "rwkv7-g1k-1.5b-2026093-ctx25600.pth",
        "rwkv7-g1k-1.5b-20260930-ctx25600.pth\n",
        "rwkv7-g128-1.5b-20260930-ctx25600.pth",
        "rwkv7-g1k-١.5b-20260930-ctx25600.pth",
        "",
    ],
)
def test_other_names(file: str) -> None:
    assert generations.parse(file) is None


def test_generations_in_their_order() -> None:
    ordered = "g0 g0a g0b g1 g1a g1a2 g1a3 g1ab g1b g1d g1g g1h g1k g1z g2 g2a".split()
    mixed = random.Random(0).sample(ordered, len(ordered))
    assert sorted(mixed, key=generations.order_of) == ordered


@pytest.mark.parametrize(
    ("generation", "template"),
    [
        ("g0", "g1"),
        ("g1", "g1"),
        ("g1a2", "g1"),
        ("g1g", "g1"),
        ("g1g9", "g1"),
        ("g1h", "g1h"),
        ("g1h2", "g1h"),
        ("g1z", "g1h"),
        ("g2", "g1h"),
        ("g2a", "g1h"),
    ],
)
def test_the_template_of_a_generation(generation: str, template: str) -> None:
    assert generations.template_of(generation) == template


def test_the_newest_of_each_size() -> None:
    newest = generations.newest(
        [
            "README.md",
            "rwkv7-g1j-13.3b-20260831-ctx16384.pth",
            "rwkv7-g1j-1.5b-20261231-ctx16384.pth",
            "rwkv7-g1k-1.5b-20260930-ctx25600.pth",
            "rwkv7-g1k-1.5b-20261002-ctx25600.pth",
            "rwkv7-g1i-2.9b-20260805-ctx16384.pth",
            "rwkv7a-g1z-2.9b-20270101-ctx16384.pth",
            "rwkv7b-g1z-0.1b-20270101-ctx16384.pth",
        ]
    )
    assert {size: published.file for size, published in newest.items()} == {
        "1.5b": "rwkv7-g1k-1.5b-20261002-ctx25600.pth",
        "2.9b": "rwkv7-g1i-2.9b-20260805-ctx16384.pth",
        "13.3b": "rwkv7-g1j-13.3b-20260831-ctx16384.pth",
    }
    assert list(newest) == ["1.5b", "2.9b", "13.3b"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("g1k-1.5b", ("g1k", "1.5b")),
        ("g1-13.3b", ("g1", "13.3b")),
        ("g1k-1.5b-int8", None),
        ("world-1.5b", None),
        ("1.5b", None),
    ],
)
def test_short_names(name: str, expected: tuple[str, str] | None) -> None:
    assert generations.split_name(name) == expected


def test_dates_of_other_names() -> None:
    assert generations.day_of("RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth") == "2024-12-10"
    assert generations.day_of("rwkv7-g1-tiny.pth") is None
