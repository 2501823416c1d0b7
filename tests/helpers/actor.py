"""A model without weights that says a script, and a vocabulary of bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.generate import UNLIMITED, Ending, PromptReader, TokenLoop, read_directly
from rwkv_cli.engine.session import Session
from rwkv_cli.engine.state import State
from rwkv_cli.generation import Generation
from rwkv_cli.reporting import Progress
from rwkv_cli.text.tokenizer import TokenizerSpec

Array = NDArray[np.float32]

END = 0

CONFIG = ModelConfig(n_layer=1, n_embd=64, n_ffn=64, vocab_size=257, rank_w=1, rank_a=1, rank_v=0, rank_g=1)


class ByteTokenizer:
    """Token = byte + 1; 0 ends a document."""

    end_of_document = END
    text_of_end = ""
    vocab_size = 257
    name = "bytes"
    spec = TokenizerSpec("world")

    def encode(self, text: str) -> list[int]:
        """A token per byte of UTF-8."""
        return spoken(text)

    def token_bytes(self, token: int) -> bytes:
        """The byte, or nothing for the end of a document."""
        return bytes([token - 1]) if token else b""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text, with U+FFFD where bytes are not UTF-8."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")


class Actor(Backend):
    """A backend whose model says a script, a token per pass, with the probability 1/2, and then only the end.

    It counts the tokens that it read in the state, as a model would change it.
    """

    name = kernel = "actor"
    config = CONFIG

    def __init__(self, script: Sequence[int]) -> None:
        self.script = script
        self.passes: list[list[int]] = []  # the tokens of each

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """See `Backend.forward`."""
        self.passes.append(list(tokens))
        state.wkv += len(tokens)
        if progress:
            for _ in tokens:
                progress(1)
        said = len(self.passes) - 1
        logits = np.full(257, np.log(1 / 2 / 256), np.float32)
        logits[self.script[said] if said < len(self.script) else END] = np.log(1 / 2)
        return logits

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """See `Backend.forward_all`."""
        return np.stack([self.forward([token], state) for token in tokens])


def spoken(text: str | bytes) -> list[int]:
    """The tokens of a text or of bytes."""
    return [byte + 1 for byte in (text if isinstance(text, bytes) else text.encode())]


def generated(
    session: Session,
    prompt: Sequence[int],
    tokenizer: Any,
    *,
    max_tokens: int = UNLIMITED,
    stop: Sequence[str] = (),
    stop_tokens: Collection[int] = (),
    reader: PromptReader = read_directly,
    **options: Any,
) -> Generation:
    """A generation of a session, by itself; `options` are those of `Generation`."""
    end = tokenizer.end_of_document if tokenizer else 0
    loop = TokenLoop(session, prompt, Ending(end, stop_tokens, max_tokens), reader)
    return Generation(loop, tokenizer, stop, **options)
