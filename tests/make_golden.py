#!/usr/bin/env python3
"""Record what the independent `rwkv` package of PyPI computes, for `tests/engine/test_reference.py`.

    pip install -e .[test,peers]
    python tests/make_golden.py

Run it again when the embedded model, `helpers.models.SHAPES` or `helpers.writers.random_weights` changes. For every
model it writes tests/golden/NAME.npz with logits after some of the tokens and with parts of the final state. Weights
are not stored: the random ones come from their seed, those of gosling from the embedded model file.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers.models import SHAPES, some_tokens
from helpers.writers import random_weights, write_pth
from numpy.typing import NDArray

from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.text.tokenizer import load_tokenizer

Array = NDArray[np.float32]

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 48
STORY = (
    "Once upon a time there was a small goose who lived by a quiet lake. One day, Tom did not come. The goose"
)


class Peer:
    """A `.pth` file, run by the `rwkv` package in float32 on the CPU."""

    def __init__(self, path: Path) -> None:
        # Read when the package is imported.
        os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
        with contextlib.redirect_stdout(io.StringIO()):
            from rwkv.model import RWKV

            self._model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")

    def forward(self, tokens: Sequence[int], state: list[Any] | None = None) -> tuple[Array, list[Any]]:
        """The logits [T, V] after each token, and the package's own form of the state."""
        logits, state = self._model.forward(list(tokens), state, full_output=True)
        return logits.numpy().reshape(len(tokens), -1), state


def as_state(parts: list[Any]) -> State:
    """The package's state, three tensors per layer, as ours."""
    arrays = [part.numpy() for part in parts]
    return State(np.stack(arrays[0::3]), np.stack(arrays[1::3]), np.stack(arrays[2::3]))


def excerpt(logits: Array, state: State) -> dict[str, Array]:
    """What is recorded: logits after some tokens, a quarter of a large vocabulary, and a sample of the state."""
    columns = 1 if logits.shape[1] < 1000 else 4
    return {
        "logits": logits[[0, 1, 2, 15, 16, -1], ::columns],
        "shift_att": state.shift_att[:, ::8],
        "wkv": state.wkv[:, :, ::8, ::8],
        "shift_ffn": state.shift_ffn[:, ::8],
    }


def _record(name: str, checkpoint: Path, tokens: Sequence[int]) -> None:
    logits, state = Peer(checkpoint).forward(tokens)
    path = GOLDEN / f"{name}.npz"
    parts = excerpt(logits, as_state(state))
    np.savez_compressed(path, tokens=np.array(tokens), **parts)  # type: ignore[arg-type]  # none is "allow_pickle"
    print(f"{name}: {path.stat().st_size:,} bytes")


def _main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        for name, config in SHAPES.items():
            _record(name, write_pth(path, random_weights(config), "f32"), some_tokens(config, LENGTH))
        gosling = ModelFile(EMBEDDED_MODEL)
        weights = {tensor: gosling.tensor(tensor) for tensor in gosling.config.tensor_shapes()}
        assert gosling.info.tokenizer is not None
        tokens = load_tokenizer(gosling.info.tokenizer, gosling.config.vocab_size).encode(STORY)
        _record("gosling", write_pth(path, weights, "f32"), [0, *tokens])


if __name__ == "__main__":
    _main()
