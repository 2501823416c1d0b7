"""Many tokens at once: a prompt, or one token each of many sequences. Matrix products run on tensor cores.

Tokens of a sequence are neighbours, and each sequence has its state in a slot of its own. Integer weights become
float16 a matrix at a time, in a buffer for the largest one; low-rank maps are there in float16.
"""

from __future__ import annotations

import itertools
import math

from rwkv_cli.engine.gpu.buffers import Buffers
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.gpu.launch_plan import Launch, Product, Step, Together
from rwkv_cli.engine.gpu.state_slots import StateMemory
from rwkv_cli.engine.gpu.weights import Layer, Matrix, Weights

WARP = 32
GROUP = 64
MIX_BLOCKS = 512  # of cuda/mix.cu, about: they fill a GPU, and have some tokens each if there are many
THREADS = 256
MANY_BLOCKS = 1024  # for kernels whose threads go on to the next element until there is none
WKV_THREADS = 64  # of a block of cuda/wkv7.cu
HEAD_VALUES = 16


def buffer_sizes(weights: Weights, slots: int, room: int) -> dict[str, int]:
    """The bytes of what a pass of up to `room` tokens and so many states works in, by name."""
    config = weights.config
    C, F = config.n_embd, config.n_ffn
    largest = C * max(F, 3 * C, weights.head.R) if weights.type != "fp16" else 0
    return {
        "tokens": 4 * room,
        "slots": 4 * room,
        "begins": 4 * (room + 1),
        "x": 4 * room * C,
        "mixed": 2 * room * 6 * C,
        "rkv": 4 * room * 3 * C,
        "low": 2 * room * sum(weights.ranks.values()),
        "second": 4 * room * 4 * C,  # what w2, a2, v2 and g2 give
        "v_first": 4 * room * C,
        "kk": 4 * room * C,
        "bonus": 4 * room * config.n_head,
        "h": 2 * room * F,
        "last": 4 * slots * C,
        "float16": 2 * largest,
    }


