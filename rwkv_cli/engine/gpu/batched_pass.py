"""Many tokens at once: a prompt, or one token each of many sequences. Matrix products run on tensor cores.

Tokens of a sequence are neighbours, and each sequence has its state in a slot of its own. Integer weights are
converted to float16 one matrix at a time, in a buffer for the largest one; low-rank maps are kept in float16.
"""

from __future__ import annotations

import itertools
import math

from rwkv_cli.config import HEAD_SIZE
from rwkv_cli.engine.gpu.device_protocol import Buffers, Device
from rwkv_cli.engine.gpu.kernel_sources import constants
from rwkv_cli.engine.gpu.launch_plan import Launch, Parallel, Product, Step
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import LOW_RANK, Layer, Matrix, Weights
from rwkv_cli.files.weight_layouts import GROUP

_WKV7 = constants("wkv7.cu")
LANES = constants("common.cuh")["LANES"]
MIX_THREADS = constants("mix.cu")["THREADS"]
WKV7_TOKEN_THREADS = constants("wkv7_token.cu")["THREADS"]
THREADS = 256  # of the kernels that take any number
MIX_BLOCKS = 512  # of cuda/mix.cu, about: they fill a GPU, and have some tokens each if there are many
MANY_BLOCKS = 1024  # of kernels whose threads take elements until none is left


def buffer_sizes(weights: Weights, slots: int, capacity: int) -> dict[str, int]:
    """The sizes of the buffers of a pass of up to `capacity` tokens over `slots` states, in bytes, by name."""
    config = weights.config
    C, F = config.n_embd, config.n_ffn
    largest = C * max(F, 3 * C, weights.head.R) if weights.type != "fp16" else 0
    return {
        "tokens": 4 * capacity,
        "slots": 4 * capacity,
        "begins": 4 * (capacity + 1),
        "x": 4 * capacity * C,
        "mixed": 2 * capacity * 6 * C,
        "rkv": 4 * capacity * 3 * C,
        "low": 2 * capacity * sum(weights.ranks.values()),
        "second": 4 * capacity * 4 * C,  # the outputs of w2, a2, v2 and g2
        "v_first": 4 * capacity * C,
        "kk": 4 * capacity * C,
        "bonus": 4 * capacity * config.n_head,
        "h": 2 * capacity * F,
        "last": 4 * slots * C,
        "float16": 2 * largest,
    }


