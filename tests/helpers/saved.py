"""States of a small model that does not exist."""

import numpy as np

from rwkv_cli.engine.sampling import SamplerMemory
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.sessions.state_file import ModelIdentity, SavedState

L, H, N, V = 2, 2, 8, 50


C = H * N


IDENTITY = ModelIdentity("some.pth", "a" * 64, "int8", "world", "/models/some.pth")


def some_state(seed=0, scale=1.0, **fields):
    """A state of a small model that there is not."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (scale * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
    state = State(normal(L, C), normal(L, H, N, N), normal(L, C))
    return SavedState(Snapshot(state, normal(V), 17, fields.pop("memory", None)), IDENTITY, **fields)


def some_memory():
    rng = np.random.default_rng(5)
    rng.random(3)
    return SamplerMemory({7: 1.5, 3: 0.1 + 0.2, 49: 1e-300}, rng.bit_generator.state)
