"""Tasks with one right answer, for a model that is trained on nothing else: see `train_reasoning.py`.

Every example is text that begins after the end-of-document token. What the model has to say is marked: tokens that
follow the question in a written answer, or, in a *stream*, a label at every element, which is not part of the text.

    A5:<21453><13245>...    stream: the product so far, an element of the alternating group
    S5:[21345]...           stream: the same in the symmetric group, which has 120 elements
    M7:3615...              stream: the sum so far modulo 7; all moduli from 2 to 9
    K:a3f7a1?a1?f7          registers: after ?a the digit last stored in a
    W:<..><..>=<..><..>=    a walk through A5: after = the product of everything since the last =, which then counts as
                            the first element of what follows; so the state is written down now and then
    R:stone=enots           a list, backwards
    +:47+85=...             addition with its steps:        7+5+0=12,4+8+1=13,:132
    *:23*45=...             multiplication with its steps:  3*5+0=15,2*5+1=11,:115;...

Only NumPy is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

END = 0
"""The token that ends a document and begins the next one."""

N_BYTES = 256
TASKS = ("a5", "s5", "mod", "walk", "registers", "reverse", "add", "multiply")
STREAMS = ("a5", "s5", "mod")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
REGISTERS = LETTERS[:8]
MODULI = range(2, 10)


class Group:
    """A group of permutations of five things: its elements, how they are written, and their products."""

    def __init__(self, permutations: list[tuple[int, ...]], first_token: int, brackets: str) -> None:
        """The i-th permutation is the token `first_token + i`."""
        self.permutations = np.array(permutations)
        self.first_token = first_token
        self.names = [brackets[0] + "".join(str(i + 1) for i in p) + brackets[1] for p in permutations]
        index = {p: i for i, p in enumerate(permutations)}
        self.product = np.array([[index[tuple(p[i] for i in q)] for q in permutations] for p in permutations])
        """product[i, j] is the index of the permutation that applies j first, then i."""

    def __len__(self) -> int:
        return len(self.names)

    def running(self, elements: NDArray[Any]) -> NDArray[Any]:
        """The products so far of indices [n]: each new element is multiplied from the left."""
        return np.array(list(itertools.accumulate(elements, lambda so_far, new: self.product[new, so_far])))


def _is_even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


_ALL = list(itertools.permutations(range(5)))
A5 = Group([p for p in _ALL if _is_even(p)], N_BYTES + 1, "<>")
S5 = Group(_ALL, A5.first_token + len(A5), "[]")
VOCAB_SIZE = S5.first_token + len(S5)


def vocabulary() -> bytes:
    """The vocabulary in the format of `rwkv_vocab_v20230424.txt`: 256 bytes, 60 elements of A5, 120 of S5."""
    strings: list[bytes] = [bytes([byte]) for byte in range(N_BYTES)]
    strings += [name.encode() for group in (A5, S5) for name in group.names]
    return "".join(f"{i} {string!r} {len(string)}\n" for i, string in enumerate(strings, 1)).encode()


def encode(text: str) -> list[int]:
    """The tokens of ASCII text without elements of groups."""
    return [byte + 1 for byte in text.encode()]


@dataclass(frozen=True)
class Example:
    """Tokens, and beside each the token that the model should give after it; -1 where it is not asked."""

    tokens: list[int]
    targets: list[int]

    def __len__(self) -> int:
        return len(self.tokens)


def stream(prefix: str, tokens: list[int], labels: list[int]) -> Example:
    """A label at every token."""
    begin = [END, *encode(prefix)]
    return Example(begin + tokens, [-1] * len(begin) + labels)


def written(prompt: str, answer: str) -> Example:
    """A question and its answer, which ends with the end of the document."""
    tokens = [END, *encode(prompt + answer)]
    asked = len(encode(prompt))
    return Example(tokens, [-1] * asked + [*tokens[asked + 1 :], END])


# ------------------------------------------------------------------------------------------------ streams and walks


def word_problem(group: Group, prefix: str, length: int, rng: np.random.Generator) -> Example:
    """Random elements; the label is the product so far."""
    elements = rng.integers(len(group), size=length)
    labels = group.running(elements)
    return stream(prefix, (elements + group.first_token).tolist(), (labels + group.first_token).tolist())


def counter(modulus: int, length: int, rng: np.random.Generator) -> Example:
    """Random digits; the label is their sum so far."""
    digits = rng.integers(10, size=length)
    labels = np.cumsum(digits) % modulus
    zero = ord("0") + 1
    return stream(f"M{modulus}:", (digits + zero).tolist(), (labels + zero).tolist())


def walk(rng: np.random.Generator, longest: int = 6) -> Iterator[tuple[int, int]]:
    """Tokens and targets without an end: the product so far, up to `longest` more elements, and an = ; again and again.

    The label of an element is the product since the last = .
    """
    yield from ((token, -1) for token in (END, *encode("W:")))
    equals = encode("=")[0]
    state = int(rng.integers(len(A5)))
    while True:
        elements = np.array([state, *rng.integers(len(A5), size=int(rng.integers(1, longest + 1)))])
        products = A5.running(elements)
        yield from zip(
            [*(elements + A5.first_token).tolist(), equals],
            [*(products + A5.first_token).tolist(), int(products[-1]) + A5.first_token],
            strict=True,
        )
        state = int(products[-1])


def registers(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Tokens and targets without an end: a letter and a digit store it; after ? and a letter comes what it holds."""
    yield from ((token, -1) for token in (END, *encode("K:")))
    held: dict[str, str] = {}
    while True:
        letter = REGISTERS[rng.integers(len(REGISTERS))]
        if letter in held and rng.random() < 0.4:
            ask, name, digit = encode("?" + letter + held[letter])
            yield from ((ask, -1), (name, digit), (digit, -1))
        else:
            held[letter] = str(rng.integers(10))
            yield from ((token, -1) for token in encode(letter + held[letter]))