class BatchedPass:
    """Buffers for passes of up to `capacity` tokens, and the steps of such passes."""

    def __init__(self, gpu: Device, weights: Weights, states: StateSlots, capacity: int) -> None:
        """Raises DeviceError if too little memory is free."""
        self.capacity = capacity
        self._weights, self._states = weights, states
        config = weights.config
        self._C, self._F, self._H = config.n_embd, config.n_ffn, config.n_head
        self._ranks = sum(weights.ranks.values())
        self._at = Buffers(gpu, buffer_sizes(weights, states.slots, capacity))

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
        """Read T tokens of some sequences: advances their states, and leaves the residual stream for `logits`."""
        w = self._weights
        embed = {
            "tokens": self._at["tokens"],
            "embedding": w.embedding,
            "scales": w.embedding_scales,
            "weight": w.norm("blocks.0.ln0.weight"),
            "bias": w.norm("blocks.0.ln0.bias"),
            "x": self._at["x"],
            "C": self._C,
        }
        steps: list[Step] = [Launch("embed", (T,), THREADS, embed)]
        for i, layer in enumerate(w.layers):
            steps += self._time_mix(i, layer, T, sequences) + self._channel_mix(i, layer, T)
        return steps

    def logits(self, T: int, out: int, last_of: int = 0) -> list[Step]:
        """The logits [T, V] of all T tokens or, if `last_of` is not 0, [last_of, V] of that many sequences' last ones.

        V is that of the head, padded.
        """
        w, at = self._weights, self._at
        steps: list[Step] = []
        x, rows = at["x"], T
        if last_of:
            x, rows = at["second"], last_of
            gather = {"from": at["x"], "ends": at["begins"] + 4, "to": x, "C": self._C}
            steps.append(Launch("gather", (rows,), THREADS, gather))
        steps.append(self._mix(rows, x, w.norm("ln_out.weight"), w.norm("ln_out.bias")))
        return steps + self._product(w.head, at["mixed"], out, rows)

    def _time_mix(self, i: int, layer: Layer, T: int, sequences: int) -> list[Step]:
        at, C = self._at, self._C
        plane = 4 * T * C  # bytes of [T, C] in float32
        rkv = {name: at["rkv"] + plane * j for j, name in enumerate("rkv")}
        second = {name: at["second"] + plane * j for j, name in enumerate(LOW_RANK)}
        mixed = {name: at["mixed"] + plane // 2 * j for j, name in enumerate("rkvwag")}
        weight, bias = layer.vector("ln1.weight", C), layer.vector("ln1.bias", C)
        mixes, shift = layer.vector("att.x_r", C), self._states.shift_att(i)
        products = self._product(layer.main, at["mixed"], rkv["r"], T, times=3)
        return [
            self._mix(T, at["x"], weight, bias, shift=shift, mixes=mixes, n_mixes=6),
            Parallel((tuple(products), self._low_rank(layer, mixed, second, T))),
            self._prepare(i, layer, rkv, second, T),
            self._recurrence(i, rkv, second, T, sequences),
            self._gate(layer, rkv["v"], second, T),
            *self._product(layer.output, at["mixed"], at["x"], T, add=True),
        ]

    def _prepare(self, i: int, layer: Layer, rkv: dict[str, int], second: dict[str, int], T: int) -> Launch:
        arguments = {
            **rkv,
            "w": second["w"],
            "a": second["a"],
            "towards_first": second["v"],
            "v_first": self._at["v_first"],
            "kk": self._at["kk"],
            "bonus": self._at["bonus"],
            "vectors": layer.vectors,
            "T": T,
            "C": self._C,
            "is_first": int(i == 0),
        }
        return Launch("prepare", (self._warp_blocks(T),), THREADS, arguments)

    def _recurrence(
        self, i: int, rkv: dict[str, int], second: dict[str, int], T: int, sequences: int
    ) -> Launch:
        """y [T, C] goes to where v2's output was, which `prepare` has used."""
        at = self._at
        arguments = {
            **rkv,
            "w": second["w"],
            "kk": at["kk"],
            "b": second["a"],
            "y": second["v"],
            "slots": at["slots"],
            "wkv": self._states.wkv(i),
            "shift": self._states.shift_att(i),
            "last": at["last"],
            "C": self._C,
            "state_size": self._states.size,
        }
        if sequences == T:
            return Launch("wkv7_token", (self._H, T), WKV7_TOKEN_THREADS, arguments)
        grid = self._H, HEAD_SIZE // _WKV7["VALUES"], sequences
        return Launch("wkv7", grid, _WKV7["THREADS"], {**arguments, "begins": at["begins"]})

    def _gate(self, layer: Layer, v: int, second: dict[str, int], T: int) -> Launch:
        arguments = {
            "y": second["v"],
            "v": v,
            "g": second["g"],
            "bonus": self._at["bonus"],
            "weight": layer.vector("att.ln_x.weight", self._C),
            "bias": layer.vector("att.ln_x.bias", self._C),
            "gated": self._at["mixed"],
            "T": T,
            "C": self._C,
        }
        return Launch("gate", (self._warp_blocks(T),), THREADS, arguments)

    def _warp_blocks(self, T: int) -> int:
        """Blocks of kernels with a warp for each head of each token."""
        return math.ceil(T * self._H * LANES / THREADS)

    def _low_rank(
        self, layer: Layer, mixed: dict[str, int], second: dict[str, int], T: int
    ) -> tuple[Step, ...]:
        """Both halves of the maps of w, a, v and g, with what is between them."""
        low, total, C, ranks = self._at["low"], self._ranks, self._C, self._weights.ranks
        starts = dict(zip(ranks, itertools.accumulate(ranks.values(), initial=0), strict=False))
        firsts, seconds = [], []
        for name, start in starts.items():
            if not ranks[name]:
                continue
            weights, here = layer.low_rank_half.first.weights + 2 * start * C, low + 2 * start
            firsts.append(Product(weights, mixed[name], here, T, ranks[name], C, out_stride=total, half=True))
            matrix = layer.low_rank_half.second[name]
            seconds.append(Product(matrix.weights, here, second[name], T, C, matrix.K, x_stride=total))
        activate = {"low": low, "ranks": total, "end_w": starts["a"], "end_v": starts["g"], "size": T * total}
        return (
            Parallel(tuple((first,) for first in firsts)),
            Launch("activate_low", (MANY_BLOCKS,), THREADS, activate),
            Parallel(tuple((second,) for second in seconds)),
        )

    def _channel_mix(self, i: int, layer: Layer, T: int) -> list[Step]:
        at, C = self._at, self._C
        weight, bias = layer.vector("ln2.weight", C), layer.vector("ln2.bias", C)
        mixes, shift = layer.vector("ffn.x_k", C), self._states.shift_ffn(i)
        activate = Launch(
            "activate_hidden", (MANY_BLOCKS,), THREADS, {"h": at["h"], "size": T * self._F // 8}
        )
        keep_shift = {
            "slots": at["slots"],
            "last": at["last"],
            "shift": shift,
            "T": T,
            "C": C,
            "state_size": self._states.size,
        }
        hidden = (*self._product(layer.key, at["mixed"], at["h"], T, half=True), activate)
        return [
            self._mix(T, at["x"], weight, bias, shift=shift, mixes=mixes, n_mixes=1),
            Parallel((hidden, (Launch("keep_shift", (T,), THREADS, keep_shift),))),
            *self._product(layer.value, at["h"], at["x"], T, add=True, by_input=True),
        ]

    def _mix(
        self, T: int, x: int, weight: int, bias: int, *, shift: int = 0, mixes: int = 0, n_mixes: int = 0
    ) -> Launch:
        """Layer norm and token shift; without `mixes` the norm alone, in float16."""
        tokens = math.ceil(T / MIX_BLOCKS)  # of a block
        arguments = {
            "x": x,
            "slots": self._at["slots"],
            "shift": shift,
            "weight": weight,
            "bias": bias,
            "mixes": mixes,
            "mixed": self._at["mixed"],
            "last": self._at["last"],
            "T": T,
            "C": self._C,
            "n_mixes": n_mixes,
            "state_size": self._states.size,
            "tokens": tokens,
        }
        return Launch("mix", (math.ceil(T / tokens),), MIX_THREADS, arguments)

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
        """A matrix times x; or `times` matrices, concatenated along the rows, times as many inputs in a row."""
        weights, scales, R, K = matrix
        steps: list[Step] = []
        if self._weights.type != "fp16":
            rows, columns = (K, R) if by_input else (R, K)
            arguments = {
                "weights": weights,
                "scales": scales,
                "to": self._at["float16"],
                "R": rows,
                "K": columns,
                "row_group": GROUP if by_input else 1,
                "column_group": 1 if by_input else GROUP,
            }
            steps.append(Launch("dequantize", (MANY_BLOCKS,), THREADS, arguments))
            weights = self._at["float16"]
        return [
            *steps,
            Product(weights, x, out, T, R // times, K, by_input=by_input, half=half, add=add, times=times),
        ]
