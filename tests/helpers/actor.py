"""A model without weights that says a script, and a vocabulary of bytes."""

import numpy as np

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.base import Backend

END = 0


CONFIG = ModelConfig(n_layer=1, n_embd=64, n_ffn=64, vocab_size=257, rank_w=1, rank_a=1, rank_v=0, rank_g=1)


class ByteTokenizer:
    """Token = byte + 1; 0 ends a document."""

    end_of_document = END
    vocab_size = 257
    name = "bytes"
    spec = None

    def encode(self, text):
        return [byte + 1 for byte in text.encode()]

    def token_bytes(self, token):
        return bytes([token - 1]) if token else b""


class Actor(Backend):
    """A backend whose model says a script, a token a pass, with the probability 1/2, and the end for ever after.

    It counts the tokens that it read in the state, as a model would change it.
    """

    name = kernel = "actor"
    config = CONFIG

    def __init__(self, script):
        self.script = script
        self.passes = []  # the tokens of each

    def forward(self, tokens, state, progress=None):
        self.passes.append(list(tokens))
        state.wkv += len(tokens)
        if progress:
            for _ in tokens:
                progress(1)
        said = len(self.passes) - 1
        logits = np.full(257, np.log(1 / 2 / 256), np.float32)
        logits[self.script[said] if said < len(self.script) else END] = np.log(1 / 2)
        return logits

    def forward_all(self, tokens, state):
        return np.stack([self.forward([token], state) for token in tokens])


def spoken(text):
    """The tokens of a text or of bytes."""
    return [byte + 1 for byte in (text if isinstance(text, bytes) else text.encode())]
