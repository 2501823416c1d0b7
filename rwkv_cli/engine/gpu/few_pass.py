"""One token each of 2 to 16 sequences: eight kernels per layer, which read each weight once.

Between a single token, whose products are bound by memory, and many, whose products cuBLAS does well. Kernels begin
before the previous one has ended, and request their first weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rwkv_cli.engine.gpu.decode import RESERVED, projected_blocks
from rwkv_cli.engine.gpu.device_protocol import Buffers, Device
from rwkv_cli.engine.gpu.kernel_sources import constants
from rwkv_cli.engine.gpu.launch_plan import Launch, Step
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import LOW_RANK, WIDTHS, Layer, Matrix, Weights
from rwkv_cli.files.weight_layouts import GROUP

_ROWS, _LOW, _MIX, _HEADS = (constants(f"few_{name}.cu") for name in ("rows", "low", "mix", "heads"))
MOST_TOKENS = _ROWS["MOST_TOKENS"]
THREADS = _ROWS["THREADS"]
EMBED_THREADS = 256
WIDEST_FLOATS = 2560
"""Channels of float16 models: with more, cuBLAS is faster (7.2b, 8 sequences: 6.3 ms and not 6.6)."""


class FewPass:
    """The steps of one token each of up to `MOST_TOKENS` sequences, for one model and the states in slots."""

    def __init__(self, gpu: Device, weights: Weights, states: StateSlots, tokens: int, slots: int) -> None:
        """`tokens` and `slots` are addresses: of the tokens [T], and of each one's slot [T], int32.

        Raises DeviceError if too little memory is free.
        """
        config = weights.config
        self._weights, self._states, self._tokens, self._slots = weights, states, tokens, slots
        self._C, self._F, self._H = config.n_embd, config.n_ffn, config.n_head
        # A multiprocessor must not have the memory for two blocks of a kernel: see `Decoder`.
        self._blocks, self._least_shared = gpu.multiprocessors, gpu.shared_memory // 2 + 1
        width, ranks = WIDTHS[weights.type], [weights.ranks[name] for name in LOW_RANK]
        self._ends = projected_blocks([width * self._C] * 3 + [2.0 * rank for rank in ranks], self._blocks)
        self._value_grid = _, parts = _value_blocks(gpu, weights)
        T, C = MOST_TOKENS, self._C
        self._at = Buffers(
            gpu,
            {
                "x": 4 * T * C,
                "mixed": 2 * T * 6 * C,
                "u_att": 4 * T * C,
                "u_ffn": 4 * T * C,
                "rkv": 4 * T * 3 * C,
                "hidden": 2 * T * sum(weights.ranks.values()),
                "second": 4 * T * len(LOW_RANK) * C,
                "v_first": 4 * T * C,
                "h": 2 * T * self._F,
                "parts": 4 * T * parts * C,
            },
        )

    @staticmethod
    def most_tokens(gpu: Device, weights: Weights) -> int:
        """For how many sequences these kernels are to be used: fewer where shared memory is small, perhaps 0."""
        C, F = weights.config.n_embd, weights.config.n_ffn
        if C > WIDEST_FLOATS if weights.type == "fp16" else C % (2 * GROUP):  # scales are read two at a time
            return 0
        left = gpu.shared_memory - RESERVED
        _, parts = _value_blocks(gpu, weights)
        most = min(
            (left - _rows(weights)["FIXED_BYTES"]) // _row_bytes(C),
            (left - _value(weights)["FIXED_BYTES"]) // _value_bytes(F, parts),
        )
        return min(MOST_TOKENS, most) if most >= 2 else 0

    def steps(self, T: int, out: int) -> list[Step]:
        """Read a token each of T sequences; write the logits [T, V] to the address `out`. V is the head's, padded."""
        w, at = self._weights, self._at
        embed = {
            "tokens": self._tokens,
            "embedding": w.embedding,
            "scales": w.embedding_scales,
            "weight": w.norm("blocks.0.ln0.weight"),
            "bias": w.norm("blocks.0.ln0.bias"),
            "x": at["x"],
            "C": self._C,
        }
        steps: list[Step] = [Launch("embed", (T,), EMBED_THREADS, embed, overlaps=True)]
        for i, layer in enumerate(w.layers):
            steps += self._time_mix(i, layer, T) + self._channel_mix(i, layer, T)
        norm = {
            "x": at["x"],
            "parts": at["parts"],
            "n_parts": self._value_grid[1],
            "weight": w.norm("ln_out.weight"),
            "bias": w.norm("ln_out.bias"),
            "mixed": at["mixed"],
            "T": T,
            "C": self._C,
        }
        head = {"mixed": at["mixed"], "logits": out, "V": w.head.R}
        return [
            *steps,
            Launch("few_norm", (T,), _MIX["THREADS"], norm, overlaps=True),
            self._rows("few_head", w.head, T, head),
        ]

    def _time_mix(self, i: int, layer: Layer, T: int) -> list[Step]:
        at, ranks = self._at, {f"rank_{name}": rank for name, rank in self._weights.ranks.items()}
        *ends, blocks = self._ends  # g1 has the last ones
        project = {
            "mixed": at["mixed"],
            "main": layer.main.weights,
            "scales": layer.main.scales,
            "low": layer.low_rank_half.first.weights,
            "rkv": at["rkv"],
            "hidden": at["hidden"],
            "T": T,
            "C": self._C,
            **dict(zip(("end_r", "end_k", "end_v", "end_w1", "end_a1", "end_v1"), ends, strict=True)),
            **ranks,
        }
        low = {
            "hidden": at["hidden"],
            **{f"{name}2": matrix.weights for name, matrix in layer.low_rank_half.second.items()},
            "second": at["second"],
            "T": T,
            "C": self._C,
            **ranks,
        }
        heads = {
            "rkv": at["rkv"],
            "second": at["second"],
            "vectors": layer.vectors,
            "slots": self._slots,
            "u": at["u_att"],
            "shift": self._states.shift_att(i),
            "wkv": self._states.wkv(i),
            "v_first": at["v_first"],
            "gated": at["mixed"],
            "T": T,
            "C": self._C,
            "is_first": int(i == 0),
            "state_size": self._states.size,
        }
        output = {"gated": at["mixed"], "x": at["x"]}
        tasks, of_a_block = len(LOW_RANK) * self._C // _LOW["TILE"], _LOW["LOW_THREADS"] // _LOW["LANES"]
        return [
            self._mix("few_time_mix", "att", i, layer, T),
            Launch("few_project", (blocks,), THREADS, project, self._row_shared(T), overlaps=True),
            Launch("few_low", (math.ceil(tasks / of_a_block),), _LOW["LOW_THREADS"], low, overlaps=True),
            Launch("few_heads", (self._H, T), _HEADS["THREADS"], heads, overlaps=True),
            self._rows("few_output", layer.output, T, output),
        ]

    def _channel_mix(self, i: int, layer: Layer, T: int) -> list[Step]:
        at = self._at
        hidden = {"mixed": at["mixed"], "h": at["h"], "F": self._F}
        value = {
            "h": at["h"],
            "weights": layer.value.weights,
            "scales": layer.value.scales,
            "slots": self._slots,
            "u": at["u_ffn"],
            "shift": self._states.shift_ffn(i),
            "parts": at["parts"],
            "T": T,
            "C": self._C,
            "F": self._F,
            "state_size": self._states.size,
        }
        inputs = T * _value_bytes(self._F, self._value_grid[1])
        shared = max(_value(self._weights)["FIXED_BYTES"] + inputs, self._least_shared)
        return [
            self._mix("few_channel_mix", "ffn", i, layer, T),
            self._rows("few_hidden", layer.key, T, hidden),
            Launch("few_value", self._value_grid, THREADS, value, shared, overlaps=True),
        ]

    def _mix(self, kernel: str, part: str, i: int, layer: Layer, T: int) -> Launch:
        """Layer norm and token shift of the time mix, "att", or of the channel mix, "ffn"."""
        is_time = part == "att"
        norm = "ln1" if is_time else "ln2"
        arguments = {
            "x": self._at["x"],
            "slots": self._slots,
            "shift": self._states.shift_att(i) if is_time else self._states.shift_ffn(i),
            "weight": layer.vector(f"{norm}.weight", self._C),
            "bias": layer.vector(f"{norm}.bias", self._C),
            "mixes": layer.vector("att.x_r" if is_time else "ffn.x_k", self._C),
            "mixed": self._at["mixed"],
            "u": self._at[f"u_{part}"],
            "T": T,
            "C": self._C,
            "state_size": self._states.size,
        }
        if is_time:
            arguments |= {"parts": self._at["parts"], "n_parts": self._value_grid[1] if i else 0}
        return Launch(kernel, (T,), _MIX["THREADS"], arguments, overlaps=True)

    def _rows(self, kernel: str, matrix: Matrix, T: int, arguments: dict[str, int]) -> Launch:
        """A kernel whose blocks share the rows of a matrix."""
        blocks = min(self._blocks, math.ceil(matrix.R / _ROWS["TILE"]))
        arguments = {**arguments, "weights": matrix.weights, "scales": matrix.scales, "T": T, "C": self._C}
        return Launch(kernel, (blocks,), THREADS, arguments, self._row_shared(T), overlaps=True)

    def _row_shared(self, T: int) -> int:
        return max(_rows(self._weights)["FIXED_BYTES"] + T * _row_bytes(self._C), self._least_shared)


def _rows(weights: Weights) -> Mapping[str, int]:
    return constants("few_rows.cu", weights.type)


def _value(weights: Weights) -> Mapping[str, int]:
    return constants("few_value.cu", weights.type)


def _value_blocks(gpu: Device, weights: Weights) -> tuple[int, int]:
    """The grid of cuda/few_value.cu: of channels and of hidden units."""
    value, config = _value(weights), weights.config
    pieces = math.ceil(config.n_embd / value["CHANNELS"])
    return pieces, max(1, min(gpu.multiprocessors // pieces, config.n_ffn // value["UNITS"]))


def _row_bytes(C: int) -> int:
    """Shared memory of cuda/few_rows.cu for the input of a token."""
    return 2 * (C + _ROWS["INPUT_PAD"])


def _value_bytes(F: int, parts: int) -> int:
    """Shared memory of cuda/few_value.cu for the input of a token."""
    value = constants("few_value.cu")
    units = math.ceil(F // value["UNITS"] / parts)
    return 2 * (units * value["UNITS"] + value["UNIT_PAD"])