class TokenPass:
    """Buffers for passes of up to `room` tokens, and their steps."""

    def __init__(self, gpu: Device, weights: Weights, states: StateMemory, room: int) -> None:
        self.room = room
        self._weights, self._states = weights, states
        config = weights.config
        self._C, self._F, self._H = config.n_embd, config.n_ffn, config.n_head
        self._ranks = sum(weights.ranks.values())
        self._at = Buffers(gpu, buffer_sizes(weights, states.slots, room))

    @property
    def tokens(self) -> int:
        """The address of the tokens [T], int32."""
        return self._at["tokens"]

    @property
    def slots(self) -> int:
        """The address of each token's slot [T], int32."""
        return self._at["slots"]

    @property
    def begins(self) -> int:
        """The address of where each sequence begins [sequences + 1], int32."""
        return self._at["begins"]

    def steps(self, T: int, sequences: int) -> list[Step]:
        """Read T tokens of some sequences: the residual stream, ready for the head; their states go on."""
        w, at, C = self._weights, self._at, self._C
        embed = (at["tokens"], w.embedding, w.embedding_scales, w.norms, w.norms + 4 * C, at["x"], C)
        steps: list[Step] = [Launch("embed", (T,), THREADS, embed)]
        for i, layer in enumerate(w.layers):
            steps += self._time_mix(i, layer, T, sequences) + self._channel_mix(i, layer, T)
        return steps

    def logits(self, T: int, out: int, last_of: int = 0) -> list[Step]:
        """The logits [T, V] of all T tokens or, if it is not 0, [last_of, V] of the last ones of so many sequences.

        V is that of the head, padded.
        """
        w, at, C = self._weights, self._at, self._C
        norm = w.norms + 8 * C, w.norms + 12 * C
        steps: list[Step] = []
        x, rows = at["x"], T
        if last_of:
            x, rows = at["second"], last_of
            steps.append(Launch("gather", (rows,), THREADS, (at["x"], at["begins"] + 4, x, C)))
        steps.append(self._mix(rows, x, 0, norm, 0, 0))
        return steps + self._product(w.head, at["mixed"], out, rows)

    def _time_mix(self, i: int, layer: Layer, T: int, sequences: int) -> list[Step]:
        at, C = self._at, self._C
        plane = 4 * T * C  # bytes of [T, C] in float32
        r, k, v = (at["rkv"] + plane * j for j in range(3))
        second = {name: at["second"] + plane * j for j, name in enumerate("wavg")}
        shift, wkv = self._states.shift_att(i), self._states.wkv(i)
        norm = layer.vector("ln1.weight", C), layer.vector("ln1.bias", C)
        steps: list[Step] = [self._mix(T, at["x"], shift, norm, layer.vector("att.x_r", C), 6)]
        mixed = {name: at["mixed"] + plane // 2 * j for j, name in enumerate("rkvwag")}
        products = self._product(layer.main, at["mixed"], r, T, times=3)
        steps.append(Together((tuple(products), self._low_rank(layer, mixed, second, T))))
        warps = math.ceil(T * self._H * WARP / THREADS)
        prepare = (
            *(r, k, v, second["w"], second["a"], second["v"], at["v_first"], at["kk"], at["bonus"]),
            *(layer.vector("att.w0", C), T, C, int(i == 0)),
        )
        y = second["v"]  # its numbers are used by then
        vectors = second["w"], at["kk"], second["a"], k, r, v, y
        states = at["slots"], wkv, shift, at["last"], C, self._states.size
        if sequences == T:
            recurrence = Launch("wkv7_token", (self._H, T), THREADS, (*vectors, *states))
        else:
            grid = self._H, GROUP // HEAD_VALUES, sequences
            recurrence = Launch("wkv7", grid, WKV_THREADS, (*vectors, at["begins"], *states))
        norm = layer.vector("att.ln_x.weight", C), layer.vector("att.ln_x.bias", C)
        gate = (y, v, second["g"], at["bonus"], *norm, at["mixed"], T, C)
        return [
            *steps,
            Launch("prepare", (warps,), THREADS, prepare),
            recurrence,
            Launch("gate", (warps,), THREADS, gate),
            *self._product(layer.output, at["mixed"], at["x"], T, add=True),
        ]

    def _low_rank(
        self, layer: Layer, mixed: dict[str, int], second: dict[str, int], T: int
    ) -> tuple[Step, ...]:
        """Both halves of the maps of w, a, v and g."""
        low, total, C, ranks = self._at["low"], self._ranks, self._C, self._weights.ranks
        starts = dict(
            zip("wavg", itertools.accumulate((ranks[name] for name in "wav"), initial=0), strict=True)
        )
        firsts, seconds = [], []
        for name, start in starts.items():
            if not ranks[name]:
                continue
            weights, here = layer.low_rank_half.first.weights + 2 * start * C, low + 2 * start
            firsts.append(Product(weights, mixed[name], here, T, ranks[name], C, out_stride=total, half=True))
            matrix = layer.low_rank_half.second[name]
            seconds.append(Product(matrix.weights, here, second[name], T, C, matrix.K, x_stride=total))
        activate = (low, total, starts["a"], starts["g"], T * total)
        return (
            Together(tuple((first,) for first in firsts)),
            Launch("activate_low", (MANY_BLOCKS,), THREADS, activate),
            Together(tuple((second,) for second in seconds)),
        )

    def _channel_mix(self, i: int, layer: Layer, T: int) -> list[Step]:
        at, C, F = self._at, self._C, self._F
        shift = self._states.shift_ffn(i)
        norm = layer.vector("ln2.weight", C), layer.vector("ln2.bias", C)
        activate = Launch("activate_hidden", (MANY_BLOCKS,), THREADS, (at["h"], T * F // 8))
        keep_shift = Launch(
            "keep_shift", (T,), THREADS, (at["slots"], at["last"], shift, T, C, self._states.size)
        )
        return [
            self._mix(T, at["x"], shift, norm, layer.vector("ffn.x_k", C), 1),
            Together(
                ((*self._product(layer.key, at["mixed"], at["h"], T, half=True), activate), (keep_shift,))
            ),
            *self._product(layer.value, at["h"], at["x"], T, add=True, by_input=True),
        ]

    def _mix(self, T: int, x: int, shift: int, norm: tuple[int, int], mixes: int, n_mixes: int) -> Launch:
        at, C = self._at, self._C
        tokens = math.ceil(T / MIX_BLOCKS)
        arguments = (
            *(x, at["slots"], shift, *norm, mixes, at["mixed"], at["last"]),
            *(T, C, n_mixes, self._states.size, tokens),
        )
        return Launch("mix", (math.ceil(T / tokens),), THREADS, arguments)

    def _product(
        self,
        matrix: Matrix,
        x: int,
        out: int,
        T: int,
        *,
        by_input: bool = False,
        half: bool = False,
        add: bool = False,
        times: int = 1,
    ) -> list[Step]:
        """A matrix, or `times` as many below each other, by as many inputs that lie one after another."""
        weights, scales, R, K = matrix
        steps: list[Step] = []
        if self._weights.type != "fp16":
            rows, columns = (K, R) if by_input else (R, K)
            groups = (GROUP, 1) if by_input else (1, GROUP)
            arguments = (weights, scales, self._at["float16"], rows, columns, *groups)
            steps.append(Launch("dequantize", (MANY_BLOCKS,), THREADS, arguments))
            weights = self._at["float16"]
        return [
            *steps,
            Product(weights, x, out, T, R // times, K, by_input=by_input, half=half, add=add, times=times),
        ]
