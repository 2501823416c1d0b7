"""One token through the model: five kernels a layer, replayed as one graph.

The kernels are bound by the weights that they read. A block of one asks for its first weights before the kernel ahead
of it has ended, so that memory never rests. A single kernel for the whole token, with barriers across the GPU in place
of launches, was tried and is slower: its blocks must be equally busy in every phase, and 16 rows a tile on 132
multiprocessors are not.
"""

from __future__ import annotations

import itertools
import math

from rwkv_cli.engine.gpu.buffers import Buffers
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.gpu.launch_plan import Launch, Step
from rwkv_cli.engine.gpu.state_slots import StateMemory
from rwkv_cli.engine.gpu.weights import WIDTHS, Layer, Matrix, Weights
from rwkv_cli.errors import DeviceError

WARP = 32
ROW_WARPS = 16  # at most, of a block that computes rows: 128 registers a thread
HALF_COLUMNS = 8 * WARP  # of a row in float16 that a warp reads at once
WIDEST = ROW_WARPS * HALF_COLUMNS
VALUE_CHANNELS = {"fp16": 256, "int8": 256, "int4": 512}  # of a block of cuda/value.cu
VALUE_WARPS = 16
RESERVED = 2 << 10  # bytes of a multiprocessor's shared memory that the system and small declarations take
BEYOND_LIST = 32  # bytes that cuda/value.cu may read behind its list of hidden units, and not use
HEAD_VALUES, HEAD_THREADS = 32, 512  # of a block of cuda/heads.cu
EMBED_THREADS = 256
GROUP = 64