ENDLESS = {"walk": walk, "registers": registers}


def first(pairs: Iterator[tuple[int, int]], length: int) -> Example:
    """The first tokens of an endless example: at least `length`, and as many as it takes to end with a target."""
    made = Example([], [])
    for token, target in pairs:
        made.tokens.append(token)
        made.targets.append(target)
        if len(made) >= length and target >= 0:
            break
    return made


# ---------------------------------------------------------------------------------------------- questions in writing


def reversal(rng: np.random.Generator, longest: int = 20) -> tuple[str, str]:
    """A list of letters, and the same backwards."""
    letters = "".join(LETTERS[i] for i in rng.integers(26, size=int(rng.integers(2, longest + 1))))
    return f"R:{letters}=", letters[::-1]


def _number(rng: np.random.Generator, digits: int) -> int:
    return int(rng.integers(10 ** (digits - 1), 10**digits)) if digits > 1 else int(rng.integers(10))


def _adding(a: int, b: int) -> str:
    """The steps of a sum, a digit each from the right: digit + digit + carry = carry and digit; and the sum."""
    steps, carry = "", 0
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = x + y + carry
        steps += f"{x}+{y}+{carry}={total:02},"
        carry = total // 10
    return f"{steps}:{a + b}"


def _times(a: int, digit: int) -> str:
    """The steps of a product with one digit, and the product."""
    steps, carry = "", 0
    for x in reversed(str(a)):
        total = int(x) * digit + carry
        steps += f"{x}*{digit}+{carry}={total:02},"
        carry = total // 10
    return f"{steps}:{a * digit}"


def addition(rng: np.random.Generator, longest: int = 6) -> tuple[str, str]:
    """Two numbers, and the steps of their sum."""
    a, b = (_number(rng, int(rng.integers(1, longest + 1))) for _ in range(2))
    return f"+:{a}+{b}=", _adding(a, b)


def multiplication(rng: np.random.Generator) -> tuple[str, str]:
    """A number of up to three digits and one of up to two: its multiples, shifted, and the steps of their sum."""
    a, b = _number(rng, int(rng.integers(1, 4))), _number(rng, int(rng.integers(1, 3)))
    answer = _times(a, b % 10)
    if b > 9:
        tens = a * (b // 10) * 10
        answer += f";{_times(a, b // 10)}0;{_adding(a * (b % 10), tens)}"
    return f"*:{a}*{b}=", answer


QUESTIONS: dict[str, Callable[[np.random.Generator], tuple[str, str]]] = {
    "reverse": reversal,
    "add": addition,
    "multiply": multiplication,
}


def example(task: str, length: int, rng: np.random.Generator) -> Example:
    """One example; streams have `length` elements, what is endless about as many tokens."""
    if task in QUESTIONS:
        return written(*QUESTIONS[task](rng))
    if task == "a5":
        return word_problem(A5, "A5:", length, rng)
    if task == "s5":
        return word_problem(S5, "S5:", length, rng)
    if task == "mod":
        return counter(int(rng.choice(MODULI)), length, rng)
    return first(ENDLESS[task](rng), length)


# ------------------------------------------------------------------------------------------ questions as a test sheet


@cache
def _pieces() -> list[str]:
    """The string of every token, for ASCII ones."""
    return ["", *(chr(byte) for byte in range(N_BYTES)), *A5.names, *S5.names]


def decode(tokens: list[int]) -> str:
    """The text of tokens."""
    return "".join(_pieces()[token] for token in tokens)


def question(task: str, length: int, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt and its one right answer; of what is a stream in training, the last label only."""
    if task in QUESTIONS:
        return QUESTIONS[task](rng)
    made = example(task, length, rng)
    last = max(i for i, target in enumerate(made.targets) if target >= 0)
    return decode(made.tokens[1 : last + 1]), decode([made.targets[last]])
