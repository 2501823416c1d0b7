"""Rounding to int4 with a look at activations: errors of a column are made up for by the columns after it.

The method is GPTQ (Frantar et al., 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers"), with groups and scales as `files.quantization` stores them: a text is read layer by layer, with the
layers below already rounded, and each matrix is rounded so that its outputs on that text change least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.convert.conversion import Source
from rwkv_cli.convert.quantization_loss import tokenizer_of
from rwkv_cli.engine.backends.reference import (
    DECAY_SCALE,
    GROUP_NORM_EPS,
    NORMALISE_FLOOR,
    layer_norm,
    sigmoid,
    wkv7,
)
from rwkv_cli.errors import UsageError
from rwkv_cli.files.quantization import GROUP, INT4_OFFSET, Array, bf16_to_f32, f32_to_bf16, search_int4
from rwkv_cli.files.weight_source import WeightSource

LEAST_TOKENS = 512

Rounded = tuple[NDArray[np.uint8], NDArray[np.uint16]]

LENGTH = 256
"""Tokens of each piece of the text, which is read from an empty state."""

MOST_TOKENS = 16_384
DAMPING = 0.01
"""Added to the diagonal of X^T X, as a share of its mean: inputs that never occur must not be free."""


def for_text(source: Source, text: str) -> Calibration:
    """The calibration of a model. Raises UsageError if it has no tokenizer, or the text is too short."""
    tokens = tokenizer_of(source).encode(text)
    if len(tokens) < LEAST_TOKENS:
        raise UsageError(
            f"the text to calibrate with has {len(tokens):,} tokens: it must have at least {LEAST_TOKENS}, and better "
            "ten thousand"
        )
    return Calibration(source.weights, tokens)


class Calibration:
    """The rounding of a model's matrices for a text: call it with names in the order of a pass."""

    def __init__(self, source: WeightSource, tokens: Sequence[int]) -> None:
        """At most the first `MOST_TOKENS` tokens are read."""
        self._source, self._config = source, source.config
        length = min(LENGTH, len(tokens))
        pieces = np.array(tokens[: min(len(tokens), MOST_TOKENS) // length * length]).reshape(-1, length)
        embedded = source.tensor("emb.weight")[pieces]
        weight, bias = (source.tensor(f"blocks.0.ln0.{part}") for part in ("weight", "bias"))
        self._x = layer_norm(embedded, weight, bias)
        self._v_first: Array | None = None
        self._rounded: dict[str, Rounded] = {}

    def __call__(self, name: str, tensor: Array) -> Rounded:
        """The integers [R, K] and scales [R, K/64] of a matrix, as `quantize_int4` gives them."""
        if name not in self._rounded:
            if name.startswith("blocks."):
                self._read_layer(int(name.split(".")[1]))
            else:
                weight, bias = self._source.tensor("ln_out.weight"), self._source.tensor("ln_out.bias")
                self._round(name, tensor, layer_norm(self._x, weight, bias))
        return self._rounded.pop(name)

    def _round(self, name: str, matrix: Array, inputs: Array) -> Array:
        """Round a matrix for its inputs [B, T, K], and return what is stored of it."""
        X = inputs.reshape(-1, inputs.shape[-1])
        q, scale = self._rounded[name] = round_for(matrix, X.T @ X)
        groups = (q.astype(np.float32) - INT4_OFFSET).reshape(*scale.shape, GROUP)
        restored: Array = (groups * bf16_to_f32(scale)[..., None]).reshape(matrix.shape)
        return restored

    def _read_layer(self, i: int) -> None:
        """Round the matrices of a layer, and read the text with what became of them."""
        prefix = f"blocks.{i}."
        names = (name for name in self._config.tensor_shapes() if name.startswith(prefix))
        p = {name.removeprefix(prefix): self._source.tensor(name) for name in names}
        x = self._x + self._time_mix(prefix, p)
        u, before = _shifted(layer_norm(x, p["ln2.weight"], p["ln2.bias"]))
        mixed = u + (before - u) * p["ffn.x_k"]
        key = self._round(prefix + "ffn.key.weight", p["ffn.key.weight"], mixed)
        hidden: Array = np.square(np.maximum(mixed @ key.T, np.float32(0)))
        value = self._round(prefix + "ffn.value.weight", p["ffn.value.weight"], hidden)
        self._x = x + hidden @ value.T

    def _time_mix(self, prefix: str, p: Mapping[str, Array]) -> Array:
        """The output [B, T, C] of the time mix; see `ReferenceBackend`."""
        H, N = self._config.n_head, self._config.head_size
        u, before = _shifted(layer_norm(self._x, p["ln1.weight"], p["ln1.bias"]))
        xr, xw, xk, xv, xa, xg = (u + (before - u) * p["att.x_" + name] for name in "rwkvag")
        r, k, v = (
            mixed @ self._round(f"{prefix}att.{name}.weight", p[f"att.{name}.weight"], mixed).T
            for name, mixed in (("receptance", xr), ("key", xk), ("value", xv))
        )
        decay: Array = np.tanh(xw @ p["att.w1"]) @ p["att.w2"]
        w = np.exp(-DECAY_SCALE * sigmoid(p["att.w0"] + decay))
        a = sigmoid(p["att.a0"] + (xa @ p["att.a1"]) @ p["att.a2"])
        g = sigmoid(xg @ p["att.g1"]) @ p["att.g2"]
        if self._v_first is None:
            self._v_first = v
        else:
            v = v + (self._v_first - v) * sigmoid(p["att.v0"] + (xv @ p["att.v1"]) @ p["att.v2"])
        B, T, C = v.shape
        kk = (k * p["att.k_k"]).reshape(B, T, H, N)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), NORMALISE_FLOOR)
        k = k * (1 + (a - 1) * p["att.k_a"])
        r, w, k, v, a = (z.reshape(B, T, H, N) for z in (r, w, k, v, a))
        y, S = np.empty_like(v), np.zeros((B * H, N, N), np.float32)
        for t in range(T):
            y[:, t] = wkv7(S, *(z[:, t].reshape(-1, N) for z in (r, w, k, v, kk, a))).reshape(B, H, N)
        weight, bias = (p[f"att.ln_x.{part}"].reshape(H, N) for part in ("weight", "bias"))
        y = layer_norm(y, weight, bias, GROUP_NORM_EPS) + (r * k * p["att.r_k"]).sum(-1, keepdims=True) * v
        gated: Array = y.reshape(B, T, C) * g
        output: Array = gated @ self._round(prefix + "att.output.weight", p["att.output.weight"], gated).T
        return output


