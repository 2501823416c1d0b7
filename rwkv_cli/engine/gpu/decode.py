"""One token through the model: five kernels per layer, replayed as one graph.

The kernels are bound by the weights that they read. A block of one requests its first weights before the previous
kernel has ended, so that memory is never idle. A single kernel for the whole token, with barriers across the GPU in
place of launches, was tried and is slower: its blocks would have to be equally busy in every phase, and 16 rows per
tile on 132 multiprocessors are not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rwkv_cli.config import HEAD_SIZE
from rwkv_cli.engine.gpu.device_protocol import Buffers, Device
from rwkv_cli.engine.gpu.kernel_sources import constants
from rwkv_cli.engine.gpu.launch_plan import Launch, Step
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import LOW_RANK, WIDTHS, Layer, Matrix, Weights
from rwkv_cli.errors import DeviceError
from rwkv_cli.files.weight_layouts import GROUP

_ROWS, _HEADS = constants("columns.cuh"), constants("heads.cu")

LANES = _ROWS["LANES"]
ROW_WARPS = _ROWS["ROW_THREADS"] // LANES  # at most, of a block that computes rows
INPUT_COLUMNS = _ROWS["INPUT_COLUMNS"] * LANES  # of a vector, spread over a warp
WIDEST = ROW_WARPS * INPUT_COLUMNS
RESERVED = 2 << 10  # bytes of a multiprocessor's shared memory that the system and small declarations take
EMBED_THREADS = 256

PROJECTED = ("r", "k", "v", "w1", "a1", "v1", "g1")
"""The matrices of cuda/project.cu, in the order of their blocks."""


class Decoder:
    """The steps of one token, for one model and the states in slots."""

    def __init__(self, gpu: Device, weights: Weights, states: StateSlots) -> None:
        """Raises DeviceError for a model that is too wide for the kernels, or if too little memory is free."""
        config = weights.config
        self._weights, self._states = weights, states
        self._C, self._F = config.n_embd, config.n_ffn
        if self._C > WIDEST:
            raise DeviceError(
                f"the GPU's kernels support up to {WIDEST:,} channels, and the model has {self._C:,}; "
                "use {device=cpu}"
            )
        # The input of rows is spread over warps; a block holds it as many times as it has warps for.
        parts = math.ceil(self._C / INPUT_COLUMNS)
        self._row_threads = ROW_WARPS // parts * parts * LANES
        # A multiprocessor runs one block of a kernel, and must not have the memory for a second one: otherwise some
        # would get two, and all others would wait for them. The next kernel's block is already resident meanwhile.
        self._blocks = gpu.multiprocessors
        self._least_shared, self._most_shared = gpu.shared_memory // 2 + 1, gpu.shared_memory - RESERVED
        self._project_ends, self._project_shared = self._project_blocks()
        self._value = constants("value.cu", weights.type)
        self._value_grid, self._value_shared = self._value_blocks()
        sizes = {
            "token": 1,
            "x": self._C,
            "u_att": self._C,
            "u_ffn": self._C,
            "rkv": 3 * self._C,
            "hidden": sum(weights.ranks.values()),
            "v_first": self._C,
            "y": 3 * self._C,
            "h": self._F,
            "parts": self._value_grid[1] * self._C,
            "arrived": self._value_grid[0],
            "logits": weights.head.R,
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

    def steps(self, token: int = 0, slot: int = 0, logits: int = 0) -> list[Step]:
        """Read the token at the address `token` into the state in a slot; write the logits to the address `logits`.

        An address of 0 means the decoder's own.
        """
        state = 4 * slot * self._states.size
        steps: list[Step] = [self._embed(token or self.token)]
        for i, layer in enumerate(self._weights.layers):
            steps += self._time_mix(i, layer, state) + self._channel_mix(i, layer, state)
        return [*steps, self._head(logits or self.logits)]

    def _embed(self, token: int) -> Launch:
        w, C = self._weights, self._C
        arguments = {
            "tokens": token,
            "embedding": w.embedding,
            "scales": w.embedding_scales,
            "weight": w.norm("blocks.0.ln0.weight"),
            "bias": w.norm("blocks.0.ln0.bias"),
            "x": self._at["x"],
            "C": C,
        }
        return Launch("embed", (1,), EMBED_THREADS, arguments, overlaps=True)

    def _head(self, logits: int) -> Launch:
        w = self._weights
        arguments = {
            "x": self._at["x"],
            "weight": w.norm("ln_out.weight"),
            "bias": w.norm("ln_out.bias"),
            "weights": w.head.weights,
            "scales": w.head.scales,
            "logits": logits,
            "C": self._C,
            "V": w.head.R,
        }
        return self._rows("head", w.head, arguments)

    def _time_mix(self, i: int, layer: Layer, state: int) -> list[Step]:
        return [
            self._project(layer, self._states.shift_att(i) + state),
            self._heads(i, layer, self._states.shift_att(i) + state, self._states.wkv(i) + state),
            self._output(layer),
        ]

    def _project(self, layer: Layer, shift: int) -> Launch:
        at, low = self._at, layer.low_rank.first
        ends = dict(zip(PROJECTED, self._project_ends, strict=True))
        blocks = ends.pop("g1")  # the last ones
        arguments = {
            "x": at["x"],
            "shift": shift,
            "vectors": layer.vectors,
            "main": layer.main.weights,
            "scales": layer.main.scales,
            "low": low.weights,
            "low_scales": low.scales,
            "u": at["u_att"],
            "rkv": at["rkv"],
            "hidden": at["hidden"],
            "C": self._C,
            **{f"end_{name}": end for name, end in ends.items()},
            **{f"rank_{name}": rank for name, rank in self._weights.ranks.items()},
        }
        return Launch("project", (blocks,), self._row_threads, arguments, self._project_shared, overlaps=True)

    def _heads(self, i: int, layer: Layer, shift: int, wkv: int) -> Launch:
        at, second = self._at, layer.low_rank.second
        arguments = {
            "rkv": at["rkv"],
            "hidden": at["hidden"],
            **{f"{name}2": matrix.weights for name, matrix in second.items()},
            **{f"scales_{name}": matrix.scales for name, matrix in second.items()},
            **{f"rank_{name}": matrix.K for name, matrix in second.items()},
            "vectors": layer.vectors,
            "u": at["u_att"],
            "shift": shift,
            "wkv": wkv,
            "v_first": at["v_first"],
            "y": at["y"],
            "C": self._C,
            "is_first": int(i == 0),
        }
        grid = self._C // HEAD_SIZE, HEAD_SIZE // _HEADS["VALUES"]
        shared = 4 * layer.low_rank.first.R
        return Launch("heads", grid, _HEADS["THREADS"], arguments, shared, overlaps=True)

    def _output(self, layer: Layer) -> Launch:
        arguments = {
            "y": self._at["y"],
            "weights": layer.output.weights,
            "scales": layer.output.scales,
            "x": self._at["x"],
            "C": self._C,
        }
        return self._rows("output", layer.output, arguments)

    def _channel_mix(self, i: int, layer: Layer, state: int) -> list[Step]:
        at, shift = self._at, self._states.shift_ffn(i) + state
        hidden = {
            "x": at["x"],
            "shift": shift,
            "vectors": layer.vectors,
            "weights": layer.key.weights,
            "scales": layer.key.scales,
            "u": at["u_ffn"],
            "h": at["h"],
            "C": self._C,
            "F": self._F,
        }
        value = {
            "h": at["h"],
            "weights": layer.value.weights,
            "scales": layer.value.scales,
            "u": at["u_ffn"],
            "shift": shift,
            "parts": at["parts"],
            "arrived": at["arrived"],
            "x": at["x"],
            "C": self._C,
            "F": self._F,
        }
        threads = self._value["THREADS"]
        return [
            self._rows("hidden", layer.key, hidden),
            Launch("value", self._value_grid, threads, value, self._value_shared, overlaps=True),
        ]

    def _rows(self, kernel: str, matrix: Matrix, arguments: dict[str, int]) -> Launch:
        """A kernel whose blocks share the rows of a matrix: more blocks where the sums of their rows would not fit."""
        blocks = self._blocks
        while (shared := self._shared(math.ceil(matrix.R / blocks))) > self._most_shared:
            blocks += self._blocks
        return Launch(kernel, (blocks,), self._row_threads, arguments, shared, overlaps=True)

    def _shared(self, rows: int) -> int:
        """Bytes for the input, and for a sum of each row by every warp that has a part of it."""
        return max(4 * self._C + 4 * rows * math.ceil(self._C / INPUT_COLUMNS), self._least_shared)

    def _value_blocks(self) -> tuple[tuple[int, int], int]:
        """The grid of cuda/value.cu, of channels and of hidden units, and the dynamic shared memory of a block."""
        pieces = math.ceil(self._C / self._value["CHANNELS"])
        groups = self._F // GROUP
        # By the kernel, in shared memory, at least.
        declared = 4 * self._value["WARPS"] * self._value["CHANNELS"]
        per_group, beyond = self._value["GROUP_BYTES"], self._value["BEYOND_LIST"]
        most_groups = (self._most_shared - declared - beyond) // per_group  # of a block
        parts = min(groups, max(1, self._blocks // pieces, math.ceil(groups / most_groups)))
        shared = math.ceil(groups / parts) * per_group + beyond
        return (pieces, parts), max(shared, self._least_shared - declared)

    def _project_blocks(self) -> tuple[list[int], int]:
        """Where the blocks of each matrix of `PROJECTED` end, so that all finish together; and their shared memory."""
        width = WIDTHS[self._weights.type]
        rows = [self._C] * 3 + [self._weights.ranks[name] for name in LOW_RANK]
        # Low-rank maps in int8 count twice: floats are more work, and the last blocks begin last.
        sizes = [n * (width if i < 3 else 2) for i, n in enumerate(rows)]
        total = self._blocks
        while True:
            ends = projected_blocks(sizes, total)
            blocks = [end - begin for begin, end in itertools.pairwise([0, *ends])]
            most_rows = max(math.ceil(n / count) for n, count in zip(rows, blocks, strict=True) if n)
            shared = self._shared(most_rows)
            if shared <= self._most_shared:
                return ends, shared
            total += self._blocks


def projected_blocks(sizes: Sequence[float], total: int) -> list[int]:
    """Where the blocks of each matrix end, `total` of them if there are enough, so that all finish together.

    `sizes` is how long a block would take for all of a matrix.
    """
    blocks = [int(size > 0) for size in sizes]
    while sum(blocks) < total:
        blocks[max(range(len(sizes)), key=lambda i: sizes[i] / max(blocks[i], 1))] += 1
    return list(itertools.accumulate(blocks))
