"""One token through the model: five kernels a layer, replayed as one graph.

The kernels are bound by the weights that they read. A block of one asks for its first weights before the kernel ahead
of it has ended, so that memory never rests. A single kernel for the whole token, with barriers across the GPU in place
of launches, was tried and is slower: its blocks must be equally busy in every phase, and 16 rows a tile on 132
multiprocessors are not.
"""

from __future__ import annotations

import math

from rwkv_cli.gpu.buffers import Buffers
from rwkv_cli.gpu.interface import Device
from rwkv_cli.gpu.states import StateMemory
from rwkv_cli.gpu.steps import Launch, Step
from rwkv_cli.gpu.weights import Layer, Matrix, Weights

WARP = 32
MOST_WARPS = 16  # of a block that computes rows
HALF_COLUMNS = 8 * WARP  # of a row in float16 that a warp reads at once
FEW_WARPS = 12  # that a block should have at least: fewer hide no latency
MULTIPROCESSOR_WARPS = 24  # of blocks that run at once; as many again begin early
VALUE_CHANNELS, VALUE_WARPS = 256, 16  # of a block of cuda/value.cu
HEAD_VALUES, HEAD_THREADS = 16, 256  # of a block of cuda/heads.cu
GROUP = 64


class Decoder:
    """The steps of one token, for one model and one state."""

    def __init__(self, gpu: Device, weights: Weights, states: StateMemory) -> None:
        config = weights.config
        self._weights, self._states = weights, states
        self._C, self._F = config.n_embd, config.n_ffn
        # A block reads whole rows: as many warps as a row in float16 takes, times what makes enough of them.
        parts = math.ceil(self._C / HALF_COLUMNS)
        self._warps = min(MOST_WARPS, parts * max(1, FEW_WARPS // parts))
        self._blocks = gpu.multiprocessors * max(1, round(MULTIPROCESSOR_WARPS / self._warps))
        pieces = math.ceil(self._C / VALUE_CHANNELS)
        self._value_grid = (
            pieces,
            max(1, min(self._F // GROUP, round(2 * gpu.multiprocessors / pieces))),
        )
        self._head_rows = weights.head.R
        ranks = sum(weights.ranks.values())
        sizes = {
            "token": 1,
            "x": self._C,
            "u_att": self._C,
            "u_ffn": self._C,
            "rkv": 3 * self._C,
            "hidden": ranks,
            "v_first": self._C,
            "y": 3 * self._C,
            "h": self._F,
            "parts": self._value_grid[1] * self._C,
            "arrived": pieces,
            "logits": self._head_rows,
        }
        self._at = Buffers(gpu, {name: 4 * size for name, size in sizes.items()})

    @property
    def token(self) -> int:
        """The address of the token to read, an int32."""
        return self._at["token"]

    @property
    def logits(self) -> int:
        """The address of the logits [V], float32."""
        return self._at["logits"]

    def steps(self) -> list[Step]:
        """Read the token: from `token` to `logits`."""
        w, at, C = self._weights, self._at, self._C
        norms = [w.norms + 4 * C * i for i in range(4)]
        steps: list[Step] = [
            Launch(
                "embed", (1,), 256, (at["token"], w.embedding, w.embedding_scales, *norms[:2], at["x"], C)
            )
        ]
        for i, layer in enumerate(w.layers):
            steps += self._time_mix(i, layer) + self._channel_mix(i, layer)
        return [*steps, self._head(norms[2], norms[3], at["x"])]

    def head(self, x: int) -> Step:
        """The logits of a row x [C] of the residual stream."""
        C = self._C
        return self._head(self._weights.norms + 8 * C, self._weights.norms + 12 * C, x)

    def _head(self, weight: int, bias: int, x: int) -> Launch:
        head = self._weights.head
        return self._rows(
            "head", head, (x, weight, bias, head.weights, head.scales, self.logits, self._C, head.R)
        )

    def _time_mix(self, i: int, layer: Layer) -> list[Step]:
        at, C, ranks = self._at, self._C, self._weights.ranks
        shift, wkv = self._states.shift_att(i), self._states.wkv(i)
        ends = [ranks["w"], ranks["w"] + ranks["a"], layer.low.R - ranks["g"], layer.low.R]
        second = [layer.second[name] for name in "wavg"]
        main_blocks = self._main_blocks(layer)
        project = (
            *(at["x"], shift, layer.vector("ln1.weight", C), layer.vector("ln1.bias", C)),
            *(layer.vector("att.x_r", C), layer.main.weights, layer.main.scales, layer.low.weights, *ends),
            *(at["u_att"], at["rkv"], at["hidden"], C, main_blocks),
        )
        heads = (
            *(at["rkv"], at["hidden"], *(m.weights for m in second), *(m.K for m in second)),
            *(layer.vector("att.w0", C), at["u_att"], shift, wkv, at["v_first"], at["y"], C, int(i == 0)),
        )
        output = (
            *(at["y"], layer.vector("att.ln_x.weight", C), layer.vector("att.ln_x.bias", C)),
            *(layer.output.weights, layer.output.scales, at["x"], C),
        )
        rows = max(
            math.ceil(layer.main.R / main_blocks), math.ceil(layer.low.R / (self._blocks - main_blocks))
        )
        grid = C // GROUP, GROUP // HEAD_VALUES
        return [
            Launch("project", (self._blocks,), self._warps * WARP, project, self._shared(rows)),
            Launch("heads", grid, HEAD_THREADS, heads, 4 * layer.low.R),
            self._rows("output", layer.output, output),
        ]

    def _channel_mix(self, i: int, layer: Layer) -> list[Step]:
        at, C, F = self._at, self._C, self._F
        shift = self._states.shift_ffn(i)
        hidden = (
            *(at["x"], shift, layer.vector("ln2.weight", C), layer.vector("ln2.bias", C)),
            *(layer.vector("ffn.x_k", C), layer.key.weights, layer.key.scales, at["u_ffn"], at["h"], C, F),
        )
        value = (
            *(at["h"], layer.value.weights, layer.value.scales, at["u_ffn"], shift),
            *(at["parts"], at["arrived"], at["x"], C, F),
        )
        groups = math.ceil(F / GROUP / self._value_grid[1])  # of hidden units, in a block
        return [
            self._rows("hidden", layer.key, hidden),
            Launch(
                "value", self._value_grid, VALUE_WARPS * WARP, value, groups * (4 * (GROUP + 2) + GROUP)
            ),
        ]

    def _rows(self, kernel: str, matrix: Matrix, arguments: tuple[int, ...]) -> Launch:
        """A kernel whose blocks share the rows of a matrix out."""
        shared = self._shared(math.ceil(matrix.R / self._blocks))
        return Launch(kernel, (self._blocks,), self._warps * WARP, arguments, shared)

    def _shared(self, rows: int) -> int:
        """Bytes for the input in whole numbers, and a sum of every row and every warp that has a part of it."""
        return self._C + self._C // 16 + 4 * rows * math.ceil(self._C / HALF_COLUMNS)

    def _main_blocks(self, layer: Layer) -> int:
        """How many blocks of `project` take the big matrices, so that all blocks read about as many bytes."""
        main = layer.main.R * {"fp16": 2.0, "int8": 1.0, "int4": 0.5}[self._weights.type]
        return min(self._blocks - 1, max(1, round(self._blocks * main / (main + 2 * layer.low.R))))