def _shifted(u: Array) -> tuple[Array, Array]:
    """u [B, T, C], and what the token before had."""
    before = np.zeros_like(u)
    before[:, 1:] = u[:, :-1]
    return u, before


def round_for(matrix: Array, gram: Array) -> Rounded:
    """Round W [R, K] so that |(W - Q) X^T| is small, given X^T X [K, K]: integers [R, K] and scales [R, K/64]."""
    R, K = matrix.shape
    U = _inverse_factor(gram)
    work = matrix.astype(np.float32, copy=True)
    q, scale = np.empty((R, K), np.uint8), np.empty((R, K // GROUP), np.uint16)
    for start in range(0, K, GROUP):
        stop = start + GROUP
        best = search_int4(work[:, start:stop])
        scale[:, start // GROUP] = f32_to_bf16(best)[:, 0]
        step = np.where(best != 0, best, np.float32(np.inf))[:, 0]
        errors = np.empty((R, GROUP), np.float32)
        for j in range(start, stop):
            rounded = np.clip(np.rint(work[:, j] / step), -INT4_OFFSET, INT4_OFFSET - 1)
            q[:, j] = (rounded + INT4_OFFSET).astype(np.uint8)
            errors[:, j - start] = (work[:, j] - rounded * best[:, 0]) / U[j, j]
            work[:, j + 1 : stop] -= errors[:, j - start, None] * U[j, j + 1 : stop]
        work[:, stop:] -= errors @ U[start:stop, stop:]
    return q, scale


def _inverse_factor(gram: Array) -> NDArray[Any]:
    """The upper triangular U with U^T U = (X^T X + damping)^-1."""
    K = len(gram)
    mean = max(float(np.diag(gram).mean()), 1e-30)
    damped = gram.astype(np.float64) / mean + DAMPING * np.eye(K)
    # With the columns reversed, the factor of the inverse is the inverse of a factor: no product is inverted.
    factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # upper: damped = factor factor^T
    return np.linalg.inv(factor).astype(np.float32)