class Decoder:
    """The steps of one token, for one model and one state."""

    def __init__(self, gpu: Device, weights: Weights, states: StateMemory) -> None:
        config = weights.config
        self._weights, self._states = weights, states
        self._C, self._F = config.n_embd, config.n_ffn
        if self._C > WIDEST:
            raise DeviceError(
                f"the GPU's kernels have room for {WIDEST:,} channels, and the model has {self._C:,}"
            )
        # A block has whole rows in float16, as many at a time as there is room for.
        parts = math.ceil(self._C / HALF_COLUMNS)
        self._warps = ROW_WARPS // parts * parts
        # A multiprocessor has one block of a kernel, and no room for a second one: otherwise some would get two, and
        # all others would wait for them. The next kernel's block stands ready at the door.
        self._blocks = gpu.multiprocessors
        self._least_shared, self._most_shared = gpu.shared_memory // 2 + 1, gpu.shared_memory - RESERVED
        channels = VALUE_CHANNELS[weights.type]
        self._value_shared = 4 * VALUE_WARPS * channels  # bytes that it declares, at least
        pieces = math.ceil(self._C / channels)
        groups = self._F // GROUP
        room = self._most_shared - self._value_shared - BEYOND_LIST  # of a block of cuda/value.cu
        parts = max(1, gpu.multiprocessors // pieces, math.ceil(groups / (room // self._group_bytes())))
        self._value_grid = pieces, min(groups, parts)
        self._project_ends, self._project_shared = self._project_blocks()
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

    def steps(self, token: int = 0, slot: int = 0, logits: int = 0) -> list[Step]:
        """Read the token at the address `token` into the state in a slot; the logits go to the address `logits`.

        0 is for the decoder's own.
        """
        w, at, C = self._weights, self._at, self._C
        state = 4 * slot * self._states.size
        norms = [w.norms + 4 * C * i for i in range(4)]
        embed = (token or self.token, w.embedding, w.embedding_scales, *norms[:2], at["x"], C)
        steps: list[Step] = [Launch("embed", (1,), EMBED_THREADS, embed, overlaps=True)]
        for i, layer in enumerate(w.layers):
            steps += self._time_mix(i, layer, state) + self._channel_mix(i, layer, state)
        out = logits or self.logits
        head = (at["x"], *norms[2:], w.head.weights, w.head.scales, out, C, w.head.R)
        return [*steps, self._rows("head", w.head, head)]

    def _time_mix(self, i: int, layer: Layer, state: int) -> list[Step]:
        at, C, ranks = self._at, self._C, self._weights.ranks
        shift, wkv = self._states.shift_att(i) + state, self._states.wkv(i) + state
        ends = self._project_ends
        low, second = layer.low_rank.first, [layer.low_rank.second[name] for name in "wavg"]
        project = (
            *(at["x"], shift, layer.vector("ln1.weight", C), layer.vector("ln1.bias", C)),
            *(layer.vector("att.x_r", C), layer.main.weights, layer.main.scales, low.weights, low.scales),
            *(at["u_att"], at["rkv"], at["hidden"], C, *ends[:-1], *(ranks[name] for name in "wavg")),
        )
        heads = (
            *(at["rkv"], at["hidden"]),
            *(*(m.weights for m in second), *(m.scales for m in second), *(m.K for m in second)),
            *(layer.vector("att.w0", C), at["u_att"], shift, wkv, at["v_first"], at["y"], C, int(i == 0)),
        )
        output = (at["y"], layer.output.weights, layer.output.scales, at["x"], C)
        grid = C // GROUP, GROUP // HEAD_VALUES
        return [
            Launch("project", (ends[-1],), self._warps * WARP, project, self._project_shared, overlaps=True),
            Launch("heads", grid, HEAD_THREADS, heads, 4 * low.R, overlaps=True),
            self._rows("output", layer.output, output),
        ]

    def _channel_mix(self, i: int, layer: Layer, state: int) -> list[Step]:
        at, C, F = self._at, self._C, self._F
        shift = self._states.shift_ffn(i) + state
        hidden = (
            *(at["x"], shift, layer.vector("ln2.weight", C), layer.vector("ln2.bias", C)),
            *(layer.vector("ffn.x_k", C), layer.key.weights, layer.key.scales, at["u_ffn"], at["h"], C, F),
        )
        value = (
            *(at["h"], layer.value.weights, layer.value.scales, at["u_ffn"], shift),
            *(at["parts"], at["arrived"], at["x"], C, F),
        )
        shared = math.ceil(F / GROUP / self._value_grid[1]) * self._group_bytes() + BEYOND_LIST
        shared = max(shared, self._least_shared - self._value_shared)
        return [
            self._rows("hidden", layer.key, hidden),
            Launch("value", self._value_grid, VALUE_WARPS * WARP, value, shared, overlaps=True),
        ]

    def _rows(self, kernel: str, matrix: Matrix, arguments: tuple[int, ...]) -> Launch:
        """A kernel whose blocks share the rows of a matrix out: more blocks where their sums would not fit."""
        blocks = self._blocks
        while (shared := self._shared(math.ceil(matrix.R / blocks))) > self._most_shared:
            blocks += self._blocks
        return Launch(kernel, (blocks,), self._warps * WARP, arguments, shared, overlaps=True)

    def _group_bytes(self) -> int:
        """What a block of cuda/value.cu keeps of 64 hidden units: values, numbers, scales."""
        kind = self._weights.type
        scales = 0 if kind == "fp16" else 2 * VALUE_CHANNELS[kind]
        return 4 * GROUP + 2 * GROUP + 4 + scales

    def _shared(self, rows: int) -> int:
        """Bytes for the input, and a sum of every row and every warp that has a part of it."""
        return max(4 * self._C + 4 * rows * math.ceil(self._C / HALF_COLUMNS), self._least_shared)

    def _project_blocks(self) -> tuple[list[int], int]:
        """Where the blocks of each matrix of `project` end, so that all end at the same time; and their memory."""
        width = WIDTHS[self._weights.type]
        rows = [self._C] * 3 + [self._weights.ranks[name] for name in "wavg"]
        # Low-rank maps in int8 count twice: floats are more work, and the last blocks begin last.
        sizes = [n * (width if i < 3 else 2) for i, n in enumerate(rows)]
        blocks = [int(size > 0) for size in sizes]
        total = self._blocks
        while True:
            while sum(blocks) < total:
                blocks[max(range(len(sizes)), key=lambda i: sizes[i] / max(blocks[i], 1))] += 1
            most_rows = max(math.ceil(n / of_it) for n, of_it in zip(rows, blocks, strict=True) if n)
            shared = self._shared(most_rows)
            if shared <= self._most_shared:
                return list(itertools.accumulate(blocks)), shared
            total += self._blocks
