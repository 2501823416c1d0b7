"""A model of a conversation without weights: what it says depends on everything that it has read, and on no more."""

from pathlib import Path

import numpy as np

from helpers.actor import CONFIG, END, ByteTokenizer
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.files.model_file import ModelInfo
from rwkv_cli.model import Model

LETTERS = [byte + 1 for byte in b"abcdefghijklmnopqrstuvwxyz    \n"]


def read(value, tokens):
    """What a talker's state is after tokens, from what it was before."""
    for token in tokens:
        value = (value * 31 + token) % 65_521
    return value


class Talker(Backend):
    """A backend whose state is a number in which each token counts, and whose words come from that number.

    In `script` are texts that it says instead, by what it has read last.
    """

    name = kernel = "talker"
    config = CONFIG

    def __init__(self, script=None):
        self.script = script or {}
        self.tokens_read = 0
        self.heard = b""

    def forward(self, tokens, state, progress=None):
        for token in tokens:
            state.shift_att[:] = read(state.shift_att[0, 0], [token])
            if progress:
                progress(1)
        self.tokens_read += len(tokens)
        self.heard = (self.heard + bytes(token - 1 for token in tokens if token))[-1000:]
        return self.logits(int(state.shift_att[0, 0]))

    def forward_all(self, tokens, state):
        return np.stack([self.forward([token], state) for token in tokens])

    def logits(self, value):
        logits = np.full(CONFIG.vocab_size, -50, np.float32)
        for after, text in self.script.items():
            words = text.encode()
            for said in range(len(words) + 1):
                if self.heard.endswith(after.encode() + words[:said]):
                    logits[words[said] + 1 if said < len(words) else END] = 50
                    return logits
        logits[LETTERS] = np.random.default_rng(value).normal(0, 1, len(LETTERS))
        return logits


def talking(script=None, template="dialogue"):
    """A model that talks."""
    info = ModelInfo(CONFIG, "int8", None, template, {}, {"name": "talker", "sha256": "0" * 64})
    return Model(info, Path("talker.safetensors"), ByteTokenizer(), Talker(script))
