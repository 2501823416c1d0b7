"""What one small model answers, whatever the format of its file: text is nothing but tokens here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helpers.models import SHAPES
from helpers.writers import random_weights
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.state import State
from rwkv_cli.files.checkpoints import open_checkpoint

CONFIG = SHAPES["four-layers"]
WEIGHTS = random_weights(CONFIG, seed=8)
PROMPT = (1, 2, 3, 5, 8, 13, 21, 34)
# Of the package rwkv7-hf 0.9.0 in float32, see files/test_peers_hf.py; it has the same bits in bf16, f16 and f32.
# fmt: off
ANSWER = (
    149, 210, 367, 161, 458, 260, 66, 491, 20, 111, 68, 89,
    290, 201, 1, 15, 311, 375, 29, 367, 332, 113, 354, 200,
)
# fmt: on


def logits_of(path: Path) -> NDArray[np.float32]:
    """The logits [T, V] after each token of the prompt and the answer."""
    backend = ReferenceBackend(open_checkpoint(path))
    return backend.forward_all([*PROMPT, *ANSWER], State.zeros(backend.config))


def answer_of(logits: NDArray[np.float32]) -> tuple[int, ...]:
    """The most likely token after the prompt and after each token of the answer but the last."""
    return tuple(int(token) for token in logits[len(PROMPT) - 1 : -1].argmax(axis=1))
