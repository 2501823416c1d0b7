"""RWKV-7 in plain float32 NumPy: the specification that every other backend is tested against.

It follows the RWKV-7 paper (Peng et al., 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", section 4)
and reads one token at a time, in the order of the formulas. Dimension letters are those of `rwkv_cli.config`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import LAYER_NORM_EPS
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import State
from rwkv_cli.files.weight_source import WeightSource
from rwkv_cli.reporting import Progress

Array = NDArray[np.float32]

GROUP_NORM_EPS = 64e-5  # of the norm of each head's output, ln_x
NORMALISE_FLOOR = 1e-12  # the least norm by which a key is divided
DECAY_SCALE = math.exp(-0.5)  # bounds the decay: exp(-exp(-1/2)) = 0.545 <= w <= 1


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = LAYER_NORM_EPS) -> Array:
    """Normalise the last axis of x to mean 0 and variance 1, then scale and shift."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + np.float32(eps)) * weight + bias
    return normed


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), written with tanh so that no x overflows."""
    result: Array = np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x))
    return result


def wkv7(S: Array, r: Array, w: Array, k: Array, v: Array, kk: Array, a: Array) -> Array:
    """One step of the generalised delta rule, for all heads: changes S [H, N, N] in place and gives y [H, N].

    The state maps keys to values. A step decays it (w), removes what it holds under the key kk to the degree a, writes
    v under the key k, and reads it with r:  S = S diag(w) - (S kk)(kk a)^T + v k^T;  y = S r.  All inputs are [H, N].
    """
    held = np.einsum("hij,hj->hi", S, kk)
    S *= w[:, None, :]
    S -= held[:, :, None] * (kk * a)[:, None, :]
    S += v[:, :, None] * k[:, None, :]
    y: Array = np.einsum("hij,hj->hi", S, r)
    return y


class ReferenceBackend(Backend):
    """Holds every weight in float32; any checkpoint or model file can be its source."""

    name = "reference"
    kernel = "plain float32 NumPy, one token at a time"

    def __init__(self, source: WeightSource) -> None:
        self.config = source.config
        self.weights = {name: source.tensor(name) for name in self.config.tensor_shapes()}
        self.blocks = [self._under(f"blocks.{i}.") for i in range(self.config.n_layer)]

    def _under(self, prefix: str) -> dict[str, Array]:
        """The weights whose names start with `prefix`, without it."""
        return {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """The logits [V] after the last token; advances `state`."""
        for token in tokens:
            x = self._layers(token, state)
            if progress:
                progress(1)
        return self._head(x)

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """The logits [T, V] after each token; advances `state`."""
        return np.stack([self._head(self._layers(token, state)) for token in tokens])

    def _layers(self, token: int, state: State) -> Array:
        """The residual stream [C] after the last layer."""
        W = self.weights
        x = layer_norm(W["emb.weight"][token], W["blocks.0.ln0.weight"], W["blocks.0.ln0.bias"])
        v_first: Array | None = None
        for i in range(self.config.n_layer):
            y, v_first = self._time_mix(i, x, v_first, state)
            x = x + y
            x = x + self._channel_mix(i, x, state)
        return x

    def _time_mix(self, i: int, x: Array, v_first: Array | None, state: State) -> tuple[Array, Array]:
        """What takes the place of attention: x [C] -> its output [C], and layer 0's values [C] for the later layers."""
        H, N = self.config.n_head, self.config.head_size
        p = self.blocks[i]

        u = layer_norm(x, p["ln1.weight"], p["ln1.bias"])
        d = state.shift_att[i] - u  # token shift: a learned mix of this token with the last one
        xr, xw, xk, xv, xa, xg = (u + d * p["att.x_" + name] for name in "rwkvag")
        state.shift_att[i] = u

        r = p["att.receptance.weight"] @ xr
        k = p["att.key.weight"] @ xk
        v = p["att.value.weight"] @ xv
        w = np.exp(-DECAY_SCALE * sigmoid(p["att.w0"] + np.tanh(xw @ p["att.w1"]) @ p["att.w2"]))  # decay
        a = sigmoid(p["att.a0"] + (xa @ p["att.a1"]) @ p["att.a2"])  # in-context learning rate
        g = sigmoid(xg @ p["att.g1"]) @ p["att.g2"]  # output gate
        if v_first is None:
            v_first = v
        else:  # value residual
            v = v + (v_first - v) * sigmoid(p["att.v0"] + (xv @ p["att.v1"]) @ p["att.v2"])

        kk = (k * p["att.k_k"]).reshape(H, N)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=1, keepdims=True), NORMALISE_FLOOR)
        k = k * (1 + (a - 1) * p["att.k_a"])

        r, w, k, v, a = (z.reshape(H, N) for z in (r, w, k, v, a))
        y = wkv7(state.wkv[i], r, w, k, v, kk, a)
        y = layer_norm(
            y, p["att.ln_x.weight"].reshape(H, N), p["att.ln_x.bias"].reshape(H, N), GROUP_NORM_EPS
        )
        y = y + (r * k * p["att.r_k"]).sum(axis=1, keepdims=True) * v  # a bonus for the current token
        return p["att.output.weight"] @ (y.reshape(-1) * g), v_first

    def _channel_mix(self, i: int, x: Array, state: State) -> Array:
        """The feed-forward network: x [C] -> its output [C], with a squared ReLU between."""
        p = self.blocks[i]
        u = layer_norm(x, p["ln2.weight"], p["ln2.bias"])
        k = p["ffn.key.weight"] @ (u + (state.shift_ffn[i] - u) * p["ffn.x_k"])
        state.shift_ffn[i] = u
        y: Array = p["ffn.value.weight"] @ np.square(np.maximum(k, 0))
        return y

    def _head(self, x: Array) -> Array:
        """The logits [V] of the residual stream x [C]."""
        W = self.weights
        logits: Array = W["head.weight"] @ layer_norm(x, W["ln_out.weight"], W["ln_out.bias"])
        return logits
