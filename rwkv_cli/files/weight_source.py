"""Sources of weights: a published checkpoint, a model file, a model with an adapter merged into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig

WeightProgress = Callable[[int, int], None]
"""Called with the number of weights done and their total, while a source is read to its end."""


class WeightSource(Protocol):
    """Anything that gives the officially named tensors in float32."""

    @property
    def config(self) -> ModelConfig: ...

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One tensor of the shape that `ModelConfig.tensor_shapes` lists for `name`."""
        ...
