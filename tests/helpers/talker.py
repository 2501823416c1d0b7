"""A model of a conversation without weights: what it says depends on everything that it has read, and on no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helpers.actor import CONFIG, END, ByteTokenizer
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelInfo
from rwkv_cli.model import Model
from rwkv_cli.reporting import Progress
from rwkv_cli.text.templates import get_template

Array = NDArray[np.float32]

LETTERS = [byte + 1 for byte in b"abcdefghijklmnopqrstuvwxyz    \n"]


def read(value: float, tokens: Iterable[int]) -> float:
    """A talker's state after tokens, from its state before them."""
    for token in tokens:
        value = (value * 31 + token) % 65_521
    return value


class Talker(Backend):
    """A backend whose state is a number in which each token counts, and whose words come from that number.

    In `script` are texts that it says instead, by what it has read last.
    """

    name = kernel = "talker"
    config = CONFIG

    def __init__(self, script: Mapping[str, str] | None = None) -> None:
        self.script = script or {}
        self.tokens_read = 0
        self.heard = b""

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """See `Backend.forward`."""
        for token in tokens:
            state.shift_att[:] = read(state.shift_att[0, 0], [token])
            if progress:
                progress(1)
        self.tokens_read += len(tokens)
        self.heard = (self.heard + bytes(token - 1 for token in tokens if token))[-1000:]
        return self.logits(int(state.shift_att[0, 0]))

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """See `Backend.forward_all`."""
        return np.stack([self.forward([token], state) for token in tokens])

    def logits(self, value: int) -> Array:
        """The logits [V] in a state: random letters, or the next byte of what the script says here."""
        logits = np.full(CONFIG.vocab_size, -50, np.float32)
        for after, text in self.script.items():
            words = text.encode()
            for said in range(len(words) + 1):
                if self.heard.endswith(after.encode() + words[:said]):
                    logits[words[said] + 1 if said < len(words) else END] = 50
                    return logits
        logits[LETTERS] = np.random.default_rng(value).normal(0, 1, len(LETTERS))
        return logits


def talking(script: Mapping[str, str] | None = None, template: str = "dialogue") -> Model:
    """A model that talks. `script` is as in `Talker`."""
    info = ModelInfo(CONFIG, "int8", None, get_template(template), {}, {"name": "talker", "sha256": "0" * 64})
    return Model(info, Path("talker.safetensors"), ByteTokenizer(), Talker(script))
