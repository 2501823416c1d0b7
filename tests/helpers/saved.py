"""States of a small model that does not exist."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.sampling import SamplerMemory
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.sessions.state_file import ModelIdentity, SavedState

L, H, N, V = 2, 2, 8, 50
C = H * N

IDENTITY = ModelIdentity("some.pth", "a" * 64, "int8", "world", "/models/some.pth")


def some_state(
    seed: int = 0, scale: float = 1.0, memory: SamplerMemory | None = None, **fields: Any
) -> SavedState:
    """A state with random values of this scale; `fields` are those of `SavedState`."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    state = State(normal(L, C), normal(L, H, N, N), normal(L, C))
    return SavedState(Snapshot(state, normal(V), 17, memory), IDENTITY, **fields)


def some_memory() -> SamplerMemory:
    """What a sampler remembers: counts that are awkward to store, and a generator that was used."""
    rng = np.random.default_rng(5)
    rng.random(3)
    return SamplerMemory({7: 1.5, 3: 0.1 + 0.2, 49: 1e-300}, rng.bit_generator.state)
